"""Interlaced film: detecting and marking the field order, and conversion between frames and fields."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import islice

import av
import numpy as np
from av.filter import Graph

from film.io.planes import Planes

INSPECTED_FRAMES = 25  # frames at the start of a film whose interlacing flags are read
MIN_INTERLACED = 0.3  # a film is interlaced if more than this share of its frames is flagged; telecine flags 2 of 5
FIELD_ORDER_NAMES = {"tff": "top field first", "bff": "bottom field first"}  # FFmpeg's name: description
INTERLACED_ENCODERS = ("libx264", "mpeg2video", "prores_ks")  # FFmpeg encoders that write interlaced film


def field_order(frames: Iterable[av.VideoFrame]) -> str:
    """Return the field order of an interlaced film, "tff" or "bff", from its first frames; "" if it is progressive."""
    count, flagged, order = 0, 0, ""
    for frame in islice(frames, INSPECTED_FRAMES):
        count += 1
        if frame.interlaced_frame:
            flagged += 1
            order = order or _frame_order(frame)
    return order if flagged > MIN_INTERLACED * count else ""


def _frame_order(frame):
    """Return the field order of a frame, which PyAV does not expose: a filter drops frames that are not "tff"."""
    graph = _filter_graph(frame.width, frame.height, frame.format.name, "select", "eq(interlace_type,TOPFIRST)")
    graph.push(frame)
    try:
        graph.pull()
    except av.error.BlockingIOError:  # the frame was dropped
        return "bff"
    return "tff"


def field_flagger(order: str, width: int, height: int, pix_fmt: str) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """Return a function that marks a frame as interlaced with this field order; the result shares its memory."""
    return frame_filter(width, height, pix_fmt, "setfield", order)


def frame_filter(width: int, height: int, pix_fmt: str, name: str,
                 argument: str) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """Return an FFmpeg filter as a function of a frame of the given size and format."""
    graph = _filter_graph(width, height, pix_fmt, name, argument)

    def apply(frame):
        graph.push(frame)
        return graph.pull()

    return apply


def _filter_graph(width, height, pix_fmt, name, argument):
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=pix_fmt, time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add(name, argument), graph.add("buffersink")).configure()
    return graph


def interlacing_options(order: str) -> dict[str, str]:
    """Return the options that make INTERLACED_ENCODERS encode this field order; {} for "" (progressive)."""
    return {"flags": "+ildct+ilme", "field_order": {"tff": "tt", "bff": "bb"}[order]} if order else {}


def split_fields(planes: Planes) -> list[Planes]:
    """Split a frame into its top and bottom field, each a frame of half the height."""
    return [planes._replace(y=planes.y[i::2], cb=None if planes.cb is None else planes.cb[i::2],
                            cr=None if planes.cr is None else planes.cr[i::2], interlaced=False) for i in (0, 1)]


def weave_fields(top: Planes, bottom: Planes) -> Planes:
    """Join two fields into a frame: the inverse of ``split_fields``."""
    y, cb, cr = (_weave(*pair) for pair in zip(top[:3], bottom[:3], strict=True))
    return Planes(y, cb, cr, top.encoding, True)


def _weave(top, bottom):
    if top is None:
        return None
    plane = np.empty((len(top) + len(bottom), top.shape[1]), top.dtype)
    plane[::2], plane[1::2] = top, bottom
    return plane
