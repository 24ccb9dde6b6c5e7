"""Tests of the sample films: the committed files contain the drawn frames and have the expected cuts."""

from collections import Counter
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from skimage.color import rgb2lab

from resources import draw_episodes
from resources.draw_episodes import (
    EPISODES, FPS, HEIGHT, PALETTE, TWINS, WIDTH, draw_frame, effect_frames, frame_count, shot_starts)

FOLDER = Path(draw_episodes.__file__).parent
CUT = 7000  # the shot detector's default threshold
STEP = 12  # every 12th frame is drawn and compared with the file


def histograms(bgr):
    """Return the histogram of each channel of a frame resized to 256 x 256: float32 (3, 256)."""
    small = cv2.resize(bgr, (256, 256), interpolation=cv2.INTER_AREA)
    return np.stack([cv2.calcHist([small], [channel], None, [256], [0, 256])[:, 0] for channel in range(3)])


@cache
def decode(episode):
    """Return (number of frames, {index: RGB frame} of every STEP-th frame, difference of each frame from the previous).
    """
    film = cv2.VideoCapture(str(FOLDER / f"episode_{episode}.mp4"))
    kept, differences, last, index = {}, [0.0], None, 0
    while (frame := film.read()[1]) is not None:
        counts = histograms(frame)
        if last is not None:
            differences.append(((counts - last) ** 2).mean(1).sum())
        if index % STEP == 0:
            kept[index] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        last, index = counts, index + 1
    return index, kept, np.array(differences)


def find_shot(episode, condition):
    """Return (index of the first frame, shot) of the first shot that satisfies ``condition``."""
    starts = [0, *shot_starts(episode)]
    return next((start, shot) for start, shot in zip(starts, EPISODES[episode], strict=True) if condition(shot))


@pytest.mark.parametrize("episode", EPISODES)
def test_the_files_have_the_expected_streams(episode):
    with av.open(str(FOLDER / f"episode_{episode}.mp4")) as film:
        video, sound = film.streams.video[0], film.streams.audio[0]
        assert (video.codec_context.name, video.width, video.height) == ("h264", WIDTH, HEIGHT) == ("h264", 640, 360)
        assert video.average_rate == FPS and sound.codec_context.name == "aac"
        assert video.frames == frame_count(episode)
        seconds = frame_count(episode) / FPS
        assert 20 < seconds < 30
        assert float(sound.duration * sound.time_base) == pytest.approx(seconds, abs=0.1)


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.mp4")) < 3_000_000


@pytest.mark.parametrize("episode", EPISODES)
def test_decoded_frames_match_the_drawn_frames(episode):
    count, frames, _ = decode(episode)
    assert count == frame_count(episode)
    for index, frame in frames.items():
        drawn = draw_frame(episode, index)
        assert cv2.absdiff(drawn, frame).mean() < 4, index
        assert cv2.PSNR(drawn, frame) > 32.5, index


@pytest.mark.parametrize("episode", EPISODES)
def test_histogram_differences_separate_cuts_from_motion(episode):
    differences, cuts = decode(episode)[2], shot_starts(episode)
    flash, fade = effect_frames(episode)
    effects = flash | fade | {index + 1 for index in flash}
    within = np.ones(len(differences), bool)
    within[list({0, *cuts, *effects})] = False
    assert differences[cuts].min() > 15000
    assert differences[within].max() < CUT
    assert differences[sorted(effects - {0, *cuts})].max() > CUT  # flashes and fades exceed the threshold, too


def test_the_twins_differ_in_hue_and_not_in_lightness():
    (light, *one), (other_light, *two) = (rgb2lab(np.uint8([[PALETTE[name]]]))[0, 0] for name in TWINS)
    assert abs(light - other_light) < 0.5
    cosine = np.dot(one, two) / np.linalg.norm(one) / np.linalg.norm(two)
    assert np.degrees(np.arccos(cosine)) > 120
    for episode in EPISODES:
        casts = [{actor.name for actor in shot.actors} for shot in EPISODES[episode]]
        assert sum(set(TWINS) <= cast for cast in casts) >= 2
        assert all(any({name} == cast & set(TWINS) for cast in casts) for name in TWINS)


def test_the_second_episode_shows_places_and_characters_of_the_first():
    first, second = EPISODES[1], EPISODES[2]
    places, names = Counter(shot.place for shot in first), Counter(a.name for shot in first for a in shot.actors)
    assert all(places[shot.place] >= 2 and all(names[actor.name] >= 2 for actor in shot.actors) for shot in second)
    views = [(shot.place, shot.camera) for shot in first + second]
    assert len(set(views)) == len(views)


def test_masks_cover_the_body_color():
    start, shot = find_shot(1, lambda shot: len(shot.actors) == len(PALETTE))
    frame, lab = draw_frame(1, start + 5), rgb2lab(draw_frame(1, start + 5))
    masks = {name: draw_frame(1, start + 5, mask_of=name) for name in PALETTE}
    assert sum(mask.astype(int) for mask in masks.values()).max() == 1
    for name, mask in masks.items():
        assert mask.shape == frame.shape[:2] and mask.dtype == bool and mask.sum() > 500
        target = rgb2lab(np.uint8([[PALETTE[name]]]))[0, 0]
        near = np.linalg.norm((lab - target)[mask][:, 1:], axis=1) < 10
        assert near.mean() > 0.98, name
    assert not draw_frame(1, 0, mask_of="bo").any()


@pytest.mark.parametrize("episode", EPISODES)
def test_frames_of_shots_on_twos_are_held(episode):
    start, shot = find_shot(episode, lambda shot: shot.hold == 2 and not shot.fade and shot.actors[0].act == "wave")
    first, second, third = (draw_frame(episode, start + offset) for offset in (10, 11, 12))
    assert np.array_equal(first, second) and not np.array_equal(first, third)


@pytest.mark.parametrize("episode", EPISODES)
def test_flashes_are_white_and_fades_end_in_black(episode):
    flash, fade = effect_frames(episode)
    assert sum(bool(shot.flash[1]) for shot in EPISODES[episode]) == sum(bool(s.fade) for s in EPISODES[episode]) == 1
    assert all(draw_frame(episode, index).min() == 255 for index in flash)
    light = [draw_frame(episode, index).mean() for index in sorted(fade)]
    assert light == sorted(light, reverse=True) and light[0] > 50 and light[-1] == 0
    assert not draw_frame(episode, max(fade), mask_of="ruby").any()


def test_a_frame_depends_only_on_its_index():
    frame = draw_frame(2, 100)
    assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
    draw_episodes.background.cache_clear()
    assert np.array_equal(draw_frame(2, 100), frame)
    with pytest.raises(IndexError):
        draw_frame(2, frame_count(2))
