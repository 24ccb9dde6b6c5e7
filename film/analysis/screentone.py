"""Smoothing of screentone (halftone) in the network input: shading that consists of a regular grid of dots."""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

from utils import evenly_spaced

STEPS = tuple(itertools.product((-1, 0, 1), repeat=2))  # to the frequencies around a peak, since a window spreads it


@dataclass(frozen=True)
class ScreentoneConfig:
    """Constants of the detector. L is in [0, 100]; frequencies are in cycles per pixel of the network input."""

    tile: int = 64  # pixels along a side of the tiles whose spectra are compared; larger: finer, fewer tiles
    max_tiles: int = 24  # of those with detail, evenly spaced; larger: slower
    min_frequency: float = 0.1  # of a screen; larger misses coarse screens
    min_deviation: float = 3.0  # minimum standard deviation of the detail of a tile; larger misses fine, pale screens
    min_peak: float = 0.05  # minimum share of each of both peaks in the energy of the detail; larger: fewer screens
    min_peaks: float = 0.2  # minimum share of both peaks together
    min_tiles: float = 0.08  # minimum share of the tiles with the screen; larger misses screens in small areas
    min_agreement: float = 0.5  # the same, of the tiles with detail; larger: fewer screens
    blur: float = 0.42  # standard deviation of the Gaussian blur, in periods of the screen; larger: blurrier


def find_screen(L: np.ndarray, config: ScreentoneConfig | None = None) -> float | None:
    """Return the frequency of the screen of a frame, L float32 (H, H); None if none is found.

    Dots on a grid repeat in two directions, so the spectra of most tiles with detail have two strong peaks at the same
    frequencies.
    """
    config = config or ScreentoneConfig()
    size, count = config.tile, len(L) // config.tile
    if count < 2:
        return None
    frequencies = np.stack(np.meshgrid(*[np.fft.fftfreq(size)] * 2, indexing="ij"))  # (2, size, size)
    radius = np.hypot(*frequencies)
    detail = L - cv2.blur(L, (round(1 / config.min_frequency),) * 2)
    tiles = detail[:count * size, :count * size].reshape(count, size, count, size).swapaxes(1, 2)
    tiles = tiles.reshape(-1, size, size)
    detailed = np.flatnonzero(tiles.std((1, 2)) >= config.min_deviation)
    if len(detailed) < max(1, config.min_tiles * len(tiles)):
        return None
    sample = tiles[detailed[evenly_spaced(len(detailed), config.max_tiles)]]
    window = np.hanning(size).astype(np.float32)
    power = np.square(np.abs(np.fft.fft2(sample * window[:, None] * window)))
    power[:, radius < config.min_frequency] = 0
    power /= power.sum((1, 2), keepdims=True)
    mean = np.sum([np.roll(power.mean(0), step, (0, 1)) for step in STEPS], 0)
    first = np.unravel_index(mean.argmax(), mean.shape)
    direction = frequencies[:, first[0], first[1]] / radius[first]
    across = np.abs(frequencies[0] * direction[1] - frequencies[1] * direction[0])
    similar = (across > radius / 2) & (radius > radius[first] / 2) & (radius < radius[first] * 2)
    second = np.unravel_index(np.where(similar, mean, 0).argmax(), mean.shape)
    rows, columns = np.transpose([first, second])
    peaks = np.sum([power[:, (rows + dy) % size, (columns + dx) % size] for dy, dx in STEPS], 0)
    found = (peaks.min(1) >= config.min_peak) & (peaks.sum(1) >= config.min_peaks)
    if found.mean() < max(config.min_tiles * len(tiles) / len(detailed), config.min_agreement):
        return None
    return float(min(radius[first], radius[second]))


def smooth_screen(L: np.ndarray, frequency: float, config: ScreentoneConfig | None = None) -> np.ndarray:
    """Return L, float32 (H, H), without the screen of the given ``frequency``."""
    return cv2.GaussianBlur(L, (0, 0), (config or ScreentoneConfig()).blur / frequency)


def without_screen(L: np.ndarray) -> np.ndarray:
    """Return L, float32 (H, H), without its screen if it has one, else L itself."""
    frequency = find_screen(L)
    return L if frequency is None else smooth_screen(L, frequency)
