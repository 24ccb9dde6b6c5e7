"""Reading and writing of films: what the output keeps of its source, and handling of bad input."""

import argparse
import io
import os
import resource
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from drawn import (
    StubPredictor, draw_film, draw_picture, draw_shots, mux_copy, mux_sound, planes_in, times_and_sound)

from config import FilmConfig
from film.io.frame_index import FrameIndex, frames_at
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import UserError, parse_time


def color(source, output, predictor=None, **settings):
    color_film(predictor or StubPredictor(), VideoFile(source), output, FilmConfig(**settings))
    return output


def tracks(path):
    """{kind: [(codec, language, title, default, packets)]}, packets as (seconds, bytes)."""
    with av.open(str(path)) as film:
        found = {stream.index: (stream.type, stream.codec_context.codec.canonical_name, stream.metadata.get("language"),
                                stream.metadata.get("title"), bool(stream.disposition.value & 1), [])
                 for stream in film.streams if stream.type in ("audio", "subtitle")}
        for packet in film.demux(*(film.streams[index] for index in found)):
            if packet.size:
                found[packet.stream_index][-1].append((float(packet.pts * packet.time_base), bytes(packet)))
    return list(found.values())


def draw_rich_film(path):
    """A film with two sound tracks, subtitles, chapters, tags and a second language."""
    text = "".join(f"{i + 1}\n00:00:0{i},300 --> 00:00:0{i},800\nWords {i}\n\n" for i in range(2))
    with av.open(str(path), "w") as film, av.open(io.BytesIO(text.encode()), format="srt") as titles:
        film.metadata["title"] = "Bärbel & »Söhne« <script> 🎬"
        film.set_chapters([{"id": i, "start": 1000 * i, "end": 1000 * (i + 1), "time_base": Fraction(1, 1000),
                            "metadata": {"title": f"Part {i}"}} for i in range(2)])
        video = film.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds = []
        for language in ("eng", "deu"):
            sound = film.add_stream("aac", rate=44100, layout="mono")
            sound.metadata.update(language=language, title=f"Sound {language}")
            sounds.append(sound)
        words = film.add_stream_from_template(titles.streams[0], opaque=True)
        words.metadata["language"] = "fra"
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60 + 5 * i, np.uint8), format="rgb24")
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        for number, sound in enumerate(sounds):
            wave = (np.sin(np.arange(88200) / (20 + 9 * number)) * 8000).astype(np.int16)[None]
            mux_sound(film, sound, wave)
        mux_copy(film, words, titles)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# What the output keeps


@pytest.mark.parametrize("suffix, sizes, times", [
    (".mp4", (64, 48), range(20)), (".mkv", (853, 479), range(4)), (".mov", (64, 48), (0,)),
    (".mp4", (16, 16), range(3)), (".mp4", (2, 2), range(3)),
    *[(suffix, (64, 48), (0, 1, 2, 5, 6, 11)) for suffix in (".mp4", ".mkv", ".mov")]])
def test_output_keeps_frames_timestamps_size_and_sound(tmp_path, suffix, sizes, times):
    source = draw_film(tmp_path / f"in{suffix}", sizes, times)
    output = color(source, tmp_path / f"out{suffix}", crf=0, batch_size=3)
    assert times_and_sound(output) == times_and_sound(source)
    assert len(times_and_sound(source)[1]) > 3
    for before, after in zip(planes_in(source), planes_in(output), strict=True):
        assert np.array_equal(before[0], after[0])


def test_webm_output(tmp_path):
    source = draw_film(tmp_path / "in.mkv", (63, 47), codec="libvpx-vp9", sound="libopus", times=(0, 1, 2, 5, 6))
    output = color(source, tmp_path / "out.webm")
    assert times_and_sound(output) == times_and_sound(source)
    with av.open(str(output)) as film:
        assert film.streams.video[0].codec_context.name.endswith("vp9")


def test_output_keeps_all_tracks_chapters_and_tags(tmp_path):
    source = draw_rich_film(tmp_path / "in.mkv")
    output = color(source, tmp_path / "out.mkv")
    assert tracks(output) == tracks(source) and len(tracks(source)) == 3
    with av.open(str(source)) as a, av.open(str(output)) as b:
        assert [stream.type for stream in a.streams] == [stream.type for stream in b.streams]
        assert a.metadata["title"] == b.metadata["title"]
        assert [(c["start"], c["end"], c["metadata"]) for c in a.chapters()] == [
            (c["start"], c["end"], c["metadata"]) for c in b.chapters()] and len(b.chapters()) == 2


