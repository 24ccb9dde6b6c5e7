"""Detection of held frames: frames that repeat the drawing of the frame before."""

import cv2
import numpy as np

from dataset import resize
from film.io.planes import Planes


class HeldFrameDetector:
    """Decides for each frame of a film whether it shows a new drawing or holds the previous one.

    ``max_change`` is the maximum difference of a held frame in 8-bit luma, for means of 4 x 4 pixels. Larger values
    treat slower motion as held frames.
    """

    def __init__(self, max_change: float = 4.0) -> None:
        self.max_change = max_change
        self.drawing: np.ndarray | None = None  # the first frame of the drawing, reduced

    def is_new(self, planes: Planes, cut: bool) -> bool:
        """Return whether the next frame shows a new drawing, always True after a ``cut``. Frames are compared with the
        first one of the drawing, so that slow changes do not accumulate."""
        small = resize(planes.y, *(max(1, side // 4) for side in planes.y.shape))
        if not cut and cv2.absdiff(small, self.drawing).max() <= self.max_change * 2 ** (planes.coding.depth - 8):
            return False
        self.drawing = small
        return True
