"""Propagation of colors from the keyframes of a shot, which the networks color, to its in-between frames.

Neighboring frames of a shot show the same objects, slightly moved. In-between frames take the colors of the keyframes
before and after them along the optical flow. Frames that match neither keyframe (an object appears, moves too fast, or
the exposure changes) become keyframes, too.
"""

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from colorizer.confidence import Confidence
from colorizer.warping.optical_flow import OpticalFlow, photometric_difference, relight, scale_flow, to_flow_image, warp
from dataset import resize


@dataclass
class InBetweenConfig:
    """Constants of the choice of keyframes, chosen in trials (``benchmarks/trials.md``)."""

    keyframe_interval: int = 4  # maximum number of frames per keyframe; larger: faster, less accurate
    flow_size: int = 128  # pixels along a side of the pictures for the flow; larger: slower
    photometric_weight: float = 150.0  # of the squared difference in L in [0, 1]; larger: lower match, more keyframes
    grid: int = 16  # cells along a side for averaging the mismatch; larger: smaller new objects count
    power: int = 8  # of the power mean over the cells; larger: the worst cells count more
    max_mismatch: float = 0.55  # maximum power mean, in [0, 1], of an in-between frame; larger: fewer keyframes


class KeyframeLink(NamedTuple):
    """The match between an in-between frame and a keyframe, at h x h pixels."""

    keyframe: int  # index of the keyframe
    flow: np.ndarray  # float32 (h, h, 2), from the in-between frame to the keyframe
    match: np.ndarray  # float32 (h, h), in [0, 1]: photometric similarity along the flow

    def warp(self, picture: np.ndarray) -> np.ndarray:
        """Warp a map (G, G, C) of the keyframe to the in-between frame."""
        return warp(picture, scale_flow(self.flow, len(picture)))


class InBetweens:
    """N consecutive frames of a shot, divided into keyframes and in-between frames.

    The ``keyframes``, a sorted list of indices, are the middle frames of groups of ``keyframe_interval`` frames, and
    further frames until all others match the keyframes next to them.
    """

    def __init__(self, lightness: np.ndarray, config: InBetweenConfig) -> None:
        """``lightness`` is L (N, H, H) in [0, 100]."""
        self.lightness, self.config, self._flow = lightness, config, OpticalFlow()
        self._pictures = [to_flow_image(L, config.flow_size, config.flow_size) for L in lightness]
        self._links: dict[tuple[int, int], KeyframeLink] = {}
        numbers = np.arange(len(lightness))
        groups = np.array_split(numbers, -(-len(numbers) // config.keyframe_interval))
        self.keyframes = [int(group[len(group) // 2]) for group in groups]
        while unmatched := self._middles_of_unmatched_runs():
            self.keyframes = sorted([*self.keyframes, *unmatched])

    def _middles_of_unmatched_runs(self):
        """Return the middle frame of the unmatched frames between each two keyframes."""
        runs: dict[int, list[int]] = {}
        for number in range(len(self._pictures)):
            if number not in self.keyframes and not self._is_matched(number):
                runs.setdefault(bisect(self.keyframes, number), []).append(number)
        return [run[len(run) // 2] for run in runs.values()]

    def _is_matched(self, number):
        """Return whether the power mean of the mismatch over the grid is small enough. The mean emphasizes compact
        mismatches, such as a new object, over scattered ones along lines."""
        config = self.config
        mismatch = 1 - np.maximum.reduce([link.match for link in self._links_of(number)])
        cells = cv2.resize(mismatch, (config.grid, config.grid), interpolation=cv2.INTER_AREA)
        return (cells**config.power).mean() ** (1 / config.power) <= config.max_mismatch

    def _links_of(self, number):
        """Return the links of a frame to the keyframes before and after it."""
        place = bisect(self.keyframes, number)
        return [self._link(number, keyframe) for keyframe in self.keyframes[max(0, place - 1):place + 1]]

    def _link(self, number, keyframe):
        if (number, keyframe) not in self._links:
            pictures = self._pictures[number], self._pictures[keyframe]
            flow = self._flow(*pictures)
            match = np.exp(-self.config.photometric_weight * photometric_difference(*pictures, flow))
            self._links[number, keyframe] = KeyframeLink(keyframe, flow, match)
        return self._links[number, keyframe]

    def propagate_colors(self, ab: np.ndarray) -> np.ndarray:
        """Return the colors of all frames (N, S, S, 2), given those of the keyframes (k, S, S, 2)."""
        side = ab.shape[1]
        light = [resize(L, side, side) / 100 for L in self.lightness]

        def warp_colors(number, link, ab):
            warped = link.warp(np.dstack([light[link.keyframe], ab]))
            return relight(warped[..., 1:], warped[..., 0], light[number])

        return self._propagate(ab, warp_colors)

    def propagate_confidence(self, confidence: Confidence) -> Confidence:
        """Return the confidence of all frames, given that of the keyframes."""
        maps = self._propagate(np.stack(confidence, 3), lambda number, link, maps: link.warp(maps))
        return Confidence(*np.moveaxis(maps, 3, 0))

    def propagate_embeddings(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the embedding (N, D) of the nearest keyframe for each frame, given those of the keyframes (k, D)."""
        distances = np.abs(np.subtract.outer(np.arange(len(self.lightness)), self.keyframes))
        return embeddings[distances.argmin(1)]

    def _propagate(self, maps: np.ndarray,
                   warp_map: Callable[[int, KeyframeLink, np.ndarray], np.ndarray]) -> np.ndarray:
        """Return maps of all frames, given those of the keyframes (k, G, G, C). In-between frames get the mean of both
        warped maps, weighted by the match of each pixel and the inverse of the temporal distance."""
        of_keyframe, results = dict(zip(self.keyframes, maps, strict=True)), []
        size = maps.shape[1]
        for number in range(len(self.lightness)):
            if number in of_keyframe:
                results.append(of_keyframe[number])
                continue
            links = self._links_of(number)
            weights = np.stack([(resize(link.match, size, size) + np.float32(1e-3)) / abs(number - link.keyframe)
                                for link in links])
            weights /= weights.sum(0)
            results.append(sum(weight[..., None] * warp_map(number, link, of_keyframe[link.keyframe])
                               for weight, link in zip(weights, links, strict=True)))
        return np.stack(results)
