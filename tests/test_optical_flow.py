"""Optical flow, warping, visibility, joint upsampling and the temporal filter."""

import cv2
import numpy as np
import pytest

from colorizer.warping.optical_flow import OpticalFlow, TemporalFilter, relight, visible_pixels, warp
from colorizer.warping.upsampling import upsample_colors
from config import TemporalFilterConfig
from dataset import resize


def drawing(shift, size=96):
    """Return smooth gray noise, uint8 (size, size), that moved right by ``shift`` pixels."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((size, size + 40), np.float32), (0, 0), 3)
    noise = np.uint8(255 * (noise - noise.min()) / np.ptp(noise))
    return np.ascontiguousarray(noise[:, 20 - shift:20 - shift + size])


def test_warping_along_the_flow_restores_the_first_picture():
    first, second = drawing(0), drawing(6)
    flow = OpticalFlow()(first, second)
    assert flow.shape == (96, 96, 2)
    assert np.abs(flow[16:-16, 16:-16] - [6, 0]).max() < 0.5
    assert np.abs(warp(np.float32(second), flow) - first)[16:-16, 16:-16].max() < 12


def test_relighting_corrects_errors_of_the_flow():
    """A texture of yellow highlights and blue shadows, displaced by half a pixel; and a uniform color."""
    L = cv2.GaussianBlur(np.random.default_rng(0).random((64, 65), np.float32), (0, 0), 1)
    color = np.stack([0 * L, 2 * (L - 0.5)], 2)
    warped_L, ab, now, right = (L[:, :64] + L[:, 1:]) / 2, (color[:, :64] + color[:, 1:]) / 2, L[:, :64], color[:, :64]
    assert np.abs(relight(ab, warped_L, now) - right).mean() < 0.3 * np.abs(ab - right).mean()
    wall = np.full((64, 64, 2), 0.3, np.float32)
    np.testing.assert_allclose(relight(wall, warped_L, now), wall, atol=1e-5)


def test_upsampled_colors_follow_the_lines_of_the_large_picture():
    """A red background with thin dark gray lines, given at 64 x 64 pixels."""
    y, x = np.indices((256, 256))
    line = (x + y // 3) % 16 < 2
    L, ab = np.where(line, 10, 60).astype(np.float32), np.where(line[..., None], 0, [50, 30]).astype(np.float32)
    small = resize(ab, 64, 64)
    plain, ours = (np.abs(result - ab).mean() for result in (resize(small, 256, 256), upsample_colors(small, L)))
    assert ours < 0.4 * plain
    np.testing.assert_allclose(upsample_colors(small, resize(L, 64, 64)), small, atol=1e-4)  # the same size
    wall = np.full((64, 64, 2), 30, np.float32)
    np.testing.assert_allclose(upsample_colors(wall, L), 30, atol=1e-3)


def test_grain_gets_no_strong_colors_at_an_edge_of_equal_lightness():
    grain = np.random.default_rng(0).normal(0, 3, (256, 256)).astype(np.float32)
    ab = np.zeros((64, 64, 2), np.float32)
    ab[:, :32], ab[:, 32:] = (50, 20), (-40, -10)
    assert np.abs(upsample_colors(ab, 50 + grain)).max() < 75


def test_occluded_pixels_are_not_visible():
    """A square moves over a background and covers part of it."""
    def scene(x):
        picture = drawing(0)
        picture[30:60, x:x + 30] = 255 - drawing(0)[30:60, 20:50]
        return picture

    flow, first, second = OpticalFlow(), scene(20), scene(30)
    visible = visible_pixels(flow(first, second), flow(second, first))
    assert visible[5:25].mean() > 0.95 and visible[35:55, 24:46].mean() > 0.95  # the background; the square itself
    assert visible[35:55, 52:58].mean() < 0.5  # background that the square covers in the second picture


@pytest.mark.parametrize("moving", [0, 2])
def test_the_temporal_filter_damps_flicker_of_moving_colors(moving):
    """The colors of a moving object alternate by +-10 in consecutive frames."""
    y, x = np.indices((96, 96))
    temporal_filter, errors, colors = TemporalFilter(TemporalFilterConfig()), [], []
    for i in range(12):
        expected = np.where((x - 40 - moving * i < 20)[..., None], [40, 10], [-30, 20]).astype(np.float32)
        ab = temporal_filter(drawing(moving * i - 10) / np.float32(2.55), expected + (-1)**i * np.float32(10))
        inside = np.abs(ab - expected)[16:-16, 36:-16]
        errors.append(np.median(inside))
        colors.append(ab[20, 60])  # above the object
    assert errors[0] == 10  # the first frame of a shot is not filtered
    assert np.mean(errors[4:]) < 3
    assert np.abs(np.diff(colors[4:], axis=0)).mean() < 6  # 20 without


def test_the_temporal_filter_ignores_pixels_of_different_lightness():
    temporal_filter, ab = TemporalFilter(TemporalFilterConfig()), np.zeros((96, 96, 2), np.float32)
    temporal_filter(np.full((96, 96), 20, np.float32), ab + 50)
    assert np.abs(temporal_filter(np.full((96, 96), 80, np.float32), ab)).max() < 1e-3
