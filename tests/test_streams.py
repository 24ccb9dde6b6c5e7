"""What a file has besides its luma and its sound: all of it is kept, or named in a warning."""

import io
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from drawn import StubPredictor

from config import FilmConfig
from film.io.video import VideoFile
from film.render.rendering import color_film

PNG, JPEG = (cv2.imencode(suffix, np.full((32, 32, 3), 120, np.uint8))[1].tobytes() for suffix in (".png", ".jpg"))


def color(source, output, **settings):
    color_film(StubPredictor(), VideoFile(source), output, FilmConfig(**settings))
    return output


def ramp(i):
    """Return frame ``i`` of the test films, RGB uint8 (48, 64, 3)."""
    return (np.linspace(40, 180, 64)[None, :, None].repeat(48, 0).repeat(3, 2) + 3 * i).astype(np.uint8)


def add_video(film, codec="libx264", pix_fmt="yuv420p", **settings):
    stream = film.add_stream(codec, rate=12)
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
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 22050), np.int16), format="s16", layout="mono")
        frame.sample_rate = 44100
        film.mux(sound.encode(frame))
        film.mux(sound.encode(None))
        for packet in titles.demux():
            if packet.size:
                packet.stream = words
                film.mux(packet)
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
            found[f"{name} marks"] = set(stream.disposition & ~Disposition.default)
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
    (with_timecode, "in.mov", "out.mov", {"video 0 timecode": "tag timecode", "video 0 reel_name": "tag reel_name"}),
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


def test_a_time_code_is_not_kept_with_another_start(tmp_path, capsys):
    source = with_timecode(tmp_path / "in.mov")
    assert not any("timecode" in key for key in inventory(color(source, tmp_path / "out.mkv", start=0.25)))
    assert "does not keep the tag timecode" in capsys.readouterr().err
