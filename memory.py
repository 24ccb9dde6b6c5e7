"""What is remembered: colour features by the looks of a frame, and colours by the looks of a place in it.

Shapes: N batch, k slots read, m slots in all, D and E features of a frame and of a place as the backbone sees them.
A colour feature has 313 numbers >= 0 of sum 1.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import nn

from dataset import shrink
from flow import Flow, blur, fetch, relit

FEATURE_DIM = 313  # a colour feature
KEY_DIM = 512  # a query or a key of the memory
REFERENCE_ID = -2  # the id of a frame that the user added; training frames have their own, from 0 on


def grow(module: nn.Module, rows: dict[str, torch.Tensor]) -> None:
    """Append ``rows``, a dict of tensors (n, ...), to buffers of a module by their names."""
    for name, new in rows.items():
        buffer = getattr(module, name)
        setattr(module, name, torch.cat([buffer, new.to(buffer)]))


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def color_distance(value: torch.Tensor, feature: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
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

    The slots are buffers: they move with ``.to()`` and are saved in ``state_dict``. A slot that the user added is
    pinned: never evicted, and preferred to a slot whose cosine similarity is greater by less than PREFERENCE.
    """

    PREFERENCE = 0.05

    def __init__(self, feature_dim: int, mem_size: int, top_k: int, alpha: float, color_thres: float) -> None:
        super().__init__()
        self.top_k, self.alpha, self.color_thres = min(top_k, mem_size), alpha, color_thres
        self.encoder = nn.Linear(feature_dim, KEY_DIM)
        self.register_buffer("keys", torch.zeros(mem_size, KEY_DIM))
        self.register_buffer("values", torch.zeros(mem_size, FEATURE_DIM))
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

    def read(self, query: torch.Tensor, k: int) -> Recall:
        """The k best slots of queries (N, 512). Raises ValueError when no slot is filled."""
        if not self.used.any():
            raise ValueError("the memory is empty")
        similarity = self._similarity(query)
        slots = (similarity + self.PREFERENCE * self.pinned).topk(min(k, len(self.keys)), dim=1).indices
        return Recall(self.values[slots], similarity.gather(1, slots), self.ids[slots])

    @torch.no_grad()
    def pin(self, query: torch.Tensor, color_feature: torch.Tensor) -> None:
        """Add a pinned slot for each query (N, 512) with its colour feature (N, 313); the memory grows by N slots."""
        ones = torch.ones(len(query))
        grow(self, {"keys": query, "values": color_feature, "ages": 0 * ones, "ids": REFERENCE_ID * ones, "used": ones,
                    "pinned": ones})

    def triplet_loss(self, query: torch.Tensor, color_feature: torch.Tensor) -> torch.Tensor:
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
    def recall_other(self, query: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A slot that comes from another frame than ``ids`` (N,), similar ones more often: its value (N, 313) and score
        (N,), as the memory answers for a frame that it has never seen. Score -inf where there is no such slot."""
        similarity = self._similarity(query).masked_fill(self.ids == ids[:, None], -torch.inf)
        slot = (similarity + torch.rand(similarity.shape).to(similarity)).argmax(1, keepdim=True)
        return self.values[slot[:, 0]], similarity.gather(1, slot)[:, 0]

    @torch.no_grad()
    def update(self, query: torch.Tensor, color_feature: torch.Tensor, ids: torch.Tensor) -> None:
        """Write a batch into the memory. query (N, 512), colour feature (N, 313), ids (N,).

        A query whose nearest slot has colour distance < color_thres is added to that slot's key, age 0. Any other one
        goes, with its colour, into a slot of its own: empty ones first, then the oldest by age + uniform noise.
        Every other age grows by 1. A pinned slot is never given away. Deterministic for a given state of torch's CPU
        random generator.
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
        rank[self.pinned] = -2  # and these behind the last
        fresh = (~match).nonzero().squeeze(1)[:int((~self.pinned).sum())]
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

    def __init__(self, hidden: int = 32, start: float = 8.0) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.TOP, hidden), nn.ReLU(True), nn.Linear(hidden, self.TOP))
        nn.init.zeros_(self.mlp[-1].weight)
        self.mlp[-1].bias.data = torch.tensor([start, 0.0, 0.0])  # softmax: 0.9993, 0.0003, 0.0003

    def forward(self, values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """values (N, 3, 313), scores (N, 3), -inf for an empty slot -> combined colour feature (N, 313)."""
        empty = ~scores.isfinite()
        weights = self.mlp(scores.masked_fill(empty, 0)).masked_fill(empty, -torch.inf).softmax(1)
        return (weights[:, :, None] * values).sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# Spatial memory


def _in_two(x, dtype):
    """Two tensors of ``dtype`` whose sum is x, float32, twice as exactly as one of them could be."""
    high = x.to(dtype)
    return high, (x - high).to(dtype)


class SpatialMemory(nn.Module):
    """Where a colour belongs: for each place of a grey frame, the colours of the places that look alike.

    Every training frame keeps, on a grid of 32 x 32 places, a key (what the backbone sees there, reduced by PCA, with
    lightness, position and colour) and its ab. A frame is read by attention over all places of FRAMES frames that look
    like it; in place of the colour its key has the generator's, which tells apart characters whose places look alike.

    Of every frame a small picture is kept too. From the CARRIED nearest frames the colours of its pixels are carried
    along the optical flow, where the flow finds the same lightness and its places the same looks: the drawing that has
    moved a little, which is most of a shot of which some frames are known.

    The frames are buffers, saved in ``state_dict``.

    A frame that the user added is pinned. Its keys have the colours that the generator *guesses*, like those of a frame
    that is read: it corrects what is guessed of frames like it, which keys of the right colours would not match. Where
    no frame is more alike by more than PREFERENCE it comes first, and its places are read as if PULL nearer (d^2);
    elsewhere it is a frame like any other, so that it corrects its shot and leaves the others alone.
    """

    GRID = 32
    DIM = 64  # of a place's features after the PCA
    FRAMES, CANDIDATES = 8, 64  # frames that are read, and the nearest ones among which they are chosen
    VARIETY = 0.5  # how much a frame that looks like one already chosen is set back
    SHARPNESS = 30.0  # of the attention: weights are softmax(-SHARPNESS * squared distance)
    DISCORD = 0.02  # variance of ab / 110 that divides the confidence by e
    LIGHTNESS, POSITION, COLOR = 2.0, 0.1, 4.0  # weights of L in [0, 1], (y, x) in [-1, 1] and ab / 110 in a key
    PREFERENCE, PULL = 0.05, 0.5
    CARRIED = 2  # frames whose colours are carried along the optical flow
    SIDE = 192  # of their pictures
    UNLIKE, UNLIT = 0.27, 100.0  # misfit of a squared distance of keys of 1, and of a squared difference in L of 1
    CHOICE = 15.0  # of the frames carried the weights are softmax(-CHOICE * misfit)
    DOUBT = 1.3  # see ``carry``
    CERTAIN = 0.95  # mean confidence of what is carried to a place from which on nothing else is looked for

    def __init__(self, frame_dim: int, place_dim: int, size: int) -> None:
        super().__init__()
        places = self.GRID**2
        self.register_buffer("mean", torch.zeros(place_dim))
        self.register_buffer("projection", torch.zeros(place_dim, self.DIM))
        self.register_buffer("frames", torch.zeros(size, frame_dim, dtype=torch.float16))  # unit length
        self.register_buffer("keys", torch.zeros(size, places, self.DIM + 5, dtype=torch.float16))
        self.register_buffer("ab", torch.zeros(size, places, 2, dtype=torch.float16))  # ab / 110
        # Lab as OpenCV codes it in 8 bits: L * 2.55, ab + 128.
        self.register_buffer("pictures", torch.zeros(size, self.SIDE, self.SIDE, 3, dtype=torch.uint8))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("pinned", torch.zeros(size, dtype=torch.bool))

    def fit(self, places: torch.Tensor) -> None:
        """Choose the projection by the places (N, E, 32, 32) of some frames."""
        sample = places.flatten(2).transpose(1, 2)[:, ::4].flatten(0, 1).float().cpu().numpy()
        pca = PCA(self.DIM, svd_solver="covariance_eigh").fit(sample)
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.projection.copy_(torch.from_numpy(pca.components_.T))

    @torch.no_grad()
    def key(self, places: torch.Tensor, L: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        """Keys (N, 1024, DIM + 5), float32, of frames: places (N, E, 32, 32), L (N, 1, H, W) in [0, 1] and
        ab (N, 2, H, W) in [-1, 1]."""
        features = (places.flatten(2).transpose(1, 2).float() - self.mean) @ self.projection
        lightness, color = (F.adaptive_avg_pool2d(x.float(), self.GRID) for x in (L, ab))
        line = torch.linspace(-1, 1, self.GRID, device=features.device)
        position = torch.cartesian_prod(line, line).expand(len(features), -1, -1)
        rest = torch.cat([self.LIGHTNESS * lightness, self.COLOR * color], 1).flatten(2).transpose(1, 2)
        return torch.cat([features, self.POSITION * position, rest], 2)

    @torch.no_grad()
    def write(self, slots: torch.Tensor, frames: torch.Tensor, places: torch.Tensor, L: torch.Tensor, ab: torch.Tensor,
              ids: torch.Tensor) -> None:
        """Store frames (N, D) with places, L and ab as for ``key`` and ids (N,) in ``slots`` (N,)."""
        for name, rows in self._rows(frames, places, L, ab, ab).items():
            buffer = getattr(self, name)
            buffer[slots] = rows.to(buffer)
        self.ids[slots] = ids

    @torch.no_grad()
    def pin(self, frames: torch.Tensor, places: torch.Tensor, L: torch.Tensor, ab: torch.Tensor,
            guess: torch.Tensor) -> None:
        """Add pinned frames, given as for ``write``, of which the generator guesses the ab ``guess`` (N, 2, H, W); the
        memory grows by N frames."""
        ones = torch.ones(len(frames))
        grow(self, {**self._rows(frames, places, L, ab, guess), "ids": REFERENCE_ID * ones, "pinned": ones})

    def _rows(self, frames, places, L, ab, guess):
        """What is kept of frames: of each buffer the rows, float32."""
        color = F.adaptive_avg_pool2d(ab.float(), self.GRID).flatten(2).transpose(1, 2)
        return {"frames": F.normalize(frames.float(), dim=1), "keys": self.key(places, L, guess), "ab": color,
                "pictures": self._picture(L, ab)}

    def _picture(self, L, ab):
        """L (N, 1, S, S) in [0, 1] and ab (N, 2, S, S) in [-1, 1] as rows of ``pictures``."""
        lab = torch.cat([255 * L.float(), 110 * ab.float() + 128], 1)
        return shrink(lab, self.SIDE).permute(0, 2, 3, 1).round().clamp(0, 255).byte()

    def choose(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots (N, FRAMES) to read for frames (N, D): those that look alike, but not all alike each other; and
        which of them are preferred, bool (N, FRAMES).

        One by one the frame of the highest similarity - VARIETY * similarity to the nearest one already chosen
        (maximal marginal relevance; Carbonell and Goldstein 1998). Neighbouring frames of one shot know the same.
        """
        similarity = F.normalize(frames.float(), dim=1) @ self.frames.float().T
        preferred = self.pinned & (similarity >= similarity.amax(1, keepdim=True) - self.PREFERENCE)
        similarity = similarity + self.PREFERENCE * preferred
        similarity, slots = similarity.topk(min(self.CANDIDATES, len(self.frames)), dim=1)
        known = self.frames[slots].float()  # (N, candidates, D)
        alike = known @ known.transpose(1, 2)
        chosen, penalty = [], torch.zeros_like(similarity)
        for _ in range(min(self.FRAMES, len(self.frames))):
            best = (similarity - self.VARIETY * penalty).argmax(1, keepdim=True)
            chosen.append(best)
            penalty = torch.maximum(penalty, alike.gather(1, best[:, :, None].expand(-1, -1, alike.shape[2]))[:, 0])
            similarity.scatter_(1, best, -torch.inf)
        slots = slots.gather(1, torch.cat(chosen, 1))
        return slots, preferred.gather(1, slots)

    @torch.no_grad()
    def read(self, chosen: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor,
             wanted: torch.Tensor | None = None) -> torch.Tensor:
        """The hint (N, 3, 32, 32), float32: ab / 110 in the first two channels, the confidence in [0, 1] in the third.

        ``chosen`` by ``choose`` for frames of keys (N, 1024, DIM + 5); ``wanted``, bool (N, 1024), are the places to
        read, all without it; the others get 0. The confidence is exp(-d^2 - variance / DISCORD): the mean squared
        distance of the places that the attention mixes, and the variance of their colours.
        """
        device = keys.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        hints = keys.new_zeros(len(keys), 3, self.GRID**2)
        wanted = torch.ones_like(keys[..., 0], dtype=torch.bool) if wanted is None else wanted
        with torch.autocast(device, enabled=False):
            for hint, query, slot, pulled, places in zip(hints, keys, *chosen, wanted, strict=True):
                if places.any():
                    hint[:, places] = self._attend(
                        query[places], self.keys[slot].flatten(0, 1).float(), self.ab[slot].flatten(0, 1).float(),
                        pulled.float().repeat_interleave(self.GRID**2)[:, None], dtype)
        return hints.view(-1, 3, self.GRID, self.GRID)

    def _attend(self, query, known, ab, pulled, dtype):
        """The hint (3, P) for keys (P, DIM + 5) by known ones (M, DIM + 5) with their ab (M, 2), and 1 where these are
        pulled (M, 1), by a product of ``dtype``."""
        values = torch.cat([ab, ab.square().sum(1, keepdim=True), pulled], 1).T.contiguous()
        (known, length), (query, own_length) = self._rounded(known, dtype), self._rounded(query, dtype)
        # SHARPNESS * (PULL * pulled - |q - k|^2) in one product, from 2 q.k, -|k|^2 and -|q|^2.
        known = torch.cat([2 * known, *_in_two(self.SHARPNESS * self.PULL * pulled - length, dtype),
                           torch.ones_like(known[:, :2])], 1).T
        query = torch.cat([query, torch.ones_like(query[:, :2]), *_in_two(-own_length, dtype)], 1)
        means, scores = [], []
        for part in query.split(32 if query.device.type == "cpu" else len(query)):  # on a CPU 32 stay in its cache
            score = (part @ known).float()
            weight = score.softmax(1)
            means.append(values @ weight.T)
            scores.append(score.mul_(weight).sum(1))
        *color, square, pulled = torch.cat(means, 1)
        color, distance = torch.stack(color), self.PULL * pulled - torch.cat(scores) / self.SHARPNESS
        variance = square - color.square().sum(0)
        confidence = (-distance.clamp(min=0) - variance.clamp(min=0) / self.DISCORD).exp()
        return torch.cat([color, confidence[None]])

    def _rounded(self, keys, dtype):
        """Keys (M, DIM + 5) times the root of SHARPNESS, rounded to ``dtype``, and the squared lengths (M, 1) of these:
        so the distances are exact, of keys that have moved by next to nothing."""
        keys = (self.SHARPNESS**0.5 * keys).to(dtype)
        return keys, keys.float().square().sum(1, keepdim=True)

    @torch.no_grad()
    def carry(self, chosen: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor, L: torch.Tensor) -> torch.Tensor:
        """Colours carried along the optical flow (N, 3, SIDE, SIDE), float32: ab / 110, and the confidence in [0, 1].

        ``chosen`` by ``choose`` for frames of keys (N, 1024, DIM + 5) and L (N, 1, S, S) in [0, 1]. The misfit of a
        pixel is UNLIKE * squared distance of keys + UNLIT * squared difference in L, of what the flow finds for it. The
        confidence is 1 / (1 + (misfit + mean misfit of the picture / 2)^6), in the mean no more than DOUBT for a pixel:
        where little of a picture fits, what seems to fit is by chance.
        """
        slots, preferred = (x[:, :self.CARRIED].tolist() for x in chosen)
        pictures = self._picture(L, L.expand(-1, 2, -1, -1))[..., 0].cpu().numpy()
        flow_between, carried = Flow(), []
        for picture, query, nearest, pulled in zip(pictures, keys.cpu(), slots, preferred, strict=True):
            colors, misfits, lightness = [], [], picture.astype(np.float32) / 255
            for slot, pull in zip(nearest, pulled, strict=True):
                if any(pulled) and not pull:
                    continue  # what the user corrects is not carried beside the correction
                known = self.pictures[slot].cpu().numpy()
                flow = flow_between(picture, np.ascontiguousarray(known[..., 0]))
                lab = fetch(known.astype(np.float32), flow)
                found, ab = lab[..., 0] / 255, (lab[..., 1:] - 128) / 110
                unlike = (self._unlike(query, self.keys[slot].cpu(), flow) - self.PULL * pull).clamp(min=0).numpy()
                colors.append(relit(ab, found, lightness))
                misfits.append(self.UNLIT * blur(np.square(found - lightness)) + self.UNLIKE * unlike)
            misfit = np.stack(misfits)
            weight = np.exp(self.CHOICE * (misfit.min(0) - misfit))
            weight /= weight.sum(0)
            color, misfit = (weight[..., None] * np.stack(colors)).sum(0), (weight * misfit).sum(0)
            misfit += np.minimum(misfit, self.DOUBT).mean() / 2
            confidence = 1 / (1 + misfit**6)
            carried.append(np.concatenate([color, confidence[..., None]], 2).transpose(2, 0, 1))
        return torch.from_numpy(np.stack(carried)).to(L.device)

    def _unlike(self, query, known, flow):
        """Squared distances (SIDE, SIDE) of keys (1024, DIM + 5) to those that a flow (SIDE, SIDE, 2) finds."""
        flow = cv2.resize(flow, (self.GRID,) * 2, interpolation=cv2.INTER_AREA) * (self.GRID / self.SIDE)
        y, x = np.indices(flow.shape[:2], dtype=np.float32)
        grid = (2 * torch.from_numpy(flow + np.stack([x, y], 2)) + 1) / self.GRID - 1  # the whole is [-1, 1]
        known = known.float().T.reshape(1, -1, self.GRID, self.GRID)
        found = F.grid_sample(known, grid[None], padding_mode="border", align_corners=False)[0].flatten(1).T
        distance = (found - query).square().sum(1).view(1, 1, self.GRID, self.GRID)
        return F.interpolate(distance, (self.SIDE,) * 2, mode="bilinear", align_corners=False)[0, 0]
