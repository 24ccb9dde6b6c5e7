"""Correction of a frame: a JSON document of fills and brush strokes, and the computation of the corrected colors.

Points are (x, y) in pixels of the frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from colorizer.series_colors import hex_to_lab, shade_color
from dataset import lab_to_rgb, resize
from editing.regions import Point, Regions, Stroke, bounding_box
from film.io.chroma import lightness_with_luma
from film.io.planes import ColorEncoding
from utils import UserError

CORRECTION_FORMAT = 3
MAX_COORDINATE = 2**15  # pixels; larger coordinates and radii are rejected
MAX_POINTS = 300_000  # points of a document; more are rejected
MAX_UNDO_BYTES = 2**28  # memory for undoing without rendering all areas again; larger: more steps
KINDS = ("fill", "like", "grow", "cut", "brush", "reset")


@dataclass(frozen=True)
class ColoredArea:
    """A filled region or a brush stroke with its color; the color None restores the predicted colors."""

    color: str | None
    clicks: tuple[Point, ...] = ()
    cuts: tuple[Stroke, ...] = ()
    brush: Stroke | None = None
    parts: bool = False  # the clicks fill parts (``Regions.parts``) instead of regions

    def mask(self, regions: Regions) -> np.ndarray:
        """Return the opacity of the area, float32 (H, W) in [0, 1]."""
        if self.brush is not None:
            return draw_stroke(self.brush, regions.L.shape)
        return regions.fill_parts(self.clicks) if self.parts else regions.fill(self.clicks, self.cuts)


@dataclass
class Correction:
    """The edits of a frame of ``size`` (height, width), and the undone edits, which ``redo`` restores.

    An edit is a dict of "kind", "points", "color" and "radius", see ``add``. All methods raise UserError for an invalid
    edit.
    """

    size: tuple[int, int]
    edits: list[dict[str, Any]] = field(default_factory=list)
    undone: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, points: Sequence[Point] = (), color: str | None = None, radius: float = 1.0) -> None:
        """Add an edit.

        "fill" colors the region at the first point, "like" colors the parts at all points, "grow" adds the region at
        the first point to the last fill, "cut" divides the last fill by a stroke along the points, "brush" colors a
        stroke along the points, and "reset" removes all colors. The color None restores the predicted colors.
        """
        points = [[float(value) for value in point] for point in points]
        edit = {"kind": kind, "points": points, "color": color, "radius": radius}
        _check([*self.edits, edit], self.size)
        self.edits.append(edit)
        self.undone.clear()

    def undo(self) -> None:
        if not self.edits:
            raise UserError("there is nothing to undo; edit the frame first")
        self.undone.append(self.edits.pop())

    def redo(self) -> None:
        if not self.undone:
            raise UserError("there is nothing to redo; undo an edit first")
        self.edits.append(self.undone.pop())

    def areas(self) -> list[ColoredArea]:
        """Return the areas to color, from bottom to top."""
        areas: list[ColoredArea] = []
        for edit in self.edits:
            points, color = tuple(map(tuple, edit["points"])), edit["color"]
            stroke = Stroke(points, edit["radius"])
            match edit["kind"]:
                case "reset":
                    areas = []
                case "fill":
                    areas.append(ColoredArea(color, points[:1]))
                case "like":
                    areas.append(ColoredArea(color, points, parts=True))
                case "brush":
                    areas.append(ColoredArea(color, brush=stroke))
                case kind:
                    last = max(index for index, area in enumerate(areas) if area.clicks and not area.parts)
                    area = areas[last]
                    areas[last] = (replace(area, clicks=area.clicks + points[:1]) if kind == "grow" else
                                   replace(area, cuts=(*area.cuts, stroke)))
        return areas

    def state(self) -> dict[str, Any]:
        """Return the document as plain values for JSON."""
        return {"format": CORRECTION_FORMAT, "size": list(self.size), "edits": list(self.edits),
                "undone": list(self.undone)}

    @classmethod
    def from_state(cls, state: object) -> "Correction":
        """Create a correction from the result of ``state``. Raises UserError for an invalid document."""
        if not isinstance(state, dict) or set(state) != {"format", "size", "edits", "undone"}:
            raise _damaged("its entries are not format, size, edits and undone")
        if state["format"] != CORRECTION_FORMAT:
            raise UserError(f"the correction has format {state['format']!r:.20}, and this version reads "
                            f"{CORRECTION_FORMAT}; use the version that wrote it")
        size, edits, undone = state["size"], state["edits"], state["undone"]
        if not (isinstance(size, list) and len(size) == 2
                and all(type(side) is int and 0 < side <= MAX_COORDINATE for side in size)):
            raise _damaged(f"its size is not a height and a width from 1 to {MAX_COORDINATE}")
        if not (isinstance(edits, list) and isinstance(undone, list)):
            raise _damaged("its edits are not lists")
        _check([*edits, *reversed(undone)], size)
        return cls((size[0], size[1]), edits, undone)


def film_lightness(L: np.ndarray, ab: np.ndarray, encoding: ColorEncoding) -> np.ndarray:
    """Return the result of ``lightness_with_luma``, clipped to [0, 100]."""
    return np.clip(lightness_with_luma(L, ab, encoding), 0, 100)


class CorrectionRenderer:
    """Computes the colors of a corrected frame from its regions and its predicted ab, float32 (h, w, 2) of any size.

    ``encoding`` is that of the film, whose luma the colors keep. A click renders only one area, and an undo none.
    """

    def __init__(self, regions: Regions, ab: np.ndarray, encoding: ColorEncoding) -> None:
        self.regions, self.encoding = regions, encoding
        self.predicted_ab = resize(np.ascontiguousarray(ab, np.float32), *regions.L.shape)
        self._ab, self._areas = self.predicted_ab.copy(), []  # type: np.ndarray, list[ColoredArea]
        self._replaced: list[tuple[tuple[slice, slice], np.ndarray]] = []  # box and earlier ab of the topmost areas

    def apply(self, correction: Correction) -> np.ndarray:
        """Return the ab of the corrected frame, float32 (H, W, 2) in Lab units.

        Raises UserError if the correction belongs to a frame of a different size.
        """
        if tuple(correction.size) != self.regions.L.shape:
            (height, width), (own_height, own_width) = correction.size, self.regions.L.shape
            raise UserError(f"the correction belongs to a frame of {width}x{height}, but this one is {own_width}x"
                            f"{own_height}; correct this frame again")
        areas = correction.areas()
        while self._areas != areas[:len(self._areas)]:
            if not self._replaced:
                self._areas, self._ab = [], self.predicted_ab.copy()
                break
            self._areas.pop()
            box, ab = self._replaced.pop()
            self._ab[box] = ab
        for area in areas[len(self._areas):]:
            self._areas.append(area)
            self._replaced.append(self._color(area))
            while sum(ab.nbytes for _, ab in self._replaced) > MAX_UNDO_BYTES:
                self._replaced.pop(0)
        return self._ab.copy()

    def picture(self, correction: Correction) -> np.ndarray:
        """Return the corrected frame, RGB uint8 (H, W, 3), with the luma of the film, clipped to sRGB."""
        ab = self.apply(correction)
        return lab_to_rgb(np.dstack([film_lightness(self.regions.L, ab, self.encoding), ab]))

    def _color(self, area):
        """Color an area, and return the box that contains it and the earlier ab of this box."""
        mask = area.mask(self.regions)
        box = bounding_box(mask > 0, 0)
        mask, L, ab = mask[box], self.regions.L[box], self._ab[box].copy()
        if area.color is None:
            color = self.predicted_ab[box]
        else:
            opaque = mask >= min(0.9, float(mask.max()))
            if area.parts:  # the color is that of the part that was clicked
                opaque = (self.regions.parts == self.regions.parts[self.regions.pixel(area.clicks[0])])[box]
            color = shade_color(area.color, L, float(np.median(L[opaque])))
            L = film_lightness(L, color, self.encoding)  # which limits the chroma
            color = shade_color(area.color, L, float(np.median(L[opaque])))
        self._ab[box] += mask[..., None] * (color - ab)
        return box, ab


def draw_stroke(stroke: Stroke, size: tuple[int, ...]) -> np.ndarray:
    """Return a stroke as an anti-aliased mask, float32 (H, W) in [0, 1]."""
    mask = np.zeros(size, np.uint8)
    points = np.round(np.array(stroke.points) * 16).astype(np.int32)
    for point in points:  # round ends and joints
        cv2.circle(mask, point.tolist(), round(16 * stroke.radius), 255, -1, cv2.LINE_AA, shift=4)
    for start, end in zip(points[:-1], points[1:], strict=True):
        normal = np.array([start[1] - end[1], end[0] - start[0]], float)
        normal *= 16 * stroke.radius / max(1e-9, np.hypot(*normal))
        corners = np.array([start - normal, start + normal, end + normal, end - normal]).round().astype(np.int32)
        cv2.fillConvexPoly(mask, corners, 255, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _damaged(reason):
    return UserError(f"the correction is damaged: {reason}; use a backup or correct the frame again")


def _check(edits, size):
    """Raise UserError unless ``edits`` are valid in this order for a frame of ``size``."""
    filled, count = False, 0
    for edit in edits:
        if not isinstance(edit, dict) or set(edit) != {"kind", "points", "color", "radius"}:
            raise _damaged("an edit does not consist of kind, points, color and radius")
        kind, points, radius = edit["kind"], edit["points"], edit["radius"]
        if kind not in KINDS or not isinstance(points, list) or not (points or kind == "reset"):
            raise _damaged("an edit has no points or an unknown kind")
        if kind in ("grow", "cut") and not filled:
            raise UserError(f"there is no fill to {kind}; fill a region first")
        filled = kind != "reset" and (filled or kind == "fill")
        if not _is_number(radius) or radius <= 0:
            raise _damaged(f"a radius is not a number above 0 and up to {MAX_COORDINATE}")
        if edit["color"] is not None:
            hex_to_lab(edit["color"])
        for point in points:
            count += 1
            if not (isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))):
                raise _damaged(f"a point is not a pair of numbers up to {MAX_COORDINATE}")
            if kind in ("fill", "like", "grow") and not all(
                    -0.5 <= value < side - 0.5 for value, side in zip(point, reversed(size), strict=True)):
                raise UserError(f"the point ({point[0]:g}, {point[1]:g}) is outside the frame, which is {size[1]}x"
                                f"{size[0]}; click into the frame")
    if count > MAX_POINTS:
        raise UserError(f"the correction has more than {MAX_POINTS:,} points; use fills instead of wide brush strokes")


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_COORDINATE
