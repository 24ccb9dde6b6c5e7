"""Palette files with scopes: reading them from a folder, and the named colors that hold in each shot."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from colorizer.letterbox import crop_borders
from colorizer.named_colors import NamedColors, is_same_color
from colorizer.scopes import (
    ONLY_THIS_SHOT, SIMILAR_SHOTS, WHOLE_FILM, ShotView, find_shots_in_scope, list_scopes, scope_rank, shot_numbers)
from dataset import luma_lightness
from fileio.images import IMAGE_SUFFIXES, read_image
from fileio.palettes import PALETTE_SUFFIXES, NamedColor, read_palette
from utils import UserError, list_files, warn


class ScopedPalette(NamedTuple):
    """The colors of a palette file, and the shots that they hold in."""

    colors: Sequence[NamedColor]
    scope: str = WHOLE_FILM  # see colorizer/scopes.py
    name: str = "the palette"  # for messages
    frame: np.ndarray | None = None  # L float32 (H, W) of a frame of the shot, for similar_shots and only_this_shot


def read_palettes(path: Path) -> list[ScopedPalette]:
    """Read a palette file, or the palette files of a folder and of its subfolders, which are named after their scope.

    In similar_shots and only_this_shot, each palette needs a picture with the same stem: a frame of its shot. Other
    files are skipped with a warning. Raises UserError if there is no palette, if a file cannot be read, if a frame is
    missing, and as ``list_scopes`` does.
    """
    if not path.exists():
        raise UserError(f"there is no palette {path}; pass a palette file or a folder of palette files to --palette")
    if not path.is_dir():
        return [ScopedPalette(read_palette(path), name=path.name)]
    palettes = []
    for scope in list_scopes(path):
        files = list_files(path / scope)
        found = [file for file in files if file.suffix.lower() in PALETTE_SUFFIXES]
        pictures = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        for file in found:
            name, frame = file.relative_to(path).as_posix(), None
            if scope in (SIMILAR_SHOTS, ONLY_THIS_SHOT):
                frames = [picture for picture in pictures if picture.stem == file.stem]
                if len(frames) != 1:
                    raise UserError(f"the palette {name} needs one frame of its shot, but there are {len(frames)}; "
                                    f"save a frame next to it as {file.stem}.png")
                frame = luma_lightness(crop_borders(read_image(frames[0])))
            palettes.append(ScopedPalette(read_palette(file), scope, name, frame))
        stems = {file.stem for file in found}
        if others := [file.name for file in files if file not in found and file.stem not in stems]:
            warn(f"skipped in {path / scope}, since they are not {', '.join(PALETTE_SUFFIXES)}: {', '.join(others)}")
    if not palettes:
        raise UserError(f"there is no palette in {path} (expected {', '.join(PALETTE_SUFFIXES)})")
    return palettes


class ScopedColors:
    """The colors of palette files together with the colors that a checkpoint has learned, for each shot.

    The palettes of a shot are given by ``active``: the indices of those that hold in it in addition to those for the
    whole film, narrowest scope first. Of two palettes with the same color, the one with the narrower scope wins.
    """

    def __init__(self, palettes: Sequence[ScopedPalette], learned: Sequence[str]) -> None:
        """``learned`` are "#rrggbb". Raises UserError if two palettes of one scope contradict each other."""
        self.palettes, self.learned = list(palettes), list(learned)
        self.whole_film = [index for index, each in enumerate(self.palettes) if each.scope == WHOLE_FILM]
        self.has_locked = any(color.locked for each in self.palettes for color in each.colors)
        self.digest = hashlib.sha256(repr([
            ([color[2:] for color in each.colors], each.scope, None if each.frame is None else each.frame.tobytes())
            for each in self.palettes]).encode()).hexdigest()
        self._cache: dict[tuple[int, ...], NamedColors] = {}
        numbers = [shot_numbers(each.scope) or () for each in self.palettes]
        for first in {0, *(shots[0] for shots in numbers if shots)}:  # palettes that share shots share one of these
            self.in_shot([index for index, shots in enumerate(numbers) if first in shots])

    @property
    def scopes(self) -> list[str]:
        """The scope of each palette."""
        return [each.scope for each in self.palettes]

    def unknown(self) -> list[str]:
        """Return ``NamedColors.unknown`` of all palettes, each message once."""
        return list(dict.fromkeys(message for each in self.palettes
                                  for message in NamedColors(each.colors, self.learned).unknown))

    def find_active(self, shots: Sequence[ShotView], view_frame: Callable[[np.ndarray], ShotView],
                    has_numbers: bool = True) -> list[list[int]]:
        """Return the ``active`` palettes of each shot of a film, or of single pictures if ``has_numbers`` is False.

        ``view_frame`` returns the view of a frame, L (H, W).
        """
        active: list[list[tuple[float, int]]] = [[] for _ in shots]
        for index, each in enumerate(self.palettes):
            if each.scope != WHOLE_FILM:
                view = partial(view_frame, cast(np.ndarray, each.frame))  # used only for scopes with a frame
                closeness = find_shots_in_scope(each.scope, view, shots, has_numbers)
                for found, close in zip(active, closeness, strict=True):
                    found += [(-scope_rank(each.scope) - close, index)] * (close > 0)
        return [[index for _, index in sorted(found)] for found in active]

    def unused(self, active: Sequence[Sequence[int]]) -> list[str]:
        """Return messages about the palettes that no shot uses, given the ``active`` ones of each shot."""
        used = set(self.whole_film).union(*active)
        return [f"no shot of the film is in the scope of the palette {each.name}, so it is not used; move it to "
                "another scope" for index, each in enumerate(self.palettes) if index not in used]

    def in_shot(self, active: Sequence[int]) -> NamedColors:
        """Return the colors of a shot. Raises UserError if two palettes of one scope contradict each other in it."""
        key = tuple(active)
        if key not in self._cache:
            colors: list[NamedColor] = []
            for _, group in groupby([*active, *self.whole_film], self._narrowness):
                wider = self._join([self.palettes[index] for index in group])
                colors += [color for color in wider if not any(is_same_color(color, other) for other in colors)]
            self._cache[key] = NamedColors(colors, self.learned)
        return self._cache[key]

    def _narrowness(self, index):
        """Return a key that is equal for palettes of equally narrow scopes. Of similar shots, the nearest win."""
        scope = self.palettes[index].scope
        return scope_rank(scope), index if scope == SIMILAR_SHOTS else None

    def _join(self, palettes):
        """Return the colors of palettes with equally narrow scopes."""
        owners = {}
        for each in palettes:
            for color in (color for color in each.colors if color.locked):
                other, name = owners.setdefault(color.replaces or color.color, (color, each.name))
                if other.color != color.color:
                    raise UserError(f"{name} and {each.name} give {color.replaces or color.color} two different colors "
                                    "in the same shots; remove one of them")
        return [color for each in palettes for color in each.colors]
