"""The trained networks: generator, discriminator, memory and feature integrator.

They follow "Coloring With Limited Data: Few-Shot Colorization via Memory-Augmented Networks" (CVPR 2019, arXiv
1906.11888). Shapes: N pictures of S x S pixels, S = img_size; m memory slots; k slots that are read; D dimensions of
a frame embedding; E feature dimensions of each of G x G grid cells. L is in [0, 1], ab in [-1, 1]; a color feature is a
normalized histogram over 313 color bins.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce

from dataset import N_BINS, REFERENCE_ID

KEY_DIM = 512  # length of the queries and keys of the memory
CELL_DROPOUT, CELL_WIDTH = 0.2, 128  # dropout probability and channels of the generator's cell encoder


class Conditioning(NamedTuple):
    """Color input of the generator for N pictures."""

    color_feature: torch.Tensor  # (N, 313)
    score: torch.Tensor  # (N,) cosine similarity of query and memory slot; 1 for a picture's own color feature


class _AdaINFunction(torch.autograd.Function):
    """AdaIN with its own backward pass. ``torch.var_mean`` is 10 times slower on channels-last maps, and autograd would
    store more maps."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
        mean = x.mean((2, 3), dtype=torch.float32, keepdim=True)
        rate = torch.rsqrt((x.float() - mean).square_().mean((2, 3), keepdim=True) + eps)
        factor = (1 + scale[:, :, None, None]) * rate  # normalization and style as one multiply-add
        offset = shift[:, :, None, None] - mean * factor
        ctx.save_for_backward(x, mean, rate, factor)
        return torch.addcmul(offset.to(x.dtype), x, factor.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mean, rate, factor = ctx.saved_tensors
        grad, centered, pixels = grad.float(), x.float() - mean, x[0, 0].numel()  # mixed dtypes are slower than float32
        along = rate * (grad * centered).sum((2, 3), keepdim=True)  # sum of grad * normalized x: gradient of scale
        total = grad.sum((2, 3), keepdim=True)
        grad_x = centered.mul_(-factor * rate * along / pixels).addcmul_(grad, factor).sub_(factor * total / pixels)
        return grad_x.to(x.dtype), along.flatten(1), total.flatten(1), None


class AdaIN(nn.Module):
    """Adaptive instance normalization (Huang and Belongie 2017): normalize each channel of x (N, C, H, W) to mean 0 and
    variance 1, then return ``x * (1 + scale) + shift`` with scale and shift (N, C)."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        return _AdaINFunction.apply(x, scale, shift, eps)


class StyleMLP(nn.Module):
    """MLP that maps a color feature (N, 313) and its score (N,) to one pair (scale, shift) for each AdaIN layer. Both
    are (N, C) for a layer of C channels."""

    def __init__(self, channels: Iterable[int], hidden: int = 256) -> None:
        super().__init__()
        self.channels = list(channels)
        self.mlp = nn.Sequential(nn.Linear(N_BINS + 1, hidden), nn.ReLU(True), nn.Linear(hidden, hidden),
                                 nn.ReLU(True), nn.Linear(hidden, 2 * sum(self.channels)))

    def forward(self, color_feature: torch.Tensor, score: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # The square root raises the weight of rare colors: a share of 0.01 becomes 0.1.
        scales, shifts = self.mlp(torch.cat([color_feature.sqrt(), score[:, None]], 1)).chunk(2, dim=1)
        return list(zip(scales.split(self.channels, 1), shifts.split(self.channels, 1), strict=True))


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return x (N, C, H, W) in channels-last memory format, which makes CPU convolutions 3 times faster."""
    # Not contiguous(memory_format=torch.channels_last), which does nothing for a single channel.
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def init_weights(network: nn.Module) -> None:
    """Initialize convolutions from N(0, 0.02), as in pix2pix (Isola et al. 2017)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not module.weight.is_meta:
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the equal-sized batches of all processes; ``nn.SyncBatchNorm`` does not run on CPUs."""

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
    """Channel dropout whose masks depend neither on the number of processes nor on the device: each process draws the
    masks of the whole batch on the CPU and uses its own share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        kept = torch.rand(size * x.shape[0], x.shape[1], 1, 1).chunk(size)[rank].to(x.device) >= self.p
        return x * (kept / (1 - self.p)).to(x.dtype)


class DilatedBlock(nn.Module):
    """Residual 3x3 convolution with dilation."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.conv(x))


class Generator(nn.Module):
    """U-Net of 4x4 convolutions: 7 down, 6 up with concatenated skip connections, and an output layer.

    ``norm`` is "adain", conditioned on the color feature, or "batch", which needs no conditioning. If ``cell_dim``, E,
    is above 0, features of the backbone on ``grid`` x ``grid`` cells are encoded and added to the map of that size.
    """

    def __init__(self, norm: str = "adain", width: int = 64, cell_dim: int = 0, img_size: int = 256,
                 grid: int = 32) -> None:
        super().__init__()
        down = [width * factor for factor in (1, 2, 4, 8, 8, 8, 8)]
        up = [width * factor for factor in (8, 8, 8, 4, 2, 1)]
        self.downs = nn.ModuleList(nn.Conv2d(i, o, 4, 2, 1) for i, o in zip([1] + down[:-1], down, strict=True))
        skips = [0] + down[-2:0:-1]  # channels concatenated to the input of each up layer
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i + skip, o, 4, 2, 1)
                                 for i, skip, o in zip([down[-1]] + up[:-1], skips, up, strict=True))
        self.output = nn.ConvTranspose2d(up[-1] + down[0], 2, 4, 2, 1)
        # The first layer has no norm, to keep absolute lightness; the innermost has none, since its map may be 1 x 1.
        normed = down[1:-1] + up
        if norm == "adain":
            self.style: StyleMLP | None = StyleMLP(normed)
            self.norms = nn.ModuleList(AdaIN() for _ in normed)
        else:
            self.style = None
            self.norms = nn.ModuleList(map(SyncBatchNorm2d, normed))
        init_weights(self)
        self.cell_level = round(math.log2(img_size / grid)) - 1  # index of the down layer whose map is grid x grid
        if cell_dim:
            self.cell_encoder = nn.Sequential(
                SyncDropout2d(CELL_DROPOUT), nn.Conv2d(cell_dim, CELL_WIDTH, 1), nn.ReLU(),
                *(DilatedBlock(CELL_WIDTH, dilation) for dilation in (1, 2, 4)),
                nn.Conv2d(CELL_WIDTH, down[self.cell_level], 3, padding=1))

    def forward(self, L: torch.Tensor, conditioning: Conditioning | None = None,
                cells: torch.Tensor | None = None) -> torch.Tensor:
        """Predict ab (N, 2, S, S) in [-1, 1] from L (N, 1, S, S) in [0, 1] and cells (N, E, G, G).

        S must be a multiple of 128. ``conditioning`` is required for norm "adain" and ignored for "batch".
        """
        norms: Iterable[Callable[[torch.Tensor], torch.Tensor]] = self.norms
        if self.style and conditioning:
            norms = [partial(norm, scale=scale, shift=shift)
                     for norm, (scale, shift) in zip(self.norms, self.style(*conditioning), strict=True)]
        norms = iter(norms)

        x = F.leaky_relu(self.downs[0](channels_last(2 * L - 1)), 0.2)  # (N, width, S/2, S/2)
        skips = [x]
        for level, down in enumerate(self.downs[1:-1], 1):
            x = next(norms)(down(x))
            if cells is not None and level == self.cell_level:
                encoded = self.cell_encoder(10 * channels_last(cells))  # elements of unit vectors are small
                x = x + F.interpolate(encoded, x.shape[2:], mode="bilinear", align_corners=False)
            x = F.leaky_relu(x, 0.2)
            skips.append(x)
        x = F.relu(next(norms)(self.ups[0](F.leaky_relu(self.downs[-1](x), 0.2))))  # (N, 8 width, S/64, S/64)
        for up in self.ups[1:]:
            x = F.relu(next(norms)(up(torch.cat([x, skips.pop()], 1))))
        return torch.tanh(self.output(torch.cat([x, skips.pop()], 1)).float())


