"""How good are the colors of a film or of pictures, whoever made them? A row for docs/BENCHMARK.md.

    python benchmarks/score.py RESULT --ground_truth TRUTH [--episode 2] [--every 12]

RESULT and TRUTH are films, or folders of pictures in the order of their names; each has as many frames as the other,
of the same size. One of ``--every`` frames is measured, from the first on, whole and at full size: if the program that
made RESULT has changed the lightness, that counts, too.

Prints a table in Markdown with a row for RESULT: what ``Scores`` measures, and LPIPS by lpips.py. With ``--episode``,
TRUTH is that episode of resources/draw_episodes.py, of which each pixel is known: so the characters' bodies
(``draw_frame`` with ``mask_of``, without outlines, face and clothes) are measured alone, since the mean over a picture
is that of its background, and a second table has each character. If TRUTH is a film, every frame of it is read for CDC
and warping error, the means over its shots by their frames (``film.report.consistency``).
"""

import itertools
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.lpips import load_lpips
from resources.draw_episodes import EPISODES, HEIGHT, PALETTE, WIDTH, draw_frame, frame_count

from colorizer.metrics import LARGE_ERROR, Scores, color_differences, has_color
from dataset import resize, rgb_to_lab
from fileio.images import IMAGE_SUFFIXES, read_image
from film.analysis.shot_detection import find_gray_cuts
from film.io.planes import planes_from_frame
from film.io.video import read_frames
from film.report.consistency import CDC, WarpError
from utils import ArgumentParser, UserError, list_files, parse_positive_int, run_cli

COLUMNS = {  # name: (title, format)
    "ciede2000": ("CIEDE2000", ".2f"), "share_above_10": ("share > 10", ".1%"), "bodies": ("bodies", ".2f"),
    "bodies_share_above_10": ("bodies > 10", ".1%"), "psnr_rgb": ("PSNR RGB", ".2f"), "ssim": ("SSIM", ".3f"),
    "lpips": ("LPIPS", ".4f"), "colorfulness": ("colorfulness", ".1f"), "colorfulness_ground_truth": ("of the truth", ".1f"),
    "cdc": ("CDC", ".4f"), "cdc_ground_truth": ("of the truth", ".4f"), "warp_error": ("warping error", ".2f"),
    "warp_error_ground_truth": ("of the truth", ".2f"),
}

# ---------------------------------------------------------------------------------------------------------------------
# Pairs of pictures


def readers(path):
    """Yield a function for each frame of a film, or picture of a folder, that gives it as RGB uint8 (H, W, 3). Raises
    UserError when there is no film."""
    if path.is_dir():
        yield from (partial(read_image, picture) for picture in list_files(path, IMAGE_SUFFIXES))
    else:
        yield from (planes_from_frame(frame).rgb_uint8 for _, frame in read_frames(path))


def pairs(result, truth, every=1):
    """Yield (index, result, truth), RGB uint8 (H, W, 3), of one of ``every`` frames. Raises UserError unless there are
    as many of both, one at least, each as large as the other."""
    index = -1
    for index, (ours, true) in enumerate(itertools.zip_longest(readers(result), readers(truth))):
        if ours is None or true is None:
            short, long = (result, truth) if ours is None else (truth, result)
            raise UserError(f"{short} has {index} frames and {long} has more; give a result of the truth's length")
        if index % every == 0:
            ours, true = ours(), true()
            if ours.shape != true.shape:
                (height, width, _), (true_height, true_width, _) = ours.shape, true.shape
                raise UserError(f"frame {index} of {result} is {width}x{height} and that of {truth} is "
                                f"{true_width}x{true_height}; give a result of the truth's size")
            yield index, ours, true
    if index < 0:
        raise UserError(f"there is no picture in {result} and {truth}; name films, or folders of pictures "
                        f"({', '.join(IMAGE_SUFFIXES)})")


# ---------------------------------------------------------------------------------------------------------------------
# Measures


def measure(result, truth, every=12, episode=None, lpips=None):
    """(``Scores.summary()``, with "lpips" if that is given; for a drawn episode {"bodies" or a character: CIEDE2000 of
    each pixel of their bodies}, else {}), over one of ``every`` frames. Raises UserError as ``pairs`` does, for a truth
    without color, and for one that is not the ``episode`` in its size and length."""
    scores, bodies, distances, in_color, index = Scores(), {}, [], False, 0
    for index, ours, true in pairs(result, truth, every):
        scores.add(ours, true)
        in_color = in_color or has_color(true)
        if lpips and min(true.shape[:2]) >= 32:  # AlexNet sees nothing in smaller ones
            distances.append(lpips(ours, true))
        if episode:
            if true.shape != (HEIGHT, WIDTH, 3) or index >= frame_count(episode):
                break
            for name, values in body_errors(episode, index, ours, true).items():
                bodies.setdefault(name, []).append(values)
    if episode and index != (frame_count(episode) - 1) // every * every:
        raise UserError(f"{truth} is not episode {episode} in its size and length; name resources/episode_{episode}.mp4"
                        " by --truth, or leave --episode out")
    if not in_color:
        raise UserError(f"{truth} is gray, so that it is no truth; name the film in color by --truth")
    summary, bodies = scores.summary(), {name: np.concatenate(parts) for name, parts in bodies.items()}
    if distances:
        summary["lpips"] = float(np.mean(distances))
    if episode:
        summary |= {"bodies": float(bodies["bodies"].mean()), "bodies_share_above_10": share_far(bodies["bodies"])}
    return summary, bodies


