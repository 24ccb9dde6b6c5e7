"""Where does one shot of a film end and the next begin? Found in one decoding pass.

Frames are counted from 0. Detectors look at small pictures of them, RGB uint8 (256, 256, 3). While a shot is open,
FramePool holds the frames that may turn out to be wanted, and at its end those that are. Memory grows by 12 bytes for
each frame of the film, and by a little for each shot.
"""

import itertools
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from contextlib import closing
from typing import Protocol

import cv2
import numpy as np

from film.io.planes import Planes
from film.io.video import Film, read_known_frames
from utils import UserError

SIDE = 256  # of the pictures that detectors look at

# ---------------------------------------------------------------------------------------------------------------------
# Where one shot ends and the next begins


class Detector(Protocol):
    """What finds cuts. A cut is in front of its frame: the frame that differs opens the next shot."""

    label: str  # name of the difference that it measures
    threshold: float  # of that difference, for a cut
    delay: int  # how many more frames it must see before it judges one

    def process(self, frame: np.ndarray) -> list[tuple[float, bool]]:
        """Take the next frame, RGB uint8 (H, W, 3); returns [(difference, is a cut)] of the frames that this allows to
        judge, in order, [] if none."""

    def flush(self) -> list[tuple[float, bool]]:
        """Judge the frames that are left at the film's end; returns as ``process``."""


class HistogramDetector:
    """Distance of the color distributions of neighboring frames.

    The sum over R, G and B of the mean over 256 bins of the squared difference of the histograms, which are raw
    counts: on frames of 256x256 it runs from 0 to about 1e8.
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
    """PySceneDetect's ContentDetector or AdaptiveDetector (``kind``), number for number, in a tenth of the time.

    The change of a frame is the mean absolute difference of its H, S and V from the frame before. "content" compares it
    with ``threshold`` (27); "adaptive" compares its ratio to the mean change of two frames before and two after with
    ``threshold`` (3), where the change is at least LEAST. Gray frames (H, W) are compared as they are.
    """

    WINDOW = 2
    LEAST = 15.0

    def __init__(self, kind: str, threshold: float | None = None) -> None:
        self.adaptive = kind == "adaptive"
        default, self.label, self.delay = ((3.0, "change / mean change around", self.WINDOW) if self.adaptive else
                                           (27.0, "change in HSV", 0))
        self.threshold = default if threshold is None else threshold
        self.previous: np.ndarray | None = None
        self.changes = deque(maxlen=2 * self.delay + 1)

    def process(self, frame: np.ndarray) -> list[tuple[float, bool]]:
        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) if frame.ndim == 3 else frame
        if self.previous is None:  # beyond the film's ends all changes count as 0
            self.changes.extend([0.0] * self.delay)
            self.previous = picture
        change = self._change(picture, self.previous)
        self.previous = picture
        return self._judge(change)

    def _change(self, one, other):
        return cv2.norm(one, other, cv2.NORM_L1) / one.size

    def flush(self) -> list[tuple[float, bool]]:
        return [judged for _ in range(self.delay) for judged in self._judge(0.0)]

    def _judge(self, change):
        """Take the next frame's change; returns [(difference, is a cut)] of the frame ``delay`` before, [] if none."""
        self.changes.append(change)
        if len(self.changes) <= 2 * self.delay:
            return []
        *before, change = itertools.islice(self.changes, self.delay + 1)
        if not self.adaptive:
            return [(change, change >= self.threshold)]
        around = sum([*before, *itertools.islice(self.changes, self.delay + 1, None)]) / (2 * self.delay)
        ratio = min(change / around, 255.0) if around >= 1e-5 else 255.0 * (change >= self.LEAST)
        return [(ratio, ratio >= self.threshold and change >= self.LEAST)]


def small_picture(planes: Planes) -> np.ndarray:
    """A frame as detectors look at it, RGB uint8 (256, 256, 3). The matrix is always that of BT.601, and pixels are
    interpolated, not averaged: enough to tell how much changes, in a fifth of the time."""
    gray = planes.cb is None or planes.cr is None
    small = [cv2.resize(plane, (SIDE, SIDE)) for plane in (planes.y, planes.cr, planes.cb) if plane is not None]
    if planes.coding.depth > 8:
        small = [(plane >> (planes.coding.depth - 8)).astype(np.uint8) for plane in small]
    if not planes.coding.full_range:  # luma 16..235 and chroma 16..240 to 0..255
        small = [cv2.convertScaleAbs(cv2.subtract(plane, 16), None, 255 / reach, half)  # both clip
                 for plane, (reach, half) in zip(small, ((219, 0), (224, 0.5), (224, 0.5)), strict=False)]
    return cv2.merge(small[:1] * 3) if gray else cv2.cvtColor(cv2.merge(small), cv2.COLOR_YCrCb2RGB)


def detect_shots(frames: Iterable[np.ndarray], detector: Detector,
                 differences: MutableSequence[float]) -> Iterator[tuple[int, int]]:
    """Yield (first, last), both included, of each shot as soon as its end is known; the last shot counts.

    ``frames`` is any iterable of RGB frames of any one size; ``differences`` gets one number per frame appended.
    """
    def answers():
        for frame in frames:
            yield from detector.process(cv2.resize(frame, (SIDE, SIDE)))
        yield from detector.flush()

    first = index = 0
    for index, (difference, is_cut) in enumerate(answers()):
        differences.append(difference)
        if is_cut and index > first:
            yield first, index - 1
            first = index
    if differences:
        yield first, index


