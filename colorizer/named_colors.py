"""Named colors of a palette file, applied to predicted colors: locked colors become exact, others are exchanged.

ab is float32 (H, W, 2) in Lab units. L is float32 (H, W) in [0, 100]: the lightness of the gray with the same luma.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from colorizer.series_colors import LIGHTNESS_WEIGHT, hex_to_lab
from dataset import lab_to_rgb, luma_lightness, rgb_to_lab
from fileio.palettes import NamedColor

LEVELS = 256  # of L from 0 to 100, in tables
L_OF_LEVEL = np.linspace(0, 100, LEVELS, dtype=np.float32)
MAX_LEFT = 0.8  # share of pixels below which the others are left out of the arrays; larger: more copies
GAMUT_MARGIN = 25  # levels; tolerance for films in which a color does not have its luma of BT.601


@dataclass(frozen=True)
class NamedColorConfig:
    """Constants, chosen on the drawn episode 2 and *Big Buck Bunny*. A distance combines the CIE94 differences of
    chroma and hue with the weighted difference in L."""

    lightness_weight: float = 0.2  # weight of a difference in L; larger: fewer shades of a color are recognized
    full_distance: float = 5.0  # distance up to which a pixel has a color; larger: less similar pixels change
    zero_distance: float = 9.0  # distance from which a pixel does not have a color; larger: softer selection
    margin: float = 3.0  # a pixel has a color fully if all others are farther by this; larger: softer boundaries
    learned_distance: float = 6.0  # a learned color this near to a named one belongs to it; larger: more belong
    shadow_depth: float = 10.0  # difference in L below a color from where chroma decreases; larger: vivid shadows
    edge_width: int = 5  # pixels around an exchanged color that may mix it with the background; larger: wider edges
    mixture_tolerance: float = 8.0  # Lab distance (L counts half) from a mixture; larger: more edge pixels change


class Shades(NamedTuple):
    """A color at all levels of L: its own ab, proportionally less in shadows, and limited to sRGB."""

    color: str  # "#rrggbb"
    L: float  # of the color itself
    direction: np.ndarray  # (2,) unit vector of ab
    chroma: np.ndarray  # (LEVELS,) at L from 0 to 100

    @classmethod
    @cache
    def of(cls, color: str, config: NamedColorConfig) -> "Shades":
        """Return the shades of "#rrggbb". Raises UserError for any other value."""
        lab = hex_to_lab(color)
        chroma, L = np.hypot(*lab[1:]), float(luma_lightness(lab_to_rgb(lab[None, None]))[0, 0])
        direction = lab[1:] / chroma if chroma else np.array([1, 0], np.float32)
        share = np.minimum(L_OF_LEVEL / max(L - config.shadow_depth, 1), 1)
        return cls(color, L, direction, np.asarray(chroma * np.minimum(share, _gamut_share(lab[1:])), np.float32))

    def ab(self, level: np.ndarray) -> np.ndarray:
        """Return the ab (..., 2) of the color at the levels of L, indices (...,) of ``chroma``."""
        return self.direction * self.chroma[level][..., None]

    def squared_distance(self, ab: Sequence[np.ndarray], level: np.ndarray, weight: float) -> np.ndarray:
        """Return the squared distance (H, W) of pixels, a and b (H, W) and ``level`` uint8 (H, W), to the color."""
        a, b, (x, y) = *ab, self.direction
        along = (a * x + b * y - cv2.LUT(level, self.chroma)) * cv2.LUT(level, 1 / (1 + 0.045 * self.chroma))
        across = (b * x - a * y) * cv2.LUT(level, 1 / (1 + 0.015 * self.chroma))
        return along * along + across * across + cv2.LUT(level, np.square(np.float32(weight) * (L_OF_LEVEL - self.L)))

    def distance(self, other: "Shades", weight: float) -> float:
        """Return the distance of the color ``other`` from this one."""
        level = _levels(np.full((1, 1), other.L, np.float32))
        return self.squared_distance(cv2.split(other.ab(level)), level, weight).item() ** 0.5


def is_same_color(color: NamedColor, other: NamedColor, config: NamedColorConfig = NamedColorConfig()) -> bool:
    """Return whether two entries of palette files are about the same color: those that they lock or replace are closer
    than ``margin``."""
    first, second = (Shades.of(each.replaces or each.color, config) for each in (color, other))
    return first.distance(second, config.lightness_weight) < config.margin


def _gamut_share(ab):
    """Return the largest share, (LEVELS,) in [0, 1], of the chroma of ab (2,) within sRGB at each level of L."""
    shares, lightness = np.linspace(0, 1, 65, dtype=np.float32), np.linspace(0, 100, 201, dtype=np.float32)
    lab = np.stack(np.broadcast_arrays(lightness, shares[:, None] * ab[0], shares[:, None] * ab[1]), -1)
    rgb = lab_to_rgb(lab)
    is_valid = np.abs(rgb_to_lab(rgb) - lab).max(-1) < 1.5
    L = luma_lightness(rgb)
    low, high = (function(1) for function in (np.where(is_valid, L, 101).min, np.where(is_valid, L, -1).max))
    found = (low[:, None] <= L_OF_LEVEL) & (high[:, None] >= L_OF_LEVEL)
    # The luma also depends on the matrix of the film, which is not known here.
    return cv2.dilate((shares[:, None] * found).max(0)[None], np.ones((1, 2 * GAMUT_MARGIN + 1)))[0]


class NamedColors:
    """The colors of a palette file together with the colors that a checkpoint has learned.

    A pixel has the nearest of all these colors, if it is near enough. If that is a locked color, the pixel gets exactly
    the chroma of this color at its own lightness. A learned color near a named color belongs to the named color.
    """

    def __init__(self, colors: Sequence[NamedColor], learned: Sequence[str],
                 config: NamedColorConfig | None = None) -> None:
        """``colors`` are those of a palette file; ``learned`` are "#rrggbb"."""
        self.config = config = config or NamedColorConfig()
        self.colors = list(colors)
        locked = {color.replaces or color.color: color for color in self.colors if color.locked}
        self.locked = [locked[color] for color in sorted(locked)]
        self._new = [Shades.of(color.color, config) for color in self.locked]
        self._old = [[Shades.of(color.replaces or color.color, config)] for color in self.locked]
        self._others, weight = list[Shades](), config.lightness_weight
        self._same: list[list[int]] = []  # numbers of nearly equal locked colors, which have a hard boundary
        for number, (shades,) in enumerate(self._old):
            near = [same for same in self._same if self._old[same[0]][0].distance(shades, weight) < config.margin]
            (near[0].append(number) if near else self._same.append([number]))
        for shades in (Shades.of(color.color, config) for color in self.colors if not color.locked):
            # Pixels cannot fully have a locked color if an unlocked one, such as that of another character, is as near.
            groups = [group for group in self._old if group[0].distance(shades, weight) < config.margin]
            (groups[0] if groups else self._others).append(shades)
        named = [*(group[0] for group in self._old), *self._others]
        known = [Shades.of(color, config) for color in learned]
        self._targets = np.array([shades.ab(np.arange(LEVELS)) for shades in self._new])
        for shades in known:
            nearest = int(np.argmin([*(each.distance(shades, weight) for each in named), config.learned_distance]))
            if not any(shades is each for each in named):
                (self._old[nearest] if nearest < len(self._old) else self._others).append(shades)
        if self.locked:  # those that rule out most pixels first
            self._others.sort(key=lambda shades: min(group[0].distance(shades, weight) for group in self._old))
        content = [[color[2:], sorted(shades.color for shades in group)]
                   for color, group in zip(self.locked, self._old, strict=True)]
        content = [content, sorted(shades.color for shades in self._others), config]
        self.digest = hashlib.sha256(repr(content).encode()).hexdigest() if self.locked else ""
        self.unknown = [self._explain(color, learned[int(np.argmin(distances))])
                        for color, (shades, *_) in zip(self.locked, self._old, strict=True)
                        if min(distances := [shades.distance(other, weight) for other in known], default=0)
                        > config.zero_distance]

    def _explain(self, color, nearest):
        """Return a message that no learned color is near a locked ``color``."""
        return (f"the checkpoint knows no color near the {color.replaces or color.color} of {color.name!r} of "
                f"{color.character!r}, so it may color nothing; to give it to the pixels of the nearest known color, "
                f"write '{color.name} = {color.color} replaces {nearest}'")

    def apply(self, ab: np.ndarray, L: np.ndarray) -> np.ndarray:
        """Return the ab (H, W, 2) of a frame of lightness L (H, W) with locked and exchanged colors."""
        if not self.locked:
            return ab
        level = _levels(L)
        pixels, found, share = self._classify(ab.reshape(-1, 2), level.reshape(-1, 1))
        label, weight, result = np.zeros(L.size, np.intp), np.zeros(L.size, np.float32), ab.copy()
        label[pixels], weight[pixels] = found, share
        flat = result.reshape(-1, 2)
        flat[pixels] += share[:, None] * (self._targets[found, level.ravel()[pixels]] - flat[pixels])
        label, weight = label.reshape(L.shape), weight.reshape(L.shape)
        for number, color in enumerate(self.locked):
            if color.replaces:
                self._exchange_edges(result, ab, L, np.where(label == number, weight, -weight), number)
        return result

    def _classify(self, ab, level):
        """Return the indices (m,) of the pixels that have a locked color, given ab (n, 2) and ``level`` (n, 1) of all,
        the index (m,) of that color, and how much of it they have, (m,) in [0, 1]."""
        config, (a, b), far = self.config, np.ascontiguousarray(ab.T)[..., None], np.float32(1e6)
        nearest, second = np.full(level.shape, far), np.full(level.shape, far)
        label = np.zeros(level.shape, np.intp)
        for numbers in self._same:
            distances = [np.minimum.reduce([each.squared_distance((a, b), level, config.lightness_weight)
                                            for each in self._old[number]]) for number in numbers]
            distance = np.minimum.reduce(distances)
            for number, own in zip(numbers, distances, strict=True):
                label[(own == distance) & (distance < nearest)] = number
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
        pixels = np.flatnonzero(nearest < config.zero_distance**2)
        a, b, level, label, nearest, second = (each[pixels] for each in (a, b, level, label, nearest, second))
        for shades in self._others:
            if not pixels.size:
                break
            distance = shades.squared_distance((a, b), level, config.lightness_weight)
            np.minimum(second, distance, out=second)
            left = np.flatnonzero(distance > nearest)  # the others have no locked color
            if len(left) < MAX_LEFT * len(pixels):
                pixels, a, b, level, label, nearest, second = (
                    each[left] for each in (pixels, a, b, level, label, nearest, second))
        nearest, second = np.sqrt(nearest), np.sqrt(second)
        weight = (_smoothstep((config.zero_distance - nearest) / (config.zero_distance - config.full_distance))
                  * _smoothstep((second - nearest) / config.margin))
        return pixels, label[:, 0], weight[:, 0]

    def _exchange_edges(self, result, ab, L, weight, number):
        """Change the pixels of ``result`` that mix an exchanged color and the background.

        The color of such a pixel is a mixture of the colors of the spatially nearest object pixel and the nearest
        background pixel, or gray. ``weight`` (H, W) is that of the color, and negative where pixels have another one.
        """
        size = np.ones((2 * self.config.edge_width + 1,) * 2, np.uint8)
        core = weight > 0.9
        outside = (cv2.dilate(core.astype(np.uint8), size) == 0) & (weight < 0.1)
        edge = ~(core | outside) & (weight > -0.9)
        if not (core.any() and outside.any() and edge.any()):
            return
        lab = np.dstack([LIGHTNESS_WEIGHT * L, ab])
        foreground, background = (lab.reshape(-1, 3)[_nearest(mask)[edge]] for mask in (core, outside))
        lab = lab[edge]
        lab[:, 0] = np.maximum(lab[:, 0], np.minimum(foreground, background)[:, 0])  # also the color of lines is mixed
        gray = lab * (1, 0, 0)
        share = np.maximum(self._share(lab, foreground, background),
                           self._share(lab, gray + foreground * (0, 1, 1), gray)) - weight[edge]
        level = _levels(foreground[:, 0] / LIGHTNESS_WEIGHT)
        result[edge] += np.maximum(share, 0)[:, None] * (self._new[number].ab(level) - self._old[number][0].ab(level))

    def _share(self, lab, foreground, background):
        """Return the position (n,) in [0, 1] of colors (n, 3) on the line from ``background`` to ``foreground``, less
        if they are far from it."""
        axis, offset = foreground - background, lab - background
        share = np.clip((offset * axis).sum(-1) / np.maximum((axis**2).sum(-1), 1), 0, 1)
        residual = np.square(offset - share[:, None] * axis).sum(-1)
        return share * np.exp(-residual / self.config.mixture_tolerance**2)


def _levels(L):
    """Return L in [0, 100] as indices of tables, uint8."""
    return np.rint(L * np.float32((LEVELS - 1) / 100)).clip(0, LEVELS - 1).astype(np.uint8)


def _smoothstep(x):
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _nearest(mask):
    """Return the index, in a flattened array, of the nearest pixel in ``mask``, bool (H, W), for each pixel."""
    _, near = cv2.distanceTransformWithLabels(np.uint8(~mask), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    table = np.zeros(near.max() + 1, np.intp)
    table[near[mask]] = np.flatnonzero(mask)
    return table[near]
