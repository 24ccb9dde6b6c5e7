"""Color tags of a video file: primaries, and the luma range of a film that does not state it."""

from contextlib import suppress
from pathlib import Path

import av
import numpy as np

from film.io.planes import ColorTags, planes_from_frame
from utils import UserError, warn

SAMPLES = 12  # evenly spaced frames whose luma levels decide the range; more are more reliable and take longer
BLACK, WHITE = 16, 235  # of limited range, at 8 bits
_HDR = {8: "linear light", 9: "logarithmic", 10: "logarithmic", 16: "PQ", 18: "HLG"}  # transfer: ITU-T H.273, table 3
_LIMITED_CODECS = ("prores", "dvvideo", "mpeg1video", "mpeg2video", "dnxhd", "v210")  # limited by their standards


def read_color_tags(film: av.container.InputContainer, stream: av.VideoStream, path: Path, choice: str) -> ColorTags:
    """Return the tags of the open ``film``.

    ``choice`` is the luma range: "full", "limited" or "auto". With "auto", the range of a film that does not state it
    is decided by the levels found, which a warning names. Raises UserError for HDR.
    """
    context = stream.codec_context
    if transfer := _HDR.get(context.color_trc):
        raise UserError(f"{path} has the transfer function {transfer}, and only SDR video is supported; convert it to "
                        "SDR first, for example by FFmpeg's filters zscale and tonemap")
    tags = ColorTags(None, context.color_primaries)
    if choice != "auto":
        return tags._replace(full_range=choice == "full")
    # FFmpeg reports limited range for HEVC without tags.
    is_tagged = context.color_range and not (context.name == "hevc" and context.colorspace == 2)
    pix_fmt = context.pix_fmt or ""
    if is_tagged or context.name in _LIMITED_CODECS or not pix_fmt.startswith(("yuv4", "yuva4", "gray", "ya")):
        return tags
    levels = _luma_levels(film, stream)
    if not len(levels):
        return tags
    low, high = np.searchsorted(np.cumsum(levels) / levels.sum(), (0.001, 0.999)).tolist()
    is_gray = pix_fmt.startswith(("gray", "ya")) and context.name != "hevc"
    if levels[:BLACK - 3].sum() > 0.01 * levels.sum():
        full = True
    elif BLACK - 2 <= low <= BLACK + 4 and WHITE - 15 <= high <= WHITE + 3:
        full = False
    else:
        full = is_gray  # as FFmpeg and players assume
    if full or is_gray:
        warn(f"{path} does not state its luma range; its levels, {low} to {high} of 255, are read as "
             f"{'full' if full else 'limited'} range, which --range {'limited' if full else 'full'} changes")
    return tags._replace(full_range=full)


def _luma_levels(film, stream):
    """Return the number of luma samples at each of 256 levels in SAMPLES frames; empty if none can be decoded."""
    levels: np.ndarray = np.zeros(0, np.int64)
    for index in range(SAMPLES):
        with suppress(av.error.FFmpegError):  # reported when the film is read
            if index and film.duration:
                film.seek((film.start_time or 0) + film.duration * index // SAMPLES)
            if (frame := next(film.decode(stream), None)) is None:
                break
            planes = planes_from_frame(frame)
            codes = (planes.y >> planes.encoding.depth - 8).ravel()
            levels = np.bincount(codes, minlength=256) + (levels if len(levels) else 0)
    return levels
