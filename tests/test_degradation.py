"""Tests of the degradation augmentations: spectral sensitivity, contrast, blur and grain."""

import cv2
import numpy as np
import pytest
from drawn import draw_picture

from config import DegradationConfig
from dataset import rgb_to_lab, spectral_lightness
from training.degradation import degrade


def test_exposure_of_known_spectral_sensitivities():
    colors = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [119, 119, 119]]], np.uint8)
    eye = spectral_lightness(colors, np.array([0.2126, 0.7152, 0.0722]))
    np.testing.assert_allclose(eye, rgb_to_lab(colors)[..., 0], atol=0.3)  # the sensitivity of the human eye gives L
    red, green, blue, gray = spectral_lightness(colors, np.array([0.0, 0.5, 0.5]))[0]  # film that is blind to red
    assert red == 0 and green == pytest.approx(blue) == pytest.approx(116 * 0.5 ** (1 / 3) - 16, abs=1e-3)
    assert gray == pytest.approx(eye[0, 3], abs=1e-3)


@pytest.mark.parametrize("probability, changed", [(0.0, False), (1.0, True)])
def test_pictures_are_degraded_with_the_given_probability(probability, changed):
    rgb = draw_picture(0)
    before = rgb.copy()
    L = degrade(rgb, np.random.default_rng(0), DegradationConfig(probability=probability))
    assert L.shape == rgb.shape[:2] and L.dtype == np.float32 and L.min() >= 0 and L.max() <= 100
    assert (np.abs(L - rgb_to_lab(rgb)[..., 0]).mean() > 1) == changed
    assert (rgb == before).all()


def test_coarse_grain_is_as_strong_as_fine_grain():
    gray, found = np.full((96, 96, 3), 119, np.uint8), {True: [], False: []}
    for seed in range(120):
        L = degrade(gray, np.random.default_rng(seed), DegradationConfig(grain=6.0))
        grain = L - L.mean()
        if grain.std() > 0.1:
            fineness = np.abs(cv2.Laplacian(grain, cv2.CV_32F)).mean() / grain.std()
            found[fineness < 2.5].append(float(grain.std()))
    coarse, fine = found.values()
    assert len(coarse) > 10 and len(fine) > 10
    assert np.mean(coarse) == pytest.approx(np.mean(fine), rel=0.35)
    assert max(coarse + fine) < 6.5


def test_equal_seeds_give_equal_degradations():
    views = [degrade(draw_picture(1), np.random.default_rng(5), DegradationConfig()) for _ in range(2)]
    np.testing.assert_array_equal(*views)
