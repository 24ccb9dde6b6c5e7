"""How did the film see? The sensitivity that it was shot on, and the curve of its grays.

A film that was faded, graded or printed hard shows the same things in another lightness than the pictures that the
networks learned from, and one on a sensitivity that hardly sees red, or through a filter, other things in the same lightness.
Where both show the same thing, the memory tells which lightness, and which color, became which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.backbone import Features
from colorizer.memory.spatial_memory import SpatialMemory
from config import ResponseConfig
from dataset import (
    AB_SCALE, L_SCALE, decode_lab8, lab_to_rgb, luma_lightness, resize, spectral_lightness, tensors_to_lab)
from fileio.images import LUMINANCE_WEIGHTS
from utils import evenly_spaced

QUANTILES = (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # of lightness, where a curve has its knots
NEAR = 3.0  # L, from which a difference rather counts as that of another thing
STEPS = 20  # of a share of light
SENSITIVITIES = np.array([(red, green, STEPS - red - green)
                   for red in range(STEPS + 1) for green in range(STEPS + 1 - red)]) / STEPS


@dataclass
class FilmResponse:
    """A rising curve, straight between its knots, those of the lightness that most of the film has, and its ends; and
    the sensitivity that what is known has to be exposed on to have the lightness that the curve leads to."""

    film: np.ndarray  # (n,) rising from 0 to 100: L of the film
    known: np.ndarray  # (n,) rising: L of what is known, of the same things; what lies outside of [0, 100] is cut off
    sensitivity: np.ndarray | None = None  # (3,) shares of red, green and blue light of sRGB; None: the luma of video

    def __call__(self, L: np.ndarray) -> np.ndarray:
        """L of the film, of any shape, as L float32 in [0, 100] of what is known, on the sensitivity."""
        return L if self.is_identity else np.interp(L, self.film, self.known).clip(0, L_SCALE).astype(np.float32)

    @property
    def is_identity(self) -> bool:
        """Whether the curve changes nothing."""
        return np.array_equal(self.film, self.known)

    @property
    def span(self) -> tuple[float, float, float, float]:
        """What most of the film spans, from dark to light: (L of it, L of the film) twice, that of what is known
        first."""
        return tuple(float(L) for end in (1, -2) for L in (self.known[end], self.film[end]))  # type: ignore[return-value]

    def shown(self, lab: np.ndarray) -> np.ndarray:
        """L (H, W) in [0, 100] of a known picture, Lab float32 (H, W, 3), on the sensitivity."""
        rgb = lab_to_rgb(lab)
        return luma_lightness(rgb) if self.sensitivity is None else spectral_lightness(rgb, self.sensitivity)

    def misfit(self, pairs: "Matches") -> float:
        """How far it leads from what is known, in L: a robust mean over Matches."""
        lab = np.column_stack([pairs.known, pairs.ab]).astype(np.float32)
        return _far(self(pairs.film) - self.shown(lab[None])[0])

    def state(self) -> list[list[float]]:
        """All as plain values."""
        return [x.tolist() for x in (self.film, self.known, self.sensitivity) if x is not None]

    @classmethod
    def of(cls, state: list[list[float]]) -> "FilmResponse":
        """The inverse of ``state``."""
        return cls(*map(np.array, state))

    @classmethod
    def between(cls, film: np.ndarray, known: np.ndarray, sensitivity: np.ndarray | None = None) -> "FilmResponse":
        """The Response by which samples of L of a film, of any number, are distributed like those of what is known, on
        a sensitivity; it goes on straight beyond the outer QUANTILES."""
        film, known = (_rising(np.quantile(L, QUANTILES)) for L in (film, known))
        slopes = np.diff(known)[[0, -1]] / np.diff(film)[[0, -1]]
        ends = known[[0, -1]] + slopes * (np.array([0, L_SCALE]) - film[[0, -1]])
        inside = (film > 0) & (film < L_SCALE)
        return cls(np.array([0, *film[inside], L_SCALE]), np.array([ends[0], *known[inside], ends[1]]), sensitivity)


IDENTITY_RESPONSE = FilmResponse(np.array([0, L_SCALE]), np.array([0, L_SCALE]))


def _far(differences):
    """The mean of differences in L, of which a few may be of things that do not belong together (the pseudo-Huber loss:
    those far above NEAR count as they are, those below by their squares), in units of NEAR."""
    return float(np.sqrt(1 + np.square(differences / NEAR)).mean() - 1)


def _rising(values):
    """Values (n,), each at least a hundredth above the one before."""
    steps = 0.01 * np.arange(len(values))
    return np.maximum.accumulate(values - steps) + steps


class Matches(NamedTuple):
    """Pairs of places, of a film and of what is known, of which each looks most like the other."""

    places: np.ndarray  # (p,) indices of the film's, among all places of its frames
    film: np.ndarray  # (p,) mean L of these
    known: np.ndarray  # (p,) and of those in memory
    ab: np.ndarray  # (p, 2) mean ab of those in memory, in Lab units
    distance: float  # mean squared distance of keys from every place of the film to the nearest known one


def fit_film_response(see: Callable[[Sequence[np.ndarray]], Features], memory: SpatialMemory, lightness: Sequence[np.ndarray],
                  config: ResponseConfig) -> FilmResponse | None:
    """The Response of a film by some of its frames, L (H, W) in [0, 100] each, which the backbone can ``see``; None
    where neither a sensitivity nor a curve brings it clearly nearer to what is known than it is."""
    if memory.pinned.all():
        return None
    response = on_stock(*fit_tone_curve(see, memory, lightness, config), config)
    for _ in range(config.max_rounds):
        if response is None or response.sensitivity is None:
            break
        shown = as_shown(see, memory, lightness, response, config)
        response = on_stock(response, match(see, shown, lightness, response, config), config)
    return response


def as_shown(see: Callable[[Sequence[np.ndarray]], Features], memory: SpatialMemory, lightness: Sequence[np.ndarray],
             response: FilmResponse, config: ResponseConfig) -> SpatialMemory:
    """A memory of the frames that are matched with those of a film, as for ``fit_film_response``, whose keys are of what is
    seen of them as a Response shows them, but for their lightness."""
    slots = sorted({slot for near in _near(memory, see(list(map(response, lightness))), config) for slot in near})
    codes = memory.rows("pictures", slots).permute(0, 3, 1, 2).float()
    small = SpatialMemory(memory.embeddings.shape[1], len(memory.mean), len(slots), memory.config).to(codes.device)
    small.mean, small.projection = memory.mean, memory.projection
    for part in torch.arange(len(slots)).split(8):
        L, ab = decode_lab8(codes[part])
        seen = see([response.shown(lab) for lab in tensors_to_lab(L, ab)])
        small.write(part.to(codes.device), seen, L, ab, part)
    return small


def on_stock(curve: FilmResponse | None, pairs: Matches, config: ResponseConfig) -> FilmResponse | None:
    """The Response by which pairs of places, matched through a curve, are most alike; None for none.

    It has a sensitivity where one is clearly better than the luma of video and the luminance of light, whatever the curve
    from film to sensitivity. Where there is a curve or a sensitivity, it has the curve that leads there, if that is needed.
    """
    if len(pairs.film) < config.min_pairs:
        return curve
    lab = np.column_stack([pairs.known, pairs.ab]).astype(np.float32)[None]

    def misfit(response):
        return response.misfit(pairs)

    def straight(sensitivity):
        return replace(IDENTITY_RESPONSE, sensitivity=sensitivity)

    def curved(sensitivity):
        return FilmResponse.between(pairs.film, straight(sensitivity).shown(lab), sensitivity)

    best = min(map(curved, SENSITIVITIES), key=misfit)
    if misfit(best) <= (1 - config.min_sensitivity_reduction) * min(misfit(curved(None)), misfit(curved(LUMINANCE_WEIGHTS))):
        plain = min(map(straight, SENSITIVITIES), key=misfit)
    elif curve is not None:
        best, plain = curved(None), None
    else:
        return None
    return best if misfit(best) < (1 - config.min_curve_reduction) * misfit(plain or IDENTITY_RESPONSE) else plain


def fit_tone_curve(see: Callable[[Sequence[np.ndarray]], Features], memory: SpatialMemory, lightness: Sequence[np.ndarray],
               config: ResponseConfig) -> tuple[FilmResponse | None, Matches]:
    """The Response without a sensitivity, for arguments as of ``fit_film_response``, and the Matches through it.

    It begins with no response, or with that by which the film's lightness is distributed like that in memory, whichever
    brings more; what differs in between, since other things are shown, is mended by the places that match.
    """
    free = (~memory.pinned).nonzero()[:, 0].tolist()
    some = memory.rows("pictures", [free[place] for place in evenly_spaced(len(free), config.histogram_frames)])
    known = some[:, ::4, ::4, 0].cpu().numpy() / 255 * L_SCALE
    plain = match(see, memory, lightness, None, config)
    response = FilmResponse.between(np.stack([resize(L, 64, 64) for L in lightness]), known)
    best = match(see, memory, lightness, response, config)
    if plain.distance <= best.distance:
        response, best = None, plain
    for _ in range(config.max_rounds):
        refined = FilmResponse.between(best.film, best.known)
        matches = match(see, memory, lightness, refined, config)
        if matches.distance >= best.distance:
            break
        response, best = refined, matches
    return (response, best) if best.distance < (1 - config.min_distance_reduction) * plain.distance else (None, plain)


def match(see: Callable[[Sequence[np.ndarray]], Features], memory: SpatialMemory, lightness: Sequence[np.ndarray],
          response: FilmResponse | None, config: ResponseConfig) -> Matches:
    """The Matches of a film's frames, given as for ``fit_film_response``, through a Response, or for None as they are.

    Pinned frames are left aside: they may come from the film itself.
    """
    grid, dim = memory.config.grid, memory.config.key_dim
    seen = see([L if response is None else response(L) for L in lightness])
    places = (seen.cells.flatten(2).transpose(1, 2).float() - memory.mean) @ memory.projection  # (N, P, dim)
    mutual, film, known, colors, distances = [], [], [], [], []
    for L, place, slots in zip(lightness, places, _near(memory, seen, config), strict=True):
        keys, ab = (memory.rows(name, slots).flatten(0, 1).float() for name in ("keys", "ab"))
        keys, light = keys[:, :dim], keys[:, dim + 2] / memory.config.lightness_weight * L_SCALE
        distance = keys.square().sum(1) - 2 * place @ keys.T  # but for the square of the place, the same in a row
        nearest, back = distance.min(1), (distance + place.square().sum(1)[:, None]).T.contiguous().argmin(1)
        mutual.append((back[nearest.indices] == torch.arange(len(place), device=place.device)).cpu().numpy())
        film.append(resize(L, grid, grid).flatten())
        known.append(light[nearest.indices].cpu().numpy())
        colors.append(ab[nearest.indices].cpu().numpy() * AB_SCALE)
        distances.append(nearest.values + place.square().sum(1))
    chosen = np.concatenate(mutual).nonzero()[0]
    of_film, of_known, of_color = (np.concatenate(x)[chosen] for x in (film, known, colors))
    return Matches(chosen, of_film, of_known, of_color, float(torch.cat(distances).mean()))


def _near(memory, seen, config):
    """For each of N frames that are Seen, the slots of the frames in memory to match with it."""
    similarity = memory.similarity(F.normalize(seen.embedding.float(), dim=1)).masked_fill(memory.pinned, -torch.inf)
    return similarity.topk(min(config.matched_frames, int((~memory.pinned).sum()))).indices.tolist()
