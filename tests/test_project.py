"""Tests of projects: the folder, allowed paths, references, cuts and background jobs."""

import json
import os
import shlex
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

from resources.draw_episodes import draw_sheet

from colorizer.characters import read_characters
from colorizer.predictor import Predictor
from colorizer.references import Reference, read_references
from config import FilmConfig, StudioConfig, TrainConfig
from editing import training_job
from editing.background import BackgroundJob, Canceled, JobRunner
from editing.coloring_job import PredictorCache, color_project, find_shots
from editing.character_sheets import find_sheets
from editing.export import command_line
from editing.frame_reader import FrameReader, index_frames
from editing.project import Project, open_project
from editing.project_settings import ProjectSettings
from editing.shot_preview import ShotPreview
from fileio.images import read_image, write_image
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import UserError, read_flags

SHOTS = [(60, 14), (200, 12), (110, 16)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with best.pt of a small network, and gray.mkv with three shots."""
    home = draw_dataset(tmp_path_factory.mktemp("home"))
    train.train(TrainConfig(data_path=str(home), save_path=str(home), width=4, batch_size=4, end_epoch=1))
    draw_shots(home / "gray.mkv", SHOTS, hold=4)
    write_image(home / "ruby.png", draw_sheet("ruby", "stand"))
    return home


@pytest.fixture
def project(tmp_path, home):
    with open_project(tmp_path / "project", [home]) as project:
        project.choose_film(home / "gray.mkv")
        yield project


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def test_a_project_is_restored_when_it_is_opened_again(tmp_path, home):
    folder = tmp_path / "project"
    with open_project(folder, [home]) as project:
        project.choose_film(home / "gray.mkv")
        project.add_checkpoint(home / "best.pt")
        project.split_shot(7)
        project.join_shot(26)
        project.add_reference(3, draw_picture(1, (128, 96)))
        settings = project.settings
    (folder / ".project.partial.json").write_text("{")  # of a process that was killed
    with open_project(folder) as again:
        assert again.settings == settings and again.film.path == home / "gray.mkv"
        assert again.checkpoint.read_bytes() == (home / "best.pt").read_bytes()
    assert not list(folder.glob(".*")), "neither the lock nor a partial file remains"
    plain = json.loads((folder / "project.json").read_text())
    assert plain["cut_at"] == [7] and plain["references"] == [{"file": "frame_000003.png", "frame": 3}]


def test_only_one_process_opens_a_project(tmp_path):
    folder = tmp_path / "project"
    with open_project(folder):
        pass
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, folder / ".lock"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another studio uses"), open_project(folder):
            pass
        other.communicate(b"\n", timeout=60)
    with open_project(folder) as project:
        assert project.settings == ProjectSettings()


def test_other_folders_films_and_checkpoints_are_refused(tmp_path, home):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="no project"), open_project(tmp_path):
        pass
    with open_project(tmp_path / "new", [home]) as project:
        project.choose_film(home / "gray.mkv")
        draw_film(home / "other.mp4")
        with pytest.raises(UserError, match="for the film gray.mkv"):
            project.choose_film(home / "other.mp4")
        project.add_checkpoint(home / "best.pt")
        with pytest.raises(UserError, match="a different checkpoint"):
            project.add_checkpoint(home / "last.pt")
        with pytest.raises(UserError, match="not a checkpoint"):
            project.add_checkpoint(home / "gray.mkv", replace=True)
        assert project.checkpoint.read_bytes() == (home / "best.pt").read_bytes()


VALID = {"format": 2, "film": "", "cut_at": [], "join_at": [], "references": [], "color_changes": []}


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"format": 2, "film": ""}', *(json.dumps(VALID | change) for change in (
        {"format": 1}, {"film": 3}, {"cut_at": ["4"]}, {"cut_at": [-1]}, {"cut_at": 7}, {"join_at": [True]},
        {"more": 1}, {"references": [{"file": "../../x.png", "frame": 1}]},
        {"references": [{"file": "x.png", "frame": 1, "y": 2}]},
        {"references": [{"file": "x.png", "frame": "1"}]}, {"references": ["x"]},
        {"references": [{"file": "/x.png", "frame": 1}]}, {"references": [{"file": "shots_2/../x.png", "frame": 1}]},
        {"color_changes": [["#123456", "red"]]}, {"color_changes": [["#123456"]]}, {"color_changes": "ab"}))])
def test_a_damaged_project_file_is_refused(tmp_path, text):
    (tmp_path / "project.json").write_text(text)
    with pytest.raises(UserError, match="project.json is not a project"), open_project(tmp_path):
        pass
    assert (tmp_path / "project.json").read_text() == text


# ---------------------------------------------------------------------------------------------------------------------
# Allowed paths


def test_only_given_paths_are_read(tmp_path, home):
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
        assert project.settings.film == ""
        assert given / "film.mkv" in project.allowed_paths.files([".mkv"])
        project.choose_film(given / "film.mkv")
        assert project.settings.film == str(given / "film.mkv")


@pytest.mark.parametrize("name", ["..", ".hidden.mkv", "a b;$(touch x).mkv", "\u202e.mkv", "x" * 240 + ".mkv",
                                  "-rf.mkv", "Ba\u0308ren-H\u00f6hle.mkv", "\u304f\u307e" * 38 + ".mkv"])
def test_names_of_uploads_are_sanitized(project, tmp_path, name):
    sent = tmp_path / ("sent" if name == ".." else name)
    sent.write_bytes(b"1")
    taken = project.add_upload(sent)
    assert taken.parent == project.folder / "uploads" and taken.read_bytes() == b"1"
    assert all(c.isalnum() or c in ".-_" for c in taken.name) and not taken.name.startswith(".")
    if "\u00f6" in name:
        assert taken.name == "B\u00e4ren-H\u00f6hle.mkv"
    assert project.add_upload(sent) == taken, "an equal upload is stored once"
    sent.write_bytes(b"2")
    assert project.add_upload(sent) != taken and taken.read_bytes() == b"1"


# ---------------------------------------------------------------------------------------------------------------------
# References


def test_a_reference_is_replaced_and_removed(project):
    first, second = draw_picture(1), draw_picture(2)
    project.add_reference(12, first)
    project.add_reference(12, second)
    assert [each.frame for each in project.settings.references] == [12], "a frame has one reference"
    assert np.array_equal(read_image(project.references / "frame_000012.png"), second)
    project.remove_reference("frame_000012.png")
    assert not project.settings.references and not project.painted_frames()
    kept = sorted((project.folder / "removed").iterdir())
    assert [bool(np.array_equal(read_image(path), picture)) for path, picture in zip(kept, (first, second), strict=True)
            ] == [True, True], "removed references are kept"
    with pytest.raises(UserError, match="no reference"):
        project.remove_reference("frame_000012.png")
    with pytest.raises(UserError, match="no reference passwd"):
        project.remove_reference("../../etc/passwd")
    with pytest.raises(UserError, match="has no color"):
        project.add_reference(3, np.full((96, 128, 3), 90, np.uint8))


def test_a_reference_whose_file_was_deleted_can_be_removed(project):
    project.add_reference(1, draw_picture(1))
    (project.references / "frame_000001.png").unlink()
    project.remove_reference("frame_000001.png")
    assert not project.settings.references


# ---------------------------------------------------------------------------------------------------------------------
# Character sheets


def test_character_sheets_are_added_and_removed(project, home, tmp_path):
    key = project.coloring_key()
    (tmp_path / "B\u00e4r 1").mkdir()
    (tmp_path / "B\u00e4r 1" / "a.png").write_bytes((home / "ruby.png").read_bytes())
    project.sheets.add(find_sheets("", tmp_path))
    project.sheets.add(find_sheets(" ../ruby", tmp_path / "B\u00e4r 1"))
    project.sheets.add({"B\u00e4r 1": [home / "ruby.png", tmp_path / "B\u00e4r 1" / "a.png"]})
    assert [path.relative_to(project.sheets.folder).as_posix() for path in project.sheets.files()] == [
        "B\u00e4r 1/a.png", "B\u00e4r 1/ruby.png", "_ruby/a.png"]
    assert [each.name for each in read_characters(project.sheets.folder)] == ["B\u00e4r 1", "B\u00e4r 1", "_ruby"]
    assert project.coloring_key() != key
    for sheets, message in (({"": [home / "ruby.png"]}, "is not the name"), ({"ruby": []}, "no pictures of ruby"),
                            ({"series": [home / "ruby.png"]}, "is not the name"),
                            ({"ruby": [home / "ruby.png"], "tilo": sorted((home / "train").glob("*.png"))}, "scene")):
        with pytest.raises(UserError, match=message):
            project.sheets.add(sheets)
    project.sheets.remove("B\u00e4r 1")
    project.sheets.remove("_ruby")
    with pytest.raises(UserError, match="no character ../references"):
        project.sheets.remove("../references")
    assert project.sheets.names() == [] and project.coloring_key() == key
    assert len(list((project.folder / "removed").rglob("*.png"))) == 3


def test_character_sheets_are_used_in_training(project, home, monkeypatch):
    commands = []
    monkeypatch.setattr(training_job, "run_script", lambda name, flags, *_: commands.append([name, *map(str, flags)]))
    project.sheets.add({"ruby": [home / "ruby.png"]})
    for sources in ([], sorted((home / "train").glob("*.png"))):
        with pytest.raises(UserError, match="stopped before"):  # nothing is trained
            training_job.train_project(project, sources, 1, BackgroundJob(cancel=canceled()))
        assert len(list((project.folder / "dataset" / "train").iterdir())) == len(sources)
        assert all(str(project.sheets.folder) in command for command in commands) and len(commands) == 2
        for command in commands:
            TrainConfig(**read_flags(TrainConfig, command[1:], "")).check()
        commands.clear()


def canceled():
    event = threading.Event()
    event.set()
    return event


# ---------------------------------------------------------------------------------------------------------------------
# Cuts


@pytest.mark.parametrize("cut_at, join_at, starts", [
    ((), (), [0, 14, 26]), ((7,), (), [0, 7, 14, 26]), ((), (14,), [0, 26]), ((30, 5), (26,), [0, 5, 14, 30]),
    ((14,), (), [0, 14, 26]), ((4000, 0), (1,), [0, 14, 26]), ((13, 15), (14, 26), [0, 13, 15])])
def test_edited_cuts_change_the_shots(tmp_path, home, cut_at, join_at, starts):
    records = color_film(StubPredictor(), VideoFile(home / "gray.mkv"), tmp_path / "colored.mkv",
                         FilmConfig(cut_at=cut_at, join_at=join_at))
    assert [record.start_frame for record in records] == starts and records[-1].end_frame == 42
    assert len(planes_in(tmp_path / "colored.mkv")) == 42
    found = ShotPreview(records.pts, [0, 14, 26], [b""], 1)
    shown = found.shots(ProjectSettings(cut_at=list(cut_at), join_at=list(join_at)))
    assert [start for start, _ in shown] == starts and shown[-1][1] == 42


def test_an_edited_cut_is_restored(project):
    project.split_shot(7)
    project.join_shot(7)
    assert project.settings.cut_at == project.settings.join_at == []
    project.join_shot(14)
    project.split_shot(14)
    assert project.settings.cut_at == project.settings.join_at == []
    with pytest.raises(UserError, match="first shot"):
        project.join_shot(0)


def test_shots_are_detected_without_a_checkpoint(project):
    job = BackgroundJob()
    find_shots(project, job)
    found = project.shot_preview()
    assert found.starts == [0, 14, 26] and len(found.pts) == 42 and len(found.thumbnails) == 42
    shown = read_image(_write(project.folder / "page.jpg", found.thumbnail(20)))
    assert abs(float(shown.mean()) - 200) < 20, "the thumbnail shows the frame"
    job.cancel.set()
    with pytest.raises(Canceled):
        find_shots(project, job)


def _write(path, data):
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Coloring


def test_the_film_equals_that_of_the_command_line(project, home, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "fit_response", lambda *_: None)  # slow
    predictors = PredictorCache(project)
    with pytest.raises(UserError, match="no checkpoint"):
        predictors.without_references()
    project.add_checkpoint(home / "best.pt")
    project.add_reference(5, draw_picture(1, (128, 96)))
    project.sheets.add({"ruby": [home / "ruby.png"]})
    color = next(each for each in predictors.learned_colors() if each.character == "ruby")
    project.palette.save([color._replace(color="#30ff30", locked=True, replaces=color.color)])
    assert not project.is_current()
    job = BackgroundJob()
    color_project(project, predictors, job)
    assert project.is_current() and len(project.records()) == 3
    test.main(["--checkpoint", str(project.checkpoint), "--input", str(home / "gray.mkv"), "--output",
               str(tmp_path / "line.mkv"), "--suggest", "0", *shlex.split(command_line(project))[8:]])
    ours, line = planes_in(project.colored), planes_in(tmp_path / "line.mkv")
    assert len(ours) == len(line) == 42
    assert all(np.array_equal(a, b) for x, y in zip(ours, line, strict=True) for a, b in zip(x, y, strict=True))
    records = project.records()
    again = Project(project.folder)
    assert again.is_current() and np.array_equal(again.records()[1].result, records[1].result)
    project.remove_reference("frame_000005.png")
    assert not project.is_current()


def test_coloring_can_be_canceled(project, home):
    project.add_checkpoint(home / "best.pt")
    job = BackgroundJob()
    job.cancel.set()
    with pytest.raises(Canceled):
        color_project(project, PredictorCache(project), job)
    assert not project.colored.exists() and project.records() is None


# ---------------------------------------------------------------------------------------------------------------------
# Background jobs and frames


def test_one_job_runs_at_a_time():
    background, go = JobRunner(), threading.Event()
    background.start("coloring", lambda job: go.wait(20))
    with pytest.raises(UserError, match="coloring is still running"):
        background.start("training", lambda job: None)
    go.set()
    background.thread.join(20)
    assert not background.job.running and background.job.progress == 1 and not background.job.error

    def fail(job):
        raise UserError("the film is gone; put it back")

    background.start("coloring", fail)
    background.thread.join(20)
    assert background.job.error == "the film is gone; put it back"

    def wait(job):
        while True:
            time.sleep(0.01)
            job.check_canceled()

    background.start("coloring", wait)
    background.cancel(20)
    assert not background.job.running and background.job.message == "canceled" and not background.job.error


def test_frames_are_read_by_number(tmp_path):
    film = draw_film(tmp_path / "film.mp4", times=range(60))
    whole = planes_in(film)
    frames = FrameReader(VideoFile(film), index_frames(film))
    assert len(frames.known.pts) == 60
    for index in (30, 31, 29, 0, 59, 58, 12, 13, 14, 40, 30):
        assert np.array_equal(frames.read(index).y, whole[index][0]), index
    with pytest.raises(UserError, match="no frame 60"):
        frames.read(60)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/project")):
        with pytest.raises(UserError, match=f"--project {folder}"), open_project(folder):
            pass
    assert os.listdir(tmp_path) == ["file"]


def test_painted_frames_have_the_order_and_scopes_of_the_command_line(project):
    project.add_reference(4, draw_picture(2))
    project.add_reference(20, draw_picture(1), "only_this_shot")
    project.add_reference(3, draw_picture(3), "shots_2-3")
    write_image(project.references / "a.png", np.full((9, 9, 3), 90, np.uint8))  # grayscale
    write_image(project.references / "b.png", draw_picture(5))
    frames, line = project.painted_frames(), read_references(project.references)
    assert [each[1:] for each in frames] == [each[1:] for each in line] == [
        ("", "b.png"), ("", "frame_000004.png"), ("only_this_shot", "only_this_shot/frame_000020.png"),
        ("shots_2-3", "shots_2-3/frame_000003.png")]
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(frames, line, strict=True))
    again = Reference(draw_picture(6), "similar_shots", "similar_shots/frame_000020.png")
    named = {each.name: each.picture for each in project.painted_frames(again)}
    assert again.name in named and "only_this_shot/frame_000020.png" not in named and len(named) == 4
    key = project.coloring_key()
    project.add_reference(20, draw_picture(6), "similar_shots")
    assert project.coloring_key() != key and not (project.references / "only_this_shot" / "frame_000020.png").exists()
    assert Project(project.folder).settings == project.settings
    project.remove_reference("similar_shots/frame_000020.png")
    assert [each.frame for each in project.settings.references] == [4, 3]
    with pytest.raises(UserError, match="is not a scope"):
        project.add_reference(1, draw_picture(1), "../..")


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_prepare_adds_film_and_checkpoint(tmp_path, home, monkeypatch):
    monkeypatch.setattr(studio, "DEMO_CHECKPOINT", home / "best.pt")
    with open_project(tmp_path / "one", [home, studio.DEMO_FILM.parent]) as project:
        named = StudioConfig(input=home / "gray.mkv", checkpoint=home / "best.pt")
        studio.prepare(project, named)
        assert project.film.path == home / "gray.mkv" and project.checkpoint
        for config in (named, StudioConfig()):  # again, and without flags
            studio.prepare(project, config)
            assert project.film.path == home / "gray.mkv"
        with pytest.raises(UserError, match="for the film gray.mkv"):
            studio.prepare(project, StudioConfig(input=studio.DEMO_FILM))
    with open_project(tmp_path / "two", [studio.DEMO_FILM.parent]) as project:
        studio.prepare(project, StudioConfig())
        assert project.film.path == studio.DEMO_FILM and project.checkpoint
    monkeypatch.setattr(studio, "DEMO_CHECKPOINT", home / "nothing.pt")
    with open_project(tmp_path / "three", [studio.DEMO_FILM.parent]) as project:
        studio.prepare(project, StudioConfig())
        assert project.checkpoint is None, "there is no checkpoint to use"


@pytest.mark.parametrize("settings, message", [
    ({"port": 0}, "--port is 0"), ({"port": 70000}, "--port"), ({"folders": [Path("/nowhere")]}, "no folder /nowhere")])
def test_invalid_settings_of_the_studio_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        StudioConfig(**settings).check()


@pytest.mark.parametrize("program, stop, message", [
    ("import sys; sys.exit('error: there is no room left; make some')", False, "^there is no room left; make some$"),
    ("import os; os.abort()", False, "train.py failed; see .*training.log"),
    ("import time; print(flush=True); time.sleep(60)", True, "stopped before its first epoch")])
def test_a_failed_training_is_reported(project, home, monkeypatch, program, stop, message):
    monkeypatch.setattr(training_job, "INTERPRETER", [sys.executable, "-c", program])
    job = BackgroundJob()
    if stop:
        job.cancel.set()
    with pytest.raises(UserError, match=message):
        training_job.train_project(project, sorted((home / "train").glob("*.png")), 1, job)
    assert project.checkpoint is None
