"""Shot detection for a dataset: the shots of a film, and a folder with the results of films finished so far."""

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
from fileio.outputs import check_writable, short_stem
from utils import UserError

SPLITS = ("train", "val", "test")
RESULTS_FORMAT = 5  # of a stored DetectedFilm
MAX_THUMBNAILS = 600  # shots of a film that get a thumbnail


@dataclass
class DetectedShot:
    """A shot: frames [start, end) of a film."""

    number: int
    start: int
    end: int
    images: dict[int, int] = field(default_factory=dict)  # frame number -> number in its file name; empty if dropped
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
    """The shots of a film, and the differences between its frames."""

    path: Path
    fps: float
    label: str  # name of the difference that the detector measures
    threshold: float  # cut threshold for the difference
    shots: list[DetectedShot] = field(default_factory=list)
    differences: array = field(default_factory=lambda: array("f"))  # between each frame and the previous one

    def image_name(self, number: int) -> str:
        return f"raw_image_{short_stem(self.path.stem)}_{number}.png"

    def state(self) -> dict[str, Any]:
        """Return all fields except ``path`` as plain values and tensors."""
        return {"fps": self.fps, "label": self.label, "threshold": self.threshold,
                "shots": [vars(shot) for shot in self.shots], "differences": torch.tensor(self.differences)}

    @classmethod
    def from_state(cls, path: Path, state: dict[str, Any]) -> "DetectedFilm":
        """Restore a film from the result of ``state``."""
        return cls(path, **{**state, "shots": [DetectedShot(**shot) for shot in state["shots"]],
                            "differences": array("f", state["differences"].tolist())})

    def summary(self) -> dict[str, Any]:
        """Return a dict of the file name, the numbers of all, kept and dropped shots, and the images per split."""
        kept = sum(1 for shot in self.shots if shot.images)
        frames = {split: sum(len(shot.images) for shot in self.shots if shot.split == split) for split in SPLITS}
        return {"video": self.path.name, "shots": len(self.shots), "kept": kept, "dropped": len(self.shots) - kept,
                "frames": frames}


class DetectionResults:
    """Stores the results of finished films in a hidden folder next to the dataset, so that interrupted runs can resume.

    Each film has a subfolder with its images and its DetectedFilm. The name of the subfolder is a hash of the path,
    size and modification time of the film and of the settings that change its shots or images.
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
        """Lock the dataset, create the folder, and remove results of other films or settings from it.

        The folder is removed at the end of the block and on a UserError. After other errors, it is kept unless it is
        empty. Raises UserError if a different run holds the lock.
        """
        check_writable([self.lock], "--save_path")
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
        """Write the shots of a film to ``folder``, which has its images, and move the folder into the store."""
        save_checkpoint(folder / "film.pt", {"film": film.state()})
        os.replace(folder, self.images(film.path))

    def __contains__(self, video: Path) -> bool:
        return self.images(video).exists()

    def __getitem__(self, video: Path) -> DetectedFilm:
        """Load a stored film."""
        return DetectedFilm.from_state(video, load_checkpoint(self.images(video) / "film.pt")["film"])
