"""How is a colored film written? Each shot is encoded into a part; at the end the parts become one file.

Joining encodes nothing: packets of the parts are copied, and so are sound, subtitles, chapters and tags of the source.
"""

import errno
import heapq
import io
import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Stream

from config import FilmConfig
from film.fields import INTERLACING, Marker, options_of, order_of_fields
from film.parts import Parts
from film.plan import Plan, Target
from film.planes import BT709, Coding, Planes, has_fields, plane_array, planes_of
from film.video import Film, frame_rate, open_video, packets_of, read_frames
from utils import UserError, replace_when_done, warn

OUTPUT_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")

# ---------------------------------------------------------------------------------------------------------------------
# What to write


_ENCODERS = {  # encoder: (crf, other options); x264's default preset takes twice the time for 5 % less
    "libx264": (16, {"preset": "veryfast"}), "libx265": (18, {"x265-params": "log-level=error"}),
    "libvpx-vp9": (24, {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "3"}),
    "libaom-av1": (20, {"b": "0", "row-mt": "1", "cpu-used": "6"}), "libsvtav1": (20, {"svtav1-params": "lookahead=0"}),
    "ffv1": (None, {"level": "3", "g": "1", "slices": "4", "slicecrc": "1"}),  # as archives keep it: frame by frame
}  # fmt: skip


def choose_target(path: Path, output: Path, config: FilmConfig) -> Target:
    """The Target for a film and the file to write, tried on one black frame. Raises UserError when no frame decodes, or
    the settings do not go together."""
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"cannot write {output}: name a {', '.join(OUTPUT_SUFFIXES[:-1])} or {OUTPUT_SUFFIXES[-1]} "
                        "file by --output")
    codec = _choose_codec(output, config)
    frame, fields = _first_look(path)
    if fields and codec.name not in INTERLACING:
        warn(f"{path} is interlaced, which {codec.name} cannot tell, and players may show combs; write h264 instead")
        fields = ""
    planes = planes_of(frame)
    height, width = planes.y.shape
    pix_fmt = _choose_pix_fmt(codec, planes, fields, config)
    layout = av.VideoFormat(pix_fmt, width, height)
    coding = Coding(layout.components[0].bits, planes.coding.full, planes.coding.colorspace)
    options = {**_choose_options(codec, config), **options_of(fields)}
    with open_video(path) as (_, stream):
        rate = frame_rate(stream)
        if not _carries(_muxer(output), codec.name, rate):
            raise UserError(f"{output.suffix} cannot carry --codec {config.codec or codec.name}; name a .mkv file by "
                            "--output")
        part_format = "nut" if _carries("nut", codec.name, rate) else "mov"
        target = Target(codec.name, options, pix_fmt, width, height, (layout.chroma_height(), layout.chroma_width()),
                        coding, rate, stream.time_base, _tags(stream, coding, frame.rotation), part_format,
                        fields)
    try:
        with PartWriter(io.BytesIO(), target) as probe:
            probe.write(_black(target), 0)
    except (ValueError, av.error.FFmpegError) as error:
        raise UserError(f"--codec {codec.name} does not take --crf {options.get('crf', 'none')} and --pix_fmt "
                        f"{pix_fmt} at {width}x{height} ({error}); change one of them") from error
    return target


def _first_look(path):
    """(first frame of a film, order of its fields). Raises UserError when no frame decodes."""
    with closing(read_frames(path)) as frames:
        first = next(frames, None)
        if first is None:
            raise UserError(f"no frame of {path} can be decoded")
        order = order_of_fields(itertools.chain([first[1]], (frame for _, frame in frames)))
        return first[1], order if has_fields(first[1]) else ""


def _choose_codec(output, config):
    name = config.codec or ("libvpx-vp9" if output.suffix.lower() == ".webm" else "libx264")
    name = "prores_ks" if name == "prores" else name  # which FFmpeg takes for another encoder, that cannot interlace
    try:
        codec = av.Codec(name, "w")
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"there is no encoder {name} for --codec; try h264, hevc, vp9 or av1") from error
    if codec.type != "video":
        raise UserError(f"--codec {name} encodes no video; try h264, hevc, vp9 or av1")
    return codec


