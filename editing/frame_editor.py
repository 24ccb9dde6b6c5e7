"""Editor of one frame: applies edits, stores them in a file, and renders the corrected frame."""

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
    """Edits the frame whose correction is stored in the JSON file ``path``.

    ``gray`` and ``predicted`` are RGB uint8 (H, W, 3): the frame in the film and in the colored film. Raises UserError
    if ``path`` holds anything other than a correction.
    """

    def __init__(self, path: Path, gray: np.ndarray, predicted: np.ndarray) -> None:
        self.path, self.lock = path, threading.Lock()
        self.L = np.ascontiguousarray(rgb_to_lab(gray)[..., 0])
        self.renderer = CorrectionRenderer(Regions(self.L), rgb_to_lab(predicted)[..., 1:])
        self.correction = Correction(self.L.shape)  # type: ignore[arg-type]  # a 2-tuple
        if path.exists():
            try:
                self.correction = Correction.from_state(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is not a correction of a frame ({error}); remove it") from error

    def prepare(self) -> None:
        """Compute the regions of the frame, so that the first click is answered without delay."""
        with self.lock:
            self.renderer.regions.labels  # noqa: B018  # a cached property

    def edit(self, tool: str, points: Sequence[Point] = (), color: str | None = None, radius: float = 1.0) -> None:
        """Apply a tool and store the correction.

        The tools are "undo", "redo", "erase" (a brush that restores the predicted colors) and the kinds of
        ``Correction.add``. Raises UserError for an invalid edit.
        """
        if tool in ("undo", "redo"):
            getattr(self.correction, tool)()
        elif tool == "erase":
            self.correction.add("brush", points, None, radius)
        else:
            self.correction.add(tool, points, color, 1.0 if tool == "cut" else radius)
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.correction.state()) + "\n", encoding="utf-8")

    def picture(self) -> np.ndarray:
        """Return the corrected frame, RGB uint8 (H, W, 3), with the lightness of the film, clipped to sRGB."""
        with self.lock:
            return lab_to_rgb(np.dstack([self.L, self.renderer.apply(self.correction)]))
