"""The effort benchmark, with a predictor that copies the color of the reference of the same lightness."""

import av
import cv2
import numpy as np
import pytest
import torch
from drawn import draw_film

from benchmarks import effort
from benchmarks.effort import correct_by_clicks, equal_steps, main, measure_effort

from colorizer.confidence import Confidence
from colorizer.metrics import color_differences
from colorizer.predictor import Palette
from dataset import lab_to_rgb, luma_lightness, rgb_to_lab
from fileio.images import read_image
from film.analysis.plan import FilmPredictor
from utils import UserError

SHOTS = [((200, 60, 40), 24), ((20, 60, 20), 12), ((90, 200, 250), 14)]  # color, frames; L of their luma is 42, 18, 71


class Copier(FilmPredictor):
    """Colors each frame with the color of the reference of the same lightness, else gray, at equal confidence. Shots of
    different lightness have orthogonal embeddings."""

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


def test_each_reference_corrects_its_shot(film, capsys):
    """Suggested are the middles of the first, the last and the middle shot, by decreasing length. At equal steps, the
    first frame is in the shortest shot, and two frames are in the two others."""
    rows = {count: {name: round(50 * values["share_above_10"]) for name, values in strategies.items()}
            for count, strategies in measure_effort("", film, 1, None)}
    assert rows == {0: {"suggested": 50, "equal steps": 50}, 1: {"suggested": 26, "equal steps": 38},
                    2: {"suggested": 12, "equal steps": 12}, 3: {"suggested": 0, "equal steps": 0}}
    assert "frames 12, 43, 30" in capsys.readouterr().err


def test_the_table_and_the_figure_are_written(film, tmp_path, capsys):
    main(["best.pt", str(film), "--every", "5", "--figure", str(tmp_path / "effort.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("| references | suggested: CIEDE2000 | suggested: share > 10 | equal steps: CIEDE2000 | "
                        "equal steps: share > 10 |")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0", "1", "2", "3"]
    assert lines[2].split("|")[3].strip() == lines[2].split("|")[5].strip() == "100.0%"
    assert read_image(tmp_path / "effort.png").shape == (300, 640, 3)


def test_an_unsuitable_ground_truth_is_an_error(film, tmp_path):
    with pytest.raises(UserError, match="size and length of episode 1"):
        main(["best.pt", str(film), "--episode", "1"])
    with pytest.raises(UserError, match="is grayscale"):
        main(["best.pt", str(draw_film(tmp_path / "gray.mp4", sound=None))])
    with pytest.raises(UserError, match="at least 1, got .0."):
        main(["best.pt", str(film), "--every", "0"])


# ---------------------------------------------------------------------------------------------------------------------
# Correction by clicks


def draw_discs():
    """Return a frame with desaturated discs, and its ground truth: a red and a green disc with outlines on blue."""
    ground_truth = np.full((120, 200, 3), (90, 140, 200), np.uint8)
    for x, color in ((55, (210, 60, 60)), (145, (60, 160, 80))):
        cv2.circle(ground_truth, (x, 60), 30, color, -1)
        cv2.circle(ground_truth, (x, 60), 30, (20, 20, 20), 3)
    lab = rgb_to_lab(ground_truth)
    lab[:, 20:180, 1:] *= 0.1
    lab[:20, :, 1:], lab[:, :20, 1:] = rgb_to_lab(ground_truth)[:20, :, 1:], rgb_to_lab(ground_truth)[:, :20, 1:]
    return lab_to_rgb(lab), ground_truth


def test_clicks_correct_each_wrong_region():
    result, ground_truth = draw_discs()
    picture, clicks = correct_by_clicks(result, ground_truth, 20)
    interior = np.zeros(ground_truth.shape[:2], np.uint8)
    for x in (55, 145):
        cv2.circle(interior, (x, 60), 26, 1, -1)
    errors = color_differences(rgb_to_lab(picture), rgb_to_lab(ground_truth))
    assert 3 <= clicks <= 8 and errors[interior > 0].mean() < 2
    assert (errors > 6).mean() < 0.05  # the outlines


def test_a_correct_frame_takes_no_clicks_and_their_number_is_limited():
    result, ground_truth = draw_discs()
    assert correct_by_clicks(ground_truth, ground_truth, 20)[1] == 0
    assert correct_by_clicks(result, ground_truth, 1)[1] == 1


def test_references_can_be_corrected_by_clicks(film):
    by_clicks = dict(measure_effort("", film, 5, None, clicks=3))
    assert by_clicks[0]["suggested"]["share_above_10"] == 1 > by_clicks[3]["suggested"]["share_above_10"]
