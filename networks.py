"""What is learned? The generator, the discriminator, the memory and the feature integrator.

Shapes: N pictures in a batch, S = img_size, k of the m slots are read, D and E numbers of the backbone's features of a
frame and of one of its G x G places. L is in [0, 1], ab in [-1, 1]; a color feature has 313 numbers >= 0 of sum 1. The
method is that of "Coloring With Limited Data: Few-Shot Colorization via Memory-Augmented Networks" (CVPR 2019, arXiv
1906.11888).
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce

from dataset import N_BINS, REFERENCE_ID

KEY_DIM = 512  # numbers of a query or a key of the memory
PLACE_DROP, PLACE_WIDTH = 0.2, 128  # dropout of the places' features in training, and channels made of them


class Conditioning(NamedTuple):
    """What the generator is told of the colors of N pictures, and how far to trust it."""

    color_feature: torch.Tensor  # (N, 313)
    score: torch.Tensor  # (N,) cosine similarity that it was recalled with; 1 for a picture's own colors


# ---------------------------------------------------------------------------------------------------------------------
# Layers whose style comes from the color feature


class _Restyle(torch.autograd.Function):
    """AdaIN in few passes over the maps: torch's var_mean is 10 times slower on maps whose channels are side by side,
    and the backward pass that autograd derives would store and read more maps than this one."""

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
        grad, centered, pixels = grad.float(), x.float() - mean, x[0, 0].numel()  # float32: mixed dtypes are slower
        along = rate * (grad * centered).sum((2, 3), keepdim=True)  # sum of grad * normed map: gradient of the scale
        total = grad.sum((2, 3), keepdim=True)
        grad_x = centered.mul_(-factor * rate * along / pixels).addcmul_(grad, factor).sub_(factor * total / pixels)
        return grad_x.to(x.dtype), along.flatten(1), total.flatten(1), None


class AdaIN(nn.Module):
    """Adaptive instance norm (Huang and Belongie 2017): each channel of each sample to mean 0 and variance 1, then
    ``x * (1 + scale) + shift``. x (N, C, H, W); scale and shift (N, C)."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        return _Restyle.apply(x, scale, shift, eps)