def test_tracks_that_the_container_cannot_store_are_named_in_a_warning(tmp_path, capsys):
    source = draw_rich_film(tmp_path / "in.mkv")
    output = color(source, tmp_path / "out.mp4")
    said = capsys.readouterr().err
    assert "cannot store the subtitles 3 (subrip, fra)" in said and "sound" not in said
    assert [track[:3] for track in tracks(output)] == [("audio", "aac", "eng"), ("audio", "aac", "deu")]
    with av.open(str(output)) as film:
        assert [chapter["metadata"]["title"] for chapter in film.chapters()] == ["Part 0", "Part 1"]
    color(source, tmp_path / "out.webm")
    assert capsys.readouterr().err.count("cannot store the sound track") == 2
    # and back again: in .mp4, chapter titles are a track
    assert len(tracks(color(output, tmp_path / "again.mkv"))) == 2


def test_films_without_sound_or_with_empty_sound(tmp_path):
    silent = draw_film(tmp_path / "silent.mp4", sound=None)
    assert times_and_sound(color(silent, tmp_path / "out1.mp4")) == times_and_sound(silent)
    source = tmp_path / "empty.mkv"
    with av.open(str(source), "w") as film:
        video = film.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        film.add_stream("pcm_s16le", rate=44100, layout="mono")
        for i in range(5):
            film.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 50 * i, np.uint8), format="rgb24")))
        film.mux(video.encode(None))
    output = color(source, tmp_path / "out.mkv")
    assert times_and_sound(output) == times_and_sound(source)
    with av.open(str(output)) as film:
        assert len(film.streams.audio) == 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("colorspace", [1, 6])
def test_output_keeps_range_matrix_depth_and_aspect(tmp_path, full, depth, colorspace):
    source = tmp_path / "in.mkv"
    pix_fmt = "yuv420p" if depth == 8 else "yuv420p10le"
    ramp = np.arange(64 * 48).reshape(48, 64) % (2**depth - 100) + 50
    with av.open(str(source), "w") as film:
        stream = film.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1 + full, colorspace, 1, 1
        context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(3):
            frame = av.VideoFrame(64, 48, pix_fmt)
            for index, plane in enumerate(frame.planes):
                rows = np.frombuffer(plane, np.uint8 if depth == 8 else np.uint16).reshape(plane.height, -1)
                rows[:] = 2 ** (depth - 1)
                if index == 0:
                    rows[:, :64] = ramp
            frame.color_range, frame.colorspace = 1 + full, colorspace
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    output = color(source, tmp_path / "out.mp4")
    with av.open(str(output)) as film:
        context = film.streams.video[0].codec_context
        assert (context.pix_fmt.replace("yuvj", "yuv"), context.color_range, context.colorspace) == (
            pix_fmt, 1 + full, colorspace)
        assert (context.color_primaries, context.color_trc) == (1, 1)
        assert film.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    assert np.array_equal(planes_in(source)[0][0], ramp)
    assert np.array_equal(planes_in(color(source, tmp_path / "exact.mkv", codec="ffv1"))[0][0], ramp)


@pytest.mark.parametrize("matrix, upright", [
    ((0, 1, -1, 0), lambda y: np.rot90(y, -1)),  # players rotate such a film clockwise
    ((0, -1, 1, 0), np.rot90), ((-1, 0, 0, -1), lambda y: y[::-1, ::-1]), ((-1, 0, 0, 1), np.fliplr),
    ((1, 0, 0, -1), np.flipud), ((0, 1, 1, 0), np.transpose), ((0, -1, -1, 0), lambda y: np.rot90(y.T, 2))])
