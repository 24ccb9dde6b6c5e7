"""What is known of the colors of a film or picture? A map of what is recalled, guessed and unknown, as a second one."""

import gzip
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from colorizer.confidence import Confidence
from dataset import resize
from fileio.atomic import atomic_write
from film.analysis.plan import Shot
from film.io.encoding import write_video
from film.io.planes import Box, plane_slices
from film.io.thread_pool import prefetch
from film.io.video import Film, read_known_frames

# Blue, bluish green and vermillion of Okabe and Ito's palette, which color-blind people tell apart.
COLORS = {"recalled": (0, 114, 178), "guessed": (0, 158, 115), "unknown": (213, 94, 0)}
TINT = 0.55  # share of these in the map; the rest is the gray picture


def confidence_map(known: Confidence) -> np.ndarray:
    """What is Known of a picture, (G, G) each, as a mixture of COLORS, RGB uint8 (G, G, 3): as much of a place is
    unknown as is not sure, and the rest is recalled or guessed."""
    recalled, sure = np.asarray(known.recalled, np.float32), np.asarray(known.probability, np.float32)
    shares = np.stack([sure * recalled, sure * (1 - recalled), 1 - sure], 2)
    return np.rint(shares @ np.array(list(COLORS.values()), np.float32)).astype(np.uint8)


def tint_grayscale(gray: np.ndarray, colors: np.ndarray, box: Box | None = None) -> np.ndarray:
    """The map of a picture, RGB uint8 (H, W, 3): its gray, uint8 (H, W), tinted within the box by the ``mixture`` of
    that; where it is empty, it stays gray."""
    picture = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    if colors.size:
        inside = plane_slices(box, gray.shape, gray.shape)
        part = picture[inside]
        picture[inside] = cv2.addWeighted(part, 1 - TINT, resize(colors, *part.shape[:2]), TINT, 0)
    return picture


# ---------------------------------------------------------------------------------------------------------------------
# Of a film: kept shot by shot while it is colored, drawn when it is whole


@contextmanager
def save_confidence_maps(path: Path) -> Iterator[Callable[[Confidence | None], None]]:
    """Yield a function that takes what is Known of each frame of a shot, in order, None for one that stays as it is
    (where nothing is known, nan, it is gray as well). The file ``path``, a few kB a drawing, gets its name when the
    block ends."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
            def write(known):
                stays = known is None or np.isnan(known.probability).any()
                colors = np.zeros((0, 0, 3), np.uint8) if stays else confidence_map(known)
                np.lib.format.write_array(packed, colors, allow_pickle=False)

            yield write
        file.flush()
        os.fsync(file.fileno())


def _kept(path, shot):
    """Yield the ``mixture`` of each frame of a Shot, an empty one for a frame that stayed as it was, and the box."""
    with gzip.open(path) as packed:
        for _ in range(shot.start, shot.end):
            yield np.lib.format.read_array(packed, allow_pickle=False), shot.box


def write_confidence_video(film: Film, target: Path, times: Sequence[int], shots: Iterable[tuple[Path, Shot]], *,
                origin: int = 0, aspect: Any = None) -> None:
    """Write the map of ``film`` as the H.264 film ``target`` without sound, of its size and times.

    ``times`` are the pts of its frames, of which the first shall be at ``base_identity``'s distance from 0; ``shots`` the
    files that ``save_confidence_maps`` wrote, with their Shots; ``aspect`` the shape of the pixels, None for square ones.
    """
    maps = itertools.chain.from_iterable(itertools.starmap(_kept, shots))

    def pictures():
        with closing(read_known_frames(film, times, 0)) as frames:
            for (index, planes), (colors, box) in zip(frames, maps, strict=True):
                yield times[index] - origin, tint_grayscale(planes.luma_uint8(*planes.y.shape), colors, box)

    with closing(prefetch(pictures(), 8)) as drawn:
        write_video(target, film, tqdm(drawn, total=len(times), unit=" frames", desc=target.name, disable=None),
                       aspect)
