"""TODO: module docstring."""

from typing import NamedTuple

import cv2
import numpy as np

from colorizer.confidence import Confidence
from colorizer.warping.optical_flow import Flow, fetch, scaled
from dataset import resize


class ColoredFrame(NamedTuple):
    """A frame that was colored."""

    L: np.ndarray  # float32 (side, side) in [0, 100]
    ab: np.ndarray  # float32 (S, S, 2) in Lab units
    known: Confidence


class TransitionBlender:
    """Colors the frames of a Boundary: the last frame of one shot and the first of the next one are mixed as the frame
    mixes them, and the mixture follows the frame along the motion.

    ``frames`` is their number. In a dissolve the share of the next shot grows evenly. In a wipe it is that of each
    place: by which of both is nearer to it.
    """

    NEAR = 13  # the neighborhood of a place is one of so many parts of the width
    SURE = 2  # power of the ratio of the mean squared differences

    def __init__(self, frames: int, wipe: bool, before: ColoredFrame, behind: ColoredFrame, side: int) -> None:
        self.frames, self.wipe, self.before, self.behind = frames, wipe, before, behind
        self.size = before.ab.shape[0]
        self.side = min(side, self.size)
        self.count, self._flow = 0, Flow()
        self.pictures = [cv2.cvtColor(cv2.merge([resize(one.L, self.size, self.size), *cv2.split(one.ab)]),
                                      cv2.COLOR_Lab2RGB) for one in (before, behind)]

    def __call__(self, L: np.ndarray) -> tuple[np.ndarray, Confidence]:
        """ab (S, S, 2) and what is Known of the next frame, of L (side, side)."""
        self.count += 1
        luma = _luma(L, self.size)
        share = np.full_like(luma, self.count / (self.frames + 1))
        if self.wipe:
            near = self.size // self.NEAR | 1
            far = [(cv2.blur(np.square(luma - _luma(one.L, self.size)), (near, near)) + 1e-4)**self.SURE
                   for one in (self.before, self.behind)]
            share = far[0] / (far[0] + far[1])
        one, other = self.pictures
        lab = cv2.cvtColor(one + share[..., None] * (other - one), cv2.COLOR_RGB2Lab)
        grays = [np.rint(resize(plane, self.side, self.side) * 255).astype(np.uint8)
                 for plane in (luma, _luma(lab[..., 0], self.size))]
        return fetch(lab[..., 1:], scaled(self._flow(*grays), self.size)), self._known(share)

    def _known(self, share):
        share = resize(share, *self.before.known.probability.shape)
        return Confidence(*(one + share * (other - one)
                       for one, other in zip(self.before.known, self.behind.known, strict=True)))


def _luma(L, side):
    """Y' (side, side) in [0, 1] of grays of L."""
    L = resize(L, side, side)
    return cv2.cvtColor(cv2.merge([L, 0 * L, 0 * L]), cv2.COLOR_Lab2RGB)[..., 0]
