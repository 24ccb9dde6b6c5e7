"""How is it learned? ``python train.py`` learns the pictures of ``dataset/train`` and writes ``checkpoints/``.

All settings are those of ``config.TrainConfig``: edit their defaults there or pass them as flags, such as
``python train.py --use_feat_integrator True``.
"""

import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import colorizer.threads  # noqa: F401  before torch is imported

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from colorizer.colorizer import model_config_of
from colorizer.memory.frame_archive import open_archive
from colorizer.metrics import AB_PEAK, ciede2000, psnr
from config import TrainConfig, restore
from dataset import AB_SCALE, ColorizationDataset, resize, tensors_to_lab
from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.images import write_image
from training.augmentation import TrainingViews, ViewSampler
from training.distributed import ProcessGroup
from training.learner import Cast, Learner, not_whole
from training.merging import merge_checkpoints
from training.preparation import fit_model_config, load_data, remember, see, see_all, teach_voter, vote_all
from training.runs import Position, Run, Signals, sample_grid
from utils import UserError, autocast, evenly_spaced, read_flags, run_cli, select_device

EPOCH_STEPS = 50  # at least, in an epoch: a small set is passed over several times
SAVE_SECONDS = 120  # last.pt is never older; writing it takes about a second
EXIT_TIMEOUT = 10  # after so many steps in a row without a finite loss or gradient the training ends
VAL_PICTURES = 64  # validation looks at no more than these many, spread evenly over the set
SAMPLES = 4  # rows of the sample grid
ABOUT = 1.1  # a validation error of so many times the lowest is as good

# ---------------------------------------------------------------------------------------------------------------------
# Validation


@torch.no_grad()
def validate(learner: Learner, data: ColorizationDataset, cast: Cast, votes: torch.Tensor | None = None,
             read_spatial: bool = True) -> tuple[dict[str, float], list[tuple[int, np.ndarray, list[int]]]]:
    """Color at most VAL_PICTURES pictures as at test time: eval mode, palette from the memory (and the integrator).
    ``votes`` are those of ``vote_all``; without ``read_spatial`` the spatial memory is not read: on the training
    pictures, which both know, they prove nothing.

    Returns {name: metric}, measured at the side that the colorizer takes, and at most SAMPLES rows for the sample grid:
    (index, predicted Lab (S, S, 3), ids of the best 3 slots).
    """
    colorizer = learner.colorizer.eval()
    chosen = evenly_spaced(len(data), VAL_PICTURES)
    shown = {chosen[place] for place in evenly_spaced(len(chosen), SAMPLES)}
    errors, squares, overlaps, samples = [], [], [], []
    for part in torch.arange(len(chosen)).split(learner.config.batch_size):
        indices = torch.tensor(chosen)[part]
        seen, L, ab = see(data, indices, colorizer, cast)
        advice, ids = None, torch.empty(len(indices), 0)
        if seen is not None:
            seen = seen._replace(class_logits=None if votes is None else votes[part].float())
            recall = colorizer.recall(seen.embedding)
            advice, ids = colorizer.conditioning(recall), recall.ids
            shared = torch.minimum(advice.color_feature, data.color_features[indices].to(L.device))
            overlaps += shared.sum(1).tolist()
        with cast():
            fake, _ = colorizer(L, advice, seen, read_spatial)
        squares += ((fake - ab) * AB_SCALE).square().mean((1, 2, 3)).tolist()
        labs, truths = tensors_to_lab(L, fake), tensors_to_lab(L, ab)
        for index, lab, truth, top in zip(indices.tolist(), labs, truths, ids.tolist(), strict=True):
            errors.append(ciede2000(lab, truth))
            if index in shown:
                samples.append((index, resize(lab, data.img_size, data.img_size), top))
    colorizer.train()
    metrics = {"val_ciede2000": sum(errors) / len(errors), "val_psnr_ab": psnr(sum(squares) / len(squares), AB_PEAK)}
    if overlaps:
        metrics["val_feature_intersection"] = sum(overlaps) / len(overlaps)
    return metrics, samples


# ---------------------------------------------------------------------------------------------------------------------
# The run


def train(config: TrainConfig, saved: dict[str, Any] | None = None) -> Path:
    """Train as configured, from the start or on from the checkpoint ``saved``; returns the path of best.pt.

    Under torchrun every process calls it. Raises UserError for what the user can mend, and KeyboardInterrupt after
    Ctrl-C or SIGTERM, when the step is finished and last.pt written.
    """
    config.check()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
        torch.use_deterministic_algorithms(True)
    team = ProcessGroup(select_device(config.device))
    if config.batch_size % team.size:  # checked before the processes connect, as one that fails later blocks the others
        raise UserError(f"batch_size {config.batch_size} cannot be shared equally by {team.size} processes; set it to "
                        f"{-(-config.batch_size // team.size) * team.size}")
    with team, Run(config) if team.leader else nullcontext() as run:
        training = Training(config, saved, team, run)
        training.run_epochs()
    return Path(config.save_path) / "best.pt"


