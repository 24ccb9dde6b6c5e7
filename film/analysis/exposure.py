"""Exposure of the frames of a shot: a gain and an offset of L for each frame, which undo fades and flicker."""

from array import array
from dataclasses import dataclass

import cv2
import numpy as np

from colorizer.warping.optical_flow import OpticalFlow, box_blur, warp
from dataset import L_SCALE, resize
from film.io.planes import gray_lightness

NEUTRAL = 1.0, 0.0  # gain and offset of an unchanged exposure


@dataclass(frozen=True)
class ExposureConfig:
    """Constants of the exposure tracker. L is in [0, 100]."""

    size: int = 64  # side of the compared pictures; larger follows finer motion and takes longer
    min_change: float = 0.25  # minimum mean change of L; larger ignores slower fades, smaller accumulates errors
    min_std: float = 2.0  # minimum standard deviation of L; larger ignores more pictures of low contrast
    max_median_error: float = 3.0  # of a fit to L; larger takes more motion for a change of exposure
    max_error_share: float = 0.2  # error of a fit / change; larger takes dissolves (from 0.28) for fades (up to 0.13)
    max_gain: float = 8.0  # larger brightens dark frames more and amplifies their noise


def normalize_exposure(L: np.ndarray, exposure: np.ndarray) -> np.ndarray:
    """Return L in [0, 100] (any shape) at the normal exposure of its shot: gain * L + offset, clipped. ``exposure`` is
    (gain, offset)."""
    gain, offset = exposure
    return L if gain == 1 and offset == 0 else (gain * L + offset).clip(0, L_SCALE)


class ExposureTracker:
    """Measures the changes of exposure from frame to frame.

    In static content, L is about a * L' + b with L' of an earlier frame, both in fades (which scale L + 16, except for
    very dark colors) and in flicker. A frame that differs from the previous one is compared with an anchor, the
    earliest frame with comparable content, since errors of comparisons of consecutive frames would accumulate.
    """

    def __init__(self, config: ExposureConfig | None = None) -> None:
        self.config = config or ExposureConfig()
        self.previous: np.ndarray | None = None
        self.steps = array("f")  # a and b of each frame relative to the previous frame
        self._anchor, self._since_anchor = np.zeros(0), NEUTRAL  # a and b of the previous frame relative to the anchor
        self._flow = OpticalFlow()

    def add(self, luma: np.ndarray) -> None:
        """Add the next frame, luma uint8 (H, W) of full range."""
        small = resize(luma, self.config.size, self.config.size)
        if self.previous is None:
            self.previous = self._anchor = small
        step = self._change(self.previous, small)
        total = self._since_anchor if step == NEUTRAL else self._change(self._anchor, small)
        if total is None and step is None and (cv2.norm(self._anchor, small, cv2.NORM_L1)
                                               < cv2.norm(self.previous, small, cv2.NORM_L1)):
            total = NEUTRAL  # after a flash, the exposure of the anchor returns
        if total is None:
            self._anchor, total = small, NEUTRAL
        else:
            (a, b), (a_before, b_before) = total, self._since_anchor
            step = a / a_before, b - a / a_before * b_before
        self.steps.extend(step or NEUTRAL)
        self.previous, self._since_anchor = small, total

    def _change(self, before, after):
        """Return a and b between two frames; None if their exposure cannot be compared."""
        config = self.config
        x, y = (gray_lightness(luma / np.float32(255)) for luma in (before, after))
        if abs(x.mean() - y.mean()) < config.min_change / 2 and abs(x.std() - y.std()) < config.min_change / 2:
            return NEUTRAL  # regardless of motion, the change of exposure is below the minimum
        x = gray_lightness(warp(before.astype(np.float32), self._flow(after, before)) / np.float32(255))
        valid = (np.minimum(x, y) > 1) & (np.maximum(x, y) < 99)
        fit = self._fit(x[valid], y[valid]) if valid.sum() >= config.size else None
        if fit is None:
            return None
        a, b = fit
        if np.abs((a - 1) * x[valid] + b).mean() < config.min_change:
            return NEUTRAL
        change, error = (np.median(np.abs(box_blur(plane * valid)[valid])) for plane in (y - x, y - a * x - b))
        return fit if error <= config.max_error_share * change else None

    def _fit(self, x, y):
        """Fit y = a * x + b robustly; return None if the error is too large or the contrast too low."""
        kept, config = np.ones(len(x), bool), self.config
        for _ in range(4):
            if x[kept].std() < config.min_std or y[kept].std() < config.min_std / 2:
                return None
            a = y[kept].std() / x[kept].std()  # unbiased; least squares would flatten noisy frames step by step
            b = y[kept].mean() - a * x[kept].mean()
            error = np.abs(y - a * x - b)
            kept = error <= max(0.5, 2 * np.median(error))
        return None if np.median(error) > config.max_median_error else (float(a), float(b))

    def shot_exposure(self, start: int, end: int) -> np.ndarray:
        """Return the (gain, offset) for ``normalize_exposure`` of each of the added frames [start, end), which form one
        shot; float32 (end - start, 2)."""
        gains, offsets = np.ones(end - start), np.zeros(end - start)
        for i, (a, b) in enumerate(np.array(self.steps[2 * start + 2:2 * end]).reshape(-1, 2), 1):
            gains[i], offsets[i] = a * gains[i - 1], a * offsets[i - 1] + b
        normal = np.median(gains[gains > 0.8 * gains.max()])  # the middle of a flicker, the bright part of a fade
        normal_offset = np.median(offsets[np.abs(gains / normal - 1) < 0.1])
        gain = normal / gains
        exposure = np.stack([gain, normal_offset - gain * offsets], 1)
        exposure[gain > self.config.max_gain] = [self.config.max_gain, 0]
        return exposure.astype(np.float32)