class ColorConv(nn.Module):
    """4x4 convolution, with stride 2, of a picture with its color feature appended to every pixel.

    Equal to ``conv(cat(picture, color_feature at each pixel))`` with weights ``cat(picture.weight, color)``, without
    building the 313 constant maps. On a constant map each output pixel is the sum of the kernel's taps, except at the
    zero-padded border, where a row or column of taps is missing; a small matrix product gives these 3 x 3 sums.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.picture = nn.Conv2d(in_channels, out_channels, 4, 2, 1)
        self.color = nn.Parameter(torch.randn(out_channels, N_BINS, 4, 4) * 0.02)
        taps = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])  # output pixel: first, middle, last
        self.register_buffer("taps", taps.float(), persistent=False)

    def forward(self, picture: torch.Tensor, color_feature: torch.Tensor) -> torch.Tensor:
        """Return (N, O, H/2, W/2) for picture (N, C, H, W), H and W even and >= 4, and color feature (N, 313)."""
        kernel = torch.einsum("ri,ofij,cj->forc", self.taps, self.color, self.taps)  # (313, O, 3, 3)
        border = (color_feature @ kernel.flatten(1)).view(-1, *kernel.shape[1:])  # (N, O, 3, 3)
        out = self.picture(picture)
        first, middle, last = border.to(out.dtype).split(1, 2)
        rows = torch.cat([first, middle.expand(-1, -1, out.shape[2] - 2, -1), last], 2)
        first, middle, last = rows.split(1, 3)
        return out + torch.cat([first, middle.expand(-1, -1, -1, out.shape[3] - 2), last], 3)


class Discriminator(nn.Module):
    """Patch discriminator (Isola et al. 2017) of L and ab. With norm "adain" it is conditioned on the color feature, at
    the input and in its norms; with None it has no norms."""

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
        """Return patch logits (N, 1, h, w) for L (N, 1, S, S), ab (N, 2, S, S) and color feature (N, 313)."""
        condition, styles = (), [()] * len(self.middle)
        if self.style and color_feature is not None:
            condition, styles = (color_feature,), self.style(color_feature, torch.ones_like(color_feature[:, 0]))
        x = F.leaky_relu(self.first(channels_last(torch.cat([2 * L - 1, ab], 1)), *condition), 0.2)
        for conv, style in zip(self.middle, styles, strict=True):
            x = conv(x)
            x = F.leaky_relu(self.norm(x, *style) if style else x, 0.2)
        return self.last(x).float()


def grow(module: nn.Module, rows: dict[str, torch.Tensor]) -> None:
    """Append ``rows``, {buffer name: tensor (n, ...)}, to buffers of a module."""
    for name, new in rows.items():
        buffer = getattr(module, name)
        setattr(module, name, torch.cat([buffer, new.to(buffer)]))


def slot_ranks(pinned: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Return the rank of each of m slots, int64 (m,): 0 if it is not ``pinned`` (m,) or if ``ranks`` is empty, else
    that of its reference (``colorizer/scopes.py``)."""
    result = torch.zeros_like(pinned, dtype=torch.long)
    if ranks:
        result[pinned] = torch.tensor(ranks, device=pinned.device)
    return result


