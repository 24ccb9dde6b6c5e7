"""Reading of video files: opening, seeking and decoding frames with timestamps; and the ``Film`` protocol."""

import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from av.filter import Graph
from av.stream import Disposition, Stream

from config import FilmConfig
from fileio.images import IMAGE_SUFFIXES
from film.io.color_tags import read_color_tags
from film.io.isolation import ProcessDied, run_in_subprocess
from film.io.planes import ColorTags, Planes, planes_from_frame
from film.io.timestamps import FrameClock, PacketClock
from utils import UserError, list_files, return_freed_memory, warn

VIDEO_SUFFIXES = (  # files with these suffixes count as videos without a check; FFmpeg inspects all other files
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".m2ts", ".mts", ".mxf", ".dv",
    ".flv", ".wmv", ".asf", ".ogv", ".3gp", ".gif", ".nut")
MAX_FRAME_PIXELS = 8192 * 8192  # videos with larger frames are refused, since a decoder holds many frames in memory
LARGE_FRAME_PIXELS = 2**22  # frames of at least this size are large: fewer are held in memory; 4K has 2^23 pixels
SEEK_MARGIN = 10  # seconds between the start of decoding and the target of a seek, so that reference frames are decoded
_PLAYLIST_HEADERS = b"#EXTM3U", b"ffconcat version"
_NON_VIDEO_FORMATS = "tty", "bin", "xbin", "adf", "idf", "ico", "fits"  # text and still images that FFmpeg demuxes


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video file and yield (container, first video stream that is not a cover image).

    FFmpeg reads the open file with all protocols disabled, so it cannot open other files. If the frames are large,
    ``return_freed_memory`` is called. Raises UserError if the file is not a video.
    """
    if not Path(path).is_file():  # reading a pipe might never end
        raise UserError(f"{path} is not a file; pass a video file")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            if file.read(16).startswith(_PLAYLIST_HEADERS):
                raise UserError(f"{path} is a playlist, which is not supported; pass one of the files in it")
            file.seek(0)
            # Not ``options``: PyAV also passes those to the streams and crashes if there are none yet, as in .flv.
            container = stack.enter_context(av.open(file, container_options={"protocol_whitelist": "none"},
                                                    metadata_errors="replace"))
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"cannot read {path} as a video: {error.strerror or error}") from error
        kind = container.format.name
        if kind in _NON_VIDEO_FORMATS or kind.endswith("_pipe") and kind != "yuv4mpegpipe":
            raise UserError(f"{path} is a still image or text ({kind}); pass a video, or convert the image to PNG")
        video = next((stream for stream in container.streams.video
                      if not stream.disposition & Disposition.attached_pic), None)
        if video is None:
            raise UserError(f"{path} has no video stream; pass a video file")
        size = video.codec_context
        if size is None:
            raise UserError(f"{path} has a video stream of an unknown codec; convert it, for example to H.264")
        if size.width * size.height > MAX_FRAME_PIXELS:
            raise UserError(f"the frames of {path} have more than {MAX_FRAME_PIXELS:,} pixels; scale the video down")
        if size.width * size.height >= LARGE_FRAME_PIXELS:
            return_freed_memory()
        video.thread_type = "AUTO"
        yield container, video


def is_video(path: Path) -> bool:
    """Return whether ``open_video`` accepts a file; False for still images, music with a cover image, and text."""
    try:
        with open_video(path):
            return True
    except UserError:
        return False


def find_videos(folder: Path) -> list[Path]:
    """Return the videos directly in ``folder``, in natural order.

    A file with one of VIDEO_SUFFIXES counts as a video even if it is unreadable, one with one of IMAGE_SUFFIXES never,
    and any other if ``is_video`` is True; if it crashes FFmpeg, a warning is printed and it is left out.
    """
    paths = [path for path in list_files(folder) if path.suffix.lower() not in IMAGE_SUFFIXES]
    return [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES or _is_video_isolated(path)]


def _is_video_isolated(path):
    try:
        return run_in_subprocess(is_video, path)
    except ProcessDied as error:
        warn(f"{path} crashes the decoder ({error}); it is left out")
        return False


def frame_rate(stream: av.VideoStream) -> Fraction:
    """Return the frames per second that the file states; 25 if it states none."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def demux_packets(film: av.container.InputContainer, streams: Stream | Sequence[Stream],
                  path: str | Path) -> Iterator[av.Packet]:
    """Yield the packets of ``streams``; at a read error, print a warning and stop."""
    try:
        for packet in film.demux(streams):
            if packet.dts is not None or packet.stream.type == "video":  # the last, empty packet flushes the decoder
                yield packet
    except (av.error.FFmpegError, OSError) as error:
        warn(f"{path} cannot be read to its end ({error.strerror}); the part before the error is used")


