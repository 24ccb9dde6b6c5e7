"""Color a film with the three baselines of docs/BENCHMARK.md, which need no training.

    python -m benchmarks.baselines FILM --data_path DATASET [--output results/baselines]

Writes three films to the output folder, encoded as by test.py: gray.mp4 without color; mean.mp4, in which each pixel
has the mean ab of the pictures in DATASET/train; and nearest.mp4, in which each frame has the ab of the most similar
picture by embedding.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import FunctionPredictor, constant_colors, first_line
from benchmarks.quality import NearestFrame

from fileio.images import IMAGE_SUFFIXES
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import ArgumentParser, UserError, list_files, parse_bool, run_cli, select_device

SIDE = 128  # pixels; side of the pictures that colors are taken from


def main(argv):
    parser = ArgumentParser(prog="benchmarks.baselines", description=first_line(__doc__))
    parser.add_argument("film", type=Path, metavar="FILM", help="the film to color")
    parser.add_argument("--data_path", type=Path, required=True, help="dataset whose train/ has the pictures in color")
    parser.add_argument("--output", type=Path, default=Path("results/baselines"), help="folder for the colored films")
    parser.add_argument("--overwrite", type=parse_bool, default=False, help="replace existing films")
    args = parser.parse_args(argv)
    train = args.data_path / "train"
    paths = list_files(train, IMAGE_SUFFIXES) if train.is_dir() else []
    if not paths:
        raise UserError(f"there is no picture in {train}; pass a dataset of dataset_generator.py to --data_path")
    nearest = NearestFrame(paths, SIDE, select_device("auto"))
    mean = nearest.ab.mean((0, 1, 2), dtype=np.float64)  # float32 would be inexact over many pictures
    methods: dict[str, Any] = {"gray": constant_colors((0, 0)), "mean": constant_colors(mean), "nearest": nearest}
    for name, colors in methods.items():
        color_film(FunctionPredictor(name, colors), VideoFile(args.film), args.output / f"{name}.mp4",
                   overwrite=args.overwrite)


if __name__ == "__main__":
    run_cli(main)
