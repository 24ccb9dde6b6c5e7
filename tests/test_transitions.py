"""Tests of the detection of dissolves, wipes and irises, and of their colors."""

import av
import cv2
import numpy as np
import pytest
from drawn import StubPredictor, planes_in

from colorizer.confidence import Confidence
from config import FilmConfig
from film.analysis.film_analysis import analyze_film
from film.analysis.plan import Plan, Shot
from film.analysis.transitions import TransitionConfig, find_boundaries
from film.io.video import VideoFile
from film.render.rendering import color_film
from film.render.transition_blending import ColoredFrame, TransitionBlender

LENGTH = 12  # frames of a transition
FIRST_LENGTH, SECOND_LENGTH = 40, 44  # frames of the two shots, each including the transition


def draw_background(seed, width=256):
    """Draw large shapes of different grays, uint8 (256, width)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 235, (8, 8 * width // 256)).astype(np.uint8)
    return cv2.resize(coarse, (width, 256), interpolation=cv2.INTER_CUBIC)


def draw_shot(seed, count, speed=2):
    """Draw the frames of a shot with a moving disc."""
    picture, frames = draw_background(seed), []
    for i in range(count):
        frames.append(cv2.circle(picture.copy(), (40 + speed * i, 150), 30, 30 + 90 * (seed % 3), -1))
    return frames


def draw_pan(speed, count=70):
    """Draw a pan over a wide picture by ``speed`` pixels per frame."""
    wide = draw_background(4, 768)
    return [wide[:, speed * i:speed * i + 256] for i in range(count)]


def next_shot_weight(kind, done):
    """Return the weight of the next shot for each pixel."""
    y, x = np.mgrid[:256, :256] / 255
    return {"dissolve": np.full((256, 256), done), "wipe": x > 1 - done,
            "iris": np.hypot(x - 0.5, y - 0.5) < 0.71 * done}[kind]


def join_shots(kind, one=None, other=None):
    """Join two shots; return (frames, start of the transition, end of the transition)."""
    one, other = one or draw_shot(1, FIRST_LENGTH), other or draw_shot(2, SECOND_LENGTH)
    shares = [next_shot_weight(kind, (i + 1) / (LENGTH + 1)) for i in range(LENGTH)]
    mixed = [np.rint(a + w * (b.astype(float) - a)).astype(np.uint8)
             for a, b, w in zip(one[-LENGTH:], other, shares, strict=False)]
    return [*one[:-LENGTH], *mixed, *other[LENGTH:]], len(one) - LENGTH, len(one)


@pytest.mark.parametrize("kind", ["dissolve", "wipe", "iris"])
@pytest.mark.parametrize("one, other", [(None, None), (draw_pan(1, 40), None), (None, draw_pan(3, 50))])
def test_transitions_are_found_with_their_length_and_kind(kind, one, other):
    frames, start, end = join_shots(kind, one, other)
    (boundary,) = find_boundaries(iter(frames))
    near = 1 if kind == "dissolve" else 3  # the first and the last places of an iris are few
    assert abs(boundary.start - start) <= near and abs(boundary.end - end) <= near
    assert boundary.wipe == (kind != "dissolve")


def stroll(seed, speed, count):
    """Draw a pan around a picture of small shapes."""
    fine = cv2.resize(np.random.default_rng(seed).integers(20, 235, (12, 12)).astype(np.uint8), (256, 256))
    return [np.roll(fine, speed * i, 1) for i in range(count)]


def test_a_dissolve_of_fast_moving_shots_is_found():
    frames, start, end = join_shots("dissolve", stroll(1, 3, FIRST_LENGTH), stroll(2, -3, SECOND_LENGTH))
    (boundary,) = find_boundaries(iter(frames))
    assert abs(boundary.start - start) <= 1 and abs(boundary.end - end) <= 1 and not boundary.wipe


def test_transitions_and_cuts_are_yielded_in_order_and_within_the_maximum_delay():
    frames, start, end = join_shots("dissolve")
    film = [*frames, *draw_shot(3, 60), *frames, *draw_shot(5, 200)]
    count, found = 0, []

    def counted():
        nonlocal count
        for frame in film:
            count += 1
            yield frame

    for boundary in find_boundaries(counted()):
        delay = count - boundary.start
        assert count == len(film) or delay <= TransitionConfig().max_delay + 2  # 2 frames for the cut detector
        found.append(boundary)
    cut, second = len(frames), len(frames) + 60
    assert [boundary.start == boundary.end for boundary in found] == [False, True, True, False, True]
    places = [start, cut, second, second + start, second + cut]
    assert np.abs(np.subtract([boundary.start for boundary in found], places)).max() <= 1


def faded(frames, levels, color=0):
    return [np.rint(frame * level + color * (1 - level)).astype(np.uint8)
            for frame, level in zip(frames, levels, strict=False)]


def flash(level):
    frames = draw_shot(1, 50)
    frames[20:22] = [np.full((256, 256), level, np.uint8)] * 2
    return frames


OUT = np.linspace(1, 0, 24)


@pytest.mark.parametrize("frames", [
    draw_pan(3, 60), draw_pan(7, 60),
    [cv2.resize(draw_background(4)[i:256 - i, i:256 - i], (256, 256)) for i in range(60)],  # a zoom
    [*draw_shot(1, 30), *faded(draw_shot(1, 54)[30:], OUT)],  # to black
    [*faded(draw_shot(1, 24), OUT[::-1]), *draw_shot(1, 54)[24:]],  # from black
    [*draw_shot(1, 30), *faded(draw_shot(1, 54)[30:], OUT, 255)],  # to white
    faded(draw_shot(1, 90), 0.6 + 0.4 * np.sin(np.arange(90) / 9)),  # a light
    draw_shot(1, 60, speed=12), [draw_background(1)] * 60,  # fast, and held
    [*draw_shot(1, 40), *draw_shot(2, 40)],  # a cut
    flash(255), flash(0)])
def test_motion_fades_and_flashes_are_not_transitions(frames):
    assert all(boundary.start == boundary.end for boundary in find_boundaries(iter(frames)))


@pytest.mark.parametrize("level", [0, 255])
def test_a_flash_is_not_a_cut(level):
    assert not list(find_boundaries(iter(flash(level))))


def interrupted(frames, level, lit, unlit, start=15, end=55):
    """Replace ``unlit`` frames with a gray level after every ``lit`` frames, from ``start`` to ``end``."""
    return [np.full((256, 256), level, np.uint8) if start <= i < end and (i - start) % (lit + unlit) >= lit else frame
            for i, frame in enumerate(frames)]


@pytest.mark.parametrize("shot", [draw_shot(1, 70), draw_pan(2), draw_pan(7), [draw_background(3)] * 70],
                         ids=["shot", "pan", "fast pan", "held"])
@pytest.mark.parametrize("level, lit, unlit", [
    (0, 2, 2), (0, 1, 2), (255, 1, 1),  # a stroboscope
    (255, 9, 3), (0, 20, 5),  # flashes
    *[pytest.param(*values, marks=pytest.mark.slow) for values in (
        (0, 1, 1), (0, 3, 3), (0, 2, 1), (255, 2, 2), (255, 3, 3), (0, 9, 3), (255, 20, 1), (255, 20, 5))]])
def test_a_stroboscope_and_flashes_in_a_pan_are_one_shot(shot, level, lit, unlit):
    assert not list(find_boundaries(iter(interrupted(shot, level, lit, unlit))))


def test_a_jump_cut_is_not_the_end_of_a_flash():
    pan = draw_pan(7)
    assert [boundary.end for boundary in find_boundaries(iter([*[pan[0]] * 30, *[pan[9]] * 30]))] == [30]


def letterboxed(frames):
    return [cv2.copyMakeBorder(frame[40:216], 40, 40, 0, 0, cv2.BORDER_CONSTANT, value=0) for frame in frames]


@pytest.mark.parametrize("change", [list, letterboxed, lambda frames: [frame // 5 + 8 for frame in frames]],
                         ids=["full", "letterbox", "dark"])
@pytest.mark.parametrize("seed", [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3)]])
def test_no_cut_next_to_an_interruption_is_lost(change, seed):
    """Different pictures after black frames or a flash, and cuts in a stroboscope."""
    one, other = change(draw_shot(2 * seed, 30)), change(draw_shot(2 * seed + 1, 30))
    for level, length in ((0, 3), (0, 5), *[(255, 3)] * (one[0].max() > 60)):
        blank = [np.full((256, 256), level, np.uint8)] * length
        for film in ([*one, *blank, *other], [*faded(one, np.linspace(1, 0.02, 30)), *blank, *other]):
            assert any(30 <= boundary.start <= 30 + length for boundary in find_boundaries(iter(film)))
    strobe = interrupted([*one, *other], 0, 2, 2)
    assert any(26 <= boundary.start <= 34 for boundary in find_boundaries(iter(strobe)))


# ---------------------------------------------------------------------------------------------------------------------
# Colors

RED, BLUE, GREEN, SAND = (200, 40, 40), (50, 70, 210), (60, 140, 70), (220, 200, 150)
UNCERTAIN = Confidence(*np.full((3, 4, 4), 0.5, np.float32))


def draw_disc(color, background, x):
    return cv2.circle(np.full((64, 64, 3), background, np.uint8), (x, 32), 14, color, -1)


def colored(rgb):
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return ColoredFrame(lab[..., 0], lab[..., 1:], UNCERTAIN)


@pytest.mark.parametrize("wipe", [False, True])
def test_colors_within_a_transition_are_mixed_from_both_shots(wipe):
    """A red disc on green becomes a blue disc on sand."""
    one, other = draw_disc(RED, GREEN, 18), draw_disc(BLUE, SAND, 46)
    blender, right = TransitionBlender(3, wipe, colored(one), colored(other), 64), np.arange(64)[None, :, None] >= 32
    for done in (0.25, 0.5, 0.75):
        weight = right * 1.0 if wipe else done
        ground_truth = colored(np.rint(one + weight * (other.astype(float) - one)).astype(np.uint8))
        ab, confidence = blender(ground_truth.L)
        distance = np.linalg.norm(ab - ground_truth.ab, axis=-1)
        if wipe:
            distance = np.delete(distance, range(28, 37), axis=1)  # pixels near the edge mix both shots
        assert distance.mean() < 2 and np.percentile(distance, 95) < 6
        assert np.allclose(confidence.probability, 0.5)
    assert np.linalg.norm(colored(one).ab - colored(other).ab, axis=-1).mean() > 20


class Stop(Exception):
    pass


def stop():
    raise Stop


def write_film(path, frames):
    with av.open(str(path), "w") as film:
        stream = film.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv444p"
        for frame in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.dstack([frame] * 3), format="rgb24")))
        film.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kind", ["dissolve", "wipe"])
def test_a_film_with_a_transition_is_colored_and_resumed_bitwise(tmp_path, kind):
    """Palettes are sampled outside the transition, colors change gradually, and a resumed run gives the same
    film."""
    frames, _, end = join_shots(kind, [np.minimum(frame, 90) for frame in draw_shot(1, FIRST_LENGTH)],
                                [np.maximum(frame, 120) for frame in draw_shot(2, SECOND_LENGTH)])
    source, output = write_film(tmp_path / "in.mkv", frames), tmp_path / "out.mkv"
    settings = FilmConfig(crf=0, batch_size=4)
    records = color_film(StubPredictor(), VideoFile(source), tmp_path / "whole.mkv", settings)
    assert np.allclose([record.start_frame for record in records], [0, end], rtol=0, atol=2)
    assert LENGTH - 3 <= records[0].transition_frames <= LENGTH + 3 and not records[1].transition_frames
    assert records[0].middle == (records[0].end_frame - records[0].transition_frames) // 2
    result = planes_in(tmp_path / "whole.mkv")
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(planes_in(source), result, strict=True))  # the luma
    red = np.array([planes[2].mean() for planes in result])  # StubPredictor: by the mean lightness of the shot
    assert red[end + 2] - red[2] > 20
    first, last = records[0].end_frame - records[0].transition_frames, records[0].end_frame
    middle = (first + last) // 2
    assert abs(red[middle] - (red[first - 1] + red[last]) / 2) < 0.2 * (red[last] - red[first - 1])
    with pytest.raises(Stop):
        color_film(StubPredictor(first + 12, stop), VideoFile(source), output, settings)
    predictor = StubPredictor()
    color_film(predictor, VideoFile(source), output, settings)
    assert 0 < predictor.frames < len(frames) - LENGTH and not predictor.shots
    for one, other in zip(planes_in(output), result, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_plan_state_is_restored(tmp_path):
    source = write_film(tmp_path / "in.mkv", join_shots("dissolve")[0])
    plan = analyze_film(VideoFile(source), StubPredictor(), FilmConfig())
    restored = Plan.from_state(plan.state())
    one, other = plan.shots[0], restored.shots[0]
    assert isinstance(other, Shot) and other.transition_start == one.transition_start < one.end
    assert restored.shots[1].transition is None
    expected, lightness = one.transition.next_lightness, other.transition.next_lightness
    assert lightness.dtype == np.float16 and np.array_equal(lightness, expected)
