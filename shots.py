"""Where one shot of a film ends and the next begins, in one decoding pass.

Frames are BGR uint8 of shape (H, W, 3), as OpenCV reads them, and are counted from 0. While a shot is open, FramePool
holds the frames that may turn out to be wanted; when the shot ends they are at hand. Memory does not grow with the
film, apart from one float per frame and a little per shot.
"""

import itertools
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, MutableSequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from utils import MAX_FRAME_PIXELS, UserError
from video import ahead

AHEAD = 4  # frames that are decoded ahead

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # of a broken film the user should read our sentence only
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")  # a film may name no other address
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# ---------------------------------------------------------------------------------------------------------------------
# Where one shot ends and the next begins
#
# A detector has a name for its difference, a threshold, and a delay: the frames it must see beyond a cut to know it.
# process(frame) takes the next frame and returns [(difference, is_cut)] for each frame that it now has judged, in
# order; flush() judges the last ones. A cut is in front of its frame: the frame that differs opens the next shot.


class HistogramDetector:
    """Distance of the colour distributions of neighbouring frames.

    The sum over B, G and R of the mean over 256 bins of the squared difference of the histograms, which are raw
    counts: on frames of 256x256 it runs from 0 to about 1e8.
    """

    label, delay = "colour difference", 0

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
    ``threshold`` (3), where the change is at least LEAST. Grey frames (H, W) are compared as they are.
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
        picture = cv2.cvtColor(frame, cv2.COLOR_BGR2HSV) if frame.ndim == 3 else frame
        if self.previous is None:  # around the film's ends nothing changes
            self.changes.extend([0.0] * self.delay)
            self.previous = picture
        change = cv2.norm(picture, self.previous, cv2.NORM_L1) / picture.size
        self.previous = picture
        return self._judge(change)

    def flush(self) -> list[tuple[float, bool]]:
        return [judged for _ in range(self.delay) for judged in self._judge(0.0)]

    def _judge(self, change):
        """[(difference, is_cut)] of the frame ``delay`` before the one that changed so much; [] if there is none."""
        self.changes.append(change)
        if len(self.changes) <= 2 * self.delay:
            return []
        *before, change = itertools.islice(self.changes, self.delay + 1)
        if not self.adaptive:
            return [(change, change >= self.threshold)]
        around = sum([*before, *itertools.islice(self.changes, self.delay + 1, None)]) / (2 * self.delay)
        ratio = min(change / around, 255.0) if around >= 1e-5 else 255.0 * (change >= self.LEAST)
        return [(ratio, ratio >= self.threshold and change >= self.LEAST)]


def detect_shots(frames: Iterable[np.ndarray], detector: HistogramDetector | ChangeDetector,
                 differences: MutableSequence[float]) -> Iterator[tuple[int, int]]:
    """Yield (first, last), both included, of each shot as soon as its end is known; the last shot counts.

    ``frames`` is any iterable of BGR frames of any one size; ``differences`` gets one number per frame appended.
    """
    def answers():
        for frame in frames:
            yield from detector.process(cv2.resize(frame, (256, 256)))
        yield from detector.flush()

    first = index = 0
    for index, (difference, is_cut) in enumerate(answers()):
        differences.append(difference)
        if is_cut and index > first:
            yield first, index - 1
            first = index
    if differences:
        yield first, index


BLACK = 6  # mean luma, of 255, below which a frame is black
ALIKE = 15  # mean change of luma, of 255, from which ChangeDetector may see a cut
FLASH = 6  # frames that a flash may last
GREY_LOOK_AHEAD = FLASH + 3  # frames by which find_grey_cuts may be late, with the detector's delay of 2


def find_grey_cuts(lumas: Iterable[np.ndarray]) -> Iterator[int]:
    """Yield the first frame of every shot but the film's first, from luma uint8 (256, 256) alone.

    ChangeDetector's adaptive way; and a film that fades in from black begins a new shot. What comes back within
    FLASH frames was a flash (or a black frame) and no cut. A cut is known at most GREY_LOOK_AHEAD frames after it.
    """
    detector = ChangeDetector("adaptive")

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
        black = luma.mean() < BLACK
        if pending and cv2.absdiff(pending[0][1], luma).mean() < ALIKE:
            pending.clear()
        elif was_black and not black and not pending:
            yield index
        elif is_cut and previous is not None:
            pending.append((index, previous))
        while pending and index - pending[0][0] >= FLASH:
            yield pending.pop(0)[0]
        previous, was_black = luma, black
    yield from (cut for cut, _ in pending)


