"""What is a project? One folder that holds all of a film that is corrected by hand.

    project.json    which film, its cuts that were mended, and the corrections; plain values
    checkpoint.pt   what colors it
    references/     the corrected frames, as ``test.py --references`` takes them
    taken_back/     those that were taken back; nothing is thrown away
    colored/        the colored film, and what goes with it
    film.pt         the records of its shots, and shots.pt what was found before it was colored
    uploads/        what was sent to the page
    dataset/, training/   what the checkpoint was learned from, if it was learned here

Whatever is written appears whole or not at all. One program at a time works on a project.
"""

import filecmp
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colorizer.adaptation.film_response import FilmResponse
from colorizer.memory.frame_archive import open_archive
from colorizer.metrics import has_color
from editing.palette import hex_to_lab
from fileio.atomic import atomic_write, exclusive_lock
from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.images import IMAGE_SUFFIXES, read_image, write_image
from film.analysis.plan import Plan
from film.io.mux import OUTPUT_SUFFIXES
from film.io.video import VideoFile, is_video
from film.report.records import Records
from utils import UserError, list_files, natural_key

PROJECT_FORMAT = 1
MOST = 2000  # files of the given folders that are offered


@dataclass
class Correction:
    """A frame that was painted and is remembered."""

    file: str  # its name in references/
    frame: int  # its number in the film


@dataclass
class Facts:
    """What project.json holds."""

    film: str = ""  # path of the gray film; "" before one is chosen
    cut_at: list[int] = field(default_factory=list)  # frames that begin a shot though the finder saw none
    join_at: list[int] = field(default_factory=list)  # frames at which the finder saw a cut, and there is none
    corrections: list[Correction] = field(default_factory=list)  # in the order in which they were remembered
    changes: list[list[str]] = field(default_factory=list)  # pairs of colors: what has the first gets the second


def reference_name(frame: int) -> str:
    """Name of the file of a frame that is remembered."""
    return f"frame_{frame:06d}.png"


def _plain(facts):
    return json.dumps({"format": PROJECT_FORMAT, **asdict(facts)}, indent=2) + "\n"


