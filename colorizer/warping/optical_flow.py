"""How does a picture move? Optical flow between gray pictures, and what is carried along it.

Flow by DIS (Kroeger et al. 2016). A flow is float32 (H, W, 2): what is at (x, y) of the first picture is at
(x, y) + flow of the second.
"""

import cv2
import numpy as np

from colorizer.warping.upsampling import slope
from config import TemporalFilterConfig
from dataset import resize

SMALLEST = 16  # least height and width, in pixels, of pictures for DIS
WINDOW = 5  # pixels along a side of the neighborhood of a pixel
EVEN = 1e-3  # variance of L in [0, 1]: where L varies less, color hardly follows lightness


class Flow:
    """Optical flow between gray pictures of one size."""

    def __init__(self) -> None:
        # The faster presets blur motion across its edges; the flows there and back then agree even on hidden pixels.
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The flow from uint8 (H, W) to uint8 (H, W), H and W at least SMALLEST."""
        return self._dis.calc(first, second, None)


def picture_of(L: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture, uint8 (height, width), whose motion is found, of L in [0, 100] of any size."""
    return np.rint(resize(L, height, width) * 2.55).astype(np.uint8)


def scaled(flow: np.ndarray, side: int) -> np.ndarray:
    """The flow between square pictures, for the same pictures of another ``side``."""
    return resize(flow, side, side) * np.float32(side / len(flow))


def unlit(picture: np.ndarray, other: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """How unlike the lightness of two pictures, uint8 (H, W), is along the flow: squared differences in L in [0, 1],
    averaged over WINDOW x WINDOW pixels."""
    return blur(np.square((fetch(other.astype(np.float32), flow) - picture) / 255))


def fetch(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """For each pixel of the first picture, the value of ``picture`` (H, W, C), the second one or any map of its pixels,
    at the position to which ``flow`` leads. Positions outside get the value at the border."""
    y, x = np.indices(flow.shape[:2], dtype=np.float32)
    return cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def relit(ab: np.ndarray, known: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Correct colors ab (H, W, 2) that were carried to a picture for its lightness L (H, W) in [0, 1]. ``known`` (H, W)
    is the lightness that was carried with them. So a leaf that the flow misses by half a pixel still gets its own
    color.
    """
    return ab + slope(ab, known, WINDOW, EVEN) * (L - known)[..., None]


def blur(picture: np.ndarray) -> np.ndarray:
    """Means over WINDOW x WINDOW pixels."""
    return cv2.blur(picture, (WINDOW, WINDOW))


def visible(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Which pixels of the first picture the second one shows too, bool (H, W), by the flows there and back.

    A pixel is visible if its way there stays inside the picture and the way back returns to its start:
    |there + back|^2 < 0.01 (|there|^2 + |back|^2) + 0.5 (Sundaram et al. 2010).
    """
    height, width = there.shape[:2]
    y, x = np.indices((height, width), dtype=np.float32)
    x, y = x + there[..., 0], y + there[..., 1]
    back = fetch(back, there)
    length = (there**2).sum(-1) + (back**2).sum(-1)
    returns = ((there + back)**2).sum(-1) < 0.01 * length + 0.5
    return returns & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


class TemporalFilter:
    """The colors of the frames of one shot, each drawn towards those of the frame before it along the motion.

    The weight of the frame before is keep * exp(-unlit * d^2), where d^2 is the squared difference in lightness along
    the motion, averaged over WINDOW x WINDOW pixels. Only color means over 3 x 3 pixels are drawn: finer detail
    stays the frame's own, since what is fetched along the motion again and again gets blurred. Call it in order of
    the frames.
    """

    def __init__(self, config: TemporalFilterConfig) -> None:
        self.config = config
        self._flow = Flow()
        self._picture: np.ndarray | None = None
        self._ab: np.ndarray | None = None

    def __call__(self, lightness: np.ndarray, ab: np.ndarray) -> np.ndarray:
        """The next frame's L (H, W) in [0, 100] and ab (S, S, 2) in Lab units -> its steadied ab, float32 (S, S, 2)."""
        height, width = ab.shape[:2]
        picture = picture_of(lightness, height, width)
        if self._picture is not None and self._ab is not None:
            side = min(self.config.flow_size, height)
            flow = self._flow(*(resize(p, side, side) for p in (picture, self._picture)))
            flow = scaled(flow, height)
            weight = self.config.previous_weight * np.exp(-self.config.photometric_weight * unlit(picture, self._picture, flow))[..., None]
            ab = ab + weight * cv2.blur(fetch(self._ab, flow) - ab, (3, 3))
        self._picture, self._ab = picture, ab
        return ab
