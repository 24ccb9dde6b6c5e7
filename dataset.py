"""How a picture becomes tensors: CIE Lab, the 313 colour bins, the soft encoding and the dataset.

Pictures are RGB uint8 (H, W, 3). Lab is CIE Lab with the D65 white, L in [0, 100] and ab in about [-110, 110]; the
networks see L / 100 and ab / 110.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from cache import cached, key_of
from utils import IMAGE_SUFFIXES, UserError, image_ids, list_files, read_image, warn

GREY_SIZE = 256  # side of the grey picture that the backbone sees, whatever img_size is
L_SCALE = 100.0  # networks see L / L_SCALE in [0, 1]
AB_SCALE = 110.0  # and ab / AB_SCALE in about [-1, 1]

# ---------------------------------------------------------------------------------------------------------------------
# Lab and back


def rgb_to_lab(rgb):
    """RGB uint8 (H, W, 3) -> Lab float32 (H, W, 3), within 0.5 of scikit-image's (0.1 on average), 100 times faster."""
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def lab_to_rgb(lab):
    """Lab float32 (H, W, 3) -> RGB uint8 (H, W, 3); colours outside sRGB are clipped channel by channel."""
    return cv2.convertScaleAbs(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), alpha=255)


def resize(image, height, width):
    """Resize (h, w) or (h, w, C) to (height, width, ...): area average to shrink, bilinear to enlarge."""
    shrink = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


# ---------------------------------------------------------------------------------------------------------------------
# The 313 colour bins and the soft encoding (Zhang et al. 2016, arXiv 1603.08511)

BIN_STEP = 10
NEIGHBOURS = 10  # a colour is shared among its 10 nearest bins
SIGMA = 5.0  # with Gaussian weights of this width

_B_RANGES = {  # for each a: the first and last b
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100),
    -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90),
    50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0)}  # fmt: skip
AB_BINS = np.array([(a, b) for a, (first, last) in _B_RANGES.items() for b in range(first, last + 1, BIN_STEP)],
                   dtype=np.float32)  # (313, 2), ordered by a, then b
N_BINS = len(AB_BINS)

_TILE_ORIGIN = -130  # the plane of ab is cut into square tiles of BIN_STEP, from here
_TILES = 26
_SIDE = _TILES * BIN_STEP  # 1 x 1 cells along a side of the plane
_FINE = 1.5  # fine cells along a side of a 1 x 1 cell: 1 is too coarse for 1e-3, 2 is slower


def _candidate_table():
    """For each tile of the ab plane, every bin that can be among the NEIGHBOURS nearest of some point in it.

    A bin is out when even the tile's point nearest to it is farther away than NEIGHBOURS other bins are from their
    farthest point. Returns indices (tiles^2, K), padded with N_BINS.
    """
    centre = _TILE_ORIGIN + BIN_STEP * (np.arange(_TILES) + 0.5)
    centres = np.stack(np.meshgrid(centre, centre, indexing="ij"), -1).reshape(-1, 1, 2)
    offset = np.abs(centres - AB_BINS[None])  # (tiles^2, 313, 2)
    nearest = (np.maximum(offset - BIN_STEP / 2, 0) ** 2).sum(-1)
    farthest = ((offset + BIN_STEP / 2) ** 2).sum(-1)
    possible = nearest <= np.sort(farthest, axis=1)[:, NEIGHBOURS - 1:NEIGHBOURS]
    order = np.argsort(~possible, axis=1, kind="stable")[:, :possible.sum(1).max()]
    return np.where(np.take_along_axis(possible, order, 1), order, N_BINS)


_CANDIDATES = _candidate_table()
_PADDED_BINS = np.vstack([AB_BINS, [[1e6, 1e6]]]).astype(np.float32)  # the padding is never near


