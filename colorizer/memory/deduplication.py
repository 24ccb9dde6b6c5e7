"""Deduplication of pictures, so that held frames and repeated shots are stored once."""

import itertools
from collections import defaultdict

import cv2
import numpy as np

from config import SpatialConfig


class Deduplicator:
    """Decides for each picture of a sequence whether it differs from all pictures accepted before.

    Two pictures differ if, in any grid cell and channel, the means of their 8-bit codes differ by more than
    ``duplicate_tolerance``. The means are compared as integers, so that all machines give the same result.
    """

    def __init__(self, config: SpatialConfig) -> None:
        self.config = config
        self._accepted: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)  # quadrant key -> cell means

    def __call__(self, codes: np.ndarray) -> bool:
        """Return whether a picture is new; if so, accept it. ``codes`` are the output of encode_lab8, uint8 (H, W, 3)
        with the same H and W for all pictures."""
        grid, tolerance = self.config.grid, self.config.duplicate_tolerance
        cells = cv2.resize(codes, (grid, grid), interpolation=cv2.INTER_AREA).astype(np.int16)
        # Quadrant means of duplicates also differ by at most the tolerance: only compare such pictures.
        quadrants = cells[..., 0].reshape(2, grid // 2, 2, grid // 2).mean((1, 3)).ravel() // tolerance
        key = tuple(quadrants.astype(int).tolist())
        neighbors = itertools.product(*((step - 1, step, step + 1) for step in key))
        others = itertools.chain.from_iterable(self._accepted.get(near, ()) for near in neighbors)
        if any(np.abs(cells - other).max() <= tolerance for other in others):
            return False
        self._accepted[key].append(cells)
        return True