class Training:
    """A training. Making it prepares data and networks; ``run_epochs`` trains; it validates, logs and saves each epoch.

    Every process of a team has one. The leader alone has a Run, validates and writes files; elsewhere ``run`` is None.
    """

    def __init__(self, config: TrainConfig, saved: dict[str, Any] | None, team: ProcessGroup, run: Any) -> None:
        began = time.monotonic()
        torch.manual_seed(config.seed)
        self.config, self.team, self.run, self.device = config, team, run, team.device
        self.cast: Cast = partial(autocast, team.device, config.precision)
        self.data, self.val_data = load_data(config)
        self.learner = self._make_learner(saved)
        self.position = self._find_position(saved)
        self.resumed, self.first_epoch = saved is not None, self.position.epoch
        self.began = began - self.position.elapsed  # as if the run had never stopped
        self.features = self._prepare(saved)
        self.votes = self._vote_on_val()
        self.sampler, self.loader = self._make_loader()
        self.saved_at, self.val_seconds, self.out_of_time = self.began, 0.0, False
        self.skipped_in_row = torch.zeros((), device=self.device)

    # -----------------------------------------------------------------------------------------------------------------
    # Prepare

    def _make_learner(self, saved):
        """A Learner with new networks, or those of a checkpoint."""
        config = self.config
        if saved:
            try:
                model_config = model_config_of(saved)
            except ValueError as error:
                raise not_whole(error) from error
        else:
            model_config = fit_model_config(config, len(self.data))
        learner = Learner(config, model_config, self.device, False if saved else config.backbone_weights or None,
                          self.team)
        if saved:
            learner.load(saved)
            if model_config.archived_frames and self.team.leader:
                learner.colorizer.spatial.open(open_archive(self.run.path / "last.pt", saved))
        return learner

    def _find_position(self, saved):
        """Where to go on, or the start. Raises UserError when there is nothing left to be done."""
        config, position = self.config, Position()
        if saved:
            position = Position.of(saved, self.device)
            if self.learner.colorizer.config.use_spatial_memory:
                try:
                    trained = len(saved["frames"])
                except (KeyError, TypeError) as error:
                    raise not_whole(error) from error
                if len(self.data) != trained:
                    raise UserError(f"the run was trained on {trained} pictures, and there are {len(self.data)}; give "
                                    "it back its pictures or train anew in another save_path")
        if position.epoch >= config.end_epoch:
            raise UserError(f"the checkpoint is of epoch {position.epoch} and end_epoch is {config.end_epoch}; raise "
                            "end_epoch")
        if config.max_minutes and position.elapsed >= config.max_minutes * 60:
            raise UserError(f"the run has had {position.elapsed / 60:.1f} minutes and max_minutes is "
                            f"{config.max_minutes}, which counts them all; raise max_minutes")
        return position

    def _prepare(self, saved):
        """Fill the spatial memory of a new colorizer; returns what the backbone sees of all pictures, (N, D)."""
        colorizer, known, features = self.learner.colorizer, None, None
        if colorizer.config.use_spatial_memory and not saved:
            known = remember(self.data, colorizer, self.cast, self.run.path if self.team.leader else None)
        if colorizer.config.use_memory:
            features = see_all(self.data, colorizer, self.cast, known)
        if colorizer.config.use_palette_classifier and not saved:
            teach_voter(self.data, colorizer, self.cast, self.config.seed)
        self.team.share(colorizer)  # GPUs may differ in the last bits
        if saved:
            try:
                torch.set_rng_state(saved["rng"])
            except (KeyError, RuntimeError, TypeError) as error:
                raise not_whole(error) from error
        return features

    def _vote_on_val(self):
        """The votes for the validation pictures, which never change; None where nobody needs them."""
        colorizer = self.learner.colorizer
        if not (colorizer.config.use_palette_classifier and self.team.leader) or self.val_data is self.data:
            return None
        return vote_all(self.val_data, evenly_spaced(len(self.val_data), VAL_PICTURES), colorizer, self.cast)

    def _make_loader(self):
        config, team = self.config, self.team
        passes = math.ceil(EPOCH_STEPS * config.batch_size / len(self.data))
        sampler = ViewSampler(self.data, passes, config.seed, config.batch_size, team.rank, team.size)
        views = TrainingViews(self.data, config.training, config.conditioning_dropout)
        return sampler, DataLoader(
            views, config.batch_size // team.size, sampler=sampler, num_workers=config.num_workers,
            pin_memory=self.device.type == "cuda", persistent_workers=config.num_workers > 0,
            worker_init_fn=Signals.ignore, generator=torch.Generator())  # so that torch's own random state stays

    # -----------------------------------------------------------------------------------------------------------------
    # Loop

    def run_epochs(self) -> None:
        """All epochs that are left, or as many as the time allows. Raises KeyboardInterrupt after Ctrl-C or SIGTERM."""
        config, position, leader = self.config, self.position, self.team.leader
        if leader:
            archive = self._archive()
            self.run.begin(position.epoch if self.resumed else None, archive and archive.path)
        self.board: Any = (SummaryWriter(self.run.path / "tensorboard",
                                         purge_step=position.epoch + 1 if self.resumed else None)
                           if leader else nullcontext())  # the leader alone logs
        self.bar = tqdm(total=(config.end_epoch - position.epoch) * self.sampler.batches, initial=position.batches,
                        unit="step", disable=None if leader else True)
        with Signals() as self.signals, self.board, self.bar:
            self._save_last()  # from here on there is something to go on from
            while position.epoch < config.end_epoch and not self.out_of_time:
                self._run_steps()
                losses = self._close_epoch()
                if leader:
                    began = time.monotonic()
                    metrics, samples = validate(self.learner, self.val_data, self.cast, self.votes,
                                                self.val_data is not self.data)
                    self.val_seconds = time.monotonic() - began
                    grid = sample_grid(samples, self.val_data, self.data)
                    self._log(losses, metrics, grid)
                    self._save_epoch(metrics, grid)
        if leader:
            print(f"trained epochs {self.first_epoch + 1} to {position.epoch} in "
                  f"{(time.monotonic() - self.began) / 60:.1f} minutes; lowest validation CIEDE2000 "
                  f"{position.best:.3f}; checkpoints in {self.run.path}")

    def _run_steps(self):
        """The steps that are left of an epoch, or as many as the time allows."""
        position = self.position
        self.sampler.epoch, self.sampler.skip = position.epoch + 1, position.batches
        started = time.monotonic() - position.spent
        done, stop = self.team.largest(self._progress(), self.signals.caught)
        for batch in self.loader:
            self.learner.set_progress(done)
            batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            features = None if self.features is None else self.features[batch["index"]]
            self._count(self.learner.step(batch, features, self.cast))
            position.spent = time.monotonic() - started
            self.bar.update()
            done, stop = self.team.largest(self._progress(), self.signals.caught)
            self.out_of_time = bool(self.config.max_minutes) and done >= 1
            if stop or self.out_of_time:
                break
            if time.monotonic() - self.saved_at > SAVE_SECONDS:
                self._save_last()
        position.spent = time.monotonic() - started
        if stop:
            self._save_last()
            raise KeyboardInterrupt(f"stopped after step {position.step}; --resume True goes on from last.pt in "
                                    f"{self.config.save_path}")

    def _progress(self):
        """Progress of the training, 1 at its end: by epochs or by time, whichever is further."""
        done = (self.position.epoch + self.position.batches / self.sampler.batches) / self.config.end_epoch
        limit = self.config.max_minutes * 60
        if limit:  # the last validation takes its time, too
            return max(done, (time.monotonic() - self.began) / max(limit - self.val_seconds, 1e-9))
        return done

    def _count(self, losses):
        """Add up a step's losses. Raises UserError after PATIENCE or more steps in a row that were not finite."""
        position, skipped = self.position, losses["skipped"]
        position.step += 1
        position.batches += 1
        for name, loss in losses.items():
            counted = torch.stack([loss, torch.ones_like(loss)])
            if name != "skipped":
                counted = counted.masked_fill(skipped > 0, 0)
            position.sums[name] = position.sums.get(name, 0) + counted
        self.skipped_in_row = (self.skipped_in_row + skipped) * skipped
        if position.step % EXIT_TIMEOUT == 0 and self.skipped_in_row >= EXIT_TIMEOUT:
            raise UserError(f"{EXIT_TIMEOUT} steps in a row gave no finite loss or gradient; lower gen_lr or set "
                            f"clip_grad 1, and go on from last.pt with --resume True")

    def _close_epoch(self):
        """The means of the losses of an epoch, its speed and the number of steps that were skipped."""
        position, team = self.position, self.team
        if self.config.use_memory:
            team.check_same(self.learner.colorizer.memory, "memory")
        sums = {name: team.mean(total).tolist() for name, total in position.sums.items()}
        skipped = round(sums.pop("skipped")[0])
        rate = position.batches * self.config.batch_size / position.spent
        position.epoch, position.batches, position.sums = position.epoch + 1, 0, {}
        position.seconds, position.spent = position.seconds + position.spent, 0.0
        return {"images_per_second": round(rate, 3), "skipped": skipped,
                **{name: total / count for name, (total, count) in sums.items() if count}}

    # -----------------------------------------------------------------------------------------------------------------
    # Log and save

    def _log(self, losses, metrics, grid):
        position = self.position
        self.run.add({"epoch": position.epoch, "step": position.step, "seconds": round(position.seconds, 3),
                      **losses, **metrics})
        rate, skipped = losses.pop("images_per_second"), losses.pop("skipped")
        values = {**losses, **metrics}
        self.bar.write(f"epoch {position.epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                       + f", {rate:.1f} images/s"
                       + (f"; {skipped} steps skipped, whose loss or gradient was not finite" if skipped else ""))
        for name, value in values.items():
            self.board.add_scalar(name, value, position.epoch)
        self.board.add_image("samples", grid, position.epoch, dataformats="HWC")

    def _save_epoch(self, metrics, grid):
        """Write best.pt after an epoch of about the lowest error yet; every save_freq epochs and at the end, a
        checkpoint and samples; the newest samples are in samples/last.png.

        A few pictures of one shot tell little, and a later epoch has learned more: the lowest error must be lower by a
        tenth to be better.
        """
        position, config = self.position, self.config
        position.best = min(position.best, metrics["val_ciede2000"])
        if metrics["val_ciede2000"] <= ABOUT * position.best:
            self._save("best.pt", full=False)
        last = position.epoch == config.end_epoch or self.out_of_time
        write_image(self.run.path / "samples" / "last.png", grid)
        if position.epoch % config.save_freq == 0 or last:
            write_image(self.run.path / "samples" / f"epoch_{position.epoch:04d}.png", grid)
            self._save(f"epoch_{position.epoch:04d}.pt")
        if last:
            self.run.draw_curves()
        if last or time.monotonic() - self.saved_at > SAVE_SECONDS:
            self._save_last()

    def _save_last(self):
        if self.team.leader:
            self.board.flush()
            self._save("last.pt")
        self.saved_at = time.monotonic()

    def _archive(self):
        """The frames that are kept in a file beside the checkpoints, None where these keep all."""
        colorizer = self.learner.colorizer
        return colorizer.spatial.archive if colorizer.config.use_spatial_memory else None

    def _save(self, name, full=True):
        self.position.elapsed = time.monotonic() - self.began
        state = self.learner.state()
        if not full:  # best.pt is for coloring, and a third as large without what only training needs
            state = {"colorizer": state["colorizer"]}
        if archive := self._archive():
            state["archive"] = archive.state()
        save_checkpoint(self.run.path / name, {
            **state, "model_config": asdict(self.learner.colorizer.config), "train_config": asdict(self.config),
            **vars(self.position), "rng": torch.get_rng_state(),
            "frames": dict(zip(self.data.ids, (path.name for path in self.data.paths), strict=True))})


