"""Where does one shot become the next bit by bit, and what are the colors there?

Of a dissolve, every frame is a mixture of a frame in front of it and one behind it, by one share for all places. Of a
wipe or an iris, every place is that of one of both. So motion is told from both: what moves is neither. Where
shots move much, a dissolve is told by its detail, which falls as it does by no motion. All is seen on small lumas,
uint8 (256, 256), without color; memory holds some seconds of vectors of 1,024 numbers.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from colorizer.warping.optical_flow import Flow, fetch
from dataset import resize
from film.analysis.shot_detection import judge_gray_cuts

SIDE, FINE = 32, 64  # of the pictures that are compared, and of those whose motion is told
PACE = 4  # frames by which it is told
REACHES = (3, 4, 5, 7, 9, 12, 14, 16, 18, 21, 24, 28, 35, 42)  # frames from the middle of a window to its ends
FLAT = 6.0  # standard deviation of luma, of 255, below which a picture shows nothing: black, white, a fade
ALIKE = 0.45  # correlation of the luma of two pictures above which they may be of one shot
CHANGED, BROAD = 12, 0.55  # luma changes by so much from shot to shot, on so large a share of the picture
HALF = 0.2  # the middle frame of a window is so near to half of both shots
MIXED, SWITCHED = 0.045, 0.04  # of the change, what is left by the best mixture, and by the nearer of both shots
MIDDLE, LOOSE = 1.5, 5.0  # the middle of a window may have so many times as much, the latter before motion is told
STAYS = 0.6  # of the places that show one shot, so many are seen in the other one, too, as it moves
AROUND = 9  # frames in front of a window and behind it that must be of the same shots, as far as the next cut
JUMP = 0.4  # a cut: the correlation of neighboring frames falls by so much
MOTION = 0.8  # of the change, what the shots change by themselves in front of the window and behind it
PARTS = 4  # of the width and of the height, whose detail is told
THIN = 0.3  # of what an even change leaves unexplained of the detail, what a dissolve may leave
FADES = 2.0  # a shot that has so many times its detail a little later fades, or its lens is being focused
SHORTEST = 3  # frames of a dissolve
STEP, BACK = 0.45, 0.15  # the share of the next shot grows by no more from frame to frame, and falls by no more in all
MARGIN = 3  # frames around a dissolve in which there is no cut
LATE = 3 * REACHES[-1] + 2 * MARGIN  # frames by which find_boundaries may be late


class Boundary(NamedTuple):
    """Frames [start, end) show two shots, ``end`` is the first frame of the next one alone; at a cut, both are one."""

    start: int
    end: int
    wipe: bool = False  # whether each place shows one of both shots, not a mixture


def find_boundaries(lumas: Iterable[np.ndarray]) -> Iterator[Boundary]:
    """Yield every Boundary of a film, in order, by luma uint8 (256, 256): dissolves, and the cuts of find_gray_cuts
    elsewhere. One is yielded at most LATE frames after its first frame."""
    finder, found, count = TransitionDetector(), [], 0

    def watched():
        nonlocal count
        for luma in lumas:
            count += 1
            enter(finder.process(luma))
            yield luma
        enter(finder.flush())

    def enter(dissolves):
        for new in dissolves:
            found[:] = [old for old in found if not new.start - MARGIN <= old.start <= new.end + MARGIN]
            found.append(new)

    for cuts in judge_gray_cuts(watched()):
        found.extend(Boundary(cut, cut) for cut in cuts
                     if not any(old.start - MARGIN <= cut <= old.end + MARGIN for old in found))
        found.sort()
        while found and found[0].start <= count - LATE:
            yield found.pop(0)
    yield from found


class _Seen(NamedTuple):
    """A frame as a vector."""

    picture: np.ndarray  # uint8 (FINE, FINE)
    luma: np.ndarray  # float32 (SIDE * SIDE,)
    centered: np.ndarray  # minus its mean, since brightness may flicker
    norm: float  # of ``centered``
    detail: np.ndarray  # float32 (PARTS * PARTS,): the mean squared gradient of each part
    since: int = 0  # the first frame behind the last cut in front of it


class _Fit(NamedTuple):
    """How well a window of frames is explained by two shots; the least misfit is the best."""

    misfit: float  # above 1 they do not explain it
    middle: int
    boundary: Boundary


class TransitionDetector:
    """Finds dissolves, wipes and irises of about 5 to 80 frames.

    A window is a frame and those up to one of REACHES in front of it and behind it; its ends must be of two shots, each
    of which changes little beyond them, and all frames between must be explained by both. Of windows that overlap, the
    one that is explained best counts.
    """

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque(maxlen=4 * REACHES[-1] + 1)
        self._count = self._end = 0  # frames seen, and the end of the last dissolve
        self._best: _Fit | None = None

    def process(self, luma: np.ndarray) -> list[Boundary]:
        """Take the next frame's luma; returns the dissolves, one at most, that this allows to judge."""
        frame = _look(resize(luma, FINE, FINE))
        if self._seen:
            cut = 1 - _alike(self._seen[-1], frame) > JUMP
            frame = frame._replace(since=self._count if cut else self._seen[-1].since)
        self._seen.append(frame)
        self._count += 1
        for reach in REACHES:
            self._judge(self._count - 1 - 2 * reach, reach)
        return self._settle(self._count - 2 * REACHES[-1] - MARGIN)

    def flush(self) -> list[Boundary]:
        """Judge what is left at the film's end; returns as ``process``."""
        found = []
        for middle in range(self._count - 2 * REACHES[-1], self._count):
            for reach in REACHES:
                if middle + 2 * reach >= self._count:
                    self._judge(middle, reach)
            found += self._settle(middle - REACHES[-1])
        return found + self._settle(self._count)

    def _settle(self, judged):
        """The best window as a list, once all around its middle are judged, those in front of ``judged``."""
        if self._best is None or self._best.middle > judged:
            return []
        boundary, self._best = self._best.boundary, None
        self._end = boundary.end
        return [boundary]

    def _judge(self, middle, reach):
        first = self._count - len(self._seen)
        start, stop = middle - reach, middle + reach
        if start < first:
            return
        around = min(reach, AROUND)
        before = max(start - around, first, self._seen[start - first].since)
        behind = min(stop + around, self._count - 1)
        while self._seen[behind - first].since > stop:
            behind = self._seen[behind - first].since - 1
        if start - before < 2 or behind - stop < 2:  # nothing is known of what is around
            return
        window = [self._seen[i - first] for i in range(before, behind + 1)]
        start, stop = start - before, stop - before
        if not _may_be(*(window[i] for i in (0, start, middle - before, stop, -1))):
            return
        fit = fit_window(window, start, stop, middle - reach)
        if fit is not None and fit.boundary.start > self._end and (self._best is None or fit < self._best):
            self._best = fit