def test_rotated_and_mirrored_films_are_stored_upright(tmp_path, matrix, upright):
    """Films of phones are rotated by a display matrix; the networks must see them upright."""
    source = draw_shots(tmp_path / "in.mp4", [(120, 6)], options={"crf": "0"})
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version, flags, times, id, duration, reserved, layer, group, volume
    stored = np.frombuffer(bytes(content[at:at + 36]), ">i4").copy()
    assert stored[0] == 1 << 16
    stored[[0, 1, 3, 4]] = np.array(matrix) << 16
    content[at:at + 36] = stored.tobytes()
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content)
    output = color(turned, tmp_path / "out.mp4", crf=0)
    for before, after in zip(planes_in(source), planes_in(output), strict=True):
        assert np.array_equal(upright(before[0]), after[0])


def test_start_and_end_select_a_part_of_the_film(tmp_path):
    source = draw_rich_film(tmp_path / "in.mkv")
    output = color(source, tmp_path / "out.mkv", start=0.5, end=1.5, crf=0)
    times, sound, _ = times_and_sound(output)
    assert np.allclose(times, np.arange(10) / 10, atol=0.002)
    whole = planes_in(source)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(planes_in(output), whole[5:15], strict=True))
    before, after = tracks(source), tracks(output)
    for old, new in zip(before, after, strict=True):
        wanted = [(time - 0.5, data) for time, data in old[-1] if 0.5 <= time < 1.5]
        assert [data for _, data in new[-1]] == [data for _, data in wanted] and len(wanted) >= 1
        assert np.allclose([time for time, _ in new[-1]], [time for time, _ in wanted], atol=0.002)
    with av.open(str(output)) as film:
        assert [(c["start"], c["end"]) for c in film.chapters()] == [(0, 500_000_000), (500_000_000, 1_000_000_000)]
    with pytest.raises(UserError, match="between --start and --end can be decoded"):
        color(source, tmp_path / "none.mkv", start=100.0)


