"""The search behind the defaults: one of them changed at a time, on frames that nobody reports.

    python benchmarks/search.py FILM [FILM ...] [--vary NAME=VALUE[,VALUE ...] ...] [--minutes 3]

One training on a film serves both protocols of quality.py, on frames that it does not look at: those at 1/8, 3/8, 5/8
and 7/8 of the shots that are trained on, and of the shots that another draw (SEED) holds out. NAME is a constant of
SpatialConfig, with each value of which the spatial memory is filled and read anew; ``generator_sigma`` or ``temperature`` of
PaletteClassifierConfig, with each value of which votes are joined anew; or a flag of train.py or a constant of TrainingConstants or
PaletteClassifierConfig, with each value of which all is trained again. Without --vary, READING is tried.

Prints the mean CIEDE2000 for each film and protocol, a line as soon as it is known, as a table in Markdown.
"""

import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.quality import PROTOCOLS, film_frames, measure, split_frames

from colorizer.predictor import Predictor, load_colorizer
from config import PaletteClassifierConfig, SpatialConfig, TrainConfig, TrainingConstants
from dataset import ColorizationDataset
from train import train
from training.preparation import fill_spatial_memory
from utils import ArgumentParser, UserError, autocast, run_cli, select_device

FRAMES, SEED = 9, 3  # of each shot; the shots that quality.py holds out are those of its seeds from 0 on
READING = ["attended_frames=4,16", "mmr_diversity=0.25,0.75", "inverse_temperature=15.0,60.0",
           "disagreement_scale=0.01,0.05", "lightness_weight=1.0,4.0", "position_weight=0.0,0.3", "color_weight=2.0,8.0",
           "warped_frames=1,4", "feature_weight=0.25,1.0", "photometric_weight=50.0,400.0",
           "cost_inverse_temperature=5.0,80.0"]
SPATIAL, LEARNING = ({f.name for f in fields(kind)} for kind in (SpatialConfig, TrainingConstants))
JOINING = {"generator_sigma", "temperature"}
VOTES = {f.name for f in fields(PaletteClassifierConfig)} - SPATIAL
FLAGS = {f.name for f in fields(TrainConfig) if "help" in f.metadata}


def parse(text):
    """NAME=VALUE,VALUE as the name and its values, numbers."""
    name, _, values = text.partition("=")
    if name not in SPATIAL | LEARNING | VOTES | FLAGS:
        raise UserError(f"{name} is no constant of SpatialConfig, TrainingConstants or PaletteClassifierConfig and no flag of "
                        f"train.py; correct --vary {text}")
    try:
        return name, [float(value) if "." in value else int(value) for value in values.split(",")]
    except ValueError as error:
        raise UserError(f"the values of --vary {text} are no numbers; write it as NAME=1,2.5") from error


class Case:
    """A film: what is trained on, what is tested for each protocol, and the networks with the defaults."""

    def __init__(self, shots, folder, args):
        self.folder, self.args, self.device = folder, args, select_device("auto")
        trained, unseen = split_frames(shots, "unseen", SEED)
        known = [path for path in split_frames(shots, "known", SEED)[1] if path not in unseen]
        self.tested = {"known": known, "unseen": unseen}
        (folder / "data" / "train").mkdir(parents=True)
        for path in trained:
            (folder / "data" / "train" / path.name).hardlink_to(path)
        self.colorizer = self.trained("default")

    def trained(self, name, **settings):
        """A Colorizer trained with ``settings``."""
        with redirect_stdout(sys.stderr):
            train(TrainConfig(**{"data_path": str(self.folder / "data"), "save_path": str(self.folder / name),
                                 "img_size": self.args.img_size, "max_minutes": self.args.minutes,
                                 "end_epoch": 10**6, "save_freq": 10**6, **settings}))
        return load_colorizer(self.folder / name / "last.pt", self.device)[0]

    def score(self, colorizer):
        """Mean CIEDE2000 over the test frames, one for each of PROTOCOLS."""
        predictor = Predictor(colorizer, self.device)
        return [measure({"full": lambda labs: predictor.predict_ab(labs)[0]}, self.tested[protocol], self.args.img_size)[0]["full"]["ciede2000"]
                for protocol in PROTOCOLS]

    def read_with(self, name, value):
        """The scores with another constant of the spatial memory, which is filled anew."""
        spatial, config = self.colorizer.spatial, self.colorizer.config
        before = spatial.config
        spatial.config = config.spatial = replace(before, **{name: value})
        data = ColorizationDataset(self.folder / "data" / "train", self.args.img_size, TrainConfig.cache_gb)
        try:
            fill_spatial_memory(data, self.colorizer, partial(autocast, self.device, "auto"))
            return self.score(self.colorizer)
        finally:
            spatial.config = config.spatial = before

    def join_with(self, name, value):
        """The scores with another constant by which votes are joined."""
        classifier = self.colorizer.palette_classifier
        before, classifier.config = classifier.config, replace(classifier.config, **{name: value})
        try:
            return self.score(self.colorizer)
        finally:
            classifier.config = before

    def vary(self, name, value):
        """The scores with another value of a constant or setting."""
        if name in JOINING:
            return self.join_with(name, value)
        if name in SPATIAL:
            return self.read_with(name, value)
        kinds = {"training": (LEARNING, TrainingConstants), "palette_classifier": (VOTES, PaletteClassifierConfig)}
        settings = next(({part: kind(**{name: value})} for part, (names, kind) in kinds.items() if name in names),
                        {name: value})
        return self.score(self.trained(f"{name}_{value}", **settings))


def main(argv):
    parser = ArgumentParser(prog="search.py", description="Score values of the defaults on frames that nobody reports.")
    parser.add_argument("films", nargs="+", type=Path, metavar="FILM")
    parser.add_argument("--vary", nargs="+", default=READING, metavar="NAME=VALUES", help="what to try beside default")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each training")
    parser.add_argument("--img_size", type=int, default=128, help="side of the square that the networks see")
    args = parser.parse_args(argv)
    variants = [(name, value) for text in args.vary for name, values in [parse(text)] for value in values]
    with tempfile.TemporaryDirectory() as temporary:
        cases = []
        for number, film in enumerate(args.films):
            with redirect_stdout(sys.stderr):
                shots = film_frames(film, Path(temporary) / f"{number}_frames", FRAMES)
            cases.append(Case(shots, Path(temporary) / f"{number}_training", args))
        titles = [f"{film.stem}, {title}" for film in args.films for title in PROTOCOLS.values()]
        print("| | " + " | ".join(titles) + " | mean |\n|---|" + "---|" * (len(titles) + 1))
        for label, score in [("default", lambda case: case.score(case.colorizer)),
                             *((f"{name} {value:g}", lambda case, name=name, value=value: case.vary(name, value))
                               for name, value in variants)]:
            scores = [value for case in cases for value in score(case)]
            print(f"| {label} | " + " | ".join(f"{value:.2f}" for value in [*scores, np.mean(scores)]) + " |",
                  flush=True)


if __name__ == "__main__":
    run_cli(main)
