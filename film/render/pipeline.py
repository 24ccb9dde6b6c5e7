"""The steps between decoding and encoding: create frame tasks, predict their colors, convert them to output planes."""

import itertools
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from colorizer.adaptation.fallback import FallbackBlender
from colorizer.confidence import Confidence
from colorizer.warping.optical_flow import TemporalFilter, to_flow_image
from colorizer.warping.propagation import Anchor, PropagationConfig, ShotColors, propagate
from config import FilmConfig
from dataset import resize
from film.analysis.denoising import denoise_shot
from film.analysis.exposure import normalize_exposure
from film.analysis.held_frames import HeldFrameDetector
from film.analysis.plan import FilmPredictor, Plan
from film.io.chroma import ab_to_chroma
from film.io.encoding import EncodingTarget
from film.io.frame_index import frames_at
from film.io.interlacing import INTERLACED_ENCODERS, split_fields, weave_fields
from film.io.planes import Box, Planes, change_depth, plane_slices, scale_depth
from film.io.thread_pool import CORES, coloring_threads, map_in_order
from film.io.video import Film
from film.render.fallback import FilmFallback
from film.render.transition_blending import ColoredFrame, TransitionBlender

WINDOW = 32  # frames of a shot whose keyframes are selected together; larger: fewer keyframes, more frames in memory
LARGE_FRAME_WINDOW = 16  # the same if frames are large
MIDDLE_GRAY = 0.4663  # Y' in [0, 1] of the gray with L = 50; luma of all pixels if ``color_only`` is True


@dataclass
class FrameTask:
    """A frame and the results of the pipeline steps that it has passed."""

    shot: int
    index: int
    planes: Planes
    L: np.ndarray | None = None  # (side, side) network input; None if held or left unchanged, and after coloring
    ab: np.ndarray | None = None  # (S, S, 2) in Lab units, temporally filtered; None for a frame that stays unchanged
    confidence: Confidence | None = None  # None for a frame that stays unchanged
    embedding: np.ndarray | None = None  # int16 (D,); at a transition's first frame: of the next shot's start
    propagated: ShotColors | None = None  # colors propagated through the shot
    in_transition: bool = False  # whether the frame also shows the next shot
    fallback: np.ndarray | None = None  # colors of another program (h, w, 2); at a transition: of the next shot's start
    fallback_share: float = 0.0  # share of the area that comes from there, in [0, 1]
    lacks_fallback: bool = False  # whether the other program has no frame for this one
    result: Planes | None = None  # in the color encoding of the EncodingTarget
    tinted: Planes | None = None  # frame of the confidence video


def shot_anchors(predictor: FilmPredictor, plan: Plan, number: int) -> list[Anchor]:
    """Return the anchors of shot ``number``, from which its colors are propagated."""
    shot = plan.shots[number]
    return predictor.find_anchors(plan.signatures[shot.start:shot.transition_start], shot.palette)


def propagate_shot(film: Film, plan: Plan, number: int, predictor: FilmPredictor) -> ShotColors | None:
    """Read the frames of shot ``number`` and propagate the colors of its anchors. Return None if it has no anchor."""
    shot, config = plan.shots[number], PropagationConfig()
    if not (anchors := shot_anchors(predictor, plan, number)):
        return None
    side, pictures = len(anchors[0].picture), {}
    with closing(frames_at(film, plan.index, range(shot.start, shot.transition_start, config.frame_step))) as frames:
        for index, planes in frames:
            planes = shot.with_fields(planes)
            L = normalize_exposure(planes.crop(shot.box).lightness(side), plan.exposure[index])
            pictures[index - shot.start] = to_flow_image(L, side, side)
    return propagate(pictures, anchors, config)


