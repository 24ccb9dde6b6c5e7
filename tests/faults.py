"""What happens to training when it is killed: ``python tests/faults.py`` prints a table. test_resume.py runs it too.

A run that is never interrupted is compared with one that is killed in each of MOMENTS, and with runs that are killed
again and again, at random moments. All runs are forked from this process, which has torch already.
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

import torch
import torch._dynamo  # noqa: F401  which every optimizer imports, in seconds: here, once for all runs
from drawn import be_quick, draw_dataset

import train
from fileio.checkpoints import load_checkpoint
from training import learner
from utils import run_cli

EPOCHS = 3
WAITS = 300  # seconds, for a training of some; then it is killed
SIGNALS = {"kill -9": signal.SIGKILL, "Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
MOMENTS = {  # what a run is about to do when it dies: the function, and which call of it. Each goes on from the last.
    "prepare": (train, "train_palette_classifier", 1), "step": (learner.Learner, "step", 2), "write last.pt": (torch, "save", 2),
    "name last.pt": (os, "replace", 2), "validate": (train, "validate", 1),
    "save, having logged": (train.Training, "_save_epoch", 1),
    "write last.pt, having written best.pt": (train.Training, "_save_last", 2), "cut the log": (os, "replace", 1)}


def die_at(owner, name, call):
    """Let this process kill itself at the given call, from 1 on, of a function of ``owner``."""
    original, calls = getattr(owner, name), 0

    def dying(*args, **settings):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **settings)

    setattr(owner, name, dying)


def start(data_path, save_path, environment=None, moment=None, **settings):
    """Fork a small training, or its going on, that writes last.pt after every step and dies in ``moment``, arguments of
    ``die_at``.

    Returns its process id and the end of a pipe that gets a byte at every step.
    """
    there = {"resume": True} if (save_path / "last.pt").exists() else {}
    settings = {"data_path": data_path, "width": 4, "batch_size": 3, "end_epoch": EPOCHS, "use_feat_integrator": True,
                "device": "cpu", "epoch_steps": 3, "save_seconds": 0, **settings, "save_path": save_path, **there}
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return process, read
    try:  # from here on nothing may leave the child: a signal may come at once
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
        os.environ.update(environment or {})
        be_quick()
        step = learner.Learner.step
        learner.Learner.step = lambda *args: (os.write(write, b"."), step(*args))[1]
        if moment:
            die_at(*moment)
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
    """Wait for a training, at most WAITS seconds; returns how it ended as subprocess does, and how many steps it took.
    """
    deadline, steps = time.monotonic() + WAITS, 0
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
    """All that a run leaves that does not tell the time: the tensors of its checkpoints, and its log."""
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


def die_everywhere(data_path, save_path, whole):
    """Let a run die in each of MOMENTS; returns in how many it did, and 1 if it then ends otherwise than ``whole``, the
    results of the uninterrupted one, else 0."""
    died = sum(finish(*start(data_path, save_path, moment=moment))[0] == -signal.SIGKILL for moment in MOMENTS.values())
    code, _ = finish(*start(data_path, save_path))
    assert code == 0, save_path.with_suffix(".txt").read_text()
    return died, int(results(save_path) != whole)


def interrupt(folder, counts, seed=0):
    """Let a run die in each of MOMENTS, and interrupt runs ``counts`` times, a dict name of the signal -> times.

    Returns lines of a table, how many runs did not end like an uninterrupted one, and how many interruptions ended with
    another exit code than they should.
    """
    rng = random.Random(seed)
    data_path = draw_dataset(folder / "data", train=3, val=1)
    began = time.monotonic()
    code, whole_steps = finish(*start(data_path, folder / "whole"))
    duration = time.monotonic() - began
    assert code == 0, (folder / "whole.txt").read_text()
    whole = results(folder / "whole")
    survived, wrong_runs = die_everywhere(data_path, folder / "moments", whole)

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
            moment = rng.uniform(0, duration / 4)
            if rng.random() < 0.8:  # the others are hit before the first step
                first = os.read(pipe, 1)
                taken = len(first)
            else:
                moment, taken = rng.uniform(0, duration / 10), 0
            time.sleep(moment)  # the moment is part of the fault; nothing is expected of it
            os.kill(process, SIGNALS[left[-1]])
            code, steps = finish(process, pipe)
            steps_taken += taken + steps
            if code == 0:  # it was done before
                break
            name = left.pop()
            interruptions += 1
            tried[name] += 1
            # Before the training began there is nothing to finish, and SIGTERM ends a program as ever.
            expected = {-signal.SIGKILL} if name == "kill -9" else {130} if steps > 1 else {130, -signal.SIGTERM}
            wrong_codes[name] += code not in expected
        same = results(save_path) == whole
        wrong_runs += not same
        print(f"run {round_number}: {interruptions} interruptions, {steps_taken - whole_steps} steps of {whole_steps} "
              f"taken twice, {'the same' if same else 'NOT the same'} in the end", file=sys.stderr)
    lines = [f"| kill -9 in a moment of each kind | {len(MOMENTS)} | {survived} |",
             *(f"| {name} | {tried[name]} | {tried[name] - wrong_codes[name]} |" for name in counts)]
    return lines, wrong_runs, sum(wrong_codes.values()) + len(MOMENTS) - survived


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=20, help="by Ctrl-C, and as many by SIGTERM")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads of this process would be missing after a fork
    counts = {"kill -9": args.kills, "Ctrl-C": args.stops, "SIGTERM": args.stops}
    memory = Path("/dev/shm")  # a checkpoint after every step would test the patience of the disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        lines, wrong_runs, wrong_codes = interrupt(Path(folder), counts, args.seed)
    print("\n".join(["| fault | tried | survived |", "|---|---|---|", *lines]))
    print(f"runs that did not end bit for bit like the uninterrupted one: {wrong_runs}")
    sys.exit(bool(wrong_runs or wrong_codes))


if __name__ == "__main__":
    main(sys.argv[1:])
