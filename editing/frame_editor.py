"""How is one frame corrected, click by click? The film's lightness, the machine's colors, and what was done to them."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset import lab_to_rgb, rgb_to_lab
from editing.correction import Correction, CorrectionRenderer
from editing.regions import Point, Regions
from fileio.atomic import atomic_write
from utils import UserError


class FrameEditor:
    """A frame that is being corrected. What is done to it is kept in the file ``path`` at once.

    ``gray`` and ``machine``: RGB uint8 (H, W, 3), the frame as it is in the film and as it was colored. Raises
    UserError when there is a file that is no correction of this frame.
    """

    def __init__(self, path: Path, gray: np.ndarray, machine: np.ndarray) -> None:
        self.path, self.lock = path, threading.Lock()
        self.L = np.ascontiguousarray(rgb_to_lab(gray)[..., 0])
        self.canvas = CorrectionRenderer(Regions(self.L), rgb_to_lab(machine)[..., 1:])
        self.correction = Correction(self.L.shape)  # type: ignore[arg-type]  # of two dimensions
        if path.exists():
            try:
                self.correction = Correction.of(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is not a correction of a frame ({error}); remove it") from error

    def prepare(self) -> None:
        """Divide the frame among its things, so that the first click is answered as soon as the others."""
        with self.lock:
            self.canvas.regions.labels  # noqa: B018  # is found when it is asked for

    def act(self, kind: str, points: Sequence[Point], color: str, radius: float) -> None:
        """Do one thing: "fill" or "grow" at the first of the points, "cut", "brush" or "erase" along them, in pixels.
        Raises UserError for what cannot be done."""
        correction = self.correction
        if not points:
            raise UserError("there is no place to color; click into the frame")
        match kind:
            case "fill":
                correction.fill(points[0], color)
            case "grow":
                correction.grow(points[0])
            case "cut":
                correction.cut(points, 1.0)
            case "brush":
                correction.brush(points, radius, color)
            case "erase":
                correction.brush(points, radius, None)
            case _:
                raise UserError(f"{kind!r:.20} is no tool; take fill, grow, cut, brush or erase")
        self._save()

    def undo(self) -> None:
        self.correction.undo()
        self._save()

    def redo(self) -> None:
        self.correction.redo()
        self._save()

    def reset(self) -> None:
        self.correction.reset()
        self._save()

    def _save(self):
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.correction.state()) + "\n", encoding="utf-8")

    def picture(self) -> np.ndarray:
        """The frame as it is corrected, RGB uint8 (H, W, 3), of the film's lightness as far as sRGB has it."""
        with self.lock:
            return lab_to_rgb(np.dstack([self.L, self.canvas.apply(self.correction)]))
