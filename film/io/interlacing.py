"""Interlaced film: detecting and marking the field order, and conversion between frames and fields."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from film.io.filters import frame_filter
from film.io.planes import Planes, change_depth

MIN_FLAGGED = 0.3  # a shot is interlaced if more than this share of its frames is flagged; telecine flags 2 of 5
MIN_COMBED = 10  # minimum number of combed frames in an interlaced shot without flags
MIN_COMBED_RATIO = 4  # ... for each frame that is progressive or combed with the other field order
DETECTION_SIZE = 16, 256  # minimum height of frames with detectable combing; width of the part that is inspected
FIELD_ORDER_NAMES = {"tff": "top field first", "bff": "bottom field first"}  # FFmpeg's name: description
# FFmpeg encoders that write interlaced film: {name: whether each frame may be flagged by itself}
INTERLACED_ENCODERS = {"libx264": True, "ffv1": True, "mpeg2video": False, "prores_ks": False}
_PICTURE_TIMING = b"\0\0\1\6\1\1"  # start code and header of a picture timing SEI message of one byte


class FieldDetector:
    """Detects the field order of shots: by the flags of their frames, or without flags by combing (FFmpeg's idet)."""

    def __init__(self) -> None:
        self.flags: list[str] = []  # field order of each frame according to its flag
        self.combing: dict[int, str] = {}  # frame: "tff", "bff" or "progressive"; missing if it does not move
        self.graph: Graph | None = None

    def add(self, planes: Planes) -> None:
        """Add the next frame of the film."""
        index, (height, width) = len(self.flags), planes.y.shape
        self.flags.append(planes.field_order)
        min_height, part = DETECTION_SIZE
        if height % 2 or height < min_height:
            return
        left = max(0, width - part) // 2
        luma = change_depth(planes.y[:, left:left + part], planes.encoding.depth, 8)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(luma), format="gray")
        frame.pts, frame.time_base = index, Fraction(1, 25)
        if self.graph is None:
            self.graph, self.source, self.sinks = _idet_graph(frame.width, frame.height)
        self.source.push(frame)
        for result, sink in self.sinks.items():
            with suppress(av.error.BlockingIOError):
                self.combing[sink.pull().pts] = result  # of the frame before

    def shot_order(self, start: int, end: int) -> tuple[str, bool]:
        """Return the field order of a shot ("" if it is progressive) and whether its frames are flagged."""
        flags = Counter(filter(None, self.flags[start:end]))
        if flags:
            return flags.most_common()[0][0] if flags.total() > MIN_FLAGGED * (end - start) else "", True
        found = Counter(self.combing[index] for index in range(start, end) if index in self.combing)
        order, count = max((found[order], order) for order in FIELD_ORDER_NAMES)[::-1]
        is_interlaced = count >= MIN_COMBED and count >= MIN_COMBED_RATIO * (found.total() - count)
        return order if is_interlaced else "", False


def with_field_order(planes: Planes, order: str, is_flagged: bool) -> Planes:
    """Return a frame of a shot with the field order of the shot if its frames are not flagged; see ``shot_order``."""
    return planes if is_flagged else planes._replace(field_order=order)


def _idet_graph(width, height):
    """Return FFmpeg's idet as (graph, source, {result: sink that gets the frames with this result})."""
    graph, sinks = Graph(), {}
    source = graph.add_buffer(width=width, height=height, format="gray", time_base=Fraction(1, 25))
    results = *FIELD_ORDER_NAMES, "progressive"
    split = graph.add("split", str(len(results)))
    graph.link_nodes(source, graph.add("idet"), split)
    for output, result in enumerate(results):
        select = graph.add("metadata", f"mode=select:key=lavfi.idet.multiple.current_frame:value={result}")
        sinks[result] = graph.add("buffersink")
        split.link_to(select, output, 0)
        select.link_to(sinks[result])
    graph.configure()
    return graph, source, sinks


def field_flagger(order: str, width: int, height: int, pix_fmt: str) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """Return a function that marks a frame as interlaced with this field order ("prog": as progressive); the result
    shares its memory."""
    return frame_filter(width, height, pix_fmt, ("setfield", order))


def interlacing_options(order: str) -> dict[str, str]:
    """Return the options that make INTERLACED_ENCODERS encode this field order; {} for "" (progressive)."""
    return {"flags": "+ildct+ilme", "field_order": {"tff": "tt", "bff": "bb"}[order]} if order else {}


def mark_progressive(packet: av.Packet) -> av.Packet:
    """Return a packet of an interlaced H.264 stream whose frame is flagged as progressive, which x264 cannot do.

    pic_struct in the picture timing (ITU-T H.264, D.2.3) changes from 3 or 4, two fields, to 0, a frame.
    """
    content = bytes(packet)
    for fields in (b"\x32", b"\x42"):
        content = content.replace(_PICTURE_TIMING + fields + b"\x80", _PICTURE_TIMING + b"\x04\x80")
    marked = av.Packet(content)
    for name in ("stream", "pts", "dts", "duration", "time_base", "is_keyframe"):
        setattr(marked, name, getattr(packet, name))
    return marked


def split_fields(planes: Planes) -> list[Planes]:
    """Split a frame into its top and bottom field, each a frame of half the height."""
    return [planes._replace(y=planes.y[i::2], cb=None if planes.cb is None else planes.cb[i::2],
                            cr=None if planes.cr is None else planes.cr[i::2], field_order="") for i in (0, 1)]


def weave_fields(fields: Sequence[Planes], order: str) -> Planes:
    """Join the top and bottom field of a frame with field order ``order``: the inverse of ``split_fields``."""
    y, cb, cr = (_weave(*pair) for pair in zip(fields[0][:3], fields[1][:3], strict=True))
    return Planes(y, cb, cr, fields[0].encoding, order)


def _weave(top, bottom):
    if top is None:
        return None
    plane = np.empty((len(top) + len(bottom), top.shape[1]), top.dtype)
    plane[::2], plane[1::2] = top, bottom
    return plane
