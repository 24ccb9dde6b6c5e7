"""How is one frame corrected, click by click? The film's lightness, the machine's colors, and what was done to them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dataset import lab_to_rgb, rgb_to_lab
from editing.correction import Correction
from utils import UserError, replace_when_done


class Easel:
    """A frame that is being corrected. What is done to it is kept in the file ``path`` at once.

    ``gray`` and ``machine``: RGB uint8 (H, W, 3), the frame as it is in the film and as it was colored.
    """

    def __init__(self, path: Path, gray: np.ndarray, machine: np.ndarray) -> None:
        self.path = path
        self.L = rgb_to_lab(gray)[..., 0]
        self.ab = np.ascontiguousarray(rgb_to_lab(machine)[..., 1:])
        self.correction = Correction(self.L)
        if path.exists():
            try:
                self.correction.load(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is not a correction of a frame ({error}); remove it") from error

    def act(self, kind: str, points: list[Any], color: str, radius: float) -> None:
        """Do one thing: "fill", "grow", "cut", "brush" or "erase" at points [x, y] in pixels. Raises UserError for
        anything else."""
        self.correction.do(kind, points, color, radius)
        self._save()

    def step(self, name: str) -> None:
        """"undo", "redo" or "reset"."""
        getattr(self.correction, name)()
        self._save()

    def _save(self):
        with replace_when_done(self.path) as temporary:
            temporary.write_text(json.dumps(self.correction.state()) + "\n", encoding="utf-8")

    def picture(self) -> np.ndarray:
        """The frame as it is corrected, RGB uint8 (H, W, 3), of the film's lightness as far as sRGB has it."""
        return lab_to_rgb(np.dstack([self.L, self.correction.apply(self.L, self.ab)]))
