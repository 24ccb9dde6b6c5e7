"""TODO: module docstring."""

import itertools
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from colorizer.confidence import Confidence
from colorizer.warping.optical_flow import TemporalFilter
from config import FilmConfig
from dataset import resize
from film.analysis.denoising import denoise_shot
from film.analysis.exposure import normalize_exposure
from film.analysis.held_frames import HeldFrameDetector
from film.analysis.plan import FilmPredictor, Plan
from film.io.encoding import EncodingTarget
from film.io.interlacing import split_fields, weave_fields
from film.io.planes import Box, Planes, ab_to_chroma, change_depth, plane_slices
from film.io.thread_pool import COLORING_THREADS, coloring_threads, map_in_order
from film.io.video import Film, frames_at
from film.render.transition_blending import ColoredFrame, TransitionBlender


@dataclass
class FrameTask:
    """A frame on its way through the threads."""

    shot: int
    index: int
    planes: Planes
    L: np.ndarray | None = None  # (side, side), the network's input; None: a held drawing, a kept shot, or painted
    ab: np.ndarray | None = None  # (S, S, 2) in Lab units, steadied; None for a frame that stays as it is
    known: Confidence | None = None  # of the places of a frame that is colored
    look: np.ndarray | None = None  # (D,) int16, of a new drawing; with the first that blends, that of the next shot
    blends: bool = False  # whether it shows the next shot, too
    result: Planes | None = None  # in the coding of the target


def read_tasks(film: Film, plan: Plan, todo: Iterable[int], side: int,
              keep: bool) -> Generator[FrameTask, None, None]:
    """Jobs for the frames of the shots ``todo``, a number of which is asked for when the shot before it is read. Only
    the first frame of a held drawing has an L, and with ``keep`` no frame of a shot in color. L is without grain."""
    asked = ((number, index) for number in todo for index in range(plan.shots[number].start, plan.shots[number].end))
    drawing, (numbers, indices) = HeldFrameDetector(), itertools.tee(asked)

    def jobs(number, read):
        shot = plan.shots[number]
        for _, (index, planes) in read:
            job = FrameTask(number, index, planes, blends=index >= shot.transition_start)
            if not (keep and shot.in_color) and (job.blends or drawing.is_new(planes, index == shot.start)):
                job.L = normalize_exposure(planes.crop(shot.box).lightness(side), plan.exposure[index])
            yield job

    with closing(frames_at(film, plan.pts, (index for _, index in indices))) as frames:
        for number, read in itertools.groupby(zip(numbers, frames, strict=True), key=lambda item: item[0][0]):
            yield from denoise_shot(jobs(number, read))


def batches(jobs: Generator[FrameTask, None, None], batch_size: int) -> Generator[list[FrameTask], None, None]:
    """Lists of jobs of one shot each, of at most ``batch_size`` new drawings and twice as many frames."""
    with closing(jobs):
        batch = []
        for job in jobs:
            if batch and (job.shot != batch[0].shot or sum(other.L is not None for other in batch) == batch_size
                          or len(batch) == 2 * batch_size):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch


def predict_tasks(jobs: Generator[FrameTask, None, None], predictor: FilmPredictor, plan: Plan, config: FilmConfig,
               large: bool = False) -> Generator[FrameTask, None, None]:
    """Yield the jobs, in order, with ab and what is known filled in; PAINTERS batches are colored at a time, of
    ``large`` frames one, since encoding them takes longer."""
    steady, last, mixture = TemporalFilter(config.temporal_filter), None, None

    def paint(batch):
        fresh = [job.L for job in batch if job.L is not None and not job.blends]
        if not fresh:
            return iter(())
        ab, known, looks = predictor.predict_with_embeddings(np.stack(fresh), plan.shots[batch[0].shot].palette)
        return zip(ab, known.per_picture(), looks, strict=True)

    def mix(shot, before):
        """The Mixture between a shot, of which ``before`` is the last frame that shows it alone, and the next one, and
        the look of the first frame that shows this alone."""
        transition, following = plan.shots[shot].transition, plan.shots[shot + 1]
        L = transition.next_lightness.astype(np.float32)
        ab, known, looks = predictor.predict_with_embeddings(L[None], following.palette)
        behind = ColoredFrame(L, ab[0], next(known.per_picture()))
        return TransitionBlender(transition.frames, transition.wipe, before, behind, config.temporal_filter.flow_size), looks[0]

    def fill(batch, answers):
        nonlocal steady, last, mixture
        if batch[0].index == plan.shots[batch[0].shot].start:
            steady, mixture = TemporalFilter(config.temporal_filter), None
        for job in batch:
            if job.L is not None and job.blends:
                if mixture is None:
                    mixture, job.look = mix(job.shot, last)
                job.ab, job.known = mixture(job.L)
            elif job.L is not None:
                ab, known, job.look = next(answers)
                last = ColoredFrame(job.L, steady(job.L, ab), known)
            if not (job.blends or config.keep_color_shots and plan.shots[job.shot].in_color):
                # In less light, colors are as much weaker as contrast.
                job.ab, job.known = last.ab / plan.exposure[job.index, 0], last.known
            job.L = None
        batch.reverse()
        while batch:  # a frame that is taken is held no longer
            yield batch.pop()

    predictors = 1 if large else COLORING_THREADS
    with closing(batches(jobs, config.batch_size)) as todo, coloring_threads(predictors) as pool:
        for batch, answers in map_in_order(pool, paint, todo, 1 if large else predictors + 1):
            yield from fill(batch, answers)


def finish(job: FrameTask, target: EncodingTarget, color_only: bool, box: Box | None = None) -> Planes:
    """The planes of a result, in the target's coding: luma of the source (for ``color_only`` that of a middle gray),
    and Cb and Cr by the job's ab within the box, neutral around it; without ab those of the source, or neutral ones.
    Interlaced pictures are finished field by field."""
    if target.field_order:
        (height, width), halves = target.chroma_size, split_fields(job.planes)
        box = box and (box[0] // 2, box[1] // 2, *box[2:])
        return weave_fields(*(_finish(half, job.ab, target.coding, ((height + 1 - i) // 2, width), color_only, box)
                       for i, half in enumerate(halves)))
    return _finish(job.planes, job.ab, target.coding, target.chroma_size, color_only, box)


def _finish(planes, ab, coding, size, color_only, box):
    y = change_depth(planes.y, planes.coding.depth, coding.depth)
    if ab is not None:
        cb, cr = (np.full(size, coding.chroma_range[0], coding.dtype) for _ in range(2))
        inside = plane_slices(box, planes.y.shape, size)
        height, width = cb[inside].shape
        cb[inside], cr[inside] = ab_to_chroma(planes.crop(box), ab, height, width, coding)
    elif planes.cb is None or planes.cr is None:
        cb = cr = np.full(size, coding.chroma_range[0], coding.dtype)
    else:
        cb, cr = (change_depth(resize(plane, *size), planes.coding.depth, coding.depth)
                  for plane in (planes.cb, planes.cr))
    if color_only:
        black, span = coding.luma_range
        y = np.full_like(y, round(black + span * NEUTRAL))
    return Planes(y, cb, cr, coding)

NEUTRAL = 0.4663  # Y' in [0, 1] of a gray of L 50
