"""Other references: which shots they change, what of a colored film is taken as it is, and taking them back."""

import json
import os
import shutil
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
import torch
from drawn import StubPainter, draw_shots, planes_in
from test_train import flags

import train
from colorizer.painter import Painter
from colorizer.spatial import looks_of
from config import ColorConfig, FilmConfig, SpatialConfig, TrainConfig
from film import episode
from film.again import affected
from film.encoding import FilmWriter
from film.episode import color_film
from film.parts import finished_by, pack_looks, parts_folder, unpack_looks
from film.video import VideoFile
from resources.draw_episodes import draw_frame
from test import main
from utils import UserError, write_image

SCENES = (5, 70, 120, 170, 215)  # frames of the drawn episode 2 in a forest, a room, on a beach twice and in a street
FRAMES = 6  # of a shot


def scene(number, moved=0):
    """A frame of a scene, RGB uint8 (96, 128, 3)."""
    return cv2.resize(draw_frame(2, SCENES[number] + moved), (128, 96), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a film of all scenes in gray, the checkpoint of a small network that knows some of them, and in
    paint/ a painted frame of each."""
    home = tmp_path_factory.mktemp("home")
    pictures = [cv2.resize(draw_frame(1, 40 * number + 8), (128, 96)) for number in range(14)]
    for number, picture in enumerate(pictures):
        write_image(home / ("val" if number < 2 else "train") / f"{number}.png", picture)
    with av.open(str(home / "film.mkv"), "w") as film:
        stream = film.add_stream("libx264", rate=12, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(len(SCENES)):
            write_image(home / "paint" / f"{number}.png", scene(number, 3)[..., [2, 0, 1]])
            for moved in range(FRAMES):
                gray = cv2.cvtColor(cv2.cvtColor(scene(number, moved), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        film.mux(stream.encode(None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EPOCH_STEPS", 4)
        train.train(TrainConfig(data_path=str(home), save_path=str(home / "run"), width=4, batch_size=4, end_epoch=1,
                                num_workers=0, mem_size=8, spatial=SpatialConfig(frames=2)))
    return home


@pytest.fixture(scope="module")
def plain(home, tmp_path_factory):
    """A folder with the film colored without references, not to be changed."""
    folder = tmp_path_factory.mktemp("plain")
    color(home, folder)
    return folder


@pytest.fixture
def work(plain, tmp_path):
    """A copy of it."""
    shutil.copytree(plain, tmp_path / "work")
    return tmp_path / "work"


def references(home, folder, *numbers):
    """A folder of the painted frames of some scenes."""
    for number in numbers:
        folder.mkdir(exist_ok=True)
        shutil.copy(home / "paint" / f"{number}.png", folder)
    return folder


def color(home, folder, **settings):
    main(flags(checkpoint=home / "run" / "best.pt", input=home / "film.mkv", output=folder / "out.mp4", suggest=0,
               match_references=False, **settings))


def painter(home, folder=None):
    return Painter.load(home / "run" / "best.pt", references=folder, match_references=False)


def contents(folder):
    """{name: all bytes of a file, but for the seconds that it took}."""
    told = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    told["out_metrics.json"] = {**json.loads(told["out_metrics.json"]), "seconds": 0}
    told["out_shots.jsonl"] = [{**json.loads(line), "seconds": 0} for line in told["out_shots.jsonl"].splitlines()]
    return told


# ---------------------------------------------------------------------------------------------------------------------
# Only some shots


@pytest.mark.parametrize("added", [[1], [4], [0, 3]])
def test_shots_that_read_nothing_else_are_taken_as_they_are(home, plain, work, tmp_path, capsys, monkeypatch, added):
    """And what comes out is, bit by bit, what coloring all would give; what is taken back leaves no trace."""
    folder, painted = references(home, tmp_path / "references", *added), []
    told = affected(painter(home, folder), VideoFile(home / "film.mkv"), work / "out.mp4")
    assert set(added) <= set(told) and len(told) < len(SCENES)
    color_shot = episode.Coloring._color_shot
    monkeypatch.setattr(episode.Coloring, "_color_shot",
                        lambda self, number, *rest: (painted.append(number), color_shot(self, number, *rest))[1])
    monkeypatch.setattr(episode, "scan", None)  # the film is not looked at again
    capsys.readouterr()
    color(home, work, references=folder)
    assert painted == told and f"{len(told)} of 5 shots are colored again: " in capsys.readouterr().out
    monkeypatch.undo()
    (tmp_path / "all").mkdir()
    color(home, tmp_path / "all", references=folder)
    assert contents(work) == contents(tmp_path / "all")
    before, after = planes_in(plain / "out.mp4"), planes_in(work / "out.mp4")
    changed = {index // FRAMES for index, (one, other) in enumerate(zip(before, after, strict=True))
               if any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))}
    assert changed <= set(told) and set(added) <= changed
    color(home, work)
    assert contents(work) == contents(plain)
    assert affected(painter(home), VideoFile(home / "film.mkv"), work / "out.mp4") == []
