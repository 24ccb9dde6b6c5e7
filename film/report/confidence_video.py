"""Confidence maps of pictures and films: recalled, predicted and unknown colors, tinted over the grayscale."""

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
from film.io.frame_index import FrameIndex, read_known_frames
from film.io.video import Film

# Blue, bluish green and vermillion of the color-blind safe palette of Okabe and Ito.
COLORS = {"recalled": (0, 114, 178), "predicted": (0, 158, 115), "unknown": (213, 94, 0)}
OPACITY = 0.55  # of these colors over the grayscale picture


def confidence_map(confidence: Confidence) -> np.ndarray:
    """Return RGB uint8 (G, G, 3), the mixture of COLORS for the confidence of a picture, arrays (G, G).

    The share of "unknown" is 1 - probability; the rest is "recalled" to the share ``recalled``, else "predicted".
    """
    recalled, probability = (np.asarray(x, np.float32) for x in (confidence.recalled, confidence.probability))
    shares = np.stack([probability * recalled, probability * (1 - recalled), 1 - probability], 2)
    return np.rint(shares @ np.array(list(COLORS.values()), np.float32)).astype(np.uint8)


def tint_grayscale(gray: np.ndarray, colors: np.ndarray, box: Box | None = None) -> np.ndarray:
    """Tint a grayscale picture, uint8 (H, W), inside ``box`` with a ``confidence_map``, unless the map is empty.

    Returns RGB uint8 (H, W, 3).
    """
    picture = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    if colors.size:
        region = plane_slices(box, gray.shape, gray.shape)
        part = picture[region]
        picture[region] = cv2.addWeighted(part, 1 - OPACITY, resize(colors, *part.shape[:2]), OPACITY, 0)
    return picture


# ---------------------------------------------------------------------------------------------------------------------
# Films: the maps are saved shot by shot during coloring, and the video is written when the film is complete


@contextmanager
def save_confidence_maps(path: Path) -> Iterator[Callable[[Confidence | None], None]]:
    """Yield a function that saves the confidence of each frame of a shot, in order, to the file ``path``.

    None, or a confidence with NaN, is saved as an empty map. The file takes a few kB per frame and appears
    at ``path`` when the block ends without an error.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
            def write(confidence):
                empty = confidence is None or np.isnan(confidence.probability).any()
                colors = np.zeros((0, 0, 3), np.uint8) if empty else confidence_map(confidence)
                np.lib.format.write_array(packed, colors, allow_pickle=False)

            yield write
        file.flush()
        os.fsync(file.fileno())


def _load_maps(path, shot):
    """Yield the saved ``confidence_map`` of each frame of a Shot, with the box of the shot."""
    with gzip.open(path) as packed:
        for _ in range(shot.start, shot.end):
            yield np.lib.format.read_array(packed, allow_pickle=False), shot.box


def write_confidence_video(film: Film, target: Path, times: Sequence[int], shots: Iterable[tuple[Path, Shot]], *,
                           origin: int = 0, aspect: Any = None) -> None:
    """Write the confidence maps of ``film`` as an H.264 video of the same size, without sound.

    ``times`` are the pts of the colored frames; ``origin`` is the film's pts that becomes 0 in the new video. ``shots``
    has pairs of a file written by ``save_confidence_maps`` and its Shot. ``aspect`` is the sample aspect ratio; None
    means square pixels.
    """
    maps = itertools.chain.from_iterable(itertools.starmap(_load_maps, shots))

    def pictures():
        with closing(read_known_frames(film, FrameIndex(times), 0)) as frames:
            for (index, planes), (colors, box) in zip(frames, maps, strict=True):
                yield times[index] - origin, tint_grayscale(planes.luma_uint8(*planes.y.shape), colors, box)

    with closing(prefetch(pictures(), 8)) as tinted:
        progress = tqdm(tinted, total=len(times), unit=" frames", desc=target.name, disable=None)
        write_video(target, film, progress, aspect)
