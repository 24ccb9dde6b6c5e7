"""Fit a color grade that maps references from another source to the colors of the show.

A cleaned scan, a broadcast and a poster of one show differ in saturation, hue and white balance. The grade is fitted to
cells of the references and of remembered frames that show the same object.
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
    """Constants of the fit, chosen on the drawn episodes (``benchmarks/trials.md``)."""

    sampled_references: int = 32  # maximum number of evenly spaced references to fit to; larger: slower
    min_pairs: int = 20  # matched cells that a fit requires; larger: fewer grades
    color_tolerance: float = 3.0  # difference of Cb and Cr in [-128, 127] up to which colors count as equal
    min_explained_gain: float = 0.1  # share of matches that a grade must explain in addition; larger: fewer grades
    max_gain: float = 2.5  # gains of the saturation outside [1 / max_gain, max_gain] are treated as intentional
    max_hue_rotation: float = 30.0  # degrees; larger rotations are treated as intentional
    max_shift: float = 20.0  # of Cb and Cr in [-128, 127]; stronger tints are treated as intentional


@dataclass(frozen=True)
class Grade:
    """Change of saturation, hue and white balance in the Cb-Cr plane; luma stays. A tone curve may come first."""

    gain: float  # factor of Cb and Cr, > 0
    hue_rotation: float  # degrees
    shift: tuple[float, float]  # added to Cb and Cr, in [-128, 127]
    response: FilmResponse | None = None  # tone curve of L

    @property
    def matrix(self) -> np.ndarray:
        """The affine map (2, 3) of (Cb, Cr, 1)."""
        x, y = (self.gain * f(np.radians(self.hue_rotation)) for f in (np.cos, np.sin))
        return np.array([[x, -y, self.shift[0]], [y, x, self.shift[1]]])

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "Grade":
        """Inverse of ``matrix``."""
        x, y = matrix[:, 0]
        return cls(float(np.hypot(x, y)), float(np.degrees(np.arctan2(y, x))), tuple(matrix[:, 2].tolist()))

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Apply the grade to RGB uint8 (H, W, 3); colors outside sRGB are clipped per channel."""
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
        """Describe the references relative to the show: the inverse of the grade."""
        white = np.hypot(*self.shift) / self.gain
        tint = f", white balance off by {white:.0f} of 255" if white >= 1.5 else ""
        contrast = ", different contrast" if self.response else ""
        return f"saturation {1 / self.gain:.2f} times that of the show, hues rotated by {abs(self.hue_rotation):.0f} " \
               f"degrees{tint}{contrast}"


IDENTITY_GRADE = Grade(1, 0, (0, 0))


def fit_grade(embed: EmbedFrames, memory: SpatialMemory, pictures: Sequence[np.ndarray],
              config: GradeConfig) -> Grade | None:
    """Fit the grade that maps pictures of one source, RGB uint8 (H, W, 3), to the colors of remembered frames.

    Returns None unless it explains clearly more matches than the identity. Pictures with the colors of the show keep
    their lightness too: frames of a film that the user colored have the tone curve of that film.
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
    """Fit a Grade without tone curve by RANSAC over matching cells; None if no grade explains enough of them.

    Frames colored by the user mostly have the colors of the show, so the identity explains them as well. Scenes that
    the show does not contain give matches that no grade explains.
    """
    labs, grid = [rgb_to_lab(picture) for picture in pictures], memory.config.grid
    matches = match_cells(embed, memory, [lab[..., 0] for lab in labs], None, ResponseConfig())
    cells = np.concatenate([resize(lab, grid, grid).reshape(-1, 3) for lab in labs])[matches.cells]
    source, target = _cb_cr(cells), _cb_cr(matches.lab[0])
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
    # Measure errors in the paler of both color scales; otherwise a grade that desaturates would shrink every error.
    errors = np.linalg.norm(source @ matrix[:, :2].T + matrix[:, 2] - target, axis=1) / min(1, grade.gain)
    explained, unchanged = (float((x < config.color_tolerance).mean())
                            for x in (errors, np.linalg.norm(source - target, axis=1)))
    return grade if explained - unchanged > config.min_explained_gain else None


def _cb_cr(lab):
    """Convert Lab (n, 3) to Cb and Cr in [-128, 127], float32 (n, 2)."""
    rgb = cv2.cvtColor(lab.astype(np.float32)[None], cv2.COLOR_Lab2RGB)
    return (cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[0, :, [2, 1]].T - CHROMA_OFFSET) * 255
