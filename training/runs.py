"""The output folder of a training run, the progress that is saved in checkpoints, and the handling of stop signals."""

import json
import math
import signal
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from config import TrainConfig
from fileio.atomic import atomic_write, exclusive_lock
from fileio.outputs import check_writable
from training.learner import damaged_checkpoint
from utils import UserError


class RunFolder:
    """The files of a training run in ``save_path``: checkpoints, frames_*.npy (frames of a memory too large for a
    checkpoint), log.jsonl, samples/ and tensorboard/.

    A context manager that locks the folder. The operating system releases the lock when the process ends. Raises
    UserError if another run holds the lock, or if the folder contains checkpoints of another run and none of resume,
    start_epoch and overwrite is set.
    """

    FILES = ("epoch_*.pt", "last.pt", "best.pt", "frames_*.npy", "log.jsonl", "samples/epoch_*.png",
             "samples/last.png", "tensorboard/events.out.tfevents.*")

    def __init__(self, config: TrainConfig) -> None:
        self.path = Path(config.save_path)
        self.log = self.path / "log.jsonl"
        self.may_write = config.overwrite or config.resume or config.start_epoch

    def __enter__(self) -> "RunFolder":
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"save_path {self.path} is a file; pass a folder")
        check_writable([self.log], "--save_path")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = exclusive_lock(self.path / ".lock", f"another run is writing to {self.path}; wait for it or "
                                                            "choose another --save_path")
            self.lock.__enter__()
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
        if not self.may_write and any(path.suffix == ".pt" for path in self._files()):
            self.lock.__exit__(None, None, None)
            raise UserError(f"{self.path} contains another run; pass --resume True to continue it, --overwrite True to "
                            "replace it, or another --save_path")
        for path in self.path.glob(".*.partial.*"):  # incomplete files of a run that was killed
            path.unlink()
        return self

    def __exit__(self, *error: Any) -> None:
        self.lock.__exit__(*error)

    def _files(self):
        return [path for pattern in self.FILES for path in self.path.glob(pattern)]

    def prepare(self, resumed_epoch: int | None, keep: Path | None = None) -> None:
        """Remove the log lines after ``resumed_epoch`` or, for a new run (None), all old files except ``keep``."""
        (self.path / "samples").mkdir(exist_ok=True)
        if resumed_epoch is None:
            for path in self._files():
                if path != keep:
                    path.unlink()
        elif self.log.exists():
            lines = self.log.read_text().splitlines()[:resumed_epoch]  # a kill may have left the last line incomplete
            with atomic_write(self.log) as temporary:
                temporary.write_text("".join(line + "\n" for line in lines))

    def add(self, record: dict[str, Any]) -> None:
        """Append a record to log.jsonl."""
        with open(self.log, "a") as file:
            file.write(json.dumps(record) + "\n")


@dataclass
class Progress:
    """The progress of a run. With the state of the learner and of torch's random number generator, a run can resume."""

    epoch: int = 0  # completed epochs
    epoch_steps_done: int = 0  # steps taken in the current epoch
    step: int = 0  # steps taken in all epochs
    epoch_seconds: float = 0.0  # duration of the steps of the current epoch
    train_seconds: float = 0.0  # duration of the steps of completed epochs
    elapsed_seconds: float = 0.0  # duration of the run, including preparation, validation and earlier processes
    best_ciede2000: float = math.inf  # lowest validation error
    reference_ciede2000: float = math.inf  # validation error of the last epoch that improved on the ones before
    stalled_epochs: int = 0  # epochs since then
    loss_sums: dict = field(default_factory=dict)  # of the current epoch: {name: tensor (sum, number of steps)}

    @classmethod
    def from_checkpoint(cls, saved: dict[str, Any], device: torch.device) -> "Progress":
        """Read the progress from a checkpoint. Raises UserError for missing or invalid values."""
        try:
            progress = cls(**{f.name: saved[f.name] for f in fields(cls)})
            for f in fields(cls)[:-1]:
                if not (type(getattr(progress, f.name)) is f.type and getattr(progress, f.name) >= 0):
                    raise ValueError(f"{f.name} is {getattr(progress, f.name)}")
            progress.loss_sums = {name: x.to(device).reshape(2) for name, x in progress.loss_sums.items()}
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise damaged_checkpoint(error) from error
        return progress

    def count_step(self, losses: dict[str, torch.Tensor]) -> None:
        """Count a step of the current epoch and add up its scalar ``losses``, except for those of skipped steps."""
        self.step += 1
        self.epoch_steps_done += 1
        for name, loss in losses.items():
            counted = torch.stack([loss, torch.ones_like(loss)])
            if name != "skipped_steps":
                counted = counted.masked_fill(losses["skipped_steps"] > 0, 0)
            self.loss_sums[name] = self.loss_sums.get(name, 0) + counted

    def check_remaining(self, config: TrainConfig) -> None:
        """Raise UserError if the run has ended: end_epoch, max_minutes or patience has been reached."""
        if self.epoch >= config.end_epoch:
            raise UserError(f"the checkpoint is from epoch {self.epoch} and end_epoch is {config.end_epoch}; raise "
                            "end_epoch")
        if config.max_minutes and self.elapsed_seconds >= config.max_minutes * 60:
            raise UserError(f"the run has taken {self.elapsed_seconds / 60:.1f} minutes and max_minutes is "
                            f"{config.max_minutes}; the time before resuming counts, so raise max_minutes")
        if self.is_stalled(config.patience):
            raise UserError(f"the validation error has not decreased for {self.stalled_epochs} epochs and patience is "
                            f"{config.patience}; raise patience")

    def add_error(self, ciede2000: float, min_improvement: float) -> None:
        """Record the validation error of an epoch. It is an improvement if it is lower than that of the last improved
        epoch by at least the fraction ``min_improvement``."""
        self.best_ciede2000 = min(self.best_ciede2000, ciede2000)
        self.stalled_epochs += 1
        if ciede2000 <= (1 - min_improvement) * self.reference_ciede2000:
            self.reference_ciede2000, self.stalled_epochs = ciede2000, 0

    def is_stalled(self, patience: int) -> bool:
        """Return whether ``patience`` epochs have passed without an improvement; never if it is 0."""
        return 0 < patience <= self.stalled_epochs

    def summary(self, first_epoch: int, minutes: float, config: TrainConfig) -> str:
        """Describe a run that has ended after ``minutes``."""
        reason = (f" and stopped, since the validation error had not decreased for {self.stalled_epochs} epochs"
                  if self.is_stalled(config.patience) else "")
        return (f"trained epochs {first_epoch} to {self.epoch} in {minutes:.1f} minutes{reason}; lowest validation "
                f"CIEDE2000 {self.best_ciede2000:.3f}; checkpoints in {config.save_path}")


class StopSignals:
    """A context manager in which Ctrl-C and SIGTERM only set ``received``, so that the current step can be saved."""

    received = False

    def __enter__(self) -> "StopSignals":
        self.handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _receive(self, *_):
        self.received = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    @staticmethod
    def ignore(_worker: int | None = None) -> None:
        """Ignore both signals in a worker process, since its parent stops it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
