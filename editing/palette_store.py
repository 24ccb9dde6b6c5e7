"""The palette of a project: a palette file that the page edits, and its earlier versions."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colorizer.palette_scopes import ScopedPalette, read_palettes
from colorizer.series_colors import LIGHTNESS_WEIGHT, PaletteConfig, hex_to_lab
from fileio.atomic import atomic_write
from fileio.palettes import PALETTE_SUFFIXES, NamedColor, read_palette, write_palette
from utils import UserError


class PaletteStore:
    """The file palette/palette.ini of a project. earlier_palettes/ has its earlier versions, in which an empty file
    stands for no palette."""

    def __init__(self, project: Path) -> None:
        self.folder, self.path = project / "palette", project / "palette" / "palette.ini"
        self.earlier = project / "earlier_palettes"

    def colors(self) -> list[NamedColor]:
        """Return the colors of the palette, [] without one. Raises UserError for a file that cannot be read."""
        return read_palette(self.path) if self.path.exists() else []

    def palettes(self) -> list[ScopedPalette]:
        """Return all palettes in the folder, as ``test.py --palette`` reads them; [] without one."""
        is_used = self.folder.is_dir() and any(path.suffix.lower() in PALETTE_SUFFIXES for path in
                                               self.folder.rglob("*"))
        return read_palettes(self.folder) if is_used else []

    def key(self) -> list[Any]:
        """Return what colors depend on, as plain values: all except names; [] if no color is locked."""
        palettes = self.palettes()
        return [[each.scope, [color[2:] for color in each.colors],
                 None if each.frame is None else hashlib.sha256(each.frame.tobytes()).hexdigest()]
                for each in palettes] if any(color.locked for each in palettes for color in each.colors) else []

    def save(self, colors: Sequence[NamedColor]) -> None:
        """Replace the palette, and keep the earlier one. Raises UserError for colors that the file cannot store."""
        earlier = self._content()
        version = self.earlier / f"{max((int(path.stem) for path in self._versions()), default=0) + 1:06d}.ini"
        with atomic_write(version) as temporary:
            temporary.write_bytes(earlier)
        try:
            write_palette(self.path, colors)
        finally:
            if self._content() == earlier:  # also after an error
                version.unlink()

    def can_undo(self) -> bool:
        """Return whether there is an earlier version."""
        return bool(self._versions())

    def undo(self) -> None:
        """Restore the last version. Raises UserError if there is none."""
        versions = self._versions()
        if not versions:
            raise UserError("there is nothing to undo; change a color first")
        if versions[-1].stat().st_size:
            versions[-1].replace(self.path)
        else:
            self.path.unlink(missing_ok=True)
            versions[-1].unlink()

    def _content(self):
        return self.path.read_bytes() if self.path.exists() else b""

    def _versions(self):
        return sorted(path for path in self.earlier.glob("*.ini") if path.stem.isdecimal())


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
