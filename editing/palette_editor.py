"""Functions that the web page calls to show and edit the palette: the colors of the characters and of the series."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from colorizer.named_colors import NamedColors
from colorizer.scopes import WHOLE_FILM
from colorizer.series_colors import LIGHTNESS_WEIGHT, hex_to_lab
from dataset import lab_to_rgb, rgb_to_lab
from editing.allowed_paths import AllowedPaths
from editing.correction import film_lightness
from editing.film_browser import FilmBrowser
from editing.frame_reader import encode_jpeg
from editing.palette_store import (
    add_learned, edit_color, find_color, original, own_colors, rename_character, with_scope)
from editing.regions import Point
from editing.session import EditingSession, character_uri, check_integer, data_uri
from fileio.palettes import PALETTE_SUFFIXES, NamedColor, read_palette, write_palette
from utils import UserError

PREVIEW_WIDTH = 800  # maximum width in pixels of the preview of a color; larger: finer, slower


class PaletteEditor:
    """Lets the page show and edit the palettes of a session: those of the project, and the colors that the checkpoint
    and the character sheets have in addition. A color is addressed by the names of its character and of itself."""

    def __init__(self, session: EditingSession, browser: FilmBrowser) -> None:
        self.session, self.project, self.browser = session, session.project, browser
        self.lock = threading.Lock()
        self.learned: tuple[Any, list[NamedColor]] = None, []  # key, colors
        self.pictures: dict[str, str] = {}  # data URIs of the characters

    def colors(self) -> list[NamedColor]:
        """Return the palette for the whole film. Raises UserError without a checkpoint."""
        predictors, sheets = self.session.predictors, self.project.sheets
        base = predictors.without_references()
        key = base.identity, *(path.stat().st_mtime_ns for path in sheets.files())
        with self.lock:
            if self.learned[0] != key:
                self.learned = key, predictors.learned_colors()
                sheet = {each.name: each for each in [*base.characters, *(
                    each for name in sheets.names() for each in sheets.read(name)[:1])]}
                self.pictures = {name: character_uri(each) for name, each in sheet.items()}
            return add_learned(self.project.palette.colors(), self.learned[1])

    def shown_colors(self, frame: int, scope: str) -> tuple[Path, list[NamedColor]]:
        """Return the palette file of a scope, and all colors as they are in the shot of ``frame``."""
        palette, colors = self.project.palette, self.colors()
        if scope == WHOLE_FILM:
            return palette.path(), colors
        preview = self.project.shot_preview()
        shots = preview.shots(self.project.settings) if preview else []
        path = palette.path(scope, next((range(*shot) for shot in shots if frame in range(*shot)), ()))
        return path, with_scope(colors, palette.colors(path))

    def show_palette(self, frame: int = 0, scope: str = WHOLE_FILM) -> dict[str, Any]:
        """Return the colors of each character for a scope, and whether there is a change to undo. ``old`` is the color
        that the predicted pixels have."""
        if self.project.checkpoint is None:
            return {"characters": [], "undo": False}
        groups: dict[str, list[dict[str, Any]]] = {}
        for each in self.shown_colors(frame, scope)[1]:
            groups.setdefault(each.character, []).append(
                {"name": each.name, "color": each.color, "old": original(each), "locked": each.locked})
        return {"characters": [{"name": name, "picture": self.pictures.get(name, ""), "colors": colors}
                               for name, colors in groups.items()], "undo": self.project.palette.can_undo()}

    def edit_color(self, character: str, name: str, edited: dict[str, Any], frame: int, scope: str) -> None:
        """Change a color to ``edited``, the last arguments of ``palette_store.edit_color``, in a scope, and color the
        shot of ``frame`` first."""
        path, colors = self.shown_colors(frame, scope)
        colors = edit_color(colors, find_color(colors, character, name), **edited)
        if scope != WHOLE_FILM:
            if (edited["character"], edited["name"]) != (character, name):
                raise UserError("names belong to the whole film; choose 'for the whole film' to change them")
            colors = own_colors(self.colors(), colors)
        self._save(colors, path, frame)

    def _save(self, colors, path, frame):
        """Replace a palette, whose file is named after a frame if it belongs to a shot."""
        own = path.stem.removeprefix("frame_")
        gray = self.browser.grayscale_frame(int(own)) if own.isdecimal() else None
        self.session.edit_palette(lambda palette: palette.save(colors, path, gray), check_integer("the frame", frame))

    def rename_character(self, character: str, name: str) -> None:
        """Rename a character in the palette; its sheets keep their name."""
        colors = rename_character(self.colors(), character, name)
        self.session.edit_palette(lambda palette: palette.save(colors))

    def undo_palette(self, frame: int) -> None:
        """Undo the last change of a palette."""
        self.session.edit_palette(lambda palette: palette.undo(), check_integer("the frame", frame))

    def import_palette(self, path: str, frame: int, scope: str) -> dict[str, Any]:
        """Replace the palette of a scope with an uploaded palette file, and return a message."""
        colors = read_palette(AllowedPaths([self.project.folder / "page"]).check(path))
        target, shown = self.shown_colors(frame, scope)
        self._save(colors, target, frame)
        locked = sum(color.locked for color in colors)
        message = f"{len(colors)} colors imported, {locked} of them locked or exchanged."
        unknown = NamedColors(colors, [original(each) for each in shown]).unknown
        return {"message": " ".join([message, *(f"Not found in the film: {each}." for each in unknown[:1])])}

    def export_palette(self, suffix: str, frame: int, scope: str) -> dict[str, Any]:
        """Return the palette of a scope as a file of a format: its name, and its content as a data URI."""
        if suffix not in PALETTE_SUFFIXES:
            raise UserError(f"{suffix!r:.40} is not a palette format; choose one of {', '.join(PALETTE_SUFFIXES)}")
        path = self.project.folder / "export" / f"palette{suffix}"
        write_palette(path, self.shown_colors(frame, scope)[1])
        return {"name": path.name, "file": data_uri(path.read_bytes(), "application/octet-stream")}

    def preview_color(self, frame: int, scope: str, character: str, name: str, color: str) -> dict[str, Any]:
        """Return {"picture": data URI} of a frame with ``color`` in place of one of its colors."""
        gray, colored, encoding = self._frame(frame)
        hex_to_lab(color)
        colors = [each._replace(locked=False, replaces=None) for each in self.shown_colors(frame, scope)[1]]
        index = find_color(colors, character, name)
        colors[index] = colors[index]._replace(color=color.lower(), locked=True, replaces=colors[index].color)
        L, ab = rgb_to_lab(gray)[..., 0], rgb_to_lab(colored)[..., 1:]
        ab = NamedColors(colors, []).apply(ab, L)
        rgb = lab_to_rgb(np.dstack([film_lightness(L, ab, encoding), ab]))
        return {"picture": data_uri(encode_jpeg(rgb, PREVIEW_WIDTH))}

    def find_color(self, frame: int, scope: str, point: Point) -> dict[str, Any]:
        """Return the names of the color that is most similar to a pixel, given relative to the frame in [0, 1]."""
        _, rgb, _ = self._frame(frame)
        y, x = (min(side - 1, max(0, int(share * side))) for share, side in zip(point[::-1], rgb.shape, strict=False))
        scale, colors = (LIGHTNESS_WEIGHT, 1, 1), self.shown_colors(frame, scope)[1]
        lab = rgb_to_lab(rgb[max(0, y - 1):y + 2, max(0, x - 1):x + 2])
        distance = [np.linalg.norm((hex_to_lab(each.color) - np.median(lab, axis=(0, 1))) * scale) for each in colors]
        nearest = colors[int(np.argmin(distance))]
        return {"character": nearest.character, "name": nearest.name}

    def _frame(self, frame):
        """Return a frame before and after coloring, RGB uint8 (H, W, 3), and its encoding. Raises UserError if it is
        not colored."""
        gray, colored = (self.browser.planes(kind, check_integer("the frame", frame)) for kind in ("gray", "colored"))
        if gray is None or colored is None:
            raise UserError("the frame is not colored yet; wait until it is")
        height, width = gray.y.shape
        width, height = min(PREVIEW_WIDTH, width), round(height * min(1, PREVIEW_WIDTH / width))
        return gray.gray_uint8(height, width), colored.rgb_uint8(height, width), gray.encoding
