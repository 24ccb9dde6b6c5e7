"""Cut detection: detectors for color frames, a detector for luma only, and the division of a film into shots.

Frames are counted from 0. A cut is the index of the first frame of a shot. Shots are ranges [start, end).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import cv2
import numpy as np

from film.io.planes import Planes

DETECTOR_SIZE = 256  # side in pixels of the frames that detectors compare


@dataclass(frozen=True)
class GrayCutConfig:
    """Constants of ``find_gray_cuts``. Luma is 8-bit."""

    max_flicker: int = 25  # maximum flicker that is compensated; larger tolerates more, misses cuts of flat shots
    black_luma: float = 6.0  # mean luma below which a frame is black; larger finds more cuts after fades to black
    same_luma: float = 15.0  # luma difference below which a flash has ended in the same picture; larger drops more cuts
    same_correlation: float = 0.7  # minimum correlation of a picture that has moved; larger keeps more flashes in pans
    max_flash: int = 6  # maximum length of a flash in frames; larger drops more short shots


class Detector(Protocol):
    """A cut detector that receives a film frame by frame."""

    label: str  # name of the measured difference, for plots
    threshold: float  # cut threshold for the difference
    delay: int  # number of later frames needed to judge a frame

    def process(self, frame: np.ndarray) -> list[tuple[float, bool]]:
        """Add the next frame, RGB uint8 (H, W, 3), and return [(difference, whether it is a cut)] of the frames that
        can now be judged, in order."""

    def flush(self) -> list[tuple[float, bool]]:
        """Return the result of ``process`` for the frames left at the end of the film."""


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference of two arrays."""
    return cv2.norm(a, b, cv2.NORM_L1) / a.size


class HistogramDetector:
    """Compares the color histograms of consecutive frames.

    The difference is the squared difference of the histograms (256 bins of raw counts), averaged over the bins and
    summed over R, G and B: 0 to about 1e8 for frames of 256 x 256 pixels.
    """

    label, delay = "color difference", 0

    def __init__(self, threshold: float = 7000.0) -> None:
        self.threshold = threshold
        self.previous: np.ndarray | None = None

    def process(self, frame: np.ndarray) -> list[tuple[float, bool]]:
        histograms = np.stack([cv2.calcHist([frame], [channel], None, [256], [0, 256]) for channel in range(3)])
        if self.previous is None:
            self.previous = histograms
        difference = float(np.square(histograms - self.previous).mean(axis=1).sum())
        self.previous = histograms
        return [(difference, difference > self.threshold)]

    def flush(self) -> list[tuple[float, bool]]:
        return []


class ChangeDetector:
    """Compares the pixels of consecutive frames. Returns the same results as PySceneDetect's ContentDetector (``kind``
    "content") and AdaptiveDetector ("adaptive") in a tenth of their time.

    The change of a frame is the mean absolute difference of H, S and V from the previous frame. With "content", a
    cut has a change of at least ``threshold`` (27). With "adaptive", it has a change of at least MIN_CHANGE and at
    least ``threshold`` (3) times the mean change of the 2 frames before and the 2 frames after it. Grayscale frames
    (H, W) are compared directly. A function ``difference`` replaces the mean absolute difference. With ``one_sided``, a
    cut between fast motion and a calm shot is found as well: its change is at least MOTION_RATIO times the largest one
    on the moving side, and CALM_RATIO * ``threshold`` times the mean change on the other side.
    """

    WINDOW = 2
    MIN_CHANGE = 15.0
    MOTION_RATIO, CALM_RATIO = 1.2, 3.0

    def __init__(self, kind: str, threshold: float | None = None,
                 difference: Callable[[np.ndarray, np.ndarray], float] | None = None, one_sided: bool = False) -> None:
        self.one_sided, self.adaptive, self.difference = one_sided, kind == "adaptive", difference or mean_difference
        default, self.label, self.delay = ((3.0, "change / mean change around", self.WINDOW) if self.adaptive else
                                           (27.0, "change in HSV", 0))
        self.threshold = default if threshold is None else threshold
        self.previous: np.ndarray | None = None
        self.changes = deque(maxlen=2 * self.delay + 1)

    def process(self, frame: np.ndarray) -> list[tuple[float, bool]]:
        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) if frame.ndim == 3 else frame
        if self.previous is None:  # changes before the first and after the last frame count as 0
            self.changes.extend([0.0] * self.delay)
            self.previous = picture
        change = self.difference(picture, self.previous)
        self.previous = picture
        return self._judge(change)

    def flush(self) -> list[tuple[float, bool]]:
        return [result for _ in range(self.delay) for result in self._judge(0.0)]

    def _judge(self, newest):
        """Add the change of the newest frame; return the result for the frame ``delay`` frames before it, if any."""
        self.changes.append(newest)
        if len(self.changes) <= 2 * self.delay:
            return []
        changes = list(self.changes)
        before, change, after = changes[:self.delay], changes[self.delay], changes[self.delay + 1:]
        if not self.adaptive:
            return [(change, change >= self.threshold)]
        calm, moving = sorted([before, after], key=sum)
        mean = sum(before + after) / (2 * self.delay)
        ratio = min(change / mean, 255.0) if mean >= 1e-5 else 255.0 * (change >= self.MIN_CHANGE)
        one_sided = (self.one_sided and change >= self.MOTION_RATIO * max(moving)
                     and change >= self.CALM_RATIO * self.threshold * sum(calm) / self.delay)
        return [(ratio, (ratio >= self.threshold or one_sided) and change >= self.MIN_CHANGE)]