def is_truncated(path: str | Path) -> bool:
    """Return whether the packets of all streams end more than a second before the end that the file states."""
    with open_video(path) as (film, _):
        end = max((float((packet.pts + (packet.duration or 0)) * packet.time_base) for packet in
                   demux_packets(film, list(film.streams), path) if packet.pts is not None), default=0.0)
        return film.duration is not None and end + 1 < ((film.start_time or 0) + film.duration) / 1e6


class DamageLog:
    """A log of damaged packets, timestamps and changes of the frame size. Damage less than a second apart is grouped
    and reported in one warning."""

    def __init__(self) -> None:
        self.gaps = []  # [first second, last second, number of packets, reason]
        self.sizes: dict[tuple[int, int], float] = {}  # (width, height): second of the first frame
        self.frames = self.wrong_times = 0  # number of frames; number of wrong or missing timestamps

    def add(self, seconds: float, reason: str) -> None:
        if self.gaps and seconds - self.gaps[-1][1] < 1:
            self.gaps[-1][1:3] = seconds, self.gaps[-1][2] + 1
        else:
            self.gaps.append([seconds, seconds, 1, reason])

    def report(self, path: str | Path) -> None:
        for first, last, count, reason in self.gaps:
            warn(f"{path} is damaged from {first:.2f} to {last:.2f} s ({count} packets, {reason}); frames that cannot "
                 "be decoded are left out, all others keep their timestamps")
        if self.wrong_times:
            warn(f"{path} has {self.wrong_times} wrong timestamps in {self.frames} frames (missing, repeated or not in "
                 "order); these frames follow those before them, so check that sound and picture are in sync")
        (size, _), *others = self.sizes.items() or [((0, 0), 0.0)]
        for (width, height), seconds in others:
            warn(f"the frame size of {path} changes from {size[0]}x{size[1]} to {width}x{height} at {seconds:.2f} s; "
                 "these frames are scaled to the first size, with borders")


def read_frames(path: str | Path, seek_to: int | None = None,
                damage: DamageLog | None = None) -> Generator[tuple[int, av.VideoFrame], None, None]:
    """Yield (pts, frame) of a video in presentation order with strictly increasing pts; see film/io/timestamps.py.

    With ``seek_to``, reading starts at a keyframe that may be SEEK_MARGIN before this pts, or anywhere if the file has
    no index. Unless ``VideoFile.seeks_exactly``, the pts are then unreliable. Frames of a different size than the first
    are scaled to it, with borders. Packets that cannot be decoded are skipped; they, the frames that the decoder
    repairs, wrong timestamps and sizes are added to ``damage``.
    """
    damage = damage or DamageLog()
    with open_video(path) as (film, stream):
        if seek_to is not None:
            with suppress(av.error.FFmpegError):  # without an index, the film is read from its start
                film.seek(max(seek_to - round(SEEK_MARGIN / stream.time_base), 0), stream=stream)
        packets = PacketClock(film, stream, frame_rate(stream))
        times, size = FrameClock(film, stream, frame_rate(stream), delay=None if seek_to is None else 0), None
        decoder = _alpha_decoder(stream) or stream.codec_context
        for packet in packets.packets(demux_packets(film, stream, path)):
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError as error:
                damage.add(float((packet.pts or packet.dts or 0) * stream.time_base), error.strerror)
                continue
            for frame in frames:
                if seek_to is not None and times.last is None and not frame.key_frame:
                    continue  # refers to frames before the start
                pts = times.time(frame)
                if frame.is_corrupt:
                    damage.add(float(pts * stream.time_base), "repaired by the decoder")
                size = size or (frame.width, frame.height)
                damage.sizes.setdefault((frame.width, frame.height), float(pts * stream.time_base))
                damage.frames, damage.wrong_times = times.frames, times.wrong
                if (frame.width, frame.height) != size:
                    frame = fit_frame(frame, *size)
                yield pts, frame


