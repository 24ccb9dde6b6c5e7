"""What a file has besides its luma and its sound: all of it is kept, or named in a warning."""

import io
import re
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from drawn import StubPredictor, mux_copy, mux_sound

from config import FilmConfig
from film.io.luma_check import check_luma
from film.io.planes import plane_array
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import UserError

PNG, JPEG = (cv2.imencode(suffix, np.full((32, 32, 3), 120, np.uint8))[1].tobytes() for suffix in (".png", ".jpg"))


def color(source, output, **settings):
    color_film(StubPredictor(), VideoFile(source), output, FilmConfig(**settings))
    return output


def ramp(i):
    """Return frame ``i`` of the test films, RGB uint8 (48, 64, 3)."""
    return (np.linspace(40, 180, 64)[None, :, None].repeat(48, 0).repeat(3, 2) + 3 * i).astype(np.uint8)


def add_video(film, codec="libx264", pix_fmt="yuv420p", rate=12, **settings):
    stream = film.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
    for name, value in settings.items():
        setattr(stream.codec_context, name, value)
    return stream


def encode(film, stream, count=6):
    for i in range(count):
        film.mux(stream.encode(av.VideoFrame.from_ndarray(ramp(i), format="rgb24").reformat(format=stream.pix_fmt)))
    film.mux(stream.encode(None))


def add_chapters(film):
    film.set_chapters([{"id": i, "start": 250 * i, "end": 250 * (i + 1), "time_base": Fraction(1, 1000),
                        "metadata": {"title": f"Part {i}"}} for i in range(2)])


def with_cover(path):
    """An .mp4 with a cover picture, chapters and tags."""
    with av.open(str(path), "w") as film, av.open(io.BytesIO(PNG), format="png_pipe") as picture:
        film.metadata.update(title="Title", artist="Somebody")
        add_chapters(film)
        video = add_video(film)
        video.metadata["language"] = "jpn"
        cover = film.add_stream_from_template(picture.streams[0], opaque=True)
        cover.disposition = Disposition.attached_pic.value
        encode(film, video)
        packet = next(picture.demux())
        packet.stream = cover
        film.mux(packet)
    return path


def with_attachments(path):
    """A .mkv with a cover picture, a font, commentary, forced subtitles and a tag that .mp4 has no place for."""
    with av.open(str(path), "w") as film, av.open(io.BytesIO(b"1\n00:00:00,100 --> 00:00:00,400\nWords\n\n"),
                                                  format="srt") as titles:
        film.metadata["DIRECTOR"] = "Someone"
        video = add_video(film)
        video.metadata.update(language="jpn", title="Restored")
        sound = film.add_stream("aac", rate=44100, layout="mono")
        sound.metadata.update(language="eng", title="Commentary")
        sound.disposition = Disposition.comment.value
        words = film.add_stream_from_template(titles.streams[0], opaque=True)
        words.metadata["language"] = "deu"
        words.disposition = (Disposition.forced | Disposition.hearing_impaired).value
        film.add_attachment("cover.jpg", "image/jpeg", JPEG)
        film.add_attachment("font.ttf", "application/x-truetype-font", b"\0\1\0\0" + b"x" * 99)
        encode(film, video)
        mux_sound(film, sound, np.zeros((1, 22050), np.int16))
        mux_copy(film, words, titles)
    return path


def with_timecode(path):
    """A .mov with a time code track."""
    with av.open(str(path), "w") as film:
        video = add_video(film)
        video.metadata.update(timecode="01:00:00:00", reel_name="A001")
        encode(film, video)
    return path


def with_data(path):
    """A transport stream with a KLV data track."""
    with av.open(str(path), "w", format="mpegts") as film:
        video, data = add_video(film), film.add_data_stream("klv")
        data.time_base = Fraction(1, 90000)
        encode(film, video)
        packet = av.Packet(b"KLV" * 9)
        packet.pts = packet.dts = 0
        packet.time_base, packet.stream = data.time_base, data
        film.mux(packet)
    return path


