"""Analysis of a film before coloring: its shots with palettes, letterbox, exposure and film response.

One pass over the film suffices unless it has a letterbox or a film response. With a letterbox, a second pass finds the
shots and palettes again, on the picture inside and with a predictor adapted to the response. With a response alone, the
frames that the palettes were recalled from are read again.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from colorizer.letterbox import find_boxes, luma_profile, measure_margins
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
from film.io.video import Film, pts_window
from utils import StreamSample, warn

ANALYSIS_VERSION = 2  # increase it with each change that may give other shots, palettes or exposures
SHOT_SAMPLES = 8  # frames of a shot from which its palette is recalled
FILM_SAMPLES, RESPONSE_SIZE = 12, 256  # frames to which the film response is fitted, maximum side in pixels


class SampledFrame(NamedTuple):
    """A frame that represents its shot."""

    number: int  # frame number in the film
    lab: np.ndarray  # float32 (side, side, 3), L computed from the luma only
    rgb: np.ndarray  # uint8 (side, side, 3)
    profile: Any  # Profile for letterbox detection; None in the second pass


class ShotSampler:
    """Samples up to SHOT_SAMPLES evenly spaced frames of each shot, without those of transitions."""

    def __init__(self, side: int, with_profiles: bool) -> None:
        self.side, self.with_profiles, self.count = side, with_profiles, 0
        self.delay = TransitionConfig().max_delay
        self.recent = deque()  # (index, reduced planes, Profile) of frames that may be in a transition or later
        self.sample: StreamSample[Any] = StreamSample(SHOT_SAMPLES)  # items as those of ``recent``

    def add(self, planes: Planes) -> None:
        """Add the next frame of the film."""
        profile = luma_profile(planes.y, planes.encoding.luma_range) if self.with_profiles else None
        self.recent.append((self.count, planes.downscale(self.side), profile))
        self.count += 1
        if len(self.recent) > self.delay:
            self._keep(*self.recent.popleft())

    def _keep(self, index, planes, profile):
        self.sample.add(lambda: (index, planes, profile))

    def _convert(self, index, planes, profile):
        rgb = planes.rgb(self.side, self.side)
        lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)
        lab[..., 0] = _input_lightness(planes, self.side)
        return SampledFrame(index, lab, np.rint(rgb * 255).astype(np.uint8), profile)

    def end_shot(self, boundary: Boundary) -> tuple[list[SampledFrame], Transition | None]:
        """End the current shot at ``boundary`` and start the next. Return the samples of the ended shot and the
        transition after it, if any; frames of the transition are not sampled."""
        while self.recent and self.recent[0][0] < boundary.start:
            self._keep(*self.recent.popleft())
        while self.recent and self.recent[0][0] < boundary.end:
            self.recent.popleft()
        samples = [self._convert(*frame) for frame in self.sample.items()]
        self.sample = StreamSample(SHOT_SAMPLES)
        if boundary.start == boundary.end:
            return samples, None
        following = _input_lightness(self.recent[0][1], self.side).astype(np.float16)
        return samples, Transition(boundary.end - boundary.start, boundary.wipe, following)


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
        self.sampler = ShotSampler(predictor.side, with_profiles=previous is None)
        self.film_sample: StreamSample[Any] = StreamSample(FILM_SAMPLES)  # (shot index, SampledFrame)
        self.tracker = ExposureTracker()
        self.shots, self.exposures, self.margins, self.signatures, self.is_line = [], [], [], [], []
        self.sampled: list[list[int]] = []  # numbers of the sampled frames of each shot

    def run(self) -> Plan:
        """Decode the film and return its plan, without the film response."""
        for boundary in find_edited_boundaries(self._lumas(), self.config):
            self._end_shot(boundary)
        whole = (self.config.start, self.config.end) == (0, math.inf)
        self.scan.require_frames("" if whole else " between --start and --end")
        pts, film = self.scan.pts, self.film
        self._end_shot(Boundary(len(pts), len(pts)))
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

    def _lumas(self):
        with closing(self.scan.frames()) as frames:
            for index, planes in enumerate(frames):
                if self.previous is not None:
                    planes = planes.crop(self.previous.box(index, index + 1))
                self.sampler.add(planes)
                luma = planes.luma_uint8(256, 256)
                self.tracker.add(luma)
                self.is_line.append(is_line_art(luma))
                L = gray_lightness(luma / np.float32(255))
                self.signatures.append(signature(np.rint(L * 2.55).astype(np.uint8)))
                yield luma

    def _end_shot(self, boundary):
        start = self.shots[-1].end if self.shots else 0
        samples, transition = self.sampler.end_shot(boundary)
        exposure = self.tracker.shot_exposure(start, boundary.start)
        self.exposures += [exposure, np.tile(np.array(NEUTRAL, np.float32), (boundary.end - boundary.start, 1))]
        for sample in samples:
            sample.lab[..., 0] = normalize_exposure(sample.lab[..., 0], exposure[sample.number - start])
            self.film_sample.add(partial(tuple, (len(self.shots), sample)))
        self.sampled.append([sample.number for sample in samples])
        if self.previous is None:
            self.margins.append(measure_margins([sample.profile for sample in samples]))
        box = None if self.previous is None else self.previous.box(start, boundary.end)
        self.shots.append(Shot(start, boundary.end, self.predictor.palette([sample.lab for sample in samples]),
                               shot_has_color([sample.rgb for sample in samples]), box, transition,
                               *self.scan.fields.shot_order(start, boundary.end)))
        if self.on_shot:
            self.on_shot(self._plan())
