"""What does the first pass over a film find? Its shots with their palettes, bars, light and response.

A film that has bars, or is looked at through a curve, is passed over once more, now without the one and through the
other.
"""

import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from colorizer.metrics import shot_has_color
from config import FilmConfig
from dataset import resize
from film.analysis.exposure import STEADY, ExposureTracker, normalize_exposure
from film.analysis.letterbox import Profile, find_boxes, margins, profile
from film.analysis.plan import FilmPredictor, Plan, Shot, Transition
from film.analysis.transitions import LATE, Boundary, find_boundaries
from film.io.planes import Planes
from film.io.video import DamageLog, Film, prefetch, pts_window
from utils import StreamSample, UserError

SAMPLES = 8  # frames of a shot that its palette is chosen by
LOOKS, LOOK = 12, 256  # frames of a film by which its response is found, and pixels along a side of them


class Sample(NamedTuple):
    """A frame that its shot is known by."""

    frame: int  # its number in the film
    lab: np.ndarray  # float32 (side, side, 3), with the L of the luma alone
    rgb: np.ndarray  # uint8 (side, side, 3)
    profile: Profile | None  # None where bars are known


class Samples:
    """Frames spread evenly over what is seen of the open shot alone; their profiles are wanted to find ``bars``."""

    def __init__(self, side: int, bars: bool) -> None:
        self.side, self.bars, self.seen = side, bars, 0
        self.recent = deque()  # (index, planes of side x side, Profile) that may belong to the next shot
        self.open: StreamSample[Sample] = StreamSample(SAMPLES)

    def add(self, planes: Planes) -> None:
        self.recent.append((self.seen, planes.downscale(self.side), profile(planes) if self.bars else None))
        self.seen += 1
        if len(self.recent) > LATE:
            self._keep(*self.recent.popleft())

    def _keep(self, index, planes, edges):
        def make():
            rgb = planes.rgb(self.side, self.side)
            lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)
            lab[..., 0] = planes.lightness(self.side)
            return Sample(index, lab, np.rint(rgb * 255).astype(np.uint8), edges)

        self.open.add(make)

    def close(self, boundary: Boundary) -> tuple[list[Sample], Transition | None]:
        """End the open shot; returns at most SAMPLES frames of it, and how it becomes the next one, None by a cut."""
        while self.recent and self.recent[0][0] < boundary.start:
            self._keep(*self.recent.popleft())
        while self.recent and self.recent[0][0] < boundary.end:
            self.recent.popleft()
        chosen, self.open = self.open.items(), StreamSample(SAMPLES)
        if boundary.start == boundary.end:
            return chosen, None
        following = self.recent[0][1].lightness(self.side).astype(np.float16)
        return chosen, Transition(boundary.end - boundary.start, boundary.wipe, following)


def analyze_film(film: Film, predictor: FilmPredictor, config: FilmConfig, found: Callable[[Plan], None] | None = None) -> Plan:
    """The first pass over a film: its Plan. A film that has bars or is looked at through a curve is read once more, for
    shots and palettes without the bars and through the curve. Raises UserError when no frame between start and end
    decodes.

    At the end of each shot, ``found(plan)`` gets what is known by then, as if the film had neither bars nor a Response.
    """
    looks: StreamSample[tuple[int, Sample]] = StreamSample(LOOKS)
    plan, response = _scan(film, predictor, config, looks, found=found), None
    if config.response == "auto":
        response = predictor.fit_response([_lightness(sample, plan.shots[number].box) for number, sample in looks.items()])
    if response and not response.is_identity or any(shot.box for shot in plan.shots):
        plan = _scan(film, predictor.with_response(response), config, StreamSample(LOOKS), plan)
    plan.response = response
    return plan


def _lightness(sample, box):
    """L of what lies in the box of a Sample of a whole frame, at most LOOK pixels along a side."""
    L, (rows, columns) = sample.lab[..., 0], map(len, sample.profile)
    side = min(LOOK, len(L))
    if box is not None:
        top, bottom, left, right = np.rint(np.array(box) * len(L) / [rows, rows, columns, columns]).astype(int)
        L = L[top:bottom, left:right]
    return resize(L, side, side)


def find_edited_boundaries(lumas: Iterator[np.ndarray], config: FilmConfig) -> Iterator[Boundary]:
    """Every Boundary of ``find_boundaries``, but for those at ``config.join_at``, and cuts at ``config.cut_at``."""
    cuts = sorted({cut for cut in config.cut_at if cut > 0})
    for start, cut in zip([0, *cuts], [*cuts, None], strict=True):
        for boundary in find_boundaries(itertools.islice(lumas, None if cut is None else cut - start)):
            if boundary.end + start not in config.join_at:
                yield boundary._replace(start=boundary.start + start, end=boundary.end + start)
        following = next(lumas, None)
        if cut is None or following is None:
            return
        lumas = itertools.chain([following], lumas)
        yield Boundary(cut, cut)


def _scan(film, predictor, config, looks, first=None, found=None):
    """The Plan of a film without its Response; ``looks`` gets some of its frames, each with the number of its shot. The
    Plan ``first``, of an earlier reading, tells of bars; without it, they are looked for."""
    samples, light, damage, pts = Samples(predictor.side, first is None), ExposureTracker(), DamageLog(), array("q")
    shots, told, lights, has_color = [], [], [], False
    begin, beyond = pts_window(film, config)
    duration, size = 0, (0, 0)

    def lumas():
        nonlocal duration, size
        frames = prefetch(film.read(begin, damage), 8)
        with closing(frames), tqdm(total=film.stated_frames or None, unit=" frames", desc="finding shots", leave=False,
                                   disable=None) as bar:
            for time_, length, planes in frames:
                if time_ >= beyond:
                    return
                if first is not None:
                    planes = planes.crop(first.box(len(pts), len(pts) + 1))
                pts.append(time_)
                duration, size = length, planes.y.shape
                samples.add(planes)
                bar.update()
                luma = planes.luma_uint8(256, 256)
                light.add(luma)
                yield luma

    def close(boundary):
        nonlocal has_color
        start, (chosen, blend) = shots[-1].end if shots else 0, samples.close(boundary)
        lights.append(light.of_shot(start, boundary.start))
        lights.append(STEADY.repeat(boundary.end - boundary.start, 0))
        for sample in chosen:
            sample.lab[..., 0] = normalize_exposure(sample.lab[..., 0], lights[-2][sample.frame - start])
            looks.add(partial(tuple, (len(shots), sample)))
        _, labs, pictures, profiles = zip(*chosen, strict=True)
        if first is None:
            told.append(margins(profiles))
        shots.append(Shot(start, boundary.end, predictor.palette(labs), shot_has_color(pictures),
                          first and first.box(start, boundary.end), blend))
        has_color = has_color or shots[-1].in_color
        if found:
            found(plan())

    def plan():
        return Plan(pts, duration, list(shots), has_color, np.concatenate(lights))

    for boundary in find_edited_boundaries(lumas(), config):
        close(boundary)
    if not pts:
        part = "" if (config.start, config.end) == (0, math.inf) else " between --start and --end"
        raise UserError(f"no frame of {film.path}{part} can be decoded")
    close(Boundary(len(pts), len(pts)))
    damage.report(film.path)
    if not duration:
        duration = pts[-1] - pts[-2] if len(pts) > 1 else max(1, round(1 / (film.rate * film.time_base)))
    if first is None:
        boxes = find_boxes(told, [shot.end - shot.start for shot in shots], size)
        shots = [replace(shot, box=box) for shot, box in zip(shots, boxes, strict=True)]
    return plan()