def soft_encode(ab, neighbours=NEIGHBOURS):
    """Soft encoding of colours: ab float (P, 2) -> bin indices int (P, 10) and weights float32 (P, 10) of sum 1.

    Weights are exp(-d^2 / (2 * 5^2)) over the 10 nearest bins. Exact, without a search over all 313.
    """
    ab = np.asarray(ab, dtype=np.float32)
    tile = np.clip((ab - _TILE_ORIGIN) // BIN_STEP, 0, _TILES - 1).astype(np.int64)
    candidates = _CANDIDATES[tile[:, 0] * _TILES + tile[:, 1]]  # (P, K)
    offset = _PADDED_BINS[candidates] - ab[:, None]
    distance = np.einsum("pkc,pkc->pk", offset, offset)
    chosen = np.argpartition(distance, neighbours - 1, axis=1)[:, :neighbours]
    distance = np.take_along_axis(distance, chosen, 1)
    weight = np.exp((distance.min(1, keepdims=True) - distance) / (2 * SIGMA**2))
    return np.take_along_axis(candidates, chosen, 1), weight / weight.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def _cell_table():
    """For the middle of every 1 x 1 cell of the ab plane: bins (cells, K), weights (cells, K), slopes (cells, 2, K).

    K is larger than 10, so that the 10 nearest bins of any point in the cell are among them.
    """
    middle = _TILE_ORIGIN + np.arange(_SIDE, dtype=np.float32) + 0.5
    index, weight = soft_encode(np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).reshape(-1, 2), NEIGHBOURS + 6)
    return index, weight, np.ascontiguousarray(AB_BINS[index].transpose(0, 2, 1)) / np.float32(SIGMA**2)


def color_feature(ab):
    """Colour feature of a picture: ab float (H, W, 2) -> float32 (313,), the mean soft encoding of its pixels.

    Pixels are gathered into fine cells of the ab plane and each cell is encoded once, at the mean colour of its
    pixels. The encoding is that of the middle of the nearest 1 x 1 cell, moved: a move by delta multiplies the
    Gaussian weight of a bin by exp(delta . bin / 5^2), and the sum is brought back to 1.
    Within 1e-3 (L1) of the encoding pixel by pixel.
    """
    a, b = (np.asarray(ab[..., c], dtype=np.float32).ravel() - _TILE_ORIGIN for c in range(2))
    side = int(_SIDE * _FINE)
    row, column = (np.clip(x * _FINE, 0, side - 1).astype(np.int32) for x in (a, b))
    cell = row * side + column
    count = np.bincount(cell, minlength=side * side)
    used = np.flatnonzero(count > 0)  # of truths it is three times as fast as of numbers
    count = count[used]
    mean = np.stack([np.clip(np.bincount(cell, x, side * side)[used] / count, 0, _SIDE - 1) for x in (a, b)])
    corner = mean.astype(np.int32)
    delta = (mean - corner - 0.5).astype(np.float32)

    index, weight, slope = (table[corner[0] * _SIDE + corner[1]] for table in _cell_table())
    weight *= np.exp(np.einsum("pck,cp->pk", slope, delta))
    weight[weight < np.partition(weight, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS, None]] = 0  # the 10 nearest remain
    weight *= (count / weight.sum(1))[:, None].astype(np.float32)
    feature = np.bincount(index.ravel(), weight.ravel(), N_BINS)
    return (feature / feature.sum()).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# What the networks see

_IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def grey_image(L):
    """L tensor (..., 1, H, W) in [0, 1] -> the grey picture for the backbone (..., 3, H, W), ImageNet-normalised."""
    return (L - _IMAGENET_MEAN.to(L.device)) / _IMAGENET_STD.to(L.device)


PREPARATION = 1  # to be raised with every change of what a picture is prepared to


