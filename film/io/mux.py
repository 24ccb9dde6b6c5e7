"""Muxing of encoded segments: packets with the timestamps of the film, in decoding order, and limits of containers.

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
               "NUMBER_OF")  # prefixes of metadata keys that describe the file itself and are written by its muxer
# Bitstream filters that convert packets to Annex B (start codes) and remove NAL units of an unused type, that is, none.
# h264_mp4toannexb and hevc_mp4toannexb would also insert parameter sets, which encoders write once per file.
_START_CODE_FILTERS = {"h264": "filter_units=remove_types=31", "hevc": "filter_units=remove_types=63"}

# ---------------------------------------------------------------------------------------------------------------------
# Packets of segments


def segment_order(path: Path) -> list[int]:
    """Return the presentation index of each packet of a segment, in decoding order; [] if the file is unreadable."""
    try:
        return _presentation_indices(_packet_times(path))
    except (av.error.FFmpegError, OSError, UserError):
        return []


def _packet_times(path):
    """Return the pts of the video packets of a segment or film, in decoding order."""
    with open_video(path) as (film, stream):
        return array("q", (packet.pts for packet in film.demux(stream) if packet.size))


def _presentation_indices(times):
    indices = {pts: index for index, pts in enumerate(sorted(times))}
    return [indices[pts] for pts in times]


@contextmanager
def _video_packets(path):
    """Yield an iterator over the video packets of a segment or film; H.264 and HEVC are converted to Annex B.

    Most containers store the length of each NAL unit instead of the start code that encoders write.
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
    """Yield (packet, frame index) of all segments in decoding order, with new timestamps.

    A segment is a file, or a range of frames of the video file ``film``; ``pts`` contains the pts of each frame of all
    segments. Ranges must ascend and not overlap.

    The reorder delay is the largest difference between a packet's decoding and presentation positions. The dts of
    packet i is the pts of frame i - delay, extrapolated for the first packets.
    """
    with ExitStack() as stack:
        times, film_packets = (), iter(())
        if any(isinstance(segment, range) for segment in segments):
            times, film_packets = _packet_times(film), stack.enter_context(_video_packets(film))

        def order(segment):
            if isinstance(segment, range):
                return _presentation_indices(times[segment.start:segment.stop])
            return segment_order(segment)

        delay = max([0, *(i - index for segment in segments for i, index in enumerate(order(segment)))])
        step = pts[1] - pts[0] if len(pts) > 1 else 1
        count = position = 0  # frames written; packets read from ``film``
        for segment in segments:
            indices = order(segment)
            if isinstance(segment, range):
                opened = nullcontext(itertools.islice(film_packets, segment.start - position, segment.stop - position))
                position = segment.stop
            else:
                opened = _video_packets(segment)
            with opened as packets:
                for i, (index, packet) in enumerate(zip(indices, packets, strict=True), count - delay):
                    packet.pts = pts[count + index]
                    packet.dts = pts[i] if i >= 0 else pts[0] + i * step
                    yield packet, count + index
            count += len(indices)


# ---------------------------------------------------------------------------------------------------------------------
# Containers


def container_format(output: Path) -> str:
    """Return the name of FFmpeg's muxer for an output file with one of OUTPUT_SUFFIXES."""
    return _CONTAINER_FORMATS[output.suffix.lower()]


def can_store(muxer: str, encoder: str, rate: Fraction) -> bool:
    """Return whether an FFmpeg muxer accepts the video of an encoder."""
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as probe:
            probe.add_stream(encoder, rate=rate)
    except ValueError:
        return False
    return True


def source_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a source without the keys that its muxer wrote (_MUXER_TAGS)."""
    return {key: value for key, value in tags.items() if not key.startswith(_MUXER_TAGS)}


def copyable_streams(film: av.container.InputContainer, video: av.VideoStream, path: Path,
                     output: Path) -> list[Stream]:
    """Return the streams of ``film`` that the container of ``output`` can store; warn about all others.

    ``video`` and the chapter titles of .mp4 files, which are copied separately, are not considered.
    """
    copyable = []
    for stream in film.streams:
        if stream is video or (stream.type == "data" and film.chapters()):
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
            warn(f"{output} cannot store the {kind} {stream.index} ({name}{language}) of {path}, so it is left "
                 f"out; {advice} to keep it")
            continue
        copyable.append(stream)
    return copyable
