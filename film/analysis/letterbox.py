"""Detection of letterbox and pillarbox borders: dark, flat margins that end at a straight edge.

Some frames of each shot are measured. An edge counts if a sufficient share of the film shows it. A shot that is too
dark at its margins to show an edge gets the most frequent edge that its margins allow; a shot with its own framing
gets its own box.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dataset import resize
from film.io.planes import Box, Planes

SEGMENTS = 16  # parts of a row or column whose mean lumas are compared: less noisy than pixels, finer than title text
SIDES = "top", "bottom", "left", "right"


@dataclass(frozen=True)
class LetterboxConfig:
    """Constants of the letterbox detector. Luma is in 8-bit steps of full range."""

    min_share: float = 1 / 128  # of the height or width, size of a border; larger misses narrow borders
    max_share: float = 3 / 8  # of the height or width, size of a border; larger accepts dark scenery as a border
    max_luma: float = 40.0  # luma of a border; larger accepts brighter borders and more dark scenery
    max_noise: float = 6.0  # standard deviation in a border; larger accepts noisier borders and more scenery
    min_step: float = 6.0  # deviation from the border, besides 4 times its noise; larger requires more contrast
    min_straight_share: float = 0.75  # share of an edge where the picture starts; larger requires straighter edges
    min_filled_share: float = 0.95  # share of picture lines that differ from the border; larger rejects dark pictures
    line_width: int = 4  # pixels of a bright line between border and picture, with blur; larger crops thicker lines
    min_film_share: float = 0.1  # share of all frames that show an edge; larger ignores rare framings


class Profile(NamedTuple):
    """Mean lumas of the segments of a frame, in 8-bit steps of full range."""

    rows: np.ndarray  # (H, SEGMENTS)
    columns: np.ndarray  # (W, SEGMENTS)


class Margin(NamedTuple):
    """Measurement of one side of the picture in one shot, in pixels."""

    depth: int  # size of the dark, flat margin
    edge: int | None  # size of the border; 0: no border, None: undecided


def frame_profile(planes: Planes) -> Profile:
    """Compute the Profile of a frame."""
    black, white = planes.encoding.luma_range
    height, width = planes.y.shape
    rows, columns = resize(planes.y, height, SEGMENTS), resize(planes.y, SEGMENTS, width).T
    return Profile(*((each.astype(np.float32) - black) * np.float32(255 / (white - black)) for each in (rows, columns)))


def measure_margins(profiles: Sequence[Profile], config: LetterboxConfig | None = None) -> list[Margin]:
    """Measure the four SIDES of a shot from the profiles of some of its frames."""
    rows, columns = (np.stack(each) for each in zip(*profiles, strict=True))
    sides = [_ShotSide(lines, config or LetterboxConfig())
             for lines in (rows, rows[:, ::-1], columns, columns[:, ::-1])]
    shares = [[side.depth / side.lines.shape[1] for side in pair] for pair in (sides[:2], sides[2:])]
    return [Margin(side.depth, side.edge(sides[number ^ 1].depth, *shares[number < 2]))
            for number, side in enumerate(sides)]


class _ShotSide:
    """One side of a shot: its ``lines``, float32 (frames, lines, SEGMENTS), from the side inward."""

    def __init__(self, lines: np.ndarray, config: LetterboxConfig) -> None:
        self.lines, self.config = lines, config
        smallest, self.largest = max(4, int(lines.shape[1] * config.min_share)), int(lines.shape[1] * config.max_share)
        self.depth, self.step, self.deviation = 0, config.min_step, np.zeros(0)
        border = lines[:, :smallest]
        level = np.median(border, (1, 2), keepdims=True)  # of each frame
        noise = float((border - level).std())
        if self.largest > smallest and level.max() < config.max_luma and noise < config.max_noise:
            self.step += 4 * noise
            self.deviation = np.abs(lines - level).max(0)  # over the frames, since dark frames show no edge
            differs = (self.deviation[:self.largest] > self.step).any(1)
            depth = int(differs.argmax()) if differs.any() else self.largest
            self.depth = depth if depth >= smallest else 0

    def edge(self, opposite: int, share_before: float, share_after: float) -> int | None:
        """Return the edge of a Margin. ``opposite`` is the depth of the opposite side; ``share_before`` and
        ``share_after`` are the dark shares at both ends of each line."""
        if not 0 < self.depth < self.largest:
            return None if self.depth else 0
        across = slice(int(np.ceil(share_before * SEGMENTS)), int((1 - share_after) * SEGMENTS))
        deviation, lines = self.deviation[:, across], self.lines[:, :, across]
        blur = max(self.config.line_width, len(deviation) // 100)
        starts = ((deviation[self.depth:self.depth + blur] > 2 * self.step).mean(1) >= self.config.min_straight_share)
        if not starts.any():
            return None
        edge = self.depth + int(starts.argmax())
        edge += self._line_width(lines[:, edge:edge + self.config.line_width + 1])
        filled = (deviation[edge:len(deviation) - opposite] > self.step).mean(1) >= 0.5
        return edge if filled.mean() >= self.config.min_filled_share else None

    def _line_width(self, lines):
        """Return the width of a bright line at the start of ``lines``: lines of a uniform luma above that of the line
        after them."""
        low, high = np.percentile(lines, (10, 90), axis=2)
        varies = np.median(high - low, 0) > 2 * self.step
        count = int(varies.argmax())
        brighter = lines[:, :count].max(1) - lines[:, count] if count else np.zeros(1)
        return count if np.median(brighter) > self.step else 0


def find_boxes(margins: Sequence[Sequence[Margin]], frames: Sequence[int], size: tuple[int, int],
               config: LetterboxConfig | None = None) -> list[Box | None]:
    """Return the picture box of each shot, or None for a shot without borders.

    ``margins`` has the measurement of the SIDES of each shot, and ``frames`` its number of frames. ``size`` is the
    (height, width) of the film. Boxes start and end at even pixels, to align with subsampled chroma.
    """
    config, sides = config or LetterboxConfig(), []
    for number in range(len(SIDES)):
        length = size[number // 2]
        edges = _choose_edges([shot[number] for shot in margins], frames, max(config.line_width, length // 100),
                              config.min_film_share)
        sides.append([edge + (edge + length * (number % 2)) % 2 if edge else 0 for edge in edges])
    return [(top, size[0] - bottom, left, size[1] - right) if top or bottom or left or right else None
            for top, bottom, left, right in zip(*sides, strict=True)]


def _choose_edges(margins, frames, tolerance, min_share):
    """Return the edge of one side for each shot. Edges at most ``tolerance`` pixels apart count as the same."""
    counts = Counter()
    for margin, count in zip(margins, frames, strict=True):
        if margin.edge is not None:
            counts[margin.edge] += count
    accepted = []  # the most frequent first
    while counts:
        best, _ = max(counts.items(), key=lambda item: (item[1], -item[0]))
        near = [edge for edge in counts if edge == best or best and abs(edge - best) <= tolerance]
        if sum(counts.pop(edge) for edge in near) >= min_share * sum(frames):
            accepted.append(best)

    def choose(margin):
        own = [edge for edge in accepted if margin.edge and edge and abs(edge - margin.edge) <= tolerance]
        possible = [edge for edge in accepted if edge <= margin.depth + tolerance]
        return 0 if margin.edge == 0 else next(iter([*own, *possible]), 0)

    return [choose(margin) for margin in margins]
