"""Image sequences (numbered images that form a film): detection in a folder, reading and writing."""

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
from film.io.video import DamageLog, FilmInfo
from utils import UserError, warn

MIN_FRAMES = 12  # minimum number of images of a sequence (half a second); fewer are separate pictures
COMPARED_PAIRS = 8  # number of pairs of successive images to compare; more are more reliable and take longer
MAX_CHANGE = 8  # maximum median difference (8-bit gray) of successive images; it is 1 at 24 frames/s, 11 at 1 frame/s
RATE = Fraction(24)  # frames per second of an image sequence


def find_sequences(paths: Sequence[Path]) -> tuple[list["ImageSequence"], list[Path]]:
    """Split the images of a folder into (image sequences, other images).

    At least MIN_FRAMES images form a sequence if their names differ only in the number at the end, no number occurs
    twice, more than half of the numbers between the first and the last exist, and ``_are_successive`` holds.
    """
    groups, sequences = {}, []
    for path in paths:
        number = re.findall(r"\d*\Z", path.stem)[0]
        if number:
            groups.setdefault((path.stem.removesuffix(number), path.suffix), []).append((int(number), path))
    for (prefix, _), numbered in groups.items():
        frames = dict(sorted(numbered))
        if (MIN_FRAMES <= len(numbered) == len(frames) > (max(frames) - min(frames)) / 2
                and _are_successive(list(frames.values()))):
            sequences.append(ImageSequence(frames, prefix))
    taken = {path for sequence in sequences for path in sequence.paths.values()}
    return sequences, [path for path in paths if path not in taken]


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
    """A ``video.Film`` of numbered images at RATE frames per second; pts = number - first number."""

    def __init__(self, paths: dict[int, Path], prefix: str = "") -> None:
        """``paths``: {number: path} in order; ``prefix``: the part of the names before the number."""
        first = min(paths)
        self.paths = {number - first: path for number, path in paths.items()}
        path = self.paths[0]
        self.prefix, self.path = prefix, path.parent / f"{prefix}*{path.suffix}"
        # Stem of the names of the report and the log
        self.stem = prefix.strip(" ._-").replace(".", "_") or path.parent.resolve().name.replace(".", "_")
        self.info = FilmInfo(RATE, 1 / RATE, 0.0, len(paths))

    def fingerprint(self) -> list[Any]:
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths.values()]
        return [hashlib.sha256(repr(stats).encode()).hexdigest()]

    def colored_film(self, output: Path, times: Iterable[int]) -> "ImageSequence":
        return ImageSequence({pts: output.parent / self.paths[pts].name for pts in times}, self.prefix)

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
