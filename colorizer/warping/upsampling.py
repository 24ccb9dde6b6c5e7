"""How do colors follow lightness where they are finer than what is known of them? By the local linear model.

Within a few pixels, color is taken as linear in lightness (the guided filter; He et al. 2013): the slope of one over
the other tells how a difference in lightness changes the color. So a line has the color of lines, and not that of what
it divides, and the shaded side of a leaf is not painted like the other.
"""

import cv2
import numpy as np

from dataset import resize

EVEN = 20.0  # variance of L in [0, 100]: where L varies less, color hardly follows lightness
STEEPEST = 1.5  # change of a or b for one of L: beyond it are borders between things of almost the same lightness
WINDOW = 3  # pixels of the small picture along a side of the neighborhood of a pixel


def slope(ab: np.ndarray, L: np.ndarray, window: int, even: float) -> np.ndarray:
    """How much colors ab (H, W, 2) change with lightness L (H, W), float32 (H, W, 2): within ``window`` x ``window``
    pixels, as if L varied by ``even``, a variance, without any change of color."""
    def mean(plane):
        return cv2.blur(plane, (window, window))

    light = mean(L)
    spread = mean(L * L) - light * light + np.float32(even)
    return cv2.merge([(mean(L * color) - light * mean(color)) / spread for color in cv2.split(ab)])


def lines(ab: np.ndarray, L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colors ab (h, w, 2) of a small picture of lightness L (h, w) in [0, 100] as a line for each pixel: (slope,
    intercept), so that ab = slope * L + intercept. Enlarged, they give any pixel the color for its own lightness."""
    steep = slope(ab, L, WINDOW, EVEN).clip(-STEEPEST, STEEPEST)
    return steep, ab - steep * L[..., None]


def enlarged(ab: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Colors ab (h, w, 2) of a small picture, enlarged to that of lightness L (H, W) in [0, 100]: float32 (H, W, 2)."""
    steep, rest = (resize(plane, *L.shape) for plane in lines(ab, resize(L, *ab.shape[:2])))
    return steep * L[..., None] + rest
