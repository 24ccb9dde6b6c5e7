"""The version of a film that another program has colored: finding it, and reading the frame that belongs to a time."""

from collections.abc import Generator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

from fileio.images import IMAGE_SUFFIXES
from film.io.image_sequence import ImageSequence, find_sequences
from film.io.planes import Planes
from film.io.video import SEEK_MARGIN, VIDEO_SUFFIXES, Film, VideoFile, find_videos, is_video
from utils import UserError, list_files

ROUNDING = Fraction(1, 1000)  # seconds by which containers round timestamps


def find_fallback(path: Path, film: Film) -> Film | None:
    """Return the film in ``path`` that is named like ``film`` or, if there is only one, any name.

    ``path`` is a video, or a folder of videos, of numbered frames, or of one folder of numbered frames for each film.
    Numbered frames have the frame rate of ``film``. Returns None if there is no such film in the folder. Raises
    UserError if ``path`` does not exist or is neither a video nor a folder.
    """
    if not path.exists():
        raise UserError(f"there is no {path}; pass a film or a folder to --fallback")
    stem = film.stem if isinstance(film, ImageSequence) else film.path.stem
    if path.is_dir():
        if (path / stem).is_dir():
            return find_fallback(path / stem, film)
        sequences, _ = find_sequences(list_files(path, IMAGE_SUFFIXES), film.info.rate)
        found: list[tuple[str, Film]] = [(video.stem, VideoFile(video)) for video in find_videos(path)]
        found += [(sequence.stem, sequence) for sequence in sequences]
        named = [other for name, other in found if name == stem] or [other for _, other in found if len(found) == 1]
        return named[0] if named else None
    if path.suffix.lower() in VIDEO_SUFFIXES or is_video(path):
        return VideoFile(path)
    raise UserError(f"{path} is neither a film nor a folder; pass one of them to --fallback")


def find_fallback_picture(path: Path, picture: Path) -> Path | None:
    """Return the picture in the folder ``path`` with the stem of ``picture``, or ``path`` itself if it is a picture;
    None if there is no such picture. Raises UserError if ``path`` does not exist."""
    if not path.exists():
        raise UserError(f"there is no {path}; pass a picture or a folder to --fallback")
    if path.is_dir():
        return next((other for other in list_files(path, IMAGE_SUFFIXES) if other.stem == picture.stem), None)
    return path if path.suffix.lower() in IMAGE_SUFFIXES else None


class FallbackReader:
    """Reads the frames of ``fallback`` that belong to the frames of ``film``.

    Times count from the first frame of each film; numbered frames of both are compared by their numbers. Frames are
    decoded in order while the times rise, and found by seeking otherwise.
    """

    def __init__(self, fallback: Film, film: Film) -> None:
        self.fallback, self.film = fallback, film
        self.tolerance = max(1 / fallback.info.rate, 1 / film.info.rate) / 2 + ROUNDING  # seconds
        self.origin = _first_time(film)
        self.shift = _first_time(fallback) - self.origin  # added to a time of the film
        if isinstance(fallback, ImageSequence) and isinstance(film, ImageSequence):
            self.shift = (film.first_number - fallback.first_number) / film.info.rate
        self._seeks = not isinstance(fallback, VideoFile) or fallback.seeks_exactly
        self._frames: Generator[tuple[int, int, Planes], None, None] | None = None
        self._near: list[tuple[Fraction, Planes]] = []  # up to two consecutive frames around the last time
        self._since = Fraction(0)  # earliest time of the fallback whose nearest frame is not yet dropped

    def span(self) -> tuple[Fraction, Fraction]:
        """Return the times of the fallback's first frame and of its stated end, in seconds from the first frame of the
        film."""
        info = self.fallback.info
        first = _first_time(self.fallback) - self.shift - self.origin
        count = max(self.fallback.paths) + 1 if isinstance(self.fallback, ImageSequence) else info.stated_frames
        return first, first + count / info.rate

    def frame(self, pts: int) -> Planes | None:
        """Return the frame of the fallback that is nearest to the time ``pts`` of the film; None if it is further away
        than half a frame of the film with the lower rate."""
        time = pts * self.film.info.time_base + self.shift
        is_far = self._seeks and bool(self._near) and time > self._near[-1][0] + SEEK_MARGIN
        if self._frames is None or time < self._since or is_far:
            self.close()
            begin = (time - self.tolerance) // self.fallback.info.time_base
            self._frames, self._near, self._since = self.fallback.read(begin if begin > 0 else None), [], time
            self._advance()
        while self._near and self._near[-1][0] < time and self._advance():
            pass
        nearest = min(self._near, key=lambda item: abs(item[0] - time), default=None)
        return nearest[1] if nearest and abs(nearest[0] - time) <= self.tolerance else None

    def _advance(self):
        """Read the next frame; return whether there is one."""
        following = next(self._frames, None) if self._frames else None
        if following is None:
            return False
        if len(self._near) == 2:
            self._since = self._near[1][0]
        self._near = [*self._near[-1:], (following[0] * self.fallback.info.time_base, following[2])]
        return True

    def close(self) -> None:
        """Stop decoding."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None


def _first_time(film):
    """Return the time of a film's first frame in seconds. Raises UserError if no frame can be decoded."""
    if isinstance(film, ImageSequence):
        return Fraction(0)
    with closing(film.read()) as frames:
        first = next(frames, None)
    if first is None:
        raise UserError(f"no frame of {film.path} can be decoded; pass another film")
    return first[0] * film.info.time_base
