"""The memory video: what the memory recalls for each frame of a film, next to the results.

Each frame shows the grayscale picture, the picture as colored with each of the three best memory slots, and a mosaic of
the remembered frames in which these three are marked. For a film in color, it also shows the ground truth and the
picture colored with the ground truth's own color feature.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from colorizer.predictor import Predictor
from colorizer.warping.in_betweens import InBetweenConfig, InBetweens
from dataset import REFERENCE_ID, lab_to_rgb, resize, rgb_to_lab
from film.analysis.held_frames import HeldFrameDetector
from film.io.encoding import write_video
from film.io.thread_pool import prefetch
from film.io.video import Film
from film.report.memory_thumbnails import memory_thumbnails
from film.report.records import ShotRecord
from utils import evenly_spaced

SLOT_COLORS = ((66, 133, 255), (60, 190, 90), (240, 70, 70))  # blue, green, red: slots 1, 2, 3
BACKGROUND = (24, 24, 27)
MAX_CELL = (320, 426)  # maximum height and width of a picture
GAP, LABEL = 8, 22  # pixels between pictures, and for the label above each
WINDOW = 16  # frames of a shot whose keyframes are selected together
MAX_MOSAIC_FRAMES = 4096  # at most this many remembered frames are shown, evenly spaced

# ---------------------------------------------------------------------------------------------------------------------
# Layout and drawing


class Layout:
    """Sizes (height, width) in pixels, all even, of the memory video of a film of the given size."""

    def __init__(self, height: int, width: int, ground_truth: bool) -> None:
        cell_height, cell_width = min(MAX_CELL[0], 2 * round(MAX_CELL[1] * height / width / 2) or 2), MAX_CELL[1]
        rows = columns = 3 if ground_truth else 2
        self.cell = cell_height, cell_width
        self.mosaic = cell_height, columns * cell_width + (columns - 1) * GAP
        self.frame = rows * (LABEL + cell_height + GAP) + GAP, 3 * cell_width + 4 * GAP


class Mosaic:
    """The remembered frames in one picture; ``with_borders`` marks some of them."""

    def __init__(self, pictures: Mapping[int, np.ndarray], height: int, width: int, aspect: float = 16 / 9) -> None:
        """Draw ``pictures``, {frame id: RGB uint8}, as large as fits, all with ``aspect`` (width / height)."""
        cell_height, rows = max((min(height / rows, width / math.ceil(len(pictures) / rows) / aspect), rows)
                                for rows in range(1, len(pictures) + 1))
        columns, cell_width = math.ceil(len(pictures) / rows), cell_height * aspect
        top, left = (height - rows * cell_height) / 2, (width - columns * cell_width) / 2
        gap = 1 if cell_height < 24 else 4  # pixels between two frames
        self.picture = np.full((height, width, 3), BACKGROUND, np.uint8)
        self.boxes = {}
        for position, (i, picture) in enumerate(pictures.items()):
            row, column = divmod(position, columns)
            y0, x0 = round(top + row * cell_height), round(left + column * cell_width)
            y1 = max(y0 + 1, round(top + (row + 1) * cell_height) - gap)
            x1 = max(x0 + 1, round(left + (column + 1) * cell_width) - gap)
            self.boxes[i] = (y0, y1, x0, x1)
            self.picture[y0:y1, x0:x1] = resize(picture, y1 - y0, x1 - x0)

    def with_borders(self, slot_ids: Sequence[int]) -> np.ndarray:
        """Return a copy with borders in SLOT_COLORS around the frames ``slot_ids``; a repeated id keeps its first."""
        picture = self.picture.copy()
        for i, color in reversed(list(zip(slot_ids, SLOT_COLORS, strict=False))):
            if i in self.boxes:
                y0, y1, x0, x1 = self.boxes[i]  # the border is outside of the frame, so that small frames stay visible
                draw_border(picture[max(y0 - 3, 0):y1 + 3, max(x0 - 3, 0):x1 + 3], color, 3)
        return picture


def compose_frame(layout: Layout, color: tuple[np.ndarray, np.ndarray] | None, gray: np.ndarray,
                  slot_results: Sequence[np.ndarray], mosaic: Mosaic, slot_ids: Sequence[int]) -> np.ndarray:
    """Compose one frame of the memory video, RGB uint8 of size ``layout.frame``. All pictures are RGB uint8 (H, W, 3).

    Args:
        layout: The sizes.
        color: The ground truth and the result from its color feature; None for a grayscale film.
        gray: The grayscale picture.
        slot_results: The results from the three best slots.
        mosaic: The remembered frames, of size ``layout.mosaic``.
        slot_ids: Frame ids of the three slots, -1 for an empty slot.
    """
    names = [{-1: "empty", REFERENCE_ID: "a reference"}.get(slot_id, f"frame {slot_id}") for slot_id in slot_ids]
    slots = [(f"slot {i}: {name}", result, border) for i, (name, result, border) in
             enumerate(zip(names, slot_results, SLOT_COLORS, strict=True), 1)]
    memory = (f"{len(mosaic.boxes)} remembered frames", mosaic.with_borders(slot_ids), None)
    rows: list[list[tuple[str, Any, Any]]] = [[("grayscale", gray, None), memory], slots]
    if color is not None:
        rows = [[("ground truth", color[0], None), ("grayscale", gray, None),
                 ("ground truth color feature", color[1], None)], slots, [memory]]
    sheet = np.full((*layout.frame, 3), BACKGROUND, np.uint8)
    height, y = layout.cell[0], GAP
    for row in rows:
        x = GAP
        for label, picture, border in row:
            cv2.putText(sheet, label, (x, y + LABEL - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.48, border or (215, 215, 215), 1,
                        cv2.LINE_AA)
            if picture.shape[:2] != mosaic.picture.shape[:2]:
                picture = fit_into(picture, *layout.cell)
            cell = sheet[y + LABEL:y + LABEL + height, x:x + picture.shape[1]]
            cell[:] = picture
            if border:
                draw_border(cell, border, 4)
            x += picture.shape[1] + GAP
        y += LABEL + height + GAP
    return sheet


def fitted_size(picture: np.ndarray, height: int, width: int) -> list[int]:
    """Return the largest height and width of a picture that fit into (height, width) at its aspect ratio."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    return [max(1, round(side * scale)) for side in picture.shape[:2]]


