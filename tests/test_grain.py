"""Grain, cleaned out of what is looked at."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from dataset import resize, rgb_to_lab
from film.grain import REACH, grain_of, without_grain
from resources.draw_episodes import draw_frame

SIDE = 256


@dataclass
class Seen:
    L: np.ndarray | None


@pytest.fixture(scope="module")
def drawn():
    """Frames of a shot in which characters walk."""
    return [resize(rgb_to_lab(draw_frame(1, 30 + i))[..., 0], SIDE, SIDE) for i in range(2 * REACH + 3)]


def grainy(pictures, sigma):
    rng = np.random.default_rng(0)
    return [(L + rng.normal(0, sigma, L.shape)).clip(0, 100).astype(np.float32) for L in pictures]


@pytest.mark.parametrize("sigma", [1.5, 4.0])
def test_grain_is_measured(drawn, sigma):
    assert grain_of(grainy(drawn, sigma)) == pytest.approx(sigma, rel=0.15)


def test_what_moves_is_no_grain(drawn):
    wide = np.concatenate([drawn[0], drawn[-1]], 1)
    for pictures in (drawn, [wide[:, 5 * i:5 * i + SIDE] for i in range(8)], drawn[:1] * 3, grainy(drawn, 4)[:1], []):
        assert grain_of(pictures) < 0.5


def test_clean_shots_and_frames_that_are_not_looked_at_stay_as_they_are(drawn):
    frames = [Seen(None if i % 3 == 1 else L) for i, L in enumerate(drawn)]
    before = [frame.L for frame in frames]
    after = list(without_grain(iter(frames)))
    assert all(a is b and a.L is L for a, b, L in zip(after, frames, before, strict=True))


@pytest.mark.parametrize("count", [2, REACH, 2 * REACH + 3])
def test_grain_is_averaged_away_and_nothing_that_moves(drawn, count):
    frames = [Seen(L) for L in grainy(drawn[:count], 4)]
    raw = [frame.L for frame in frames]
    frames.insert(1, Seen(None))
    after = list(without_grain(iter(frames)))
    assert all(a is b for a, b in zip(after, frames, strict=True)) and after.pop(1).L is None
    moving = cv2.dilate(np.float32(np.abs(drawn[0] - drawn[count - 1]) > 10), np.ones((5, 5))) > 0
    for L, noisy, true in zip([frame.L for frame in after], raw, drawn, strict=False):
        for places in (~moving, moving):
            less = np.abs(L - true)[places].mean() / np.abs(noisy - true)[places].mean()
            assert less < (0.8 if count == 2 else 0.6)
