"""FFmpeg filters as functions of a frame."""

from collections.abc import Callable
from fractions import Fraction

import av
from av.filter import Graph


def frame_filter(width: int, height: int, pix_fmt: str,
                 *filters: tuple[str, str]) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """Return a chain of filters, (name, argument), as a function of a frame of the given size and format.

    It raises BlockingIOError if a filter drops the frame.
    """
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=pix_fmt, time_base=Fraction(1, 25))
    chain = [graph.add(name, argument) for name, argument in filters]
    graph.link_nodes(source, *chain, graph.add("buffersink")).configure()

    def apply(frame):
        graph.push(frame)
        return graph.pull()

    return apply
