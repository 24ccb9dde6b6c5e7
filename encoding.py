"""How is a coloured film written? Encoded parts, and all the rest.

A film is written in parts, one a shot. At last their packets are joined, with sound, subtitles, chapters and tags of
the source, which are copied as they are.
"""

import argparse
import errno
import heapq
import io
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.stream import Stream

from parts import Parts
from planes import Coding, Planes, plane_array, planes_of
from utils import UserError, replace_when_done, warn
from video import Film, frame_rate, open_video, packets_of, read_frames

if TYPE_CHECKING:
    from episode import Plan
    from sequence import NumberedFrames

OUTPUT_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")

# ---------------------------------------------------------------------------------------------------------------------
# What to write


@dataclass
class VideoSettings:
    """How a film is written. ``codec``, ``crf`` and ``pix_fmt`` are FFmpeg's; None takes what suits the output."""

    codec: str | None = None
    crf: int | None = None
    pix_fmt: str | None = None
    colour_only: bool = False  # chroma alone, on neutral lightness
    keep_colour_shots: bool = False  # shots that are already in colour stay as they are
    start: float = 0.0  # seconds, of the film as it plays
    end: float = math.inf
    batch_size: int = 8  # frames in one pass of the network

    def window(self, film: "Film | NumberedFrames") -> tuple[int | None, float]:
        """``start`` and ``end`` as pts of a Film: the first to take, None for all, and the first to leave out."""
        begin = round((film.start + self.start) / film.time_base) if self.start else None
        return begin, (film.start + self.end) / film.time_base


class Target(NamedTuple):
    """How pictures are encoded."""

    codec: str  # FFmpeg's encoder
    options: dict[str, str]
    pix_fmt: str
    width: int
    height: int
    chroma: tuple[int, int]  # (height, width) of Cb and Cr
    coding: Coding
    rate: Fraction
    time_base: Fraction
    tags: dict[str, Any]  # of the codec context
    part_format: str  # muxer of a part; its times need not be exact, only in order


_ENCODERS = {  # encoder: (crf, other options); x264's default preset takes twice the time and saves 5 % of the file
    "libx264": (16, {"preset": "veryfast"}), "libx265": (18, {"x265-params": "log-level=error"}),
    "libvpx-vp9": (24, {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "3"}),
    "libaom-av1": (20, {"b": "0", "row-mt": "1", "cpu-used": "6"}), "libsvtav1": (20, {"svtav1-params": "lookahead=0"}),
}  # fmt: skip


def parse_time(text: str) -> float:
    """Seconds of a time given in seconds, mm:ss or hh:mm:ss."""
    parts = text.split(":")
    try:
        seconds = sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf or len(parts) > 3:
        raise argparse.ArgumentTypeError(f"expected seconds, mm:ss or hh:mm:ss, got '{text}'")
    return seconds


