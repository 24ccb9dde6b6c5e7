"""Interlaced film: flags are kept, each field gets its own colors, and nothing shows combing."""


import av
import cv2
import numpy as np
import pytest
from drawn import StubPredictor, draw_film, planes_in

from config import FilmConfig, GeneratorConfig
from film.analysis.training_frames import extract_training_frames
from film.io.interlacing import FieldDetector, field_flagger, interlacing_options, split_fields, weave_fields
from film.io.planes import ColorEncoding, Planes, frame_field_order, planes_from_frame
from film.io.video import VideoFile
from film.render.rendering import color_film

SIZE = 64
DARK, LIGHT = 80, 250  # so bright that no strong color exists


def field_at(time):
    """Return the luma of a field (SIZE / 2, SIZE): a bright bar that moves fast."""
    plane = np.full((SIZE // 2, SIZE), DARK, np.uint8)
    plane[:, 6 * time % 40:6 * time % 40 + 20] = LIGHT
    return plane


def draw_fields(path, order, count=6):
    """Write an interlaced grayscale film whose frame i has fields of the times 2 i and 2 i + 1."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25, options={"crf": "0", **interlacing_options(order)})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        mark = field_flagger(order, SIZE, SIZE, "yuv420p")
        for i in range(count):
            first, second = field_at(2 * i), field_at(2 * i + 1)
            picture = np.empty((SIZE, SIZE), np.uint8)
            picture[::2], picture[1::2] = (first, second) if order == "tff" else (second, first)
            frame = mark(av.VideoFrame.from_ndarray(picture, format="gray").reformat(
                format="yuv420p", src_color_range=1, dst_color_range=1))
            frame.pts = i
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return path


def orders_in(path):
    """Return the field order of each frame of a film."""
    with av.open(str(path)) as film:
        return [frame_field_order(frame) for frame in film.decode(video=0)]


def order_in(path):
    """Return the field order of all frames of a film."""
    order, = set(orders_in(path))
    return order


class Predictor(StubPredictor):
    """Predicts one color and keeps its input."""

    AB = 40, -30

    def predict(self, L, palette):
        ab, known = super().predict(L, palette)
        ab[:] = self.AB
        self.seen = L
        return ab, known


def colors_of(planes):
    """Return ab (H, W, 2) of a frame."""
    return cv2.cvtColor(planes.rgb(*planes.y.shape), cv2.COLOR_RGB2Lab)[..., 1:]


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize("suffix, settings", [(".mkv", {"crf": 0}), (".mp4", {"crf": 0}),
                                              (".mov", {"codec": "prores_ks"})])
def test_interlaced_film_stays_interlaced_with_colors_per_field(tmp_path, capsys, order, suffix, settings):
    source, target = draw_fields(tmp_path / "in.mkv", order), tmp_path / f"out{suffix}"
    predictor = Predictor()
    color_film(predictor, VideoFile(source), target, FilmConfig(**settings))
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and f"is interlaced ({'top' if order == 'tff' else 'bottom'} field first)" in said
    assert order_in(target) == order_in(source) == order
    assert np.abs(np.diff(predictor.seen, axis=1)).max() < 1  # successive rows are equal
    with av.open(str(target)) as film:
        pictures = [planes_from_frame(frame) for frame in film.decode(video=0)]
    assert len(pictures) == 6 and all(planes.field_order == order for planes in pictures)
    for before, planes in zip(planes_in(source), pictures, strict=True):
        if "crf" in settings:
            assert np.array_equal(before[0], planes.y)
        assert all(np.median(np.abs(colors_of(half) - Predictor.AB)) < 3 for half in split_fields(planes))
        assert np.array_equal(weave_fields(split_fields(planes), order).y, planes.y)


def test_chroma_follows_the_luma_of_its_field(tmp_path):
    """One color at two lightnesses has two pairs of Cb and Cr, so the rows differ where the fields do."""
    source = draw_fields(tmp_path / "in.mkv", "tff", 1)
    color_film(Predictor(), VideoFile(source), tmp_path / "out.mkv", FilmConfig(crf=0))
    (y, cb, cr), = planes_in(tmp_path / "out.mkv")
    dark, light = np.unique(y)
    assert (y[0] != y[1]).sum() > 10  # the fields show different times
    for plane in (cb.astype(int), cr.astype(int)):
        codes = {level: np.concatenate([plane[i::2][:, (y[i, ::2] == level) & (y[i, 1::2] == level)].ravel()
                                        for i in (0, 1)]) for level in (dark, light)}
        assert all(np.mean(np.abs(part - np.median(part)) <= 2) > 0.9 for part in codes.values())
    assert abs(np.median(codes[dark]) - np.median(codes[light])) > 10


@pytest.mark.parametrize("height, pix_fmt, order", [
    (52, "yuv420p", "tff"), (54, "yuv422p", "tff"), (51, "yuv444p", "")])
def test_heights_that_limit_chroma_subsampling(tmp_path, height, pix_fmt, order):
    """H.264 halves the chroma of each field, which 486 lines do not allow; an odd height has no two fields."""
    with av.open(str(tmp_path / "in.mxf"), "w") as film:
        stream = film.add_stream("mpeg2video", rate=25, options=interlacing_options("tff"))
        stream.width, stream.height, stream.pix_fmt = SIZE, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((height, SIZE), 99, np.uint8), format="gray")
        film.mux(stream.encode(field_flagger("tff", SIZE, height, "yuv420p")(frame.reformat(format="yuv420p"))))
        film.mux(stream.encode(None))
    color_film(StubPredictor(), VideoFile(tmp_path / "in.mxf"), tmp_path / "out.mkv")
    assert order_in(tmp_path / "in.mxf") == order_in(tmp_path / "out.mkv") == order
    with av.open(str(tmp_path / "out.mkv")) as film:
        assert film.streams.video[0].pix_fmt == pix_fmt and film.streams.video[0].height == height


def test_progressive_film_is_not_flagged(tmp_path, capsys):
    source = draw_film(tmp_path / "in.mp4", times=range(4))
    color_film(StubPredictor(), VideoFile(source), tmp_path / "out.mp4")
    assert order_in(source) == order_in(tmp_path / "out.mp4") == "" and capsys.readouterr().err == ""


def test_codecs_that_cannot_store_interlacing_cause_a_warning(tmp_path, capsys):
    source = draw_fields(tmp_path / "in.mkv", "tff")
    color_film(StubPredictor(), VideoFile(source), tmp_path / "out.webm")
    assert "interlaced, which libvpx-vp9 cannot mark" in capsys.readouterr().err
    assert order_in(tmp_path / "out.webm") == ""


@pytest.mark.parametrize("flags, order", [([1, 1, 0, 0, 0] * 4, "bff"), ([0] * 20, ""), ([1] * 3 + [0] * 17, "")])
def test_telecined_film_is_flagged_in_part(flags, order):
    """Telecine interlaces two of five frames; a few flags at the beginning do not make a shot interlaced."""
    detector, luma = FieldDetector(), np.full((16, 16), 99, np.uint8)
    for flag in flags:
        detector.add(Planes(luma, None, None, ColorEncoding(8, False, 6), "bff" * flag))
    assert detector.shot_order(0, 20)[0] == order


def draw_mixed(path, orders, flagged=True, shots=(0,)):
    """Write a film whose frame i is progressive ("") or has fields of the times 2 i and 2 i + 1."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("ffv1", rate=25, options={"g": "1"})  # it stores the flags of each frame
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        marks = {order: field_flagger(order or "prog", SIZE, SIZE, "yuv420p") for order in {*orders, ""}}
        for i, order in enumerate(orders):
            first, second = field_at(2 * i), field_at(2 * i + bool(order))
            picture = np.empty((SIZE, SIZE), np.uint8)
            picture[::2], picture[1::2] = (second, first) if order == "bff" else (first, second)
            picture -= 60 * (sum(i >= shot for shot in shots) % 2)
            frame = marks[order if flagged else ""](av.VideoFrame.from_ndarray(picture, format="gray").reformat(
                format="yuv420p", src_color_range=1, dst_color_range=1))
            frame.pts = i
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return path


LEADER = [""] * 30 + ["tff"] * 30


@pytest.mark.parametrize("suffix, settings, expected", [
    (".mkv", {"crf": 0}, LEADER), (".mp4", {}, LEADER), (".mkv", {"codec": "ffv1"}, LEADER),
    (".mov", {"codec": "prores_ks"}, ["tff"] * 60)])
def test_a_progressive_leader_does_not_hide_the_fields_of_the_film(tmp_path, suffix, settings, expected):
    source, target = draw_mixed(tmp_path / "in.mkv", LEADER, shots=(0, 30)), tmp_path / f"out{suffix}"
    color_film(StubPredictor(), VideoFile(source), target, FilmConfig(**settings))
    assert orders_in(target) == expected
    if suffix == ".mkv":
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(planes_in(source), planes_in(target), strict=True))


@pytest.mark.parametrize("settings", [{}, {"codec": "ffv1"}])
def test_mixed_film_keeps_the_flags_of_each_frame(tmp_path, settings):
    orders = ["tff", "tff", "", "", ""] * 6 + [""] * 30 + ["bff"] * 30  # telecine, progressive film, other field order
    source = draw_mixed(tmp_path / "in.mkv", orders, shots=(0, 30, 60))
    color_film(StubPredictor(), VideoFile(source), tmp_path / "out.mkv", FilmConfig(cut_at=(30, 60), **settings))
    assert orders_in(source) == orders_in(tmp_path / "out.mkv") == orders


@pytest.mark.parametrize("order", ["tff", "bff", ""])
def test_combing_shows_the_field_order_of_film_without_flags(tmp_path, capsys, order):
    source = draw_mixed(tmp_path / "in.mkv", [order] * 40, flagged=False)
    predictor = Predictor()
    color_film(predictor, VideoFile(source), tmp_path / "out.mkv")
    assert order_in(source) == "" and order_in(tmp_path / "out.mkv") == order
    assert np.abs(np.diff(predictor.seen, axis=1)).max() < 1  # successive rows are equal
    assert ("is interlaced" in capsys.readouterr().err) == bool(order)


@pytest.mark.parametrize("flagged", [True, False])
def test_training_frames_have_no_combing(tmp_path, capsys, flagged):
    source = draw_mixed(tmp_path / "in.mkv", ["tff"] * 20, flagged)
    extract_training_frames(source, tmp_path / "pictures", GeneratorConfig())
    assert "in.mkv is interlaced: the images are the mean of both fields" in capsys.readouterr().err
    written = [cv2.imread(str(path)) for path in (tmp_path / "pictures").glob("*.png")]
    assert written and all(np.abs(np.diff(picture.astype(int), axis=0)).max() <= 1 for picture in written)
