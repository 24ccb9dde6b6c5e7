"""Contradictions between references: the same region of a scene in clearly different colors.

Regions are matched without their colors: a cell of one reference and the cell of the other reference with the nearest
key match if this holds in both directions, up to one cell, and if most neighbors move in the same way (grid-based
motion statistics, Bian et al. 2017).

Shapes: G grid side of the spatial memory, P = G^2 cells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch

from colorizer.memory.spatial_memory import SpatialMemory
from dataset import AB_SCALE, L_SCALE

HUES = ((20, "pink"), (50, "red"), (75, "orange"), (110, "yellow"), (170, "green"), (230, "teal"), (308, "blue"),
        (335, "purple"), (360, "pink"))  # upper bounds of the hue angle in Lab, in degrees
DARK = {"orange": "brown", "yellow": "olive"}  # names of dark colors


@dataclass(frozen=True)
class ContradictionConfig:
    """Constants of the detection, chosen on real films; all larger values give fewer contradictions, except the first
    and the distances."""

    compared: int = 8  # most similar references that a reference is compared with; larger: slower
    similarity: float = 0.6  # minimum cosine similarity of the frames
    clear_similarity: float = 0.75  # frames below it must agree elsewhere, since unrelated scenes match by chance
    agreement: float = 3.0  # minimum number of colored cells that agree, per cell that contradicts
    same_color: float = 12.0  # maximum distance in ab of cells that agree
    key_distance: float = 1.2  # maximum squared distance of the keys of matching cells
    displacement: int = 2  # maximum difference, in cells, of the motion of neighbors
    neighbors: int = 3  # minimum number of neighbors, of 8, with the same motion
    cells: int = 6  # minimum number of connected cells
    chroma: float = 12.0  # minimum chroma of both colors, in Lab units
    hue: float = 60.0  # minimum difference in hue, in degrees
    difference: float = 25.0  # minimum distance of both colors in ab


class Contradiction(NamedTuple):
    """Two references that show a region in different colors."""

    first: int  # index of a reference
    second: int
    first_color: str  # a word
    second_color: str


def color_word(lab: np.ndarray) -> str:
    """Return the English word for a Lab color (3,)."""
    L, a, b = lab.tolist()
    if np.hypot(a, b) < 8:
        return "black" if L < 20 else "white" if L > 85 else "gray"
    angle = np.degrees(np.arctan2(b, a)) % 360
    word = next(word for end, word in HUES if angle <= end)
    if word == "red" and L > 65:
        return "pink"
    return DARK.get(word, word) if L < 50 else word


def find_contradictions(spatial: SpatialMemory, pairs: set[tuple[int, int]],
                        config: ContradictionConfig | None = None) -> Iterator[Contradiction]:
    """Yield the contradictions between ``pairs`` of references, indices of the pinned frames of ``spatial``.

    A reference is compared only with the most similar ones.
    """
    config = config or ContradictionConfig()
    slots = spatial.pinned.nonzero()[:, 0].tolist()
    embeddings = spatial.embeddings[slots].float().cpu()
    similarity = (embeddings @ embeddings.T).numpy()
    for first in range(len(slots)):
        others = [second for second in range(first + 1, len(slots))
                  if (first, second) in pairs and similarity[first, second] >= config.similarity]
        for second in sorted(others, key=lambda other: -similarity[first, other])[:config.compared]:
            is_clear = similarity[first, second] >= config.clear_similarity
            if found := compare_references(spatial, (slots[first], slots[second]), is_clear, config):
                yield Contradiction(first, second, *map(color_word, found))


def compare_references(spatial: SpatialMemory, slots: Sequence[int], is_clear: bool,
                       config: ContradictionConfig) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both colors, Lab (3,), of the largest region that contradicts in the frames in two ``slots``, if any.

    Unless it ``is_clear`` that they show the same scene, other regions must agree.
    """
    (keys, first), (other_keys, second) = (_read_cells(spatial, slot) for slot in slots)
    to, matched = match_cells_by_motion(keys, other_keys, config)
    second = second[to]
    chroma = [np.linalg.norm(lab[:, 1:], axis=1) for lab in (first, second)]
    cosine = (first[:, 1:] * second[:, 1:]).sum(1) / np.maximum(chroma[0] * chroma[1], 1e-6)
    distance, colored = np.linalg.norm((first - second)[:, 1:], axis=1), np.minimum(*chroma) >= config.chroma
    differs = matched & colored & (cosine <= np.cos(np.radians(config.hue))) & (distance >= config.difference)
    agrees, grid = matched & colored & (distance <= config.same_color), spatial.config.grid
    if not is_clear and agrees.sum() < config.agreement * differs.sum():
        return None
    count, regions, sizes, _ = cv2.connectedComponentsWithStats(differs.reshape(grid, grid).astype(np.uint8))
    if count == 1 or sizes[1:, cv2.CC_STAT_AREA].max() < config.cells:
        return None
    region = regions.ravel() == 1 + sizes[1:, cv2.CC_STAT_AREA].argmax()
    return np.median(first[region], 0), np.median(second[region], 0)


def match_cells_by_motion(keys: np.ndarray, other_keys: np.ndarray,
                          config: ContradictionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Match the cells of two frames with ``keys`` and ``other_keys`` (P, c). Return for each cell of the first frame
    the index (P,) of the nearest one, and whether they match, bool (P,)."""
    distances = np.square(keys).sum(1)[:, None] + np.square(other_keys).sum(1) - 2 * keys @ other_keys.T
    to, back, grid = distances.argmin(1), distances.argmin(0), round(len(keys)**0.5)

    def places(cells):
        return np.stack(np.divmod(cells, grid), 1)

    own = places(np.arange(len(keys)))
    mutual = (np.abs(places(back[to]) - own).max(1) <= 1).reshape(grid, grid)
    motion = np.pad((places(to) - own).reshape(grid, grid, 2), ((1, 1), (1, 1), (0, 0)))
    padded, agreeing = np.pad(mutual, 1), np.zeros((grid, grid), int)
    for y, x in ((y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)):
        change = np.abs(motion[y:y + grid, x:x + grid] - motion[1:-1, 1:-1]).max(2)
        agreeing += padded[y:y + grid, x:x + grid] & (change <= config.displacement)
    matched = mutual & (agreeing >= config.neighbors)
    return to, matched.ravel() & (distances.min(1) <= config.key_distance)


def _read_cells(spatial, slot):
    """Return the keys of the cells in a slot without position and color, float32 (P, key_dim + 1), and their mean
    colors, Lab float32 (P, 3)."""
    config, keys = spatial.config, spatial.rows("keys", [slot])[0].float()
    features, _, lightness, _ = keys.split([config.key_dim, 2, 1, 2], 1)
    ab = AB_SCALE * spatial.rows("ab", [slot])[0].float()
    return (torch.cat([features, lightness], 1).cpu().numpy(),
            torch.cat([L_SCALE / config.lightness_weight * lightness, ab], 1).cpu().numpy())
