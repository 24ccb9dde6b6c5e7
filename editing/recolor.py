"""Replacement of colors in a whole film: shifts the predicted ab of all pixels of one color to a different color.

ab is float32 (..., H, W, 2) in Lab units, L is (..., H, W) in [0, 100].
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from colorizer.adaptation.film_response import FilmResponse
from colorizer.confidence import Confidence
from colorizer.predictor import Palette
from colorizer.warping.propagation import Anchor
from dataset import resize
from colorizer.series_colors import LIGHTNESS_WEIGHT, hex_to_lab, shade_color
from editing.regions import fill_nearest
from film.analysis.plan import FilmPredictor


@dataclass
class RecolorConfig:
    """Parameters that select the pixels of a color, chosen on the drawn episode 2."""

    full_distance: float = 4.0  # CIE94 difference up to which a pixel changes fully; larger: more similar colors change
    zero_distance: float = 7.0  # CIE94 difference from which a pixel does not change; larger: softer selection
    lightness_tolerance: float = 20.0  # difference in L attributed to shading; larger: darker or lighter shades change
    edge_width: int = 3  # pixels around an object that may mix its color and the background; larger: wider soft edges
    mixture_tolerance: float = 8.0  # Lab distance (L counts half) from a mixture; larger: more edge pixels change


class ColorChange(NamedTuple):
    """The replacement of one color with another, each "#rrggbb"."""

    old: str
    new: str


def replace_colors(ab: np.ndarray, L: np.ndarray, changes: Sequence[ColorChange],
                   config: RecolorConfig | None = None) -> np.ndarray:
    """Return the ab (H, W, 2) of a frame of lightness L (H, W) after all changes.

    All changes apply at once, so that colors can be swapped. Each pixel of an old color is shifted by the difference of
    the two colors at its lightness, times its mixing ratio on edges. Raises UserError for an invalid color.
    """
    config, shift, total = config or RecolorConfig(), np.zeros_like(ab), np.zeros(L.shape, np.float32)
    for change in changes:
        color_L = hex_to_lab(change.old)[0]
        similarity = _similarity(ab, shade_color(change.old, L, color_L), L - color_L, config)
        weight, object_L = _mixing_ratio(ab, L, similarity, config)
        shift += weight[..., None] * (shade_color(change.new, object_L, color_L)
                                      - shade_color(change.old, object_L, color_L))
        total += weight
    return ab + shift / np.maximum(total, 1)[..., None]


def _similarity(ab, color, L_difference, config):
    """Return the similarity, (H, W) in [0, 1], of each pixel to ``color``; both are ab (H, W, 2).

    The distance combines the CIE94 differences of chroma and hue with the excess of the lightness difference over
    ``config.lightness_tolerance``.
    """
    chroma = np.maximum(np.hypot(color[..., 0], color[..., 1]), 1e-6)
    difference = ab - color
    d_chroma = (difference * color).sum(-1) / chroma
    d_hue_squared = (difference**2).sum(-1) - d_chroma**2
    d_L = np.maximum(np.abs(L_difference) - config.lightness_tolerance, 0)
    distance = np.sqrt(np.maximum(
        (d_chroma / (1 + 0.045 * chroma))**2 + d_hue_squared / (1 + 0.015 * chroma)**2 + d_L**2, 0))
    x = np.clip((config.zero_distance - distance) / (config.zero_distance - config.full_distance), 0, 1)
    return x * x * (3 - 2 * x)


def _mixing_ratio(ab, L, similarity, config):
    """Return how much of the object's color each pixel has, (H, W) in [0, 1], and the lightness to recolor it with.

    Off edges, these are ``similarity`` and L. At edges, the pixel's color is projected onto the line between the colors
    of the spatially nearest background and object pixels. The share is its position on that line, lowered if the color
    is far from the line, but never below ``similarity``. The lightness is that of the object, except on dark lines,
    which keep L.
    """
    core, size = similarity > 0.9, np.ones((2 * config.edge_width + 1,) * 2, np.uint8)
    outside = (cv2.dilate(core.astype(np.uint8), size) == 0) & (similarity < 0.1)
    if not (core.any() and outside.any()):
        return similarity, L
    number = np.arange(1, core.size + 1, dtype=np.int32).reshape(core.shape)
    lab = np.dstack([LIGHTNESS_WEIGHT * L, ab])
    foreground, background = (lab.reshape(-1, 3)[fill_nearest(number * mask) - 1] for mask in (core, outside))
    darkest = np.minimum(foreground, background)[..., 0]
    line = lab[..., 0] < darkest  # darker than both sides, so not a mixture
    lab[..., 0] = np.maximum(lab[..., 0], darkest)
    axis = foreground - background
    share = np.clip(((lab - background) * axis).sum(-1) / np.maximum((axis**2).sum(-1), 1), 0, 1)
    residual = np.square(lab - background - share[..., None] * axis).sum(-1)
    share *= np.exp(-residual / config.mixture_tolerance**2)
    edge = ~(core | outside)
    return (np.where(edge, np.maximum(similarity, share), similarity),
            np.where(edge & ~line, foreground[..., 0] / LIGHTNESS_WEIGHT, L))


class RecoloringPredictor(FilmPredictor):
    """Wraps a predictor and replaces colors in its predictions. Raises UserError for an invalid color."""

    def __init__(self, predictor: FilmPredictor, changes: Sequence[ColorChange],
                 response: FilmResponse | None = None) -> None:
        self.predictor, self.changes, self.response = predictor, list(changes), response
        self.source = predictor.source
        for color in (color for change in self.changes for color in change):
            hex_to_lab(color)
        self.identity = self._digest(predictor.identity)
        self.base_identity = self._digest(predictor.base_identity) if predictor.base_identity else ""

    @property
    def provenance(self) -> Mapping[str, object]:
        return {**self.predictor.provenance, "color_changes": self.changes}

    def _digest(self, text):
        return hashlib.sha256(json.dumps([text, self.changes]).encode()).hexdigest()

    @property
    def side(self) -> int:
        return self.predictor.side

    def fit_response(self, lightness: Sequence[np.ndarray]) -> FilmResponse | None:
        return self.predictor.fit_response(lightness)

    def with_response(self, response: FilmResponse | None) -> "RecoloringPredictor":
        return RecoloringPredictor(self.predictor.with_response(response), self.changes, response)

    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        return self.predictor.palette(labs)

    def predict(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence]:
        return self.predict_with_embeddings(lightness, palette)[:2]

    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette,
                                propagated: Callable[[int], np.ndarray] | None = None,
                                ) -> tuple[np.ndarray, Confidence, np.ndarray]:
        ab, confidence, embeddings = self.predictor.predict_with_embeddings(lightness, palette, propagated)
        height, width = ab.shape[1:3]
        frames = [L if self.response is None else self.response(L) for L in lightness]
        return np.stack([replace_colors(each, resize(L, height, width), self.changes)
                         for each, L in zip(ab, frames, strict=True)]), confidence, embeddings

    def lock_colors(self, ab: np.ndarray, L: np.ndarray, active: Sequence[int]) -> np.ndarray:
        return self.predictor.lock_colors(ab, L, active)

    def find_anchors(self, signatures: np.ndarray, palette: Palette) -> list[Anchor]:
        return self.predictor.find_anchors(signatures, palette)

    @property
    def needs_whole_film(self) -> bool:
        return self.predictor.needs_whole_film

    def requery_palettes(self, palettes: Sequence[Palette], signatures: Sequence[np.ndarray]) -> list[Palette]:
        return self.predictor.requery_palettes(palettes, signatures)

    def lookup_digest(self, palette: Palette, embeddings: np.ndarray) -> str:
        return self.predictor.lookup_digest(palette, embeddings)