def read_tasks(film: Film, plan: Plan, shots: Iterable[int], predictor: FilmPredictor, keep_color_shots: bool,
               fallback: FilmFallback | None = None) -> Generator[FrameTask, None, None]:
    """Yield a task for each frame of ``shots``, shot indices that are consumed only as the frames are read.

    L is denoised. It is None for held frames and, with ``keep_color_shots``, for shots in color.
    """
    side = predictor.side
    requests = ((shot, index) for shot in shots for index in range(plan.shots[shot].start, plan.shots[shot].end))
    held_frames, (numbers, indices) = HeldFrameDetector(), itertools.tee(requests)

    def tasks(number, frames):
        shot, propagated = plan.shots[number], None
        if not (keep_color_shots and shot.in_color):
            propagated = propagate_shot(film, plan, number, predictor)
        for _, (index, planes) in frames:
            planes = shot.with_fields(planes)
            task = FrameTask(number, index, planes, propagated=propagated, in_transition=index >= shot.transition_start)
            if not (keep_color_shots and shot.in_color) and (
                    task.in_transition or held_frames.is_new(planes, index == shot.start)):
                task.L = normalize_exposure(planes.crop(shot.box).lightness(side), plan.exposure[index])
                if fallback and index <= shot.transition_start:
                    following = plan.shots[number + 1] if task.in_transition else shot
                    task.fallback = fallback.colors(following.start if task.in_transition else index, following,
                                                    planes.y.shape)
                    task.lacks_fallback = task.fallback is None
            yield task

    with ExitStack() as stack:
        if fallback:
            stack.callback(fallback.close)
        frames = stack.enter_context(closing(frames_at(film, plan.index, (index for _, index in indices))))
        for number, group in itertools.groupby(zip(numbers, frames, strict=True), key=lambda item: item[0][0]):
            yield from denoise_shot(tasks(number, group))


def windows(tasks: Generator[FrameTask, None, None], size: int) -> Generator[list[FrameTask], None, None]:
    """Group consecutive tasks of a shot into lists of at most ``size`` frames."""
    with closing(tasks):
        batch = []
        for task in tasks:
            if batch and (task.shot != batch[0].shot or len(batch) == size):
                yield batch
                batch = []
            batch.append(task)
        if batch:
            yield batch


