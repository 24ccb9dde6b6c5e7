"""Which part of a film's picture is bars? Margins that are dark and flat, and end at a straight edge.

A few frames of each shot are looked at, and what they tell of a side counts by the length of the shot: an edge is
believed that a good part of the film shows. A shot that does not tell, since it is dark at its borders, has the most
frequent one that its darkness allows, and a shot with a framing of its own has its own.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dataset import resize
from film.io.planes import Box, Planes

SEGMENTS = 16  # of a line, whose mean lumas are looked at: noise is small in them, and letters are no lines
LEAST, MOST = 1 / 128, 3 / 8  # share of the width or height that a bar may have
DARK, NOISE = 40.0, 6.0  # luma of 255 of a bar, at most, and the standard deviation of its segments
STEP = 6.0  # by which, beside its noise, a segment that is no bar differs from it
STRAIGHT, FILLED = 0.75, 0.95  # share of an edge at which the picture begins, and of its lines that are no bar
EDGE_LINE = 4  # pixels that a bright line between bar and picture may have, its blur included
BELIEVED = 0.1  # share of the film's frames that must show an edge
SIDES = "top", "bottom", "left", "right"


class Profile(NamedTuple):
    """The mean lumas of the segments of a frame, in steps of 1 / 255 of full range."""

    rows: np.ndarray  # (H, SEGMENTS)
    columns: np.ndarray  # (W, SEGMENTS)


class Margin(NamedTuple):
    """What a shot tells of one side of the picture, in pixels."""

    depth: int  # how much is dark and flat
    edge: int | None  # where the picture begins; 0: there is no bar; None: it does not tell


def profile(planes: Planes) -> Profile:
    """The Profile of a frame."""
    black, span = planes.coding.luma_range
    height, width = planes.y.shape
    rows, columns = resize(planes.y, height, SEGMENTS), resize(planes.y, SEGMENTS, width).T
    return Profile(*((each.astype(np.float32) - black) * np.float32(255 / span) for each in (rows, columns)))


def margins(profiles: Sequence[Profile]) -> list[Margin]:
    """What a shot tells of its SIDES, by some of its frames."""
    rows, columns = (np.stack(each) for each in zip(*profiles, strict=True))
    sides = [_Side(lines) for lines in (rows, rows[:, ::-1], columns, columns[:, ::-1])]
    ends = [[side.depth / side.lines.shape[1] for side in pair] for pair in (sides[:2], sides[2:])]
    return [Margin(side.depth, side.edge(sides[number ^ 1].depth, *ends[number < 2]))
            for number, side in enumerate(sides)]


class _Side:
    """A shot seen from one side: its ``lines``, float32 (frames, lines, SEGMENTS), from there inward."""

    def __init__(self, lines: np.ndarray) -> None:
        self.lines = lines
        self.least, self.most = max(4, int(lines.shape[1] * LEAST)), int(lines.shape[1] * MOST)
        self.depth, self.step, self.away = 0, STEP, np.zeros(0)
        border = lines[:, :self.least]
        level = np.median(border, (1, 2), keepdims=True)  # of each frame
        noise = float((border - level).std())
        if self.most > self.least and level.max() < DARK and noise < NOISE:
            self.step += 4 * noise
            self.away = np.abs(lines - level).max(0)  # a frame that is dark there tells nothing
            differs = (self.away[:self.most] > self.step).any(1)
            depth = int(differs.argmax()) if differs.any() else self.most
            self.depth = depth if depth >= self.least else 0

    def edge(self, opposite, before, behind):
        """Where the picture begins, as in Margin; ``opposite`` is the depth from the other side, and ``before`` and
        ``behind`` are the shares of the lines that are dark at their ends."""
        if not 0 < self.depth < self.most:
            return None if self.depth else 0
        across = slice(int(np.ceil(before * SEGMENTS)), int((1 - behind) * SEGMENTS))
        away, lines = self.away[:, across], self.lines[:, :, across]
        blur = max(EDGE_LINE, len(away) // 100)
        begins = (away[self.depth:self.depth + blur] > 2 * self.step).mean(1) >= STRAIGHT
        if not begins.any():
            return None
        edge = self.depth + int(begins.argmax())
        edge += self._edge_line(lines[:, edge:edge + EDGE_LINE + 1])
        filled = (away[edge:len(away) - opposite] > self.step).mean(1) >= 0.5
        return edge if filled.mean() >= FILLED else None

    def _edge_line(self, lines):
        """How many of the first ``lines`` of the picture, (frames, EDGE_LINE + 1, n), are no picture: each has one
        luma, and they are brighter than what comes behind."""
        low, high = np.percentile(lines, (10, 90), axis=2)
        varies = np.median(high - low, 0) > 2 * self.step
        count = int(varies.argmax())
        brighter = lines[:, :count].max(1) - lines[:, count] if count else np.zeros(1)
        return count if np.median(brighter) > self.step else 0


def find_boxes(told: Sequence[Sequence[Margin]], frames: Sequence[int], size: tuple[int, int]) -> list[Box | None]:
    """The Box of each shot, None for one without bars, by what each has ``told`` of its SIDES and its number of
    ``frames``. ``size`` is (height, width) of the picture; boxes begin and end at even pixels, where chroma does."""
    sides = []
    for number in range(len(SIDES)):
        tolerance = max(EDGE_LINE, size[number // 2] // 100)
        chosen = _choose([each[number] for each in told], frames, tolerance)
        sides.append([edge + (edge + size[number // 2] * (number % 2)) % 2 if edge else 0 for edge in chosen])
    return [(top, size[0] - bottom, left, size[1] - right) if top or bottom or left or right else None
            for top, bottom, left, right in zip(*sides, strict=True)]


def _choose(told, frames, tolerance):
    """The edge of one side in each shot, by the Margin that each has told; edges at most ``tolerance`` apart are the
    same one."""
    votes = Counter()
    for margin, count in zip(told, frames, strict=True):
        if margin.edge is not None:
            votes[margin.edge] += count
    believed = []  # the most frequent first
    while votes:
        best, _ = max(votes.items(), key=lambda item: (item[1], -item[0]))
        near = [edge for edge in votes if edge == best or best and abs(edge - best) <= tolerance]
        if sum(votes.pop(edge) for edge in near) >= BELIEVED * sum(frames):
            believed.append(best)

    def choice(margin):
        own = [edge for edge in believed if margin.edge and edge and abs(edge - margin.edge) <= tolerance]
        allowed = [edge for edge in believed if edge <= margin.depth + tolerance]
        return 0 if margin.edge == 0 else next(iter([*own, *allowed]), 0)

    return [choice(margin) for margin in told]
