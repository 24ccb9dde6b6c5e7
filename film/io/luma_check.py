"""Comparison of the luma of a colored film with that of its source, sample by sample."""

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
    """Compare the decoded Y' of every frame of a film and of its ``result``, at the greater bit depth of the two.

    Returns a one-line report. If all samples are equal, it contains their SHA-256 (frames, rows and columns in order;
    above 8 bits two bytes each, little endian); else the maximum and mean difference.

    Raises UserError if the samples differ although the codec of the result is lossless, or if one film has more frames.
    """
    lossless, digest = _is_lossless(result), hashlib.sha256()
    begin, end = pts_window(film, config)
    count, maximum, total = 0, 0, 0.0
    with closing(prefetch(film.read(begin), 4)) as sources, closing(prefetch(result.read(), 4)) as results:
        wanted = itertools.takewhile(lambda item: item[0] < end, sources)
        for source, colored in itertools.zip_longest(wanted, results):
            if source is None or colored is None:
                raise UserError(f"{result.path} and {film.path} have different numbers of frames: only one has frame "
                                f"{count}; color it again with --overwrite True")
            (y, _, _, encoding, _), (luma, _, _, written, _) = source[2], colored[2]
            depth = max(encoding.depth, written.depth)
            y, luma = change_depth(y, encoding.depth, depth), change_depth(luma, written.depth, depth)
            difference = cv2.absdiff(y, luma)
            if lossless and written.depth == depth and difference.any():
                raise UserError(f"the luma of {result.path} differs from that of {film.path} although its codec is "
                                f"lossless: frame {count} is the first that differs, in "
                                f"{cv2.countNonZero(difference):,} of its {difference.size:,} samples; color it again "
                                "with --overwrite True")
            maximum, total, count = max(maximum, int(difference.max())), total + float(difference.mean()), count + 1
            digest.update(luma.tobytes())
    height, width = y.shape
    compared = f"{count} frames, {width} x {height}, {depth} bits"
    if not maximum:
        return f"luma identical: {compared}, SHA-256 {digest.hexdigest()}"
    return (f"luma not identical: {compared}, maximum difference {maximum} and mean difference {total / count:.3g} of "
            f"{2**depth - 1}; only a lossless codec of {depth} bits preserves it, such as --codec ffv1 in a .mkv")


def _is_lossless(result):
    """Return whether the codec of a film is lossless; image sequences store RGB, which rounds the luma."""
    if not isinstance(result, VideoFile):
        return False
    with open_video(result.path) as (_, stream):
        return not stream.codec_context.codec.lossy