def fit_frame(frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
    """Return a frame scaled to fit into the given size, without distortion, on black."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name,
                              time_base=Fraction(1, 25))
    scale = f"{width}:{height}:force_original_aspect_ratio=decrease:force_divisible_by=2"
    graph.link_nodes(source, graph.add("scale", scale), graph.add("pad", f"{width}:{height}:-1:-1"),
                     graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def _alpha_decoder(stream):
    """Return a decoder that decodes the alpha of a VP8 or VP9 stream, which FFmpeg's default decoder ignores; None if
    the stream has none."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    is_alpha = "1" in (stream.metadata.get("alpha_mode"), stream.metadata.get("ALPHA_MODE"))
    return av.CodecContext.create(name, "r") if name and is_alpha else None


class FilmInfo(NamedTuple):
    """Properties of a film according to the metadata of its file."""

    rate: Fraction  # frames per second
    time_base: Fraction  # seconds per unit of pts
    start: float  # start of the earliest track in seconds
    stated_frames: int  # number of frames, which may be inexact; 0 if unknown


class FrameIndex(NamedTuple):
    """What identifies the frames of a film, in order; recorded when it is decoded for the first time."""

    pts: Sequence[int]  # strictly increasing
    checksums: Sequence[int] = ()  # ``luma_checksum`` of each frame; empty if it was not recorded


def luma_checksum(planes: Planes) -> int:
    """Return the CRC-32 of every third row and every fourth column of the luma of a frame."""
    return zlib.crc32(planes.y[::3, ::4].tobytes())


class Film(Protocol):
    """A sequence of frames with timestamps: a video file, or numbered images (``image_sequence.ImageSequence``)."""

    path: Path  # path of the video file, or of the images with * in place of their number

    @property
    def info(self) -> FilmInfo:
        """Properties according to the metadata of the film."""

    def fingerprint(self) -> list[Any]:
        """Return plain values that identify the film and change when it is modified."""

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        """Yield (pts, duration, Planes) of the frames from pts ``begin`` on, with strictly increasing pts.

        The frames do not depend on ``begin``. Those that cannot be decoded are left out. With ``damage``, they are
        added to it or reported in a warning.
        """

    def read_near(self, pts: int) -> Generator[tuple[int, Planes], None, None]:
        """Yield (pts, Planes) from any frame on, usually one before ``pts``; the pts may be wrong."""

    def colored_film(self, output: Path, times: Iterable[int]) -> "Film":
        """Return the colored version of this film that was written to ``output``; ``times`` are its pts."""

    def is_overwritten_by(self, output: Path) -> bool:
        """Return whether coloring into ``output`` would overwrite this film."""


class VideoFile:
    """A ``Film`` in a video file. The file is opened on first use, which raises UserError if it is not a video.

    ``range`` is its luma range: "full", "limited" or "auto" (as stated, else by its levels).
    """

    def __init__(self, path: str | Path, range: str = "auto") -> None:
        self.path, self.range = Path(path), range

    @cached_property
    def info(self) -> FilmInfo:
        with open_video(self.path) as (film, stream):
            rate = frame_rate(stream)
            count = stream.frames or round((film.duration or 0) / 1e6 * rate)
            return FilmInfo(rate, stream.time_base, (film.start_time or 0) / 1e6, count)

    @cached_property
    def color_tags(self) -> ColorTags:
        with open_video(self.path) as (film, stream):
            return read_color_tags(film, stream, self.path, self.range)

    def fingerprint(self) -> list[Any]:
        stat = self.path.stat()
        return [str(self.path.resolve()), stat.st_size, stat.st_mtime_ns]

    @cached_property
    def seeks_exactly(self) -> bool:
        """Whether the frames after a seek have the same timestamps as without it: the file states all timestamps, they
        are distinct, and the clock never jumps. Reads the whole file without decoding it."""
        with open_video(self.path) as (film, stream):
            clock, times, is_intra = PacketClock(film, stream, frame_rate(stream)), [], True
            for packet in clock.packets(demux_packets(film, stream, self.path)):
                if packet.size:
                    times.append(packet.pts if packet.pos is not None else None)  # without a position, it is a guess
                    is_intra &= packet.is_keyframe
            return (clock.is_continuous and None not in times and len(set(times)) == len(times)
                    and (is_intra or film.format.name != "avi"))

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        """Yield (pts, duration, Planes) of the frames of ``read_frames``, found by seeking if that is exact."""
        is_far = begin is not None and begin * self.info.time_base > self.info.start + SEEK_MARGIN
        for seek_to in [begin, None] if is_far and self.seeks_exactly else [None]:
            with closing(read_frames(self.path, seek_to, damage)) as frames:
                for number, (pts, frame) in enumerate(frames):
                    if number == 0 and seek_to is not None and pts > seek_to:
                        break
                    if begin is None or pts >= begin:
                        yield pts, frame.duration, planes_from_frame(frame, self.color_tags)
                else:
                    return

    def read_near(self, pts: int) -> Generator[tuple[int, Planes], None, None]:
        with closing(read_frames(self.path, pts)) as frames:
            for found, frame in frames:
                yield found, planes_from_frame(frame, self.color_tags)

    def colored_film(self, output: Path, times: Iterable[int]) -> "VideoFile":
        return VideoFile(output)

    def is_overwritten_by(self, output: Path) -> bool:
        return self.path.resolve() == output.resolve()


def pts_window(film: Film, config: FilmConfig) -> tuple[int | None, float]:
    """Convert config.start and config.end to (first pts, end pts) of a film; (None, inf) if they are not set."""
    start, time_base = film.info.start, film.info.time_base
    return round((start + config.start) / time_base) if config.start else None, (start + config.end) / time_base


def read_known_frames(film: Film, known: FrameIndex, index: int) -> Generator[tuple[int, Planes], None, None]:
    """Read a film again from frame ``index`` on and yield (index, Planes).

    Frames far from the start are found by seeking and recognized by their checksums; if one is not the known one, the
    film is decoded from its start. Raises UserError if the pts then differ from the known ones.
    """
    times = known.pts
    if known.checksums and (times[index] - times[0]) * film.info.time_base > SEEK_MARGIN:
        with closing(_seek_known_frames(film, known, index)) as found:
            for number, planes in found:
                yield number, planes
                index = number + 1
    if index == len(times):
        return
    first = 0 if known.checksums else index
    number = first - 1
    with closing(film.read(times[first])) as frames:
        for number, (pts, _, planes) in zip(range(first, len(times)), frames, strict=False):
            if pts != times[number]:
                number -= 1
                break
            if number >= index:
                yield number, planes
    if number + 1 < len(times):
        raise UserError(f"from frame {number + 1} on, the timestamps of {film.path} differ from those of the first "
                        "reading; copy it to a reliable disk and run again")


def _seek_known_frames(film, known, index):
    """Yield (index, Planes) from frame ``index`` on, while the frames after a seek are recognized without doubt."""
    checksums, start = np.asarray(known.checksums), index
    places = np.zeros(0, int)  # indices of the known frames that the last one may be, given those before it
    with closing(film.read_near(known.pts[index])) as frames:
        for pts, planes in frames:
            checksum = luma_checksum(planes)
            places = places[places + 1 < len(checksums)] + 1
            places = places[checksums[places] == checksum]
            if not len(places):
                if index > start:
                    return
                places = np.flatnonzero(checksums == checksum)
            if index in places:
                if len(places) > 1 and pts != known.pts[index]:
                    return
                places = np.array([index])
                yield index, planes
                index += 1
            elif len(places) and places.min() > index:
                return


def frames_at(film: Film, known: FrameIndex, indices: Iterable[int]) -> Generator[tuple[int, Planes], None, None]:
    """Yield (index, Planes) of the frames ``indices``; the next index is requested after a frame was consumed.

    Seeks to reach an earlier frame or one more than SEEK_MARGIN later, else decodes the frames between.
    """
    times = known.pts
    with ExitStack() as stack:
        frames, following = None, 0  # index of the next frame to read
        for index in indices:
            if (frames is None or index < following
                    or (times[index] - times[following]) * film.info.time_base > SEEK_MARGIN):
                stack.close()
                frames = stack.enter_context(closing(read_known_frames(film, known, index)))
            following = index + 1
            yield next(frame for frame in frames if frame[0] == index)


