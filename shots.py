"""Where one shot of a film ends and the next begins, in one decoding pass.

Frames are BGR uint8 of shape (H, W, 3), as OpenCV reads them, and are counted from 0. While a shot is open, FramePool
holds the frames that may turn out to be wanted; when the shot ends they are at hand. Memory does not grow with the
film, apart from one float per frame and a little per shot.
"""

import itertools
import os
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from utils import MAX_FRAME_PIXELS, UserError

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

    def __init__(self, threshold=7000.0):
        self.threshold = threshold
        self.previous = None

    def process(self, frame):
        histograms = np.stack([cv2.calcHist([frame], [channel], None, [256], [0, 256]) for channel in range(3)])
        if self.previous is None:
            self.previous = histograms
        difference = float(np.square(histograms - self.previous).mean(axis=1).sum())
        self.previous = histograms
        return [(difference, difference > self.threshold)]

    def flush(self):
        return []


class SceneDetectDetector:
    """PySceneDetect's AdaptiveDetector or ContentDetector, fed frame by frame. ``threshold`` None takes its default.

    ``luma_only`` leaves hue and saturation out, for grey frames.
    """

    def __init__(self, kind, threshold=None, luma_only=False):
        # min_scene_len=0: each cut is reported; to drop short shots is the generator's task, not the detector's
        if kind == "adaptive":
            self.threshold = 3.0 if threshold is None else threshold
            self.detector = AdaptiveDetector(adaptive_threshold=self.threshold, min_scene_len=0, luma_only=luma_only)
            self.label, self.metric = "change / mean change around", self.detector.get_metrics()[-1]
        else:
            self.threshold = 27.0 if threshold is None else threshold
            self.detector = ContentDetector(threshold=self.threshold, min_scene_len=0, luma_only=luma_only)
            self.label, self.metric = "change in HSV", ContentDetector.FRAME_SCORE_KEY
        self.delay = self.detector.event_buffer_length
        self.detector.stats_manager = self  # set_metrics below is all it is used for; the real one keeps every frame
        self.fed, self.last, self.metrics = 0, None, {}

    def set_metrics(self, _timecode, metrics):
        self.metrics.update(metrics)

    def _feed(self, frame):
        cuts = self.detector.process_frame(FrameTimecode(self.fed, fps=24.0), frame)  # only frame numbers matter
        self.fed += 1
        return [] if self.fed <= 2 * self.delay else [(self.metrics.get(self.metric, 0.0), bool(cuts))]

    def process(self, frame):
        # AdaptiveDetector judges no frame within its window of either end, so both ends are padded with copies.
        copies = 1 if self.fed else 1 + self.delay
        self.last = frame
        return [judged for _ in range(copies) for judged in self._feed(frame)]

    def flush(self):
        return [judged for _ in range(self.delay) for judged in self._feed(self.last)]


def detect_shots(frames, detector, differences):
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
ALIKE = 15  # mean change of luma, of 255, from which PySceneDetect's AdaptiveDetector may see a cut
FLASH = 6  # frames that a flash may last
GREY_LOOK_AHEAD = FLASH + 3  # frames by which find_grey_cuts may be late, with the detector's delay of 2


def find_grey_cuts(lumas):
    """Yield the first frame of every shot but the film's first, from luma uint8 (256, 256) alone.

    PySceneDetect's AdaptiveDetector; and a film that fades in from black begins a new shot. What comes back within
    FLASH frames was a flash (or a black frame) and no cut. A cut is known at most GREY_LOOK_AHEAD frames after it.
    """
    detector = SceneDetectDetector("adaptive", luma_only=True)

    def judged():
        waiting = deque()
        for luma in lumas:
            waiting.append(luma)
            for _, is_cut in detector.process(cv2.merge([luma] * 3)):
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


def frame_positions(first, last, count):
    """``count`` different frames spread evenly over [first, last], both ends included; 1 is the middle.

    A shot of ``count`` frames or fewer gives each of its frames once.
    """
    if count == 1:
        return [(first + last) // 2]
    count = min(count, last - first + 1)
    return [first + i * (last - first) // max(count - 1, 1) for i in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Reading a film


def open_video(path):
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


def read_frames(capture, frame):
    """Yield ``frame`` and the frames after it; the next one is decoded while the caller works on this one."""
    ok = True
    with ThreadPoolExecutor(1) as reader:
        while ok:
            following = reader.submit(capture.read)
            yield frame
            ok, frame = following.result()


def reread_frames(path, checksums):
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

    def __init__(self, frames_per_shot, delay, budget):
        self.parts = max(frames_per_shot - 1, 2)  # 2: the contact sheet wants the middle in any case
        self.delay = delay
        self.budget = budget
        self.first = self.bytes = 0
        self.held = {}  # index -> frame or checksum, in the order of the film

    def collect(self, frames):
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

    def start_shot(self, first):
        """The open shot ended: let go of all in front of ``first``."""
        self._release(self.first, first)
        self.first = first

    def _release(self, start, stop):
        for index in list(itertools.takewhile(lambda index: index < stop, self.held)):
            if index >= start:
                self.bytes -= getattr(self.held.pop(index), "nbytes", 0)
