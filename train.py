"""Train a colorizer: ``python train.py`` reads the pictures in ``dataset/train`` and writes ``checkpoints/``.

The settings are the fields of ``config.TrainConfig``. Change the defaults there, or pass them as flags, such as
``python train.py --use_feat_integrator True``.
"""

import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import colorizer.threads  # noqa: F401  before torch is imported

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from colorizer.character_classifier import character_entries, fit_characters
from colorizer.colorizer import model_config_of
from colorizer.feature_extraction import FeatureExtractor
from colorizer.memory.frame_archive import open_archive
from config import TrainConfig, restore
from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.images import write_image
from training.augmentation import create_loader
from training.calibration import Calibration
from training.distributed import ProcessGroup
from training.learner import Learner, damaged_checkpoint
from training.merging import merge_checkpoints
from training.preparation import (
    CellSamples, build_model_config, classify_pictures, fill_spatial_memory, frame_embeddings, load_characters,
    load_data, train_left_out, train_palette_classifier)
from training.runs import Progress, RunFolder, StopSignals
from training.validation import preview, sample_grid, validate
from utils import UserError, autocast, evenly_spaced, read_flags, run_cli, select_device

# Settings of networks and memory, which cannot change when a run is resumed.
FIXED = ("use_memory", "use_feat_integrator", "use_spatial_memory", "use_palette_classifier", "gen_norm", "dis_norm",
         "img_size", "width", "backbone", "mem_size", "top_k", "color_thres", "alpha")


def train(config: TrainConfig, saved: dict[str, Any] | None = None) -> Path:
    """Train from scratch or, if ``saved`` is the content of a checkpoint, resume it. Returns the path of best.pt.

    With torchrun, all processes call this function. Raises UserError for errors that the user can correct, and
    KeyboardInterrupt after Ctrl-C or SIGTERM, as soon as the current step is complete and last.pt is written.
    """
    config.check()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by deterministic cuBLAS
        torch.use_deterministic_algorithms(True)
    group = ProcessGroup(select_device(config.device))
    if config.batch_size % group.size:  # checked before the processes connect: a failing one would block the others
        raise UserError(f"batch_size {config.batch_size} cannot be divided by {group.size} processes; set it to "
                        f"{-(-config.batch_size // group.size) * group.size}")
    with group, RunFolder(config) if group.is_main else nullcontext() as folder:
        Training(config, saved, group, folder).run()
    return Path(config.save_path) / "best.pt"


