"""Evaluation of colored pictures and films against the ground truth: scores, metrics file, comparison picture."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colorizer.metrics import Scores, evaluation_size, has_color, metrics_table
from config import FilmConfig
from dataset import lab_to_rgb, resize, rgb_to_lab
from fileio.atomic import atomic_write
from fileio.images import image_grid, write_image
from fileio.outputs import refuse_existing
from film.io.planes import Planes
from film.io.thread_pool import coloring_threads, map_in_order, prefetch
from film.io.video import Film, pts_window
from film.report.records import ShotRecord

MAX_MEASURED_FRAMES = 200  # evenly spaced frames of a film; larger is more exact and takes longer


class PictureScores(NamedTuple):
    """Scores of one picture, as returned by ``Evaluation.measure``."""

    gray: dict[str, float]  # of the grayscale picture, see ``Scores.measure``
    result: dict[str, float]  # of the colored picture
    thumbnails: list[np.ndarray]  # grayscale, result and ground truth, for the comparison picture


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
        self.scores["gray"].rows.append(measured.gray)
        self.scores["result"].rows.append(measured.result)
        if self.count % self.stride == 0:
            self.rows.append(measured.thumbnails)
            if len(self.rows) == 2 * self.ROWS:  # bounds the memory and keeps the rows evenly spaced
                self.rows, self.stride = self.rows[::2], 2 * self.stride
        self.count += 1

    def summaries(self) -> dict[str, dict[str, float]]:
        """Return {row name: ``Scores.summary()``}, {} if nothing was measured."""
        return {name: scores.summary() for name, scores in self.scores.items()} if self.count else {}

    def write(self, metrics: Path, comparison: Path, facts: dict[str, Any], overwrite: bool) -> None:
        """Print the table of scores and write the files ``metrics`` (JSON, with ``facts``) and ``comparison`` (PNG).

        Without scores, only ``metrics`` is written. Raises UserError if ``comparison`` exists, ``overwrite`` is False
        and no earlier run has written it together with ``metrics``.
        """
        if self.count:
            rows = self.summaries()
            facts = {**facts, "measured_pictures": self.count, **rows}
            print(f"{metrics_table(rows)}\nmeasured on {self.count} pictures")
            refuse_existing([comparison], overwrite or metrics.exists())
            height = max(row[0].shape[0] for row in self.rows)
            write_image(comparison, image_grid([[resize(picture, height, self.WIDTH) for picture in row]
                                                for row in self.rows[:self.ROWS]]))
            print(f"comparison (grayscale, result, ground truth): {comparison}")
        with atomic_write(metrics) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")


def measure_film(records: Sequence[ShotRecord], film: Film, result: Film, config: FilmConfig,
                 evaluation: Evaluation) -> None:
    """Score one frame per second of a colored film, at most MAX_MEASURED_FRAMES, and add the scores to ``evaluation``.

    Shots that were left unchanged and letterboxes are not measured.
    """
    shots = [(range(record.start_frame, record.end_frame), record.box) for record in records
             if not record.left_unchanged]
    frames = records[-1].end_frame
    rate = frames / (records[-1].end_time - records[0].start_time)
    step = min(frames, max(1, round(rate), math.ceil(frames / MAX_MEASURED_FRAMES)))
    pairs = ((ground_truth.crop(box), colored.crop(box))
             for index, ground_truth, colored in compare_frames(film, result, config, step)
             for shot, box in shots if index in shot)

    def measure(pair):
        return evaluation.measure(*(planes.rgb_uint8(*evaluation_size(*planes.y.shape)) for planes in pair))

    with coloring_threads() as pool:
        for _, measured in map_in_order(pool, measure, pairs):
            evaluation.add(measured)


def compare_frames(film: Film, result: Film, config: FilmConfig, step: int) -> Iterator[tuple[int, Planes, Planes]]:
    """Yield (index, ground truth, result) of every ``step``-th frame of a film and its colored version."""
    begin, _ = pts_window(film, config)
    with closing(prefetch(film.read(begin), 2)) as ground_truths, closing(prefetch(result.read(), 2)) as results:
        for index, ((_, _, ground_truth), (_, _, colored)) in enumerate(zip(ground_truths, results, strict=False)):
            if index % step == step // 2:
                yield index, ground_truth, colored
