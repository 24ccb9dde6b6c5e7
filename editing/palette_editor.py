"""Functions that the web page calls to show and edit the palette: the colors of the characters and of the series."""

import threading
from typing import Any

import numpy as np

from colorizer.named_colors import NamedColors
from colorizer.series_colors import LIGHTNESS_WEIGHT, hex_to_lab
from dataset import lab_to_rgb, rgb_to_lab
from editing.allowed_paths import AllowedPaths
from editing.correction import film_lightness
from editing.film_browser import FilmBrowser
from editing.frame_reader import encode_jpeg
from editing.palette_store import add_learned, edit_color, find_color, original, rename_character
from editing.regions import Point
from editing.session import EditingSession, character_uri, check_integer, data_uri
from fileio.palettes import NamedColor, read_palette, write_palette
from utils import UserError

PREVIEW_WIDTH = 800  # maximum width in pixels of the preview of a color; larger: finer, slower


class PaletteEditor:
    """Lets the page show and edit the palette of a session: that of the project, and the colors that the checkpoint and
    the character sheets have in addition. A color is addressed by the names of its character and of itself."""

    def __init__(self, session: EditingSession, browser: FilmBrowser) -> None:
        self.session, self.project, self.browser = session, session.project, browser
        self.lock = threading.Lock()
        self.learned: tuple[Any, list[NamedColor]] = None, []  # key, colors
        self.pictures: dict[str, str] = {}  # data URIs of the characters

    def colors(self) -> list[NamedColor]:
        """Return the palette. Raises UserError without a checkpoint."""
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

    def show_palette(self) -> dict[str, Any]:
        """Return the colors of each character, and whether there is a change to undo. ``old`` is the color that the
        predicted pixels have."""
        if self.project.checkpoint is None:
            return {"characters": [], "undo": False}
        groups: dict[str, list[dict[str, Any]]] = {}
        for each in self.colors():
            groups.setdefault(each.character, []).append(
                {"name": each.name, "color": each.color, "old": original(each), "locked": each.locked})
        return {"characters": [{"name": name, "picture": self.pictures.get(name, ""), "colors": colors}
                               for name, colors in groups.items()], "undo": self.project.palette.can_undo()}

    def edit_color(self, character: str, name: str, edited: dict[str, Any], frame: int) -> None:
        """Change a color to ``edited``, the last arguments of ``palette_store.edit_color``, and color the shot of
        ``frame`` first."""
        colors = self.colors()
        colors = edit_color(colors, find_color(colors, character, name), **edited)
        self.session.edit_palette(lambda palette: palette.save(colors), check_integer("the frame", frame))

    def rename_character(self, character: str, name: str) -> None:
        """Rename a character in the palette; its sheets keep their name."""
        colors = rename_character(self.colors(), character, name)
        self.session.edit_palette(lambda palette: palette.save(colors))

    def undo_palette(self, frame: int) -> None:
        """Undo the last change of the palette."""
        self.session.edit_palette(lambda palette: palette.undo(), check_integer("the frame", frame))

    def import_palette(self, path: str, frame: int) -> dict[str, Any]:
        """Replace the palette with an uploaded palette file, and return a message."""
        colors = read_palette(AllowedPaths([self.project.folder / "page"]).check(path))
        learned = [original(each) for each in self.colors()]
        self.session.edit_palette(lambda palette: palette.save(colors), check_integer("the frame", frame))
        locked = sum(color.locked for color in colors)
        message = f"{len(colors)} colors imported, {locked} of them locked or exchanged."
        unknown = NamedColors(colors, learned).unknown
        return {"message": " ".join([message, *(f"Not found in the film: {each}." for each in unknown[:1])])}

    def export_palette(self, suffix: str) -> dict[str, Any]:
        """Return the palette as a file of a format: its name, and its content as a data URI."""
        path = self.project.folder / "export" / f"palette{suffix}"
        write_palette(path, self.colors())
        return {"name": path.name, "file": data_uri(path.read_bytes(), "application/octet-stream")}

    def preview_color(self, frame: int, character: str, name: str, color: str) -> dict[str, Any]:
        """Return {"picture": data URI} of a frame with ``color`` in place of one of its colors."""
        gray, colored, encoding = self._frame(frame)
        hex_to_lab(color)
        colors = [each._replace(locked=False, replaces=None) for each in self.colors()]
        index = find_color(colors, character, name)
        colors[index] = colors[index]._replace(color=color.lower(), locked=True, replaces=colors[index].color)
        L, ab = rgb_to_lab(gray)[..., 0], rgb_to_lab(colored)[..., 1:]
        ab = NamedColors(colors, []).apply(ab, L)
        rgb = lab_to_rgb(np.dstack([film_lightness(L, ab, encoding), ab]))
        return {"picture": data_uri(encode_jpeg(rgb, PREVIEW_WIDTH))}

    def find_color(self, frame: int, point: Point) -> dict[str, Any]:
        """Return the names of the color that is most similar to a pixel, given relative to the frame in [0, 1]."""
        _, rgb, _ = self._frame(frame)
        y, x = (min(side - 1, max(0, int(share * side))) for share, side in zip(point[::-1], rgb.shape, strict=False))
        scale, colors = (LIGHTNESS_WEIGHT, 1, 1), self.colors()
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
