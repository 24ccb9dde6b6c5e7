"""Attention over the grid cells of remembered frames, which returns colors and their confidence."""

import torch

from colorizer.memory.frame_retrieval import NearestFrames
from colorizer.memory.spatial_memory import SpatialMemory
from config import SpatialConfig


@torch.no_grad()
def attend_to_frames(memory: SpatialMemory, nearest: NearestFrames, keys: torch.Tensor,
                     mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return ab / 110 (2 channels) and the confidence in [0, 1] (1 channel) for each cell, float32 (N, 3, G, G).

    For each of the N pictures, ``keys`` (N, P, C) holds the keys of its cells and ``nearest`` the frames to attend to.
    Cells where ``mask``, bool (N, P), is False get zeros; if ``mask`` is None, all cells are computed.
    """
    device, cells = keys.device.type, memory.config.grid**2
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    output = keys.new_zeros(len(keys), 3, cells)
    mask = torch.ones_like(keys[..., 0], dtype=torch.bool) if mask is None else mask
    with torch.autocast(device, enabled=False):
        rows = zip(output, keys, nearest.slots.tolist(), nearest.preferred, mask, strict=True)
        for result, query, slots, preferred, chosen in rows:
            if chosen.any():
                frame_keys, ab = (memory.rows(name, slots).flatten(0, 1).float() for name in ("keys", "ab"))
                is_preferred = preferred.float().repeat_interleave(cells)[:, None]
                result[:, chosen] = attend(query[chosen], frame_keys, ab, is_preferred, memory.config, dtype)
    return output.unflatten(2, (memory.config.grid, memory.config.grid))


def attend(query: torch.Tensor, keys: torch.Tensor, ab: torch.Tensor, is_preferred: torch.Tensor,
           config: SpatialConfig, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return ab / 110 and the confidence, float32 (..., 3, Q), of Q cells by attention over R remembered cells.

    The weights are softmax(-inverse_temperature * d^2), where d is the distance between ``query`` (..., Q, C) and
    ``keys`` (..., R, C); d^2 is lowered by ``reference_bias`` where ``is_preferred`` (..., R, 1) is 1. The confidence
    is exp(-mean of d^2 - variance of ab (..., R, 2) / disagreement_scale), both with these weights. All inputs are
    float32; the product of queries and keys is computed in ``dtype``.
    """
    scale, bias = config.inverse_temperature, config.reference_bias
    values = torch.cat([ab, ab.square().sum(-1, keepdim=True), is_preferred], -1).mT.contiguous()
    (keys, key_norm), (query, query_norm) = (_scale_and_round(x, scale, dtype) for x in (keys, query))
    # scale * (bias * is_preferred - |q - k|^2) as one product, from the terms 2 q.k, -|k|^2 and -|q|^2.
    keys = torch.cat([2 * keys, *_split(scale * bias * is_preferred - key_norm, dtype),
                      torch.ones_like(keys[..., :2])], -1).mT
    query = torch.cat([query, torch.ones_like(query[..., :2]), *_split(-query_norm, dtype)], -1)
    means, scores = [], []
    # Chunks of 32 queries fit into a CPU cache. An exported graph is not chunked, or it would repeat its nodes.
    chunked = query.device.type == "cpu" and not torch.compiler.is_exporting()
    for chunk in query.split(32 if chunked else query.shape[-2], -2):
        score = (chunk @ keys).float()
        weight = score.softmax(-1)
        means.append(values @ weight.mT)
        scores.append(score.mul_(weight).sum(-1))
    color, square, preferred = torch.cat(means, -1).split([2, 1, 1], -2)
    distance = bias * preferred - torch.cat(scores, -1).unsqueeze(-2) / scale
    variance = square - color.square().sum(-2, keepdim=True)
    confidence = (-distance.clamp(min=0) - variance.clamp(min=0) / config.disagreement_scale).exp()
    return torch.cat([color, confidence], -2)


def _scale_and_round(keys, scale, dtype):
    """Return sqrt(scale) * keys (..., R, C), rounded to ``dtype``, and the squared lengths (..., R, 1) of the result.
    Lengths are computed after rounding, so that distances between rounded keys are exact."""
    keys = (scale**0.5 * keys).to(dtype)
    return keys, keys.float().square().sum(-1, keepdim=True)


def _split(x, dtype):
    """Split float32 x into two tensors of ``dtype`` whose sum has twice the precision of ``dtype``."""
    high = x.to(dtype)
    return high, (x - high).to(dtype)
