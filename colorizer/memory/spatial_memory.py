"""The spatial memory: storage of training frames and references for attention and warping.

Shapes: N pictures; M frames in the spatial memory, the first A of which are stored in an archive on disk; G grid side,
P = G^2 cells per frame; D embedding dimensions; E cell feature dimensions; C = ``key_dim`` + 5 dimensions of a key;
S = ``picture_size``, picture side in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from colorizer.backbone import Features
from colorizer.memory.frame_archive import RECORD_FIELDS, FrameArchive, record_digest
from colorizer.memory.frame_index import FrameIndex
from config import SpatialConfig
from dataset import REFERENCE_ID, decode_lab8, downsample, encode_lab8, round_codes, tensors_to_lab
from networks import grow
from utils import UserError


class SpatialMemory(nn.Module):
    """Stores the cells of frames, for ``attend_to_frames``, and small pictures of them, for ``warp_colors``.

    Each cell has a key and a mean ab. The key consists of the backbone features of the cell, reduced by PCA, and its
    position, lightness and color. Keys of a picture to color contain the colors predicted by the generator, which
    distinguish characters whose cells have similar features.

    References are pinned. Their keys contain the colors that the generator *predicts* for them, not their own colors:
    similar pictures get similar wrong predictions, so their keys match, and attention returns the reference colors. A
    reference is preferred if no frame is more similar by more than ``reference_margin``. Squared distances to cells of
    a preferred reference are lowered by ``reference_bias``. A reference thus corrects its own shot but not others.

    Frames are buffers, saved in ``state_dict``, except for the keys, colors and pictures of archived frames.
    """

    mean: torch.Tensor  # (E,)
    projection: torch.Tensor  # (E, key_dim)
    embeddings: torch.Tensor  # (M, D) float16, of unit length
    keys: torch.Tensor  # (M - A, P, C) float16
    ab: torch.Tensor  # (M - A, P, 2) float16, ab / 110
    pictures: torch.Tensor  # (M - A, S, S, 3) uint8, codes of encode_lab8
    ids: torch.Tensor  # (M,) int64
    pinned: torch.Tensor  # (M,) bool

    def __init__(self, embedding_dim: int, cell_dim: int, size: int, config: SpatialConfig,
                 archived_frames: int = 0) -> None:
        """Create a memory with ``size`` empty slots. ``attach_archive`` later supplies the first ``archived_frames`` of
        them from disk."""
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(cell_dim))
        self.register_buffer("projection", torch.zeros(cell_dim, config.key_dim))
        self.register_buffer("embeddings", torch.zeros(0, embedding_dim, dtype=torch.float16))
        self.allocate(size, archived_frames)

    def allocate(self, size: int, archived_frames: int = 0) -> None:
        """Replace all frames with ``size`` empty slots; ``archived_frames`` is as in the constructor."""
        config, in_memory = self.config, size - archived_frames
        cells, side = config.grid**2, config.picture_size
        with self.embeddings.device:
            self.register_buffer("embeddings", torch.zeros(size, self.embeddings.shape[1], dtype=torch.float16))
            self.register_buffer("keys", torch.zeros(in_memory, cells, config.key_dim + 5, dtype=torch.float16))
            self.register_buffer("ab", torch.zeros(in_memory, cells, 2, dtype=torch.float16))
            self.register_buffer("pictures", torch.zeros(in_memory, side, side, 3, dtype=torch.uint8))
            self.register_buffer("ids", torch.full((size,), -1, dtype=torch.long))
            self.register_buffer("pinned", torch.zeros(size, dtype=torch.bool))
        self.archived_frames = archived_frames
        self.hidden: torch.Tensor | None = None  # (M,) bool, frames that are not retrieved during calibration
        self.archive: FrameArchive | None = None
        self.index: FrameIndex | None = None

    def attach_archive(self, archive: FrameArchive | None) -> None:
        """Use an archive for the first ``archived_frames`` frames. Raises UserError if it has a different number of
        frames."""
        count = 0 if archive is None else len(archive)
        if count != self.archived_frames:
            raise UserError(f"the checkpoint needs an archive of {self.archived_frames} frames, but its archive has "
                            f"{count}; it is incomplete, use a different checkpoint")
        self.archive = archive
        self.index = None if archive is None else archive.index.to(self.embeddings.device)

    def similarity(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarities, float32 (N, M), of embeddings (N, D) of unit length to all frames."""
        return torch.cat([embeddings @ chunk.float().T for chunk in self.embeddings.split(512)], 1)

    def rows(self, name: str, slots: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Return the rows (n, ...) in ``slots`` (n,) of the buffer ``name``: "keys", "ab" or "pictures"."""
        buffer, archive, first = getattr(self, name), self.archive, self.archived_frames
        if archive is None:
            return buffer[torch.as_tensor(slots, dtype=torch.long, device=buffer.device)]
        rows = buffer.new_empty(len(slots), *buffer.shape[1:])
        for row, slot in zip(rows, torch.as_tensor(slots).tolist(), strict=True):
            row.copy_(torch.from_numpy(archive.read(name, slot)) if slot < first else buffer[slot - first])
        return rows

    def picture(self, slot: int) -> np.ndarray:
        """Return the picture in a slot, codes of encode_lab8, uint8 (S, S, 3)."""
        return self.rows("pictures", [slot])[0].cpu().numpy()

    def lab_pictures(self, slots: Sequence[int]) -> np.ndarray:
        """Return the pictures in ``slots`` (n,) as Lab, float32 (n, S, S, 3)."""
        return tensors_to_lab(*decode_lab8(self.rows("pictures", slots).float().permute(0, 3, 1, 2)))

    def digests(self) -> list[bytes]:
        """Return a hash for each frame, computed from its keys, colors and picture."""
        in_memory = zip(*(getattr(self, name).cpu().numpy() for name in RECORD_FIELDS), strict=True)
        archived = [] if self.archive is None else map(self.archive.digest, range(self.archived_frames))
        return [*archived, *(record_digest(*row) for row in in_memory)]

    # Keys

    def fit_projection(self, cells: torch.Tensor) -> None:
        """Fit the PCA of the keys to every 4th cell of the features ``cells`` (N, E, G, G)."""
        from sklearn.decomposition import PCA  # imported here since it takes half a second

        sample = cells.flatten(2).transpose(1, 2)[:, ::4].flatten(0, 1).float().cpu().numpy()
        pca = PCA(self.config.key_dim, svd_solver="covariance_eigh").fit(sample)
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.projection.copy_(torch.from_numpy(pca.components_.T))

    @torch.no_grad()
    def make_keys(self, cells: torch.Tensor, L: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        """Return the keys, float32 (N, P, C), of pictures with features ``cells`` (N, E, G, G), L (N, 1, H, W) in
        [0, 1] and ab (N, 2, H, W) in [-1, 1]."""
        config = self.config
        features = (cells.flatten(2).transpose(1, 2).float() - self.mean) @ self.projection
        line = torch.linspace(-1, 1, config.grid, device=features.device)
        position = torch.cartesian_prod(line, line).expand(features.shape[0], -1, -1)
        lightness, color = (self._cell_means(x) for x in (L, ab))
        return torch.cat([features, config.position_weight * position, config.lightness_weight * lightness,
                          config.color_weight * color], 2)

    def convert_keys(self, keys: torch.Tensor, other: "SpatialMemory", cells: torch.Tensor) -> torch.Tensor:
        """Convert keys (n, P, C) of a different memory to keys of this memory, float32 (n, P, C).

        Feature components kept by the projection of ``other`` are taken from the keys. The remaining components are
        estimated from ``cells`` (n, E, G, G), the features of the stored pictures, which are downscaled.
        """
        features, rest = keys.float().split([self.config.key_dim, keys.shape[-1] - self.config.key_dim], -1)
        centered = cells.flatten(2).transpose(1, 2).float() - other.mean
        centered = centered + (features - centered @ other.projection) @ other.projection.T
        return torch.cat([(centered + other.mean - self.mean) @ self.projection, rest], -1)

    # Writing

    @torch.no_grad()
    def write(self, slots: torch.Tensor, features: Features, L: torch.Tensor, ab: torch.Tensor, ids: torch.Tensor,
              predicted: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Store N frames with ``ids`` (N,) in ``slots`` (N,). L and ab are as in ``make_keys``; for references,
        ``predicted`` is as in ``pin``. Return the result of ``store_rows``."""
        rows = self._make_rows(features, L, ab, ab if predicted is None else predicted)
        return self.store_rows(slots, {**rows, "ids": ids})

    @torch.no_grad()
    def store_rows(self, slots: torch.Tensor, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Store N frames, given as {name of a buffer: rows}, in ``slots`` (N,). Return the rows, converted to the
        dtypes and device of the buffers. Keys, colors and pictures of archived slots are not stored."""
        rows = {name: x.to(getattr(self, name)) for name, x in rows.items()}
        not_archived = slots >= self.archived_frames
        for name, x in rows.items():
            if name in RECORD_FIELDS:
                getattr(self, name)[slots[not_archived] - self.archived_frames] = x[not_archived]
            else:
                getattr(self, name)[slots] = x
        return rows

    @torch.no_grad()
    def pin(self, features: Features, L: torch.Tensor, ab: torch.Tensor, predicted: torch.Tensor) -> None:
        """Append N references with L and ab as in ``make_keys``, given the ``predicted`` ab (N, 2, H, W) of the
        generator."""
        ones = torch.ones(len(L))
        grow(self, {**self._make_rows(features, L, ab, predicted), "ids": REFERENCE_ID * ones, "pinned": ones})

    def encode_pictures(self, L: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        """Convert L (N, 1, H, H) in [0, 1] and ab (N, 2, H, H) in [-1, 1] to rows of ``pictures``, uint8
        (N, S, S, 3)."""
        return round_codes(downsample(encode_lab8(L.float(), ab.float()), self.config.picture_size)).permute(0, 2, 3, 1)

    def _make_rows(self, features, L, ab, predicted):
        """Return {name of a buffer: rows} of frames, in any dtype. Keys contain the colors ``predicted``."""
        return {"embeddings": F.normalize(features.embedding.float(), dim=1),
                "keys": self.make_keys(features.cells, L, predicted), "ab": self._cell_means(ab),
                "pictures": self.encode_pictures(L, ab)}

    def _cell_means(self, x):
        """Return the means of x (N, c, H, W) in each cell, float32 (N, P, c)."""
        return F.adaptive_avg_pool2d(x.float(), self.config.grid).flatten(2).transpose(1, 2)
