"""Analysis of a film before coloring: its shots with palettes, letterbox, exposure and film response.

One pass over the film suffices unless it has a letterbox or a film response. With a letterbox, a second pass finds the
shots and palettes again, on the picture inside and with a predictor adapted to the response. With a response alone, the
frames that the palettes were recalled from are read again.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from colorizer.letterbox import Profile, find_boxes, luma_profile, measure_margins
from colorizer.metrics import shot_has_color
from colorizer.warping.propagation import signature
from config import FilmConfig
from dataset import resize
from film.analysis.exposure import NEUTRAL, ExposureTracker, normalize_exposure
from film.analysis.film_scan import FilmScan
from film.analysis.line_art import describe_line_art, is_line_art
from film.analysis.plan import FilmPredictor, Plan, Shot, Transition
from film.analysis.screentone import without_screen
from film.analysis.transitions import Boundary, TransitionConfig, find_boundaries
from film.io.frame_index import frames_at
from film.io.planes import Planes, gray_lightness
from film.io.thread_pool import coloring_threads, map_in_order
from film.io.video import Film, pts_window
from utils import StreamSample, warn

ANALYSIS_VERSION = 2  # increase it with each change that may give other shots, palettes or exposures
SHOT_SAMPLES = 8  # frames of a shot from which its palette is recalled
FILM_SAMPLES, RESPONSE_SIZE = 12, 256  # frames to which the film response is fitted, maximum side in pixels


class ReducedFrame(NamedTuple):
    """What the analysis needs of a frame."""

    number: int  # in the film
    planes: Planes  # downscaled to side x side pixels
    profile: Profile | None  # for letterbox detection; None in the second pass
    luma: np.ndarray  # uint8 (256, 256) in full range
    is_line: bool  # whether it is line art
    signature: np.ndarray  # of its lightness


class SampledFrame(NamedTuple):
    """A frame that represents its shot."""

    lab: np.ndarray  # float32 (side, side, 3), L computed from the luma only
    rgb: np.ndarray  # uint8 (side, side, 3)
    profile: Profile | None


class ShotSampler:
    """Samples up to SHOT_SAMPLES evenly spaced frames of each shot, without those of transitions."""

    def __init__(self) -> None:
        self.delay = TransitionConfig().max_delay
        self.recent: deque[ReducedFrame] = deque()  # frames that may be in a transition or later
        self.sample: StreamSample[ReducedFrame] = StreamSample(SHOT_SAMPLES)

    def add(self, frame: ReducedFrame) -> None:
        """Add the next frame of the film."""
        self.recent.append(frame)
        if len(self.recent) > self.delay:
            self._keep(self.recent.popleft())

    def _keep(self, frame):
        self.sample.add(lambda: frame)

    def end_shot(self, boundary: Boundary) -> tuple[list[ReducedFrame], Transition | None]:
        """End the current shot at ``boundary`` and start the next. Return the samples of the ended shot and the
        transition after it, if any; frames of the transition are not sampled."""
        while self.recent and self.recent[0].number < boundary.start:
            self._keep(self.recent.popleft())
        while self.recent and self.recent[0].number < boundary.end:
            self.recent.popleft()
        samples = self.sample.items()
        self.sample = StreamSample(SHOT_SAMPLES)
        if boundary.start == boundary.end:
            return samples, None
        following = self.recent[0].planes
        L = _input_lightness(following, len(following.y)).astype(np.float16)
        return samples, Transition(boundary.end - boundary.start, boundary.wipe, L)


def analyze_film(film: Film, predictor: FilmPredictor, config: FilmConfig,
                 on_shot: Callable[[Plan], None] | None = None) -> Plan:
    """Return the plan of a film, from one analysis pass or, if it has a letterbox, from two.

    At the end of each shot in the first pass, ``on_shot`` receives a plan of the shots found so far, without letterbox
    boxes and film response. Raises UserError if no frame between ``config.start`` and ``config.end`` can be decoded.
    """
    first_pass = last_pass = _AnalysisPass(film, predictor, config, on_shot=on_shot)
    plan, response = first_pass.run(), None
    if config.boundaries:
        _compare_length(config, len(plan.pts))
    if config.response == "auto":
        response = predictor.fit_response([_picture_lightness(sample, plan.shots[number].box)
                                           for number, sample in first_pass.film_sample.items()])
    if any(shot.box for shot in plan.shots):
        # A cut where only the borders change cannot be found inside of them.
        cuts = [shot.start for before, shot in itertools.pairwise(plan.shots)
                if shot.box != before.box and before.transition is None]
        config = replace(config, cut_at=[*config.cut_at, *cuts])
        last_pass = _AnalysisPass(film, predictor.with_response(response), config, plan)
        plan = last_pass.run()
    elif response and not response.is_identity:
        palettes = _recall_palettes(film, plan, first_pass.sampled, predictor.with_response(response))
        plan.shots = [replace(shot, palette=palette) for shot, palette in zip(plan.shots, palettes, strict=True)]
    if lines := describe_line_art(last_pass.is_line, [(shot.start, shot.end) for shot in plan.shots]):
        warn(f"{film.path}: {lines}")
    plan.response = response
    return plan


def _recall_palettes(film, plan, sampled, predictor):
    """Yield the palette of each shot, given the frame numbers ``sampled`` of the shots."""
    numbers = itertools.chain.from_iterable(sampled)
    with closing(frames_at(film, plan.index, numbers)) as frames:
        for of_shot in sampled:
            labs = []
            for number, planes in itertools.islice(frames, len(of_shot)):
                lab = np.zeros((predictor.side, predictor.side, 3), np.float32)
                lab[..., 0] = normalize_exposure(_input_lightness(planes, predictor.side), plan.exposure[number])
                labs.append(lab)
            yield predictor.palette(labs)


def _input_lightness(planes, side):
    """Return L (side, side) of a frame, without screentone."""
    return without_screen(planes.lightness(side))


def _picture_lightness(sample, box):
    """Return L of a sampled frame inside ``box``, reduced to at most RESPONSE_SIZE pixels per side."""
    L, (rows, columns) = sample.lab[..., 0], map(len, sample.profile)
    side = min(RESPONSE_SIZE, len(L))
    if box is not None:
        top, bottom, left, right = np.rint(np.array(box) * len(L) / [rows, rows, columns, columns]).astype(int)
        L = L[top:bottom, left:right]
    return resize(L, side, side)


def find_edited_boundaries(lumas: Iterator[np.ndarray], config: FilmConfig) -> Iterator[Boundary]:
    """Yield the boundaries found in the frames ``lumas``, or ``config.boundaries``, edited by the user: without
    boundaries that end at a frame in ``config.join_at``, and with a cut at each frame in ``config.cut_at``."""
    cuts = sorted({cut for cut in config.cut_at if cut > 0})
    if config.boundaries is not None:
        boundaries = [Boundary(*boundary) for boundary in config.boundaries] + [Boundary(cut, cut) for cut in cuts]
        listed = {boundary.end: boundary for boundary in boundaries
                  if boundary.end not in config.join_at or boundary.end in cuts}
        yield from _follow_boundaries(lumas, [listed[end] for end in sorted(listed)])
        return
    for start, cut in zip([0, *cuts], [*cuts, None], strict=True):
        for boundary in find_boundaries(itertools.islice(lumas, None if cut is None else cut - start)):
            if boundary.end + start not in config.join_at:
                yield boundary.shift(start)
        following = next(lumas, None)
        if cut is None or following is None:
            return
        lumas = itertools.chain([following], lumas)
        yield Boundary(cut, cut)


def _follow_boundaries(lumas, boundaries):
    """Yield each boundary at its end. A transition leaves at least one frame of the shot before it."""
    remaining, start = deque(boundaries), 0
    for index, _ in enumerate(lumas):
        if remaining and remaining[0].end == index:
            boundary = remaining.popleft()
            yield boundary._replace(start=min(max(boundary.start, start + 1), index))
            start = index


def _compare_length(config, frames):
    """Warn if the last one of ``config.boundaries``, the end of the list, is not the end of the film."""
    missing = frames - max(end for _, end, _ in config.boundaries)
    if missing > 0:
        warn(f"the cut list ends {missing} frames before the film, and these frames are one shot; list all cuts")
    elif missing and config.end == math.inf:
        warn(f"the cut list ends {-missing} frames after the film; check that it belongs to this film")


class _AnalysisPass:
    """One analysis pass over a film. The first pass finds the letterbox boxes. The second pass receives the plan of the
    first one as ``previous`` and analyzes only the pictures inside these boxes."""

    def __init__(self, film: Film, predictor: FilmPredictor, config: FilmConfig, previous: Plan | None = None,
                 on_shot: Callable[[Plan], None] | None = None) -> None:
        self.film, self.predictor, self.config, self.previous, self.on_shot = film, predictor, config, previous, on_shot
        self.scan = FilmScan(film, *pts_window(film, config))
        self.sampler = ShotSampler()
        self.film_sample: StreamSample[Any] = StreamSample(FILM_SAMPLES)  # (shot index, SampledFrame)
        self.tracker = ExposureTracker()
        self.shots, self.exposures, self.margins, self.signatures, self.is_line = [], [], [], [], []
        self.sampled: list[list[int]] = []  # numbers of the sampled frames of each shot
        self.start = 0  # of the current shot
        self.described: deque[Future[Any]] = deque()  # samples and Shot of ended shots that are not in ``shots`` yet

    def run(self) -> Plan:
        """Decode the film and return its plan, without the film response."""
        pts, film = self.scan.pts, self.film
        with coloring_threads() as pool:
            for boundary in find_edited_boundaries(self._lumas(pool), self.config):
                self._end_shot(boundary, pool)
            whole = (self.config.start, self.config.end) == (0, math.inf)
            self.scan.require_frames("" if whole else " between --start and --end")
            self._end_shot(Boundary(len(pts), len(pts)), pool)
            self._add_shots()
        if self.previous is None:
            self.scan.report_damage()
        if not self.scan.last_duration:
            self.scan.last_duration = (pts[-1] - pts[-2] if len(pts) > 1 else
                                       max(1, round(1 / (film.info.rate * film.info.time_base))))
        if self.previous is None:
            boxes = find_boxes(self.margins, [shot.end - shot.start for shot in self.shots], self.scan.size)
            self.shots = [replace(shot, box=box) for shot, box in zip(self.shots, boxes, strict=True)]
        return self._plan()

    def _plan(self):
        return Plan(self.scan.pts, self.scan.last_duration, list(self.shots), any(shot.in_color for shot in self.shots),
                    np.concatenate(self.exposures), np.stack(self.signatures), checksums=self.scan.checksums)

    def _lumas(self, pool):
        """Yield the luma of each frame, uint8 (256, 256), after it was added to the results of the pass."""
        with closing(self.scan.frames()) as frames:
            for _, reduced in map_in_order(pool, self._reduce, enumerate(frames)):
                self.sampler.add(reduced)
                self.tracker.add(reduced.luma)
                self.is_line.append(reduced.is_line)
                self.signatures.append(reduced.signature)
                yield reduced.luma

    def _reduce(self, frame):
        """Return the ReducedFrame of a frame (number, planes)."""
        number, planes = frame
        if self.previous is not None:
            planes = planes.crop(self.previous.box(number, number + 1))
        luma = planes.luma_uint8(256, 256)
        L = gray_lightness(luma / np.float32(255))
        return ReducedFrame(
            number, planes.downscale(self.predictor.side),
            luma_profile(planes.y, planes.encoding.luma_range) if self.previous is None else None,
            luma, is_line_art(luma), signature(np.rint(L * 2.55).astype(np.uint8)))

    def _end_shot(self, boundary, pool):
        """Submit the shot that ends at ``boundary`` to the pool, which recalls its palette; add those before it."""
        start, self.start = self.start, boundary.end
        frames, transition = self.sampler.end_shot(boundary)
        exposure = self.tracker.shot_exposure(start, boundary.start)
        self.exposures += [exposure, np.tile(np.array(NEUTRAL, np.float32), (boundary.end - boundary.start, 1))]
        self.sampled.append([frame.number for frame in frames])
        box = None if self.previous is None else self.previous.box(start, boundary.end)
        fields = self.scan.fields.shot_order(start, boundary.end)

        def describe():
            samples = [self._sample(frame, exposure[frame.number - start]) for frame in frames]
            palette = self.predictor.palette([sample.lab for sample in samples])
            in_color = shot_has_color([sample.rgb for sample in samples])
            return samples, Shot(start, boundary.end, palette, in_color, box, transition, *fields)

        self._add_shots(keep=1)
        self.described.append(pool.submit(describe))

    def _sample(self, frame, exposure):
        rgb = frame.planes.rgb(self.predictor.side, self.predictor.side)
        lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)
        lab[..., 0] = normalize_exposure(_input_lightness(frame.planes, self.predictor.side), exposure)
        return SampledFrame(lab, np.rint(rgb * 255).astype(np.uint8), frame.profile)

    def _add_shots(self, keep=0):
        """Wait for the shots that the pool describes and add them in order, except for the last ``keep``."""
        while len(self.described) > keep:
            samples, shot = self.described.popleft().result()
            for sample in samples:
                self.film_sample.add(partial(tuple, (len(self.shots), sample)))
            if self.previous is None:
                self.margins.append(measure_margins([sample.profile for sample in samples]))
            self.shots.append(shot)
            if self.on_shot:
                self.on_shot(self._plan())
