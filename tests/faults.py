"""Fault injection for training: ``python tests/faults.py`` prints a table. test_resume.py runs it with few
interruptions.

An uninterrupted run is compared with one that is killed at some of CRITICAL_POINTS and resumed, and with runs that are
interrupted repeatedly at random times. All runs are forked from this process, which has already imported all packages.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnx  # noqa: F401  this and the next four are imported by each training run, which takes seconds
import onnxruntime  # noqa: F401
import sklearn.cluster  # noqa: F401
import sklearn.decomposition  # noqa: F401
import torch
import torch._dynamo  # noqa: F401
from drawn import be_quick, draw_dataset

import train
from fileio.checkpoints import load_checkpoint
from training import learner
from utils import run_cli

EPOCHS = 3
TIMEOUT = 300  # seconds after which a training run is killed
SIGNALS = {"kill -9": signal.SIGKILL, "Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
CRITICAL_POINTS = {  # {name: (module or class, function, number of the call at which the run is killed)}
    "prepare": (train, "train_palette_classifier", 1),
    "step": (learner.Learner, "step", 2), "write last.pt": (torch, "save", 2),
    "rename last.pt": (os, "replace", 2), "validate": (train, "validate", 1),
    "save after logging": (train.Training, "_save_epoch", 1),
    "write last.pt after best.pt": (train.Training, "_save_last", 2), "cut the log": (os, "replace", 1)}


def die_at(owner, name, call):
    """Make this process kill itself before call number ``call``, counted from 1, of a function of ``owner``."""
    original, calls = getattr(owner, name), 0

    def dying(*args, **settings):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **settings)

    setattr(owner, name, dying)


def start(data_path, save_path, environment=None, point=None, **settings):
    """Fork a small training run that writes last.pt after each step and resumes if there is one.

    It is killed at ``point``, the arguments of ``die_at``. Returns the process id and the read end of a pipe that
    receives a byte per step.
    """
    resume = {"resume": True} if (save_path / "last.pt").exists() else {}
    settings = {"data_path": data_path, "width": 4, "batch_size": 3, "end_epoch": EPOCHS, "use_feat_integrator": True,
                "device": "cpu", "epoch_steps": 3, "save_seconds": 0, **settings, "save_path": save_path, **resume}
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return process, read
    try:  # no exception may leave the child, and a signal may arrive at once
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes of a shell ignore it
        os.environ.update(environment or {})
        be_quick()
        step = learner.Learner.step
        learner.Learner.step = lambda *args: (os.write(write, b"."), step(*args))[1]
        if point:
            die_at(*point)
        with open(save_path.with_suffix(".txt"), "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run_cli(train.main, [word for name, value in settings.items() for word in (f"--{name}", str(value))])
        os._exit(0)
    except KeyboardInterrupt:  # before run_cli
        os._exit(130)
    except SystemExit as stop:
        os._exit(stop.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(2)


def finish(process, pipe):
    """Wait at most TIMEOUT seconds for a training run. Returns its exit code, as in subprocess, and number of steps."""
    deadline, steps = time.monotonic() + TIMEOUT, 0
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    status = ended[1]
    while part := os.read(pipe, 4096):
        steps += len(part)
    os.close(pipe)
    return os.waitstatus_to_exitcode(status), steps


def results(save_path):
    """Return the contents of the checkpoints of a run and its log, except for durations and paths."""
    kept = {}
    for name in ("last.pt", "best.pt"):
        waiting = [(name, load_checkpoint(save_path / name))]
        while waiting:
            place, value = waiting.pop()
            if isinstance(value, dict):
                waiting += [(f"{place}/{key}", inner) for key, inner in value.items()]
            elif isinstance(value, torch.Tensor):
                kept[place] = value.numpy().tobytes()
            elif not place.endswith(("_seconds", "/save_path", "/resume")):
                kept[place] = value
    lines = [json.loads(line) for line in (save_path / "log.jsonl").read_text().splitlines()]
    return kept, [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def kill_at_critical_points(data_path, save_path, whole, points):
    """Kill a run at each of ``points``, names in CRITICAL_POINTS, and resume it. Returns how often it was killed, and 1
    if its results differ from ``whole``, those of the uninterrupted run, else 0."""
    died = sum(finish(*start(data_path, save_path, point=CRITICAL_POINTS[name]))[0] == -signal.SIGKILL
               for name in points)
    code, _ = finish(*start(data_path, save_path))
    assert code == 0, save_path.with_suffix(".txt").read_text()
    return died, int(results(save_path) != whole)


def interrupt(folder, points, counts, seed=0):
    """Kill a run at each of ``points``, and interrupt other runs at random: ``counts`` is {signal name: times}.

    Returns the lines of a table, the number of runs with other results than the uninterrupted run, and the number of
    interruptions with an unexpected exit code.
    """
    rng = random.Random(seed)
    data_path = draw_dataset(folder / "data", train=3, val=1)
    began = time.monotonic()
    code, whole_steps = finish(*start(data_path, folder / "whole"))
    duration = time.monotonic() - began
    assert code == 0, (folder / "whole.txt").read_text()
    whole = results(folder / "whole")
    survived, wrong_runs = kill_at_critical_points(data_path, folder / "points", whole, points)

    left = [name for name, count in counts.items() for _ in range(count)]
    rng.shuffle(left)
    tried, wrong_codes, round_number = Counter(), Counter(), 0
    while left:
        round_number += 1
        save_path, interruptions, steps_taken = folder / f"cut_{round_number}", 0, 0
        last = save_path / "last.pt"
        while not last.exists() or load_checkpoint(last)["epoch"] < EPOCHS:
            process, pipe = start(data_path, save_path)
            if not left:
                code, steps = finish(process, pipe)
                steps_taken += steps
                assert code == 0, save_path.with_suffix(".txt").read_text()
                break
            delay = rng.uniform(0, duration / 4)
            if rng.random() < 0.8:  # the others are interrupted before the first step
                first = os.read(pipe, 1)
                taken = len(first)
            else:
                delay, taken = rng.uniform(0, duration / 10), 0
            time.sleep(delay)  # the random time of the interruption
            os.kill(process, SIGNALS[left[-1]])
            code, steps = finish(process, pipe)
            steps_taken += taken + steps
            if code == 0:  # it was complete before the interruption
                break
            name = left.pop()
            interruptions += 1
            tried[name] += 1
            # Before the training begins, SIGTERM has its default action.
            expected = {-signal.SIGKILL} if name == "kill -9" else {130} if steps > 1 else {130, -signal.SIGTERM}
            wrong_codes[name] += code not in expected
        same = results(save_path) == whole
        wrong_runs += not same
        print(f"run {round_number}: {interruptions} interruptions, {steps_taken - whole_steps} of {whole_steps} steps "
              f"repeated, results {'equal' if same else 'DIFFER'}", file=sys.stderr)
    lines = [f"| kill -9 at each critical point | {len(points)} | {survived} |",
             *(f"| {name} | {tried[name]} | {tried[name] - wrong_codes[name]} |" for name in counts)]
    return lines, wrong_runs, sum(wrong_codes.values()) + len(points) - survived


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", nargs="*", choices=CRITICAL_POINTS, default=list(CRITICAL_POINTS), metavar="NAME",
                        help="critical points at which a run is killed")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=20, help="number of interruptions by Ctrl-C, and by SIGTERM")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # a forked process does not have the threads of its parent
    counts = {"kill -9": args.kills, "Ctrl-C": args.stops, "SIGTERM": args.stops}
    memory = Path("/dev/shm")  # a checkpoint is written after each step
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        lines, wrong_runs, wrong_codes = interrupt(Path(folder), args.points, counts, args.seed)
    print("\n".join(["| fault | tried | survived |", "|---|---|---|", *lines]))
    print(f"runs with other results than the uninterrupted one: {wrong_runs}")
    sys.exit(bool(wrong_runs or wrong_codes))


if __name__ == "__main__":
    main(sys.argv[1:])