def predict_tasks(tasks: Generator[FrameTask, None, None], predictor: FilmPredictor, plan: Plan, config: FilmConfig,
                  large: bool = False) -> Generator[FrameTask, None, None]:
    """Set ab, confidence and embedding of the tasks; yield the tasks in order.

    Windows are predicted in parallel as far as ``config.batch_size`` allows, but only one if frames are ``large``,
    since these take longer to encode and need more memory. Keyframes and network inputs depend on the windows only, so
    the colors depend neither on ``batch_size`` nor on the number of threads.
    """
    colorer = _BatchColorer(predictor, plan, config)
    size = LARGE_FRAME_WINDOW if large else WINDOW
    threads = 1 if large else min(CORES, -(-config.batch_size // size))
    max_pending = 1 if large or config.batch_size <= size else threads + 1
    with closing(windows(tasks, size)) as pending, coloring_threads(threads) as pool:
        for batch, predictions in map_in_order(pool, colorer.predict, pending, max_pending):
            colorer.fill(batch, predictions)
            batch.reverse()
            while batch:  # pop frames so that no reference to a yielded frame is kept
                yield batch.pop()


class _BatchColorer:
    """Colors batches: ``predict`` runs in parallel, ``fill`` in the order of the frames."""

    def __init__(self, predictor: FilmPredictor, plan: Plan, config: FilmConfig) -> None:
        self.predictor, self.plan, self.config = predictor, plan, config
        self.filter = TemporalFilter(config.temporal_filter)
        self.last: Any = None  # ColoredFrame of the last frame with L that is not in a transition
        self.blender: TransitionBlender | None = None  # for the transition at the end of the current shot
        self.fallback: FallbackBlender | None = None  # of the current shot
        self.share, self.lacks_fallback = 0.0, False  # of the last frame with L

    def predict(self, batch):
        """Return an iterator over (ab, confidence, embedding) of the frames in a batch with L, not in transitions."""
        inputs = [task for task in batch if task.L is not None and not task.in_transition]
        if not inputs:
            return iter(())
        shot, colors = self.plan.shots[batch[0].shot], inputs[0].propagated

        def propagated(number):
            return colors(inputs[number].index - shot.start, inputs[number].L)

        ab, confidence, embeddings = self.predictor.predict_with_embeddings(
            np.stack([task.L for task in inputs]), shot.palette, propagated if colors else None)
        return zip(ab, confidence.per_picture(), embeddings, strict=True)

    def fill(self, batch, predictions):
        """Set ab, confidence and embedding of the tasks in a batch; reset the state first if it begins a shot."""
        shot = self.plan.shots[batch[0].shot]
        if batch[0].index == shot.start:
            self.filter, self.blender = TemporalFilter(self.config.temporal_filter), None
            self.fallback = FallbackBlender(self.plan.fallback) if self.plan.fallback else None
        for task in batch:
            if task.L is not None and task.in_transition:
                if self.blender is None:
                    self.blender, task.embedding = self._begin_transition(task.shot, task.fallback)
                task.ab, task.confidence = self.blender(task.L)
            elif task.L is not None:
                ab, confidence, task.embedding = next(predictions)
                if self.fallback:
                    ab, self.share = self.fallback(task.L, ab, confidence, task.fallback)
                    self.lacks_fallback = task.lacks_fallback
                ab = self.predictor.lock_colors(self.filter(task.L, ab), task.L, shot.palette.named_colors)
                self.last = ColoredFrame(task.L, ab, confidence)
            if not (task.in_transition or self.config.keep_color_shots and shot.in_color):
                # A fade reduces chroma by the same factor as contrast.
                task.ab, task.confidence = self.last.ab / self.plan.exposure[task.index, 0], self.last.confidence
                task.lacks_fallback = self.lacks_fallback
            task.fallback_share = self.share if task.ab is not None else 0.0
            task.L = task.fallback = None

    def _begin_transition(self, number, fallback):
        """Return the blender for the transition at the end of shot ``number``, and the embedding of the next shot."""
        transition, palette = self.plan.shots[number].transition, self.plan.shots[number + 1].palette
        L = transition.next_lightness.astype(np.float32)
        ab, confidence, embeddings = self.predictor.predict_with_embeddings(L[None], palette)
        after = ColoredFrame(L, ab[0], next(confidence.per_picture()))
        if self.plan.fallback:
            after = after._replace(ab=FallbackBlender(self.plan.fallback)(L, *after[1:], fallback)[0])
        after = after._replace(ab=self.predictor.lock_colors(after.ab, L, palette.named_colors))
        side = self.config.temporal_filter.flow_size
        return TransitionBlender(transition.frames, transition.wipe, self.last, after, side), embeddings[0]


def to_planes(task: FrameTask, target: EncodingTarget, color_only: bool, box: Box | None = None) -> Planes:
    """Return the planes of a colored frame in the color encoding of ``target``.

    Luma is copied from the source, or MIDDLE_GRAY if ``color_only``. Cb and Cr are computed from ab inside the box, and
    are neutral outside. If ab is None, they are copied, too. Interlaced frames are converted field by field. Alpha and
    side data are those of the source.
    """
    order = task.planes.field_order
    if target.field_order and (order or not INTERLACED_ENCODERS[target.codec]):
        (height, width), fields = target.chroma_size, split_fields(task.planes)
        box = box and (box[0] // 2, box[1] // 2, *box[2:])
        result = weave_fields([
            _to_planes(field, task.ab, target.encoding, ((height + 1 - i) // 2, width), color_only, box)
            for i, field in enumerate(fields)], order)
    else:
        result = _to_planes(task.planes, task.ab, target.encoding, target.chroma_size, color_only, box)
    alpha, depth = task.planes.alpha, task.planes.encoding.depth
    return result._replace(source=task.planes.source,
                           alpha=None if alpha is None else scale_depth(alpha, depth, target.encoding.depth))


def _to_planes(planes, ab, encoding, size, color_only, box):
    y = change_depth(planes.y, planes.encoding.depth, encoding.depth)
    if ab is not None:
        cb, cr = (np.full(size, encoding.neutral_chroma, encoding.dtype) for _ in range(2))
        inside = plane_slices(box, planes.y.shape, size)
        height, width = cb[inside].shape
        cb[inside], cr[inside] = ab_to_chroma(planes.crop(box), ab, height, width, encoding)
    elif planes.cb is None or planes.cr is None:
        cb = cr = np.full(size, encoding.neutral_chroma, encoding.dtype)
    else:
        cb, cr = (change_depth(resize(plane, *size), planes.encoding.depth, encoding.depth)
                  for plane in (planes.cb, planes.cr))
    if color_only:
        black, white = encoding.luma_range
        y = np.full_like(y, round(black + (white - black) * MIDDLE_GRAY))
    return Planes(y, cb, cr, encoding)
