"""Tests of interrupted runs, locks, damaged checkpoints, non-finite losses and reproducibility."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawn import draw_dataset
from faults import CRITICAL_POINTS, results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fileio.checkpoints import load_checkpoint, save_checkpoint
from train import main
from training import learner
from training.learner import Learner
from utils import UserError

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("data"), train=3, val=1)


def flags(data_path, save_path, **settings):
    settings = {"data_path": data_path, "save_path": save_path, "width": 4, "batch_size": 3, "epoch_steps": 3,
                "end_epoch": 2, "use_spatial_memory": False, **settings}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def trained(data_path, tmp_path_factory):
    """Return the folder of a run of one epoch. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    main(flags(data_path, folder, end_epoch=1))
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Interruptions


@pytest.mark.parametrize("points, times", [
    (["write last.pt after best.pt"], 0), pytest.param(list(CRITICAL_POINTS), 1, marks=pytest.mark.slow)],
    ids=["few", "all"])
def test_runs_that_are_killed_and_resumed_equal_an_uninterrupted_one(points, times):
    """Run faults.py, which compares results bitwise, with few interruptions."""
    done = subprocess.run([sys.executable, HERE / "faults.py", "--points", *points, "--kills", str(times), "--stops",
                           str(times)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (f"| kill -9 at each critical point | {len(points)} | {len(points)} |",
                 *(f"| {name} | {times} | {times} |" for name in ("kill -9", "Ctrl-C", "SIGTERM")),
                 "uninterrupted one: 0"):
        assert line in done.stdout


def stop_at(monkeypatch, step, number):
    """Send a signal to this process in the given training step."""
    original, count = Learner.step, 0

    def counting(*args):
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), number)
        return original(*args)

    monkeypatch.setattr(Learner, "step", counting)


