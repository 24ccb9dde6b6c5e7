"""Tests of the segmentation on drawings with known masks."""

import cv2
import numpy as np
import pytest

from benchmarks.region_clicks import measure

from dataset import rgb_to_lab
from editing.regions import Regions, Stroke
from utils import UserError

SIZE = (360, 480)


def disc(center, radius, size=SIZE):
    """Return an anti-aliased disc as a mask, float32 in [0, 1]."""
    large = np.zeros((size[0] * 8, size[1] * 8), np.uint8)
    cv2.circle(large, tuple(8 * c + 4 for c in center), 8 * radius, 255, -1)
    return cv2.resize(large, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def lightness(gray):
    """Return L of a grayscale picture, float (H, W) in [0, 255]."""
    return rgb_to_lab(np.repeat(np.clip(np.round(gray), 0, 255).astype(np.uint8)[..., None], 3, 2))[..., 0]


def outlined(gap=0):
    """Return L of a disc as light as its background, with an outline that has a gap of ``gap`` pixels."""
    gray = 170 - 130 * (disc((200, 180), 62) - disc((200, 180), 58))
    if gap:
        gray[180 - gap // 2:180 - gap // 2 + gap, 250:275] = 170
    return lightness(gray)


def iou(mask, expected):
    mask, expected = mask > 0.5, expected > 0.5
    return (mask & expected).sum() / (mask | expected).sum()


@pytest.mark.parametrize("gap", [0, 3, 6])
def test_a_line_closes_a_region_across_small_gaps(gap):
    regions = Regions(outlined(gap))
    mask = regions.fill([(200, 180)])
    assert iou(mask, disc((200, 180), 60)) > 0.97  # to the middle of the outline
    assert mask.dtype == np.float32 and mask.min() >= 0 and mask.max() <= 1
    assert iou(regions.fill([(20, 20)]), 1 - disc((200, 180), 60)) > 0.98


def test_a_wide_opening_is_not_closed():
    gray = 170 - 130 * (disc((200, 180), 62) - disc((200, 180), 58))
    gray[150:210, 240:280] = 170
    assert Regions(lightness(gray)).fill([(200, 180)])[20, 20] == 1


def noisy(gray):
    return gray + np.random.default_rng(0).normal(0, 4, gray.shape)


def compressed(gray):
    return cv2.imdecode(cv2.imencode(".jpg", np.uint8(gray), [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0).astype(float)


def shaded(gray):
    return gray * np.linspace(0.6, 1.3, SIZE[0])[:, None]


@pytest.mark.parametrize("change", [noisy, compressed, shaded], ids=lambda change: change.__name__)
def test_flat_areas_without_lines_are_separated(change):
    expected = disc((200, 180), 60)
    regions = Regions(lightness(change(100 + 60 * expected)))
    assert iou(regions.fill([(200, 180)]), expected) > 0.97
    assert iou(regions.fill([(20, 20)]), 1 - expected) > 0.98


def test_a_mask_is_as_soft_as_the_edge_of_the_object():
    expected = disc((200, 180), 60)
    mask = Regions(lightness(100 + 60 * expected)).fill([(200, 180)])
    assert np.abs(mask - expected).max() < 0.15 and np.abs(mask - expected).mean() < 0.002


def test_clicks_grow_a_mask_and_strokes_cut_it():
    regions = Regions(lightness(100 + 60 * disc((200, 180), 60) + 40 * disc((330, 180), 40)))
    first, second = disc((200, 180), 60), disc((330, 180), 40)
    assert iou(regions.fill([(200, 180), (330, 180)]), np.maximum(first, second)) > 0.97
    stroke = Stroke([(143, 180), (257, 180)], 1)  # ends short of the edge
    upper = regions.fill([(200, 150)], [stroke])
    assert iou(upper, first * (np.arange(SIZE[0]) < 180)[:, None]) > 0.95
    both = regions.fill([(200, 150), (200, 210)], [stroke])
    assert iou(both, first) > 0.97


def test_parts_divide_regions_by_lightness():
    gray = 100 + np.linspace(0, 60, SIZE[1])[None].repeat(SIZE[0], 0)  # no edge
    regions = Regions(lightness(gray))
    assert regions.labels.max() == 1
    spread = [np.ptp(regions.L[regions.parts == part]) for part in range(regions.parts.max() + 1)]
    assert 1 < len(spread) < 400 and max(spread) < 0.8 * np.ptp(regions.L)
    points = regions.points_of_parts(np.arange(len(spread)))
    assert [regions.parts[regions.pixel(point)] for point in points] == list(range(len(spread)))
    assert (regions.fill_parts(points) == 1).all()
    left = regions.fill_parts([(5, 180)])
    assert left[180, 5] > 0.5 and left[180, -5] == 0
    uniform = Regions(outlined())
    assert uniform.labels.max() == uniform.parts.max() + 1 == 2, "regions of uniform lightness are not divided"


def test_a_click_outside_the_frame_is_refused():
    with pytest.raises(UserError, match="outside the frame, which is 480x360"):
        Regions(outlined()).fill([(480, 20)])


def test_a_frame_without_edges_is_one_region():
    assert (Regions(np.full((24, 32), 50, np.float32)).fill([(3, 3)]) == 1).all()


def test_a_drawn_character_takes_few_clicks():
    rows = np.array([row for row in measure(80) if row[0] >= 400])
    assert len(rows) >= 4 and (rows[:, 3] > 0.95).all()
    assert (rows[:, 1] > 0.95).sum() >= 2  # an arm takes one click
