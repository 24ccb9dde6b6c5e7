"""Measures of steadiness against values worked out by hand, a slow reference and drawn motion."""

import math

import cv2
import numpy as np
import pytest
from drawn import StubPredictor, draw_shots
from scipy.stats import entropy

from benchmarks.steadiness import measure, read_shots, table

from config import FilmConfig
from dataset import lab_to_rgb
from film.io.video import VideoFile
from film.render.rendering import color_film
from film.report.consistency import CDC, WarpError
from utils import UserError

LN2 = math.log(2)
BLACK, RED = (np.full((4, 6, 3), color, np.uint8) for color in ((0, 0, 0), (255, 0, 0)))


def cdc(frames):
    measure = CDC()
    for frame in frames:
        measure.add(frame)
    return measure.value()


def texture(height, width, seed=0):
    """A smooth gray picture, uint8, that a flow can follow."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 12 + 2, width // 12 + 2)).astype(np.float32)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def paint(luma, a, b):
    """A picture (RGB uint8) of L about as ``luma`` and the given ab, numbers or maps."""
    colors = [np.broadcast_to(np.float32(color), luma.shape) for color in (a, b)]
    return lab_to_rgb(np.stack([40 + luma.astype(np.float32) / 10, *colors], 2))


def warp_error(lumas, *colorings):
    measure = WarpError()
    for luma, *pictures in zip(lumas, *colorings, strict=True):
        measure.add(luma, *pictures)
    return measure.values()


# ---------------------------------------------------------------------------------------------------------------------
# CDC


@pytest.mark.parametrize("p, q, expected", [
    ([1, 0], [1, 0], 0), ([1, 0], [0, 1], LN2), ([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], LN2),
    ([1, 0], [0.5, 0.5], 1.5 * LN2 - 0.75 * math.log(3))])  # H(3/4, 1/4) - H(1/2, 1/2) / 2
def test_cdc_of_two_frames_by_hand(p, q, expected):
    """Shares of the gray values 0, 1, ... of a frame of 4 pixels."""
    one, other = (np.repeat(np.arange(len(shares)), np.int64(4 * np.array(shares))) for shares in (p, q))
    one, other = (np.repeat(values[None, :, None], 3, 2).astype(np.uint8) for values in (one, other))
    assert cdc([one, other]) == pytest.approx(expected) == cdc([other, one])


def test_cdc_by_hand():
    half = BLACK.copy()
    half[:2] = RED[:2]
    assert cdc([RED, RED]) == 0
    assert cdc([BLACK, RED]) == pytest.approx(LN2 / 3)  # one of three channels, and only t = 1
    assert cdc([BLACK, half]) == pytest.approx((1.5 * LN2 - 0.75 * math.log(3)) / 3)
    assert cdc([BLACK, RED] * 3) == pytest.approx(LN2 / 9)  # t = 1 differs each time, t = 2 and 4 never
    assert cdc([BLACK, BLACK, RED]) == pytest.approx((LN2 / 3 / 2 + LN2 / 3) / 2)  # one of two for t = 1; t = 2
    assert math.isnan(cdc([RED])) and math.isnan(cdc([]))


def test_cdc_equals_a_slow_reference():
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 60 + 15 * i, (20, 30, 3), dtype=np.uint8) for i in range(9)]
    histograms = [[np.bincount(frame[..., c].ravel(), minlength=256) / 600 for c in range(3)] for frame in frames]

    def divergence(p, q):
        return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2

    slow = np.mean([np.mean([np.mean([divergence(histograms[i][c], histograms[i + t][c]) for c in range(3)])
                             for i in range(9 - t)]) for t in (1, 2, 4)])
    assert cdc(frames) == pytest.approx(slow, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Warping error


def test_colors_that_move_with_the_picture_are_steady_and_those_that_stay_are_not():
    wide = texture(96, 180)
    waves = 40 * np.sin(np.arange(180) / 6)[None].repeat(96, 0)
    lumas = [wide[:, x:x + 140] for x in (0, 3, 6, 9)]
    moving = [paint(luma, waves[:, x:x + 140], 0) for luma, x in zip(lumas, (0, 3, 6, 9), strict=True)]
    staying = [paint(luma, waves[:, :140], 0) for luma in lumas]
    error, error_staying = warp_error(lumas, moving, staying)
    # 40 sin(x / 6) against itself 3 pixels on: 4 * 40^2 sin(1/4)^2 / 2 on average, of one of two channels
    assert error < 3 and error_staying == pytest.approx(1600 * math.sin(0.25)**2, rel=0.2)


@pytest.mark.parametrize("size", [(96, 140), (540, 960), (9, 11), (200, 13)])
def test_flicker_of_known_size(size):
    luma = texture(*size)
    steady, flicker = [paint(luma, 10, 5)] * 4, [paint(luma, 10 + 12 * (i % 2), 5 - 6 * (i % 2)) for i in range(4)]
    error, error_flicker = warp_error([luma] * 4, steady, flicker)
    assert error == pytest.approx(0, abs=1e-3) and error_flicker == pytest.approx((12**2 + 6**2) / 2, rel=0.05)
    assert warp_error([luma] * 4, flicker) == [error_flicker]  # whatever else shares the flow
    assert cdc(steady) == 0 and cdc(flicker) > 0.01


def test_what_was_hidden_does_not_count():
    """A square moves 10 pixels to the right; the strip that it uncovers is new, and its color is no flicker."""
    ground, square = texture(120, 160), texture(60, 60, seed=1)
    lumas = []
    for x in (40, 50):
        lumas.append(ground.copy())
        lumas[-1][30:90, x:x + 60] = square
    strip = np.zeros((120, 160))
    strip[30:90, 40:50] = 60
    error, = warp_error(lumas, [paint(lumas[0], 0, 0), paint(lumas[1], strip, 0)])
    assert error < 0.15 * 60**2 / 2 * strip.astype(bool).mean()
    seen, = warp_error([lumas[1]] * 2, [paint(lumas[1], 0, 0), paint(lumas[1], strip, 0)])
    assert seen == pytest.approx(60**2 / 2 * strip.astype(bool).mean(), rel=0.1)  # in a still picture it is one


def test_nothing_to_compare():
    luma = texture(40, 60)
    assert WarpError().values() == []
    assert math.isnan(warp_error([luma], [paint(luma, 0, 0)])[0])


# ---------------------------------------------------------------------------------------------------------------------
# Of a colored film


def test_the_benchmark_measures_a_colored_film(tmp_path):
    source, output = draw_shots(tmp_path / "in.mkv", [(60, 9), (lambda i: 150 + 5 * i, 7)]), tmp_path / "out.mkv"
    records = color_film(StubPredictor(), VideoFile(source), output, FilmConfig(crf=0))
    rows = measure(StubPredictor(), source, output, read_shots(output))
    assert list(rows) == ["result", "frame by frame"]  # a gray film is no truth
    expected = np.average([record.cdc for record in records], weights=[9, 7])
    assert rows["result"]["cdc"] == pytest.approx(expected, rel=1e-6)
    # The stub takes a from the mean lightness of shot or frame, which grows in the second shot: there the light comes
    # up, and the colors of the result with it.
    assert rows["result"]["warp_error"] < 0.9 * rows["frame by frame"]["warp_error"]
    assert "result / frame by frame: 0." in table(rows)
    (tmp_path / "out_shots.jsonl").unlink()
    with pytest.raises(UserError, match="no .*out_shots.jsonl"):
        read_shots(output)
