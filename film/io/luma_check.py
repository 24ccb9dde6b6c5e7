"""Sample-by-sample comparison of the luma of a colored film with the luma of its source."""

import hashlib
import itertools
from contextlib import closing

import cv2

from config import FilmConfig
from film.io.planes import change_depth
from film.io.thread_pool import prefetch
from film.io.video import Film, VideoFile, open_video, pts_window
from utils import UserError


def check_luma(film: Film, result: Film, config: FilmConfig) -> str:
    """Compare the decoded Y' of ``film`` and its colored version ``result``, at the greater bit depth of the two.

    Returns a one-line report with the SHA-256 of all samples if they are equal (frames, rows and columns in order; two
    bytes each, little endian, above 8 bits), else with the maximum and the mean difference.

    Raises UserError if the samples differ although the codec of ``result`` is lossless, or if the films differ in their
    number of frames.
    """
    lossless, digest = _is_lossless(result), hashlib.sha256()
    begin, end = pts_window(film, config)
    count, maximum, total = 0, 0, 0.0
    with closing(prefetch(film.read(begin), 4)) as sources, closing(prefetch(result.read(), 4)) as results:
        window = itertools.takewhile(lambda item: item[0] < end, sources)
        for source, colored in itertools.zip_longest(window, results):
            if source is None or colored is None:
                raise UserError(f"{result.path} and {film.path} have different numbers of frames: only one has frame "
                                f"{count}; color it again with --overwrite True")
            bits = [planes.encoding.depth for planes in (source[2], colored[2])]
            depth = max(bits)
            y, colored_y = change_depth(source[2].y, bits[0], depth), change_depth(colored[2].y, bits[1], depth)
            difference = cv2.absdiff(y, colored_y)
            if lossless and bits[1] == depth and difference.any():
                raise UserError(f"the luma of {result.path} differs from that of {film.path} although its codec is "
                                f"lossless: frame {count} is the first that differs, in "
                                f"{cv2.countNonZero(difference):,} of its {difference.size:,} samples; color it again "
                                "with --overwrite True")
            maximum, total, count = max(maximum, int(difference.max())), total + float(difference.mean()), count + 1
            digest.update(colored_y.tobytes())
    height, width = y.shape
    compared = f"{count} frames, {width} x {height}, {depth} bits"
    if not maximum:
        return f"luma identical: {compared}, SHA-256 {digest.hexdigest()}"
    return (f"luma not identical: {compared}, maximum difference {maximum} and mean difference {total / count:.3g} of "
            f"{2**depth - 1}; only a lossless codec of {depth} bits preserves it, such as --codec ffv1 in a .mkv")


def _is_lossless(result):
    """Return whether the codec of a film is lossless; False for image sequences, since RGB rounds the luma."""
    if not isinstance(result, VideoFile):
        return False
    with open_video(result.path) as (_, stream):
        return not stream.codec_context.codec.lossy
