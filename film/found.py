"""What was found in a film? Its shots and pictures; and what have the shards of a cluster found so far?"""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import GeneratorConfig
from utils import UserError, load_checkpoint, only_one, save_checkpoint

SPLITS = ("train", "val", "test")
FINDINGS = ".parts"  # folder of what the shards have read, until the dataset is made
FINDINGS_FORMAT = 3


@dataclass
class FoundShot:
    """Frames ``first`` to ``last``, both included."""

    number: int
    first: int
    last: int
    images: dict[int, int] = field(default_factory=dict)  # frame -> number in its picture's name; {} if dropped
    thumbnail: np.ndarray | None = None  # JPEG, uint8 (bytes,)
    split: str = "dropped"


@dataclass
class FoundFilm:
    """The shots of a film, and how much its frames differ."""

    path: Path
    fps: float
    label: str  # name of the detector's difference
    threshold: float  # of that difference, for a cut
    shots: list[FoundShot] = field(default_factory=list)
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
    def of(cls, path: Path, state: dict[str, Any]) -> "FoundFilm":
        """The inverse of ``state``."""
        shots = [FoundShot(**{**shot, "thumbnail": None if shot["thumbnail"] is None else shot["thumbnail"].numpy()})
                 for shot in state["shots"]]
        return cls(path, **{**state, "shots": shots, "differences": array("f", state["differences"].tolist())})

    def summary(self) -> dict[str, Any]:
        kept = sum(1 for shot in self.shots if shot.images)
        frames = {split: sum(len(shot.images) for shot in self.shots if shot.split == split) for split in SPLITS}
        return {"video": self.path.name, "shots": len(self.shots), "kept": kept, "dropped": len(self.shots) - kept,
                "frames": frames}


class Findings:
    """What the shards of a cluster have read so far: a folder a film, with its FoundFilm and its pictures.

    Any shard that finds all films there makes the dataset, one at a time; the folder is removed when it is made.
    """

    def __init__(self, folder: Path, videos: Iterable[Path], config: GeneratorConfig) -> None:
        self.folder = folder
        self.keys = {video: self._key(video, config) for video in videos}

    @staticmethod
    def _key(video: Path, config: GeneratorConfig) -> str:
        """A hash of all that what is found in a film depends on."""
        stat = video.stat()
        content = [FINDINGS_FORMAT, video.name, stat.st_size, stat.st_mtime_ns, config.detector, config.col_diff_thres,
                   config.scene_thres, config.shots_len_thres, config.frames_per_shot]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def pictures(self, video: Path) -> Path:
        """The folder with the pictures of a film."""
        return self.folder / self.keys[video]

    def add(self, video: Path, film: FoundFilm | UserError, folder: Path) -> None:
        """Keep what was found, a FoundFilm or the UserError that the film caused, by moving ``folder``, which has the
        pictures."""
        folder.mkdir(exist_ok=True)
        content = {"failure": str(film)} if isinstance(film, UserError) else {"film": film.state()}
        save_checkpoint(folder / "film.pt", content)
        if self.pictures(video).exists():  # an earlier failure
            shutil.rmtree(self.pictures(video))
        os.replace(folder, self.pictures(video))

    def get(self, video: Path) -> FoundFilm | UserError | None:
        """The FoundFilm, the UserError that the film caused, or None for a film that no shard has read yet. Raises
        UserError for a damaged file."""
        if not (self.pictures(video) / "film.pt").exists():
            return None
        content = load_checkpoint(self.pictures(video) / "film.pt")
        return FoundFilm.of(video, content["film"]) if "film" in content else UserError(content["failure"])

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Yield True to the one shard that may make the dataset now; the claim ends with the block or the process."""
        with ExitStack() as stack:
            claimed = False
            with suppress(UserError, OSError):  # another one has it, or it is gone with the folder
                stack.enter_context(only_one(self.folder / ".lock", "another shard makes the dataset"))
                claimed = self.folder.exists()
            yield claimed


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or where the disk cannot, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
