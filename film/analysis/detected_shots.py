"""Results of shot detection for a dataset: the shots of each film, and the store of finished films of a run."""

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

import torch

from config import GeneratorConfig
from fileio.atomic import exclusive_lock
from fileio.checkpoints import load_checkpoint, save_checkpoint
from utils import UserError

SPLITS = ("train", "val", "test")
RESULTS_FORMAT = 5  # of a stored DetectedFilm
MAX_THUMBNAILS = 600  # shots of a film that get a thumbnail


@dataclass
class DetectedShot:
    """Frames [start, end) of a film."""

    number: int
    start: int
    end: int
    images: dict[int, int] = field(default_factory=dict)  # frame -> number in its file name; empty if dropped
    thumbnail: bytes | None = None  # middle frame as JPEG
    split: str = "dropped"

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def middle(self) -> int:
        return (self.start + self.end - 1) // 2


@dataclass
class DetectedFilm:
    """The shots of a film, and the differences of its frames."""

    path: Path
    fps: float
    label: str  # name of the detector's difference
    threshold: float  # difference from which on a frame starts a shot
    shots: list[DetectedShot] = field(default_factory=list)
    differences: array = field(default_factory=lambda: array("f"))  # of each frame from the previous one

    def image_name(self, number: int) -> str:
        return f"raw_image_{self.path.stem}_{number}.png"

    def state(self) -> dict[str, Any]:
        """Return everything except the path as plain values and tensors."""
        return {"fps": self.fps, "label": self.label, "threshold": self.threshold,
                "shots": [vars(shot) for shot in self.shots], "differences": torch.tensor(self.differences)}

    @classmethod
    def from_state(cls, path: Path, state: dict[str, Any]) -> "DetectedFilm":
        """Restore a film from the result of ``state``."""
        return cls(path, **{**state, "shots": [DetectedShot(**shot) for shot in state["shots"]],
                            "differences": array("f", state["differences"].tolist())})

    def summary(self) -> dict[str, Any]:
        """Return the number of shots, of kept and dropped shots, and of images per split."""
        kept = sum(1 for shot in self.shots if shot.images)
        frames = {split: sum(len(shot.images) for shot in self.shots if shot.split == split) for split in SPLITS}
        return {"video": self.path.name, "shots": len(self.shots), "kept": kept, "dropped": len(self.shots) - kept,
                "frames": frames}


class DetectionResults:
    """The finished films of a run in a hidden folder next to the dataset, so that an interrupted run can be resumed.

    Each film has a folder with its images and its DetectedFilm. The folder name is a hash of everything that the
    content depends on.
    """

    def __init__(self, save_path: Path, videos: Iterable[Path], config: GeneratorConfig) -> None:
        self.save_path = config.save_path
        # The dataset folder may not exist yet; its closest existing parent is on the same disk, so links are possible.
        parent = next(path for path in save_path.parents if path.is_dir())
        self.folder, self.lock = (parent / f".{save_path.name}.{suffix}" for suffix in ("parts", "lock"))
        self.keys = {video: self._key(video, config) for video in videos}

    @staticmethod
    def _key(video: Path, config: GeneratorConfig) -> str:
        stat = video.stat()
        content = [RESULTS_FORMAT, str(video.resolve()), stat.st_size, stat.st_mtime_ns, config.detector,
                   config.col_diff_thres, config.scene_thres, config.shots_len_thres, config.frames_per_shot]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Lock the dataset, create the folder and remove results of other films or settings from it.

        The folder is removed at the end of the block and on a UserError, and kept when the run is interrupted. Raises
        UserError if another run has the lock.
        """
        with exclusive_lock(self.lock, f"another run is writing {self.save_path}; wait for it or choose another "
                            "--save_path"):
            yield from self._open()

    def _open(self):
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
            with suppress(OSError):  # not empty
                self.folder.rmdir()
            raise
        shutil.rmtree(self.folder)

    def images(self, video: Path) -> Path:
        """Return the folder with the images of a film."""
        return self.folder / self.keys[video]

    def add(self, film: DetectedFilm, folder: Path) -> None:
        """Store a film by moving ``folder``, which has its images."""
        save_checkpoint(folder / "film.pt", {"film": film.state()})
        os.replace(folder, self.images(film.path))

    def __contains__(self, video: Path) -> bool:
        return self.images(video).exists()

    def __getitem__(self, video: Path) -> DetectedFilm:
        """Load a stored film."""
        return DetectedFilm.from_state(video, load_checkpoint(self.images(video) / "film.pt")["film"])
