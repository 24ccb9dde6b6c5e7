"""Detection of held frames: frames that repeat the previous frame."""

import cv2
import numpy as np

from dataset import resize
from film.io.planes import Planes


class HeldFrameDetector:
    """Decides for each frame of a film whether it is new or repeats (holds) the previous frame.

    ``max_change`` is the maximum difference between a held frame and the last new frame, in 8-bit luma averaged over
    4 x 4 pixels. Larger values treat faster motion as held frames.
    """

    def __init__(self, max_change: float = 4.0) -> None:
        self.max_change = max_change
        self.reference: np.ndarray | None = None  # luma of the last new frame, reduced

    def is_new(self, planes: Planes, cut: bool) -> bool:
        """Return whether the next frame is new. ``cut``: it starts a shot and is always new. Frames are compared with
        the last new frame, so that slow motion is not missed."""
        small = resize(planes.y, *(max(1, side // 4) for side in planes.y.shape))
        if not cut and cv2.absdiff(small, self.reference).max() <= self.max_change * 2 ** (planes.encoding.depth - 8):
            return False
        self.reference = small
        return True
