"""Likeness of the parts of a frame, for fills of all like parts, and colors that are proposed for a part."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from colorizer.feature_extraction import FeatureExtractor
from colorizer.series_colors import hex_to_lab
from editing.regions import Point, Regions

DEFAULT_TOLERANCE = 0.4  # largest difference of like parts; larger: more parts are filled
LIGHTNESS_RANGE = 80.0  # difference in L that counts as much as entirely different classes; larger: L matters less
MIN_COLOR_DISTANCE = 8.0  # Lab units in ab; proposed colors that are closer are merged; larger: fewer similar proposals
MAX_PROPOSALS = 9  # the page selects them by one digit


class PartClasses:
    """The palette classes of the parts of a frame (``Regions.parts``), computed on first use.

    Without a palette classifier, all parts have the same class, so that only the lightness tells them apart.
    """

    def __init__(self, regions: Regions, extractor: FeatureExtractor) -> None:
        self.regions, self.extractor = regions, extractor

    @cached_property
    def lightness(self) -> np.ndarray:
        """Mean L of each part, float (P,)."""
        parts = self.regions.parts.ravel()
        return np.bincount(parts, self.regions.L.ravel()) / np.bincount(parts)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Mean class probabilities of each part, float32 (P, K)."""
        with torch.inference_mode():
            logits = self.extractor.classify([self.regions.L], with_characters=False)
        if logits is None:
            return np.ones((len(self.lightness), 1), np.float32)
        cells = logits[0].float().softmax(0).permute(1, 2, 0).cpu().numpy()  # (g, g, K)
        (height, width), grid = self.regions.L.shape, cells.shape[0]
        rows, columns = (np.arange(side) * grid // side for side in (height, width))
        pairs = self.regions.parts * np.int64(grid**2) + rows[:, None] * grid + columns
        pairs, counts = np.unique(pairs, return_counts=True)
        sums = np.zeros((len(self.lightness), cells.shape[2]), np.float32)
        np.add.at(sums, pairs // grid**2, counts[:, None] * cells.reshape(grid**2, -1)[pairs % grid**2])
        return sums / sums.sum(1, keepdims=True)

    def like(self, point: Point, tolerance: float = DEFAULT_TOLERANCE) -> list[Point]:
        """Return a pixel of each part that is like the part at ``point``, beginning with ``point``.

        The difference of two parts is the Hellinger distance of their class probabilities, in [0, 1], plus the
        difference of their lightness, which is 1 for LIGHTNESS_RANGE. Raises UserError for a point outside the frame.
        """
        part = self.regions.parts[self.regions.pixel(point)]
        roots = np.sqrt(self.probabilities)
        difference = np.sqrt(np.maximum(0, 1 - roots @ roots[part]))
        difference += np.abs(self.lightness - self.lightness[part]) / LIGHTNESS_RANGE
        similar = np.flatnonzero(difference <= tolerance)
        return [point, *self.regions.points_of_parts(similar[similar != part])]

    def proposals(self, point: Point, used: Sequence[str]) -> list[np.ndarray]:
        """Return up to MAX_PROPOSALS colors, ab (2,), for the part at ``point``: those of the palette classifier, most
        probable first; the last third of the places is for ``used``, colors "#rrggbb" of the frame."""
        part = self.regions.parts[self.regions.pixel(point)]
        classes = np.argsort(-self.probabilities[part])
        config = self.extractor.colorizer.config
        ranked = self.extractor.colorizer.palette_classifier.palette.cpu().numpy()[classes] if (
            config.use_palette_classifier) else np.zeros((0, 2), np.float32)
        own = _distinct([hex_to_lab(color)[1:] for color in used], [], MAX_PROPOSALS)
        first = _distinct(ranked, [], max(MAX_PROPOSALS * 2 // 3, MAX_PROPOSALS - len(own)))
        return _distinct(own, first, MAX_PROPOSALS)


def _distinct(colors, found, count):
    """Return ``found`` and the first of ``colors`` that are not close to earlier ones, up to ``count`` colors."""
    found = list(found)
    for ab in colors:
        if len(found) < count and all(np.linalg.norm(ab - other) >= MIN_COLOR_DISTANCE for other in found):
            found.append(ab)
    return found
