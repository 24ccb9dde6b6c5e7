"""Functions that the web page calls to show shots, frames and clips of a film, and remembered frames."""

import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from editing.frame_reader import FrameReader, encode_jpeg, index_frames, write_clip
from editing.session import EditingSession, check_integer, data_uri, thumbnail_uri
from film.io.planes import Planes
from film.io.video import VideoFile
from film.render.rendering import confidence_video_path
from film.report.memory_thumbnails import memory_thumbnails
from film.report.records import Records
from film.report.suggestions import suggest_frames
from utils import UserError, evenly_spaced

LOW_CONFIDENCE = 0.5  # shots with a lower mean confidence are marked; larger: more marks
SUGGESTIONS = 10  # number of shots suggested for correction
MAX_MEMORY_FRAMES = 1024  # maximum number of remembered frames offered to pick colors from
MAX_WIDTH = 1920  # maximum width in pixels of a frame sent to the page
MAX_CLIP_FRAMES = 20_000  # longer clips are refused


class FilmBrowser:
    """Shows the shots and frames of a session's film on the page."""

    def __init__(self, session: EditingSession) -> None:
        self.session, self.project, self.lock = session, session.project, threading.Lock()
        self.readers: dict[str, tuple[Any, FrameReader]] = {}  # kind -> (stamp, reader)

    def shots(self) -> dict[str, Any]:
        """Return the colored shots if they match the current cuts, else the detected shots, with thumbnails."""
        preview, records = self.project.shot_preview(), self.project.records()
        detected = preview.shots(self.project.settings) if preview else []
        if records is not None and (preview is None or
                                    [each.start_frame for each in records] == [start for start, _ in detected]):
            return {"colored": True, "shots": self._colored_shots(records)}
        if preview is None:
            return {"colored": False, "shots": []}
        pts, time_base = preview.pts, VideoFile(self.project.settings.film).info.time_base
        return {"colored": False, "shots": [
            {"start": start, "end": end, "middle": (start + end) // 2, "time": round(float(pts[start] * time_base), 3),
             "seconds": round(float((pts[end - 1] - pts[start]) * time_base), 3), "confidence": None, "doubtful": False,
             "rank": 0, "picture": data_uri(preview.thumbnail((start + end) // 2))} for start, end in detected]}

    def _colored_shots(self, records: Records) -> list[dict[str, Any]]:
        ranks = {suggestion.shot.index: rank for rank, suggestion in enumerate(suggest_frames(records, SUGGESTIONS), 1)}
        shots = []
        for each in records:
            has_confidence = not each.left_unchanged and np.isfinite(each.confidence)
            shots.append({"start": each.start_frame, "end": each.end_frame, "middle": each.middle,
                          "time": round(each.start_time, 3), "seconds": round(each.end_time - each.start_time, 3),
                          "confidence": round(each.confidence, 3) if has_confidence else None,
                          "doubtful": bool(has_confidence and round(each.confidence, 3) < LOW_CONFIDENCE),
                          "rank": ranks.get(each.index, 0), "picture": thumbnail_uri(each.result)})
        return shots

    def planes(self, kind: str, index: int) -> Planes | None:
        """Return a frame of the "gray" or "colored" film or of the "confidence" video; None if it does not exist.

        Colored frames are available as soon as the current job has finished their shot.
        """
        if kind == "colored":
            for shot in self.session.finished_shots():
                if shot.start <= index < shot.end:
                    return FrameReader(VideoFile(shot.path), index_frames(shot.path)).read(index - shot.start)
        reader = self._reader(kind)
        return reader and reader.read(index)

    def _reader(self, kind):
        project = self.project
        if kind == "gray":
            film, preview = project.film, project.shot_preview()
            if film is None or preview is None:
                return None
            stamp, create = str(film), lambda: FrameReader(film, preview.index)
        else:
            path = {"colored": project.colored, "confidence": confidence_video_path(project.colored)}[kind]
            if not project.settings.film or not path.exists():
                return None
            stat = path.stat()
            stamp, create = [stat.st_ino, stat.st_mtime_ns], lambda: FrameReader(VideoFile(path), index_frames(path))
        with self.lock:
            if kind not in self.readers or self.readers[kind][0] != stamp:
                self.readers[kind] = stamp, create()
            return self.readers[kind][1]

    def grayscale_frame(self, frame: int) -> np.ndarray:
        """Return a frame of the grayscale film, RGB uint8 (H, W, 3). Raises UserError if there is no such film."""
        planes = self.planes("gray", frame)
        if planes is None:
            raise UserError("no film is chosen, or its shots are not detected yet; choose a film or wait")
        return planes.gray_uint8(*planes.y.shape)

    def frame(self, index: int, width: int, kinds: Sequence[str]) -> dict[str, Any]:
        """Return ``index`` and a data URI, at most ``width`` pixels wide, for each of ``kinds`` that exists."""
        index, width = check_integer("the frame", index), min(MAX_WIDTH, check_integer("the width", width, 16))
        pictures: dict[str, Any] = {"index": index}
        for kind in kinds:
            if (planes := self.planes(kind, index)) is not None:
                rgb = planes.gray_uint8(*planes.y.shape) if kind == "gray" else planes.rgb_uint8()
                pictures[kind] = data_uri(encode_jpeg(rgb, width))
        return pictures

    def clip(self, start: int, end: int) -> dict[str, Any]:
        """Return {"video": data URI} of frames [start, end): in color if they are colored already, else in gray."""
        start, end = check_integer("the first frame", start), check_integer("the end frame", end, 1)
        path = self.project.colored if self.project.settings.film else Path()
        preview = self.project.shot_preview()
        if not path.exists():
            path = Path(self.project.settings.film)
        for shot in self.session.finished_shots():
            if (shot.start, shot.end) == (start, end):
                path, start, end = shot.path, 0, end - start
        if not path.is_file() or not 0 < end - start <= MAX_CLIP_FRAMES:
            raise UserError(f"a clip needs a film and from 1 to {MAX_CLIP_FRAMES:,} frames; choose a different shot")
        with tempfile.TemporaryDirectory() as folder:
            known = preview.index if preview and path == Path(self.project.settings.film) else index_frames(path)
            write_clip(VideoFile(path), known, start, end, Path(folder, "clip.mp4"))
            return {"video": data_uri(Path(folder, "clip.mp4").read_bytes(), "video/mp4")}


class MemoryBrowser:
    """Shows the remembered frames that a session's colors come from on the page."""

    def __init__(self, session: EditingSession) -> None:
        self.session = session
        self.pictures: tuple[Any, Mapping[int, np.ndarray], dict[int, str]] | None = None  # key, RGB and URI by id

    def sources(self, shot: int) -> dict[str, Any]:
        """Return the remembered frames that the color feature of a shot was recalled from, best first."""
        records = self.session.project.records()
        if records is None or not 0 <= check_integer("the shot", shot) < len(records):
            return {"sources": []}
        record = records[shot]
        return {"sources": [frame | {"score": round(score, 3)} for frame, score in
                            zip(self._frames(record.slot_ids), record.slot_scores, strict=True)]}

    def remembered(self) -> dict[str, Any]:
        """Return remembered frames to pick colors from."""
        ids = list(self._pictures(self.session.predictors.without_references())[0])
        return {"frames": self._frames([ids[i] for i in evenly_spaced(len(ids), MAX_MEMORY_FRAMES)])}

    def _frames(self, ids):
        """Return the name and thumbnail of each remembered frame; the thumbnail is "" if the memory has no picture."""
        predictor = self.session.predictors.without_references()
        pictures, uris = self._pictures(predictor)
        for i in ids:
            if i not in uris and i in pictures:
                uris[i] = thumbnail_uri(pictures[i], 128)
        return [{"name": predictor.frame_names.get(i, f"frame {i}"), "picture": uris.get(i, "")} for i in ids]

    def _pictures(self, predictor):
        """Return the pictures of the remembered frames by id, and a cache of the data URIs of their thumbnails."""
        key = predictor.identity, self.session.version
        if self.pictures is None or self.pictures[0] != key:
            self.pictures = key, memory_thumbnails(predictor.colorizer) if predictor.uses_memory else {}, {}
        return self.pictures[1:]
