"""Compare the speed of each part with a plain reference implementation (speed_reference.py).

    python -m benchmarks.speed [--film FILM] [--quick]

Each part and its reference are timed in turn, after a warm-up. The table has medians; the ratio is the speedup of ours.
The training step is the step of the paper (memory, AdaIN, no spatial memory) with WIDTH and BATCH, from pictures on
disk to the last optimizer step; ours also creates random views and a moving average. A second row has the step of the
default settings. The step with 10,000 training pictures is compared with the step with 1,000, and the dataset generator
with decoding alone. Ours colors a film with its sound; the reference colors one frame after another, without sound.

Prints a table and writes results/bench/speed.json. About 8 minutes on 2 CPU cores.
"""

import itertools
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader

from benchmarks import speed_reference as reference
from benchmarks.common import (
    EPISODE, describe_machine, existing_film, fill_memory, first_line, peak_memory, run_in_process, time_in_turn,
    untrained_predictor, write_film_frames, write_json)

from config import FilmConfig, GeneratorConfig, TrainConfig
from dataset import GRAY_SIZE, ColorizationDataset, color_feature, resize, rgb_to_lab
from dataset_generator import generate
from film.io.video import VideoFile
from film.render.rendering import color_film
from training.augmentation import TrainingViews, ViewSampler
from training.learner import Learner
from training.preparation import build_model_config, frame_embeddings
from utils import ArgumentParser, autocast, run_cli, select_device

ROUNDS = 3
SIZES = 128, 256  # sides of the network input in pixels
WIDTH, BATCH = 64, 8  # settings of the paper
STYLE_HIDDEN = 6144  # width of the hidden layers of the reference's style MLP
PICTURES = 24  # frames of the film to train on
PAPER = {"use_spatial_memory": False, "dis_every": 1, "conditioning_dropout": 0.0}
SET_SIZES = 1_000, 10_000  # pictures in the training set
CLIP_SECONDS, REFERENCE_FRAMES = 5, 16  # length of the film for ours and for the reference


def row(figure, reference, ours, unit="ms", count=1, target=""):
    """Return a row of the table. ``reference`` and ``ours`` are the seconds of each round for ``count`` items."""
    def value(seconds):
        seconds = statistics.median(seconds) / count
        return 1 / seconds if unit.endswith("/s") else seconds * 1000 if unit == "ms" else seconds

    return {"figure": figure, "unit": unit, "reference": value(reference), "ours": value(ours), "target": target,
            "ratio": statistics.median(reference) / statistics.median(ours),
            "seconds": {"reference": reference, "ours": ours}}


