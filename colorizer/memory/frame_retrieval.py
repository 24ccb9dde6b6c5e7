"""Retrieval of the remembered frames that a picture attends to: similar to the picture, but not to each other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from colorizer.memory.frame_index import EMBEDDING_SCALE
from colorizer.memory.spatial_memory import SpatialMemory
from networks import slot_ranks


class NearestFrames(NamedTuple):
    """The k remembered frames selected for each of N pictures, in order of selection."""

    slots: torch.Tensor  # (N, k) int64
    preferred: torch.Tensor  # (N, k) float32, 0 or the precedence over other frames: 1 for references, more in a scope


def quantize_embeddings(embeddings: torch.Tensor) -> torch.Tensor:
    """Scale embeddings (N, D) to length EMBEDDING_SCALE and round them to int16.

    The rounding error is far below the differences between frames of a shot, and the embeddings of a film fit into a
    small file.
    """
    return (F.normalize(embeddings.float(), dim=1) * EMBEDDING_SCALE).round().to(torch.int16)


def find_nearest_frames(memory: SpatialMemory, embeddings: torch.Tensor, ranks: Sequence[int] = ()) -> NearestFrames:
    """Select up to ``attended_frames`` remembered frames for each of the quantized embeddings (N, D), without
    references whose entry in ``ranks`` (``colorizer/scopes.py``) is negative.

    Frames are selected by maximal marginal relevance (Carbonell and Goldstein 1998), since neighboring frames of a shot
    are redundant: the next frame maximizes similarity - mmr_diversity * (similarity to the nearest selected frame).
    Float64 products of float16 embeddings are exact, so that the result does not depend on batch size or machine.
    """
    config = memory.config
    slots, similarity, preferred = _find_candidates(memory, embeddings, ranks)
    unique, position = slots.unique(return_inverse=True)  # neighboring frames share most candidates
    candidates = memory.embeddings[unique].double()
    chosen, penalty = [], torch.zeros_like(similarity)
    available = len(memory.embeddings) - sum(rank < 0 for rank in ranks)
    for _ in range(min(config.attended_frames, available)):
        best = (similarity - config.mmr_diversity * penalty).argmax(1, keepdim=True)
        chosen.append(best)
        to_best = candidates[position.gather(1, best)[:, 0]] @ candidates.T
        penalty = torch.maximum(penalty, to_best.gather(1, position))
        similarity.scatter_(1, best, -torch.inf)
    best = torch.cat(chosen, 1)
    return NearestFrames(slots.gather(1, best), preferred.gather(1, best))


def nearest_similarity(memory: SpatialMemory, nearest: NearestFrames, embeddings: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity (N,) of pictures with ``embeddings`` (N, D) to the first of ``nearest``."""
    return F.cosine_similarity(embeddings.float(), memory.embeddings[nearest.slots[:, 0]].float())


def _find_candidates(memory, embeddings, ranks):
    """Return slots, similarities (float64) and ``preferred`` (float32) of the ``candidate_frames`` most similar frames,
    (N, c) each, best first. ``reference_margin`` is added to the similarity of preferred frames, and more in a scope.
    The index of an archive first shortlists twice as many of its frames. Hidden frames are last, with similarity -inf.
    """
    config, query, first = memory.config, embeddings.double() / EMBEDDING_SCALE, memory.archived_frames
    chunks = memory.embeddings[first:].split(512)  # products of cache-sized chunks take a third of the time
    similarity = torch.cat([query @ chunk.double().T for chunk in chunks], 1)
    slots = torch.arange(first, len(memory.embeddings), device=query.device).expand(len(query), -1)
    if memory.index is not None:
        shortlist = memory.index.shortlist(embeddings, 2 * config.candidate_frames)
        products = [memory.embeddings[some].double() @ one for some, one in zip(shortlist, query, strict=True)]
        slots, similarity = torch.cat([shortlist, slots], 1), torch.cat([torch.stack(products), similarity], 1)
    rank = slot_ranks(memory.pinned, ranks)
    hidden = rank < 0 if memory.hidden is None else memory.hidden
    similarity = similarity.masked_fill(hidden[slots], -torch.inf)
    weight = (memory.pinned * (1 + config.scope_gain * rank))[slots]
    margin = config.reference_margin * weight.double()
    preferred = weight * (similarity >= similarity.amax(1, keepdim=True) - margin)
    similarity, order = (similarity + margin * (preferred > 0)).sort(dim=1, descending=True, stable=True)
    order = order[:, :config.candidate_frames]
    return slots.gather(1, order), similarity[:, :config.candidate_frames].clone(), preferred.gather(1, order)
