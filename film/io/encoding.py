"""How is a colored film written? Each shot is encoded into a part; at the end the parts become one file.

Joining encodes nothing: packets of the parts are copied, and so are sound, subtitles, chapters and tags of the source.
"""

import errno
import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np

from config import FilmConfig
from fileio.atomic import atomic_write
from film.io.interlacing import INTERLACED_ENCODERS, FieldFlagger, field_order, interlacing_options
from film.io.mux import can_carry, container_format
from film.io.planes import BT709, Coding, Planes, has_fields, plane_array, planes_from_frame
from film.io.video import Film, frame_rate, open_video, read_frames
from utils import UserError, warn

OUTPUT_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")

# ---------------------------------------------------------------------------------------------------------------------
# What to write


_ENCODERS = {  # encoder: (crf, other options); x264's default preset takes twice the time for 5 % less
    "libx264": (16, {"preset": "veryfast"}), "libx265": (18, {"x265-params": "log-level=error"}),
    "libvpx-vp9": (24, {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "3"}),
    "libaom-av1": (20, {"b": "0", "row-mt": "1", "cpu-used": "6"}), "libsvtav1": (20, {"svtav1-params": "lookahead=0"}),
    "ffv1": (None, {"level": "3", "g": "1", "slices": "4", "slicecrc": "1"}),  # as archives keep it: frame by frame
}  # fmt: skip


class EncodingTarget(NamedTuple):
    """How pictures are encoded."""

    codec: str  # FFmpeg's encoder
    options: dict[str, str]
    pix_fmt: str
    width: int
    height: int
    chroma_size: tuple[int, int]  # (height, width) of Cb and Cr
    coding: Coding
    rate: Fraction  # frames a second
    time_base: Fraction  # seconds
    tags: dict[str, Any]  # attribute of the codec context -> value
    segment_format: str  # muxer of a part, in which times need only be in order, not exact
    field_order: str = ""  # "tff" or "bff" of interlaced film: which field is first


def choose_encoding(path: Path, output: Path, config: FilmConfig) -> EncodingTarget:
    """The Target for a film and the file to write, tried on one black frame. Raises UserError when no frame decodes, or
    the settings do not go together."""
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"cannot write {output}: name a {', '.join(OUTPUT_SUFFIXES[:-1])} or {OUTPUT_SUFFIXES[-1]} "
                        "file by --output")
    codec = _choose_codec(output, config)
    frame, fields = _first_look(path)
    if fields and codec.name not in INTERLACED_ENCODERS:
        warn(f"{path} is interlaced, which {codec.name} cannot tell, and players may show combs; write h264 instead")
        fields = ""
    planes = planes_from_frame(frame)
    height, width = planes.y.shape
    pix_fmt = _choose_pix_fmt(codec, planes, fields, config)
    layout = av.VideoFormat(pix_fmt, width, height)
    coding = Coding(layout.components[0].bits, planes.coding.full_range, planes.coding.colorspace)
    options = {**_choose_options(codec, config), **interlacing_options(fields)}
    with open_video(path) as (_, stream):
        rate = frame_rate(stream)
        if not can_carry(container_format(output), codec.name, rate):
            raise UserError(f"{output.suffix} cannot carry --codec {config.codec or codec.name}; name a .mkv file by "
                            "--output")
        segment_format = "nut" if can_carry("nut", codec.name, rate) else "mov"
        target = EncodingTarget(codec.name, options, pix_fmt, width, height, (layout.chroma_height(), layout.chroma_width()),
                        coding, rate, stream.time_base, _tags(stream, coding, frame.rotation), segment_format,
                        fields)
    try:
        with SegmentWriter(io.BytesIO(), target) as probe:
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
        order = field_order(itertools.chain([first[1]], (frame for _, frame in frames)))
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
    tags = {"color_range": 2 if coding.full_range else 1, "colorspace": coding.colorspace,
            "color_primaries": context.color_primaries, "color_trc": context.color_trc}
    if ratio:
        tags["sample_aspect_ratio"] = 1 / ratio if rotation % 180 else ratio
    return tags


def _black(target):
    """A black frame, to try an encoder with."""
    y = np.full((target.height, target.width), target.coding.luma_range[0], target.coding.dtype)
    cb = np.full(target.chroma_size, target.coding.chroma_range[0], target.coding.dtype)
    return Planes(y, cb, cb, target.coding)


class SegmentWriter:
    """Encodes the frames of one shot into a file that holds nothing else."""

    def __init__(self, file: BinaryIO, target: EncodingTarget) -> None:
        self.target = target
        self.container = av.open(file, "w", format=target.segment_format)
        stream = self.container.add_stream(target.codec, rate=target.rate, options=target.options)
        stream.width, stream.height, stream.pix_fmt = target.width, target.height, target.pix_fmt
        stream.time_base = stream.codec_context.time_base = target.time_base
        stream.codec_context.flags |= av.codec.context.Flags.global_header
        for tag, value in target.tags.items():
            setattr(stream.codec_context, tag, value)
        self.stream = stream
        self.mark = FieldFlagger(target.field_order, target.width, target.height, target.pix_fmt) if target.field_order else None

    def write(self, planes: Planes, pts: int) -> None:
        """Encode the next frame: planes of the target's coding and sizes, pts in its time base."""
        frame = av.VideoFrame(self.target.width, self.target.height, self.target.pix_fmt)
        frame = self.mark(frame) if self.mark else frame
        for index, plane in enumerate(planes[:3]):
            plane_array(frame, index, self.target.coding.dtype)[:] = plane
        frame.pts, frame.time_base = pts, self.target.time_base
        frame.color_range, frame.colorspace = self.target.tags["color_range"], self.target.tags["colorspace"]
        self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> "SegmentWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.container.mux(self.stream.encode(None))
            self.container.close()
        else:  # closed in any case: a container that the garbage collector finds open would write to a closed file
            with suppress(OSError, av.error.FFmpegError):
                self.container.close()


def write_video(target: Path, film: Film, pictures: Iterable[tuple[int, np.ndarray]], aspect: Any = None) -> None:
    """Write pictures about ``film``, (pts in its time base, RGB uint8 (H, W, 3) of one size), as the H.264 film
    ``target`` without sound, which appears when it is complete. ``aspect``: shape of the pixels, None for square."""
    with atomic_write(target) as temporary, av.open(str(temporary), "w") as output:
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
def explain_write_errors(output: Path) -> Iterator[None]:
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
