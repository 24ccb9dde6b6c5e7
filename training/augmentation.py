"""Training data of the generator: random views of the training pictures, and the sampler that selects them."""

import math
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from colorizer.characters import Character, PasteConfig, paste, place_character
from config import TrainConfig, TrainingConstants
from dataset import (
    AB_SCALE, GRAY_SIZE, ColorizationDataset, backbone_input, color_feature, decode_lab8, downsample, encode_lab8,
    lab_to_tensors, resize, rgb_to_lab)
from training.distributed import ProcessGroup
from training.runs import StopSignals


class TrainingViews(Dataset):
    """Random views of the pictures of a dataset. All are zoomed; some are mirrored or darkened as in a fade, or contain
    a part of another view or a character, so that the generator recognizes characters by their appearance and not by
    their position.

    An index is a pair (index of the picture, seed). Equal pairs give equal views in all processes. An item contains
    ``L``, ``ab``, ``gray`` and ``view_feature`` (the color feature) of the view, ``color_feature``, ``image_id`` and
    ``index`` of its picture, and ``drop_conditioning``: with probability ``conditioning_dropout`` it is True, and the
    view is to be colored with the color feature of a different frame.
    """

    PASTE_GRID = 32  # pasted parts consist of whole cells of a grid of PASTE_GRID x PASTE_GRID

    def __init__(self, data: ColorizationDataset, config: TrainingConstants, conditioning_dropout: float = 0.0,
                 characters: Sequence[Character] = ()) -> None:
        self.data, self.config, self.conditioning_dropout = data, config, conditioning_dropout
        self.characters = characters

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict[str, Any]:
        index, seed = index_and_seed
        rng = np.random.default_rng(seed)
        codes = self._view(index, rng)
        if rng.random() < self.config.paste_probability:
            grid = self.PASTE_GRID
            size = rng.integers(grid // 4, 3 * grid // 4 + 1, 2)
            start = rng.integers(0, grid - size + 1)
            (top, left), (bottom, right) = (edge * self.data.side // grid for edge in (start, start + size))
            codes[:, top:bottom, left:right] = self._view(int(rng.integers(len(self))), rng)[:, top:bottom, left:right]
        if self.characters and rng.random() < self.config.character_probability:
            codes = self._with_character(codes, rng)
        L, ab = (part[0] for part in decode_lab8(downsample(codes[None], self.data.img_size)))
        feature = color_feature(ab.permute(1, 2, 0).numpy() * AB_SCALE)
        return {"L": L, "ab": ab, "gray": backbone_input(downsample(codes[None, :1], GRAY_SIZE)[0] / 255),
                "view_feature": torch.from_numpy(feature), "index": index,
                "drop_conditioning": rng.random() < self.conditioning_dropout,
                "color_feature": self.data.color_features[index], "image_id": self.data.ids[index]}

    def _view(self, index, rng):
        """Return a random crop of a picture, resized to the full side, randomly mirrored and darkened: float32 codes of
        ``encode_lab8``, (3, side, side)."""
        side = self.data.side
        crop = round(side / rng.uniform(1, self.config.max_zoom))
        top, left = rng.integers(0, side - crop + 1, 2)
        part = self.data.codes[index].numpy().transpose(1, 2, 0)[top:top + crop, left:left + crop]
        part = resize(np.ascontiguousarray(part), side, side)
        if rng.random() < 0.5:
            part = part[:, ::-1]
        codes = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))).float()
        if rng.random() < self.config.fade_probability:  # light * s^3 scales L + 16 and ab by the exposure s
            black = torch.tensor([-0.16 * 255, 128, 128])[:, None, None]
            codes = torch.lerp(black, codes, float(rng.uniform(self.config.min_exposure, 1))).clamp(min=0)
        return codes

    def _with_character(self, codes, rng):
        """Paste a random character into a view, codes (3, side, side)."""
        picture, side, config = codes.permute(1, 2, 0).numpy().copy(), self.data.side, PasteConfig()
        character = self.characters[int(rng.integers(len(self.characters)))]
        patch = place_character(character, side, side, config, rng, rng.uniform(*config.aspect))
        L, ab = lab_to_tensors(rgb_to_lab(patch.rgb))
        paste(picture, patch, encode_lab8(L, ab)[0].permute(1, 2, 0).numpy())
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


class ViewSampler(Sampler):
    """Sample the indices of TrainingViews: each picture ``passes`` times per epoch, in random order. The order depends
    only on the seed and on ``epoch``.

    All batches are complete: the last one is filled with pictures of an additional pass. The process with ``rank`` of
    ``size`` processes gets its share of each batch. To resume an epoch, the first ``skip`` batches are left out.
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


def create_loader(config: TrainConfig, data: ColorizationDataset, characters: Sequence[Character],
                  group: ProcessGroup) -> tuple[ViewSampler, DataLoader]:
    """Return a loader of batches of views, the share of this process, and its sampler, which determines the epoch."""
    passes = math.ceil(config.epoch_steps * config.batch_size / len(data))
    sampler = ViewSampler(data, passes, config.seed, config.batch_size, group.rank, group.size)
    views = TrainingViews(data, config.training, config.conditioning_dropout, characters)
    return sampler, DataLoader(
        views, config.batch_size // group.size, sampler=sampler, num_workers=config.num_workers,
        pin_memory=group.device.type == "cuda", persistent_workers=config.num_workers > 0,
        worker_init_fn=StopSignals.ignore, generator=torch.Generator())  # the global generator must not advance
