"""How fast it is: each figure beside that of the plain reference (reference.py), in turn in one process.

    python benchmarks/speed.py [--film FILM] [--quick]

Color feature, first layer of the discriminator, training step, film and dataset are timed ROUNDS times in turn, after
a round that does not count, and medians are taken. The ratio says how many times better ours is; the reference of the
dataset generator is decoding alone, and that of the step with 10,000 frames the step with 1,000.

The training step is that of the paper (memory, AdaIN, no spatial memory, the discriminator judges in every step) with
WIDTH and BATCH, from pictures on the disk to the last optimizer. Ours also makes random views and a moving average,
which the reference does not. The reference's styles come from an MLP of another width; its weights are otherwise of the
same shapes. Beside it is our default way to train. "matrix product" is the step's arithmetic over its time, beside what
this machine reaches in a large matrix product. A film is colored with its sound, with and without spatial memory, and
by the reference one frame after another, with a palette for each frame and not for each shot.

Prints a table and writes results/bench/speed.json. About 8 minutes on 2 CPU cores.
"""

import itertools
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import reference

from colorizer.predictor import Predictor
from config import FilmConfig, GeneratorConfig, TrainConfig, TrainingConstants
from dataset import GRAY_SIZE, ColorizationDataset, color_feature, resize, rgb_to_lab
from dataset_generator import generate
from fileio.atomic import atomic_write
from fileio.images import write_image
from film.io.video import VideoFile
from film.render.rendering import color_film
from networks import ColorConv
from training.augmentation import TrainingViews, ViewSampler
from training.learner import Learner
from training.preparation import build_model_config, fill_spatial_memory, frame_embeddings
from utils import ArgumentParser, UserError, autocast, run_cli, select_device

FILM = Path(__file__).resolve().parents[1] / "resources" / "episode_2.mp4"
ROUNDS = 3
SIZES = 128, 256
WIDTH, BATCH = 64, 8  # of the paper
STYLE_HIDDEN = 6144  # width of the hidden layers from which the reference takes its styles
PICTURES = 24  # frames of the film to train on
PAPER = {"use_spatial_memory": False, "dis_every": 1, "conditioning_dropout": 0.0}
SET_SIZES = 1_000, 10_000
CLIP_SECONDS, REFERENCE_FRAMES = 5, 16  # how much of the film is colored by ours and by the reference
MATRIX = 2048  # side of the large matrices

# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def in_turn(rounds, **functions):
    """Seconds of each function, called in turn for so many rounds after one that does not count: {name: [seconds]}."""
    seconds = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def row(figure, reference, ours, unit="ms", count=1, target=""):
    """A line of the table by the seconds of each round, in which ``count`` pictures are done."""
    def value(seconds):
        seconds = statistics.median(seconds) / count
        return 1 / seconds if unit.endswith("/s") else seconds * 1000 if unit == "ms" else seconds

    return {"figure": figure, "unit": unit, "reference": value(reference), "ours": value(ours), "target": target,
            "ratio": statistics.median(reference) / statistics.median(ours),
            "seconds": {"reference": reference, "ours": ours}}


def table(rows):
    lines = [f"{'':48s}{'reference':>11s}{'ours':>11s} {'':11s}{'ratio':>7s}  to reach"]
    for r in rows:
        lines.append(f"{r['figure']:48s}{r['reference']:11.4g}{r['ours']:11.4g} {r['unit']:11s}{r['ratio']:7.2f}  "
                     f"{r['target']}")
    return "\n".join(lines)


def film_pictures(film, folder, count):
    """Write ``count`` frames of a film, evenly spread, to ``folder``; returns their paths."""
    frames = sum(1 for _ in VideoFile(film).read())
    if frames < count:
        raise UserError(f"{film} has {frames} frames, and {count} are needed; name a longer film")
    wanted = set(np.linspace(0, frames - 1, count).round().astype(int).tolist())
    for number, (_, _, planes) in enumerate(VideoFile(film).read()):
        if number in wanted:
            write_image(folder / f"frame_{number}.png", planes.rgb_uint8())
    return sorted(folder.glob("*.png"))


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def color_features(paths, rounds):
    ab = [resize(rgb_to_lab(cv2.imread(str(path))[..., ::-1]), GRAY_SIZE, GRAY_SIZE)[..., 1:] for path in paths]
    with threadpool_limits(1):  # ours uses one core, and scikit-learn all that it gets
        seconds = in_turn(rounds, reference=lambda: [reference.color_feature(x) for x in ab],
                          ours=lambda: [color_feature(x) for x in ab])
    yield row("color feature of a picture, 256 px, one core", **seconds, count=len(ab), target=">= 50, < 5 ms")


def first_layer(rounds):
    ours = ColorConv(3, WIDTH)
    plain = reference.first_layer(ours)
    picture, color = torch.rand(BATCH, 3, GRAY_SIZE, GRAY_SIZE, requires_grad=True), torch.rand(BATCH, 313)
    seconds = in_turn(rounds, reference=lambda: plain(reference.lay_out(picture, color)).sum().backward(),
                      ours=lambda: ours(picture, color).sum().backward())
    yield row(f"first layer, there and back, 256 px, batch {BATCH}", **seconds)


