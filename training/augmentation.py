"""What does the generator learn from? Random views of the training pictures, and the order in which they come."""

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from config import TrainingConstants
from dataset import (
    AB_SCALE, GRAY_SIZE, ColorizationDataset, backbone_input, color_feature, decode_lab8, downsample, resize)


class TrainingViews(Dataset):
    """Views of the pictures for the generator: half mirrored, zoomed, some dimmed as in a fade, some with a part of
    another view pasted in, so that a character is known by its looks and not by where it stands.

    Indexed by (index, seed): the same pair gives the same view in any process. An item holds ``L``, ``ab``, ``gray``
    and ``view_feature`` (the color feature) of the view, and ``color_feature``, ``image_id`` and ``index`` of its
    picture. ``misled``, true for a share of ``conditioning_dropout``, tells to color it by what the memory recalls of other frames.
    """

    GRID = 32  # a pasted part begins and ends at a multiple of 1 / GRID of a side

    def __init__(self, data: ColorizationDataset, config: TrainingConstants, conditioning_dropout: float = 0.0) -> None:
        self.data, self.config, self.conditioning_dropout = data, config, conditioning_dropout

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict[str, Any]:
        index, seed = index_and_seed
        rng = np.random.default_rng(seed)
        codes = self._view(index, rng)
        if rng.random() < self.config.paste_probability:
            size = rng.integers(self.GRID // 4, 3 * self.GRID // 4 + 1, 2)
            start = rng.integers(0, self.GRID - size + 1)
            (top, left), (bottom, right) = (edge * self.data.side // self.GRID for edge in (start, start + size))
            codes[:, top:bottom, left:right] = self._view(int(rng.integers(len(self))), rng)[:, top:bottom, left:right]
        L, ab = (part[0] for part in decode_lab8(downsample(codes[None], self.data.img_size)))
        feature = color_feature(ab.permute(1, 2, 0).numpy() * AB_SCALE)
        return {"L": L, "ab": ab, "gray": backbone_input(downsample(codes[None, :1], GRAY_SIZE)[0] / 255),
                "view_feature": torch.from_numpy(feature), "misled": rng.random() < self.conditioning_dropout, "index": index,
                "color_feature": self.data.color_features[index], "image_id": self.data.ids[index]}

    def _view(self, index, rng):
        """A random part of a picture, enlarged to the whole size, perhaps mirrored and dimmed: float32 codes (3, side,
        side) of encode_lab8."""
        side = self.data.side
        crop = round(side / rng.uniform(1, self.config.max_zoom))
        top, left = rng.integers(0, side - crop + 1, 2)
        part = self.data.codes[index].numpy().transpose(1, 2, 0)[top:top + crop, left:left + crop]
        part = resize(np.ascontiguousarray(part), side, side)
        if rng.random() < 0.5:
            part = part[:, ::-1]
        codes = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))).float()
        if rng.random() < self.config.fade_probability:  # light * s^3 is, in CIE Lab, ab * s and (L + 16) * s
            black = torch.tensor([-0.16 * 255, 128, 128])[:, None, None]
            codes = torch.lerp(black, codes, float(rng.uniform(self.config.min_exposure, 1))).clamp(min=0)
        return codes


class ViewSampler(Sampler):
    """(index, seed) of every picture in random order, ``passes`` times; the order depends on seed and epoch alone.

    An epoch has whole batches: the last one is filled up with pictures of one more pass. Of each batch process ``rank``
    of ``size`` gets its share. ``skip`` is the number of batches to leave out, which an interrupted epoch has had.
    """

    def __init__(self, data: Sized, passes: int, seed: int, batch_size: int = 1, rank: int = 0, size: int = 1) -> None:
        self.count, self.seed, self.batch_size, self.rank, self.size = len(data), seed, batch_size, rank, size
        self.batches = -(-self.count * passes // batch_size)
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return max(0, self.batches - self.skip) * self.batch_size // self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        length = self.batches * self.batch_size
        order = np.concatenate([rng.permutation(self.count) for _ in range(-(-length // self.count))])[:length]
        views = np.stack([order, rng.integers(0, 2**62, length)], 1)
        share = views.reshape(self.batches, self.size, -1, 2)[self.skip:, self.rank].reshape(-1, 2)
        return iter([tuple(view) for view in share.tolist()])