class StyleMLP(nn.Module):
    """An MLP of 3 layers: color feature (N, 313) and the score (N,) that it was recalled with -> (scale, shift), each
    (N, C), for every layer of C channels. The score, 1 for a picture's own colors, tells how far to trust them."""

    def __init__(self, channels: Iterable[int], hidden: int = 256) -> None:
        super().__init__()
        self.channels = list(channels)
        self.mlp = nn.Sequential(nn.Linear(N_BINS + 1, hidden), nn.ReLU(True), nn.Linear(hidden, hidden),
                                 nn.ReLU(True), nn.Linear(hidden, 2 * sum(self.channels)))

    def forward(self, color_feature: torch.Tensor, score: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # The square root keeps rare colors in sight: a hat is 1% of a frame, and 0.1 after the root.
        scales, shifts = self.mlp(torch.cat([color_feature.sqrt(), score[:, None]], 1)).chunk(2, dim=1)
        return list(zip(scales.split(self.channels, 1), shifts.split(self.channels, 1), strict=True))


class UnconditionalNorm(nn.Module):
    """A norm without style, called like AdaIN."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
        return self.norm(x)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Maps with the channels of a pixel side by side, over which convolutions run about three times as fast on a CPU.

    Weights stay as they are: gradients of channels-last weights would come in another layout and be copied every step.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # .contiguous(memory_format) ignores single channels


def init_weights(network: nn.Module) -> None:
    """Convolutions start from N(0, 0.02), as in pix2pix (Isola et al. 2017): colors start near gray."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not module.weight.is_meta:
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Layers that are one over all processes of a training


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the whole batch, of which each process has an equal share; torch's SyncBatchNorm has no CPU
    version."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        mean, square = all_reduce(torch.stack([mean, variance + mean.square()])) / dist.get_world_size()
        variance = square - mean.square()
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        factor = self.weight * torch.rsqrt(variance + self.eps)
        offset = self.bias - mean * factor
        return torch.addcmul(offset[:, None, None].to(x.dtype), x, factor[:, None, None].to(x.dtype))


class SyncDropout2d(nn.Dropout2d):
    """Dropout of whole channels. The masks do not depend on the number of processes or the device: each process draws
    those of the whole batch on the CPU and uses its share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        kept = torch.rand(size * x.shape[0], x.shape[1], 1, 1).chunk(size)[rank].to(x.device) >= self.p
        return x * (kept / (1 - self.p)).to(x.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Generator and discriminator


class DilatedBlock(nn.Module):
    """A residual 3x3 convolution over places ``reach`` apart: an ear tells the color of the whole body."""

    def __init__(self, channels: int, reach: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=reach, dilation=reach)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.conv(x))


class Generator(nn.Module):
    """U-Net of 4x4 convolutions, 7 downs and 6 ups with skip connections by concatenation, and an output layer.

    ``norm`` is adain (styled by the color feature) or batch (the color feature is ignored and may be None). With
    ``cell_dim`` features of a place it also sees the backbone's ``grid`` x ``grid`` places, on the way down at the
    level of their size.
    """

    def __init__(self, norm: str = "adain", width: int = 64, cell_dim: int = 0, img_size: int = 256,
                 grid: int = 32) -> None:
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
            self.style: StyleMLP | None = StyleMLP(normed)
            self.norms = nn.ModuleList(AdaIN() for _ in normed)
        else:
            self.style = None
            self.norms = nn.ModuleList(UnconditionalNorm(SyncBatchNorm2d(channels)) for channels in normed)
        init_weights(self)
        self.level = round(math.log2(img_size / grid)) - 1  # index of the down whose map has the size of the grid
        if cell_dim:
            self.places = nn.Sequential(SyncDropout2d(PLACE_DROP), nn.Conv2d(cell_dim, PLACE_WIDTH, 1), nn.ReLU(),
                                        *(DilatedBlock(PLACE_WIDTH, reach) for reach in (1, 2, 4)),
                                        nn.Conv2d(PLACE_WIDTH, down[self.level], 3, padding=1))

    def forward(self, L: torch.Tensor, advice: Conditioning | None = None,
                places: torch.Tensor | None = None) -> torch.Tensor:
        """L (N, 1, S, S) in [0, 1], places (N, E, G, G) -> ab (N, 2, S, S) in [-1, 1]. S is a multiple of 128. Norm
        adain needs ``advice``; norm batch ignores it."""
        styles = self.style(*advice) if self.style and advice else [(None, None)] * len(self.norms)
        norms = iter([(norm, style) for norm, style in zip(self.norms, styles, strict=True)])

        def normed(x):
            norm, style = next(norms)
            return norm(x, *style)

        x = F.leaky_relu(self.downs[0](channels_last(2 * L - 1)), 0.2)
        skips = [x]
        for level, down in enumerate(self.downs[1:-1], 1):
            x = normed(down(x))
            if places is not None and level == self.level:
                seen = self.places(10 * channels_last(places))  # times 10, since elements of unit vectors are small
                x = x + F.interpolate(seen, x.shape[2:], mode="bilinear", align_corners=False)
            x = F.leaky_relu(x, 0.2)
            skips.append(x)
        x = F.relu(normed(self.ups[0](F.leaky_relu(self.downs[-1](x), 0.2))))
        for up in self.ups[1:]:
            x = F.relu(normed(up(torch.cat([x, skips.pop()], 1))))
        return torch.tanh(self.output(torch.cat([x, skips.pop()], 1)).float())


class ColorConv(nn.Module):
    """A 4x4 convolution of stride 2 over a picture and 313 constant maps, the color feature, which are never built.

    Over a constant map every output pixel is the sum of the kernel's taps, except along the zero-padded border, where
    a row or a column of taps falls outside. So there are 3 x 3 different sums, which a small matrix product gives.
    Equal to ``conv(cat(picture, color_feature at each pixel))`` of weights ``cat(picture.weight, color)``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.picture = nn.Conv2d(in_channels, out_channels, 4, 2, 1)
        self.color = nn.Parameter(torch.randn(out_channels, N_BINS, 4, 4) * 0.02)
        taps = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])  # 1 = in the picture; first, middle, last row
        self.register_buffer("taps", taps.float(), persistent=False)

    def forward(self, picture: torch.Tensor, color_feature: torch.Tensor) -> torch.Tensor:
        """picture (N, C, H, W) with even H and W of at least 4, color feature (N, 313) -> (N, O, H/2, W/2)."""
        kernel = torch.einsum("ri,ofij,cj->forc", self.taps, self.color, self.taps)  # (313, O, 3, 3)
        border = (color_feature @ kernel.flatten(1)).view(-1, *kernel.shape[1:])  # (N, O, 3, 3)
        out = self.picture(picture)
        first, middle, last = border.to(out.dtype).split(1, 2)
        rows = torch.cat([first, middle.expand(-1, -1, out.shape[2] - 2, -1), last], 2)
        first, middle, last = rows.split(1, 3)
        return out + torch.cat([first, middle.expand(-1, -1, -1, out.shape[3] - 2), last], 3)


