"""When are numbered pictures a film? ``find_sequences`` tells, and such frames are read and written as one."""

import hashlib
import re
from collections.abc import Generator, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataset import resize
from fileio.images import LUMINANCE_WEIGHTS, read_deep_image, read_image, srgb_decode, write_image
from film.io.planes import Planes, planes_from_rgb
from film.io.video import DamageLog
from utils import UserError, warn

FEWEST = 12  # least number of pictures of a film: half a second
PAIRS = 8  # pairs of neighboring pictures that are compared
ALIKE = 8  # a film's neighbors differ by less, of 255, in the median: by 1 at 24 frames/s, by 11 at one a second
RATE = Fraction(24)  # frames a second that numbered frames stand for


def find_sequences(paths: Sequence[Path]) -> tuple[list["ImageSequence"], list[Path]]:
    """(list of NumberedFrames, other paths) of the pictures of one folder.

    Pictures are a film if there are at least FEWEST whose names differ only in the number at their end, with more than
    half of the numbers in that range; if all that are compared are of one size; and if neighbors look alike.
    """
    groups, sequences = {}, []
    for path in paths:
        number = re.findall(r"\d*\Z", path.stem)[0]
        if number:
            groups.setdefault((path.stem.removesuffix(number), path.suffix), []).append((int(number), path))
    for (prefix, _), numbered in groups.items():
        frames = dict(sorted(numbered))
        if FEWEST <= len(numbered) == len(frames) > (max(frames) - min(frames)) / 2 and _follow(list(frames.values())):
            sequences.append(ImageSequence(frames, prefix))
    taken = {path for sequence in sequences for path in sequence.paths.values()}
    return sequences, [path for path in paths if path not in taken]


def _follow(paths):
    """Whether pictures follow each other like the frames of a film."""
    changes = []
    for place in np.linspace(0, len(paths) - 2, PAIRS).astype(int):
        try:
            one, other = (read_image(path) for path in paths[place:place + 2])
        except UserError:  # the warning comes when it is colored
            continue
        if one.shape != other.shape:
            return False
        changes.append(cv2.absdiff(*(resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 16, 16)
                                     for picture in (one, other))).mean())
    return bool(changes) and np.median(changes) < ALIKE


class ImageSequence:
    """Numbered pictures as a ``video.Film``. A frame's pts is its number, counted from the first; RATE a second."""

    rate, time_base, start = RATE, 1 / RATE, 0.0

    def __init__(self, paths: dict[int, Path], prefix: str = "") -> None:
        """``paths``: {number: path}, in order; ``prefix`` is the part of the names before the number."""
        first = min(paths)
        self.paths = {number - first: path for number, path in paths.items()}
        path = self.paths[0]
        self.prefix, self.name = prefix, f"{prefix}*{path.suffix}"
        self.path = path.parent / self.name
        # What the files that go with the film (report, log) are named after.
        self.stem = prefix.strip(" ._-").replace(".", "_") or path.parent.resolve().name.replace(".", "_")
        self.stated_frames = len(paths)

    def __str__(self) -> str:
        return str(self.path)

    def fingerprint(self) -> list[Any]:
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths.values()]
        return [hashlib.sha256(repr(stats).encode()).hexdigest()]

    def colored_film(self, output: Path, times: Iterable[int]) -> "ImageSequence":
        return ImageSequence({pts: output.parent / self.paths[pts].name for pts in times}, self.prefix)

    def is_overwritten_by(self, output: Path) -> bool:
        return self.path.parent.resolve() == output.parent.resolve()

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        """As ``video.Film`` says; an unreadable picture is left out. Raises UserError when a frame has not the
        size of those before it."""
        size = None
        for pts, path in self.paths.items():
            if pts < (begin or 0):
                continue
            try:
                picture = read_deep_image(path)
            except UserError as error:
                if damage is not None:
                    warn(f"{error}; skipped")
                continue
            height, width = picture.rgb.shape[:2]
            if size is not None and (height, width) != size:
                raise UserError(f"{path} is {width}x{height} and the frames before it are "
                                f"{size[1]}x{size[0]}; make all of one size or take it out")
            size = height, width
            yield pts, 1, planes_from_rgb(picture.rgb, picture.depth)


def write_colored_frame(path: Path, planes: Planes, source: Path) -> None:
    """Write a colored picture in the depth of ``source``, from which it was made. That of an OpenEXR keeps the
    luminance of its light, of any range."""
    light = read_deep_image(source).linear if path.suffix.lower() == source.suffix.lower() == ".exr" else None
    if light is None:
        write_image(path, planes.rgb_codes(), planes.coding.depth)
        return
    colored = srgb_decode(planes.rgb(*planes.y.shape))
    has, wanted = colored @ LUMINANCE_WEIGHTS[:, None], light @ LUMINANCE_WEIGHTS[:, None]
    write_image(path, np.where(has > 0, colored * (wanted / np.maximum(has, np.finfo(np.float32).tiny)), wanted))


