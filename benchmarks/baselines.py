"""What is reached without any training? Films for docs/BENCHMARK.md, to be measured by score.py.

    python benchmarks/baselines.py FILM --data_path DATASET [--output results/baselines]

Writes to <output>, encoded as test.py does: gray.mp4; mean.mp4, whose every pixel has the mean ab of the pictures in
DATASET/train; and nearest.mp4, where each drawing has the ab of the picture whose backbone features are most like its
own. These are the rows of quality.py that need no training. Luma is that of FILM.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.quality import Pasted

from colorizer.confidence import Confidence
from colorizer.predictor import Palette
from dataset import GRAY_SIZE
from fileio.images import IMAGE_SUFFIXES
from film.analysis.plan import FilmPredictor
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import ArgumentParser, UserError, list_files, parse_bool, run_cli, select_device

SIZE = 128  # side of the pictures that colors are taken from
NOTHING = Palette(None, [], [], torch.zeros(0))


class Baseline(FilmPredictor):
    """A ``plan.FilmPredictor`` by a function that takes Lab pictures (H, W, 3) and gives ab (N, S, S, 2)."""

    source, side = "none", GRAY_SIZE

    def __init__(self, name, colors):
        self.identity, self._colors = name, colors

    def palette(self, labs):
        return NOTHING

    def predict(self, lightness, palette):
        ab = self._colors([cv2.merge([L, 0 * L, 0 * L]) for L in lightness])
        return ab.astype(np.float32), Confidence.unknown(len(lightness))


def one_color(ab):
    """The function for Baseline that gives every pixel the same ab (2,)."""
    return lambda labs: np.broadcast_to(ab, (len(labs), SIZE, SIZE, 2))


def main(argv):
    parser = ArgumentParser(prog="baselines.py", description="Color a film in ways that need no training.")
    parser.add_argument("film", type=Path, metavar="FILM", help="the film to color")
    parser.add_argument("--data_path", type=Path, required=True, help="a dataset, whose train/ has the known colors")
    parser.add_argument("--output", type=Path, default=Path("results/baselines"), help="folder of the films")
    parser.add_argument("--overwrite", type=parse_bool, default=False, help="replace films that exist")
    args = parser.parse_args(argv)
    train = args.data_path / "train"
    paths = list_files(train, IMAGE_SUFFIXES) if train.is_dir() else []
    if not paths:
        raise UserError(f"there is no picture in {train}; name a dataset of dataset_generator.py by --data_path")
    pasted = Pasted(paths, SIZE, select_device("auto"))
    mean = pasted.ab.mean((0, 1, 2), dtype=np.float64)  # float32 would lose digits over a film
    for name, colors in {"gray": one_color(np.zeros(2)), "mean": one_color(mean), "nearest": pasted}.items():
        color_film(Baseline(name, colors), VideoFile(args.film), args.output / f"{name}.mp4", overwrite=args.overwrite)


if __name__ == "__main__":
    run_cli(main)
