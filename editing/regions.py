"""Segmentation of a grayscale frame into regions, bounded by lines and edges, that a click fills.

L is float32 (H, W) in [0, 100]. Points are (x, y) in pixels; (0, 0) is the center of the top left pixel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb, watershed

from dataset import resize
from utils import UserError

Point = tuple[float, float]
GRADIENT_STEPS = 256  # integer codes per unit of L per pixel in the gradients that Canny takes


class Stroke(NamedTuple):
    """A line drawn with the pointer."""

    points: Sequence[Point]
    radius: float  # pixels, half the width of the line


@dataclass
class RegionsConfig:
    """Parameters of the segmentation, chosen with ``benchmarks/region_clicks.py``.

    Lengths and areas are those of a frame with 360 rows and are scaled with the frame. L is in [0, 100].
    """

    edge_blur: float = 0.7  # sigma in pixels of the blur before edge detection; larger: less noise, fewer fine edges
    edge_low_threshold: float = 1.0  # slope in L per pixel that continues an edge; larger: shorter edges
    edge_high_threshold: float = 2.0  # slope in L per pixel that starts an edge; larger: fewer edges
    max_line_width: float = 7.0  # pixels; larger: thicker dark strokes count as lines instead of as regions
    min_line_contrast: float = 12.0  # minimum difference in L to both sides of a line; larger: only darker lines count
    max_ball_radius: float = 4.0  # pixels; larger: wider gaps in lines are closed (up to twice this)
    ball_shrink_factor: float = 0.6  # ratio of successive ball radii; larger: more passes, finer gap detection
    min_region_area: float = 10.0  # square pixels; larger: small regions merge into their neighbors
    min_edge_contrast: float = 6.0  # difference in L of two sides; larger: fewer mask edges follow the lightness
    uniform_deviation: float = 5.0  # standard deviation of L in a region that is one part; larger: fewer are divided
    part_scale: float = 30.0  # scale of the segmentation into parts; larger: larger parts
    min_part_area: int = 40  # square pixels; larger: fewer parts in texture


class Regions:
    """The regions of one grayscale frame, L float32 (H, W) in [0, 100], computed on first use.

    Edges and dark lines are barriers; gradual shading is not. Trapped-ball segmentation (Zhang et al. 2009) finds the
    regions: a ball that rolls between the barriers does not fit through the gaps of a line.
    """

    def __init__(self, L: np.ndarray, config: RegionsConfig | None = None) -> None:
        self.L = np.ascontiguousarray(L, np.float32)
        self.config = config or RegionsConfig()
        self.scale = max(1.0, min(self.L.shape) / 360)

    @cached_property
    def lines(self) -> np.ndarray:
        """Mask of drawn lines, bool (H, W): thin, long, and darker than both sides."""
        config, size = self.config, 2 * int(self.config.max_line_width * self.scale / 2) + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        darker = cv2.morphologyEx(self.L, cv2.MORPH_CLOSE, disc) - self.L
        dark = self.L - cv2.erode(self.L, disc) < 0.35 * darker  # excludes a thin object between two outlines
        found = np.uint8((darker > config.min_line_contrast) & dark)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
        half_width = np.zeros(count, np.float32)
        np.maximum.at(half_width, parts[found > 0], cv2.distanceTransform(found, cv2.DIST_L2, 5)[found > 0])
        long = stats[:, cv2.CC_STAT_AREA] > 6 * (2 * half_width) ** 2
        long[0] = False
        return long[parts]

    @cached_property
    def edges(self) -> np.ndarray:
        """Mask of the edges that stand out from noise, bool (H, W), one pixel wide (Canny)."""
        config = self.config
        smooth = cv2.GaussianBlur(self.L, (0, 0), config.edge_blur * self.scale**0.5)
        slopes = [cv2.Sobel(smooth, cv2.CV_32F, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1))]
        # Most of a frame is flat, so that the median slope is that of noise, which has a Rayleigh distribution.
        noise = np.median(np.hypot(*(slope[::4, ::4] for slope in slopes))) / 1.1774
        low = max(config.edge_low_threshold, 2.5 * noise)
        high = max(config.edge_high_threshold, 4.0 * noise)
        codes = [np.clip(slope * GRADIENT_STEPS, -2**15 + 1, 2**15 - 1).astype(np.int16) for slope in slopes]
        return cv2.Canny(*codes, low * GRADIENT_STEPS, high * GRADIENT_STEPS, L2gradient=True) > 0

    @cached_property
    def labels(self) -> np.ndarray:
        """Region label of each pixel, int32 (H, W), from 1. The two halves of a line belong to the adjacent regions."""
        return self._segment(self.edges | self.lines)

    @cached_property
    def parts(self) -> np.ndarray:
        """Part number of each pixel, int32 (H, W), from 0. A region of nearly uniform lightness is one part; others,
        such as leaves, are divided into pieces of similar lightness (Felzenszwalb and Huttenlocher 2004)."""
        height, width = (round(side / self.scale) for side in self.L.shape)
        pieces = felzenszwalb(resize(self.L, height, width) / 100, self.config.part_scale, 0.8,
                              self.config.min_part_area)
        pieces = cv2.resize(pieces.astype(np.int32), self.L.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        reach = 2 * int(2 * self.scale) + 1
        inner = cv2.dilate(np.uint8(self.edges | self.lines), np.ones((reach, reach), np.uint8)) == 0
        count, sums, squares = (np.bincount(self.labels[inner], weights, self.labels.max() + 1)
                                for weights in (None, self.L[inner], self.L[inner]**2))
        varied = squares * count - sums**2 > (self.config.uniform_deviation * count)**2
        pairs = self.labels.astype(np.int64) * (pieces.max() + 1) + pieces * varied[self.labels]
        return np.unique(pairs, return_inverse=True)[1].reshape(pairs.shape).astype(np.int32)

    def points_of_parts(self, numbers: np.ndarray) -> list[Point]:
        """Return one pixel (x, y) of each of the parts ``numbers``."""
        return [(float(x), float(y)) for y, x in _pixel_of_each(self.parts, numbers)]

    def fill_parts(self, clicks: Sequence[Point]) -> np.ndarray:
        """Return the result of ``fill`` for the parts, instead of the regions, at the clicks."""
        return self._soften(np.isin(self.parts, [self.parts[self.pixel(click)] for click in clicks]))

    def fill(self, clicks: Sequence[Point], cuts: Iterable[Stroke] = ()) -> np.ndarray:
        """Return an anti-aliased mask of the regions at the clicks, float32 (H, W) in [0, 1].

        Each stroke of ``cuts`` divides the mask, and the pieces that contain a click are kept. Raises UserError for a
        click outside the frame.
        """
        pixels = [self.pixel(click) for click in clicks]
        mask = np.isin(self.labels, [self.labels[pixel] for pixel in pixels])
        for stroke in cuts:
            mask = self._cut(mask, stroke, pixels)
        return self._soften(mask)

    def pixel(self, point: Point) -> tuple[int, int]:
        """Return (row, column) of the pixel at a point. Raises UserError for a point outside the frame."""
        x, y = (int(np.floor(value + 0.5)) for value in point)
        height, width = self.L.shape
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"the point ({point[0]:g}, {point[1]:g}) is outside the frame, which is {width}x{height}; "
                            "click into the frame")
        return y, x

    def _segment(self, barrier):
        """Return the label of each pixel, int32 (h, w), for barriers, bool (h, w).

        The ball radius decreases. A connected area that the ball fits into becomes a new region if it contains no label
        and the next larger ball fits, too. In the last pass, with radius 0, it must instead be large enough. Existing
        labels grow to fill their area.
        """
        clearance = cv2.distanceTransform(np.uint8(~barrier), cv2.DIST_L2, 5)  # radius of the ball that fits at a pixel
        radii = [self.config.max_ball_radius * self.scale]
        while radii[-1] * self.config.ball_shrink_factor >= 1:
            radii.append(radii[-1] * self.config.ball_shrink_factor)
        labels, seeds = np.zeros(barrier.shape, np.int32), np.zeros((1, 2), int)  # seeds: a pixel of each label
        for radius in (*radii, 0.0):
            count, parts, stats, _ = cv2.connectedComponentsWithStats(np.uint8(clearance > radius), connectivity=4)
            label_of, label_count = np.zeros(count, np.int32), np.zeros(count, int)
            seeded = parts[seeds[1:, 0], seeds[1:, 1]]
            label_of[seeded] = np.arange(1, len(seeds))
            np.add.at(label_count, seeded, 1)
            wide = (np.bincount(parts[clearance >= radius / self.config.ball_shrink_factor], minlength=count) > 0
                    if radius else stats[:, cv2.CC_STAT_AREA] >= self.config.min_region_area * self.scale**2)
            new = np.flatnonzero((label_count == 0) & wide)
            new = new[new > 0]
            label_of[new] = len(seeds) + np.arange(len(new))
            seeds = np.concatenate([seeds, _pixel_of_each(parts, new)])
            shared = label_count > 1
            label_of[shared] = label_of[0] = 0
            labels = np.where(labels > 0, labels, label_of[parts])
            shared[0] = False
            if shared.any():
                _divide_by_watershed(labels, clearance, shared[parts])
        return fill_nearest(labels)

    def _cut(self, mask, stroke, pixels):
        """Divide a mask, bool (H, W), by a stroke and return the pieces that contain any of the pixels."""
        drawn = np.zeros(mask.shape, np.uint8)
        points = np.round(np.array(stroke.points)).astype(np.int32)
        cv2.polylines(drawn, [points], False, 1, max(1, round(2 * stroke.radius)))
        box = bounding_box(mask, 1)
        barrier = (self.edges | self.lines | ~mask | (drawn > 0))[box]
        pieces = np.where(mask[box], self._segment(barrier), 0)
        inside = [(y - box[0].start, x - box[1].start) for y, x in pixels if mask[y, x]]
        kept = np.zeros_like(mask)
        kept[box] = np.isin(pieces, [pieces[pixel] for pixel in inside]) & mask[box]
        return kept

    def _soften(self, mask):
        """Convert a mask, bool (H, W), to float32 with a soft edge.

        Between two flat areas of different lightness, the value of an edge pixel is its mixing ratio; elsewhere the
        edge is blurred.
        """
        soft, reach = mask.astype(np.float32), int(np.ceil(2 * self.scale))
        box = bounding_box(mask, 3 * reach)
        own, L = np.uint8(mask[box]), self.L[box]
        blurred = cv2.GaussianBlur(soft[box], (0, 0), 0.6 * self.scale**0.5)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
        inner, outer = cv2.erode(own, disc), 1 - cv2.dilate(own, disc)
        size = (6 * reach + 1,) * 2
        (L_in, L_out), (weight_in, weight_out) = (
            [cv2.blur(np.float32(plane * core), size) for core in (inner, outer)] for plane in (L, np.float32(1)))
        edge = (weight_in > 1e-3) & (weight_out > 1e-3) & (inner == 0) & (outer == 0)
        L_in, L_out = L_in / np.maximum(weight_in, 1e-3), L_out / np.maximum(weight_out, 1e-3)
        contrast = L_in - L_out
        distinct = np.abs(contrast) > self.config.min_edge_contrast
        ratio = (L - L_out) / np.where(distinct, contrast, np.inf)
        mixed = edge & distinct & (ratio > -0.2) & (ratio < 1.2)
        mixed &= cv2.dilate(np.uint8(self.lines[box]), disc) == 0
        soft[box] = np.where(mixed, np.clip(ratio, 0, 1), blurred)
        return soft


def _pixel_of_each(parts, numbers):
    """Return (row, column) of one pixel for each of ``numbers`` in the label map ``parts`` (h, w): (n, 2)."""
    pixels = np.zeros(parts.max() + 1, int)
    pixels[parts.ravel()] = np.arange(parts.size)
    return np.column_stack(np.unravel_index(pixels[numbers], parts.shape))


def _divide_by_watershed(labels, clearance, shared):
    """Label the unlabeled pixels of ``shared``, bool (h, w), in place; boundaries run where clearance is smallest."""
    free = (shared & (labels == 0)).astype(np.uint8)
    wanted = (cv2.dilate(free, np.ones((3, 3), np.uint8)) > 0) & shared
    box = bounding_box(wanted, 0)
    found = watershed(-clearance[box], np.where(wanted, labels, 0)[box], mask=wanted[box])
    labels[box] = np.where(free[box] > 0, found, labels[box])


def fill_nearest(labels: np.ndarray) -> np.ndarray:
    """Return the labels, int32 (h, w), with each 0 replaced with the nearest label, or with 1 if all labels are 0."""
    if not labels.any():
        return np.ones_like(labels)
    _, near = cv2.distanceTransformWithLabels(np.uint8(labels == 0), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    table = np.zeros(near.max() + 1, np.int32)
    table[near[labels > 0]] = labels[labels > 0]
    return table[near]


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Return the slices of rows and columns that contain a mask, bool (H, W), with a margin; all if it is empty."""
    slices = []
    for axis in (1, 0):
        found = np.flatnonzero(mask.any(axis))
        first, last = (found[0], found[-1]) if len(found) else (0, mask.shape[1 - axis] - 1)
        slices.append(slice(max(0, first - margin), min(mask.shape[1 - axis], last + margin + 1)))
    return slices[0], slices[1]
