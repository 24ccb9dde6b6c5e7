"""What do clicks alone gain? A film corrected by a user who sees the truth, but only clicks.

    python benchmarks/hand.py CHECKPOINT FILM [--episode 2] [--clicks 40] [--rounds 2] [--show FOLDER]

In the first round the middle frame of each shot is corrected, in each further one the frame of each shot that looks
worst; then the shots that they change are colored again. The user fills the thing around the middle of the largest
wrong area with the true color there, takes a click back that gains nothing, and goes on to the next area; a click that
is taken back counts, too. Prints a row for each round as a table in Markdown: frames, clicks, the measures of score.py,
and the minutes of the machine. ``--show`` writes each frame: as the machine colored it, corrected, and the truth.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.clicks import middle
from benchmarks.score import COLUMNS, measure, readers
from resources.draw_episodes import EPISODES

from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from config import FilmConfig
from dataset import lab_to_rgb, rgb_to_lab
from editing.correction import Correction, CorrectionRenderer
from editing.regions import Regions
from fileio.images import image_grid, write_image
from film.io.video import VideoFile
from film.render.incremental import can_update
from film.render.rendering import color_film
from utils import ArgumentParser, parse_positive_int, run_cli

WRONG = 6.0  # CIEDE2000 that a person sees at once
SMALLEST = 60  # pixels; smaller wrong areas are left
GAIN = 200.0  # sum of CIEDE2000 over the pixels that a click must gain
MEASURES = ("ciede2000", "share_above_10", "bodies", "bodies_share_above_10", "lpips", "colorfulness")


def median_color(picture, point):
    """Return the median color of the 5 x 5 pixels around a point (x, y) of a picture, RGB uint8 (H, W, 3), as "#rrggbb"."""
    x, y = point
    pixels = picture[max(0, y - 2):y + 3, max(0, x - 2):x + 3].reshape(-1, 3)
    return "#" + np.uint8(np.median(pixels, axis=0)).tobytes().hex()


def corrected(machine, truth, most):
    """Correct a frame by at most ``most`` clicks: RGB uint8 (H, W, 3) as the machine colored it and as it should be.
    Returns the corrected frame and the number of clicks."""
    lab, true = rgb_to_lab(machine), rgb_to_lab(truth)
    height, width = truth.shape[:2]
    L, known = np.ascontiguousarray(true[..., 0]), np.zeros((height, width), bool)
    canvas, correction = CorrectionRenderer(Regions(L), lab[..., 1:]), Correction((height, width))
    ab = lab[..., 1:]
    error = color_differences(np.dstack([L, ab]), true)
    for click in range(most):
        wrong = cv2.morphologyEx(np.uint8((error > WRONG) & ~known), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        _, parts, stats, _ = cv2.connectedComponentsWithStats(wrong, connectivity=4)
        part = 1 + stats[1:, cv2.CC_STAT_AREA].argmax() if len(stats) > 1 else 0
        if not part or stats[part, cv2.CC_STAT_AREA] < SMALLEST:
            return lab_to_rgb(np.dstack([L, ab])), click
        point = middle(parts == part)
        alike = np.linalg.norm(true[..., 1:] - true[point[1], point[0], 1:], axis=2) < WRONG
        point = middle((parts == part) & alike)  # in the middle of one color, and not between two
        correction.add("fill", [point], median_color(truth, point))
        tried = canvas.apply(correction)
        changed = color_differences(np.dstack([L, tried]), true)
        if error.sum() - changed.sum() < GAIN:
            correction.undo()
            known |= (parts == part) & alike  # that this area is not to be mended by a click
        else:
            ab, error = tried, changed
    return lab_to_rgb(np.dstack([L, ab])), most


def worst(output, film, records, done, every):
    """Of each shot, the frame that is furthest from the truth, of one of ``every`` that are not ``done``."""
    errors = {}
    for index, (ours, true) in enumerate(zip(readers(output), readers(film), strict=True)):
        if index % every == 0 and index not in done:
            errors[index] = color_differences(*map(rgb_to_lab, (ours(), true()))).mean()
    shots = [[index for index in errors if record.start_frame <= index < record.end_frame] for record in records]
    return {max(shot, key=errors.__getitem__) for shot in shots if shot}


def correct(output, film, chosen, args):
    """Correct the frames ``chosen`` of the colored film ``output``; returns them, RGB uint8, and all clicks."""
    pictures, clicks = [], 0
    for index, (ours, true) in enumerate(zip(readers(output), readers(film), strict=True)):
        if index in chosen:
            ours, true = ours(), true()
            picture, count = corrected(ours, true, args.clicks)
            pictures.append(picture)
            clicks += count
            if args.show:
                write_image(args.show / f"frame_{index:06d}.png", image_grid([[ours, picture, true]]))
    return pictures, clicks


def main(argv):
    parser = ArgumentParser(prog="hand.py", description="Measure what correcting by clicks gains.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of train.py")
    parser.add_argument("film", type=Path, metavar="FILM", help="a film in color, which counts as the truth")
    parser.add_argument("--episode", type=int, choices=EPISODES, help="which drawn one it is, to measure characters")
    parser.add_argument("--clicks", type=parse_positive_int, default=40, help="at most, in a frame")
    parser.add_argument("--rounds", type=parse_positive_int, default=2, help="of correcting and coloring again")
    parser.add_argument("--every", type=parse_positive_int, default=12, help="measure one of so many frames")
    parser.add_argument("--show", type=Path, help="folder for pictures of the corrected frames")
    args = parser.parse_args(argv)
    frames, clicks, references, done = 0, 0, [], set()
    film, config = VideoFile(args.film), FilmConfig()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "film.mp4"
        for number in range(args.rounds + 1):
            predictor, started = Predictor.load(args.checkpoint), time.monotonic()
            if references:
                predictor.add_references(references)
            records = color_film(predictor, film, output, config,
                                 overwrite=not can_update(predictor, film, output, config))
            minutes, values = (time.monotonic() - started) / 60, measure(output, args.film, args.every, args.episode)[0]
            if not number:
                titles = [COLUMNS[name][0] for name in MEASURES if name in values]
                print(f"| frames | clicks | {' | '.join(titles)} | minutes |\n|---|---|{'---|' * (len(titles) + 1)}")
            cells = [f"{values[name]:{COLUMNS[name][1]}}" for name in MEASURES if name in values]
            print(f"| {frames} | {clicks} | {' | '.join(cells)} | {minutes:.1f} |", flush=True)
            if number < args.rounds:
                chosen = ({record.middle for record in records} if not number else
                          worst(output, args.film, records, done, args.every))
                done |= chosen
                pictures, count = correct(output, args.film, chosen, args)
                references, frames, clicks = references + pictures, frames + len(pictures), clicks + count


if __name__ == "__main__":
    run_cli(main)
