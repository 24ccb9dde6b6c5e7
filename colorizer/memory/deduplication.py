"""Does a frame show anything new? Held drawings and twins of frames that are known are not kept."""

import itertools
from collections import defaultdict

import cv2
import numpy as np

from config import SpatialConfig


class Deduplicator:
    """Tells of one picture after another whether it shows anything that no picture before it shows that did.

    It does where the mean codes of one of its places, in a channel, differ by more than ``same`` from those of each
    such picture. Whole numbers are compared, on the CPU, so that all processes and machines choose alike.
    """

    def __init__(self, config: SpatialConfig) -> None:
        self.config, self.known = config, defaultdict(list)

    def __call__(self, codes: np.ndarray) -> bool:
        """``codes``, uint8 (H, W, 3), are those of encode_lab8; all pictures have one size."""
        grid, same = self.config.grid, self.config.duplicate_tolerance
        places = cv2.resize(codes, (grid, grid), interpolation=cv2.INTER_AREA).astype(np.int16)
        # Where no place differs by more, nor does the mean of a quarter: only pictures with such quarters are compared.
        quarters = places[..., 0].reshape(2, grid // 2, 2, grid // 2).mean((1, 3)).ravel() // same
        near = itertools.product(*((step - 1, step, step + 1) for step in quarters.astype(int).tolist()))
        if any(np.abs(places - other).max() <= same for key in near for other in self.known.get(key, ())):
            return False
        self.known[tuple(quarters.astype(int).tolist())].append(places)
        return True
