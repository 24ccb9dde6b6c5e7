"""How does a picture move? Optical flow between gray pictures, and what is carried along it.

Flow by DIS (Kroeger et al. 2016). A flow is float32 (H, W, 2): what is at (x, y) of the first picture is at
(x, y) + flow of the second.
"""

import cv2
import numpy as np

from config import SteadyConfig
from dataset import resize

SMALLEST = 16  # pixels along a side that DIS needs
WINDOW = 5  # pixels along a side of what is around a pixel
EVEN = 1e-3  # variance of L in [0, 1] of which color is hardly taken to move with lightness


class Flow:
    """Optical flow between gray pictures of one size."""

    def __init__(self) -> None:
        # The faster presets smear the motion over its edges, where both flows then agree on what is hidden.
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The flow from uint8 (H, W) to uint8 (H, W), H and W at least SMALLEST."""
        return self._dis.calc(first, second, None)


def fetch(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """What the second picture (H, W, C), or anything laid over it, shows where the first one has its pixels."""
    y, x = np.indices(flow.shape[:2], dtype=np.float32)
    return cv2.remap(picture, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def relit(ab: np.ndarray, known: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Colors ab (H, W, 2) that were carried to a picture of lightness L (H, W) in [0, 1] together with their own one,
    ``known`` (H, W): moved by the difference, as color moves with lightness in the WINDOW around, where it does.

    The local linear model of the guided filter (He et al. 2013), by which a leaf that the flow misses by half a pixel
    still has its own color.
    """
    mean = blur(known)
    step = (L - known) / (blur(known * known) - mean * mean + np.float32(EVEN))
    return cv2.merge([color + step * (blur(known * color) - mean * blur(color)) for color in cv2.split(ab)])


def blur(picture: np.ndarray) -> np.ndarray:
    """Means over WINDOW x WINDOW pixels."""
    return cv2.blur(picture, (WINDOW, WINDOW))


def visible(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Which pixels of the first picture the second one shows too, bool (H, W), by the flows there and back.

    Where the way there and back returns to its start, inside the picture:
    |there + back|^2 < 0.01 (|there|^2 + |back|^2) + 0.5 (Sundaram et al. 2010).
    """
    height, width = there.shape[:2]
    y, x = np.indices((height, width), dtype=np.float32)
    x, y = x + there[..., 0], y + there[..., 1]
    back = fetch(back, there)
    length = (there**2).sum(-1) + (back**2).sum(-1)
    returns = ((there + back)**2).sum(-1) < 0.01 * length + 0.5
    return returns & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


class SteadyColors:
    """The colors of the frames of one shot, each drawn towards those of the frame before it along the motion.

    The weight of the frame before is ``keep`` where it shows the same lightness, and exp(-unlit * d^2) times as much
    where lightness differs by d, averaged around the pixel. Only the means of its colors over 3 x 3 pixels count: what
    is finer stays the frame's own, since what is fetched again and again gets blurred.
    """

    def __init__(self, config: SteadyConfig) -> None:
        self.config = config
        self._flow = Flow()
        self._picture: np.ndarray | None = None
        self._ab: np.ndarray | None = None

    def __call__(self, lightness: np.ndarray, ab: np.ndarray) -> np.ndarray:
        """The steadied ab of the next frame, float32 (S, S, 2) in Lab units, by its own and its L (H, W) in [0, 100].
        """
        height, width = ab.shape[:2]
        picture = np.rint(resize(lightness, height, width) * 2.55).astype(np.uint8)
        if self._picture is not None and self._ab is not None:
            side = min(self.config.side, height)
            flow = self._flow(*(resize(p, side, side) for p in (picture, self._picture)))
            flow = resize(flow, height, width) * np.float32(height / side)
            unlit = blur(np.square((fetch(self._picture.astype(np.float32), flow) - picture) / 255))
            weight = self.config.keep * np.exp(-self.config.unlit * unlit)[..., None]
            ab = ab + weight * cv2.blur(fetch(self._ab, flow) - ab, (3, 3))
        self._picture, self._ab = picture, ab
        return ab
