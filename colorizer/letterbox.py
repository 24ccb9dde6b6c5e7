"""Detection of letterbox and pillarbox borders: dark, uniform margins that end at a straight edge.

Each shot is measured on some of its frames. An edge is accepted if the shots showing it make up enough of the film, or
if one of them shows an edge of about the same size on the opposite side.
For other shots, the most frequent accepted edge that lies inside their dark margin is used. Shots with different edges
get different boxes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from dataset import resize

Box = tuple[int, int, int, int]  # picture area inside the letterbox: top, bottom, left, right, in pixels
SEGMENTS = 16  # averaged parts of each row and column; more resolve smaller text and are noisier
SIDES = "top", "bottom", "left", "right"
MAX_ASYMMETRY = 1.5  # maximum ratio of opposite borders of a rare framing; larger crops more dark scenery


@dataclass(frozen=True)
class LetterboxConfig:
    """Constants of the letterbox detector. Luma is in 8-bit steps of full range."""

    min_share: float = 1 / 128  # of the height or width, minimum size of a border; larger misses narrow borders
    max_share: float = 3 / 8  # of the height or width, maximum size of a border; larger crops more dark scenery
    max_luma: float = 40.0  # maximum luma of a border; larger accepts brighter borders and more dark scenery
    max_noise: float = 6.0  # maximum standard deviation in a border; larger accepts noisier borders, more scenery
    min_step: float = 6.0  # minimum contrast of picture and border, plus 4 times the noise of the border
    min_straight_share: float = 0.75  # minimum share of an edge next to the picture; larger requires straighter edges
    min_filled_share: float = 0.95  # of lines that differ from the border; larger rejects more dark pictures
    line_width: int = 4  # maximum pixels of a bright line between border and picture; larger crops thicker lines
    min_film_share: float = 0.1  # minimum share of the film's frames for an edge; larger ignores more rare framings


class Profile(NamedTuple):
    """Mean luma of each segment of the rows and columns of a frame, in 8-bit steps of full range."""

    rows: np.ndarray  # (H, SEGMENTS)
    columns: np.ndarray  # (W, SEGMENTS)


class Margin(NamedTuple):
    """Measurement of one side of the picture in one shot, in pixels."""

    depth: int  # size of the dark, uniform margin
    edge: int | None  # size of the border; 0: no border; None: no edge is visible


def luma_profile(y: np.ndarray, luma_range: tuple[int, int]) -> Profile:
    """Return the Profile of a frame with luma ``y`` (H, W), given the luma of black and of white."""
    black, white = luma_range
    rows, columns = resize(y, y.shape[0], SEGMENTS), resize(y, SEGMENTS, y.shape[1]).T
    return Profile(*((each.astype(np.float32) - black) * np.float32(255 / (white - black)) for each in (rows, columns)))


def crop_borders(rgb: np.ndarray) -> np.ndarray:
    """Return a picture, RGB uint8 (H, W, 3), without dark borders such as those of a screenshot.

    In one picture, dark scenery may look like a border, so both of two opposite sides need one of about the same size.
    """
    profile = luma_profile(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (0, 255))
    top, bottom, left, right = paired_edges([margin.edge or 0 for margin in measure_margins([profile])])
    return rgb[top:len(rgb) - bottom, left:rgb.shape[1] - right]


def measure_margins(profiles: Sequence[Profile], config: LetterboxConfig | None = None) -> list[Margin]:
    """Return the margins of the four SIDES of a shot, measured on the profiles of some of its frames."""
    rows, columns = (np.stack(each) for each in zip(*profiles, strict=True))
    sides = [_ShotSide(lines, config or LetterboxConfig())
             for lines in (rows, rows[:, ::-1], columns, columns[:, ::-1])]
    shares = [[side.depth / side.lines.shape[1] for side in pair] for pair in (sides[:2], sides[2:])]
    return [Margin(side.depth, side.edge(sides[number ^ 1].depth, *shares[number < 2]))
            for number, side in enumerate(sides)]


class _ShotSide:
    """One side of a shot: its rows or columns ``lines``, float32 (frames, lines, SEGMENTS), from the side inward."""

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

    def edge(self, opposite_depth: int, share_before: float, share_after: float) -> int | None:
        """Return ``Margin.edge`` of this side. ``opposite_depth`` is the depth of the opposite margin; ``share_before``
        and ``share_after`` are the shares of each line that lie in the margins at its two ends."""
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
        filled = (deviation[edge:len(deviation) - opposite_depth] > self.step).mean(1) >= 0.5
        return edge if filled.mean() >= self.config.min_filled_share else None

    def _line_width(self, lines):
        """Return the width of a bright stripe at the start of ``lines`` (rows or columns): the number of uniform lines
        before the first that varies; 0 if they are not brighter than it or no line varies."""
        low, high = np.percentile(lines, (10, 90), axis=2)
        varies = np.median(high - low, 0) > 2 * self.step
        count = int(varies.argmax())
        brighter = lines[:, :count].max(1) - lines[:, count] if count else np.zeros(1)
        return count if np.median(brighter) > self.step else 0


def find_boxes(margins: Sequence[Sequence[Margin]], lengths: Sequence[int], size: tuple[int, int],
               config: LetterboxConfig | None = None) -> list[Box | None]:
    """Return the picture box of each shot, or None for a shot without borders.

    ``margins`` are the results of ``measure_margins`` for the shots, and ``lengths`` their numbers of frames. ``size``
    is the (height, width) of the film. Boxes start and end at even pixels, to align with subsampled chroma.
    """
    config, sides = config or LetterboxConfig(), []
    paired = [paired_edges([margin.edge or 0 for margin in shot]) for shot in margins]
    for number in range(len(SIDES)):
        length = size[number // 2]
        edges = _choose_edges([shot[number] for shot in margins], lengths, max(config.line_width, length // 100),
                              config.min_film_share, {edges[number] for edges in paired} - {0})
        sides.append([edge + (edge + length * (number % 2)) % 2 if edge else 0 for edge in edges])
    return [(top, size[0] - bottom, left, size[1] - right) if top or bottom or left or right else None
            for top, bottom, left, right in zip(*sides, strict=True)]


def paired_edges(edges: Sequence[int]) -> list[int]:
    """Return the border sizes ``edges`` of the four SIDES, with 0 for those without a similar one opposite."""
    return [edge if max(edge, edges[side ^ 1]) <= MAX_ASYMMETRY * min(edge, edges[side ^ 1]) else 0
            for side, edge in enumerate(edges)]


def _choose_edges(margins, lengths, tolerance, min_share, certain):
    """Return the border size of one side for each shot. Sizes at most ``tolerance`` pixels apart count as equal.

    Sizes in ``certain`` are accepted whatever their share of the film.
    """
    counts = Counter()
    for margin, length in zip(margins, lengths, strict=True):
        if margin.edge is not None:
            counts[margin.edge] += length
    accepted = []  # the most frequent first
    while counts:
        best, _ = max(counts.items(), key=lambda item: (item[1], -item[0]))
        near = [edge for edge in counts if edge == best or best and abs(edge - best) <= tolerance]
        if sum(counts.pop(edge) for edge in near) >= min_share * sum(lengths) or certain & set(near):
            accepted.append(best)

    def choose(margin):
        own = [edge for edge in accepted if margin.edge and edge and abs(edge - margin.edge) <= tolerance]
        possible = [edge for edge in accepted if edge <= margin.depth + tolerance]
        return 0 if margin.edge == 0 else next(iter([*own, *possible]), 0)

    return [choose(margin) for margin in margins]
