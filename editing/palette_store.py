"""The palettes of a project, for the whole film and for single shots, and their earlier versions."""

import hashlib
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colorizer.palette_scopes import ScopedPalette, read_palettes
from colorizer.scopes import ONLY_THIS_SHOT, SIMILAR_SHOTS, WHOLE_FILM
from colorizer.series_colors import LIGHTNESS_WEIGHT, PaletteConfig, hex_to_lab
from fileio.atomic import atomic_write
from fileio.images import write_image
from fileio.palettes import PALETTE_SUFFIXES, NamedColor, read_palette, write_palette
from utils import UserError


class PaletteStore:
    """The folder palette/ of a project, as ``test.py --palette`` reads it: palette.ini for the whole film, and in the
    subfolders similar_shots and only_this_shot a palette for each shot with a grayscale frame of it.

    earlier_palettes/ has the earlier versions of changed files, in which empty files stand for missing ones.
    """

    def __init__(self, project: Path) -> None:
        self.folder, self.earlier = project / "palette", project / "earlier_palettes"
        self._lock = threading.Lock()  # held while files are read or changed
        self._cache: tuple[Any, list[ScopedPalette]] = None, []  # stamps of the files, palettes

    def path(self, scope: str = WHOLE_FILM, shot: Sequence[int] = ()) -> Path:
        """Return the path of the palette of a scope, which belongs to a frame of ``shot``, and may not exist yet.

        Raises UserError for a scope that the studio does not edit.
        """
        if scope == WHOLE_FILM:
            return self.folder / "palette.ini"
        if scope not in (SIMILAR_SHOTS, ONLY_THIS_SHOT) or not shot:
            raise UserError(f"{scope!r:.40} is not a scope of a shot; choose similar shots or only this shot")
        found = [path for path in sorted((self.folder / scope).glob("frame_*.ini"))
                 if path.stem[6:].isdecimal() and int(path.stem[6:]) in shot]
        return found[0] if found else self.folder / scope / f"frame_{shot[len(shot) // 2]:06d}.ini"

    def colors(self, path: Path | None = None) -> list[NamedColor]:
        """Return the colors of a palette, by default of that for the whole film; [] if it does not exist. Raises
        UserError for a file that cannot be read."""
        path = path or self.path()
        with self._lock:
            return read_palette(path) if path.exists() else []

    def palettes(self) -> list[ScopedPalette]:
        """Return all palettes; [] without one. Raises UserError for a file that cannot be read."""
        with self._lock:
            files = sorted(path for path in self.folder.rglob("*") if path.is_file())
            stamps = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
            if self._cache[0] != stamps:
                is_used = any(path.suffix.lower() in PALETTE_SUFFIXES for path in files)
                self._cache = stamps, read_palettes(self.folder) if is_used else []
            return self._cache[1]

    @staticmethod
    def key(palettes: Sequence[ScopedPalette]) -> list[Any]:
        """Return what colors depend on, as plain values: all except names and order; [] if no color is locked."""
        return [[each.scope, sorted((color[2:] for color in each.colors), key=str),
                 None if each.frame is None else hashlib.sha256(each.frame.tobytes()).hexdigest()]
                for each in palettes] if any(color.locked for each in palettes for color in each.colors) else []

    def save(self, colors: Sequence[NamedColor], path: Path | None = None, gray: np.ndarray | None = None) -> None:
        """Replace a palette, by default that for the whole film, and keep the earlier version; without ``colors``,
        remove it. For a shot, ``gray`` is its frame, RGB uint8 (H, W, 3).

        Raises UserError for colors that the file cannot store.
        """
        path = path or self.path()
        files = [path] if gray is None else [path, path.with_suffix(".png")]
        earlier = [each.read_bytes() if each.exists() else b"" for each in files]
        version = self.earlier / f"{max((int(each.name) for each in self._versions()), default=0) + 1:06d}"
        for each, content in zip(files, earlier, strict=True):
            with atomic_write(version / each.relative_to(self.folder)) as temporary:
                temporary.write_bytes(content)
        with self._lock:
            try:
                self._write(colors, files, gray)
            finally:
                if earlier[0] == (path.read_bytes() if path.exists() else b""):  # also after an error
                    self._restore(version)

    def _write(self, colors, files, gray):
        if not colors:
            for path in files:
                path.unlink(missing_ok=True)
            return
        if gray is not None and not files[1].exists():
            write_image(files[1], gray)
        write_palette(files[0], colors)

    def can_undo(self) -> bool:
        """Return whether there is an earlier version."""
        return bool(self._versions())

    def undo(self) -> None:
        """Restore the last version. Raises UserError if there is none."""
        versions = self._versions()
        if not versions:
            raise UserError("there is nothing to undo; change a color first")
        with self._lock:
            self._restore(versions[-1])

    def _restore(self, version):
        """Replace files with those of a version, and remove the version."""
        files = sorted(path for path in version.rglob("*") if path.is_file())  # palettes before pictures
        targets = [self.folder / path.relative_to(version) for path in files]
        for path, target in reversed(list(zip(files, targets, strict=True))):
            if path.stat().st_size:
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        for path, target in zip(files, targets, strict=True):
            if path.exists():  # empty
                target.unlink(missing_ok=True)
        shutil.rmtree(version)

    def _versions(self):
        return sorted(path for path in self.earlier.glob("*") if path.name.isdecimal())


