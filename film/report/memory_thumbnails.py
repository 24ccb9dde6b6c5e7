"""Thumbnails of the remembered frames of a colorizer."""

import math
from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np

from colorizer.colorizer import Colorizer
from dataset import AB_BINS, lab_to_rgb, resize
from fileio.images import image_grid

SIDE = 96  # pixels along a side of the thumbnail of a remembered frame


def memory_thumbnails(colorizer: Colorizer) -> Mapping[int, np.ndarray]:
    """Return the remembered frames as {frame id: RGB uint8 (S, S, 3)} in order of the ids, each read on access.

    Thumbnails are the pictures in the spatial memory. Without one, a thumbnail shows the color feature of the frame as
    ``color_stripes``. All references have the same id and share one larger thumbnail.
    """
    if colorizer.config.use_spatial_memory:
        ids = colorizer.spatial.ids.tolist()

        def thumbnail(slot):
            codes = colorizer.spatial.rows("pictures", [slot])[0].cpu().numpy()
            return cv2.cvtColor(resize(codes, SIDE, SIDE), cv2.COLOR_Lab2RGB)
    else:
        memory = colorizer.memory
        ids, values = memory.ids[memory.used].tolist(), memory.values[memory.used]

        def thumbnail(slot):
            return color_stripes(values[slot].cpu().numpy())
    return _Thumbnails(ids, thumbnail)


class _Thumbnails(Mapping):
    """{id: thumbnail}, computed on access. ``ids`` has the id of each slot, -1 for an empty one."""

    def __init__(self, ids: list[int], thumbnail: Callable[[int], np.ndarray]) -> None:
        self.slots, self.thumbnail = {i: [] for i in sorted(set(ids) - {-1})}, thumbnail
        for slot, i in enumerate(ids):
            self.slots.get(i, []).append(slot)

    def __getitem__(self, i: int) -> np.ndarray:
        pictures = [self.thumbnail(slot) for slot in self.slots[i]]
        if len(pictures) == 1:
            return pictures[0]
        columns = math.ceil(math.sqrt(len(pictures)))
        pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % columns)
        return image_grid([pictures[k:k + columns] for k in range(0, len(pictures), columns)], gap=1)

    def __iter__(self) -> Iterator[int]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)


def color_stripes(color_feature: np.ndarray, side: int = 32) -> np.ndarray:
    """Draw a color feature (313,) as vertical stripes, RGB uint8 (side, side, 3).

    Each color is as wide as its share; all have the same lightness and are sorted by hue.
    """
    order = np.argsort(np.arctan2(AB_BINS[:, 1], AB_BINS[:, 0]))
    ends = np.cumsum(color_feature[order]) / color_feature.sum()
    ab = AB_BINS[order][np.searchsorted(ends, (np.arange(side) + 0.5) / side)]
    lab = np.concatenate([np.full((side, 1), 65, np.float32), ab], 1)
    return lab_to_rgb(np.repeat(lab[None], side, 0))
