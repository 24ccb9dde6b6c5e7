"""Color space, color bins, soft encoding and dataset, compared with slow implementations and known values."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from dataset import (
    AB_BINS, AB_SCALE, ColorizationDataset, color_feature, downsample, lab_to_rgb, resize, rgb_to_lab, soft_encode)
from fileio.images import read_image, write_image
from utils import UserError, image_ids


def dense_encoding(ab):
    """Soft encoding by its definition, over all 313 bins: (P, 2) -> (P, 313)."""
    distance = ((ab[:, None].astype(np.float64) - AB_BINS) ** 2).sum(-1)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :10]
    weight = np.exp(-np.take_along_axis(distance, nearest, 1) / (2 * 5**2))
    dense = np.zeros_like(distance)
    np.put_along_axis(dense, nearest, weight / weight.sum(1, keepdims=True), 1)
    return dense


def has_tie(ab):
    """Return whether the 10th and 11th nearest bins are equally far, which leaves the definition ambiguous."""
    distance = np.sort(((ab[:, None].astype(np.float64) - AB_BINS) ** 2).sum(-1), axis=1)
    return distance[:, 10] - distance[:, 9] < 1e-2


def drawn_pictures():
    """Return pictures with different color content, RGB uint8."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    ramp = np.stack(np.meshgrid(np.arange(0, 256, 2), np.arange(0, 256, 2)), -1)
    return {"noise": noise, "pale noise": (noise // 16 + 120).astype(np.uint8),
            "ramp": np.concatenate([ramp, np.full((128, 128, 1), 90)], -1).astype(np.uint8),
            "flat": np.full((40, 40, 3), (200, 37, 99), np.uint8)}


def test_color_bins_of_each_row():
    rows = {-90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100),
            -30: (-50, 100), -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90),
            30: (-90, 90), 40: (-100, 90), 50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70),
            90: (-110, 70), 100: (-90, 0)}
    assert AB_BINS.shape == (313, 2)
    for a, (first, last) in rows.items():
        assert AB_BINS[AB_BINS[:, 0] == a, 1].tolist() == list(range(first, last + 1, 10))
    assert AB_BINS[:, 0].tolist() == sorted(AB_BINS[:, 0])


def test_lab_agrees_with_scikit_image():
    picture = drawn_pictures()["noise"]
    difference = np.abs(rgb_to_lab(picture) - rgb2lab(picture))
    assert difference.max() < 0.5 and difference.mean() < 0.1
    lab = rgb2lab(picture).astype(np.float32)
    assert np.abs(lab_to_rgb(lab) / 255 - lab2rgb(lab)).max() < 1 / 255


@pytest.mark.parametrize("name", drawn_pictures())
def test_lab_round_trip(name):
    picture = drawn_pictures()[name]
    assert np.abs(lab_to_rgb(rgb_to_lab(picture)).astype(int) - picture).max() <= 1


def test_soft_encoding_equals_the_dense_definition():
    rng = np.random.default_rng(1)
    inside = rgb_to_lab(rng.integers(0, 256, (1, 2000, 3), dtype=np.uint8))[0, :, 1:]
    anywhere = rng.uniform(-140, 140, (2000, 2)).astype(np.float32)  # also beyond the bins
    ab = np.concatenate([inside, anywhere])
    ab = ab[~has_tie(ab)]
    index, weight = soft_encode(ab)
    sparse = np.zeros((len(ab), 313))
    np.put_along_axis(sparse, index, weight, 1)
    assert len(ab) > 3500
    np.testing.assert_allclose(sparse, dense_encoding(ab), atol=1e-5)
    assert (np.sort(index, 1)[:, 1:] > np.sort(index, 1)[:, :-1]).all()  # ten different bins


