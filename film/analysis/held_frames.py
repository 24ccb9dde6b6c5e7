"""Detection of held frames: frames that repeat the frame before."""

import cv2
import numpy as np

from dataset import resize
from film.io.planes import Planes


class HeldFrameDetector:
    """Decides for each frame of a film whether it is new or repeats (holds) the frame before.

    ``max_change`` is the maximum difference of a held frame in 8-bit luma, for means of 4 x 4 pixels. Larger values
    treat slower motion as held frames.
    """

    def __init__(self, max_change: float = 4.0) -> None:
        self.max_change = max_change
        self.reference: np.ndarray | None = None  # luma of the last new frame, reduced

    def is_new(self, planes: Planes, cut: bool) -> bool:
        """Return whether the next frame is new; the first frame after a ``cut`` always is. Frames are compared with the
        last new frame, so that slow changes do not accumulate."""
        small = resize(planes.y, *(max(1, side // 4) for side in planes.y.shape))
        if not cut and cv2.absdiff(small, self.reference).max() <= self.max_change * 2 ** (planes.encoding.depth - 8):
            return False
        self.reference = small
        return True
