"""How much do coloring and training lose on a machine that is busy with something else?

    python benchmarks/busy.py CHECKPOINT [--rounds 3]

Times coloring PICTURES pictures of the bundled episode, and STEPS steps of training at 128 px, in processes of their
own: alone, beside a loop that keeps one core busy, and beside another program that uses OpenMP on all cores. Each as
the scripts do it, and with threads that spin as OpenMP lets them without ``colorizer/threads.py``; in turn, so that
what else the machine does meets all. Prints the median seconds as a table in Markdown, each also beside ours alone.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import colorizer.threads  # noqa: F401  before torch is imported

import torch

from benchmarks.speed import film_pictures, our_step, step_settings

from colorizer.predictor import Predictor
from config import SAMPLE_FILM
from dataset import ColorizationDataset
from film.render.pictures import color_pictures
from film.report.evaluation import Evaluation
from utils import ArgumentParser, parse_positive_int, run_cli

PICTURES, STEPS = 12, 6
INSIDE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from benchmarks.busy import seconds_of
print(*seconds_of(sys.argv[1]))
"""
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # the default of GNU's OpenMP (libgomp manual)
BESIDE = {
    "nothing": None, "a busy loop on one core": "while True: pass",
    "another OpenMP program": "import torch\nx, layer = torch.randn(8, 32, 64, 64), torch.nn.Conv2d(32, 32, 3)\n"
                              "while True: layer(x).relu()"}


def seconds_of(checkpoint):
    """The seconds that (coloring, training) take in this process, after a first time that does not count."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        paths = film_pictures(SAMPLE_FILM, Path(folder), PICTURES)
        predictor = Predictor.load(checkpoint)
        pairs = [(path, Path(folder, "colored", path.name)) for path in paths]
        step = our_step(ColorizationDataset(paths, 128), step_settings(128), torch.device("cpu"))
        for count in (4, PICTURES):
            started = time.perf_counter()
            color_pictures(predictor, pairs[:count], Evaluation(), False)
            coloring = time.perf_counter() - started
        for count in (1, STEPS):
            started = time.perf_counter()
            for _ in range(count):
                step()
            training = time.perf_counter() - started
    return coloring, training


@contextmanager
def running(code):
    """A process that runs ``code`` meanwhile; None: none."""
    other = code and subprocess.Popen([sys.executable, "-c", code])
    try:
        if other:
            time.sleep(4)  # until torch is imported
        yield
    finally:
        if other:
            other.kill()
            other.wait()


def timed(checkpoint, spinning):
    """``seconds_of`` in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run([sys.executable, "-c", INSIDE, str(checkpoint)], check=True, text=True,
                          env=environment | (SPINNING if spinning else {}), capture_output=True)
    return tuple(map(float, done.stdout.split()[-2:]))


def main(argv):
    parser = ArgumentParser(prog="busy.py", description="Measure coloring and training on a busy machine.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of train.py")
    parser.add_argument("--rounds", type=parse_positive_int, default=3, help="of which the median is taken")
    args = parser.parse_args(argv)
    ways = [(beside, spinning) for beside in BESIDE for spinning in (False, True)]
    seconds = {way: [] for way in ways}
    for _ in range(args.rounds):
        for beside, spinning in ways:
            with running(BESIDE[beside]):
                seconds[beside, spinning].append(timed(args.checkpoint, spinning))
    alone = [statistics.median(times) for times in zip(*seconds["nothing", False], strict=True)]
    print("| beside | threads that wait | coloring | times ours alone | training | times ours alone |\n"
          "|---|---|---|---|---|---|")
    for (beside, spinning), runs in seconds.items():
        medians = [statistics.median(times) for times in zip(*runs, strict=True)]
        cells = [f"{median:.1f} s | {median / ours:.2f}" for median, ours in zip(medians, alone, strict=True)]
        print(f"| {beside} | {'spin' if spinning else 'sleep (ours)'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_cli(main)
