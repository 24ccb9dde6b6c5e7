"""Color grading of references from a different source, to match the colors of the series.

Restored scans, broadcasts and posters of a series differ in saturation, hue and white balance. The grade is fitted to
matching cells of the references and of remembered frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from colorizer.adaptation.film_response import EmbedFrames, FilmResponse, ResponseConfig, fit_tone_curve, match_cells
from colorizer.memory.spatial_memory import SpatialMemory
from dataset import lab_to_rgb, resize, rgb_to_lab

CHROMA_OFFSET = 0.5  # Cb and Cr of gray in OpenCV's float YCrCb


@dataclass
class GradeConfig:
    """Constants of the fit, tuned on the drawn episodes (``benchmarks/trials.md``)."""

    sampled_references: int = 32  # maximum number of evenly spaced references in the fit; larger: slower
    min_pairs: int = 20  # minimum number of matched cells; larger: fewer grades
    color_tolerance: float = 3.0  # difference of Cb and Cr in [-128, 127] up to which colors count as equal
    min_explained_gain: float = 0.1  # minimum increase of the share of explained matches; larger: fewer grades
    max_gain: float = 2.5  # saturation gains outside [1 / max_gain, max_gain] are treated as intentional
    max_hue_rotation: float = 30.0  # degrees; larger rotations are treated as intentional
    max_shift: float = 20.0  # of Cb and Cr in [-128, 127]; stronger tints are treated as intentional


@dataclass(frozen=True)
class Grade:
    """Change of saturation, hue and white balance in the Cb-Cr plane, after an optional tone curve. Luma is kept."""

    gain: float  # factor of Cb and Cr, > 0
    hue_rotation: float  # degrees
    shift: tuple[float, float]  # added to Cb and Cr, in [-128, 127]
    response: FilmResponse | None = None  # tone curve, applied to L first

    @property
    def matrix(self) -> np.ndarray:
        """Affine matrix (2, 3) that maps (Cb, Cr, 1) to the graded (Cb, Cr)."""
        x, y = (self.gain * f(np.radians(self.hue_rotation)) for f in (np.cos, np.sin))
        return np.array([[x, -y, self.shift[0]], [y, x, self.shift[1]]])

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "Grade":
        """Create a grade, without tone curve, from the result of ``matrix``."""
        x, y = matrix[:, 0]
        return cls(float(np.hypot(x, y)), float(np.degrees(np.arctan2(y, x))), tuple(matrix[:, 2].tolist()))

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Apply the grade to RGB uint8 (H, W, 3). Colors outside sRGB are clipped per channel."""
        if self.response is not None:
            lab = rgb_to_lab(picture)
            lab[..., 0] = self.response(lab[..., 0])
            picture = lab_to_rgb(lab)
        ycrcb = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2YCrCb)
        ycrcb[..., [2, 1]] = (cv2.transform(ycrcb[..., [2, 1]] - CHROMA_OFFSET, self.matrix / [1, 1, 255])
                              + CHROMA_OFFSET)
        rgb = cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB)
        return (255 * rgb).round().clip(0, 255).astype(np.uint8)

    def __str__(self) -> str:
        """Describe the inverse of the grade: how the references differ from the series."""
        white = np.hypot(*self.shift) / self.gain
        tint = f", white balance off by {white:.0f} of 255" if white >= 1.5 else ""
        contrast = ", different contrast" if self.response else ""
        return f"saturation {1 / self.gain:.2f} times that of the series, hues rotated by " \
               f"{abs(self.hue_rotation):.0f} degrees{tint}{contrast}"


IDENTITY_GRADE = Grade(1, 0, (0, 0))


def fit_grade(embed: EmbedFrames, memory: SpatialMemory, pictures: Sequence[np.ndarray],
              config: GradeConfig) -> Grade | None:
    """Fit the grade that maps pictures of one source, RGB uint8 (H, W, 3), to the colors of remembered frames.

    Return None if no grade explains clearly more matches than the identity, or if all frames in memory are pinned. No
    tone curve is fitted then: frames of a film that the user colored must keep the tone curve of that film.
    """
    if memory.pinned.all():
        return None
    pictures = pictures[::-(-len(pictures) // config.sampled_references)]
    grade = _fit_chroma(embed, memory, pictures, config)
    if grade is None:
        return None
    response, _ = fit_tone_curve(embed, memory, [rgb_to_lab(picture)[..., 0] for picture in pictures], ResponseConfig())
    if response is None:
        return grade
    toned = list(map(replace(IDENTITY_GRADE, response=response), pictures))
    return replace(_fit_chroma(embed, memory, toned, config) or IDENTITY_GRADE, response=response)


def _fit_chroma(embed, memory, pictures, config):
    """Fit a Grade without tone curve to matching cells. Return None if no grade explains enough of them."""
    labs, grid = [rgb_to_lab(picture) for picture in pictures], memory.config.grid
    matches = match_cells(embed, memory, [lab[..., 0] for lab in labs], None, ResponseConfig())
    cells = np.concatenate([resize(lab, grid, grid).reshape(-1, 3) for lab in labs])[matches.cells]
    return fit_matched_colors(cells, matches.lab[0], config)


def fit_matched_colors(source_lab: np.ndarray, target_lab: np.ndarray, config: GradeConfig) -> Grade | None:
    """Fit the grade, without tone curve, that maps colors, Lab (n, 3), to those that they should have, by RANSAC.

    Return None if no grade explains clearly more of them than the identity. Frames colored by the user mostly have the
    colors of the series, so the identity explains them equally well. Scenes that do not occur in the series give
    matches that no grade explains.
    """
    source, target = _cb_cr(source_lab), _cb_cr(target_lab)
    if len(source) < config.min_pairs:
        return None
    matrix, _ = cv2.estimateAffinePartial2D(source, target, method=cv2.RANSAC,
                                            ransacReprojThreshold=config.color_tolerance)
    if matrix is None:
        return None
    grade = Grade.from_matrix(matrix)
    if not (1 / config.max_gain < grade.gain < config.max_gain and abs(grade.hue_rotation) < config.max_hue_rotation
            and np.hypot(*grade.shift) < config.max_shift):
        return None
    # Measure errors at the higher saturation, before or after the gain: a gain below 1 must not shrink all errors.
    errors = np.linalg.norm(source @ matrix[:, :2].T + matrix[:, 2] - target, axis=1) / min(1, grade.gain)
    explained, unchanged = (float((x < config.color_tolerance).mean())
                            for x in (errors, np.linalg.norm(source - target, axis=1)))
    return grade if explained - unchanged > config.min_explained_gain else None


def _cb_cr(lab):
    """Convert Lab (n, 3) to Cb and Cr in [-128, 127], float32 (n, 2)."""
    rgb = cv2.cvtColor(lab.astype(np.float32)[None], cv2.COLOR_Lab2RGB)
    return (cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[0, :, [2, 1]].T - CHROMA_OFFSET) * 255
