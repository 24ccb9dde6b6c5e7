"""Comparison of the luma of a colored film with that of its source."""

import hashlib
import itertools
import json

import av
import numpy as np
import pytest
from drawn import StubPredictor, draw_shots, planes_in

from benchmarks.common import FunctionPredictor, constant_colors

from config import ColorConfig, FilmConfig
from film.io.encoding import choose_encoding, segment_encoder
from film.io.luma_check import check_luma
from film.io.planes import planes_from_frame
from film.io.video import VideoFile
from film.render.rendering import color_film
from test import color_film_and_report
from utils import UserError


def color(source, output, **settings):
    """Return the luma report of a film colored with these settings."""
    config = FilmConfig(**settings)
    color_film(StubPredictor(), VideoFile(source), output, config)
    return check_luma(VideoFile(source), VideoFile(output), config)


@pytest.mark.parametrize("pix_fmt, depth", [("yuv420p", 8), ("yuv420p10le", 10)])
def test_lossless_output_has_identical_luma(tmp_path, pix_fmt, depth):
    source = draw_shots(tmp_path / "film.mkv", [(60, 6), (200, 6)], codec="ffv1", pix_fmt=pix_fmt, noise=20)
    line = color(source, tmp_path / "out.mkv", codec="ffv1", start=0.25, end=0.9)
    lumas = [planes[0] for planes in planes_in(source)[3:11]]
    assert lumas[0].max() > 255 or depth == 8
    samples = b"".join(luma.astype("<u2" if depth > 8 else "u1").tobytes() for luma in lumas)
    assert line == (f"luma identical: 8 frames, 128 x 96, {depth} bits, SHA-256 {hashlib.sha256(samples).hexdigest()}")


def copy(source, target, change, stop=None):
    """Write a film again with the luma ``change(pts, luma)`` of each frame before frame ``stop``."""
    wanted = choose_encoding(VideoFile(source), target.with_suffix(".mkv"), FilmConfig(codec="ffv1"))
    with av.open(str(source)) as film, open(target, "wb") as file, segment_encoder(file, wanted) as write:
        for frame in itertools.islice(film.decode(video=0), stop):
            planes = planes_from_frame(frame)
            write(planes._replace(y=change(frame.pts, planes.y.copy())), frame.pts)
    return target


def test_one_changed_sample_is_found(tmp_path):
    def change(pts, luma):
        luma[40, 7] += pts == 417  # ms of frame 5
        return luma

    source = draw_shots(tmp_path / "film.mkv", [(60, 9)], codec="ffv1")
    changed = copy(source, tmp_path / "out.nut", change)
    with pytest.raises(UserError, match="out.nut differs from that of .*film.mkv although its codec is lossless: "
                       "frame 5 is the first that differs, in 1 of its 12,288 samples; color it again"):
        check_luma(VideoFile(source), VideoFile(changed), FilmConfig())
    same = copy(source, tmp_path / "same.nut", lambda _, luma: luma)
    assert "luma identical: 9 frames" in check_luma(VideoFile(source), VideoFile(same), FilmConfig())


def test_missing_frame_is_found(tmp_path):
    source = draw_shots(tmp_path / "film.mkv", [(60, 9)], codec="ffv1")
    shorter = copy(source, tmp_path / "out.nut", lambda _, luma: luma, stop=8)
    for pair in ((source, shorter), (shorter, source)):
        with pytest.raises(UserError, match="have different numbers of frames: only one has frame 8"):
            check_luma(*map(VideoFile, pair), FilmConfig())


@pytest.mark.parametrize("name, settings, bits", [
    ("out.mkv", {}, 8), ("out.mov", {"codec": "prores"}, 10), ("out.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p"}, 10)])
def test_lossy_output_reports_the_difference(tmp_path, name, settings, bits):
    source = draw_shots(tmp_path / "film.mkv", [(60, 6)], codec="ffv1", noise=20,
                        pix_fmt="yuv420p10le" if "pix_fmt" in settings else "yuv420p")
    line = color(source, tmp_path / name, **settings)
    lumas = [np.stack([planes[0] for planes in planes_in(path)]).astype(int) for path in (source, tmp_path / name)]
    far = np.abs(np.subtract(*(luma << (bits - 8 if luma.max() < 256 else 0) for luma in lumas)))
    assert line == (f"luma not identical: 6 frames, 128 x 96, {bits} bits, maximum difference {far.max()} and mean "
                    f"difference {far.mean():.3g} of {2**bits - 1}; only a lossless codec of {bits} bits preserves it, "
                    "such as --codec ffv1 in a .mkv")
    assert far.max() > 0


def test_report_is_printed_and_saved(tmp_path, capsys):
    source = draw_shots(tmp_path / "film.mkv", [(60, 6)])
    predictor = FunctionPredictor("constant color", constant_colors((20, 20)))
    config = ColorConfig(verify_luma=True, codec="ffv1")
    color_film_and_report(predictor, config, VideoFile(source), tmp_path / "out.mkv")
    line = json.loads((tmp_path / "out_metrics.json").read_text())["luma"]
    assert line.startswith("luma identical: 6 frames, 128 x 96, 8 bits, SHA-256 ") and line in capsys.readouterr().out
    with pytest.raises(UserError, match="--verify_luma compares the luma, which --color_only leaves out"):
        ColorConfig(verify_luma=True, color_only=True).check()
