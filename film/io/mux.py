"""Muxing of encoded segments: packets with the timestamps of the film, in decoding order, and limits of containers.

Nothing is encoded here: packets of segments and of the source are copied.
"""

import io
import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition, Stream

from film.io.video import open_video
from utils import UserError, warn

_CONTAINER_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".webm": "webm"}  # suffix: FFmpeg muxer
OUTPUT_SUFFIXES = tuple(_CONTAINER_FORMATS)
_MUXER_TAGS = (  # prefixes of metadata keys that a muxer writes itself
    "encoder", "major_brand", "minor_version", "compatible_brands", "duration", "_statistics", "bps", "number_of",
    "alpha_mode", "vendor_id", "operational_pattern", "uid", "generation_uid", "company_name", "product_",
    "application_platform", "toolkit_version", "material_package_umid", "file_package_umid")
_COVER_TYPES = {"mjpeg": "image/jpeg", "png": "image/png", "bmp": "image/bmp", "gif": "image/gif",
                "webp": "image/webp", "tiff": "image/tiff"}  # FFmpeg codec: MIME type of a cover in a .mkv
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


def segment_packets(segments: Sequence[Path | range], pts: Sequence[int], last_duration: int, time_base: Fraction,
                    film: Path | None = None) -> Iterator[av.Packet]:
    """Yield the packets of all segments in decoding order, with new timestamps and durations.

    A segment is a file, or a range of frames of the video file ``film``; ``pts`` contains the pts of each frame of all
    segments, in units of ``time_base``, as is ``last_duration``. Ranges must ascend and not overlap.

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
                    number = count + index
                    end = pts[number + 1] if number + 1 < len(pts) else pts[number] + last_duration
                    packet.time_base, packet.pts, packet.duration = time_base, pts[number], end - pts[number]
                    packet.dts = pts[i] if i >= 0 else pts[0] + i * step
                    yield packet
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
    return {key: value for key, value in tags.items() if not key.lower().startswith(_MUXER_TAGS)}


def is_cover(stream: Stream) -> bool:
    """Return whether a stream is a cover picture."""
    return bool(stream.disposition & Disposition.attached_pic)


def copyable_streams(film: av.container.InputContainer, video: av.VideoStream, path: Path,
                     output: Path) -> list[Stream]:
    """Return the streams of ``film`` that the container of ``output`` can store; warn about all others.

    ``video``, chapter titles and time codes (``timecode_tags``), which are copied separately, are not considered.
    """
    copyable = []
    for stream in film.streams:
        is_chapters = stream.type == "data" and getattr(stream, "name", "") == "bin_data" and film.chapters()
        if stream is video or is_chapters or stream.type == "data" and "timecode" in stream.metadata:
            continue
        if _can_copy(stream, container_format(output)):
            copyable.append(stream)
            continue
        language = f", {stream.language}" if stream.language else ""
        advice = "convert it before" if container_format(output) == "matroska" else "write a .mkv"
        warn(f"{output} cannot store the {_description(stream)} ({_codec_name(stream)}{language}) of {path}, so it is "
             f"left out; {advice} to keep it")
    return copyable


def _can_copy(stream, muxer):
    if is_cover(stream) and muxer != "mp4":
        return muxer == "matroska" and _codec_name(stream) in _COVER_TYPES
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as probe:
            probe.add_stream_from_template(stream, opaque=True)
            probe.start_encoding()
    except (ValueError, av.error.FFmpegError, OSError):
        return False
    return True


def _description(stream):
    kind = {"audio": "sound track", "subtitle": "subtitles", "data": "data track"}.get(stream.type, stream.type)
    return f"{'cover picture' if is_cover(stream) else kind} {stream.index}"


def _codec_name(stream):
    if stream.codec_context:
        return stream.codec_context.codec.canonical_name
    return getattr(stream, "name", None) or "unknown"


def timecode_tags(film: av.container.InputContainer) -> dict[str, str]:
    """Return the tags of the time code track of a .mov file, which other containers store as tags of the picture."""
    return {key: stream.metadata[key] for stream in film.streams if stream.type == "data" and
            "timecode" in stream.metadata for key in ("timecode", "reel_name") if key in stream.metadata}


def add_cover(out: av.container.OutputContainer, cover: Stream, path: Path) -> list[av.Packet]:
    """Add a cover picture of the film ``path`` to ``out``. Return its packets, which must be muxed first.

    Matroska stores covers as attachments, without packets.
    """
    with open_video(path) as (film, _):
        data = next(bytes(packet) for packet in film.demux(film.streams[cover.index]) if packet.size)
    if out.format.name == "matroska":
        codec = _codec_name(cover)
        name = cover.metadata.get("filename", f"cover.{codec.replace('mjpeg', 'jpg')}")
        out.add_attachment(name, _COVER_TYPES[codec], data)
        return []
    stream = out.add_stream_from_template(cover, opaque=True)
    stream.disposition, stream.time_base = cover.disposition.value, cover.time_base
    packet = av.Packet(data)
    packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 0, 0, True
    return [packet]


def lost_tags(film: av.container.InputContainer, copied: Sequence[Stream],
              result: av.container.InputContainer) -> list[str]:
    """Describe the tags, dispositions and chapters of ``film`` and its ``copied`` streams that ``result`` lacks."""
    time_codes = {**timecode_tags(result), **result.streams.video[0].metadata}
    missing = _missing(timecode_tags(film), time_codes)
    lost = [f"the tag {key}" for key in [*_missing(film.metadata, result.metadata, time_codes), *missing]]
    if len(result.chapters()) < len(film.chapters()):
        lost.append("the chapters")
    remaining = list(result.streams)
    for stream in copied:
        kind = stream.type, is_cover(stream)
        other = next((other for other in remaining if (other.type, is_cover(other)) == kind), None)
        if other is None:
            lost.append(f"the {_description(stream)}")
            continue
        remaining.remove(other)
        names = [f"the tag {key}" for key in _missing(stream.metadata, other.metadata) if key not in missing]
        names += [f"the mark {flag.name}" for flag in Disposition if flag & stream.disposition & ~other.disposition]
        lost += [f"{name} of the {_description(stream)}" for name in names]
    return lost


def _missing(tags, *results):
    """Return the keys of ``tags`` whose values are not among those of ``results``, without technical ones."""
    values = {"und"}.union(*(result.values() for result in results))
    technical = "handler_name", "filename", "mimetype"
    return [key for key, value in source_tags(tags).items() if value not in values and key.lower() not in technical]


def ordered_packets(packets: Iterable[av.Packet], path: Path, output: Path) -> Iterator[av.Packet]:
    """Yield the packets of other streams than the video that ``output`` can store; the others are named in a warning.

    Left out are packets that an edit list hides, where ``output`` has no edit lists or they follow the visible part,
    and packets that begin before the one before them, as where two joined parts overlap.
    """
    last, overlapping = {}, Counter()
    has_edit_lists = is_strict = container_format(output) in ("mp4", "mov")  # strict: no two packets at the same time
    for packet in packets:
        time = packet.dts if packet.dts is not None else packet.pts
        if time is None or not packet.size:
            continue
        # A packet next to the visible part is kept, since decoders need it.
        if packet.is_discard and (time >= 0 or not has_edit_lists and time + 2 * (packet.duration or 0) <= 0):
            continue
        if packet.dts is not None:
            if time < last.get(packet.stream_index, time - 1) + (is_strict and packet.stream.type == "audio"):
                overlapping[packet.stream_index] += 1
                continue
            last[packet.stream_index] = time
        yield packet
    for index, count in overlapping.items():
        warn(f"{count} packets of track {index} of {path} begin before the end of those before them and are left out")
