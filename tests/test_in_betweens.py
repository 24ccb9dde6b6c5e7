"""Selection of keyframes, and propagation of colors to in-between frames."""

import cv2
import numpy as np
import pytest

from colorizer.confidence import Confidence
from colorizer.warping.in_betweens import InBetweenConfig, InBetweens
from dataset import resize

SIDE = 256


def drawing(shift):
    """Return (L, ab), float32 (SIDE, SIDE) and (SIDE, SIDE, 2), of smooth noise that moved right by ``shift``."""
    noise = np.random.default_rng(0).random((SIDE, SIDE + 64, 3), np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 8)
    noise = (noise - noise.min()) / np.ptp(noise)
    L, *ab = np.moveaxis(noise[:, 32 - shift:32 - shift + SIDE], 2, 0)
    return 100 * L, np.stack(ab, 2) * 100 - 50


def film(*shifts):
    """Return (L, ab) of several frames."""
    return tuple(map(np.stack, zip(*map(drawing, shifts), strict=True)))


def between(L):
    return InBetweens(L, InBetweenConfig())


def test_one_of_eight_slowly_moving_frames_is_a_keyframe():
    L, ab = film(*range(0, 32, 2))
    some = between(L)
    assert some.keyframes == [4, 12]
    found, inside = some.propagate_colors(ab[some.keyframes]), slice(36, -36)
    assert found.shape == ab.shape and np.array_equal(found[[4, 12]], ab[[4, 12]])
    off = np.abs(found - ab)[:, inside, inside].mean((1, 2, 3))
    pasted = np.abs(ab[np.repeat([4, 12], 8)] - ab)[:, inside, inside].mean((1, 2, 3))
    assert off.max() < 0.1 and pasted[8] > 4


@pytest.mark.parametrize("size, keyframes", [(8, [4]), (64, [1, 2, 4])])
def test_a_frame_with_a_large_new_object_becomes_a_keyframe(size, keyframes):
    """A bright square in one frame only: a spark of 8 pixels or an object of 64."""
    L, _ = film(*[0] * 8)
    L[2, 64:64 + size, 96:96 + size] = 100
    assert between(L).keyframes == keyframes


def test_a_frame_of_different_exposure_becomes_a_keyframe():
    L, _ = film(*[0] * 8)
    L[3] *= 0.6
    assert between(L).keyframes == [1, 3, 4]


def test_each_pixel_takes_the_color_of_the_keyframe_that_it_matches():
    """An object disappears after frame 3: its pixels match the first keyframe until then, and the second one later."""
    L, _ = film(*[0] * 8)
    L[:4, 120:136, 120:136] = 100
    some = InBetweens(L, InBetweenConfig(keyframe_interval=4, max_mismatch=1))
    first, second = np.zeros((64, 64, 2), np.float32), np.full((64, 64, 2), 50, np.float32)
    ab = some.propagate_colors(np.stack([first, second]))
    assert ab[3, 31:33, 31:33].mean() < 3 and ab[4, 31:33, 31:33].mean() > 47
    assert ab[4, 8, 8] == pytest.approx(25, abs=1)  # matches both and is halfway between them


def test_a_single_frame_is_a_keyframe():
    L, ab = film(0)
    some = between(L)
    assert some.keyframes == [0] and np.array_equal(some.propagate_colors(ab), ab)


def test_confidence_and_embeddings_are_propagated():
    L, _ = film(0, 4, 8, 12)
    some = between(L)
    confidence = Confidence(*(resize(drawing(8)[1][..., 0], 64, 64)[None] / 100 + 0.5 for _ in range(3)))
    found, right = some.propagate_confidence(confidence), resize(drawing(12)[1][..., 0], 64, 64) / 100 + 0.5
    assert found.probability.shape == (4, 64, 64) and np.array_equal(found.recalled[2], confidence.recalled[0])
    assert np.abs(found.probability[3] - right)[6:-6, 6:-6].max() < 0.05
    assert some.propagate_embeddings(np.array([[7, 8]], np.int16)).tolist() == [[7, 8]] * 4
    assert np.isnan(some.propagate_confidence(Confidence.unknown(1)).probability).all()
