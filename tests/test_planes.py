"""Conversion of planes, compared with FFmpeg's own, and chroma from ab colors."""

import av
import cv2
import numpy as np
import pytest
from drawn import draw_picture

from colorizer.warping.upsampling import upsample_colors
from fileio.images import srgb_decode
from film.io import chroma
from film.io.chroma import ab_to_chroma
from film.io.planes import (
    ColorEncoding, Planes, change_depth, gray_lightness, lightness_of, plane_array, planes_from_frame)

ENCODINGS = [ColorEncoding(depth, full, space) for depth in (8, 10) for full in (False, True) for space in (1, 6)]
WIDE = ColorEncoding(10, False, 9, 9)  # BT.2020


@pytest.mark.parametrize("encoding", [*ENCODINGS, WIDE])
def test_to_chroma_inverts_to_rgb(encoding):
    rgb = np.random.default_rng(0).random((12, 10, 3)).astype(np.float32)
    black, white = encoding.luma_range
    y = np.rint(encoding.luma_of(rgb) * (white - black) + black).astype(encoding.dtype)
    tolerance = 0.02 if encoding == WIDE else 0.012 / 4 ** (encoding.depth == 10)  # rounding in linear light
    assert np.abs(encoding.to_rgb(y, *encoding.to_chroma(rgb)) - rgb).max() < tolerance


def test_encoding_of_red_matches_a_worked_example():
    red = np.float32([[[1, 0, 0]]])
    cb, cr = ColorEncoding(8, False, 6).to_chroma(red)  # BT.601: (81, 90, 240), the standard color bar
    assert (round(16 + 219 * float(ColorEncoding(8, False, 6).luma_of(red)[0, 0])), cb[0, 0], cr[0, 0]) == (81, 90, 240)
    cb, cr = ColorEncoding(10, True, 1).to_chroma(red)  # BT.709: Cb = -0.2126 / 1.8556 = -0.11457 of 1023, Cr = 0.5
    assert (cb[0, 0], cr[0, 0]) == (round(512 - 0.11457 * 1023), 1023)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_planes_from_frame_match_the_conversion_of_ffmpeg(encoding):
    picture = draw_picture(0)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
        format="yuv444p" if encoding.depth == 8 else "yuv444p10le", dst_colorspace=encoding.colorspace,
        dst_color_range=1 + encoding.full_range)
    frame.colorspace, frame.color_range = encoding.colorspace, 1 + encoding.full_range
    planes = planes_from_frame(frame)
    assert planes.encoding == encoding
    assert np.abs(planes.rgb_uint8().astype(int) - picture).max() <= 3


@pytest.mark.parametrize("format_", ["rgb24", "gray", "nv12", "yuyv422", "gbrp", "bgra", "yuvj420p", "gray10le"])
def test_planes_from_frame_accepts_all_pixel_formats(format_):
    picture = np.full((32, 48, 3), 150, np.uint8)
    planes = planes_from_frame(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=format_))
    assert planes.y.shape == (32, 48)
    assert np.abs(planes.rgb_uint8().astype(int) - 150).max() <= 2


@pytest.mark.parametrize("height, colorspace", [(480, 6), (720, 1)])
def test_untagged_matrix_depends_on_the_height(height, colorspace):
    frame = av.VideoFrame(16, height, "yuv420p")
    assert planes_from_frame(frame).encoding == ColorEncoding(8, False, colorspace)


def test_change_depth_rounds_and_clips():
    codes = np.array([[0, 1, 2, 6, 1021, 1023]], np.uint16)
    assert change_depth(codes, 10, 8).tolist() == [[0, 0, 1, 2, 255, 255]]  # rounded, at most white
    assert change_depth(codes.astype(np.uint8)[:, :4], 8, 10).tolist() == [[0, 4, 8, 24]]


def test_wide_gamuts_match_a_worked_example():
    """ITU-R BT.2087, table 2: linear BT.709 red is (0.6274, 0.0691, 0.0164) in BT.2020; grays stay the same."""
    red = WIDE._with_primaries(np.float32([[[1, 0, 0], [0.3, 0.3, 0.3]]]))
    assert np.abs(srgb_decode(red[0, 0]) - (0.6274, 0.0691, 0.0164)).max() < 5e-4
    assert np.abs(red[0, 1] - 0.3).max() < 1e-4


@pytest.mark.parametrize("encoding", [*ENCODINGS, WIDE])
def test_ab_to_chroma_restores_the_colors_at_the_given_luma(encoding):
    """The luma and ab of an image restore the image, also its strong colors."""
    rgb = cv2.GaussianBlur(draw_picture(3), (5, 5), 0).astype(np.float32) / 255
    black, white = encoding.luma_range
    y = np.rint(encoding.luma_of(rgb) * (white - black) + black).astype(encoding.dtype)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)
    cb_cr = ab_to_chroma(Planes(y, None, None, encoding), lab[..., 1:], *y.shape, encoding)
    result = cv2.cvtColor(encoding.to_rgb(y, *cb_cr), cv2.COLOR_RGB2Lab)
    assert np.abs(result - lab).mean() < 0.7
    neutral = ab_to_chroma(Planes(y, None, None, encoding), np.zeros((4, 4, 2), np.float32), 6, 8, encoding)
    assert all(np.abs(plane.astype(int) - encoding.neutral_chroma).max() <= 1 for plane in neutral)