@pytest.mark.parametrize("number, step", [(signal.SIGINT, 2), (signal.SIGTERM, 3)])  # within an epoch and at its end
def test_a_stopped_run_resumes_in_the_middle_of_an_epoch(data_path, tmp_path, monkeypatch, number, step):
    main(flags(data_path, tmp_path / "whole"))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=f"after step {step}; --resume True"):
        stop_at(patch, step, number)
        main(flags(data_path, tmp_path / "cut"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    saved = load_checkpoint(tmp_path / "cut" / "last.pt")
    assert (saved["epoch"], saved["epoch_steps_done"], saved["step"]) == (0, step, step)
    main(["--save_path", str(tmp_path / "cut"), "--resume", "True"])
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_a_resumed_run_logs_each_epoch_once(data_path, tmp_path, monkeypatch):
    """The log and TensorBoard have epochs 1 and 2 when the run resumes from a last.pt of epoch 1."""
    main(flags(data_path, tmp_path, save_freq=1))
    shutil.copy(tmp_path / "epoch_0001.pt", tmp_path / "last.pt")
    main(["--save_path", str(tmp_path), "--resume", "True", "--end_epoch", "3"])
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val_ciede2000")] == [1, 2, 3]


def test_max_minutes_includes_the_time_before_resuming(data_path, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run" / "last.pt")
    assert saved["elapsed_seconds"] >= saved["train_seconds"] > 0
    save_checkpoint(tmp_path / "run" / "last.pt", {**saved, "elapsed_seconds": 120.0})
    resume = ["--save_path", str(tmp_path / "run"), "--resume", "True", "--end_epoch", "9"]
    with pytest.raises(UserError, match="has taken 2.0 minutes and max_minutes is 1.5"):
        main([*resume, "--max_minutes", "1.5"])
    main([*resume, "--max_minutes", "2.0000001"])  # the first step is the last one
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == saved["step"] + 1


# ---------------------------------------------------------------------------------------------------------------------
# Locks


def test_a_second_run_in_the_same_folder_raises_an_error(data_path, tmp_path):
    code = ("import sys; from training.runs import RunFolder; from train import TrainConfig\n"
            "with RunFolder(TrainConfig(save_path=sys.argv[1])):\n    print('ready', flush=True); sys.stdin.read()")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == "ready\n"
        for settings in ({}, {"overwrite": True}):
            with pytest.raises(UserError, match="another run is writing"):
                main(flags(data_path, tmp_path / "run", **settings))
        other.kill()
    main(flags(data_path, tmp_path / "run", end_epoch=1))  # the lock of the killed process is released
    assert (tmp_path / "run" / "last.pt").exists()


def test_partial_files_of_a_killed_run_are_deleted(data_path, tmp_path):
    (tmp_path / ".last.partial.pt").write_bytes(b"half")
    main(flags(data_path, tmp_path, end_epoch=1))
    assert not list(tmp_path.glob(".*partial*"))


# ---------------------------------------------------------------------------------------------------------------------
# Damaged checkpoints


def damage(content, name):
    colorizer, moments = content["colorizer"], content["optimizers"]["gen"]["state"]
    weight = "generator.output.weight"
    if name == "a missing tensor":
        del colorizer[weight]
    elif name == "an extra tensor":
        colorizer["extra"] = torch.zeros(1)
    elif name == "a wrong shape":
        colorizer[weight] = torch.zeros(1, 2, 3)
    elif name == "not a number":
        colorizer[weight][0, 0, 0, 0] = torch.nan
    elif name == "missing moments":
        del moments[0]
    elif name == "moments of a wrong shape":
        moments[0]["exp_avg"] = torch.zeros(3)
    elif name == "another format":
        content["format"] = 99
    elif name == "absurd sizes":
        content["model_config"]["mem_size"] = 10**12
    elif name == "a tensor of more than is stored":
        colorizer[weight] = torch.zeros(1).expand(10**12)
    elif name == "no settings":
        del content["train_config"]
    elif name == "a wrong random state":
        content["rng_state"] = torch.zeros(3, dtype=torch.uint8)
    elif name == "a negative epoch":
        content["epoch"] = -1
    elif name == "a wrong kind":
        content["discriminator"] = [1, 2]


@pytest.mark.parametrize("fault, message", [
    ("a missing tensor", "generator.output.weight is missing"), ("an extra tensor", "extra is missing, unexpected"),
    ("a wrong shape", "generator.output.weight is missing, unexpected or of a different shape"),
    ("not a number", "not finite"), ("missing moments", "incomplete or damaged"),
    ("moments of a wrong shape", "wrong shape"), ("another format", "format 99"),
    ("absurd sizes", "incomplete or damaged.*different shape"),
    ("a tensor of more than is stored", "larger than its stored data"),
    ("no settings", "settings in the checkpoint do not fit"), ("a wrong random state", "incomplete or damaged"),
    ("a negative epoch", "epoch is -1"), ("a wrong kind", "incomplete or damaged")])
def test_a_damaged_checkpoint_raises_a_one_line_error(trained, tmp_path, fault, message):
    content = torch.load(trained / "last.pt", weights_only=True)
    damage(content, fault)
    torch.save(content, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(UserError, match=message) as error:
        main(["--save_path", str(tmp_path), "--resume", "True", "--end_epoch", "2"])
    assert "\n" not in str(error.value) and (tmp_path / "last.pt").read_bytes() == before


# ---------------------------------------------------------------------------------------------------------------------
# Non-finite losses


@pytest.fixture
def bad_steps(monkeypatch):
    """Return a set. The loss of the generator is NaN in the steps whose numbers are in the set."""
    bad, count, original = set(), 0, learner.generator_loss

    def loss(*args):
        nonlocal count
        count += 1
        total, parts = original(*args)
        return (total * torch.nan, parts) if count in bad else (total, parts)

    monkeypatch.setattr(learner, "generator_loss", loss)
    return bad


def test_a_step_with_a_nonfinite_loss_is_skipped_and_counted(data_path, tmp_path, bad_steps):
    bad_steps.update({2, 3})
    main(flags(data_path, tmp_path))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["skipped_steps"] for record in records] == [2, 0]
    state = load_checkpoint(tmp_path / "last.pt")["optimizers"]  # raises an error for non-finite values
    assert state["gen"]["state"][0]["step"] == 4 and state["dis"]["state"][0]["step"] == 2  # in steps 1 and 5


def test_ten_consecutive_nonfinite_steps_end_the_training(data_path, tmp_path, bad_steps, monkeypatch):
    bad_steps.update(range(5, 100))
    with pytest.raises(UserError, match="10 steps in a row.*last.pt"):
        main(flags(data_path, tmp_path, end_epoch=20, patience=0))
    before = load_checkpoint(tmp_path / "last.pt")
    assert before["step"] <= 4
    bad_steps.clear()
    main(["--save_path", str(tmp_path), "--resume", "True", "--end_epoch", "2"])


def test_gradient_norms_are_clipped(data_path, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def recording(self):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]]).item())
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    main(flags(data_path, tmp_path / "free", end_epoch=1))
    assert max(norms) > 0.1
    norms.clear()
    main(flags(data_path, tmp_path / "clipped", end_epoch=1, clip_grad=0.1))
    assert 0.09 < max(norms) < 0.1001


# ---------------------------------------------------------------------------------------------------------------------
# Reproducibility


def test_equal_seeds_give_equal_runs_with_any_number_of_workers(data_path, tmp_path):
    kept = {}
    for name, settings in (("one", {}), ("same", {}), ("workers", {"num_workers": 2}), ("other", {"seed": 1})):
        main(flags(data_path, tmp_path / name, end_epoch=1, **settings))
        checkpoints, log = results(tmp_path / name)
        kept[name] = {key: value for key, value in checkpoints.items() if not key.endswith("num_workers")}, log
    assert kept["one"] == kept["same"] == kept["workers"] != kept["other"]


def test_deterministic_enables_deterministic_algorithms(data_path, tmp_path):
    try:
        main(flags(data_path, tmp_path, end_epoch=1, deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
