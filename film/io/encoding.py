"""Encoding of films: encoder settings, segments (one file per shot), and complete videos from RGB frames."""

import errno
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np

from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from config import FilmConfig
from fileio.atomic import atomic_write
from film.io.filters import frame_filter
from film.io.interlacing import INTERLACED_ENCODERS, field_flagger, interlacing_options, mark_progressive
from film.io.mux import OUTPUT_SUFFIXES, can_store, container_format, segment_order
from film.io.planes import (
    BT709, SIDE_DATA, ColorEncoding, Planes, orientation, plane_array, planes_from_frame)
from film.io.video import Film, VideoFile, frame_rate, open_video, read_frames
from utils import UserError, is_out_of_memory, warn

# ---------------------------------------------------------------------------------------------------------------------
# Encoder settings

ENCODER_THREADS = 4  # the output of x264, x265 and libvpx depends on their number, so it must not be that of cores
# Options of x264 were chosen by the error of colors, the file size and the time: see "x264" in benchmarks/trials.md.
_DEFAULTS = {  # encoder: (crf, other options)
    "libx264": (16, {"preset": "veryfast", "partitions": "p8x8,i4x4,i8x8", "trellis": "1", "chromaoffset": "-2"}),
    "libx265": (18, {"x265-params": "log-level=error", "a53cc": "1"}),
    "libvpx-vp9": (24, {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "3"}),
    "libaom-av1": (20, {"b": "0", "row-mt": "1", "cpu-used": "6"}), "libsvtav1": (20, {"svtav1-params": "lookahead=0"}),
    "ffv1": (None, {"level": "3", "g": "1", "slices": "4", "slicecrc": "1"}),  # as archives recommend: intra only
}  # fmt: skip
_SD_LINES = 576  # maximum height of a frame in standard definition
_HD_OPTIONS = {"libx264": {"partitions": "i4x4,i8x8", "trellis": "0"}}  # replace those of _DEFAULTS in higher frames
_ALPHA_ENCODERS = ("ffv1", "prores_ks", "libvpx-vp9")  # FFmpeg encoders that write alpha; x265 lists it but does not
_WRITTEN_SIDE_DATA = {name: {Type.A53_CC} for name in ("libx264", "libx265", "mpeg2video")}
_DONOR_SIZE = 16  # maximum pixels along a side of the frame that side data are copied from; larger is slower


class EncodingTarget(NamedTuple):
    """Codec, pixel format, size, timing and metadata of the encoded frames of a film."""

    codec: str  # FFmpeg encoder
    options: dict[str, str]
    pix_fmt: str
    width: int
    height: int
    chroma_size: tuple[int, int]  # (height, width) of Cb and Cr
    encoding: ColorEncoding
    rate: Fraction  # frames per second
    time_base: Fraction  # seconds
    tags: dict[str, Any]  # {attribute of the codec context: value}
    segment_format: str  # FFmpeg muxer of segments; it needs to preserve the order of timestamps, not their values
    field_order: str = ""  # "tff" or "bff" for interlaced film


def choose_encoding(film: VideoFile, output: Path, config: FilmConfig, order: str = "") -> EncodingTarget:
    """Choose the encoding of ``output``, the colored version of ``film``, and test it with a black frame.

    ``order`` is the field order of the film. Warns if the encoder cannot mark it. Raises UserError if the suffix of
    ``output`` is not supported, no frame of the film can be decoded, or the encoder settings cannot be combined.
    """
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"cannot write {output}; pass a {', '.join(OUTPUT_SUFFIXES[:-1])} or {OUTPUT_SUFFIXES[-1]} "
                        "file to --output")
    encoder, path = _choose_encoder(output, config), film.path
    frame = _first_frame(path)
    if order and encoder.name not in INTERLACED_ENCODERS:
        warn(f"{path} is interlaced, which {encoder.name} cannot mark, so players may show combing; use --codec h264")
        order = ""
    planes = planes_from_frame(frame, film.color_tags)
    if encoder.name == "libvpx-vp9" and container_format(output) not in ("webm", "matroska"):
        planes = planes._replace(alpha=None)  # only these containers store alpha next to VP9
    height, width = planes.y.shape
    pix_fmt = _choose_pix_fmt(encoder, planes, order, config)
    layout = av.VideoFormat(pix_fmt, width, height)
    bits = layout.components[0].bits
    if bits < planes.encoding.depth and config.pix_fmt is None:
        warn(f"{encoder.name} stores only {bits} of the {planes.encoding.depth} bits per sample of {path}; use --codec "
             "ffv1 and a .mkv to keep all")
    encoding = planes.encoding._replace(depth=bits)
    options = _choose_options(encoder, config, height)
    has_alpha = "yuva" in pix_fmt
    with open_video(path) as (_, stream):
        rate = frame_rate(stream)
        if not can_store(container_format(output), encoder.name, rate):
            raise UserError(f"{output.suffix} cannot store --codec {config.codec or encoder.name}; pass a .mkv file to "
                            "--output")
        target = EncodingTarget(
            encoder.name, options, pix_fmt, width, height, (layout.chroma_height(), layout.chroma_width()), encoding,
            rate, stream.time_base, _tags(stream, encoding, orientation(frame).transpose),
            "matroska" if has_alpha else _segment_format(encoder.name, rate), order)
    try:
        with segment_encoder(io.BytesIO(), target) as write:
            write(_black(target), 0)
    except (ValueError, av.error.FFmpegError) as error:
        raise UserError(f"--codec {encoder.name} does not support --crf {options.get('crf', 'none')} and --pix_fmt "
                        f"{pix_fmt} at {width}x{height} ({error}); change one of them") from error
    return target


