"""How it is learned: ``python train.py`` learns the pictures of ``dataset/train`` and writes ``checkpoints/``.

Edit the defaults of TrainConfig below or pass them as flags: ``python train.py --use_feat_integrator True``.
"""

import argparse
import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dataset import AB_SCALE, ColorizationDataset, TrainingViews, ViewSampler, resize
from distributed import Team
from learner import Cast, Learner, not_whole
from networks import BACKBONE_DIMS, SIZE_STEP, BackboneUnavailable, ModelConfig, model_config_of
from runs import Run, Signals, sample_grid, to_lab
from utils import (
    AB_PEAK, IMAGE_SUFFIXES, ArgumentParser, UserError, autocast, boolean, ciede2000, list_files, load_checkpoint, psnr,
    run_cli, save_checkpoint, select_device, warn, write_image)

# ---------------------------------------------------------------------------------------------------------------------
# Configuration


def setting(default: Any, help: str, choices: list[str] | None = None, group: str | None = None) -> Any:
    """A field of TrainConfig that is also a flag; ``group`` starts a new group of flags in ``--help``."""
    return field(default=default, metadata={"help": help, "choices": choices, "group": group})


@dataclass
class TrainConfig:
    data_path: str = setting("dataset", "folder with the pictures in train/ and val/", group="files")
    save_path: str = setting("checkpoints", "folder for checkpoints, log, curves and samples")
    save_freq: int = setting(10, "keep an epoch_NNNN.pt every so many epochs; last.pt is never older than 2 minutes")
    overwrite: bool = setting(False, "start again in a save_path that holds another run, removing that run's files")

    use_memory: bool = setting(True, "read the colours from a memory at test time", group="the way to train")
    use_feat_integrator: bool = setting(False, "combine the best three slots of the memory by learned weights")
    use_spatial_memory: bool = setting(True, "with a memory: also remember where colours belong, and lay them over "
                                       "the generator's at places that look alike")
    gen_norm: str = setting("adain", "norm of the generator; adain takes its style from the colour feature",
                            ["adain", "batch"])
    dis_norm: str = setting("adain", "norm of the discriminator; adain also shows it the colour feature",
                            ["adain", "None"])

    start_epoch: int = setting(0, "go on from epoch_NNNN.pt of this epoch in save_path", group="length")
    end_epoch: int = setting(100, "train up to this epoch; a set that fills less than EPOCH_STEPS batches is passed "
                             "over more than once in an epoch")
    max_minutes: float = setting(0.0, "train for about this many minutes in all, schedule fitted to it; 0: no limit")
    resume: bool = setting(False, "go on from last.pt in save_path")

    img_size: int = setting(128, f"side of the square that the networks see, a multiple of {SIZE_STEP}",
                            group="networks")
    width: int = setting(32, "channels of the first layers; inner layers have up to 8 times as many")
    backbone: str = setting("efficientnet_lite0", "ImageNet network that looks at the grey picture",
                            ["efficientnet_lite0", "resnet18"])
    backbone_weights: str = setting("", "file with the backbone's weights; default: its package or download")

    mem_size: int = setting(0, "slots of the memory; 0: 1.2 times the number of training pictures", group="memory")
    top_k: int = setting(0, "nearest slots among which the triplet loss looks; 0: all, at most 256")
    color_thres: float = setting(0.5, "delta: colour features closer than this (KL, nats) count as the same colours")
    alpha: float = setting(0.1, "margin of the triplet loss, in cosine similarity")

    mislead: float = setting(0.5, "share of the pictures that the generator must colour from what the memory recalls "
                             "of other frames, as happens with shots that it has never seen")

    batch_size: int = setting(8, "pictures in a step, shared by the processes of torchrun", group="optimisation")
    gen_lr: float = setting(2e-3, "learning rate of the generator")
    dis_lr: float = setting(2e-4, "learning rate of the discriminator")
    mem_lr: float = setting(1e-4, "learning rate of the memory's query encoder")
    int_lr: float = setting(1e-3, "learning rate of the feature integrator")
    lr_decay_start: float = setting(0.5, "share of the training after which the learning rates fall linearly to 0")
    lambda_l1: float = setting(100.0, "weight of the L1 loss against the adversarial loss")
    dis_every: int = setting(4, "the discriminator judges and learns in every so many steps")
    label_smoothing: float = setting(0.9, "what the discriminator is told that real pictures are, at most 1")
    clip_grad: float = setting(0.0, "largest norm that the gradient of a network may have; 0: no limit")

    device: str = setting("auto", "where to train", ["auto", "cpu", "cuda"], group="machine")
    precision: str = setting("auto", "of the networks; auto is bf16 where the hardware is fast at it",
                             ["auto", "fp32", "bf16"])
    num_workers: int = setting(0, "processes that prepare batches")
    cache_gb: float = setting(1.0, "GB of prepared pictures to hold in memory; more are read from the folder .cache of "
                              "train/ or val/, where they are kept, as they are needed")
    seed: int = setting(0, "of everything random")
    deterministic: bool = setting(False, "the same result again on a GPU too, more slowly; on a CPU it always is")

    def check(self) -> None:
        """Raises UserError when settings are out of range or make no sense together."""
        for name in ("end_epoch", "save_freq", "batch_size", "img_size", "width", "dis_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; set it to at least 1")
        for name in ("start_epoch", "max_minutes", "mem_size", "top_k", "color_thres", "alpha", "num_workers", "gen_lr",
                     "dis_lr", "mem_lr", "int_lr", "lambda_l1", "clip_grad", "seed", "cache_gb"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; set it to 0 or more")
        for name in ("lr_decay_start", "label_smoothing", "mislead"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; set it between 0 and 1")
        if self.img_size % SIZE_STEP:
            raise UserError(f"img_size is {self.img_size}, and the generator takes multiples of {SIZE_STEP}; set "
                            f"img_size to {max(SIZE_STEP, round(self.img_size / SIZE_STEP) * SIZE_STEP)}")
        if self.use_feat_integrator and not self.use_memory:
            raise UserError("the integrator combines slots of the memory; set use_memory True or "
                            "use_feat_integrator False")
        if self.use_memory and self.gen_norm == "batch":
            raise UserError("gen_norm batch ignores the colours that the memory recalls; set gen_norm adain or "
                            "use_memory False")
        if not self.use_memory and self.gen_norm == "adain":
            raise UserError("gen_norm adain needs a colour feature and there is no memory to recall one from; set "
                            "gen_norm batch or use_memory True")
        if self.gen_norm == "batch" and self.dis_norm == "adain":
            raise UserError("dis_norm adain judges by a colour feature that a generator with gen_norm batch never "
                            "sees; set dis_norm None or gen_norm adain")
        if self.resume and self.start_epoch:
            raise UserError("resume True goes on from last.pt and start_epoch from an older epoch; use one of them")
        if self.overwrite and (self.resume or self.start_epoch):
            raise UserError("overwrite True starts again and resume True or start_epoch goes on; use one of them")


EPOCH_STEPS = 50  # a set of a few pictures is passed over again until an epoch has this many steps
SAVE_SECONDS = 120  # last.pt is never older; writing it takes about a second
PATIENCE = 10  # steps in a row without a finite loss or gradient that end the training
VAL_PICTURES = 64  # validation looks at no more than these many, spread evenly over the set
SPATIAL_FRAMES = 4096  # the spatial memory holds no more, spread evenly over a larger set: of 250 kB each
FITTED = 128  # the spatial memory's projection is chosen by no more pictures than these, spread evenly
SAMPLES = 4  # rows of the sample grid


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


FIXED = ("use_memory", "use_feat_integrator", "use_spatial_memory", "gen_norm", "dis_norm", "img_size", "width",
         "backbone", "mem_size")


def config_to_go_on(saved: Any, given: dict[str, Any]) -> TrainConfig:
    """The configuration of a saved run, with the settings that are ``given`` now in their place.

    Raises UserError for a setting that shapes the networks and differs from the saved one.
    """
    try:
        changed = [name for name in FIXED if given.get(name, saved[name]) != saved[name]]
        config = TrainConfig(**{**saved, "resume": False, "start_epoch": 0, "overwrite": False,
                                "save_path": TrainConfig.save_path, **given})
        config.check()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the checkpoint's settings are not those of this version ({error}); train anew") from error
    for name in changed:
        raise UserError(f"the run was trained with {name} {saved[name]}, and going on cannot change that; leave "
                        f"{name} out or train anew in another save_path")
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Data and validation


def look(data: ColorizationDataset, indices: torch.Tensor, learner: Learner, device: torch.device,
         cast: Cast) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """What the backbone sees of some pictures: frames (N, D) and places (N, E, 32, 32), None without a memory, which
    needs no backbone; and L and ab of the size that the colorizer takes."""
    L, ab, grey = (part.to(device) for part in data.look(indices, learner.colorizer.side))
    frames = places = None
    if learner.config.use_memory:
        with cast():
            frames, places = learner.colorizer.backbone(grey)
    return frames, places, L, ab


def look_at(data: ColorizationDataset, learner: Learner, device: torch.device, cast: Cast,
            frames: torch.Tensor | None = None) -> torch.Tensor:
    """The backbone's features (N, D) of the frames of a dataset, which never change: as kept with the dataset, else
    ``frames`` (N, D) if they are known, else computed."""
    backbone, name = learner.colorizer.backbone, learner.config.backbone
    with cast():
        precision = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else "float32"

    def compute(part):
        return look(data, part, learner, device, cast)[0] if frames is None else frames[part.to(device)]

    return data.features(f"features_{name}", BACKBONE_DIMS[name], (backbone.identity(), precision), compute).to(device)


def remember(data: ColorizationDataset, learner: Learner, device: torch.device,
             cast: Cast) -> torch.Tensor | None:
    """Fill the spatial memory with the pictures, or with some of them, spread evenly, where it has not room for all.

    Returns the backbone's features (N, D) of the pictures if it has looked at all of them.
    """
    spatial, ids, seen = learner.colorizer.spatial, torch.tensor(data.ids), []
    sample = torch.tensor(spread(len(data), FITTED)).split(8)
    places = (look(data, part, learner, device, cast)[1] for part in sample)
    spatial.fit(torch.cat([x.half() for x in places if x is not None]))  # none is: there is a memory
    chosen = torch.tensor(spread(len(data), len(spatial.ids)))
    for slots in torch.arange(len(chosen)).split(8):
        frames, *rest = look(data, chosen[slots], learner, device, cast)
        spatial.write(slots.to(device), frames, *rest, ids[chosen[slots]].to(device))
        seen.append(frames)
    return torch.cat(seen) if len(chosen) == len(data) else None


def load_data(config: TrainConfig) -> tuple[ColorizationDataset, ColorizationDataset]:
    """The datasets for training and validation; without pictures in val/, the training pictures serve for both."""
    folder = Path(config.data_path)
    data = ColorizationDataset(folder / "train", config.img_size, config.cache_gb)
    if (folder / "val").is_dir() and list_files(folder / "val", IMAGE_SUFFIXES):
        return data, ColorizationDataset(folder / "val", config.img_size, config.cache_gb)
    warn(f"no pictures in {folder / 'val'}; validating on the training pictures, which tells little")
    return data, data


@torch.no_grad()
def validate(learner: Learner, data: ColorizationDataset, device: torch.device, cast: Cast,
             remember: bool = True) -> tuple[dict[str, float], list[tuple[int, np.ndarray, list[int]]]]:
    """Colour the pictures exactly as at test time: eval mode, colours from the memory (through the integrator). Without
    ``remember``, the generator alone: what the spatial memory knows of a training picture tells nothing.

    Returns the metrics, at the size that the colorizer takes, and SAMPLES rows for the sample grid: (index, predicted
    Lab (S, S, 3), ids of the top 3).
    """
    colorizer = learner.colorizer.eval()
    chosen = spread(len(data), VAL_PICTURES)
    shown = {chosen[place] for place in spread(len(chosen), SAMPLES)}
    errors, squares, overlaps, samples = [], [], [], []
    for indices in torch.tensor(chosen).split(learner.config.batch_size):
        frames, places, L, ab = look(data, indices, learner, device, cast)
        palette, ids = None, torch.empty(len(indices), 0)
        if learner.config.use_memory:
            recall = colorizer.recall(frames)
            palette, ids = colorizer.choose(recall), recall.ids
            truth = data.color_features[indices].to(device)
            overlaps += torch.minimum(palette[0], truth).sum(1).tolist()
        with cast():
            fake, _ = colorizer(L, palette, (frames, places), remember)
        squares += ((fake - ab) * AB_SCALE).square().mean((1, 2, 3)).tolist()
        for index, lab, truth, top in zip(indices.tolist(), to_lab(L, fake), to_lab(L, ab), ids.tolist(), strict=True):
            errors.append(ciede2000(lab, truth))
            if index in shown:
                samples.append((index, resize(lab, data.img_size, data.img_size), top))
    colorizer.train()
    metrics = {"val_ciede2000": sum(errors) / len(errors), "val_psnr_ab": psnr(sum(squares) / len(squares), AB_PEAK)}
    if overlaps:
        metrics["val_feature_intersection"] = sum(overlaps) / len(overlaps)
    return metrics, samples


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices below ``count``, evenly spread."""
    return sorted({round(i) for i in torch.linspace(0, count - 1, min(count, wanted)).tolist()})


# ---------------------------------------------------------------------------------------------------------------------
# The run


@dataclass
class Position:
    """How far a run is: with the learner's state and torch's random state, all that going on exactly takes."""

    epoch: int = 0  # epochs that are done
    batches: int = 0  # steps that are done of the next one
    step: int = 0  # steps in all
    spent: float = 0.0  # seconds on the steps of this epoch
    seconds: float = 0.0  # seconds on the steps of the epochs before
    elapsed: float = 0.0  # seconds on everything, in all the times that the run was started
    best: float = math.inf  # val_ciede2000
    sums: dict = field(default_factory=dict)  # losses of this epoch: name -> tensor of their sum and number

    @classmethod
    def of(cls, saved: dict[str, Any], device: torch.device) -> "Position":
        """The position that a checkpoint was written at. Raises UserError when it makes no sense."""
        try:
            position = cls(**{f.name: saved[f.name] for f in fields(cls)})
            for f in fields(cls)[:-1]:
                if not (type(getattr(position, f.name)) is f.type and getattr(position, f.name) >= 0):
                    raise ValueError(f"{f.name} is {getattr(position, f.name)}")
            position.sums = {name: x.to(device).reshape(2) for name, x in position.sums.items()}
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise not_whole(error) from error
        return position


def train(config: TrainConfig, saved: dict[str, Any] | None = None) -> Path:
    """Train as configured, from the start or on from the checkpoint ``saved``; returns the path of best.pt.

    Under torchrun every process calls it. Raises UserError for what the user can mend, and KeyboardInterrupt after
    Ctrl-C or SIGTERM, when the step is finished and last.pt written.
    """
    config.check()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS cannot be
        torch.use_deterministic_algorithms(True)
    team = Team(select_device(config.device))
    if config.batch_size % team.size:  # before the processes meet, where one that leaves would trouble the others
        raise UserError(f"batch_size {config.batch_size} cannot be shared equally by {team.size} processes; set it to "
                        f"{-(-config.batch_size // team.size) * team.size}")
    with team, Run(config) if team.leader else nullcontext() as run:
        _train(config, saved, team, run)
    return Path(config.save_path) / "best.pt"


def _train(config, saved, team, run):
    begin = time.monotonic()
    torch.manual_seed(config.seed)
    device = team.device

    def cast():
        return autocast(device, config.precision)

    data, val_data = load_data(config)
    if saved:
        try:
            model_config = model_config_of(saved)
        except ValueError as error:
            raise not_whole(error) from error
    else:
        model_config = fit_model_config(config, len(data))
    try:
        learner = Learner(config, model_config, device, False if saved else config.backbone_weights or None, team)
    except BackboneUnavailable as error:
        raise UserError(str(error)) from error
    position = Position()
    if saved:
        learner.load(saved)
        position = Position.of(saved, device)
        if model_config.use_spatial_memory:
            try:
                trained = len(saved["frames"])
            except (KeyError, TypeError) as error:
                raise not_whole(error) from error
            if len(data) != trained:
                raise UserError(f"the run was trained on {trained} pictures, and there are {len(data)}; give it back "
                                "its pictures or train anew in another save_path")
    if position.epoch >= config.end_epoch:
        raise UserError(f"the checkpoint is of epoch {position.epoch} and end_epoch is {config.end_epoch}; raise "
                        "end_epoch")
    limit = config.max_minutes * 60
    if limit and position.elapsed >= limit:
        raise UserError(f"the run has had {position.elapsed / 60:.1f} minutes and max_minutes is {config.max_minutes}, "
                        "which counts them all; raise max_minutes")
    begin -= position.elapsed

    frames = remember(data, learner, device, cast) if model_config.use_spatial_memory and not saved else None
    features = look_at(data, learner, device, cast, frames) if config.use_memory else None
    team.share(learner.colorizer)  # GPUs may differ in the last bits
    if saved:
        try:
            torch.set_rng_state(saved["rng"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise not_whole(error) from error

    def save(name, full=True):
        position.elapsed = time.monotonic() - begin
        state = learner.state()
        if not full:  # best.pt is for colouring, and a third as large without what only training needs
            state = {"colorizer": state["colorizer"]}
        save_checkpoint(run.path / name, {
            **state, "model_config": asdict(model_config), "train_config": asdict(config), **vars(position),
            "rng": torch.get_rng_state(),
            "frames": dict(zip(data.ids, (path.name for path in data.paths), strict=True))})

    passes = math.ceil(EPOCH_STEPS * config.batch_size / len(data))
    sampler = ViewSampler(data, passes, config.seed, config.batch_size, team.rank, team.size)
    loader = DataLoader(TrainingViews(data, config.mislead), config.batch_size // team.size, sampler=sampler,
                        num_workers=config.num_workers, pin_memory=device.type == "cuda",
                        persistent_workers=config.num_workers > 0, worker_init_fn=Signals.ignore,
                        generator=torch.Generator())  # the loader leaves torch's own random state alone
    saved_at = begin
    first_epoch, val_seconds, skipped_in_row = position.epoch, 0.0, torch.zeros((), device=device)

    def progress():
        """How far the training is, 1 at its end: by epochs or by time."""
        done = (position.epoch + position.batches / sampler.batches) / config.end_epoch
        return max(done, (time.monotonic() - begin) / (limit - val_seconds)) if limit > val_seconds else done

    def save_last():
        nonlocal saved_at
        if team.leader:
            board.flush()
            save("last.pt")
        saved_at = time.monotonic()

    if team.leader:
        run.begin(position.epoch if saved else None)
    board: Any  # None in all but the leader
    with Signals() as signals, (
            SummaryWriter(run.path / "tensorboard", purge_step=position.epoch + 1 if saved else None)
            if team.leader else nullcontext()) as board, tqdm(
            total=(config.end_epoch - position.epoch) * sampler.batches, initial=position.batches, unit="step",
            disable=None if team.leader else True) as bar:
        save_last()  # from here on there is something to go on from
        out_of_time = False
        while position.epoch < config.end_epoch and not out_of_time:
            sampler.epoch, sampler.skip = position.epoch + 1, position.batches
            started = time.monotonic() - position.spent
            done, stop = team.largest(progress(), signals.caught)
            for batch in loader:
                learner.set_progress(done)
                batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                losses = learner.step(batch, None if features is None else features[batch["index"]], cast)
                position.step += 1
                position.batches += 1
                position.spent = time.monotonic() - started
                skipped = losses["skipped"]
                for name, loss in losses.items():
                    counted = torch.stack([loss, torch.ones_like(loss)])
                    if name != "skipped":
                        counted = counted.masked_fill(skipped > 0, 0)
                    position.sums[name] = position.sums.get(name, 0) + counted
                skipped_in_row = (skipped_in_row + skipped) * skipped
                if position.step % PATIENCE == 0 and skipped_in_row >= PATIENCE:
                    raise UserError(f"{PATIENCE} steps in a row gave no finite loss or gradient; lower gen_lr or set "
                                    f"clip_grad 1, and go on from last.pt with --resume True")
                bar.update()
                done, stop = team.largest(progress(), signals.caught)
                out_of_time = bool(limit) and done >= 1
                if stop or out_of_time:
                    break
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    save_last()
            if stop:
                save_last()
                raise KeyboardInterrupt(f"stopped after step {position.step}; --resume True goes on from last.pt in "
                                        f"{config.save_path}")
            if config.use_memory:
                team.check_same(learner.colorizer.memory, "memory")
            sums = {name: team.mean(total).tolist() for name, total in position.sums.items()}
            skipped = round(sums.pop("skipped")[0])
            means = {name: total / count for name, (total, count) in sums.items() if count}
            spent, images = time.monotonic() - started, position.batches * config.batch_size
            position.epoch, position.batches, position.sums = position.epoch + 1, 0, {}
            position.seconds, position.spent = position.seconds + spent, 0.0
            if not team.leader:
                continue

            validation_began = time.monotonic()
            metrics, samples = validate(learner, val_data, device, cast, val_data is not data)
            val_seconds = time.monotonic() - validation_began
            record = {"epoch": position.epoch, "step": position.step, "seconds": round(position.seconds, 3),
                      "images_per_second": round(images / spent, 3), "skipped": skipped, **means, **metrics}
            run.add(record)
            bar.write(f"epoch {position.epoch}: "
                      + ", ".join(f"{name} {record[name]:.4g}" for name in [*means, *metrics])
                      + f", {record['images_per_second']:.1f} images/s"
                      + (f"; {skipped} steps skipped, whose loss or gradient was not finite" if skipped else ""))
            for name, value in {**means, **metrics}.items():
                board.add_scalar(name, value, position.epoch)
            grid = sample_grid(samples, val_data, data)
            board.add_image("samples", grid, position.epoch, dataformats="HWC")

            if metrics["val_ciede2000"] < position.best:
                position.best = metrics["val_ciede2000"]
                save("best.pt", full=False)
            last = position.epoch == config.end_epoch or out_of_time
            if position.epoch % config.save_freq == 0 or last:
                write_image(run.path / "samples" / f"epoch_{position.epoch:04d}.png", grid)
                save(f"epoch_{position.epoch:04d}.pt")
            if last:
                run.draw_curves()
            if last or time.monotonic() - saved_at > SAVE_SECONDS:
                save_last()
    if team.leader:
        print(f"trained epochs {first_epoch + 1} to {position.epoch} in {(time.monotonic() - begin) / 60:.1f} minutes; "
              f"best validation CIEDE2000 {position.best:.3f}; checkpoints in {run.path}")


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def parse(argv: list[str]) -> dict[str, Any]:
    """The settings that the command line gives, a dict; TrainConfig has the defaults of the others."""
    parser = ArgumentParser(prog="train.py", description="Learn the colours of the pictures in data_path/train.")
    group = parser
    for f in fields(TrainConfig):
        if f.metadata["group"]:
            group = parser.add_argument_group(f.metadata["group"])
        group.add_argument(f"--{f.name}", type=boolean if f.type is bool else f.type, default=argparse.SUPPRESS,
                           choices=f.metadata["choices"], help=f"{f.metadata['help']} (default: {f.default!r})")
    given = vars(parser.parse_args(argv))
    given.pop("debug", None)
    return given


def main(argv: list[str]) -> None:
    given = parse(argv)
    config, saved = TrainConfig(**given), None
    if config.resume or config.start_epoch:
        config.check()
        name = "last.pt" if config.resume else f"epoch_{config.start_epoch:04d}.pt"
        saved = load_checkpoint(Path(config.save_path) / name)
        config = config_to_go_on(saved.get("train_config"), given)
    train(config, saved)


if __name__ == "__main__":
    run_cli(main)
