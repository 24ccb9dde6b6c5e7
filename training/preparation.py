"""What must be known before the first step? The pictures, what the backbone sees of them, the sizes of the networks."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from colorizer.backbone import Features
from colorizer.colorizer import Colorizer
from colorizer.memory.deduplication import Deduplicator
from colorizer.memory.frame_archive import write_archive
from colorizer.palette_classifier import STRIDE
from config import ModelConfig, SpatialConfig, TrainConfig
from dataset import AB_SCALE, ColorizationDataset, downsample, lab_to_tensors, resize, rgb_to_lab
from fileio.images import IMAGE_SUFFIXES, read_image
from training.degradation import degrade
from training.learner import Cast
from utils import UserError, evenly_spaced, list_files, warn

VOTER_LOOKS = 256  # at least, from which the voter learns, or VIEWS a picture if that is less; at most 4 times as many
VIEWS = 16
VOTER_STEPS = 1000
VOTER_SHARE = 16  # of the places of a look, one in so many is learned from
REMEMBERED = "spatial_size", "archived_frames"  # what ``remember`` sets of a ModelConfig
FITTED = 128  # pictures, at most, spread evenly, to which the spatial memory's projection is fitted


def load_data(config: TrainConfig) -> tuple[ColorizationDataset, ColorizationDataset]:
    """The datasets for training and validation; without pictures in val/, the training pictures serve for both."""
    folder = Path(config.data_path)
    data = ColorizationDataset(folder / "train", config.img_size, config.cache_gb)
    if (folder / "val").is_dir() and list_files(folder / "val", IMAGE_SUFFIXES):
        return data, ColorizationDataset(folder / "val", config.img_size, config.cache_gb)
    warn(f"no pictures in {folder / 'val'}; validating on the training pictures, which tells little")
    return data, data


def fit_model_config(config: TrainConfig, n_pictures: int) -> ModelConfig:
    """The ModelConfig for a training set of ``n_pictures``, but for the frames of the spatial memory, which
    ``remember`` chooses. Raises UserError when top_k exceeds the memory."""
    shared = {f.name: getattr(config, f.name) for f in fields(ModelConfig) if f.name not in REMEMBERED}
    shared["use_spatial_memory"] = config.use_spatial_memory and config.use_memory
    shared["use_palette_classifier"] = config.use_palette_classifier and shared["use_spatial_memory"]
    shared["mem_size"] = config.mem_size or math.ceil(1.2 * n_pictures)
    if config.use_memory and config.top_k > shared["mem_size"]:
        raise UserError(f"top_k is {config.top_k} and the memory has {shared['mem_size']} slots; set top_k to at most "
                        f"{shared['mem_size']} or raise mem_size")
    shared["top_k"] = config.top_k or min(256, shared["mem_size"])
    return ModelConfig(**shared, spatial_size=0)


def see(data: ColorizationDataset, indices: torch.Tensor, colorizer: Colorizer,
        cast: Cast) -> tuple[Features | None, torch.Tensor, torch.Tensor]:
    """(what the backbone sees of the pictures at ``indices``, None without a memory; their L (N, 1, S, S); their
    ab (N, 2, S, S)), S the colorizer's side."""
    device = next(colorizer.parameters()).device
    L, ab, gray = (part.to(device) for part in data.tensors(indices, colorizer.config.side))
    if not colorizer.config.use_memory:
        return None, L, ab
    with cast():
        return colorizer.backbone(gray), L, ab


def see_all(data: ColorizationDataset, colorizer: Colorizer, cast: Cast,
            known: torch.Tensor | None = None) -> torch.Tensor:
    """The backbone's features (N, D) of all pictures of a dataset, which never change: from the dataset's cache; if
    they are not there, from ``known`` (N, D), or else computed."""
    backbone = colorizer.backbone
    device = next(colorizer.parameters()).device
    with cast():
        precision = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else "float32"

    def compute(part):
        if known is not None:
            return known[part.to(device)]
        return see(data, part, colorizer, cast)[0].embedding  # type: ignore[union-attr]  # there is a memory

    file = "features_" + backbone.name.replace("/", "_")
    return data.features(file, backbone.dims.frame, (backbone.identity(), precision), compute).to(device)


def choose_frames(data: ColorizationDataset, config: SpatialConfig) -> tuple[list[int], bool]:
    """The indices of the pictures that the spatial memory keeps: those that show anything new, or if they are too many,
    some of them, spread evenly; and whether they are too many."""
    is_new = Deduplicator(config)
    new = [index for index in range(len(data)) if is_new(data.codes[index].permute(1, 2, 0).contiguous().numpy())]
    return [new[place] for place in evenly_spaced(len(new), config.max_frames)], len(new) > config.max_frames


