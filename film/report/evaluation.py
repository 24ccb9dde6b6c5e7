"""Evaluation of colored pictures and films against the ground truth: scores, metrics file, comparison picture."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colorizer.metrics import Scores, evaluation_size, has_color, metrics_table
from dataset import lab_to_rgb, resize, rgb_to_lab
from fileio.atomic import atomic_write
from fileio.images import image_grid, write_image
from fileio.outputs import refuse_existing
from film.io.planes import Planes
from film.report.records import ShotRecord
from utils import evenly_spaced

MAX_MEASURED_FRAMES = 200  # evenly spaced frames of a film; larger is more exact and takes longer


class PictureScores(NamedTuple):
    """Scores of one picture, as returned by ``Evaluation.measure``."""

    gray: dict[str, float]  # of the grayscale picture, see ``Scores.measure``
    result: dict[str, float]  # of the colored picture
    thumbnails: list[np.ndarray]  # grayscale, result and ground truth, for the comparison picture


FrameScores = dict[str, dict[str, float]]  # {"gray": ..., "result": ...}, as in PictureScores


class Evaluation:
    """Scores of colored pictures and of their grayscale versions against the ground truth."""

    ROWS = 6  # maximum number of rows of the comparison picture
    WIDTH = 320  # width of each thumbnail in the comparison picture

    def __init__(self) -> None:
        self.scores = {"gray": Scores(), "result": Scores()}
        self.count = 0
        self.rows: list[list[np.ndarray]] = []  # of the comparison picture: every ``stride``-th picture
        self.stride = 1

    @classmethod
    def measure(cls, ground_truth: np.ndarray, result: np.ndarray) -> PictureScores | None:
        """Score a result against its ground truth, both RGB uint8 (H, W, 3), at their ``evaluation_size``.

        Returns None if the ground truth has no color.
        """
        if not has_color(ground_truth):
            return None
        size = evaluation_size(*ground_truth.shape[:2])
        ground_truth, result = resize(ground_truth, *size), resize(result, *size)
        lab = rgb_to_lab(ground_truth)
        lab[..., 1:] = 0
        gray = lab_to_rgb(lab)
        height = max(1, round(cls.WIDTH * size[0] / size[1]))
        return PictureScores(Scores.measure(gray, ground_truth), Scores.measure(result, ground_truth),
                             [resize(picture, height, cls.WIDTH) for picture in (gray, result, ground_truth)])

    def add(self, measured: PictureScores | None) -> None:
        """Add the scores of a picture; None is ignored."""
        if measured is None:
            return
        if self.count % self.stride == 0:
            self.rows.append(measured.thumbnails)
            if len(self.rows) == 2 * self.ROWS:  # bounds the memory and keeps the rows evenly spaced
                self.rows, self.stride = self.rows[::2], 2 * self.stride
        self._add_scores(measured.gray, measured.result)

    def _add_scores(self, gray, result):
        self.scores["gray"].rows.append(gray)
        self.scores["result"].rows.append(result)
        self.count += 1

    def add_film(self, records: Sequence[ShotRecord]) -> None:
        """Add the scores of a film and, for the comparison picture, the middle frames of evenly spaced shots."""
        shown = []
        for index, record in enumerate(records):
            for scores in record.scores:
                self._add_scores(scores["gray"], scores["result"])
            if record.scores and record.ground_truth is not None:
                shown.append(index)
        for i in evenly_spaced(len(shown), self.ROWS):
            record = records[shown[i]]
            assert record.ground_truth is not None
            self.rows.append([record.gray, record.result, record.ground_truth])

    def summaries(self) -> dict[str, dict[str, float]]:
        """Return {row name: ``Scores.summary()``}, {} if nothing was measured."""
        return {name: scores.summary() for name, scores in self.scores.items()} if self.count else {}

    def write(self, metrics: Path, comparison: Path, facts: dict[str, Any], overwrite: bool) -> None:
        """Print the table of scores and write the files ``metrics`` (JSON, with ``facts``) and ``comparison`` (PNG).

        Without pictures in color, only ``metrics`` is written. Raises UserError if ``comparison`` exists, ``overwrite``
        is False and no earlier run has written it together with ``metrics``.
        """
        if self.count:
            rows = self.summaries()
            facts = {**facts, "measured_pictures": self.count, **rows}
            print(f"{metrics_table(rows)}\nmeasured on {self.count} pictures")
        if self.rows:
            refuse_existing([comparison], overwrite or metrics.exists())
            height = max(row[0].shape[0] for row in self.rows)
            write_image(comparison, image_grid([[resize(picture, height, self.WIDTH) for picture in row]
                                                for row in self.rows[:self.ROWS]]))
            print(f"comparison (grayscale, result, ground truth): {comparison}")
        with atomic_write(metrics) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")


def scoring_step(frames: int, seconds: float) -> int:
    """Return the distance of the scored frames of a film: one per second, at most MAX_MEASURED_FRAMES. A frame is
    scored if its index, modulo this distance, is half of it."""
    return min(frames, max(1, round(frames / seconds), math.ceil(frames / MAX_MEASURED_FRAMES)))


def score_frame(ground_truth: Planes, result: Planes) -> FrameScores | None:
    """Return the scores of a frame of a film. Returns None if the ground truth has no color."""
    size = evaluation_size(*ground_truth.y.shape)
    measured = Evaluation.measure(ground_truth.rgb_uint8(*size), result.rgb_uint8(*size))
    return None if measured is None else {"gray": measured.gray, "result": measured.result}
