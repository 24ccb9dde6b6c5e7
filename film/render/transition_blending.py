"""Coloring of the frames of a transition, each of which shows two shots."""

from typing import NamedTuple

import cv2
import numpy as np

from colorizer.confidence import Confidence
from colorizer.warping.optical_flow import OpticalFlow, scale_flow, warp
from dataset import resize


class ColoredFrame(NamedTuple):
    """A frame with predicted colors."""

    L: np.ndarray  # float32 (side, side) in [0, 100]
    ab: np.ndarray  # float32 (S, S, 2) in Lab units
    confidence: Confidence


class TransitionBlender:
    """Colors the frames of a transition from the last frame of one shot and the first frame of the next one.

    The two colored frames are blended, and the blend is warped to the current frame along the optical flow. In a
    dissolve of ``frames`` frames, the weight of the next shot grows linearly. In a wipe, the weight of each pixel is
    estimated from the differences between the current frame and the two colored frames.
    """

    WINDOW = 13  # for wipes, differences are averaged over 1 / WINDOW of the width; larger: sharper, noisier weights
    POWER = 2  # exponent of the mean squared differences; larger: weights closer to 0 or 1

    def __init__(self, frames: int, wipe: bool, before: ColoredFrame, after: ColoredFrame, side: int) -> None:
        self.frames, self.wipe, self.before, self.after = frames, wipe, before, after
        self.size = before.ab.shape[0]
        self.side = min(side, self.size)  # input size of the optical flow
        self.count, self._flow = 0, OpticalFlow()
        self.pictures = [cv2.cvtColor(cv2.merge([resize(frame.L, self.size, self.size), *cv2.split(frame.ab)]),
                                      cv2.COLOR_Lab2RGB) for frame in (before, after)]

    def __call__(self, L: np.ndarray) -> tuple[np.ndarray, Confidence]:
        """Return ab (S, S, 2) and the confidence of the next frame, given its L (side, side)."""
        self.count += 1
        luma = _luma(L, self.size)
        weight = np.full_like(luma, self.count / (self.frames + 1))  # of the next shot
        if self.wipe:
            window = self.size // self.WINDOW | 1
            before, after = ((cv2.blur(np.square(luma - _luma(frame.L, self.size)), (window, window)) + 1e-4)
                             **self.POWER for frame in (self.before, self.after))
            weight = before / (before + after)
        before, after = self.pictures
        lab = cv2.cvtColor(before + weight[..., None] * (after - before), cv2.COLOR_RGB2Lab)
        grays = [np.rint(resize(plane, self.side, self.side) * 255).astype(np.uint8)
                 for plane in (luma, _luma(lab[..., 0], self.size))]
        weight = resize(weight, *self.before.confidence.probability.shape)
        confidence = Confidence(*(before + weight * (after - before)
                                  for before, after in zip(self.before.confidence, self.after.confidence, strict=True)))
        return warp(lab[..., 1:], scale_flow(self._flow(*grays), self.size)), confidence


def _luma(L, side):
    """Return Y' (side, side) in [0, 1] of the grayscale picture with lightness L."""
    L = resize(L, side, side)
    return cv2.cvtColor(cv2.merge([L, 0 * L, 0 * L]), cv2.COLOR_Lab2RGB)[..., 0]
