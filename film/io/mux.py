"""Muxing of encoded segments: packets in display order with the timestamps of the film, and what a container can store.

Nothing is encoded here: packets of segments and of the source are copied.
"""

import io
import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext
from av.stream import Stream

from film.io.video import open_video
from utils import UserError, warn

_CONTAINER_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".webm": "webm"}  # suffix: FFmpeg muxer
OUTPUT_SUFFIXES = tuple(_CONTAINER_FORMATS)
_MUXER_TAGS = ("encoder", "major_brand", "minor_version", "compatible_brands", "DURATION", "_STATISTICS", "BPS",
               "NUMBER_OF")  # prefixes of tags that a muxer writes about its own file
# Bitstream filters that write a start code before each unit. They remove units of an unused type, that is, none.
# FFmpeg's h264_mp4toannexb and hevc_mp4toannexb would also insert the headers, which encoders write once per file.
_START_CODE_FILTERS = {"h264": "filter_units=remove_types=31", "hevc": "filter_units=remove_types=63"}

# ---------------------------------------------------------------------------------------------------------------------
# Packets of segments


def segment_order(path: Path) -> list[int]:
    """Return the rank in display order of each packet of a segment, in file order; [] if the file is unreadable."""
    try:
        return _display_ranks(_packet_times(path))
    except (av.error.FFmpegError, OSError, UserError):
        return []


def _packet_times(path):
    """Return the pts of the video packets of a segment or film, in file order."""
    with open_video(path) as (film, stream):
        return array("q", (packet.pts for packet in film.demux(stream) if packet.size))


def _display_ranks(times):
    ranks = {pts: rank for rank, pts in enumerate(sorted(times))}
    return [ranks[pts] for pts in times]


@contextmanager
def _video_packets(path):
    """Yield an iterator over the video packets of a segment or film, as encoders return them.

    Most containers store H.264 and HEVC with the length of each unit instead of a start code; this is undone.
    """
    with open_video(path) as (film, stream):
        context = stream.codec_context
        packets = (packet for packet in film.demux(stream) if packet.size)
        if context.name in _START_CODE_FILTERS and (context.extradata or b"\0")[0] == 1:
            convert = BitStreamFilterContext(_START_CODE_FILTERS[context.name], stream)
            packets = (converted for packet in packets for converted in convert.filter(packet))
        yield packets


def segment_packets(segments: Sequence[Path | range], pts: Sequence[int],
                    film: Path | None = None) -> Iterator[tuple[av.Packet, int]]:
    """Yield (packet, index of its frame in the film) of all segments, with timestamps from ``pts`` of all frames.

    A segment is a file, or the range of its frames in the file ``film``. The decoding time of a packet is the pts of
    the frame ``delay`` packets earlier, where ``delay`` is the maximum distance by which the encoder reorders frames.
    """
    with ExitStack() as stack:
        times, film_packets = (), iter(())
        if any(isinstance(segment, range) for segment in segments):
            times, film_packets = _packet_times(film), stack.enter_context(_video_packets(film))

        def order(segment):
            if isinstance(segment, range):
                return _display_ranks(times[segment.start:segment.stop])
            return segment_order(segment)

        delay = max([0, *(index - rank for segment in segments for index, rank in enumerate(order(segment)))])
        step = pts[1] - pts[0] if len(pts) > 1 else 1
        count = position = 0  # frames written; packets read from ``film``
        for segment in segments:
            ranks = order(segment)
            if isinstance(segment, range):
                opened = nullcontext(itertools.islice(film_packets, segment.start - position, segment.stop - position))
                position = segment.stop
            else:
                opened = _video_packets(segment)
            with opened as packets:
                for index, (rank, packet) in enumerate(zip(ranks, packets, strict=True)):
                    decoded = count + index - delay
                    packet.pts = pts[count + rank]
                    packet.dts = pts[decoded] if decoded >= 0 else pts[0] + decoded * step
                    yield packet, count + rank
            count += len(ranks)


# ---------------------------------------------------------------------------------------------------------------------
# Containers


def container_format(output: Path) -> str:
    """Return FFmpeg's muxer for a file with one of OUTPUT_SUFFIXES."""
    return _CONTAINER_FORMATS[output.suffix.lower()]


def can_store(muxer: str, encoder: str, rate: Fraction) -> bool:
    """Return whether a container format can store the video of an encoder."""
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as probe:
            probe.add_stream(encoder, rate=rate)
    except ValueError:
        return False
    return True


def source_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that describe the content, without those that a muxer wrote about its file."""
    return {key: value for key, value in tags.items() if not key.startswith(_MUXER_TAGS)}


def copyable_streams(film: av.container.InputContainer, video: av.VideoStream, path: Path,
                     output: Path) -> list[Stream]:
    """Return the streams other than ``video`` that the output's container can store; warn about all others."""
    copyable = []
    for stream in film.streams:
        if stream is video or (stream.type == "data" and film.chapters()):  # chapter titles of .mp4
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
            warn(f"{output} cannot store the {kind} {stream.index} ({name}{language}) of {path}, left out; {advice} to "
                 "keep it")
            continue
        copyable.append(stream)
    return copyable
