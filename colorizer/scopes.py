"""Scopes of references and palettes: the shots in which they are used.

A scope is a text, which is also the name of a folder: "" (the whole film), "similar_shots", "shot_7", "shots_12-18" or
"only_this_shot". A reference is invisible in all shots outside its scope. In each shot, a reference has a rank: HIDDEN,
0 for the whole film, and larger for narrower scopes. A higher rank wins over a lower one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.warping.propagation import PropagationConfig, signature
from utils import UserError, natural_key, warn

WHOLE_FILM, SIMILAR_SHOTS, ONLY_THIS_SHOT = "", "similar_shots", "only_this_shot"
HIDDEN = -1  # rank of a reference that is not used
RANKS = {WHOLE_FILM: 0, SIMILAR_SHOTS: 1, ONLY_THIS_SHOT: 3}  # all other scopes are shot numbers, of rank 2
SHOT_NUMBERS = 2


@dataclass(frozen=True)
class ScopeConfig:
    """Constants of the scopes, chosen on real films."""

    similarity: float = 0.8  # minimum cosine similarity of a reference to shots like it; larger: fewer shots


class ShotView(NamedTuple):
    """What identifies a shot, or a frame by which a shot is found."""

    embedding: torch.Tensor  # (D,) mean frame embedding
    signatures: np.ndarray  # uint8 (n, h, h), see colorizer.warping.propagation; those of a frame: (1, h, h)


def shot_numbers(scope: str) -> range | None:
    """Return the numbers, counted from 1, of the shots of a scope such as "shots_12-18"; None for other scopes.

    Raises UserError if ``scope`` is not a scope.
    """
    if scope in RANKS:
        return None
    match = re.fullmatch(r"shots?_([1-9]\d{0,6})(?:-([1-9]\d{0,6}))?", scope)
    numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not numbers:
        raise UserError(f"{scope} is not a scope; rename the folder to {SIMILAR_SHOTS}, {ONLY_THIS_SHOT}, or shot "
                        "numbers such as shot_7 and shots_12-18, or remove it")
    return numbers


def scope_rank(scope: str) -> int:
    """Return the rank of a scope in its shots."""
    return RANKS.get(scope, SHOT_NUMBERS)


def list_scopes(folder: Path) -> list[str]:
    """Return the scopes in a folder: "" for the folder itself, and the names of its visible subfolders.

    Raises UserError if a subfolder has a different name than a scope.
    """
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir())
    scopes = sorted((name for name in names if not re.search(r"(^|/)\.", name)), key=natural_key)
    for scope in scopes:
        shot_numbers(scope)
    return [WHOLE_FILM, *scopes]


def rank_references(spatial: SpatialMemory, scopes: Sequence[str], shots: Sequence[ShotView],
                    picture_of: Callable[[int], np.ndarray], names: Sequence[str] | None = None) -> list[list[int]]:
    """Return the ranks of the references in each shot of a film.

    ``scopes`` are those of the pinned frames of ``spatial``, in order, and ``picture_of`` returns the picture in a
    slot, uint8 (S, S, 3) with the lightness of the film. ``names`` are the file names of the last references; warns
    about each of these that no shot uses. For single pictures, pass None: numbers of shots do not apply then.
    """
    def view(slot):
        return ShotView(spatial.embeddings[slot], signature(np.ascontiguousarray(picture_of(slot)[..., 0]))[None])

    slots, columns = spatial.pinned.nonzero()[:, 0].tolist(), []
    unnamed = len(scopes) - len(names or ())
    for number, (slot, scope) in enumerate(zip(slots, scopes, strict=True)):
        used = find_shots_in_scope(scope, partial(view, slot), shots, names is not None)
        if not any(used) and names and number >= unnamed:
            warn(f"no shot of the film is in the scope of the reference {names[number - unnamed]}, so it is not used; "
                 "move it to another scope")
        columns.append([scope_rank(scope) if each else HIDDEN for each in used])
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


def find_shots_in_scope(scope: str, view_frame: Callable[[], ShotView], shots: Sequence[ShotView],
                        has_numbers: bool) -> list[float]:
    """Return how close each shot is to ``scope``, in [0, 1]; 0: outside of it.

    ``view_frame`` returns the view of a frame of the shot that similar_shots and only_this_shot refer to. ``shots`` are
    all shots of a film; if ``has_numbers`` is False, they are single pictures.
    """
    if scope == WHOLE_FILM:
        return [1.0] * len(shots)
    if scope == SIMILAR_SHOTS:
        embeddings = F.normalize(torch.stack([shot.embedding for shot in shots]).cpu().float(), dim=1)
        similarities = (embeddings @ F.normalize(view_frame().embedding.cpu().float(), dim=0)).tolist()
        return [min(each, 1.0) if each >= ScopeConfig.similarity else 0.0 for each in similarities]
    if scope == ONLY_THIS_SHOT:
        own = view_frame().signatures.astype(np.int16)
        differences = [float(np.abs(shot.signatures - own).mean((1, 2)).min()) for shot in shots]
        best = int(np.argmin(differences))
        return [float(index == best and differences[index] <= PropagationConfig.max_difference)
                for index in range(len(shots))]
    numbers = shot_numbers(scope) or ()
    return [float(has_numbers and index + 1 in numbers) for index in range(len(shots))]
