"""How do several checkpoints of one show become one? The networks of the first, the frames of all, and no training."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from colorizer.backbone import extract_features
from colorizer.memory.deduplication import Deduplicator
from colorizer.memory.frame_archive import FIELDS, record_of, write_archive
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.predictor import Predictor
from config import TrainConfig
from dataset import REFERENCE_ID
from fileio.checkpoints import load_checkpoint, save_checkpoint
from networks import grow
from training.runs import RunFolder
from utils import UserError

OF_TRAINING = "generator", "discriminator", "optimizers", "steps", "archive"  # what a joined checkpoint has not
IN_KEYS = "lightness", "position", "color"  # constants that keys depend on


class Source(NamedTuple):
    """A checkpoint to join, and which of its frames show something that those before it do not."""

    predictor: Predictor
    slots: list[int]  # of training frames
    pinned: list[int]  # of the user's
    ids: dict[int, int]  # {id of a frame: its id in the joined checkpoint}

    @property
    def spatial(self) -> SpatialMemory:
        return self.predictor.colorizer.spatial


def merge_checkpoints(config: TrainConfig, given: dict[str, Any]) -> None:
    """Write the checkpoint that is joined of those of ``config`` into its save_path. Raises UserError as ``join``, for
    other settings that are ``given``, and for a save_path that holds one of the checkpoints."""
    if others := given.keys() - {"merge", "save_path", "overwrite"}:
        raise UserError(f"--merge trains nothing and takes no --{min(others)}; leave it out")
    if len(config.merge) < 2:
        raise UserError("--merge takes two checkpoints or more")
    paths, target = [Path(path) for path in config.merge], Path(config.save_path)
    if any(path.resolve().parent == target.resolve() for path in paths):
        raise UserError(f"{target} holds one of the checkpoints to join; name another folder by --save_path")
    with RunFolder(config) as run:
        content = join(paths, target)
        run.prepare(None, target / content["archive"]["file"] if "archive" in content else None)
        save_checkpoint(target / "best.pt", content)
    print(f"{content['model_config']['spatial_size']:,} frames of {len(paths)} checkpoints in {target / 'best.pt'}")


def join(paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """What a checkpoint holds that has the networks of the first of these and the frames of all; those of a large one
    are written into an archive in ``folder``.

    A frame that an earlier checkpoint knows is left out. Keys are what each projection kept of the places, seen through
    that of the first; of frames that the user added, they have the colors that the networks of the first guess. Raises
    UserError for checkpoints that do not go together.
    """
    predictors = [Predictor.load(path, device="cpu") for path in paths]
    for path, predictor in zip(paths[1:], predictors[1:], strict=True):
        _check(path, predictor, predictors[0])
    names: dict[int, str] = {}
    is_new = Deduplicator(predictors[0].config.spatial)
    sources = [_source(predictor, names, is_new) for predictor in predictors]
    count, config = sum(len(source.slots) for source in sources), predictors[0].config.spatial
    if count > config.max_frames:
        raise UserError(f"together they know {count:,} frames, and a memory keeps at most {config.max_frames:,}; join fewer")
    colorizer, archived = predictors[0].colorizer, count if count > config.max_inline_frames else 0
    pinned = sum(len(source.pinned) for source in sources)
    joined = SpatialMemory(colorizer.spatial.features.shape[1], len(colorizer.spatial.mean), 0, config)
    joined.mean, joined.projection = colorizer.spatial.mean, colorizer.spatial.projection
    joined.resize(count + pinned, archived)
    grow(colorizer.memory, _empty_slots(colorizer.memory, count - len(sources[0].slots)))
    batches = _write(sources, joined)
    archive = write_archive(folder, config, archived, batches) if archived else None
    deque(batches, 0)  # what is not in an archive
    joined.open(archive)
    _pin(sources, joined, count)
    colorizer.spatial = joined
    config = replace(colorizer.config, spatial_size=count + pinned, archived_frames=archived,
                     mem_size=len(colorizer.memory.keys))
    content = {name: value for name, value in load_checkpoint(paths[0]).items() if name not in OF_TRAINING}
    return {**content, "frames": names, "colorizer": colorizer.state_dict(), "model_config": asdict(config),
            **({"archive": archive.state()} if archive else {})}


def _empty_slots(memory, count):
    """Rows for ``grow`` of so many slots of a memory of color features."""
    nothing = {name: buffer[:1].expand(count, *buffer.shape[1:]) * 0 for name, buffer in memory.named_buffers()}
    return {**nothing, "ids": nothing["ids"] - 1}


def _write(sources, joined):
    """Store the training frames of all in the joined memory, some at a time; yields their rows. What the first does not
    know of their colors is written into its memory of color features, as in training."""
    predictor, start = sources[0].predictor, 0
    memory = predictor.colorizer.memory
    for source in sources:
        for slots in (source.slots[place:place + 8] for place in range(0, len(source.slots), 8)):
            rows = _rows(source, slots)
            if source is not sources[0]:
                labs = source.spatial.labs(slots)
                seen = extract_features(predictor.colorizer.backbone, [lab[..., 0] for lab in labs], predictor.device)
                rows["keys"] = joined.translated(rows["keys"], source.spatial, seen.cells)
                features = seen.embedding.norm(dim=1, keepdim=True) * rows["features"].float()
                memory.update(memory.query(features), predictor.color_features(labs), rows["ids"])
            yield joined.store(torch.arange(start, start + len(slots)), rows)
            start += len(slots)


def _rows(source, slots):
    """{name of a buffer: rows} of some frames of a Source."""
    spatial, ids = source.spatial, [source.ids[i] for i in source.spatial.ids[slots].tolist()]
    return {"features": spatial.features[slots], "ids": torch.tensor(ids),
            **{name: spatial.kept(name, slots) for name in FIELDS}}


def _pin(sources, joined, start):
    """Store the frames that users added to any of the checkpoints, from the slot ``start`` on."""
    predictor = sources[0].predictor
    memory, config = predictor.colorizer.memory, joined.config
    for source in sources:
        for slot in source.pinned:
            rows = _rows(source, [slot])
            if source is not sources[0]:
                lab = source.spatial.labs([slot])[0]
                seen, _, _, guess = predictor.encode_reference(lab)
                color = config.color_weight * F.adaptive_avg_pool2d(guess.float(), config.grid).flatten(2).transpose(1, 2)
                keys = joined.translated(rows["keys"], source.spatial, seen.cells)
                rows["keys"] = torch.cat([keys[..., :-2], color], -1)
                memory.pin(memory.query(seen.embedding), predictor.color_features([lab]))
            joined.store(torch.tensor([start]), {**rows, "pinned": torch.tensor([True])})
            start += 1


def _check(path, predictor, first):
    """Raises UserError unless a checkpoint can be joined to the first."""
    for each in (predictor, first):
        if not each.config.use_spatial_memory:
            raise UserError(f"{each.checkpoint} keeps no frames that could be joined; train with use_spatial_memory "
                            "True")
    ours, theirs = (asdict(each.config.spatial) for each in (first, predictor))
    differ = [name for name in IN_KEYS if ours[name] != theirs[name]]
    if record_of(first.config.spatial) != record_of(predictor.config.spatial) or differ:
        raise UserError(f"the frames of {path} are kept in another way than those of {first.checkpoint}; train both "
                        "with one version")
    if predictor.colorizer.backbone.identity() != first.colorizer.backbone.identity():
        raise UserError(f"{path} was trained with another backbone than {first.checkpoint}; train both with one")


def _source(predictor, names, is_new):
    """The Source of a checkpoint, whose frames are entered into ``names`` {id: file name} of all."""
    spatial, ids = predictor.colorizer.spatial, {REFERENCE_ID: REFERENCE_ID}
    taken, free = set(names.values()), itertools.count(max([*names, *predictor.names]) + 1)
    for i, name in predictor.names.items():
        if i != REFERENCE_ID:
            ids[i] = next(free) if i in names else i
            names[ids[i]] = f"{name} of {predictor.checkpoint}" if name in taken else name
    pinned = spatial.pinned.tolist()
    slots = [slot for slot, own in enumerate(pinned) if not own and is_new(spatial.kept("pictures", [slot])[0].numpy())]
    return Source(predictor, slots, [slot for slot, own in enumerate(pinned) if own], ids)