def table(rows):
    """Format the rows as a text table."""
    lines = [f"{'':48s}{'reference':>11s}{'ours':>11s} {'':11s}{'ratio':>7s}  target"]
    for r in rows:
        lines.append(f"{r['figure']:48s}{r['reference']:11.4g}{r['ours']:11.4g} {r['unit']:11s}{r['ratio']:7.2f}  "
                     f"{r['target']}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Color features


def measure_color_features(paths, rounds):
    ab = [resize(rgb_to_lab(cv2.imread(str(path))[..., ::-1]), GRAY_SIZE, GRAY_SIZE)[..., 1:] for path in paths]
    with threadpool_limits(1):  # ours uses one core, scikit-learn all cores
        seconds = time_in_turn(rounds, reference=lambda: [reference.color_feature(x) for x in ab],
                               ours=lambda: [color_feature(x) for x in ab])
    yield row("color feature of a picture, 256 px, one core", **seconds, count=len(ab), target=">= 50, < 5 ms")


# ---------------------------------------------------------------------------------------------------------------------
# The training step


def reference_step(paths, config, device):
    """Return a function that takes a training step of the reference and reads its pictures. It returns the loss."""
    learner = reference.Learner(config, round(1.2 * len(paths)), device, STYLE_HIDDEN)
    batches = itertools.cycle(torch.arange(len(paths)).split(config.batch_size))

    def step():
        chosen = next(batches).tolist()
        batch = reference.read_batch([paths[i] for i in chosen], chosen, config.img_size)
        losses = learner.step({name: value.to(device) for name, value in batch.items()})
        return float(sum(losses.values()))  # waits for a GPU

    return step


def our_step(data, config, device, random=False):
    """Return a function that takes a training step of ours. ``random`` uses random embeddings and a full memory."""
    learner = Learner(config, build_model_config(config, len(data)), device)
    cast = partial(autocast, device, config.precision)
    if random:
        fill_memory(learner.colorizer.memory)
        embeddings = torch.rand(len(data), learner.colorizer.memory.encoder.in_features, device=device)
    else:
        embeddings = frame_embeddings(data, learner.colorizer, cast)
    views = TrainingViews(data, config.training, config.conditioning_dropout)
    batches = iter(DataLoader(views, config.batch_size, sampler=ViewSampler(data, 10**5 // len(data), config.seed)))

    def step():
        batch = {name: value.to(device) for name, value in next(batches).items()}
        return float(sum(learner.step(batch, embeddings[batch["index"]], cast).values()))

    return step


def step_config(img_size, precision="fp32", **settings):
    return TrainConfig(img_size=img_size, width=WIDTH, batch_size=BATCH, precision=precision, **settings)


def measure_training_steps(paths, precisions, device, rounds):
    for size in SIZES:
        data = ColorizationDataset(paths, size)
        steps = {precision: our_step(data, step_config(size, precision, **PAPER), device) for precision in precisions}
        plain = reference_step(paths, step_config(size, **PAPER), device)
        default = our_step(data, step_config(size, "auto"), device)
        seconds = time_in_turn(rounds, reference=plain, default=default, **steps)
        for precision in precisions:
            target = {"fp32": ">= 3", "bf16": ">= 8"}[precision] if size == 256 else ""
            yield row(f"training step, {size} px, batch {BATCH}, {precision}", seconds["reference"], seconds[precision],
                      "pictures/s", BATCH, target)
        yield row(f"training step, {size} px, default training", seconds["reference"], seconds["default"],
                  "pictures/s", BATCH)


class RandomPictures(ColorizationDataset):
    """A dataset of ``count`` random pictures."""

    def __init__(self, count, img_size):
        rng = np.random.default_rng(0)
        self.img_size, self.side = img_size, GRAY_SIZE
        self.codes = torch.from_numpy(rng.integers(0, 256, (count, 3, self.side, self.side), np.uint8))
        self.color_features = torch.from_numpy(rng.dirichlet(np.ones(313), count).astype(np.float32))
        self.ids = list(range(count))

    def __len__(self):
        return len(self.ids)


def step_of_set(count, device):
    """Return a function that takes a training step of ours on ``count`` random pictures with a full memory."""
    return our_step(RandomPictures(count, SIZES[0]), step_config(SIZES[0], "auto", **PAPER), device, random=True)


def measure_set_sizes(device, rounds):
    few, many = (step_of_set(count, device) for count in SET_SIZES)
    seconds = time_in_turn(4 * rounds, reference=few, ours=many)
    yield row(f"step with {SET_SIZES[1]:,} pictures in the set, not {SET_SIZES[0]:,}", **seconds, count=BATCH,
              target=">= 0.91")


def peak_of_step(kind, paths, config):
    """Return the peak memory in GB of this process after a training step of ``kind``, "reference" or "ours"."""
    device = torch.device("cpu")
    if kind == "reference":
        reference_step(paths, config, device)()
    else:
        our_step(ColorizationDataset(paths, config.img_size), config, device)()
    return peak_memory()


def measure_training_memory(paths):
    config = step_config(SIZES[-1], "auto", **PAPER)
    peaks = {kind: run_in_process(peak_of_step, kind, paths, config) for kind in ("reference", "ours")}
    yield {"figure": f"memory of training, {SIZES[-1]} px, batch {BATCH}", "unit": "GB", **peaks,
           "ratio": peaks["reference"] / peaks["ours"], "target": ">= 2"}


# ---------------------------------------------------------------------------------------------------------------------
# Films


def measure_coloring(film, paths, device, rounds, folder):
    data = {size: ColorizationDataset(paths, size) for size in SIZES}
    for size, spatial in itertools.product(reversed(SIZES), (True, False)):
        config = TrainConfig(img_size=size, use_spatial_memory=spatial)
        ours, plain = (untrained_predictor(data[size], config, device, precision) for precision in ("auto", "fp32"))
        frames = []

        def color(predictor=ours, frames=frames):
            (folder / "ours.mp4").unlink(missing_ok=True)
            records = color_film(predictor, VideoFile(film), folder / "ours.mp4", FilmConfig(end=CLIP_SECONDS))
            frames[:] = [records[-1].end_frame]

        seconds = time_in_turn(rounds, ours=color, reference=partial(
            reference.color_film, plain, film, folder / "reference.mp4", REFERENCE_FRAMES))
        seconds = {"ours": [s / frames[0] for s in seconds["ours"]],
                   "reference": [s / REFERENCE_FRAMES for s in seconds["reference"]]}
        yield row(f"film at full resolution, network at {size} px{', without spatial memory' * (not spatial)}",
                  **seconds, unit="frames/s", target=f"{({128: 30, 256: 10})[size]} frames/s at 480 lines")


def measure_dataset_generator(film, rounds, folder):
    numbers = itertools.count()

    def decode():
        capture = cv2.VideoCapture(str(film))
        while capture.read()[0]:
            pass

    seconds = time_in_turn(rounds, reference=decode, ours=lambda: generate(GeneratorConfig(
        video_path=film, save_path=folder / f"dataset_{next(numbers)}")))
    yield row("dataset_generator, relative to decoding", **seconds, unit="s", target=">= 0.8")


def main(argv):
    parser = ArgumentParser(prog="benchmarks.speed", description=first_line(__doc__))
    parser.add_argument("--film", type=Path, default=EPISODE, help="the film to train on and to color")
    parser.add_argument("--quick", action="store_true", help="one round instead of several")
    parser.add_argument("--output", type=Path, default=Path("results/bench/speed.json"), help="replaced if it exists")
    args = parser.parse_args(argv)
    film = existing_film(args.film)
    device, rounds = select_device("auto"), 1 if args.quick else ROUNDS
    with autocast(device):
        precisions = ["fp32", "bf16"] if torch.is_autocast_enabled(device.type) else ["fp32"]
    rows, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write_film_frames(film, folder, PICTURES)
        for part in (measure_training_memory(paths),  # first, since a process inherits the peak of its parent
                     measure_color_features(paths, rounds),
                     measure_training_steps(paths, precisions, device, rounds), measure_set_sizes(device, rounds),
                     measure_coloring(film, paths, device, rounds, folder),
                     measure_dataset_generator(film, rounds, folder)):
            for line in part:
                rows.append(line)
                print(f"{line['figure']}: ratio {line['ratio']:.2f}", file=sys.stderr)
    machine = {**describe_machine(device), "precisions": precisions}
    write_json(args.output, {"machine": machine, "film": film.name, "rounds": rounds,
                             "seconds": round(time.monotonic() - started), "rows": rows})
    print("{cpu}, {threads} threads, GPU: {gpu}, torch {torch}; ".format(**machine)
          + f"{film.name}; medians of {rounds}\n{table(rows)}\nwritten to {args.output}")


if __name__ == "__main__":
    run_cli(main)
