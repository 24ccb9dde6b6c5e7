"""How does grain get out of what is looked at? It is new in every frame, and what is drawn is not."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import NamedTuple, Protocol, TypeVar

import cv2
import numpy as np

from colorizer.warping.optical_flow import Flow, blur, fetch, picture_of, scaled

LEAST = 0.9  # standard deviation of L: less is no grain
REACH = 3  # frames in front of a frame and behind it that are averaged with it
UNLIKE = 1.0  # of the grain, by which smoothed frames differ where they show the same
SMOOTH, LEFT = 4.0, 1.0  # of the grain, the deviations of the bilateral filters of a frame, and of what was averaged
ACROSS, WIDTH = 7, 3.0  # pixels of these filters, along a side and standard deviation
SIDE = 128  # pixels along a side of the pictures whose motion is found
QUARTER = 0.3186  # quantile 0.25 of the absolute value of a standard normal variable


class Frame(Protocol):
    """A frame of a shot."""

    L: np.ndarray | None  # float32 (side, side) in [0, 100], what is looked at; None: it is not


F = TypeVar("F", bound=Frame)


class _Look(NamedTuple):
    """What is known of a frame."""

    L: np.ndarray
    smooth: np.ndarray
    picture: np.ndarray  # uint8 (SIDE, SIDE)


def estimate_grain(pictures: Iterable[np.ndarray]) -> float:
    """Standard deviation of the grain of neighboring frames, L float32 (H, W) in [0, 100] each; 0 of fewer than two.
    It is told where their change within 3 x 3 pixels is least, since what moves changes, too."""
    found = []
    for one, other in pairwise(pictures):
        change = other - one
        change -= cv2.blur(change, (3, 3))  # leaves 8 / 9 of the variance of white noise, which is that of two frames
        found.append(np.quantile(np.abs(change), 0.25) / QUARTER / np.sqrt(2 * 8 / 9))
    return float(np.median(found)) if found else 0.0


def denoise_shot(shot: Iterator[F]) -> Iterator[F]:
    """The frames of a shot; where the first of them show grain, all get an L that is averaged over time. At most
    2 * REACH + 1 are held."""
    first = list(islice(shot, 2 * REACH + 1))
    grain = estimate_grain([frame.L for frame in first if frame.L is not None])
    if grain < LEAST:
        yield from chain(first, shot)
        return
    clean = TemporalDenoiser(grain)
    around: deque[tuple[F, _Look | None] | None] = deque([None] * REACH, 2 * REACH + 1)  # None beyond the shot's ends
    for frame in chain(first, shot, [None] * REACH):
        around.append(None if frame is None else (frame, None if frame.L is None else clean.look(frame.L)))
        if len(around) > 2 * REACH and (middle := around[REACH]):
            frame, look = middle
            if look is not None:
                frame.L = clean(look, [item[1] for item in around if item and item[1] and item is not middle])
            yield frame


class TemporalDenoiser:
    """Averages frames of a shot of known grain where they show the same, as they are or along the motion. What is the
    same is told by smoothed frames, as in other filters that are guided by a first, rough result (BM3D)."""

    def __init__(self, grain: float) -> None:
        self.grain = grain
        self._flow = Flow()

    def _smoothed(self, L, deviations):
        return cv2.bilateralFilter(L, ACROSS, deviations * self.grain, WIDTH)

    def look(self, L: np.ndarray) -> _Look:
        """What must be known of a frame, L float32 (H, W)."""
        smooth = self._smoothed(L, SMOOTH)
        return _Look(L, smooth, picture_of(smooth, SIDE, SIDE))

    def __call__(self, frame: _Look, others: Sequence[_Look]) -> np.ndarray:
        """L (H, W) of a frame without its grain, by others around it."""
        total, weight = frame.L.copy(), np.ones_like(frame.L)
        for other in others:
            flow = scaled(self._flow(frame.picture, other.picture), len(frame.L))
            for L, smooth in (other[:2], (fetch(other.L, flow), fetch(other.smooth, flow))):
                share = np.exp(blur(np.square(smooth - frame.smooth)) / np.float32(-2 * (UNLIKE * self.grain)**2))
                total += share * L
                weight += share
        return self._smoothed(total / weight, LEFT)
