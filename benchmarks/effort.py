"""Measure the error of a film after a user has colored 0, 1, 2, 5 and 10 of its frames by hand.

    python -m benchmarks.effort CHECKPOINT FILM [--episode 2] [--clicks 40] [--figure effort.png]

FILM is in color and its own ground truth. It is colored as by test.py. Then the first k frames of ``suggest_frames``
are added as references in their true colors, and the film is colored again. For comparison, the same is done with k
evenly spaced frames. With ``--clicks``, the references are colored frames that a simulated user has corrected with at
most that number of clicks. Each click fills the region at the center of the largest wrong area with its true color.

Every 12th frame is measured as benchmarks.score does, including the references. Prints a Markdown table; ``--figure``
draws it.
"""

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import first_line, frame_readers, print_header, print_row, save_figure
from benchmarks.region_clicks import center_of
from benchmarks.score import COLUMNS, measure
from resources.draw_episodes import EPISODES

from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from config import FilmConfig
from dataset import luma_lightness, rgb_to_lab
from editing.correction import Correction, CorrectionRenderer
from editing.regions import Regions
from film.io.planes import planes_from_rgb
from film.io.video import VideoFile
from film.render.incremental import can_update
from film.render.rendering import color_film
from film.report.suggestions import suggest_frames
from utils import ArgumentParser, parse_positive_int, run_cli

COUNTS = (0, 1, 2, 5, 10)  # numbers of references
STRATEGIES = ("suggested", "equal steps")
MEASURES = ("ciede2000", "share_above_10", "bodies", "bodies_share_above_10")
VISIBLE_ERROR = 6.0  # CIEDE2000 above which a pixel counts as wrong; larger: the simulated user is more tolerant
MIN_AREA = 60  # pixels; smaller wrong areas are not corrected
MIN_GAIN = 200.0  # minimum decrease of the sum of CIEDE2000 over all pixels; other clicks are undone


def equal_steps(frames, count):
    """Return the middle frames of ``count`` equal parts of a film."""
    return [(2 * part + 1) * frames // (2 * count) for part in range(count)]


def median_color(picture, point):
    """Return the median of the 5 x 5 pixels around (x, y) of a picture, RGB uint8 (H, W, 3), as "#rrggbb"."""
    x, y = point
    pixels = picture[max(0, y - 2):y + 3, max(0, x - 2):x + 3].reshape(-1, 3)
    return "#" + np.uint8(np.median(pixels, axis=0)).tobytes().hex()


def correct_by_clicks(result, ground_truth, max_clicks):
    """Correct a colored frame, RGB uint8 (H, W, 3), as a user would. Returns the result and the number of clicks."""
    true_lab, encoding = rgb_to_lab(ground_truth), planes_from_rgb(ground_truth).encoding
    size, unfixable = true_lab.shape[:2], np.zeros(true_lab.shape[:2], bool)
    renderer = CorrectionRenderer(Regions(luma_lightness(ground_truth)), rgb_to_lab(result)[..., 1:], encoding)
    correction = Correction(size)
    picture = renderer.picture(correction)
    error = color_differences(rgb_to_lab(picture), true_lab)
    for click in range(max_clicks):
        wrong = cv2.morphologyEx(np.uint8((error > VISIBLE_ERROR) & ~unfixable), cv2.MORPH_OPEN,
                                 np.ones((3, 3), np.uint8))
        _, parts, stats, _ = cv2.connectedComponentsWithStats(wrong, connectivity=4)
        part = 1 + stats[1:, cv2.CC_STAT_AREA].argmax() if len(stats) > 1 else 0
        if not part or stats[part, cv2.CC_STAT_AREA] < MIN_AREA:
            return picture, click
        x, y = center_of(parts == part)
        similar = np.linalg.norm(true_lab[..., 1:] - true_lab[y, x, 1:], axis=2) < VISIBLE_ERROR
        point = center_of((parts == part) & similar)  # the center of one color, not between two
        correction.add("fill", [point], median_color(ground_truth, point))
        corrected = renderer.picture(correction)
        remaining = color_differences(rgb_to_lab(corrected), true_lab)
        if error.sum() - remaining.sum() < MIN_GAIN:
            correction.undo()
            unfixable |= (parts == part) & similar
        else:
            picture, error = corrected, remaining
    return picture, max_clicks


def color(checkpoint, film, references, output):
    """Color a film with references, RGB uint8 pictures. Returns the records of its shots."""
    predictor, source, config = Predictor.load(checkpoint), VideoFile(film), FilmConfig()
    if references:
        predictor.add_references(references)
    return color_film(predictor, source, output, config, overwrite=not can_update(predictor, source, output, config))


def measure_effort(checkpoint, film, every, episode, clicks=None):
    """Yield (number of references, {strategy: {measure: value}}) for COUNTS, up to the number of suggestions."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "film.mp4"  # updated when the references change

        def score(references):
            records = color(checkpoint, film, references, output)
            values = measure(output, film, every, episode)[0]
            return records, {name: values[name] for name in MEASURES if name in values}

        records, baseline = score([])
        yield 0, dict.fromkeys(STRATEGIES, baseline)
        suggested = [suggestion.frame for suggestion in suggest_frames(records, max(COUNTS))]
        print(f"suggested, in this order: frames {', '.join(map(str, suggested))}", file=sys.stderr)
        counts = sorted({min(count, len(suggested)) for count in COUNTS} - {0})
        chosen = {(count, name): frames for count in counts for name, frames in zip(
            STRATEGIES, (suggested[:count], equal_steps(records[-1].end_frame, count)), strict=True)}
        used = {index for frames in chosen.values() for index in frames}
        pictures = {}
        for index, (rgb, true_rgb) in enumerate(zip(frame_readers(output), frame_readers(film), strict=True)):
            if index in used:
                pictures[index] = correct_by_clicks(rgb(), true_rgb(), clicks)[0] if clicks else true_rgb()
        for count in counts:
            yield count, {name: score([pictures[index] for index in sorted(chosen[count, name])])[1]
                          for name in STRATEGIES}


def draw(rows, path):
    """Plot each measure against the number of references, with a line for each strategy."""
    names = list(rows[0][1][STRATEGIES[0]])
    figure = Figure(figsize=(3.2 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for strategy in STRATEGIES:
            axes.plot([count for count, _ in rows], [values[strategy][name] for _, values in rows], marker=".",
                      label=strategy)
        axes.set_title(COLUMNS[name][0])
        axes.set_xlabel("references")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main(argv):
    parser = ArgumentParser(prog="benchmarks.effort", description=first_line(__doc__))
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of train.py")
    parser.add_argument("film", type=Path, metavar="FILM", help="a film in color, the ground truth")
    parser.add_argument("--episode", type=int, choices=EPISODES, help="drawn episode, to measure its characters")
    parser.add_argument("--every", type=parse_positive_int, default=12, help="measure every N-th frame")
    parser.add_argument("--clicks", type=parse_positive_int, help="correct frames with at most N clicks each")
    parser.add_argument("--figure", type=Path, help="file for the curves, such as effort.png")
    args = parser.parse_args(argv)
    rows = []
    for count, values in measure_effort(args.checkpoint, args.film, args.every, args.episode, args.clicks):
        if not rows:
            print_header("references", *(f"{strategy}: {COLUMNS[name][0]}" for strategy, measured in values.items()
                                         for name in measured))
        rows.append((count, values))
        print_row(count, *(f"{value:{COLUMNS[name][1]}}" for measured in values.values()
                           for name, value in measured.items()))
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    run_cli(main)