def inventory(path):
    """Return {description: value} of everything in a file except its luma, chroma and frame times."""
    with av.open(str(path)) as film:
        found = {"chapters": [(float(chapter["start"] * chapter["time_base"]), chapter["metadata"]["title"])
                              for chapter in film.chapters()]}
        found |= {f"tag {key.lower()}": value for key, value in film.metadata.items()}
        names, count = {}, {}
        for stream in film.streams:
            if stream.type == "data" and (getattr(stream, "name", "") == "bin_data" or "timecode" in stream.metadata):
                continue  # chapter titles and time codes, which are chapters and tags of the picture, too
            kind = "cover" if stream.disposition & Disposition.attached_pic else stream.type
            count[kind] = count.get(kind, -1) + 1
            name = names[stream.index] = f"{kind} {count[kind]}"
            tags = {key.lower(): value for key, value in stream.metadata.items() if value != "und"}
            tags["title"] = tags.get("title", tags.get("handler_name"))
            found |= {f"{name} {key}": tags.get(key) for key in ("language", "title", "timecode", "reel_name")}
            found[f"{name} marks"] = (stream.disposition & ~Disposition.default).value
            found[name] = stream.type, getattr(stream, "name", ""), stream.type == "attachment" and bytes(stream.data)
            if kind != "video":
                found[f"{name} packets"] = []
        for packet in film.demux():
            if packet.size and (key := f"{names.get(packet.stream_index)} packets") in found:
                found[key].append(bytes(packet))
        found["pixel aspect"] = film.streams.video[0].sample_aspect_ratio
    written = ("encoder", "brand", "minor_version", "handlername")
    return {key: value for key, value in found.items()
            if value and not any(word in key for word in written) and value not in ("VideoHandler", "SoundHandler")}


@pytest.mark.parametrize("draw, name, output, lost", [
    (with_cover, "in.mp4", "out.mp4", {}), (with_cover, "in.mp4", "out.mkv", {}),
    (with_cover, "in.mp4", "out.mov", {"cover": "cover picture 2 (png)"}),
    (with_attachments, "in.mkv", "out.mkv", {}),
    (with_attachments, "in.mkv", "out.mp4", {"subtitle": "subtitles 2 (subrip, deu)", "tag director": "tag DIRECTOR",
                                             "attachment": "attachment 4 (font.ttf)"}),
    (with_timecode, "in.mov", "out.mkv", {}),
    (with_timecode, "in.mov", "out.mov", {}),
    (with_data, "in.ts", "out.mkv", {"data": "data track 1 (klv)"}),
], ids=lambda value: getattr(value, "__name__", value) if not isinstance(value, dict) else "")
def test_everything_is_kept_or_named(tmp_path, capsys, draw, name, output, lost):
    source = draw(tmp_path / name)
    before, after = inventory(source), inventory(color(source, tmp_path / output))
    said = capsys.readouterr().err
    for key, value in before.items():
        reason = next((text for start, text in lost.items() if key.startswith(start)), None)
        if reason:
            assert key not in after and reason in said
        else:
            assert after.get(key) == value, key
    assert said.count("warning") <= 3 and (lost or "warning" not in said)


@pytest.mark.parametrize("output", ["out.mov", "out.mp4", "out.mkv"])
def test_the_time_code_of_an_mxf_file_is_kept(tmp_path, capsys, output):
    with av.open(str(tmp_path / "in.mxf"), "w") as film:
        film.metadata["timecode"] = "01:00:00:00"
        encode(film, add_video(film, "mpeg2video", rate=25))
    assert VideoFile(color(tmp_path / "in.mxf", tmp_path / output)).info.timecode == "01:00:00:00"
    assert "warning" not in capsys.readouterr().err


def test_a_time_code_is_not_kept_with_another_start(tmp_path, capsys):
    source = with_timecode(tmp_path / "in.mov")
    for path in (source, color(source, tmp_path / "in.mkv")):  # a track, and a tag in capital letters
        assert VideoFile(path).info.timecode == "01:00:00:00"
        part = color(path, tmp_path / f"part{path.suffix}.mkv", start=0.25)
        assert not any("timecode" in key for key in inventory(part))
        assert "does not keep the tag timecode" in capsys.readouterr().err.lower()


# ---------------------------------------------------------------------------------------------------------------------
# Closed captions, alpha, bit depth


