"""What was corrected of a frame? Fills and strokes of the brush, as a document, and the colors that they give.

A document is plain values, to and from JSON. Points are (x, y) in pixels of the frame.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from dataset import resize
from editing.palette import hex_to_lab, shade_color
from editing.regions import Point, Regions, Stroke
from utils import UserError

FORMAT = 1
FARTHEST = 2**15  # pixels; no frame has a point or a radius beyond
MOST = 100_000  # points of a document
KINDS = {"fill": {"point", "color"}, "grow": {"point"}, "cut": {"points", "radius"},
         "brush": {"points", "radius", "color"}, "reset": set()}


@dataclass(frozen=True)
class Layer:
    """A thing or a stroke of the brush with its color; None gives the machine's color back."""

    color: str | None
    clicks: tuple[Point, ...] = ()
    cuts: tuple[Stroke, ...] = ()
    brush: Stroke | None = None

    def mask(self, regions: Regions) -> np.ndarray:
        """How much of each pixel is colored, float32 (H, W) in [0, 1]."""
        return regions.fill(self.clicks, self.cuts) if self.brush is None else drawn(self.brush, regions.L.shape)


@dataclass
class Correction:
    """The steps that correct a frame of ``size`` (height, width), of which those undone can be done again.

    A step is a dict: {"do": "fill", "point", "color"} colors a thing, "grow" adds the one at a "point" to the last
    fill, "cut" divides that by a stroke of "points" and "radius", and "brush" colors along one; a color of None is the
    machine's; "reset" takes all back, and can be undone. All raise UserError for what is no step or cannot follow.
    """

    size: tuple[int, int]
    done: list[dict[str, Any]] = field(default_factory=list)
    undone: list[dict[str, Any]] = field(default_factory=list)

    def fill(self, point: Point, color: str | None) -> None:
        self._do({"do": "fill", "point": _plain(point), "color": color})

    def grow(self, point: Point) -> None:
        self._do({"do": "grow", "point": _plain(point)})

    def cut(self, points: Sequence[Point], radius: float) -> None:
        self._do({"do": "cut", "points": [_plain(point) for point in points], "radius": radius})

    def brush(self, points: Sequence[Point], radius: float, color: str | None) -> None:
        self._do({"do": "brush", "points": [_plain(point) for point in points], "radius": radius, "color": color})

    def reset(self) -> None:
        self._do({"do": "reset"})

    def undo(self) -> None:
        if not self.done:
            raise UserError("nothing is left to undo; correct something first")
        self.undone.append(self.done.pop())

    def redo(self) -> None:
        if not self.undone:
            raise UserError("nothing was undone; undo something first")
        self.done.append(self.undone.pop())

    def _do(self, step):
        _check([*self.done, step], self.size)
        self.done.append(step)
        self.undone.clear()

    def layers(self) -> list[Layer]:
        """What is to be colored, in order."""
        layers = []
        for step in self.done:
            match step["do"]:
                case "reset":
                    layers = []
                case "fill":
                    layers.append(Layer(step["color"], (tuple(step["point"]),)))
                case "brush":
                    layers.append(Layer(step["color"], brush=_stroke(step)))
                case do:
                    last = max(number for number, layer in enumerate(layers) if layer.clicks)
                    old = layers.pop(last)
                    new = (Layer(old.color, (*old.clicks, tuple(step["point"])), old.cuts) if do == "grow" else
                           Layer(old.color, old.clicks, (*old.cuts, _stroke(step))))
                    layers.insert(last, new)
        return layers

    def state(self) -> dict[str, Any]:
        """The document as plain values, for JSON."""
        return {"format": FORMAT, "size": list(self.size), "done": list(self.done), "undone": list(self.undone)}

    @classmethod
    def of(cls, state: object) -> "Correction":
        """The inverse of ``state``. Raises UserError for what is no correction."""
        if not isinstance(state, dict) or set(state) != {"format", "size", "done", "undone"}:
            raise _damaged("it does not have format, size, done and undone")
        if state["format"] != FORMAT:
            raise UserError(f"the correction has format {state['format']!r:.20}, and this version reads {FORMAT}; use "
                            "the version that wrote it")
        size, done, undone = state["size"], state["done"], state["undone"]
        if not (isinstance(size, list) and len(size) == 2
                and all(type(side) is int and 0 < side <= FARTHEST for side in size)):
            raise _damaged("its size is not a height and a width")
        if not (isinstance(done, list) and isinstance(undone, list)):
            raise _damaged("its steps are no lists")
        _check([*done, *reversed(undone)], size)
        return cls((size[0], size[1]), done, undone)