@pytest.mark.parametrize("encoding", [*ENCODINGS, WIDE])
def test_ab_to_chroma_matches_a_conversion_without_table(encoding):
    """Colors inside the gamut; the table is less accurate where colors are clipped."""
    rng = np.random.default_rng(0)
    gray, ab = rng.uniform(0.3, 0.8, (64, 64)), rng.uniform(-25, 25, (16, 16, 2)).astype(np.float32)
    black, white = encoding.luma_range
    y = np.rint(gray * (white - black) + black).astype(encoding.dtype)
    L = lightness_of(y, encoding)
    exact = np.dstack([L, upsample_colors(ab, L)])
    rgb = cv2.cvtColor(exact, cv2.COLOR_Lab2RGB).clip(0, 1)
    exact[..., 0] += L - gray_lightness(encoding.luma_of(rgb))
    expected = encoding.to_chroma(cv2.cvtColor(exact, cv2.COLOR_Lab2RGB).clip(0, 1))
    found = ab_to_chroma(Planes(y, None, None, encoding), ab, *y.shape, encoding)
    errors = np.abs(np.float32(found) - np.float32(expected)) / 2**(encoding.depth - 8)  # in units of 8-bit codes
    assert errors.mean() < 0.15 and np.quantile(errors, 0.99) <= 1 and np.ptp(expected[0]) > 30 << encoding.depth - 8


@pytest.mark.parametrize("encoding", ENCODINGS[::3])
def test_ab_to_chroma_does_not_depend_on_the_chunk_size(encoding, monkeypatch):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2**encoding.depth, (90, 128)).astype(encoding.dtype)
    picture, ab = Planes(y, None, None, encoding), rng.normal(0, 30, (24, 24, 2)).astype(np.float32)
    found = []
    for count in (1, 1000, 10**9):
        monkeypatch.setattr(chroma, "CHUNK_PIXELS", count)
        found.append(ab_to_chroma(picture, ab, 45, 64, encoding))
    assert all(np.array_equal(*planes) for other in found[1:] for planes in zip(found[0], other, strict=True))
    assert len(np.unique(found[0][0])) > 20


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_subsample_takes_every_nth_sample(encoding):
    rng = np.random.default_rng(2)
    y, cb, cr = (rng.integers(0, 2**encoding.depth, size).astype(encoding.dtype)
                 for size in ((36, 48), (18, 24), (18, 24)))
    found = Planes(y, cb, cr, encoding).crop((12, 36, 0, 48)).subsample(6, 8)
    assert np.array_equal(found.y, y[12::4, ::6])
    assert np.array_equal(found.cb, cb[6::2, ::3]) and np.array_equal(found.cr, cr[6::2, ::3])
    assert Planes(y, None, None, encoding).subsample(6, 8).cb is None


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gray_uint8_ignores_chroma(encoding):
    y = np.arange(2**encoding.depth, dtype=encoding.dtype).reshape(16, -1)
    picture = Planes(y, y, y, encoding)
    expected = picture._replace(cb=None, cr=None).rgb_uint8()
    # With 10 bits and limited range, one value lies between two grays and may be rounded either way.
    assert (picture.gray_uint8(*y.shape) != expected).sum() <= 1


@pytest.mark.parametrize("color_range", [0, 1, 2])
@pytest.mark.parametrize("pix_fmt, base", [
    ("gray10be", "gray10le"), ("gray14be", "gray14le"), ("gray16be", "gray16le"), ("ya8", "gray"),
    ("ya16be", "gray16le"), ("yuv420p10be", "yuv420p10le"), ("p010le", "yuv420p10le"), ("nv12", "yuv420p"),
    ("uyvy422", "yuv422p")])
def test_luma_does_not_depend_on_how_a_format_stores_it(pix_fmt, base, color_range):
    frame = av.VideoFrame(64, 48, base)
    depth = frame.format.components[0].bits
    luma = np.random.default_rng(0).integers(0, 2**depth, (48, 64)).astype(np.uint8 if depth == 8 else np.uint16)
    for index in range(len(frame.planes)):
        plane_array(frame, index, luma.dtype)[:] = 2**depth // 2
    plane_array(frame, 0, luma.dtype)[:] = luma
    frame.color_range = color_range
    packed = frame.reformat(format=pix_fmt)
    packed.color_range = color_range
    planes = planes_from_frame(packed)
    assert np.array_equal(planes.y, luma) and planes.encoding.depth == depth
    assert planes.encoding.full_range == (color_range == 2 or "gray" in base and color_range == 0)
    assert planes.alpha is None if "ya" not in pix_fmt else (planes.alpha == 2**depth - 1).all()
