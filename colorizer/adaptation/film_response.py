"""Estimation of the film response: the spectral sensitivity and the tone curve with which a film maps colors to gray.

In a faded, graded or high-contrast film, objects have a different lightness than in the training frames. With an
orthochromatic film stock or a color filter, different colors get the same lightness. Both effects are estimated from
matching cells of the film and of remembered frames. L is in [0, 100] throughout. P = G^2 is the number of grid cells,
with G the grid side.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.backbone import Features
from colorizer.memory.spatial_memory import SpatialMemory
from dataset import (
    AB_SCALE, L_SCALE, decode_lab8, hd_luma_lightness, lab_to_rgb, luma_lightness, resize, spectral_lightness,
    tensors_to_lab)
from fileio.images import LUMINANCE_WEIGHTS
from utils import evenly_spaced

EmbedFrames = Callable[[Iterable[np.ndarray]], Features]  # returns the backbone features of N frames, L (H, W) each

QUANTILES = (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # of the film's L: knots of the tone curve
HUBER_DELTA = 3.0  # difference in L beyond which the matching cost grows linearly instead of quadratically
THREADS, FRAMES_AT_A_TIME = 2, 3  # for matching; the results do not depend on the number of threads
STEPS = 20  # grid search steps per weight of the spectral sensitivity
SENSITIVITIES = np.array([(red, green, STEPS - red - green)
                          for red in range(STEPS + 1) for green in range(STEPS + 1 - red)]) / STEPS


class Matches(NamedTuple):
    """n pairs of a film cell and a remembered cell that are mutual nearest neighbors."""

    cells: np.ndarray  # (n,) indices of the film cells, among all cells of the matched film frames
    film_L: np.ndarray  # (n,) mean L of the film cells
    memory_L: np.ndarray  # (n,) mean L of the remembered cells
    ab: np.ndarray  # (n, 2) mean ab of the remembered cells, in Lab units
    part: np.ndarray  # (n,) indices of the parts of the film, for cross-validation
    distance: float  # mean squared key distance of all film cells, paired or not, to the nearest remembered cell
    rendered: np.ndarray | None = None  # (R, n) L of the remembered cells, rendered by each of RESPONSES; None: not yet

    @property
    def lab(self) -> np.ndarray:
        """Colors of the remembered cells, Lab float32 (1, n, 3)."""
        return np.column_stack([self.memory_L, self.ab]).astype(np.float32)[None]

    def select(self, rows: np.ndarray) -> "Matches":
        """Return the matches at the given rows."""
        return Matches(self.cells[rows], self.film_L[rows], self.memory_L[rows], self.ab[rows], self.part[rows],
                       self.distance, None if self.rendered is None else self.rendered[:, rows])


@dataclass
class ResponseConfig:
    """Constants of the estimation, tuned on drawn and real films, degraded and unchanged (``benchmarks/trials.md``)."""

    matched_frames: int = 4  # remembered frames to match with each frame of the film; larger: slower
    histogram_frames: int = 256  # maximum number of remembered frames for the initial tone curve; larger: slower
    max_rounds: int = 2  # maximum number of refinement rounds; larger: slower
    min_distance_reduction: float = 0.03  # minimum relative reduction of the key distance; larger: fewer curves
    min_pairs: int = 100  # minimum number of matches; larger: fewer films get a sensitivity
    min_sensitivity_reduction: float = 0.05  # minimum relative reduction of the cost; larger: fewer sensitivities
    min_curve_reduction: float = 0.4  # the same for the curve; larger: fewer curves
    parts: int = 4  # parts of the film, each of which is left out once for cross-validation
    min_left_out_curve_reduction: float = 0.3  # of the cost of left-out unadapted matches; larger: fewer curves
    min_left_out_sensitivity_reduction: float = 0.03  # of the cost of left-out matches; larger: fewer sensitivities
    max_sensitivity_cost: float = 1.3  # of left-out matches; above it, the film shows other scenes than the memory


@dataclass
class FilmResponse:
    """Tone curve and spectral sensitivity of a film.

    The curve is piecewise linear and rising, with knots at quantiles of the film's lightness. It maps L of the film to
    L of remembered frames rendered with the sensitivity.
    """

    film_L: np.ndarray  # (n,) rising from 0 to 100
    memory_L: np.ndarray  # (n,) rising; values outside [0, 100] are clipped when applied
    sensitivity: np.ndarray | None = None  # (3,) weights of linear red, green and blue, sum 1; None: video luma

    def __call__(self, L: np.ndarray) -> np.ndarray:
        """Map L of the film, of any shape, to L of remembered frames, float32. The identity returns L itself."""
        return L if self.is_identity else np.interp(L, self.film_L, self.memory_L).clip(0, L_SCALE).astype(np.float32)

    @property
    def is_identity(self) -> bool:
        """Whether the tone curve is the identity, whatever the sensitivity."""
        return np.array_equal(self.film_L, self.memory_L)

    @property
    def span(self) -> tuple[float, float, float, float]:
        """The outer quantile knots: (memory L, film L) of the darkest, then (memory L, film L) of the lightest knot."""
        return tuple(float(L) for end in (1, -2) for L in (self.memory_L[end], self.film_L[end]))  # type: ignore[return-value]

    def render(self, lab: np.ndarray) -> np.ndarray:
        """Return L (H, W) of a picture, Lab float32 (H, W, 3), recorded with the sensitivity and without tone curve."""
        rgb = lab_to_rgb(lab)
        return luma_lightness(rgb) if self.sensitivity is None else spectral_lightness(rgb, self.sensitivity)

    def with_curve(self, matches: Matches) -> "FilmResponse":
        """Return the response with the same sensitivity and the tone curve that fits the matches."""
        return self.with_quantiles(*(np.quantile(L, QUANTILES) for L in (matches.film_L, self.render(matches.lab))))

    def with_quantiles(self, film: np.ndarray, memory: np.ndarray) -> "FilmResponse":
        """Return the response with the same sensitivity and the curve that maps QUANTILES of the film's L to those of
        the memory's. Beyond the outer ones, the curve is extrapolated linearly."""
        film, memory = map(_strictly_rising, (film, memory))
        slopes = np.diff(memory)[[0, -1]] / np.diff(film)[[0, -1]]
        ends = memory[[0, -1]] + slopes * (np.array([0, L_SCALE]) - film[[0, -1]])
        inner = (film > 0) & (film < L_SCALE)
        return replace(self, film_L=np.array([0, *film[inner], L_SCALE]),
                       memory_L=np.array([ends[0], *memory[inner], ends[1]]))

    def matching_cost(self, matches: Matches, rendered: np.ndarray | None = None) -> float:
        """Return the mean pseudo-Huber loss of the differences in L between matched cells, in units of HUBER_DELTA.
        ``rendered`` (n,) is the L of the remembered cells if it is known already."""
        differences = self(matches.film_L) - (self.render(matches.lab)[0] if rendered is None else rendered)
        return float(np.sqrt(1 + np.square(differences / HUBER_DELTA)).mean() - 1)

    def state(self) -> list[list[float]]:
        """Return the fields as lists, without ``sensitivity`` if it is None."""
        return [x.tolist() for x in (self.film_L, self.memory_L, self.sensitivity) if x is not None]

    @classmethod
    def from_state(cls, state: list[list[float]]) -> "FilmResponse":
        """Create a response from the result of ``state``."""
        return cls(*map(np.array, state))

    @classmethod
    def match_histograms(cls, film: np.ndarray, memory: np.ndarray) -> "FilmResponse":
        """Return the response whose curve maps the distribution of film samples to that of memory samples, L each."""
        return IDENTITY_RESPONSE.with_quantiles(np.quantile(film, QUANTILES), np.quantile(memory, QUANTILES))


