"""Random access to the frames of a film, JPEG encoding of frames, and short clips for a browser."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Generator
from pathlib import Path

import cv2
import numpy as np

from dataset import resize
from film.io.encoding import write_video
from film.io.frame_index import FrameIndex, read_known_frames
from film.io.planes import Planes
from film.io.video import Film, open_video
from utils import UserError

CACHE_SIZE = 24  # decoded frames kept per film; larger: more memory, fewer seeks
MAX_READ_AHEAD = 48  # frames; a frame at most this far ahead is reached by decoding instead of seeking
CLIP_WIDTH = 960  # pixels; maximum width of a clip


def index_frames(path: Path) -> FrameIndex:
    """Return the index of a film written by ``film.io.encoding``, without decoding it."""
    with open_video(path) as (film, stream):
        return FrameIndex(sorted(packet.pts for packet in film.demux(stream) if packet.pts is not None))


class FrameReader:
    """Thread-safe access to the frames of a film by number."""

    def __init__(self, film: Film, known: FrameIndex) -> None:
        self.film, self.known = film, known
        self.lock = threading.Lock()
        self.cache: OrderedDict[int, Planes] = OrderedDict()
        self.frames: Generator[tuple[int, Planes], None, None] | None = None
        self.next = 0  # number of the frame that ``frames`` yields next

    def read(self, index: int) -> Planes:
        """Return the planes of a frame. Raises UserError if it does not exist or cannot be decoded."""
        if not 0 <= index < len(self.known.pts):
            raise UserError(f"there is no frame {index}; the film has {len(self.known.pts)} frames")
        with self.lock:
            if index not in self.cache:
                self._decode(index)
            self.cache.move_to_end(index)
            return self.cache[index]

    def _decode(self, index):
        if self.frames is None or not self.next <= index <= self.next + MAX_READ_AHEAD:
            if self.frames is not None:
                self.frames.close()
            self.frames, self.next = read_known_frames(self.film, self.known, index), index
        for number, planes in self.frames:
            self.next = number + 1
            if number > index - CACHE_SIZE // 2:
                cb, cr = (plane if plane is None else plane.copy() for plane in planes[1:3])
                self.cache[number] = planes._replace(y=planes.y.copy(), cb=cb, cr=cr)
            while len(self.cache) > CACHE_SIZE:
                self.cache.popitem(last=False)
            if number == index:
                return
        raise UserError(f"cannot read frame {index} of {self.film.path}; check the file and its disk")


def encode_jpeg(rgb: np.ndarray, width: int, quality: int = 90) -> bytes:
    """Encode RGB uint8 (H, W, 3) as a JPEG, reduced to at most ``width`` pixels per row."""
    if rgb.shape[1] > width:
        rgb = resize(rgb, max(1, round(rgb.shape[0] * width / rgb.shape[1])), width)
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def write_clip(film: Film, known: FrameIndex, start: int, end: int, target: Path) -> None:
    """Write frames [start, end) of a film as a reduced video for a browser."""
    def pictures():
        for index, planes in itertools.islice(read_known_frames(film, known, start), end - start):
            height, width = planes.y.shape
            scale = min(1, CLIP_WIDTH / width)
            size = (max(2, 2 * round(side * scale / 2)) for side in (height, width))
            yield known.pts[index] - known.pts[start], planes.rgb_uint8(*size)

    write_video(target, film, pictures())