@pytest.mark.parametrize("text, seconds", [("90", 90), ("1:30", 90), ("01:02:03.5", 3723.5), ("0", 0)])
def test_parse_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "1:2:3:4", "inf", "nan"])
def test_parse_time_refuses_other_texts(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected seconds"):
        parse_time(text)


@pytest.mark.parametrize("settings, codec, pix_fmt", [
    ({}, "h264", "yuv420p"), ({"codec": "hevc"}, "hevc", "yuv420p"), ({"pix_fmt": "yuv444p"}, "h264", "yuv444p"),
    ({"codec": "ffv1"}, "ffv1", "yuv420p"), ({"codec": "libaom-av1"}, "av1", "yuv420p"),
    ({"pix_fmt": "yuv420p10le"}, "h264", "yuv420p10le"), ({"codec": "prores"}, "prores", "yuv422p10le")])
def test_output_codecs(tmp_path, settings, codec, pix_fmt):
    source = draw_film(tmp_path / "in.mkv", (128, 96), range(5))
    output = color(source, tmp_path / "out.mkv", **settings)
    with av.open(str(output)) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.codec.canonical_name == codec and stream.codec_context.pix_fmt == pix_fmt
    assert times_and_sound(output) == times_and_sound(source)
    shift = 2 if "10" in pix_fmt else 0
    assert np.abs((planes_in(source)[3][0].astype(int) << shift) - planes_in(output)[3][0]).mean() < 2 << shift


@pytest.mark.parametrize("lines, options", [
    (576, [b"chroma_qp_offset=-2", b"trellis=1", b"analyse=0x3:0x13 "]),  # 0x10: motion of parts of a block
    (578, [b"chroma_qp_offset=-2", b"trellis=0", b"analyse=0x3:0x3 "])])
def test_x264_encodes_small_frames_more_thoroughly(tmp_path, lines, options):
    output = color(draw_film(tmp_path / "in.mkv", (32, lines), range(2)), tmp_path / "out.mkv")
    written = output.read_bytes()  # x264 states its options
    assert [option for option in options if option not in written] == []


@pytest.mark.parametrize("name, settings, tag", [
    ("out.mp4", {"codec": "hevc"}, "hvc1"), ("out.mov", {"codec": "prores"}, "apch"),
    ("out.mov", {"codec": "prores", "pix_fmt": "yuv444p10le"}, "ap4h")])
def test_codec_tags_that_players_and_editing_programs_need(tmp_path, name, settings, tag):
    output = color(draw_film(tmp_path / "in.mkv", (128, 96), range(3)), tmp_path / name, **settings)
    with av.open(str(output)) as film:
        assert film.streams.video[0].codec_context.codec_tag == tag and len(list(film.decode(video=0))) == 3


@pytest.mark.parametrize("name, codec, pix_fmt, far", [
    ("out.mkv", "ffv1", "yuv420p10le", 0), ("out.mov", "prores", "yuv422p10le", 2)])
def test_master_codecs_keep_10_bits_and_are_intra_only(tmp_path, name, codec, pix_fmt, far):
    source = draw_shots(tmp_path / "in.mkv", [(60, 8)], codec="ffv1", pix_fmt="yuv420p10le", noise=2)
    output = color(source, tmp_path / name, codec=codec)
    with av.open(str(output)) as film:
        assert film.streams.video[0].codec_context.pix_fmt == pix_fmt
        assert all(packet.is_keyframe for packet in film.demux(video=0) if packet.size)
    lumas = [planes[0] for planes in planes_in(source)]
    assert any((luma % 4).any() for luma in lumas)
    assert all(np.abs(np.subtract(luma, planes[0], dtype=int)).mean() <= far
               for luma, planes in zip(lumas, planes_in(output), strict=True))


@pytest.mark.parametrize("name, settings, message", [
    ("out.mp4", {"codec": "nothing"}, "there is no encoder nothing"),
    ("out.mp4", {"codec": "aac"}, "does not encode video"),
    ("out.webm", {"codec": "h264"}, ".webm cannot store --codec h264"),
    ("out.mp4", {"pix_fmt": "rgb24"}, "cannot write --pix_fmt rgb24; choose from yuv420p"),
    ("out.mkv", {"codec": "ffv1", "crf": 3}, "has no --crf"),
    ("out.mp4", {"crf": -12}, "does not support --crf -12"),
    ("out.avi", {}, "pass a .mp4, .mkv, .mov or .webm file"),
])
def test_incompatible_settings_are_refused(tmp_path, name, settings, message):
    source = draw_film(tmp_path / "in.mp4", times=range(3))
    with pytest.raises(UserError, match=message):
        color(source, tmp_path / name, **settings)
    assert os.listdir(tmp_path) == ["in.mp4"]


def test_420_of_a_size_that_is_odd(tmp_path):
    source = draw_film(tmp_path / "in.mp4", (63, 47), times=range(3))
    with pytest.raises(UserError, match="does not support .* --pix_fmt yuv420p at 63x47"):
        color(source, tmp_path / "out.mp4", pix_fmt="yuv420p")


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_output_must_differ_from_input(tmp_path):
    source = draw_film(tmp_path / "in.mp4", times=range(3))
    (tmp_path / "link.mp4").symlink_to(source)
    before = source.read_bytes()
    for name in ("in.mp4", "link.mp4"):
        with pytest.raises(UserError, match="is the input itself"):
            color(source, tmp_path / name)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["a film.mp4", "it's \"good\".mkv", "Müßiggang 🎬.mp4", "<script>alert(1)<.mkv",
                                  "100%d.mp4"])
