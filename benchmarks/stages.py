"""Measure the time of each stage of coloring a film, on the available device.

    python -m benchmarks.stages CHECKPOINT [FILM] [--seconds 10]

Colors the first seconds of FILM twice: as test.py does, and with one coloring thread and a timer, which synchronizes
with the GPU, around each stage. The time of a stage excludes nested stages. Prints milliseconds per frame, including
held frames.
"""

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch

from benchmarks.common import EPISODE, describe_machine, existing_film, first_line, print_header, print_row

import colorizer.colorizer
from colorizer.backbone import Backbone
from colorizer.colorizer import Colorizer
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.palette_classifier import PaletteClassifier
from colorizer.predictor import Predictor
from colorizer.warping.in_betweens import InBetweens
from colorizer.warping.optical_flow import OpticalFlow, TemporalFilter
from config import FilmConfig
from film.io.video import VideoFile
from film.render import rendering
from networks import Generator
from utils import ArgumentParser, parse_positive_int, run_cli

STAGES = {  # title: (module or class, name of its function)
    "first pass, remainder": (rendering, "analyze_film"),
    "backbone, frame features": (Backbone, "forward"),
    "backbone, classifier features": (Colorizer, "classifier_maps"),
    "palette classifier": (PaletteClassifier, "forward"),
    "regions (CPU)": (PaletteClassifier, "find_regions"),
    "selection of keyframes": (InBetweens, "__init__"),
    "colors of in-between frames": (InBetweens, "propagate_colors"),
    "confidence of in-between frames": (InBetweens, "propagate_confidence"),
    "generator": (Generator, "forward"),
    "combination of classifier and generator": (PaletteClassifier, "combine"),
    "keys of the spatial memory": (SpatialMemory, "make_keys"),
    "retrieval of remembered frames": (colorizer.colorizer, "find_nearest_frames"),
    "optical flow (CPU)": (OpticalFlow, "__call__"),
    "warped colors": (colorizer.colorizer, "warp_colors"),
    "attention to remembered frames": (colorizer.colorizer, "attend_to_frames"),
    "confidence": (Colorizer, "_confidence"),
    "prediction, remainder": (Predictor, "predict_with_embeddings"),
    "temporal filter": (TemporalFilter, "__call__"),
    "chroma at film size": (rendering, "to_planes"),
}


class Clock(threading.local):
    """Accumulates the seconds of each stage, without stages nested in it in the same thread."""

    seconds = defaultdict(float)  # of all threads

    def __init__(self, device: torch.device) -> None:
        self.device, self.inner = device, []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def around(self, stage: str, function: Callable) -> Callable:
        """Return a function that adds its time to ``stage``."""
        def timed(*args, **settings):
            self.inner.append(0.0)
            started = self.now()
            result = function(*args, **settings)
            elapsed = self.now() - started
            self.seconds[stage] += elapsed - self.inner.pop()
            if self.inner:
                self.inner[-1] += elapsed
            return result

        return timed


def color(predictor, film, seconds, **settings):
    """Color the first ``seconds`` of a film. Returns the elapsed seconds and the number of frames."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        records = rendering.color_film(predictor, VideoFile(film), Path(folder) / "film.mkv",
                                       FilmConfig(end=seconds, **settings))
        return time.perf_counter() - started, records[-1].end_frame


def main(argv):
    parser = ArgumentParser(prog="benchmarks.stages", description=first_line(__doc__))
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of train.py")
    parser.add_argument("film", type=Path, nargs="?", default=EPISODE, metavar="FILM", help="the film to color")
    parser.add_argument("--seconds", type=parse_positive_int, default=10, help="seconds of the film to color")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the networks")
    args = parser.parse_args(argv)
    film, started = existing_film(args.film), time.perf_counter()
    predictor = Predictor.load(args.checkpoint, precision=args.precision)
    loaded = time.perf_counter() - started
    color(predictor, film, 1)  # warm-up
    clock = Clock(predictor.device)
    whole, frames = color(predictor, film, args.seconds)
    with ExitStack() as stack:
        for stage, (owner, name) in STAGES.items():
            stack.enter_context(mock.patch.object(owner, name, clock.around(stage, getattr(owner, name))))
        color(predictor, film, args.seconds, batch_size=1)
    print("{cpu}, {threads} threads, GPU: {gpu}, torch {torch}".format(**describe_machine(predictor.device)))
    print(f"{args.precision}; checkpoint loaded in {loaded:.1f} s; {frames} frames of {film.name} colored in "
          f"{whole:.1f} s, {frames / whole:.1f} per second")
    print_header("stage", "ms per frame")
    for stage in filter(clock.seconds.get, STAGES):
        print_row(stage, f"{clock.seconds[stage] / frames * 1000:.2f}")


if __name__ == "__main__":
    run_cli(main)
