"""The losses, and the Learner, which holds networks, optimizers and learning-rate schedule and takes training steps."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from colorizer.backbone import Weights
from colorizer.colorizer import Colorizer
from config import ModelConfig, TrainConfig
from networks import Conditioning, Discriminator
from training.distributed import ProcessGroup
from training.preparation import Autocast
from utils import UserError

# ---------------------------------------------------------------------------------------------------------------------
# Losses


def integrator_loss(combined: torch.Tensor, color_feature: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """Return KL(color_feature || combined) of color features (N, 313), both smoothed by eps, averaged over the batch.
    """
    return F.kl_div((combined + eps).log(), color_feature + eps, reduction="none").sum(1).mean()


def color_loss(ab_fake: torch.Tensor, ab: torch.Tensor, chroma_weight: float,
               reduce: Callable[[torch.Tensor], torch.Tensor] = lambda mean: mean) -> torch.Tensor:
    """Return the L1 loss of ab (N, 2, S, S) in [-1, 1], weighted by 1 + chroma_weight * chroma / 110.

    The weights compensate for the size of pale backgrounds: wrong colors are most visible in small, vivid characters.
    The loss is divided by the mean weight, which ``reduce`` averages over the processes.
    """
    weight = 1 + chroma_weight * ab.square().sum(1, keepdim=True).sqrt()
    return ((ab_fake - ab).abs() * weight).mean() / reduce(weight.mean())


def generator_loss(logits_fake: torch.Tensor | None, l1: torch.Tensor,
                   lambda_l1: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return lambda_l1 * l1, plus the adversarial loss if ``logits_fake`` is given, and the named terms of the loss."""
    if logits_fake is None:
        return lambda_l1 * l1, {"gen_l1": l1.detach()}
    adversarial = F.binary_cross_entropy_with_logits(logits_fake, torch.ones_like(logits_fake))
    return adversarial + lambda_l1 * l1, {"gen_adv": adversarial.detach(), "gen_l1": l1.detach()}


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Return the mean of the losses on real and fake patches. The target of real patches is ``label_smoothing``."""
    real = F.binary_cross_entropy_with_logits(logits_real, torch.full_like(logits_real, label_smoothing))
    fake = F.binary_cross_entropy_with_logits(logits_fake, torch.zeros_like(logits_fake))
    return (real + fake) / 2


# ---------------------------------------------------------------------------------------------------------------------
# Training step


class Learner:
    """The colorizer, the trained generator, the discriminator and their optimizers. Each process has a copy."""

    nonfinite: torch.Tensor  # bool; True if a loss or gradient of the current step was not finite

    def __init__(self, config: TrainConfig, model_config: ModelConfig, device: torch.device,
                 backbone_weights: Weights = None, group: ProcessGroup | None = None) -> None:
        self.config, self.group = config, group or ProcessGroup(device)
        self.colorizer = Colorizer(model_config, backbone_weights).to(device)
        norm = None if config.dis_norm == "None" else config.dis_norm
        self.discriminator = Discriminator(norm, config.width).to(device)
        # The optimizer trains this generator. The colorizer's generator is its moving average, which colors better.
        self.generator = copy.deepcopy(self.colorizer.generator)
        trained = {"gen": (self.generator, config.gen_lr, (0.5, 0.999)),
                   "dis": (self.discriminator, config.dis_lr, (0.5, 0.999))}
        if config.use_memory:
            trained["mem"] = (self.colorizer.memory, config.mem_lr, (0.9, 0.999))
        if config.use_feat_integrator:
            trained["int"] = (self.colorizer.integrator, config.int_lr, (0.9, 0.999))
        self.rates = {name: rate for name, (_, rate, _) in trained.items()}
        self.optimizers = {name: torch.optim.Adam(network.parameters(), rate, betas, fused=True)
                           for name, (network, rate, betas) in trained.items()}
        self.parallel_generator = self.group.wrap(self.generator)
        self.parallel_discriminator = self.group.wrap(self.discriminator)
        self.ema_steps = 0

    def set_progress(self, progress: float) -> None:
        """Set the learning rates after the fraction ``progress`` (in [0, 1]) of the training run."""
        start = self.config.lr_decay_start
        factor = 1.0 if progress <= start else max(0.0, (1 - progress) / (1 - start))
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self.rates[name] * factor

    def _optimize(self, name, loss):
        """Take a step of an optimizer. If a loss or gradient of any process is not finite, only set ``nonfinite``."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = optimizer.param_groups[0]["params"]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        nonfinite = self.group.any(~(loss.detach().isfinite() & norm.isfinite()))
        if self.config.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
        # found_inf makes a fused optimizer skip the step, as in GradScaler, without synchronizing with the GPU.
        optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
        optimizer.step()
        self.nonfinite = self.nonfinite | nonfinite

    @torch.no_grad()
    def _update_average(self):
        """Move the colorizer's generator toward the trained one, by larger steps at the start of the training run."""
        self.ema_steps += 1
        share = max(1 - self.config.training.ema_decay, 9 / (9 + self.ema_steps))
        torch._foreach_lerp_(list(self.colorizer.generator.parameters()), list(self.generator.parameters()), share)
        for average, buffer in zip(self.colorizer.generator.buffers(), self.generator.buffers(), strict=True):
            # Batch norm statistics are averages already. They are copied, or restored after a skipped step.
            buffer.copy_(torch.where(self.nonfinite, average, buffer))
            average.copy_(buffer)

    def step(self, batch: dict[str, torch.Tensor], embeddings: torch.Tensor | None,
             autocast: Autocast) -> dict[str, torch.Tensor]:
        """Take a training step on a batch of TrainingViews, which is on the device.

        ``embeddings`` (N, D) belong to the whole pictures, not to the views; None for a colorizer without a memory.
        The order is: triplet loss of the memory, memory update, integrator, generator, discriminator. Networks run in
        ``autocast``; losses and memory are float32. Returns named scalar losses and ``skipped_steps``: 1 if a loss or
        gradient was not finite. In this case the optimizer has not changed the weights.
        """
        self.nonfinite = torch.zeros((), dtype=torch.bool, device=self.group.device)
        own = Conditioning(batch["view_feature"], torch.ones_like(batch["view_feature"][:, 0]))
        losses, conditioning = self._step_memory(batch, embeddings, own) if self.config.use_memory else ({}, own)
        adversarial = self.ema_steps % self.config.dis_every == 0
        fake, generator_losses = self._step_generator(batch, conditioning, adversarial, autocast)
        losses |= generator_losses
        if adversarial:
            losses["dis_bce"] = self._step_discriminator(batch, fake, autocast)
        return {**losses, "skipped_steps": self.nonfinite.float()}

    def _step_memory(self, batch, embeddings, own):
        """Train memory and integrator, and return their losses and the conditioning of the generator.

        The conditioning is ``own``, from the views themselves, or, with conditioning dropout, a slot of a different
        frame. At test time the memory often returns the colors of a different shot, so the generator must learn to
        follow the conditioning less when its score is lower.
        """
        colorizer, group = self.colorizer, self.group
        # The memory is replicated: each process applies the update with the whole batch to its copy.
        embeddings, color, ids = (group.gather(x) for x in (embeddings, batch["color_feature"], batch["image_id"]))
        loss = colorizer.memory.triplet_loss(colorizer.memory.query(embeddings), color)
        self._optimize("mem", loss)
        with torch.no_grad():
            query = colorizer.memory.query(embeddings)
        colorizer.memory.update(query, color, ids)
        losses = {"mem_triplet": loss.detach()}
        if self.config.use_feat_integrator:
            recall = colorizer.memory.read(query, colorizer.integrator.TOP)
            loss = integrator_loss(colorizer.integrator(recall.values, recall.scores), color)
            self._optimize("int", loss)
            losses["int_kl"] = loss.detach()
        value, score = (group.own_share(x) for x in colorizer.memory.sample_other_frame(query, ids))
        use_other = batch["drop_conditioning"] & score.isfinite()
        return losses, Conditioning(torch.where(use_other[:, None], value, own.color_feature),
                                    torch.where(use_other, score, own.score))

    def _step_generator(self, batch, conditioning, adversarial, autocast):
        """Train the generator. Returns its ab (N, 2, S, S), detached, and its losses."""
        L, ab = batch["L"], batch["ab"]
        self.discriminator.requires_grad_(False)
        with autocast():
            cells = self.colorizer.backbone(batch["gray"]).cells if self.colorizer.config.use_spatial_memory else None
            fake = self.parallel_generator(L, conditioning, cells)
            logits = self.discriminator(L, fake, batch["view_feature"]) if adversarial else None
        l1 = color_loss(fake, ab, self.config.training.chroma_weight, self.group.mean)
        loss, losses = generator_loss(logits, l1, self.config.lambda_l1)
        self._optimize("gen", loss)
        self._update_average()
        self.discriminator.requires_grad_(True)
        return fake.detach(), losses

    def _step_discriminator(self, batch, fake, autocast):
        """Train the discriminator on real and fake pictures in one batch; no norm mixes them. Returns the loss."""
        with autocast():
            logits = self.parallel_discriminator(batch["L"].repeat(2, 1, 1, 1), torch.cat([batch["ab"], fake]),
                                                 batch["view_feature"].repeat(2, 1))
        logits_real, logits_fake = logits.chunk(2)
        loss = discriminator_loss(logits_real, logits_fake, self.config.label_smoothing)
        self._optimize("dis", loss)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Return the state of networks and optimizers for a checkpoint."""
        return {"colorizer": self.colorizer.state_dict(), "generator": self.generator.state_dict(),
                "ema_steps": self.ema_steps, "discriminator": self.discriminator.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Load the result of ``state``. Raises UserError if an entry is missing, unexpected or of the wrong shape."""
        try:
            self.colorizer.load_state_dict(state["colorizer"])
            self.generator.load_state_dict(state["generator"])
            self.discriminator.load_state_dict(state["discriminator"])
            self.ema_steps = int(state["ema_steps"])
            for name, optimizer in self.optimizers.items():
                moments = state["optimizers"][name]["state"]
                parameters = optimizer.param_groups[0]["params"]
                if moments:  # empty before the first step
                    for p, moment in zip(parameters, moments.values(), strict=True):
                        if {k: x.shape for k, x in moment.items()} != {"step": (), "exp_avg": p.shape,
                                                                     "exp_avg_sq": p.shape}:
                            raise ValueError(f"the moments of {name} have the wrong shape")
                # Moments and learning rate come from the checkpoint, all other settings from the configuration.
                optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
                optimizer.param_groups[0]["lr"] = float(state["optimizers"][name]["param_groups"][0]["lr"])
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise damaged_checkpoint(error) from error


def damaged_checkpoint(error: Exception) -> UserError:
    """Return the UserError for a checkpoint whose contents raised ``error``."""
    return UserError("the checkpoint is incomplete or damaged; resume from another one or train again "
                     f"({str(error).partition(chr(10))[0]})")
