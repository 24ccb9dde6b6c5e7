"""Propagation of known colors through a shot: from anchors, frames that the memory holds, to all other frames.

From each anchor, colors are handed on in both directions of time. A frame takes the color of each pixel from one of its
sources: frames at several distances in the direction of the anchor, and the anchor itself. The best source is the one
with the highest confidence, which decays with the matching cost along the optical flow. Short distances follow fast
motion, long ones avoid accumulated errors, and the anchor corrects drift. A region of even lightness whose pixels are
uncertain gets the mean color of its certain pixels. Between two anchors, colors are weighted by confidence.

Pictures are S x S pixels; indices of frames are counted from the start of the shot.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb

from colorizer.warping.optical_flow import (
    OpticalFlow, add_scaled, flow_inconsistency, photometric_difference, relight, to_flow_image, warp)
from dataset import AB_SCALE, resize

SIGNATURE = 16  # pixels along a side of the pictures by which frames of the film are recognized


@dataclass(frozen=True)
class PropagationConfig:
    """Constants of the propagation, tuned on real films (``benchmarks/trials.md``)."""

    frame_step: int = 3  # one in this many frames is processed; larger: faster, loses fast motion
    source_distances: tuple[int, ...] = (1, 8)  # processed frames between a frame and its sources
    photometric_weight: float = 100.0  # weight of squared differences of L (in [0, 1]) in the matching cost
    inconsistency_weight: float = 0.3  # weight of ``flow_inconsistency``
    hop_cost: float = 0.01  # cost of each step from frame to frame; larger: confidence decays faster
    confidence_power: float = 0.5  # exponent of the confidence; smaller: propagated colors weigh more
    region_scale: float = 60.0  # scale of the segmentation; larger: larger regions
    region_weight: float = 0.7  # confidence of the mean color of a region; larger: more pixels get it
    region_variance: float = 200.0  # variance of ab in a region that divides its confidence by e
    max_frames: int = 500  # maximum number of processed frames on either side of an anchor; 150 kB each
    candidates: int = 64  # remembered frames that are compared with the frames of a shot, the most similar ones
    max_anchors: int = 8  # maximum number of anchors in a shot
    max_difference: float = 6.0  # mean difference of signatures, of 255, up to which a picture is an anchor


class Anchor(NamedTuple):
    """A picture of the memory that shows a frame of the shot."""

    frame: int  # the most similar frame, counted from the start of the shot
    picture: np.ndarray  # uint8 (S, S, 3): L in units of 100 / 255, ab + 128
    digest: bytes


class ColoredPicture(NamedTuple):
    """A frame with propagated colors."""

    L: np.ndarray  # uint8 (S, S), L in units of 100 / 255
    ab: np.ndarray  # int8 (S, S, 2) in Lab units
    confidence: np.ndarray  # uint8 (S, S), confidence in units of 1 / 255


def signature(L: np.ndarray) -> np.ndarray:
    """Return the signature, uint8 (SIGNATURE, SIGNATURE), of a picture with L uint8 (H, W)."""
    return cv2.resize(L, (SIGNATURE, SIGNATURE), interpolation=cv2.INTER_AREA)


def find_anchor_frames(signatures: np.ndarray, pictures: Iterable[np.ndarray],
                       config: PropagationConfig) -> list[tuple[int, int]]:
    """Find pictures, L uint8 (S, S) each, among the frames of a shot with ``signatures`` (n, SIGNATURE, SIGNATURE).

    Return (frame in the shot, picture) of at most ``max_anchors`` pictures, sorted, each frame at most once.
    """
    frames: dict[int, tuple[float, int]] = {}
    for number, L in enumerate(pictures):
        differences = np.abs(signatures.astype(np.int16) - signature(L)).mean((1, 2))
        frame = int(differences.argmin())
        if differences[frame] <= config.max_difference:
            frames[frame] = min(frames.get(frame, (np.inf, 0)), (float(differences[frame]), number))
    best = sorted(frames, key=frames.__getitem__)[:config.max_anchors]
    return sorted((frame, frames[frame][1]) for frame in best)


class ShotColors:
    """Propagated colors of the processed frames of a shot; called with any frame, returns its colors."""

    def __init__(self, frames: dict[int, ColoredPicture], config: PropagationConfig) -> None:
        self.frames, self.config, self.numbers = frames, config, sorted(frames)

    def __call__(self, index: int, lightness: np.ndarray) -> np.ndarray:
        """Return ab / 110 and the confidence in [0, 1], float32 (3, S, S), of a frame with L (H, W) in [0, 100]. The
        colors of a frame that was not processed are those of the nearest processed frame, warped."""
        place = bisect_left(self.numbers, index)
        near = min(self.numbers[max(0, place - 1):place + 1], key=lambda number: abs(number - index))
        frame = self.frames[near]
        if near == index:
            ab, confidence = frame.ab.astype(np.float32), frame.confidence.astype(np.float32) / 255
        else:
            ab, confidence = _match(to_flow_image(lightness, *frame.L.shape), frame, self.config)
        confidence = confidence[None] ** self.config.confidence_power
        return np.concatenate([ab.transpose(2, 0, 1) / np.float32(AB_SCALE), confidence])


def propagate(pictures: dict[int, np.ndarray], anchors: Sequence[Anchor], config: PropagationConfig) -> ShotColors:
    """Propagate the colors of ``anchors`` to the frames ``pictures``, {index: L uint8 (S, S)} of one shot."""
    numbers, results = sorted(pictures), dict[int, list[ColoredPicture]]()
    for place, anchor in enumerate(anchors):
        for direction, other in ((1, anchors[place + 1:place + 2]), (-1, anchors[place - 1:place] if place else [])):
            run = [number for number in numbers if direction * (number - anchor.frame) >= 0
                   and not (other and direction * (number - other[0].frame) > 0)]
            for number, result in _propagate_from(anchor, run[::direction][:config.max_frames], pictures, config):
                results.setdefault(number, []).append(result)
    return ShotColors({number: _blend(found) for number, found in results.items()}, config)


def _propagate_from(anchor, run, pictures, config):
    """Yield (index, ColoredPicture) of the frames ``run``, in order of their distance from the anchor."""
    picture = anchor.picture
    origin = ColoredPicture(np.ascontiguousarray(picture[..., 0]), (picture[..., 1:].astype(np.int16) - 128).astype(
        np.int8), np.full(picture.shape[:2], 255, np.uint8))
    done: list[ColoredPicture] = []
    for number in run:
        sources = [origin, *(done[-distance] for distance in config.source_distances if distance <= len(done))]
        L = pictures[number]
        ab, confidence = _match(L, sources[0], config)
        for source in sources[1:]:
            other_ab, other = _match(L, source, config)
            better = other > confidence
            ab, confidence = np.where(better[..., None], other_ab, ab), np.where(better, other, confidence)
        result = _pack(L, *_fill_regions(L, ab, confidence, config))
        done.append(result)
        yield number, result


def _match(L, source, config):
    """Warp the colors of a ColoredPicture to a frame with L uint8 (S, S). Return ab (S, S, 2), adapted to L, and the
    confidence (S, S)."""
    flow = OpticalFlow()
    forward, backward = flow(L, source.L), flow(source.L, L)
    cost = config.photometric_weight * photometric_difference(L, source.L, forward) + config.hop_cost
    cost += config.inconsistency_weight * np.minimum(flow_inconsistency(forward, backward), 4)
    maps = cv2.merge([plane.astype(np.float32) for plane in (source.L, *cv2.split(source.ab), source.confidence)])
    warped_L, a, b, confidence = cv2.split(warp(maps, forward))
    ab = relight(cv2.merge([a, b]), warped_L / 255, L.astype(np.float32) / 255)
    return ab, confidence / 255 * np.exp(-cost)


def _fill_regions(L, ab, confidence, config):
    """Give uncertain pixels the mean color of the certain pixels of their region. Return ab and confidence.

    Pictures are segmented at half their size (Felzenszwalb and Huttenlocher 2004).
    """
    half = [side // 2 for side in L.shape]
    picture, small_ab, weight = (resize(x, *half) for x in (L.astype(np.float32) / 255, ab, confidence + 1e-6))
    regions = felzenszwalb(picture, config.region_scale, sigma=0.6, min_size=6)
    flat, count = regions.ravel(), int(regions.max()) + 1
    total = np.bincount(flat, weight.ravel(), count)

    def mean(values):
        return np.bincount(flat, (weight * values).ravel(), count) / total

    colors = np.stack([mean(channel) for channel in cv2.split(small_ab)], 1)
    variance = mean(np.square(small_ab - colors[regions]).sum(2))
    certain = config.region_weight * total / np.bincount(flat) * np.exp(-variance / config.region_variance)
    regions = cv2.resize(regions.astype(np.uint16), L.shape[::-1], interpolation=cv2.INTER_NEAREST)
    certain, colors = certain[regions].astype(np.float32), colors[regions].astype(np.float32)
    share = certain / (certain + confidence + 1e-6) * np.clip((certain - confidence) / 0.2 + 0.5, 0, 1)
    return add_scaled(ab, colors - ab, share), np.maximum(confidence, certain)


def _blend(found):
    """Return the mean of ColoredPictures of one frame, weighted by the 4th power of the confidence."""
    if len(found) == 1:
        return found[0]
    confidence = np.stack([frame.confidence for frame in found]).astype(np.float32) / 255
    weight = (confidence + 1e-3)**4
    weight /= weight.sum(0)
    ab = (weight[..., None] * np.stack([frame.ab for frame in found])).sum(0)
    return _pack(found[0].L, ab, (weight * confidence).sum(0))


def _pack(L, ab, confidence):
    return ColoredPicture(L, np.rint(ab).clip(-127, 127).astype(np.int8),
                          np.rint(255 * confidence).clip(0, 255).astype(np.uint8))
