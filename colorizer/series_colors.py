"""Colors in hexadecimal notation, their shading, and the distinct colors of frames that a checkpoint remembers.

A color is "#rrggbb", sRGB. Lab is float32 with L in [0, 100] and ab in about [-110, 110].
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from colorizer.colorizer import Colorizer
from colorizer.memory.spatial_memory import SpatialMemory
from dataset import lab_to_rgb, rgb_to_lab
from fileio.palettes import SERIES, NamedColor
from utils import UserError, evenly_spaced

LIGHTNESS_WEIGHT = 0.5  # weight of L in color distances; larger: shades of one color are kept apart


@dataclass
class PaletteConfig:
    """Parameters of the palette extraction. Distances are in Lab with L weighted by LIGHTNESS_WEIGHT."""

    max_colors: int = 40  # number of clusters; larger: more similar colors are listed
    max_frames: int = 1024  # evenly spaced remembered frames that are counted; larger: slower, more complete
    bin_size: float = 4.0  # side of a histogram bin in Lab; larger: faster, coarser
    flat_tolerance: float = 3.0  # Lab distance from the mean of 3 x 3 pixels up to which a pixel is counted; larger:
    # more pixels on edges are counted
    vividness: float = 3.0  # extra weight of a color of chroma 110 over gray; larger: more clusters for vivid colors
    merge_distance: float = 6.0  # colors that are closer are merged; larger: fewer colors


class PaletteColor(NamedTuple):
    """A color of the palette."""

    color: str
    share: float  # of all counted pixels, in [0, 1]
    frame: str  # file name of the remembered frame with the most pixels of this color


def hex_to_lab(color: str) -> np.ndarray:
    """Convert "#rrggbb" to Lab (3,). Raises UserError for any other value."""
    if not isinstance(color, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
        raise UserError(f"{color!r:.40} is not a color; give # and 6 hexadecimal digits, such as #ee6c80")
    lab: Any = rgb_to_lab(np.array([[list(bytes.fromhex(color[1:]))]], np.uint8))
    return lab[0, 0]


def lab_to_hex(lab: np.ndarray) -> str:
    """Convert Lab (3,) to "#rrggbb"; a color outside sRGB is clipped channel by channel."""
    return "#" + lab_to_rgb(np.asarray(lab, np.float32)[None, None]).tobytes().hex()


def max_chroma(hue: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Return the largest chroma within sRGB at lightness L (any shape) for ``hue``, a unit vector (2,): float32.

    The chroma is found by bisection at 201 values of L and interpolated between them.
    """
    levels = np.linspace(0, 100, 201, dtype=np.float32)
    low, high = np.zeros_like(levels), np.full_like(levels, 150)
    for _ in range(12):
        middle = (low + high) / 2
        lab = np.dstack([levels, middle * hue[0], middle * hue[1]]).astype(np.float32)
        clipped = cv2.cvtColor(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), cv2.COLOR_RGB2Lab)
        valid = np.abs(clipped - lab).max(-1)[0] < 0.5
        low, high = np.where(valid, middle, low), np.where(valid, high, middle)
    return np.interp(L, levels, low).astype(np.float32)


def shade_color(color: str, L: np.ndarray, reference_L: float) -> np.ndarray:
    """Return the ab (H, W, 2) of ``color`` shaded to the lightness L (H, W).

    The hue stays the same. The chroma is that of ``color`` at ``reference_L``, proportional to L (as if the light on
    the surface varied), and limited to sRGB.
    """
    ab = hex_to_lab(color)[1:]
    chroma = np.float32(np.hypot(*ab))
    if chroma == 0:
        return np.zeros((*L.shape, 2), np.float32)
    shaded = np.minimum(chroma * L / np.float32(max(reference_L, 1)), max_chroma(ab / chroma, L))
    return shaded[..., None] * (ab / chroma)


def extract_palette(spatial: SpatialMemory, frame_names: Mapping[int, str],
                    config: PaletteConfig | None = None) -> list[PaletteColor]:
    """Return the distinct colors of the frames in a spatial memory, most frequent first. ``frame_names`` are those of
    the Predictor."""
    config = config or PaletteConfig()
    slots = evenly_spaced(len(spatial.ids), config.max_frames)
    codes = spatial.rows("pictures", slots).cpu().numpy()
    scale, offset = np.array((1 / 2.55, 1, 1), np.float32), np.array((0, 128, 128), np.float32)
    return [PaletteColor(lab_to_hex(lab), share, frame_names.get(int(spatial.ids[slots[number]]), ""))
            for lab, share, number in _distinct_colors(((each * scale - offset, None) for each in codes), config)]


