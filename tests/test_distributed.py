"""Tests of data-parallel training: two processes give the same losses and memory as one, and fail together.

Run as a script, this module creates the runs that the tests compare. They are forked from one process that has already
imported torch.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawn import draw_dataset

from fileio.checkpoints import load_checkpoint
from networks import SyncBatchNorm2d
from train import main
from training import distributed
from training.distributed import ProcessGroup
from utils import UserError

STEPS = 3  # the discriminator is trained in two of them
MODES = {"memory": {}, "gan": {"use_memory": False, "use_feat_integrator": False, "gen_norm": "batch",
                             "dis_norm": "None"}}


def make_runs(folder):
    """Create the runs of this module in ``folder``, and write the exit codes of their processes to codes.json."""
    from faults import finish, start

    from training.learner import Learner

    torch.set_num_threads(1)
    data_path, codes = draw_dataset(folder / "data", train=4, val=1), {}

    def run(name, processes, kill=False, **settings):
        """Train in ``processes`` processes. An epoch is one step with all four pictures. If ``kill`` is True, the last
        process is killed before its third step, when the checkpoint of the first epoch has been written."""
        # With low learning rates, because Adam turns a gradient of rounding errors into a step of full length.
        settings = {"batch_size": 4, "epoch_steps": 1, "save_seconds": 1e9, "gen_lr": 3e-5, "dis_lr": 3e-5,
                    "dis_every": 2, "lr_decay_start": 1, "precision": "fp32", **settings, "end_epoch": STEPS}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        several = {**address, "WORLD_SIZE": str(processes)} if processes > 1 else {}
        started = [start(data_path, folder / name, environment=several and {**several, "RANK": str(rank)},
                         point=(Learner, "step", 3) if kill and rank else None, **settings)
                   for rank in range(processes)]
        codes.setdefault(name, []).append([finish(*process)[0] for process in started])

    for mode, settings in MODES.items():
        run(f"{mode}_one", 1, **settings)
        run(f"{mode}_two", 2, **settings)
    run("killed", 2, kill=True, save_seconds=0, **MODES["memory"])
    codes["epoch of the checkpoint"] = load_checkpoint(folder / "killed" / "last.pt")["epoch"]
    run("killed", 1, **MODES["memory"])
    run("uneven", 2, **{"batch_size": 3})
    (folder / "codes.json").write_text(json.dumps(codes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(distributed.__file__).parents[1])}
    done = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True, env=environment,
                          timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def codes(runs, name):
    return json.loads((runs / "codes.json").read_text())[name]


def check_equal(one, other):
    """Compare the losses of all steps, the validation metrics, and the memory at the end."""
    assert len(log(one)) == len(log(other)) == STEPS
    for expected, record in zip(log(one), log(other), strict=True):
        for name, value in expected.items():
            if "second" not in name:
                tolerance = 1e-3 if name.startswith("val_") else 1e-4  # rounding errors grow with each step
                assert record[name] == pytest.approx(value, rel=tolerance, abs=1e-4), (record["epoch"], name)
    one, other = (load_checkpoint(folder / "last.pt")["colorizer"] for folder in (one, other))
    for name in ("ids", "ages", "used", "values"):
        assert f"memory.{name}" not in one or torch.equal(one[f"memory.{name}"], other[f"memory.{name}"]), name
    assert "memory.keys" not in one or torch.allclose(one["memory.keys"], other["memory.keys"], atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_results_of_one(runs, mode):
    assert codes(runs, f"{mode}_one") == [[0]] and codes(runs, f"{mode}_two") == [[0, 0]]
    check_equal(runs / f"{mode}_one", runs / f"{mode}_two")


def test_a_killed_process_ends_all_and_the_run_resumes_with_another_number_of_processes(runs):
    (survivor, killed), after = codes(runs, "killed")
    assert killed == -signal.SIGKILL and survivor > 0 and after == [0]
    assert 1 <= codes(runs, "epoch of the checkpoint") < STEPS
    check_equal(runs / "memory_one", runs / "killed")


def test_a_batch_size_that_is_not_divisible_raises_an_error(runs):
    assert codes(runs, "uneven") == [[1, 1]]
    assert "batch_size 3 cannot be divided by 2 processes; set it to 4" in (runs / "uneven.txt").read_text()


@pytest.mark.slow
def test_torchrun_ends_with_an_error_when_a_process_is_killed(tmp_path):
    data_path = draw_dataset(tmp_path / "data", train=4, val=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               Path(distributed.__file__).parents[1] / "train.py", "--data_path", data_path, "--save_path",
               tmp_path / "run", "--width", "4", "--batch_size", "4", "--end_epoch", "100000", "--device", "cpu",
               "--use_palette_classifier", "False"]
    with (open(tmp_path / "printed", "w") as printed, subprocess.Popen(
            command, stdout=printed, stderr=printed, env={**os.environ, "OMP_NUM_THREADS": "1"}) as job):
        try:
            for _ in range(3000):
                if (tmp_path / "run" / "last.pt").exists():  # training has begun
                    break
                with pytest.raises(subprocess.TimeoutExpired):
                    job.wait(timeout=0.2)
            children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            ranks = {rank_of(child): int(child) for child in children}
            os.kill(ranks["1"], signal.SIGKILL)
            assert job.wait(timeout=60) == 1
        finally:
            job.terminate()
    main(["--save_path", str(tmp_path / "run"), "--resume", "True", "--end_epoch", "1"])


def rank_of(process):
    """Return RANK in the environment of a process, or None."""
    words = dict(word.partition("=")[::2] for word in Path(f"/proc/{process}/environ").read_text().split("\0"))
    return words.get("RANK")


def test_a_group_of_one_process_returns_its_input():
    x = torch.rand(4, 3)
    with ProcessGroup(torch.device("cpu")) as group:
        assert group.is_main and group.gather(x) is x and torch.equal(group.own_share(x), x) and group.mean(x) is x
        assert group.max(1.5, True) == (1.5, True)
    norm, plain = SyncBatchNorm2d(3), torch.nn.BatchNorm2d(3)
    assert torch.equal(norm(x[:, :, None, None]), plain(x[:, :, None, None]))


def test_more_processes_than_gpus_raise_a_user_error(monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="as many processes as GPUs"):
        ProcessGroup(torch.device("cuda"))


if __name__ == "__main__":
    make_runs(Path(sys.argv[1]))
