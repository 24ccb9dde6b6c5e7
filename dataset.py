"""Color conversions, the soft encoding of colors in 313 bins, and the dataset of training pictures.

Pictures are RGB uint8 (H, W, 3). Lab is CIE Lab with white D65, float32, L in [0, 100] and ab in about [-110, 110].
Networks take L / 100 and ab / 110. The datasets and the spatial memory store Lab in 8 bits (``encode_lab8``).
"""

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from fileio.images import IMAGE_SUFFIXES, LUMINANCE_WEIGHTS, list_images, read_image, srgb_decode
from fileio.record_cache import load_or_make_records, record_key
from utils import UserError, image_ids, warn

GRAY_SIZE = 256  # side of the grayscale input of the backbone, for any img_size
MIN_REDUCED_SIDE = 512  # pixels that the first step of a strong reduction leaves; larger: more exact, slower
REFERENCE_ID = -2  # image id of references; those of training frames are >= 0
L_SCALE, AB_SCALE = 100.0, 110.0  # networks take L / L_SCALE in [0, 1] and ab / AB_SCALE in about [-1, 1]

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# ---------------------------------------------------------------------------------------------------------------------
# Color conversions


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert RGB uint8 to Lab float32, within 0.5 of scikit-image (0.1 on average) and 100 times faster."""
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """Convert Lab float32 to RGB uint8; colors outside sRGB are clipped per channel."""
    return cv2.convertScaleAbs(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), alpha=255)


def spectral_lightness(rgb: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Return L float32 (H, W) of RGB uint8 recorded with a spectral sensitivity: weights (3,) of linear sRGB, sum 1."""
    light = srgb_decode(np.arange(256) / 255)[rgb] @ sensitivity.astype(np.float32)
    return np.where(light > (6 / 29) ** 3, 116 * np.cbrt(light) - 16, light * (29 / 3) ** 3).astype(np.float32)


def luma_lightness(rgb: np.ndarray) -> np.ndarray:
    """Return L float32 (H, W) of the luma (BT.601) of RGB uint8, as in grayscale video."""
    return _L_OF_GRAY[cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)]


def hd_luma_lightness(rgb: np.ndarray) -> np.ndarray:
    """Return L float32 (H, W) of the luma (BT.709) of RGB uint8, as in HD video."""
    return _L_OF_GRAY[cv2.transform(rgb, LUMINANCE_WEIGHTS[None])]


_L_OF_GRAY = spectral_lightness(np.arange(256)[:, None] * [1, 1, 1], np.full(3, 1 / 3))


