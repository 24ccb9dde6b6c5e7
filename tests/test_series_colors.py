"""Tests of the distinct colors of remembered frames and of characters."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from colorizer.series_colors import extract_palette, hex_to_lab, learned_colors, main_colors


def remember(pictures):
    """What is read of a SpatialMemory that stores pictures, RGB uint8 (S, S, 3)."""
    codes = np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2Lab) for picture in pictures])
    return SimpleNamespace(rows=lambda name, slots: torch.from_numpy(codes[slots]),
                           ids=torch.arange(7, 7 + len(codes)))


def test_the_palette_contains_small_vivid_objects():
    rng, pictures = np.random.default_rng(0), []
    for number in range(4):
        picture = np.linspace((120, 170, 220), (200, 220, 240), 96)[:, None].repeat(96, 1)  # a sky
        picture[60:] = 90, 140, 70
        picture = picture + rng.normal(0, 2, picture.shape)
        if number == 2:
            picture[40:48, 30:42] = 208, 40, 56  # a scarf, 0.3% of all
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    swatches = extract_palette(remember(pictures), {7 + number: f"{number}.png" for number in range(4)})
    assert sum(swatch.share for swatch in swatches) == pytest.approx(1)
    assert [swatch.share for swatch in swatches] == sorted((swatch.share for swatch in swatches), reverse=True)
    for color in ("#d02838", "#5a8c46"):
        away = [np.linalg.norm(hex_to_lab(swatch.color) - hex_to_lab(color)) for swatch in swatches]
        assert min(away) < 4
        if color == "#d02838":
            scarf = swatches[int(np.argmin(away))]
            assert scarf.frame == "2.png" and scarf.share < 0.005


def test_the_main_colors_of_a_character_are_those_of_its_mask():
    picture = np.full((40, 60, 3), 255, np.uint8)
    picture[5:25, 5:45] = 208, 40, 56
    picture[25:35, 5:45] = 48, 96, 192
    mask = np.zeros(picture.shape[:2], bool)
    mask[5:35, 5:45] = True
    assert main_colors([picture, picture], [mask, mask]).tolist() == [[208, 40, 56], [48, 96, 192]]
    assert main_colors([picture], [np.zeros_like(mask)]).shape == (0, 3)


def test_colors_of_characters_are_groups_of_their_own():
    """Colors of a character are not repeated among those of the series."""
    picture = np.full((40, 60, 3), (120, 170, 220), np.uint8)
    picture[5:35, 5:45] = 208, 40, 56
    mask = (picture == (208, 40, 56)).all(-1)
    colorizer = SimpleNamespace(config=SimpleNamespace(use_spatial_memory=True), spatial=remember([picture[:, 10:50]]))
    colors = learned_colors(colorizer, {}, [("ruby", picture, mask), ("ruby", picture, mask)])
    assert [color[:2] for color in colors] == [("ruby", "color 1"), ("series", "color 1")]
    assert colors[0].color == "#d02838" and not any(color.locked for color in colors)
    assert np.abs(hex_to_lab(colors[1].color) - hex_to_lab("#78aadc")).max() < 3
    colorizer.config.use_spatial_memory = False
    assert learned_colors(colorizer, {}, [("ruby", picture, mask)]) == colors[:1]