class Training:
    """A training run: ``__init__`` prepares data and networks; ``run`` trains, validates, logs and saves checkpoints.

    Each process has an instance. Only the instance of the main process has a ``folder``, validates and writes files.
    """

    def __init__(self, config: TrainConfig, saved: dict[str, Any] | None, group: ProcessGroup, folder: Any) -> None:
        start = time.monotonic()
        torch.manual_seed(config.seed)
        self.config, self.group, self.folder, self.device = config, group, folder, group.device
        self.resumed = saved is not None
        self.autocast = partial(autocast, self.device, config.precision)
        self.characters, self.only_characters = load_characters(config, saved)
        self.character_entries = character_entries(self.characters)
        self.data, self.val_data = load_data(config, self.characters, self.only_characters)
        self.learner = self._create_learner(saved)
        self.progress = self._load_progress(saved)
        self.calibration = Calibration(self.learner.colorizer, self.data, self.autocast)
        self.start = start - self.progress.elapsed_seconds  # as if the run had never been interrupted
        self.cell_samples: CellSamples | None = None
        self.embeddings = self._prepare_colorizer(saved)
        self.val_indices = evenly_spaced(len(self.val_data), config.training.val_pictures)
        classify_val = self.learner.colorizer.config.use_palette_classifier and self.val_data is not self.data
        self.val_logits = (classify_pictures(self.val_data, self.val_indices, self.learner.colorizer, self.autocast)
                           if classify_val and group.is_main else None)
        self.sampler, self.loader = create_loader(config, self.data, self.characters, group)
        self.saved_at, self.val_seconds, self.out_of_time = self.start, 0.0, False
        self.bad_steps_in_row = torch.zeros((), device=self.device)

    # -----------------------------------------------------------------------------------------------------------------
    # Preparation

    def _create_learner(self, saved):
        """Return a Learner with new networks or, if ``saved`` is given, with the networks of that checkpoint."""
        if not saved:
            return Learner(self.config, build_model_config(self.config, len(self.data), self.only_characters),
                           self.device, self.config.backbone_weights or None, self.group)
        try:
            model_config = model_config_of(saved)
        except ValueError as error:
            raise damaged_checkpoint(error) from error
        learner = Learner(self.config, model_config, self.device, False, self.group)
        learner.load(saved)
        if model_config.archived_frames and self.group.is_main:
            learner.colorizer.spatial.attach_archive(open_archive(self.folder.path / "last.pt", saved))
        return learner

    def _load_progress(self, saved):
        """Return the progress of a checkpoint, or of a new run. Raises UserError if the run has ended or, with a
        spatial memory, if the number of training pictures has changed."""
        config, progress = self.config, Progress()
        if saved:
            progress = Progress.from_checkpoint(saved, self.device)
            if self.learner.colorizer.config.use_spatial_memory:
                try:
                    trained = len(saved["frames"])
                except (KeyError, TypeError) as error:
                    raise damaged_checkpoint(error) from error
                if len(self.data) != trained:
                    raise UserError(f"the run was trained on {trained} pictures, but data_path has {len(self.data)}; "
                                    "restore the pictures or train again with another save_path")
        progress.check_remaining(config)
        return progress

    def _prepare_colorizer(self, saved):
        """Fill the spatial memory and train the palette classifier of a new run, or restore the random state of a
        resumed one. Returns the embeddings (N, D) of the training pictures, or None without a memory."""
        colorizer, computed, embeddings = self.learner.colorizer, None, None
        if colorizer.config.use_spatial_memory and not saved:
            computed = fill_spatial_memory(self.data, colorizer, self.autocast,
                                           self.folder.path if self.group.is_main else None)
        if colorizer.config.use_memory:
            embeddings = frame_embeddings(self.data, colorizer, self.autocast, computed)
        if colorizer.config.use_palette_classifier and not saved:
            samples = train_palette_classifier(self.data, colorizer, self.autocast, self.config, self.characters)
            self.cell_samples = samples if self.group.is_main else None
            if self.characters:
                fit_characters(FeatureExtractor(colorizer, self.device, self.config.precision), self.characters)
        self.group.broadcast(colorizer)  # results may differ in the last bits between GPUs
        if saved:
            try:
                self.calibration.load(saved["left_out_classifiers"])
                torch.set_rng_state(saved["rng_state"])
            except (KeyError, RuntimeError, TypeError) as error:
                raise damaged_checkpoint(error) from error
        return embeddings

    def _prepare_calibration(self):
        """Prepare the calibration, after a first look at samples without the generator."""
        colorizer, calibration = self.learner.colorizer, self.calibration
        if self.cell_samples is not None:
            write_image(self.folder.path / "samples" / "last.png",
                        preview(colorizer, self.val_data, self.data, self.autocast))
            calibration.classifiers = train_left_out(colorizer.palette_classifier, self.cell_samples,
                                                     calibration.blocks(self.embeddings))
            self.cell_samples = None  # up to 1 GB
        calibration.select_pictures(self.embeddings, self.val_data, self.val_indices, self.val_logits)

    # -----------------------------------------------------------------------------------------------------------------
    # Loop

    def run(self) -> None:
        """Train the remaining epochs, or until ``max_minutes`` or ``patience`` is reached. Raises KeyboardInterrupt
        after Ctrl-C or SIGTERM."""
        config, progress, group, is_main = self.config, self.progress, self.group, self.group.is_main
        first_epoch = progress.epoch + 1
        self.tensorboard: Any = nullcontext()
        if is_main:
            archive = self._archive()
            self.folder.prepare(progress.epoch if self.resumed else None, archive and archive.path)
            self.tensorboard = SummaryWriter(self.folder.path / "tensorboard",
                                             purge_step=first_epoch if self.resumed else None)
            self._prepare_calibration()
        self.bar = tqdm(total=(config.end_epoch - progress.epoch) * self.sampler.batches,
                        initial=progress.epoch_steps_done, unit="step", disable=None if is_main else True)
        with StopSignals() as self.signals, self.tensorboard, self.bar:
            self._save_last()  # a run that is killed from here on can resume
            is_last = False
            while not is_last:
                self._run_steps()
                losses = self._finish_epoch()
                if is_main:
                    self._validate(losses)
                is_last = bool(group.max(self._is_last())[0])  # only the main process knows the validation error
        if is_main:
            print(progress.summary(first_epoch, (time.monotonic() - self.start) / 60, config))

    def _is_last(self):
        """Return whether training ends after the current epoch."""
        return (self.progress.epoch == self.config.end_epoch or self.out_of_time
                or self.progress.is_stalled(self.config.patience))

    def _validate(self, losses):
        """Color validation pictures, fit the calibration after the last epoch, and write the results of the epoch."""
        start = time.monotonic()
        metrics, samples = validate(self.learner, self.val_data, self.autocast, self.val_logits,
                                    self.val_data is not self.data)
        self.val_seconds = time.monotonic() - start
        self.progress.add_error(metrics["val_ciede2000"], self.config.training.min_improvement)
        grid, is_last = sample_grid(samples, self.val_data, self.data), self._is_last()
        if is_last:
            self.calibration.fit()
        self._log(losses, metrics, grid)
        self._save_epoch(metrics, grid, is_last)

    def _run_steps(self):
        """Take the remaining steps of an epoch, or as many as fit in max_minutes."""
        progress, group = self.progress, self.group
        self.sampler.epoch, self.sampler.skip = progress.epoch + 1, progress.epoch_steps_done
        start = time.monotonic() - progress.epoch_seconds
        done, stop = group.max(self._fraction_done(), self.signals.received)
        for batch in self.loader:
            self.learner.set_progress(done)
            batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            embeddings = None if self.embeddings is None else self.embeddings[batch["index"]]
            self._count_step(self.learner.step(batch, embeddings, self.autocast))
            progress.epoch_seconds = time.monotonic() - start
            self.bar.update()
            done, stop = group.max(self._fraction_done(), self.signals.received)
            self.out_of_time = bool(self.config.max_minutes) and done >= 1
            if stop or self.out_of_time:
                break
            if time.monotonic() - self.saved_at > self.config.save_seconds:
                self._save_last()
        progress.epoch_seconds = time.monotonic() - start
        if stop:
            self._save_last()
            raise KeyboardInterrupt(f"stopped after step {progress.step}; --resume True continues from last.pt in "
                                    f"{self.config.save_path}")

    def _fraction_done(self):
        """Return the larger of the fractions of end_epoch and of max_minutes that have passed; 1 or more at the end."""
        done = (self.progress.epoch + self.progress.epoch_steps_done / self.sampler.batches) / self.config.end_epoch
        if limit := self.config.max_minutes * 60:  # reserve time for the last validation and the calibration
            reserved = self.val_seconds * (1 + len(self.calibration) / len(self.val_indices))
            done = max(done, (time.monotonic() - self.start) / max(limit - reserved, 1e-9))
        return done

    def _count_step(self, losses):
        """Count a step. Raises UserError after max_bad_steps or more skipped steps in a row."""
        skipped, limit = losses["skipped_steps"], self.config.training.max_bad_steps
        self.progress.count_step(losses)
        self.bad_steps_in_row = (self.bad_steps_in_row + skipped) * skipped
        # Checked rarely, since it waits for the GPU.
        if self.progress.step % limit == 0 and self.bad_steps_in_row >= limit:
            raise UserError(f"{limit} steps in a row had no finite loss or gradient; lower gen_lr or set clip_grad 1 "
                            "and resume from last.pt with --resume True")

    def _finish_epoch(self):
        """End the current epoch. Returns its mean losses, images per second and number of skipped steps."""
        progress, group = self.progress, self.group
        if self.config.use_memory:
            group.check_equal(self.learner.colorizer.memory, "memory")
        sums = {name: group.mean(total).tolist() for name, total in progress.loss_sums.items()}
        skipped = round(sums.pop("skipped_steps")[0])
        rate = progress.epoch_steps_done * self.config.batch_size / progress.epoch_seconds
        progress.epoch, progress.epoch_steps_done, progress.loss_sums = progress.epoch + 1, 0, {}
        progress.train_seconds, progress.epoch_seconds = progress.train_seconds + progress.epoch_seconds, 0.0
        return {"images_per_second": round(rate, 3), "skipped_steps": skipped,
                **{name: total / count for name, (total, count) in sums.items() if count}}

    # -----------------------------------------------------------------------------------------------------------------
    # Log and checkpoints

    def _log(self, losses, metrics, grid):
        progress = self.progress
        self.folder.add({"epoch": progress.epoch, "step": progress.step, "seconds": round(progress.train_seconds, 3),
                         **losses, **metrics})
        rate, skipped = losses.pop("images_per_second"), losses.pop("skipped_steps")
        values = {**losses, **metrics}
        self.bar.write(f"epoch {progress.epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                       + f", {rate:.1f} images/s"
                       + (f"; skipped {skipped} steps without a finite loss or gradient" if skipped else ""))
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, progress.epoch)
        self.tensorboard.add_image("samples", grid, progress.epoch, dataformats="HWC")

    def _save_epoch(self, metrics, grid, is_last):
        """Write the files of an epoch: last.png, and best.pt, epoch_NNNN.pt, epoch_NNNN.png and last.pt when due.

        best.pt is also replaced if the error is slightly above the lowest one, since the validation error of a few
        pictures is noisy and later epochs have trained longer.
        """
        progress, config = self.progress, self.config
        if metrics["val_ciede2000"] <= (1 + config.training.best_tolerance) * progress.best_ciede2000:
            self._save("best.pt", full=False)
        elif is_last:
            self.calibration.copy_to(self.folder.path / "best.pt")
        write_image(self.folder.path / "samples" / "last.png", grid)
        if progress.epoch % config.save_freq == 0 or is_last:
            write_image(self.folder.path / "samples" / f"epoch_{progress.epoch:04d}.png", grid)
            self._save(f"epoch_{progress.epoch:04d}.pt")
        if is_last or time.monotonic() - self.saved_at > config.save_seconds:
            self._save_last()

    def _save_last(self):
        if self.group.is_main:
            self.tensorboard.flush()
            self._save("last.pt")
        self.saved_at = time.monotonic()

    def _archive(self):
        """Return the archive with the remembered frames, or None if there are none outside of the checkpoint."""
        colorizer = self.learner.colorizer
        return colorizer.spatial.archive if colorizer.config.use_spatial_memory else None

    def _save(self, name, full=True):
        """Write a checkpoint. Unless ``full``, leave out the training state, which is two thirds of the size."""
        self.progress.elapsed_seconds = time.monotonic() - self.start
        state = ({**self.learner.state(), "left_out_classifiers": self.calibration.state()} if full else
                 {"colorizer": self.learner.colorizer.state_dict()})
        if archive := self._archive():
            state["archive"] = archive.state()
        save_checkpoint(self.folder.path / name, {
            **state, "model_config": asdict(self.learner.colorizer.config), "train_config": asdict(self.config),
            **vars(self.progress), "rng_state": torch.get_rng_state(), **self.character_entries,
            "frames": dict(zip(self.data.ids, (path.name for path in self.data.paths), strict=True))})


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def resume_config(saved: Any, given: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a saved run, updated with the ``given`` settings.

    Raises UserError if a given setting of FIXED differs from the saved one, or the saved ones do not fit this version.
    """
    try:
        changed = [name for name in FIXED if given.get(name, saved[name]) != saved[name]]
        config = restore(TrainConfig, {**saved, "resume": False, "start_epoch": 0, "overwrite": False,
                                       "save_path": TrainConfig.save_path, **given})
        config.check()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the settings in the checkpoint do not fit this version ({error}); train again") from error
    for name in changed:
        raise UserError(f"the run was trained with {name} {saved[name]}, which cannot change when it is resumed; omit "
                        f"{name} or train again with another save_path")
    return config


def main(argv: list[str]) -> None:
    given = read_flags(TrainConfig, argv, "Train a colorizer on the color pictures in data_path/train.")
    config, saved = TrainConfig(**given), None
    if config.merge:
        merge_checkpoints(config, given)
        return
    if config.resume or config.start_epoch:
        config.check()
        name = "last.pt" if config.resume else f"epoch_{config.start_epoch:04d}.pt"
        saved = load_checkpoint(Path(config.save_path) / name)
        config = resume_config(saved.get("train_config"), given)
    train(config, saved)


if __name__ == "__main__":
    run_cli(main)
