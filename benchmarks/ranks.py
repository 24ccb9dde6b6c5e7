"""How much faster do several processes color a film?

    python benchmarks/ranks.py CHECKPOINT [--shots 40] [--frames 24] [--rounds 3]

Draws a gray film of the shots of both episodes, in turn, and colors it in turn, each a command of its own:

- by one process, and by 4 ranks, on all cores;
- by 1 and by 2 ranks of one thread that have one core each, as if they were machines.

Prints a table: seconds from the first frame read to the film joined, with all starts and reports, and of all cores
together, medians; the ratios are medians of those of each round. Linux only.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__" and "PIN" in os.environ:  # before any library counts the cores
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import colorizer.threads  # noqa: F401  before torch is imported

import itertools
import json
import statistics
import subprocess
import tempfile
import time

import av
import cv2

import test

from resources.draw_episodes import FPS, HEIGHT, WIDTH, draw_frame, frame_count, shot_starts

from utils import ArgumentParser, parse_positive_int, run_cli

WAYS = {  # name: (ranks, 0 for a plain command; whether each has but one core)
    "1 process": (0, False), "4 ranks": (4, False), "1 rank, 1 core": (1, True), "2 ranks, 1 core each": (2, True)}
PAIRS = [("1 process", "4 ranks"), ("1 rank, 1 core", "2 ranks, 1 core each")]


def draw(path, shots, frames):
    """A gray film of so many shots of so many frames, at most, of the drawn episodes; returns how many frames it has.
    """
    starts = [(episode, start, end) for episode in (1, 2) for start, end in
              itertools.pairwise([0, *shot_starts(episode), frame_count(episode)])]
    written = 0
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for episode, start, end in itertools.islice(itertools.cycle(starts), shots):
            for index in range(start, min(end, start + frames)):
                gray = cv2.cvtColor(cv2.cvtColor(draw_frame(episode, index), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
                written += 1
        film.mux(stream.encode(None))
    return written


def color(checkpoint, film, output, ranks, pinned):
    """Color the film by a command; returns seconds (of coloring, in all, of cores)."""
    run = (["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else [])
    began, before = time.monotonic(), os.times()
    subprocess.run([sys.executable, *run, __file__ if pinned else test.__file__, "--checkpoint", checkpoint, "--input",
                    film, "--output", output], check=True, capture_output=True,
                   env={**os.environ, **({"PIN": "1", "OMP_NUM_THREADS": "1"} if pinned else {})})
    seconds, after = time.monotonic() - began, os.times()
    cores = sum(getattr(after, kind) - getattr(before, kind) for kind in ("children_user", "children_system"))
    return json.loads(output.with_name(f"{output.stem}_metrics.json").read_text())["seconds"], seconds, cores


def main(argv):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--shots", type=parse_positive_int, default=40)
    parser.add_argument("--frames", type=parse_positive_int, default=24, help="of a shot, at most")
    parser.add_argument("--rounds", type=parse_positive_int, default=3)
    args = parser.parse_args(argv)
    times = {way: [] for way in WAYS}
    made = {way: set() for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mkv"
        frames = draw(film, args.shots, args.frames)
        for number in range(args.rounds):
            for way, (ranks, pinned) in WAYS.items():
                output = Path(folder) / f"{number}_{ranks}_{pinned}.mkv"
                times[way].append(color(args.checkpoint.resolve(), film, output, ranks, pinned))
                made[way].add(output.read_bytes())
    same = all(len(made[slow] | made[fast]) == 1 for slow, fast in PAIRS)
    print(f"{frames} frames of {args.shots} shots, {args.rounds} rounds; results are {'' if same else 'NOT '}the same"
          "\n")
    print("| | coloring, s | in all, s | of cores, s | times as fast |\n|---|---|---|---|---|")
    for slow, fast in PAIRS:
        rounds = list(zip(times[slow], times[fast], strict=True))
        ratios = [statistics.median(one[kind] / other[kind] for one, other in rounds) for kind in (0, 1)]
        for way, told in ((slow, ""), (fast, f"{ratios[0]:.2f} ({ratios[1]:.2f} in all)")):
            seconds = (f"{statistics.median(row[kind] for row in times[way]):.1f}" for kind in (0, 1, 2))
            print("|", " | ".join([way, *seconds, told]), "|")


if __name__ == "__main__":
    if "PIN" in os.environ:
        run_cli(test.main)
    else:
        run_cli(main)
