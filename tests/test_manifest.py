"""The manifest of a film: which settings keep the finished shots of an interrupted run, and what is said otherwise."""

import contextlib
import itertools
import json
import os
import re

import pytest
from drawn import StubPredictor, draw_shots

from config import FilmConfig
from fileio.images import write_image
from film.io.image_sequence import find_sequences
from film.io.video import VideoFile, read_frames
from film.render.incremental import open_segment_store
from film.render.rendering import RenderJob, color_film
from film.render.segments import segment_folder
from film.render.writers import FilmWriter
from utils import UserError, list_files

SHOTS = [(60, 14), (200, 12), (110, 14)]


class Stop(Exception):
    pass


def stop():
    raise Stop


class Painter(StubPredictor):
    """A predictor with a checkpoint and a precision."""

    def __init__(self, checkpoint="a", precision="fp32", fail_at=None):
        super().__init__(fail_at, stop)
        self.provenance = {"checkpoint": checkpoint * 64, "precision": precision}
        self.identity = f"{checkpoint} {precision}"

    provenance = None  # settable, unlike that of FilmPredictor

    def predict(self, L, palette):
        ab, confidence = super().predict(L, palette)
        return ab + (20 if self.identity.startswith("b") else 0), confidence


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return draw_shots(tmp_path_factory.mktemp("films") / "in.mkv", SHOTS)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The bytes of the film and of its confidence video after an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "out.mkv"
    color_film(Painter(), VideoFile(source), output, FilmConfig(confidence=True))
    return output.read_bytes(), output.with_name("out_confidence.mp4").read_bytes()


@pytest.fixture
def frames(source, tmp_path):
    """Numbered frames as an ImageSequence."""
    for number, (_, frame) in enumerate(read_frames(source)):
        write_image(tmp_path / "in" / f"{number:03d}.png", frame.to_ndarray(format="rgb24"))
    return find_sequences(list_files(tmp_path / "in"))[0][0]


def pictures(folder):
    return {path.name: path.read_bytes() for path in list_files(folder, (".png",))}


def interrupt(film, output, **settings):
    """Color the first shot and a part of the second one."""
    with pytest.raises(Stop):
        color_film(Painter(fail_at=20), film, output, FilmConfig(**settings))


def test_settings_that_do_not_change_the_film_keep_finished_shots(source, whole, tmp_path, capsys):
    output = tmp_path / "out.mkv"
    interrupt(VideoFile(source), output, batch_size=1, confidence=True)
    manifest = json.loads((segment_folder(output) / "manifest.json").read_text())
    assert manifest["checkpoint"] == "a" * 64 and manifest["precision"] == "fp32"
    assert manifest["settings"]["crf"] is None and manifest["settings"]["response"] == "auto"
    assert manifest["shots"] == [[0, 13], [14, 25], [26, 39]]
    assert manifest["operation"] == {"batch_size": 1, "confidence": True, "overwrite": False}
    predictor = Painter()
    color_film(predictor, VideoFile(source), output, FilmConfig(confidence=True))
    assert predictor.frames == 26 and "warning" not in capsys.readouterr().err
    assert (output.read_bytes(), output.with_name("out_confidence.mp4").read_bytes()) == whole


def test_shots_without_confidence_are_colored_again_if_it_is_requested_later(source, whole, tmp_path):
    output, predictor = tmp_path / "out.mkv", Painter()
    interrupt(VideoFile(source), output)
    color_film(predictor, VideoFile(source), output, FilmConfig(confidence=True))
    assert predictor.frames == 40
    assert (output.read_bytes(), output.with_name("out_confidence.mp4").read_bytes()) == whole