def choose_target(path: Path, output: Path, settings: VideoSettings) -> Target:
    """The Target for a film and the file to write. Raises UserError when the settings do not go together."""
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"cannot write {output}: name a {', '.join(OUTPUT_SUFFIXES[:-1])} or {OUTPUT_SUFFIXES[-1]} "
                        "file by --output")
    name = settings.codec or ("libvpx-vp9" if output.suffix.lower() == ".webm" else "libx264")
    try:
        codec = av.Codec(name, "w")
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"there is no encoder {name} for --codec; try h264, hevc, vp9 or av1") from error
    if codec.type != "video":
        raise UserError(f"--codec {name} encodes no video; try h264, hevc, vp9 or av1")
    frame = next((frame for _, frame in read_frames(path)), None)
    if frame is None:
        raise UserError(f"no frame of {path} can be decoded")
    planes = planes_of(frame)
    height, width = planes.y.shape
    formats = [format_.name for format_ in codec.video_formats or []]
    pix_fmt = settings.pix_fmt
    if pix_fmt is None:
        # 4:2:0 stores one colour for 2 x 2 pixels; these encoders want even sides for it.
        odd = codec.name in ("libx264", "libx265") and (width % 2 or height % 2)
        wanted = ["yuv444p" if odd else "yuv420p", "yuv422p", "yuv444p"]
        deep = [name + "10le" for name in wanted]
        found = [name for name in (deep + wanted if planes.coding.depth > 8 else wanted + deep) if name in formats]
        if not found:
            raise UserError(f"--codec {name} takes no pictures of Y'CbCr; try h264, hevc, vp9 or av1")
        pix_fmt = found[0]
    elif not pix_fmt.startswith("yuv4") or pix_fmt not in formats:
        usable = [name for name in formats if name.startswith("yuv4") and not name.endswith("16le")]
        raise UserError(f"--codec {codec.name} cannot write --pix_fmt {pix_fmt}; choose from {', '.join(usable)}")
    layout = av.VideoFormat(pix_fmt, width, height)
    crf, options = _ENCODERS.get(codec.name, (None, {}))
    if settings.crf is not None and crf is None:
        raise UserError(f"--codec {codec.name} has no --crf; leave it out or use h264, hevc, vp9 or av1")
    if crf is not None:
        options = {**options, "crf": str(settings.crf if settings.crf is not None else crf)}
    coding = Coding(layout.components[0].bits, planes.coding.full, planes.coding.colorspace)
    with open_video(path) as (_, stream):
        ratio = stream.sample_aspect_ratio
        if ratio and frame.rotation % 180:
            ratio = 1 / ratio
        context = stream.codec_context
        tags = {"color_range": 2 if coding.full else 1, "colorspace": coding.colorspace,
                "color_primaries": context.color_primaries, "color_trc": context.color_trc}
        if ratio:
            tags["sample_aspect_ratio"] = ratio
        rate = frame_rate(stream)
        if not _carries(_muxer(output), codec.name, rate):
            raise UserError(f"{output.suffix} cannot carry --codec {name}; name a .mkv file by --output")
        part_format = "nut" if _carries("nut", codec.name, rate) else "mov"
        target = Target(codec.name, options, pix_fmt, width, height, (layout.chroma_height(), layout.chroma_width()),
                        coding, rate, stream.time_base, tags, part_format)
    try:
        with PartWriter(io.BytesIO(), target) as probe:
            probe.write(_black(target), 0)
    except (ValueError, av.error.FFmpegError) as error:
        raise UserError(f"--codec {codec.name} does not take --crf {options.get('crf', 'none')} and --pix_fmt "
                        f"{pix_fmt} at {width}x{height} ({error}); change one of them") from error
    return target


def _black(target):
    """A frame to try an encoder with."""
    y = np.full((target.height, target.width), target.coding.luma[0], target.coding.dtype)
    cb = np.full(target.chroma, target.coding.chroma[0], target.coding.dtype)
    return Planes(y, cb, cb, target.coding)


def _carries(muxer, codec, rate):
    """Whether a container can hold what an encoder makes."""
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as probe:
            probe.add_stream(codec, rate=rate)
    except ValueError:
        return False
    return True


def _muxer(output):
    return {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".webm": "webm"}[output.suffix.lower()]


class PartWriter:
    """Encodes the frames of one shot into a file that holds nothing else."""

    def __init__(self, file: BinaryIO, target: Target) -> None:
        self.target = target
        self.container = av.open(file, "w", format=target.part_format)
        stream = self.container.add_stream(target.codec, rate=target.rate, options=target.options)
        stream.width, stream.height, stream.pix_fmt = target.width, target.height, target.pix_fmt
        stream.time_base = stream.codec_context.time_base = target.time_base
        stream.codec_context.flags |= av.codec.context.Flags.global_header
        for tag, value in target.tags.items():
            setattr(stream.codec_context, tag, value)
        self.stream = stream

    def write(self, planes: Planes, pts: int) -> None:
        frame = av.VideoFrame(self.target.width, self.target.height, self.target.pix_fmt)
        for index, plane in enumerate(planes[:3]):
            plane_array(frame, index, self.target.coding.dtype)[:] = plane
        frame.pts, frame.time_base = pts, self.target.time_base
        frame.color_range, frame.colorspace = self.target.tags["color_range"], self.target.tags["colorspace"]
        self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.container.mux(self.stream.encode(None))
            self.container.close()
        else:  # closed in any case: a container that the garbage collector finds open would write to a closed file
            with suppress(OSError, av.error.FFmpegError):
                self.container.close()