class Discriminator(nn.Module):
    """A patch discriminator (Isola et al. 2017) that sees L and ab; with ``norm`` adain also the color feature at
    every pixel and in its norms, with ``norm`` None neither feature nor norms. Returns logits (N, 1, h, w)."""

    def __init__(self, norm: str | None = "adain", width: int = 64) -> None:
        super().__init__()
        self.first = ColorConv(3, width) if norm == "adain" else nn.Conv2d(3, width, 4, 2, 1)
        self.middle = nn.ModuleList([nn.Conv2d(width, 2 * width, 4, 2, 1), nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
                                     nn.Conv2d(4 * width, 8 * width, 4, 1, 1)])
        self.last = nn.Conv2d(8 * width, 1, 4, 1, 1)
        self.style = StyleMLP([2 * width, 4 * width, 8 * width]) if norm == "adain" else None
        self.norm = AdaIN()
        init_weights(self)

    def forward(self, L: torch.Tensor, ab: torch.Tensor, color_feature: torch.Tensor | None = None) -> torch.Tensor:
        """L (N, 1, S, S), ab (N, 2, S, S), color feature (N, 313), which norm None ignores -> logits (N, 1, h, w)."""
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
# Memory


def grow(module: nn.Module, rows: dict[str, torch.Tensor]) -> None:
    """Append ``rows``, a dict of tensors (n, ...), to buffers of a module by their names."""
    for name, new in rows.items():
        buffer = getattr(module, name)
        setattr(module, name, torch.cat([buffer, new.to(buffer)]))


