"""What does a run of train.py leave behind? Its files, sample grids and curves; and how it is told to stop."""

import json
import math
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from config import TrainConfig
from dataset import ColorizationDataset, lab_to_rgb, tensors_to_lab
from fileio.atomic import atomic_write, exclusive_lock
from fileio.images import image_grid
from training.learner import not_whole
from utils import UserError


class Run:
    """The files of a run under ``save_path``: checkpoints, frames_*.npy where the memory has too many frames for them,
    log.jsonl, curves.png, samples/ and tensorboard/.

    A context manager that locks the folder against other runs; the lock ends with the process, however it dies. Raises
    UserError while another run has it, or if it holds another run's checkpoints and neither resume, start_epoch nor
    overwrite is set.
    """

    OWN = ("epoch_*.pt", "last.pt", "best.pt", "frames_*.npy", "log.jsonl", "curves.png", "samples/epoch_*.png",
           "samples/last.png", "tensorboard/events.out.tfevents.*")

    def __init__(self, config: TrainConfig) -> None:
        self.path = Path(config.save_path)
        self.log = self.path / "log.jsonl"
        self.may_write = config.overwrite or config.resume or config.start_epoch

    def __enter__(self) -> "Run":
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"save_path {self.path} is a file; name a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = exclusive_lock(self.path / ".lock", f"another run is writing to {self.path}; wait for it or choose "
                                                      "another --save_path")
            self.lock.__enter__()
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
        if not self.may_write and any(path.suffix == ".pt" for path in self._files()):
            self.lock.__exit__(None, None, None)
            raise UserError(f"{self.path} holds another run; pass --resume True to go on, --overwrite True to start "
                            "again, or another --save_path")
        for path in self.path.glob(".*.partial.*"):  # left by a run that was killed while writing
            path.unlink()
        return self

    def __exit__(self, *error: Any) -> None:
        self.lock.__exit__(*error)

    def _files(self):
        return [path for pattern in self.OWN for path in self.path.glob(pattern)]

    def begin(self, epoch: int | None, keep: Path | None = None) -> None:
        """Prepare the folder: None removes all files of an earlier run, but the one to ``keep``; else the log is cut
        after ``epoch`` epochs."""
        (self.path / "samples").mkdir(exist_ok=True)
        if epoch is None:
            for path in self._files():
                if path != keep:
                    path.unlink()
        elif self.log.exists():
            lines = self.log.read_text().splitlines()[:epoch]  # the last one may be cut short by a kill
            with atomic_write(self.log) as temporary:
                temporary.write_text("".join(line + "\n" for line in lines))

    def add(self, record: dict[str, Any]) -> None:
        """Append one record as a line of JSON."""
        with open(self.log, "a") as file:
            file.write(json.dumps(record) + "\n")

    def draw_curves(self) -> None:
        """Draw every logged number over the epochs into curves.png, losses above, validation below."""
        records = [json.loads(line) for line in self.log.read_text().splitlines()]
        skip = ("epoch", "step", "seconds", "images_per_second", "skipped")
        names = dict.fromkeys(name for record in records for name in record if name not in skip)
        names = sorted(names, key=lambda name: name.startswith("val_"))
        figure = Figure(figsize=(3.2 * math.ceil(len(names) / 2), 5), layout="constrained")
        for axes, name in zip(figure.subplots(2, math.ceil(len(names) / 2)).flat, names, strict=False):
            axes.plot([r["epoch"] for r in records], [r.get(name, math.nan) for r in records], marker=".")
            axes.set_title(name)
            axes.set_xlabel("epoch")
            axes.grid(alpha=0.3)
        with atomic_write(self.path / "curves.png") as temporary:
            figure.savefig(temporary, dpi=100)


@dataclass
class Position:
    """How far a run has come. Together with the learner's and torch's random state, it is all that resuming needs."""

    epoch: int = 0  # epochs that are done
    batches: int = 0  # steps done in the epoch after these
    step: int = 0  # steps in all
    spent: float = 0.0  # seconds on the steps of this epoch
    seconds: float = 0.0  # seconds on the steps of the epochs before
    elapsed: float = 0.0  # seconds on everything, in all the times that the run was started
    best: float = math.inf  # lowest val_ciede2000 yet
    sums: dict = field(default_factory=dict)  # of this epoch: name of a loss -> tensor (its sum, number of steps)

    @classmethod
    def of(cls, saved: dict[str, Any], device: torch.device) -> "Position":
        """The position that a checkpoint was written at. Raises UserError when it makes no sense."""
        try:
            position = cls(**{f.name: saved[f.name] for f in fields(cls)})
            for f in fields(cls)[:-1]:
                if not (type(getattr(position, f.name)) is f.type and getattr(position, f.name) >= 0):
                    raise ValueError(f"{f.name} is {getattr(position, f.name)}")
            position.sums = {name: x.to(device).reshape(2) for name, x in position.sums.items()}
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise not_whole(error) from error
        return position


class Signals:
    """Within the block, Ctrl-C and SIGTERM only set ``caught``, so that the step can be finished and saved."""

    caught = False

    def __enter__(self) -> "Signals":
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, *_):
        self.caught = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @staticmethod
    def ignore(_worker: int | None = None) -> None:
        """Ignore both in a worker process: the process that started it stops it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


# ---------------------------------------------------------------------------------------------------------------------
# Sample grids


def sample_grid(samples: Iterable[tuple[int, np.ndarray, list[int]]], val: ColorizationDataset,
                train: ColorizationDataset) -> np.ndarray:
    """Rows of gray | result | truth | top-3 frames of the memory, RGB uint8."""
    place = {image_id: index for index, image_id in enumerate(train.ids)}
    rows = []
    for index, lab, top in samples:
        gray = lab.copy()
        gray[..., 1:] = 0
        pictures = [gray, lab, item_lab(val[index])]
        pictures += [item_lab(train[place[i]]) if i in place else gray * 0 for i in top]
        rows.append([lab_to_rgb(picture) for picture in pictures])
    return image_grid(rows)


def item_lab(item: dict[str, Any]) -> np.ndarray:
    """An item of the dataset -> Lab float32 (S, S, 3)."""
    return tensors_to_lab(item["L"][None], item["ab"][None])[0]