class ColorizationDataset(Dataset):
    """The pictures of a folder (or a list of paths), prepared as 8-bit Lab, for networks of ``img_size``.

    An item is a dict of the five elements of the method, and ``index``, its place in the dataset:
    ``L`` (1, S, S) in [0, 1]; ``ab`` (2, S, S) in about [-1, 1]; ``color_feature`` (313,) of sum 1;
    ``grey`` (3, 256, 256) for the backbone; ``image_id``, the number at the end of the file's name.
    They are held at ``side`` x ``side``, at least what the backbone sees, so that views of a part of them are sharp.

    Those of a folder are prepared once and kept in its subfolder ``.cache``, known by name, size and time of change of
    each picture. A set of at most ``cache_gb`` GB is held in memory, a larger one is read from there as it is needed.
    An unreadable picture is skipped with a warning that names it. Raises UserError when nothing can be read.
    """

    def __init__(self, source, img_size, cache_gb=1.0):
        self.cache = None
        if isinstance(source, (str, Path)):
            if not Path(source).is_dir():
                raise UserError(f"there is no folder {source}; make it with dataset_generator.py or name another one")
            paths = list_files(source, IMAGE_SUFFIXES)
            self.cache = Path(source) / ".cache"
        else:
            source, paths = "the list of pictures", [Path(path) for path in source]
        self.img_size, self.side = img_size, max(img_size, GREY_SIZE)

        def prepare(path):
            try:
                full = rgb_to_lab(read_image(path))
            except UserError as error:
                warn(f"{error}; skipped")
                return None
            feature = color_feature(resize(full, img_size, img_size)[..., 1:])
            return feature, _pack(resize(full, self.side, self.side))  # the whole frame: nothing is cropped away

        def prepare_all(indices):
            with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(
                    total=len(indices), unit=" pictures", desc="preparing", leave=False, disable=None) as bar:
                for start in range(0, len(indices), 64):  # no more than these wait for a slow disk
                    for values in pool.map(prepare, [paths[index] for index in indices[start:start + 64]]):
                        bar.update()
                        yield values

        keys = [key_of(PREPARATION, path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        fields = [("color_feature", "f4", (N_BINS,)), ("lab", "u1", (3, self.side, self.side))]
        records, readable = cached(self.cache and self.cache / f"pictures_{img_size}", fields,
                                   [key_of(key, img_size) for key in keys], prepare_all, cache_gb * 1e9)
        if not readable:
            raise UserError(f"no readable picture in {source} (expected {', '.join(IMAGE_SUFFIXES)})")
        self.paths, self.keys = [paths[index] for index in readable], [keys[index] for index in readable]
        self.lab = torch.from_numpy(records["lab"])  # (N, 3, side, side) uint8
        self.color_features = torch.from_numpy(records["color_feature"].copy())  # (N, 313)
        self.ids = image_ids([path.name for path in self.paths])

    def features(self, name, dim, identity, compute):
        """What a frozen network makes of the pictures, float32 (N, dim) rounded to float16, kept as the pictures are.

        ``compute`` takes the places (n,) of some pictures, a tensor, and returns (n, dim). ``name`` is the file's, and
        ``identity``, a plain value, differs for all that makes other features, such as other weights.
        """
        def compute_all(indices):
            for start in range(0, len(indices), 8):
                features = compute(torch.tensor(indices[start:start + 8]))
                yield from ((feature,) for feature in features.cpu().numpy())

        records, _ = cached(self.cache and self.cache / name, [("feature", "f2", (dim,))],
                            [key_of(key, identity) for key in self.keys], compute_all, math.inf)
        return torch.from_numpy(records["feature"].astype(np.float32))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        L, ab, grey = (part[0] for part in self.look([index]))
        return {"L": L, "ab": ab, "color_feature": self.color_features[index], "image_id": self.ids[index],
                "grey": grey, "index": index}

    def look(self, indices):
        """L (N, 1, S, S), ab (N, 2, S, S) and the grey pictures (N, 3, 256, 256) of some pictures."""
        lab = self.lab[indices].float()
        return *unpack(_shrink(lab, self.img_size)), grey_image(_shrink(lab[:, :1], GREY_SIZE) / 255)


def _shrink(maps, side):
    """Maps (N, C, H, H) to (N, C, side, side) by area."""
    return maps if maps.shape[-1] == side else F.interpolate(maps, (side, side), mode="area")


class TrainingViews(Dataset):
    """Views of the pictures for the generator: half mirrored, zoomed in up to ``MAX_ZOOM``, some dimmed as in a fade,
    some with a part of another view pasted in, so that a character is known by its looks and not by where it stands.

    Indexed by (index, seed), so that a view depends on nothing else, in whatever process it is made. An item holds
    ``L``, ``ab``, ``grey`` and ``view_feature`` of the view, and ``color_feature``, ``image_id`` and ``index`` of its
    picture. A share of ``mislead`` is ``misled``: to be coloured from the colours of other frames.
    """

    MAX_ZOOM = 2.0
    DIMMED = 0.15  # share of the views
    DARKEST = 0.3  # a dimmed view has a light of DARKEST^3 at least
    PASTED = 0.5  # share of the views that have a part of another one, a quarter to three quarters of each side
    GRID = 32  # a pasted part begins and ends at a multiple of 1 / GRID of a side

    def __init__(self, data, mislead=0.0):
        self.data, self.mislead = data, mislead

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index_and_seed):
        index, seed = index_and_seed
        rng = np.random.default_rng(seed)
        lab = self._view(index, rng)
        if rng.random() < self.PASTED:
            size = rng.integers(self.GRID // 4, 3 * self.GRID // 4 + 1, 2)
            start = rng.integers(0, self.GRID - size + 1)
            (top, left), (bottom, right) = (edge * self.data.side // self.GRID for edge in (start, start + size))
            lab[:, top:bottom, left:right] = self._view(int(rng.integers(len(self))), rng)[:, top:bottom, left:right]
        L, ab = (part[0] for part in unpack(_shrink(lab[None], self.data.img_size)))
        feature = color_feature(ab.permute(1, 2, 0).numpy() * AB_SCALE)
        return {"L": L, "ab": ab, "grey": grey_image(_shrink(lab[None, :1], GREY_SIZE)[0] / 255),
                "view_feature": torch.from_numpy(feature), "misled": rng.random() < self.mislead, "index": index,
                "color_feature": self.data.color_features[index], "image_id": self.data.ids[index]}

    def _view(self, index, rng):
        """A part of a picture as large as the whole, 8-bit Lab in float32 (3, side, side)."""
        side = self.data.side
        crop = round(side / rng.uniform(1, self.MAX_ZOOM))
        top, left = rng.integers(0, side - crop + 1, 2)
        part = self.data.lab[index].numpy().transpose(1, 2, 0)[top:top + crop, left:left + crop]
        part = resize(np.ascontiguousarray(part), side, side)
        if rng.random() < 0.5:
            part = part[:, ::-1]
        lab = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))).float()
        if rng.random() < self.DIMMED:  # in CIE Lab, light times s^3 is ab times s and L + 16 times s
            black = torch.tensor([-0.16 * 255, 128, 128])[:, None, None]
            lab = torch.lerp(black, lab, float(rng.uniform(self.DARKEST, 1))).clamp(min=0)
        return lab


