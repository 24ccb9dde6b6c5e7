"""The character sheets of a project, and the names of files that a page has sent."""

import filecmp
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from colorizer.characters import Character, read_character
from fileio.atomic import atomic_write
from fileio.images import IMAGE_SUFFIXES
from fileio.palettes import SERIES
from utils import UserError, list_files

MAX_NAME = 56  # characters of the name of a file, each of at most 4 bytes; file systems allow 255 bytes
NAME_CHARACTERS = ".-_ "  # that the name of a character keeps, apart from letters and digits


def clean_name(name: str, kept: str = ".-_") -> str:
    """Replace the characters of a file name with "_", except for letters and digits of any script and ``kept``.

    The result is "" if ``name`` has only leading dots.
    """
    name = unicodedata.normalize("NFC", name)
    return "".join(c if c.isalnum() or c in kept else "_" for c in name).lstrip(".")[-MAX_NAME:]


def copy_into(folder: Path, path: Path) -> Path:
    """Copy a file into a folder, unless this contains the same file, and return the new path, see ``clean_name``."""
    name = clean_name(path.name) or "file"
    target, number = folder / name, 1
    while target.exists():
        if filecmp.cmp(path, target, shallow=False):
            return target
        number += 1
        target = target.with_name(f"{number}_{name}")
    with atomic_write(target) as temporary:
        shutil.copyfile(path, temporary)
    return target


def find_sheets(name: str, folder: Path) -> dict[str, list[Path]]:
    """Return the pictures in the subfolders of a folder, by the names of these, or if there are none, the pictures in
    the folder itself with a name, by default that of the folder."""
    groups = {path.name: list_files(path, IMAGE_SUFFIXES) for path in sorted(folder.iterdir()) if path.is_dir()}
    groups = {each: paths for each, paths in groups.items() if paths and not each.startswith(".")}
    return groups or {name.strip() or folder.name: list_files(folder, IMAGE_SUFFIXES)}


class CharacterSheets:
    """The folder characters/ of a project, with a subfolder of pictures for each character."""

    def __init__(self, project: Path) -> None:
        self.folder, self.removed = project / "characters", project / "removed"

    def names(self) -> list[str]:
        """Return the names of the characters."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def files(self, name: str | None = None) -> list[Path]:
        """Return the pictures of a character, by default of all characters."""
        names = self.names() if name is None else [name]
        return [path for each in names for path in list_files(self.folder / each, IMAGE_SUFFIXES)]

    def add(self, sheets: Mapping[str, Sequence[Path]]) -> None:
        """Add pictures, given by the name of the character. Raises UserError if there are none or one is not a picture
        of a character, and for a name that is empty or reserved; nothing is added then."""
        for name, paths in sheets.items():
            if clean_name(name.strip(), NAME_CHARACTERS) in ("", SERIES):
                raise UserError(f"{name!r} is not the name of a character; enter its name first")
            if not paths:
                raise UserError(f"there are no pictures of {name}; choose pictures of one character on a flat "
                                "background")
            for path in paths:
                read_character(path)
        for name, paths in sheets.items():
            for path in paths:
                copy_into(self.folder / clean_name(name.strip(), NAME_CHARACTERS), path)

    def read(self, name: str) -> list[Character]:
        """Read the pictures of a character."""
        return [read_character(path) for path in self.files(name)]

    def remove(self, name: str) -> None:
        """Move the pictures of a character to removed/. Raises UserError if there is no such character."""
        if name not in self.names():
            raise UserError(f"there is no character {name}; another page may have removed it")
        number = 1
        while (target := self.removed / f"{name}_{number}").exists():
            number += 1
        self.removed.mkdir(exist_ok=True)
        (self.folder / name).replace(target)
