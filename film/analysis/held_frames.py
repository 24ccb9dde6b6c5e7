"""TODO: module docstring."""

import cv2
import numpy as np

from dataset import resize
from film.io.planes import Planes


class HeldFrameDetector:
    """Tells whether a frame shows a new drawing, or holds that of the frames before."""

    def __init__(self) -> None:
        self.held: np.ndarray | None = None

    def is_new(self, planes: Planes, cut: bool) -> bool:
        """Whether the next frame is more than HELD away from the drawing's first frame (so that no slow change adds
        up), or is the first behind a ``cut``."""
        small = resize(planes.y, *(max(1, side // 4) for side in planes.y.shape))
        if not cut and cv2.absdiff(small, self.held).max() <= HELD * 2 ** (planes.coding.depth - 8):
            return False
        self.held = small
        return True

HELD = 4.0  # a drawing is held while no mean luma of 4 x 4 pixels changes by more than this, in 8-bit steps