def part_order(path: Path) -> list[int]:
    """The display places of a part's packets, in the order of the packets. [] for what is no whole file."""
    try:
        with av.open(str(path)) as part:
            times = [packet.pts for packet in part.demux(video=0) if packet.size]
    except (av.error.FFmpegError, OSError):
        return []
    place = {pts: index for index, pts in enumerate(sorted(times))}
    return [place[pts] for pts in times]


def part_packets(parts: Sequence[Path], pts: Sequence[int]) -> Iterator[tuple[av.Packet, int]]:
    """The packets of all parts with their times in the film: ``pts`` of its frames in order.

    Decoding times are those of ``delay`` frames before, where delay is how far the encoder reorders.
    """
    delay, count = 0, 0
    for part in parts:
        delay = max([delay, *(index - place for index, place in enumerate(part_order(part)))])
    step = pts[1] - pts[0] if len(pts) > 1 else 1
    for part in parts:
        order = part_order(part)
        with av.open(str(part)) as container:
            packets = (packet for packet in container.demux(video=0) if packet.size)
            for index, (place, packet) in enumerate(zip(order, packets, strict=True)):
                late = count + index - delay
                packet.pts = pts[count + place]
                packet.dts = pts[late] if late >= 0 else pts[0] + late * step
                yield packet, count + place
        count += len(order)


_OWN_TAGS = ("encoder", "major_brand", "minor_version", "compatible_brands", "DURATION", "_STATISTICS", "BPS",
             "NUMBER_OF")  # what a muxer says about the file it wrote


def _metadata(tags):
    return {key: value for key, value in tags.items() if not key.startswith(_OWN_TAGS)}


def carried_streams(film: av.container.InputContainer, video: av.VideoStream, path: Path, output: Path) -> list[Stream]:
    """The streams beside ``video`` that the output's container can carry as they are; the others are named."""
    carried = []
    for stream in film.streams:
        if stream is video or (stream.type == "data" and film.chapters()):  # of a .mp4, the titles of its chapters
            continue
        try:
            with av.open(io.BytesIO(), "w", format=_muxer(output)) as probe:
                probe.add_stream_from_template(stream, opaque=True)
                probe.start_encoding()
        except (ValueError, av.error.FFmpegError, OSError):
            name = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
            kind = {"audio": "sound track", "subtitle": "subtitles", "video": "second picture"}.get(
                stream.type, stream.type)
            language = f", {stream.language}" if stream.language else ""
            warn(f"{output} cannot carry the {kind} {stream.index} ({name}{language}) of {path}, left out; write a "
                 ".mkv to keep it")
            continue
        carried.append(stream)
    return carried