def fit_into(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize RGB uint8 to fit into (height, width), centered on the background."""
    size = fitted_size(picture, height, width)
    if size == [height, width]:
        return resize(picture, height, width)
    cell = np.full((height, width, 3), BACKGROUND, np.uint8)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    cell[top:top + size[0], left:left + size[1]] = resize(picture, *size)
    return cell


def draw_border(picture: np.ndarray, color: tuple[int, int, int], thickness: int) -> None:
    """Draw a border inside the edges of a picture, in place."""
    picture[:thickness] = picture[-thickness:] = color
    picture[:, :thickness] = picture[:, -thickness:] = color


# ---------------------------------------------------------------------------------------------------------------------
# Rendering


class MemoryVideoRenderer:
    """Renders the frames of the memory video with a predictor that has a memory.

    Results are predicted for keyframes, each from a different color feature, and propagated to the frames in between.
    Those of the memory slots also use the colors retrieved from the spatial memory, if there is one, as in the colored
    film.
    """

    def __init__(self, predictor: Predictor, height: int, width: int, ground_truth: bool) -> None:
        """``height`` and ``width`` are those of the film; ``ground_truth``: whether it is in color."""
        self.predictor, self.ground_truth = predictor, ground_truth
        self.layout = Layout(height, width, ground_truth)
        pictures = memory_thumbnails(predictor.colorizer)
        ids = list(pictures)
        shown = {i: pictures[i] for i in (ids[k] for k in evenly_spaced(len(ids), MAX_MOSAIC_FRAMES))}
        self.mosaic = Mosaic(shown, *self.layout.mosaic, width / height)

    @torch.inference_mode()
    def render(self, pictures: Sequence[np.ndarray], embedding: np.ndarray) -> list[np.ndarray]:
        """Return the frames of the memory video for ``pictures``, consecutive frames of a shot, RGB uint8 (H, W, 3).

        The memory is queried once for all frames, with the ``embedding`` (D,) of the shot.
        """
        pictures = [resize(picture, *fitted_size(picture, *self.layout.cell)) for picture in pictures]
        labs = [rgb_to_lab(picture) for picture in pictures]
        side = self.predictor.config.side
        between = InBetweens(np.stack([resize(lab[..., 0], side, side) for lab in labs]), InBetweenConfig())
        keyframes = [labs[number] for number in between.keyframes]
        lightness = [lab[..., 0] for lab in keyframes]
        features = self.predictor.extract_features(lightness)
        query = torch.as_tensor(embedding).to(features.embedding)  # type: ignore[union-attr]  # there is a memory
        recall = self.predictor.colorizer.recall(query.expand(len(keyframes), -1))

        def results(predictor, conditioning):
            ab, _ = predictor.generate_ab(lightness, conditioning, features)
            return [lab_to_rgb(np.dstack([lab[..., 0], resize(colors, *lab.shape[:2])]))
                    for lab, colors in zip(labs, between.propagate_colors(ab), strict=True)]

        by_rank = [replace(self.predictor, source="memory", rank=rank) for rank in (1, 2, 3)]
        slot_results = [results(predictor, predictor.memory_conditioning(recall)) for predictor in by_rank]
        color = [None] * len(labs)
        if self.ground_truth:
            predictor = replace(self.predictor, source="ground_truth")
            color = list(zip(pictures, results(predictor, predictor.pictures_conditioning(keyframes)), strict=True))
        gray = [fit_into(lab_to_rgb(lab * np.array([1, 0, 0], np.float32)), *self.layout.cell) for lab in labs]
        slot_ids = (recall.ids[0].tolist() + [-1, -1])[:3]
        return [compose_frame(self.layout, pair, L, slots, self.mosaic, slot_ids) for pair, L, slots in
                zip(color, gray, zip(*slot_results, strict=True), strict=True)]


def write_memory_video(predictor: Predictor, film: Film, target: Path, records: Sequence[ShotRecord],
                       begin: int | None = None) -> None:
    """Write the memory video of a colored film as an H.264 video without sound. Held frames are rendered once.

    ``records`` are the records of the colored shots; ``begin`` is the pts of the first one, None for the film's start.
    """
    with closing(prefetch(_render_film(predictor, film, records, begin), WINDOW)) as frames:
        timed = ((pts - (begin or 0), frame) for pts, frame in frames)
        write_video(target, film, tqdm(timed, total=records[-1].end_frame, unit=" frames", desc=target.name,
                                       disable=None))


def _render_film(predictor, film, records, begin):
    """Yield (pts, frame of the memory video, RGB uint8) of a film."""
    ground_truth = any(record.ground_truth is not None for record in records)
    renderer, detector, last, shots = None, HeldFrameDetector(), None, iter(records)
    shot, cut, pending = next(shots), True, []  # (pts, picture), with None for a held frame

    def flush():
        nonlocal last
        new = [picture for _, picture in pending if picture is not None]
        rendered = iter(renderer.render(new, shot.embedding) if new else [])  # type: ignore[attr-defined]  # exists here
        for pts, picture in pending:
            last = last if picture is None else next(rendered)
            yield pts, last
        pending.clear()

    with closing(prefetch(film.read(begin), WINDOW)) as frames:
        for index, (pts, _, planes) in enumerate(frames):
            if index == shot.end_frame:
                yield from flush()
                shot = next(shots, None)
                if shot is None:
                    return
                cut = True
            part = planes.crop(shot.box)
            renderer = renderer or MemoryVideoRenderer(predictor, part.y.shape[0], part.y.shape[1], ground_truth)
            pending.append((pts, part.rgb_uint8() if detector.is_new(planes, cut) else None))
            cut = False
            if len(pending) == WINDOW:
                yield from flush()
    yield from flush()
