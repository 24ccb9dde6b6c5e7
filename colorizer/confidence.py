"""Confidence of predicted colors: how much of a color comes from memory, how well the classifier agrees with it, and
the calibrated probability that it is right.

Shapes: N pictures, G cells along a side of the grid, K palette colors, S pixels along a side of the predicted colors.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.metrics import LARGE_ERROR
from dataset import AB_SCALE

PRIOR = (0.0, 0.6, 1.0, 0.2, 0.9)  # coefficients of the calibration where there is nothing to fit them to


class Confidence(NamedTuple):
    """Confidence of the colors of N pictures by grid cell: tensors or arrays (N, G, G) in [0, 1]."""

    recalled: Any  # share of the color that comes from the spatial memory; the networks predict the rest
    agreement: Any  # joint probability of the classes near the color; 0 without a palette classifier
    probability: Any  # calibrated probability that the color is within CIEDE2000 LARGE_ERROR of the ground truth

    @classmethod
    def unknown(cls, count: int) -> "Confidence":
        """Return NaN (count, 1, 1) for ``count`` pictures that were colored without a spatial memory."""
        return cls(*np.full((3, count, 1, 1), np.nan, np.float32))

    def per_picture(self) -> Iterator["Confidence"]:
        """Iterate over the pictures: one Confidence with arrays (G, G) for each."""
        return itertools.starmap(Confidence, zip(*self, strict=True))


def recalled_share(attended: torch.Tensor, warped: torch.Tensor, grid: int) -> torch.Tensor:
    """Return the share (N, grid, grid) of each cell that is recalled: 1 - (1 - a) (1 - w).

    a is the confidence ``attended`` (N, h, h) and w is the confidence ``warped`` (N, S, S), both resized to the grid.
    """
    predicted = 1 - F.adaptive_avg_pool2d(warped, grid)
    attended = F.interpolate(attended[:, None], (grid, grid), mode="bilinear", align_corners=False)[:, 0]
    return 1 - predicted * (1 - attended)


def class_agreement(probabilities: torch.Tensor, palette: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
    """Return the total probability (N, G, G) of the classes near the predicted color, weighted by
    exp(-(d / LARGE_ERROR)^2), where d is the CIE94 difference of class and prediction, without lightness.

    Args: class probabilities (N, K, G, G); ``palette`` (K, 2) in Lab units; predicted ab (N, 2, S, S) in [-1, 1].
    """
    color = F.adaptive_avg_pool2d(ab.float() * AB_SCALE, probabilities.shape[2])[:, None]  # (N, 1, 2, G, G)
    steps = palette[:, :, None, None] - color  # (N, K, 2, G, G)
    chroma = color.norm(dim=2)
    chroma_step = (steps * color).sum(2) / chroma.clamp(min=1e-6)
    hue_step_squared = (steps.square().sum(2) - chroma_step.square()).clamp(min=0)
    squared_distance = ((chroma_step / (1 + 0.045 * chroma)).square()
                        + hue_step_squared / (1 + 0.015 * chroma).square())
    return (probabilities * (-squared_distance / LARGE_ERROR**2).exp()).sum(1)


def calibration_inputs(recalled: torch.Tensor, agreement: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """Return the inputs (N, G, G, 5) of the logistic model of ``calibrated_probability``.

    They are 1, m logit(recalled), (1 - m) logit(agreement), logit(m) and logit(similarity), where m is the mean of
    ``recalled`` over a picture, and ``similarity`` (N,) that of the picture to the nearest remembered frame. If little
    of a picture is recalled, matches are accidental, and the agreement matters instead.
    """
    mean = recalled.mean((1, 2), keepdim=True)
    ones = torch.ones_like(recalled)
    known, predicted = mean * _logit(recalled, 0.001), (1 - mean) * _logit(agreement, 0.001)
    picture = [_logit(x, 0.02) * ones for x in (mean, similarity[:, None, None])]
    return torch.stack([ones, known, predicted, *picture], -1)


def _logit(share, margin):
    return share.clamp(margin, 1 - margin).logit()


def calibrated_probability(inputs: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Return the probability (N, G, G) that colors are right, from a logistic model (Platt 1999) with ``coefficients``
    (5,) of the ``calibration_inputs`` (N, G, G, 5)."""
    return (inputs @ coefficients).sigmoid()