def _choose_pix_fmt(codec, planes, fields, config):
    """FFmpeg's pixel format for pictures like ``planes``: the one that is asked for, or the smallest that loses least.
    """
    formats = [format_.name for format_ in codec.video_formats or []]
    if config.pix_fmt is not None:
        if not config.pix_fmt.startswith("yuv4") or config.pix_fmt not in formats:
            usable = [name for name in formats if name.startswith("yuv4") and not name.endswith("16le")]
            raise UserError(f"--codec {codec.name} cannot write --pix_fmt {config.pix_fmt}; choose from "
                            f"{', '.join(usable)}")
        return config.pix_fmt
    # 4:2:0 stores one color for 2 x 2 pixels; these encoders want even sides for it, and of each field.
    (height, width), exact = planes.y.shape, codec.name in ("libx264", "libx265")
    odd = exact and bool(width % 2 or height % 2)
    tall = exact and bool(fields and height % 4)
    wanted = ["yuv444p" if odd else "yuv422p" if tall else "yuv420p", "yuv422p", "yuv444p"]
    deep = [name + "10le" for name in wanted]
    found = [name for name in (deep + wanted if planes.coding.depth > 8 else wanted + deep) if name in formats]
    if not found:
        raise UserError(f"--codec {config.codec or codec.name} takes no pictures of Y'CbCr; try h264, hevc, vp9 or av1")
    return found[0]


def _choose_options(codec, config):
    crf, options = _ENCODERS.get(codec.name, (None, {}))
    if crf is None:
        if config.crf is not None:
            raise UserError(f"--codec {codec.name} has no --crf; leave it out or use h264, hevc, vp9 or av1")
        return options
    return {**options, "crf": str(config.crf if config.crf is not None else crf)}


def _tags(stream, coding, rotation):
    """{attribute of the codec context: value}: color range, matrix, primaries, transfer and shape of the pixels."""
    context, ratio = stream.codec_context, stream.sample_aspect_ratio
    tags = {"color_range": 2 if coding.full else 1, "colorspace": coding.colorspace,
            "color_primaries": context.color_primaries, "color_trc": context.color_trc}
    if ratio:
        tags["sample_aspect_ratio"] = 1 / ratio if rotation % 180 else ratio
    return tags


def _black(target):
    """A black frame, to try an encoder with."""
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
        self.mark = Marker(target.fields, target.width, target.height, target.pix_fmt) if target.fields else None

    def write(self, planes: Planes, pts: int) -> None:
        """Encode the next frame: planes of the target's coding and sizes, pts in its time base."""
        frame = av.VideoFrame(self.target.width, self.target.height, self.target.pix_fmt)
        frame = self.mark(frame) if self.mark else frame
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
    """For each packet of a part, in the order of the file, its rank in display order; [] for an unreadable file."""
    try:
        return _ranks(_packet_times(path))
    except (av.error.FFmpegError, OSError, UserError):
        return []


def _packet_times(path):
    """The pts of the packets of a part or film, in the order of the file."""
    with open_video(path) as (film, stream):
        return array("q", (packet.pts for packet in film.demux(stream) if packet.size))


def _ranks(times):
    place = {pts: index for index, pts in enumerate(sorted(times))}
    return [place[pts] for pts in times]


@contextmanager
def _film_packets(path):
    """Yield an iterator over the packets of the pictures of a part or film, as encoders give them: H.264 and HEVC with
    a start code before each unit, where most containers have its length."""
    with open_video(path) as (film, stream):
        context = stream.codec_context
        plain = context.name not in ("h264", "hevc") or (context.extradata or b"\0")[0] != 1
        yield (packet if plain else _with_start_codes(packet) for packet in film.demux(stream) if packet.size)


def _with_start_codes(packet):
    data, place = bytearray(bytes(packet)), 0
    while place < len(data):
        length = int.from_bytes(data[place:place + 4], "big")
        data[place:place + 4] = b"\0\0\0\1"
        place += 4 + length
    packet.update(bytes(data))
    return packet


