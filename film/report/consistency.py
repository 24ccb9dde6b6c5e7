"""Measures of the temporal consistency of colors: color distribution consistency (CDC) and the warping error of ab.

Each object measures one shot; create a new one for each shot. A grayscale film is perfectly consistent, so compare the
values with those of the ground truth.
"""

import math
from collections import deque

import cv2
import numpy as np
from scipy.spatial.distance import jensenshannon

from colorizer.warping.optical_flow import MIN_FLOW_SIZE, OpticalFlow, visible_pixels, warp
from dataset import resize, rgb_to_lab


class CDC:
    """Color distribution consistency of one shot (Liu et al. 2021, arXiv 2110.04562).

    For each t in STEPS, the Jensen-Shannon divergence between the 256-bin histograms of frames t apart is averaged over
    the channels and the shot; the CDC is the mean over t. Only the histograms of the last frames are held in memory.
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
                distance = jensenshannon(histogram, self._last[-step], axis=1)  # square root of the divergence
                self._sums[step] += float(np.square(distance).mean())
                self._counts[step] += 1
        self._last.append(histogram)

    def value(self) -> float:
        """Return the CDC, from 0 (consistent) to log 2; nan for fewer than two frames."""
        means = [self._sums[step] / self._counts[step] for step in self.STEPS if self._counts[step]]
        return float(np.mean(means)) if means else math.nan


class WarpError:
    """Warping error of the colors of one shot: the mean squared change of ab along the optical flow.

    Each frame is compared with the previous one, warped along the flow of the luma, over both channels of ab and all
    pixels visible in both frames. Pictures are reduced to at most WIDTH pixels in width. The flow is computed once for
    several colorings of the same film.
    """

    WIDTH = 320

    def __init__(self) -> None:
        self._flow = OpticalFlow()
        self._luma: np.ndarray = np.zeros(0)  # of the previous frame
        self._ab = []
        self._sums, self._visible = np.zeros(0), 0

    def add(self, luma: np.ndarray, *pictures: np.ndarray) -> None:
        """Add the next frame: its luma uint8 (H, W), and each of its colorings as RGB uint8 (H, W, 3)."""
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
        forward, backward = self._flow(luma, self._luma), self._flow(self._luma, luma)
        mask = visible_pixels(forward, backward)
        for i, (now, before) in enumerate(zip(ab, self._ab, strict=True)):
            self._sums[i] += ((now - warp(before, forward))[mask]**2).mean(-1).sum(dtype=np.float64)
        self._visible += int(mask.sum())

    def values(self) -> list[float]:
        """Return the error of each coloring in squared units of ab; nan if no pixel is visible in two frames."""
        return [float(total) / self._visible if self._visible else math.nan for total in self._sums]
