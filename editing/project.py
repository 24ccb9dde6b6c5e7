"""A project: a folder with all data of one film that is colored and corrected.

    project.json    film, edited cuts and references (``editing/project_settings.py``)
    checkpoint.pt   the networks
    references/     frames colored by the user, as read by ``test.py --references``
    characters/     character sheets, as read by ``--characters`` of ``train.py`` and ``test.py``
    palette/        the palette, as read by ``test.py --palette``; earlier_palettes/: its earlier versions
    removed/        references and character sheets that were removed
    corrections/    edits of single frames
    colored/        the colored film and its accompanying files
    records.pt      the records of the colored shots; shots.pt: the shots that were detected before coloring
    uploads/        files that were sent to the page
    dataset/, training/   dataset and checkpoints of a training run started on the page
    preview/        checkpoint of a short training run, and the shot that it colored

All files are written atomically. A lock prevents two processes from opening the same project.
"""

import filecmp
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from colorizer.adaptation.film_response import FilmResponse
from colorizer.memory.frame_archive import open_archive
from colorizer.metrics import has_color
from editing.allowed_paths import AllowedPaths
from editing.character_sheets import CharacterSheets, copy_into
from editing.palette_store import PaletteStore
from colorizer.references import Reference as PaintedFrame
from colorizer.scopes import WHOLE_FILM, list_scopes, shot_numbers
from editing.project_settings import ProjectSettings, Reference, reference_path
from editing.shot_preview import ShotPreview
from fileio.atomic import atomic_write, exclusive_lock
from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.images import IMAGE_SUFFIXES, read_image, write_image
from film.io.mux import OUTPUT_SUFFIXES
from film.io.video import VideoFile, is_video
from film.report.records import Records
from utils import UserError, list_files, natural_key

T = TypeVar("T")


def reference_file(frame: int, scope: str) -> str:
    """Return the path in references/ of the reference for a frame. Raises UserError for an invalid scope."""
    shot_numbers(scope)  # checks it
    return reference_path(scope, f"frame_{frame:06d}.png")


