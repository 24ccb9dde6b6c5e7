"""What was found in a film? Its shots and pictures; and what was found so far of many?"""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import GeneratorConfig
from fileio.checkpoints import load_checkpoint, save_checkpoint
from utils import UserError

SPLITS = ("train", "val", "test")
FINDINGS_FORMAT = 4


@dataclass
class DetectedShot:
    """Frames ``first`` to ``last``, both included."""

    number: int
    first: int
    last: int
    images: dict[int, int] = field(default_factory=dict)  # frame -> number in its picture's name; {} if dropped
    thumbnail: np.ndarray | None = None  # JPEG, uint8 (bytes,)
    split: str = "dropped"


@dataclass
class DetectedFilm:
    """The shots of a film, and how much its frames differ."""

    path: Path
    fps: float
    label: str  # name of the detector's difference
    threshold: float  # of that difference, for a cut
    shots: list[DetectedShot] = field(default_factory=list)
    differences: array = field(default_factory=lambda: array("f"))  # [i]: between frames i - 1 and i; [0] is 0

    def picture_name(self, number: int) -> str:
        return f"raw_image_{self.path.stem}_{number}.png"

    def state(self) -> dict[str, Any]:
        """All but the path, as plain values and tensors."""
        shots = [{**vars(shot), "thumbnail": None if shot.thumbnail is None else torch.from_numpy(shot.thumbnail)}
                 for shot in self.shots]
        return {"fps": self.fps, "label": self.label, "threshold": self.threshold, "shots": shots,
                "differences": torch.tensor(self.differences)}

    @classmethod
    def of(cls, path: Path, state: dict[str, Any]) -> "DetectedFilm":
        """The inverse of ``state``."""
        shots = [DetectedShot(**{**shot, "thumbnail": None if shot["thumbnail"] is None else shot["thumbnail"].numpy()})
                 for shot in state["shots"]]
        return cls(path, **{**state, "shots": shots, "differences": array("f", state["differences"].tolist())})

    def summary(self) -> dict[str, Any]:
        kept = sum(1 for shot in self.shots if shot.images)
        frames = {split: sum(len(shot.images) for shot in self.shots if shot.split == split) for split in SPLITS}
        return {"video": self.path.name, "shots": len(self.shots), "kept": kept, "dropped": len(self.shots) - kept,
                "frames": frames}


class DetectionResults:
    """What was read so far of several films: a folder a film, with its DetectedFilm and its pictures, in a hidden folder
    beside the dataset; from there an interrupted run goes on. It is removed when the dataset is made."""

    def __init__(self, save_path: Path, videos: Iterable[Path], config: GeneratorConfig) -> None:
        # Not in it, which may not be there yet; but on its disk, so that pictures need no copy.
        beside = next(path for path in save_path.parents if path.is_dir())
        self.folder, self.lock = (beside / f".{save_path.name}.{suffix}" for suffix in ("parts", "lock"))
        self.keys = {video: self._key(video, config) for video in videos}

    @staticmethod
    def _key(video: Path, config: GeneratorConfig) -> str:
        """A hash of all that what is found in a film depends on."""
        stat = video.stat()
        content = [FINDINGS_FORMAT, str(video.resolve()), stat.st_size, stat.st_mtime_ns, config.detector,
                   config.col_diff_thres, config.scene_thres, config.shots_len_thres, config.frames_per_shot]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @contextmanager
    def begun(self) -> Iterator[None]:
        """In the block the folder is there, without what is of other films or settings. It stays when the block is
        interrupted, and is removed when it ends or the user must mend something."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            if not path.name.startswith(".") and path.name not in self.keys.values():
                shutil.rmtree(path)
        try:
            yield
        except UserError:
            shutil.rmtree(self.folder)
            raise
        except BaseException:
            with suppress(OSError):  # it is not empty
                self.folder.rmdir()
            raise
        shutil.rmtree(self.folder)

    def pictures(self, video: Path) -> Path:
        """The folder with the pictures of a film."""
        return self.folder / self.keys[video]

    def add(self, film: DetectedFilm, folder: Path) -> None:
        """Keep what was found by moving ``folder``, which has the pictures."""
        save_checkpoint(folder / "film.pt", {"film": film.state()})
        os.replace(folder, self.pictures(film.path))

    def __contains__(self, video: Path) -> bool:
        return self.pictures(video).exists()

    def __getitem__(self, video: Path) -> DetectedFilm:
        """What was found in a film that was read."""
        return DetectedFilm.of(video, load_checkpoint(self.pictures(video) / "film.pt")["film"])


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or where the disk cannot, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