def with_captions(path):
    """An H.264 film with closed captions: in each frame, the CEA-708 packets of the A/53 user data."""
    def caption(i):
        triplets = bytes([0xFC, 0x94, 0x20 + i, 0xFD, 0x80, 0x80]) * 5
        payload = b"\xb5\x00\x31GA94\x03" + bytes([0xC0 | len(triplets) // 3, 0xFF]) + triplets + b"\xff"
        unit = re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", bytes([4, len(payload)]) + payload)  # emulation prevention
        return b"\0\0\0\1\6" + unit + b"\x80"

    with av.open(str(path), "w") as film:
        stream = add_video(film, rate=25, max_b_frames=0)
        frames = [av.VideoFrame.from_ndarray(ramp(i), format="rgb24") for i in range(6)]
        for i, packet in enumerate(packet for frame in [*frames, None] for packet in stream.encode(frame)):
            captioned = av.Packet(caption(i) + bytes(packet))
            captioned.pts, captioned.dts, captioned.time_base = packet.pts, packet.dts, packet.time_base
            captioned.stream, captioned.is_keyframe = stream, packet.is_keyframe
            film.mux(captioned)
    return path


def captions_in(path):
    with av.open(str(path)) as film:
        return [bytes(frame.side_data.get("A53_CC") or b"") for frame in film.decode(video=0)]


@pytest.mark.parametrize("output, settings", [
    ("out.mp4", {}), ("out.mkv", {"pix_fmt": "yuv420p10le", "start": 0.08}), ("out.mkv", {"codec": "hevc"}),
    ("out.mkv", {"codec": "mpeg2video"}), ("out.webm", None)], ids=str)
def test_closed_captions(tmp_path, capsys, output, settings):
    source = with_captions(tmp_path / "in.mkv")
    before, after = captions_in(source), captions_in(color(source, tmp_path / output, **settings or {}))
    assert len(set(before)) == 6 and len(before[0]) == 30
    said = capsys.readouterr().err
    if settings is None:
        assert said.count("libvpx-vp9 cannot store the closed captions") == 1
    else:
        assert after == before[len(before) - len(after):] and len(after) == (4 if "start" in settings else 6)
        assert "warning" not in said


def draw_deep(path, codec, pix_fmt):
    """A film with all codes of its depth and with alpha, if it has any."""
    with av.open(str(path), "w") as film:
        stream = add_video(film, codec, pix_fmt)
        for i in range(4):
            rgba = np.linspace(i, 65535 - i, 64 * 48).reshape(48, 64, 1).repeat(4, 2).astype(np.uint16)
            rgba[..., 3] = rgba[::-1, :, 3]
            film.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba64le").reformat(format=pix_fmt)))
        film.mux(stream.encode(None))
    return path


def read(path):
    return [planes for _, _, planes in VideoFile(path).read()]


@pytest.mark.parametrize("pix_fmt, stored", [
    ("yuv420p", "yuv420p"), ("yuv422p9le", "yuv420p9le"), ("yuv420p10le", "yuv420p10le"),
    ("yuv444p12le", "yuv420p12le"), ("yuv420p14le", "yuv420p14le"), ("yuv420p16le", "yuv420p16le"),
    ("gray", "yuv420p"), ("gray12le", "yuv420p12le"), ("gray16le", "yuv420p16le"), ("rgb48le", "yuv420p16le"),
    ("gbrp12le", "yuv420p12le"), ("yuva420p", "yuva420p"), ("yuva444p12le", "yuva422p12le"), ("bgra", "yuva420p"),
    ("ya8", "yuva420p"), ("gbrap12le", "yuva422p12le")])
def test_ffv1_loses_neither_depth_nor_alpha(tmp_path, capsys, pix_fmt, stored):
    source = VideoFile(draw_deep(tmp_path / "in.mkv", "ffv1", pix_fmt))
    result = VideoFile(color(source.path, tmp_path / "out.mkv", codec="ffv1"))
    with av.open(str(result.path)) as film:
        assert film.streams.video[0].codec_context.pix_fmt == stored
    assert check_luma(source, result, FilmConfig()).startswith("luma identical")
    for before, after in zip(read(source.path), read(result.path), strict=True):
        assert before.encoding.depth == after.encoding.depth and (before.alpha is None) == (after.alpha is None)
        assert before.alpha is None or np.array_equal(before.alpha, after.alpha) and np.ptp(after.alpha) > 200
    said = capsys.readouterr().err
    assert "warning" not in said or pix_fmt.startswith(("gray", "ya")) and "does not state its luma range" in said


@pytest.mark.parametrize("name, codec, pix_fmt, output, settings", [
    ("in.mov", "prores_ks", "yuva444p10le", "out.mov", {"codec": "prores"}),
    ("in.mov", "qtrle", "argb", "out.webm", {}), ("in.webm", "libvpx-vp9", "yuva420p", "out.mkv", {"codec": "ffv1"}),
    ("in.webm", "libvpx-vp9", "yuva420p", "out.webm", {}), ("in.mov", "qtrle", "argb", "out.mp4", None),
    ("in.webm", "libvpx-vp9", "yuva420p", "out.mp4", {"codec": "vp9"})])
def test_alpha_is_kept_or_named(tmp_path, capsys, name, codec, pix_fmt, output, settings):
    source = draw_deep(tmp_path / name, codec, pix_fmt)
    before, after = read(source), read(color(source, tmp_path / output, **settings or {}))
    if output.endswith(".mp4"):
        assert after[0].alpha is None and capsys.readouterr().err.count("cannot store the transparency") == 1
        return
    for one, other in zip(before, after, strict=True):
        scale = (2**other.encoding.depth - 1) / (2**one.encoding.depth - 1)
        assert np.abs(one.alpha * scale - other.alpha).mean() < 0.02 * 2**other.encoding.depth and np.ptp(one.alpha)


def test_a_lower_depth_is_named(tmp_path, capsys):
    source = draw_deep(tmp_path / "in.mkv", "ffv1", "yuv420p16le")
    assert read(color(source, tmp_path / "out.mkv"))[0].encoding.depth == 10
    assert capsys.readouterr().err.count("libx264 stores only 10 of the 16 bits per sample") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Colors


def draw_levels(path, levels, codec, pix_fmt, **settings):
    """A film of a ramp of luma between two levels, without a range tag unless ``settings`` have one."""
    with av.open(str(path), "w") as film:
        stream = add_video(film, codec, pix_fmt, **settings)
        stream.options = {"x265-params": "log-level=error:lossless=1"} if codec == "libx265" else {}
        for _ in range(4):
            frame = av.VideoFrame(64, 48, pix_fmt)
            for index in range(len(frame.planes)):
                plane_array(frame, index, np.uint8)[:] = 128
            plane_array(frame, 0, np.uint8)[:] = np.linspace(*levels, 64 * 48).reshape(48, 64)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("codec, pix_fmt, levels, settings, full, is_said", [
    ("ffv1", "gray", (0, 255), {}, True, True), ("ffv1", "gray", (16, 235), {}, False, True),
    ("ffv1", "gray", (60, 150), {}, True, True), ("ffv1", "gray", (16, 235), {"color_range": 2}, True, False),
    ("ffv1", "yuv420p", (0, 255), {}, True, True), ("ffv1", "yuv420p", (16, 235), {}, False, False),
    ("ffv1", "yuv420p", (16, 255), {}, False, False), ("ffv1", "yuv420p", (0, 255), {"color_range": 1}, False, False),
    ("libx265", "gray", (0, 255), {}, True, True), ("libx265", "gray", (16, 235), {}, False, False),
    ("libx264", "yuv420p", (0, 255), {}, True, True)])
def test_an_unstated_luma_range_is_decided_by_the_levels(tmp_path, capsys, codec, pix_fmt, levels, settings, full,
                                                         is_said):
    source = draw_levels(tmp_path / "in.mkv", levels, codec, pix_fmt, **settings)
    output = color(source, tmp_path / "out.mkv", codec="ffv1")
    assert capsys.readouterr().err.count("does not state its luma range; its levels, ") == is_said
    with av.open(str(output)) as film:
        assert film.streams.video[0].codec_context.color_range == 1 + full
    for choice in ("full", "limited"):
        assert next(VideoFile(source, choice).read())[2].encoding.full_range == (choice == "full")
    assert check_luma(VideoFile(source), VideoFile(output), FilmConfig()).startswith("luma identical")
    assert "does not state" in capsys.readouterr().err if is_said else True


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG"), (8, "linear light")])
def test_hdr_is_refused(tmp_path, transfer, name):
    tags = {"color_primaries": 9, "color_trc": transfer, "colorspace": 9, "color_range": 1}
    source = draw_levels(tmp_path / "in.mkv", (16, 235), "ffv1", "yuv420p", **tags)
    with pytest.raises(UserError, match=f"in.mkv has the transfer function {name}, and only SDR video is supported"):
        color(source, tmp_path / "out.mkv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv"]
    with pytest.raises(UserError, match="only SDR"):
        next(VideoFile(source).read())


def test_wide_gamuts_are_kept(tmp_path):
    """The colors of a BT.2020 film are those of the BT.709 film with the same luma, in its own primaries."""
    films = {}
    for name, (primaries, space) in {"wide": (9, 9), "normal": (1, 1)}.items():
        tags = {"color_primaries": primaries, "color_trc": 1, "colorspace": space, "color_range": 1}
        source = draw_levels(tmp_path / f"{name}.mkv", (140, 200), "ffv1", "yuv420p", **tags)
        films[name] = color(source, tmp_path / f"{name}_out.mkv", codec="ffv1")
        with av.open(str(films[name])) as film:
            context = film.streams.video[0].codec_context
            assert (context.color_primaries, context.colorspace) == (primaries, space)
    wide, normal = (read(path)[0] for path in films.values())
    assert wide.encoding.primaries == 9 and np.array_equal(wide.y, normal.y)
    expected = normal.rgb_uint8().astype(int)
    right, wrong = (np.abs(planes.rgb_uint8() - expected).mean() for planes in (
        wide, wide._replace(encoding=wide.encoding._replace(primaries=1))))
    assert right < 2 and wrong > 3 * right and np.ptp(expected, 2).mean() > 20
