"""Tests of colorizer/warping/propagation.py: colors of anchors are handed on through a shot."""

import cv2
import numpy as np
import pytest

from drawn import StubPredictor, draw_shots

from colorizer.warping.propagation import (
    Anchor, PropagationConfig, _fill_regions, find_anchor_frames, propagate, signature)
from config import FilmConfig
from dataset import rgb_to_lab
from film.io.video import VideoFile
from film.render.rendering import color_film

SIDE, CONFIG = 128, PropagationConfig()
BACKGROUND, BALL = (30, -20), (-10, 60)  # ab


def smooth_noise(seed, height, width):
    noise = np.random.default_rng(seed).integers(60, 200, (height // 8, width // 8), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def draw(frame, color=BALL):
    """Return a frame, codes of encode_lab8 (SIDE, SIDE, 3), and the mask of a ball, which moves a pixel a frame to the
    right over a background that moves half a pixel to the left. Both have the same mean lightness."""
    ball = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (40 + frame, 64), 24, 1, -1).astype(bool)
    L = smooth_noise(0, SIDE, 2 * SIDE)[:, frame // 2:frame // 2 + SIDE].copy()
    L[40:88, 16 + frame:64 + frame] = np.where(ball[40:88, 16 + frame:64 + frame], smooth_noise(1, 48, 48),
                                               L[40:88, 16 + frame:64 + frame])
    ab = np.where(ball[..., None], color, BACKGROUND) + 128
    return np.dstack([L, ab]).astype(np.uint8), ball


def errors(colors, frame):
    """Return the mean distance of ab of the ball and of the background from their true colors."""
    picture, ball = draw(frame)
    ab = colors(frame, picture[..., 0] / 2.55)[:2].transpose(1, 2, 0) * 110
    difference = np.linalg.norm(ab - (picture[..., 1:].astype(float) - 128), axis=2)
    return difference[ball].mean(), difference[~ball].mean()


def film(frames=31):
    return {frame: np.ascontiguousarray(draw(frame)[0][..., 0]) for frame in range(0, frames, CONFIG.frame_step)}


@pytest.fixture(scope="module")
def from_the_middle():
    return propagate(film(), [Anchor(15, draw(15)[0], b"")], CONFIG)


@pytest.mark.parametrize("frame", [3, 7, 14, 15, 16, 24, 28])
def test_colors_follow_the_motion_in_both_directions(from_the_middle, frame):
    ball, background = errors(from_the_middle, frame)
    assert ball < 20 and background < 4, "the two colors differ by 89"


def test_frames_between_processed_frames_get_their_own_colors(from_the_middle):
    assert 16 not in from_the_middle.frames and 15 in from_the_middle.frames
    assert max(errors(from_the_middle, 16)) < 6


def test_new_objects_have_low_confidence():
    pictures = film(13)
    new = pictures[12].copy()
    new[90:120, 10:40] = np.random.default_rng(2).integers(0, 255, (30, 30), np.uint8)
    confidence = propagate({**pictures, 12: new}, [Anchor(0, draw(0)[0], b"")], CONFIG)(12, new / 2.55)[2]
    assert confidence[95:115, 15:35].mean() < 0.5 < 0.8 < confidence[5:30, 20:100].mean()


def test_between_two_anchors_each_half_takes_the_colors_of_the_nearer_one():
    colors = propagate(film(), [Anchor(0, draw(0, BALL)[0], b""), Anchor(30, draw(30, (40, 40))[0], b"")], CONFIG)

    def ball_color(frame):
        picture, ball = draw(frame)
        return 110 * colors(frame, picture[..., 0] / 2.55)[:2, ball].mean(1)

    assert np.abs(ball_color(2) - BALL).max() < 20 and np.abs(ball_color(28) - (40, 40)).max() < 20
    assert set(colors.frames) == set(range(0, 31, 3)), "each frame is propagated once"


def test_an_uncertain_part_of_a_region_gets_the_color_of_its_certain_part():
    L = np.full((40, 40), 60, np.uint8)
    L[:, 20:] = 200
    ab, confidence = np.zeros((40, 40, 2), np.float32), np.zeros((40, 40), np.float32)
    ab[:, :20], ab[:, 20:] = (30, 10), (-20, 5)
    confidence[:30] = 1
    ab[30:] = 90  # wrong and uncertain
    filled, filled_confidence = _fill_regions(L, ab, confidence, CONFIG)
    assert np.allclose(filled[35, 5], (30, 10), atol=1) and np.allclose(filled[35, 35], (-20, 5), atol=1)
    assert np.allclose(filled[:30], ab[:30]), "certain colors stay"
    assert filled_confidence[35, 5] == pytest.approx(0.75 * CONFIG.region_weight, rel=0.05)


def test_anchors_are_the_most_similar_frames():
    signatures = np.stack([signature(np.ascontiguousarray(draw(frame)[0][..., 0])) for frame in range(20)])
    other = np.random.default_rng(3).integers(0, 255, (SIDE, SIDE), np.uint8)
    pictures = [np.ascontiguousarray(draw(frame)[0][..., 0]) for frame in (11, 4)]
    assert find_anchor_frames(signatures, [other, *pictures, np.full_like(other, 10)], CONFIG) == [(4, 2), (11, 1)]
    assert find_anchor_frames(signatures, [other], CONFIG) == []
    few = PropagationConfig(max_anchors=1)
    noisy = cv2.add(pictures[0], 3)
    assert find_anchor_frames(signatures, [noisy, pictures[1]], few) == [(4, 1)], "the best one is kept"


class AnchoredPredictor(StubPredictor):
    """Remembers a picture of the dark shot, all of one color; colors frames with what was propagated, else gray."""

    def __init__(self):
        super().__init__()
        self.signatures, self.confidence = [], []

    def find_anchors(self, signatures, palette):
        self.signatures.append(signatures)
        if signatures.mean() > 128:
            return []
        L = cv2.resize(signatures[5], (48, 48), interpolation=cv2.INTER_CUBIC)
        return [Anchor(5, np.dstack([L, np.full_like(L, 128 + 30), np.full_like(L, 128 - 20)]), b"")]

    def predict_with_embeddings(self, L, palette, propagated=None):
        ab, confidence = self.predict(L, palette)
        if propagated:
            known = np.stack([propagated(number) for number in range(len(L))])
            ab = 110 * known[:, :2].transpose(0, 2, 3, 1)
            self.confidence += known[:, 2].mean((1, 2)).tolist()
        return np.zeros_like(ab) if propagated is None else ab, confidence, np.zeros((len(L), 0), np.int16)


def test_a_remembered_frame_colors_its_whole_shot_of_a_film(tmp_path):
    film = draw_shots(tmp_path / "film.mkv", [(60, 18), (200, 12)])
    predictor = AnchoredPredictor()
    color_film(predictor, VideoFile(film), tmp_path / "out.mkv", FilmConfig(batch_size=4))
    pictures = [planes.rgb_uint8() for _, _, planes in VideoFile(tmp_path / "out.mkv").read()]
    ab = [rgb_to_lab(picture)[..., 1:].mean((0, 1)) for picture in pictures]
    assert len(ab) == 30 and [len(signatures) for signatures in predictor.signatures[:2]] == [18, 12]
    assert np.abs(np.array(ab[:18]) - (30, -20)).max() < 4 and np.abs(ab[18:]).max() < 2
    assert min(predictor.confidence) > 0.2, "bars that move by one pixel are matched"
