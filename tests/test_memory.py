"""Color memory and spatial memory, tested on worked examples and against slow reference implementations."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import feature, fill, unit
from torch import nn

from colorizer.backbone import Features
from colorizer.memory.attention import attend_to_frames
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.memory.frame_warping import warp_colors
from colorizer.memory.spatial_memory import SpatialMemory
from config import SpatialConfig
from dataset import REFERENCE_ID
from networks import FeatureIntegrator, MemoryNetwork, color_distance

# ---------------------------------------------------------------------------------------------------------------------
# Distance of color features


def test_color_distance_is_finite_with_empty_bins_and_zero_for_equal_ones():
    one, other = feature(0), feature(1)
    assert color_distance(one, one) == 0
    assert torch.isfinite(color_distance(one, other)) and color_distance(one, other) > 1


def test_color_distance_by_hand():
    eps = 1e-4
    smooth = [[(p + eps) / (1 + 313 * eps) for p in bins] for bins in ((0.5, 0.5, 0.0), (0.25, 0, 0.75))]
    expected = sum(p * math.log(p / q) for p, q in zip(*smooth, strict=True))
    value, other = feature(0, 1), torch.zeros(313)
    other[0], other[2] = 0.25, 0.75
    assert color_distance(value, other).item() == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def memory(slots=4, top_k=4, alpha=0.1, color_thres=0.5):
    return MemoryNetwork(8, slots, top_k, alpha, color_thres)


def test_queries_have_unit_length():
    torch.testing.assert_close(memory().query(torch.randn(5, 8)).norm(dim=1), torch.ones(5))


def test_read_gives_the_best_slots_in_order_and_never_an_empty_one():
    net = fill(memory(), [unit(0), -unit(0), unit(0, 1)], [feature(0), feature(1), feature(2)], ids=[7, 8, 9])
    recall = net.read(-unit(0)[None], 4)
    # The empty slot's cosine of 0 would beat the negative ones of two real slots.
    assert recall.ids.tolist() == [[8, 9, 7, -1]]
    torch.testing.assert_close(recall.scores[0, :3], torch.tensor([1, -0.5**0.5, -1.0]))
    assert recall.scores[0, 3] == -torch.inf
    assert torch.equal(recall.values[0, 0], feature(1))
    with pytest.raises(ValueError, match="empty"):
        memory().read(unit(0)[None], 1)


def test_triplet_loss_by_hand():
    near, far = feature(0), feature(200)
    net = fill(memory(alpha=0.1), [unit(0), unit(0, 1), unit(2)], [far, near, near])
    # q = e0: positive is slot 1 (cosine 0.7071), negative is slot 0 (cosine 1).
    assert net.triplet_loss(unit(0)[None], near[None]).item() == pytest.approx(1 - 0.5**0.5 + 0.1, abs=1e-5)
    # q = e2: positive slot 2 (1), negative slot 0 (0): 0 - 1 + 0.1 < 0. The mean counts both queries.
    both = net.triplet_loss(torch.stack([unit(0), unit(2)]), torch.stack([near, near]))
    assert both.item() == pytest.approx((1 - 0.5**0.5 + 0.1) / 2, abs=1e-5)


def test_triplet_loss_with_negative_cosines():
    net = fill(memory(alpha=0.5), [-unit(0), -unit(0, 1)], [feature(0), feature(200)])
    # Positive cosine -1, negative -0.7071; a masked score of 0 instead would give a different loss.
    loss = net.triplet_loss(unit(0)[None], feature(0)[None])
    assert loss.item() == pytest.approx(-(0.5**0.5) + 1 + 0.5, abs=1e-5)


def test_a_query_without_positive_or_negative_does_not_count():
    net = fill(memory(), [unit(0)], [feature(0)])
    query = unit(0)[None].clone().requires_grad_()
    loss = net.triplet_loss(query, feature(0)[None])  # no negative: empty slots do not count
    assert loss.item() == 0
    loss.backward()
    assert (query.grad == 0).all()
    assert net.triplet_loss(unit(0)[None], feature(200)[None]).item() == 0  # no positive


def test_the_triplet_loss_uses_only_the_top_k_slots():
    net = fill(memory(top_k=1), [unit(0), unit(0, 1)], [feature(200), feature(0)])
    assert net.triplet_loss(unit(0)[None], feature(0)[None]).item() == 0  # its positive is not among the nearest 1


def test_sampling_another_frame_never_returns_the_frame_itself():
    """Slots of cosine 1, 0.6 and 0; noise in [0, 1] lets the last slot win sometimes, but never the frame itself."""
    torch.manual_seed(0)
    net = fill(MemoryNetwork(8, 4, 3, 0.1, 0.5), [unit(0), 0.6 * unit(0) + 0.8 * unit(1), unit(2)],
               [feature(0), feature(100), feature(200)], ids=[7, 8, 9])
    value, score = net.sample_other_frame(unit(0).expand(200, -1), torch.tensor([7]).expand(200))
    seconds, thirds = ((value == feature(place)).all(1) for place in (100, 200))
    assert (seconds | thirds).all() and seconds.sum() > 150 and thirds.sum() > 5
    torch.testing.assert_close(score, torch.where(seconds, 0.6, 0.0))
    value, score = fill(MemoryNetwork(8, 4, 3, 0.1, 0.5), [unit(0)], [feature(0)]).sample_other_frame(
        unit(0)[None], torch.tensor([0]))
    assert score.tolist() == [-torch.inf]


def test_update_rule_one_adds_all_queries_of_a_slot():
    net = fill(memory(), [unit(0), unit(5)], [feature(0), feature(200)], ids=[3, 4], ages=[5, 6])
    queries = torch.stack([unit(0, 1), unit(0, 2)])
    net.update(queries, torch.stack([feature(0), feature(0)]), torch.tensor([10, 11]))
    expected = F.normalize(unit(0) + queries.sum(0), dim=0)
    torch.testing.assert_close(net.keys[0], expected)
    assert net.ids.tolist() == [3, 4, -1, -1] and net.ages[:2].tolist() == [0, 7]
    assert net.used.tolist() == [True, True, False, False]
    torch.testing.assert_close(net.values[0], feature(0))


def test_update_rule_two_fills_empty_slots_then_the_oldest():
    net = fill(memory(slots=3), [unit(0), unit(1)], [feature(0), feature(1)], ids=[0, 1], ages=[9, 3])
    queries, colors = torch.stack([unit(7), unit(8)]), torch.stack([feature(200), feature(250)])
    net.update(queries, colors, torch.tensor([20, 21]))
    # Slot 2 was empty and comes first; then slot 0 (age 10 + noise < 1) goes before slot 1 (age 4).
    assert net.ids.tolist() == [21, 1, 20] and net.ages.tolist() == [0, 4, 0]
    torch.testing.assert_close(net.keys[0], unit(8))
    torch.testing.assert_close(net.values[2], feature(200))


def test_a_batch_writes_into_different_slots_and_keeps_slots_it_has_just_used():
    net = fill(memory(slots=3), [unit(0)], [feature(0)], ids=[0], ages=[100])
    queries = torch.stack([unit(0), unit(7), unit(8)])
    net.update(queries, torch.stack([feature(0), feature(100), feature(200)]), torch.tensor([1, 2, 3]))
    assert net.ids.tolist() == [0, 2, 3]  # slot 0 was the oldest, but a query of the same batch was added to it
    net = memory(slots=2)
    colors = torch.stack([feature(i * 50) for i in range(5)])
    net.update(torch.stack([unit(i) for i in range(5)]), colors, torch.arange(5))
    assert net.ids.tolist() == [0, 1]  # more new queries than slots


def test_update_is_deterministic():
    def run():
        torch.manual_seed(3)
        net = memory(slots=6)
        for i in range(10):
            torch.manual_seed(i)
            q = F.normalize(torch.randn(4, 512), dim=1)
            v = torch.rand(4, 313) ** 8
            net.update(q, v / v.sum(1, keepdim=True), torch.arange(4) + 4 * i)
        return torch.cat([net.keys.flatten(), net.values.flatten(), net.ages, net.ids.float()])

    assert torch.equal(run(), run())


# ---------------------------------------------------------------------------------------------------------------------
# Integrator


def test_the_integrator_starts_as_top_1():
    values = torch.stack([feature(0), feature(100), feature(200)])[None]
    combined = FeatureIntegrator()(values, torch.tensor([[0.9, 0.8, 0.7]]))
    assert (combined - feature(0)).abs().sum() < 2e-3


def test_the_integrator_is_a_convex_combination_and_ignores_empty_slots():
    net = FeatureIntegrator()
    nn.init.normal_(net.mlp[-1].weight, std=5)
    values = torch.stack([feature(0), feature(100), feature(200)])[None].repeat(50, 1, 1)
    scores = torch.rand(50, 3)
    scores[:25, 2] = -torch.inf
    combined = net(values, scores)
    two = torch.where(torch.arange(3) < 2, scores, -torch.inf)
    assert torch.equal(net(values[:, :2], scores[:, :2]), net(values, two))
    torch.testing.assert_close(combined.sum(1), torch.ones(50))
    assert (combined >= 0).all() and (combined[:25, 200] == 0).all() and (combined[25:, 200] > 0).any()


# ---------------------------------------------------------------------------------------------------------------------
# Spatial memory


def cells_of(*frames):
    """Return features (N, 80, 32, 32) of frames, given as (32, 32) arrays of kinds: one channel for each kind."""
    return torch.stack([F.one_hot(torch.as_tensor(frame).long(), 80).permute(2, 0, 1).float() for frame in frames])


def nearest(net, embeddings):
    return find_nearest_frames(net, quantize_embeddings(embeddings))


def spatial_with(frames, colors):
    """Return a spatial memory of frames (arrays of kinds) whose cells have the color of their kind.

    The predicted color hardly counts, so that cells are matched by their features.
    """
    net = SpatialMemory(4, 80, len(frames), SpatialConfig(color_weight=0.01))
    net.projection.copy_(torch.eye(80)[:, :64])
    ab = torch.stack([colors[torch.as_tensor(frame).long()].permute(2, 0, 1) for frame in frames])
    slots = torch.arange(len(frames))
    features, L = Features(torch.eye(4)[slots], cells_of(*frames)), torch.full((len(frames), 1, 32, 32), 0.5)
    net.write(slots, features, L, ab, slots)
    return net


COLORS = torch.tensor([[0.5, 0.1], [-0.4, -0.1], [0.0, 0.6]])
GRAY = torch.zeros(1, 2, 32, 32)


def test_attention_recalls_the_color_of_an_object_that_moved():
    """An object that was on the left gets its color on the right, with high confidence."""
    remembered, now = torch.zeros(32, 32), torch.zeros(32, 32)
    remembered[8:16, 4:10], now[12:20, 22:28] = 1, 1
    net = spatial_with([remembered], COLORS)
    hint = attend_to_frames(net, nearest(net, torch.eye(4)[:1]),
                    net.make_keys(cells_of(now), torch.full((1, 1, 64, 64), 0.5), GRAY))
    assert hint.shape == (1, 3, 32, 32)
    expected = COLORS[now.long()].permute(2, 0, 1)
    assert (hint[0, :2] - expected).abs().max() < 0.01
    assert hint[0, 2].min() > 0.9 and hint[0, 2].max() <= 1


def test_unknown_cells_have_low_confidence():
    net = spatial_with([torch.zeros(32, 32)], COLORS)
    now = torch.zeros(32, 32)
    now[:, 16:] = 2
    hint = attend_to_frames(net, nearest(net, torch.eye(4)[:1]),
                    net.make_keys(cells_of(now), torch.full((1, 1, 32, 32), 0.5), GRAY))
    assert hint[0, 2, :, :16].min() > 0.9 and hint[0, 2, :, 16:].max() < 0.2


def test_ambiguous_cells_have_low_confidence():
    """Two objects with the same features, one red and one teal."""
    net = spatial_with([torch.zeros(32, 32), torch.zeros(32, 32)], COLORS)
    net.ab[1] = COLORS[1].half()
    keys = net.make_keys(cells_of(torch.zeros(32, 32)), torch.full((1, 1, 32, 32), 0.5), GRAY)
    hint = attend_to_frames(net, nearest(net, torch.eye(4)[:1]), keys)
    assert torch.allclose(hint[0, :2, 9, 9], COLORS[:2].mean(0), atol=0.01) and hint[0, 2].max() < 0.01


@pytest.mark.parametrize("bf16, tolerance", [(False, 1e-5), (True, 2e-2)])
def test_attention_equals_the_dense_definition(bf16, tolerance):
    """softmax(-30 d^2) over all cells, weighted mean of d^2, mean and variance of ab, cell by cell in float64."""
    torch.manual_seed(0)
    net = SpatialMemory(4, 70, 3, SpatialConfig())
    net.projection.copy_(torch.eye(70)[:, :64])
    cells = F.normalize(torch.randn(4, 70, 32, 32), dim=1)
    L, ab = torch.rand(4, 1, 32, 32), torch.rand(4, 2, 32, 32) - 0.5
    frames = torch.eye(4)
    net.write(torch.arange(3), Features(frames[:3], cells[:3]), L[:3], ab[:3], torch.arange(3))
    query = net.make_keys(cells[3:], L[3:], ab[3:])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hint = attend_to_frames(net, nearest(net, frames[3:]), query)[0]
    keys, colors = net.keys.flatten(0, 1).double(), net.ab.flatten(0, 1).double()
    for place in (0, 17, 500, 1023):
        distance = ((query[0, place].double() - keys) ** 2).sum(1)
        weights = (-30 * distance).softmax(0)
        mean = weights @ colors
        variance = (weights[:, None] * (colors - mean) ** 2).sum()
        expected = torch.cat([mean, (-weights @ distance - variance / net.config.disagreement_scale).exp()[None]])
        torch.testing.assert_close(hint[:, place // 32, place % 32].double(), expected, atol=tolerance, rtol=0)


def test_the_mask_selects_the_cells_to_compute():
    kinds = torch.arange(1024).view(32, 32) % 3
    net = spatial_with([kinds, kinds], COLORS)
    keys = net.make_keys(cells_of(kinds, kinds), torch.full((2, 1, 32, 32), 0.5), GRAY.expand(2, -1, -1, -1))
    wanted = torch.zeros(2, 1024, dtype=torch.bool)
    wanted[0, 100:200] = True
    frames = nearest(net, torch.eye(4)[:2])
    hint, whole = (attend_to_frames(net, frames, keys, cells).flatten(2) for cells in (wanted, None))
    torch.testing.assert_close(hint[0, :, 100:200], whole[0, :, 100:200])
    assert (hint[0, :, :100] == 0).all() and (hint[1] == 0).all() and (whole[:, 2] > 0).all()


def test_nearest_frames_are_similar_but_diverse():
    net = SpatialMemory(4, 80, 4, SpatialConfig(attended_frames=2))
    net.embeddings.copy_(torch.tensor([[0.95, 0.31, 0, 0], [0.94, 0.34, 0, 0], [0.8, -0.6, 0, 0], [0, 0, 0, 1]]))
    query = torch.tensor([[1.0, 0, 0, 0]])
    net.config.mmr_diversity = 0.0
    assert nearest(net, query)[0].tolist() == [[0, 1]]  # cosines 0.95, 0.94, 0.8, 0
    net.config.mmr_diversity = 0.5
    assert nearest(net, query)[0].tolist() == [[0, 2]]  # 0.94 - 0.5 * 1.0 is less than 0.8 - 0.5 * 0.574
    net.config.attended_frames = 9  # no more than there are, and none twice
    assert sorted(nearest(net, query)[0][0].tolist()) == [0, 1, 2, 3]


def drawing(shift):
    """Return a picture that moved right by ``shift`` of 192 pixels: L (1, 1, 192, 192) and ab (1, 2, 192, 192)."""
    y, x = np.indices((192, 192), dtype=np.float32)
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((192, 256), np.float32), (0, 0), 3)
    noise = noise[:, 32 - shift:224 - shift]
    L = torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()
    thing = torch.from_numpy((y - 96)**2 + (x - 90 - shift)**2 < 36**2)
    return L[None, None], torch.where(thing[None], COLORS[0][:, None, None], COLORS[1][:, None, None])[None]


def test_warped_colors_follow_the_motion():
    """Colors are exact inside the overlap; different features or a different lightness lower the confidence."""
    net, cells = spatial_with([torch.zeros(32, 32)], COLORS), cells_of(torch.zeros(32, 32))
    (L, ab), (L_now, ab_now) = drawing(0), drawing(8)
    net.write(torch.arange(1), Features(torch.eye(4)[:1], cells), L, ab, torch.arange(1))
    warped = warp_colors(net, nearest(net, torch.eye(4)[:1]), net.make_keys(cells, L_now, GRAY), L_now)
    assert warped.shape == (1, 3, 192, 192) and warped[:, 2].min() >= 0 and warped[:, 2].max() <= 1
    inside = warped[..., 24:-24, 24:-24], ab_now[..., 24:-24, 24:-24]
    assert ((inside[0][:, :2] - inside[1]).abs().amax(1) < 0.02).float().mean() > 0.95
    assert inside[0][:, 2].mean() > 0.8
    half = torch.zeros(32, 32)
    half[:, 16:] = 1
    keys = net.make_keys(3**0.5 * cells_of(half), L_now, GRAY)  # a cell has features of three maps, each of unit length
    net.write(torch.arange(1), Features(torch.eye(4)[:1], 3**0.5 * cells), L, ab, torch.arange(1))
    warped = warp_colors(net, nearest(net, torch.eye(4)[:1]), keys, L_now)
    assert warped[:, 2, 24:-24, 24:84].mean() > 0.8 and warped[:, 2, :, 105:].max() < 0.5
    dark = 0.5 * L_now
    assert warp_colors(net, nearest(net, torch.eye(4)[:1]), net.make_keys(cells, dark, GRAY), dark)[:, 2].mean() < 0.2


def test_colors_are_warped_from_the_frame_that_matches():
    """Two frames with equal lightness differ in colors and features; the query is a batch of both."""
    there, elsewhere = torch.zeros(32, 32), torch.ones(32, 32)
    net, cells = spatial_with([there, elsewhere], COLORS), cells_of(there, elsewhere)
    (L, _), both = drawing(0), COLORS[:2, :, None, None].expand(2, 2, 192, 192)
    L = L.repeat(2, 1, 1, 1)
    net.write(torch.arange(2), Features(torch.eye(4)[:2], cells), L, both, torch.arange(2))
    keys = net.make_keys(cells, L, torch.zeros(2, 2, 192, 192))
    warped = warp_colors(net, nearest(net, torch.eye(4)[[2, 2]]), keys, L)
    assert (warped[:, :2] - both).abs().max() < 0.01 and warped[:, 2].min() > 0.9


@pytest.mark.parametrize("twin", [0, 1])
def test_the_predicted_color_resolves_ambiguous_cells(twin):
    """Cells with the same features, red in one frame and teal in the other."""
    net = spatial_with([torch.zeros(32, 32), torch.zeros(32, 32)], COLORS)
    net.config.color_weight = SpatialConfig.color_weight
    both = COLORS[:2, :, None, None].expand(2, 2, 32, 32)
    L, cells = torch.full((2, 1, 32, 32), 0.5), cells_of(*[torch.zeros(32, 32)] * 2)
    net.write(torch.arange(2), Features(torch.eye(4)[:2], cells), L, both, torch.arange(2))
    hint = attend_to_frames(net, nearest(net, torch.eye(4)[2:3]),
                            net.make_keys(cells[:1], L[:1], 0.6 * both[twin:twin + 1]))
    assert torch.allclose(hint[0, :2, 7, 7], COLORS[twin], atol=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# References


def test_a_pinned_slot_is_preferred_to_a_slightly_more_similar_one():
    net = fill(memory(slots=3), [unit(0), unit(1)], [feature(0), feature(1)], ids=[7, 8])
    near = F.normalize(unit(0) + 0.25 * unit(2), dim=0)  # cosine 0.970 with the first slot
    net.pin(near[None], feature(200)[None])
    recall = net.read(unit(0)[None], 2)
    assert recall.ids.tolist() == [[REFERENCE_ID, 7]] and torch.equal(recall.values[0, 0], feature(200))
    torch.testing.assert_close(recall.scores[0], torch.tensor([1 / 1.0625**0.5, 1.0]))  # without the preference
    assert net.read(unit(1)[None], 1).ids.tolist() == [[8]]
    assert net.read(unit(0)[None], 4).ids.tolist() == [[REFERENCE_ID, 7, 8, -1]]


def test_a_pinned_slot_is_never_evicted():
    net = fill(memory(slots=2), [unit(0), unit(1)], [feature(0), feature(1)])
    net.pin(unit(2)[None], feature(200)[None])
    for i in range(5):  # three new colors at once for two slots that may be replaced
        net.update(torch.stack([unit(10 + 3 * i + j) for j in range(3)]),
                   torch.stack([feature(20 + 3 * i + j) for j in range(3)]), torch.arange(3) + 100)
        assert torch.equal(net.keys[2], unit(2)) and torch.equal(net.values[2], feature(200))
    assert net.ids.tolist()[2] == REFERENCE_ID and min(net.ids[:2]) >= 100


def test_a_reference_overrides_the_same_training_frame():
    """The memory has a frame in one color, which the generator also predicts; the reference has a different color."""
    net = spatial_with([torch.zeros(32, 32)], COLORS)
    net.config.color_weight = SpatialConfig.color_weight
    L, cells = torch.full((1, 1, 32, 32), 0.5), cells_of(torch.zeros(32, 32))
    learned, right = (COLORS[i][None, :, None, None].expand(1, 2, 32, 32) for i in (0, 1))
    net.write(torch.arange(1), Features(torch.eye(4)[:1], cells), L, learned, torch.arange(1))
    net.pin(Features(torch.eye(4)[:1], cells), L, right, learned)
    hint = attend_to_frames(net, nearest(net, torch.eye(4)[:1]), net.make_keys(cells, L, learned))
    assert (hint[:, :2] - right).abs().max() < 0.01 and hint[:, 2].min() > 0.9
    warped = warp_colors(net, nearest(net, torch.eye(4)[:1]), net.make_keys(cells, L, learned), L)
    assert (warped[:, :2] - COLORS[1][:, None, None]).abs().max() < 0.01 and warped[:, 2].min() > 0.9


@pytest.mark.parametrize("cosine, kind", [(0.96, 1), (0.94, 0)])
def test_a_reference_affects_only_similar_frames(cosine, kind):
    """A reference within the reference margin (0.05) overrides a training frame although its cells are farther away
    (0.16, by lightness); a less similar reference does not."""
    net = spatial_with([torch.zeros(32, 32)], COLORS)
    cells, right = cells_of(torch.zeros(32, 32)), COLORS[1][None, :, None, None].expand(1, 2, 32, 32)
    reference = torch.tensor([[cosine, (1 - cosine**2) ** 0.5, 0, 0]])
    net.pin(Features(reference, cells), torch.full((1, 1, 32, 32), 0.7), right, GRAY)
    hint = attend_to_frames(net, nearest(net, torch.eye(4)[:1]),
                            net.make_keys(cells, torch.full((1, 1, 32, 32), 0.5), GRAY))
    assert torch.allclose(hint[0, :2, 5, 5], COLORS[kind], atol=0.02)
