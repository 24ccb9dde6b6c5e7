"""Backbones of timm: features, sources of weights and errors, with tiny networks of random weights and no downloads."""

import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from drawn import draw_dataset
from safetensors.torch import save_file

import train
from colorizer import backbone as backbones
from colorizer.backbone import Backbone, BackboneDims, BackboneUnavailable, backbone_dims, make_timm, timm_maps
from colorizer.colorizer import model_config_of
from colorizer.predictor import Predictor
from config import TrainConfig
from dataset import backbone_input
from fileio.checkpoints import save_checkpoint
from fileio.images import read_image
from utils import UserError

VIT, CONV = "timm/test_vit.r160_in1k", "timm/test_resnet.r160_in1k"
DIMS = {VIT: BackboneDims(64, (64, 64, 64)), CONV: BackboneDims(96, (48, 192, 96))}
DINO = "timm/vit_small_patch14_dinov2.lvd142m"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """{network name: file of random weights}."""
    torch.manual_seed(0)
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for name, write, suffix in ((VIT, save_file, "safetensors"), (CONV, torch.save, "pth")):
        files[name] = folder / f"weights.{suffix}"
        write(make_timm(name).state_dict(), files[name])
    return files


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Make downloads fail as without internet; return the addresses that were requested."""
    backbones.import_torchvision()
    import timm.models._builder as builder
    tried = []

    def download(address, *args, **kwargs):
        tried.append(address)
        raise OSError("The internet is not there. Please check:\n- the cable")

    monkeypatch.setattr(builder, "load_state_dict_from_hf", download)
    monkeypatch.setattr(builder, "load_state_dict_from_url", download)
    return tried


# ---------------------------------------------------------------------------------------------------------------------
# Features


@pytest.mark.parametrize("name", [VIT, CONV])
def test_shapes_and_lengths_of_features(name, weights):
    assert backbone_dims(name) == DIMS[name]
    backbone = Backbone(name, weights[name]).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    for side, grid in ((128, 32), (256, 32), (512, 64)):
        backbone.grid = grid
        features, cells, _ = backbone(torch.randn(2, 3, side, side))
        assert features.shape == (2, DIMS[name].frame) and cells.shape == (2, DIMS[name].cell, grid, grid)
    assert features.isfinite().all() and 0.5 < cells.square().sum(1).mean() <= 3.01  # three maps of unit length


@pytest.mark.parametrize("name", [VIT, CONV])
def test_pictures_are_normalized_as_the_network_expects(name, weights):
    """The last map equals that of timm's own forward pass on a picture with the network's normalization."""
    net = make_timm(name)
    backbone = Backbone(name, weights[name])
    net.load_state_dict(backbones._read_weights(weights[name]))
    L = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        tokens = net.eval().forward_features((L.repeat(1, 3, 1, 1) - 0.5) / net.pretrained_cfg["std"][0])
        last = tokens[:, net.num_prefix_tokens:].transpose(1, 2) if name == VIT else tokens.flatten(2)
        backbone.grid = round(last.shape[2]**0.5)
        features, cells, _ = backbone(backbone_input(L))
    torch.testing.assert_close(features, last.mean(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cells.flatten(2)[:, -last.shape[1]:], F.normalize(last, dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [VIT, CONV])
@pytest.mark.parametrize("y, x", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_change_in_a_corner_changes_the_cells_of_that_corner(name, y, x, weights):
    backbone = Backbone(name, weights[name], grid=16)
    gray = torch.zeros(1, 3, 256, 256)
    before = backbone(gray).cells
    gray[..., y * 224:, x * 224:][..., :32, :32] = torch.randn(32, 32)
    change = (backbone(gray).cells - before).square().sum((0, 1))
    row, column = divmod(change.argmax().item(), 16)
    assert (row // 8, column // 8) == (y, x)
    assert change[::15, ::15].argmax().item() == 2 * y + x  # of the cells in the four corners


def test_pictures_are_enlarged_to_a_multiple_of_the_patch_size():
    """On the meta device, since the network is large."""
    assert backbone_dims(DINO) == BackboneDims(384, (384, 384, 384))
    with torch.device("meta"):
        net = make_timm(DINO).eval()
        for side, tokens in ((256, 19), (512, 37), (518, 37)):
            assert [cells.shape for cells in timm_maps(net, torch.zeros(1, 3, side, side))] == [
                (1, 384, tokens, tokens)] * 3


def test_the_identity_depends_on_name_and_weights(weights):
    backbone = Backbone(VIT, weights[VIT])
    first = backbone.identity()
    assert first == Backbone(VIT, weights[VIT]).identity()
    backbone.name = "timm/test_vit"
    assert backbone.identity() != first
    backbone.name = VIT
    next(backbone.parameters()).mul_(1.5)
    assert backbone.identity() != first


# ---------------------------------------------------------------------------------------------------------------------
# Training and coloring


@pytest.mark.parametrize("name", [VIT, CONV])
def test_train_and_color(name, weights, tmp_path, offline):
    data, run = draw_dataset(tmp_path / "data", train=3, val=1, test=1), tmp_path / "run"
    settings = {"data_path": data, "save_path": run, "backbone": name, "backbone_weights": weights[name], "width": 4,
                "batch_size": 2, "end_epoch": 1}
    train.main([word for key, value in settings.items() for word in (f"--{key}", str(value))])
    picture = read_image(next((data / "test").glob("*.png")))
    predictor = Predictor.load(run / "best.pt")  # the weights are in the checkpoint
    colored, = predictor.colorize([picture])
    assert colored.shape == picture.shape and predictor.colorizer.classify(torch.rand(1, 1, 512, 512)).isfinite().all()
    for key, tensor in Backbone(name, weights[name]).state_dict().items():
        assert torch.equal(predictor.colorizer.state_dict()[f"backbone.{key}"], tensor)
    assert not offline


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def refusal(call, kind=BackboneUnavailable):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_internet(offline):
    message = refusal(lambda: Backbone(VIT))
    assert "the download of timm (The internet is not there); pass a file to --backbone_weights" in message
    assert len(offline) == 1


def test_without_timm(monkeypatch, tmp_path):
    backbone_dims.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    message = refusal(lambda: Backbone(VIT, False))
    pinned, = re.findall(r"(?m)^timm==.+$", (Path(__file__).parents[1] / "requirements-dev.txt").read_text())
    assert message.endswith(f"pip install {pinned}")
    save_checkpoint(tmp_path / "best.pt", {"model_config": {"backbone": VIT}, "colorizer": {}})
    assert refusal(lambda: Predictor.load(tmp_path / "best.pt"), UserError) == message


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a file was executed",)


def test_files_with_other_content_are_refused(weights, tmp_path):
    incomplete = torch.load(weights[CONV], weights_only=True)
    incomplete.pop("layer1.0.conv1.weight")
    torch.save(incomplete, tmp_path / "incomplete.pth")
    torch.save(Trap(), tmp_path / "trap.pth")
    (tmp_path / "trap.bin").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    for file in ("incomplete.pth", "trap.pth", "trap.bin", "none.safetensors", "missing.pth", "missing.safetensors"):
        assert file in refusal(lambda file=file: Backbone(CONV, tmp_path / file))
    refusal(lambda: Backbone(CONV, weights[VIT]))


@pytest.mark.parametrize("name", ["timm/no_such_network", "timm/test_vit.no_such_weights", "timm/mixer_b16_224"])
def test_unknown_networks_and_those_of_one_input_size_are_refused(name):
    assert "timm.list_models()" in refusal(lambda: backbone_dims(name))


@pytest.mark.parametrize("name", [
    "timm/hf-hub:somebody/net", "timm/local-dir:net", "timm/../net", "timm/somebody/net", "timm/", "timm/net\n", "vgg"])
def test_names_of_files_and_repositories_are_refused(name, offline):
    assert "choose from" in refusal(TrainConfig(backbone=name).check, UserError)
    with pytest.raises(ValueError, match="no backbone"):
        Backbone(name, False)
    with pytest.raises(ValueError, match="no backbone"):
        model_config_of({"model_config": {"backbone": name}, "colorizer": {}})
    assert not offline


def test_a_checkpoint_with_weights_of_another_network_is_refused(weights, tmp_path, offline):
    """Nothing is downloaded instead."""
    state = {f"backbone.net.{key}": value for key, value in torch.load(weights[CONV], weights_only=True).items()}
    save_checkpoint(tmp_path / "best.pt", {"model_config": {"backbone": DINO}, "colorizer": state})
    assert "not hold a complete colorizer" in refusal(lambda: Predictor.load(tmp_path / "best.pt"), UserError)
    assert not offline