def learned_colors(colorizer: Colorizer, frame_names: Mapping[int, str],
                   characters: Iterable[tuple[str, np.ndarray, np.ndarray]] = ()) -> list[NamedColor]:
    """Return what a checkpoint knows as a palette: the colors of each character, and those of the remembered frames
    that no character has. Most frequent colors come first.

    Args: ``characters`` are pictures: name, RGB uint8 (H, W, 3) and mask, bool (H, W).
    """
    pictures: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, rgb, mask in characters:
        pictures.setdefault(name, []).append((rgb, mask))
    colors = [NamedColor(name, f"color {number}", "#" + bytes(rgb).hex()) for name, group in pictures.items()
              for number, rgb in enumerate(main_colors(*zip(*group, strict=True)).tolist(), 1)]
    if not colorizer.config.use_spatial_memory:
        return colors
    scale, nearest = (LIGHTNESS_WEIGHT, 1, 1), PaletteConfig.merge_distance
    taken = np.array([hex_to_lab(color.color) for color in colors]).reshape(-1, 3)
    found = [each.color for each in extract_palette(colorizer.spatial, frame_names)
             if not (np.linalg.norm((taken - hex_to_lab(each.color)) * scale, axis=1) < nearest).any()]
    return [*colors, *(NamedColor(SERIES, f"color {number}", color) for number, color in enumerate(found, 1))]


def main_colors(pictures: Iterable[np.ndarray], masks: Iterable[np.ndarray],
                config: PaletteConfig | None = None) -> np.ndarray:
    """Return the distinct colors, sRGB uint8 (n, 3), of an object in pictures, most frequent first.

    Args: RGB uint8 (H, W, 3) of each picture, and its mask, bool (H, W), of the pixels that show the object.
    """
    found = _distinct_colors(((rgb_to_lab(rgb), mask) for rgb, mask in zip(pictures, masks, strict=True)),
                             config or PaletteConfig())
    return np.array([list(bytes.fromhex(lab_to_hex(lab)[1:])) for lab, _, _ in found], np.uint8).reshape(-1, 3)


def _distinct_colors(pictures, config):
    """Return [(Lab (3,), share of the pixels, number of the picture with the most of them)], most frequent first, for
    pictures (Lab (H, W, 3), mask (H, W) or None).

    The bins of a Lab histogram are clustered by k-means. Their weights grow with the square root of their counts and
    with chroma, so that small vivid objects get separate colors. Each cluster is represented by its most frequent
    color.
    """
    from sklearn.cluster import KMeans  # imported here since it takes half a second

    bins, counts = _histogram(pictures, config)
    if not len(bins):
        return []
    weights = np.sqrt(counts.sum(0)) * (1 + config.vividness * np.hypot(*bins.T[1:]) / 110)
    scaled = bins * (LIGHTNESS_WEIGHT, 1, 1)
    kmeans = KMeans(min(config.max_colors, len(bins)), n_init=4, random_state=0)
    labels = kmeans.fit(scaled, sample_weight=weights).labels_
    clusters = sorted((np.flatnonzero(labels == label) for label in np.unique(labels)),
                      key=lambda cluster: -counts[:, cluster].sum())
    colors: list[list[Any]] = []  # [weighted Lab, Lab, share, picture]
    for cluster in clusters:
        mode = cluster[counts[:, cluster].sum(0).argmax()]
        share = float(counts[:, cluster].sum() / counts.sum())
        near = next((each for each in colors if np.linalg.norm(scaled[mode] - each[0]) < config.merge_distance), None)
        if near:
            near[2] += share
        else:
            colors.append([scaled[mode], bins[mode], share, int(counts[:, cluster].sum(1).argmax())])
    return sorted(((lab, share, number) for _, lab, share, number in colors), key=lambda color: -color[1])


def _histogram(pictures, config):
    """Compute the Lab histogram of the flat pixels of M pictures (Lab (H, W, 3), mask (H, W) or None).

    Returns the mean Lab of each of the B bins with pixels, (B, 3), and their pixel counts in each picture, (M, B).
    """
    keys, colors, frames, number = [], [], [], -1
    for number, (lab, mask) in enumerate(pictures):
        flat = np.abs(lab - cv2.blur(lab, (3, 3))).max(-1) < config.flat_tolerance
        flat = lab[flat if mask is None else flat & mask]
        colors.append(flat)
        keys.append(np.floor((flat + (0, 128, 128)) / config.bin_size).astype(np.int64) @ (10**6, 10**3, 1))
        frames.append(np.full(len(flat), number))
    lab, frame = np.concatenate(colors), np.concatenate(frames)
    _, bin_of = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.bincount(bin_of)
    mean = np.stack([np.bincount(bin_of, lab[:, channel]) for channel in range(3)], 1) / total[:, None]
    counts = np.bincount(frame * len(total) + bin_of, minlength=(number + 1) * len(total))
    return mean, counts.reshape(number + 1, len(total))
