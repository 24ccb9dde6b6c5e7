"""Scopes of references: folders, the shots that they apply to, and what the memories return there."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.references import find_anchors, read_references, reference_path
from colorizer.scopes import HIDDEN, ShotView, list_scopes, rank_references, shot_numbers
from colorizer.warping.propagation import signature
from config import SpatialConfig
from fileio.images import write_image
from networks import MemoryNetwork
from utils import UserError

RED = np.full((9, 12, 3), (200, 30, 40), np.uint8)


def picture(seed):
    """Return a picture, codes of encode_lab8 (32, 32, 3)."""
    noise = np.random.default_rng(seed).integers(20, 230, (8, 8, 1), np.uint8)
    return np.dstack([cv2.resize(noise, (32, 32), interpolation=cv2.INTER_CUBIC), np.full((32, 32, 2), 128, np.uint8)])


def shot(seed, embedding):
    """Return a shot of three frames, the second of which is ``picture(seed)``."""
    frames = [signature(cv2.add(picture(seed)[..., 0], level)) for level in (60, 0, 30)]
    return ShotView(torch.tensor(embedding), np.stack(frames))


@pytest.fixture
def spatial():
    """A memory of two training frames and a reference for the whole film, and one in each of three scopes."""
    memory = SpatialMemory(2, 3, 6, SpatialConfig(grid=4, key_dim=2, picture_size=32, attended_frames=6))
    memory.embeddings = F.normalize(torch.tensor([[1., 0], [0, 1], [1, .1], [1, 0], [1, 0], [0, 1]])).half()
    memory.pinned = torch.tensor([False, False, True, True, True, True])
    memory.pictures = torch.from_numpy(np.stack([picture(seed) for seed in (0, 1, 0, 0, 1, 1)]))
    return memory


SCOPES = ["", "similar_shots", "only_this_shot", "shots_2-3"]
SHOTS = [shot(0, [1., 0]), shot(1, [0, 1.]), shot(1, [.9, .1])]


@pytest.mark.parametrize("name, numbers", [
    ("", None), ("similar_shots", None), ("only_this_shot", None), ("shot_7", [7]), ("shots_12-14", [12, 13, 14])])
def test_a_folder_name_is_a_scope(name, numbers):
    found = shot_numbers(name)
    assert (found and list(found)) == numbers


@pytest.mark.parametrize("name", ["shots", "shot_0", "shots_5-3", "night", "shot_7/night", "shots_1-2-3", "Shot_1"])
def test_other_folders_are_named_with_the_allowed_names(name, tmp_path):
    write_image(tmp_path / name / "a.png", RED)
    with pytest.raises(UserError, match=f"^{name} is not a scope; .* similar_shots, only_this_shot.*shot_7 and "):
        list_scopes(tmp_path)


def test_references_are_read_with_their_scopes(tmp_path, capsys):
    for scope, name in (("", "b.png"), ("shots_10", "a.png"), ("shots_2-3", "a.png"), ("similar_shots", "c.png")):
        write_image(reference_path(tmp_path, name, scope), RED)
    write_image(tmp_path / ".trash" / "x" / "a.png", RED)
    write_image(tmp_path / "only_this_shot" / "gray.png", np.full_like(RED, 90))
    found = read_references(tmp_path)
    assert [(each.scope, each.name) for each in found] == [
        ("", "b.png"), ("shots_2-3", "shots_2-3/a.png"), ("shots_10", "shots_10/a.png"),
        ("similar_shots", "similar_shots/c.png")]
    assert "gray.png is grayscale, not colored yet; skipped" in capsys.readouterr().err


def test_each_reference_is_visible_in_its_scope_only(spatial, capsys):
    ranks = rank_references(spatial, SCOPES, SHOTS, spatial.picture, ["a"] * 4)
    assert ranks == [[0, 1, HIDDEN, HIDDEN], [0, HIDDEN, 3, 2], [0, 1, HIDDEN, 2]], "only the first of equal shots"
    assert not capsys.readouterr().err


def test_a_reference_without_a_shot_is_named(spatial, capsys):
    spatial.pictures[4] = 255 - spatial.pictures[4]
    scopes = ["", "similar_shots", "only_this_shot", "shot_9"]
    ranks = rank_references(spatial, scopes, SHOTS, spatial.picture, ["b.png", "c.png"])
    assert [row[2:] for row in ranks] == [[HIDDEN, HIDDEN]] * 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "the reference b.png" in lines[0] and "the reference c.png" in lines[1]
    assert rank_references(spatial, scopes, SHOTS, spatial.picture, None)[0][3] == HIDDEN, "a single picture"


def test_hidden_references_are_not_retrieved_and_narrow_scopes_come_first(spatial):
    query = quantize_embeddings(torch.tensor([[1., 0]]))
    found = find_nearest_frames(spatial, query, [0, 1, HIDDEN, HIDDEN])
    assert found.slots[0, 0] == 3 and not set(found.slots[0].tolist()) & {4, 5}
    assert found.preferred[0, 0] > found.preferred[0, found.slots[0] == 2] > 0
    without = SpatialMemory(2, 3, 3, spatial.config)
    without.embeddings, without.pinned = spatial.embeddings[:3], spatial.pinned[:3]
    alone = find_nearest_frames(without, query)
    hidden = find_nearest_frames(spatial, query, [0, HIDDEN, HIDDEN, HIDDEN])
    assert [x.tolist() for x in hidden] == [x.tolist() for x in alone]


def test_colors_are_recalled_from_visible_slots_and_narrow_scopes_first():
    memory = MemoryNetwork(2, 4, 4, 0.1, 0.5)
    memory.keys[:, 0], memory.keys[3, 1] = 1, 1
    memory.keys = F.normalize(memory.keys)
    memory.used[:], memory.pinned = True, torch.tensor([False, True, True, True])
    memory.ids = torch.arange(4)
    query = F.pad(torch.ones(1, 1), (0, 511))
    found = memory.read(query, 3, [0, HIDDEN, 1])
    assert found.ids.tolist() == [[3, 1, 0]] and found.scores[0, 0] < 0.8
    found = memory.read(query, 3, [HIDDEN, HIDDEN, HIDDEN])
    assert found.ids.tolist() == [[0, -1, -1]] and found.scores[0, 1:].tolist() == [-torch.inf] * 2


def test_anchors_of_narrow_scopes_come_first(spatial):
    def slots(ranks):
        found = find_anchors(spatial, SHOTS[1], spatial.picture, range(6), ranks)
        return [anchor.digest for anchor in found]

    assert slots([0, HIDDEN, 3, 2]) == [4] and slots([0, HIDDEN, HIDDEN, 2]) == [5]
    assert slots([0, HIDDEN, HIDDEN, HIDDEN]) == [1], "a training frame"
