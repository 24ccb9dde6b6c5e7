"""Image quality metrics against ground truth, and functions that detect color in pictures."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

from dataset import L_SCALE, resize

AB_PEAK = 220  # peak for the PSNR of ab: the width of its range
LARGE_ERROR = 10  # CIEDE2000 above which a pixel clearly has a different color
CHUNK_PIXELS = 2**14  # pixels compared at a time, whose intermediate results fit into a CPU cache
EVALUATION_PIXELS = 720 * 576  # larger pictures are downscaled to about this many pixels


def color_differences(lab: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """Return the CIEDE2000 of each pixel (...) between two Lab pictures (..., 3); 1 is a just visible difference."""
    pixels, true_pixels = lab.reshape(-1, 3), ground_truth.reshape(-1, 3)
    parts = (slice(first, first + CHUNK_PIXELS) for first in range(0, max(1, len(pixels)), CHUNK_PIXELS))
    differences = [deltaE_ciede2000(true_pixels[part], pixels[part], channel_axis=-1) for part in parts]
    return np.concatenate(differences).reshape(lab.shape[:-1])


def ciede2000(lab: np.ndarray, ground_truth: np.ndarray) -> float:
    """Return the mean of ``color_differences``."""
    return float(color_differences(lab, ground_truth).mean())


def psnr(mean_squared_error: float, peak: float) -> float:
    """Return the peak signal-to-noise ratio in dB, inf for an error of 0.

    For a set of pictures, pass the mean over the set: a mean of PSNRs would be infinite if one picture is exact.
    """
    return 10 * math.log10(peak**2 / mean_squared_error) if mean_squared_error else math.inf


def colorfulness(rgb: np.ndarray) -> float:
    """Return the colorfulness of RGB (H, W, 3) in [0, 255] by Hasler and Suesstrunk (2003): 0 gray, 33 moderate, 82
    high."""
    red, green, blue = np.moveaxis(rgb.astype(np.float32), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def has_color(rgb: np.ndarray) -> bool:
    """Return whether a picture, RGB uint8 (H, W, 3), has more color than coding noise. A tint counts as color.

    True if max(RGB) - min(RGB) exceeds 1 on average, or 16 in over 0.1 % of the pixels.
    """
    red, green, blue = cv2.split(rgb)
    spread = cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)
    return bool(spread.mean() > 1 or (spread > 16).mean() > 0.001)


def shot_has_color(pictures: Sequence[np.ndarray]) -> bool:
    """Return whether pictures of one shot, RGB uint8 (H, W, 3), have colors that do not depend on lightness alone.

    Unlike in ``has_color``, sepia and other tints, chroma noise, a logo in a corner and color fringes do not count. A
    polynomial of degree 2 in L is fitted to ab of the mean picture at 32 x 32 pixels. The shot has color if the
    residual exceeds 5 in over a quarter of these pixels.
    """
    small = [resize(picture, 32, 32) for picture in pictures]
    lab = cv2.cvtColor(np.mean(small, 0, dtype=np.float32) / 255, cv2.COLOR_RGB2Lab).reshape(-1, 3)
    powers = np.vander(lab[:, 0] / L_SCALE, 3)
    residuals = lab[:, 1:] - powers @ np.linalg.lstsq(powers, lab[:, 1:], rcond=None)[0]
    return bool((np.linalg.norm(residuals, axis=1) > 5).mean() > 0.25)


def evaluation_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) for measuring a picture: its own size, downscaled to EVALUATION_PIXELS if larger.

    Predicted colors have no finer detail, and measuring a 4K picture would take longer than coloring it.
    """
    scale = min(1.0, math.sqrt(EVALUATION_PIXELS / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Scores:
    """Mean quality of results against ground truth over a set of pictures."""

    COLUMNS = {"ciede2000": "CIEDE2000", "share_above_10": "share > 10", "psnr_rgb": "PSNR RGB", "psnr_ab": "PSNR ab",
               "ssim": "SSIM", "colorfulness": "colorfulness", "colorfulness_ground_truth": "(ground truth)"}

    def __init__(self) -> None:
        self.rows = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rgb: np.ndarray, ground_truth: np.ndarray) -> None:
        """Add a result and its ground truth, RGB uint8 (H, W, 3) of the same size."""
        self.rows.append(self.measure(rgb, ground_truth))

    @staticmethod
    def measure(rgb: np.ndarray, ground_truth: np.ndarray) -> dict[str, float]:
        """Return {metric: value} of one result, with the arguments of ``add``. Lab and SSIM are scikit-image's."""
        rgb, ground_truth = rgb.astype(np.float32), ground_truth.astype(np.float32)  # skimage would use float64
        lab, true_lab = (rgb2lab(x / 255) for x in (rgb, ground_truth))
        window = min(7, *(size - (size + 1) % 2 for size in rgb.shape[:2]))  # odd, at most the size of the picture
        differences = color_differences(lab, true_lab)
        return {
            "ciede2000": float(differences.mean()),
            "share_above_10": float((differences > LARGE_ERROR).mean()),
            "mse_rgb": float(((rgb - ground_truth) ** 2).mean()),
            "mse_ab": float(((lab[..., 1:] - true_lab[..., 1:]) ** 2).mean()),
            "ssim": (float(structural_similarity(rgb, ground_truth, win_size=window, channel_axis=-1, data_range=255))
                     if window >= 3 else math.nan),
            "colorfulness": colorfulness(rgb),
            "colorfulness_ground_truth": colorfulness(ground_truth)}

    def summary(self) -> dict[str, float]:
        """Return {name in COLUMNS: mean over the set}. Each PSNR is computed from the mean squared error of the set."""
        mean = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
        mean["psnr_rgb"], mean["psnr_ab"] = psnr(mean["mse_rgb"], 255), psnr(mean["mse_ab"], AB_PEAK)
        return {name: mean[name] for name in self.COLUMNS}


def metrics_table(summaries: dict[str, dict[str, float]]) -> str:
    """Format {row name: Scores.summary()} as a text table with a line for each row."""
    lines = [f"{'':10s}" + "".join(f"{title:>15s}" for title in Scores.COLUMNS.values())]
    for name, row in summaries.items():
        lines.append(f"{name:10s}" + "".join(f"{row[column]:15.3f}" for column in Scores.COLUMNS))
    return "\n".join(lines)
