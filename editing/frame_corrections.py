"""Functions that the web page calls to correct frames: edits, references and the preview of their effect."""

import threading
from dataclasses import replace
from typing import Any

import cv2

from colorizer.references import Reference
from colorizer.scopes import WHOLE_FILM
from editing.allowed_paths import AllowedPaths
from editing.coloring_job import film_settings
from editing.film_browser import MAX_WIDTH, FilmBrowser
from editing.frame_editor import FrameEditor, mask_png
from editing.frame_reader import encode_jpeg
from editing.project import reference_file
from editing.regions import Point
from editing.session import EditingSession, check_integer, data_uri, thumbnail_uri
from fileio.images import read_image
from film.render.incremental import find_changed_shots
from utils import UserError

PREVIEW_WIDTH = 960  # maximum width in pixels of the preview of a fill
MAX_LISTED_SHOTS = 20  # maximum number of shots that a preview lists


class FrameCorrections:
    """Lets the page edit frames and manage the references of a session."""

    def __init__(self, session: EditingSession, browser: FilmBrowser) -> None:
        self.session, self.project, self.browser = session, session.project, browser
        self.editor: tuple[Any, FrameEditor] | None = None  # (frame, time of coloring), editor

    def _editor_of(self, frame):
        """Return the editor of a frame. Raises UserError if the frame is not colored yet."""
        colored = self.project.colored
        key = check_integer("the frame", frame), colored.stat().st_mtime_ns if colored.exists() else 0
        with self.session.lock:
            if self.editor is None or self.editor[0] != key:
                predicted, gray = (self.browser.planes(kind, frame) for kind in ("colored", "gray"))
                if predicted is None or gray is None:
                    raise UserError("the film is not colored yet; wait until it is, then correct the frame")
                path = self.project.folder / "corrections" / f"frame_{frame:06d}.json"
                response = records.response if (records := self.project.records()) else None
                extractor = replace(self.session.predictors.without_references().extractor, response=response)
                editor = FrameEditor(path, gray, predicted, extractor)
                self.editor = key, editor
                threading.Thread(target=editor.prepare, daemon=True).start()
            return self.editor[1]

    def open_frame(self, frame: int) -> dict[str, Any]:
        """Return the corrected frame as a data URI, its size, and the state of its edits."""
        editor = self._editor_of(frame)
        rgb, correction = editor.picture(), editor.correction
        return {"frame": frame, "picture": data_uri(encode_jpeg(rgb, MAX_WIDTH, 92)), "width": rgb.shape[1],
                "height": rgb.shape[0], "undo": bool(correction.edits), "redo": bool(correction.undone),
                "changed": bool(correction.areas()), "edits": len(correction.edits)}

    def edit_frame(self, frame: int, **edit: Any) -> dict[str, Any]:
        """Edit a frame (see ``FrameEditor.edit``), and return the result of ``open_frame``."""
        editor = self._editor_of(frame)
        with self.session.lock:
            editor.edit(**edit)
            return self.open_frame(frame)

    def preview_fill(self, frame: int, tool: str, point: Point, tolerance: float) -> dict[str, Any]:
        """Return a mask of what "fill" or "like" fills at a point, as a data URI, and proposed colors, best first."""
        mask, colors = self._editor_of(frame).preview(tool, tuple(point), float(tolerance))
        return {"mask": data_uri(mask_png(mask, PREVIEW_WIDTH), "image/png"), "colors": colors}

    def preview_effect(self, frame: int, scope: str = WHOLE_FILM) -> dict[str, Any]:
        """Return a message that lists the shots that change if the corrected frame becomes a reference."""
        session, project, rgb = self.session, self.project, self._editor_of(frame).picture()
        reference = Reference(rgb, scope, reference_file(frame, scope))
        if session.jobs.job.running or not project.is_current() or project.film is None:
            return {"message": "The affected shots are shown once the film is colored with all changes."}
        predictor = session.predictors.with_references(reference)
        shots = find_changed_shots(predictor, project.film, project.colored, film_settings(project, predictor))
        if shots is None:
            return {"message": "This colors the whole film again."}
        if not shots:
            return {"message": "This changes no shot."}
        numbers = ", ".join(str(shot + 1) for shot in shots[:MAX_LISTED_SHOTS])
        end = ", \u2026" if len(shots) > MAX_LISTED_SHOTS else "."
        return {"message": f"This colors {len(shots)} of {len(project.records() or [])} shots again: {numbers}{end}"}

    def add_reference(self, frame: int, scope: str = WHOLE_FILM) -> None:
        """Add the corrected frame to the references."""
        self._add(frame, self._editor_of(frame).picture(), scope)

    def add_uploaded_reference(self, frame: int, path: str, scope: str = WHOLE_FILM) -> None:
        """Add an uploaded picture to the references, as the colored version of a frame."""
        self._add(check_integer("the frame", frame),
                  read_image(AllowedPaths([self.project.folder / "page"]).check(path)), scope)

    def _add(self, frame, rgb, scope):
        height, width = self.browser.grayscale_frame(frame).shape[:2]
        if abs(rgb.shape[1] / rgb.shape[0] - width / height) > 0.02 * width / height:
            raise UserError(f"the picture is {rgb.shape[1]}x{rgb.shape[0]}, but the film is {width}x{height}; paint "
                            "over the downloaded grayscale frame")
        self.session.add_reference(frame, rgb, scope)

    def download_grayscale(self, frame: int) -> dict[str, Any]:
        """Return {"picture": data URI} of a frame of the grayscale film, as a PNG."""
        gray = self.browser.grayscale_frame(check_integer("the frame", frame))
        return {"picture": data_uri(cv2.imencode(".png", gray)[1].tobytes(), "image/png")}  # for gray, RGB equals BGR

    def list_references(self) -> dict[str, Any]:
        """Return the references, newest first."""
        settings, folder = self.project.settings, self.project.references
        references = [{"file": each.file, "frame": each.frame, "picture": thumbnail_uri(read_image(folder / each.file))
                       if (folder / each.file).exists() else ""} for each in reversed(settings.references)]
        return {"references": references}
