"""What painting by hand gains, with a predictor that gives each shot the color of the reference of its lightness."""

import av
import numpy as np
import pytest
import torch
from drawn import draw_film

from benchmarks import effort
from benchmarks.effort import equal_steps, gains, main

from colorizer.confidence import Confidence
from colorizer.predictor import Palette
from dataset import luma_lightness, rgb_to_lab
from fileio.images import read_image
from film.analysis.plan import FilmPredictor
from utils import UserError

SHOTS = [((200, 60, 40), 24), ((20, 60, 20), 12), ((90, 200, 250), 14)]  # color, frames; L of their luma is 42, 18, 71


class Copier(FilmPredictor):
    """Paints each frame in the color of the reference that is as light, else gray. Its doubt is equal everywhere, and
    no two lightnesses look alike."""

    side, source, identity = 32, "memory", "copier"

    def __init__(self):
        self.known = []

    def add_references(self, pictures):
        self.known = [(luma_lightness(picture).mean(), rgb_to_lab(picture).mean((0, 1))[1:]) for picture in pictures]

    def palette(self, labs):
        feature = torch.zeros(3)
        feature[int(labs[0][..., 0].mean()) // 34] = 1
        return Palette(None, [], [], feature)

    def predict(self, lightness, palette):
        colors = [next((ab for light, ab in self.known if abs(light - L.mean()) < 5), np.zeros(2)) for L in lightness]
        known = Confidence(*np.full((3, len(lightness), 1, 1), 0.5))
        return np.float32(colors)[:, None, None].repeat(16, 1).repeat(16, 2), known


@pytest.fixture
def film(tmp_path, monkeypatch):
    monkeypatch.setattr(effort.Predictor, "load", lambda checkpoint: Copier())
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for color, frames in SHOTS:
            for _ in range(frames):
                picture = np.full((64, 64, 3), color, np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def test_equal_steps_are_the_middles_of_equal_parts():
    assert equal_steps(50, 1) == [25] and equal_steps(50, 2) == [12, 37] and equal_steps(50, 3) == [8, 25, 41]
    assert equal_steps(642, 10) == [32, 96, 160, 224, 288, 353, 417, 481, 545, 609]


def test_each_painted_frame_mends_its_shot(film, capsys):
    """Suggested are the middles of the first, the last and the middle shot, the longest first. At equal steps the first
    frame is one of the shortest shot, and two are of the two others."""
    rows = {count: {way: round(50 * values["share_above_10"]) for way, values in ways.items()}
            for count, ways in gains("", film, 1, None)}
    assert rows == {0: {"suggested": 50, "equal steps": 50}, 1: {"suggested": 26, "equal steps": 38},
                    2: {"suggested": 12, "equal steps": 12}, 3: {"suggested": 0, "equal steps": 0}}
    assert "frames 12, 43, 30" in capsys.readouterr().err


def test_the_table_and_the_curves(film, tmp_path, capsys):
    main(["best.pt", str(film), "--every", "5", "--figure", str(tmp_path / "effort.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("| frames painted | suggested: CIEDE2000 | suggested: share > 10 | equal steps: CIEDE2000 | "
                        "equal steps: share > 10 |")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0", "1", "2", "3"]
    assert lines[2].split("|")[3].strip() == lines[2].split("|")[5].strip() == "100.0%"
    assert read_image(tmp_path / "effort.png").shape == (300, 640, 3)


def test_what_cannot_be_measured_is_refused(film, tmp_path):
    with pytest.raises(UserError, match="is not episode 1"):
        main(["best.pt", str(film), "--episode", "1"])
    with pytest.raises(UserError, match="is gray"):
        main(["best.pt", str(draw_film(tmp_path / "gray.mp4", sound=None))])
    with pytest.raises(UserError, match="at least 1, got .0."):
        main(["best.pt", str(film), "--every", "0"])