def finish(film, output, monkeypatch):
    """Color a film in runs that end at one of their first writes, each with other settings."""
    replace, settings = os.replace, itertools.cycle([(1, False), (64, True), (8, False)])
    for allowed in [5, 6, 7] * 5:
        writes = iter(range(allowed))
        monkeypatch.setattr(os, "replace", lambda *paths, left=writes: stop() if next(left, None) is None
                            else replace(*paths))
        batch_size, confidence = next(settings)
        with contextlib.suppress(Stop):
            color_film(Painter(), film, output, FilmConfig(batch_size=batch_size, confidence=confidence))
            return
    raise AssertionError("the runs make no progress")


def test_runs_that_end_at_any_write_give_the_same_bytes(source, whole, frames, tmp_path, monkeypatch):
    """The operational settings change each time."""
    color_film(Painter(), frames, tmp_path / "whole" / "film")
    finish(VideoFile(source), tmp_path / "out.mkv", monkeypatch)
    assert (tmp_path / "out.mkv").read_bytes() == whole[0]
    monkeypatch.undo()
    finish(frames, tmp_path / "out" / "film", monkeypatch)
    assert pictures(tmp_path / "out") == pictures(tmp_path / "whole")


def test_a_helper_on_a_machine_with_another_precision_says_so(source, tmp_path):
    interrupt(VideoFile(source), tmp_path / "out.mkv")
    film, predictor = VideoFile(source), Painter(precision="bf16")
    helper = RenderJob(predictor, film, tmp_path / "out.mkv", FilmConfig())
    segments = open_segment_store(predictor, film, helper.output, FilmWriter(film, helper.output, FilmConfig()),
                                  FilmConfig())
    assert segments.load_plan_state() is None  # so it takes no shot
    assert "because precision was fp32 and is bf16 in one of them" in helper._why_no_help(segments)


@pytest.mark.parametrize("predictor, settings, reason", [
    (Painter("b"), {}, "checkpoint has changed"),
    (Painter(precision="bf16"), {}, "precision was fp32 and is bf16"),
    (Painter(), {"crf": 30}, "crf was None and is 30"),
    (Painter(), {"cut_at": [5]}, r"cut_at was \[\] and is \[5\]"),
])
def test_a_run_says_why_it_cannot_keep_finished_shots(source, tmp_path, capsys, predictor, settings, reason):
    interrupt(VideoFile(source), tmp_path / "out.mkv")
    color_film(predictor, VideoFile(source), tmp_path / "out.mkv", FilmConfig(**settings))
    assert predictor.frames == 40
    said = capsys.readouterr().err
    assert said.startswith("warning: the finished shots of ") and said.count("\n") == 1
    assert re.search(f"are colored again, because {reason}\n", said)


def test_numbered_frames_of_two_checkpoints_are_not_mixed(frames, tmp_path):
    """Also not if a run that replaces all frames is interrupted and repeated without ``overwrite``."""
    output, expected = tmp_path / "out" / "film", tmp_path / "expected" / "film"
    color_film(Painter("b"), frames, expected)
    interrupt(frames, output)
    before = pictures(output.parent)
    assert 14 <= len(before) < 40
    with pytest.raises(UserError, match=f"{len(before)} frames in .*: checkpoint has changed; pass --overwrite True"):
        color_film(Painter("b"), frames, output)
    assert pictures(output.parent) == before
    color_film(Painter(), frames, output)
    with pytest.raises(UserError, match="40 frames in .*: checkpoint has changed"):
        color_film(Painter("b"), frames, output)  # also of a complete film
    with pytest.raises(Stop):
        color_film(Painter("b", fail_at=20), frames, output, overwrite=True)
    color_film(Painter("b"), frames, output)
    assert pictures(output.parent) == pictures(expected.parent)


def test_missing_frames_of_a_complete_sequence_are_colored_as_before(frames, tmp_path):
    output = tmp_path / "out" / "film"
    color_film(Painter(), frames, output)
    before = pictures(output.parent)
    (output.parent / "005.png").unlink()
    color_film(Painter(), frames, output, FilmConfig(batch_size=1))
    assert pictures(output.parent) == before
