"""Search for better defaults: change one setting at a time, and score it on frames used by no other benchmark.

    python -m benchmarks.search FILM [FILM ...] [--vary NAME=VALUE[,VALUE ...] ...] [--minutes 3]

One training run per film serves both protocols of benchmarks.quality, with different test frames: those at 1/8, 3/8,
5/8 and 7/8 of the training shots, and of shots that are held out by a different seed. NAME is a constant of
SpatialConfig (the spatial memory is refilled for each value); one of COMBINATION (no training); or a flag of train.py,
a constant of TrainingConstants or another constant of PaletteClassifierConfig (a training run for each value). Without
--vary, the values in SPATIAL_VALUES are tried.

Prints a Markdown table of the mean CIEDE2000 for each film and protocol.
"""

import sys
import tempfile
from argparse import ArgumentTypeError
from contextlib import redirect_stdout
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import first_line, print_header, print_row
from benchmarks.quality import PROTOCOLS, film_frames, measure, split_frames

from colorizer.predictor import Predictor, load_colorizer
from config import PaletteClassifierConfig, SpatialConfig, TrainConfig, TrainingConstants
from dataset import ColorizationDataset
from train import train
from training.preparation import fill_spatial_memory
from utils import ArgumentParser, UserError, autocast, parse_bool, run_cli, select_device

FRAMES, SEED = 9, 3  # frames per shot; benchmarks.quality holds out shots by the seeds from 0 on
SPATIAL_VALUES = [
    "attended_frames=4,16", "mmr_diversity=0.25,0.75", "inverse_temperature=15.0,60.0", "disagreement_scale=0.01,0.05",
    "lightness_weight=1.0,4.0", "position_weight=0.0,0.3", "color_weight=2.0,8.0", "warped_frames=1,4",
    "feature_weight=0.25,1.0", "photometric_weight=50.0,400.0", "cost_inverse_temperature=5.0,80.0"]
SPATIAL, CLASSIFIER, TRAINING = ({f.name: type(f.default) for f in fields(kind)} for kind in (
    SpatialConfig, PaletteClassifierConfig, TrainingConstants))
COMBINATION = {"generator_sigma", "temperature"}  # constants for combining classifier and generator
FLAGS = {f.name: type(f.default) for f in fields(TrainConfig)
         if "help" in f.metadata and isinstance(f.default, bool | int | float | str)}


def parse(text):
    """Parse NAME=VALUE,VALUE. Returns the name and a list of values of the type of the default."""
    name, _, values = text.partition("=")
    kind: Any = (FLAGS | TRAINING | CLASSIFIER | SPATIAL).get(name)
    if kind is None:
        raise UserError(f"--vary {text}: {name} is neither a constant of SpatialConfig, TrainingConstants or "
                        "PaletteClassifierConfig nor a flag of train.py; correct the name")
    try:
        return name, [(parse_bool if kind is bool else kind)(value) for value in values.split(",")]
    except (ValueError, ArgumentTypeError) as error:
        raise UserError(f"--vary {text}: {name} needs values of type {kind.__name__}; write it as NAME=1,2") from error


class Case:
    """The training and test frames of a film, and the networks trained with the defaults."""

    def __init__(self, shots, folder, args):
        self.folder, self.args, self.device = folder, args, select_device("auto")
        trained, unseen = split_frames(shots, "unseen", SEED)
        known = [path for path in split_frames(shots, "known", SEED)[1] if path not in unseen]
        self.tested = {"known": known, "unseen": unseen}
        (folder / "data" / "train").mkdir(parents=True)
        for path in trained:
            (folder / "data" / "train" / path.name).hardlink_to(path)
        self.colorizer = self.train("default")

    def train(self, name, **settings):
        """Return a Colorizer trained with ``settings``."""
        with redirect_stdout(sys.stderr):
            train(TrainConfig(**{"data_path": str(self.folder / "data"), "save_path": str(self.folder / name),
                                 "img_size": self.args.img_size, "max_minutes": self.args.minutes,
                                 "end_epoch": 10**6, "save_freq": 10**6, **settings}))
        return load_colorizer(self.folder / name / "last.pt", self.device)[0]

    def score(self, colorizer):
        """Return the mean CIEDE2000 over the test frames of each of PROTOCOLS."""
        predictor = Predictor(colorizer, self.device)
        methods = {"full": lambda labs: predictor.predict_ab(labs)[0]}
        return [measure(methods, self.tested[protocol], self.args.img_size)["full"]["ciede2000"]
                for protocol in PROTOCOLS]

    def vary_spatial(self, name, value):
        """Return the scores with a different value of a constant of the spatial memory, which is refilled."""
        spatial, config = self.colorizer.spatial, self.colorizer.config
        before = spatial.config
        spatial.config = config.spatial = replace(before, **{name: value})
        data = ColorizationDataset(self.folder / "data" / "train", self.args.img_size, TrainConfig.cache_gb)
        try:
            fill_spatial_memory(data, self.colorizer, partial(autocast, self.device, "auto"))
            return self.score(self.colorizer)
        finally:
            spatial.config = config.spatial = before

    def vary_combination(self, name, value):
        """Return the scores with a different value of a constant of COMBINATION."""
        classifier = self.colorizer.palette_classifier
        before, classifier.config = classifier.config, replace(classifier.config, **{name: value})
        try:
            return self.score(self.colorizer)
        finally:
            classifier.config = before

    def vary(self, name, value):
        """Return the scores with a different value of any constant or flag."""
        if name in COMBINATION:
            return self.vary_combination(name, value)
        if name in SPATIAL:
            return self.vary_spatial(name, value)
        settings = {name: value}
        if name in TRAINING:
            settings = {"training": TrainingConstants(**settings)}
        elif name in CLASSIFIER:
            settings = {"palette_classifier": PaletteClassifierConfig(**settings)}
        return self.score(self.train(f"{name}_{value}", **settings))


def main(argv):
    parser = ArgumentParser(prog="benchmarks.search", description=first_line(__doc__))
    parser.add_argument("films", nargs="+", type=Path, metavar="FILM")
    parser.add_argument("--vary", nargs="+", default=SPATIAL_VALUES, metavar="NAME=VALUES", help="values to try")
    parser.add_argument("--minutes", type=float, default=3.0, help="length of each training run")
    parser.add_argument("--img_size", type=int, default=128, help="side of the network input in pixels")
    args = parser.parse_args(argv)
    variants = [(name, value) for text in args.vary for name, values in [parse(text)] for value in values]
    with tempfile.TemporaryDirectory() as temporary:
        cases = []
        for number, film in enumerate(args.films):
            with redirect_stdout(sys.stderr):
                shots = film_frames(film, Path(temporary) / f"{number}_frames", FRAMES)
            cases.append(Case(shots, Path(temporary) / f"{number}_training", args))
        print_header("", *(f"{film.stem}, {title}" for film in args.films for title in PROTOCOLS.values()), "mean")
        for name, value in [("default", None), *variants]:
            scores = [score for case in cases
                      for score in (case.score(case.colorizer) if value is None else case.vary(name, value))]
            label = name if value is None else f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            print_row(label, *(f"{score:.2f}" for score in [*scores, np.mean(scores)]))


if __name__ == "__main__":
    run_cli(main)
