"""How is one frame of a film looked at? By its number, quickly where one goes forward."""

import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from pathlib import Path

import cv2
import numpy as np

from dataset import resize
from film.io.encoding import write_video
from film.io.planes import Planes
from film.io.video import Film, VideoFile, open_video, read_known_frames
from utils import UserError

HELD = 24  # frames
NEAR = 48  # a frame that is no more ahead is reached by reading on
CLIP_WIDTH = 960  # of a shot that is played


def times_of(path: Path) -> list[int]:
    """The pts of all frames of a film that was written by ``film.io.encoding``, without decoding it."""
    with open_video(path) as (film, stream):
        return sorted(packet.pts for packet in film.demux(stream) if packet.pts is not None)


class Frames:
    """The frames of a film by their number, for several threads. ``times`` are the pts of all of them."""

    def __init__(self, film: Film, times: Sequence[int]) -> None:
        self.film, self.times = film, times
        self.lock = threading.Lock()
        self.held: OrderedDict[int, Planes] = OrderedDict()
        self.reader: Generator[tuple[int, Planes], None, None] | None = None
        self.next = 0  # number of the frame that the reader gives next

    def __len__(self) -> int:
        return len(self.times)

    def get(self, index: int) -> Planes:
        """The planes of a frame. Raises UserError when there is no such frame, or when it cannot be read."""
        if not 0 <= index < len(self.times):
            raise UserError(f"there is no frame {index}; the film has {len(self.times)}")
        with self.lock:
            if index not in self.held:
                self._read(index)
            self.held.move_to_end(index)
            return self.held[index]

    def _read(self, index):
        if self.reader is None or not self.next <= index <= self.next + NEAR:
            self.close()
            self.reader, self.next = read_known_frames(self.film, self.times, index), index
        for number, planes in self.reader:
            self.next = number + 1
            if number > index - HELD // 2:
                cb, cr = (plane if plane is None else plane.copy() for plane in planes[1:3])
                self.held[number] = planes._replace(y=planes.y.copy(), cb=cb, cr=cr)
            while len(self.held) > HELD:
                self.held.popitem(last=False)
            if number == index:
                return
        raise UserError(f"frame {index} of {self.film.path} cannot be read; copy it to a good disk")

    def close(self) -> None:
        """Let go of the file."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None


def jpeg(rgb: np.ndarray, width: int, quality: int = 90) -> bytes:
    """RGB uint8 (H, W, 3) as a JPEG of at most ``width`` pixels a row."""
    if rgb.shape[1] > width:
        rgb = resize(rgb, max(1, round(rgb.shape[0] * width / rgb.shape[1])), width)
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def write_clip(path: Path, start: int, end: int, target: Path) -> None:
    """Write the frames [start, end) of the film ``path``, which ``film.io.encoding`` wrote, as a small film for a browser.
    """
    film, times = VideoFile(path), times_of(path)

    def pictures():
        frames = read_known_frames(film, times[:end], start)
        for index, planes in frames:
            height, width = planes.y.shape
            scale = min(1, CLIP_WIDTH / width)
            size = (max(2, 2 * round(side * scale / 2)) for side in (height, width))
            yield times[index] - times[start], planes.rgb_uint8(*size)

    write_video(target, film, pictures())