def frame_positions(first: int, last: int, count: int) -> list[int]:
    """``count`` different frames spread evenly over [first, last], both ends included; 1 is the middle.

    A shot of ``count`` frames or fewer gives each of its frames once.
    """
    if count == 1:
        return [(first + last) // 2]
    count = min(count, last - first + 1)
    return [first + i * (last - first) // max(count - 1, 1) for i in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Reading a film


def open_video(path: str | Path) -> tuple[cv2.VideoCapture, np.ndarray]:
    """Open a film and decode its first frame: (capture, frame). Raises UserError when either fails."""
    if not Path(path).is_file():  # a pipe might never end
        raise UserError(f"{path} is not a file; name a video")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UserError(f"{path} cannot be opened as a video")
    if capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT) > MAX_FRAME_PIXELS:
        capture.release()
        raise UserError(f"the frames of {path} have more than {MAX_FRAME_PIXELS:,} pixels; give a smaller video")
    ok, frame = capture.read()
    if not ok:
        capture.release()
        raise UserError(f"no frame of {path} can be decoded")
    return capture, frame


def read_frames(capture: cv2.VideoCapture, frame: np.ndarray) -> Iterator[np.ndarray]:
    """Yield ``frame`` and the frames after it; the next ones are decoded while the caller works on this one."""
    def frames():
        ok, following = True, frame
        while ok:
            yield following
            ok, following = capture.read()

    with closing(ahead(frames(), AHEAD)) as decoded:
        yield from decoded


def reread_frames(path: str | Path, checksums: dict[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, frame) for the frames in ``checksums``, a dict index -> checksum, perhaps more than once.

    Seeking is fast, but in some films it lands beside the frame asked for. The checksum tells, and such a film is
    read from its start instead.
    """
    capture, _ = open_video(path)
    for index, checksum in checksums.items():
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        ok, frame = capture.read()
        if not ok or zlib.crc32(frame) != checksum:
            break
        yield index, frame
    else:
        return
    for index, frame in enumerate(read_frames(*open_video(path))):
        if index in checksums:
            yield index, frame


class FramePool:
    """The frames of the open shot that may turn out to be wanted: its first, and all from the lowest inner position on.

    With three frames a shot that is the second half of what has been seen. When these are more than ``budget`` bytes,
    frames are held as their checksum alone, by which reread_frames finds them again.
    """

    def __init__(self, frames_per_shot: int, delay: int, budget: int) -> None:
        self.parts = max(frames_per_shot - 1, 2)  # 2: the contact sheet wants the middle in any case
        self.delay = delay
        self.budget = budget
        self.first = self.bytes = 0
        self.held = {}  # index -> frame or checksum, in the order of the film

    def collect(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass ``frames`` on, holding those that may be wanted."""
        for index, frame in enumerate(frames):
            self.held[index] = frame
            self.bytes += frame.nbytes
            shortest = index - self.delay - 1 - self.first  # the detector may yet end the shot this far from its first
            self._release(self.first + 1, self.first + shortest // self.parts)
            # The last of a shot and the first of the next always stay, so it is an older frame that makes room.
            older = index - self.delay - 2
            if self.bytes > self.budget and older > self.first and isinstance(self.held.get(older), np.ndarray):
                self.bytes -= self.held[older].nbytes
                self.held[older] = zlib.crc32(self.held[older])
            yield frame

    def start_shot(self, first: int) -> None:
        """The open shot ended: let go of all in front of ``first``."""
        self._release(self.first, first)
        self.first = first

    def _release(self, start, stop):
        for index in list(itertools.takewhile(lambda index: index < stop, self.held)):
            if index >= start:
                self.bytes -= getattr(self.held.pop(index), "nbytes", 0)
