"""What does the memory recall? ``write_panel`` writes a second film that shows it beside the results.

Each frame of it shows the truth, where there is one; the gray picture; the results by each of the memory's three best
slots and by the true color feature; and a mosaic of all frames in memory, with the three recalled ones framed.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from colorizer.predictor import Predictor
from dataset import REFERENCE_ID, lab_to_rgb, resize, rgb_to_lab
from film.analysis.held_frames import HeldFrameDetector
from film.io.encoding import write_video
from film.io.thread_pool import prefetch
from film.io.video import Film
from film.report.memory_thumbnails import memory_thumbnails
from film.report.records import ShotRecord
from utils import evenly_spaced

COLORS = ((66, 133, 255), (60, 190, 90), (240, 70, 70))  # blue, green, red: slots 1, 2, 3
GROUND = (24, 24, 27)
MOST = 4096  # frames, at most, spread evenly, in the mosaic

# ---------------------------------------------------------------------------------------------------------------------
# The frames in memory










class Mosaic:
    """All frames in memory on one picture of the given size, made once; ``framed`` marks some of them."""

    def __init__(self, pictures: dict[int, np.ndarray], height: int, width: int, aspect: float = 16 / 9) -> None:
        """``pictures``: {frame id: RGB uint8}, all shown at ``aspect`` (width / height), as large as fits."""
        cell_height, rows = max((min(height / rows, width / math.ceil(len(pictures) / rows) / aspect), rows)
                                for rows in range(1, len(pictures) + 1))
        columns, cell_width = math.ceil(len(pictures) / rows), cell_height * aspect
        top, left = (height - rows * cell_height) / 2, (width - columns * cell_width) / 2
        gap = 1 if cell_height < 24 else 4  # pixels between two frames
        self.picture = np.full((height, width, 3), GROUND, np.uint8)
        self.boxes = {}
        for place, (i, picture) in enumerate(pictures.items()):
            row, column = divmod(place, columns)
            y0, x0 = round(top + row * cell_height), round(left + column * cell_width)
            y1 = max(y0 + 1, round(top + (row + 1) * cell_height) - gap)
            x1 = max(x0 + 1, round(left + (column + 1) * cell_width) - gap)
            self.boxes[i] = (y0, y1, x0, x1)
            self.picture[y0:y1, x0:x1] = resize(picture, y1 - y0, x1 - x0)

    def framed(self, chosen: Sequence[int]) -> np.ndarray:
        """A copy with borders in COLORS around the frames of the ids ``chosen``; a repeated id keeps its first."""
        picture = self.picture.copy()
        for i, color in reversed(list(zip(chosen, COLORS, strict=False))):
            if i in self.boxes:
                y0, y1, x0, x1 = self.boxes[i]  # the frame is drawn around it, so that small ones can be seen as well
                frame(picture[max(y0 - 3, 0):y1 + 3, max(x0 - 3, 0):x1 + 3], color, 3)
        return picture


# ---------------------------------------------------------------------------------------------------------------------
# One frame of the panel

CELL = (320, 426)  # the largest height and width of a picture
GAP, LABEL = 8, 22  # pixels between pictures, and for the label above each


def cell_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture of the panel, even, for a film of the given size."""
    return min(CELL[0], 2 * round(CELL[1] * height / width / 2) or 2), CELL[1]


def mosaic_size(height: int, width: int, truth: bool) -> tuple[int, int]:
    """Height and width of the mosaic for a film of the given size: three pictures wide, two without a truth."""
    height, width = cell_size(height, width)
    cells = 3 if truth else 2
    return height, cells * width + (cells - 1) * GAP


def panel_size(height: int, width: int, truth: bool) -> tuple[int, int]:
    """Height and width of a frame of the panel, both even, for a film of the given size."""
    height, width = cell_size(height, width)
    rows = 3 if truth else 2
    return rows * (LABEL + height + GAP) + GAP, 3 * width + 4 * GAP


