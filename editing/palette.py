"""Which colors has the show? Colors by their hex numbers, and the palette of what a checkpoint remembers.

A color is "#rrggbb", sRGB. Lab is float32, L in [0, 100] and ab in about [-110, 110].
"""

import re
from typing import Any, NamedTuple

import cv2
import numpy as np
from sklearn.cluster import KMeans

from colorizer.predictor import Predictor
from dataset import lab_to_rgb, rgb_to_lab
from utils import UserError, evenly_spaced

CELL = 4.0  # side of a cell of Lab within which colors are counted as one
FLAT = 3.0  # a pixel whose Lab is further from the mean of 3 x 3 is on an edge, and no color of anything
LIGHT = 0.5  # weight of a difference in L beside one in a or b: shades of one color stay together
VIVID = 3.0  # a color of chroma 110 counts 1 + so many times as much as gray
ALIKE = 6.0  # colors that are nearer than this are one
PICTURES = 1024  # frames in memory whose colors are counted, at most


class PaletteColor(NamedTuple):
    """A color of the show."""

    color: str
    share: float  # of all flat pixels, in [0, 1]
    slot: int  # of the frame in memory that has most of it
    frame: str  # and its file name


def hex_to_lab(color: str) -> np.ndarray:
    """Lab (3,) of a color. Raises UserError for what is none."""
    if not isinstance(color, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
        raise UserError(f"{color!r:.40} is no color; give it as # and 6 hexadecimal digits, such as #ee6c80")
    lab: Any = rgb_to_lab(np.array([[list(bytes.fromhex(color[1:]))]], np.uint8))
    return lab[0, 0]


def lab_to_hex(lab: np.ndarray) -> str:
    """The color of Lab (3,), the inverse of ``lab_of``; one outside sRGB is clipped channel by channel."""
    return "#" + lab_to_rgb(np.asarray(lab, np.float32)[None, None]).tobytes().hex()


def max_chroma(hue: np.ndarray, L: np.ndarray) -> np.ndarray:
    """How far the colors of a hue, a unit vector (2,) of ab, go within sRGB at lightness L: chroma, float32 of its
    shape.

    Found by bisection at 201 values of L, and between them interpolated.
    """
    levels = np.linspace(0, 100, 201, dtype=np.float32)
    low, high = np.zeros_like(levels), np.full_like(levels, 150)
    for _ in range(12):
        middle = (low + high) / 2
        lab = np.dstack([levels, middle * hue[0], middle * hue[1]]).astype(np.float32)
        again = cv2.cvtColor(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), cv2.COLOR_RGB2Lab)  # is clipped on the way
        inside = np.abs(again - lab).max(-1)[0] < 0.5
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.interp(L, levels, low).astype(np.float32)


def shade_color(color: str, L: np.ndarray, flat: float) -> np.ndarray:
    """A color on a thing of lightness L (H, W), as ab (H, W, 2): at the lightness ``flat`` with its own hue and chroma,
    and as much weaker as there is less light, for the same surface reflects it; nowhere beyond sRGB."""
    ab = hex_to_lab(color)[1:]
    chroma = np.float32(np.hypot(*ab))
    if chroma == 0:
        return np.zeros((*L.shape, 2), np.float32)
    reached = np.minimum(chroma * L / np.float32(max(flat, 1)), max_chroma(ab / chroma, L))
    return reached[..., None] * (ab / chroma)


def extract_palette(predictor: Predictor, count: int = 40) -> list[PaletteColor]:
    """The distinct colors that a predictor remembers, at most ``count``, by their shares.

    Colors of at most PICTURES frames, spread evenly, are counted in small cells of Lab, and the cells clustered by the
    roots of their counts, the more so as they are vivid: a scarf is not lost beside a sky. A swatch has the commonest
    color of its cluster. Raises UserError for a checkpoint without a spatial memory.
    """
    if not predictor.config.use_spatial_memory:
        raise UserError("the checkpoint keeps no pictures, so there is no palette; train with use_spatial_memory True")
    spatial = predictor.colorizer.spatial
    looked = evenly_spaced(len(spatial.ids), PICTURES)
    cells, counts = _counted(spatial.kept("pictures", looked).cpu().numpy())
    weights = np.sqrt(counts.sum(0)) * (1 + VIVID * np.hypot(*cells.T[1:]) / 110)
    scaled = cells * (LIGHT, 1, 1)
    clusters = KMeans(min(count, len(cells)), n_init=4, random_state=0).fit(scaled, sample_weight=weights).labels_
    swatches: list[PaletteColor] = []
    taken: list[np.ndarray] = []
    groups = sorted((np.flatnonzero(clusters == number) for number in np.unique(clusters)),
                    key=lambda group: -counts[:, group].sum())
    for group in groups:
        common = group[counts[:, group].sum(0).argmax()]
        share = float(counts[:, group].sum() / counts.sum())
        near = [number for number, other in enumerate(taken) if np.linalg.norm(scaled[common] - other) < ALIKE]
        if near:
            first = near[0]
            swatches[first] = swatches[first]._replace(share=swatches[first].share + share)
            continue
        slot = looked[int(counts[:, group].sum(1).argmax())]
        taken.append(scaled[common])
        swatches.append(PaletteColor(lab_to_hex(cells[common]), share, slot, predictor.names.get(int(spatial.ids[slot]), "")))
    return sorted(swatches, key=lambda swatch: -swatch.share)


def _counted(pictures):
    """The cells of Lab that flat pixels of pictures, codes (M, S, S, 3), have: their mean Lab (C, 3), and the
    number of such pixels of each picture (M, C)."""
    scale, middle = np.array((1 / 2.55, 1, 1), np.float32), np.array((0, 128, 128), np.float32)
    keys, colors, frames = [], [], []
    for number, codes in enumerate(pictures):
        lab = codes * scale - middle
        flat = lab[np.abs(lab - cv2.blur(lab, (3, 3))).max(-1) < FLAT]
        colors.append(flat)
        keys.append(np.floor((flat + middle) / CELL).astype(np.int64) @ (10**6, 10**3, 1))
        frames.append(np.full(len(flat), number))
    lab, frame = np.concatenate(colors), np.concatenate(frames)
    _, cell = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.bincount(cell)
    mean = np.stack([np.bincount(cell, lab[:, channel]) for channel in range(3)], 1) / total[:, None]
    counts = np.bincount(frame * len(total) + cell, minlength=len(pictures) * len(total))
    return mean, counts.reshape(len(pictures), len(total))