@pytest.mark.parametrize("name", drawn_pictures())
def test_color_feature_equals_the_mean_dense_encoding(name):
    ab = rgb_to_lab(drawn_pictures()[name])[..., 1:]
    feature = color_feature(ab)
    assert feature.shape == (313,) and feature.dtype == np.float32 and (feature >= 0).all()
    assert abs(feature.sum() - 1) < 1e-5
    assert np.abs(feature - dense_encoding(ab.reshape(-1, 2)).mean(0)).sum() < 1e-3


def test_color_feature_of_a_bin_center_matches_hand_computed_values():
    # At the center (20, 30): itself at distance 0, 4 at 10, 4 at 14.14, and one of the 4 at 20.
    feature = np.sort(color_feature(np.full((2, 2, 2), (20, 30), np.float32)))[::-1]
    weights = np.exp(-np.array([0] + [100] * 4 + [200] * 4 + [400]) / 50)
    assert feature[0] == pytest.approx(1 / weights.sum(), rel=1e-2)
    assert feature[1:5] == pytest.approx(np.exp(-2) / weights.sum(), rel=1e-2)


def test_resizing_keeps_both_edges():
    picture = np.zeros((90, 160, 3), np.float32)
    picture[:, :20], picture[:, -20:] = 1, 2  # the edges
    small = resize(picture, 128, 128)
    assert small.shape == (128, 128, 3)
    assert (small[:, :10] == 1).all() and (small[:, -10:] == 2).all()


@pytest.mark.parametrize("size, to", [
    ((1080, 1922), (192, 192)), ((2160, 3840), (256, 256)), ((1074, 1440), (16, 1440)), ((997, 1021), (192, 192)),
    ((720, 1280), (360, 640)), ((96, 64), (96, 64))])
def test_strong_reductions_average_areas(size, to):
    """Sizes with and without divisors; the exact average is that of OpenCV in one step."""
    noise = np.random.default_rng(0).random((*size, 2), np.float32)
    picture = cv2.GaussianBlur(noise, (0, 0), 12)
    picture = 255 * (picture - picture.min()) / np.ptp(picture)
    exact = cv2.resize(picture, to[::-1], interpolation=cv2.INTER_AREA)
    reduced = resize(picture, *to)
    assert reduced.shape == exact.shape and reduced.dtype == np.float32
    assert np.abs(reduced - exact).mean() < 0.03 * np.abs(exact - exact.mean()).mean()
    assert np.abs(resize(picture.astype(np.uint8), *to) - exact).mean() < 1
    if size in ((997, 1021), (96, 64)):  # without divisors, and without a reduction
        assert np.array_equal(reduced, exact)


@pytest.mark.parametrize("side", [32, 64, 72, 96, 100])
def test_downsampling_of_tensors_equals_resize(side):
    picture = np.random.default_rng(0).random((96, 96, 3), np.float32)
    maps = downsample(torch.from_numpy(picture).permute(2, 0, 1)[None], side)
    if side <= 96:
        np.testing.assert_allclose(maps[0].permute(1, 2, 0), resize(picture, side, side), atol=1e-5)
    torch.testing.assert_close(maps.mean((2, 3)), torch.from_numpy(picture.mean((0, 1)))[None])


def test_items_hold_the_five_elements(tmp_path):
    picture = drawn_pictures()["ramp"]
    write_image(tmp_path / "raw_image_ep01_5.png", picture)
    data = ColorizationDataset(tmp_path, 128)
    item = data[0]
    assert {name: tuple(torch.as_tensor(value).shape) for name, value in item.items()} == {
        "L": (1, 128, 128), "ab": (2, 128, 128), "color_feature": (313,), "gray": (3, 256, 256), "image_id": (),
        "index": ()}
    lab = rgb_to_lab(picture)
    assert (item["L"][0] - torch.from_numpy(lab[..., 0]) / 100).abs().max() < 0.5 / 255 + 1e-6
    assert (item["ab"] * AB_SCALE - torch.from_numpy(lab[..., 1:]).permute(2, 0, 1)).abs().max() < 0.5 + 1e-4
    assert torch.equal(item["color_feature"], torch.from_numpy(color_feature(lab[..., 1:])))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    large = torch.from_numpy(resize(lab[..., 0], 256, 256))[..., None] / 100
    torch.testing.assert_close(item["gray"], ((large - mean) / std).permute(2, 0, 1), atol=0.01, rtol=0)
    assert item["image_id"] == 5


