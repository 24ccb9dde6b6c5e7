"""Restriction of the files that a page may read to given folders and files."""

import os
from collections.abc import Sequence
from pathlib import Path

from utils import UserError, natural_key

MAX_FILES = 2000  # maximum number of files in a listing


class AllowedPaths:
    """Folders and files that the page may read; every path from the page is checked against them."""

    def __init__(self, roots: Sequence[str | Path]) -> None:
        self.roots = [Path(path).resolve() for path in roots]

    def check(self, path: str | Path) -> Path:
        """Return the resolved path of a file that may be read. Raises UserError for any other path."""
        resolved = self._resolve(path)
        if not resolved.is_file():
            raise UserError(f"there is no file {path}; choose an existing file")
        return resolved

    def check_folder(self, path: str | Path) -> Path:
        """Return the resolved path of a folder that may be read. Raises UserError for any other path."""
        resolved = self._resolve(path)
        if not resolved.is_dir():
            raise UserError(f"there is no folder {path}; choose an existing folder")
        return resolved

    def _resolve(self, path):
        try:
            resolved = Path(path).resolve()
            allowed = any(resolved.is_relative_to(root) for root in self.roots)
        except (OSError, ValueError, RuntimeError):  # a null byte, a symbolic link loop
            allowed = False
        if not allowed:
            raise UserError(f"{path} is outside the folders that the studio may read; pass its folder to --folders or "
                            "upload the file")
        return resolved

    def files(self, suffixes: Sequence[str]) -> list[Path]:
        """Return up to MAX_FILES visible files with one of the suffixes, found recursively, in natural order."""
        found = []
        for root in self.roots:
            if root.is_file() and root.suffix.lower() in suffixes:
                found.append(root)
            for folder, folders, names in os.walk(root):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                found += [Path(folder, name) for name in names
                          if Path(name).suffix.lower() in suffixes and not name.startswith(".")]
                if len(found) >= MAX_FILES:
                    break
        return sorted(dict.fromkeys(found[:MAX_FILES]), key=lambda path: natural_key(str(path)))
