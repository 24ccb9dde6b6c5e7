"""How is a film read? Frames with their times, as far as they decode; and what a film is to all who read one."""

import itertools
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import av
from av.stream import Disposition, Stream

from config import FilmConfig
from fileio.images import IMAGE_SUFFIXES
from film.io.isolation import ProcessDied, run_in_subprocess
from film.io.planes import Planes, planes_from_frame
from utils import UserError, list_files, return_freed_memory, warn

LISTS = b"#EXTM3U", b"ffconcat version"  # how playlists begin
NO_FILMS = "tty", "bin", "xbin", "adf", "idf", "ico", "fits"  # texts and stills that FFmpeg takes for films
COVER = Disposition.attached_pic
SEEK_MARGIN = 10  # seconds that decoding starts early after a seek, so that every frame has all that it refers to
LARGE_FRAME_PIXELS = 2**22  # pixels of frames of which fewer are held at a time; 4K has twice as many
T = TypeVar("T")


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a film with PyAV and yield (container, its first video stream that is no cover). Raises UserError when there
    is none."""
    if not Path(path).is_file():  # reading a pipe might never end
        raise UserError(f"{path} is not a file; name a video")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            if file.read(16).startswith(LISTS):
                raise UserError(f"{path} is a list of other files, which are not opened; name one of these")
            file.seek(0)
            # FFmpeg gets an open file and may use no protocol, so that it opens nothing that this file names.
            # (``options`` would go to the streams as well; of an .flv there are none yet, and PyAV would crash.)
            container = stack.enter_context(av.open(file, container_options={"protocol_whitelist": "none"},
                                                    metadata_errors="replace"))
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"cannot read {path} as a video: {error.strerror or error}") from error
        kind = container.format.name
        if kind in NO_FILMS or kind.endswith("_pipe") and kind != "yuv4mpegpipe":
            raise UserError(f"{path} is a still picture or a text ({kind}); name a video, or convert it to PNG")
        video = next((stream for stream in container.streams.video if not stream.disposition & COVER), None)
        if video is None:
            raise UserError(f"{path} has no video stream")
        size = video.codec_context
        if size is None:
            raise UserError(f"{path} has a video stream of an unknown kind; convert it, for example to H.264")
        if size.width * size.height > MAX_FRAME_PIXELS:
            raise UserError(f"the frames of {path} have more than {MAX_FRAME_PIXELS:,} pixels; give a smaller video")
        if size.width * size.height >= LARGE_FRAME_PIXELS:
            return_freed_memory()
        video.thread_type = "AUTO"
        yield container, video


def is_video(path: Path) -> bool:
    """Whether FFmpeg finds a film in a file: no still picture, no music with a cover, no text."""
    try:
        with open_video(path):
            return True
    except UserError:
        return False


def find_videos(folder: Path) -> list[Path]:
    """The films directly in ``folder``, in natural order: files whose names say so, readable or not, and all others,
    pictures apart, in which FFmpeg finds one. A file that crashes it is named and left out."""
    paths = [path for path in list_files(folder) if path.suffix.lower() not in IMAGE_SUFFIXES]
    return [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES or _is_film_apart(path)]


def _is_film_apart(path):
    try:
        return run_in_subprocess(is_video, path)
    except ProcessDied as error:
        warn(f"{path} crashes the reader ({error}); it is left out")
        return False


def frame_rate(stream: av.VideoStream) -> Fraction:
    """Frames a second as the file states them, as a Fraction."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def demux_packets(film: av.container.InputContainer, streams: Stream | Sequence[Stream],
               path: str | Path) -> Iterator[av.Packet]:
    """The packets of ``streams`` as far as the file can be read."""
    try:
        for packet in film.demux(streams):
            if packet.dts is not None or packet.stream.type == "video":  # the last, empty packet flushes the decoder
                yield packet
    except (av.error.FFmpegError, OSError) as error:
        warn(f"{path} breaks off ({error.strerror}); what could be read is used")


class DamageLog:
    """Where packets could not be decoded: less than a second apart they are one gap, which gets one warning."""

    def __init__(self) -> None:
        self.gaps = []  # [first second, last second, packets, reason]

    def add(self, seconds: float, reason: str) -> None:
        if self.gaps and seconds - self.gaps[-1][1] < 1:
            self.gaps[-1][1:3] = seconds, self.gaps[-1][2] + 1
        else:
            self.gaps.append([seconds, seconds, 1, reason])

    def report(self, path: str | Path) -> None:
        for first, last, count, reason in self.gaps:
            warn(f"{path} is damaged from {first:.2f} to {last:.2f} s ({count} packets, {reason}): frames that do not "
                 "decode are missing there, all others keep their times")


def read_frames(path: str | Path, begin: int | None = None,
                damage: DamageLog | None = None) -> Generator[tuple[int, av.VideoFrame], None, None]:
    """Yield (pts, frame) of a film in order, pts in the stream's time base and strictly increasing.

    ``begin`` is the pts to start from: decoding starts some seconds in front of it, and earlier frames are dropped.
    A frame without a time is put one frame of the stated rate after the one before it; a frame whose time is not later
    than that of the one before, one tick after it. What does not decode is entered into ``damage`` and left out.
    """
    with open_video(path) as (film, stream):
        size, last = None, None
        step = max(1, round(1 / (frame_rate(stream) * stream.time_base)))
        if begin is not None:
            with suppress(av.error.FFmpegError):  # a film that cannot seek is read from its start
                film.seek(max(begin - round(SEEK_MARGIN / stream.time_base), 0), stream=stream)
        for packet in demux_packets(film, stream, path):
            try:
                frames = packet.decode()
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


