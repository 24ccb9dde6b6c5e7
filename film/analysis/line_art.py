"""Detection of line art: frames with thin dark lines on white paper and no shading, which the networks cannot color."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

MAX_LISTED_SHOTS = 10


@dataclass(frozen=True)
class LineArtConfig:
    """Constants of the detector. Luma is in [0, 255]; pictures have 256 x 256 pixels."""

    min_paper: int = 190  # minimum luma of the paper; larger misses gray paper
    contrast: int = 20  # minimum difference of ink from the paper; larger accepts faint shading, misses pale lines
    min_ink: float = 0.01  # minimum share of ink, so that white frames do not count
    max_ink: float = 0.3  # maximum share of ink; larger accepts darker pictures
    line_width: int = 7  # pixels; larger areas of ink are no lines
    max_areas: float = 0.02  # maximum share of such areas; larger accepts more shading
    min_extent: int = 20  # height and width of connected lines that count as drawn; larger: fewer letters and drawings
    min_sum: int = 64  # minimum of height plus width
    straight: int = 48  # length of horizontal and vertical lines that do not count, such as frames of title cards
    min_drawn: float = 0.25  # minimum share of ink that counts as drawn; the rest may be letters and noise


def is_line_art(luma: np.ndarray, config: LineArtConfig | None = None) -> bool:
    """Return whether a frame, luma uint8 (256, 256) in full range, is a line drawing without shading."""
    config = config or LineArtConfig()
    counts = np.convolve(np.bincount(luma.ravel(), minlength=256), np.ones(5, int), "same")
    paper = config.min_paper + int(counts[config.min_paper:].argmax())
    ink = (luma < paper - config.contrast).astype(np.uint8)
    if not config.min_ink <= ink.mean() <= config.max_ink:
        return False

    def opened(height, width):
        return cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((height, width), np.uint8))

    if opened(config.line_width, config.line_width).mean() > config.max_areas:
        return False
    curved = ink & (1 - (opened(1, config.straight) | opened(config.straight, 1)))
    _, _, stats, _ = cv2.connectedComponentsWithStats(curved, connectivity=8)
    width, height, area = stats[1:, cv2.CC_STAT_WIDTH:].T  # without the background
    drawn = (np.minimum(width, height) >= config.min_extent) & (width + height >= config.min_sum)
    return bool(area[drawn].sum() >= config.min_drawn * ink.sum())


def describe_line_art(is_line: Sequence[bool], shots: Iterable[tuple[int, int]]) -> str:
    """Return a sentence about the shots, pairs of (start, end), with line art in most frames; "" if there are none.

    ``is_line`` has the result of ``is_line_art`` for each frame.
    """
    found = [(number, end - start) for number, (start, end) in enumerate(shots, 1)
             if 2 * sum(is_line[start:end]) > end - start]
    if not found:
        return ""
    names = ", ".join(str(number) for number, _ in found[:MAX_LISTED_SHOTS])
    names = f"shot {names}" if len(found) == 1 else f"{len(found)} shots ({names}" + (
        ", ...)" if len(found) > MAX_LISTED_SHOTS else ")")
    return (f"{names} with {sum(frames for _, frames in found)} frames: lines without shading, which are not "
            "supported; expect wrong colors there")