FLICKER = 25  # of 255, by which a picture becomes brighter from frame to frame at most; a cut may change more


def gray_change(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of two lumas, uint8 (H, W), but for what all of it changes by in a flicker."""
    change = one.astype(np.int16) - other
    change -= np.int16(np.clip(np.median(change[::4, ::4]), -FLICKER, FLICKER))  # a sample tells it
    return cv2.norm(change, cv2.NORM_L1) / change.size


class FlickerDetector(ChangeDetector):
    """The adaptive ChangeDetector of lumas, uint8 (H, W), which compares them by their ``gray_change``."""

    def __init__(self) -> None:
        super().__init__("adaptive")

    def _change(self, one, other):
        return gray_change(one, other)


BLACK = 6  # mean luma, of 255, below which a frame is black
ALIKE = ChangeDetector.LEAST  # a picture has come back if its gray_change, of 255, is less
FLASH = 6  # frames that a flash may last


def find_gray_cuts(lumas: Iterable[np.ndarray]) -> Iterator[int]:
    """Yield the first frame of every shot but the film's first, from luma uint8 (256, 256) alone.

    Cuts are those of FlickerDetector, and the first frame that is not black after black ones. If the picture
    from before a cut comes back within FLASH frames, there was a flash or a black frame, and no cut. A cut is yielded
    at most FLASH + 3 frames late: the detector's delay is 2.
    """
    return itertools.chain.from_iterable(judge_gray_cuts(lumas))


def judge_gray_cuts(lumas: Iterable[np.ndarray]) -> Iterator[list[int]]:
    """What ``find_gray_cuts`` yields, as a list of what each frame allows to judge, and one more at the end."""
    detector = FlickerDetector()

    def judged():
        waiting = deque()
        for luma in lumas:
            waiting.append(luma)
            for _, is_cut in detector.process(luma):
                yield waiting.popleft(), is_cut
        for _, is_cut in detector.flush() if waiting else ():
            yield waiting.popleft(), is_cut

    previous, was_black = None, False
    pending = []  # (cut, luma in front of it) that may yet turn out to be a flash
    for index, (luma, is_cut) in enumerate(judged()):
        black, cuts = luma.mean() < BLACK, []
        if pending and gray_change(pending[0][1], luma) < ALIKE:
            pending.clear()
        elif was_black and not black and not pending:
            cuts.append(index)
        elif is_cut and previous is not None:
            pending.append((index, previous))
        while pending and index - pending[0][0] >= FLASH:
            cuts.append(pending.pop(0)[0])
        yield cuts
        previous, was_black = luma, black
    yield [cut for cut, _ in pending]


# ---------------------------------------------------------------------------------------------------------------------
# The frames that are wanted


def checksum(planes: Planes) -> int:
    """The CRC-32 of a picture's planes."""
    number = 0
    for plane in planes[:3]:
        if plane is not None:
            number = zlib.crc32(plane.tobytes(), number)
    return number


def reread_frames(film: Film, times: Sequence[int], checksums: dict[int, int]) -> Iterator[tuple[int, Planes]]:
    """Yield (index, planes) for the frames in ``checksums``, a dict index -> checksum, perhaps more than once.
    ``times`` are the pts of all frames.

    Seeking is fast, but in some films it leads to another frame than the one asked for. The checksum reveals that, and
    then the film is read from its start.
    """
    for index, expected in checksums.items():
        try:
            with closing(read_known_frames(film, times, index)) as frames:
                _, planes = next(frames)
        except UserError:  # the second reading has other times
            break
        if checksum(planes) != expected:
            break
        yield index, planes
    else:
        return
    for index, (_, _, planes) in enumerate(film.read()):
        if index in checksums:
            yield index, planes


class FramePool:
    """The frames of the open shot that may turn out to be wanted: its first, and all from the earliest one that could
    be its second wanted frame, if the shot ended now.

    With three frames a shot, that is the second half of what has been seen. Beyond ``budget`` bytes, only a frame's
    checksum is held, by which reread_frames finds the frame again.
    """

    def __init__(self, frames_per_shot: int, delay: int, budget: int) -> None:
        self.parts = max(frames_per_shot - 1, 2)  # at least 2, since the contact sheet wants the middle frame
        self.delay = delay
        self.budget = budget
        self.first = self.bytes = 0
        self.held: dict[int, Planes | int] = {}  # index -> planes or checksum, in the order of the film

    def collect(self, frames: Iterable[Planes]) -> Iterator[Planes]:
        """Pass ``frames`` on, holding those that may be wanted."""
        for index, planes in enumerate(frames):
            self.held[index] = planes
            self.bytes += _size(planes)
            shortest = index - self.delay - 1 - self.first  # the open shot's last frame - first, at least
            self._release(self.first + 1, self.first + shortest // self.parts)
            # A shot's last frame and the next one's first must stay whole, so an older frame is let go.
            older = index - self.delay - 2
            if self.bytes > self.budget and older > self.first and isinstance(held := self.held.get(older), Planes):
                self.bytes -= _size(held)
                self.held[older] = checksum(held)
            yield planes

    def start_shot(self, first: int) -> None:
        """The open shot ended: let go of all in front of ``first``."""
        self._release(self.first, first)
        self.first = first

    def _release(self, start, stop):
        for index in list(itertools.takewhile(lambda index: index < stop, self.held)):
            if index >= start:
                held = self.held.pop(index)
                self.bytes -= _size(held) if isinstance(held, Planes) else 0


def _size(planes):
    """Bytes of a picture."""
    return sum(plane.nbytes for plane in planes[:3] if plane is not None)
