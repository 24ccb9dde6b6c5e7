"""Where does a color belong? The spatial memory: for each place of a gray frame, the colors of places that look alike.

Shapes: N batch, M frames in memory, k of them read; G x G places a frame (``grid``), P = G^2; D and E features of a
frame and of a place as the backbone sees them; K = ``dim`` + 5 numbers of a key; S = ``side`` of a kept picture.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from colorizer.backbone import Features
from colorizer.memory.frame_archive import FIELDS, FrameArchive, digest_of
from colorizer.memory.frame_index import LOOK_STEPS, FrameIndex
from colorizer.warping import optical_flow_gpu as motion
from colorizer.warping.optical_flow import Flow, blur, fetch, relit
from config import SpatialConfig
from dataset import REFERENCE_ID, decode_lab8, downsample, encode_lab8, round_codes, tensors_to_lab
from networks import grow
from utils import UserError, to_device


def quantize_embeddings(features: torch.Tensor) -> torch.Tensor:
    """Backbone features (N, D) as looks (N, D), int16: of unit length, in LOOK_STEPS. They are what frames are compared
    by: a step is far less than frames of a shot differ by, and the looks of a film fit into a small file."""
    return (F.normalize(features.float(), dim=1) * LOOK_STEPS).round().to(torch.int16)


class NearestFrames(NamedTuple):
    """Which frames in memory are read for each picture."""

    slots: torch.Tensor  # (N, k) int64, in the order in which ``nearest`` chose them
    preferred: torch.Tensor  # (N, k) bool, whether the frame is one of the user's that comes first


class SpatialMemory(nn.Module):
    """Where a color belongs: for each place of a gray frame, the colors of the places that look alike.

    Every training frame keeps, on a grid of places, a key (what the backbone sees there, reduced by PCA, with
    lightness, position and color) and its ab. A picture is read by attention over all places of the ``frames`` that
    look like it. Its own colors are not known, so its keys have those that the generator guesses; they tell apart
    characters whose places look alike.

    A small picture of every frame is kept, too. From the first ``carried`` of the frames that are read, the colors of
    its pixels are carried along the optical flow, wherever the flow leads to the same lightness and to places that
    look the same. It does where a drawing has moved a little: in most of a shot of which some frames are known.

    A frame that the user added is pinned. Its keys hold the colors that the generator *guesses* of it, not its true
    ones: pictures like it are guessed just as wrongly, so their keys match, and they find the true colors there. Where
    no frame is more alike by more than ``preference`` it comes first, and its places are read as if ``pull`` nearer;
    elsewhere it is a frame like any other. So it corrects its own shot and leaves the others alone.

    All that is kept are buffers, saved in ``state_dict``; of a larger memory, the keys, colors and pictures of the
    first A frames are in an ``archive``, a file. The constants are those of SpatialConfig.
    """

    mean: torch.Tensor  # (E,)
    projection: torch.Tensor  # (E, dim)
    features: torch.Tensor  # (M, D) float16, of unit length
    keys: torch.Tensor  # (M - A, P, K) float16
    ab: torch.Tensor  # (M - A, P, 2) float16, ab / 110
    pictures: torch.Tensor  # (M - A, S, S, 3) uint8, codes of encode_lab8
    ids: torch.Tensor  # (M,) int64
    pinned: torch.Tensor  # (M,) bool

    def __init__(self, frame_dim: int, cell_dim: int, size: int, config: SpatialConfig, archived: int = 0) -> None:
        """``size`` is M and ``archived`` A, of which ``open`` is told the archive."""
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(cell_dim))
        self.register_buffer("projection", torch.zeros(cell_dim, config.key_dim))
        self.register_buffer("features", torch.zeros(0, frame_dim, dtype=torch.float16))
        self.resize(size, archived)

    def resize(self, size: int, archived: int = 0) -> None:
        """Make it one of ``size`` frames that are to be written, the first ``archived`` of them in an archive."""
        config, rest, device = self.config, size - archived, self.features.device
        places, side = config.grid**2, config.picture_size
        with device:
            self.register_buffer("features", torch.zeros(size, self.features.shape[1], dtype=torch.float16))
            self.register_buffer("keys", torch.zeros(rest, places, config.key_dim + 5, dtype=torch.float16))
            self.register_buffer("ab", torch.zeros(rest, places, 2, dtype=torch.float16))
            self.register_buffer("pictures", torch.zeros(rest, side, side, 3, dtype=torch.uint8))
            self.register_buffer("ids", torch.full((size,), -1, dtype=torch.long))
            self.register_buffer("pinned", torch.zeros(size, dtype=torch.bool))
        self.archived = archived
        self.archive: FrameArchive | None = None
        self.index: FrameIndex | None = None

    def open(self, archive: FrameArchive | None) -> None:
        """Take the frames of ``archived`` slots from an archive. Raises UserError for one of another number of
        frames."""
        if (0 if archive is None else len(archive)) != self.archived:
            raise UserError(f"the checkpoint keeps {self.archived} frames in a file beside it and names one of "
                            f"{0 if archive is None else len(archive)}; it is not whole, use another")
        self.archive = archive
        self.index = None if archive is None else archive.index.to(self.features.device)

    def similarity(self, features: torch.Tensor) -> torch.Tensor:
        """Cosine similarities (N, M) of features (N, D) of unit length to all frames, float32, as rounded sums."""
        return torch.cat([features @ part.float().T for part in self.features.split(512)], 1)

    def kept(self, name: str, slots: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Rows (n, ...) of ``keys``, ``ab`` or ``pictures`` of the frames in ``slots`` (n,)."""
        rows, archive, first = getattr(self, name), self.archive, self.archived
        if archive is None:
            return rows[torch.as_tensor(slots, dtype=torch.long, device=rows.device)]
        found = rows.new_empty(len(slots), *rows.shape[1:])
        for row, slot in zip(found, torch.as_tensor(slots).tolist(), strict=True):
            row.copy_(torch.from_numpy(archive.read(name, slot)) if slot < first else rows[slot - first])
        return found

    def picture(self, slot: int) -> np.ndarray:
        """The picture of the frame in a slot, codes of encode_lab8, uint8 (S, S, 3)."""
        return self.kept("pictures", [slot])[0].cpu().numpy()

    def labs(self, slots: Sequence[int]) -> np.ndarray:
        """The pictures of some frames, Lab float32 (n, S, S, 3)."""
        return tensors_to_lab(*decode_lab8(self.kept("pictures", slots).float().permute(0, 3, 1, 2)))

    def fit(self, places: torch.Tensor) -> None:
        """Fit the PCA to every 4th place of some frames, places (N, E, G, G)."""
        sample = places.flatten(2).transpose(1, 2)[:, ::4].flatten(0, 1).float().cpu().numpy()
        from sklearn.decomposition import PCA  # takes half a second, for which no coloring needs wait

        pca = PCA(self.config.key_dim, svd_solver="covariance_eigh").fit(sample)
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.projection.copy_(torch.from_numpy(pca.components_.T))

    @torch.no_grad()
    def key(self, places: torch.Tensor, L: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        """Keys (N, P, K), float32, of pictures: places (N, E, G, G), L (N, 1, H, W) in [0, 1], ab (N, 2, H, W) in
        [-1, 1]."""
        config = self.config
        features = (places.flatten(2).transpose(1, 2).float() - self.mean) @ self.projection
        lightness, color = (F.adaptive_avg_pool2d(x.float(), config.grid) for x in (L, ab))
        line = torch.linspace(-1, 1, config.grid, device=features.device)
        position = torch.cartesian_prod(line, line).expand(features.shape[0], -1, -1)
        rest = torch.cat([config.lightness_weight * lightness, config.color_weight * color], 1).flatten(2).transpose(1, 2)
        return torch.cat([features, config.position_weight * position, rest], 2)

    @torch.no_grad()
    def write(self, slots: torch.Tensor, seen: Features, L: torch.Tensor, ab: torch.Tensor, ids: torch.Tensor,
              guess: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Store N frames with L, ab as for ``key`` and ids (N,) in ``slots`` (N,); pinned ones with their ``guess``, as
        for ``pin``. Returns their rows as ``store`` does."""
        return self.store(slots, {**self._rows(seen, L, ab, ab if guess is None else guess), "ids": ids})

    @torch.no_grad()
    def store(self, slots: torch.Tensor, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Store N frames in ``slots`` (N,) by {name of a buffer: its rows}. Returns the rows in the buffers' types;
        keys, colors and pictures of archived slots are not stored here."""
        rows = {name: x.to(getattr(self, name)) for name, x in rows.items()}
        own = slots >= self.archived
        for name, x in rows.items():
            if name in FIELDS:
                getattr(self, name)[slots[own] - self.archived] = x[own]
            else:
                getattr(self, name)[slots] = x
        return rows

    def translated(self, keys: torch.Tensor, other: "SpatialMemory", seen: torch.Tensor) -> torch.Tensor:
        """Keys (n, P, K) of another memory as keys of this one, float32.

        Of the places, what the other's projection kept is known; the rest is taken from what is ``seen`` of the kept
        pictures, (n, E, G, G), which are smaller than those that the keys were made of.
        """
        places, rest = keys.float().split([self.config.key_dim, keys.shape[-1] - self.config.key_dim], -1)
        seen = seen.flatten(2).transpose(1, 2).float() - other.mean
        seen = seen + (places - seen @ other.projection) @ other.projection.T
        return torch.cat([(seen + other.mean - self.mean) @ self.projection, rest], -1)

    @torch.no_grad()
    def pin(self, seen: Features, L: torch.Tensor, ab: torch.Tensor, guess: torch.Tensor) -> None:
        """Add N pinned frames, given as for ``write``, of which the generator guesses the ab ``guess`` (N, 2, H, W);
        the memory grows by N frames."""
        ones = torch.ones(len(L))
        grow(self, {**self._rows(seen, L, ab, guess), "ids": REFERENCE_ID * ones, "pinned": ones})

    def _rows(self, seen, L, ab, guess):
        """{name of a buffer: its new rows}, not yet in the buffer's dtype; the keys have the colors ``guess``."""
        color = F.adaptive_avg_pool2d(ab.float(), self.config.grid).flatten(2).transpose(1, 2)
        return {"features": F.normalize(seen.embedding.float(), dim=1), "keys": self.key(seen.cells, L, guess),
                "ab": color, "pictures": self._picture(L, ab)}

    def _picture(self, L, ab):
        """L (N, 1, H, H) in [0, 1] and ab (N, 2, H, H) in [-1, 1] -> rows of ``pictures``, uint8 (N, S, S, 3)."""
        return round_codes(downsample(encode_lab8(L.float(), ab.float()), self.config.picture_size)).permute(0, 2, 3, 1)

    def _gray(self, L):
        """L (N, 1, H, H) in [0, 1] as in ``pictures``, uint8 (N, S, S)."""
        return self._picture(L, L.expand(-1, 2, -1, -1))[..., 0]

    def nearest(self, looks: torch.Tensor) -> NearestFrames:
        """The frames to read for pictures of ``quantize_embeddings`` (N, D): frames that look like the picture but not like each
        other, since neighboring frames of a shot would tell the same.

        They are chosen one by one: that of the highest similarity - variety * similarity to the nearest frame already
        chosen (maximal marginal relevance; Carbonell and Goldstein 1998). Numbers of few bits are multiplied and summed
        without rounding, in float64, so that the same frames are chosen in whatever batch and on every machine.
        """
        config = self.config
        slots, similarity, preferred = self._candidates(looks)
        if looks.device.type == "cpu":
            some, place = slots.unique(return_inverse=True)  # neighbors have most candidates in common
        else:  # how many they are would be waited for
            some, place = slots.flatten(), torch.arange(slots.numel(), device=looks.device).view_as(slots)
        known = self.features[some].double()
        chosen, penalty = [], torch.zeros_like(similarity)
        for _ in range(min(config.attended_frames, len(self.features))):
            best = (similarity - config.mmr_diversity * penalty).argmax(1, keepdim=True)
            chosen.append(best)
            alike = known[place.gather(1, best)[:, 0]] @ known.T
            penalty = torch.maximum(penalty, alike.gather(1, place))
            similarity.scatter_(1, best, -torch.inf)
        best = torch.cat(chosen, 1)
        return NearestFrames(slots.gather(1, best), preferred.gather(1, best))

    def _candidates(self, looks):
        """The ``candidates`` frames that are most similar to each of N looks: slots, similarity with the preference,
        float64, and whether preferred, each (N, c), best first, of equal ones that of the lower slot. Of frames in an
        archive, twice as many are shortlisted by its index and compared."""
        config, look = self.config, looks.double() / LOOK_STEPS
        rest = self.features[self.archived:].split(512)  # parts that stay in the cache, in a third of the time
        similarity = torch.cat([look @ part.double().T for part in rest], 1)
        slots = torch.arange(self.archived, len(self.features), device=looks.device).expand(len(looks), -1)
        if self.index is not None:
            near = self.index.shortlist(looks, 2 * config.candidate_frames)
            products = [self.features[some].double() @ one for some, one in zip(near, look, strict=True)]
            slots, similarity = torch.cat([near, slots], 1), torch.cat([torch.stack(products), similarity], 1)
        preferred = self.pinned[slots] & (similarity >= similarity.amax(1, keepdim=True) - config.reference_margin)
        similarity, order = (similarity + config.reference_margin * preferred).sort(dim=1, descending=True, stable=True)
        order = order[:, :config.candidate_frames]
        return slots.gather(1, order), similarity[:, :config.candidate_frames].clone(), preferred.gather(1, order)

    def digests(self) -> list[bytes]:
        """Of each frame, a hash of all that is read of it: its keys, colors and picture."""
        rows = zip(*(x.cpu().numpy() for x in (self.keys, self.ab, self.pictures)), strict=True)
        archived = [] if self.archive is None else map(self.archive.digest, range(self.archived))
        return [*archived, *(digest_of(*row) for row in rows)]

    @torch.no_grad()
    def read(self, nearest: NearestFrames, keys: torch.Tensor, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """The hint (N, 3, G, G), float32: ab / 110 in the first two channels, the confidence in [0, 1] in the third.

        ``nearest`` and keys (N, P, K) are those of the pictures. ``wanted``, bool (N, P), tells which places to read
        (None: all); the others get 0. The confidence is exp(-d^2 - variance / discord), where d^2 is the mean squared
        distance of keys to the places that the attention mixes, and the variance that of their ab / 110.
        """
        device, grid = keys.device.type, self.config.grid
        if device != "cpu":
            known, ab = (self._known(name, nearest.slots) for name in ("keys", "ab"))
            pulled = nearest.preferred.float().repeat_interleave(grid**2, 1)[..., None]
            hints = self.attend_at_once(keys, known, ab, pulled)
            return (hints if wanted is None else hints * wanted[:, None]).unflatten(2, (grid, grid))
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        hints = keys.new_zeros(len(keys), 3, grid**2)
        wanted = torch.ones_like(keys[..., 0], dtype=torch.bool) if wanted is None else wanted
        with torch.autocast(device, enabled=False):
            chosen = nearest.slots.tolist()
            for hint, query, slots, pulled, places in zip(hints, keys, chosen, nearest.preferred, wanted, strict=True):
                if places.any():
                    known, ab = (self.kept(name, slots).flatten(0, 1).float() for name in ("keys", "ab"))
                    hint[:, places] = self.attend(
                        query[places], known, ab,
                        pulled.float().repeat_interleave(grid**2)[:, None], dtype)
        return hints.view(-1, 3, grid, grid)

    def attend(self, query: torch.Tensor, known: torch.Tensor, ab: torch.Tensor, pulled: torch.Tensor,
               dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The hint (..., 3, Q) of places of keys ``query`` (..., Q, K), by attention over R known places: their keys
        (..., R, K), ab / 110 (..., R, 2), and 1 where they are pulled nearer (..., R, 1), all float32. The product is
        taken in ``dtype``."""
        config = self.config
        values = torch.cat([ab, ab.square().sum(-1, keepdim=True), pulled], -1).mT.contiguous()
        (known, length), (query, own_length) = self._rounded(known, dtype), self._rounded(query, dtype)
        # sharpness * (pull * pulled - |q - k|^2) in one product, from 2 q.k, -|k|^2 and -|q|^2.
        known = torch.cat([2 * known, *_in_two(config.inverse_temperature * config.reference_bias * pulled - length, dtype),
                           torch.ones_like(known[..., :2])], -1).mT
        query = torch.cat([query, torch.ones_like(query[..., :2]), *_in_two(-own_length, dtype)], -1)
        means, scores = [], []
        cut = query.device.type == "cpu" and not torch.compiler.is_exporting()  # a graph would get every part anew
        for part in query.split(32 if cut else query.shape[-2], -2):  # 32: to fit into a CPU's cache
            score = (part @ known).float()
            weight = score.softmax(-1)
            means.append(values @ weight.mT)
            scores.append(score.mul_(weight).sum(-1))
        color, square, pulled = torch.cat(means, -1).split([2, 1, 1], -2)
        distance = config.reference_bias * pulled - torch.cat(scores, -1).unsqueeze(-2) / config.inverse_temperature
        variance = square - color.square().sum(-2, keepdim=True)
        confidence = (-distance.clamp(min=0) - variance.clamp(min=0) / config.disagreement_scale).exp()
        return torch.cat([color, confidence], -2)

    def attend_at_once(self, query: torch.Tensor, known: torch.Tensor, ab: torch.Tensor,
                       pulled: torch.Tensor) -> torch.Tensor:
        """``attend`` in one kernel that keeps no scores, float32 throughout, for N pictures.

        The mean squared distance is |q|^2 - 2 q.E(k) + E(|k|^2), by the means of keys and of their squared lengths,
        which are mixed like colors.
        """
        sharpness, length = self.config.inverse_temperature, known.square().sum(-1, keepdim=True)
        values = torch.cat([ab, ab.square().sum(-1, keepdim=True), length, known], -1)
        # But for -|q|^2, which is the same for all of them; zeros make numbers a multiple of 8, as the kernel needs.
        key = torch.cat([2 * sharpness * known, sharpness * (self.config.reference_bias * pulled - length)], -1)
        place = torch.cat([query, torch.ones_like(query[..., :1])], -1)
        place, key, values = (F.pad(x, (0, -x.shape[-1] % 8))[:, None] for x in (place, key, values))
        with torch.autocast(query.device.type, enabled=False):
            means = F.scaled_dot_product_attention(place, key, values, scale=1.0)[:, 0, :, :4 + known.shape[-1]]
        color, square, length, known = means.split([2, 1, 1, known.shape[-1]], -1)
        distance = query.square().sum(-1, keepdim=True) - 2 * (query * known).sum(-1, keepdim=True) + length
        variance = square - color.square().sum(-1, keepdim=True)
        confidence = (-distance.clamp(min=0) - variance.clamp(min=0) / self.config.disagreement_scale).exp()
        return torch.cat([color, confidence], -1).mT

    def _known(self, name, slots):
        """Rows of all places of the frames in ``slots`` (N, k), as float32 (N, k P, ...)."""
        return self.kept(name, slots.flatten()).unflatten(0, slots.shape).flatten(1, 2).float()

    def _rounded(self, keys, dtype):
        """Keys (..., R, K) times the root of the sharpness, rounded to ``dtype``, and the squared lengths (..., R, 1)
        of the rounded keys. So distances are exact for these keys: rounding moves a key a little, and does no more."""
        keys = (self.config.inverse_temperature**0.5 * keys).to(dtype)
        return keys, keys.float().square().sum(-1, keepdim=True)

    @torch.no_grad()
    def carry(self, nearest: NearestFrames, keys: torch.Tensor, L: torch.Tensor,
              shown: Callable[[int], np.ndarray] | None = None) -> torch.Tensor:
        """Colors carried along the optical flow (N, 3, S, S), float32: ab / 110, and the confidence in [0, 1].

        ``nearest`` and keys (N, P, K) are those of the pictures, L (N, 1, H, H) in [0, 1] their lightness; ``shown``
        gives the picture of a slot as their film would show it, uint8 like those kept; None: as it is kept.

        The misfit of a pixel is unlike * squared distance of keys + unlit * squared difference in L, between the pixel
        and the one that the flow leads to. The confidence is 1 / (1 + (misfit + m / 2)^6), where m is the mean over the
        picture of the misfits, each cut off at ``doubt``: where little of a picture fits, the rest fits by chance.
        """
        near = NearestFrames(*(x[:, :self.config.warped_frames] for x in nearest))
        if L.device.type != "cpu":
            with torch.autocast(L.device.type, enabled=False):
                return self.carry_at_once(near, keys, L, shown)
        pictures, flow, carried, shown = self._gray(L), Flow(), [], shown or self.picture
        for picture, query, slots, pulled in zip(pictures.numpy(), keys, *(x.tolist() for x in near), strict=True):
            # Where a user's frame comes first, only such frames are carried: others may show what it corrects.
            some = [(slot, pull) for slot, pull in zip(slots, pulled, strict=True) if pull or not any(pulled)]
            found = [self._carry_from(slot, pull, shown(slot), picture, query, flow) for slot, pull in some]
            carried.append(self._mix(*(np.stack(part) for part in zip(*found, strict=True))))
        return torch.from_numpy(np.stack(carried))

    def _carry_from(self, slot, pull, known, picture, query, flow):
        """The ab / 110 (S, S, 2) that the frame in ``slot``, shown as the codes ``known`` (S, S, 3), has for a picture,
        8-bit L (S, S), of keys ``query`` (P, K), and the misfit (S, S)."""
        config, lightness = self.config, picture.astype(np.float32) / 255
        way = flow(picture, np.ascontiguousarray(known[..., 0]))
        found, ab = decode_lab8(fetch(known.astype(np.float32), way).transpose(2, 0, 1))
        found, ab = found[0], ab.transpose(1, 2, 0)
        small = cv2.resize(way, (config.grid, config.grid), interpolation=cv2.INTER_AREA) * (config.grid / config.picture_size)
        unlike = self._unlike(query[None], self.kept("keys", [slot]), torch.from_numpy(small)[None])[0, 0]
        unlike = config.feature_weight * (unlike - config.reference_bias * pull).clamp(min=0).numpy()
        misfit = config.photometric_weight * blur(np.square(found - lightness)) + unlike
        return relit(ab, found, lightness), misfit

    def _mix(self, colors, misfits):
        """Mix k carried colors (k, S, S, 2) by their misfits (k, S, S) -> ab / 110 and confidence (3, S, S)."""
        weight = np.exp(self.config.cost_inverse_temperature * (misfits.min(0) - misfits))
        weight /= weight.sum(0)
        color, misfit = (weight[..., None] * colors).sum(0), (weight * misfits).sum(0)
        misfit += np.minimum(misfit, self.config.cost_clamp).mean() / 2
        confidence = 1 / (1 + misfit**6)
        return np.concatenate([color, confidence[..., None]], 2).transpose(2, 0, 1)

    def carry_at_once(self, near: NearestFrames, keys: torch.Tensor, L: torch.Tensor,
                      shown: Callable[[int], np.ndarray] | None = None) -> torch.Tensor:
        """``carry`` for all pictures and all of the k frames ``near`` each at once, in float32."""
        config, (count, several) = self.config, near.slots.shape
        first = self._gray(L).float().repeat_interleave(several, 0)  # P = N k pairs
        slots = near.slots.flatten()
        if shown is None:
            pictures = self.kept("pictures", slots)
        else:
            pictures = to_device(np.stack([shown(slot) for slot in slots.cpu().tolist()]), L.device)
        second = pictures.float().permute(0, 3, 1, 2)
        way = motion.flows(first, second[:, 0])
        lightness, (found, ab) = first[:, None] / 255, decode_lab8(motion.fetch(second, way))
        unlike = self._unlike(keys.repeat_interleave(several, 0), self.kept("keys", slots),
                              motion.scaled(way, config.grid))
        unlike = unlike - config.reference_bias * near.preferred.reshape(-1, 1, 1, 1)
        misfit = config.photometric_weight * motion.blur((found - lightness).square()) + config.feature_weight * unlike.clamp(min=0)
        colors, misfit = (x.unflatten(0, (count, several)) for x in (motion.relit(ab, found, lightness), misfit))
        other = near.preferred.any(1, keepdim=True) & ~near.preferred
        misfit = misfit.masked_fill(other[:, :, None, None, None], 1e6)  # so that it has no weight
        weight = (-config.cost_inverse_temperature * misfit).softmax(1)
        color, misfit = (weight * colors).sum(1), (weight * misfit).sum(1)
        misfit = misfit + misfit.clamp(max=config.cost_clamp).mean((2, 3), keepdim=True) / 2
        return torch.cat([color, 1 / (1 + misfit**6)], 1)

    def _unlike(self, query, known, way):
        """Squared distances (N, 1, S, S) between keys ``query`` (N, P, K) and those of ``known`` (N, P, K) that the
        flows ``way`` (N, G, G, 2) lead to."""
        size, side = self.config.grid, self.config.picture_size
        known = known.float().mT.unflatten(2, (size, size))
        found = motion.fetch(known, way).flatten(2).mT
        distance = (found - query).square().sum(2).view(-1, 1, size, size)
        return F.interpolate(distance, (side, side), mode="bilinear", align_corners=False)


def _in_two(x, dtype):
    """Two tensors of ``dtype`` whose sum is x, float32, twice as exactly as one of them could be."""
    high = x.to(dtype)
    return high, (x - high).to(dtype)