class CorrectionRenderer:
    """A frame on which corrections are shown: its Regions, and the machine's ab, float32 (h, w, 2) of any size.

    What was painted below the last layer is kept, so that a click costs one layer. Raises UserError for a correction of
    a frame of another size.
    """

    def __init__(self, regions: Regions, ab: np.ndarray) -> None:
        self.regions = regions
        self.machine = resize(np.ascontiguousarray(ab, np.float32), *regions.L.shape)
        self._below: tuple[list[Layer], np.ndarray] = [], self.machine

    def apply(self, correction: Correction) -> np.ndarray:
        """The ab of the corrected frame, float32 (H, W, 2) in Lab units; L stays as it is."""
        if tuple(correction.size) != self.regions.L.shape:
            (height, width), (own_height, own_width) = correction.size, self.regions.L.shape
            raise UserError(f"the correction is of a frame of {width}x{height}, and this one is {own_width}x"
                            f"{own_height}; correct this frame anew")
        layers = correction.layers()
        known, ab = self._below
        if known != layers[:len(known)]:
            known, ab = [], self.machine
        for number in range(len(known), len(layers)):
            if number == len(layers) - 1:
                self._below = layers[:-1], ab
            ab = self._paint(ab, layers[number])
        return ab.copy()

    def _paint(self, ab, layer):
        mask, L = layer.mask(self.regions), self.regions.L
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if not len(rows):
            return ab
        part = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        mask, L, ab = mask[part], L[part], ab.copy()
        whole = mask >= min(0.9, float(mask.max()))
        wanted = self.machine[part] if layer.color is None else shade_color(layer.color, L, float(np.median(L[whole])))
        ab[part] += mask[..., None] * (wanted - ab[part])
        return ab


def drawn(stroke: Stroke, size: tuple[int, ...]) -> np.ndarray:
    """A stroke as a mask, float32 (H, W) in [0, 1], with an anti-aliased edge."""
    mask = np.zeros(size, np.uint8)
    points = np.round(np.array(stroke.points) * 16).astype(np.int32)
    for point in points:  # round ends and bends
        cv2.circle(mask, point.tolist(), round(16 * stroke.radius), 255, -1, cv2.LINE_AA, shift=4)
    for start, end in zip(points[:-1], points[1:], strict=True):
        across = np.array([start[1] - end[1], end[0] - start[0]], float)
        across *= 16 * stroke.radius / max(1e-9, np.hypot(*across))
        side = np.array([start - across, start + across, end + across, end - across]).round().astype(np.int32)
        cv2.fillConvexPoly(mask, side, 255, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _plain(point):
    """A point as a list of Python's numbers."""
    return [float(value) for value in point]


def _stroke(step):
    return Stroke(tuple(tuple(point) for point in step["points"]), step["radius"])


def _damaged(why):
    return UserError(f"the correction is damaged: {why}; use another copy of it, or correct the frame anew")


def _check(steps, size):
    """Raises UserError unless ``steps`` are steps that can follow each other in a frame of ``size``."""
    filled, points = False, 0
    for step in steps:
        kind = step.get("do") if isinstance(step, Mapping) else None
        if not isinstance(kind, str) or kind not in KINDS or set(step) != {"do", *KINDS[kind]}:
            raise _damaged("a step is none of fill, grow, cut, brush and reset with all that they need")
        if kind in ("grow", "cut") and not filled:
            raise UserError(f"there is no fill to {kind}; fill a thing first")
        filled = kind != "reset" and (filled or kind == "fill")
        if "points" in step and not isinstance(step["points"], list):
            raise _damaged("the points of a stroke are no list")
        for point in [step["point"]] if "point" in step else step.get("points", []):
            points += 1
            _check_point(point, None if kind in ("brush", "cut") else size)
        if "points" in step and (not step["points"] or not _is_number(step["radius"]) or step["radius"] <= 0):
            raise _damaged("a stroke has no points or no radius above 0")
        if step.get("color") is not None:
            hex_to_lab(step["color"])
    if points > MOST:
        raise UserError(f"the correction has more than {MOST:,} points; use fills where the brush is wide")


def _check_point(point, size):
    if not (isinstance(point, (list, tuple)) and len(point) == 2 and all(map(_is_number, point))):
        raise _damaged("a point is not a pair of numbers")
    if size and not all(-0.5 <= value < side - 0.5 for value, side in zip(point, reversed(size), strict=True)):
        raise UserError(f"the point ({point[0]:g}, {point[1]:g}) is outside the frame, which is {size[1]}x{size[0]}; "
                        "click into it")


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= FARTHEST