class ViewSampler(Sampler):
    """(index, seed) of every picture in random order, ``passes`` times; the order depends on seed and epoch alone.

    An epoch has whole batches: the last one is filled up with pictures of one more pass. Of each batch process ``rank``
    of ``size`` gets its share. ``skip`` leaves out so many batches that an interrupted epoch has had.
    """

    def __init__(self, data, passes, seed, batch_size=1, rank=0, size=1):
        self.count, self.seed, self.batch_size, self.rank, self.size = len(data), seed, batch_size, rank, size
        self.batches = -(-self.count * passes // batch_size)
        self.epoch = self.skip = 0

    def __len__(self):
        return max(0, self.batches - self.skip) * self.batch_size // self.size

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        length = self.batches * self.batch_size
        order = np.concatenate([rng.permutation(self.count) for _ in range(-(-length // self.count))])[:length]
        views = np.stack([order, rng.integers(0, 2**62, length)], 1)
        share = views.reshape(self.batches, self.size, -1, 2)[self.skip:, self.rank].reshape(-1, 2)
        return iter([tuple(view) for view in share.tolist()])


def _pack(lab):
    """Lab float32 (S, S, 3) -> uint8 (3, S, S): a quarter of the memory, and finer than the eye sees."""
    packed = lab * np.float32([2.55, 1, 1]) + np.float32([0, 128, 128])
    return np.ascontiguousarray(np.rint(packed).clip(0, 255).astype(np.uint8).transpose(2, 0, 1))


def unpack(packed):
    """8-bit Lab as the networks see it: (..., 3, S, S) -> L (..., 1, S, S) in [0, 1], ab (..., 2, S, S)."""
    packed = packed.float()
    return packed[..., :1, :, :] / 255, (packed[..., 1:, :, :] - 128) / AB_SCALE