class HdLumaResponse(FilmResponse):
    """The response of HD video: the luma of BT.709, which no sensitivity equals. Used for comparison only."""

    def render(self, lab: np.ndarray) -> np.ndarray:
        return hd_luma_lightness(lab_to_rgb(lab))


IDENTITY_RESPONSE = FilmResponse(np.array([0, L_SCALE]), np.array([0, L_SCALE]))
VIDEO_RESPONSES = [IDENTITY_RESPONSE, replace(IDENTITY_RESPONSE, sensitivity=LUMINANCE_WEIGHTS),
                   HdLumaResponse(np.array([0, L_SCALE]), np.array([0, L_SCALE]))]
RESPONSES = [*VIDEO_RESPONSES, *(replace(IDENTITY_RESPONSE, sensitivity=weights) for weights in SENSITIVITIES)]
IDENTITY, VIDEO, FILM = slice(1), slice(len(VIDEO_RESPONSES)), slice(len(VIDEO_RESPONSES), None)  # parts of RESPONSES


def _strictly_rising(values):
    """Return values (n,), each raised to at least 0.01 above the previous value."""
    steps = 0.01 * np.arange(len(values))
    return np.maximum.accumulate(values - steps) + steps


def fit_film_response(embed: EmbedFrames, memory: SpatialMemory, lightness: Sequence[np.ndarray],
                      config: ResponseConfig) -> FilmResponse | None:
    """Estimate the response of a film from some of its frames, L (H, W) each.

    Pinned frames are references of the user, which may be frames of the film itself, so they are ignored. Return None
    if the memory holds only references, or if no response makes the film match the other frames clearly better.
    """
    if memory.pinned.all():
        return None
    response = _select_response(*fit_tone_curve(embed, memory, lightness, config), config)
    for _ in range(config.max_rounds):
        if response is None or response.sensitivity is None:
            break
        rendered = _rendered_memory(embed, memory, lightness, response, config)
        response = _select_response(response, match_cells(embed, rendered, lightness, response, config), config)
    return response


