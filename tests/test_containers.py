"""Containers: FFmpeg decides what is a video, and files that are named inside a file are not opened."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from drawn import StubPredictor, draw_film, draw_picture, mux_sound

from dataset_generator import list_videos
from fileio.images import write_image
from film.io import video
from film.io.mux import OUTPUT_SUFFIXES
from film.io.video import VideoFile, find_videos, open_video
from film.render.rendering import color_film
from test import find_inputs
from utils import UserError


def frames_of(path):
    return sum(1 for _ in VideoFile(path).read())


def test_flv_can_be_opened(tmp_path):
    """PyAV can crash if streams are found only after packets were read."""
    assert frames_of(draw_film(tmp_path / "in.flv", times=range(6), codec="flv", sound=None)) == 6


# ---------------------------------------------------------------------------------------------------------------------
# Detection of videos


def draw_cover(path):
    """Write music with a cover image, which FFmpeg lists as a video stream."""
    with av.open(str(path), "w") as file:
        sound = file.add_stream("mp3", rate=44100, layout="mono")
        cover = file.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic.value
        mux_sound(file, sound, np.zeros((1, 4410), np.int16))
        file.mux(cover.encode(av.VideoFrame(16, 16, "rgb24")))


def test_ffmpeg_decides_which_files_are_videos(tmp_path, capsys):
    draw_film(tmp_path / "film.mkv", times=range(3))
    for name in ("episode", "Folge 2.bak"):
        (tmp_path / name).write_bytes((tmp_path / "film.mkv").read_bytes())
    draw_cover(tmp_path / "song.mp3")
    write_image(tmp_path / "still.png", draw_picture(0))
    (tmp_path / "picture").write_bytes((tmp_path / "still.png").read_bytes())
    (tmp_path / "notes.txt").write_text("What is to be done.\n" * 9)
    (tmp_path / "release.nfo").write_text("\x1b[1mdrawn\x1b[0m by \x1b[2mhand\n" * 9)
    (tmp_path / "damaged.mxf").write_text("no film")  # a video by its suffix
    films = ["damaged.mxf", "episode", "film.mkv", "Folge 2.bak"]
    assert [path.name for path in list_videos(tmp_path)] == films
    assert [path.name for path in find_videos(tmp_path)] == films
    pictures, work, _ = find_inputs(tmp_path, tmp_path / "out")
    assert [film.path.name for film, _ in work] == films and [path.name for path, _ in pictures] == ["still.png"]
    assert [target.name for _, target in work] == ["damaged.mkv", "episode.mkv", "film.mkv", "Folge 2.mkv"]
    assert capsys.readouterr().err == ""
    (_, target), = find_inputs(tmp_path / "episode", tmp_path / "out.mp4")[1]
    assert target == tmp_path / "out.mp4"
    for name in ("song.mp3", "picture", "release.nfo", "notes.txt"):
        with pytest.raises(UserError, match=f"{name} is neither a picture .* nor a video that FFmpeg reads"):
            find_inputs(tmp_path / name, tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# Containers of the table in docs/FILMS.md

CONTAINERS = {  # suffix: (muxer, encoder, pixel format, frames per second, audio encoder, size)
    ".mp4": ("mp4", "libx264", "yuv420p", 25, "aac", (64, 48)),
    ".mov": ("mov", "prores_ks", "yuv422p10le", 24, "pcm_s16le", (64, 48)),
    ".mkv": ("matroska", "libx264", "yuv420p", Fraction(24000, 1001), "aac", (64, 48)),
    ".webm": ("webm", "libvpx", "yuv420p", 30, "libopus", (64, 48)),
    ".avi": ("avi", "mpeg4", "yuv420p", 25, "mp3", (64, 48)),
    ".mxf": ("mxf", "mpeg2video", "yuv420p", 25, "pcm_s16le", (64, 48)),
    ".dv": ("dv", "dvvideo", "yuv420p", 25, None, (720, 576)),
    ".vob": ("vob", "mpeg2video", "yuv420p", Fraction(30000, 1001), "ac3", (64, 48)),
    ".mpg": ("mpeg", "mpeg1video", "yuv420p", 25, "mp2", (64, 48)),
    ".ts": ("mpegts", "libx264", "yuv420p", 25, "aac", (64, 48)),
    ".m2ts": ("mpegts", "libx264", "yuv420p", 50, "ac3", (64, 48)),
    ".flv": ("flv", "libx264", "yuv420p", 25, "aac", (64, 48)),
    ".wmv": ("asf", "wmv2", "yuv420p", 25, "wmav2", (64, 48)),
    ".ogv": ("ogg", "libvpx", "yuv420p", 25, "libopus", (64, 48)),
    ".gif": ("gif", "gif", "gray", 10, None, (64, 48)),
    ".3gp": ("3gp", "h263", "yuv420p", Fraction(30000, 1001), "aac", (128, 96)),
    ".nut": ("nut", "mpeg4", "yuv420p", 25, "pcm_s16le", (64, 48)),
}
UNEVEN = {".mp4", ".mov", ".mkv", ".webm", ".ts", ".m2ts", ".flv", ".wmv", ".gif", ".nut"}  # keep gaps between frames


def draw_in(path):
    """Write a film of 8 frames in a container of CONTAINERS, with a pixel aspect ratio near 16:11."""
    muxer, codec, pixels, rate, sound, size = CONTAINERS[path.suffix]
    options = {"mpegts_m2ts_mode": "1"} if path.suffix == ".m2ts" else {}
    with av.open(str(path), "w", format=muxer, options=options) as film:
        stream = film.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if codec != "gif":
            stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        track = film.add_stream(sound, rate=48000, layout="stereo", bit_rate=128000) if sound else None
        for i, time in enumerate((0, 1, 2, 3, 6, 7, 8, 9) if path.suffix in UNEVEN else range(8)):
            ramp = (np.linspace(20, 180, size[0]) + 8 * i).astype(np.uint8)[None].repeat(size[1], 0)
            frame = av.VideoFrame.from_ndarray(ramp, format="gray").reformat(format=pixels)
            frame.pts = time
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
        if track:
            mux_sound(film, track, np.zeros((1, 2 * int(10 * track.rate / rate)), np.int16))
    return path


def facts(path):
    """Return (seconds of the frames since the first, pixel aspect ratio, types of tracks)."""
    with open_video(path) as (film, stream):
        times = [pts * stream.time_base for pts, *_ in VideoFile(path).read()]
        shape = stream.sample_aspect_ratio or Fraction(1)
        return [float(time - times[0]) for time in times], shape, [track.type for track in film.streams]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_films_of_all_containers_are_colored(tmp_path, capsys, suffix):
    """The output keeps the number and timestamps of the frames and the pixel aspect ratio."""
    source = draw_in(tmp_path / f"in{suffix}")
    (film, target), = find_inputs(source, tmp_path / "out")[1]
    assert target.name == (f"in{suffix}" if suffix in OUTPUT_SUFFIXES else "in.mkv")
    color_film(StubPredictor(), film, target)
    before, after = facts(source), facts(target)
    rate = float(CONTAINERS[suffix][3])
    drawn = [0, 1, 2, 3, 6, 7, 8, 9] if suffix in UNEVEN else list(range(8))
    assert before[0] == pytest.approx([time / rate for time in drawn], abs=0.0011)
    assert after[0] == pytest.approx(before[0], abs=0.0011) and after[1] == before[1]
    assert (before[1] == 1) == (suffix in (".webm", ".gif"))  # WebM could store it, but PyAV's muxer does not
    if suffix == ".wmv":
        assert "cannot store the sound track 1 (wmav2)" in capsys.readouterr().err and after[2] == ["video"]
    else:
        assert after[2] == before[2]
    assert np.ptp(next(VideoFile(target).read())[2].rgb_uint8().astype(int), 2).mean() > 3  # in color


def test_documented_containers_are_tested():
    text = (Path(__file__).parents[1] / "docs" / "FILMS.md").read_text()
    first_columns = re.findall(r"(?m)^\| (`\.\w+`(?:, `\.\w+`)*) \|", text)
    assert sorted(re.findall(r"`(\.\w+)`", " ".join(first_columns))) == sorted(CONTAINERS)


# ---------------------------------------------------------------------------------------------------------------------
# Files that name other files


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n",
    "list.ts": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/whole.ts\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile {film}\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
                'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
                'bandwidth="9"><BaseURL>{film}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_refused(tmp_path, name):
    film = draw_film(tmp_path / "whole.ts", times=range(6))
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(film=film.name))
    with pytest.raises(UserError, match=name) as refused, open_video(path):
        pass
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_ffmpeg_opens_no_other_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(video, "_PLAYLIST_HEADERS", b"no such header")
    test_playlists_are_refused(tmp_path, name)
    with av.open(str(tmp_path / name)) as followed:
        assert followed.streams.video