class Project:
    """An open project; use ``open_project`` to create one."""

    def __init__(self, folder: Path, readable: Sequence[str | Path] = ()) -> None:
        self.folder = folder.resolve()
        self.settings = ProjectSettings()
        self.loaded: dict[str, tuple[Any, dict[str, Any]]] = {}  # file name -> (stamp, content)
        path = self.folder / "project.json"
        if path.exists():
            try:
                self.settings = ProjectSettings.from_json(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError, KeyError, AttributeError, UserError) as error:
                raise UserError(f"{path} is not a project of this version ({error}); repair it or choose another "
                                "--project") from error
        self.allowed_paths = AllowedPaths([self.folder, *readable])
        self.palette, self.sheets = PaletteStore(self.folder), CharacterSheets(self.folder)

    def save(self) -> None:
        with atomic_write(self.folder / "project.json") as temporary:
            temporary.write_text(self.settings.to_json(), encoding="utf-8")

    @property
    def film(self) -> VideoFile | None:
        """The grayscale film; None before one is chosen. Raises UserError if the file no longer exists."""
        if not self.settings.film:
            return None
        if not Path(self.settings.film).is_file():
            raise UserError(f"cannot find the film {self.settings.film} of the project {self.folder}; restore it")
        return VideoFile(self.settings.film)

    def require_film(self) -> VideoFile:
        """Return the grayscale film. Raises UserError if there is none."""
        if (film := self.film) is None:
            raise UserError("there is no film yet; choose one")
        return film

    def choose_film(self, path: str | Path) -> None:
        """Set the film. Raises UserError if it is not a readable video or the project has a different film."""
        path = self.allowed_paths.check(path)
        if self.settings.film and Path(self.settings.film) != path:
            raise UserError(f"the project {self.folder} is for the film {Path(self.settings.film).name}; choose "
                            "a different --project for a different film")
        if not is_video(path):
            raise UserError(f"FFmpeg cannot read {path.name} as a video; choose another file")
        self.settings.film = str(path)
        self.save()

    @property
    def checkpoint(self) -> Path | None:
        """Path of the checkpoint, None before there is one."""
        path = self.folder / "checkpoint.pt"
        return path if path.exists() else None

    def add_checkpoint(self, path: str | Path, replace: bool = False) -> None:
        """Copy a checkpoint into the project.

        Raises UserError if it is damaged, or if the project has a different one and ``replace`` is False.
        """
        path, target = Path(path), self.folder / "checkpoint.pt"
        if target.exists() and not replace:
            if path.resolve() == target or path.is_file() and filecmp.cmp(path, target, shallow=False):
                return
            raise UserError(f"the project {self.folder} has a different checkpoint; omit --checkpoint or choose a "
                            "different --project")
        content = load_checkpoint(path)
        if (archive := open_archive(path, content)) is not None:
            archive.copy_to(self.folder)
        with atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)

    @property
    def colored(self) -> Path:
        """Path of the colored film, which may not exist yet."""
        film = Path(self.settings.film)
        return self.folder / "colored" / (
            film.stem + (film.suffix if film.suffix.lower() in OUTPUT_SUFFIXES else ".mkv"))

    def split_shot(self, frame: int) -> None:
        """Start a shot at ``frame``."""
        self._edit_cut(frame, self.settings.cut_at, self.settings.join_at)

    def join_shot(self, frame: int) -> None:
        """Join the shot that starts at ``frame`` with the previous one."""
        self._edit_cut(frame, self.settings.join_at, self.settings.cut_at)

    def _edit_cut(self, frame, added, opposite):
        if frame < 1:
            raise UserError("the cut before the first shot of the film cannot be changed; choose a later frame")
        if frame in opposite:
            opposite.remove(frame)
        elif frame not in added:
            added.append(frame)
            added.sort()
        self.save()

    @property
    def references(self) -> Path:
        return self.folder / "references"

    def add_reference(self, frame: int, rgb: np.ndarray, scope: str = WHOLE_FILM) -> Reference:
        """Store a colored frame, RGB uint8 (H, W, 3), as the reference for ``frame``, and return the reference.

        An earlier reference for the frame is moved to removed/. Raises UserError if the colored frame has no color, or
        for an invalid scope.
        """
        if not has_color(rgb):
            raise UserError("the frame has no color; color it first")
        for earlier in [each for each in self.settings.references if each.frame == frame]:
            self.remove_reference(earlier.file)
        reference = Reference(reference_file(frame, scope), frame)
        write_image(self.references / reference.file, rgb)
        self.settings.references.append(reference)
        self.save()
        return reference

    def remove_reference(self, file: str) -> None:
        """Move a reference to removed/. Raises UserError if it does not exist."""
        reference = next((each for each in self.settings.references if each.file == file), None)
        if reference is None:
            raise UserError(f"there is no reference {Path(file).name}; another page may have removed it")
        removed = self.folder / "removed"
        removed.mkdir(exist_ok=True)
        stem, number = Path(file).stem, 1
        while (removed / f"{stem}_{number}.png").exists():
            number += 1
        with suppress(FileNotFoundError):  # the user may have deleted it
            os.replace(self.references / file, removed / f"{stem}_{number}.png")
        self.settings.references.remove(reference)
        self.save()

    def painted_frames(self, extra: PaintedFrame | None = None) -> list[PaintedFrame]:
        """Return the references in the order of ``colorizer.references.read_references``.

        ``extra`` is an additional one, which replaces that for the same frame. Pictures without color are left out.
        """
        folder, frames, replaced = self.references, [], Path(extra.name).name if extra else None
        for scope in list_scopes(folder) if folder.is_dir() else ():
            frames += [PaintedFrame(read_image(path), scope, reference_path(scope, path.name))
                       for path in list_files(folder / scope, IMAGE_SUFFIXES) if path.name != replaced]
        frames += [extra] if extra else []
        return sorted((each for each in frames if has_color(each.picture)),
                      key=lambda each: (natural_key(each.scope), natural_key(each.name)))

    def coloring_key(self) -> str:
        """Return a text that identifies the cuts, the checkpoint, the references, the character sheets and the palette
        without its names."""
        files = [self.checkpoint, *(self.references / each.file for each in self.settings.references),
                 *self.sheets.files()]
        stamps = [[str(path.relative_to(self.folder)), path.stat().st_size, path.stat().st_mtime_ns]
                  for path in files if path and path.exists()]
        palette = self.palette.key(self.palette.palettes())
        return json.dumps([self.settings.cut_at, self.settings.join_at, palette, sorted(stamps)])

    def is_current(self) -> bool:
        """Return whether the film was colored with the current ``coloring_key``."""
        path = self.folder / "records.pt"
        return path.exists() and self.colored.exists() and self._read(path).get("key") == self.coloring_key()

    def save_records(self, records: Records, key: str) -> None:
        """Save the records of the film, which was colored with the ``coloring_key`` ``key``."""
        response = records.response and records.response.state()
        save_checkpoint(self.folder / "records.pt", {
            "film": self.settings.film, "pts": torch.tensor(records.pts, dtype=torch.int64), "response": response,
            "records": records.states, "key": key})

    def records(self) -> Records | None:
        """Return the records of the colored film, None before it is colored. Raises UserError for a damaged file."""
        def create(content):
            response = content["response"] and FilmResponse.from_state(content["response"])
            pts = array("q", content["pts"].tolist())
            return Records(pts, response, content["records"])

        return self._load("records.pt", create) if self.colored.exists() else None

    def save_shot_preview(self, preview: ShotPreview) -> None:
        save_checkpoint(self.folder / "shots.pt", {"film": self.settings.film, **preview.state()})

    def shot_preview(self) -> ShotPreview | None:
        """Return the detected shots, None before the film is analyzed. Raises UserError for a damaged file."""
        return self._load("shots.pt", ShotPreview.from_state)

    def _load(self, name: str, create: Callable[[dict[str, Any]], T]) -> T | None:
        """Return ``create(content)`` for a file of the project; None if it is missing or belongs to another film."""
        path = self.folder / name
        if not path.exists():
            return None
        content = self._read(path)
        try:
            return create(content) if content["film"] == self.settings.film else None
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged; remove it and start the studio again") from error

    def _read(self, path):
        """Return the content of a checkpoint file, which is cached until the file changes."""
        stat = path.stat()
        stamp = stat.st_ino, stat.st_mtime_ns
        if self.loaded.get(path.name, (None,))[0] != stamp:
            self.loaded[path.name] = stamp, load_checkpoint(path)
        return self.loaded[path.name][1]

    def add_upload(self, path: str | Path) -> Path:
        """Copy an uploaded file into uploads/ and return the new path, see ``copy_into``."""
        return copy_into(self.folder / "uploads", Path(path))


@contextmanager
def open_project(folder: Path, readable: Sequence[str | Path] = ()) -> Iterator[Project]:
    """Open the project in ``folder``, or create it; ``readable`` are further folders and files that may be read.

    Raises UserError if another process has the project open, or if ``folder`` is not empty but holds no project.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--project {folder} is a file; choose a folder")
    lock = folder / ".lock"
    if folder.is_dir() and not (folder / "project.json").exists() and any(path != lock for path in folder.iterdir()):
        raise UserError(f"--project {folder} contains files but no project; choose a new folder")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(
                lock, f"another studio uses {folder}; close it or choose another --project"))
            for path in folder.rglob(".*.partial.*"):  # left by a process that was killed while writing
                path.unlink()
        except OSError as error:
            raise UserError(f"cannot write to --project {folder}: {error.strerror or error}") from error
        project = Project(folder, readable)
        project.save()
        yield project
