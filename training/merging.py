"""Merging of checkpoints of one series, without training: the networks of the first one and the frames of all."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from colorizer.backbone import extract_features
from colorizer.character_classifier import character_entries, fit_characters
from colorizer.memory.deduplication import Deduplicator
from colorizer.memory.frame_archive import RECORD_FIELDS, record_dtype, write_archive
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.predictor import Predictor
from config import TrainConfig
from dataset import REFERENCE_ID
from fileio.checkpoints import load_checkpoint, save_checkpoint
from networks import grow
from training.runs import RunFolder
from utils import UserError

TRAINING_STATE = (  # not in a merged checkpoint
    "generator", "discriminator", "optimizers", "ema_steps", "archive", "left_out_classifiers")
KEY_WEIGHTS = "lightness_weight", "position_weight", "color_weight"  # constants that scale the parts of a key


class Source(NamedTuple):
    """A checkpoint to merge, and the slots of its frames that are not duplicates of frames of earlier checkpoints."""

    predictor: Predictor
    slots: list[int]  # of training frames
    reference_slots: list[int]
    ids: dict[int, int]  # {id of a frame: its id in the merged checkpoint}

    @property
    def spatial(self) -> SpatialMemory:
        return self.predictor.colorizer.spatial


def merge_checkpoints(config: TrainConfig, given: dict[str, Any]) -> None:
    """Merge the checkpoints in ``config.merge`` and write the result to save_path/best.pt.

    Raises UserError for checkpoints that cannot be merged, for other settings in ``given``, and for a save_path that
    contains one of the checkpoints.
    """
    if others := given.keys() - {"merge", "save_path", "overwrite"}:
        raise UserError(f"--merge does not train and takes no --{min(others)}; omit it")
    if len(config.merge) < 2:
        raise UserError("--merge takes two checkpoints or more")
    paths, target = [Path(path) for path in config.merge], Path(config.save_path)
    if any(path.resolve().parent == target.resolve() for path in paths):
        raise UserError(f"{target} contains one of the checkpoints to merge; pass another folder to --save_path")
    with RunFolder(config) as folder:
        content = merge(paths, target)
        folder.prepare(None, target / content["archive"]["file"] if "archive" in content else None)
        save_checkpoint(target / "best.pt", content)
    print(f"merged {content['model_config']['spatial_size']:,} frames of {len(paths)} checkpoints into "
          f"{target / 'best.pt'}")


def merge(paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint with the networks of the first checkpoint and the frames of all.

    Duplicates of frames of earlier checkpoints are dropped. If there are too many frames for a checkpoint, they are
    written to an archive in ``folder``. Keys are mapped to the projection of the first checkpoint; keys of references
    contain the colors that its networks predict. The characters of all are recognized. Raises UserError for checkpoints
    that cannot be merged.
    """
    predictors = [Predictor.load(path, device="cpu") for path in paths]
    first = predictors[0]
    for predictor in predictors:
        _check(predictor, first)
    names: dict[int, str] = {}
    is_new = Deduplicator(first.config.spatial)
    sources = [_source(predictor, names, is_new) for predictor in predictors]
    colorizer, config = first.colorizer, first.config.spatial
    count = sum(len(source.slots) for source in sources)
    total = count + sum(len(source.reference_slots) for source in sources)
    if count > config.max_frames:
        raise UserError(f"the checkpoints have {count:,} frames, and a memory has at most {config.max_frames:,}; merge "
                        "fewer checkpoints")
    archived = count if count > config.max_inline_frames else 0
    merged = SpatialMemory(colorizer.spatial.embeddings.shape[1], len(colorizer.spatial.mean), 0, config)
    merged.mean, merged.projection = colorizer.spatial.mean, colorizer.spatial.projection
    merged.allocate(total, archived)
    grow(colorizer.memory, _empty_slots(colorizer.memory, count - len(sources[0].slots)))
    batches = _store_frames(sources, merged)
    archive = write_archive(folder, config, archived, batches) if archived else None
    deque(batches, 0)  # without an archive, nothing has consumed the generator
    merged.attach_archive(archive)
    _store_references(sources, merged, count)
    colorizer.spatial = merged
    characters = [character for predictor in predictors for character in predictor.characters]
    if len(characters) > len(first.characters):
        fit_characters(first.extractor, characters)
    model_config = replace(colorizer.config, spatial_size=total, archived_frames=archived,
                           mem_size=len(colorizer.memory.keys))
    content = {name: value for name, value in load_checkpoint(paths[0]).items() if name not in TRAINING_STATE}
    return {**content, **character_entries(characters), "frames": names, "colorizer": colorizer.state_dict(),
            "model_config": asdict(model_config), **({"archive": archive.state()} if archive else {})}


