"""How sure is a color? What is known of each place of a colored picture: recalled, guessed, or unknown.

Shapes: N pictures, G x G places, K colors that are voted for.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.metrics import LARGE_ERROR
from config import CalibrationConfig
from dataset import AB_SCALE


class Confidence(NamedTuple):
    """What is known of the colors of N pictures, by their places: (N, G, G) each, in [0, 1], tensors or arrays."""

    recalled: Any  # how much of the color comes from the spatial memory; the rest is a guess
    agreement: Any  # share of the joint votes for colors near the painted one; 0 where there are no votes
    probability: Any  # calibrated probability that the painted color is right: within CIEDE2000 LARGE_ERROR of the truth

    @classmethod
    def unknown(cls, count: int) -> "Confidence":
        """What is Known of so many pictures where no memory is read: nan (count, 1, 1)."""
        return cls(*np.full((3, count, 1, 1), np.nan, np.float32))

    def per_picture(self) -> Iterator["Confidence"]:
        """What is Known of one picture after another, (G, G) each."""
        return itertools.starmap(Confidence, zip(*self, strict=True))


def recalled_share(hint: torch.Tensor, carried: torch.Tensor, grid: int) -> torch.Tensor:
    """How much of each of grid x grid places (N, grid, grid) comes from memory: 1 - (1 - h) (1 - c), by the confidences
    of what is looked up, h (N, G, G), and of what is carried along the flow, c (N, S, S), in [0, 1]."""
    guessed = 1 - F.adaptive_avg_pool2d(carried, grid)
    return 1 - guessed * (1 - F.interpolate(hint[:, None], (grid, grid), mode="bilinear", align_corners=False)[:, 0])


def class_agreement(votes: torch.Tensor, palette: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
    """The share (N, G, G) of the votes (N, K, G, G), of sum 1, for those of the colors ``palette`` (K, 2), in Lab
    units, that are near the painted ab (N, 2, S, S) in [-1, 1].

    A color counts as near by exp(-(d / LARGE_ERROR)^2), where d is the CIE94 difference in chroma and hue, in which steps among
    vivid colors are less visible: from a color of chroma C, one in chroma counts 1 / (1 + 0.045 C), one in hue 1 / (1 +
    0.015 C).
    """
    painted = F.adaptive_avg_pool2d(ab.float() * AB_SCALE, votes.shape[2])[:, None]  # (N, 1, 2, G, G)
    steps = palette[:, :, None, None] - painted
    chroma = painted.norm(dim=2)
    along = (steps * painted).sum(2) / chroma.clamp(min=1e-6)
    across = (steps.square().sum(2) - along.square()).clamp(min=0)  # squared
    distance = (along / (1 + 0.045 * chroma)).square() + across / (1 + 0.015 * chroma).square()
    return (votes * (-distance / LARGE_ERROR**2).exp()).sum(1)


def confidence_logits(recalled: torch.Tensor, agreed: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of both, clipped to [``least``, 1 - ``least``], each of the shape that it had."""
    return recalled.clamp(least, 1 - least).logit(), agreed.clamp(least, 1 - least).logit()


def calibrated_probability(recalled: torch.Tensor, agreed: torch.Tensor, config: CalibrationConfig) -> torch.Tensor:
    """The probability, of the shape of both, that a color is right: a logistic model of their ``evidence``, whose
    constants are fit to what is right on shots that were held out (Platt 1999)."""
    memory, votes = confidence_logits(recalled, agreed, config.probability_margin)
    return (config.bias + config.recalled_weight * memory + config.agreement_weight * votes).sigmoid()
