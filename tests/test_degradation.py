"""Views as another film might show them: stock, contrast, blur, grain."""

import cv2
import numpy as np
import pytest
from drawn import draw_picture

from dataset import rgb_to_lab, spectral_lightness
from training import degradation as material
from training.degradation import degrade


def test_light_of_a_stock_by_hand():
    colors = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [119, 119, 119]]], np.uint8)
    ours = spectral_lightness(colors, np.array([0.2126, 0.7152, 0.0722]))
    np.testing.assert_allclose(ours, rgb_to_lab(colors)[..., 0], atol=0.3)  # a stock that sees as a person does
    red, green, blue, gray = spectral_lightness(colors, np.array([0.0, 0.5, 0.5]))[0]  # and one that does not see red
    assert red == 0 and green == pytest.approx(blue) == pytest.approx(116 * 0.5 ** (1 / 3) - 16, abs=1e-3)
    assert gray == pytest.approx(ours[0, 3], abs=1e-3)


@pytest.mark.parametrize("share, changed", [(0.0, False), (1.0, True)])
def test_a_share_of_the_views_is_changed(share, changed, monkeypatch):
    monkeypatch.setattr(material, "SHARE", share)
    rgb = draw_picture(0)
    before = rgb.copy()
    L = degrade(rgb, np.random.default_rng(0))
    assert L.shape == rgb.shape[:2] and L.dtype == np.float32 and L.min() >= 0 and L.max() <= 100
    assert (np.abs(L - rgb_to_lab(rgb)[..., 0]).mean() > 1) == changed
    assert (rgb == before).all()


def test_coarse_grain_is_as_strong_as_fine(monkeypatch):
    monkeypatch.setattr(material, "GRAIN", 6.0)
    gray, found = np.full((96, 96, 3), 119, np.uint8), {True: [], False: []}
    for seed in range(120):
        L = degrade(gray, np.random.default_rng(seed))
        rest = L - L.mean()
        if rest.std() > 0.1:
            fine = np.abs(cv2.Laplacian(rest, cv2.CV_32F)).mean() / rest.std()
            found[fine < 2.5].append(float(rest.std()))
    coarse, fine = found.values()
    assert len(coarse) > 10 and len(fine) > 10
    assert np.mean(coarse) == pytest.approx(np.mean(fine), rel=0.35)
    assert max(coarse + fine) < 6.5


def test_the_same_seed_gives_the_same_view():
    views = [degrade(draw_picture(1), np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*views)
