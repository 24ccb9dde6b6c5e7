"""Reading of video files: opening, seeking and decoding frames with timestamps; and the ``Film`` protocol."""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
from av.stream import Disposition, Stream

from config import FilmConfig
from fileio.images import IMAGE_SUFFIXES
from film.io.color_tags import read_color_tags
from film.io.filters import frame_filter
from film.io.isolation import ProcessDied, run_in_subprocess
from film.io.planes import ColorTags, Planes, planes_from_frame
from film.io.timestamps import FrameClock, PacketClock, clock_may_restart
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
        # With frame threads, the headers of a second part in a file joined with ``cat`` cannot be decoded.
        video.thread_type = "SLICE" if size.name == "theora" else "AUTO"
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


class Seek(NamedTuple):
    """Where ``read_frames`` starts: at a keyframe that may be SEEK_MARGIN before a frame, or anywhere without an index
    in the file."""

    pts: int  # of the frame
    size: tuple[int, int]  # (width, height) of the first frame of the film
    position: int | None = None  # in the file, in bytes, to start there


def read_frames(path: str | Path, damage: DamageLog | None = None,
                seek: Seek | None = None) -> Generator[tuple[int, av.VideoFrame], None, None]:
    """Yield (pts, frame) of a video in presentation order with strictly increasing pts; see film/io/timestamps.py.

    After a seek, the pts are unreliable unless ``VideoFile.seeks_exactly``. Frames of a different size than the first
    are scaled to it, with borders. Packets that cannot be decoded are skipped; they, the frames that the decoder
    repairs, wrong timestamps and sizes are added to ``damage``.
    """
    damage = damage or DamageLog()
    with open_video(path) as (film, stream):
        if seek is not None:
            with suppress(av.error.FFmpegError):  # without an index, the film is read from its start
                if seek.position is not None:
                    film.seek(seek.position, unsupported_byte_offset=True)
                else:
                    film.seek(max(seek.pts - round(SEEK_MARGIN / stream.time_base), 0), stream=stream)
        packets = PacketClock(film, stream, frame_rate(stream))
        times, size = FrameClock(film, stream, frame_rate(stream), delay=0 if seek else None), seek and seek.size
        decoder = _alpha_decoder(stream) or stream.codec_context
        for packet in packets.packets(demux_packets(film, stream, path)):
            if not packet.size and packet.pts is not None:
                continue  # repeats a frame, which is shown for longer
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError as error:
                damage.add(float((packet.pts or packet.dts or 0) * stream.time_base), error.strerror)
                continue
            for frame in frames:
                if seek and times.last is None and not frame.key_frame:
                    continue  # refers to frames before the start
                pts = times.time(frame)
                if frame.is_corrupt:
                    damage.add(float(pts * stream.time_base), "repaired by the decoder")
                size = size or (frame.width, frame.height)
                damage.sizes.setdefault((frame.width, frame.height), float(pts * stream.time_base))
                damage.frames, damage.wrong_times = times.frames, times.wrong + packets.replaced
                if (frame.width, frame.height) != size:
                    frame = _fit_frame(frame, *size)
                yield pts, frame


def _fit_frame(frame, width, height):
    """Return a frame scaled to fit into the given size, without distortion, on black."""
    scale = f"{width}:{height}:force_original_aspect_ratio=decrease:force_divisible_by=2"
    return frame_filter(frame.width, frame.height, frame.format.name, ("scale", scale),
                        ("pad", f"{width}:{height}:-1:-1"))(frame)


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
    may_restart: bool = False  # whether the clock may restart in this format
    timecode: str = ""  # time code of the first frame


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
            tags = {key.lower(): value for key, value in {**film.metadata, **stream.metadata}.items()}
            return FilmInfo(rate, stream.time_base, (film.start_time or 0) / 1e6, count, clock_may_restart(film),
                            tags.get("timecode", ""))

    @cached_property
    def color_tags(self) -> ColorTags:
        with open_video(self.path) as (film, stream):
            return read_color_tags(film, stream, self.path, self.range)

    def fingerprint(self) -> list[Any]:
        stat = self.path.stat()
        return [str(self.path.resolve()), stat.st_size, stat.st_mtime_ns]

    @property
    def seeks_exactly(self) -> bool:
        """Whether the frames after a seek have the same timestamps as without it: the file states all timestamps, they
        are distinct, and the clock never jumps."""
        return self._seek_table[0]

    @cached_property
    def _seek_table(self):
        """(seeks_exactly, [(pts, position in bytes)] of the keyframes if the clock restarts, since FFmpeg then cannot
        find a time). Reads the whole file without decoding it."""
        with open_video(self.path) as (film, stream):
            clock, times, is_intra, keyframes = PacketClock(film, stream, frame_rate(stream)), [], True, []
            for packet in clock.packets(demux_packets(film, stream, self.path)):
                if packet.size:
                    times.append(packet.pts if packet.pos is not None else None)  # without a position, it is a guess
                    is_intra &= packet.is_keyframe
                    if packet.is_keyframe and times[-1] is not None:
                        keyframes.append((packet.pts, packet.pos))
            is_exact = clock.is_continuous and None not in times and len(set(times)) == len(times)
            return is_exact and (is_intra or film.format.name != "avi"), keyframes if len(clock.parts) > 1 else []

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        """Yield (pts, duration, Planes) of the frames of ``read_frames``, found by seeking if that is exact."""
        if (begin is not None and begin * self.info.time_base > self.info.start + SEEK_MARGIN and self.seeks_exactly):
            with closing(self._planes(damage, Seek(begin, self._size))) as frames:
                first = next(frames, None)
                if first is not None and first[0] <= begin:
                    yield from (frame for frame in itertools.chain([first], frames) if frame[0] >= begin)
                    return
        with closing(self._planes(damage)) as frames:
            yield from (frame for frame in frames if begin is None or frame[0] >= begin)

    def _planes(self, damage=None, seek=None):
        with closing(read_frames(self.path, damage, seek)) as frames:
            for pts, frame in frames:
                yield pts, frame.duration, planes_from_frame(frame, self.color_tags)

    @cached_property
    def _size(self):
        with closing(read_frames(self.path)) as frames:
            return next(((frame.width, frame.height) for _, frame in frames), None)

    def read_near(self, pts: int) -> Generator[tuple[int, Planes], None, None]:
        target = pts - round(SEEK_MARGIN / self.info.time_base)
        keyframes = self._seek_table[1] if self.info.may_restart else []
        position = max((position for time, position in keyframes if time <= target), default=None)
        with closing(self._planes(seek=Seek(pts, self._size, position))) as frames:
            for found, _, planes in frames:
                yield found, planes

    def colored_film(self, output: Path, times: Iterable[int]) -> "VideoFile":
        return VideoFile(output)

    def is_overwritten_by(self, output: Path) -> bool:
        return self.path.resolve() == output.resolve()


def pts_window(film: Film, config: FilmConfig) -> tuple[int | None, float]:
    """Convert config.start and config.end to (first pts, end pts) of a film; (None, inf) if they are not set."""
    start, time_base = film.info.start, film.info.time_base
    return round((start + config.start) / time_base) if config.start else None, (start + config.end) / time_base


def frames_before(film: Film, start: float) -> int:
    """Return the number of frames before --start (seconds), decoding them."""
    begin, _ = pts_window(film, FilmConfig(start=start))
    if begin is None:
        return 0
    with closing(film.read()) as frames:
        return sum(1 for _ in itertools.takewhile(lambda frame: frame[0] < begin, frames))
