"""Optical flow between grayscale pictures, warping along it, and the temporal filter for the colors of a shot.

A flow is float32 (H, W, 2) in pixels: the point (x, y) of the first picture is at (x, y) + flow in the second picture.
"""

import cv2
import numpy as np

from colorizer.warping.upsampling import guided_filter_slope
from config import TemporalFilterConfig
from dataset import resize

MIN_FLOW_SIZE = 16  # minimum height and width, in pixels, of pictures for OpticalFlow
WINDOW = 5  # pixels along a side of the window of box_blur and relight
REGULARIZATION = 1e-3  # added to the variance of L in [0, 1]; larger: color follows lightness less


class OpticalFlow:
    """Dense optical flow by DIS (Kroeger et al. 2016)."""

    def __init__(self) -> None:
        # Faster presets blur the flow across motion edges: forward and backward flow then agree even at occlusions.
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the flow from ``first`` to ``second``, uint8 (H, W) each, where H and W are at least MIN_FLOW_SIZE."""
        return self._dis.calc(first, second, None)


def to_flow_image(L: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert L in [0, 100] of any size to an input of OpticalFlow, uint8 (height, width)."""
    return np.rint(resize(L, height, width) * 2.55).astype(np.uint8)


def scale_flow(flow: np.ndarray, side: int) -> np.ndarray:
    """Scale the flow between square pictures to pictures of ``side`` x ``side`` pixels."""
    return resize(flow, side, side) * np.float32(side / len(flow))


def warp(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Warp ``picture`` (H, W, C), a map of the second picture, to the first picture by sampling it along the flow.
    Outside of the picture, the nearest border pixel is sampled."""
    y, x = np.indices(flow.shape[:2], dtype=np.float32)
    return cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def box_blur(picture: np.ndarray) -> np.ndarray:
    """Return the means over WINDOW x WINDOW pixels around each pixel."""
    return cv2.blur(picture, (WINDOW, WINDOW))


def photometric_difference(first: np.ndarray, second: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the squared differences in L in [0, 1], averaged over WINDOW x WINDOW pixels, between ``first`` and the
    warped ``second``, uint8 (H, W) each."""
    return box_blur(np.square((warp(second.astype(np.float32), flow) - first) / 255))


def add_scaled(ab: np.ndarray, change: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return ab + scale * change, for ab and ``change`` (H, W, 2) and ``scale`` (H, W)."""
    return ab + change * cv2.merge([scale, scale])  # NumPy's broadcasting over the last axis takes 3 times as long


def relight(ab: np.ndarray, warped_L: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Adapt warped colors ab (H, W, 2) to the lightness L (H, W) in [0, 1] of the picture they were warped to.

    ``warped_L`` (H, W) is the lightness warped along the same flow. The correction is the guided-filter slope times the
    difference in lightness, which compensates for subpixel errors of the flow.
    """
    return add_scaled(ab, guided_filter_slope(ab, warped_L, WINDOW, REGULARIZATION), L - warped_L)


def flow_inconsistency(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Return how far the backward flow misses the start of the forward flow, (H, W), as a multiple of the tolerance:
    |forward + backward|^2 / (0.01 (|forward|^2 + |backward|^2) + 0.5) (Sundaram et al. 2010)."""
    def squared_length(flow):
        x, y = cv2.split(flow)
        return x * x + y * y

    backward = warp(backward, forward)
    tolerance = 0.01 * (squared_length(forward) + squared_length(backward)) + 0.5
    return squared_length(forward + backward) / tolerance


def visible_pixels(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Return a mask, bool (H, W), of the pixels of the first picture that are also visible in the second picture: the
    forward flow stays inside the picture, and ``flow_inconsistency`` is below 1."""
    height, width = forward.shape[:2]
    y, x = np.indices((height, width), dtype=np.float32)
    x, y = x + forward[..., 0], y + forward[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside & (flow_inconsistency(forward, backward) < 1)


class TemporalFilter:
    """Recursive filter that blends the colors of each frame of a shot with those of the previous frame along the flow.

    The weight of the previous frame is previous_weight * exp(-photometric_weight * d^2), where d^2 is the
    ``photometric_difference``. Only color means over 3 x 3 pixels are blended, since repeated warping would blur finer
    detail. Call the filter once per frame, in order.
    """

    def __init__(self, config: TemporalFilterConfig) -> None:
        self.config = config
        self._flow = OpticalFlow()
        self._picture: np.ndarray | None = None
        self._ab: np.ndarray | None = None

    def __call__(self, lightness: np.ndarray, ab: np.ndarray) -> np.ndarray:
        """Return the filtered ab, float32 (S, S, 2), of the next frame, given its L (H, W) in [0, 100] and ab (S, S, 2)
        in Lab units."""
        config, side = self.config, len(ab)
        picture = to_flow_image(lightness, *ab.shape[:2])
        if self._picture is not None and self._ab is not None:
            size = min(config.flow_size, side)
            flow = self._flow(*(resize(p, size, size) for p in (picture, self._picture)))
            flow = scale_flow(flow, side)
            difference = photometric_difference(picture, self._picture, flow)
            weight = config.previous_weight * np.exp(-config.photometric_weight * difference)
            ab = add_scaled(ab, cv2.blur(warp(self._ab, flow) - ab, (3, 3)), weight)
        self._picture, self._ab = picture, ab
        return ab
