"""What colors have the drawings between those that the networks paint? Theirs, along the optical flow.

Neighboring drawings of a shot show the same things, moved a little. So the networks paint some of them, and the others
take what was painted before and behind them along the motion, from where it leads to the same lightness. A drawing of
which too much fits neither (something comes into view, moves too fast, or is lit otherwise) is painted, too.
"""

from bisect import bisect
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from colorizer.confidence import Confidence
from colorizer.warping.optical_flow import OpticalFlow, photometric_difference, relight, scale_flow, to_flow_image, warp
from config import InBetweenConfig, PaletteClassifierConfig
from dataset import resize

PLACES = 16  # along a side of a drawing, that fit or do not
POWER = 8  # of the mean over these


class KeyframeLink(NamedTuple):
    """How a drawing hangs together with a painted one, h x h pixels."""

    other: int  # the painted one's number
    flow: np.ndarray  # float32 (h, h, 2), from the drawing to the painted one
    fit: np.ndarray  # float32 (h, h), in [0, 1]: how much a pixel looks like the one that the flow leads to

    def carried(self, picture: np.ndarray) -> np.ndarray:
        """A map (G, G, C) of the painted drawing, brought to the other one."""
        return warp(picture, scale_flow(self.flow, len(picture)))


class InBetweens:
    """N drawings of one shot, in order, of which some are ``painted``: the numbers of those that the networks paint are
    the middles of each ``every``, and others until all that is left fits these."""

    def __init__(self, lightness: np.ndarray, votes: PaletteClassifierConfig, config: InBetweenConfig) -> None:
        """``lightness`` L (N, H, H) in [0, 100]."""
        self.lightness, self.config, self._flow = lightness, config, OpticalFlow()
        self._pictures = [to_flow_image(L, votes.flow_size, votes.flow_size) for L in lightness]
        self._ties: dict[tuple[int, int], KeyframeLink] = {}
        numbers = np.arange(len(lightness))
        groups = np.array_split(numbers, -(-len(numbers) // votes.keyframe_interval))
        self.painted = [int(group[len(group) // 2]) for group in groups]
        while missing := self._missing():
            self.painted = sorted([*self.painted, *missing])

    def _missing(self) -> list[int]:
        """Of each run of drawings beside each other that do not fit, the middle."""
        runs: dict[int, list[int]] = {}
        for number in range(len(self._pictures)):
            if number not in self.painted and not self._fits(number):
                runs.setdefault(bisect(self.painted, number), []).append(number)
        return [run[len(run) // 2] for run in runs.values()]

    def _fits(self, number):
        """Whether enough of a drawing looks like the painted ones beside it. How much of each of PLACES x PLACES places
        does not, in a mean of POWER: a hand that comes into view counts more than as much of lines here and there."""
        unlike = 1 - np.maximum.reduce([tie.fit for tie in self._beside(number)])
        places = cv2.resize(unlike, (PLACES, PLACES), interpolation=cv2.INTER_AREA)
        return (places**POWER).mean() ** (1 / POWER) <= self.config.max_mismatch

    def _beside(self, number):
        """The Ties to the painted drawings before and behind one."""
        place = bisect(self.painted, number)
        return [self._tie(number, other) for other in self.painted[max(0, place - 1):place + 1]]

    def _tie(self, number, other):
        if (number, other) not in self._ties:
            picture, painted = self._pictures[number], self._pictures[other]
            flow = self._flow(picture, painted)
            fit = np.exp(-self.config.photometric_weight * photometric_difference(picture, painted, flow))
            self._ties[number, other] = KeyframeLink(other, flow, fit)
        return self._ties[number, other]

    def colors(self, painted: np.ndarray) -> np.ndarray:
        """The colors ab (p, S, S, 2) of the drawings that are painted -> those of all, (N, S, S, 2)."""
        side = painted.shape[1]
        light = [resize(L, side, side) / 100 for L in self.lightness]

        def take(number, tie, ab):
            there = tie.carried(np.dstack([light[tie.other], ab]))
            return relight(there[..., 1:], there[..., 0], light[number])

        return self._all(painted, take)

    def known(self, painted: Confidence) -> Confidence:
        """What is Known of the drawings that are painted -> of all."""
        maps = self._all(np.stack(painted, 3), lambda number, tie, known: tie.carried(known))
        return Confidence(*np.moveaxis(maps, 3, 0))

    def looks(self, painted: np.ndarray) -> np.ndarray:
        """The looks (p, D) of the drawings that are painted -> (N, D): for all, those of the nearest painted one."""
        distances = np.abs(np.subtract.outer(np.arange(len(self.lightness)), self.painted))
        return painted[distances.argmin(1)]

    def _all(self, painted: np.ndarray, take: Callable[[int, KeyframeLink, np.ndarray], np.ndarray]) -> np.ndarray:
        """Maps (p, G, G, C) of the drawings that are painted -> of all. What the others ``take`` from both sides is
        mixed by how well a pixel fits, and how near the painted drawing is."""
        of, found = dict(zip(self.painted, painted, strict=True)), []
        size = painted.shape[1]
        for number in range(len(self.lightness)):
            if number in of:
                found.append(of[number])
                continue
            ties = self._beside(number)
            weights = np.stack([(resize(tie.fit, size, size) + np.float32(1e-3)) / abs(number - tie.other)
                                for tie in ties])
            weights /= weights.sum(0)
            found.append(sum(weight[..., None] * take(number, tie, of[tie.other])
                             for weight, tie in zip(weights, ties, strict=True)))
        return np.stack(found)
