"""What may a page ask of a project? Its shots, frames and colors; each correction, and what follows from it."""

import base64
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from colorizer.predictor import Predictor
from editing.frame_editor import FrameEditor
from editing.frame_reader import FrameReader, encode_jpeg, read_timestamps, write_clip
from editing.jobs import (
    BackgroundRunner, BackgroundTask, PredictorCache, color, film_config, find_shots, log_lines, with_changes)
from editing.palette import extract_palette
from editing.project import AllowedPaths, Project
from editing.training_job import learn
from fileio.images import IMAGE_SUFFIXES, read_image
from film.io.video import VideoFile
from film.render.incremental import find_changed_shots
from film.render.rendering import confidence_video_path
from film.render.segments import segment_folder
from film.report.memory_thumbnails import memory_thumbnails
from film.report.suggestions import suggest_frames
from utils import UserError, evenly_spaced

DOUBTFUL = 0.5  # a shot of which less is known is marked
SUGGESTED = 10  # shots to color next
SOURCES = 1024  # frames in memory to pick colors from, at most
WIDEST = 1920  # pixels of a frame on the page


def picture(data: bytes) -> str:
    """A JPEG as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _small(rgb, width=192):
    return picture(encode_jpeg(rgb, width, 80))


def _whole(name, value, least=0):
    """A whole number from the page. Raises UserError for anything else."""
    if type(value) is not int or value < least:
        raise UserError(f"{name} is {value!r}, and must be a whole number of at least {least}")
    return value


class EditingSession:
    """A project on a page: answers what the page asks, and starts what it wants to be done."""

    def __init__(self, project: Project) -> None:
        self.project, self.background, self.predictors = project, BackgroundRunner(), PredictorCache(project)
        self.lock, self.counting, self.changing = threading.Lock(), threading.Lock(), threading.RLock()
        self.version = 1  # grows whenever the page shall look again
        self.films: dict[str, tuple[Any, FrameReader]] = {}
        self.opened: tuple[Any, FrameEditor] | None = None
        self.swatches: tuple[str, list[dict[str, str]]] | None = None
        self.sample: tuple[float, str] = (0.0, "")
        self.known_sources: tuple[Any, Mapping[int, np.ndarray], dict[int, str]] | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # Work

    def begin(self, title: str, run: Callable[[BackgroundTask], None]) -> None:
        """Start ``run(work)`` in the background; afterwards the page looks again."""
        def and_tell(work):
            try:
                run(work)
            finally:
                self.version += 1

        self.background.start(title, and_tell)
        self.version += 1

    def color(self, frame: int | None = None) -> None:
        """Color the film with all that is remembered, in the background, the shot of ``frame`` first."""
        self.begin("coloring", lambda work: color(self.project, self.predictors, work, frame))

    def open(self) -> None:
        """Do what is to be done first: find the shots, or color."""
        if self.project.film is None:
            return
        if self.project.found() is None:
            self.begin("finding shots", self._find_and_color)
        elif self.project.checkpoint and not self.project.is_current():
            self.color()
        elif self.project.checkpoint:  # so that what is asked of the predictor first is answered soon
            threading.Thread(target=self.predictors.plain, daemon=True).start()

    def _find_and_color(self, work):
        find_shots(self.project, work)
        if self.project.checkpoint:
            self.version += 1
            work.title, work.done = "coloring", 0.0
            color(self.project, self.predictors, work)

    def status(self) -> dict[str, Any]:
        """How it stands; asked for every second."""
        work, project = self.background.work, self.project
        left = work.seconds_left()
        return {"version": self.version, "running": work.running, "title": work.title, "done": round(work.done, 3),
                "note": work.note, "left": None if left is None else round(left), "problem": work.error,
                "fresh": [each["start"] for each in self._fresh()], "film": Path(project.facts.film).name,
                "checkpoint": project.checkpoint is not None,
                "stale": project.checkpoint is not None and bool(project.facts.film) and not project.is_current(),
                "colored": project.colored.exists() if project.facts.film else False}

    def stop(self) -> dict[str, Any]:
        self.background.stop()
        return {}

    # -----------------------------------------------------------------------------------------------------------------
    # Look

    def shots(self) -> dict[str, Any]:
        """The shots of the film, with their pictures: as it is colored, or as they were found."""
        project, found = self.project, self.project.found()
        records = project.records()
        if records is None or found and [r.start_frame for r in records] != [s for s, _ in found.shots(project.facts)]:
            return {"colored": False, "shots": self._found_shots(found) if found else []}
        ranks = {suggestion.shot.index: rank for rank, suggestion in
                 enumerate(suggest_frames(records, SUGGESTED), 1)}
        shots = []
        for record in records:
            sure = None if record.left_unchanged or not np.isfinite(record.confidence) else round(record.confidence, 3)
            shots.append({"index": record.index, "start": record.start_frame, "end": record.end_frame,
                          "middle": record.middle, "time": round(record.start_time, 3),
                          "seconds": round(record.end_time - record.start_time, 3), "sure": sure,
                          "doubtful": sure is not None and sure < DOUBTFUL, "next": ranks.get(record.index, 0),
                          "picture": _small(record.result)})
        return {"colored": True, "shots": shots}

    def _found_shots(self, found):
        base = VideoFile(self.project.facts.film).info.time_base
        return [{"index": index, "start": start, "end": end, "middle": (start + end) // 2,
                 "time": round(float(found.pts[start] * base), 3),
                 "seconds": round(float((found.pts[end - 1] - found.pts[start]) * base), 3), "sure": None,
                 "doubtful": False, "next": 0, "picture": picture(found.picture((start + end) // 2))}
                for index, (start, end) in enumerate(found.shots(self.project.facts))]

    def _frames(self, kind):
        """The Frames of the gray film, of the colored one or of its map; None if it is not there."""
        project = self.project
        if kind == "gray":
            film, found = project.film, project.found()
            if film is None or found is None:
                return None
            stamp, make = str(film), lambda: FrameReader(film, found.pts)
        else:
            path = {"colored": project.colored, "map": confidence_video_path(project.colored)}[kind]
            if not project.facts.film or not path.exists():
                return None
            stat = path.stat()
            stamp, make = [stat.st_ino, stat.st_mtime_ns], lambda: FrameReader(VideoFile(path), read_timestamps(path))
        with self.lock:
            if kind not in self.films or self.films[kind][0] != stamp:
                self.films[kind] = stamp, make()
            return self.films[kind][1]

    def _planes(self, kind, index):
        """The planes of a frame of ``_frames``; a shot that is colored anew is seen before the film is whole. None if
        there is none."""
        if kind == "colored":
            for each in self._fresh():
                if each["start"] <= index < each["end"]:
                    return FrameReader(VideoFile(each["path"]), read_timestamps(each["path"])).read(index - each["start"])
        frames = self._frames(kind)
        return frames and frames.read(index)

    def _fresh(self):
        """The shots that the coloring of now has finished: their frames and the files that hold them."""
        project = self.project
        if not (self.background.work.running and project.facts.film):
            return []
        log = project.colored.with_name(f"{project.colored.stem}_shots.jsonl")
        shots = [{"start": line["start_frame"], "end": line["end_frame"],
                  "path": segment_folder(project.colored) / f"{line['index']:06d}.segment"} for line in log_lines(log)]
        return [shot for shot in shots if shot["path"].exists()]

    def gray(self, frame: int) -> np.ndarray:
        """A frame of the gray film, RGB uint8 (H, W, 3). Raises UserError where there is no film."""
        planes = self._planes("gray", frame)
        if planes is None:
            raise UserError("there is no film yet, or its shots are not found; choose one")
        return planes.gray_uint8(*planes.y.shape)

    def frame(self, index: int, width: int, kinds: list[str]) -> dict[str, Any]:
        """A frame as pictures, at most ``width`` pixels wide: of ``kinds``, "gray", "colored" and "map", those that
        there are."""
        index, width = _whole("the frame", index), min(WIDEST, _whole("the width", width, 16))
        answer: dict[str, Any] = {"index": index}
        for kind in kinds:
            if (planes := self._planes(kind, index)) is not None:
                rgb = planes.gray_uint8(*planes.y.shape) if kind == "gray" else planes.rgb_uint8()
                answer[kind] = picture(encode_jpeg(rgb, width))
        return answer

    def clip(self, start: int, end: int) -> dict[str, Any]:
        """Frames [start, end) of the film as a small film that a browser plays."""
        start, end = _whole("the first frame", start), _whole("the last frame", end, 1)
        path = self.project.colored if self.project.facts.film else Path()
        if not path.exists():
            path = Path(self.project.facts.film)
        for each in self._fresh():
            if each["start"] == start and each["end"] == end:
                path, start, end = each["path"], 0, end - start
        if not path.is_file() or end <= start or end - start > 20000:
            raise UserError("there is no such shot to be played; load the page again")
        with tempfile.TemporaryDirectory() as folder:
            write_clip(path, start, end, Path(folder, "clip.mp4"))
            data = Path(folder, "clip.mp4").read_bytes()
        return {"film": f"data:video/mp4;base64,{base64.b64encode(data).decode()}"}

    def sources(self, shot: int) -> dict[str, Any]:
        """The frames in memory that the colors of a shot came from, best first."""
        records = self.project.records()
        if records is None or not 0 <= _whole("the shot", shot) < len(records):
            return {"sources": []}
        record, predictor = records[shot], self.predictors.plain()
        return {"sources": [{"name": predictor.frame_names.get(slot, f"frame {slot}"), "score": round(score, 3),
                             "picture": self._source_picture(predictor, slot)}
                            for slot, score in zip(record.slot_ids, record.slot_scores, strict=True)]}

    def _source_picture(self, predictor: Predictor, i: int) -> str:
        """The picture of the frame ``i`` in memory, made when it is first asked for; "" where there is none."""
        pictures, small = self._sources(predictor)
        if i not in small and i in pictures:
            small[i] = _small(pictures[i], 128)
        return small.get(i, "")

    def _sources(self, predictor):
        """The pictures of the frames in memory by their ids, and the small ones that were made of them."""
        stamp = predictor.identity, self.version
        if self.known_sources is None or self.known_sources[0] != stamp:
            self.known_sources = stamp, memory_thumbnails(predictor.colorizer) if predictor.uses_memory else {}, {}
        return self.known_sources[1:]

    def split(self, frame: int) -> dict[str, Any]:
        with self.changing:
            self.project.split(_whole("the frame", frame))
        self.version += 1
        return {}

    def join(self, frame: int) -> dict[str, Any]:
        with self.changing:
            self.project.join(_whole("the frame", frame))
        self.version += 1
        return {}

    def color_again(self) -> dict[str, Any]:
        self.color()
        return {}

    # -----------------------------------------------------------------------------------------------------------------
    # Correct

    def easel(self, frame: int) -> FrameEditor:
        """The Easel of a frame. Raises UserError where the film is not colored."""
        frame = _whole("the frame", frame)
        stamp = frame, self.colored_at()
        with self.changing:
            if self.opened is None or self.opened[0] != stamp:
                machine = self._planes("colored", frame)
                if machine is None:
                    raise UserError("the film is not colored yet; wait for it, then correct")
                path = self.project.folder / "corrections" / f"frame_{frame:06d}.json"
                self.opened = stamp, FrameEditor(path, self.gray(frame), machine.picture())
                threading.Thread(target=self.opened[1].prepare, daemon=True).start()
            return self.opened[1]

    def colored_at(self) -> int:
        """When the film was colored last, in ns; 0 before."""
        return self.project.colored.stat().st_mtime_ns if self.project.colored.exists() else 0

    def _show(self, frame, easel):
        rgb, edits = easel.picture(), easel.correction
        return {"frame": frame, "picture": picture(encode_jpeg(rgb, WIDEST, 92)), "width": rgb.shape[1],
                "height": rgb.shape[0], "undo": bool(edits.done), "redo": bool(edits.undone),
                "changed": bool(edits.layers()), "edits": len(edits.done)}

    def hand_open(self, frame: int) -> dict[str, Any]:
        """A frame as it is corrected by now, and what can be undone."""
        return self._show(frame, self.easel(frame))

    def hand_act(self, frame: int, **action: Any) -> dict[str, Any]:
        """Do one thing to a frame, see ``Easel.act``."""
        easel = self.easel(frame)
        with self.changing:
            easel.edit(**action)
            return self._show(frame, easel)

    def hand_step(self, frame: int, name: str) -> dict[str, Any]:
        """"undo", "redo" or "reset" what was done to a frame."""
        easel = self.easel(frame)
        with self.changing:
            easel.edit(name)
            return self._show(frame, easel)

    def hand_remember(self, frame: int) -> dict[str, Any]:
        """Remember a frame as it is corrected."""
        self.remember(frame, self.easel(frame).picture())
        return {}

    def hand_save(self, frame: int) -> dict[str, Any]:
        """A frame in gray as a PNG, to be painted in another program."""
        _, data = cv2.imencode(".png", self.gray(_whole("the frame", frame)))  # gray, so that RGB is BGR
        return {"picture": f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"}

    def hand_painted(self, frame: int, path: str) -> dict[str, Any]:
        """Remember a frame that was painted in another program and sent to the page."""
        self.remember(_whole("the frame", frame), read_image(AllowedPaths([self.project.folder / "page"]).check(path)))
        return {}

    def touched(self, frame: int) -> dict[str, Any]:
        """Which shots change when the frame is remembered as it is corrected now, as a sentence."""
        project, rgb = self.project, self.easel(frame).picture()
        if self.background.work.running or not project.is_current() or project.film is None:
            return {"told": "The film is being colored, or changed since; which shots this changes is known after it."}
        predictor = self.predictors.corrected({frame: rgb})
        shots = find_changed_shots(with_changes(project, predictor), project.film, project.colored, film_config(project, predictor))
        if shots is None:
            return {"told": "It will color the whole film again."}
        names = ", ".join(str(number + 1) for number in shots[:20]) + (", \u2026" if len(shots) > 20 else "")
        count = len(project.records() or [])
        return {"told": f"It will color {len(shots)} of {count} shots again: {names}." if shots else
                "It will change no shot."}

    def palette(self) -> dict[str, Any]:
        """The colors of the show, and the known frames to pick from."""
        predictor = self.predictors.plain()
        known = list(self._sources(predictor)[0])
        frames = [{"name": predictor.frame_names.get(i, f"frame {i}"), "picture": self._source_picture(predictor, i)}
                  for i in (known[place] for place in evenly_spaced(len(known), SOURCES))]
        with self.counting:
            if self.swatches is None or self.swatches[0] != predictor.identity:
                keeps = predictor.config.use_spatial_memory
                self.swatches = predictor.identity, [
                    {"hex": each.color, "name": f"{each.share:.1%}, as in {each.frame}"}
                    for each in (extract_palette(predictor) if keeps else [])]
            return {"colors": self.swatches[1], "frames": frames}

    # -----------------------------------------------------------------------------------------------------------------
    # Remember

    def fixes(self) -> dict[str, Any]:
        """The corrections that are remembered, newest first."""
        answer = []
        for each in reversed(self.project.facts.corrections):
            path = self.project.references / each.file
            shown = _small(read_image(path)) if path.exists() else ""
            answer.append({"file": each.file, "frame": each.frame, "picture": shown})
        return {"fixes": answer, "changes": self.project.facts.changes}

    def change_color(self, old: str, new: str) -> dict[str, Any]:
        """Let all that has one color have another, in the whole film; the color itself takes that back."""
        with self.changing:
            self.project.change_color(old, new)
            self._color_anew()
        return {}

    def remember(self, frame: int, rgb: np.ndarray) -> None:
        """Keep a painted frame, RGB uint8 (H, W, 3), and color the film again. Raises UserError for one that is not
        of this film's shape."""
        height, width = self.gray(frame).shape[:2]
        if abs(rgb.shape[1] / rgb.shape[0] - width / height) > 0.02 * width / height:
            raise UserError(f"the picture is {rgb.shape[1]}x{rgb.shape[0]}, and the film {width}x{height}; paint over "
                            "the gray frame that the page gives")
        with self.changing:
            self.project.remember(frame, rgb)
            self._color_anew(frame)

    def take_back(self, file: str) -> dict[str, Any]:
        with self.changing:
            self.project.take_back(str(file))
            self._color_anew()
        return {}

    def _color_anew(self, frame=None):
        """Color again with what is remembered now, the shot of ``frame`` first; coloring that is under way begins
        again."""
        self.version += 1
        if self.background.work.running and self.background.work.title == "coloring":
            self.background.stop(wait=60)
        if self.project.checkpoint and not self.background.work.running:
            self.color(frame)

    # -----------------------------------------------------------------------------------------------------------------
    # Begin

    def choose_film(self, path: str | Path) -> None:
        with self.changing:
            self.project.choose_film(path)
            self.version += 1
            if not self.background.work.running:
                self.open()

    def learn(self, colors: Sequence[Path], minutes: float) -> None:
        """Train on a colored film, or on colored pictures, in the background; then color."""
        if not colors:
            raise UserError("there is nothing to learn from; choose a colored episode or colored pictures")
        films = [path for path in colors if path.suffix.lower() not in IMAGE_SUFFIXES]
        if films and len(colors) > 1:
            raise UserError("learn from one episode, or from pictures alone; choose again")

        def run(work):
            learn(self.project, list(colors), minutes, work)
            if self.project.film is not None:
                self.version += 1
                work.title, work.done, work.note = "coloring", 0.0, ""
                work.stop.clear()  # who stops the training wants to see what it has learned
                work.began = time.monotonic()
                color(self.project, self.predictors, work)

        self.begin("training", run)

    def training(self) -> dict[str, Any]:
        """The samples of the training, None where there are none, and its validation error so far."""
        folder = self.project.folder / "training"
        path, lines = folder / "samples" / "last.png", log_lines(folder / "log.jsonl")
        errors = [line["val_ciede2000"] for line in lines if "val_ciede2000" in line]
        if not path.exists():
            return {"sample": None, "errors": errors}
        changed = path.stat().st_mtime
        if self.sample[0] != changed:
            self.sample = changed, picture(encode_jpeg(read_image(path), 1200, 85))
        return {"sample": self.sample[1], "errors": errors}
