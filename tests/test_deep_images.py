"""Images of more than 8 bits: reading, writing and coloring without loss of depth."""

import cv2
import numpy as np
import pytest
from drawn import StubPredictor, draw_picture

from colorizer.confidence import Confidence
from fileio.images import read_deep_image, read_image, srgb_decode, srgb_encode, write_image
from film.io.planes import planes_from_rgb
from film.render.pictures import color_pictures
from film.render.rendering import color_film
from film.report.evaluation import Evaluation
from test import find_inputs
from utils import UserError

DEPTHS = [(".png", 16), (".tif", 16), (".tiff", 16), (".dpx", 8), (".dpx", 10), (".dpx", 12), (".dpx", 16)]
LUMA = np.array([0.299, 0.587, 0.114])


def gray_codes(depth, shift=0, size=(96, 64)):
    """Return a grayscale RGB image of ``depth`` bits with uniformly distributed values."""
    row = (np.arange(size[0]) + shift) % size[0]
    fine = (np.arange(size[1])[:, None] + row * size[1]) / (size[0] * size[1] - 1)
    codes = np.rint(fine * (2**depth - 1)).astype(np.uint8 if depth == 8 else np.uint16)
    return codes[..., None].repeat(3, -1)


def codes_of(picture, depth):
    """Return an 8-bit image with random lower bits added up to ``depth`` bits."""
    noise = np.random.default_rng(0).integers(0, 1 << depth - 8, picture.shape)
    return ((picture.astype(np.uint16) << depth - 8) + noise).astype(np.uint8 if depth == 8 else np.uint16)


@pytest.mark.parametrize("suffix, depth", DEPTHS)
def test_images_of_all_depths_round_trip(tmp_path, suffix, depth):
    path = tmp_path / f"a%02d{suffix}"  # FFmpeg must not expand the pattern
    drawn = codes_of(draw_picture(0), depth)
    write_image(path, drawn, depth)
    picture = read_deep_image(path)
    assert picture.depth == depth and picture.rgb.dtype == drawn.dtype and np.array_equal(picture.rgb, drawn)
    assert np.array_equal(read_image(path), draw_picture(0))
    assert planes_from_rgb(drawn, depth).encoding.depth == depth
    assert np.abs(planes_from_rgb(drawn, depth).rgb_codes().astype(int) - drawn).max() <= 2  # of Y', Cb and Cr


def test_linear_light_round_trips(tmp_path):
    light = np.random.default_rng(0).random((48, 64, 3)).astype(np.float32) * 20
    write_image(tmp_path / "a.exr", light)
    picture = read_deep_image(tmp_path / "a.exr")
    assert np.array_equal(picture.linear, light) and picture.depth == 16
    assert np.array_equal(picture.rgb == 65535, light > 0.99999)
    values = np.linspace(0, 1, 1000)
    assert np.abs(srgb_encode(srgb_decode(values)) - values).max() < 1e-4
    assert srgb_encode(np.float32([0.5]))[0] == pytest.approx(0.735357, abs=1e-5)  # formula of IEC 61966-2-1


@pytest.mark.parametrize("suffix, depth", [(".png", 16), (".jpg", 8), (".exr", 16), (".tif", 16)])
def test_formats_without_the_depth_are_converted(tmp_path, suffix, depth):
    drawn = gray_codes(10)
    write_image(tmp_path / f"a{suffix}", drawn, 10)
    picture = read_deep_image(tmp_path / f"a{suffix}")
    assert picture.depth == depth
    wrong = np.abs(picture.rgb / (2**depth - 1) - drawn / 1023).max()
    assert wrong < (0.02 if depth == 8 else 1e-4)


