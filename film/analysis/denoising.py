"""Denoising of the network input: removes film grain, which is independent in each frame, and screentone."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import NamedTuple, Protocol, TypeVar

import cv2
import numpy as np

from colorizer.warping.optical_flow import OpticalFlow, box_blur, scale_flow, to_flow_image, warp
from film.analysis.screentone import find_screen, smooth_screen

QUARTILE = 0.3186  # quantile 0.25 of the absolute value of a standard normal variable


@dataclass(frozen=True)
class DenoisingConfig:
    """Constants of the denoiser. Values marked * are multiples of the standard deviation of the grain."""

    min_grain: float = 0.9  # minimum standard deviation of the grain in L; larger leaves more shots unchanged
    radius: int = 3  # frames averaged before and after each frame; larger removes more grain and takes longer
    difference_std: float = 1.0  # * of the Gaussian weight of a difference; larger removes more grain and more detail
    prefilter: float = 4.0  # * range deviation of the bilateral filter of single frames; larger smooths more
    postfilter: float = 1.0  # * range deviation of the bilateral filter of the average; larger smooths more
    diameter: int = 7  # pixels, diameter of both filters; larger smooths more widely
    spatial_std: float = 3.0  # pixels, spatial deviation of both filters; larger smooths more widely
    flow_size: int = 128  # side of the pictures for optical flow; larger follows finer motion and takes longer


class Frame(Protocol):
    """A frame of a shot."""

    L: np.ndarray | None  # float32 (side, side) in [0, 100], the network input; None if the frame needs none


F = TypeVar("F", bound=Frame)


class _NoisyFrame(NamedTuple):
    """A frame and its prefiltered versions."""

    L: np.ndarray
    smooth: np.ndarray  # prefiltered L
    picture: np.ndarray  # ``smooth`` as uint8 (flow_size, flow_size), for optical flow


def estimate_grain(frames: Iterable[np.ndarray]) -> float:
    """Return the standard deviation of the grain of consecutive frames, L float32 (H, W) in [0, 100]; 0 for fewer than
    two frames. It is estimated from the lower quartile of the changes, since motion causes large changes."""
    estimates = []
    for a, b in pairwise(frames):
        change = b - a
        change -= cv2.blur(change, (3, 3))  # keeps 8 / 9 of the variance of white noise; a difference has twice that
        estimates.append(np.quantile(np.abs(change), 0.25) / QUARTILE / np.sqrt(2 * 8 / 9))
    return float(np.median(estimates)) if estimates else 0.0


def denoise_shot(shot: Iterator[F], config: DenoisingConfig | None = None) -> Iterator[F]:
    """Yield the frames of a shot, with denoised L if the first frames show a screen or grain. Holds at most
    2 * radius + 1 frames."""
    config = config or DenoisingConfig()
    size = 2 * config.radius + 1
    first = list(islice(shot, size))
    found = [find_screen(frame.L) for frame in first[::config.radius] if frame.L is not None]
    screens = [frequency for frequency in found if frequency is not None]
    if 2 * len(screens) > len(found):
        shot = _smooth_screens(chain(first, shot), float(np.median(screens)))
        first = list(islice(shot, size))
    grain = estimate_grain([frame.L for frame in first if frame.L is not None])
    if grain < config.min_grain:
        yield from chain(first, shot)
        return
    denoiser = TemporalDenoiser(grain, config)
    window: deque[tuple[F, _NoisyFrame | None] | None] = deque([None] * config.radius, size)  # None: outside the shot
    for frame in chain(first, shot, [None] * config.radius):
        window.append(None if frame is None else
                      (frame, None if frame.L is None else denoiser.prefilter(frame.L)))
        if len(window) == size and (middle := window[config.radius]):
            frame, noisy = middle
            if noisy is not None:
                frame.L = denoiser(noisy, [item[1] for item in window if item and item[1] and item is not middle])
            yield frame


def _smooth_screens(shot, frequency):
    for frame in shot:
        if frame.L is not None:
            frame.L = smooth_screen(frame.L, frequency)
        yield frame


class TemporalDenoiser:
    """Averages each frame with its neighbors, both unchanged and warped to it along the optical flow. The weight of a
    pixel is a Gaussian of the difference of the prefiltered frames (a first estimate, as in BM3D)."""

    def __init__(self, grain: float, config: DenoisingConfig) -> None:
        self.grain, self.config = grain, config
        self._flow = OpticalFlow()

    def _bilateral(self, L, deviation):
        return cv2.bilateralFilter(L, self.config.diameter, deviation * self.grain, self.config.spatial_std)

    def prefilter(self, L: np.ndarray) -> _NoisyFrame:
        """Prepare a frame, L float32 (H, W), for denoising."""
        smooth = self._bilateral(L, self.config.prefilter)
        return _NoisyFrame(L, smooth, to_flow_image(smooth, self.config.flow_size, self.config.flow_size))

    def __call__(self, frame: _NoisyFrame, neighbors: Sequence[_NoisyFrame]) -> np.ndarray:
        """Return the denoised L (H, W) of a frame with the given neighbors."""
        total, weight = frame.L.copy(), np.ones_like(frame.L)
        scale = np.float32(-2 * (self.config.difference_std * self.grain)**2)
        for other in neighbors:
            flow = scale_flow(self._flow(frame.picture, other.picture), len(frame.L))
            for L, smooth in (other[:2], (warp(other.L, flow), warp(other.smooth, flow))):
                share = np.exp(box_blur(np.square(smooth - frame.smooth)) / scale)
                total += share * L
                weight += share
        return self._bilateral(total / weight, self.config.postfilter)
