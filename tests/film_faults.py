"""Fault injection for coloring: ``python tests/film_faults.py CHECKPOINT FILM`` kills runs at random moments.

Each run gets other operational settings: batch size, threads, confidence map, memory video, suggestions. The film, the
numbered frames and the log of shots are compared with those of uninterrupted runs. All runs are forked from this
process, which has already imported torch.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from drawn import be_quick

import test
from fileio.images import write_image
from film.io.video import read_frames
from film.render import pipeline
from utils import list_files, run_cli

TIMEOUT = 300  # seconds after which a run counts as failed


def start(output, threads=1, **settings):
    """Fork a run of test.py; return its process id."""
    process = os.fork()
    if process:
        return process
    try:
        be_quick()
        torch.set_num_threads(threads)
        pipeline.CORES = threads  # read from the environment when torch is imported
        with open(output.with_suffix(".txt"), "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        words = {"device": "cpu", "output": output, **settings}
        run_cli(test.main, [word for name, value in words.items() for word in (f"--{name}", str(value))])
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(2)


def finish(process, seconds=TIMEOUT):
    """Kill a run after ``seconds`` unless it has ended; return its exit code, as in subprocess."""
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            deadline += TIMEOUT
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def results(output):
    """Return {name: content} of the film or the frames, and of the log of shots without durations."""
    folder = output if output.is_dir() else output.parent
    files = {path.name: path.read_bytes() for path in list_files(folder, (".png", ".mkv"))
             if "comparison" not in path.name}
    for path in folder.glob("*shots.jsonl"):
        files[path.name] = [{**json.loads(line), "seconds": 0} for line in path.read_text().splitlines()]
    return files


def other_settings(rng):
    """Return operational settings."""
    return {"threads": rng.choice([1, 2, 3]), "batch_size": rng.choice([1, 3, 8, 64]), "suggest": rng.choice([0, 3]),
            "confidence": rng.random() < 0.5, "memory_video": rng.random() < 0.2, "verify_luma": rng.random() < 0.3}


def interrupt(folder, inputs, kills, rng):
    """Kill runs at ``kills`` random moments. Return how many finished outputs differ from an uninterrupted run."""
    wholes, durations = [], []
    for number, settings in enumerate(inputs):
        output = folder / f"whole_{number}" / settings.pop("name")
        output.parent.mkdir()
        began = time.monotonic()
        code = finish(start(output, **settings))
        assert code == 0, output.with_suffix(".txt").read_text()
        wholes.append((output.name, results(output)))
        durations.append(time.monotonic() - began)
    wrong, runs = 0, 0
    while kills:
        number = runs % len(inputs)
        name, whole = wholes[number]
        output = folder / f"cut_{runs}" / name
        output.parent.mkdir()
        killed, code = 0, None
        while code != 0:
            seconds = rng.uniform(0, 0.6 * durations[number]) if kills else TIMEOUT
            code = finish(start(output, **inputs[number], **other_settings(rng)), seconds)
            text = output.with_suffix(".txt").read_text()
            if code == 1 and "exists already" in text.splitlines()[-1]:  # it was killed after the last write
                code = 0
            assert code in (0, -signal.SIGKILL), text
            kills -= code != 0
            killed += code != 0
        same = results(output) == whole
        said = output.with_suffix(".txt").read_text().count("colored again")
        wrong, runs = wrong + (not same), runs + 1
        print(f"{name}: killed {killed} times, {said} times finished shots were lost, results "
              f"{'equal' if same else 'DIFFER'}", flush=True)
    return wrong


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--end", type=float, default=4, help="seconds of the film")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        for number, (_, frame) in enumerate(read_frames(args.film)):
            if number == round(24 * args.end):
                break
            write_image(folder / "in" / f"frame_{number:04d}.png", frame.to_ndarray(format="rgb24"))
        wrong = interrupt(folder, [
            {"name": "film.mkv", "checkpoint": args.checkpoint, "input": args.film, "end": args.end},
            {"name": "frames", "checkpoint": args.checkpoint, "input": folder / "in"}], args.kills,
            random.Random(args.seed))
    print(f"results that differ from those of an uninterrupted run: {wrong}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(sys.argv[1:])