def fit_tone_curve(embed: EmbedFrames, memory: SpatialMemory, lightness: Sequence[np.ndarray],
                   config: ResponseConfig) -> tuple[FilmResponse | None, Matches]:
    """Estimate the tone curve of a film. Return it, or None if it improves the matches too little, and its Matches.

    Start from the identity or from matched histograms, whichever gives the smaller key distance. Then refit the curve
    to matching cells, since the film and the memory may contain different scenes. The curve must also explain matches
    that were found without it, in parts of the film to which it was not fitted.
    """
    free = (~memory.pinned).nonzero()[:, 0].tolist()
    codes = memory.rows("pictures", [free[i] for i in evenly_spaced(len(free), config.histogram_frames)])
    memory_L = codes[:, ::4, ::4, 0].cpu().numpy() / 255 * L_SCALE
    unadapted = match_cells(embed, memory, lightness, None, config)
    response = FilmResponse.match_histograms(np.stack([resize(L, 64, 64) for L in lightness]), memory_L)
    best = match_cells(embed, memory, lightness, response, config)
    if unadapted.distance <= best.distance:
        response, best = None, unadapted
    for _ in range(config.max_rounds):
        refined = FilmResponse.match_histograms(best.film_L, best.memory_L)
        matches = match_cells(embed, memory, lightness, refined, config)
        if matches.distance >= best.distance:
            break
        response, best = refined, matches
    limit = min(response.matching_cost(unadapted) for response in VIDEO_RESPONSES)
    if (best.distance < (1 - config.min_distance_reduction) * unadapted.distance
            and left_out_cost(IDENTITY_RESPONSE.with_curve, best, unadapted)
            < (1 - config.min_left_out_curve_reduction) * limit):
        return response, best
    return None, unadapted


def left_out_cost(fit: Callable[[Matches], FilmResponse], matches: Matches, tested: Matches) -> float:
    """Return the mean cost of the ``tested`` matches in each part of a film, under the response that is fitted to the
    ``matches`` in the other parts. Return infinity if there are no other parts.

    To test a response on matches that were found without it avoids a circular conclusion: frames that are made lighter
    match lighter frames.
    """
    total = 0.0
    for part in np.unique(tested.part):
        others, left_out = matches.select(matches.part != part), tested.select(tested.part == part)
        if len(others.cells) == 0:
            return math.inf
        total += fit(others).matching_cost(left_out) * len(left_out.cells)
    return total / len(tested.cells) if len(tested.cells) else math.inf


def _select_response(curve_response, matches, config):
    """Return the film response that best explains the matches, or None for the identity.

    A sensitivity is used only if it fits clearly better than luma and luminance, also to left-out matches, which a tone
    curve must not fit better. Each is fitted with a tone curve if ``curve_response`` has one, which is used only if it
    fits clearly better than the identity curve. With fewer than ``min_pairs`` matches, return ``curve_response``.
    """
    if len(matches.film_L) < config.min_pairs:
        return curve_response
    matches = matches._replace(rendered=np.stack([response.render(matches.lab)[0] for response in RESPONSES]))
    fit = _fit_curve if curve_response is not None and not curve_response.is_identity else _fit_linear

    def costs(cost):
        return [cost(partial(fit, kind)) for kind in (FILM, VIDEO)]

    kind = IDENTITY
    cost, limit = costs(lambda fit: fit(matches).matching_cost(matches))
    if cost <= (1 - config.min_sensitivity_reduction) * limit:
        cost, limit = costs(lambda fit: left_out_cost(fit, matches, matches))
        limit = min((1 - config.min_left_out_sensitivity_reduction) * limit, config.max_sensitivity_cost,
                    left_out_cost(IDENTITY_RESPONSE.with_curve, matches, matches))
        if cost <= limit:
            kind = FILM
    best, best_linear = fit(kind, matches), _fit_linear(kind, matches)
    if best.matching_cost(matches) >= (1 - config.min_curve_reduction) * best_linear.matching_cost(matches):
        best = best_linear
    return None if best is IDENTITY_RESPONSE else best