def panel_frame(truth: np.ndarray | None, gray: np.ndarray, slot_results: Sequence[np.ndarray],
                true_feature_result: np.ndarray | None, mosaic: Mosaic, chosen: Sequence[int]) -> np.ndarray:
    """Compose one frame of the panel, RGB uint8 of ``panel_size``.

    Pictures are RGB uint8 (H, W, 3): the truth and the result of its color feature (both None where there is none),
    the gray picture and the results of the three slots, of the frames ``chosen`` (ids, -1 for an empty slot) in
    ``mosaic``, a Mosaic of ``mosaic_size``.
    """
    height, width = cell_size(*gray.shape[:2])
    slots = [(f"slot {i}: " + {-1: "empty", REFERENCE_ID: "a reference"}.get(chosen_id, f"frame {chosen_id}"), result,
              color) for i, (chosen_id, result, color) in enumerate(zip(chosen, slot_results, COLORS, strict=True), 1)]
    memory = (f"{len(mosaic.boxes)} frames in memory", mosaic.framed(chosen), None)
    if truth is None:
        rows: list[list[tuple[str, Any, Any]]] = [[("gray", gray, None), memory], slots]
    else:
        rows = [[("ground truth", truth, None), ("gray", gray, None), ("true color feature", true_feature_result, None)],
                slots, [memory]]
    sheet = np.full((*panel_size(gray.shape[0], gray.shape[1], truth is not None), 3), GROUND, np.uint8)
    y = GAP
    for row in rows:
        x = GAP
        for label, picture, color in row:
            cv2.putText(sheet, label, (x, y + LABEL - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.48, color or (215, 215, 215), 1,
                        cv2.LINE_AA)
            if picture.shape[:2] != mosaic.picture.shape[:2]:
                picture = fit(picture, height, width)
            cell = sheet[y + LABEL:y + LABEL + height, x:x + picture.shape[1]]
            cell[:] = picture
            if color:
                frame(cell, color, 4)
            x += picture.shape[1] + GAP
        y += LABEL + height + GAP
    return sheet


def fitting(picture: np.ndarray, height: int, width: int) -> list[int]:
    """Height and width of a picture that is as large as fits into (height, width)."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    return [max(1, round(side * scale)) for side in picture.shape[:2]]


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture, RGB uint8, as large as fits into (height, width), in the middle of it."""
    inner = fitting(picture, height, width)
    if inner == [height, width]:
        return resize(picture, height, width)
    cell = np.full((height, width, 3), GROUND, np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    cell[top:top + inner[0], left:left + inner[1]] = resize(picture, *inner)
    return cell


def frame(picture: np.ndarray, color: tuple[int, int, int], thickness: int) -> None:
    """Draw a frame inside the edges of a picture, in place."""
    picture[:thickness] = picture[-thickness:] = color
    picture[:, :thickness] = picture[:, -thickness:] = color


# ---------------------------------------------------------------------------------------------------------------------
# The film of the panel


class Panel:
    """Makes the frames of the panel of a film, of ``size`` (height, width).

    Results are painted at the size that is shown, each from another color feature; those of the memory's slots also
    have the hints of the spatial memory, where there is one, as in the colored film.
    The checkpoint needs a memory.
    """

    def __init__(self, predictor: Predictor, height: int, width: int, truth: bool) -> None:
        """For a film of the given size, in color (``truth``) or not, colored by the Predictor ``predictor``."""
        self.predictor, self.truth = predictor, truth
        self.cell, self.size = cell_size(height, width), panel_size(height, width, truth)
        pictures = memory_thumbnails(predictor.colorizer)
        ids = list(pictures)
        shown = {i: pictures[i] for i in (ids[place] for place in evenly_spaced(len(ids), MOST))}
        self.mosaic = Mosaic(shown, *mosaic_size(height, width, truth), width / height)

    @torch.inference_mode()
    def paint(self, pictures: Sequence[np.ndarray], shot: np.ndarray) -> list[np.ndarray]:
        """Frames of the panel for frames of one shot, RGB uint8 (H, W, 3), one for each.

        ``shot`` (D,) is what the backbone sees of the shot, by which the memory is read once for all of them.
        """
        pictures = [resize(picture, *fitting(picture, *self.cell)) for picture in pictures]
        labs = [rgb_to_lab(picture) for picture in pictures]
        lightness = [lab[..., 0] for lab in labs]
        seen = self.predictor.extract_features(lightness)
        feature = torch.as_tensor(shot).to(seen.embedding)  # type: ignore[union-attr]  # there is a memory
        recall = self.predictor.colorizer.recall(feature.expand(len(labs), -1))
        results = [self._results(replace(self.predictor, source="memory", rank=rank), lightness, recall, seen)
                   for rank in (1, 2, 3)]
        true = [None] * len(labs)
        if self.truth:
            predictor = replace(self.predictor, source="ground_truth")
            true = self._join(lightness, predictor.generate_ab(lightness, predictor.pictures_conditioning(labs), seen)[0])
        return [panel_frame(picture if self.truth else None,
                            fit(lab_to_rgb(lab * np.array([1, 0, 0], np.float32)), *self.cell),
                            list(slots), by_truth, self.mosaic, (ids + [-1, -1])[:3])
                for picture, lab, slots, by_truth, ids in zip(
                    pictures, labs, zip(*results, strict=True), true, recall.ids.tolist(), strict=True)]

    def _results(self, predictor, lightness, recall, seen):
        return self._join(lightness, predictor.generate_ab(lightness, predictor.memory_conditioning(recall), seen)[0])

    @staticmethod
    def _join(lightness: Sequence[np.ndarray], ab: np.ndarray) -> list[np.ndarray]:
        return [lab_to_rgb(np.dstack([L, resize(colors, *L.shape)])) for L, colors in zip(lightness, ab, strict=True)]


def write_memory_video(predictor: Predictor, film: Film, target: Path, records: Sequence[ShotRecord],
                begin: int | None = None, batch_size: int = 8) -> None:
    """Write the panel of ``film``, colored as ``records`` say, as the H.264 film ``target``
    without sound. A drawing that is held is painted once.

    ``begin`` is the pts of the film at which the first record's shot, and so the panel, begins; None is the film's
    beginning.
    """
    with closing(prefetch(_sheets(predictor, film, records, begin, batch_size), batch_size)) as sheets:
        timed = ((pts - (begin or 0), sheet) for pts, sheet in sheets)
        write_video(target, film, tqdm(timed, total=records[-1].end_frame, unit=" frames", desc=target.name,
                                          disable=None))


def _sheets(predictor, film, records, begin, batch_size):
    """Yield (pts, frame of the panel, RGB uint8) of a film."""
    truth = any(record.ground_truth is not None for record in records)
    panel, drawing, sheet, shots = None, HeldFrameDetector(), None, iter(records)
    shot, cut, pending = next(shots), True, []  # (pts, picture), None for a drawing that is held

    def paint():
        nonlocal sheet
        new = [picture for _, picture in pending if picture is not None]
        painted = iter(panel.paint(new, shot.embedding) if new else [])  # type: ignore[attr-defined]  # made by now
        for pts, picture in pending:
            sheet = sheet if picture is None else next(painted)
            yield pts, sheet
        pending.clear()

    with closing(prefetch(film.read(begin), 2 * batch_size)) as frames:
        for index, (pts, _, planes) in enumerate(frames):
            if index == shot.end_frame:
                yield from paint()
                shot = next(shots, None)
                if shot is None:
                    return
                cut = True
            part = planes.crop(shot.box)
            panel = panel or Panel(predictor, part.y.shape[0], part.y.shape[1], truth)
            pending.append((pts, part.rgb_uint8() if drawing.is_new(planes, cut) else None))
            cut = False
            if len(pending) == 2 * batch_size or sum(picture is not None for _, picture in pending) == batch_size:
                yield from paint()
    yield from paint()
