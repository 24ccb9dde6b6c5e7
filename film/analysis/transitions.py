"""Detection of gradual transitions between shots (dissolves, wipes, irises) on luma uint8 (256, 256).

In a dissolve, each frame is a mixture of the frame before the dissolve and the frame after it, with one weight for all
pixels. In a wipe or an iris, each pixel shows one of the two shots. Moving shots are extrapolated along their optical
flow. If the motion is too large, a dissolve is detected by the loss of detail, which is greatest in its middle.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from colorizer.warping.optical_flow import OpticalFlow, warp
from dataset import resize
from film.analysis.shot_detection import find_gray_cuts


@dataclass(frozen=True)
class TransitionConfig:
    """Constants of the transition detector, chosen on drawn and real films. Luma is 8-bit, errors are relative to the
    squared difference of the two shots."""

    # Frames and windows. A window is a middle frame with ``half_length`` frames before it and after it.
    size: int = 32  # side of the compared pictures; larger notices smaller changes and takes longer
    flow_size: int = 64  # side of the pictures for optical flow; larger follows finer motion and takes longer
    flow_frames: int = 4  # frames over which motion is measured; larger is steadier for slow motion, wrong for fast
    half_lengths: tuple[int, ...] = (3, 4, 5, 7, 9, 12, 14, 16, 18, 21, 24, 28, 35, 42)  # more finds longer transitions
    context: int = 9  # frames on each side of a window that must belong to its shots; larger rejects more
    cut_correlation_drop: float = 0.4  # drop between neighboring frames that is a cut; larger finds fewer cuts
    cut_margin: int = 3  # frames around a transition without cuts; larger drops more cuts

    # Whether the ends of a window show two shots
    flat_std: float = 6.0  # standard deviation below which a picture is blank; larger ignores more low-contrast shots
    max_end_correlation: float = 0.45  # of the ends of a window; larger accepts shots that are more similar
    max_end_motion: float = 0.8  # change within each shot relative to that between them; larger accepts more motion
    changed_luma: float = 12.0  # difference of a changed pixel; larger ignores weaker changes
    min_changed_share: float = 0.55  # share of changed pixels; larger rejects more changes of a part of the picture

    # Whether the other frames are mixtures of the two shots, or switch pixel by pixel
    max_middle_offset: float = 0.2  # of the weight in the middle frame from 0.5; larger accepts windows off center
    max_mixture_error: float = 0.045  # mean error of a dissolve; larger accepts worse matches
    max_switch_error: float = 0.04  # mean error of a wipe; larger accepts worse matches
    middle_tolerance: float = 1.5  # factor of both errors in the middle frame; larger tests more windows in full
    still_tolerance: float = 5.0  # the same before motion is compensated
    min_visible_share: float = 0.6  # of the pixels of a moving shot; larger rejects more pans
    max_weight_step: float = 0.45  # growth of the weight between frames; larger accepts more abrupt transitions
    max_weight_decrease: float = 0.15  # sum of all decreases; larger accepts more irregular transitions
    min_frames: int = 3  # minimum length of a transition; larger drops short dissolves and wipes

    # Dissolves of moving shots
    detail_cells: int = 4  # cells per side for measuring detail; larger resolves finer changes and is noisier
    max_detail_error: float = 0.3  # relative to a linear change of the detail; larger accepts worse matches
    max_detail_ratio: float = 2.0  # change of detail within a shot; larger takes more fades for dissolves

    @property
    def max_delay(self) -> int:
        """Maximum number of frames between the first frame of a transition and its report."""
        return 3 * self.half_lengths[-1] + 2 * self.cut_margin


class Boundary(NamedTuple):
    """The end of a shot: frames [start, end) show both shots, and ``end`` is the first frame that shows only the next
    shot. At a cut, ``start`` equals ``end``."""

    start: int
    end: int
    wipe: bool = False  # True: each pixel shows one of both shots; False: a mixture of both

    def shift(self, frames: int) -> "Boundary":
        """Return the boundary ``frames`` frames later."""
        return self._replace(start=self.start + frames, end=self.end + frames)


def find_boundaries(lumas: Iterable[np.ndarray], config: TransitionConfig | None = None) -> Iterator[Boundary]:
    """Yield the boundaries of all shots of a film in order: transitions, and the cuts outside of transitions.

    A boundary is yielded at most ``config.max_delay`` frames after its first frame, plus the delay of the cut detector.
    """
    config = config or TransitionConfig()
    detector, found, count = TransitionDetector(config), [], 0

    def detect_transitions():
        nonlocal count
        for luma in lumas:
            count += 1
            add(detector.process(luma))
            yield luma
        add(detector.flush())

    def add(transitions):
        for new in transitions:
            found[:] = [old for old in found if not _near(old.start, new, config)]
            found.append(new)

    for cuts in find_gray_cuts(detect_transitions()):
        found.extend(Boundary(cut, cut) for cut in cuts if not any(_near(cut, old, config) for old in found))
        found.sort()
        while found and found[0].start <= count - config.max_delay:
            yield found.pop(0)
    yield from found


def _near(frame, boundary, config):
    return boundary.start - config.cut_margin <= frame <= boundary.end + config.cut_margin


class _Frame(NamedTuple):
    """A frame in the representations used to explain windows."""

    picture: np.ndarray  # uint8 (flow_size, flow_size)
    luma: np.ndarray  # float32 (size * size,)
    centered: np.ndarray  # luma minus its mean, which is robust against flicker
    norm: float  # Euclidean norm of ``centered``
    detail: np.ndarray  # float32 (detail_cells ** 2,), mean squared gradient of each cell
    shot_start: int = 0  # number of the first frame after the last cut


class _Candidate(NamedTuple):
    """A window and the transition that explains it; candidates are ordered by error."""

    error: float  # relative to the maximum; at most 1
    middle: int
    boundary: Boundary


class TransitionDetector:
    """Finds dissolves, wipes and irises of about 5 to 80 frames.

    A window is tested if its ends show different shots that change little beyond the window. If transitions explain
    several overlapping windows, the one with the smallest error is reported.
    """

    def __init__(self, config: TransitionConfig | None = None) -> None:
        self.config = config or TransitionConfig()
        self.model = WindowModel(self.config)
        self._frames: deque[_Frame] = deque(maxlen=4 * self.config.half_lengths[-1] + 1)
        self._count = self._end = 0  # number of frames added, and end of the last transition
        self._best: _Candidate | None = None

    def process(self, luma: np.ndarray) -> list[Boundary]:
        """Add the luma of the next frame; return the transitions (at most one) that are now certain."""
        side, longest = self.config.flow_size, self.config.half_lengths[-1]
        frame = self.model.frame(resize(luma, side, side))
        if self._frames:
            cut = 1 - self.model.correlation(self._frames[-1], frame) > self.config.cut_correlation_drop
            frame = frame._replace(shot_start=self._count if cut else self._frames[-1].shot_start)
        self._frames.append(frame)
        self._count += 1
        for half_length in self.config.half_lengths:
            self._test(self._count - 1 - 2 * half_length, half_length)
        return self._settle(self._count - 2 * longest - self.config.cut_margin)

    def flush(self) -> list[Boundary]:
        """Return the transitions that are left at the end of the film."""
        found, longest = [], self.config.half_lengths[-1]
        for middle in range(self._count - 2 * longest, self._count):
            for half_length in self.config.half_lengths:
                if middle + 2 * half_length >= self._count:
                    self._test(middle, half_length)
            found += self._settle(middle - longest)
        return found + self._settle(self._count)

    def _settle(self, middle):
        """If the best transition so far is centered at or before ``middle``, so that all windows near it have been
        tested, return it in a list and reset it; otherwise return []."""
        if self._best is None or self._best.middle > middle:
            return []
        boundary, self._best = self._best.boundary, None
        self._end = boundary.end
        return [boundary]

    def _test(self, middle, half_length):
        first = self._count - len(self._frames)
        start, stop = middle - half_length, middle + half_length
        if start < first:
            return
        context = min(half_length, self.config.context)
        before = max(start - context, first, self._frames[start - first].shot_start)
        after = min(stop + context, self._count - 1)
        while self._frames[after - first].shot_start > stop:
            after = self._frames[after - first].shot_start - 1
        if start - before < 2 or after - stop < 2:  # too little context
            return
        frames = [self._frames[i - first] for i in range(before, after + 1)]
        candidate = self.model.explain(frames, start - before, stop - before, start)
        if candidate is not None and candidate.boundary.start > self._end and (
                self._best is None or candidate < self._best):
            self._best = candidate


class WindowModel:
    """Explains the frames of a window by its first and its last frame."""

    def __init__(self, config: TransitionConfig) -> None:
        self.config = config

    def frame(self, picture: np.ndarray) -> _Frame:
        """Compute the representations of a picture uint8 (flow_size, flow_size)."""
        size, cells = self.config.size, self.config.detail_cells
        luma = resize(picture, size, size).astype(np.float32).ravel()
        centered = luma - luma.mean()
        x, y = (np.diff(picture.astype(np.float32), axis=axis, append=0)[:-1, :-1] for axis in (1, 0))
        detail = resize(np.square(x) + np.square(y), cells, cells).ravel()
        return _Frame(picture, luma, centered, float(np.linalg.norm(centered)), detail)

    def correlation(self, a: _Frame, b: _Frame) -> float:
        """Return the correlation of two frames; 0 if one of them is blank."""
        if min(a.norm, b.norm) < self.config.flat_std * self.config.size / 2:
            return 0.0
        return float(a.centered @ b.centered) / (a.norm * b.norm)

    def explain(self, frames: list[_Frame], start: int, stop: int, first: int) -> _Candidate | None:
        """Return the transition that explains the window frames[start:stop + 1], or None.

        ``first`` is the number of frames[start] in the film. Tries still shots, then the detail, then moving shots.
        """
        a, b, window = frames[start], frames[stop], frames[start:stop + 1]
        half_length = len(window) // 2
        motion = max(1 - self.correlation(frames[0], a), 1 - self.correlation(b, frames[-1]))
        if (motion > self.config.max_end_motion * (1 - self.correlation(a, b))
                or not self._explains_middle(a, b, window[half_length], self.config.still_tolerance)):
            return None
        candidate = (self._fit(window, [a] * len(window), [b] * len(window), first)
                     or self._fit_detail(frames, start, stop, first))
        if candidate is not None:
            return candidate
        flow = OpticalFlow()
        back, ahead = max(0, start - self.config.flow_frames), min(len(frames) - 1, stop + self.config.flow_frames)
        past = flow(a.picture, frames[back].picture) / (start - back)
        future = flow(b.picture, frames[ahead].picture) / (ahead - stop)

        def extrapolate(i):
            return (self.frame(warp(a.picture, past * i)),
                    self.frame(warp(b.picture, future * (2 * half_length - i))))

        # The middle frame alone decides most windows in little time.
        a_middle, b_middle = extrapolate(half_length)
        if (not self._explains_middle(a_middle, b_middle, window[half_length], self.config.middle_tolerance)
                or self._is_pan(window[half_length], a_middle, b_middle, past * half_length, future * half_length)):
            return None
        a_frames, b_frames = zip(*map(extrapolate, range(len(window))), strict=True)
        return self._fit(window, a_frames, b_frames, first)

    def _explains_middle(self, a, b, frame, tolerance):
        """Return whether two pictures show different shots and explain the middle frame of a window, with at most
        ``tolerance`` times the maximum errors."""
        config = self.config
        if min(a.norm, b.norm) < config.flat_std * config.size or self.correlation(a, b) > config.max_end_correlation:
            return False
        change, offset = b.centered - a.centered, frame.centered - a.centered
        energy = change @ change
        weight = offset @ change / energy
        if abs(weight - 0.5) > config.max_middle_offset:
            return False
        mixture_error, change = np.square(offset - weight * change).sum() / energy, b.luma - a.luma
        switch_error = np.minimum(np.square(frame.luma - a.luma), np.square(frame.luma - b.luma)).sum() / (
            change @ change)
        return (min(mixture_error / config.max_mixture_error, switch_error / config.max_switch_error) <= tolerance
                and np.mean(np.abs(change - np.median(change)) > config.changed_luma) > config.min_changed_share)

    def _is_pan(self, frame, a, b, past, future):
        """Return whether pictures ``a`` and ``b`` are the ends of a pan: where ``frame`` shows one of them, the other
        has moved out of the picture."""
        changed = np.abs(a.luma - b.luma) > self.config.changed_luma
        shows_b = np.abs(frame.luma - b.luma) < np.abs(frame.luma - a.luma)
        return any(pixels.any() and self._visible_share(flow)[pixels].mean() < self.config.min_visible_share
                   for pixels, flow in ((changed & shows_b, past), (changed & ~shows_b, future)))

    def _visible_share(self, flow):
        """Return (size * size,), the share of each pixel that a flow (flow_size, flow_size, 2) keeps in the picture."""
        y, x = np.indices(flow.shape[:2], dtype=np.float32)
        half = len(flow) / 2
        inside = (np.abs(x + flow[..., 0] - half) <= half) & (np.abs(y + flow[..., 1] - half) <= half)
        return resize(inside.astype(np.float32), self.config.size, self.config.size).ravel()

    def _fit(self, window, a_frames, b_frames, first):
        """Return a candidate if the frames of both shots explain each frame of a window, else None."""
        config = self.config
        lumas, a_lumas, b_lumas = (np.stack([frame.luma for frame in each]) for each in (window, a_frames, b_frames))
        centered, a, b = (np.stack([frame.centered for frame in each]) for each in (window, a_frames, b_frames))
        offset, change = centered - a, b - a
        energy = np.square(change).sum(1)
        weight = (offset * change).sum(1) / energy
        growth, between = np.diff(weight), (weight > 0.2) & (weight < 0.8)
        if (between.sum() < 3 or growth.max() > config.max_weight_step
                or -growth[growth < 0].sum() > config.max_weight_decrease):
            return None
        mixture_error = np.square(offset - weight[:, None] * change).sum(1) / energy
        change = b_lumas - a_lumas
        switch_error = (np.minimum(np.square(lumas - a_lumas), np.square(lumas - b_lumas)).sum(1)
                        / np.square(change).sum(1))
        error, wipe = min((float(mixture_error[between].mean()) / config.max_mixture_error, False),
                          (float(switch_error[between].mean()) / config.max_switch_error, True))
        slope, offset = np.polyfit(np.flatnonzero(between), weight[between], 1)
        start, end = -offset / slope, (1 - offset) / slope
        if error > 1 or slope <= 0 or start < 0.5 or end > len(window) - 1.5:  # both ends must show a single shot
            return None
        if wipe:  # counted in pixels, since their differences may be uneven
            changed = np.abs(change) > config.changed_luma
            switched = ((np.abs(lumas - b_lumas) < np.abs(lumas - a_lumas)) & changed).sum(1) / changed.sum(1)
            start, end = np.flatnonzero(switched > 0.04)[0] - 1, np.flatnonzero(switched < 0.96)[-1] + 1
            extension = (end - start) / 5  # few pixels switch in the first and last frames
            start, end = max(start - extension, 0), min(end + extension, len(window) - 1)
        boundary = Boundary(first + round(start) + 1, first + round(end), wipe)
        long_enough = boundary.end - boundary.start >= config.min_frames
        return _Candidate(error, first + len(window) // 2, boundary) if long_enough else None

    def _fit_detail(self, frames, start, stop, first):
        """Return a candidate if a dissolve explains the detail of a window, else None. Motion does not matter: the mean
        squared gradients of unrelated pictures add up with the squares of their weights."""
        detail = np.stack([frame.detail for frame in frames])
        ends, context = detail[[start, stop]].sum(1), detail[[0, -1]].sum(1)
        if (np.maximum(ends, context) > self.config.max_detail_ratio * np.minimum(ends, context)).any():
            return None
        detail = detail[start:stop + 1]
        last = len(detail) - 1
        if _detail_error(detail, 0, last) > 2 * self.config.max_detail_error:  # decides most windows early
            return None
        errors = {(a, b): _detail_deviation(detail, a, b, 2).sum() for a in range(last // 4 + 1)
                  for b in range(last - last // 4, last + 1) if b - a > self.config.min_frames}
        a, b = min(errors, key=errors.__getitem__)
        error = _detail_error(detail, a, b) / self.config.max_detail_error
        return _Candidate(error, first + len(detail) // 2, Boundary(first + a + 1, first + b)) if error <= 1 else None


def _detail_error(detail, start, end):
    """Return the deviation of the detail from that of a dissolve, divided by its deviation from a linear change."""
    between = slice(start + 1, end)
    return (_detail_deviation(detail, start, end, 2)[between].sum()
            / max(_detail_deviation(detail, start, end, 1)[between].sum(), 1e-3))


def _detail_deviation(detail, start, end, power):
    """Return the deviation of each frame from (1 - w)^power * first detail + w^power * last detail, where w grows from
    0 at frame ``start`` to 1 at frame ``end``."""
    weight = np.clip((np.arange(len(detail)) - start) / (end - start), 0, 1)[:, None]
    return np.abs(detail - (1 - weight)**power * detail[0] - weight**power * detail[-1]).sum(1)