def original(color: NamedColor) -> str:
    """Return the color that the predicted pixels have."""
    return color.replaces or color.color


def add_learned(saved: Sequence[NamedColor], learned: Sequence[NamedColor]) -> list[NamedColor]:
    """Return ``saved``, and those of ``learned`` that are not close to any of them, with names that are not in use."""
    scale, colors = (LIGHTNESS_WEIGHT, 1, 1), list(saved)
    taken = np.array([hex_to_lab(original(color)) for color in saved]).reshape(-1, 3)
    for color in learned:
        distance = np.linalg.norm((taken - hex_to_lab(color.color)) * scale, axis=1)
        if (distance < PaletteConfig.merge_distance).any():
            continue
        number = 1
        while _find(colors, color.character, color.name) is not None:
            number += 1
            color = color._replace(name=f"color {number}")
        colors.append(color)
    return colors


def _find(colors, character, name):
    """Return the index of a color, or None."""
    return next((index for index, each in enumerate(colors) if each[:2] == (character, name)), None)


def find_color(colors: Sequence[NamedColor], character: str, name: str) -> int:
    """Return the index of a color. Raises UserError if it does not exist."""
    index = _find(colors, character, name)
    if index is None:
        raise UserError(f"{character!r} has no color {name!r}; another page may have renamed it")
    return index


def edit_color(colors: Sequence[NamedColor], index: int, character: str, name: str, color: str,
               locked: bool) -> list[NamedColor]:
    """Return ``colors`` with other properties of one of them. If ``color`` differs from the original color, it replaces
    this.

    Raises UserError for an invalid color, or if the name is empty or in use.
    """
    hex_to_lab(color)
    old, color, character, name = original(colors[index]), color.lower(), str(character).strip(), str(name).strip()
    if not character or not name:
        raise UserError("a name is empty; enter one")
    if _find(colors, character, name) not in (None, index):
        raise UserError(f"{character!r} has a color {name!r} already; choose another name")
    edited = NamedColor(character, name, color, locked or color != old, None if color == old else old)
    return [*colors[:index], edited, *colors[index + 1:]]


def rename_character(colors: Sequence[NamedColor], character: str, name: str) -> list[NamedColor]:
    """Return ``colors`` with a new name of a character. Raises UserError if it is empty or in use."""
    name = str(name).strip()
    if not name:
        raise UserError("the name is empty; enter one")
    if name != character and any(each.character == name for each in colors):
        raise UserError(f"there is a character {name!r} already; choose another name")
    return [each._replace(character=name) if each.character == character else each for each in colors]


def with_scope(colors: Sequence[NamedColor], own: Sequence[NamedColor]) -> list[NamedColor]:
    """Return the ``colors`` of the whole film as they are in a shot with the ``own`` colors."""
    found = {original(each): each for each in own}
    known = {original(each) for each in colors}
    return [each._replace(**found[original(each)]._asdict() | {"character": each.character, "name": each.name})
            if original(each) in found else each for each in colors] + [
                each for each in own if original(each) not in known]


def own_colors(colors: Sequence[NamedColor], shown: Sequence[NamedColor]) -> list[NamedColor]:
    """Return the colors of a shot, as ``shown``, that differ from the ``colors`` of the whole film."""
    film = {original(each): each[2:] for each in colors}
    return [each for each in shown if film.get(original(each)) != each[2:]]