class Film(Protocol):
    """What can be played: a video file, or numbered frames (``sequence.py``)."""

    path: Path  # of the file, or of the frames with a star for their number

    @property
    def name(self) -> str:
        """Name of the film, as shown to the user."""

    @property
    def rate(self) -> Fraction:
        """Frames a second, as stated."""

    @property
    def time_base(self) -> Fraction:
        """Seconds of one unit of pts."""

    @property
    def start(self) -> float:
        """Seconds at which the earliest track begins."""

    @property
    def stated_frames(self) -> int:
        """Number of frames as the file states it; 0 if it states none."""

    def fingerprint(self) -> list[Any]:
        """Plain values that differ for every other film, and once this one is changed."""

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        """Yield (pts, duration, Planes) of the frames from the pts ``begin`` on, pts strictly increasing. What does not
        decode is left out; with ``damage`` given, it is entered there or warned about."""

    def colored_film(self, output: Path, times: Iterable[int]) -> "Film":
        """The film at ``output`` into which the frames at ``times`` (pts) of this one were colored."""

    def is_overwritten_by(self, output: Path) -> bool:
        """Whether coloring into ``output`` would overwrite the film itself."""


class VideoFile:
    """A film in a file, as ``Film`` says. It is opened only when needed; then UserError is raised if it is no film."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @cached_property
    def _stated(self):
        """(frames a second, time base, start, number of frames) as the file states them."""
        with open_video(self.path) as (film, stream):
            rate = frame_rate(stream)
            count = stream.frames or round((film.duration or 0) / 1e6 * rate)
            return rate, stream.time_base, (film.start_time or 0) / 1e6, count

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def rate(self) -> Fraction:
        return self._stated[0]

    @property
    def time_base(self) -> Fraction:
        return self._stated[1]

    @property
    def start(self) -> float:
        return self._stated[2]

    @property
    def stated_frames(self) -> int:
        return self._stated[3]

    def __str__(self) -> str:
        return str(self.path)

    def fingerprint(self) -> list[Any]:
        stat = self.path.stat()
        return [str(self.path.resolve()), stat.st_size, stat.st_mtime_ns]

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        """``read_frames`` as (pts, duration, Planes)."""
        with closing(read_frames(self.path, begin, damage)) as frames:
            for pts, frame in frames:
                yield pts, frame.duration, planes_from_frame(frame)

    def colored_film(self, output: Path, times: Iterable[int]) -> "VideoFile":
        return VideoFile(output)

    def is_overwritten_by(self, output: Path) -> bool:
        return self.path.resolve() == output.resolve()


def pts_window(film: Film, config: FilmConfig) -> tuple[int | None, float]:
    """config.start and config.end as pts of a film: (the first to take, or None for its beginning; the first to leave
    out, inf for none)."""
    begin = round((film.start + config.start) / film.time_base) if config.start else None
    return begin, (film.start + config.end) / film.time_base


def read_known_frames(film: Film, times: Sequence[int], index: int) -> Generator[tuple[int, Planes], None, None]:
    """Yield (index, Planes) of the frames from ``index`` on. Raises UserError unless their pts are those in ``times``,
    the pts of all frames as they were found before."""
    frames: Any = film.read(times[index])
    first = next(frames, None)
    if first is None or first[0] != times[index]:  # a film that cannot seek well, or states no times
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
        raise UserError(f"{film.path} cannot be read a second time as it was the first, from frame {index} on; copy it "
                        "to a good disk and run again")


def frames_at(film: Film, times: Sequence[int], indices: Iterable[int]) -> Generator[tuple[int, Planes], None, None]:
    """Yield (index, Planes) of the frames of ``indices``, each of which is asked for when the one before it was taken;
    ``times`` as for ``planned_frames``. What lies between rising ones is decoded where a seek would cost as much."""
    with ExitStack() as stack:
        frames, place = None, 0  # the next frame to read
        for index in indices:
            if frames is None or index < place or (times[index] - times[place]) * film.time_base > SEEK_MARGIN:
                stack.close()
                frames = stack.enter_context(closing(read_known_frames(film, times, index)))
            place = index + 1
            yield next(frame for frame in frames if frame[0] == index)


def prefetch(items: Generator[T, None, None], size: int) -> Generator[T, None, None]:
    """Iterate ``items`` in a thread of its own, at most ``size`` items ahead; what it raises is raised here.

    Closing this generator, or leaving it by an error, stops the thread and closes ``items`` before it returns.
    """
    waiting, stop, end = queue.Queue(size), threading.Event(), object()

    def put(item):
        while not stop.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def run():
        try:
            with closing(items):
                for item in items:
                    put((item, None))
                    if stop.is_set():
                        return
            put((end, None))
        except BaseException as error:  # of whatever kind: the consumer raises it
            put((end, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()

VIDEO_SUFFIXES = (  # a file of such a name is a film or a damaged one; of others, FFmpeg decides
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".m2ts", ".mts", ".mxf", ".dv",
    ".flv", ".wmv", ".asf", ".ogv", ".3gp", ".gif", ".nut")

MAX_FRAME_PIXELS = 8192 * 8192  # the same for films, of which a decoder holds many frames
