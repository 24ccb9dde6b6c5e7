"""Measure character sheets: how well sheets alone color the characters of a film.

    python -m benchmarks.character_sheets [--epochs 3] [--seeds 1] [--output results/character_sheets]

Three sheets of each character of the drawn show, in poses of episode 1, are the only training data. Episode 2 is
colored with the default settings, and the bodies of its characters are measured as in ``benchmarks.score``. The
backgrounds have no known colors and are not measured. Checkpoints and films are kept in --output.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from benchmarks.common import EPISODE, first_line, print_header, print_row
from benchmarks.score import measure, print_characters
from resources.draw_episodes import PALETTE, draw_sheet

from colorizer.metrics import LARGE_ERROR
from colorizer.predictor import Predictor
from config import FilmConfig, TrainConfig
from fileio.images import write_image
from film.io.video import VideoFile
from film.render.rendering import color_film
from train import train
from utils import ArgumentParser, parse_positive_int, run_cli

POSES = ("stand", 0, 1), ("wave", 10, -1), ("walk", 5, 1)  # act, frame of the act, direction


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="benchmarks.character_sheets", description=first_line(__doc__))
    parser.add_argument("--epochs", type=parse_positive_int, default=3, help="length of each training run")
    parser.add_argument("--seeds", type=parse_positive_int, default=1, help="number of training runs")
    parser.add_argument("--every", type=parse_positive_int, default=6, help="measure every N-th frame")
    parser.add_argument("--output", type=Path, default=Path("results/character_sheets"), help="folder for the results")
    args = parser.parse_args(argv)
    for name in PALETTE:
        for number, pose in enumerate(POSES):
            write_image(args.output / "sheets" / name / f"{number}.png", draw_sheet(name, *pose))
    rows, errors = [], []
    for seed in range(args.seeds):
        folder = args.output / f"{args.epochs}_epochs_seed_{seed}"
        if not (folder / "best.pt").exists():
            with redirect_stdout(sys.stderr):
                train(TrainConfig(characters=str(args.output / "sheets"), data_path=str(args.output / "no frames"),
                                  save_path=str(folder), end_epoch=args.epochs, seed=seed, overwrite=True))
        color_film(Predictor.load(folder / "best.pt"), VideoFile(EPISODE), folder / "episode_2.mp4", FilmConfig(),
                   overwrite=True)
        summary, bodies = measure(folder / "episode_2.mp4", EPISODE, args.every, episode=2)
        rows.append((seed, summary))
        errors.append(bodies)
    print_header("seed", "bodies", f"bodies > {LARGE_ERROR}")
    for seed, summary in rows:
        print_row(seed, f"{summary['bodies']:.2f}", f"{summary['bodies_share_above_10']:.1%}")
    print()
    print_characters({name: np.concatenate([each[name] for each in errors]) for name in errors[0]})


if __name__ == "__main__":
    run_cli(main)