# ---------------------------------------------------------------------------------------------------------------------
# The training step


def reference_step(paths, config, device):
    """A function that makes one step of the reference, reading and preparing its pictures."""
    learner = reference.Learner(config, round(1.2 * len(paths)), device, STYLE_HIDDEN)
    batches = itertools.cycle(torch.arange(len(paths)).split(config.batch_size))

    def step():
        chosen = next(batches).tolist()
        batch = reference.read_batch([paths[i] for i in chosen], chosen, config.img_size)
        losses = learner.step({name: value.to(device) for name, value in batch.items()})
        return float(sum(losses.values()))  # which waits for a GPU

    return step


def our_step(data, config, device):
    """A function that makes one step of ours, as train.py does."""
    learner = Learner(config, build_model_config(config, len(data)), device)
    cast = partial(autocast, device, config.precision)
    features = frame_embeddings(data, learner.colorizer, cast)
    batches = iter(DataLoader(TrainingViews(data, config.training, config.conditioning_dropout), config.batch_size,
                              sampler=ViewSampler(data, 10**5 // len(data), config.seed)))

    def step():
        batch = {name: value.to(device) for name, value in next(batches).items()}
        return float(sum(learner.step(batch, features[batch["index"]], cast).values()))

    return step


def step_settings(img_size, precision="fp32", **way):
    return TrainConfig(img_size=img_size, width=WIDTH, batch_size=BATCH, precision=precision, **way)


def training_steps(paths, precisions, device, rounds):
    rates = {precision: matrix_rate(precision, device) for precision in precisions}
    for size in SIZES:
        data = ColorizationDataset(paths, size)
        steps = {precision: our_step(data, step_settings(size, precision, **PAPER), device) for precision in precisions}
        plain = reference_step(paths, step_settings(size, **PAPER), device)
        default = our_step(data, step_settings(size, "auto"), device)
        with FlopCounterMode(display=False) as counter:
            steps["fp32"]()
        seconds = in_turn(rounds, reference=plain, default=default, **steps)
        for precision in precisions:
            target = {"fp32": ">= 3", "bf16": ">= 8"}[precision] if size == 256 else ""
            yield row(f"training step, {size} px, batch {BATCH}, {precision}", seconds["reference"], seconds[precision],
                      "pictures/s", BATCH, target)
        yield row(f"training step, {size} px, our default way", seconds["reference"], seconds["default"], "pictures/s",
                  BATCH)
        work = counter.get_total_flops() / 1e9
        for precision in precisions:
            rate = work / statistics.median(seconds[precision])
            yield {"figure": f"step and matrix product, {size} px, {precision}", "unit": "GFLOP/s", "ours": rate,
                   "reference": rates[precision], "ratio": rate / rates[precision],
                   "target": f"{work / BATCH:.0f} GFLOP a picture"}


def matrix_rate(precision, device):
    """GFLOP/s of a product of large matrices."""
    a = torch.rand(MATRIX, MATRIX, device=device, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    seconds = in_turn(5, product=lambda: (a @ a)[0, 0].item())["product"]
    return 2 * MATRIX**3 / 1e9 / statistics.median(seconds)


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


def step_with(count, device):
    """A function that makes one step of ours with so many pictures in the set, all of them in a full memory."""
    data, config = RandomPictures(count, SIZES[0]), step_settings(SIZES[0], "auto", **PAPER)
    learner = Learner(config, build_model_config(config, count), device)
    fill_memory(learner.colorizer.memory)
    features = torch.rand(count, learner.colorizer.memory.encoder.in_features, device=device)
    views = TrainingViews(data, TrainingConstants())
    batches = iter(DataLoader(views, BATCH, sampler=ViewSampler(data, 10**5 // count, 0)))

    def step():
        batch = {name: value.to(device) for name, value in next(batches).items()}
        return float(sum(learner.step(batch, features[batch["index"]], partial(autocast, device)).values()))

    return step


def fill_memory(memory):
    """Fill all slots of a MemoryNetwork with random keys."""
    memory.keys.normal_()
    memory.keys /= memory.keys.norm(dim=1, keepdim=True)
    memory.values.fill_(1 / 313)
    memory.used.fill_(True)
    memory.ids.copy_(torch.arange(len(memory.ids)))


def set_sizes(device, rounds):
    few, many = (step_with(count, device) for count in SET_SIZES)
    seconds = in_turn(4 * rounds, reference=few, ours=many)
    yield row(f"step with {SET_SIZES[1]:,} frames in the set, not {SET_SIZES[0]:,}", **seconds, count=BATCH,
              target=">= 0.91")


def peak_memory(kind, paths, img_size, settings):
    """GB that a process needed at most in which one step is made."""
    config, device = replace(TrainConfig(), img_size=img_size, **settings), torch.device("cpu")
    if kind == "reference":
        reference_step(paths, config, device)()
    else:
        our_step(ColorizationDataset(paths, img_size), config, device)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def memory_of_training(paths):
    settings = {"width": WIDTH, "batch_size": BATCH, **PAPER}
    peaks = {}
    for kind in ("reference", "ours"):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:  # a process of its own for each
            peaks[kind] = process.submit(peak_memory, kind, paths, SIZES[-1], settings).result()
    yield {"figure": f"memory of training, {SIZES[-1]} px, batch {BATCH}", "unit": "GB", **peaks,
           "ratio": peaks["reference"] / peaks["ours"], "target": ">= 2"}


# ---------------------------------------------------------------------------------------------------------------------
# Films


def make_predictor(data, config, device, precision):
    """A Predictor of an untrained colorizer that remembers the pictures."""
    cast = partial(autocast, device)
    learner = Learner(config, build_model_config(config, len(data)), device)
    memory = learner.colorizer.memory
    with torch.no_grad():
        if config.use_spatial_memory:
            fill_spatial_memory(data, learner.colorizer, cast)
        memory.update(memory.query(frame_embeddings(data, learner.colorizer, cast)), data.color_features.to(device),
                      torch.tensor(data.ids))
    return Predictor(learner.colorizer.eval(), device, precision)


def coloring(film, paths, device, rounds, folder):
    data = {size: ColorizationDataset(paths, size) for size in SIZES}
    for size, spatial in itertools.product(reversed(SIZES), (True, False)):
        config = TrainConfig(img_size=size, use_spatial_memory=spatial)
        ours, plain = (make_predictor(data[size], config, device, precision) for precision in ("auto", "fp32"))
        records = []

        def color(predictor=ours, records=records):
            (folder / "ours.mp4").unlink(missing_ok=True)
            records[:] = color_film(predictor, VideoFile(film), folder / "ours.mp4", FilmConfig(end=CLIP_SECONDS))

        seconds = in_turn(rounds, ours=color, reference=partial(
            reference.color_film, plain, film, folder / "reference.mp4", REFERENCE_FRAMES))
        seconds = {"ours": [s / records[-1].end_frame for s in seconds["ours"]],
                   "reference": [s / REFERENCE_FRAMES for s in seconds["reference"]]}
        yield row(f"film at full resolution, network at {size} px{', without spatial memory' * (not spatial)}",
                  **seconds, unit="frames/s", target=f"{({128: 30, 256: 10})[size]} frames/s at 480 lines")


def dataset_making(film, rounds, folder):
    numbers = itertools.count()

    def decode():
        capture = cv2.VideoCapture(str(film))
        while capture.read()[0]:
            pass

    seconds = in_turn(rounds, reference=decode, ours=lambda: generate(GeneratorConfig(
        video_path=film, save_path=folder / f"dataset_{next(numbers)}")))
    yield row("dataset_generator, beside decoding alone", **seconds, unit="s", target=">= 0.8")


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def machine(device, precisions):
    """What the figures were measured on."""
    name = platform.processor()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        name = next((line.partition(":")[2].strip() for line in cpu_info.read_text().splitlines()
                     if line.startswith("model name")), name)
    return {"cpu": name, "threads": torch.get_num_threads(), "precisions": precisions, "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None}


def main(argv):
    parser = ArgumentParser(prog="speed.py", description="Time every part beside a plain reference.")
    parser.add_argument("--film", type=Path, default=FILM, help="the film to learn from and to color")
    parser.add_argument("--quick", action="store_true", help="one round instead of several")
    parser.add_argument("--output", type=Path, default=Path("results/bench/speed.json"), help="replaced if it exists")
    args = parser.parse_args(argv)
    if not args.film.is_file():
        raise UserError(f"there is no film {args.film}; name another one")
    device, rounds = select_device("auto"), 1 if args.quick else ROUNDS
    with autocast(device):
        precisions = ["fp32", "bf16"] if torch.is_autocast_enabled(device.type) else ["fp32"]
    rows, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = film_pictures(args.film, folder, PICTURES)
        for part in (memory_of_training(paths),  # first: a process takes over the peak of the one that starts it
                     color_features(paths, rounds), first_layer(rounds),
                     training_steps(paths, precisions, device, rounds), set_sizes(device, rounds),
                     coloring(args.film, paths, device, rounds, folder), dataset_making(args.film, rounds, folder)):
            for line in part:
                rows.append(line)
                print(f"{line['figure']}: ratio {line['ratio']:.2f}", file=sys.stderr)
    report = {"machine": machine(device, precisions), "film": args.film.name, "rounds": rounds,
              "seconds": round(time.monotonic() - started), "rows": rows}
    with atomic_write(args.output) as path:
        path.write_text(json.dumps(report, indent=2) + "\n")
    print("{cpu}, {threads} threads, GPU: {gpu}, torch {torch}; ".format(**report["machine"])
          + f"{args.film.name}; medians of {rounds}\n{table(rows)}\nwritten to {args.output}")


if __name__ == "__main__":
    run_cli(main)
