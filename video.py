"""How is a film read, and how is a coloured one written? Frames with their times, encoded parts, and all the rest.

A film is written in parts, one a shot. At last their packets are joined, with sound, subtitles, chapters and tags of
the source, which are copied as they are.
"""

import argparse
import errno
import heapq
import io
import math
import queue
import threading
from array import array
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from planes import Coding, Planes, plane_array, planes_of
from utils import MAX_FRAME_PIXELS, UserError, replace_when_done, warn

OUTPUT_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")
SEEK_MARGIN = 10  # seconds that decoding starts early after a seek, so that every frame has all that it refers to

# ---------------------------------------------------------------------------------------------------------------------
# Reading


@contextmanager
def open_video(path):
    """Open a film with PyAV and yield (container, its first video stream). Raises UserError when there is none."""
    if not Path(path).is_file():  # a pipe might never end
        raise UserError(f"{path} is not a file; name a video")
    try:
        # A film may name no other address.
        container = av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"cannot read {path} as a video: {error.strerror or error}") from error
    with container:
        if not container.streams.video:
            raise UserError(f"{path} has no video stream")
        size = container.streams.video[0].codec_context
        if size is None:
            raise UserError(f"{path} has a video stream of an unknown kind; convert it, for example to H.264")
        if size.width * size.height > MAX_FRAME_PIXELS:
            raise UserError(f"the frames of {path} have more than {MAX_FRAME_PIXELS:,} pixels; give a smaller video")
        container.streams.video[0].thread_type = "AUTO"
        yield container, container.streams.video[0]


def frame_rate(stream):
    """Frames a second as the file states them, as a Fraction."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _packets(film, streams, path):
    """The packets of ``streams`` as far as the file can be read."""
    try:
        for packet in film.demux(streams):
            if packet.dts is not None or packet.stream.type == "video":  # the last, empty packet flushes the decoder
                yield packet
    except (av.error.FFmpegError, OSError) as error:
        warn(f"{path} breaks off ({error.strerror}); what could be read is used")


class Damage:
    """Where packets could not be decoded, for one warning a gap."""

    def __init__(self):
        self.gaps = []  # [first second, last second, packets, reason]

    def add(self, seconds, reason):
        if self.gaps and seconds - self.gaps[-1][1] < 1:
            self.gaps[-1][1:3] = seconds, self.gaps[-1][2] + 1
        else:
            self.gaps.append([seconds, seconds, 1, reason])

    def report(self, path):
        for first, last, count, reason in self.gaps:
            warn(f"{path} is damaged from {first:.2f} to {last:.2f} s ({count} packets, {reason}): frames that do not "
                 "decode are missing there, all others keep their times")


def read_frames(path, begin=None, damage=None):
    """Yield (pts, frame) of a film in order, pts in the stream's time base and strictly increasing.

    ``begin`` is the pts to start from: decoding starts some seconds in front of it, and earlier frames are dropped.
    A frame without a time, or not after the one before it, follows that one by one frame of the stated rate, or by
    one tick. What does not decode is entered into ``damage`` and left out.
    """
    with open_video(path) as (film, stream):
        size, last = None, None
        step = max(1, round(1 / (frame_rate(stream) * stream.time_base)))
        if begin is not None:
            with suppress(av.error.FFmpegError):  # what cannot seek is read from its start
                film.seek(max(begin - round(SEEK_MARGIN / stream.time_base), 0), stream=stream)
        for packet in _packets(film, stream, path):
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


def ahead(items, size):
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


# ---------------------------------------------------------------------------------------------------------------------
# Writing


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

    def window(self, film, stream):
        """``start`` and ``end`` as pts of a stream: the first to take, None for all, and the first to leave out."""
        origin = (film.start_time or 0) / 1e6
        begin = round((origin + self.start) / stream.time_base) if self.start else None
        return begin, (origin + self.end) / stream.time_base


class Target(NamedTuple):
    """How pictures are encoded."""

    codec: str  # FFmpeg's encoder
    options: dict
    pix_fmt: str
    width: int
    height: int
    chroma: tuple  # (height, width) of Cb and Cr
    coding: Coding
    rate: Fraction
    time_base: Fraction
    tags: dict  # of the codec context
    part_format: str  # muxer of a part; its times need not be exact, only in order


_ENCODERS = {  # encoder: (crf, other options)
    "libx264": (16, {}), "libx265": (18, {"x265-params": "log-level=error"}),
    "libvpx-vp9": (24, {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "3"}),
    "libaom-av1": (20, {"b": "0", "row-mt": "1", "cpu-used": "6"}), "libsvtav1": (20, {"svtav1-params": "lookahead=0"}),
}  # fmt: skip


def parse_time(text):
    """Seconds of a time given in seconds, mm:ss or hh:mm:ss."""
    parts = text.split(":")
    try:
        seconds = sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf or len(parts) > 3:
        raise argparse.ArgumentTypeError(f"expected seconds, mm:ss or hh:mm:ss, got '{text}'")
    return seconds


def choose_target(path, output, settings):
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

    def __init__(self, file, target):
        self.target = target
        self.container = av.open(file, "w", format=target.part_format)
        stream = self.container.add_stream(target.codec, rate=target.rate, options=target.options)
        stream.width, stream.height, stream.pix_fmt = target.width, target.height, target.pix_fmt
        stream.time_base = stream.codec_context.time_base = target.time_base
        stream.codec_context.flags |= av.codec.context.Flags.global_header
        for tag, value in target.tags.items():
            setattr(stream.codec_context, tag, value)
        self.stream = stream

    def write(self, planes, pts):
        frame = av.VideoFrame(self.target.width, self.target.height, self.target.pix_fmt)
        for index, plane in enumerate(planes[:3]):
            plane_array(frame, index, self.target.coding.dtype)[:] = plane
        frame.pts, frame.time_base = pts, self.target.time_base
        frame.color_range, frame.colorspace = self.target.tags["color_range"], self.target.tags["colorspace"]
        self.container.mux(self.stream.encode(frame))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.container.mux(self.stream.encode(None))
            self.container.close()
        else:  # closed in any case: a container that the garbage collector finds open would write to a closed file
            with suppress(OSError, av.error.FFmpegError):
                self.container.close()


def part_order(path):
    """The display places of a part's packets, in the order of the packets. [] for what is no whole file."""
    try:
        with av.open(str(path)) as part:
            times = [packet.pts for packet in part.demux(video=0) if packet.size]
    except (av.error.FFmpegError, OSError):
        return []
    place = {pts: index for index, pts in enumerate(sorted(times))}
    return [place[pts] for pts in times]


def part_packets(parts, pts):
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


def carried_streams(film, video, path, output):
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


def join(parts, plan, path, output, settings, target):
    """Write ``output``: the packets of ``parts``, with the other streams, chapters and tags of the film at ``path``.

    Nothing is encoded. The output appears under its name only when it is complete.
    """
    with (open_video(path) as (film, video), replace_when_done(output) as temporary, av.open(str(parts[0])) as first,
          write_errors(output), av.open(str(temporary), "w", format=_muxer(output)) as out):
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
            for packet in _packets(film, others, path) if others else ():
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


@contextmanager
def write_errors(output):
    """Errors of writing beside ``output``, as a UserError that says what is kept."""
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = ("make room and run the same command again, it goes on with the first unfinished shot" if full else
                  "see that its folder can be written")
        raise UserError(f"cannot write {output}: {error.strerror or error}; {advice}") from error
