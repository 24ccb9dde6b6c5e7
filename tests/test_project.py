"""Projects: what lies in the folder, what may be read, what is remembered, work in the background."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from drawn import HOLD_LOCK, StubPredictor, draw_dataset, draw_film, draw_picture, draw_shots, planes_in

import studio
import test
import train
from colorizer.predictor import Predictor
from config import FilmConfig, StudioConfig, TrainConfig
from editing import training_job as learning
from editing.frame_reader import FrameReader, read_timestamps
from editing.jobs import BackgroundRunner, BackgroundTask, PredictorCache, Stopped, color, find_shots
from editing.project import Facts, Found, Project, open_project
from editing.recolor import Change, Recolored
from fileio.images import read_image, write_image
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import UserError

SHOTS = [(60, 14), (200, 12), (110, 16)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """best.pt of a small network, and gray.mkv, of three shots."""
    home = draw_dataset(tmp_path_factory.mktemp("home"))
    train.train(TrainConfig(data_path=str(home), save_path=str(home), width=4, batch_size=4, end_epoch=1))
    draw_shots(home / "gray.mkv", SHOTS, hold=4)
    return home


@pytest.fixture
def project(tmp_path, home):
    with open_project(tmp_path / "project", [home]) as project:
        project.choose_film(home / "gray.mkv")
        yield project


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def test_a_project_is_opened_where_it_stood(tmp_path, home):
    folder = tmp_path / "project"
    with open_project(folder, [home]) as project:
        project.choose_film(home / "gray.mkv")
        project.take_checkpoint(home / "best.pt")
        project.split(7)
        project.join(26)
        project.remember(3, draw_picture(1, (128, 96)))
        facts = project.facts
    (folder / ".project.partial.json").write_text("{")  # of a program that was killed
    with open_project(folder) as again:
        assert again.facts == facts and again.film.path == home / "gray.mkv"
        assert again.checkpoint.read_bytes() == (home / "best.pt").read_bytes()
    assert not list(folder.glob(".*")), "neither a lock nor a half-written file is left"
    plain = json.loads((folder / "project.json").read_text())
    assert plain["cut_at"] == [7] and plain["corrections"] == [{"file": "frame_000003.png", "frame": 3}]


def test_one_program_at_a_time_works_on_a_project(tmp_path):
    folder = tmp_path / "project"
    with open_project(folder):
        pass
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, folder / ".lock"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another studio works on"), open_project(folder):
            pass
        other.communicate(b"\n", timeout=60)
    with open_project(folder) as project:
        assert project.facts == Facts()


def test_what_is_there_is_not_taken_for_a_project(tmp_path, home):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="no project"), open_project(tmp_path):
        pass
    with open_project(tmp_path / "new", [home]) as project:
        project.choose_film(home / "gray.mkv")
        draw_film(home / "other.mp4")
        with pytest.raises(UserError, match="colors gray.mkv"):
            project.choose_film(home / "other.mp4")
        project.take_checkpoint(home / "best.pt")
        with pytest.raises(UserError, match="another checkpoint"):
            project.take_checkpoint(home / "last.pt")
        with pytest.raises(UserError, match="not a checkpoint"):
            project.take_checkpoint(home / "gray.mkv", replace=True)
        assert project.checkpoint.read_bytes() == (home / "best.pt").read_bytes()


SOUND = {"format": 1, "film": "", "cut_at": [], "join_at": [], "corrections": [], "changes": []}


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"format": 1, "film": ""}', *(json.dumps(SOUND | spoiled) for spoiled in (
        {"format": 2}, {"film": 3}, {"cut_at": ["4"]}, {"cut_at": [-1]}, {"cut_at": 7}, {"join_at": [True]},
        {"more": 1}, {"corrections": [{"file": "../../x.png", "frame": 1}]},
        {"corrections": [{"file": "x.png", "frame": 1, "y": 2}]},
        {"corrections": [{"file": "x.png", "frame": "1"}]}, {"corrections": ["x"]}, {"changes": [["#123456", "red"]]},
        {"changes": [["#123456"]]}, {"changes": "ab"}))])
def test_a_spoiled_project_is_refused(tmp_path, text):
    (tmp_path / "project.json").write_text(text)
    with pytest.raises(UserError, match="project.json is not that of a project"), open_project(tmp_path):
        pass
    assert (tmp_path / "project.json").read_text() == text


# ---------------------------------------------------------------------------------------------------------------------
# What may be read


def test_only_what_was_given_is_read(tmp_path, home):
    given, outside = tmp_path / "given", tmp_path / "outside.mkv"
    given.mkdir()
    outside.write_bytes((home / "gray.mkv").read_bytes())
    (given / "film.mkv").write_bytes(outside.read_bytes())
    (given / "way_out.mkv").symlink_to(outside)
    with open_project(tmp_path / "project", [given]) as project:
        for path in (outside, given / ".." / "outside.mkv", given / "way_out.mkv", "/etc/passwd", "film\0.mkv", ""):
            with pytest.raises(UserError, match="outside the folders|no file"):
                project.choose_film(path)
        with pytest.raises(UserError, match="there is no file"):
            project.choose_film(given / "nothing.mkv")
        assert project.facts.film == ""
        assert given / "film.mkv" in project.reach.files([".mkv"])
        project.choose_film(given / "film.mkv")
        assert project.facts.film == str(given / "film.mkv")


@pytest.mark.parametrize("name", ["..", ".hidden.mkv", "a b;$(touch x).mkv", "\u202e.mkv", "x" * 240 + ".mkv",
                                  "-rf.mkv"])
def test_names_of_uploads_are_tamed(project, tmp_path, name):
    sent = tmp_path / ("sent" if name == ".." else name)
    sent.write_bytes(b"1")
    taken = project.take_upload(sent)
    assert taken.parent == project.folder / "uploads" and taken.read_bytes() == b"1"
    assert taken.name.isascii() and not set(taken.name) & set(" ;$()/\\") and not taken.name.startswith(".")
    assert project.take_upload(sent) == taken, "the same again is no second file"
    sent.write_bytes(b"2")
    assert project.take_upload(sent) != taken and taken.read_bytes() == b"1"


# ---------------------------------------------------------------------------------------------------------------------
# What is remembered


def test_what_is_remembered_can_be_taken_back(project):
    first, second = draw_picture(1), draw_picture(2)
    project.remember(12, first)
    project.remember(12, second)
    assert [each.frame for each in project.facts.corrections] == [12], "a frame is corrected once"
    assert np.array_equal(read_image(project.references / "frame_000012.png"), second)
    project.take_back("frame_000012.png")
    assert not project.facts.corrections and not project.reference_pictures()
    kept = sorted((project.folder / "taken_back").iterdir())
    assert [bool(np.array_equal(read_image(path), picture)) for path, picture in zip(kept, (first, second), strict=True)
            ] == [True, True], "nothing is thrown away"
    with pytest.raises(UserError, match="no correction"):
        project.take_back("frame_000012.png")
    with pytest.raises(UserError, match="no correction passwd"):
        project.take_back("../../etc/passwd")
    with pytest.raises(UserError, match="no color"):
        project.remember(3, np.full((96, 128, 3), 90, np.uint8))


def test_a_file_that_was_removed_by_hand_can_be_taken_back(project):
    project.remember(1, draw_picture(1))
    (project.references / "frame_000001.png").unlink()
    project.take_back("frame_000001.png")
    assert not project.facts.corrections


# ---------------------------------------------------------------------------------------------------------------------
# Cuts


@pytest.mark.parametrize("cut_at, join_at, starts", [
    ((), (), [0, 14, 26]), ((7,), (), [0, 7, 14, 26]), ((), (14,), [0, 26]), ((30, 5), (26,), [0, 5, 14, 30]),
    ((14,), (), [0, 14, 26]), ((4000, 0), (1,), [0, 14, 26]), ((13, 15), (14, 26), [0, 13, 15])])
def test_cuts_can_be_mended(tmp_path, home, cut_at, join_at, starts):
    records = color_film(StubPredictor(), VideoFile(home / "gray.mkv"), tmp_path / "colored.mkv",
                         FilmConfig(cut_at=cut_at, join_at=join_at))
    assert [record.start_frame for record in records] == starts and records[-1].end_frame == 42
    assert len(planes_in(tmp_path / "colored.mkv")) == 42
    found = Found(records.pts, [0, 14, 26], [b""], 1)
    shown = found.shots(Facts(cut_at=list(cut_at), join_at=list(join_at)))
    assert [start for start, _ in shown] == starts and shown[-1][1] == 42


def test_a_mended_cut_is_mended_back(project):
    project.split(7)
    project.join(7)
    assert project.facts.cut_at == project.facts.join_at == []
    project.join(14)
    project.split(14)
    assert project.facts.cut_at == project.facts.join_at == []
    with pytest.raises(UserError, match="first shot"):
        project.join(0)


def test_shots_are_found_without_a_checkpoint(project):
    work = BackgroundTask()
    find_shots(project, work)
    found = project.found()
    assert found.starts == [0, 14, 26] and len(found.pts) == 42 and len(found.pictures) == 42
    shown = read_image(_write(project.folder / "page.jpg", found.picture(20)))
    assert abs(float(shown.mean()) - 200) < 20, "the picture is that of the frame"
    work.stop.set()
    with pytest.raises(Stopped):
        find_shots(project, work)


def _write(path, data):
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Coloring


def test_the_film_is_colored_as_on_the_command_line(project, home, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "fit_response", lambda *_: None)  # which takes longer than all else
    predictors = PredictorCache(project)
    with pytest.raises(UserError, match="no checkpoint"):
        predictors.plain()
    project.take_checkpoint(home / "best.pt")
    project.remember(5, draw_picture(1, (128, 96)))
    assert not project.is_current()
    work = BackgroundTask()
    color(project, predictors, work)
    assert project.is_current() and len(project.records()) == 3
    test.main(["--checkpoint", str(project.checkpoint), "--input", str(home / "gray.mkv"), "--output",
               str(tmp_path / "line.mkv"), "--references", str(project.references), "--suggest", "0"])
    ours, line = planes_in(project.colored), planes_in(tmp_path / "line.mkv")
    assert len(ours) == len(line) == 42
    assert all(np.array_equal(a, b) for x, y in zip(ours, line, strict=True) for a, b in zip(x, y, strict=True))
    records = project.records()
    again = Project(project.folder)
    assert again.is_current() and np.array_equal(again.records()[1].result, records[1].result)
    project.take_back("frame_000005.png")
    assert not project.is_current()


def test_coloring_can_be_stopped(project, home):
    project.take_checkpoint(home / "best.pt")
    work = BackgroundTask()
    work.stop.set()
    with pytest.raises(Stopped):
        color(project, PredictorCache(project), work)
    assert not project.colored.exists() and project.records() is None


# ---------------------------------------------------------------------------------------------------------------------
# In the background


def test_one_work_at_a_time():
    background, go = BackgroundRunner(), threading.Event()
    background.start("coloring", lambda work: go.wait(20))
    with pytest.raises(UserError, match="coloring is still going on"):
        background.start("training", lambda work: None)
    go.set()
    background.thread.join(20)
    assert not background.work.running and background.work.done == 1 and not background.work.error

    def fail(work):
        raise UserError("the film is gone; put it back")

    background.start("coloring", fail)
    background.thread.join(20)
    assert background.work.error == "the film is gone; put it back"

    def wait(work):
        while True:
            time.sleep(0.01)
            work.go_on()

    background.start("coloring", wait)
    background.stop(20)
    assert not background.work.running and background.work.note == "stopped" and not background.work.error


def test_frames_are_those_of_the_film(tmp_path):
    film = draw_film(tmp_path / "film.mp4", times=range(60))
    whole = planes_in(film)
    frames = FrameReader(VideoFile(film), read_timestamps(film))
    assert len(frames) == 60
    for index in (30, 31, 29, 0, 59, 58, 12, 13, 14, 40, 30):
        assert np.array_equal(frames.read(index).y, whole[index][0]), index
    with pytest.raises(UserError, match="no frame 60"):
        frames.read(60)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/project")):
        with pytest.raises(UserError, match=f"--project {folder}"), open_project(folder):
            pass
    assert os.listdir(tmp_path) == ["file"]


def test_a_color_is_changed_everywhere_and_back(project, home):
    project.take_checkpoint(home / "best.pt")
    plain = project._state()
    project.change_color("#ee6c80", "#2255cc")
    project.change_color("#ee6c80", "#22cc55")
    assert Project(project.folder).facts.changes == [["#ee6c80", "#22cc55"]] and project._state() != plain
    with pytest.raises(UserError, match="no color"):
        project.change_color("#ee6c80", "blue; rm")
    project.change_color("#ee6c80", "#ee6c80")
    assert project.facts.changes == [] and project._state() == plain


def test_a_film_with_changed_colors_is_built_upon_as_well():
    predictor, red, green = StubPredictor(), Change("#ee6c80", "#2255cc"), Change("#ee6c80", "#22cc55")
    assert Recolored(predictor, [red]).base_identity == "", "what cannot tell what it reads cannot with changes, either"
    predictor.base_identity = "a checkpoint"
    origins = {Recolored(predictor, changes).base_identity for changes in ([red], [green], [red, green])}
    assert len(origins) == 3 and predictor.base_identity not in origins
    assert Recolored(predictor, [red]).base_identity == Recolored(predictor, [Change(*red)]).base_identity


def test_pictures_of_the_references_folder(project):
    more = project.reference_pictures({4: draw_picture(2), 3: draw_picture(1)})
    assert [bool(np.array_equal(a, draw_picture(b))) for a, b in zip(more, (1, 2), strict=True)] == [True, True]
    write_image(project.references / "b.png", draw_picture(1))
    write_image(project.references / "a.png", np.full((9, 9, 3), 90, np.uint8))
    assert len(project.reference_pictures()) == 1, "a gray one waits to be painted"


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_what_the_command_line_names(tmp_path, home, monkeypatch):
    monkeypatch.setattr(studio, "DEMO_CHECKPOINT", home / "best.pt")
    with open_project(tmp_path / "one", [home, studio.DEMO_FILM.parent]) as project:
        named = StudioConfig(input=home / "gray.mkv", checkpoint=home / "best.pt")
        studio.prepare(project, named)
        assert project.film.path == home / "gray.mkv" and project.checkpoint
        for config in (named, StudioConfig()):  # again, and as it stood
            studio.prepare(project, config)
            assert project.film.path == home / "gray.mkv"
        with pytest.raises(UserError, match="colors gray.mkv"):
            studio.prepare(project, StudioConfig(input=studio.DEMO_FILM))
    with open_project(tmp_path / "two", [studio.DEMO_FILM.parent]) as project:
        studio.prepare(project, StudioConfig())
        assert project.film.path == studio.DEMO_FILM and project.checkpoint
    monkeypatch.setattr(studio, "DEMO_CHECKPOINT", home / "nothing.pt")
    with open_project(tmp_path / "three", [studio.DEMO_FILM.parent]) as project:
        studio.prepare(project, StudioConfig())
        assert project.checkpoint is None, "it begins by training"


@pytest.mark.parametrize("settings, message", [
    ({"port": 0}, "--port is 0"), ({"port": 70000}, "--port"), ({"folders": [Path("/nowhere")]}, "no folder /nowhere")])
def test_settings_of_the_studio(settings, message):
    with pytest.raises(UserError, match=message):
        StudioConfig(**settings).check()


@pytest.mark.parametrize("program, stop, message", [
    ("import sys; sys.exit('error: there is no room left; make some')", False, "^there is no room left; make some$"),
    ("import os; os.abort()", False, "train.py ended by itself; see .*training.log"),
    ("import time; print(flush=True); time.sleep(60)", True, "stopped before its first epoch")])
def test_a_training_that_fails_is_told_in_a_sentence(project, home, monkeypatch, program, stop, message):
    monkeypatch.setattr(learning, "SCRIPT", [sys.executable, "-c", program])
    work = BackgroundTask()
    if stop:
        work.stop.set()
    with pytest.raises(UserError, match=message):
        learning.learn(project, sorted((home / "train").glob("*.png")), 1, work)
    assert project.checkpoint is None
