"""What must be known before the first step? The pictures, what the backbone sees of them, the sizes of the networks."""

import math
from dataclasses import fields
from pathlib import Path

import torch

from colorizer.backbone import BACKBONE_DIMS, Seen
from colorizer.colorizer import Colorizer
from config import ModelConfig, TrainConfig
from dataset import ColorizationDataset
from training.learner import Cast
from utils import IMAGE_SUFFIXES, UserError, list_files, spread, warn

SPATIAL_FRAMES = 4096  # at most, in the spatial memory, 250 kB each; of a larger set, so many spread evenly
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
    """The ModelConfig for a training set of ``n_pictures``. Raises UserError when top_k exceeds the memory."""
    shared = {f.name: getattr(config, f.name) for f in fields(ModelConfig) if f.name != "spatial_size"}
    shared["use_spatial_memory"] = config.use_spatial_memory and config.use_memory
    shared["spatial_size"] = min(n_pictures, SPATIAL_FRAMES) if shared["use_spatial_memory"] else 0
    shared["mem_size"] = config.mem_size or math.ceil(1.2 * n_pictures)
    if config.use_memory and config.top_k > shared["mem_size"]:
        raise UserError(f"top_k is {config.top_k} and the memory has {shared['mem_size']} slots; set top_k to at most "
                        f"{shared['mem_size']} or raise mem_size")
    shared["top_k"] = config.top_k or min(256, shared["mem_size"])
    return ModelConfig(**shared)


def see(data: ColorizationDataset, indices: torch.Tensor, colorizer: Colorizer,
        cast: Cast) -> tuple[Seen | None, torch.Tensor, torch.Tensor]:
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
    backbone, name = colorizer.backbone, colorizer.config.backbone
    device = next(colorizer.parameters()).device
    with cast():
        precision = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else "float32"

    def compute(part):
        if known is not None:
            return known[part.to(device)]
        return see(data, part, colorizer, cast)[0].features  # type: ignore[union-attr]  # there is a memory

    return data.features(f"features_{name}", BACKBONE_DIMS[name], (backbone.identity(), precision), compute).to(device)


def remember(data: ColorizationDataset, colorizer: Colorizer, cast: Cast) -> torch.Tensor | None:
    """Fill the spatial memory with all pictures, or if they are too many, with some, spread evenly.

    Returns the backbone's features (N, D) of the pictures if it saw all of them, else None.
    """
    spatial, ids, features = colorizer.spatial, torch.tensor(data.ids), []
    sample = torch.tensor(spread(len(data), FITTED)).split(8)
    looks = (see(data, part, colorizer, cast)[0] for part in sample)
    spatial.fit(torch.cat([seen.places.half() for seen in looks if seen is not None]))  # never None: there is a memory
    chosen = torch.tensor(spread(len(data), len(spatial.ids)))
    for slots in torch.arange(len(chosen)).split(8):
        seen, L, ab = see(data, chosen[slots], colorizer, cast)
        if seen is not None:
            spatial.write(slots.to(L.device), seen, L, ab, ids[chosen[slots]].to(L.device))
            features.append(seen.features)
    return torch.cat(features) if len(chosen) == len(data) else None
