"""Measures of temporal consistency compared with values computed by hand, a slow reference and known motion."""

import math

import cv2
import numpy as np
import pytest
from scipy.stats import entropy

from dataset import lab_to_rgb
from film.report.consistency import CDC, WarpError

LN2 = math.log(2)
BLACK, RED = (np.full((4, 6, 3), color, np.uint8) for color in ((0, 0, 0), (255, 0, 0)))


def cdc(frames):
    measure = CDC()
    for frame in frames:
        measure.add(frame)
    return measure.value()


def texture(height, width, seed=0):
    """Return a smooth grayscale picture, uint8, with a trackable texture."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 12 + 2, width // 12 + 2)).astype(np.float32)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def paint(luma, a, b):
    """Return a picture (RGB uint8) with an L that follows ``luma``, and the given ab, numbers or maps."""
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
def test_cdc_of_two_frames_computed_by_hand(p, q, expected):
    """``p`` and ``q`` are the shares of the gray values 0, 1, ... in frames of 4 pixels."""
    one, other = (np.repeat(np.arange(len(shares)), np.int64(4 * np.array(shares))) for shares in (p, q))
    one, other = (np.repeat(values[None, :, None], 3, 2).astype(np.uint8) for values in (one, other))
    assert cdc([one, other]) == pytest.approx(expected) == cdc([other, one])


def test_cdc_of_sequences_computed_by_hand():
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


def test_colors_that_move_with_the_picture_have_a_small_warping_error():
    wide = texture(96, 180)
    waves = 40 * np.sin(np.arange(180) / 6)[None].repeat(96, 0)
    lumas = [wide[:, x:x + 140] for x in (0, 3, 6, 9)]
    moving = [paint(luma, waves[:, x:x + 140], 0) for luma, x in zip(lumas, (0, 3, 6, 9), strict=True)]
    staying = [paint(luma, waves[:, :140], 0) for luma in lumas]
    error, error_staying = warp_error(lumas, moving, staying)
    # 40 sin(x / 6) against itself 3 pixels on: 4 * 40^2 sin(1/4)^2 / 2 on average, of one of two channels
    assert error < 3 and error_staying == pytest.approx(1600 * math.sin(0.25)**2, rel=0.2)


@pytest.mark.parametrize("size", [(96, 140), (540, 960), (9, 11), (200, 13)])
def test_the_warping_error_of_flicker_is_its_mean_square(size):
    luma = texture(*size)
    steady, flicker = [paint(luma, 10, 5)] * 4, [paint(luma, 10 + 12 * (i % 2), 5 - 6 * (i % 2)) for i in range(4)]
    error, error_flicker = warp_error([luma] * 4, steady, flicker)
    assert error == pytest.approx(0, abs=1e-3) and error_flicker == pytest.approx((12**2 + 6**2) / 2, rel=0.05)
    assert warp_error([luma] * 4, flicker) == [error_flicker]  # independent of other colorings
    assert cdc(steady) == 0 and cdc(flicker) > 0.01


def test_uncovered_pixels_do_not_count():
    """A square moves 10 pixels to the right; the color of the strip that it uncovers is not flicker."""
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
    assert seen == pytest.approx(60**2 / 2 * strip.astype(bool).mean(), rel=0.1)  # it is flicker in a still picture


def test_without_two_frames_there_is_no_warping_error():
    luma = texture(40, 60)
    assert WarpError().values() == []
    assert math.isnan(warp_error([luma], [paint(luma, 0, 0)])[0])
