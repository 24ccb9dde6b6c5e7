"""Propagation of colors from keyframes (here: frames colored by the networks) to the in-between frames of a shot.

Colors of the keyframes before and after an in-between frame are warped to it along the optical flow. If a frame matches
neither keyframe (an object appears, moves too fast, or the exposure changes), keyframes are added: the middle frame of
each run of unmatched frames, until every frame matches.
"""

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from colorizer.confidence import Confidence
from colorizer.warping.optical_flow import (
    OpticalFlow, add_scaled, photometric_difference, relight, scale_flow, to_flow_image, warp)
from dataset import AB_SCALE, resize


@dataclass
class InBetweenConfig:
    """Constants of keyframe selection, tuned in ``benchmarks/trials.md``."""

    keyframe_interval: int = 8  # maximum number of frames per initial keyframe; larger: faster, less accurate
    flow_size: int = 128  # pixels along a side of the input of the optical flow; larger: slower
    photometric_weight: float = 150.0  # weight of the squared difference in L in [0, 1]; larger: more keyframes
    grid: int = 16  # cells per side in which mismatch is averaged; larger: smaller objects count
    power: int = 8  # exponent of the power mean over the cells; larger: the worst cells count more
    max_mismatch: float = 0.65  # maximum power mean, in [0, 1], for a frame to match; larger: fewer keyframes


class KeyframeLink(NamedTuple):
    """Optical flow and similarity between an in-between frame and a keyframe, at h x h pixels."""

    keyframe: int  # index of the keyframe
    flow: np.ndarray  # float32 (h, h, 2), from the in-between frame to the keyframe
    match: np.ndarray  # float32 (h, h): photometric similarity along the flow, in [0, 1]

    def warp(self, picture: np.ndarray) -> np.ndarray:
        """Warp a map (h, h, C) of the keyframe, of any size h, to the in-between frame."""
        return warp(picture, scale_flow(self.flow, len(picture)))


class InBetweens:
    """N consecutive frames of a shot, divided into keyframes and in-between frames.

    ``keyframes`` is a sorted list of n indices: the middle frame of each group of at most ``keyframe_interval`` frames,
    and frames added until every other frame matches an adjacent keyframe.
    """

    def __init__(self, lightness: np.ndarray, config: InBetweenConfig) -> None:
        """Select the keyframes, given L (N, H, H) in [0, 100]."""
        self.lightness, self.config, self._flow = lightness, config, OpticalFlow()
        self._pictures = [to_flow_image(L, config.flow_size, config.flow_size) for L in lightness]
        self._links: dict[tuple[int, int], KeyframeLink] = {}
        numbers = np.arange(len(lightness))
        groups = np.array_split(numbers, -(-len(numbers) // config.keyframe_interval))
        self.keyframes = [int(group[len(group) // 2]) for group in groups]
        while unmatched := self._middles_of_unmatched_runs():
            self.keyframes = sorted([*self.keyframes, *unmatched])

    def _middles_of_unmatched_runs(self):
        """Return the middle one of the unmatched frames between each two adjacent keyframes."""
        runs: dict[int, list[int]] = {}
        for number in range(len(self._pictures)):
            if number not in self.keyframes and not self._is_matched(number):
                runs.setdefault(bisect(self.keyframes, number), []).append(number)
        return [run[len(run) // 2] for run in runs.values()]

    def _is_matched(self, number):
        """Return whether the power mean of the mismatch over the grid is at most ``max_mismatch``. The power emphasizes
        compact mismatches, such as a new object, over scattered mismatches along lines."""
        config = self.config
        mismatch = 1 - np.maximum.reduce([link.match for link in self._links_of(number)])
        cells = cv2.resize(mismatch, (config.grid, config.grid), interpolation=cv2.INTER_AREA)
        return (cells**config.power).mean() ** (1 / config.power) <= config.max_mismatch

    def _links_of(self, number):
        """Return the links of a frame to the keyframes before and after it (at the ends of a shot, only one)."""
        place = bisect(self.keyframes, number)
        return [self._link(number, keyframe) for keyframe in self.keyframes[max(0, place - 1):place + 1]]

    def _link(self, number, keyframe):
        if (number, keyframe) not in self._links:
            pictures = self._pictures[number], self._pictures[keyframe]
            flow = self._flow(*pictures)
            match = np.exp(-self.config.photometric_weight * photometric_difference(*pictures, flow))
            self._links[number, keyframe] = KeyframeLink(keyframe, flow, match)
        return self._links[number, keyframe]

    def propagate_colors(self, ab: np.ndarray, known: Callable[[int], np.ndarray] | None = None) -> np.ndarray:
        """Return the colors of all frames (N, S, S, 2), given the colors of the keyframes (n, S, S, 2).

        ``known`` maps the index of a frame to colors that are known from elsewhere in the shot, ab / 110 and the
        confidence in [0, 1], (3, S, S). Colors of in-between frames move towards them in proportion to the confidence.
        """
        side, results = ab.shape[1], []
        light = [resize(L, side, side) / 100 for L in self.lightness]
        pictures = [cv2.merge([light[number], *cv2.split(colors)])
                    for number, colors in zip(self.keyframes, ab, strict=True)]
        for number, (L, picture) in enumerate(zip(light, self._propagate(pictures), strict=True)):
            warped_L, *colors = cv2.split(picture)
            result = relight(cv2.merge(colors), warped_L, L)
            if known and number not in self.keyframes:
                *colors, confidence = known(number)
                result = add_scaled(result, cv2.merge(colors) * np.float32(AB_SCALE) - result, confidence)
            results.append(result)
        return np.stack(results)

    def propagate_confidence(self, confidence: Confidence) -> Confidence:
        """Return the confidence of all frames, given the confidence of the keyframes."""
        maps = np.stack(self._propagate(list(np.stack(confidence, 3))))
        return Confidence(*np.moveaxis(maps, 3, 0))

    def propagate_embeddings(self, embeddings: np.ndarray) -> np.ndarray:
        """Return for each frame the embedding of its nearest keyframe (N, D), given those of the keyframes (n, D)."""
        distances = np.abs(np.subtract.outer(np.arange(len(self.lightness)), self.keyframes))
        return embeddings[distances.argmin(1)]

    def _propagate(self, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return maps of all frames, given the n maps of the keyframes (h, h, C). In-between frames get the weighted
        mean of the maps warped from adjacent keyframes; the weight of a pixel is match / temporal distance."""
        of_keyframe, results = dict(zip(self.keyframes, maps, strict=True)), []
        _, size, channels = maps[0].shape
        for number in range(len(self.lightness)):
            if number in of_keyframe:
                results.append(of_keyframe[number])
                continue
            links = self._links_of(number)
            weights = [(resize(link.match, size, size) + np.float32(1e-3)) / abs(number - link.keyframe)
                       for link in links]
            total = sum(weights)
            # NumPy's broadcasting over the last axis takes 3 times as long as a merged array.
            results.append(sum(link.warp(of_keyframe[link.keyframe]) * cv2.merge([weight / total] * channels)
                               for weight, link in zip(weights, links, strict=True)))
        return results
