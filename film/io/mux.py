"""TODO: module docstring."""

import io
import itertools
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Stream

from film.io.video import open_video
from utils import UserError, warn


def segment_order(path: Path) -> list[int]:
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


def segment_packets(parts: Sequence[Path | range], pts: Sequence[int],
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
            return _ranks(times[part.start:part.stop]) if isinstance(part, range) else segment_order(part)

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


def source_tags(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith(_OWN_TAGS)}


def copyable_streams(film: av.container.InputContainer, video: av.VideoStream, path: Path, output: Path) -> list[Stream]:
    """The streams beside ``video`` that the output's container can carry as they are; the others are named."""
    carried = []
    for stream in film.streams:
        if stream is video or (stream.type == "data" and film.chapters()):  # of a .mp4, the titles of its chapters
            continue
        try:
            with av.open(io.BytesIO(), "w", format=container_format(output)) as probe:
                probe.add_stream_from_template(stream, opaque=True)
                probe.start_encoding()
        except (ValueError, av.error.FFmpegError, OSError):
            name = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
            kind = {"audio": "sound track", "subtitle": "subtitles", "video": "second picture"}.get(
                stream.type, stream.type)
            language = f", {stream.language}" if stream.language else ""
            advice = "convert it before" if container_format(output) == "matroska" else "write a .mkv"
            warn(f"{output} cannot carry the {kind} {stream.index} ({name}{language}) of {path}, left out; {advice} to "
                 "keep it")
            continue
        carried.append(stream)
    return carried


def container_format(output: Path) -> str:
    return {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".webm": "webm"}[output.suffix.lower()]


def can_carry(muxer: str, codec: str, rate: Fraction) -> bool:
    """Whether a container can hold what an encoder makes."""
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as probe:
            probe.add_stream(codec, rate=rate)
    except ValueError:
        return False
    return True