def body_errors(episode, index, rgb, truth):
    """{"bodies" or a character: CIEDE2000 of each pixel (n,) of their bodies} in a frame of a drawn episode, by a
    result and its truth, RGB uint8 (HEIGHT, WIDTH, 3)."""
    lab, lab_truth = rgb_to_lab(rgb), rgb_to_lab(truth)
    masks = {name: draw_frame(episode, index, mask_of=name) for name in PALETTE}
    errors = {name: color_differences(lab[mask], lab_truth[mask]) for name, mask in masks.items()}
    return {"bodies": np.concatenate(list(errors.values())), **errors}


def steadiness(result, truth):
    """{"cdc", "warp_error" and both with _truth}: means over the shots of the truth, a film, by their frames."""
    lumas = (cv2.cvtColor(resize(picture(), 256, 256), cv2.COLOR_RGB2GRAY) for picture in readers(truth))
    cuts, values, weights = {0, *itertools.chain.from_iterable(find_gray_cuts(lumas))}, [], []
    for index, *pictures in pairs(result, truth):
        if index in cuts:
            cdcs, warp = (CDC(), CDC()), WarpError()
            values.append((cdcs, warp))
            weights.append(0)
        height, width, _ = pictures[0].shape
        small = [resize(picture, max(1, round(WarpError.WIDTH * height / width)), WarpError.WIDTH)
                 for picture in pictures]
        for cdc, picture in zip(cdcs, small, strict=True):
            cdc.add(picture)
        warp.add(cv2.cvtColor(small[1], cv2.COLOR_RGB2GRAY), *small)
        weights[-1] += 1
    table = np.array([[*(cdc.value() for cdc in cdcs), *warp.values()] for cdcs, warp in values])
    weights = np.array(weights)[:, None] * np.isfinite(table)  # a shot of one frame has neither
    means = np.nansum(table * weights, 0) / weights.sum(0)
    return dict(zip(("cdc", "cdc_ground_truth", "warp_error", "warp_error_ground_truth"), means.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def row(name, columns):
    """The Markdown table of a result, {name in COLUMNS: value}; what was not measured is a dash."""
    titles = " | ".join(title for title, _ in COLUMNS.values())
    cells = (f"{columns[key]:{form}}" if key in columns else "-" for key, (_, form) in COLUMNS.items())
    return f"| | {titles} |\n|---|{'---|' * len(COLUMNS)}\n| {name} | {' | '.join(cells)} |"


def character_table(bodies):
    """The Markdown table of {character: CIEDE2000 of its pixels}; who is never seen has a dash."""
    def cells(form, value):
        return " | ".join(format(value(errors), form) if len(errors) else "-" for errors in bodies.values())

    return (f"| | {' | '.join(bodies)} |\n|---|{'---|' * len(bodies)}\n| CIEDE2000 | {cells('.2f', np.mean)} |\n"
            f"| further away than {LARGE_ERROR} | {cells('.1%', share_far)} |")


def share_far(errors):
    """The share of pixels, CIEDE2000 each, that have another color."""
    return float((errors > LARGE_ERROR).mean())


def main(argv):
    parser = ArgumentParser(prog="score.py", description="Score the colors of a film or of pictures.")
    parser.add_argument("result", type=Path, metavar="RESULT", help="a film, or a folder of pictures")
    parser.add_argument("--ground_truth", type=Path, required=True, help="the same in color")
    parser.add_argument("--episode", type=int, choices=EPISODES, help="which drawn one it is, to measure characters")
    parser.add_argument("--every", type=parse_positive_int, default=12, help="measure one of so many frames")
    args = parser.parse_args(argv)
    columns, bodies = measure(args.result, args.ground_truth, args.every, args.episode, load_lpips())
    if args.ground_truth.is_file():
        columns |= steadiness(args.result, args.ground_truth)
    print(row(args.result.stem, columns))
    if bodies:
        print("\n" + character_table(bodies))


if __name__ == "__main__":
    run_cli(main)
