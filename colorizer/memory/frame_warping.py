"""Warping of colors from the nearest remembered frames to a picture, along the optical flow."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from colorizer.memory.frame_retrieval import NearestFrames
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.warping.optical_flow import OpticalFlow, box_blur, relight, warp
from dataset import decode_lab8


@torch.no_grad()
def warp_colors(memory: SpatialMemory, nearest: NearestFrames, keys: torch.Tensor, L: torch.Tensor,
                picture_of: Callable[[int], np.ndarray] | None = None) -> torch.Tensor:
    """Return ab / 110 (2 channels) and the confidence in [0, 1] (1 channel) for each pixel, float32 (N, 3, S, S).

    For each of the N pictures, ``keys`` (N, P, C) holds the keys of its cells, L (N, 1, H, H) in [0, 1] its lightness
    and ``nearest`` the frames to warp. ``picture_of`` returns the picture in a slot, uint8 (S, S, 3), with the
    lightness of the film; the default is ``SpatialMemory.picture``.

    The matching cost of a pixel is feature_weight * (squared distance of keys) + photometric_weight * (squared
    difference in L) along the flow. The first ``warped_frames`` frames are averaged with the weights
    softmax(-cost_inverse_temperature * cost). The confidence is 1 / (1 + (cost + m / 2)^6), where m is the mean
    cost of the picture, with costs clamped to ``cost_clamp``: if most of a picture does not match, matches elsewhere
    are accidental.
    """
    config, count = memory.config, memory.config.warped_frames
    pictures = memory.encode_pictures(L, L.expand(-1, 2, -1, -1))[..., 0].cpu().numpy()
    optical_flow, picture_of, warped = OpticalFlow(), picture_of or memory.picture, []
    frames = zip(nearest.slots[:, :count].tolist(), nearest.preferred[:, :count].tolist(), strict=True)
    for picture, query, (slots, preferred) in zip(pictures, keys, frames, strict=True):
        colors, costs = [], []
        for slot, bias in zip(slots, preferred, strict=True):
            if bias < max(preferred):
                continue  # the color of other frames may be wrong: preferred references correct it
            source = picture_of(slot)
            flow = optical_flow(picture, np.ascontiguousarray(source[..., 0]))
            distance = _key_distance(query, memory.rows("keys", [slot])[0], flow, config)
            distance = (distance - config.reference_bias * bias).clamp(min=0).cpu().numpy()
            ab, difference = _warp_picture(source, picture, flow)
            colors.append(ab)
            costs.append(config.photometric_weight * difference + config.feature_weight * distance)
        warped.append(_blend(np.stack(colors), np.stack(costs), config))
    return torch.from_numpy(np.stack(warped)).to(L.device)


def _warp_picture(source, picture, flow):
    """Warp ``source``, codes of encode_lab8 (S, S, 3), to ``picture``, 8-bit L (S, S). Return the relit ab / 110
    (S, S, 2) and the squared difference in L (S, S)."""
    lightness = picture.astype(np.float32) / 255
    warped_L, ab = decode_lab8(warp(source.astype(np.float32), flow).transpose(2, 0, 1))
    warped_L = warped_L[0]
    return relight(ab.transpose(1, 2, 0), warped_L, lightness), box_blur(np.square(warped_L - lightness))


def _key_distance(query, keys, flow, config):
    """Return the squared distances (S, S) between the keys ``query`` (P, C) of a picture and the ``keys`` (P, C) of a
    remembered frame, warped to the picture along ``flow`` (S, S, 2)."""
    grid, side = config.grid, config.picture_size
    flow = cv2.resize(flow, (grid, grid), interpolation=cv2.INTER_AREA) * (grid / side)
    line = torch.arange(grid, device=keys.device, dtype=torch.float32)
    positions = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1) + torch.from_numpy(flow).to(keys.device)
    warped = F.grid_sample(keys.float().mT.view(1, -1, grid, grid), (2 * positions[None] + 1) / grid - 1,
                           padding_mode="border", align_corners=False)
    distance = (warped.flatten(2).mT - query).square().sum(2).view(1, 1, grid, grid)
    return F.interpolate(distance, (side, side), mode="bilinear", align_corners=False)[0, 0]


def _blend(colors, costs, config):
    """Average k warped colors (k, S, S, 2) by matching costs (k, S, S). Return ab / 110 and confidence (3, S, S)."""
    weights = np.exp(config.cost_inverse_temperature * (costs.min(0) - costs))
    weights /= weights.sum(0)
    color, cost = (weights[..., None] * colors).sum(0), (weights * costs).sum(0)
    cost += np.minimum(cost, config.cost_clamp).mean() / 2
    confidence = 1 / (1 + cost**6)
    return np.concatenate([color, confidence[..., None]], 2).transpose(2, 0, 1)
