"""How steady are the colors of a shot? Color distribution consistency and the warping error of ab.

Both are measured frame by frame within one shot and never over a cut: a shot gets objects of its own. Neither is good
when small by itself, since a gray film is perfectly steady; so the truth is measured in the same way, for comparison.
"""

import math
from collections import deque

import cv2
import numpy as np
from scipy.spatial.distance import jensenshannon

from colorizer.warping.optical_flow import MIN_FLOW_SIZE, OpticalFlow, visible_pixels, warp
from dataset import resize, rgb_to_lab


class CDC:
    """Color distribution consistency of one shot (Liu et al. 2021, arXiv 2110.04562). Only the histograms of its last
    frames are held.

    The Jensen-Shannon divergence between the 256-bin histograms of frames t apart, averaged over the channels and over
    the shot, for each t of STEPS; then the mean over these.
    """

    STEPS = (1, 2, 4)

    def __init__(self) -> None:
        self._last = deque(maxlen=max(self.STEPS))
        self._sums, self._counts = dict.fromkeys(self.STEPS, 0.0), dict.fromkeys(self.STEPS, 0)

    def add(self, rgb: np.ndarray) -> None:
        """Add the next frame of the shot, RGB uint8 (H, W, 3)."""
        histogram = np.stack([cv2.calcHist([rgb], [channel], None, [256], [0, 256]).ravel() for channel in range(3)])
        histogram = histogram.astype(np.float64) / (rgb.shape[0] * rgb.shape[1])
        for step in self.STEPS:
            if len(self._last) >= step:
                distance = jensenshannon(histogram, self._last[-step], axis=1)  # the root of the divergence
                self._sums[step] += float(np.square(distance).mean())
                self._counts[step] += 1
        self._last.append(histogram)

    def value(self) -> float:
        """The CDC, from 0 (steady) to log 2, of the steps that the shot is long enough for; nan for a single frame."""
        means = [self._sums[step] / self._counts[step] for step in self.STEPS if self._counts[step]]
        return float(np.mean(means)) if means else math.nan


class WarpError:
    """Warping error of the colors of one shot: how much ab changes along the motion of the gray picture.

    The mean of (ab of a frame - ab of the frame before, fetched along the optical flow)^2 over both channels and over
    all pixels of the shot that are visible in both frames. The flow is that of pictures at most WIDTH wide. It
    is computed once for several colorings of the same film.
    """

    WIDTH = 320

    def __init__(self) -> None:
        self._flow = OpticalFlow()
        self._luma: np.ndarray = np.zeros(0)  # of the frame before
        self._ab = []
        self._sums, self._visible = np.zeros(0), 0

    def add(self, luma: np.ndarray, *pictures: np.ndarray) -> None:
        """Add the next frame: its luma uint8 (H, W), and each coloring of it as RGB uint8 (H, W, 3)."""
        height, width = luma.shape
        scale = max(min(1, self.WIDTH / width), MIN_FLOW_SIZE / min(height, width))
        size = max(MIN_FLOW_SIZE, round(height * scale)), max(MIN_FLOW_SIZE, round(width * scale))
        luma = np.ascontiguousarray(resize(luma, *size))
        ab = [np.ascontiguousarray(rgb_to_lab(resize(picture, *size))[..., 1:]) for picture in pictures]
        if self._luma.size:
            self._compare(luma, ab)
        else:
            self._sums = np.zeros(len(pictures))
        self._luma, self._ab = luma, ab

    def _compare(self, luma, ab):
        there, back = self._flow(luma, self._luma), self._flow(self._luma, luma)
        shown = visible_pixels(there, back)
        for i, (now, before) in enumerate(zip(ab, self._ab, strict=True)):
            self._sums[i] += ((now - warp(before, there))[shown]**2).mean(-1).sum(dtype=np.float64)
        self._visible += int(shown.sum())

    def values(self) -> list[float]:
        """The error of each coloring, in squared units of ab; nan when no pixel is visible in two frames."""
        return [float(total) / self._visible if self._visible else math.nan for total in self._sums]
