"""Fuzz tests: for any file content, a reader returns a valid result or raises UserError, in bounded time and memory.

``make fuzz`` tries 500 cases a test; FUZZ_CASES sets the number.
"""

import os
import shutil
import struct
import zipfile
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from drawn import StubPredictor, draw_picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numbered import contents, copy_film, write_packets
from PIL import Image

from config import FilmConfig, GeneratorConfig
from fileio import checkpoints
from fileio.checkpoints import load_checkpoint
from fileio.images import read_image
from film.analysis.training_frames import extract_training_frames
from film.io import video
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import UserError

CASES = int(os.environ.get("FUZZ_CASES", 25))
fuzz = settings(max_examples=CASES, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck))


@st.composite
def damage(draw, whole):
    """Return the bytes of a file truncated, with changed bytes, an overwritten or repeated part, or a new header."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["cut", "flip", "overwrite", "repeat", "drop"]))
        length = draw(st.integers(1, 64))
        if kind == "cut":
            del data[place:]
        elif kind == "flip" and data:
            data[place] ^= draw(st.integers(1, 255))
        elif kind == "overwrite":
            data[place:place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "repeat":
            data[place:place] = data[place:place + length]
        else:
            del data[place:place + length]
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------------------------------------------------------------
# Images


@lru_cache
def picture_bytes(kind):
    file = BytesIO()
    Image.fromarray(draw_picture(1)).save(file, kind)
    return file.getvalue()


def check_picture(path):
    try:
        picture = read_image(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3


KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "AVIF": "avif", "JPEG2000": "jp2", "TGA": "tga"}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images(folder, kind):
    path = folder / f"picture.{KINDS[kind]}"

    @fuzz
    @given(damage(picture_bytes(kind)))
    def check(content):
        path.write_bytes(content)
        check_picture(path)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_images_are_refused(folder, kind):
    suffix = "tga" if kind == "TGA" else "png"
    whole, path = picture_bytes(kind), folder / f"cut.{suffix}"
    for tenth in range(10):
        path.write_bytes(whole[:len(whole) * tenth // 10])
        with pytest.raises(UserError, match=path.name):
            read_image(path)


def png(width, height):
    """Return a PNG of a few kB whose header states a size."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_huge_size_is_refused_by_the_header(tmp_path):
    path = tmp_path / "absurd.png"
    path.write_bytes(png(60_000, 60_000))
    assert path.stat().st_size < 4000
    with pytest.raises(UserError, match="60000x60000, more than"):
        read_image(path)


def test_other_files_with_image_suffixes_are_refused(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")  # no process writes to it
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # must not be executed
    for name in ("folder", "zero", "loop", "pipe", "endless", "program", "missing"):
        path = tmp_path / f"{name}.png"
        for reader in (read_image, load_checkpoint):
            with pytest.raises(UserError, match=name):
                reader(path)
        if name != "program":  # FFmpeg detects a video without decodable frames
            with pytest.raises(UserError, match=name), video.open_video(path):
                pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_refused(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(picture_bytes("PNG"))
    path.chmod(0)
    for reader in (read_image, load_checkpoint, lambda path: next(VideoFile(path).read())):
        with pytest.raises(UserError, match="secret.png"):
            reader(path)


@fuzz
@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=40))
def test_file_names_in_any_script(tmp_path_factory, name):
    path = tmp_path_factory.getbasetemp() / f"_{name}.png"
    path.write_bytes(picture_bytes("PNG"))
    try:
        assert (read_image(path) == draw_picture(1)).all()
    finally:
        path.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# Videos


