"""Where does the time of a frame go? Each stage of coloring, on the device that there is.

    python benchmarks/stages.py CHECKPOINT [FILM] [--seconds 10]

Colors the first seconds of FILM as test.py does, once as it is and once with one painting thread and a clock around
every stage, which waits for the device. A stage does not count what stages within it take. A frame that holds the
drawing before it costs none of them. Prints the table, with how often the device is waited for in a batch on CUDA.
"""

import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import colorizer.threads  # noqa: F401  before torch is imported

import numpy as np
import torch

from benchmarks.speed import machine

from colorizer import palette_classifier as votes, predictor
from colorizer.backbone import Backbone
from colorizer.colorizer import Colorizer
from colorizer.memory import spatial_memory as spatial
from colorizer.warping import in_betweens as between, optical_flow as flow
from config import FilmConfig
from film.analysis.first_pass import analyze_film
from film.io.video import VideoFile
from film.render import rendering as episode
from networks import Generator
from utils import ArgumentParser, parse_positive_int, run_cli

FILM = Path(__file__).resolve().parents[1] / "resources" / "episode_2.mp4"
STAGES = {
    "first pass, the rest": (episode, "analyze_film"),
    "backbone, 224 px": (Backbone, "forward"),
    "backbone, look of the voter": (Colorizer, "classifier_maps"),
    "votes": (votes.PaletteClassifier, "forward"),
    "regions (CPU)": (votes.PaletteClassifier, "find_regions"),
    "which drawings are painted": (between.InBetweens, "__init__"),
    "colors of the others": (between.InBetweens, "propagate_colors"),
    "what is known of these": (between.InBetweens, "propagate_confidence"),
    "generator": (Generator, "forward"),
    "votes and generator joined": (votes.PaletteClassifier, "combine"),
    "keys": (spatial.SpatialMemory, "make_keys"),
    "frames to read": (colorizer.colorizer, "find_nearest_frames"),
    "optical flow (CPU)": (flow.OpticalFlow, "__call__"),
    "colors carried": (colorizer.colorizer, "warp_colors"),
    "colors looked up": (colorizer.colorizer, "attend_to_frames"),
    "what is known": (Colorizer, "_confidence"),
    "the rest of painting": (predictor.Predictor, "predict_with_embeddings"),
    "colors steadied": (flow.TemporalFilter, "__call__"),
    "chroma at the film's size": (episode, "to_planes"),
}


class Clock(threading.local):
    """Seconds of stages, each without those within it in the same thread."""

    seconds = defaultdict(float)  # of all threads

    def __init__(self, device: torch.device) -> None:
        self.device, self.inner = device, []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def around(self, stage: str, function: Callable) -> Callable:
        """The function, timed as ``stage``."""
        def timed(*args, **settings):
            self.inner.append(0.0)
            started = self.now()
            answer = function(*args, **settings)
            took = self.now() - started
            self.seconds[stage] += took - self.inner.pop()
            if self.inner:
                self.inner[-1] += took
            return answer

        return timed


def color(predictor_, film, seconds):
    """Color the first seconds; returns how long that took and how many frames there are."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        records = episode.color_film(predictor_, VideoFile(film), Path(folder) / "film.mkv", FilmConfig(end=seconds))
        return time.perf_counter() - started, records[-1].end_frame


def waits(predictor_, film, seconds):
    """How often a batch of 8 frames waits for a CUDA device, by the line of our code that does."""
    film = VideoFile(film)
    plan = analyze_film(film, predictor_, FilmConfig(end=seconds))
    frames = [planes.lightness(predictor_.side) for _, (_, _, planes) in zip(range(8), film.read(), strict=False)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        predictor_.predict_with_embeddings(np.stack(frames), plan.shots[0].palette)
        torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message))


def main(argv):
    parser = ArgumentParser(prog="stages.py", description="Time each stage of coloring a film.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of train.py")
    parser.add_argument("film", type=Path, nargs="?", default=FILM, metavar="FILM", help="the film to color")
    parser.add_argument("--seconds", type=parse_positive_int, default=10, help="how much of the film is colored")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the networks")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    ours = predictor.Predictor.load(args.checkpoint, precision=args.precision)
    loaded = time.perf_counter() - started
    color(ours, args.film, 1)  # warm
    clock = Clock(ours.device)
    whole, frames = color(ours, args.film, args.seconds)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(episode, "COLORING_THREADS", 1))
        for stage, (owner, name) in STAGES.items():
            stack.enter_context(mock.patch.object(owner, name, clock.around(stage, getattr(owner, name))))
        color(ours, args.film, args.seconds)
    print("{cpu}, {threads} threads, GPU: {gpu}, torch {torch}".format(**machine(ours.device, [])))
    print(f"{args.precision}; checkpoint loaded in {loaded:.1f} s; {frames} frames of {args.film.name} colored in "
          f"{whole:.1f} s, {frames / whole:.1f} a second")
    print("| stage | ms a frame |\n|---|---|")
    for stage in filter(clock.seconds.get, STAGES):
        print(f"| {stage} | {clock.seconds[stage] / frames * 1000:.2f} |")
    if ours.device.type == "cuda":
        print("waits of a batch:", dict(waits(ours, args.film, 1).most_common()))


if __name__ == "__main__":
    run_cli(main)