def _may_be(before, start, middle, stop, behind):
    """Whether the ends of a window are of two shots, and its middle may be of both."""
    motion = max(1 - _alike(before, start), 1 - _alike(stop, behind))
    return motion <= MOTION * (1 - _alike(start, stop)) and _may_mix(start, stop, middle, LOOSE)


def _may_mix(one, other, frame, most):
    """Whether two pictures are of two shots and explain a frame of the middle, up to ``most`` times what is allowed."""
    if min(one.norm, other.norm) < FLAT * SIDE or _alike(one, other) > ALIKE:
        return False
    change, moved = other.centered - one.centered, frame.centered - one.centered
    share = moved @ change / (change @ change)
    if abs(share - 0.5) > HALF:
        return False
    mixed, change = np.square(moved - share * change).sum() / (change @ change), other.luma - one.luma
    nearer = np.minimum(np.square(frame.luma - one.luma), np.square(frame.luma - other.luma)).sum() / (change @ change)
    return (min(mixed / MIXED, nearer / SWITCHED) <= most
            and np.mean(np.abs(change - np.median(change)) > CHANGED) > BROAD)


def _alike(one, other):
    """The correlation of two frames, 0 if one shows nothing."""
    if min(one.norm, other.norm) < FLAT * SIDE / 2:
        return 0.0
    return float(one.centered @ other.centered) / (one.norm * other.norm)


def _look(picture):
    """What is Seen of a picture, (FINE, FINE)."""
    luma = resize(picture, SIDE, SIDE).astype(np.float32).ravel()
    centered = luma - luma.mean()
    x, y = (np.diff(picture.astype(np.float32), axis=axis, append=0)[:-1, :-1] for axis in (1, 0))
    detail = resize(np.square(x) + np.square(y), PARTS, PARTS).ravel()
    return _Seen(picture, luma, centered, float(np.linalg.norm(centered)), detail)


def fit_window(seen: list[_Seen], start: int, stop: int, first: int) -> _Fit | None:
    """Explain the frames seen[start:stop + 1], the film's from number ``first`` on, by the first and the last of them,
    as they are, by their detail, or as they go on moving; None if nothing does."""
    one, other, window = seen[start], seen[stop], seen[start:stop + 1]
    still = _fit(window, [one] * len(window), [other] * len(window), first)
    if still is not None:
        return still
    mixed = _fit_detail(seen, start, stop, first)
    if mixed is not None:
        return mixed
    flow = Flow()
    back, on = max(0, start - PACE), min(len(seen) - 1, stop + PACE)
    past = flow(one.picture, seen[back].picture) / (start - back)
    future = flow(other.picture, seen[on].picture) / (on - stop)
    reach = len(window) // 2

    def moved(i):
        return _look(fetch(one.picture, past * i)), _look(fetch(other.picture, future * (2 * reach - i)))

    # The middle alone tells most windows, in little time.
    middle, other_middle = moved(reach)
    if (not _may_mix(middle, other_middle, window[reach], MIDDLE)
            or _pans(window[reach], middle, other_middle, past * reach, future * reach)):
        return None
    ones, others = zip(*map(moved, range(len(window))), strict=True)
    return _fit(window, ones, others, first)


