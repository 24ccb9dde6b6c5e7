"""Identity of frames: frame k of the output shows frame k of the source, at the same time, for all k."""

import io
import re
from contextlib import closing
from fractions import Fraction

import av
import numpy as np
import pytest
from drawn import StubPredictor
from numbered import RATE, contents, copy_film, read_number, write_numbers, write_packets

from config import FilmConfig, GeneratorConfig
from film.analysis.film_analysis import analyze_film
from film.analysis.training_frames import extract_training_frames
from film.io import frame_index, video
from film.io.frame_index import FrameIndex, frames_at, luma_checksum
from film.io.video import VideoFile
from film.render.rendering import color_film

FRAMES = 60
B_FRAMES, INTRA = {"bf": "2", "g": "12"}, {"g": "1", "bf": "0"}


def with_times(path, change, codec="libx264"):
    """Write a .mkv whose packet i, in decoding order, has the timestamp change(i, timestamp)."""
    options = INTRA if codec == "ffv1" else B_FRAMES
    return write_packets(path, lambda packets: [(packet, change(i, packet.pts)) for i, packet in enumerate(packets)],
                         codec, options=options)


def with_packets(path, order):
    """Write a .mkv with the packets order(packets), in decoding order."""
    return write_packets(path, lambda packets: [(packet, packet.pts) for packet in order(packets)], "ffv1",
                         options=INTRA)


