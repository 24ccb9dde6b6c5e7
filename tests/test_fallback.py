"""Colors of another program as a fallback: alignment of frames, fit, blending, films and pictures, errors."""

import json
from contextlib import closing
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from drawn import StubPredictor, draw_picture, draw_shots, planes_in
from numbered import SIZE, draw_number, read_number, write_numbers

from colorizer.adaptation.fallback import (
    FallbackBlender, FallbackConfig, FallbackFit, Sample, expected_error, fallback_weight, fit_fallback)
from colorizer.confidence import Confidence
from config import ColorConfig, FilmConfig
from dataset import lab_to_rgb, rgb_to_lab
from fileio.images import read_image, write_image
from film.io.fallback import FallbackReader, find_fallback
from film.io.image_sequence import find_sequences
from film.io.video import VideoFile
from film.render.incremental import find_changed_shots
from film.render.pictures import color_pictures
from film.render.rendering import color_film
from film.report.evaluation import Evaluation
from test import check_fallbacks
from utils import UserError, list_files

SHOTS = [(60, 14), (200, 16), (110, 14)]  # (gray level, frames); the confidence is high in the dark one


def confidence(probability, side=8):
    return Confidence(*np.full((3, side, side), probability, np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# Alignment


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    return VideoFile(write_numbers(tmp_path_factory.mktemp("numbers") / "film.mkv", times=range(40), sound=None))


@pytest.mark.parametrize("times, expected", [
    (range(40), list(range(40))),
    (range(5, 45), list(range(40))),  # times count from the first frame
    ([0, *range(10, 40)], [0, *[None] * 9, *range(10, 40)]),  # missing frames
    (range(20), [*range(20), *[None] * 20]),
])
def test_frames_are_found_by_their_times(numbered, tmp_path, times, expected):
    path = write_film(tmp_path / "other.mkv", [(time, draw_number(time - min(times), (96, 64))) for time in times])
    with closing(FallbackReader(VideoFile(path), numbered)) as reader:
        pts = [pts for pts, _, _ in numbered.read()]
        order = [*range(40), 30, 3, 39, 0]  # also by seeking
        found = [reader.frame(pts[index]) for index in order]
    numbers = [None if planes is None else read_number(cv2.resize(planes.y, SIZE)) for planes in found]
    assert numbers == [expected[index] for index in order]


def write_film(path, frames, rate=24):
    """Write frames, pairs of (time in frames, VideoFrame)."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = frames[0][1].width, frames[0][1].height, "yuv420p"
        for time, frame in frames:
            frame.pts, frame.time_base = time, Fraction(1, rate)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return path


def test_another_frame_rate_gives_the_nearest_frame(numbered, tmp_path):
    path = write_film(tmp_path / "other.mp4", [(i, draw_number(i)) for i in range(20)], rate=12)
    with closing(FallbackReader(VideoFile(path), numbered)) as reader:
        numbers = [read_number(reader.frame(pts).y) for pts, _, _ in numbered.read()]
    assert all(abs(2 * number - index) <= 1 for index, number in enumerate(numbers)) and numbers[::2] == list(range(20))


def test_numbered_frames_are_compared_by_number_or_time(numbered, tmp_path):
    frames = [planes.rgb_uint8() for _, _, planes in numbered.read()]
    for number, rgb in enumerate(frames):
        write_image(tmp_path / "in" / f"{number + 100}.png", rgb)
        if number > 5:
            write_image(tmp_path / "film" / f"other_{number + 100}.png", rgb)
    (sequence,), _ = find_sequences(list_files(tmp_path / "in"))
    (other,), _ = find_sequences(list_files(tmp_path / "film"))
    reader = FallbackReader(other, sequence)
    assert [reader.frame(number) is None for number in (0, 5, 6, 39)] == [True, True, False, False]
    assert read_number(reader.frame(20).y) == 20
    assert find_fallback(tmp_path / "film", numbered).path == other.path
    assert find_fallback(tmp_path, numbered).path == other.path  # tmp_path/film/ is named like film.mkv


# ---------------------------------------------------------------------------------------------------------------------
# Fit and blending


def colors_of(seed, side=64):
    """Return Lab (side, side, 3) of patches in different colors."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(60, 200, (8, 8, 3)).astype(np.uint8)
    return rgb_to_lab(cv2.resize(rgb, (side, side), interpolation=cv2.INTER_NEAREST))


def paler(lab):
    lab = lab.copy()
    lab[..., 1:] = lab[..., 1:] * 0.6 + 4
    return lab_to_rgb(lab)


def test_a_fallback_is_graded_where_both_are_known():
    labs = [colors_of(seed) for seed in range(4)]
    samples = [Sample(lab[..., 0], lab[..., 1:], confidence(0.99), paler(lab)) for lab in labs]
    fit = fit_fallback(samples, FallbackConfig())
    unknown = colors_of(9)
    before, after = (np.abs(ab - unknown[..., 1:]).mean() for ab in (rgb_to_lab(paler(unknown))[..., 1:],
                                                                     fit.colors(paler(unknown))))
    assert after < 0.4 * before and fit.error == FallbackConfig.min_error
    assert FallbackFit.from_state(json.loads(json.dumps(fit.state()))) == fit
    uncertain = [sample._replace(confidence=confidence(0.5)) for sample in samples]
    assert fit_fallback(uncertain, FallbackConfig()) == FallbackFit() == FallbackFit.from_state(FallbackFit().state())
    wrong = [sample._replace(fallback=lab_to_rgb(colors_of(20 + i))) for i, sample in enumerate(samples)]
    assert fit_fallback(wrong, FallbackConfig()).error > 10  # far from the colors that are known


def test_the_weight_changes_smoothly_from_known_to_unknown_colors():
    assert expected_error(np.array([1 - np.exp(-10 / 4)])) == pytest.approx(4)
    probabilities = np.linspace(0, 1, 201)
    weights = [fallback_weight(confidence(p, 3), 4, FallbackConfig()).mean() for p in probabilities]
    assert np.all(np.diff(weights) <= 1e-5) and np.max(np.abs(np.diff(weights))) < 0.06
    assert weights[150] > 0.98 and weights[-3] < 0.01  # at 0.75 and 0.99
    poor = [fallback_weight(confidence(p, 3), 12, FallbackConfig()).mean() for p in probabilities]
    assert poor[150] < 0.05 and poor[40] > 0.99  # a fallback that is often wrong replaces only wrong colors


def test_only_uncertain_colors_are_replaced_and_missing_frames_follow_the_motion():
    rng = np.random.default_rng(0)
    L = cv2.GaussianBlur(rng.uniform(0, 100, (64, 64)).astype(np.float32), (0, 0), 2) * 3 % 100
    known = confidence(0.3, 8)
    known.probability[:, :4] = 0.999
    ab, colors = np.zeros((64, 64, 2), np.float32), np.full((32, 32, 2), 30, np.float32)
    blender = FallbackBlender(FallbackFit(None, 4.0))
    assert blender(L, ab, known, None) == (ab, 0)
    first, share = blender(L, ab, known, colors)
    assert np.abs(first[:, :20]).max() < 0.5 and np.abs(first[:, 44:] - 30).max() < 0.5 and 0.4 < share < 0.7
    moved, share = blender(np.roll(L, 2, 1), ab, known, None)
    assert np.median(moved[:, 48:]) > 25 and np.abs(moved[:, :20]).max() < 0.5
    unrelated, share = blender(rng.uniform(0, 100, (64, 64)).astype(np.float32), ab, known, None)
    assert share < 0.2


# ---------------------------------------------------------------------------------------------------------------------
# Films


class Knowing(StubPredictor):
    """A predictor that is sure of the colors of dark shots only. Its colors are a uniform teal."""

    def __init__(self, fail_at=None, action=None):
        super().__init__(fail_at, action)
        self.provenance = {}

    provenance = None

    def predict(self, L, palette):
        ab, _ = super().predict(L, palette)
        ab[...] = -20, 5
        probability = 0.999 if L.mean() < 40 else 0.3
        return ab, Confidence(*np.full((3, len(L), 8, 8), probability, np.float32))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A gray film, and red, blue and gray versions of it in another size; the colors in the dark shot are teal."""
    folder = tmp_path_factory.mktemp("films")
    draw_shots(folder / "film.mkv", SHOTS)
    lumas = [cv2.resize(y, (160, 96)) for y, _, _ in planes_in(folder / "film.mkv")]
    for name, ab in (("red", (20, 10)), ("blue", (5, -20)), ("gray", (0, 0)), ("shuffled", (20, 10))):
        frames = []
        for index, luma in enumerate(lumas if name != "shuffled" else np.roll(lumas, 20, 2)[::-1]):
            lab = rgb_to_lab(np.repeat(luma[:, :, None], 3, 2))
            lab[..., 1:] = (-20, 5) if name in ("red", "blue") and index < SHOTS[0][1] else ab
            frames.append((index, av.VideoFrame.from_ndarray(lab_to_rgb(lab), format="rgb24")))
        write_film(folder / f"{name}.mkv", frames, rate=12)
    return folder


def color(films, output, other=None, predictor=None, **settings):
    fallback = films / other if other else None
    return color_film(predictor or Knowing(), VideoFile(films / "film.mkv"), output,
                      FilmConfig(crf=0, fallback=fallback, batch_size=4, **settings))


def mean_chroma(path):
    return [np.array([cb.mean(), cr.mean()]) for _, cb, cr in planes_in(path)]


def test_uncertain_shots_take_the_colors_of_the_fallback(films, tmp_path):
    color(films, tmp_path / "plain.mkv")
    records = color(films, tmp_path / "out.mkv", "red.mkv")
    plain, out, red = map(mean_chroma, (tmp_path / "plain.mkv", tmp_path / "out.mkv", films / "red.mkv"))
    known = SHOTS[0][1]
    assert np.abs(np.subtract(out[:known], plain[:known])).max() < 0.5
    assert np.abs(np.subtract(out[known:], red[known:])).max() < 3
    assert np.abs(np.subtract(plain[known:], red[known:])).min() > 5
    facts = records.fallback_facts()
    assert facts["share_of_shots"][0] < 0.01 and min(facts["share_of_shots"][1:]) > 0.98
    assert facts["share"] == pytest.approx(30 / 44, abs=0.01) and facts["frames_without"] == 0
    assert [record.confidence for record in records] == pytest.approx([0.999, 0.3, 0.3])  # as without the fallback
    part = color(films, tmp_path / "part.mkv", "red.mkv", start=1.5)
    assert np.abs(np.subtract(mean_chroma(tmp_path / "part.mkv"), out[18:])).max() < 0.5 and len(part) == 2


def test_an_interrupted_film_is_resumed_and_another_fallback_colors_it_again(films, tmp_path, capsys):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    output = tmp_path / "out.mkv"
    color(films, tmp_path / "whole.mkv", "red.mkv")
    for other in ("red.mkv", "blue.mkv"):
        with pytest.raises(Stop):
            color(films, output, "red.mkv", Knowing(fail_at=26, action=stop))
        predictor = Knowing()
        color(films, output, other, predictor)
        if other == "red.mkv":
            assert output.read_bytes() == (tmp_path / "whole.mkv").read_bytes() and predictor.frames < 40
        output.rename(tmp_path / f"colored_{other}")
    assert "fallback has changed" in capsys.readouterr().err and predictor.frames > 40
    color(films, tmp_path / "blue.mkv", "blue.mkv")
    assert (tmp_path / "colored_blue.mkv").read_bytes() == (tmp_path / "blue.mkv").read_bytes()
    assert find_changed_shots(Knowing(), VideoFile(films / "film.mkv"), output) is None


@pytest.mark.parametrize("other, message", [
    ("film.mkv", "is the input itself"), ("gray.mkv", "is grayscale"), ("shuffled.mkv", "shows other pictures"),
    ("late.mkv", "there is no .*late.mkv")])
def test_unusable_fallbacks_are_refused(films, tmp_path, other, message):
    with pytest.raises(UserError, match=message):
        color(films, tmp_path / "out.mkv", other)


def test_frames_that_the_fallback_lacks_are_counted(films, tmp_path, capsys):
    frames = [(index, av.VideoFrame.from_ndarray(planes.rgb_uint8(), format="rgb24"))
              for index, (_, _, planes) in enumerate(VideoFile(films / "red.mkv").read()) if index not in (20, 35, 36)]
    write_film(tmp_path / "gaps.mkv", frames, rate=12)
    records = color(films, tmp_path / "out.mkv", tmp_path / "gaps.mkv")
    assert records.fallback_facts()["frames_without"] == 3
    assert "has no frame at the times of 3 of 44 frames" in capsys.readouterr().err
    color(films, tmp_path / "all.mkv", "red.mkv")
    assert np.abs(np.subtract(*map(mean_chroma, (tmp_path / "out.mkv", tmp_path / "all.mkv")))).max() < 4
    with pytest.raises(UserError, match="has the time of a frame"):
        color(films, tmp_path / "end.mkv", write_film(tmp_path / "short.mkv", frames[:10], rate=12), start=1.5)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


class PicturePredictor:
    """A predictor of pictures that is sure of the left half. Its colors are a uniform teal."""

    source, side = "memory", 64

    def lock_colors(self, ab, L):
        return ab

    def predict_ab(self, labs):
        sure = confidence(0.3)
        sure.probability[:, :4] = 0.999
        return (np.full((len(labs), 16, 16, 2), (-20, 5), np.float32),
                Confidence(*(np.stack([x] * len(labs)) for x in sure)))


def test_pictures_take_the_colors_of_equally_named_ones(tmp_path):
    for number in range(2):
        rgb = draw_picture(number)
        write_image(tmp_path / f"{number}.png", cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, 2))
        if number == 0:
            write_image(tmp_path / "other" / "0.webp", np.ascontiguousarray(rgb[::2, ::2]))

    def run(output, other):
        pairs = [(tmp_path / f"{number}.png", tmp_path / output / f"{number}.png") for number in range(2)]
        return color_pictures(PicturePredictor(), pairs, Evaluation(), False, False, tmp_path / other)

    count, shares = run("out", "other")
    assert count == 2 and sorted(share is None for share in shares) == [False, True]
    assert 0.4 < next(share for share in shares if share) < 0.7
    first, truth = (rgb_to_lab(read_image(tmp_path / name)) for name in ("out/0.png", "other/0.webp"))
    errors = np.abs(first[::2, ::2, 1:] - truth[..., 1:]).mean((0, 2))
    assert errors[:18].min() > 10 > errors[30:].mean()
    with pytest.raises(UserError, match="is the input itself"):
        run("again", ".")
    with pytest.raises(UserError, match="is grayscale"):
        (tmp_path / "gray").mkdir()
        (tmp_path / "gray" / "0.png").write_bytes((tmp_path / "0.png").read_bytes())
        run("again", "gray")


def test_inputs_without_a_fallback_are_named(tmp_path, capsys):
    for name in ("in/1.png", "in/2.png", "other/2.jpg", "none/3.png"):
        write_image(tmp_path / name, draw_picture(0))
    pairs = [(tmp_path / "in" / f"{number}.png", tmp_path) for number in (1, 2)]
    check_fallbacks(ColorConfig(fallback=tmp_path / "other"), pairs, [])
    assert "no version of 1 inputs, which are colored without a fallback: 1.png" in capsys.readouterr().err
    with pytest.raises(UserError, match="no version of"):
        check_fallbacks(ColorConfig(fallback=tmp_path / "none"), pairs, [])