def detector_input(planes: Planes) -> np.ndarray:
    """Convert a frame to RGB uint8 (256, 256, 3) for a detector.

    All films are converted with the BT.601 matrix and bilinear interpolation without averaging, which is five times
    faster than an exact conversion and accurate enough to measure changes.
    """
    small = [cv2.resize(plane, (DETECTOR_SIZE, DETECTOR_SIZE)) for plane in (planes.y, planes.cr, planes.cb)
             if plane is not None]
    if planes.encoding.depth > 8:
        small = [(plane >> (planes.encoding.depth - 8)).astype(np.uint8) for plane in small]
    if not planes.encoding.full_range:  # luma 16..235 and chroma 16..240 to 0..255; both functions saturate
        small = [cv2.convertScaleAbs(cv2.subtract(plane, 16), None, 255 / span, offset)
                 for plane, (span, offset) in zip(small, ((219, 0), (224, 0.5), (224, 0.5)), strict=False)]
    return cv2.cvtColor(cv2.merge(small), cv2.COLOR_YCrCb2RGB) if len(small) == 3 else cv2.merge(small[:1] * 3)


def judge_frames(frames: Iterable[np.ndarray], detector: Detector) -> Iterator[tuple[np.ndarray, float, bool]]:
    """Yield (frame, difference, whether it is a cut) for all frames, as soon as the detector has judged them."""
    pending = deque()
    for frame in frames:
        pending.append(frame)
        for result in detector.process(frame):
            yield pending.popleft(), *result
    for result in detector.flush() if pending else ():
        yield pending.popleft(), *result


def detect_shots(frames: Iterable[np.ndarray], detector: Detector,
                 differences: MutableSequence[float]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each shot as soon as its end is known, including the last one.

    ``frames`` are RGB frames of one size. The difference of each frame is appended to ``differences``.
    """
    start = 0
    small = (cv2.resize(frame, (DETECTOR_SIZE, DETECTOR_SIZE)) for frame in frames)
    for index, (_, difference, is_cut) in enumerate(judge_frames(small, detector)):
        differences.append(difference)
        if is_cut and index > start:
            yield start, index
            start = index
    if differences:
        yield start, len(differences)


def luma_difference(a: np.ndarray, b: np.ndarray, max_flicker: int) -> float:
    """Return the mean absolute difference of two lumas uint8 (H, W), after subtracting the median difference, which is
    clipped to +-``max_flicker``."""
    change = a.astype(np.int16) - b
    change -= np.int16(np.clip(np.median(change[::4, ::4]), -max_flicker, max_flicker))  # every 4th pixel is enough
    return cv2.norm(change, cv2.NORM_L1) / change.size


def shows_same(a: np.ndarray, b: np.ndarray, config: GrayCutConfig) -> bool:
    """Return whether lumas uint8 (H, W) show the same picture, which a pan may have moved by up to a quarter of it."""
    side, margin = 64, 16  # pixels of the compared pictures, and their maximum shift
    a, b = (cv2.resize(luma, (side, side), interpolation=cv2.INTER_AREA) for luma in (a, b))
    center = a[margin:side - margin, margin:side - margin]
    *_, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(b, center, cv2.TM_CCOEFF_NORMED))
    for dx, dy in (0, 0), (x - margin, y - margin):  # content at (x, y) of ``a`` is at (x + dx, y + dy) of ``b``
        one = a[max(0, -dy):side - max(0, dy), max(0, -dx):side - max(0, dx)]
        other = b[max(0, dy):side + min(0, dy), max(0, dx):side + min(0, dx)]
        lit = np.maximum(one, other) > 16  # a letterbox alone would make any two pictures correlate
        if lit.any() and luma_difference(one, other, config.max_flicker) < config.same_luma:
            one, other = (each[lit] - each[lit].mean() for each in (one, other))
            if one @ other > config.same_correlation * np.linalg.norm(one) * np.linalg.norm(other):
                return True
    return False


def find_gray_cuts(lumas: Iterable[np.ndarray], config: GrayCutConfig | None = None) -> Iterator[list[int]]:
    """Find cuts in luma uint8 (256, 256). Yield the list of new cuts for each frame that is judged, and the remaining
    cuts at the end.

    Cuts are those of the adaptive ChangeDetector with ``luma_difference``, and the first frame after black frames. If
    the picture before a cut reappears within ``max_flash`` frames, the cut is the start of a flash or of black frames
    and is dropped, and so is a cut at its end. A cut is reported at most ``max_flash`` + 3 frames late, including the
    detector's delay of 2.
    """
    config = config or GrayCutConfig()
    difference = partial(luma_difference, max_flicker=config.max_flicker)
    previous, was_black = None, False
    pending = []  # (cut, luma of the frame before it) of possible flashes
    recent = deque(maxlen=config.max_flash + 1)

    def flash_length(luma):
        """Return for how many frames the picture of ``luma`` was not seen before it; 0 if it was not seen at all."""
        if shows_same(recent[-1], luma, config):
            return 0
        return next((length for length, older in enumerate(reversed(recent)) if shows_same(older, luma, config)), 0)

    detector = ChangeDetector("adaptive", difference=difference, one_sided=True)
    for index, (luma, _, is_cut) in enumerate(judge_frames(lumas, detector)):
        black, cuts = luma.mean() < config.black_luma, []
        if pending and difference(pending[0][1], luma) < config.same_luma:
            pending.clear()
        elif recent and (pending or is_cut or was_black and not black) and (length := flash_length(luma)):
            pending = [(cut, before) for cut, before in pending if cut < index - length]
        elif was_black and not black and not pending:
            cuts.append(index)
        elif is_cut and previous is not None:
            pending.append((index, previous))
        while pending and index - pending[0][0] >= config.max_flash:
            cuts.append(pending.pop(0)[0])
        yield cuts
        previous, was_black = luma, black
        recent.append(luma)
    yield [cut for cut, _ in pending]