def choose_small_encoding(film: EncodingTarget, max_height: int) -> EncodingTarget:
    """Choose the encoding of a video that accompanies a ``film``: H.264 with 4:2:0, at the size of the film divided by
    the smallest whole number for which the height is at most ``max_height``, rounded to even sides."""
    divisor = 2 * -(-film.height // max_height)
    height, width = (max(1, round(side / divisor)) for side in (film.height, film.width))
    crf, options = _default_options("libx264", 2 * height)
    tags = {"color_range": 1, "colorspace": BT709, "color_primaries": BT709, "color_trc": BT709}
    tags |= {name: ratio for name, ratio in film.tags.items() if name == "sample_aspect_ratio"}
    return EncodingTarget("libx264", {**options, "crf": str(crf)}, "yuv420p", 2 * width, 2 * height, (height, width),
                          ColorEncoding(8, False, BT709), film.rate, film.time_base, tags,
                          _segment_format("libx264", film.rate))


def _segment_format(encoder, rate):
    return "nut" if can_store("nut", encoder, rate) else "mov"


def _first_frame(path):
    """Return the first frame of a film. Raises UserError if no frame can be decoded."""
    with closing(read_frames(path)) as frames:
        for _, frame in frames:
            return frame
    raise UserError(f"no frame of {path} can be decoded; pass a different video")


def _choose_encoder(output, config):
    name = config.codec or ("libvpx-vp9" if output.suffix.lower() == ".webm" else "libx264")
    name = "prores_ks" if name == "prores" else name  # FFmpeg's default encoder of ProRes cannot write interlaced film
    try:
        encoder = av.Codec(name, "w")
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"there is no encoder {name} for --codec; try h264, hevc, vp9 or av1") from error
    if encoder.type != "video":
        raise UserError(f"--codec {name} does not encode video; try h264, hevc, vp9 or av1")
    return encoder


def _choose_pix_fmt(encoder, planes, order, config):
    """Return --pix_fmt if given, else the usable format with the least subsampled chroma planes and depth that hold
    ``planes``, with alpha if they have it."""
    formats = {format_.name: format_.components[0].bits for format_ in encoder.video_formats or []}
    if config.pix_fmt is not None:
        if not config.pix_fmt.startswith(("yuv4", "yuva4")) or config.pix_fmt not in formats:
            usable = [name for name in formats if name.startswith(("yuv4", "yuva4"))]
            raise UserError(f"--codec {encoder.name} cannot write --pix_fmt {config.pix_fmt}; choose from "
                            f"{', '.join(usable)}")
        return config.pix_fmt
    # 4:2:0 stores one color per 2 x 2 pixels: x264 and x265 require even sides for it, and an even height per field.
    (height, width), strict = planes.y.shape, encoder.name in ("libx264", "libx265")
    odd_size = strict and bool(width % 2 or height % 2)
    odd_fields = strict and bool(order and height % 4)
    alpha = "a" if planes.alpha is not None and encoder.name in _ALPHA_ENCODERS else ""
    names = [f"yuv{alpha}{layout}p" for layout in ("444" if odd_size else "422" if odd_fields else "420", "422", "444")]
    depth, stem = planes.encoding.depth, partial(re.sub, r"(?<=p)\d+le$", "")
    supported = [name for name in formats if stem(name) in names]
    if not supported:
        raise UserError(f"--codec {config.codec or encoder.name} does not encode Y'CbCr; try h264, hevc, vp9 or av1")
    return min(supported, key=lambda name: (formats[name] < depth, abs(formats[name] - depth), names.index(stem(name))))


