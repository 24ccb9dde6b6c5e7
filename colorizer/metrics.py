"""TODO: module docstring."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

from dataset import L_SCALE, resize

AB_PEAK = 220  # peak for the PSNR of ab: the width of its range

LARGE_ERROR = 10  # CIEDE2000 at which one sees another color: a mean over a picture hides a character


def color_differences(lab: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """CIEDE2000 of each pixel (H, W) of two Lab pictures (H, W, 3): 0 is equal, 1 just visible, LARGE_ERROR another color."""
    return deltaE_ciede2000(truth, lab, channel_axis=-1)


def ciede2000(lab: np.ndarray, truth: np.ndarray) -> float:
    """Mean of ``color_differences``."""
    return float(color_differences(lab, truth).mean())


def psnr(mean_squared_error: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, inf for an error of 0. For a set, pass the mean of its squared errors: the mean
    of its PSNRs would be infinite as soon as one picture is exact."""
    return 10 * math.log10(peak**2 / mean_squared_error) if mean_squared_error else math.inf


def colorfulness(rgb: np.ndarray) -> float:
    """Colorfulness of RGB uint8 (H, W, 3) by Hasler and Suesstrunk (2003): 0 gray, 33 moderate, 82 high."""
    red, green, blue = np.moveaxis(rgb.astype(np.float32), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def has_color(rgb: np.ndarray) -> bool:
    """True when RGB uint8 (H, W, 3) has color: its channels differ by more than coding noise, which is by more than 1
    on average, or by more than 16 in more than 0.1% of the pixels."""
    spread = rgb.max(-1).astype(np.int16) - rgb.min(-1)
    return bool(spread.mean() > 1 or (spread > 16).mean() > 0.001)

MEASURED = 720 * 576  # pixels


def evaluation_size(height: int, width: int) -> tuple[int, int]:
    """The size at which a picture is measured: its own up to MEASURED pixels, and else one of about so many. Colors
    are no finer than the networks paint them, and the metrics of 4K would take longer than coloring it."""
    scale = min(1.0, math.sqrt(MEASURED / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Scores:
    """Quality of results against the truth, over a set of pictures."""

    COLUMNS = {"ciede2000": "CIEDE2000", "share_above_10": "share > 10", "psnr_rgb": "PSNR RGB", "psnr_ab": "PSNR ab",
               "ssim": "SSIM", "colorfulness": "colorfulness", "colorfulness_ground_truth": "of the ground truth"}

    def __init__(self) -> None:
        self.rows = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rgb: np.ndarray, truth: np.ndarray) -> None:
        """Add a result and its truth, RGB uint8 (H, W, 3) of one size."""
        self.rows.append(self.measure(rgb, truth))

    @staticmethod
    def measure(rgb: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        """A row of ``rows``: what a result, given as for ``add``, is beside its truth. Lab, CIEDE2000, SSIM are
        scikit-image's."""
        lab, lab_truth = (rgb2lab(x.astype(np.float32) / 255) for x in (rgb, truth))
        side = min(7, *(size - (size + 1) % 2 for size in rgb.shape[:2]))  # SSIM's window, odd, for tiny pictures too
        differences = color_differences(lab, lab_truth)
        return {
            "ciede2000": float(differences.mean()),
            "share_above_10": float((differences > LARGE_ERROR).mean()),
            "mse_rgb": float(((rgb.astype(np.float32) - truth) ** 2).mean()),
            "mse_ab": float(((lab[..., 1:] - lab_truth[..., 1:]) ** 2).mean()),
            "ssim": float(structural_similarity(rgb, truth, win_size=side, channel_axis=-1)) if side >= 3 else math.nan,
            "colorfulness": colorfulness(rgb),
            "colorfulness_ground_truth": colorfulness(truth)}

    def summary(self) -> dict[str, float]:
        """{name in COLUMNS: mean over the set, which must not be empty}; PSNR (peak 255 for RGB, AB_PEAK for ab) is
        that of the mean squared error."""
        mean = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
        mean["psnr_rgb"], mean["psnr_ab"] = psnr(mean["mse_rgb"], 255), psnr(mean["mse_ab"], AB_PEAK)
        return {name: mean[name] for name in self.COLUMNS}


def metrics_table(summaries: dict[str, dict[str, float]]) -> str:
    """A text table of summaries {row name: Scores.summary()}, one line a row."""
    lines = [f"{'':10s}" + "".join(f"{title:>15s}" for title in Scores.COLUMNS.values())]
    for name, row in summaries.items():
        lines.append(f"{name:10s}" + "".join(f"{row[column]:15.3f}" for column in Scores.COLUMNS))
    return "\n".join(lines)


def shot_has_color(pictures: Sequence[np.ndarray]) -> bool:
    """True when pictures of one shot, RGB uint8 (H, W, 3), are in color: when in over a quarter of 32 x 32 places of
    their mean, ab is further than 5 from what L explains, by a polynomial of degree 2.

    So a tint, which has one hue, or one for the dark and one for the light, is none, nor is noise in the chroma, a logo
    in a corner, or a fringe of color along lines.
    """
    small = [resize(picture, 32, 32) for picture in pictures]
    lab = cv2.cvtColor(np.mean(small, 0, dtype=np.float32) / 255, cv2.COLOR_RGB2Lab).reshape(-1, 3)
    powers = np.vander(lab[:, 0] / L_SCALE, 3)
    unexplained = lab[:, 1:] - powers @ np.linalg.lstsq(powers, lab[:, 1:], rcond=None)[0]
    return bool((np.linalg.norm(unexplained, axis=1) > 5).mean() > 0.25)
