"""One decoding pass over a film, which records the timestamps and the size of its frames, and decoding errors."""

import math
from array import array
from collections.abc import Generator
from contextlib import closing

from tqdm import tqdm

from film.io.frame_index import FrameIndex, luma_checksum
from film.io.interlacing import FieldDetector
from film.io.planes import Planes
from film.io.thread_pool import prefetch
from film.io.video import DamageLog, Film, VideoFile, is_truncated
from utils import UserError, warn

FRAMES_AHEAD = 8  # frames decoded ahead of the consumer; larger evens out slow frames and takes more memory


class FilmScan:
    """Decodes the frames of a film with timestamps in [begin, end) once and shows a progress bar."""

    def __init__(self, film: Film, begin: int | None = None, end: float = math.inf) -> None:
        self.film, self.begin, self.end = film, begin, end
        self.pts, self.checksums = array("q"), array("L")  # of the frames that were read, see ``FrameIndex``
        self.last_duration, self.size = 0, (0, 0)  # duration and (height, width) of the last frame
        self.fields = FieldDetector()
        self.damage = DamageLog()

    @property
    def index(self) -> FrameIndex:
        """What identifies the frames that were read."""
        return FrameIndex(self.pts, self.checksums)

    def frames(self) -> Generator[Planes, None, None]:
        """Yield the frames in order and record their properties."""
        frames = prefetch(self.film.read(self.begin, self.damage), FRAMES_AHEAD)
        with closing(frames), tqdm(total=self.film.info.stated_frames or None, unit=" frames", leave=False,
                                   disable=None, desc=f"finding shots of {self.film.path.name}") as bar:
            for pts, duration, planes in frames:
                if pts >= self.end:
                    return
                self.pts.append(pts)
                self.checksums.append(luma_checksum(planes))
                self.last_duration, self.size = duration, planes.y.shape
                self.fields.add(planes)
                bar.update()
                yield planes

    def report_damage(self) -> None:
        """Warn about damaged parts of the film, and if its file ends before the end that it states."""
        film, info = self.film, self.film.info
        self.damage.report(film.path)
        count, stated = round((self.pts[-1] * info.time_base - info.start) * info.rate) + 1, info.stated_frames
        if (isinstance(film, VideoFile) and self.end == math.inf and stated - count > max(5, stated // 100)
                and is_truncated(film.path)):
            warn(f"{film.path} ends early, at frame {count} of {stated}; copy or download it again")

    def require_frames(self, where: str = "") -> None:
        """Raise UserError if no frame was decoded. ``where`` follows the path in the message."""
        if not self.pts:
            raise UserError(f"no frame of {self.film.path}{where} can be decoded; pass another "
                            f"{'part of it' if where else 'film'}")
