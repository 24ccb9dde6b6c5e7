"""How is long work done while the page stays usable? One piece at a time, in a thread; it can be stopped."""

import copy
import hashlib
import json
import threading
import time
from array import array
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from colorizer.confidence import Confidence
from colorizer.predictor import Palette, Predictor, load_predictor
from config import FilmConfig, PredictorConfig
from editing.frame_reader import encode_jpeg
from editing.project import Found, Project
from editing.recolor import Change, Recolored
from film.analysis.first_pass import find_edited_boundaries
from film.analysis.plan import FilmPredictor
from film.io.planes import Planes
from film.io.thread_pool import prefetch
from film.io.video import DamageLog, VideoFile
from film.render.incremental import can_update
from film.render.rendering import RenderJob
from film.render.work_queue import WorkQueue
from utils import StreamSample, UserError

PICTURES = 2000  # at least, of a long film, that are kept while shots are found, spread evenly
SMALL = 240  # width of these
SCANNING = 0.2  # share of the time of coloring that shots are found in


class Stopped(Exception):
    """Somebody does not want the work to go on."""


@dataclass
class BackgroundTask:
    """One piece of work in the background, and how far it is."""

    title: str = ""
    done: float = 0.0  # share
    note: str = ""  # what it is at, for people
    error: str = ""  # why it failed, in one sentence
    began: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    running: bool = True

    def go_on(self) -> None:
        """Raises Stopped if it shall not."""
        if self.stop.is_set():
            raise Stopped

    def seconds_left(self) -> float | None:
        """By how long it took so far; None when that tells nothing yet."""
        spent = time.monotonic() - self.began
        return spent * (1 - self.done) / self.done if self.running and self.done > 0.02 and spent > 2 else None


class BackgroundRunner:
    """Does one piece of Work at a time in a thread of its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.work = BackgroundTask(running=False)
        self.thread: threading.Thread | None = None

    def start(self, title: str, run: Callable[[BackgroundTask], None]) -> BackgroundTask:
        """Begin ``run(work)``. Raises UserError while other work is running."""
        with self.lock:
            if self.work.running:
                raise UserError(f"{self.work.title} is still going on; wait for it or stop it")
            self.work = work = BackgroundTask(title)
        self.thread = threading.Thread(target=self._run, args=(work, run), name=title, daemon=True)
        self.thread.start()
        return work

    @staticmethod
    def _run(work: BackgroundTask, run: Callable[[BackgroundTask], None]) -> None:
        try:
            run(work)
            work.done = 1.0
        except Stopped:
            work.note = "stopped"
        except UserError as error:
            work.error = str(error)
        except BaseException as error:
            work.error = f"{work.title} failed by a fault of the program, {type(error).__name__}: {error}"
            raise
        finally:
            work.running = False

    def stop(self, wait: float = 0.0) -> None:
        """Ask the work to end, and wait for it for so many seconds."""
        self.work.stop.set()
        if self.thread is not None:
            self.thread.join(wait)


# ---------------------------------------------------------------------------------------------------------------------
# Finding shots


def find_shots(project: Project, work: BackgroundTask) -> None:
    """Find the shots of the film without coloring it: quickly, so that they can be seen and mended."""
    film = project.film
    if film is None:
        raise UserError("there is no film yet; choose one")
    pts, pictures = array("q"), StreamSample[bytes](PICTURES)

    def lumas():
        with closing(prefetch(film.read(), 8)) as frames:
            for time_, _, planes in frames:
                work.go_on()
                pts.append(time_)
                work.done = min(0.98, len(pts) / max(1, film.info.stated_frames))
                pictures.add(partial(small, planes))
                yield planes.luma_uint8(256, 256)

    def small(planes):
        height, width = planes.y.shape
        return encode_jpeg(planes.gray_uint8(max(1, round(height * SMALL / width)), SMALL), SMALL)

    starts = [0, *(boundary.end for boundary in find_edited_boundaries(lumas(), FilmConfig()))]
    if not pts:
        raise UserError(f"no frame of {film.path} can be decoded; choose another film")
    project.save_found(Found(pts, starts, pictures.held, pictures.stride))


# ---------------------------------------------------------------------------------------------------------------------
# Coloring


@dataclass
class WatchedPredictor(Predictor):
    """A Predictor that stops when its Work shall."""

    work: BackgroundTask = field(default_factory=BackgroundTask)

    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        self.work.go_on()
        return super().palette(labs)

    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence, np.ndarray]:
        self.work.go_on()
        return super().predict_with_embeddings(lightness, palette)


class WatchedFilm(VideoFile):
    """A film that tells its Work how far it was read at first, and stops when it shall."""

    def __init__(self, path: Path, work: BackgroundTask) -> None:
        super().__init__(path)
        self.work, self.seen = work, 0

    def read(self, begin: int | None = None,
             damage: DamageLog | None = None) -> Generator[tuple[int, int, Planes], None, None]:
        with closing(super().read(begin, damage)) as frames:
            for item in frames:
                self.work.go_on()
                self.seen += 1
                yield item


class PredictorCache:
    """The predictor of a project's checkpoint, which is loaded once, with the references of the moment."""

    def __init__(self, project: Project) -> None:
        self.project, self.lock = project, threading.Lock()
        self.loaded: tuple[Any, Predictor] | None = None
        self.last: tuple[Any, Predictor] | None = None

    def plain(self) -> Predictor:
        """The predictor without references. Raises UserError without a checkpoint."""
        path = self.project.checkpoint
        if path is None:
            raise UserError("there is no checkpoint yet; train one, or start the studio with --checkpoint")
        stat = path.stat()
        stamp = stat.st_ino, stat.st_size, stat.st_mtime_ns
        with self.lock:
            if self.loaded is None or self.loaded[0] != stamp:
                self.loaded = stamp, load_predictor(PredictorConfig(checkpoint=path))
            return self.loaded[1]

    def corrected(self, more: Mapping[int, np.ndarray] | None = None) -> Predictor:
        """The predictor with the references, as ``load_predictor`` makes it of the folder, and those of ``more``, see
        ``Project.reference_pictures``. The last one is kept: who remembers a frame has just asked what that changes."""
        plain, pictures = self.plain(), self.project.reference_pictures(more)
        if not pictures:
            return plain
        key = plain.identity, *(hashlib.sha256(picture.tobytes()).digest() for picture in pictures)
        with self.lock:
            if self.last is None or self.last[0] != key:
                predictor = replace(plain, colorizer=copy.deepcopy(plain.colorizer))
                predictor.add_references(pictures)
                self.last = key, predictor
            return self.last[1]


