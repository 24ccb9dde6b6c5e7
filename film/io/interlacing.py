"""Is a film interlaced? Told by the flags of its frames, which a colored one keeps; and its fields, apart and woven."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import islice

import av
import numpy as np
from av.filter import Graph

from film.io.planes import Planes

LOOK = 25  # frames at a film's beginning whose flags are asked
FLAGGED = 0.3  # a film is interlaced if more of them are: of telecined film at least 2 of 5 frames may be flagged
FIELD_ORDER_NAMES = {"tff": "top field first", "bff": "bottom field first"}  # FFmpeg's order of fields: in words
INTERLACED_ENCODERS = ("libx264", "mpeg2video", "prores_ks")  # encoders that write interlaced film


def field_order(frames: Iterable[av.VideoFrame]) -> str:
    """"tff" or "bff" for the ``frames`` of an interlaced film, "" for a progressive one."""
    count, flagged, order = 0, 0, ""
    for frame in islice(frames, LOOK):
        count += 1
        if frame.interlaced_frame:
            flagged += 1
            order = order or _order(frame)
    return order if flagged > FLAGGED * count else ""


def _order(frame):
    graph = _filtered(frame.width, frame.height, frame.format.name, "select", "eq(interlace_type,TOPFIRST)")
    graph.push(frame)
    try:
        graph.pull()
    except av.error.BlockingIOError:  # it is dropped
        return "bff"
    return "tff"


class FieldFlagger:
    """Flags frames of one size and pixel format as those of a film whose ``order`` of fields is "tff" or "bff"."""

    def __init__(self, order: str, width: int, height: int, pix_fmt: str) -> None:
        self.graph = _filtered(width, height, pix_fmt, "setfield", order)

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A flagged frame in the memory of ``frame``."""
        self.graph.push(frame)
        marked = self.graph.pull()
        assert isinstance(marked, av.VideoFrame)
        return marked


def _filtered(width, height, pix_fmt, name, argument):
    """A graph of one filter."""
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=pix_fmt, time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add(name, argument), graph.add("buffersink")).configure()
    return graph


def interlacing_options(order: str) -> dict[str, str]:
    """Options of one of INTERLACING for an order of fields; none for ""."""
    return {"flags": "+ildct+ilme", "field_order": {"tff": "tt", "bff": "bb"}[order]} if order else {}


def split_fields(planes: Planes) -> list[Planes]:
    """The top and the bottom field of a picture, as pictures of half the height."""
    return [planes._replace(y=planes.y[i::2], cb=None if planes.cb is None else planes.cb[i::2],
                            cr=None if planes.cr is None else planes.cr[i::2], interlaced=False) for i in (0, 1)]


def weave_fields(top: Planes, bottom: Planes) -> Planes:
    """The inverse of ``split``."""
    y, cb, cr = (_woven(*pair) for pair in zip(top[:3], bottom[:3], strict=True))
    return Planes(y, cb, cr, top.coding, True)


def _woven(top, bottom):
    if top is None:
        return None
    plane = np.empty((len(top) + len(bottom), top.shape[1]), top.dtype)
    plane[::2], plane[1::2] = top, bottom
    return plane