def _default_options(name, height):
    """Return the default CRF, or None, and the other options of an encoder for frames of ``height`` lines."""
    crf, options = _DEFAULTS.get(name, (None, {}))
    return crf, {**options, **(_HD_OPTIONS.get(name, {}) if height > _SD_LINES else {})}


def _choose_options(encoder, config, height):
    crf, options = _default_options(encoder.name, height)
    if crf is None:
        if config.crf is not None:
            raise UserError(f"--codec {encoder.name} has no --crf; leave it out or use h264, hevc, vp9 or av1")
        return options
    return {**options, "crf": str(config.crf if config.crf is not None else crf)}


def _tags(stream, encoding, is_transposed):
    """Return {attribute of the codec context: value} for color range, matrix, primaries, transfer and pixel aspect."""
    context, ratio = stream.codec_context, stream.sample_aspect_ratio
    tags = {"color_range": 2 if encoding.full_range else 1, "colorspace": encoding.colorspace,
            "color_primaries": context.color_primaries, "color_trc": context.color_trc}
    if ratio:
        tags["sample_aspect_ratio"] = 1 / ratio if is_transposed else ratio
    return tags


def _black(target):
    """Return a black, opaque frame in the format of ``target``."""
    y = np.full((target.height, target.width), target.encoding.luma_range[0], target.encoding.dtype)
    cb = np.full(target.chroma_size, target.encoding.neutral_chroma, target.encoding.dtype)
    return Planes(y, cb, cb, target.encoding)


def add_encoder(container: av.container.OutputContainer, target: EncodingTarget) -> av.VideoStream:
    """Add a stream that encodes frames of ``target``."""
    stream = container.add_stream(target.codec, rate=target.rate,
                                  options={**target.options, **interlacing_options(target.field_order)})
    stream.width, stream.height, stream.pix_fmt = target.width, target.height, target.pix_fmt
    # MPEG-2 allows no other time base. The values of timestamps do not matter, see EncodingTarget.segment_format.
    base = 1 / target.rate if target.codec == "mpeg2video" else target.time_base
    stream.time_base = stream.codec_context.time_base = base
    stream.codec_context.thread_count = ENCODER_THREADS
    stream.codec_context.flags |= av.codec.context.Flags.global_header
    for tag, value in target.tags.items():
        setattr(stream.codec_context, tag, value)
    return stream


@contextmanager
def segment_encoder(file: BinaryIO, target: EncodingTarget) -> Iterator[Callable[[Planes, int], None]]:
    """Open an encoder that writes the frames of one shot to ``file``.

    Yields a function write(planes, pts) that encodes the next frame with its side data (_WRITTEN_SIDE_DATA). Planes
    must have the encoding and sizes of ``target``, and pts its time base. The file is complete when the block ends.
    """
    container = av.open(file, "w", format=target.segment_format)
    stream = add_encoder(container, target)
    base = stream.time_base
    new_frame, opaque, numbers = _frame_factory(target), 2**target.encoding.depth - 1, itertools.count()
    progressive: set[int] = set()  # pts of frames in an interlaced H.264 stream

    def mux(packets):
        container.mux([mark_progressive(packet) if packet.pts in progressive else packet for packet in packets])

    def write(planes, pts):
        frame = new_frame(planes.source, bool(planes.field_order))
        if target.field_order and target.codec == "libx264" and not planes.field_order:
            progressive.add(pts)
        alpha = opaque if planes.alpha is None else planes.alpha
        for index, plane in zip(range(len(frame.planes)), (*planes[:3], alpha), strict=False):
            plane_array(frame, index, target.encoding.dtype)[:] = plane
        frame.pts, frame.time_base = pts if base == target.time_base else next(numbers), base
        frame.color_range, frame.colorspace = target.tags["color_range"], target.tags["colorspace"]
        mux(stream.encode(frame))

    try:
        yield write
        mux(stream.encode(None))
        container.close()
    except BaseException:
        with suppress(OSError, av.error.FFmpegError):  # else it is closed by the garbage collector, after ``file``
            container.close()
        raise


