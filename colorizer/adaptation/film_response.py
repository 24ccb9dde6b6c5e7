"""Estimate how a film maps colors to gray: its spectral sensitivity and its tone curve.

A faded, graded or high-contrast film shows the same objects in another lightness than the training frames. A film stock
that hardly sees red, or a color filter, maps other colors to the same lightness. Both are estimated from cells of the
film and of remembered frames that show the same object. L is in [0, 100] throughout.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.backbone import Features
from colorizer.memory.spatial_memory import SpatialMemory
from dataset import (
    AB_SCALE, L_SCALE, decode_lab8, lab_to_rgb, luma_lightness, resize, spectral_lightness, tensors_to_lab)
from fileio.images import LUMINANCE_WEIGHTS
from utils import evenly_spaced

EmbedFrames = Callable[[Iterable[np.ndarray]], Features]  # backbone features of N frames, L (H, W) each

QUANTILES = (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # of the film's lightness: knots of the tone curve
HUBER_DELTA = 3.0  # difference in L above which the matching cost grows linearly instead of quadratically
STEPS = 20  # steps of each weight in the grid search for the spectral sensitivity
SENSITIVITIES = np.array([(red, green, STEPS - red - green)
                          for red in range(STEPS + 1) for green in range(STEPS + 1 - red)]) / STEPS


class Matches(NamedTuple):
    """Pairs of cells of a film and of remembered frames that are mutual nearest neighbors."""

    cells: np.ndarray  # (p,) indices of the film's cells, among all cells of its frames
    film_L: np.ndarray  # (p,) their mean L
    memory_L: np.ndarray  # (p,) mean L of the remembered cells
    ab: np.ndarray  # (p, 2) mean ab of the remembered cells, in Lab units
    distance: float  # mean squared distance of keys from each cell of the film to the nearest remembered cell

    @property
    def lab(self) -> np.ndarray:
        """Remembered colors, Lab float32 (1, p, 3)."""
        return np.column_stack([self.memory_L, self.ab]).astype(np.float32)[None]


@dataclass
class ResponseConfig:
    """Constants of the estimation, chosen on degraded versions of the drawn episodes (``benchmarks/trials.md``)."""

    matched_frames: int = 4  # remembered frames that are compared with each frame of the film; larger: slower
    histogram_frames: int = 256  # maximum number of evenly spaced remembered frames for the initial tone curve
    max_rounds: int = 2  # maximum number of refinements by matched cells; larger: slower
    min_distance_reduction: float = 0.03  # by which a tone curve must reduce the distance of keys; larger: fewer curves
    min_pairs: int = 100  # matched cells that the spectral sensitivity requires; larger: fewer films get one
    min_sensitivity_reduction: float = 0.05  # by which it must reduce the matching cost; larger: fewer films get one
    min_curve_reduction: float = 0.4  # by which its tone curve must reduce that cost; larger: fewer curves


@dataclass
class FilmResponse:
    """Tone curve and spectral sensitivity of a film.

    The curve is piecewise linear and rising, with knots at quantiles of the film's lightness. It maps L of the film to
    the L that a remembered frame has when rendered with the sensitivity.
    """

    film_L: np.ndarray  # (n,) rising from 0 to 100
    memory_L: np.ndarray  # (n,) rising; values outside [0, 100] are clipped when applied
    sensitivity: np.ndarray | None = None  # (3,) weights of linear red, green and blue, sum 1; None: luma of video

    def __call__(self, L: np.ndarray) -> np.ndarray:
        """Map L of the film, of any shape, to L of remembered frames, float32."""
        return L if self.is_identity else np.interp(L, self.film_L, self.memory_L).clip(0, L_SCALE).astype(np.float32)

    @property
    def is_identity(self) -> bool:
        """Whether the tone curve changes nothing."""
        return np.array_equal(self.film_L, self.memory_L)

    @property
    def span(self) -> tuple[float, float, float, float]:
        """The outer knots: (L of memory, L of film) at the dark end, then at the light end."""
        return tuple(float(L) for end in (1, -2) for L in (self.memory_L[end], self.film_L[end]))  # type: ignore[return-value]

    def render(self, lab: np.ndarray) -> np.ndarray:
        """Return L (H, W) of a picture, Lab float32 (H, W, 3), as recorded with the sensitivity, before the curve."""
        rgb = lab_to_rgb(lab)
        return luma_lightness(rgb) if self.sensitivity is None else spectral_lightness(rgb, self.sensitivity)

    def matching_cost(self, matches: Matches) -> float:
        """Return the mean pseudo-Huber loss of the differences in L, in units of HUBER_DELTA."""
        differences = self(matches.film_L) - self.render(matches.lab)[0]
        return float(np.sqrt(1 + np.square(differences / HUBER_DELTA)).mean() - 1)

    def state(self) -> list[list[float]]:
        """Return all values as plain lists."""
        return [x.tolist() for x in (self.film_L, self.memory_L, self.sensitivity) if x is not None]

    @classmethod
    def from_state(cls, state: list[list[float]]) -> "FilmResponse":
        """Inverse of ``state``."""
        return cls(*map(np.array, state))

    @classmethod
    def match_histograms(cls, film: np.ndarray, memory: np.ndarray,
                         sensitivity: np.ndarray | None = None) -> "FilmResponse":
        """Return the response whose curve maps the distribution of samples of L of a film to that of memory samples.

        The curve is extrapolated linearly beyond the outer QUANTILES.
        """
        film, memory = (_strictly_rising(np.quantile(L, QUANTILES)) for L in (film, memory))
        slopes = np.diff(memory)[[0, -1]] / np.diff(film)[[0, -1]]
        ends = memory[[0, -1]] + slopes * (np.array([0, L_SCALE]) - film[[0, -1]])
        inner = (film > 0) & (film < L_SCALE)
        return cls(np.array([0, *film[inner], L_SCALE]), np.array([ends[0], *memory[inner], ends[1]]), sensitivity)


IDENTITY_RESPONSE = FilmResponse(np.array([0, L_SCALE]), np.array([0, L_SCALE]))


def _strictly_rising(values):
    """Values (n,), each raised to at least 0.01 above the one before."""
    steps = 0.01 * np.arange(len(values))
    return np.maximum.accumulate(values - steps) + steps


def fit_film_response(embed: EmbedFrames, memory: SpatialMemory, lightness: Sequence[np.ndarray],
                      config: ResponseConfig) -> FilmResponse | None:
    """Estimate the response of a film from some of its frames, L (H, W) each.

    Returns None if neither a sensitivity nor a curve brings the film clearly nearer to the remembered frames.
    """
    if memory.pinned.all():
        return None
    response = _fit_sensitivity(*fit_tone_curve(embed, memory, lightness, config), config)
    for _ in range(config.max_rounds):
        if response is None or response.sensitivity is None:
            break
        rendered = _rendered_memory(embed, memory, lightness, response, config)
        response = _fit_sensitivity(response, match_cells(embed, rendered, lightness, response, config), config)
    return response


def fit_tone_curve(embed: EmbedFrames, memory: SpatialMemory, lightness: Sequence[np.ndarray],
                   config: ResponseConfig) -> tuple[FilmResponse | None, Matches]:
    """Estimate the tone curve of a film and return it, None if it changes too little, with the Matches it gives.

    Start from the identity or from matched histograms, whichever gives smaller distances, and refine the curve by the
    matching cells, since the film and the memory may show different scenes.
    """
    free = (~memory.pinned).nonzero()[:, 0].tolist()
    codes = memory.rows("pictures", [free[i] for i in evenly_spaced(len(free), config.histogram_frames)])
    memory_L = codes[:, ::4, ::4, 0].cpu().numpy() / 255 * L_SCALE
    plain = match_cells(embed, memory, lightness, None, config)
    response = FilmResponse.match_histograms(np.stack([resize(L, 64, 64) for L in lightness]), memory_L)
    best = match_cells(embed, memory, lightness, response, config)
    if plain.distance <= best.distance:
        response, best = None, plain
    for _ in range(config.max_rounds):
        refined = FilmResponse.match_histograms(best.film_L, best.memory_L)
        matches = match_cells(embed, memory, lightness, refined, config)
        if matches.distance >= best.distance:
            break
        response, best = refined, matches
    return (response, best) if best.distance < (1 - config.min_distance_reduction) * plain.distance else (None, plain)


def _fit_sensitivity(curve, matches, config):
    """Return the response with the lowest matching cost, None for the identity.

    It has a sensitivity only if one is clearly better than luma and than luminance with any tone curve, and a curve
    only if it is clearly better than none.
    """
    if len(matches.film_L) < config.min_pairs:
        return curve

    def cost(response):
        return response.matching_cost(matches)

    def without_curve(sensitivity):
        return replace(IDENTITY_RESPONSE, sensitivity=sensitivity)

    def with_curve(sensitivity):
        rendered = without_curve(sensitivity).render(matches.lab)
        return FilmResponse.match_histograms(matches.film_L, rendered, sensitivity)

    best = min(map(with_curve, SENSITIVITIES), key=cost)
    usual = min(cost(with_curve(None)), cost(with_curve(LUMINANCE_WEIGHTS)))
    if cost(best) <= (1 - config.min_sensitivity_reduction) * usual:
        plain = min(map(without_curve, SENSITIVITIES), key=cost)
    elif curve is not None:
        best, plain = with_curve(None), None
    else:
        return None
    return best if cost(best) < (1 - config.min_curve_reduction) * cost(plain or IDENTITY_RESPONSE) else plain


def _rendered_memory(embed, memory, lightness, response, config):
    """Return a memory of the frames that match a film, with keys of these frames as ``response`` renders them. The
    lightness in the keys stays that of the frames."""
    near = _similar_slots(memory, embed(list(map(response, lightness))), config)
    slots = sorted({slot for row in near for slot in row})
    codes = memory.rows("pictures", slots).permute(0, 3, 1, 2).float()
    rendered = SpatialMemory(memory.embeddings.shape[1], len(memory.mean), len(slots), memory.config).to(codes.device)
    rendered.mean, rendered.projection = memory.mean, memory.projection
    for part in torch.arange(len(slots)).split(8):
        L, ab = decode_lab8(codes[part])
        features = embed([response.render(lab) for lab in tensors_to_lab(L, ab)])
        rendered.write(part.to(codes.device), features, L, ab, part)
    return rendered


def match_cells(embed: EmbedFrames, memory: SpatialMemory, lightness: Sequence[np.ndarray],
                response: FilmResponse | None, config: ResponseConfig) -> Matches:
    """Match cells of a film's frames, L (H, W) each, mapped by ``response``, with cells of similar remembered frames.

    Pinned frames are left out, since they may come from the film itself.
    """
    grid, dim = memory.config.grid, memory.config.key_dim
    features = embed([L if response is None else response(L) for L in lightness])
    queries = (features.cells.flatten(2).transpose(1, 2).float() - memory.mean) @ memory.projection  # (N, P, dim)
    mutual, film_L, memory_L, colors, distances = [], [], [], [], []
    for L, query, slots in zip(lightness, queries, _similar_slots(memory, features, config), strict=True):
        keys, ab = (memory.rows(name, slots).flatten(0, 1).float() for name in ("keys", "ab"))
        keys, key_L = keys[:, :dim], keys[:, dim + 2] / memory.config.lightness_weight * L_SCALE
        distance = keys.square().sum(1) - 2 * query @ keys.T  # (P, Q), minus the constant |query|^2 of each row
        nearest, back = distance.min(1), (distance + query.square().sum(1)[:, None]).T.contiguous().argmin(1)
        mutual.append((back[nearest.indices] == torch.arange(len(query), device=query.device)).cpu().numpy())
        film_L.append(resize(L, grid, grid).flatten())
        memory_L.append(key_L[nearest.indices].cpu().numpy())
        colors.append(ab[nearest.indices].cpu().numpy() * AB_SCALE)
        distances.append(nearest.values + query.square().sum(1))
    cells = np.concatenate(mutual).nonzero()[0]
    return Matches(cells, np.concatenate(film_L)[cells], np.concatenate(memory_L)[cells], np.concatenate(colors)[cells],
                   float(torch.cat(distances).mean()))


def _similar_slots(memory, features, config):
    """Return, for each of N frames, the slots of the most similar frames in memory that are not pinned."""
    similarity = memory.similarity(F.normalize(features.embedding.float(), dim=1))
    similarity = similarity.masked_fill(memory.pinned, -torch.inf)
    return similarity.topk(min(config.matched_frames, int((~memory.pinned).sum()))).indices.tolist()
