"""Preparation of a training run: datasets, configuration of the networks, and the parts that are computed before the
first step (frame embeddings, spatial memory, palette classifier)."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from colorizer.backbone import Features
from colorizer.character_classifier import characters_of
from colorizer.characters import (
    Character, PasteConfig, neutral_background, paste, place_character, read_characters)
from colorizer.colorizer import Colorizer
from colorizer.memory.deduplication import Deduplicator
from colorizer.memory.frame_archive import write_archive
from colorizer.palette_classifier import CELL_SIZE, PaletteClassifier
from config import DegradationConfig, ModelConfig, SpatialConfig, TrainConfig
from dataset import AB_SCALE, ColorizationDataset, downsample, lab_to_tensors, resize, rgb_to_lab
from fileio.images import IMAGE_SUFFIXES, read_image, write_image
from training.degradation import degrade
from utils import UserError, evenly_spaced, list_files, warn

Autocast = Callable[[], torch.autocast]  # returns a new autocast context for the networks
BATCH = 8  # pictures per forward pass
SCENES, SCENE_SIZE = 96, (360, 640)  # maximum number of pictures of characters without frames, height and width
PASTED_SHARE = 0.5  # share of the random views of the palette classifier that get a character, if there are sheets
LEFT_OUT_STEPS = 5  # a classifier for the calibration is trained in one in this many steps
FRAME_FIELDS = (  # fields of ModelConfig that depend on frames, references and characters
    "spatial_size", "archived_frames", "reference_scopes", "character_colors", "only_characters")


def load_data(config: TrainConfig, characters: Sequence[Character] = (),
              only_characters: bool = False) -> tuple[ColorizationDataset, ColorizationDataset]:
    """Return the datasets for training and validation. Without pictures in val/, both are the training set.

    If ``only_characters`` is True, the pictures are characters on neutral backgrounds, written to a folder in
    save_path.
    """
    folder = Path(config.data_path)
    if only_characters:
        folder = Path(config.save_path) / "character_scenes"
        write_scenes(folder, characters, min(SCENES, config.palette_classifier.training_views))
    data = ColorizationDataset(folder / "train", config.img_size, config.cache_gb)
    if (folder / "val").is_dir() and list_files(folder / "val", IMAGE_SUFFIXES):
        return data, ColorizationDataset(folder / "val", config.img_size, config.cache_gb)
    warn(f"no pictures in {folder / 'val'}; validation uses the training pictures, so its error is too low")
    return data, data


def load_characters(config: TrainConfig, saved: dict[str, Any] | None) -> tuple[list[Character], bool]:
    """Return the character sheets, those of the checkpoint ``saved`` if a run is resumed, and whether there is nothing
    else to train on. Raises UserError for invalid sheets."""
    if saved:
        model_config = saved.get("model_config")
        return characters_of(saved), isinstance(model_config, dict) and bool(model_config.get("only_characters"))
    characters, folder = read_characters(Path(config.characters)) if config.characters else [], Path(config.data_path)
    has_pictures = (folder / "train").is_dir() and bool(list_files(folder / "train", IMAGE_SUFFIXES))
    if characters and not has_pictures:
        warn(f"no pictures in {folder / 'train'}; training on the character sheets alone")
    return characters, bool(characters) and not has_pictures


def write_scenes(folder: Path, characters: Sequence[Character], count: int) -> None:
    """Write ``count`` pictures of characters on neutral backgrounds to the subfolders train/ and val/ of ``folder``."""
    rng = np.random.default_rng(0)
    for name, size in (("train", count - count // 6), ("val", count // 6)):
        for number in range(size):
            picture = neutral_background(*SCENE_SIZE, rng)
            for i in range(int(rng.integers(1, 4))):  # the first one is any of the characters in turn
                character = characters[int(rng.integers(len(characters))) if i else number % len(characters)]
                paste(picture, place_character(character, *SCENE_SIZE, PasteConfig(), rng))
            write_image(folder / name / f"{number}.png", picture)


def build_model_config(config: TrainConfig, n_pictures: int, only_characters: bool = False) -> ModelConfig:
    """Return the ModelConfig for a training set of ``n_pictures``, with an empty spatial memory. ``only_characters``
    states whether the pictures are character sheets.

    Raises UserError if top_k is larger than the number of slots of the memory.
    """
    shared = {f.name: getattr(config, f.name) for f in fields(ModelConfig) if f.name not in FRAME_FIELDS}
    shared["use_spatial_memory"] = config.use_spatial_memory and config.use_memory
    shared["use_palette_classifier"] = config.use_palette_classifier and shared["use_spatial_memory"]
    shared["mem_size"] = config.mem_size or math.ceil(1.2 * n_pictures)
    if config.use_memory and config.top_k > shared["mem_size"]:
        raise UserError(f"top_k is {config.top_k} and the memory has {shared['mem_size']} slots; set top_k to at most "
                        f"{shared['mem_size']} or raise mem_size")
    shared["top_k"] = config.top_k or min(256, shared["mem_size"])
    return ModelConfig(**shared, spatial_size=0, only_characters=only_characters)


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings and spatial memory


def load_with_features(data: ColorizationDataset, indices: torch.Tensor, colorizer: Colorizer,
                       autocast: Autocast) -> tuple[Features | None, torch.Tensor, torch.Tensor]:
    """Return (features, L (N, 1, S, S), ab (N, 2, S, S)) of the pictures at ``indices``, where S is the colorizer's
    side. The features are None for a colorizer without a memory."""
    device = next(colorizer.parameters()).device
    L, ab, gray = (part.to(device) for part in data.tensors(indices, colorizer.config.side))
    if not colorizer.config.use_memory:
        return None, L, ab
    with autocast():
        return colorizer.backbone(gray), L, ab


def frame_embeddings(data: ColorizationDataset, colorizer: Colorizer, autocast: Autocast,
                     computed: torch.Tensor | None = None) -> torch.Tensor:
    """Return the embeddings (N, D) of all pictures of a dataset.

    Embeddings that are not in the cache of the dataset are taken from ``computed`` (N, D) or, if that is None, computed
    by the backbone.
    """
    backbone = colorizer.backbone
    device = next(colorizer.parameters()).device
    with autocast():
        precision = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else "float32"

    def compute(indices):
        if computed is not None:
            return computed[indices.to(device)]
        return load_with_features(data, indices, colorizer, autocast)[0].embedding  # type: ignore[union-attr]

    file = "features_" + backbone.name.replace("/", "_")
    return data.features(file, backbone.dims.frame, (backbone.identity(), precision), compute).to(device)


def select_frames(data: ColorizationDataset, config: SpatialConfig) -> tuple[list[int], bool]:
    """Return the indices of the pictures for the spatial memory, and whether ``max_frames`` reduced their number.

    Near-duplicates are dropped. If more than ``max_frames`` pictures remain, evenly spaced ones are selected.
    """
    is_new = Deduplicator(config)
    new = [index for index in range(len(data)) if is_new(data.codes[index].permute(1, 2, 0).contiguous().numpy())]
    return [new[i] for i in evenly_spaced(len(new), config.max_frames)], len(new) > config.max_frames


@torch.no_grad()
def fill_spatial_memory(data: ColorizationDataset, colorizer: Colorizer, autocast: Autocast,
                        folder: Path | None = None) -> torch.Tensor | None:
    """Fit the projection of the spatial memory and write the pictures of ``select_frames`` to it.

    Their number is set in the config of the colorizer. If they are too many for a checkpoint, they are written to an
    archive in ``folder`` or, if that is None, as in processes that never read the memory, discarded. Returns the
    embeddings (N, D) of all pictures, or None if ``max_frames`` reduced their number.
    """
    spatial, ids, embeddings = colorizer.spatial, torch.tensor(data.ids), []
    sample = torch.tensor(evenly_spaced(len(data), spatial.config.pca_pictures)).split(BATCH)
    features = (load_with_features(data, part, colorizer, autocast)[0] for part in sample)
    spatial.fit_projection(torch.cat([f.cells.half() for f in features if f is not None]))
    selected, thinned = select_frames(data, spatial.config)
    archived = len(selected) if len(selected) > spatial.config.max_inline_frames else 0
    spatial.allocate(len(selected), archived)
    colorizer.config = replace(colorizer.config, spatial_size=len(selected), archived_frames=archived)
    slot_of = torch.full((len(data),), -1)
    slot_of[selected] = torch.arange(len(selected))

    def write():
        for part in (torch.tensor(selected) if thinned else torch.arange(len(data))).split(BATCH):
            features, L, ab = load_with_features(data, part, colorizer, autocast)
            if features is not None:
                embeddings.append(features.embedding)
                kept = (slot_of[part] >= 0).to(L.device)
                slots, kept_ids = (x[part].to(L.device)[kept] for x in (slot_of, ids))
                if len(slots):
                    kept_features = Features(features.embedding[kept], features.cells[kept])
                    yield spatial.write(slots, kept_features, L[kept], ab[kept], kept_ids)

    if archived and folder is not None:
        spatial.attach_archive(write_archive(folder, spatial.config, archived, write()))
    else:
        for _ in write():
            pass
    return None if thinned else torch.cat(embeddings)


# ---------------------------------------------------------------------------------------------------------------------
# Palette classifier


def _load_view(path, side, seed, degradation, characters=()):
    """Return a random view of a picture, maybe with a character, degraded and maybe mirrored, or the whole picture for
    seed 0.

    The result is a pair of L (1, 1, side, side) and ab (1, 2, side, side).
    """
    rgb, rng = read_image(path), np.random.default_rng(seed)
    if seed and characters and rng.random() < PASTED_SHARE:
        character = characters[int(rng.integers(len(characters)))]
        paste(rgb, place_character(character, rgb.shape[0], rgb.shape[1], PasteConfig(), rng))
    lab = rgb_to_lab(rgb)
    if seed:
        lab[..., 0] = degrade(rgb, rng, degradation)
        zoom = rng.uniform(1, 2)
        height, width = (round(size / zoom) for size in lab.shape[:2])
        top, left = rng.integers(0, lab.shape[0] - height + 1), rng.integers(0, lab.shape[1] - width + 1)
        lab = lab[top:top + height, left:left + width]
        if rng.random() < 0.5:
            lab = lab[:, ::-1]
    return lab_to_tensors(resize(np.ascontiguousarray(lab), side, side))


def _load_views(paths: Sequence[Path], seeds: Sequence[int], side: int, degradation: DegradationConfig | None = None,
                characters: Sequence[Character] = ()) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of views, one for each path and its seed: L (N, 1, side, side) and ab (N, 2, side, side)."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            part = slice(start, start + BATCH)
            views = pool.map(lambda path, seed: _load_view(path, side, seed, degradation, characters),
                             paths[part], seeds[part])
            L, ab = zip(*views, strict=True)
            yield torch.cat(L), torch.cat(ab)


class CellSamples(NamedTuple):
    """Random cells of random views of training pictures: c cells of each of n views."""

    features: torch.Tensor  # float16 (n, c, V), see ``PaletteClassifier.cell_features``
    ab: torch.Tensor  # (n, c, 2) in Lab units
    pictures: list[int]  # (n,) index of the picture of each view


@torch.no_grad()
def train_palette_classifier(data: ColorizationDataset, colorizer: Colorizer, autocast: Autocast, settings: TrainConfig,
                             characters: Sequence[Character] = ()) -> CellSamples:
    """Train the palette classifier on random cells of random views, some of them with ``characters``; the first view of
    each picture is whole. Return the cells."""
    classifier, device = colorizer.palette_classifier, next(colorizer.parameters()).device
    config = classifier.config
    count = min(max(config.training_views, min(len(data), 4 * config.training_views)),
                config.views_per_picture * len(data))
    rng, indices = np.random.default_rng(settings.seed), evenly_spaced(len(data), count)
    seeds = [0 if number < len(indices) else int(rng.integers(1, 2**62)) for number in range(count)]
    indices = [indices[number % len(indices)] for number in range(count)]
    features, colors, grid = [], [], config.input_size // CELL_SIZE
    paths = [data.paths[index] for index in indices]
    for L, ab in _load_views(paths, seeds, config.input_size, settings.degradation, characters):
        L, ab = L.to(device), ab.to(device)
        with autocast():
            maps = colorizer.classifier_maps(L)
        cells = torch.from_numpy(rng.choice(grid**2, grid**2 // config.training_cell_step, replace=False)).to(device)
        features.append(classifier.cell_features(maps, L, cells).half())
        colors.append(AB_SCALE * downsample(ab, grid).flatten(2).transpose(1, 2)[:, cells])
    samples = CellSamples(torch.cat(features), torch.cat(colors), indices)
    del features
    ab = samples.ab.flatten(0, 1)
    classifier.train_mlp(classifier.fit(samples.features.flatten(0, 1), ab), ab, config.training_steps)
    return samples


def train_left_out(classifier: PaletteClassifier, samples: CellSamples,
                   blocks: torch.Tensor) -> list[PaletteClassifier]:
    """Train a classifier with the palette of ``classifier`` for each block, on the pictures of all other blocks, in
    fewer steps, given the block of each picture, int64 (N,). Return the classifiers; none if all pictures are in one
    block. The global random state does not change."""
    block_of, classifiers = blocks[samples.pictures].to(samples.ab.device), []
    for block in range(int(block_of.max()) + 1) if block_of.any() else ():
        with torch.random.fork_rng(devices=[]):
            other, ab = copy.deepcopy(classifier), samples.ab[block_of != block, ::2].flatten(0, 1)
            other.mlp.apply(lambda layer: layer.reset_parameters() if isinstance(layer, torch.nn.Linear) else None)
            projected = other.fit(samples.features[block_of != block, ::2].flatten(0, 1), ab, classifier.palette)
            other.train_mlp(projected, ab, classifier.config.training_steps // LEFT_OUT_STEPS)
        classifiers.append(other)
    return classifiers


@torch.no_grad()
def classify_pictures(data: ColorizationDataset, indices: Sequence[int], colorizer: Colorizer, autocast: Autocast,
                      classifier: PaletteClassifier | None = None) -> torch.Tensor:
    """Return the class logits of the pictures at ``indices``, float16 (N, K, G, G), by ``classifier`` or, if it is
    None, by that of the colorizer."""
    device, logits = next(colorizer.parameters()).device, []
    colorizer.eval()
    paths = [data.paths[index] for index in indices]
    for L, _ in _load_views(paths, [0] * len(paths), colorizer.palette_classifier.config.input_size):
        with autocast():
            logits.append(colorizer.classify(L.to(device), classifier).half())
    return torch.cat(logits)
