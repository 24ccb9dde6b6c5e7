"""Background jobs that detect the shots of a project's film and color it."""

import copy
import hashlib
import json
import threading
import time
from array import array
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colorizer.characters import read_characters
from colorizer.confidence import Confidence
from colorizer.predictor import Palette, Predictor, load_predictor
from colorizer.references import Reference
from colorizer.series_colors import learned_colors
from config import FilmConfig, PredictorConfig
from editing.background import BackgroundJob
from editing.frame_reader import encode_jpeg
from editing.project import Project
from editing.shot_preview import ShotPreview
from fileio.outputs import accompanying_path
from fileio.palettes import NamedColor
from film.analysis.film_analysis import find_edited_boundaries
from film.io.frame_index import luma_checksum
from film.io.planes import Planes
from film.io.thread_pool import prefetch
from film.io.video import DamageLog, VideoFile
from film.render.incremental import can_update
from film.render.rendering import RenderJob
from film.render.segments import segment_folder
from film.render.work_queue import WorkQueue
from utils import StreamSample, UserError

THUMBNAILS = 2000  # minimum number of evenly spaced thumbnails of a long film; larger: closer to any requested frame
THUMBNAIL_WIDTH = 240  # pixels
ANALYSIS_SHARE = 0.2  # part of the progress bar for the analysis of the film; the rest is for coloring


def find_shots(project: Project, job: BackgroundJob) -> ShotPreview:
    """Detect the shots of the film without coloring it; save and return a preview of them."""
    film = project.require_film()
    pts, checksums, thumbnails = array("q"), array("L"), StreamSample[bytes](THUMBNAILS)

    def lumas():
        with closing(prefetch(film.read(), 8)) as frames:
            for time_, _, planes in frames:
                job.check_canceled()
                pts.append(time_)
                checksums.append(luma_checksum(planes))
                job.progress = min(0.98, len(pts) / max(1, film.info.stated_frames))
                thumbnails.add(partial(thumbnail, planes))
                yield planes.luma_uint8(256, 256)

    def thumbnail(planes):
        height, width = planes.y.shape
        rows = max(1, round(height * THUMBNAIL_WIDTH / width))
        return encode_jpeg(planes.gray_uint8(rows, THUMBNAIL_WIDTH), THUMBNAIL_WIDTH)

    starts = [0, *(boundary.end for boundary in find_edited_boundaries(lumas(), FilmConfig()))]
    if not pts:
        raise UserError(f"cannot decode any frame of {film.path}; choose another film")
    preview = ShotPreview(pts, starts, thumbnails.held, thumbnails.stride, checksums)
    project.save_shot_preview(preview)
    return preview


@dataclass
class CancelablePredictor(Predictor):
    """A predictor that raises Canceled when its job is canceled."""

    job: BackgroundJob = field(default_factory=BackgroundJob)

    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette,
                                propagated: Callable[[int], np.ndarray] | None = None,
                                ) -> tuple[np.ndarray, Confidence, np.ndarray]:
        self.job.check_canceled()
        return super().predict_with_embeddings(lightness, palette, propagated)


class CancelableFilm(VideoFile):
    """A film that counts the frames that are read, and raises Canceled when its job is canceled."""

    def __init__(self, path: Path, job: BackgroundJob) -> None:
        super().__init__(path)
        self.job, self.frames_read = job, 0

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        with closing(super().read(begin, damage)) as frames:
            for item in frames:
                self.job.check_canceled()
                self.frames_read += 1
                yield item


