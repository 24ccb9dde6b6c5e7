"""How much more memory does a long film take than a short one?

    python benchmarks/long_film.py [--minutes 20]

Draws two small films in color with sound, of 30 seconds and of ``--minutes``, with a cut every four seconds, and
colors each in a process of its own with all that goes with a film: report, metrics, frames to color next. A predictor
of one color takes the place of the networks, which are fed a batch at a time and do not know how long the film is.
Prints the peak of the resident memory of both processes, and the growth.
"""

import math
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from colorizer.confidence import Confidence
from colorizer.predictor import Palette
from config import ColorConfig
from film.analysis.plan import FilmPredictor
from film.io.video import VideoFile
from test import color_film_and_report
from utils import ArgumentParser, UserError, run_cli

SIZE = 96, 64
RATE = 24
SHOT = 4 * RATE  # frames
SOUND = 8000  # samples a second


def draw(path, seconds):
    """A film of bars that move, of another color in each shot; returns its path."""
    width, height = SIZE
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = film.add_stream("pcm_s16le", rate=SOUND, layout="mono")
        rng = np.random.default_rng(0)
        for i in range(seconds * RATE):
            if i % SHOT == 0:
                color, row = rng.uniform(60, 190, 3), 40 * np.sin(rng.normal(0, 0.5, width).cumsum())
            bars = np.roll(row, -i)[None, :, None].repeat(height, 0)
            film.mux(video.encode(av.VideoFrame.from_ndarray((color + bars).astype(np.uint8), format="rgb24")))
            if i % RATE == 0:
                sound = av.AudioFrame.from_ndarray(rng.integers(-99, 99, (1, SOUND), np.int16), "s16", "mono")
                sound.sample_rate, sound.pts = SOUND, i // RATE * SOUND
                film.mux(audio.encode(sound))
        film.mux(video.encode(None))
    return path


class OneColor(FilmPredictor):
    """A ``plan.FilmPredictor``."""

    side, source, identity, uses_memory, frame_names, grade = 128, "none", "one color", False, {}, None

    def palette(self, labs):
        return Palette(None, [], [], torch.from_numpy(labs[0].ravel()[:1280].copy()))

    def predict(self, L, palette):
        return np.full((len(L), 32, 32, 2), 20, np.float32), Confidence.unknown(len(L))


def peak(path):
    """Color a film; returns the most memory that this process ever had, in MB."""
    predictor: Any = OneColor()
    color_film_and_report(predictor, ColorConfig(), VideoFile(path), path.with_name(f"{path.stem}_colored.mkv"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB


def main(argv):
    parser = ArgumentParser(prog="benchmarks/long_film.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20, help="length of the long film")
    args = parser.parse_args(argv)
    if not 0.5 < args.minutes < math.inf:
        raise UserError(f"minutes is {args.minutes:g}; set it to more than half a minute")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in (30, round(60 * args.minutes)):
            film, started = draw(Path(folder) / f"{seconds}.mkv", seconds), time.monotonic()
            with multiprocessing.get_context("spawn").Pool(1) as process:
                peaks.append(process.apply(peak, (film,)))
            print(f"{seconds} s, {seconds * RATE} frames: {peaks[-1]:.0f} MB, colored in "
                  f"{time.monotonic() - started:.0f} s")
    print(f"growth: {peaks[1] - peaks[0]:.0f} MB")


if __name__ == "__main__":
    run_cli(main)