@pytest.mark.parametrize("names, ids", [
    (["ep01_5.png"], [5]),  # not 015
    (["raw_image_film_0.png", "raw_image_film_12.png"], [0, 12]),
    (["a_1.png", "b_1.png", "c.png"], [1, 2, 3]),  # a duplicate number, and no number
    (["a.png", "b.png"], [0, 1]),
    (["x99999999999999999999999.png", "y_3.png"], [4, 3]),  # beyond 63 bits
    (["frame7.final.png"], [0]),
])
def test_image_ids(names, ids):
    assert image_ids(names) == ids


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_all_picture_formats_are_read_correctly(tmp_path):
    ramp = np.arange(0, 256, 4, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(ramp, ramp), -1)
    rgb = np.concatenate([rgb, np.full((64, 64, 1), 50, np.uint8)], -1)
    gray = np.repeat(rgb[:, :, :1], 3, 2)

    def read(data, suffix):
        path = tmp_path / f"picture{suffix}"
        path.write_bytes(data)
        return read_image(path).astype(int)

    color = Image.fromarray(rgb)
    for format, suffix, options, tolerance in (
            ("PNG", ".png", {}, 0), ("BMP", ".bmp", {}, 0), ("WEBP", ".webp", {"lossless": True}, 0),
            ("JPEG", ".jpg", {"quality": 100, "subsampling": 0}, 3), ("JPEG", ".jpeg", {"quality": 95}, 12)):
        assert np.abs(read(encode(color, format, **options), suffix) - rgb).max() <= tolerance, suffix

    assert (read(encode(Image.fromarray(gray[..., 0]), "PNG"), ".png") == gray).all()
    sixteen = Image.fromarray(gray[..., 0].astype(np.uint16) * 257)
    assert (read(encode(sixteen, "PNG"), ".png") == gray).all()
    palette = Image.fromarray(np.repeat(rgb[:1, :, :], 64, 0)).quantize(64)
    assert np.abs(read(encode(palette, "PNG"), ".png") - np.array(palette.convert("RGB"))).max() == 0
    transparent = np.dstack([rgb, np.zeros((64, 64), np.uint8)])
    transparent[:, 32:, 3] = 255
    flat = read(encode(Image.fromarray(transparent), "PNG"), ".png")
    assert (flat[:, :32] == 255).all() and (flat[:, 32:] == rgb[:, 32:]).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees clockwise
    turned = read(encode(color, "PNG", exif=exif), ".png")
    assert (turned == np.rot90(rgb, -1)).all()


def test_unreadable_pictures_are_skipped_with_a_warning(tmp_path, capsys):
    write_image(tmp_path / "good_1.png", drawn_pictures()["flat"])
    (tmp_path / "bad_2.png").write_bytes(b"no picture")
    (tmp_path / "cut_3.png").write_bytes(encode(Image.fromarray(drawn_pictures()["noise"]), "PNG")[:5000])
    data = ColorizationDataset(tmp_path, 128)
    assert data.ids == [1]
    warnings = capsys.readouterr().err
    assert "bad_2.png" in warnings and "cut_3.png" in warnings


def test_a_folder_without_readable_pictures_is_an_error(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(UserError, match=str(tmp_path)):
        ColorizationDataset(tmp_path, 128)
    with pytest.raises(UserError, match="no folder"):
        ColorizationDataset(tmp_path / "missing", 128)


def test_huge_pictures_are_refused_by_their_header(tmp_path):
    path = tmp_path / "bomb.png"
    data = bytearray(encode(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(UserError, match="60000x60000"):
        read_image(path)