class PredictorCache:
    """Caches the predictor of a project, without and with its character sheets, palette and references."""

    def __init__(self, project: Project) -> None:
        self.project, self.loading, self.lock = project, threading.Lock(), threading.RLock()
        self.stages: dict[str, tuple[Any, Predictor]] = {}  # name -> (key, the last predictor)

    def _stage(self, name, key, create):
        if self.stages.get(name, (None,))[0] != key:
            self.stages[name] = key, create()
        return self.stages[name][1]

    def without_references(self) -> Predictor:
        """Return the predictor of the checkpoint. Raises UserError without a checkpoint."""
        path = self.project.checkpoint
        if path is None:
            raise UserError("there is no checkpoint yet; train one, or start the studio with --checkpoint")
        with self.loading:
            return self._stage("checkpoint", _stamp(path), lambda: load_predictor(PredictorConfig(checkpoint=path)))

    def with_palette(self) -> Predictor:
        """Return the predictor with the character sheets and the palette of the project."""
        base, project = self.without_references(), self.project

        def add_characters():
            spatial = base.colorizer.spatial  # shared, since it is large and stays the same
            predictor = replace(base, colorizer=copy.deepcopy(base.colorizer, {id(spatial): spatial}))
            predictor.add_characters(read_characters(project.sheets.folder))
            return predictor

        def use_palette():
            predictor = replace(known)
            predictor.use_palettes(palettes)
            return predictor

        with self.lock:
            files, palettes = project.sheets.files(), project.palette.palettes()
            known = self._stage("characters", (base.identity, *map(_stamp, files)), add_characters) if files else base
            key = known.identity, json.dumps(project.palette.key(palettes))
            return self._stage("palette", key, use_palette) if palettes else known

    def with_references(self, extra: Reference | None = None) -> Predictor:
        """Return the predictor with all of the project, and with the reference ``extra``, whose name is its file.

        The last result is cached, since users preview the effect of a frame before they add it as a reference.
        """
        base, frames = self.with_palette(), self.project.painted_frames(extra)

        def add_references():
            predictor = replace(base, colorizer=copy.deepcopy(base.colorizer))
            predictor.add_references(frames)
            return predictor

        with self.lock:
            key = base.identity, *((hashlib.sha256(frame.picture.tobytes()).digest(), frame.name) for frame in frames)
            return self._stage("references", key, add_references) if frames else base

    def learned_colors(self) -> list[NamedColor]:
        """Return the colors that the checkpoint knows, and those of the character sheets, which it may not know yet."""
        base, sheets = self.without_references(), self.project.sheets
        characters = {each.digest: each for each in [*base.characters, *(
            each for name in sheets.names() for each in sheets.read(name))]}
        return learned_colors(base.colorizer, base.frame_names, characters.values())


def _stamp(path):
    """Return what changes with a file."""
    stat = path.stat()
    return path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns


def film_settings(project: Project, predictor: Predictor) -> FilmConfig:
    """Return a default FilmConfig with the cuts of a project."""
    return FilmConfig(confidence=predictor.uses_spatial_memory, cut_at=tuple(project.settings.cut_at),
                      join_at=tuple(project.settings.join_at))


def color_project(project: Project, predictors: PredictorCache, job: BackgroundJob, frame: int | None = None) -> None:
    """Color the film of a project; if ``frame`` is not None, the shot that contains it comes first."""
    film = CancelableFilm(project.require_film().path, job)
    job.message = "learning the characters" if project.sheets.files() else "loading the checkpoint"
    key = project.coloring_key()
    predictor = predictors.with_references()
    cancelable = CancelablePredictor(**{f.name: getattr(predictor, f.name) for f in fields(Predictor)}, job=job)
    log_path(project).unlink(missing_ok=True)
    threading.Thread(target=_report_progress, args=(job, project, film), daemon=True).start()
    config = film_settings(project, cancelable)
    records = None if frame is None else project.records()
    first = [index for index, state in enumerate(records.states if records else ())
             if frame in range(state["start_frame"], state["end_frame"])]
    overwrite = not can_update(cancelable, film, project.colored, config)
    RenderJob(cancelable, film, project.colored, config, overwrite).run_as_owner(
        WorkQueue(first=first), lambda records: project.save_records(records, key))


def _report_progress(job, project, film):
    """Update the progress of a job from the number of frames read, or from the log once it contains a shot."""
    total = max(1, film.info.stated_frames)
    while job.running:
        if shots := read_log(log_path(project)):
            job.message = f"{len(shots)} shots colored"
            done = sum(shot["end_frame"] - shot["start_frame"] for shot in shots)
            job.progress = ANALYSIS_SHARE + (0.99 - ANALYSIS_SHARE) * min(1, done / total)
        else:
            job.message, job.progress = "finding shots", ANALYSIS_SHARE * min(1, film.frames_read / total)
        time.sleep(0.2)


def log_path(project: Project) -> Path:
    """Return the path of the log that gets a line for each colored shot."""
    return accompanying_path(project.colored, "shots.jsonl")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSONL log that may still be written; [] if it does not exist."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


class FinishedShot(NamedTuple):
    """A colored shot of an incomplete film."""

    start: int  # first frame
    end: int  # exclusive
    path: Path  # of its segment


def finished_shots(project: Project) -> list[FinishedShot]:
    """Return the shots that the current coloring job has finished."""
    folder = segment_folder(project.colored)
    shots = [FinishedShot(line["start_frame"], line["end_frame"], folder / f"{line['index']:06d}.segment")
             for line in read_log(log_path(project))]
    return [shot for shot in shots if shot.path.exists()]