def join(parts: Sequence[Path], plan: "Plan", path: Path, output: Path, settings: VideoSettings, target: Target,
         temporary: Path) -> None:
    """Write ``output`` at ``temporary``: the packets of ``parts``, with the other streams, chapters and tags of the
    film at ``path``. Nothing is encoded.
    """
    with (open_video(path) as (film, video), av.open(str(parts[0])) as first, write_errors(output),
          av.open(str(temporary), "w", format=_muxer(output)) as out):
        origin = (film.start_time or 0) / 1e6 + settings.start
        shift = origin if settings.start else 0.0
        others = carried_streams(film, video, path, output)
        streams = {}
        for stream in sorted([video, *others], key=lambda stream: stream.index):
            new = out.add_stream_from_template(first.streams.video[0] if stream is video else stream, opaque=True)
            new.metadata.update(_metadata(stream.metadata))
            new.disposition = stream.disposition.value
            if stream.time_base:
                new.time_base = stream.time_base
            streams[stream.index] = new
        for tag, value in target.tags.items():
            setattr(streams[video.index].codec_context, tag, value)
        out.metadata.update(_metadata(film.metadata))
        chapters = []
        for chapter in film.chapters():
            begin, end = (float(chapter[side] * chapter["time_base"]) - settings.start for side in ("start", "end"))
            length = settings.end - settings.start
            if end > 0 and begin < length:
                begin, end = (round(min(max(t, 0), length) / chapter["time_base"]) for t in (begin, end))
                chapters.append({**chapter, "start": begin, "end": end})
        out.set_chapters(chapters)

        offset = round(shift / target.time_base)
        pts = array("q", (time_ - offset for time_ in plan.pts)) if offset else plan.pts

        def pictures():
            for packet, index in part_packets(parts, pts):
                packet.time_base = target.time_base
                packet.duration = pts[index + 1] - pts[index] if index + 1 < len(pts) else plan.last_duration
                yield float(packet.dts * target.time_base), packet, streams[video.index]

        def rest():
            for packet in packets_of(film, others, path) if others else ():
                at = packet.dts if packet.dts is not None else packet.pts
                if at is None or not packet.size:
                    continue
                at = float(at * packet.time_base)
                if settings.start and at < origin or at >= origin - settings.start + settings.end:
                    continue
                if shift:
                    moved = round(shift / packet.time_base)
                    packet.dts = packet.dts - moved if packet.dts is not None else None
                    packet.pts = packet.pts - moved if packet.pts is not None else None
                yield at - shift, packet, streams[packet.stream_index]

        for _, packet, stream in heapq.merge(pictures(), rest(), key=lambda item: item[0]):
            packet.stream = stream
            out.mux(packet)
        out.close()
        with open_video(temporary) as (_, written):
            ratio = target.tags.get("sample_aspect_ratio", 1)
            if (written.sample_aspect_ratio or 1) != ratio:
                warn(f"{output} cannot carry the shape of the pixels ({ratio}) with {target.codec}: tell the player to "
                     f"show it {float(target.width * ratio / target.height):.3g} times as wide as high, or write h264")


class FilmWriter:
    """Writes a coloured Film: a part a shot, which are joined at last. ``target`` is how its pictures are encoded."""

    def __init__(self, film: Film, output: Path, settings: VideoSettings) -> None:
        """Raises UserError when the settings do not go together, or the output is the film itself."""
        if output.exists() and output.samefile(film.path):
            raise UserError(f"the output {output} is the input itself; name another --output")
        self.film, self.output, self.settings = film, output, settings
        self.target = choose_target(film.path, output, settings)

    def replaces(self) -> bool:
        """Whether there is a file already that ``join`` would replace."""
        return self.output.exists()

    @contextmanager
    def shot(self, part: Path, times: Sequence[int]) -> Iterator[Callable[[Planes, int], None]]:
        """Yield the function that writes the planes and pts of each frame of a shot, whose pts are ``times``. The file
        ``part`` appears when all are written, and are on the disk."""
        with replace_when_done(part) as temporary:
            with open(temporary, "wb") as file:
                with PartWriter(file, self.target) as writer:
                    yield writer.write
                file.flush()
                os.fsync(file.fileno())
            if not self.has_shot(temporary, times):
                raise OSError(errno.EIO, "not all frames were written")

    def has_shot(self, part: Path, times: Sequence[int]) -> bool:
        """Whether the shot was written, and is whole."""
        return len(part_order(part)) == len(times)

    def join(self, parts: Parts, numbers: Sequence[int], plan: "Plan") -> None:
        """Write the output from the Parts of all shots; it appears under its name only when it is complete."""
        with replace_when_done(self.output) as temporary:
            join([parts.part(n) for n in numbers], plan, self.film.path, self.output, self.settings, self.target,
                 temporary)
            parts.note_joined(temporary)
        parts.drop_pictures()


@contextmanager
def write_errors(output: Path) -> Iterator[None]:
    """Errors of writing beside ``output``, as a UserError that says what is kept."""
    try:
        yield
    except (OSError, av.error.FFmpegError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if cause is not error and not full:
            raise
        advice = ("make room and run the same command again, it goes on with the first unfinished shot" if full else
                  "see that its folder can be written")
        raise UserError(f"cannot write {output}: {getattr(cause, 'strerror', None) or cause}; {advice}") from error
