"""Extraction of training frames: finds the shots of a film and writes evenly spaced frames of each as PNG files.

Normally the film is decoded once. Until the end of a shot is found, its candidate frames are buffered. If the buffer
would get too large, frames are not kept, and the selected frames are decoded again at the end. Letterboxes are
cropped last, since they are known only after the whole film is decoded.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from colorizer.letterbox import Margin, Profile, find_boxes, luma_profile, measure_margins
from config import GeneratorConfig
from film.analysis.detected_shots import MAX_THUMBNAILS, DetectedFilm, DetectedShot
from film.analysis.film_scan import FilmScan
from film.analysis.shot_detection import ChangeDetector, Detector, HistogramDetector, detect_shots, detector_input
from film.io.frame_index import frames_at
from film.io.interlacing import with_field_order
from film.io.planes import Box, Planes
from film.io.video import VideoFile
from utils import evenly_spaced, warn

POOL_BYTES = 512 * 2**20  # maximum size of the buffered frames: 870 frames of 854 x 480, 172 of 1920 x 1080
MAX_PENDING = 8  # images that wait to be written; larger uses more memory on slow disks
THUMBNAIL_SIZE = 126, 224  # maximum height and width


def extract_training_frames(path: Path, folder: Path, config: GeneratorConfig) -> DetectedFilm:
    """Find the shots of a film, create ``folder``, and write images of the shots that are long enough into it.

    Returns the shots. Image numbers start at 0. Warns if the film is interlaced or ends early. Raises UserError if the
    film cannot be read.
    """
    film = VideoFile(path, config.range)
    folder.mkdir()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as executor:
        return _Extraction(film, folder, config, executor).run()


def make_detector(config: GeneratorConfig) -> Detector:
    """Create the configured cut detector."""
    if config.detector == "histogram":
        return HistogramDetector(config.col_diff_thres)
    return ChangeDetector(config.detector, config.scene_thres)


def write_png(path: Path, bgr: np.ndarray) -> None:
    """Write a picture, BGR uint8 (H, W, 3), as PNG."""
    # The filter UP is faster and gives smaller files than OpenCV's default, for drawn and filmed pictures.
    path.write_bytes(cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP])[1].tobytes())


def write_frame(path: Path, planes: Planes) -> None:
    """Convert a frame to RGB and write it as PNG."""
    write_png(path, cv2.cvtColor(planes.rgb_uint8(), cv2.COLOR_RGB2BGR))


def crop_image(path: Path, box: Box) -> None:
    """Crop a PNG file in place."""
    top, bottom, left, right = box
    write_png(path, cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)[top:bottom, left:right])


class _Extraction:
    """The state of ``extract_training_frames`` for one film."""

    def __init__(self, film: VideoFile, folder: Path, config: GeneratorConfig, executor: Executor) -> None:
        self.film, self.folder, self.config, self.executor = film, folder, config, executor
        self.pending: deque[Future] = deque()  # images that are being written or cropped
        self.scan, self.detector = FilmScan(film), make_detector(config)
        self.pool = FramePool(config.frames_per_shot, self.detector.delay, POOL_BYTES)
        self.result = DetectedFilm(film.path, float(film.info.rate), self.detector.label, self.detector.threshold)
        self.numbers = itertools.count()
        self.orders: list[tuple[str, bool]] = []  # of each shot: field order, and whether frames are flagged
        self.reread: dict[int, DetectedShot] = {}  # frame to decode again -> its shot
        self.profiles: dict[int, list[Profile]] = {}  # number of a shot with missing frames -> profiles
        self.margins: dict[int, list[Margin]] = {}  # number of a shot -> its margins

    def run(self) -> DetectedFilm:
        """Decode the film, write its images and return its shots."""
        with closing(self.scan.frames()) as frames:
            pictures = map(detector_input, self.pool.collect(frames))
            for start, end in detect_shots(pictures, self.detector, self.result.differences):
                self._end_shot(DetectedShot(len(self.result.shots), start, end))
        self.scan.require_frames()
        if any(order for order, _ in self.orders):
            warn(f"{self.film.path} is interlaced: the images are the mean of both fields")
        for index, planes in frames_at(self.film, self.scan.index, sorted(self.reread)):
            self._process(self.reread[index], index, planes)
        self._wait()
        self._crop_letterbox()
        self._wait()
        self.scan.report_damage()
        return self.result

    def _end_shot(self, shot):
        """End a shot: process its selected frames that are buffered, schedule the others for a second decoding, and
        measure the margins if no frame is missing. Of shots shorter than ``shots_len_thres``, only the middle frame is
        selected."""
        if shot.length >= self.config.shots_len_thres:
            shot.images = {shot.start + i: next(self.numbers)
                           for i in evenly_spaced(shot.length, self.config.frames_per_shot)}
        self.orders.append(self.scan.fields.shot_order(shot.start, shot.end))
        selected = sorted({*shot.images, shot.middle})
        for index in selected:
            buffered = self.pool.buffered[index]
            if isinstance(buffered, Planes):
                self._process(shot, index, buffered)
            else:
                self.reread[index] = shot
        self.result.shots.append(shot)
        if not any(index in self.reread for index in selected):
            self.margins[shot.number] = measure_margins(self.profiles.pop(shot.number))
        self.pool.start_shot(shot.end)

    def _process(self, shot, index, planes):
        """Write a selected frame, measure its margins, and make a thumbnail of it if it is the middle frame."""
        planes = with_field_order(planes, *self.orders[shot.number])
        self.profiles.setdefault(shot.number, []).append(luma_profile(planes.y, planes.encoding.luma_range))
        if index in shot.images:
            self._submit(write_frame, self.folder / self.result.image_name(shot.images[index]), planes)
        if index == shot.middle and shot.number < MAX_THUMBNAILS:
            size = planes.y.shape
            scale = min(limit / side for limit, side in zip(THUMBNAIL_SIZE, size, strict=True))
            small = planes.rgb_uint8(*(max(1, round(side * scale)) for side in size))
            shot.thumbnail = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()

    def _submit(self, function, *args):
        """Call ``function(*args)`` in a thread. Blocks while more than MAX_PENDING calls are pending, so that a slow
        disk does not fill the memory."""
        self.pending.append(self.executor.submit(function, *args))
        self._wait(MAX_PENDING)

    def _wait(self, remaining=0):
        """Wait until at most ``remaining`` calls are pending; raises their errors."""
        while len(self.pending) > remaining:
            self.pending.popleft().result()

    def _crop_letterbox(self):
        self.margins |= {number: measure_margins(profiles) for number, profiles in self.profiles.items()}
        shots = self.result.shots
        boxes = find_boxes([self.margins[shot.number] for shot in shots], [shot.length for shot in shots],
                           self.scan.size)
        for shot, box in zip(shots, boxes, strict=True):
            if box is not None:
                for number in shot.images.values():
                    self._submit(crop_image, self.folder / self.result.image_name(number), box)


class FramePool:
    """Buffers the candidate frames of the current shot, whose end is not known yet: its first frame, and all frames
    from the one that would be selected second if the shot ended now.

    For three frames per shot, the buffer holds the second half of the shot. Once the frames take more than ``budget``
    bytes, further frames are not kept.
    """

    def __init__(self, frames_per_shot: int, delay: int, budget: int) -> None:
        self.intervals = max(frames_per_shot - 1, 2)  # at least 2, since the middle frame is the thumbnail
        self.delay, self.budget = delay, budget
        self.start = self.bytes = 0
        self.buffered: dict[int, Planes | None] = {}  # frame -> planes, None if they are not kept; in order

    def collect(self, frames: Iterable[Planes]) -> Iterator[Planes]:
        """Yield all ``frames`` and buffer those that may be selected."""
        for index, planes in enumerate(frames):
            self.buffered[index] = planes
            self.bytes += _size(planes)
            min_length = index - self.delay - self.start  # of the current shot, as judged so far
            self._release(self.start + 1, self.start + (min_length - 1) // self.intervals)
            # The last frame of a shot and the first of the next are always selected, so the newest keep their pixels.
            older = index - self.delay - 2
            frame = self.buffered.get(older)
            if self.bytes > self.budget and older > self.start and frame is not None:
                self.bytes -= _size(frame)
                self.buffered[older] = None
            yield planes

    def start_shot(self, start: int) -> None:
        """Begin the next shot at frame ``start`` and release all earlier frames."""
        self._release(self.start, start)
        self.start = start

    def _release(self, start, end):
        for index in list(itertools.takewhile(lambda index: index < end, self.buffered)):
            if index >= start:
                frame = self.buffered.pop(index)
                self.bytes -= _size(frame) if frame is not None else 0


def _size(planes):
    return sum(plane.nbytes for plane in planes[:3] if plane is not None)