@torch.no_grad()
def remember(data: ColorizationDataset, colorizer: Colorizer, cast: Cast,
             folder: Path | None = None) -> torch.Tensor | None:
    """Fill the spatial memory with the pictures that ``choose_frames`` tells. Too many for a checkpoint are written
    into an archive in ``folder``; for None, in processes that never read them, only their features are kept.

    Returns the backbone's features (N, D) of the pictures if it saw all of them, else None.
    """
    spatial, ids, features = colorizer.spatial, torch.tensor(data.ids), []
    sample = torch.tensor(evenly_spaced(len(data), FITTED)).split(8)
    looks = (see(data, part, colorizer, cast)[0] for part in sample)
    spatial.fit(torch.cat([seen.cells.half() for seen in looks if seen is not None]))  # never None: there is a memory
    chosen, thinned = choose_frames(data, spatial.config)
    archived = len(chosen) if len(chosen) > spatial.config.max_inline_frames else 0
    spatial.resize(len(chosen), archived)
    colorizer.config = replace(colorizer.config, spatial_size=len(chosen), archived_frames=archived)
    slot_of = torch.full((len(data),), -1)
    slot_of[chosen] = torch.arange(len(chosen))

    def write():
        for part in (torch.tensor(chosen) if thinned else torch.arange(len(data))).split(8):
            seen, L, ab = see(data, part, colorizer, cast)
            if seen is not None:
                features.append(seen.embedding)
                kept = (slot_of[part] >= 0).to(L.device)
                slots, names = (x[part].to(L.device)[kept] for x in (slot_of, ids))
                if len(slots):
                    yield spatial.write(slots, Features(seen.embedding[kept], seen.cells[kept]), L[kept], ab[kept], names)

    if archived and folder is not None:
        spatial.open(write_archive(folder, spatial.config, archived, write()))
    else:
        for _ in write():
            pass
    return None if thinned else torch.cat(features)


# ---------------------------------------------------------------------------------------------------------------------
# The voter


def _look(path, side, view):
    """A picture, or the random part of it that the number ``view`` names (0: the whole), half of them mirrored, as
    another film might show it: L (1, 1, side, side) and ab (1, 2, side, side)."""
    rgb = read_image(path)
    lab = rgb_to_lab(rgb)
    if view:
        rng = np.random.default_rng(view)
        lab[..., 0] = degrade(rgb, rng)
        zoom = rng.uniform(1, 2)
        height, width = (round(size / zoom) for size in lab.shape[:2])
        top, left = rng.integers(0, lab.shape[0] - height + 1), rng.integers(0, lab.shape[1] - width + 1)
        lab = lab[top:top + height, left:left + width]
        if rng.random() < 0.5:
            lab = lab[:, ::-1]
    return lab_to_tensors(resize(np.ascontiguousarray(lab), side, side))


def _looks(paths: Sequence[Path], views: Sequence[int], side: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of what ``_look`` makes of each path with its view: L (N, 1, side, side) and ab (N, 2, side, side)."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), 8):
            part = slice(start, start + 8)
            looks = pool.map(_look, paths[part], [side] * 8, views[part])
            L, ab = zip(*looks, strict=True)
            yield torch.cat(L), torch.cat(ab)


@torch.no_grad()
def teach_voter(data: ColorizationDataset, colorizer: Colorizer, cast: Cast, seed: int) -> None:
    """Fit the voter to views of the pictures, each first seen whole, and train it on a sample of their places."""
    voter, device = colorizer.palette_classifier, next(colorizer.parameters()).device
    count = min(max(VOTER_LOOKS, min(len(data), 4 * VOTER_LOOKS)), VIEWS * len(data))
    paths = [data.paths[index] for index in evenly_spaced(len(data), count)]
    rng = np.random.default_rng(seed)
    views = [0 if number < len(paths) else int(rng.integers(1, 2**62)) for number in range(count)]
    paths = [paths[number % len(paths)] for number in range(count)]
    features, colors, grid = [], [], voter.config.input_size // STRIDE
    for L, ab in _looks(paths, views, voter.config.input_size):
        L, ab = L.to(device), ab.to(device)
        with cast():
            maps = colorizer.classifier_maps(L)
        chosen = torch.from_numpy(rng.choice(grid**2, grid**2 // VOTER_SHARE, replace=False)).to(device)
        features.append(voter.describe(maps, L, chosen).flatten(0, 1).half())
        colors.append(AB_SCALE * downsample(ab, grid).flatten(2).transpose(1, 2)[:, chosen].flatten(0, 1))
    color = torch.cat(colors)
    voter.learn(voter.fit(torch.cat(features), color), color, VOTER_STEPS)


@torch.no_grad()
def vote_all(data: ColorizationDataset, indices: Sequence[int], colorizer: Colorizer, cast: Cast) -> torch.Tensor:
    """The votes for the pictures at ``indices``, float16 (N, K, G, G)."""
    device, votes = next(colorizer.parameters()).device, []
    colorizer.eval()
    for L, _ in _looks([data.paths[index] for index in indices], [0] * len(indices), colorizer.palette_classifier.config.input_size):
        with cast():
            votes.append(colorizer.classify(L.to(device)).half())
    return torch.cat(votes)