def color_distance(value: torch.Tensor, feature: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """Return KL(value || feature) in nats over the last dimension, with ``eps`` added to each bin."""
    value, feature = ((x + eps) / (1 + N_BINS * eps) for x in (value, feature))
    return (value * (value.log() - feature.log())).sum(-1)


class MemoryMatches(NamedTuple):
    """The k best slots of each query, best first. An empty slot has score -inf and id -1."""

    values: torch.Tensor  # (N, k, 313) color features
    scores: torch.Tensor  # (N, k) cosine similarity
    ids: torch.Tensor  # (N, k) id of the frame in the slot


class MemoryNetwork(nn.Module):
    """Memory of m slots with a query encoder q = normalize(Wx + b).

    Pinned slots hold references of the user and are never overwritten.
    """

    PREFERENCE = 0.05  # added to the cosine similarity of pinned slots; larger: references are recalled more often

    keys: torch.Tensor  # (m, 512) of unit length
    values: torch.Tensor  # (m, 313) color features
    ages: torch.Tensor  # (m,) updates since the slot last matched a query
    ids: torch.Tensor  # (m,) int64, id of the frame in the slot
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

    def query(self, embedding: torch.Tensor) -> torch.Tensor:
        """Encode frame embeddings (N, D) as queries (N, 512) of unit length, float32."""
        with torch.autocast(embedding.device.type, enabled=False):
            return F.normalize(self.encoder(embedding.float()), dim=1)

    def _similarity(self, query):
        return (query @ self.keys.T).masked_fill(~self.used, -torch.inf)  # (N, m)

    def read(self, query: torch.Tensor, k: int, ranks: Sequence[int] = ()) -> MemoryMatches:
        """Return the k best slots of queries (N, 512), given the ``ranks`` of the pinned slots: a negative one counts
        as empty, a positive one is better than all lower ranks. Raises ValueError if the memory is empty."""
        if not self.used.any():
            raise ValueError("the memory is empty")
        rank = slot_ranks(self.pinned, ranks)
        empty = ~self.used | (rank < 0)
        similarity = (self._similarity(query) + self.PREFERENCE * self.pinned + 3 * rank).masked_fill(empty, -torch.inf)
        slots = similarity.topk(min(k, len(self.keys)), dim=1).indices
        scores = (query[:, None] * self.keys[slots]).sum(2)  # unlike a matrix product, independent of the other slots
        empty = empty[slots]
        return MemoryMatches(self.values[slots], scores.masked_fill(empty, -torch.inf),
                             self.ids[slots].masked_fill(empty, -1))

    @torch.no_grad()
    def pin(self, query: torch.Tensor, color_feature: torch.Tensor) -> None:
        """Append N pinned slots with keys ``query`` (N, 512) and color features (N, 313)."""
        ones = torch.ones(len(query))
        grow(self, {"keys": query, "values": color_feature, "ages": 0 * ones, "ids": REFERENCE_ID * ones, "used": ones,
                    "pinned": ones})

    def triplet_loss(self, query: torch.Tensor, color_feature: torch.Tensor) -> torch.Tensor:
        """Return the mean threshold triplet loss max(0, q.K_neg - q.K_pos + alpha) among the top_k nearest slots.

        K_pos is the most similar slot with color distance < color_thres, K_neg the most similar other one. Queries
        without one of the two are left out. Returns 0 if no query is left.
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
        """Draw a slot for each query from the slots of other frames than ``ids`` (N,). Slots with a higher similarity
        are drawn more often. Returns their color features (N, 313) and scores (N,), -inf if there is no such slot."""
        similarity = self._similarity(query).masked_fill(self.ids == ids[:, None], -torch.inf)
        slot = (similarity + torch.rand(similarity.shape).to(similarity)).argmax(1, keepdim=True)
        return self.values[slot[:, 0]], similarity.gather(1, slot)[:, 0]

    @torch.no_grad()
    def update(self, query: torch.Tensor, color_feature: torch.Tensor, ids: torch.Tensor) -> None:
        """Write a batch with queries (N, 512), color features (N, 313) and frame ids (N,) into the memory.

        A query whose nearest slot has color distance < color_thres is added to the key of that slot, whose age is set
        to 0. Each other query overwrites a slot: empty ones first, then the oldest by age + uniform noise. Pinned slots
        are never overwritten; queries without a slot left are dropped. All other ages grow by 1. Deterministic for a
        given state of torch's CPU random generator.
        """
        nearest = self._similarity(query).argmax(1)
        match = self.used[nearest] & (color_distance(self.values[nearest], color_feature) < self.color_thres)
        self.ages += self.used

        slots, added = nearest[match], query[match]
        # Sum the queries that match the same slot by a matrix product, which adds in the same order on every device.
        added = (slots[:, None] == slots[None]).to(added.dtype) @ added
        self.keys[slots] = F.normalize(self.keys[slots] + added, dim=1)
        self.ages[slots] = 0

        noise = torch.rand(len(self.ages)).to(self.ages)
        rank = torch.where(self.used, self.ages + noise, torch.inf)
        rank[slots] = -1  # slots that matched come last
        rank[self.pinned] = -2  # behind all others; ``fresh`` is cut so that they are not reached
        fresh = (~match).nonzero().squeeze(1)[:int((~self.pinned).sum())]
        slots = rank.argsort(descending=True, stable=True)[:len(fresh)]  # stable: fills empty slots in order
        self.keys[slots] = query[fresh]
        self.values[slots] = color_feature[fresh]
        self.ids[slots] = ids.to(self.ids)[fresh]
        self.used[slots] = True
        self.ages[slots] = 0


class FeatureIntegrator(nn.Module):
    """Convex combination of the color features of the best 3 slots, with weights learned from their scores. Before
    training, the weight of the best slot is almost 1."""

    TOP = 3

    def __init__(self, hidden: int = 32, best_logit: float = 8.0) -> None:
        super().__init__()
        last = nn.Linear(hidden, self.TOP)
        self.mlp = nn.Sequential(nn.Linear(self.TOP, hidden), nn.ReLU(True), last)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([best_logit, 0.0, 0.0])  # weights 0.9993, 0.0003, 0.0003 after softmax

    def forward(self, values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the color feature (N, 313) for values (N, k, 313) and scores (N, k), k <= 3, -inf for empty slots."""
        missing = self.TOP - scores.shape[1]
        values, scores = F.pad(values, (0, 0, 0, missing)), F.pad(scores, (0, missing), value=-torch.inf)
        empty = ~scores.isfinite()
        weights = self.mlp(scores.masked_fill(empty, 0)).masked_fill(empty, -torch.inf).softmax(1)
        return (weights[:, :, None] * values).sum(1)