def joined(path, codec, **options):
    """Write two films, and one that is both joined with ``cat``."""
    parts = [write_numbers(path.with_stem(f"{path.stem}_{i}"), codec, first=30 * i, times=range(30), **options)
             for i in (0, 1)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def cut(path, start, codec="libx264"):
    """Write a film from the keyframe before ``start`` seconds on, which becomes time 0, as FFmpeg's -ss -c copy."""
    whole = write_numbers(path.with_stem("whole"), codec, options=B_FRAMES)
    with av.open(str(whole)) as film, av.open(str(path), "w") as part:
        streams = [part.add_stream_from_template(stream) for stream in film.streams]
        film.seek(round(start * 1e6))
        for packet in film.demux():
            if packet.size:
                offset = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - offset, (packet.dts or 0) - offset
                packet.stream = streams[packet.stream_index]
                part.mux(packet)
    return path


def without_every_fifth_time(path):
    """Write a .ts and remove the timestamps of a fifth of its frames."""
    content = bytearray(write_numbers(path, "mpeg2video", options=INTRA).read_bytes())
    starts = [i for i in range(0, len(content), 188) if content[i + 1] & 0x40 and b"\0\0\1\xe0" in content[i:i + 188]]
    for start in starts[4::5]:
        at = content.index(b"\0\0\1\xe0", start)
        length = content[at + 8]
        content[at + 7] &= 0x3f  # no timestamps
        content[at + 9:at + 9 + length] = b"\xff" * length  # stuffing
    path.write_bytes(content)
    return path


# name of the source: (function that writes it, {number: frames since the first one} if not one by one, number of wrong
# timestamps)
GAPS = [*range(20), *range(30, 50), *range(51, 71)]
LONG_GAP = [*range(30), *range(400, 430)]
FILMS = {
    "h264.mp4": (lambda path: write_numbers(path, options=B_FRAMES, sound="aac"), None, 0),
    "hevc.mp4": (lambda path: write_numbers(path, "libx265", options={"x265-params": "log-level=error"}), None, 0),
    "prores.mov": (lambda path: write_numbers(path, "prores_ks", pix_fmt="yuv422p10le", sound="aac"), None, 0),
    "ffv1.mkv": (lambda path: write_numbers(path, "ffv1", sound="pcm_s16le"), None, 0),
    "open_gop.mkv": (lambda path: write_numbers(path, options=B_FRAMES | {"x264-params": "open-gop=1"}), None, 0),
    "intra_refresh.mkv": (lambda path: write_numbers(path, options={"x264-params": "intra-refresh=1:keyint=12"}),
                          None, 0),
    "mpeg4.mkv": (lambda path: write_numbers(path, "mpeg4", options=B_FRAMES), None, 0),
    "vp9.webm": (lambda path: write_numbers(path, "libvpx-vp9", options={"g": "12"}, sound="libopus"), None, 0),
    "h264.avi": (lambda path: write_numbers(path, options=B_FRAMES), None, 0),
    "h264_without_b_frames.avi": (lambda path: write_numbers(path, options={"bf": "0", "g": "12"}), None, 0),
    "mpeg4.avi": (lambda path: write_numbers(path, "mpeg4", options=B_FRAMES), None, 0),
    "mjpeg.avi": (lambda path: write_numbers(path, "mjpeg", pix_fmt="yuvj420p"), None, 0),
    "gaps.avi": (lambda path: write_numbers(path, "mpeg4", GAPS, options={"bf": "0", "g": "12"}), GAPS, 0),
    "mpeg2.mxf": (lambda path: write_numbers(path, "mpeg2video", options=B_FRAMES, sound="pcm_s16le"), None, 0),
    "h264.ts": (lambda path: write_numbers(path, options=B_FRAMES), None, 0),
    "mpeg2.vob": (lambda path: write_numbers(path, "mpeg2video", options=B_FRAMES), None, 0),
    "mpeg1.mpg": (lambda path: write_numbers(path, "mpeg1video", options=B_FRAMES), None, 0),
    "h264.flv": (lambda path: write_numbers(path, options=B_FRAMES, sound="mp3"), None, 0),
    "mpeg4.nut": (lambda path: write_numbers(path, "mpeg4", options=B_FRAMES), None, 0),
    "vp8.ogv": (lambda path: write_numbers(path, "libvpx", options={"g": "12"}, sound="libopus"), None, 0),
    "stream.h264": (lambda path: write_numbers(path, options=B_FRAMES, sound=None, muxer="h264"),
                    [i * 24 / 25 for i in range(FRAMES)], 0),  # it states no frame rate
    "gaps.mkv": (lambda path: write_numbers(path, times=GAPS, options=B_FRAMES), GAPS, 0),
    "long_gap.mkv": (lambda path: write_numbers(path, times=LONG_GAP, options=B_FRAMES), LONG_GAP, 0),
    "later_picture.mkv": (lambda path: write_numbers(path, options=B_FRAMES, delay=24), None, 0),
    "later_picture.mp4": (lambda path: write_numbers(path, options=B_FRAMES, delay=24), None, 0),
    "edit_list.mp4": (lambda path: cut(path, 1.3), None, 0),
    "cut.mkv": (lambda path: cut(path, 1.3), None, 0),
    "without_times.ts": (without_every_fifth_time, None, 0),
    "repeated_times.mkv": (lambda path: with_times(path, lambda i, time: time - (i in (20, 40)), "ffv1"), None, 2),
    "backward_time.mkv": (lambda path: with_times(path, lambda i, time: time - 6 * (i == 20), "ffv1"), None, 1),
    "high_time.mkv": (lambda path: with_times(path, lambda i, time: time + 900 * (i == 20)), None, 1),
    "high_first_time.mkv": (lambda path: with_times(path, lambda i, time: time + 900 * (i == 0), "ffv1"), None, 1),
    "low_time.mkv": (lambda path: with_times(path, lambda i, time: time * (i != 50)), None, 1),
    "high_time_without_b_frames.mkv": (lambda path: with_times(path, lambda i, time: time + 900 * (i == 20), "ffv1"),
                                       None, 1),
    "dropped_packets.mkv": (lambda path: with_packets(path, lambda i: i[:25] + i[27:]), None, 0),
    "repeated_packets.mkv": (lambda path: with_packets(path, lambda i: i[:25] + i[24:]), None, 1),
    "reordered_packets.mkv": (lambda path: with_packets(path, lambda i: [*i[:25], i[27], *i[25:27], *i[28:]]), None, 3),
    "joined.ts": (lambda path: joined(path, "libx264", options=B_FRAMES), None, 0),
    "joined.vob": (lambda path: joined(path, "mpeg2video", options=B_FRAMES), None, 0),
    "joined.mpg": (lambda path: joined(path, "mpeg1video", options=B_FRAMES), None, 0),
}


COLORED = {"h264.mp4", "h264.avi", "joined.ts"}  # copying the others takes the same path, but less time


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Return a function that writes a film of FILMS once."""
    folder, written = tmp_path_factory.mktemp("films"), {}

    def film(name):
        if name not in written:
            written[name] = FILMS[name][0](folder / name)
        return written[name]

    return film


@pytest.mark.parametrize("name", FILMS)
def test_frame_k_of_the_output_shows_frame_k_of_the_source_at_the_same_time(films, tmp_path, capsys, name):
    source, (_, places, wrong) = films(name), FILMS[name]
    output = tmp_path / f"{source.stem}{source.suffix if source.suffix in ('.mp4', '.mov', '.webm') else '.mkv'}"
    if name in COLORED:
        color_film(StubPredictor(), VideoFile(source), output)
    else:
        copy_film(source, output)
    (stated, shown, sound), (times, colored, copied) = contents(source), contents(output)
    assert colored == shown
    assert re.findall(r"has (\d+) wrong timestamps", errors := capsys.readouterr().err) == [str(wrong)] * bool(wrong)
    assert errors.count("warning") == bool(wrong)
    expected = [(places[number] if places else number - shown[0]) / RATE for number in shown]
    errors = [abs(time - times[0] - there) for time, there in zip(times, expected, strict=True)]
    assert sum(error > 0.0011 for error in errors) <= wrong and max(errors) < 0.125
    first = 0 if source.suffix == ".avi" or "first" in name else stated[0]  # .avi files state no presentation times
    assert len(copied) >= (len(sound) * 3 // 5 if sound else 0)
    for packet, time in copied.items():
        at, begin = sound[packet], first
        if name.startswith("joined"):
            part, _, packets = contents(source.with_stem(f"{source.stem}_1"))
            if packet in packets:
                at, begin = packets[packet] + 1.25, part[0]
        assert time - times[0] == pytest.approx(at - begin, abs=0.0011)


@pytest.mark.parametrize("name", FILMS)
def test_frames_after_seeks_are_those_of_decoding_from_the_beginning(films, monkeypatch, name):
    for module in (video, frame_index):
        monkeypatch.setattr(module, "SEEK_MARGIN", 0.3)
    film = VideoFile(films(name))
    whole = [(pts, planes.y.copy()) for pts, _, planes in film.read()]
    for begin in (len(whole) // 3, len(whole) // 2 + 3, len(whole) - 5):
        part = [(pts, planes.y.copy()) for pts, _, planes in film.read(whole[begin][0])]
        assert len(part) == len(whole) - begin
        assert all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(whole[begin:], part, strict=True))
    known = FrameIndex([pts for pts, _ in whole], [luma_checksum(planes) for _, _, planes in film.read()])
    if name in ("h264.avi", "mpeg4.avi", "joined.ts"):
        monkeypatch.setattr(film, "read", None)  # decoding from the beginning is not necessary
    wanted = [index * len(whole) // 60 for index in (50, 51, 22, 40, 41, 30, 59)]
    with closing(frames_at(film, known, wanted)) as frames:
        assert [index for index, planes in frames if np.array_equal(planes.y, whole[index][1])] == wanted


def test_frames_of_another_size_keep_their_shape(tmp_path, capsys):
    """The second part has frames of 96x48, which are scaled to 64x32 and get borders of 8 rows."""
    for i, size in enumerate([(64, 48), (96, 48)]):
        write_numbers(tmp_path / f"{i}.ts", "mpeg2video", times=range(30), sound=None, size=size, first=30 * i)
    source = tmp_path / "in.ts"
    source.write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    copy_film(source, tmp_path / "out.mkv")
    assert "frame size of" in (errors := capsys.readouterr().err) and "from 64x48 to 96x48 at 1." in errors
    lumas = [planes.y for _, _, planes in VideoFile(tmp_path / "out.mkv").read()]
    assert [read_number(luma) for luma in lumas] == contents(source)[1]
    assert all(luma[[*range(7), *range(41, 48)]].max() < 25 and luma[10:38].min() > 90 for luma in lumas[-30:])
    assert min(luma.min() for luma in lumas[:29]) > 90
    plan = analyze_film(VideoFile(source), StubPredictor(), FilmConfig())
    assert plan.shots[-1].box == (8, 40, 0, 64)  # found in a second pass
    assert capsys.readouterr().err.count("changes from") == 1


def test_subtitles_longer_than_the_picture_do_not_end_a_film_early(tmp_path, capsys):
    with av.open(str(write_numbers(tmp_path / "in.mkv"))) as film, av.open(str(tmp_path / "long.mkv"), "w") as copy:
        text = io.BytesIO(b"1\n00:00:01,000 --> 00:00:09,000\nLong\n\n")
        with av.open(text, format="srt") as titles:
            for source in (film, titles):
                for stream in source.streams:
                    copy.add_stream_from_template(stream, opaque=True)
            for first, source in ((0, film), (2, titles)):
                for packet in source.demux():
                    if packet.size:
                        packet.stream = copy.streams[first + packet.stream_index]
                        copy.mux(packet)
    extract_training_frames(tmp_path / "long.mkv", tmp_path / "pictures", GeneratorConfig())
    analyze_film(VideoFile(tmp_path / "long.mkv"), StubPredictor(), FilmConfig())
    assert VideoFile(tmp_path / "long.mkv").info.stated_frames > 200 and capsys.readouterr().err == ""


def test_tracks_without_decoding_times_or_with_equal_times_keep_all_packets(tmp_path, capsys):
    """.mkv stores no decoding times of B-frames, and milliseconds are too coarse for packets of 0.8 ms (TrueHD)."""
    source = write_numbers(tmp_path / "in.mkv", sound=None, options=B_FRAMES)
    with av.open(str(source)) as film, av.open(str(tmp_path / "two.mkv"), "w") as two:
        copies = [two.add_stream_from_template(film.streams.video[0], opaque=True) for _ in range(2)]
        sound = two.add_stream("pcm_s16le", rate=48000, layout="mono")
        packets = [packet for packet in film.demux() if packet.size]
        for copy in copies:
            for packet in packets:
                packet.stream = copy
                two.mux(packet)
        for i in range(600):
            frame = av.AudioFrame.from_ndarray(np.full((1, 40), i, np.int16), layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 40 * i, Fraction(1, 48000)
            two.mux(sound.encode(frame))
    copy_film(tmp_path / "two.mkv", tmp_path / "out.mkv")
    with av.open(str(tmp_path / "two.mkv")) as film, av.open(str(tmp_path / "out.mkv")) as copy:
        before, after = (sorted(bytes(packet) for packet in each.demux(each.streams[1], each.streams[2]))
                         for each in (film, copy))
    assert before == after and len(before) > 660 and capsys.readouterr().err == ""


def test_empty_packets_repeat_a_frame(tmp_path, capsys, monkeypatch):
    """As in Theora, where they are not damage."""
    def with_empty_packets(film, streams, path):
        for packet in demux_packets(film, streams, path):
            yield packet
            empty = av.Packet(b"")
            for name in ("stream", "pts", "dts", "time_base"):
                setattr(empty, name, getattr(packet, name))
            yield empty

    source, demux_packets = write_numbers(tmp_path / "in.mkv", sound=None), video.demux_packets
    frames = contents(source)[1]
    monkeypatch.setattr(video, "demux_packets", with_empty_packets)
    assert [read_number(planes.y) for _, _, planes in VideoFile(source).read()] == frames
    assert capsys.readouterr().err == ""


def test_sound_stays_in_sync_with_start(tmp_path):
    """The times of this .avi file are multiples of 1/24 s (picture) and 0.024 s (sound); the start is at frame 14.4."""
    source = write_numbers(tmp_path / "in.avi", "mpeg4", options={"g": "1"})
    color_film(StubPredictor(), VideoFile(source), tmp_path / "out.mkv", FilmConfig(start=0.6, response="none"))
    (stated, shown, sound), (times, colored, copied) = contents(source), contents(tmp_path / "out.mkv")
    assert colored == shown[14:] and len(copied) > 70
    assert all(abs(sound[packet] - stated[14] - (time - times[0])) < 0.0011 for packet, time in copied.items())


@pytest.mark.parametrize("settings, warnings", [({}, 1), ({"start": 0.25}, 1), ({"end": 0.5}, 0)])
def test_a_film_whose_file_is_cut_off_ends_early_with_a_warning(tmp_path, capsys, settings, warnings):
    data = write_numbers(tmp_path / "in.mkv", "ffv1", range(90), sound=None, options=INTRA).read_bytes()
    (tmp_path / "in.mkv").write_bytes(data[:len(data) // 2])
    plan = analyze_film(VideoFile(tmp_path / "in.mkv"), StubPredictor(), FilmConfig(**settings))
    count = round(settings.get("start", 0) * RATE) + len(plan.pts)
    assert capsys.readouterr().err.count(f"in.mkv ends early, at frame {count} of 90; copy") == warnings


@pytest.mark.parametrize("size", [(96, 48), (48, 48)])
def test_frame_sizes_do_not_depend_on_where_reading_starts(tmp_path, monkeypatch, size):
    """An intra-only film whose second half has frames of another size."""
    for module in (video, frame_index):
        monkeypatch.setattr(module, "SEEK_MARGIN", 0.3)
    for i, part in enumerate([(64, 48), size]):
        write_numbers(tmp_path / f"{i}.mkv", "mjpeg", pix_fmt="yuvj420p", times=range(30), sound=None, size=part,
                      first=30 * i)
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as joined_film:
        for i in (0, 1):
            with av.open(str(tmp_path / f"{i}.mkv")) as part:
                stream = joined_film.streams[0] if i else joined_film.add_stream_from_template(part.streams.video[0])
                for packet in part.demux():
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = (*[packet.pts + 1250 * i] * 2, stream)
                        joined_film.mux(packet)
    film = VideoFile(path)
    whole = [(pts, planes.y.copy()) for pts, _, planes in film.read()]
    part = [(pts, planes.y.copy()) for pts, _, planes in film.read(whole[50][0])]
    assert film.seeks_exactly and len(whole) == 60 and whole[59][1].shape == (48, 64)
    assert all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(whole[50:], part, strict=True))
