"""Image sequences (numbered images that form a film): detection in a folder, reading and writing."""

import hashlib
import re
from collections.abc import Generator, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from config import ColorConfig
from dataset import resize
from fileio.images import LUMINANCE_WEIGHTS, read_deep_image, read_image, srgb_decode, write_image
from film.io.planes import Planes, planes_from_rgb
from film.io.video import DamageLog, FilmInfo
from utils import UserError, warn

MIN_FRAMES = 12  # minimum number of images of a sequence (half a second); fewer are separate pictures
COMPARED_PAIRS = 8  # number of pairs of successive images to compare; more are more reliable and take longer
MAX_CHANGE = 8  # maximum median difference (8-bit gray) of successive images; it is 1 at 24 frames/s, 11 at 1 frame/s


def find_sequences(paths: Sequence[Path], rate: Fraction = ColorConfig.fps) -> tuple[list["ImageSequence"], list[Path]]:
    """Split the images of a folder into (image sequences of ``rate`` frames per second, other images).

    At least MIN_FRAMES images form a sequence if their names differ only in one number, no number occurs twice, more
    than half of the numbers between the first and the last exist, and ``_are_successive`` holds. If names contain
    several numbers, the last one that forms a sequence counts.
    """
    sequences, position = [], 0
    while groups := _group_by_number(paths, position):
        for (before, after, _), numbered in groups.items():
            frames = dict(sorted(numbered))
            if (MIN_FRAMES <= len(numbered) == len(frames) > (max(frames) - min(frames)) / 2
                    and _are_successive(list(frames.values()))):
                sequences.append(ImageSequence(frames, before, after, rate))
        taken = {path for sequence in sequences for path in sequence.paths.values()}
        paths, position = [path for path in paths if path not in taken], position + 1
    return sequences, list(paths)


def _group_by_number(paths, position):
    """Group images by their names without one number: {(text before, text after, suffix): [(number, path)]}.

    ``position`` of the number is 0 for the last one of a name; images with fewer numbers are left out.
    """
    groups = {}
    for path in paths:
        numbers = list(re.finditer("[0-9]+", path.stem))
        if position < len(numbers):
            match = numbers[-1 - position]
            key = path.stem[:match.start()], path.stem[match.end():], path.suffix
            groups.setdefault(key, []).append((int(match[0]), path))
    return groups


def _are_successive(paths):
    """Return whether COMPARED_PAIRS pairs of neighboring images have equal sizes and differ by less than MAX_CHANGE."""
    changes = []
    for index in np.linspace(0, len(paths) - 2, COMPARED_PAIRS).astype(int):
        try:
            image, following = (read_image(path) for path in paths[index:index + 2])
        except UserError:  # reported when the image is colored
            continue
        if image.shape != following.shape:
            return False
        changes.append(cv2.absdiff(*(resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), 16, 16)
                                     for rgb in (image, following))).mean())
    return bool(changes) and np.median(changes) < MAX_CHANGE


class ImageSequence:
    """A ``video.Film`` of numbered images; pts = number - first number."""

    def __init__(self, paths: dict[int, Path], before: str = "", after: str = "",
                 rate: Fraction = ColorConfig.fps) -> None:
        """``paths``: {number: path} in order; ``before``, ``after``: the stems around the number; ``rate``: frames per
        second."""
        first = min(paths)
        self.first_number, self.paths = first, {number - first: path for number, path in paths.items()}
        path = self.paths[0]
        self.before, self.after, self.path = before, after, path.parent / f"{before}*{after}{path.suffix}"
        # Stem of the names of the report and the log
        words = [word for part in (before, after) if (word := part.strip(" ._-()[]"))]
        self.stem = ("_".join(words) or path.parent.resolve().name).replace(".", "_")
        self.info = FilmInfo(rate, 1 / rate, 0.0, len(paths))

    def fingerprint(self) -> list[Any]:
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths.values()]
        return [hashlib.sha256(repr(stats).encode()).hexdigest()]

    def colored_film(self, output: Path, times: Iterable[int]) -> "ImageSequence":
        paths = {pts: output.parent / self.paths[pts].name for pts in times}
        return ImageSequence(paths, self.before, self.after, self.info.rate)

    def is_overwritten_by(self, output: Path) -> bool:
        return self.path.parent.resolve() == output.parent.resolve()

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        """Yield (pts, duration, Planes) as in ``video.Film``, without unreadable images.

        With ``damage``, each of them is reported in a warning at once instead of being added to the log. Raises
        UserError if an image has a different size than those before it.
        """
        size = None
        for pts, path in self.paths.items():
            if pts < (begin or 0):
                continue
            try:
                image = read_deep_image(path)
            except UserError as error:
                if damage is not None:
                    warn(f"{error}; skipped")
                continue
            height, width = image.rgb.shape[:2]
            if size is not None and (height, width) != size:
                raise UserError(f"{path} is {width}x{height}, but the frames before it are {size[1]}x{size[0]}; resize "
                                "or remove it")
            size = height, width
            yield pts, 1, planes_from_rgb(image.rgb, image.depth)

    def read_near(self, pts: int) -> Generator[tuple[int, Planes], None, None]:
        for number, _, planes in self.read(pts):
            yield number, planes



def write_colored_frame(path: Path, planes: Planes, source: Path) -> None:
    """Write a colored frame at its bit depth, in the format given by the suffix of ``path``.

    If both ``source`` and ``path`` are OpenEXR files, each pixel keeps the luminance (linear, unbounded) of the source.
    """
    light = read_deep_image(source).linear if path.suffix.lower() == source.suffix.lower() == ".exr" else None
    if light is None:
        write_image(path, planes.rgb_codes(), planes.encoding.depth)
        return
    colored = srgb_decode(planes.rgb(*planes.y.shape))
    luminance, source_luminance = (rgb @ LUMINANCE_WEIGHTS[:, None] for rgb in (colored, light))
    scale = source_luminance / np.maximum(luminance, np.finfo(np.float32).tiny)
    write_image(path, np.where(luminance > 0, colored * scale, source_luminance))