def _check(predictor, first):
    """Raise UserError unless a checkpoint can be merged with the first one."""
    if not predictor.config.use_spatial_memory:
        raise UserError(f"{predictor.checkpoint} has no spatial memory to merge; train with use_spatial_memory True")
    ours, other = (asdict(each.config.spatial) for each in (first, predictor))
    if (record_dtype(first.config.spatial) != record_dtype(predictor.config.spatial)
            or any(ours[name] != other[name] for name in KEY_WEIGHTS)):
        raise UserError(f"{predictor.checkpoint} and {first.checkpoint} store frames in different formats or with "
                        "different key weights; train both with the same version and spatial settings")
    if predictor.colorizer.backbone.identity() != first.colorizer.backbone.identity():
        raise UserError(f"{predictor.checkpoint} was trained with a different backbone than {first.checkpoint}; train "
                        "both with the same backbone")


def _source(predictor, names, is_new):
    """Return the Source of a checkpoint, and add its frames to ``names``, {id: file name} of all checkpoints."""
    spatial, ids = predictor.colorizer.spatial, {REFERENCE_ID: REFERENCE_ID}
    taken, free = set(names.values()), itertools.count(max([*names, *predictor.frame_names]) + 1)
    for i, name in predictor.frame_names.items():
        if i != REFERENCE_ID:
            ids[i] = next(free) if i in names else i
            names[ids[i]] = f"{name} of {predictor.checkpoint}" if name in taken else name
    pinned = spatial.pinned.tolist()
    references = [slot for slot, is_pinned in enumerate(pinned) if is_pinned]
    slots = [slot for slot in range(len(pinned))
             if not pinned[slot] and is_new(spatial.rows("pictures", [slot])[0].numpy())]
    return Source(predictor, slots, references, ids)


def _empty_slots(memory, count):
    """Return ``count`` empty rows of the memory of color features, for ``grow``."""
    rows = {name: buffer[:1].expand(count, *buffer.shape[1:]) * 0 for name, buffer in memory.named_buffers()}
    return {**rows, "ids": rows["ids"] - 1}


def _rows(source, slots):
    """Return {name of a buffer: rows} of the frames of a Source in ``slots``, with the ids of the merged checkpoint."""
    spatial, ids = source.spatial, [source.ids[i] for i in source.spatial.ids[slots].tolist()]
    return {"embeddings": spatial.embeddings[slots], "ids": torch.tensor(ids),
            **{name: spatial.rows(name, slots) for name in RECORD_FIELDS}}


def _store_frames(sources, merged):
    """Store the training frames of all sources in ``merged``, and yield the stored rows of each batch.

    The color features of all but the first source are added to the memory of the first one, as in training.
    """
    predictor, start = sources[0].predictor, 0
    memory = predictor.colorizer.memory
    for source in sources:
        for slots in (source.slots[i:i + 8] for i in range(0, len(source.slots), 8)):
            rows = _rows(source, slots)
            if source is not sources[0]:
                labs = source.spatial.lab_pictures(slots)
                features = extract_features(predictor.colorizer.backbone, [lab[..., 0] for lab in labs],
                                            predictor.device)
                rows["keys"] = merged.convert_keys(rows["keys"], source.spatial, features.cells)
                embedding = features.embedding.norm(dim=1, keepdim=True) * rows["embeddings"].float()
                memory.update(memory.query(embedding), predictor.extractor.color_features(labs), rows["ids"])
            yield merged.store_rows(torch.arange(start, start + len(slots)), rows)
            start += len(slots)


def _store_references(sources, merged, start):
    """Store the references of all sources in ``merged``, in the slots from ``start`` on."""
    predictor, config = sources[0].predictor, merged.config
    memory = predictor.colorizer.memory
    for source in sources:
        for slot, scope in zip(source.reference_slots, source.predictor.config.reference_scopes, strict=True):
            rows = _rows(source, [slot])
            if source is not sources[0]:
                lab = source.spatial.lab_pictures([slot])[0]
                features, _, _, ab = predictor.extractor.encode_reference(lab)
                color = F.adaptive_avg_pool2d(ab.float(), config.grid).flatten(2).transpose(1, 2)
                keys = merged.convert_keys(rows["keys"], source.spatial, features.cells)
                rows["keys"] = torch.cat([keys[..., :-2], config.color_weight * color], -1)
                memory.pin(memory.query(features.embedding), predictor.extractor.color_features([lab]))
                scopes = predictor.config.reference_scopes
                predictor.colorizer.config = replace(predictor.config, reference_scopes=[*scopes, scope])
            merged.store_rows(torch.tensor([start]), {**rows, "pinned": torch.tensor([True])})
            start += 1