def test_unusual_file_names(tmp_path, name):
    source = draw_film(tmp_path / name, times=range(3))
    output = color(source, tmp_path / "out" / name)
    assert times_and_sound(output) == times_and_sound(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_around_damage_are_colored_and_keep_their_timestamps(tmp_path, capsys, suffix):
    source = draw_shots(tmp_path / f"in{suffix}", [(60, 40), (190, 40)], options={"g": "8", "bf": "0"})
    with av.open(str(source)) as film:
        places = [(packet.pos, packet.size) for packet in film.demux(video=0) if packet.size]
    content = bytearray(source.read_bytes())
    for position, size in places[18:22]:
        content[position + 12:position + size] = b"\xff" * (size - 12)
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(content)
    before = dict(zip(times_and_sound(source)[0], planes_in(source), strict=True))
    output = color(broken, tmp_path / f"out{suffix}", crf=0)
    said = capsys.readouterr().err
    assert "is damaged from 1." in said and said.count("warning") <= 2
    after = dict(zip(times_and_sound(output)[0], planes_in(output), strict=True))
    assert 70 <= len(after) <= 80 and set(after) <= set(before)
    times = sorted(before)
    for time in times[:18] + times[24:]:  # a key frame every 8 frames
        assert np.array_equal(before[time][0], after[time][0])


def test_truncated_film_is_colored_as_far_as_it_decodes(tmp_path):
    source = draw_film(tmp_path / "in.mkv", sizes=(320, 240), times=range(60))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(source.read_bytes()[:source.stat().st_size * 6 // 10])
    times = times_and_sound(color(cut, tmp_path / "out.mkv"))[0]
    assert 5 < len(times) < 60 and times == times_and_sound(source)[0][:len(times)]


def test_files_without_video_are_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(UserError, match="cannot read .*text.mp4 as a video"):
        color(tmp_path / "text.mp4", tmp_path / "out.mp4")
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as film:
        film.add_stream("pcm_s16le", rate=44100, layout="mono")
        film.start_encoding()
    with pytest.raises(UserError, match="has no video stream|cannot read"):
        color(sound, tmp_path / "out.mp4")
    assert sorted(os.listdir(tmp_path)) == ["sound.mkv", "text.mp4"]


def test_unwritable_folder_is_refused(tmp_path):
    source = draw_film(tmp_path / "in.mp4", times=range(3))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        color(source, tmp_path / "file" / "out.mp4")
    assert sorted(os.listdir(tmp_path)) == ["file", "in.mp4"]


@pytest.mark.parametrize("room, noise, palettes", [(7_000, 0, 2), (25_000, 0, 0), (40_000, 10, 0)])
def test_full_disk_keeps_finished_shots(tmp_path, room, noise, palettes):
    """A limit on the file size stands in for a full disk, reached by the plan, by a shot or by the whole film. Only
    without a plan, palettes are predicted again."""
    source = draw_shots(tmp_path / "in.mkv", [(60, 20), (200, 30)], noise=noise, options={"crf": "0"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = tmp_path / "out.mkv"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(UserError, match="cannot write .*free disk space and run the same command again") as error:
            color(source, output, crf=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value) and not output.exists()
    predictor, kept = StubPredictor(), len(list((tmp_path / ".out.mkv.segments").glob("*.segment")))
    color(source, output, predictor, crf=0)
    assert predictor.shots == palettes and predictor.frames == (50, 30, 0)[kept]  # finished shots are kept
    assert len(planes_in(output)) == 50


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def test_frames_at_seeks_only_where_it_is_faster(tmp_path, monkeypatch):
    source = draw_film(tmp_path / "in.mp4", times=range(400))  # 40 seconds
    film = VideoFile(source)
    whole = [(pts, planes.y.copy()) for pts, _, planes in film.read()]
    index = FrameIndex([pts for pts, _ in whole], [zlib.crc32(y[::3, ::4].tobytes()) for _, y in whole])
    goes, read, read_near = [], VideoFile.read, VideoFile.read_near
    monkeypatch.setattr(VideoFile, "read", lambda film, begin: goes.append((begin, False)) or read(film, begin))
    monkeypatch.setattr(VideoFile, "read_near", lambda film, pts: goes.append((pts, True)) or read_near(film, pts))
    wanted = [0, 30, 31, 120, 350]
    found = [(index, planes.y.copy()) for index, planes in frames_at(film, index, wanted)]
    assert [index for index, _ in found] == wanted and goes == [(0, False), (whole[350][0], True)]
    assert all(np.array_equal(y, whole[index][1]) for index, y in found)


def test_film_without_timestamps(tmp_path):
    """Raw H.264 has no timestamps; frames follow each other at the stated rate."""
    source = tmp_path / "in.ts"
    with av.open(str(source), "w", format="h264") as film:
        stream = film.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(12):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(draw_picture(i), format="rgb24")))
        film.mux(stream.encode(None))
    output = color(source, tmp_path / "out.mp4")
    times = np.array(times_and_sound(output)[0])
    assert len(times) == 12 and np.ptp(np.diff(times)) < 1e-3


def test_lost_pixel_aspect_ratio_is_named_in_a_warning(tmp_path, capsys):
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as film:
        stream = film.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        film.mux(stream.encode(av.VideoFrame.from_ndarray(draw_picture(0, (64, 48)), format="rgb24")))
        film.mux(stream.encode(None))
    color(source, tmp_path / "out.webm")
    assert "cannot store the pixel aspect ratio (4/3)" in capsys.readouterr().err