@contextmanager
def write_segment(path: Path, target: EncodingTarget, count: int) -> Iterator[Callable[[Planes, int], None]]:
    """Yield the function of ``segment_encoder``. Create the file ``path`` when the block ends without an error.

    Raises OSError if the file does not have ``count`` frames.
    """
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            with segment_encoder(file, target) as write:
                yield write
            file.flush()
            os.fsync(file.fileno())
        if len(segment_order(temporary)) != count:
            raise OSError(errno.EIO, "not all frames were written")


def _frame_factory(target):
    """Return a function that creates an empty frame of ``target``, with the side data of a decoded frame or None.

    Only filters can copy side data in PyAV: the decoded frame is reduced, and padded to the size of the new one.
    """
    size, written = (target.width, target.height, target.pix_fmt), _WRITTEN_SIDE_DATA.get(target.codec, set())
    donor = min(target.width, _DONOR_SIZE), min(target.height, _DONOR_SIZE), target.pix_fmt
    flags = {order: field_flagger(order, *size) for order in {target.field_order or "prog", "prog"}}
    pad = frame_filter(*donor, ("pad", f"{target.width}:{target.height}")) if written else None
    reformatter = VideoReformatter()

    def create(source, is_interlaced):
        # x264, too, encodes all frames as two fields: see ``mark_progressive``.
        has_fields = target.field_order and (is_interlaced or target.codec != "ffv1")
        flag_fields = flags[target.field_order if has_fields else "prog"]
        if source is None or pad is None or not any(data.type in written for data in source.side_data):
            frame = av.VideoFrame(*size)
            return flag_fields(frame) if target.field_order else frame
        frame = flag_fields(pad(reformatter.reformat(source, *donor)))
        frame.pict_type = 0  # chosen by the encoder
        return frame

    return create


def describe_losses(planes: Planes, target: EncodingTarget) -> list[str]:
    """Describe what ``target`` cannot store of a frame ``planes`` of the film."""
    written = _WRITTEN_SIDE_DATA.get(target.codec, set())
    lost = [SIDE_DATA[data.type] for data in (planes.source.side_data if planes.source else ())
            if data.type in SIDE_DATA and data.type not in written]
    if planes.alpha is not None and "yuva" not in target.pix_fmt and planes.alpha.min() < 2**planes.encoding.depth - 1:
        lost.append("transparency (--codec prores with a .mov, ffv1 with a .mkv and vp9 with a .webm keep it)")
    return lost


def write_video(path: Path, film: Film, frames: Iterable[tuple[int, np.ndarray]],
                pixel_aspect: Fraction | None = None) -> None:
    """Write ``frames``, (pts, RGB uint8 (H, W, 3)) of one size, atomically as an H.264 video without sound.

    Frame rate and time base are taken from ``film``; ``pixel_aspect`` None means square pixels.
    """
    with atomic_write(path) as temporary, av.open(str(temporary), "w") as output:
        stream = output.add_stream("libx264", rate=film.info.rate, options={"crf": "18", "preset": "veryfast"})
        stream.time_base = stream.codec_context.time_base = film.info.time_base
        stream.codec_context.colorspace = BT709
        stream.codec_context.thread_count = ENCODER_THREADS
        for number, (pts, rgb) in enumerate(frames):
            if number == 0:
                stream.height, stream.width = rgb.shape[:2]
                stream.pix_fmt = "yuv444p" if any(side % 2 for side in rgb.shape[:2]) else "yuv420p"
                if pixel_aspect:
                    stream.codec_context.sample_aspect_ratio = pixel_aspect
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
                format=stream.pix_fmt, dst_colorspace="ITU709")
            frame.pts, frame.time_base = pts, film.info.time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


@contextmanager
def explain_write_errors(output: Path) -> Iterator[None]:
    """Convert OSErrors and FFmpeg errors, and UserErrors that a full disk caused, into UserErrors with advice."""
    try:
        yield
    except (OSError, av.error.FFmpegError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if cause is not error and not full or is_out_of_memory(error):
            raise
        advice = ("free disk space and run the same command again to continue with the first unfinished shot" if full
                  else "check that its folder is writable")
        raise UserError(f"cannot write {output}: {getattr(cause, 'strerror', None) or cause}; {advice}") from error
