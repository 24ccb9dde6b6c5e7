"""Compare exported networks (ONNX) with the program that exported them.

    python -m benchmarks.exported CHECKPOINT FILM [--every 24]

FILM, in color, is colored by test.py as a film, and every 24th frame is measured. The same frames are then colored one
by one as pictures: by the program; by the program without colors warped along the optical flow; by the exported
networks with the regions that the program finds; and by the exported color.py, without regions. Prints CIEDE2000, the
share of pixels above 10 and the median seconds per frame. The last line is the mean difference between color.py and the
program without warping and regions, which is due to rounding in ONNX.
"""

import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.common import existing_film, first_line, print_header, print_row
from resources.color_by_onnx import Exported

from colorizer.export import ExportConfig, export
from colorizer.metrics import Scores
from colorizer.palette_classifier import CELL_SIZE, PaletteClassifier
from colorizer.predictor import Predictor
from config import ColorConfig
from dataset import L_SCALE, resize
from film.io.video import VideoFile
from test import color
from utils import ArgumentParser, parse_positive_int, run_cli


class WithRegions(Exported):
    """Exported networks with the regions that the program finds."""

    def __init__(self, folder: Path, palette_classifier: PaletteClassifier) -> None:
        super().__init__(folder)
        self.palette_classifier = palette_classifier

    def regions(self, lightness):
        grid = self.palette_classifier.config.input_size // CELL_SIZE
        cells = np.stack([resize(resize(L, 4 * grid, 4 * grid), grid, grid) for L in lightness]) / np.float32(L_SCALE)
        return self.palette_classifier.find_regions(torch.from_numpy(cells)).view(-1, grid, grid).numpy()


def without_warping():
    """Return a context manager that disables warping colors along the optical flow."""
    return patch("colorizer.colorizer.warp_colors",
                 lambda memory, nearest, keys, L, picture_of: 0 * L.expand(-1, 3, -1, -1))


def without_regions():
    """Return a context manager that makes each grid cell a region of its own."""
    return patch.object(PaletteClassifier, "find_regions", lambda self, lightness: torch.arange(
        lightness[0].numel()).expand(len(lightness), -1))


def measure(name, colorize, frames):
    """Color frames one by one and print the row ``name``. Returns the colored frames."""
    results, seconds, scores = [], [], Scores()
    for frame in frames:
        started = time.monotonic()
        results.append(colorize([frame])[0])
        seconds.append(time.monotonic() - started)
        scores.add(results[-1], frame)
    print_scores(name, scores, f"{statistics.median(seconds):.2f}")
    return results


def print_scores(name, scores, seconds=""):
    row = scores.summary()
    print_row(name, f"{row['ciede2000']:.2f}", f"{row['share_above_10']:.1%}", seconds)


def main(argv):
    parser = ArgumentParser(prog="benchmarks.exported", description=first_line(__doc__))
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of train.py")
    parser.add_argument("film", type=Path, metavar="FILM", help="a film in color")
    parser.add_argument("--every", type=parse_positive_int, default=24, help="measure every N-th frame")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder, output = Path(temporary) / "exported", Path(temporary) / "colored.mp4"
        config = ColorConfig(input=existing_film(args.film), output=output, checkpoint=args.checkpoint, suggest=0)
        with redirect_stdout(sys.stderr):
            color(config)
        film, scores, frames = VideoFile(args.film), Scores(), []
        for (_, _, true_planes), (_, _, result) in islice(zip(film.read(), VideoFile(output).read(), strict=True),
                                                          args.every // 2, None, args.every):
            frames.append(true_planes.rgb_uint8())
            scores.add(result.rgb_uint8(), frames[-1])
        predictor = Predictor.load(args.checkpoint, precision="fp32")
        export(ExportConfig(args.checkpoint, folder))
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{len(frames)} frames; the exported folder has {size / 1e6:.0f} MB\n")
        print_header("colored by", "CIEDE2000", "share > 10", "seconds per frame")
        print_scores("test.py, as a film", scores)
        measure("test.py, as pictures", predictor.colorize, frames)
        with without_warping():
            measure("test.py, without warping", predictor.colorize, frames)
        classifier = predictor.colorizer.palette_classifier
        measure("exported, with regions", WithRegions(folder, classifier).color, frames)
        exported = measure("exported, color.py", Exported(folder).color, frames)
        with without_warping(), without_regions():
            reduced = measure("test.py, without warping and regions", predictor.colorize, frames)
        differences = [np.abs(x.astype(int) - y).mean() for x, y in zip(exported, reduced, strict=True)]
        print(f"\nmean difference of color.py from test.py without warping and regions: {np.mean(differences):.2f} of "
              "255")


if __name__ == "__main__":
    run_cli(main)
