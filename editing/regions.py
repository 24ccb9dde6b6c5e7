"""Which thing is at this point of a gray frame? Regions closed by lines and lightness, across small gaps.

L is float32 (H, W) in [0, 100]. Points are (x, y) in pixels; (0, 0) is the middle of the upper left one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from skimage.segmentation import watershed

from utils import UserError

Point = tuple[float, float]
STEPS = 256  # of a gradient of 1 in L a pixel, for Canny's whole numbers


class Stroke(NamedTuple):
    """A line drawn by hand."""

    points: Sequence[Point]
    radius: float  # pixels, half its width


@dataclass
class RegionsConfig:
    """Parameters of the segmentation, chosen with ``benchmarks/clicks.py``.

    Lengths and areas are those of a frame with 360 rows and are scaled with the frame. L is in [0, 100].
    """

    edge_blur: float = 0.7  # sigma in pixels of the blur before edge detection; larger: less noise, fewer fine edges
    edge_low_threshold: float = 1.0  # slope in L per pixel that continues an edge; larger: shorter edges
    edge_high_threshold: float = 2.0  # slope in L per pixel that starts an edge; larger: fewer edges
    max_line_width: float = 7.0  # pixels; larger: thicker dark strokes count as lines instead of as regions
    min_line_contrast: float = 12.0  # L by which a line is darker than both sides; larger: only darker lines count
    max_ball_radius: float = 4.0  # pixels; larger: wider gaps in lines are closed (up to twice this)
    ball_shrink_factor: float = 0.6  # ratio of successive ball radii; larger: more passes, finer gap detection
    min_region_area: float = 10.0  # square pixels; larger: small regions merge into their neighbors
    min_edge_contrast: float = 6.0  # difference in L of two sides; larger: fewer mask edges follow the lightness


class Regions:
    """The regions of one gray frame; the frame is divided among them when the first is asked for.

    Edges and dark lines are barriers, and a ball that rolls between them finds the regions (trapped-ball segmentation,
    Zhang et al. 2009): where it does not pass through, a line has a gap and is closed. Slow shading is no edge. Raises
    UserError for points outside the frame.
    """

    def __init__(self, L: np.ndarray, config: RegionsConfig | None = None) -> None:
        self.L = np.ascontiguousarray(L, np.float32)
        self.config = config or RegionsConfig()
        self.scale = max(1.0, min(self.L.shape) / 360)  # lengths of the configuration are those in 360 rows

    @cached_property
    def lines(self) -> np.ndarray:
        """Where drawn lines are, bool (H, W): thin, long, and darker than what is on both sides."""
        config, size = self.config, 2 * int(self.config.max_line_width * self.scale / 2) + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        darker = cv2.morphologyEx(self.L, cv2.MORPH_CLOSE, disc) - self.L
        deep = self.L - cv2.erode(self.L, disc) < 0.35 * darker  # the line, not a thin thing that is outlined by it
        found = np.uint8((darker > config.min_line_contrast) & deep)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
        half = np.zeros(count, np.float32)
        np.maximum.at(half, parts[found > 0], cv2.distanceTransform(found, cv2.DIST_L2, 5)[found > 0])
        long = stats[:, cv2.CC_STAT_AREA] > 6 * (2 * half) ** 2
        long[0] = False
        return long[parts]

    @cached_property
    def edges(self) -> np.ndarray:
        """Where lightness steps, bool (H, W), a pixel wide: more than noise does."""
        config = self.config
        smooth = cv2.GaussianBlur(self.L, (0, 0), config.edge_blur * self.scale**0.5)
        slopes = [cv2.Sobel(smooth, cv2.CV_32F, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1))]
        # Of noise alone, the median slope is that of most of a picture (a Rayleigh distribution).
        noise = np.median(np.hypot(*(slope[::4, ::4] for slope in slopes))) / 1.1774
        low, high = (max(least, times * noise) for least, times in ((config.edge_low_threshold, 2.5), (config.edge_high_threshold, 4.0)))
        codes = [np.clip(slope * STEPS, -2**15 + 1, 2**15 - 1).astype(np.int16) for slope in slopes]
        return cv2.Canny(*codes, low * STEPS, high * STEPS, L2gradient=True) > 0

    @cached_property
    def labels(self) -> np.ndarray:
        """The number of the region of each pixel, int32 (H, W), from 1 on; a line belongs to both sides, each to its
        middle."""
        return self._divide(self.edges | self.lines)

    def fill(self, clicks: Sequence[Point], cuts: Iterable[Stroke] = ()) -> np.ndarray:
        """The thing at the first of the ``clicks``, grown by the regions at the others; of what is cut by strokes, the
        pieces that were clicked.

        Returns a soft mask, float32 (H, W) in [0, 1], whose edge is as smooth as the thing's.
        """
        places = [self._place(click) for click in clicks]
        mask = np.isin(self.labels, [self.labels[place] for place in places])
        for stroke in cuts:
            mask = self._cut(mask, stroke, places)
        return self._soften(mask)

    def _place(self, point):
        """(row, column) of the pixel at a point."""
        x, y = (int(np.floor(value + 0.5)) for value in point)
        height, width = self.L.shape
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"the point ({point[0]:g}, {point[1]:g}) is outside the frame, which is {width}x{height}; "
                            "click into it")
        return y, x

    def _divide(self, barrier):
        """Labels, int32, for all pixels between and under barriers, bool (h, w).

        ``room`` is how large a ball fits around a pixel. From the largest ball to the smallest, the places where it
        fits are joined: those of one region, and what is nearer to it than another, belong to it; those of none are a
        new one, unless they are no wider than the way that leads out of them.
        """
        room = cv2.distanceTransform(np.uint8(~barrier), cv2.DIST_L2, 5)
        balls = [self.config.max_ball_radius * self.scale]
        while balls[-1] * self.config.ball_shrink_factor >= 1:
            balls.append(balls[-1] * self.config.ball_shrink_factor)
        labels, inside = np.zeros(barrier.shape, np.int32), np.zeros((1, 2), int)  # a pixel inside of each label
        for ball in (*balls, 0.0):
            count, parts, stats, _ = cv2.connectedComponentsWithStats(np.uint8(room > ball), connectivity=4)
            own, held = np.zeros(count, np.int32), np.zeros(count, int)
            owners = parts[inside[1:, 0], inside[1:, 1]]
            own[owners] = np.arange(1, len(inside))
            np.add.at(held, owners, 1)
            wide = (np.bincount(parts[room >= ball / self.config.ball_shrink_factor], minlength=count) > 0 if ball else
                    stats[:, cv2.CC_STAT_AREA] >= self.config.min_region_area * self.scale**2)
            fresh = np.flatnonzero((held == 0) & wide)
            fresh = fresh[fresh > 0]
            own[fresh] = len(inside) + np.arange(len(fresh))
            inside = np.concatenate([inside, _pixel_of(parts, fresh)])
            shared = held > 1
            own[shared] = own[0] = 0
            labels = np.where(labels > 0, labels, own[parts])
            shared[0] = False
            if shared.any():
                _share_out(labels, room, shared[parts])
        return nearest(labels)

    def _cut(self, mask, stroke, places):
        """The pieces of a mask, bool (H, W), that have any of the places, when a stroke is one more barrier in it."""
        drawn = np.zeros(mask.shape, np.uint8)
        points = np.round(np.array(stroke.points)).astype(np.int32)
        cv2.polylines(drawn, [points], False, 1, max(1, round(2 * stroke.radius)))
        part = _around(mask, 1)
        barrier = (self.edges | self.lines | ~mask | (drawn > 0))[part]
        pieces = np.where(mask[part], self._divide(barrier), 0)
        inside = [(y - part[0].start, x - part[1].start) for y, x in places if mask[y, x]]
        kept = np.zeros_like(mask)
        kept[part] = np.isin(pieces, [pieces[place] for place in inside]) & mask[part]
        return kept

    def _soften(self, mask):
        """A mask, bool (H, W), as float32 whose edge follows lightness where it steps from one flat to another, and is
        as smooth as a drawn one elsewhere."""
        soft, reach = mask.astype(np.float32), int(np.ceil(2 * self.scale))
        part = _around(mask, 3 * reach)
        own, L = np.uint8(mask[part]), self.L[part]
        smooth = cv2.GaussianBlur(soft[part], (0, 0), 0.6 * self.scale**0.5)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
        inner, outer = cv2.erode(own, disc), 1 - cv2.dilate(own, disc)
        size = (6 * reach + 1,) * 2
        (here, there), (weight, other) = ([cv2.blur(np.float32(plane * core), size) for core in (inner, outer)]
                                          for plane in (L, np.float32(1)))
        known = (weight > 1e-3) & (other > 1e-3) & (inner == 0) & (outer == 0)
        here, there = here / np.maximum(weight, 1e-3), there / np.maximum(other, 1e-3)
        share = (L - there) / np.where(np.abs(here - there) > self.config.min_edge_contrast, here - there, np.inf)
        between = known & (np.abs(here - there) > self.config.min_edge_contrast) & (share > -0.2) & (share < 1.2)
        between &= cv2.dilate(np.uint8(self.lines[part]), disc) == 0
        soft[part] = np.where(between, np.clip(share, 0, 1), smooth)
        return soft


def _pixel_of(parts, chosen):
    """(row, column) of a pixel of each of the numbers ``chosen`` in ``parts`` (h, w): (n, 2)."""
    first = np.zeros(parts.max() + 1, int)
    first[parts.ravel()] = np.arange(parts.size)
    return np.column_stack(np.unravel_index(first[chosen], parts.shape))


def _share_out(labels, room, shared):
    """Give the pixels of parts that several labels ``shared``, bool (h, w), to them; they meet where room is least."""
    free = (shared & (labels == 0)).astype(np.uint8)
    wanted = (cv2.dilate(free, np.ones((3, 3), np.uint8)) > 0) & shared
    part = _around(wanted, 0)
    found = watershed(-room[part], np.where(wanted, labels, 0)[part], mask=wanted[part])
    labels[part] = np.where(free[part] > 0, found, labels[part])


def nearest(labels: np.ndarray) -> np.ndarray:
    """Labels, int32 (h, w), with each 0 replaced by the nearest label; 1 everywhere where there is none."""
    if not labels.any():
        return np.ones_like(labels)
    _, near = cv2.distanceTransformWithLabels(np.uint8(labels == 0), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    table = np.zeros(near.max() + 1, np.int32)
    table[near[labels > 0]] = labels[labels > 0]
    return table[near]


def _around(mask, margin):
    """The rows and columns of a mask, bool (H, W), that are not all False, with a margin; all of them if none is."""
    slices = []
    for axis in (1, 0):
        found = np.flatnonzero(mask.any(axis))
        first, last = (found[0], found[-1]) if len(found) else (0, mask.shape[1 - axis] - 1)
        slices.append(slice(max(0, first - margin), min(mask.shape[1 - axis], last + margin + 1)))
    return tuple(slices)
