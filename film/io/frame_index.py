"""Identity of frames: a film is read again from any frame on, and its frames are recognized."""

import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np

from film.io.planes import Planes
from film.io.video import SEEK_MARGIN, Film
from utils import UserError


class FrameIndex(NamedTuple):
    """What identifies the frames of a film, in order; recorded when it is decoded for the first time."""

    pts: Sequence[int]  # strictly increasing
    checksums: Sequence[int] = ()  # ``luma_checksum`` of each frame; empty if it was not recorded


def luma_checksum(planes: Planes) -> int:
    """Return the CRC-32 of every third row and every fourth column of the luma of a frame."""
    return zlib.crc32(planes.y[::3, ::4].tobytes())


def read_known_frames(film: Film, known: FrameIndex, index: int) -> Generator[tuple[int, Planes], None, None]:
    """Read a film again from frame ``index`` on and yield (index, Planes).

    Frames far from the start are found by seeking and recognized by their checksums; if one is not the known one, the
    film is decoded from its start. Raises UserError if the pts then differ from the known ones.
    """
    times = known.pts
    if known.checksums and (times[index] - times[0]) * film.info.time_base > SEEK_MARGIN:
        with closing(_seek_known_frames(film, known, index)) as found:
            for number, planes in found:
                yield number, planes
                index = number + 1
    if index == len(times):
        return
    first = 0 if known.checksums else index
    number = first - 1
    with closing(film.read(times[first])) as frames:
        for number, (pts, _, planes) in zip(range(first, len(times)), frames, strict=False):
            if pts != times[number]:
                number -= 1
                break
            if number >= index:
                yield number, planes
    if number + 1 < len(times):
        raise UserError(f"from frame {number + 1} on, the timestamps of {film.path} differ from those of the first "
                        "reading; copy it to a reliable disk and run again")


def _seek_known_frames(film, known, index):
    """Yield (index, Planes) from frame ``index`` on, while the frames after a seek are recognized without doubt."""
    checksums, start = np.asarray(known.checksums), index
    places = np.zeros(0, int)  # indices of the known frames that the last one may be, given those before it
    with closing(film.read_near(known.pts[index])) as frames:
        for pts, planes in frames:
            checksum = luma_checksum(planes)
            places = places[places + 1 < len(checksums)] + 1
            places = places[checksums[places] == checksum]
            if not len(places):
                if index > start:
                    return
                places = np.flatnonzero(checksums == checksum)
            if index in places:
                if len(places) > 1 and pts != known.pts[index]:
                    return
                places = np.array([index])
                yield index, planes
                index += 1
            elif len(places) and places.min() > index:
                return


def frames_at(film: Film, known: FrameIndex, indices: Iterable[int]) -> Generator[tuple[int, Planes], None, None]:
    """Yield (index, Planes) of the frames ``indices``; the next index is requested after a frame was consumed.

    Seeks to reach an earlier frame or one more than SEEK_MARGIN later, else decodes the frames between.
    """
    times = known.pts
    with ExitStack() as stack:
        frames, following = None, 0  # index of the next frame to read
        for index in indices:
            if (frames is None or index < following
                    or (times[index] - times[following]) * film.info.time_base > SEEK_MARGIN):
                stack.close()
                frames = stack.enter_context(closing(read_known_frames(film, known, index)))
            following = index + 1
            yield next(frame for frame in frames if frame[0] == index)


