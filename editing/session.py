"""The editing session of a project: the state that all open pages share, and the jobs that they start."""

import base64
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from colorizer.characters import Character
from editing.background import BackgroundJob, JobRunner
from editing.coloring_job import FinishedShot, PredictorCache, color_project, find_shots, finished_shots, read_log
from editing.frame_reader import encode_jpeg
from editing.palette_store import PaletteStore
from editing.project import Project
from editing.training_job import preview_path, train_project
from fileio.images import IMAGE_SUFFIXES, read_image
from utils import UserError

CANCEL_TIMEOUT = 60  # seconds to wait for a canceled job to end


def data_uri(data: bytes, media_type: str = "image/jpeg") -> str:
    """Return a file as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def thumbnail_uri(rgb: np.ndarray, width: int = 192) -> str:
    """Return RGB uint8 (H, W, 3) as the data URI of a JPEG, reduced to ``width`` pixels."""
    return data_uri(encode_jpeg(rgb, width, 80))


def character_uri(character: Character, side: int = 64) -> str:
    """Return a picture of a character on a neutral background as a data URI."""
    height, width = character.mask.shape
    rgb = np.full((max(height, width),) * 2 + (3,), 128, np.uint8)
    top, left = (len(rgb) - height) // 2, (len(rgb) - width) // 2
    rgb[top:top + height, left:left + width][character.mask] = character.rgb[character.mask]
    return thumbnail_uri(rgb, side)


@lru_cache(maxsize=1)
def _samples_uri(path, modified):
    """Return the training samples as a data URI, which is cached until the time ``modified`` changes."""
    return data_uri(encode_jpeg(read_image(path), 1200, 85))


def check_integer(name: str, value: Any, minimum: int = 0) -> int:
    """Return ``value``, which a page has sent. Raises UserError unless it is an integer of at least ``minimum``."""
    if type(value) is not int or value < minimum:
        raise UserError(f"{name} is {value!r}; pass an integer of at least {minimum}")
    return value


class EditingSession:
    """An open project and its background job. All methods are thread-safe."""

    def __init__(self, project: Project) -> None:
        self.project, self.jobs, self.predictors = project, JobRunner(), PredictorCache(project)
        self.lock = threading.RLock()  # held while the project is changed
        self.version = 1  # grows whenever pages have to reload the shots

    def start_job(self, title: str, run: Callable[[BackgroundJob], None]) -> None:
        """Start ``run(job)`` in the background. Raises UserError while another job is running."""
        def run_and_notify(job):
            try:
                run(job)
            finally:
                self.version += 1

        self.jobs.start(title, run_and_notify)
        self.version += 1

    def start(self) -> None:
        """Start what the project needs next: shot detection, coloring or nothing."""
        if self.project.film is None:
            return
        if self.project.shot_preview() is None:
            self.start_job("finding shots", self._find_shots_and_color)
        elif self.project.checkpoint and not self.project.is_current():
            self.color()
        elif self.project.checkpoint:  # load the checkpoint before the page needs it
            threading.Thread(target=self.predictors.without_references, daemon=True).start()

    def _find_shots_and_color(self, job):
        find_shots(self.project, job)
        if self.project.checkpoint:
            self._color_next(job)

    def _color_next(self, job):
        self.version += 1
        job.begin_stage("coloring")
        color_project(self.project, self.predictors, job)

    def color(self, frame: int | None = None) -> None:
        """Start to color the film; if ``frame`` is not None, its shot comes first."""
        self.start_job("coloring", lambda job: color_project(self.project, self.predictors, job, frame))

    def cancel(self) -> None:
        """Cancel the current job."""
        self.jobs.cancel()

    def train(self, sources: Sequence[Path], minutes: float) -> None:
        """Start a job that trains on one colored film or on colored pictures, and on the character sheets, and then
        colors the project's film."""
        if not sources and not self.project.sheets.files():
            raise UserError("there is no training material; choose a colored film, pictures or character sheets")
        if len(sources) > 1 and any(path.suffix.lower() not in IMAGE_SUFFIXES for path in sources):
            raise UserError("the training material mixes films or films and pictures; choose one film or only pictures")

        def run(job):
            train_project(self.project, list(sources), minutes, job)
            if self.project.film is not None:
                job.cancel.clear()  # color with the result even if the training run was stopped early
                self._color_next(job)

        if self.jobs.job.running and self.jobs.job.title == "finding shots":  # the training job finds them
            self.jobs.cancel(CANCEL_TIMEOUT)
        self.start_job("training", run)

    def training_progress(self) -> dict[str, Any]:
        """Return the validation errors (CIEDE2000) of the training run, and as data URIs or None its samples and the
        shot that is colored during training."""
        folder = self.project.folder / "training"
        samples = folder / "samples" / "last.png"
        errors = [line["val_ciede2000"] for line in read_log(folder / "log.jsonl") if "val_ciede2000" in line]
        uri = _samples_uri(samples, samples.stat().st_mtime) if samples.exists() else None
        preview = preview_path(self.project)
        return {"samples": uri, "errors": errors, "preview":
                data_uri(preview.read_bytes(), "video/mp4") if preview.exists() else None}

    def finished_shots(self) -> list[FinishedShot]:
        """Return the shots that the current job has already colored."""
        return finished_shots(self.project) if self.jobs.job.running and self.project.settings.film else []

    def status(self) -> dict[str, Any]:
        """Return the state of the project and its job."""
        job, project = self.jobs.job, self.project
        left = job.seconds_left()
        outdated = project.checkpoint is not None and bool(project.settings.film) and not project.is_current()
        return {"version": self.version, "running": job.running, "title": job.title, "progress": round(job.progress, 3),
                "message": job.message, "seconds_left": None if left is None else round(left), "error": job.error,
                "finished": [shot.start for shot in self.finished_shots()], "film": Path(project.settings.film).name,
                "checkpoint": project.checkpoint is not None, "outdated": outdated}

    def choose_film(self, path: str | Path) -> None:
        """Set the film; start shot detection or coloring unless a job is running."""
        with self.lock:
            self.project.choose_film(path)
            self.version += 1
            if not self.jobs.job.running:
                self.start()

    def split_shot(self, frame: int) -> None:
        """Start a shot at ``frame``."""
        with self.lock:
            self.project.split_shot(check_integer("the frame", frame))
        self.version += 1

    def join_shot(self, frame: int) -> None:
        """Join the shot that starts at ``frame`` with the previous one."""
        with self.lock:
            self.project.join_shot(check_integer("the frame", frame))
        self.version += 1

    def add_reference(self, frame: int, rgb: np.ndarray, scope: str) -> None:
        """Add a colored frame, RGB uint8 (H, W, 3), to the references and color the film again, its shot first."""
        with self.lock:
            self.project.add_reference(frame, rgb, scope)
            self._color_again(frame)

    def remove_reference(self, file: str) -> None:
        """Remove a reference and color the film again."""
        with self.lock:
            self.project.remove_reference(str(file))
            self._color_again()

    def edit_palette(self, edit: Callable[[PaletteStore], None], frame: int | None = None) -> None:
        """Call ``edit`` with the palette of the project, and color the film again if it changes colors: the shot of
        ``frame``, if it is not None, first."""
        with self.lock:
            key = self.project.coloring_key()
            edit(self.project.palette)
            self._color_again(frame, self.project.coloring_key() != key)

    def add_characters(self, sheets: Mapping[str, Sequence[Path]]) -> None:
        """Add pictures of characters, see ``CharacterSheets.add``; a trained checkpoint then recognizes them."""
        with self.lock:
            self.project.sheets.add(sheets)
            self._color_again()

    def remove_character(self, name: str) -> None:
        """Remove the pictures of a character. A checkpoint that was trained with them keeps it."""
        with self.lock:
            self.project.sheets.remove(str(name))
            self._color_again()

    def list_characters(self) -> dict[str, Any]:
        """Return the names and thumbnails of the characters with sheets."""
        sheets = self.project.sheets
        return {"characters": [{"name": name, "count": len(sheets.files(name)), "picture": character_uri(
            sheets.read(name)[0])} for name in sheets.names() if sheets.files(name)]}

    def _color_again(self, frame=None, has_changed=True):
        """Cancel a running coloring job, and color the changed project unless a different job is running."""
        self.version += 1
        if not has_changed:
            return
        if self.jobs.job.running and self.jobs.job.title == "coloring":
            self.jobs.cancel(CANCEL_TIMEOUT)
        if self.project.checkpoint and not self.jobs.job.running:
            self.color(frame)
