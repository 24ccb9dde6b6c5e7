"""How does a color change everywhere? A map of what the networks paint, which moves one color of the show to another.

ab is float32 (..., H, W, 2) in Lab units, L (..., H, W) in [0, 100].
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from colorizer.adaptation.film_response import FilmResponse
from colorizer.confidence import Confidence
from colorizer.predictor import Palette
from dataset import resize
from editing.palette import LIGHTNESS_WEIGHT as LIGHT, hex_to_lab, shade_color
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


class Change(NamedTuple):
    """One color of the show becomes another, each "#rrggbb"."""

    old: str
    new: str


def recolored(ab: np.ndarray, L: np.ndarray, changes: Sequence[Change],
              config: RecolorConfig | None = None) -> np.ndarray:
    """The ab (H, W, 2) of a frame of lightness L (H, W) after the changes, all at once: two colors can be swapped.

    What has an old color moves by the difference of new and old as they are at its lightness, so that what the
    networks vary stays varied. A pixel on an edge moves by its share of the thing. Raises UserError for a color that is
    none.
    """
    config, moves, total = config or RecolorConfig(), np.zeros_like(ab), np.zeros(L.shape, np.float32)
    for change in changes:
        flat = hex_to_lab(change.old)[0]
        weight, own = _shares(ab, L, _likeness(ab, shade_color(change.old, L, flat), L - flat, config), config)
        moves += weight[..., None] * (shade_color(change.new, own, flat) - shade_color(change.old, own, flat))
        total += weight
    return ab + moves / np.maximum(total, 1)[..., None]


def _likeness(ab, old, lighter, config):
    """How much pixels (H, W) of ab have the color ``old`` (H, W, 2), as it is at their lightness: in [0, 1].

    By the CIE94 differences in chroma and hue, in which steps among vivid colors are less visible, and by how much
    ``lighter`` a pixel is than the color where that is more than light and shade do.
    """
    length = np.maximum(np.hypot(old[..., 0], old[..., 1]), 1e-6)
    away = ab - old
    along = (away * old).sum(-1) / length
    across = (away**2).sum(-1) - along**2
    light = np.maximum(np.abs(lighter) - config.lightness_tolerance, 0)
    distance = np.sqrt(np.maximum((along / (1 + 0.045 * length))**2 + across / (1 + 0.015 * length)**2 + light**2, 0))
    x = np.clip((config.zero_distance - distance) / (config.zero_distance - config.full_distance), 0, 1)
    return x * x * (3 - 2 * x)


def _shares(ab, L, alike, config):
    """The share (H, W) of each pixel that is of the thing, and the lightness (H, W) of that: where it is ``alike`` all
    its own, and beside that, how far it is on the way from what is around the thing to the thing."""
    core, size = alike > 0.9, np.ones((2 * config.edge_width + 1,) * 2, np.uint8)
    around = (cv2.dilate(core.astype(np.uint8), size) == 0) & (alike < 0.1)
    if not (core.any() and around.any()):
        return alike, L
    number = np.arange(1, core.size + 1, dtype=np.int32).reshape(core.shape)
    lab = np.dstack([LIGHT * L, ab])
    thing, ground = (lab.reshape(-1, 3)[fill_nearest(number * mask) - 1] for mask in (core, around))
    line = lab[..., 0] < np.minimum(thing, ground)[..., 0]  # darker than both: it has no lightness of a mixture
    lab[..., 0] = np.maximum(lab[..., 0], np.minimum(thing, ground)[..., 0])
    way = thing - ground
    share = np.clip(((lab - ground) * way).sum(-1) / np.maximum((way**2).sum(-1), 1), 0, 1)
    off = np.square(lab - ground - share[..., None] * way).sum(-1)
    share *= np.exp(-off / config.mixture_tolerance**2)
    edge = ~(core | around)
    return np.where(edge, np.maximum(alike, share), alike), np.where(edge & ~line, thing[..., 0] / LIGHT, L)


class Recolored(FilmPredictor):
    """What another predictor paints, after changes."""

    def __init__(self, predictor: FilmPredictor, changes: Sequence[Change], response: FilmResponse | None = None) -> None:
        self.predictor, self.changes, self.response = predictor, list(changes), response
        self.source = predictor.source
        for change in self.changes:
            for color in change:
                hex_to_lab(color)  # is one
        self.identity = self._digest(predictor.identity)
        self.base_identity = self._digest(predictor.base_identity) if predictor.base_identity else ""

    def _digest(self, text):
        return hashlib.sha256(json.dumps([text, self.changes]).encode()).hexdigest()

    @property
    def side(self) -> int:
        return self.predictor.side

    def fit_response(self, lightness: Sequence[np.ndarray]) -> FilmResponse | None:
        return self.predictor.fit_response(lightness)

    def with_response(self, response: FilmResponse | None) -> "Recolored":
        return Recolored(self.predictor.with_response(response), self.changes, response)

    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        return self.predictor.palette(labs)

    def predict(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence]:
        return self.predict_with_embeddings(lightness, palette)[:2]

    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence, np.ndarray]:
        ab, known, looks = self.predictor.predict_with_embeddings(lightness, palette)
        height, width = ab.shape[1:3]
        seen = [L if self.response is None else self.response(L) for L in lightness]
        return np.stack([recolored(each, resize(L, height, width), self.changes)
                         for each, L in zip(ab, seen, strict=True)]), known, looks

    def requery_palette(self, palette: Palette) -> Palette:
        return self.predictor.requery_palette(palette)

    def lookup_digest(self, palette: Palette, looks: np.ndarray) -> str:
        return self.predictor.lookup_digest(palette, looks)
