"""Pictures with ICC profiles are read as sRGB."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from fileio.images import read_image, srgb_decode, srgb_encode

PROFILES = {  # name: (XYZ of R, G and B, adapted to D50, gamma)
    "Adobe RGB": ([(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)], 2.2),
    "Display P3": ([(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)], 2.2)}
SRGB = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)])
COLORS = np.array([(200, 90, 60), (100, 160, 80), (90, 100, 180), (128, 128, 128), (255, 255, 255)], np.uint8)


def make_profile(name):
    """Return the bytes of a version 2 ICC profile with a matrix and a gamma, or of a gray one."""
    colorants, gamma = PROFILES.get(name, ([], 1.0))

    def number(value):
        return struct.pack(">i", round(value * 65536))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79),
            b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": b"XYZ " + bytes(4) + b"".join(
                map(number, (0.9642, 1, 0.8249)))}
    for letter, xyz in zip((b"r", b"g", b"b"), colorants, strict=False):
        tags |= {letter + b"XYZ": b"XYZ " + bytes(4) + b"".join(map(number, xyz)), letter + b"TRC": curve}
    if not colorants:
        tags[b"kTRC"] = curve
    table, data = struct.pack(">I", len(tags)), b""
    for key, content in tags.items():
        table += key + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = bytes(4) + b"\0" * 4 + b"\2\x20\0\0" + b"mntr" + (b"RGB " if colorants else b"GRAY") + b"XYZ " + bytes(12)
    header += b"acsp" + bytes(28) + b"".join(map(number, (0.9642, 1, 0.8249)))
    header = struct.pack(">I", 128 + len(table + data)) + header[4:] + bytes(128 - len(header))
    return header + table + data


def expected(name):
    colorants, gamma = PROFILES[name]
    linear = (COLORS / 255.0) ** gamma @ np.array(colorants) @ np.linalg.inv(SRGB)
    return 255 * np.clip(srgb_encode(linear), 0, 1)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("name", PROFILES)
def test_wide_gamuts_are_converted(tmp_path, name, suffix):
    path, options = tmp_path / f"a{suffix}", {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(COLORS[None]).save(path, icc_profile=make_profile(name), **options)
    read = read_image(path)[0].astype(float)
    assert np.abs(read - expected(name)).max() <= 2 and np.abs(read - COLORS).max() > 15
    translucent = np.dstack([COLORS[None], np.full((1, len(COLORS)), 255, np.uint8)])
    translucent[0, 0, 3] = 0
    Image.fromarray(translucent).save(path, icc_profile=make_profile(name), **options)
    assert np.array_equal(read_image(path)[0, 1:], read[1:]) and (read_image(path)[0, 0] == 255).all()


def test_gray_profiles_give_gray(tmp_path):
    ramp = np.arange(256, dtype=np.uint8)[None]
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=make_profile("linear light"))
    read = read_image(tmp_path / "a.png")
    assert np.ptp(read, -1).max() == 0
    assert np.abs(srgb_decode(read[0, :, 0] / 255) - ramp[0] / 255).max() < 0.01


def test_deep_pictures_are_converted(tmp_path):
    png = cv2.imencode(".png", (COLORS[None, :, ::-1].astype(np.uint16) * 257))[1].tobytes()
    content = b"iCCP" + b"a\0\0" + zlib.compress(make_profile("Adobe RGB"))
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    (tmp_path / "a.png").write_bytes(png[:33] + chunk + png[33:])
    assert np.abs(read_image(tmp_path / "a.png")[0] - expected("Adobe RGB")).max() <= 2
    ramp = np.arange(256, dtype=np.uint16)[None] * 257
    Image.fromarray(ramp).save(tmp_path / "a.tif", icc_profile=make_profile("linear light"))
    assert np.abs(srgb_decode(read_image(tmp_path / "a.tif")[0, :, 0] / 255) - ramp[0] / 65535).max() < 0.01


def test_srgb_and_damaged_profiles_change_nothing(tmp_path, capsys):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, make_profile("Adobe RGB")[:200], b"no profile"):
        Image.fromarray(COLORS[None]).save(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(read_image(tmp_path / "a.png")[0], COLORS)
    assert capsys.readouterr().err.count("cannot be used") == 2