def _read_facts(text):
    """The inverse of ``_plain``. Raises ValueError for anything else, and for names that lead out of a folder."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("format", None) != PROJECT_FORMAT:
        raise ValueError(f"its format is not {PROJECT_FORMAT}")
    if set(content) != {f.name for f in fields(Facts)}:
        raise ValueError("it has other entries")
    corrections = [Correction(**each) for each in content["corrections"]]
    frames = [*content["cut_at"], *content["join_at"], *(each.frame for each in corrections)]
    names = [each.file for each in corrections]
    if not isinstance(content["film"], str) or any(type(frame) is not int or frame < 0 for frame in frames):
        raise ValueError("its values are of other kinds")
    if any(not isinstance(name, str) or Path(name).name != name or name.startswith(".") for name in names):
        raise ValueError("a correction is no file in references/")
    if any(not isinstance(change, list) or len(change) != 2 for change in content["changes"]):
        raise ValueError("a change of a color is no pair")
    for color in (color for change in content["changes"] for color in change):
        hex_to_lab(color)
    return Facts(**{**content, "corrections": corrections})


@dataclass
class Found:
    """The shots of a film as the finder sees them, before it is colored."""

    pts: array  # of int64, of all frames
    starts: list[int]  # frame with which each shot begins, 0 first
    pictures: list[bytes]  # JPEG of one of ``every`` frames
    every: int

    def shots(self, facts: Facts) -> list[tuple[int, int]]:
        """(first frame, the first one behind) of each shot, with the cuts that were mended."""
        frames = len(self.pts)
        starts = sorted({0, *self.starts, *facts.cut_at} - set(facts.join_at))
        starts = [start for start in starts if start < frames]
        return list(zip(starts, [*starts[1:], frames], strict=True))

    def picture(self, frame: int) -> bytes:
        """The JPEG nearest to a frame."""
        return self.pictures[min(len(self.pictures) - 1, round(frame / self.every))]


class AllowedPaths:
    """The folders and files that may be read: a path from a page must lie in one of them."""

    def __init__(self, given: Sequence[str | Path]) -> None:
        self.given = [Path(path).resolve() for path in given]

    def check(self, path: str | Path) -> Path:
        """The path of a file that may be read, resolved. Raises UserError for any other, whether or not it exists."""
        try:
            resolved = Path(path).resolve()
            allowed = any(resolved.is_relative_to(given) for given in self.given)
        except (OSError, ValueError, RuntimeError):  # a zero byte, a circle of links
            allowed = False
        if not allowed:
            raise UserError(f"{path} lies outside the folders that the studio was started with; start it with the "
                            "folder in --folders, or upload the file")
        if not resolved.is_file():
            raise UserError(f"there is no file {path}; choose another")
        return resolved

    def files(self, suffixes: Sequence[str]) -> list[Path]:
        """At most MOST files with one of the suffixes in the given folders and those in them, in natural order."""
        found = []
        for given in self.given:
            if given.is_file() and given.suffix.lower() in suffixes:
                found.append(given)
            for folder, folders, names in os.walk(given):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                found += [Path(folder, name) for name in names
                          if Path(name).suffix.lower() in suffixes and not name.startswith(".")]
                if len(found) >= MOST:
                    break
        return sorted(dict.fromkeys(found[:MOST]), key=lambda path: natural_key(str(path)))


class Project:
    """An open project; ``open_project`` makes one."""

    def __init__(self, folder: Path, given: Sequence[str | Path] = ()) -> None:
        self.folder = folder.resolve()
        self.facts = Facts()
        self.coloring = ""
        self.loaded: dict[str, tuple[Any, dict[str, Any]]] = {}
        path = self.folder / "project.json"
        if path.exists():
            try:
                self.facts = _read_facts(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError, KeyError, AttributeError, UserError) as error:
                raise UserError(f"{path} is not that of a project of this version ({error}); mend it or name another "
                                "--project") from error
        self.reach = AllowedPaths([self.folder, *given])

    def save(self) -> None:
        with atomic_write(self.folder / "project.json") as temporary:
            temporary.write_text(_plain(self.facts), encoding="utf-8")

    # -----------------------------------------------------------------------------------------------------------------
    # The film and what colors it

    @property
    def film(self) -> VideoFile | None:
        """The gray film, None before one is chosen. Raises UserError when it is gone."""
        if not self.facts.film:
            return None
        if not Path(self.facts.film).is_file():
            raise UserError(f"the film {self.facts.film} of the project {self.folder} is gone; put it back")
        return VideoFile(self.facts.film)

    def choose_film(self, path: str | Path) -> None:
        """Take a gray film. Raises UserError when it is none, may not be read, or there is another one already."""
        path = self.reach.check(path)
        if self.facts.film and Path(self.facts.film) != path:
            raise UserError(f"the project {self.folder} colors {Path(self.facts.film).name}; name another --project "
                            "for another film")
        if not is_video(path):
            raise UserError(f"{path.name} is no video that FFmpeg reads; choose another")
        self.facts.film = str(path)
        self.save()

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint, None before there is one."""
        path = self.folder / "checkpoint.pt"
        return path if path.exists() else None

    def take_checkpoint(self, path: str | Path, replace: bool = False) -> None:
        """Copy a checkpoint into the project; with ``replace`` in place of the one that it has. Raises UserError when
        it is not whole, or when there is another one."""
        path, ours = Path(path), self.folder / "checkpoint.pt"
        if ours.exists() and not replace:
            if path.resolve() == ours or path.is_file() and filecmp.cmp(path, ours, shallow=False):
                return
            raise UserError(f"the project {self.folder} has another checkpoint; leave --checkpoint out, or name "
                            "another --project")
        content = load_checkpoint(path)
        if (frames := open_archive(path, content)) is not None:
            frames.copy_to(self.folder)
        with atomic_write(ours) as temporary:
            shutil.copyfile(path, temporary)

    @property
    def colored(self) -> Path:
        """Path of the colored film, whether or not it is there."""
        film = Path(self.facts.film)
        return self.folder / "colored" / (
            film.stem + (film.suffix if film.suffix.lower() in OUTPUT_SUFFIXES else ".mkv"))

    # -----------------------------------------------------------------------------------------------------------------
    # Cuts

    def split(self, frame: int) -> None:
        """Let a shot begin at ``frame``."""
        self._mend(frame, self.facts.cut_at, self.facts.join_at)

    def join(self, frame: int) -> None:
        """Let the shot that begins at ``frame`` be one with that in front of it."""
        self._mend(frame, self.facts.join_at, self.facts.cut_at)

    def _mend(self, frame, wanted, opposite):
        if frame < 1:
            raise UserError("the film's first shot has none in front of it; choose a later one")
        if frame in opposite:
            opposite.remove(frame)
        elif frame not in wanted:
            wanted.append(frame)
            wanted.sort()
        self.save()

    # -----------------------------------------------------------------------------------------------------------------
    # Corrections

    @property
    def references(self) -> Path:
        return self.folder / "references"

    def remember(self, frame: int, rgb: np.ndarray) -> Correction:
        """Keep a painted frame, RGB uint8 (H, W, 3), as a reference. One of the same frame that is there already is
        taken back. Raises UserError when it has no color."""
        if not has_color(rgb):
            raise UserError("the frame has no color yet; paint it and try again")
        for earlier in [each for each in self.facts.corrections if each.frame == frame]:
            self.take_back(earlier.file)
        correction = Correction(reference_name(frame), frame)
        write_image(self.references / correction.file, rgb)
        self.facts.corrections.append(correction)
        self.save()
        return correction

    def take_back(self, file: str) -> None:
        """Take a correction back; its picture is kept in taken_back/. Raises UserError when there is none."""
        correction = next((each for each in self.facts.corrections if each.file == file), None)
        if correction is None:
            raise UserError(f"there is no correction {Path(file).name}; another page may have taken it back")
        kept = self.folder / "taken_back"
        kept.mkdir(exist_ok=True)
        stem, number = Path(file).stem, 1
        while (kept / f"{stem}_{number}.png").exists():
            number += 1
        with suppress(FileNotFoundError):  # somebody removed it by hand
            os.replace(self.references / file, kept / f"{stem}_{number}.png")
        self.facts.corrections.remove(correction)
        self.save()

    def change_color(self, old: str, new: str) -> None:
        """Let all that has the color ``old`` have ``new``, both "#rrggbb". A change of the same color that is there
        already is replaced. Raises UserError for what is no color."""
        hex_to_lab(old), hex_to_lab(new)
        self.facts.changes = [change for change in self.facts.changes if change[0] != old]
        if old != new:
            self.facts.changes.append([old, new])
        self.save()

    def reference_pictures(self, more: Mapping[int, np.ndarray] | None = None) -> list[np.ndarray]:
        """The remembered frames in the order in which ``colorizer.references.read_references`` reads them, [] if there is
        none; with those of ``more``, {number of the frame: RGB uint8}, as if they were remembered, too."""
        paths = list_files(self.references, IMAGE_SUFFIXES) if self.references.is_dir() else []
        named: dict[str, Any] = {path.name: path for path in paths} | {
            reference_name(frame): rgb for frame, rgb in (more or {}).items()}
        pictures = [read_image(item) if isinstance(item, Path) else item
                    for _, item in sorted(named.items(), key=lambda pair: natural_key(pair[0]))]
        return [picture for picture in pictures if has_color(picture)]

    # -----------------------------------------------------------------------------------------------------------------
    # Records

    def save_records(self, records: Records) -> None:
        """Keep the Records of the colored film."""
        response = records.response and records.response.state()
        save_checkpoint(self.folder / "film.pt", {
            "film": self.facts.film, "pts": torch.tensor(records.pts, dtype=torch.int64), "response": response,
            "records": records.states, "state": self.coloring})

    def begin_coloring(self) -> None:
        """Note what the film will be colored with, which ``save_records`` keeps."""
        self.coloring = self._state()

    def is_current(self) -> bool:
        """Whether the film is colored with the cuts, the checkpoint and the corrections of now."""
        path = self.folder / "film.pt"
        return path.exists() and self.colored.exists() and self._load(path).get("state") == self._state()

    def _load(self, path):
        """What ``load_checkpoint`` reads, again only if the file has changed."""
        stat = path.stat()
        stamp = stat.st_ino, stat.st_mtime_ns
        if self.loaded.get(path.name, (None,))[0] != stamp:
            self.loaded[path.name] = stamp, load_checkpoint(path)
        return self.loaded[path.name][1]

    def _state(self):
        files = [self.checkpoint, *(self.references / each.file for each in self.facts.corrections)]
        stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path and path.exists()]
        return json.dumps([self.facts.cut_at, self.facts.join_at, self.facts.changes, sorted(stamps)])

    def records(self) -> Records | None:
        """The Records of the film as it was colored last; None before it was. Raises UserError for a damaged file."""
        path = self.folder / "film.pt"
        if not path.exists() or not self.colored.exists():
            return None
        content = self._load(path)
        try:
            if content["film"] != self.facts.film:
                return None
            response = content["response"] and FilmResponse.from_state(content["response"])
            pts = array("q", content["pts"].tolist())
            return Records(Plan(pts, 1, [], False, np.zeros((0, 2), np.float32), response), content["records"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not hold the records of a film; remove it and color again") from error

    def save_found(self, found: Found) -> None:
        """Keep the shots of the film."""
        pictures = [torch.frombuffer(bytearray(picture), dtype=torch.uint8) for picture in found.pictures]
        save_checkpoint(self.folder / "shots.pt", {
            "film": self.facts.film, "pts": torch.tensor(found.pts, dtype=torch.int64), "starts": found.starts,
            "pictures": pictures, "every": found.every})

    def found(self) -> Found | None:
        """The shots of the film; None before they were found. Raises UserError for a damaged file."""
        path = self.folder / "shots.pt"
        if not path.exists():
            return None
        content = self._load(path)
        try:
            if content["film"] != self.facts.film:
                return None
            pictures = [picture.numpy().tobytes() for picture in content["pictures"]]
            return Found(array("q", content["pts"].tolist()), content["starts"], pictures, content["every"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not hold the shots of a film; remove it and open again") from error

    # -----------------------------------------------------------------------------------------------------------------
    # Uploads

    def take_upload(self, path: str | Path) -> Path:
        """Move a file that was sent to the page into uploads/, under a name of letters, digits, dots, - and _."""
        path = Path(path)
        name = "".join(c if c.isascii() and c.isalnum() or c in ".-_" else "_" for c in path.name).lstrip(".")[-100:]
        target, number = self.folder / "uploads" / (name or "file"), 1
        while target.exists():
            if filecmp.cmp(path, target, shallow=False):
                return target
            number += 1
            target = target.with_name(f"{number}_{name or 'file'}")
        with atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)
        return target


@contextmanager
def open_project(folder: Path, given: Sequence[str | Path] = ()) -> Iterator[Project]:
    """The project in ``folder``, which is made if it is not there; ``given`` are folders and files that may be read
    beside it. Raises UserError while another program works on it, and for a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--project {folder} is a file; name a folder")
    lock = folder / ".lock"
    if folder.is_dir() and not (folder / "project.json").exists() and any(path != lock for path in folder.iterdir()):
        raise UserError(f"--project {folder} holds other files and no project; name a new folder")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(lock, f"another studio works on {folder}; close it or name another --project"))
            for path in folder.rglob(".*.partial.*"):  # left by a program that was killed while writing
                path.unlink()
        except OSError as error:
            raise UserError(f"cannot write to --project {folder}: {error.strerror or error}") from error
        project = Project(folder, given)
        project.save()
        yield project
