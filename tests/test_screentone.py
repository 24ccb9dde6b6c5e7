"""Detection and smoothing of screentone."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from resources.draw_episodes import draw_frame

from dataset import resize
from film.analysis.denoising import denoise_shot
from film.analysis.screentone import find_screen, without_screen
from film.io.planes import gray_lightness

SIDE, SAMPLES = 512, 4


@dataclass
class Frame:
    L: np.ndarray | None


def lightness(gray):
    return gray_lightness(resize(gray, SIDE, SIDE) / np.float32(255))


def halftone(gray, pitch, angle=45):
    """Return a picture, uint8 (H, W), printed as dots ``pitch`` pixels apart."""
    height, width = (side * SAMPLES for side in gray.shape)
    y, x = np.indices((height, width), dtype=np.float32) / SAMPLES
    along, across = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    waves = (np.cos(2 * np.pi * (x * along + y * across) / pitch)
             + np.cos(2 * np.pi * (y * along - x * across) / pitch)) / 4 + 0.5
    levels = np.quantile(waves[::7, ::7], np.linspace(0, 1, 65))
    tone = np.interp(cv2.resize(gray, (width, height)) / 255, np.linspace(0, 1, 65), levels)
    return resize(np.where(waves < tone, 255, 0).astype(np.uint8), *gray.shape)


@pytest.fixture(scope="module")
def gray():
    return cv2.cvtColor(draw_frame(2, 70), cv2.COLOR_RGB2GRAY)


@pytest.mark.parametrize("pitch, angle", [(4, 45), (6, 45), (6, 75)])
def test_a_screen_is_found_and_smoothed(gray, pitch, angle):
    L, clean = lightness(halftone(gray, pitch, angle)), cv2.GaussianBlur(lightness(gray), (0, 0), 2)
    assert find_screen(L) is not None
    before, after = (np.abs(picture - clean).mean() for picture in (L, without_screen(L)))
    assert after < 0.35 * before
    tilted = [Frame(L), Frame(None), Frame(L.copy())]
    frames = list(denoise_shot(iter(tilted)))
    assert [frame is other for frame, other in zip(frames, tilted, strict=True)] == [True] * 3
    assert frames[1].L is None and np.abs(frames[2].L - clean).mean() < 0.35 * before


def test_clean_pictures_stay_unchanged(gray):
    rng = np.random.default_rng(0)
    y, x = np.indices((SIDE, SIDE), dtype=np.float32)
    pictures = [lightness(cv2.cvtColor(draw_frame(episode, number), cv2.COLOR_RGB2GRAY))
                for episode, number in ((1, 30), (2, 170))]
    pictures += [np.float32(50 + 30 * np.sin(x + y)), rng.uniform(0, 100, (SIDE, SIDE)).astype(np.float32),
                 np.zeros((SIDE, SIDE), np.float32), np.zeros((64, 64), np.float32),
                 lightness(255 - cv2.Canny(gray, 40, 100))]
    assert all(without_screen(L) is L for L in pictures)
    frames = [Frame(pictures[0]), Frame(pictures[0])]
    assert all(frame.L is pictures[0] for frame in denoise_shot(iter(frames)))