def color_distance(value: torch.Tensor, feature: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """KL(value || feature) in nats over the last dimension, both smoothed by eps a bin: finite, >= 0, 0 when equal."""
    value, feature = ((x + eps) / (1 + N_BINS * eps) for x in (value, feature))
    return (value * (value.log() - feature.log())).sum(-1)


class MemoryMatches(NamedTuple):
    """What the memory answers: the k best slots of each query, best first. An empty slot has score -inf and id -1."""

    values: torch.Tensor  # (N, k, 313)
    scores: torch.Tensor  # (N, k) cosine similarity
    ids: torch.Tensor  # (N, k) identity of the frame that the slot came from


class MemoryNetwork(nn.Module):
    """m slots of key (512, unit length), color feature, age and frame id, and the query encoder q = normalize(Wx + b).

    The slots are buffers: they move with ``.to()`` and are saved in ``state_dict``. A slot that the user added is
    pinned: never evicted, and preferred to a slot whose cosine similarity is greater by less than PREFERENCE.
    """

    PREFERENCE = 0.05

    keys: torch.Tensor  # (m, 512)
    values: torch.Tensor  # (m, 313)
    ages: torch.Tensor  # (m,)
    ids: torch.Tensor  # (m,) int64, of the frames that they came from
    used: torch.Tensor  # (m,) bool
    pinned: torch.Tensor  # (m,) bool

    def __init__(self, feature_dim: int, mem_size: int, top_k: int, alpha: float, color_thres: float) -> None:
        super().__init__()
        self.top_k, self.alpha, self.color_thres = min(top_k, mem_size), alpha, color_thres
        self.encoder = nn.Linear(feature_dim, KEY_DIM)
        self.register_buffer("keys", torch.zeros(mem_size, KEY_DIM))
        self.register_buffer("values", torch.zeros(mem_size, N_BINS))
        self.register_buffer("ages", torch.zeros(mem_size))
        self.register_buffer("ids", torch.full((mem_size,), -1, dtype=torch.long))
        self.register_buffer("used", torch.zeros(mem_size, dtype=torch.bool))
        self.register_buffer("pinned", torch.zeros(mem_size, dtype=torch.bool))

    def query(self, features: torch.Tensor) -> torch.Tensor:
        """Backbone features (N, D) -> queries (N, 512) of unit length, float32."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.encoder(features.float()), dim=1)

    def _similarity(self, query):
        return (query @ self.keys.T).masked_fill(~self.used, -torch.inf)  # (N, m); empty slots are never read

    def read(self, query: torch.Tensor, k: int) -> MemoryMatches:
        """The k best slots of queries (N, 512). Raises ValueError when no slot is filled."""
        if not self.used.any():
            raise ValueError("the memory is empty")
        similarity = self._similarity(query) + self.PREFERENCE * self.pinned
        slots = similarity.topk(min(k, len(self.keys)), dim=1).indices
        scores = (query[:, None] * self.keys[slots]).sum(2)  # to the last bit the same, whatever other slots there are
        return MemoryMatches(self.values[slots], scores.masked_fill(~self.used[slots], -torch.inf), self.ids[slots])

    @torch.no_grad()
    def pin(self, query: torch.Tensor, color_feature: torch.Tensor) -> None:
        """Add a pinned slot for each query (N, 512) with its color feature (N, 313); the memory grows by N slots."""
        ones = torch.ones(len(query))
        grow(self, {"keys": query, "values": color_feature, "ages": 0 * ones, "ids": REFERENCE_ID * ones, "used": ones,
                    "pinned": ones})

    def triplet_loss(self, query: torch.Tensor, color_feature: torch.Tensor) -> torch.Tensor:
        """Threshold triplet loss among the top_k nearest slots: max(0, q.K_neg - q.K_pos + alpha).

        Positive: the most similar slot with color distance < color_thres; negative: the most similar one of the
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
    def sample_other_frame(self, query: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For each query, the value (N, 313) and score (N,) of a random slot, similar ones more often, that does not
        come from the frame ``ids`` (N,): what the memory would answer had it never seen the frame. Score -inf: none."""
        similarity = self._similarity(query).masked_fill(self.ids == ids[:, None], -torch.inf)
        slot = (similarity + torch.rand(similarity.shape).to(similarity)).argmax(1, keepdim=True)
        return self.values[slot[:, 0]], similarity.gather(1, slot)[:, 0]

    @torch.no_grad()
    def update(self, query: torch.Tensor, color_feature: torch.Tensor, ids: torch.Tensor) -> None:
        """Write a batch into the memory. query (N, 512), color feature (N, 313), ids (N,).

        A query whose nearest slot has color distance < color_thres is added to that slot's key, age 0. Any other one
        goes, with its color, into a slot of its own: empty ones first, then the oldest by age + uniform noise.
        Every other age grows by 1. A pinned slot is never given away; if a batch needs more slots than the others are,
        its last queries are dropped. Deterministic for a given state of torch's CPU random generator.
        """
        nearest = self._similarity(query).argmax(1)
        match = self.used[nearest] & (color_distance(self.values[nearest], color_feature) < self.color_thres)
        self.ages += self.used

        slots, added = nearest[match], query[match]
        # Each slot gets the sum of all queries that match it. A product with the matrix of which queries share a slot
        # adds them in the same order on every device; an atomic scatter would not.
        added = (slots[:, None] == slots[None]).to(added.dtype) @ added
        self.keys[slots] = F.normalize(self.keys[slots] + added, dim=1)
        self.ages[slots] = 0

        noise = torch.rand(len(self.ages)).to(self.ages)
        rank = torch.where(self.used, self.ages + noise, torch.inf)
        rank[slots] = -1  # the slots just used go last
        rank[self.pinned] = -2  # and pinned ones behind all; ``fresh`` is cut so that they are never reached
        fresh = (~match).nonzero().squeeze(1)[:int((~self.pinned).sum())]
        # A stable sort, so that empty slots are filled from the first on.
        slots = rank.argsort(descending=True, stable=True)[:len(fresh)]
        self.keys[slots] = query[fresh]
        self.values[slots] = color_feature[fresh]
        self.ids[slots] = ids.to(self.ids)[fresh]
        self.used[slots] = True
        self.ages[slots] = 0


class FeatureIntegrator(nn.Module):
    """A convex combination of the color features of the best 3 slots, by weights learned from their scores. It starts
    as the best one alone."""

    TOP = 3

    def __init__(self, hidden: int = 32, start: float = 8.0) -> None:
        super().__init__()
        last = nn.Linear(hidden, self.TOP)
        self.mlp = nn.Sequential(nn.Linear(self.TOP, hidden), nn.ReLU(True), last)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([start, 0.0, 0.0])  # softmax: 0.9993, 0.0003, 0.0003

    def forward(self, values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """values (N, k, 313) and scores (N, k) of at most 3 slots, -inf for an empty one -> color feature (N, 313)."""
        missing = self.TOP - scores.shape[1]  # of a memory with fewer slots
        values, scores = F.pad(values, (0, 0, 0, missing)), F.pad(scores, (0, missing), value=-torch.inf)
        empty = ~scores.isfinite()
        weights = self.mlp(scores.masked_fill(empty, 0)).masked_fill(empty, -torch.inf).softmax(1)
        return (weights[:, :, None] * values).sum(1)
