"""Measurement of a shot while it is encoded: its confidence, consistency, scores and pictures."""

import math
import time
from concurrent.futures import Executor, Future

import numpy as np

from colorizer.metrics import has_color
from config import FilmConfig
from film.analysis.plan import Plan
from film.io.encoding import EncodingTarget
from film.render.pipeline import FrameTask
from film.report.consistency import CDC
from film.report.evaluation import FrameScores, score_frame, scoring_step
from film.report.records import THUMBNAIL, ShotRecord


class ShotRecorder:
    """Collects what the record of shot ``index`` holds, from its colored frames in order.

    If the film is in color, one frame per second is scored in ``pool``, before it is encoded and without letterbox.
    Shots that are left unchanged are not scored.
    """

    def __init__(self, plan: Plan, index: int, target: EncodingTarget, config: FilmConfig, pool: Executor) -> None:
        self.plan, self.index, self.target, self.config, self.pool = plan, index, target, config, pool
        self.shot, self.started = plan.shots[index], time.monotonic()
        self.left_unchanged = config.keep_color_shots and self.shot.in_color
        self.is_scored = plan.has_color and not config.color_only and not self.left_unchanged
        seconds = float((plan.pts[-1] + plan.last_duration - plan.pts[0]) * target.time_base)
        self.step = scoring_step(len(plan.pts), seconds)
        ratio = target.tags.get("sample_aspect_ratio") or 1
        self.size = max(1, round(THUMBNAIL * target.height / (target.width * ratio))), THUMBNAIL
        self.cdc, self.cdc_ground_truth = CDC(), CDC()
        self.scores: list[Future[FrameScores | None]] = []
        self.embeddings, self.confidences, self.shares, self.lacking_fallback = [], [], [], 0

    def add(self, task: FrameTask) -> None:
        """Add the next frame, with its result."""
        assert task.result is not None
        planes, result = (each.crop(self.shot.box) for each in (task.planes, task.result))
        if not self.config.color_only:
            self.cdc.add(result.subsample(*self.size).rgb_uint8())
        if self.plan.has_color:
            self.cdc_ground_truth.add(planes.subsample(*self.size).rgb_uint8())
        if self.is_scored and task.index % self.step == self.step // 2:
            if self.scores:
                self.scores[-1].result()  # holds the planes of only one frame in memory
            self.scores.append(self.pool.submit(score_frame, planes, result))
        if task.embedding is not None:
            self.embeddings.append(task.embedding)
        self.confidences.append((math.nan, math.nan) if task.confidence is None else
                                (task.confidence.probability.mean(), task.confidence.recalled.mean()))
        self.shares.append(task.fallback_share)
        self.lacking_fallback += task.lacks_fallback
        if task.index == self.shot.middle:
            self.middle = task.planes, task.result

    def record(self) -> ShotRecord:
        """Return the record of the shot, after all its frames were added."""
        plan, shot, base = self.plan, self.shot, self.target.time_base
        end_pts = plan.pts[shot.end] if shot.end < len(plan.pts) else plan.pts[-1] + plan.last_duration
        source, result = self.middle
        ground_truth = source.rgb_uint8(*self.size) if plan.has_color else None
        if ground_truth is not None and not has_color(ground_truth):
            ground_truth = None
        confidence, recalled = np.mean(self.confidences, 0).tolist()
        scores = [future.result() for future in self.scores]
        return ShotRecord(
            self.index, shot.start, shot.end, float(plan.pts[shot.start] * base), float(end_pts * base),
            source.gray_uint8(*self.size), result.rgb_uint8(*self.size), ground_truth,
            list(shot.palette.slot_ids), list(shot.palette.slot_scores), confidence, shot.palette.embedding.numpy(),
            left_unchanged=self.left_unchanged, cdc=self.cdc.value(),
            cdc_ground_truth=math.nan if ground_truth is None else self.cdc_ground_truth.value(), recalled=recalled,
            box=shot.box, seconds=time.monotonic() - self.started, transition_frames=shot.end - shot.transition_start,
            wipe=shot.transition is not None and shot.transition.wipe,
            fallback=float(np.mean(self.shares)) if plan.fallback else math.nan,
            lacking_fallback=self.lacking_fallback, scores=[each for each in scores if each is not None])