def _fit_linear(kind, matches):
    """Return the one of ``RESPONSES[kind]`` that fits the matches best."""
    return _best(RESPONSES[kind], kind, matches)


def _fit_curve(kind, matches):
    """Return the one of ``RESPONSES[kind]`` that fits the matches best, each with the tone curve that fits them."""
    film, memory = np.quantile(matches.film_L, QUANTILES), np.quantile(matches.rendered[kind], QUANTILES, axis=1)
    curved = [response.with_quantiles(film, own) for response, own in zip(RESPONSES[kind], memory.T, strict=True)]
    return _best(curved, kind, matches)


def _best(responses, kind, matches):
    """Return the one of ``responses`` with the smallest cost, given that they render as ``RESPONSES[kind]``."""
    costs = [response.matching_cost(matches, rendered)
             for response, rendered in zip(responses, matches.rendered[kind], strict=True)]
    return responses[int(np.argmin(costs))]


def _rendered_memory(embed, memory, lightness, response, config):
    """Return a memory of the remembered frames most similar to a film, with cell features of these frames rendered by
    ``response``. The lightness in the keys is not rendered."""
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
    """Match cells of film frames, L (H, W) each, mapped by ``response``, with cells of similar remembered frames.

    Pinned frames are ignored, since they may be frames of the film itself.
    """
    parts = [lightness[first:first + FRAMES_AT_A_TIME] for first in range(0, len(lightness), FRAMES_AT_A_TIME)]
    with ThreadPoolExecutor(THREADS) as pool:
        matched = pool.map(lambda part: _match_part(embed, memory, part, response, config), parts)
        mutual, film_L, memory_L, ab, distances = map(np.concatenate, zip(*matched, strict=True))
    cells = mutual.nonzero()[0]
    return Matches(cells, film_L[cells], memory_L[cells], ab[cells],
                   cells // memory.config.grid**2 * config.parts // len(lightness), float(distances.mean()))


@torch.inference_mode()
def _match_part(embed, memory, lightness, response, config):
    """Return arrays with a row for each cell of the frames: whether it and the nearest remembered cell are mutual
    nearest neighbors, its L, the L and ab of the remembered cell, and the squared distance of their keys."""
    grid, dim, found = memory.config.grid, memory.config.key_dim, []
    features = embed([L if response is None else response(L) for L in lightness])
    queries = (features.cells.flatten(2).transpose(1, 2).float() - memory.mean) @ memory.projection  # (N, P, dim)
    for L, query, slots in zip(lightness, queries, _similar_slots(memory, features, config), strict=True):
        keys, ab = (memory.rows(name, slots).flatten(0, 1).float() for name in ("keys", "ab"))
        keys, key_L = keys[:, :dim], keys[:, dim + 2] / memory.config.lightness_weight * L_SCALE
        own = query.square().sum(1)
        nearest = torch.addmm(keys.square().sum(1), query, keys.T, alpha=-2).min(1)  # squared distances without ``own``
        back = torch.addmm(own, keys[nearest.indices], query.T, alpha=-2).argmin(1)  # nearest query of these keys
        mutual = back == torch.arange(len(query), device=query.device)
        found.append((mutual.cpu().numpy(), resize(L, grid, grid).flatten(), key_L[nearest.indices].cpu().numpy(),
                      ab[nearest.indices].cpu().numpy() * AB_SCALE, (nearest.values + own).cpu().numpy()))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _similar_slots(memory, features, config):
    """Return a list for each of N frames: the slots of the most similar remembered frames that are not pinned."""
    similarity = memory.similarity(F.normalize(features.embedding.float(), dim=1))
    similarity = similarity.masked_fill(memory.pinned, -torch.inf)
    return similarity.topk(min(config.matched_frames, int((~memory.pinned).sum()))).indices.tolist()
