"""Tests of fills of like parts and of proposed colors, on drawn discs and a classifier with known probabilities."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_regions import disc, iou, lightness

from colorizer.series_colors import hex_to_lab
from editing.likeness import MAX_PROPOSALS, PartClasses
from editing.regions import Regions
from utils import UserError

PALETTE = torch.tensor([[60.0, 40], [-50, 40], [10, -60], [12, -61]])  # the last two look the same
DISCS = {"red": ((90, 180), 40), "green": ((230, 180), 40), "another red": ((370, 180), 40)}


class Extractor:
    """Classifies the discs, which are equally light, as colors 0, 1 and 0, and the background as color 2."""

    def __init__(self, has_classifier=True):
        self.colorizer = SimpleNamespace(config=SimpleNamespace(use_palette_classifier=has_classifier),
                                         palette_classifier=SimpleNamespace(palette=PALETTE))

    def classify(self, lightness, with_characters):
        assert not with_characters, "their classes are no colors"
        if not self.colorizer.config.use_palette_classifier:
            return None
        probabilities = torch.full((4, 120, 120), 0.03)
        for number, (center, radius) in zip((0, 1, 0), DISCS.values(), strict=True):
            inside = torch.from_numpy(disc(center, radius)[1::3, 2::4] > 0.5)
            probabilities[number, inside] = 0.91
        probabilities[2, probabilities.amax(0) < 0.5] = 0.91
        return probabilities.log()[None]


def classes(has_classifier=True):
    gray = 100 + sum(60 * disc(*each) for each in DISCS.values())
    return PartClasses(Regions(lightness(gray)), Extractor(has_classifier))


def test_like_parts_have_the_same_class_and_lightness():
    found = classes()
    points = found.like((90, 180))
    assert points[0] == (90, 180)
    assert iou(found.regions.fill_parts(points), disc(*DISCS["red"]) + disc(*DISCS["another red"])) > 0.95
    alone = found.regions.fill_parts(found.like((90, 180), 0.0))
    assert alone[180, 90] == 1 and alone[180, 230] == 0
    assert (found.regions.fill_parts(found.like((90, 180), 2.0)) == 1).all(), "a large tolerance selects all"
    with pytest.raises(UserError, match="outside the frame"):
        found.like((5000, 2))


def test_without_a_classifier_like_parts_have_the_same_lightness():
    found = classes(has_classifier=False)
    mask = found.regions.fill_parts(found.like((90, 180), 0.1))
    assert iou(mask, sum(disc(*each) for each in DISCS.values())) > 0.95
    assert found.proposals((90, 180), []) == []
    np.testing.assert_allclose(found.proposals((90, 180), ["#c03030"]), [hex_to_lab("#c03030")[1:]])


def test_proposals_are_ranked_by_probability_and_end_with_colors_of_the_frame():
    found = classes()
    proposals = found.proposals((230, 180), ["#2040d0", "#c8b414"])
    np.testing.assert_allclose(proposals[0], PALETTE[1])
    assert len(proposals) == 5, "three colors that look different, and those of the frame"
    np.testing.assert_allclose(proposals[-1], hex_to_lab("#c8b414")[1:])
    many = [f"#{red:02x}{green:02x}40" for red in range(0, 256, 50) for green in range(0, 256, 50)]
    assert len(found.proposals((230, 180), many)) == MAX_PROPOSALS
