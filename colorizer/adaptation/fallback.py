"""Colors of another program where the predicted ones are uncertain: their grade, their expected error, and blending.

The other program's colors are compared with predicted ones of high confidence, which gives a grade to the colors of the
series and the mean error that remains. A pixel takes the colors whose expected error is lower.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from colorizer.adaptation.reference_grading import Grade, GradeConfig, fit_matched_colors
from colorizer.confidence import Confidence
from colorizer.metrics import LARGE_ERROR, color_differences
from colorizer.warping.optical_flow import OpticalFlow, photometric_difference, scale_flow, to_flow_image, warp
from config import TemporalFilterConfig
from dataset import resize, rgb_to_lab


@dataclass(frozen=True)
class FallbackConfig:
    """Constants of the fallback. Errors are CIEDE2000."""

    sampled_frames: int = 32  # maximum number of frames that the grade and the error are estimated from
    size: int = 192  # pixels along a side of the fallback's colors; larger: sharper, more memory
    min_confidence: float = 0.95  # minimum probability of cells for the estimate; larger: fewer, more certain cells
    min_error: float = 4.0  # lower limit of the estimated error; larger: confident colors change less
    default_error: float = 8.0  # error of the fallback if there are too few confident cells
    steepness: float = 8.0  # exponent of the ratio of errors; larger: narrower range of confidence with mixed colors
    min_correlation: float = 0.5  # minimum correlation of the lightness of film and fallback; below it, they differ


class Sample(NamedTuple):
    """A frame of the film, and the same frame of the fallback."""

    L: np.ndarray  # float32 (H, H) in [0, 100]
    ab: np.ndarray  # predicted, float32 (S, S, 2) in Lab units
    confidence: Confidence  # arrays (G, G)
    fallback: np.ndarray  # RGB uint8 (h, w, 3)


@dataclass(frozen=True)
class FallbackFit:
    """What is known about a fallback."""

    grade: Grade | None = None  # to the colors of the series; None: its colors are used as they are
    error: float = FallbackConfig.default_error  # expected CIEDE2000 after grading

    def colors(self, rgb: np.ndarray) -> np.ndarray:
        """Return the graded ab, float32 (H, W, 2), of RGB uint8 (H, W, 3)."""
        return rgb_to_lab(self.grade(rgb) if self.grade else rgb)[..., 1:]

    def state(self) -> dict[str, Any]:
        """Return the fit as plain values."""
        grade = self.grade
        return {"error": self.error, "grade": grade and [grade.gain, grade.hue_rotation, list(grade.shift)]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "FallbackFit":
        """Create a fit from the result of ``state``."""
        gain, rotation, shift = state["grade"] or (1, 0, (0, 0))
        return cls(Grade(gain, rotation, tuple(shift)) if state["grade"] else None, state["error"])


def fit_fallback(samples: Iterable[Sample], config: FallbackConfig) -> FallbackFit:
    """Estimate the grade and the error of a fallback from the confident cells of ``samples``.

    The grade is None, and the error ``default_error``, if fewer cells than ``GradeConfig.min_pairs`` are confident.
    """
    ours, others = [np.zeros((0, 3), np.float32)], [np.zeros((0, 3), np.float32)]
    for sample in samples:
        probability = sample.confidence.probability
        side = len(probability)
        kept = probability >= config.min_confidence
        ours.append(np.dstack([resize(sample.L, side, side), resize(sample.ab, side, side)])[kept])
        others.append(resize(rgb_to_lab(sample.fallback), side, side)[kept])
    ours, others = np.concatenate(ours), np.concatenate(others)
    if len(ours) < GradeConfig.min_pairs:
        return FallbackFit()
    grade = fit_matched_colors(others, ours, GradeConfig())
    if grade is not None:
        others = _graded(others, grade)
    others[:, 0] = ours[:, 0]
    return FallbackFit(grade, max(config.min_error, float(color_differences(others[None], ours[None]).mean())))


def _graded(lab, grade):
    rgb = cv2.cvtColor(lab[None], cv2.COLOR_Lab2RGB)
    return rgb_to_lab(grade(np.rint(255 * rgb).astype(np.uint8)))[0]


def lightness_correlation(L: np.ndarray, fallback: np.ndarray, side: int = 32) -> float:
    """Return the correlation of L (H, W) with the lightness of a fallback, RGB uint8 (h, w, 3), at side x side pixels;
    1 if one of them is constant."""
    a, b = (resize(plane, side, side).ravel() for plane in (L, rgb_to_lab(fallback)[..., 0]))
    return 1.0 if min(a.std(), b.std()) < 1 else float(np.corrcoef(a, b)[0, 1])


def expected_error(probability: np.ndarray) -> np.ndarray:
    """Return the mean error of colors that are within LARGE_ERROR with ``probability``, for exponentially distributed
    errors: P(error <= x) = 1 - exp(-x / mean)."""
    return -LARGE_ERROR / np.log1p(-np.clip(probability, 1e-3, 1 - 1e-6))


def fallback_weight(confidence: Confidence, error: float, config: FallbackConfig) -> np.ndarray:
    """Return the weight (G, G) in [0, 1] of a fallback with the given ``error``: near 1 where the expected error of the
    predicted colors is larger, and near 0 where it is smaller."""
    own = expected_error(cv2.blur(np.float32(confidence.probability), (3, 3)))**config.steepness
    return own / (own + error**config.steepness)


class FallbackBlender:
    """Blends the predicted colors of consecutive frames of a shot with those of a fallback.

    For a frame without a fallback, that of the frame before is warped along the optical flow, and its weight decreases
    where the frames do not match.
    """

    def __init__(self, fit: FallbackFit, config: FallbackConfig | None = None) -> None:
        self.fit, self.config, self._flow = fit, config or FallbackConfig(), OpticalFlow()
        self._last: tuple[np.ndarray, np.ndarray] | None = None  # lightness for the flow, and colors with weight

    def __call__(self, L: np.ndarray, ab: np.ndarray, confidence: Confidence,
                 colors: np.ndarray | None) -> tuple[np.ndarray, float]:
        """Return the blended ab (S, S, 2) of the next frame and the share of its area that comes from the fallback.

        Takes L (H, H) in [0, 100], the predicted ab (S, S, 2) with its confidence, and graded colors (h, w, 2) of the
        fallback.
        """
        filtering, side = TemporalFilterConfig(), len(ab)
        size = min(filtering.flow_size, side)
        picture = to_flow_image(L, size, size)
        if colors is not None:
            maps = np.dstack([resize(colors.astype(np.float32), side, side), np.ones((side, side), np.float32)])
        elif self._last is not None:
            flow = self._flow(picture, self._last[0])
            maps = warp(self._last[1], scale_flow(flow, side))
            difference = photometric_difference(picture, self._last[0], flow)
            maps[..., 2] *= resize(np.exp(-filtering.photometric_weight * difference), side, side)
        else:
            return ab, 0.0
        self._last = picture, maps
        weight = maps[..., 2] * resize(fallback_weight(confidence, self.fit.error, self.config), side, side)
        return ab + weight[..., None] * (maps[..., :2] - ab), float(weight.mean())