def part_packets(parts: Sequence[Path | range], pts: Sequence[int],
                 film: Path | None = None) -> Iterator[tuple[av.Packet, int]]:
    """Yield (packet, index of its frame in the film) of all parts, timed by ``pts``, those of all frames in order. A
    part is a file, or the range of its frames in the file ``film``.

    A packet's decoding time is the pts of the frame ``delay`` packets before it, where delay is how far the encoder
    reorders frames.
    """
    with ExitStack() as stack:
        times, taken = (), iter(())
        if any(isinstance(part, range) for part in parts):
            times, taken = _packet_times(film), stack.enter_context(_film_packets(film))

        def order(part):
            return _ranks(times[part.start:part.stop]) if isinstance(part, range) else part_order(part)

        delay, count, place = 0, 0, 0
        for part in parts:
            delay = max([delay, *(index - rank for index, rank in enumerate(order(part)))])
        step = pts[1] - pts[0] if len(pts) > 1 else 1
        for part in parts:
            ranks = order(part)
            if isinstance(part, range):
                opened = nullcontext(itertools.islice(taken, part.start - place, part.stop - place))
                place = part.stop
            else:
                opened = _film_packets(part)
            with opened as packets:
                for index, (rank, packet) in enumerate(zip(ranks, packets, strict=True)):
                    late = count + index - delay
                    packet.pts = pts[count + rank]
                    packet.dts = pts[late] if late >= 0 else pts[0] + late * step
                    yield packet, count + rank
            count += len(ranks)


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
            advice = "convert it before" if _muxer(output) == "matroska" else "write a .mkv"
            warn(f"{output} cannot carry the {kind} {stream.index} ({name}{language}) of {path}, left out; {advice} to "
                 "keep it")
            continue
        carried.append(stream)
    return carried


