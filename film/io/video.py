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
from film.io.isolation import ProcessDied, run_in_subprocess
from film.io.planes import Planes, planes_from_frame
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


class DamageLog:
    """A log of damaged packets; those less than a second apart are grouped and reported in one warning."""

    def __init__(self) -> None:
        self.gaps = []  # [first second, last second, number of packets, reason]

    def add(self, seconds: float, reason: str) -> None:
        if self.gaps and seconds - self.gaps[-1][1] < 1:
            self.gaps[-1][1:3] = seconds, self.gaps[-1][2] + 1
        else:
            self.gaps.append([seconds, seconds, 1, reason])

    def report(self, path: str | Path) -> None:
        for first, last, count, reason in self.gaps:
            warn(f"{path} is damaged from {first:.2f} to {last:.2f} s ({count} packets, {reason}); frames that cannot "
                 "be decoded are left out, all others keep their timestamps")


def read_frames(path: str | Path, begin: int | None = None,
                damage: DamageLog | None = None) -> Generator[tuple[int, av.VideoFrame], None, None]:
    """Yield (pts, frame) of a video from pts ``begin`` on, in presentation order with strictly increasing pts.

    A frame without a pts gets the previous pts plus the duration of a frame; a frame whose pts is not greater than the
    previous pts gets that plus 1. Frames of a different size than the first are scaled to it. Packets that cannot be
    decoded are skipped; they and the frames that the decoder repairs are added to ``damage``.
    """
    with open_video(path) as (film, stream):
        size, last = None, None
        step = max(1, round(1 / (frame_rate(stream) * stream.time_base)))
        if begin is not None:
            with suppress(av.error.FFmpegError):  # without an index, the film is read from its start
                film.seek(max(begin - round(SEEK_MARGIN / stream.time_base), 0), stream=stream)
        decoder = _alpha_decoder(stream) or stream.codec_context
        for packet in demux_packets(film, stream, path):
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError as error:
                if damage is not None:
                    damage.add(float((packet.pts or packet.dts or 0) * stream.time_base), error.strerror)
                continue
            for frame in frames:
                if frame.is_corrupt and damage is not None:
                    damage.add(frame.time or 0, "repaired by the decoder")
                pts = frame.pts if frame.pts is not None else 0 if last is None else last + step
                last = pts if last is None or pts > last else last + 1
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    frame = frame.reformat(*size)
                if begin is None or last >= begin:
                    yield last, frame


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

        Frames that cannot be decoded are left out. With ``damage``, they are added to it or reported in a warning.
        """

    def colored_film(self, output: Path, times: Iterable[int]) -> "Film":
        """Return the colored version of this film that was written to ``output``; ``times`` are its pts."""

    def is_overwritten_by(self, output: Path) -> bool:
        """Return whether coloring into ``output`` would overwrite this film."""


class VideoFile:
    """A ``Film`` in a video file. The file is opened on first use, which raises UserError if it is not a video."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @cached_property
    def info(self) -> FilmInfo:
        with open_video(self.path) as (film, stream):
            rate = frame_rate(stream)
            count = stream.frames or round((film.duration or 0) / 1e6 * rate)
            return FilmInfo(rate, stream.time_base, (film.start_time or 0) / 1e6, count)

    def fingerprint(self) -> list[Any]:
        stat = self.path.stat()
        return [str(self.path.resolve()), stat.st_size, stat.st_mtime_ns]

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        """Yield (pts, duration, Planes) of the frames of ``read_frames``."""
        with closing(read_frames(self.path, begin, damage)) as frames:
            for pts, frame in frames:
                yield pts, frame.duration, planes_from_frame(frame)

    def colored_film(self, output: Path, times: Iterable[int]) -> "VideoFile":
        return VideoFile(output)

    def is_overwritten_by(self, output: Path) -> bool:
        return self.path.resolve() == output.resolve()


def pts_window(film: Film, config: FilmConfig) -> tuple[int | None, float]:
    """Convert config.start and config.end to (first pts, end pts) of a film; (None, inf) if they are not set."""
    start, time_base = film.info.start, film.info.time_base
    return round((start + config.start) / time_base) if config.start else None, (start + config.end) / time_base


def read_known_frames(film: Film, times: Sequence[int], index: int) -> Generator[tuple[int, Planes], None, None]:
    """Read a film again from frame ``index`` on and yield (index, Planes).

    ``times`` are the pts of all its frames from the first reading. Raises UserError if the pts now differ.
    """
    frames: Any = film.read(times[index])
    first = next(frames, None)
    if first is None or first[0] != times[index]:  # seeking is inexact, or the film has no timestamps
        frames.close()
        frames = itertools.dropwhile(lambda item: item[0] < times[index], film.read())
        first = next(frames, None)
    frames = itertools.chain([first] if first else [], frames)
    for (pts, _, planes), expected in zip(frames, itertools.islice(times, index, None), strict=False):
        if pts != expected:
            break
        yield index, planes
        index += 1
    if index < len(times):
        raise UserError(f"from frame {index} on, the timestamps of {film.path} differ from those of the first reading; "
                        "copy it to a reliable disk and run again")


def frames_at(film: Film, times: Sequence[int], indices: Iterable[int]) -> Generator[tuple[int, Planes], None, None]:
    """Yield (index, Planes) of the frames ``indices``; the next index is requested after a frame was consumed.

    Seeks to reach an earlier frame or one more than SEEK_MARGIN later, else decodes the frames between. ``times`` is as
    in ``read_known_frames``.
    """
    with ExitStack() as stack:
        frames, following = None, 0  # index of the next frame to read
        for index in indices:
            if (frames is None or index < following
                    or (times[index] - times[following]) * film.info.time_base > SEEK_MARGIN):
                stack.close()
                frames = stack.enter_context(closing(read_known_frames(film, times, index)))
            following = index + 1
            yield next(frame for frame in frames if frame[0] == index)


