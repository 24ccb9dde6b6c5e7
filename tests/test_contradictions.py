"""Contradictions between references: regions that two pictures show in clearly different colors."""

import numpy as np
import pytest
import torch

from colorizer.contradictions import color_word, find_contradictions
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.scopes import HIDDEN, shared_pairs
from config import SpatialConfig
from dataset import rgb_to_lab

GRID, CONFIG = 16, SpatialConfig(grid=16, key_dim=3, picture_size=32)
RED, TEAL, BLUE = (50, 30), (-30, -8), (10, -50)  # ab


def remember(*frames):
    """Return a memory with references, (x of an object, its ab, ab of the background) each. Features are textures that
    move with the object."""
    noise = np.random.default_rng(0).normal(0, 2, (2, GRID, 2 * GRID, 3)).astype(np.float32)
    keys, colors = [], []
    for x, ab, background in frames:
        feature, color = noise[0, :, :GRID].copy(), np.full((GRID, GRID, 2), background, np.float32)
        feature[5:10, x:x + 5], color[5:10, x:x + 5] = noise[1, 5:10, :5], ab
        keys.append(np.concatenate([feature, np.zeros((GRID, GRID, 5), np.float32)], 2).reshape(-1, 8))
        colors.append(color.reshape(-1, 2) / 110)
    memory = SpatialMemory(2, 3, len(frames), CONFIG)
    memory.keys, memory.ab = (torch.from_numpy(np.stack(each)).half() for each in (keys, colors))
    memory.embeddings[:, 0], memory.pinned[:] = 1, True
    return memory


def contradictions(*frames):
    return [tuple(found) for found in find_contradictions(remember(*frames), shared_pairs([[0] * len(frames)], 9))]


@pytest.mark.parametrize("shift", [0, 1, 5])
def test_an_object_in_two_colors_is_a_contradiction(shift):
    """Also if it has moved between both pictures. All pictures differ a little in the background."""
    frames = (3, RED, (8, 20)), (3 + shift, TEAL, (10, 22)), (3, RED, (12, 20))
    assert contradictions(*frames) == [(0, 1, "red", "teal"), (1, 2, "teal", "red")]


@pytest.mark.parametrize("ab", [RED, (35, 20), (50, 50), (9, 5), (0, 0)])
def test_shades_of_one_hue_and_pale_colors_are_no_contradiction(ab):
    assert contradictions((3, RED, (8, 20)), (4, ab, (6, 14))) == []


@pytest.mark.parametrize("similarity, background, count", [(0.5, (8, 20), 0), (0.65, (8, 20), 1), (0.65, (0, 0), 0)])
def test_other_scenes_are_compared_only_if_they_agree_elsewhere(similarity, background, count):
    memory = remember((3, RED, (8, 20)), (3, TEAL, background))
    memory.embeddings[1] = torch.tensor([similarity, (1 - similarity**2)**0.5])
    assert len(list(find_contradictions(memory, {(0, 1)}))) == count


def test_objects_that_do_not_match_are_no_contradiction():
    memory = remember((3, RED, (8, 20)), (3, TEAL, (8, 20)))
    memory.keys[1, :, :3] = memory.keys[1, torch.randperm(GRID**2), :3]
    assert not list(find_contradictions(memory, {(0, 1)}))


def test_references_share_a_scope_if_they_have_the_same_rank_in_a_shot():
    shots = [[0, 0, HIDDEN, 3, HIDDEN], [0, 0, 2, HIDDEN, HIDDEN], [0, 0, 2, HIDDEN, 2]]
    assert shared_pairs(shots, 5) == {(0, 1), (2, 4)}
    assert shared_pairs(shots, 2) == {(2, 4)}, "the first three were not added now"


@pytest.mark.parametrize("rgb, word", [
    ((200, 30, 40), "red"), ((240, 140, 30), "orange"), ((110, 70, 30), "brown"), ((240, 220, 60), "yellow"),
    ((60, 160, 60), "green"), ((30, 140, 140), "teal"), ((40, 70, 200), "blue"), ((130, 40, 150), "purple"),
    ((250, 170, 190), "pink"), ((128, 130, 128), "gray"), ((5, 5, 5), "black"), ((250, 250, 250), "white")])
def test_colors_have_names(rgb, word):
    assert color_word(rgb_to_lab(np.full((1, 1, 3), rgb, np.uint8))[0, 0]) == word
