"""Scopes of references: the shots in which a reference is used.

A scope is a text, which is also the name of a folder: "" (the whole film), "similar_shots", "shot_7", "shots_12-18" or
"only_this_shot". A reference is invisible in all shots outside its scope. In each shot, a reference has a rank: HIDDEN,
0 for the whole film, and larger for narrower scopes. A higher rank wins over a lower one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.warping.propagation import PropagationConfig, signature
from utils import UserError, warn

WHOLE_FILM, SIMILAR_SHOTS, ONLY_THIS_SHOT = "", "similar_shots", "only_this_shot"
HIDDEN = -1  # rank of a reference that is not used
RANKS = {WHOLE_FILM: 0, SIMILAR_SHOTS: 1, ONLY_THIS_SHOT: 3}  # all other scopes are shot numbers, of rank 2
SHOT_NUMBERS = 2


@dataclass(frozen=True)
class ScopeConfig:
    """Constants of the scopes, chosen on real films."""

    similarity: float = 0.8  # minimum cosine similarity of a reference to shots like it; larger: fewer shots


class ShotView(NamedTuple):
    """What identifies a shot for references."""

    embedding: torch.Tensor  # (D,) mean frame embedding
    signatures: np.ndarray  # uint8 (n, h, h), see colorizer.warping.propagation


def shot_numbers(scope: str) -> range | None:
    """Return the numbers, counted from 1, of the shots of a scope such as "shots_12-18"; None for other scopes.

    Raises UserError if ``scope`` is not a scope.
    """
    if scope in RANKS:
        return None
    match = re.fullmatch(r"shots?_([1-9]\d{0,6})(?:-([1-9]\d{0,6}))?", scope)
    numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not numbers:
        raise UserError(f"{scope} is not the scope of a reference; rename the folder to {SIMILAR_SHOTS}, "
                        f"{ONLY_THIS_SHOT}, or shot numbers such as shot_7 and shots_12-18, or remove it")
    return numbers


def rank_references(spatial: SpatialMemory, scopes: Sequence[str], shots: Sequence[ShotView],
                    picture_of: Callable[[int], np.ndarray], names: Sequence[str] | None = None) -> list[list[int]]:
    """Return the ranks of the references in each shot of a film.

    ``scopes`` are those of the pinned frames of ``spatial``, in order, and ``picture_of`` returns the picture in a
    slot, uint8 (S, S, 3) with the lightness of the film. ``names`` are the file names of the last references; warns
    about each of these that no shot uses. For single pictures, pass None: numbers of shots do not apply then.
    """
    slots, columns = spatial.pinned.nonzero()[:, 0].tolist(), []
    unnamed = len(scopes) - len(names or ())
    for number, (slot, scope) in enumerate(zip(slots, scopes, strict=True)):
        used = _shots_in_scope(spatial, slot, scope, shots, picture_of, names is not None)
        if not any(used) and names and number >= unnamed:
            warn(f"no shot of the film is in the scope of the reference {names[number - unnamed]}, so it is not used; "
                 "move it to another scope")
        columns.append([RANKS.get(scope, SHOT_NUMBERS) if each else HIDDEN for each in used])
    return [list(ranks) for ranks in zip(*columns, strict=True)]


def shared_pairs(shots: Sequence[Sequence[int]], added: int) -> set[tuple[int, int]]:
    """Return the pairs of references, first the smaller index, that have the same rank in any of ``shots``, given the
    ranks in each; at least one of both is among the last ``added`` references."""
    pairs = set()
    for ranks in set(map(tuple, shots)):
        for second in range(len(ranks)):
            pairs |= {(first, second) for first in range(second)
                      if ranks[first] == ranks[second] != HIDDEN and second >= len(ranks) - added}
    return pairs


def _shots_in_scope(spatial, slot, scope, shots, picture_of, has_numbers):
    """Return for each shot whether it is in the scope of the reference in ``slot``."""
    if scope == WHOLE_FILM:
        return [True] * len(shots)
    if scope == SIMILAR_SHOTS:
        embeddings = F.normalize(torch.stack([shot.embedding for shot in shots]).cpu().float(), dim=1)
        return (embeddings @ spatial.embeddings[slot].cpu().float() >= ScopeConfig().similarity).tolist()
    if scope == ONLY_THIS_SHOT:
        own = signature(np.ascontiguousarray(picture_of(slot)[..., 0])).astype(np.int16)
        differences = [float(np.abs(shot.signatures - own).mean((1, 2)).min()) for shot in shots]
        best = int(np.argmin(differences))
        return [index == best and differences[index] <= PropagationConfig().max_difference
                for index in range(len(shots))]
    numbers = shot_numbers(scope) or ()
    return [has_numbers and index + 1 in numbers for index in range(len(shots))]
