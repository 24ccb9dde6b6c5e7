"""Measure the speedup of coloring a film with several processes (Linux only).

    python -m benchmarks.ranks CHECKPOINT [--shots 40] [--frames 24] [--rounds 3]

Draws a grayscale film of the shots of both episodes. In each round, it is colored by one process and by 4 ranks on all
cores, and by 1 and 2 ranks with one thread and one core each, as if they were separate machines.

Prints the median seconds for coloring (from the first frame read to the joined film) and for the whole command (with
start and report), and the CPU seconds of all cores. A speedup is the median over the rounds.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__" and "PIN" in os.environ:  # before any library counts the cores
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})

import av
import cv2

import test

from benchmarks.common import first_line, print_header, print_row
from resources.draw_episodes import FPS, HEIGHT, WIDTH, draw_frame, frame_count, shot_starts

from utils import ArgumentParser, parse_positive_int, run_cli

MODES = {  # name: (number of ranks, 0 for no torchrun; whether each has a core of its own)
    "1 process": (0, False), "4 ranks": (4, False), "1 rank, 1 core": (1, True), "2 ranks, 1 core each": (2, True)}
PAIRS = [("1 process", "4 ranks"), ("1 rank, 1 core", "2 ranks, 1 core each")]


def draw_film(path, shots, max_frames):
    """Draw a grayscale film of ``shots`` shots of at most ``max_frames`` frames each. Returns its number of frames."""
    ranges = [(episode, start, end) for episode in (1, 2) for start, end in
              itertools.pairwise([0, *shot_starts(episode), frame_count(episode)])]
    written = 0
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for episode, start, end in itertools.islice(itertools.cycle(ranges), shots):
            for index in range(start, min(end, start + max_frames)):
                gray = cv2.cvtColor(cv2.cvtColor(draw_frame(episode, index), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
                written += 1
        film.mux(stream.encode(None))
    return written


def color(checkpoint, film, output, ranks, pinned):
    """Color a film by a command. Returns the seconds of coloring and of the command, and the CPU seconds."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    script = ["-m", "benchmarks.ranks"] if pinned else [test.__file__]
    began, before = time.monotonic(), os.times()
    flags = ["--checkpoint", checkpoint, "--input", film, "--output", output]
    subprocess.run([sys.executable, *torchrun, *script, *flags], check=True, capture_output=True,
                   env={**os.environ, **({"PIN": "1", "OMP_NUM_THREADS": "1"} if pinned else {})})
    seconds, after = time.monotonic() - began, os.times()
    cores = sum(getattr(after, kind) - getattr(before, kind) for kind in ("children_user", "children_system"))
    return json.loads(output.with_name(f"{output.stem}_metrics.json").read_text())["seconds"], seconds, cores


def main(argv):
    parser = ArgumentParser(prog="benchmarks.ranks", description=first_line(__doc__))
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of train.py")
    parser.add_argument("--shots", type=parse_positive_int, default=40, help="number of shots")
    parser.add_argument("--frames", type=parse_positive_int, default=24, help="maximum frames of a shot")
    parser.add_argument("--rounds", type=parse_positive_int, default=3, help="number of rounds")
    args = parser.parse_args(argv)
    times, results = {mode: [] for mode in MODES}, {mode: set() for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mkv"
        frames = draw_film(film, args.shots, args.frames)
        for number in range(args.rounds):
            for mode, (ranks, pinned) in MODES.items():
                output = Path(folder) / f"{number}_{ranks}_{pinned}.mkv"
                times[mode].append(color(args.checkpoint.resolve(), film, output, ranks, pinned))
                results[mode].add(output.read_bytes())
    equal = all(len(results[slow] | results[fast]) == 1 for slow, fast in PAIRS)
    print(f"{frames} frames of {args.shots} shots, {args.rounds} rounds; the results are "
          f"{'equal' if equal else 'DIFFERENT'}\n")
    print_header("", "coloring, s", "command, s", "all cores, s", "speedup")
    for slow, fast in PAIRS:
        rounds = list(zip(times[slow], times[fast], strict=True))
        speedup = [statistics.median(one[kind] / other[kind] for one, other in rounds) for kind in (0, 1)]
        for mode, text in ((slow, ""), (fast, f"{speedup[0]:.2f} ({speedup[1]:.2f} of the command)")):
            print_row(mode, *(f"{statistics.median(row[kind] for row in times[mode]):.1f}" for kind in range(3)), text)


if __name__ == "__main__":
    run_cli(test.main if "PIN" in os.environ else main)
