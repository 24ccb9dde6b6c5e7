"""Measure the error of new scenes against the length of the training run.

    python -m benchmarks.training_time [--data FOLDER] [--films ...] [--minutes 0.5 1 2 3 6 10 20] [--figure FILE]

Films and files are those of benchmarks.real_films, under the protocol *next scenes*. *Trained* is the time until the
run ended by itself or by ``max_minutes``. Prints a Markdown table; ``--figure`` draws it. Run nothing else at the same
time, since the number of training steps depends on the speed of the machine.
"""

import itertools
from argparse import Namespace
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common import first_line, print_header, print_row, save_figure
from benchmarks.real_films import FILMS, RESOURCES, existing_films, measure_film, trained_checkpoint

from fileio.checkpoints import load_checkpoint
from utils import ArgumentParser, UserError, parse_positive_int, run_cli

PROTOCOL = "next scenes"


def draw(errors: dict[str, list[float]], minutes: list[float], path: Path) -> None:
    """Plot the errors of each film against the minutes."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for name, values in errors.items():
        axes.plot(minutes, values, marker=".", label=name)
    axes.set_xscale("log")
    axes.set_xticks(minutes, [f"{each:g}" for each in minutes])
    axes.set_xlabel("max_minutes")
    axes.set_ylabel("CIEDE2000")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="benchmarks.training_time", description=first_line(__doc__))
    parser.add_argument("--data", type=Path, default=RESOURCES, help="folder with the films that are not in resources/")
    parser.add_argument("--films", nargs="+", choices=FILMS, default=["bunny_1", "popeye_3", "drawn"], help="films")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 1, 2, 3, 6, 10, 20], help="max_minutes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training runs")
    parser.add_argument("--every", type=parse_positive_int, default=6, help="measure every N-th frame")
    parser.add_argument("--output", type=Path, default=Path("results/real_films"), help="folder for the results")
    parser.add_argument("--figure", type=Path, help="file for the curves, such as training_time.png")
    args = parser.parse_args(argv)
    if not min(args.minutes) > 0:
        raise UserError(f"--minutes is {min(args.minutes):g}; set it above 0")
    errors: dict[str, list[float]] = {}
    print_header("film", "max_minutes", "trained, minutes", "steps", "CIEDE2000", "> 10")
    for name, minutes in itertools.product(existing_films(args.films, args.data), args.minutes):
        settings = Namespace(**{**vars(args), "minutes": minutes, "consistency": False})
        report = measure_film(name, PROTOCOL, settings, args.seed, None)
        checkpoint = trained_checkpoint(FILMS[name], args.data, args.output, minutes, args.seed)
        last = load_checkpoint(checkpoint.with_name("last.pt"))
        errors.setdefault(name, []).append(report["ours"])
        print_row(name, f"{minutes:g}", f"{last['elapsed_seconds'] / 60:.1f}", last["step"], f"{report['ours']:.2f}",
                  f"{report['share_above_10']:.1%}")
    if args.figure:
        draw(errors, args.minutes, args.figure)


if __name__ == "__main__":
    run_cli(main)
