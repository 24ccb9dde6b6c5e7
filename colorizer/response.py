"""How did the film see? The curve from the lightness of a film to that of what is known.

A film that was faded, graded or printed hard shows the same things in another lightness than the pictures that the
networks learned from. Where both show the same thing, the memory tells which lightness became which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.backbone import Seen
from colorizer.spatial import SpatialMemory
from config import ResponseConfig
from dataset import AB_SCALE, L_SCALE, resize
from utils import spread

QUANTILES = (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # of lightness, where a curve has its knots


@dataclass
class Response:
    """A rising curve, straight between its knots: those of the lightness that most of the film has, and its ends."""

    film: np.ndarray  # (n,) rising from 0 to 100: L of the film
    known: np.ndarray  # (n,) rising: L of what is known, of the same things; what lies outside of [0, 100] is cut off

    def __call__(self, L: np.ndarray) -> np.ndarray:
        """L of the film, of any shape, as L float32 in [0, 100] of what is known."""
        return np.interp(L, self.film, self.known).clip(0, L_SCALE).astype(np.float32)

    @property
    def span(self) -> tuple[float, float, float, float]:
        """What most of the film spans, from dark to light: (L of it, L of the film) twice, that of what is known
        first."""
        return tuple(float(L) for end in (1, -2) for L in (self.known[end], self.film[end]))  # type: ignore[return-value]

    def state(self) -> list[list[float]]:
        """Both as plain values."""
        return [self.film.tolist(), self.known.tolist()]

    @classmethod
    def of(cls, state: list[list[float]]) -> "Response":
        """The inverse of ``state``."""
        return cls(*map(np.array, state))

    @classmethod
    def between(cls, film: np.ndarray, known: np.ndarray) -> "Response":
        """The Response by which samples of L of a film, of any number, are distributed like those of what is known; it
        goes on straight beyond the outer QUANTILES."""
        film, known = (_rising(np.quantile(L, QUANTILES)) for L in (film, known))
        slopes = np.diff(known)[[0, -1]] / np.diff(film)[[0, -1]]
        ends = known[[0, -1]] + slopes * (np.array([0, L_SCALE]) - film[[0, -1]])
        inside = (film > 0) & (film < L_SCALE)
        return cls(np.array([0, *film[inside], L_SCALE]), np.array([ends[0], *known[inside], ends[1]]))


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


def find_response(see: Callable[[Sequence[np.ndarray]], Seen], memory: SpatialMemory, lightness: Sequence[np.ndarray],
                  config: ResponseConfig) -> Response | None:
    """The Response of a film by some of its frames, L (H, W) in [0, 100] each, which the backbone can ``see``; None
    where none brings it clearly nearer to what is known than it is.

    It begins with no response, or with that by which the film's lightness is distributed like that in memory, whichever
    brings more; what differs in between, since other things are shown, is mended by the places that match.
    """
    if memory.pinned.all():
        return None
    free = (~memory.pinned).nonzero()[:, 0].tolist()
    some = memory.kept("pictures", [free[place] for place in spread(len(free), config.pictures)])
    known = some[:, ::4, ::4, 0].cpu().numpy() / 255 * L_SCALE
    plain = match(see, memory, lightness, None, config)
    response = Response.between(np.stack([resize(L, 64, 64) for L in lightness]), known)
    best = match(see, memory, lightness, response, config)
    if plain.distance <= best.distance:
        response, best = None, plain
    for _ in range(config.rounds):
        refined = Response.between(best.film, best.known)
        matches = match(see, memory, lightness, refined, config)
        if matches.distance >= best.distance:
            break
        response, best = refined, matches
    return response if best.distance < (1 - config.clearly) * plain.distance else None


def match(see: Callable[[Sequence[np.ndarray]], Seen], memory: SpatialMemory, lightness: Sequence[np.ndarray],
          response: Response | None, config: ResponseConfig) -> Matches:
    """The Matches of a film's frames, given as for ``find_response``, through a Response, or for None as they are.

    Pinned frames are left aside: they may come from the film itself.
    """
    grid, dim = memory.config.grid, memory.config.dim
    seen = see([L if response is None else response(L) for L in lightness])
    places = (seen.places.flatten(2).transpose(1, 2).float() - memory.mean) @ memory.projection  # (N, P, dim)
    similarity = memory.similarity(F.normalize(seen.features.float(), dim=1)).masked_fill(memory.pinned, -torch.inf)
    near = similarity.topk(min(config.frames, int((~memory.pinned).sum()))).indices
    mutual, film, known, colors, distances = [], [], [], [], []
    for L, place, slots in zip(lightness, places, near.tolist(), strict=True):
        keys, ab = (memory.kept(name, slots).flatten(0, 1).float() for name in ("keys", "ab"))
        keys, light = keys[:, :dim], keys[:, dim + 2] / memory.config.lightness * L_SCALE
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