def film_config(project: Project, predictor: Predictor) -> FilmConfig:
    """How the film of a project is colored: as test.py does by default, with a map where there can be one."""
    facts = project.facts
    return FilmConfig(confidence=predictor.uses_spatial_memory, cut_at=tuple(facts.cut_at), join_at=tuple(facts.join_at))


def with_changes(project: Project, predictor: Predictor) -> FilmPredictor:
    """What paints the film of a project: its predictor, with the colors that are changed everywhere."""
    changes = [Change(*change) for change in project.facts.changes]
    return Recolored(predictor, changes) if changes else predictor


def color(project: Project, predictors: PredictorCache, work: BackgroundTask, frame: int | None = None) -> None:
    """Color the film of a project, with all that is remembered; of shots that change, that of the ``frame`` first."""
    film = project.film
    if film is None:
        raise UserError("there is no film yet; choose one")
    work.note = "reading the checkpoint"
    project.begin_coloring()
    predictor = predictors.corrected()
    watched = WatchedPredictor(**{f.name: getattr(predictor, f.name) for f in fields(Predictor)}, work=work)
    log = project.colored.with_name(f"{project.colored.stem}_shots.jsonl")
    log.unlink(missing_ok=True)
    film = WatchedFilm(film.path, work)
    threading.Thread(target=_watch, args=(work, log, film), daemon=True).start()
    config, changed = film_config(project, predictor), with_changes(project, watched)
    records = None if frame is None else project.records()
    first = [number for number, state in enumerate(records.states if records else ())  # a record unpacks its pictures
             if frame in range(state["start_frame"], state["end_frame"])]
    anew = not can_update(changed, film, project.colored, config)
    RenderJob(changed, film, project.colored, config, anew).run_as_owner(WorkQueue(first=first), project.save_records)


def _watch(work, log, film):
    """Tell how far the coloring is: by what is read while shots are found, then by the log of shots."""
    total = max(1, film.info.stated_frames)
    while work.running:
        if shots := log_lines(log):
            work.note = f"{len(shots)} shots colored"
            done = sum(shot["end_frame"] - shot["start_frame"] for shot in shots)
            work.done = SCANNING + (0.99 - SCANNING) * min(1, done / total)
        else:
            work.note, work.done = "finding shots", SCANNING * min(1, film.seen / total)
        time.sleep(0.2)


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log that is being written, dicts of plain values; [] before it is there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
