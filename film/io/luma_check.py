"""Is the luma of a colored film that of its source? Told by all samples of all frames."""

import hashlib
import itertools
from contextlib import closing

import cv2

from config import FilmConfig
from film.io.planes import change_depth
from film.io.video import Film, VideoFile, open_video, prefetch, pts_window
from utils import UserError


def check_luma(film: Film, result: Film, config: FilmConfig) -> str:
    """Compare the Y' of every frame of a film with that of its ``result``, both as they are decoded, at the greater
    depth of both; returns one line. Where all samples are equal, it has the SHA-256 of them all, in the order of
    frames, rows and columns (of more than 8 bits, two bytes each, the lower one first); else, how far they are.

    Raises UserError when they are not equal though the codec of the result loses nothing, or when one of both has more
    frames.
    """
    lossless, digest = _is_lossless(result), hashlib.sha256()
    begin, beyond = pts_window(film, config)
    count, most, total = 0, 0, 0.0
    with closing(prefetch(film.read(begin), 4)) as sources, closing(prefetch(result.read(), 4)) as results:
        wanted = itertools.takewhile(lambda item: item[0] < beyond, sources)
        for source, painted in itertools.zip_longest(wanted, results):
            if source is None or painted is None:
                raise UserError(f"{result.path} has not as many frames as {film.path}: frame {count} is in one of them "
                                "only; color it again with --overwrite True")
            (y, _, _, coding, _), (luma, _, _, written, _) = source[2], painted[2]
            depth = max(coding.depth, written.depth)
            y, luma = change_depth(y, coding.depth, depth), change_depth(luma, written.depth, depth)
            difference = cv2.absdiff(y, luma)
            if lossless and written.depth == depth and difference.any():
                raise UserError(f"the luma of {result.path} is not that of {film.path}, though its codec loses "
                                f"nothing: frame {count} is the first that differs, in "
                                f"{cv2.countNonZero(difference):,} of its {difference.size:,} samples; color it again "
                                "with --overwrite True")
            most, total, count = max(most, int(difference.max())), total + float(difference.mean()), count + 1
            digest.update(luma.tobytes())
    height, width = y.shape
    what = f"{count} frames, {width} x {height}, {depth} bits"
    if not most:
        return f"luma identical: {what}, SHA-256 {digest.hexdigest()}"
    return (f"luma not identical: {what}, off by at most {most} and on average by {total / count:.3g} of "
            f"{2**depth - 1}; only a lossless codec of {depth} bits keeps it, such as --codec ffv1 in a .mkv")


def _is_lossless(result):
    """Whether whatever the codec of a film encodes comes out as it was. Pictures are RGB, to which luma is rounded."""
    if not isinstance(result, VideoFile):
        return False
    with open_video(result.path) as (_, stream):
        return not stream.codec_context.codec.lossy