def lab_to_tensors(lab: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert Lab (H, W, 3) to network inputs: L (1, 1, H, W) in [0, 1] and ab (1, 2, H, W) in [-1, 1]."""
    scaled = lab / np.array([L_SCALE, AB_SCALE, AB_SCALE], np.float32)
    L, ab = torch.from_numpy(scaled).permute(2, 0, 1)[None].split([1, 2], 1)
    return L, ab


def tensors_to_lab(L: torch.Tensor, ab: torch.Tensor) -> np.ndarray:
    """Convert L (N, 1, H, W) in [0, 1] and ab (N, 2, H, W) in [-1, 1] to Lab float32 (N, H, W, 3)."""
    return torch.cat([L * L_SCALE, ab * AB_SCALE], 1).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def encode_lab8(L: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
    """Encode L (..., 1, H, W) in [0, 1] and ab (..., 2, H, W) in [-1, 1] as codes (..., 3, H, W) of OpenCV's 8-bit Lab,
    not yet rounded: 255 L and 110 ab + 128."""
    return torch.cat([255 * L, AB_SCALE * ab + 128], -3)


def round_codes(codes: torch.Tensor) -> torch.Tensor:
    """Round codes of ``encode_lab8`` to uint8."""
    return codes.round().clamp(0, 255).byte()


def decode_lab8(codes: Array) -> tuple[Array, Array]:
    """Inverse of ``encode_lab8`` for float codes, an array or tensor (..., 3, H, W); returns (L, ab)."""
    return codes[..., :1, :, :] / 255, (codes[..., 1:, :, :] - 128) / AB_SCALE


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w) or (h, w, C) to (height, width, ...) by area average if smaller, else bilinearly.

    Strong reductions average blocks of whole pixels first: OpenCV takes 5 times as long for fractional ratios.
    """
    old_height, old_width = image.shape[:2]
    if height > old_height or width > old_width:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    rows, columns = _block_size(old_height, height), _block_size(old_width, width)
    if rows * columns > 1:
        image = cv2.resize(image, (old_width // columns, old_height // rows), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=256)
def _block_size(old, new):
    """Return the size of blocks that divide ``old`` pixels evenly and leave 2 for each of ``new`` pixels, or
    MIN_REDUCED_SIDE in all."""
    left = max(new, min(2 * new, MIN_REDUCED_SIDE))
    return next(size for size in range(max(1, old // left), 0, -1) if old % size == 0)


@lru_cache(maxsize=8)
def _area_weights(old, new, device):
    """Return the matrix (new, old) that averages a row of ``old`` pixels by area into ``new`` larger pixels."""
    edge, pixel = torch.arange(new, device=device)[:, None] * old / new, torch.arange(old, device=device)
    return (torch.minimum(pixel + 1, edge + old / new) - torch.maximum(pixel, edge)).clamp(min=0) * new / old


def downsample(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Downsample square maps by area averaging, float32 (N, C, H, H) to (N, C, side, side), side <= H.

    Unlike torch's area mode, this is exact for any ratio, as ``resize`` is for arrays.
    """
    weights = _area_weights(maps.shape[-1], side, maps.device).to(maps)
    return maps if maps.shape[-1] == side else weights @ maps @ weights.T


# ---------------------------------------------------------------------------------------------------------------------
# The 313 color bins and the soft encoding (Zhang et al. 2016, arXiv 1603.08511)

BIN_STEP = 10
NEIGHBORS = 10  # a color is encoded by its 10 nearest bins
SIGMA = 5.0  # standard deviation, in Lab units, of the Gaussian weights of these bins

_B_RANGES = {  # {a: (first b, last b)}
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100),
    -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90),
    50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0)}  # fmt: skip
AB_BINS = np.array([(a, b) for a, (first, last) in _B_RANGES.items() for b in range(first, last + 1, BIN_STEP)],
                   dtype=np.float32)  # (313, 2), ordered by a, then b
N_BINS = len(AB_BINS)

_TILE_ORIGIN = -130  # smallest a and b of the square tiles, BIN_STEP wide, that cover the ab plane
_TILES = 26
_SIDE = _TILES * BIN_STEP  # unit cells along each side of the plane
_FINE = 1.5  # bins per unit of the histogram of color_feature; 1 would exceed its error bound of 1e-3, 2 is slower
_SLOPES = np.ascontiguousarray(AB_BINS.T / np.float32(SIGMA**2))  # (2, 313), see color_feature


def _candidate_table():
    """Return, for each tile of the ab plane, the bins that can be among the NEIGHBORS nearest to a point in it.

    A bin is left out if at least NEIGHBORS bins are nearer to every point of the tile. Returns indices
    (tiles^2, candidates), padded with N_BINS.
    """
    center = _TILE_ORIGIN + BIN_STEP * (np.arange(_TILES) + 0.5)
    centers = np.stack(np.meshgrid(center, center, indexing="ij"), -1).reshape(-1, 1, 2)
    offset = np.abs(centers - AB_BINS[None])  # (tiles^2, 313, 2)
    nearest = (np.maximum(offset - BIN_STEP / 2, 0) ** 2).sum(-1)
    farthest = ((offset + BIN_STEP / 2) ** 2).sum(-1)
    possible = nearest <= np.sort(farthest, axis=1)[:, NEIGHBORS - 1:NEIGHBORS]
    order = np.argsort(~possible, axis=1, kind="stable")[:, :possible.sum(1).max()]
    return np.where(np.take_along_axis(possible, order, 1), order, N_BINS)


_CANDIDATES = _candidate_table()
_PADDED_BINS = np.vstack([AB_BINS, [[1e6, 1e6]]]).astype(np.float32)  # the padding is never near


def soft_encode(ab: np.ndarray, neighbors: int = NEIGHBORS) -> tuple[np.ndarray, np.ndarray]:
    """Encode colors ab (P, 2) in Lab units by their nearest bins.

    Returns bin indices int (P, neighbors) and weights float32 (P, neighbors), which are proportional to
    exp(-d^2 / (2 * SIGMA^2)) and sum to 1. Exact for up to NEIGHBORS bins.
    """
    ab = np.asarray(ab, dtype=np.float32)
    tile = np.clip((ab - _TILE_ORIGIN) // BIN_STEP, 0, _TILES - 1).astype(np.int64)
    candidates = _CANDIDATES[tile[:, 0] * _TILES + tile[:, 1]]  # (P, candidates)
    offset = _PADDED_BINS[candidates] - ab[:, None]
    distance = np.einsum("pkc,pkc->pk", offset, offset)
    chosen = np.argpartition(distance, neighbors - 1, axis=1)[:, :neighbors]
    distance = np.take_along_axis(distance, chosen, 1)
    weight = np.exp((distance.min(1, keepdims=True) - distance) / (2 * SIGMA**2))
    return np.take_along_axis(candidates, chosen, 1), weight / weight.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def _cell_table():
    """Return bins int (cells, 13) and weights float32 (cells, 13) for the center of each unit cell of the ab plane.

    The 13 nearest bins of the center include the 10 nearest bins of any point in the cell.
    """
    middle = _TILE_ORIGIN + np.arange(_SIDE, dtype=np.float32) + 0.5
    return soft_encode(np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).reshape(-1, 2), NEIGHBORS + 3)


def color_feature(ab: np.ndarray) -> np.ndarray:
    """Return the color feature float32 (313,) of ab (H, W, 2) in Lab units: the mean soft encoding of its pixels.

    Pixels are counted in a fine histogram, and each used cell is encoded once, at the mean color of its pixels. Its
    weights follow from those of the center of the surrounding unit cell: moving a color by delta multiplies the weight
    of a bin by exp(delta . bin / SIGMA^2), up to normalization. The L1 error is at most 1e-3.
    """
    side = int(_SIDE * _FINE)
    planes = [np.clip(ab[..., c].ravel() - np.float32(_TILE_ORIGIN), 0, np.float32(_SIDE - 0.01)) for c in (0, 1)]
    column, row = ((plane * np.float32(_FINE)).astype(np.int32) for plane in planes)
    cell = column * side + row
    count = np.bincount(cell, minlength=side * side)
    used = np.flatnonzero(count > 0)  # flatnonzero is 3 times faster on bools
    count = count[used]
    mean = np.stack([np.bincount(cell, plane, side * side)[used] / count for plane in planes]).astype(np.float32)
    corner = mean.astype(np.int32)
    delta = (mean - corner - np.float32(0.5))[..., None]

    index, weight = (table[corner[0] * _SIDE + corner[1]] for table in _cell_table())
    move = _SLOPES[0][index] * delta[0]
    move += _SLOPES[1][index] * delta[1]
    weight *= np.exp(move, out=move)
    weight[weight < np.partition(weight, -NEIGHBORS, axis=1)[:, -NEIGHBORS, None]] = 0  # keep the 10 nearest
    weight *= (count / weight.sum(1)).astype(np.float32)[:, None]
    feature = np.bincount(index.ravel(), weight.ravel(), N_BINS)
    return (feature / feature.sum()).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Dataset

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def backbone_input(L: torch.Tensor) -> torch.Tensor:
    """Convert L (..., 1, H, W) in [0, 1] to the ImageNet-normalized input (..., 3, H, W) of the backbone."""
    mean, std = (x.to(L.device, non_blocking=True) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (L - mean) / std


PREPARATION_VERSION = 3  # increase it if ``prepare`` changes, to invalidate caches


class ColorizationDataset(Dataset):
    """Pictures of a folder or a list of paths, prepared as 8-bit Lab for networks of ``img_size``.

    An item is a dict of ``L`` (1, S, S) in [0, 1]; ``ab`` (2, S, S) in about [-1, 1]; ``color_feature`` (313,);
    ``gray`` (3, 256, 256) for the backbone; ``image_id``, the number at the end of the file name (``image_ids``); and
    ``index`` in the dataset. Pictures are kept at ``side`` x ``side``, max(img_size, 256), for sharp zoomed views.

    Prepared pictures of a folder are cached in its subfolder ``.cache``, by file name, size and modification time. They
    are held in memory or, if they take more than ``cache_gb`` GB, read from the cache when needed. Pictures of a list
    of paths are always held in memory. Unreadable pictures are skipped with a warning. Raises UserError if the folder
    does not exist or no picture can be read.
    """

    def __init__(self, source: str | Path | Iterable[str | Path], img_size: int, cache_gb: float = 1.0) -> None:
        self.cache = None
        if isinstance(source, (str, Path)):
            if not Path(source).is_dir():
                raise UserError(f"there is no folder {source}; create it with dataset_generator.py or pass another one")
            paths = list_images(source)
            self.cache = Path(source) / ".cache"
        else:
            source, paths = "the list of pictures", [Path(path) for path in source]
        self.img_size, self.side = img_size, max(img_size, GRAY_SIZE)

        def prepare(path):
            try:
                full = rgb_to_lab(read_image(path))
            except UserError as error:
                warn(f"{error}; skipped")
                return None
            feature = color_feature(resize(full, img_size, img_size)[..., 1:])
            L, ab = lab_to_tensors(resize(full, self.side, self.side))  # the whole frame, without cropping
            return feature, round_codes(encode_lab8(L, ab))[0].numpy()

        def prepare_all(indices):
            with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(
                    total=len(indices), unit=" pictures", desc="preparing", leave=False, disable=None) as bar:
                for start in range(0, len(indices), 64):  # bounds the prepared pictures in memory
                    for values in pool.map(prepare, [paths[index] for index in indices[start:start + 64]]):
                        bar.update()
                        yield values

        keys = [record_key(PREPARATION_VERSION, path.name, path.stat().st_size, path.stat().st_mtime_ns)
                for path in paths]
        fields = [("color_feature", "f4", (N_BINS,)), ("lab", "u1", (3, self.side, self.side))]
        records, readable = load_or_make_records(
            self.cache and self.cache / f"pictures_{img_size}", fields, [record_key(key, img_size) for key in keys],
            prepare_all, cache_gb * 1e9)
        if not readable:
            raise UserError(f"no readable picture in {source} (expected {', '.join(IMAGE_SUFFIXES)})")
        self.paths, self.keys = [paths[index] for index in readable], [keys[index] for index in readable]
        self.codes = torch.from_numpy(records["lab"])  # (N, 3, side, side) uint8, of encode_lab8
        self.color_features = torch.from_numpy(records["color_feature"].copy())  # (N, 313)
        self.ids = image_ids([path.name for path in self.paths])

    def features(self, name: str, dim: int, identity: object,
                 compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return features (N, dim) of the pictures from a frozen network, cached in the file ``name`` as float16.

        ``compute`` maps picture indices (n,) to features (n, dim). Cached features with a
        different ``identity``, a plain value that stands for the network and its weights, are computed again.
        """
        def compute_all(indices):
            for start in range(0, len(indices), 8):
                features = compute(torch.tensor(indices[start:start + 8]))
                yield from ((feature,) for feature in features.cpu().numpy())

        records, _ = load_or_make_records(
            self.cache and self.cache / name, [("feature", "f2", (dim,))],
            [record_key(key, identity) for key in self.keys], compute_all, math.inf)
        return torch.from_numpy(records["feature"].astype(np.float32))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        L, ab, gray = (part[0] for part in self.tensors([index], self.img_size))
        return {"L": L, "ab": ab, "color_feature": self.color_features[index], "image_id": self.ids[index],
                "gray": gray, "index": index}

    def tensors(self, indices: torch.Tensor | list[int],
                size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return L (N, 1, size, size), ab (N, 2, size, size) and backbone inputs (N, 3, 256, 256) of pictures.

        ``size`` is at most ``side``.
        """
        codes = self.codes[indices].float()
        return *decode_lab8(downsample(codes, size)), backbone_input(downsample(codes[:, :1], GRAY_SIZE) / 255)
