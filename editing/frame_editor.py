"""Editor of one frame: applies edits, stores them in a file, and renders the corrected frame."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from colorizer.feature_extraction import FeatureExtractor
from colorizer.series_colors import lab_to_hex
from dataset import rgb_to_lab
from editing.correction import Correction, CorrectionRenderer, film_lightness
from editing.likeness import DEFAULT_TOLERANCE, PartClasses
from editing.regions import Point, Regions
from fileio.atomic import atomic_write
from film.io.planes import Planes
from utils import UserError


class FrameEditor:
    """Edits the frame whose correction is stored in the JSON file ``path``.

    ``gray`` and ``predicted`` are the frame in the film and in the colored film. Raises UserError if ``path`` holds
    anything other than a correction.
    """

    def __init__(self, path: Path, gray: Planes, predicted: Planes, extractor: FeatureExtractor) -> None:
        self.path, self.lock, self.class_lock = path, threading.Lock(), threading.Lock()
        regions = Regions(rgb_to_lab(gray.gray_uint8(*gray.y.shape))[..., 0])
        self.classes = PartClasses(regions, extractor)
        self.renderer = CorrectionRenderer(regions, rgb_to_lab(predicted.rgb_uint8())[..., 1:], gray.encoding)
        self.correction = Correction(regions.L.shape)  # type: ignore[arg-type]  # a 2-tuple
        if path.exists():
            try:
                self.correction = Correction.from_state(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is not a correction of a frame ({error}); remove it") from error

    def prepare(self) -> None:
        """Compute regions and classes of the frame, so that the first click is answered without delay."""
        with self.lock:
            self.renderer.regions.labels  # noqa: B018  # a cached property
        with self.class_lock:
            self.classes.probabilities  # noqa: B018

    def edit(self, tool: str, points: Sequence[Point] = (), color: str | None = None, radius: float = 1.0,
             tolerance: float = DEFAULT_TOLERANCE) -> None:
        """Apply a tool and store the correction.

        The tools are "undo", "redo", "erase" (a brush that restores the predicted colors) and the kinds of
        ``Correction.add``. "like" fills all parts that are like that at the first point, up to ``tolerance``. Raises
        UserError for an invalid edit.
        """
        if tool in ("undo", "redo"):
            getattr(self.correction, tool)()
        elif tool == "erase":
            self.correction.add("brush", points, None, radius)
        elif tool == "like":
            with self.class_lock:
                points = self.classes.like((points[0][0], points[0][1]), tolerance)
            self.correction.add(tool, points, color)
        else:
            self.correction.add(tool, points, color, 1.0 if tool == "cut" else radius)
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.correction.state()) + "\n", encoding="utf-8")

    def preview(self, tool: str, point: Point, tolerance: float) -> tuple[np.ndarray, list[str]]:
        """Return what "fill" or "like" fills at a point, bool (H, W), and proposed colors "#rrggbb", best first."""
        regions = self.renderer.regions
        with self.class_lock:
            mask = (regions.fill([point]) if tool == "fill" else
                    regions.fill_parts(self.classes.like(point, tolerance))) > 0.5
            used = [area.color for area in reversed(self.correction.areas()) if area.color is not None]
            colors = self.classes.proposals(point, used)
            part = regions.parts == regions.parts[regions.pixel(point)]
        L = np.full((1, 1), np.median(regions.L[part]), np.float32)
        return mask, [lab_to_hex(np.array([film_lightness(L, ab[None, None], self.renderer.encoding)[0, 0], *ab]))
                      for ab in colors]

    def picture(self) -> np.ndarray:
        """Return the corrected frame, RGB uint8 (H, W, 3), with the luma of the film, clipped to sRGB."""
        with self.lock:
            return self.renderer.picture(self.correction)


def mask_png(mask: np.ndarray, width: int) -> bytes:
    """Encode a mask, bool (H, W), as a PNG of at most ``width`` pixels per row that veils it and outlines its edge."""
    height = round(mask.shape[0] * min(1, width / mask.shape[1]))
    small = cv2.resize(np.uint8(mask), (min(width, mask.shape[1]), height), interpolation=cv2.INTER_NEAREST)
    edge = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    opacity: Any = np.where(edge, 255, 90 * small)
    return cv2.imencode(".png", np.dstack([np.full((*small.shape, 3), 255), opacity]).astype(np.uint8))[1].tobytes()
