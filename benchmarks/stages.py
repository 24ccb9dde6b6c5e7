"""Measure the CPU time of each stage of coloring a film, at several sizes.

    python -m benchmarks.stages CHECKPOINT [FILM] [--lines 360 1080] [--seconds 5]

Colors the first seconds of FILM, scaled to each number of lines, as test.py does. Prints milliseconds of a core per
frame, including held frames, and per keyframe; stages exclude the stages within them. Decoding, in both passes, and
encoding run in threads of FFmpeg and are measured alone. CPU time depends little on other programs. On a GPU, where
stages wait for each other, elapsed time is measured with one coloring thread.
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
from colorizer.adaptation import film_response
from colorizer.backbone import Backbone
from colorizer.colorizer import Colorizer
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.palette_classifier import PaletteClassifier
from colorizer.predictor import Predictor
from colorizer.warping import propagation
from colorizer.warping.in_betweens import InBetweens
from colorizer.warping.optical_flow import OpticalFlow, TemporalFilter
from config import FilmConfig
from film.analysis.film_analysis import _AnalysisPass
from film.io.encoding import write_video
from film.io.thread_pool import CORES
from film.io.video import VideoFile
from film.render import pipeline, rendering, shot_recorder
from film.render.shot_recorder import ShotRecorder
from film.render.writers import FilmWriter
from networks import Generator
from utils import ArgumentParser, parse_positive_int, run_cli

STAGES = {  # title: (module or class, name of its function)
    "first pass": (rendering, "analyze_film"),
    "first pass, reduction of frames": (_AnalysisPass, "_reduce"),
    "first pass, palettes": (Predictor, "palette"),
    "film response": (Predictor, "fit_response"),
    "film response, matching": (film_response, "_match_part"),
    "backbone, frame features": (Backbone, "forward"),
    "backbone, classifier features": (Colorizer, "classifier_maps"),
    "palette classifier": (PaletteClassifier, "forward"),
    "regions": (PaletteClassifier, "find_regions"),
    "combination of classifier and generator": (PaletteClassifier, "combine"),
    "generator": (Generator, "forward"),
    "keys of the spatial memory": (SpatialMemory, "make_keys"),
    "retrieval of remembered frames": (colorizer.colorizer, "find_nearest_frames"),
    "warped colors": (colorizer.colorizer, "warp_colors"),
    "attention to remembered frames": (colorizer.colorizer, "attend_to_frames"),
    "confidence": (Colorizer, "_confidence"),
    "optical flow": (OpticalFlow, "__call__"),
    "propagation through the shot": (pipeline, "propagate_shot"),
    "regions of propagated colors": (propagation, "_fill_regions"),
    "selection of keyframes": (InBetweens, "__init__"),
    "colors of in-between frames": (InBetweens, "propagate_colors"),
    "confidence of in-between frames": (InBetweens, "propagate_confidence"),
    "prediction, remainder": (Predictor, "predict_with_embeddings"),
    "temporal filter": (TemporalFilter, "__call__"),
    "chroma at film size": (rendering, "to_planes"),
    "color consistency, for the report": (ShotRecorder, "add"),
    "scores, if the film is in color": (shot_recorder, "score_frame"),
}


class Clock(threading.local):
    """Accumulates the seconds of each stage, without stages nested in it in the same thread."""

    seconds = defaultdict(float)  # of all threads

    def __init__(self, device: torch.device) -> None:
        self.device, self.inner = device, []

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.thread_time()
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


def scale_film(film: Path, scaled: Path, lines: int, seconds: float) -> None:
    """Write the first ``seconds`` of a film, scaled to ``lines`` lines, to the video ``scaled``."""
    source = VideoFile(film)
    end = round((source.info.start + seconds) / source.info.time_base)

    def frames():
        for pts, _, planes in source.read():
            if pts >= end:
                return
            height, width = planes.y.shape
            yield pts, planes.rgb_uint8(lines, 2 * round(width * lines / height / 2))

    write_video(scaled, source, frames())


def measure_codecs(film: Path, output: Path, now: Callable[[], float]) -> dict[str, float]:
    """Return the seconds of decoding a film twice and of encoding it as coloring does."""
    source, started = VideoFile(film), now()
    times = [pts for pts, _, _ in source.read()]
    decoding, started = now() - started, now()
    with FilmWriter(source, output, FilmConfig()).write_shot(output.with_suffix(".part"), times) as write:
        for pts, _, planes in source.read():
            write(planes, pts)
    return {"decoding, twice": 2 * decoding, "encoding": now() - started - decoding}


def measure(predictor: Predictor, film: Path, output: Path) -> tuple[dict[str, float], int, int, float]:
    """Color a film. Return the seconds of each stage with "remainder" and "all", the numbers of frames and keyframes,
    and the share of the time of all cores that was used."""
    clock, keyframes, select = Clock(predictor.device), 0, InBetweens.__init__
    clock.seconds.clear()

    def count_keyframes(between, *args):
        nonlocal keyframes
        select(between, *args)
        keyframes += len(between.keyframes)

    on_cpu = predictor.device.type == "cpu"
    now = time.process_time if on_cpu else time.perf_counter
    codecs = measure_codecs(film, output, now)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(InBetweens, "__init__", count_keyframes))
        for stage, (owner, name) in STAGES.items():
            stack.enter_context(mock.patch.object(owner, name, clock.around(stage, getattr(owner, name))))
        started, wall, busy = now(), time.perf_counter(), time.process_time()
        records = rendering.color_film(predictor, VideoFile(film), output,
                                       FilmConfig() if on_cpu else FilmConfig(batch_size=1), overwrite=True)
        total = now() - started
        occupancy = (time.process_time() - busy) / (time.perf_counter() - wall) / CORES
    stages = {stage: clock.seconds[stage] for stage in STAGES if clock.seconds[stage]} | codecs
    seconds = {**stages, "remainder": total - sum(stages.values()), "all": total}
    return seconds, records[-1].end_frame, keyframes, occupancy


def main(argv):
    parser = ArgumentParser(prog="benchmarks.stages", description=first_line(__doc__))
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of train.py")
    parser.add_argument("film", type=Path, nargs="?", default=EPISODE, metavar="FILM", help="the film to color")
    parser.add_argument("--lines", type=parse_positive_int, nargs="+", default=[360], help="even heights of the film")
    parser.add_argument("--seconds", type=parse_positive_int, default=5, help="seconds of the film to color")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the networks")
    args = parser.parse_args(argv)
    predictor = Predictor.load(args.checkpoint, precision=args.precision)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        film, output = Path(folder) / "film.mkv", Path(folder) / "colored.mkv"
        for lines in args.lines:
            scale_film(existing_film(args.film), film, lines, args.seconds)
            results[lines] = measure(predictor, film, output)
    print("{cpu}, GPU: {gpu}, torch {torch}".format(**describe_machine(predictor.device)))
    for lines, (_, frames, keyframes, occupancy) in results.items():
        print(f"{lines} lines: {frames} frames, {keyframes / frames:.0%} are keyframes; {CORES} cores are busy for "
              f"{occupancy:.0%} of the time")
    print_header("stage", *(f"{lines} lines: ms {unit}" for lines in results for unit in ("per frame", "per keyframe")))
    for stage in dict.fromkeys(stage for seconds, *_ in results.values() for stage in seconds):
        print_row(stage, *(f"{1000 * seconds.get(stage, 0) / max(1, count):.2f}"
                           for seconds, *counts, _ in results.values() for count in counts))


if __name__ == "__main__":
    run_cli(main)