def test_damaged_deep_images_raise_user_errors(tmp_path):
    write_image(tmp_path / "good.dpx", gray_codes(10), 10)
    whole = (tmp_path / "good.dpx").read_bytes()
    write_image(tmp_path / "good.exr", gray_codes(8))
    light = (tmp_path / "good.exr").read_bytes()
    bad = {"cut.dpx": whole[:2000], "cut.exr": light[:len(light) // 2], "last.exr": light[:-1], "none.exr": b"nothing",
           "none.tif": b"", "other.tif": whole, "none.png": b"no picture at all, but a long text"}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        for read in (read_deep_image, read_image):
            with pytest.raises(UserError, match=f"cannot read .*{name} as an image"):
                read(tmp_path / name)


# ---------------------------------------------------------------------------------------------------------------------
# Coloring


def luma_of(codes, depth):
    return codes @ LUMA / (2**depth - 1)


def is_inside(codes, depth):
    """Return where no channel is clipped."""
    return ((codes > 0) & (codes < 2**depth - 1)).all(-1)


@pytest.mark.parametrize("suffix, depth", [(".tif", 16), (".dpx", 10), (".png", 16)])
def test_colored_sequences_keep_their_depth(tmp_path, suffix, depth):
    for number in range(12):
        write_image(tmp_path / "in" / f"scan_{number:04d}{suffix}", gray_codes(depth, number), depth)
    (film, target), = find_inputs(tmp_path / "in", tmp_path / "out")[1]
    color_film(StubPredictor(), film, target)
    for number in (0, 11):
        result = read_deep_image(tmp_path / "out" / f"scan_{number:04d}{suffix}")
        assert result.depth == depth
        inside, before = is_inside(result.rgb, depth), gray_codes(depth, number)
        assert inside.mean() > 0.5 and np.ptp(result.rgb.astype(int), -1).mean() > 0.01 * 2**depth  # in color
        assert np.abs(luma_of(result.rgb, depth) - luma_of(before, depth))[inside].max() < 1.01 / (2**depth - 1)


def test_colored_openexr_keeps_its_luminance(tmp_path):
    """Also of light brighter than white and of negative light."""
    light = [np.linspace(0, 4, 96, dtype=np.float32)[None, :, None].repeat(64, 0).repeat(3, -1) + i / 50
             for i in range(12)]
    for number, picture in enumerate(light):
        write_image(tmp_path / "in" / f"render.{number:04d}.exr", picture - 0.02)
    (film, target), = find_inputs(tmp_path / "in", tmp_path / "out")[1]
    color_film(StubPredictor(), film, target)
    weights = np.array([0.2126, 0.7152, 0.0722], np.float32)
    for number in (0, 11):
        before, after = (read_deep_image(tmp_path / name / f"render.{number:04d}.exr").linear for name in ("in", "out"))
        assert np.abs(after @ weights - before @ weights).max() < 1e-5
        assert np.ptp(after, -1).mean() > 0.01


class StillPredictor:
    """Predicts one color for every image."""

    source, side = "memory", 64

    def predict_ab(self, labs):
        return np.full((len(labs), 16, 16, 2), (20, -15), np.float32), Confidence.unknown(len(labs))

    def lock_colors(self, ab, L):
        return ab


@pytest.mark.parametrize("suffix, depth", [(".tif", 16), (".dpx", 12), (".exr", 16)])
def test_colored_images_keep_their_depth(tmp_path, suffix, depth):
    write_image(tmp_path / f"in{suffix}", gray_codes(depth), depth)
    pairs, *_ = find_inputs(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")
    evaluation = Evaluation()
    assert color_pictures(StillPredictor(), pairs, evaluation, False, False) == (1, [None])
    before, after = (read_deep_image(tmp_path / f"{name}{suffix}") for name in ("in", "out"))
    assert after.depth == before.depth == depth
    inside = is_inside(after.rgb, depth)
    ab = cv2.cvtColor((after.rgb / (2**depth - 1)).astype(np.float32), cv2.COLOR_RGB2Lab)[..., 1:]
    assert inside.mean() > 0.5 and np.abs(np.median(ab[inside], 0) - (20, -15)).max() < 2
    if suffix != ".exr":  # it keeps its luminance instead of its luma
        assert np.abs(luma_of(after.rgb, depth) - luma_of(before.rgb, depth))[inside].max() < 1.01 / (2**depth - 1)
