"""Which colors does another source have? What brings its pictures to the colors of the show.

A cleaned scan, a broadcast and a poster of one show differ in saturation, hue and white balance. Where both show the
same thing, the memory tells which color became which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from colorizer.adaptation.film_response import FilmResponse, fit_tone_curve, match
from colorizer.backbone import Features
from colorizer.memory.spatial_memory import SpatialMemory
from config import GradeConfig, ResponseConfig
from dataset import lab_to_rgb, resize, rgb_to_lab


@dataclass(frozen=True)
class Grade:
    """A change of colors as the controls for saturation, hue and white balance make it: Cb and Cr are scaled, turned
    and moved, and luma stays. Of another gray, L is first brought to the show's."""

    gain: float  # > 0
    turn: float  # degrees
    shift: tuple[float, float]  # of Cb and Cr in [-128, 127]
    response: FilmResponse | None = None  # of L

    @property
    def matrix(self) -> np.ndarray:
        """(2, 3), of (Cb, Cr, 1)."""
        x, y = (self.gain * f(np.radians(self.turn)) for f in (np.cos, np.sin))
        return np.array([[x, -y, self.shift[0]], [y, x, self.shift[1]]])

    @classmethod
    def of(cls, matrix: np.ndarray) -> "Grade":
        """The inverse of ``matrix``."""
        x, y = matrix[:, 0]
        return cls(float(np.hypot(x, y)), float(np.degrees(np.arctan2(y, x))), tuple(matrix[:, 2].tolist()))

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """RGB uint8 (H, W, 3) -> the same; what leaves sRGB is clipped channel by channel."""
        if self.response is not None:
            lab = rgb_to_lab(picture)
            lab[..., 0] = self.response(lab[..., 0])
            picture = lab_to_rgb(lab)
        codes = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2YCrCb)
        codes[..., [2, 1]] = cv2.transform(codes[..., [2, 1]] - _MIDDLE, self.matrix / [1, 1, 255]) + _MIDDLE
        rgb = cv2.cvtColor(codes, cv2.COLOR_YCrCb2RGB)
        return (255 * rgb).round().clip(0, 255).astype(np.uint8)

    def __str__(self) -> str:
        """What the pictures are like beside the show."""
        white = np.hypot(*self.shift) / self.gain
        tint = f", and their white is off by {white:.0f} of 255" if white >= 1.5 else ""
        return (f"{1 / self.gain:.2f} times as saturated as the show, with hues turned by {abs(self.turn):.0f} "
                f"degrees{tint}{', and they have another contrast' if self.response else ''}")


_MIDDLE = 0.5  # of Cb and Cr by OpenCV, of float pictures
PLAIN = Grade(1, 0, (0, 0))


def fit_grade(see: Callable[[Sequence[np.ndarray]], Features], memory: SpatialMemory, pictures: Sequence[np.ndarray],
               config: GradeConfig) -> Grade | None:
    """The Grade that brings pictures of one source, RGB uint8 (H, W, 3), of which the backbone can ``see`` the L, to
    the colors in memory; None where none explains clearly more than that they are the same.

    Their gray is left alone where their colors are: frames that were painted have that of a film, for which another
    Response may be found.
    """
    if memory.pinned.all():
        return None
    pictures = pictures[::-(-len(pictures) // config.sampled_references)]
    grade = _explain(see, memory, pictures, config)
    if grade is None:
        return None
    response, _ = fit_tone_curve(see, memory, [rgb_to_lab(picture)[..., 0] for picture in pictures], ResponseConfig())
    if response is None:
        return grade
    mend = replace(PLAIN, response=response)
    return replace(_explain(see, memory, [mend(picture) for picture in pictures], config) or PLAIN, response=response)


def _explain(see, memory, pictures, config):
    """``fit_grade`` for pictures of the show's gray.

    It is found by RANSAC over pairs of places that look most like each other. Of frames that were painted anew, most
    keep their colors, so that these stand for themselves and nothing is found; pictures of what the show never showed
    have pairs, too, but no Grade that explains them.
    """
    labs, grid = [rgb_to_lab(picture) for picture in pictures], memory.config.grid
    pairs = match(see, memory, [lab[..., 0] for lab in labs], None, ResponseConfig())
    own = _chroma(np.concatenate([resize(lab, grid, grid).reshape(-1, 3) for lab in labs])[pairs.places])
    known = _chroma(np.column_stack([pairs.known, pairs.ab]))
    if len(own) < config.min_pairs:
        return None
    matrix, _ = cv2.estimateAffinePartial2D(own, known, method=cv2.RANSAC, ransacReprojThreshold=config.color_tolerance)
    if matrix is None:
        return None
    grade = Grade.of(matrix)
    if not (1 / config.max_gain < grade.gain < config.max_gain and abs(grade.turn) < config.max_hue_rotation
            and np.hypot(*grade.shift) < config.max_shift):
        return None
    # Near in both colors, theirs and ours: what makes all colors paler brings all of them nearer to each other.
    off = np.linalg.norm(own @ matrix[:, :2].T + matrix[:, 2] - known, axis=1) / min(1, grade.gain)
    explained, same = (float((x < config.color_tolerance).mean()) for x in (off, np.linalg.norm(own - known, axis=1)))
    return grade if explained - same > config.min_explained_gain else None


def _chroma(lab):
    """Lab (n, 3) -> Cb and Cr in [-128, 127], float32 (n, 2)."""
    rgb = cv2.cvtColor(lab.astype(np.float32)[None], cv2.COLOR_Lab2RGB)
    return (cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[0, :, [2, 1]].T - _MIDDLE) * 255