@lru_cache
def video_bytes(suffix, codec, folder):
    path = Path(folder) / f"whole{suffix}"
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(draw_picture(i % 4, (64, 48)), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    return path.read_bytes()


def check_video(path):
    """Find the shots of a film and color it, as far as it can be read."""
    pictures = path.with_name("pictures")
    try:
        found = extract_training_frames(path, pictures, GeneratorConfig())
        assert found.shots and all(shot.end <= len(found.differences) for shot in found.shots)
    except UserError as error:
        assert str(path) in str(error)
    shutil.rmtree(pictures, ignore_errors=True)
    target = path.with_name("painted.mkv")
    try:
        color_film(StubPredictor(), VideoFile(path), target, FilmConfig(batch_size=4))
    except UserError as error:
        assert str(path) in str(error) or str(target) in str(error)


FILMS = [(".mp4", "libx264"), (".mkv", "mpeg4"), (".avi", "mpeg4"), (".webm", "libvpx")]


@pytest.mark.parametrize("suffix, codec", FILMS)
def test_damaged_videos(folder, suffix, codec):
    path = folder / f"film{suffix}"

    @fuzz
    @given(damage(video_bytes(suffix, codec, folder)))
    def check(content):
        path.write_bytes(content)
        check_video(path)

    check()


@pytest.mark.parametrize("suffix, codec", FILMS)
def test_truncated_videos(folder, suffix, codec):
    whole, path = video_bytes(suffix, codec, folder), folder / f"cut{suffix}"
    for tenth in range(10):
        path.write_bytes(whole[:len(whole) * tenth // 10])
        check_video(path)


@st.composite
def packet_faults(draw):
    """Return a function that drops, repeats and swaps packets and sets timestamps at random."""
    faults = draw(st.lists(st.tuples(st.sampled_from(["drop", "repeat", "swap", "time"]), st.integers(0, 19),
                                     st.integers(0, 10**draw(st.integers(1, 6)))), min_size=1, max_size=4))

    def change(packets):
        pairs = [(packet, packet.pts) for packet in packets]
        for kind, i, time in faults:
            i %= len(pairs) - 1
            if kind == "drop":
                del pairs[i]
            elif kind == "repeat":
                pairs.insert(i, pairs[i])
            elif kind == "swap":
                pairs[i:i + 2] = pairs[i + 1], pairs[i]
            else:
                pairs[i] = pairs[i][0], time
        return pairs
    return change


@pytest.mark.parametrize("codec, options", [("ffv1", {"g": "1"}), ("libx264", {"bf": "2", "g": "8"})])
def test_no_frame_moves_silently(folder, capsys, codec, options):
    """The output has the frames that FFmpeg decodes, at the stated times or with a warning."""
    path, target = folder / "packets.mkv", folder / "packets_colored.mkv"

    @fuzz
    @given(packet_faults())
    def check(change):
        write_packets(path, change, codec, options=options, times=range(20), sound=None)
        target.unlink(missing_ok=True)
        capsys.readouterr()
        try:
            copy_film(path, target)
        except UserError as error:
            assert "can be decoded" in str(error)
            return
        (stated, shown, _), (times, colored, _) = contents(path), contents(target)
        assert colored == shown
        if "wrong timestamps" not in capsys.readouterr().err:
            expected = [time - stated[0] for time in stated]
            assert [time - times[0] for time in times] == pytest.approx(expected, abs=0.0011)

    check()


def test_playlists_are_not_videos(tmp_path):
    """FFmpeg supports formats that name other files and addresses, which must not be opened."""
    (tmp_path / "whole.mp4").write_bytes(video_bytes(".mp4", "libx264", str(tmp_path)))
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/{tmp_path}/whole.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(UserError, match="list.mp4"), video.open_video(tmp_path / "list.mp4"):
        pass


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


@lru_cache
def checkpoint_bytes():
    file = BytesIO()
    content = {"weights": {"a": torch.arange(60.0).view(6, 10), "b": torch.ones(3, dtype=torch.float16)},
               "format": checkpoints.CHECKPOINT_FORMAT, "epoch": 3, "names": ["x", None, 2.5]}
    torch.save(content, file)
    return file.getvalue()


def check_checkpoint(path):
    try:
        content = load_checkpoint(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert content["format"] == checkpoints.CHECKPOINT_FORMAT


@fuzz
@given(damage(checkpoint_bytes()))
def test_damaged_checkpoints(content):
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz_{os.getpid()}.pt"
    path.write_bytes(content)
    try:
        check_checkpoint(path)
    finally:
        path.unlink()


@fuzz
@given(st.data())
def test_checkpoints_with_damaged_pickles(tmp_path_factory, data):
    """The checksums of the archive are correct, so that the unpickler gets the damaged pickle."""
    path = tmp_path_factory.getbasetemp() / "pickle.pt"
    with zipfile.ZipFile(BytesIO(checkpoint_bytes())) as whole, zipfile.ZipFile(path, "w") as spoiled:
        for name in whole.namelist():
            content = whole.read(name)
            spoiled.writestr(name, data.draw(damage(content)) if name.endswith("data.pkl") else content)
    check_checkpoint(path)


def test_truncated_checkpoints_are_refused(tmp_path):
    whole, path = checkpoint_bytes(), tmp_path / "cut.pt"
    for tenth in range(10):
        path.write_bytes(whole[:len(whole) * tenth // 10])
        with pytest.raises(UserError, match="cut.pt is not a checkpoint"):
            load_checkpoint(path)


def test_compressed_checkpoint_is_refused_before_decompression(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(2**24))
    with pytest.raises(UserError, match="compressed"):
        load_checkpoint(path)