# ---------------------------------------------------------------------------------------------------------------------
# Command line

# Settings of the networks and the memory: a run that goes on cannot change them.
FIXED = ("use_memory", "use_feat_integrator", "use_spatial_memory", "use_palette_classifier", "gen_norm", "dis_norm", "img_size",
         "width", "backbone", "mem_size", "top_k", "color_thres", "alpha")


def config_to_go_on(saved: Any, given: dict[str, Any]) -> TrainConfig:
    """The configuration of a saved run, with the settings that are ``given`` now in their place.

    Raises UserError for one of FIXED that differs from the saved one.
    """
    try:
        changed = [name for name in FIXED if given.get(name, saved[name]) != saved[name]]
        config = restore(TrainConfig, {**saved, "resume": False, "start_epoch": 0, "overwrite": False,
                                       "save_path": TrainConfig.save_path, **given})
        config.check()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the checkpoint's settings are not those of this version ({error}); train anew") from error
    for name in changed:
        raise UserError(f"the run was trained with {name} {saved[name]}, and going on cannot change that; leave "
                        f"{name} out or train anew in another save_path")
    return config


def main(argv: list[str]) -> None:
    given = read_flags(TrainConfig, argv, "Learn the colors of the pictures in data_path/train.")
    config, saved = TrainConfig(**given), None
    if config.join:
        merge_checkpoints(config, given)
        return
    if config.resume or config.start_epoch:
        config.check()
        name = "last.pt" if config.resume else f"epoch_{config.start_epoch:04d}.pt"
        saved = load_checkpoint(Path(config.save_path) / name)
        config = config_to_go_on(saved.get("train_config"), given)
    train(config, saved)


if __name__ == "__main__":
    run_cli(main)