class FilmWriter:
    """Writes the colored film of the file ``path``, as ``parts.Writer`` says: one part a shot, joined at the end."""

    cuts = True

    def __init__(self, path: Path, output: Path, config: FilmConfig) -> None:
        """Raises UserError when the settings do not go together, or the output is the film itself."""
        if output.exists() and output.samefile(path):
            raise UserError(f"the output {output} is the input itself; name another --output")
        self.path, self.output, self.config = path, output, config
        self.target = choose_target(path, output, config)

    def replaces(self) -> bool:
        return self.output.exists()

    @contextmanager
    def shot(self, part: Path, times: Sequence[int]) -> Iterator[Callable[[Planes, int], None]]:
        with replace_when_done(part) as temporary:
            with open(temporary, "wb") as file:
                with PartWriter(file, self.target) as writer:
                    yield writer.write
                file.flush()
                os.fsync(file.fileno())
            if not self.has_shot(temporary, times):
                raise OSError(errno.EIO, "not all frames were written")

    def has_shot(self, part: Path, times: Sequence[int]) -> bool:
        return len(part_order(part)) == len(times)

    def join(self, parts: Parts, plan: Plan, readings: Sequence[str]) -> None:
        held: Sequence[str | None] = parts.held() or [None] * len(readings)
        pieces = [range(shot.start, shot.end) if of_film == reading else parts.part(number) for
                  number, (shot, of_film, reading) in enumerate(zip(plan.shots, held, readings, strict=True))]
        with replace_when_done(self.output) as temporary:
            self._join(pieces, plan, temporary)
            parts.note_joined(temporary, readings)
        parts.drop_pictures()

    def _join(self, parts, plan, temporary):
        """Write the film at ``temporary``: the packets of ``parts``, with the other streams, chapters and tags of the
        source. Nothing is encoded."""
        target, of_encoder = self.target, next(part for part in parts if isinstance(part, Path))
        with (open_video(self.path) as (film, video), av.open(str(of_encoder)) as first, write_errors(self.output),
              av.open(str(temporary), "w", format=_muxer(self.output)) as out):
            out.flags |= av.container.Flags.bitexact.value  # no random numbers: of the same film, the same bytes
            others = carried_streams(film, video, self.path, self.output)
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
            out.set_chapters(self._chapters(film))
            origin = (film.start_time or 0) / 1e6 + self.config.start
            packets = [self._pictures(parts, plan, origin), self._rest(film, others, origin) if others else ()]
            for _, packet, index in heapq.merge(*packets, key=lambda item: item[0]):
                packet.stream = streams[video.index if index is None else index]
                out.mux(packet)
            out.close()
            self._check_shape(temporary)

    def _chapters(self, film):
        """The chapters of the source, moved and cut to the part that is colored."""
        chapters, length = [], self.config.end - self.config.start
        for chapter in film.chapters():
            begin, end = (float(chapter[side] * chapter["time_base"]) - self.config.start for side in ("start", "end"))
            if end > 0 and begin < length:
                begin, end = (round(min(max(t, 0), length) / chapter["time_base"]) for t in (begin, end))
                chapters.append({**chapter, "start": begin, "end": end})
        return chapters

    def _pictures(self, parts, plan, origin):
        """Yield (seconds, packet, None) of the pictures; with --start, times count from ``origin`` (seconds)."""
        base = self.target.time_base
        offset = round(origin / base) if self.config.start else 0
        pts = array("q", (time_ - offset for time_ in plan.pts)) if offset else plan.pts
        for packet, index in part_packets(parts, pts, self.output):
            packet.time_base = base
            packet.duration = pts[index + 1] - pts[index] if index + 1 < len(pts) else plan.last_duration
            yield float(packet.dts * base), packet, None

    def _rest(self, film, others, origin):
        """Yield (seconds, packet, index of its stream) of the source's ``others``, cut and moved as pictures are."""
        config, shift = self.config, origin if self.config.start else 0.0
        for packet in packets_of(film, others, self.path):
            at = packet.dts if packet.dts is not None else packet.pts
            if at is None or not packet.size:
                continue
            at = float(at * packet.time_base)
            if config.start and at < origin or at >= origin - config.start + config.end:
                continue
            if shift:
                moved = round(shift / packet.time_base)
                packet.dts = packet.dts - moved if packet.dts is not None else None
                packet.pts = packet.pts - moved if packet.pts is not None else None
            yield at - shift, packet, packet.stream_index

    def _check_shape(self, path):
        """Warn when the container has lost the shape of the pixels."""
        target = self.target
        ratio = target.tags.get("sample_aspect_ratio", 1)
        with open_video(path) as (_, written):
            if (written.sample_aspect_ratio or 1) != ratio:
                warn(f"{self.output} cannot carry the shape of the pixels ({ratio}) with {target.codec}: tell the "
                     f"player to show it {float(target.width * ratio / target.height):.3g} times as wide as high, or "
                     "write h264")


def write_pictures(target: Path, film: Film, pictures: Iterable[tuple[int, np.ndarray]], aspect: Any = None) -> None:
    """Write pictures about ``film``, (pts in its time base, RGB uint8 (H, W, 3) of one size), as the H.264 film
    ``target`` without sound, which appears when it is complete. ``aspect``: shape of the pixels, None for square."""
    with replace_when_done(target) as temporary, av.open(str(temporary), "w") as output:
        stream = output.add_stream("libx264", rate=film.rate, options={"crf": "18", "preset": "veryfast"})
        stream.time_base = stream.codec_context.time_base = film.time_base
        stream.codec_context.colorspace = BT709
        for number, (pts, picture) in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv444p" if any(side % 2 for side in picture.shape[:2]) else "yuv420p"
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
            encoded = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=stream.pix_fmt, dst_colorspace="ITU709")
            encoded.pts, encoded.time_base = pts, film.time_base
            output.mux(stream.encode(encoded))
        output.mux(stream.encode(None))


@contextmanager
def write_errors(output: Path) -> Iterator[None]:
    """Turn errors of writing ``output``, or files beside it, into a UserError with advice; other UserErrors pass."""
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