def _pans(frame, one, other, past, future):
    """Whether two pictures explain a frame like two ends of a pan: the other one alone where the motion leaves one."""
    changed = np.abs(one.luma - other.luma) > CHANGED
    behind = np.abs(frame.luma - other.luma) < np.abs(frame.luma - one.luma)
    return any(places.any() and _stays(flow)[places].mean() < STAYS
               for places, flow in ((changed & behind, past), (changed & ~behind, future)))


def _stays(flow):
    """Where a flow (FINE, FINE, 2) stays inside the picture, a share for each of SIDE * SIDE places."""
    y, x = np.indices(flow.shape[:2], dtype=np.float32)
    inside = (np.abs(x + flow[..., 0] - FINE / 2) <= FINE / 2) & (np.abs(y + flow[..., 1] - FINE / 2) <= FINE / 2)
    return resize(inside.astype(np.float32), SIDE, SIDE).ravel()


def _fit(window, ones, others, first):
    """Explain each frame of a window by those of both shots in its place."""
    lumas, first_lumas, last_lumas = (np.stack([frame.luma for frame in frames]) for frames in (window, ones, others))
    centered, moved, line = (np.stack([frame.centered for frame in frames]) for frames in (window, ones, others))
    moved, line = centered - moved, line - moved
    length = np.square(line).sum(1)
    share = (moved * line).sum(1) / length
    growth, between = np.diff(share), (share > 0.2) & (share < 0.8)
    if between.sum() < 3 or growth.max() > STEP or -growth[growth < 0].sum() > BACK:
        return None
    mixed = np.square(moved - share[:, None] * line).sum(1) / length
    change = last_lumas - first_lumas
    nearer = np.minimum(np.square(lumas - first_lumas), np.square(lumas - last_lumas)).sum(1) / np.square(change).sum(1)
    misfit, wipe = min((float(mixed[between].mean()) / MIXED, False), (float(nearer[between].mean()) / SWITCHED, True))
    slope, offset = np.polyfit(np.flatnonzero(between), share[between], 1)
    start, end = -offset / slope, (1 - offset) / slope
    if misfit > 1 or slope <= 0 or start < 0.5 or end > len(window) - 1.5:  # the ends show one shot, and then no more
        return None
    if wipe:  # by the places, since how they differ need not be even
        places = np.abs(change) > CHANGED
        switched = ((np.abs(lumas - last_lumas) < np.abs(lumas - first_lumas)) & places).sum(1) / places.sum(1)
        start, end = np.flatnonzero(switched > 0.04)[0] - 1, np.flatnonzero(switched < 0.96)[-1] + 1
        more = (end - start) / 5  # the first and the last places are few
        start, end = max(start - more, 0), min(end + more, len(window) - 1)
    boundary = Boundary(first + round(start) + 1, first + round(end), wipe)
    return _Fit(misfit, first + len(window) // 2, boundary) if boundary.end - boundary.start >= SHORTEST else None


def _fit_detail(seen, start, stop, first):
    """Explain the frames of a window as a dissolve by their detail alone, however they move: of two pictures whose
    gradients have nothing in common the mean squares add up, by the squares of the shares."""
    detail = np.stack([frame.detail for frame in seen])
    ends, around = detail[[start, stop]].sum(1), detail[[0, -1]].sum(1)
    if (np.maximum(ends, around) > FADES * np.minimum(ends, around)).any():
        return None
    detail = detail[start:stop + 1]
    last = len(detail) - 1
    if _left(detail, 0, last) > 2 * THIN:  # far from it, which tells most windows
        return None
    errors = {(one, other): _off(detail, one, other, 2).sum() for one in range(last // 4 + 1)
              for other in range(last - last // 4, last + 1) if other - one > SHORTEST}
    one, other = min(errors, key=errors.__getitem__)
    misfit = _left(detail, one, other) / THIN
    boundary = Boundary(first + one + 1, first + other)
    return _Fit(misfit, first + len(detail) // 2, boundary) if misfit <= 1 else None


def _left(detail, start, end):
    """What a dissolve of the frames between leaves unexplained, as a share of what an even change leaves."""
    between = slice(start + 1, end)
    return _off(detail, start, end, 2)[between].sum() / max(_off(detail, start, end, 1)[between].sum(), 1e-3)


def _off(detail, start, end, power):
    """How far the detail of each frame is off that of the first and the last one, by a power of their shares."""
    share = np.clip((np.arange(len(detail)) - start) / (end - start), 0, 1)[:, None]
    return np.abs(detail - (1 - share)**power * detail[0] - share**power * detail[-1]).sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# Colors


