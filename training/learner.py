"""What does one step of training do? The losses, and the learner, which holds all that training changes."""

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
from utils import UserError

Cast = Callable[[], torch.autocast]  # makes the autocast context that networks run in

# ---------------------------------------------------------------------------------------------------------------------
# Losses


def integrator_loss(combined: torch.Tensor, color_feature: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """KL(true || combined) of color features (N, 313), smoothed by eps, mean over the batch."""
    return F.kl_div((combined + eps).log(), color_feature + eps, reduction="none").sum(1).mean()


def color_loss(ab_fake: torch.Tensor, ab: torch.Tensor, vivid: float,
               over_all: Callable[[torch.Tensor], torch.Tensor] = lambda mean: mean) -> torch.Tensor:
    """L1 of ab (N, 2, S, S) in [-1, 1], weighted by 1 + vivid * chroma / 110 and divided by the mean weight; a scalar.

    Characters are small and vivid, backgrounds large and pale, and it is on characters that a wrong color is seen.
    ``over_all`` turns the mean weight of this process's share into that of the whole batch.
    """
    weight = 1 + vivid * ab.square().sum(1, keepdim=True).sqrt()
    return ((ab_fake - ab).abs() * weight).mean() / over_all(weight.mean())


def generator_loss(logits_fake: torch.Tensor | None, l1: torch.Tensor,
                   lambda_l1: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Adversarial (where there are ``logits_fake``) + lambda * color_loss. Returns the loss and its named parts."""
    if logits_fake is None:
        return lambda_l1 * l1, {"gen_l1": l1.detach()}
    adversarial = F.binary_cross_entropy_with_logits(logits_fake, torch.ones_like(logits_fake))
    return adversarial + lambda_l1 * l1, {"gen_adv": adversarial.detach(), "gen_l1": l1.detach()}


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Mean of the losses on real and fake patches, with one-sided label smoothing."""
    real = F.binary_cross_entropy_with_logits(logits_real, torch.full_like(logits_real, label_smoothing))
    fake = F.binary_cross_entropy_with_logits(logits_fake, torch.zeros_like(logits_fake))
    return (real + fake) / 2


# ---------------------------------------------------------------------------------------------------------------------
# One step


class Learner:
    """What training changes: the colorizer, the discriminator and their optimizers; one copy in each process."""

    skipped: torch.Tensor  # bool, whether a part of the step was not finite

    def __init__(self, config: TrainConfig, model_config: ModelConfig, device: torch.device,
                 backbone_weights: Weights = None, team: ProcessGroup | None = None) -> None:
        self.config, self.team = config, team or ProcessGroup(device)
        self.colorizer = Colorizer(model_config, backbone_weights).to(device)
        norm = None if config.dis_norm == "None" else config.dis_norm
        self.discriminator = Discriminator(norm, config.width).to(device)
        # The generator that is trained. The colorizer's own is the moving average of it, which colors better.
        self.generator = copy.deepcopy(self.colorizer.generator)
        parts = {"gen": (self.generator, config.gen_lr, (0.5, 0.999)),
                 "dis": (self.discriminator, config.dis_lr, (0.5, 0.999))}
        if config.use_memory:
            parts["mem"] = (self.colorizer.memory, config.mem_lr, (0.9, 0.999))
        if config.use_feat_integrator:
            parts["int"] = (self.colorizer.integrator, config.int_lr, (0.9, 0.999))
        self.rates = {name: rate for name, (_, rate, _) in parts.items()}
        self.optimizers = {name: torch.optim.Adam(part.parameters(), rate, betas, fused=True)
                           for name, (part, rate, betas) in parts.items()}
        self.paint, self.judge = self.team.wrap(self.generator), self.team.wrap(self.discriminator)
        self.steps = 0

    def set_progress(self, progress: float) -> None:
        """Set the learning rates for ``progress`` in [0, 1] through the training."""
        start = self.config.lr_decay_start
        factor = 1.0 if progress <= start else max(0.0, (1 - progress) / (1 - start))
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self.rates[name] * factor

    def _descend(self, name, loss):
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = optimizer.param_groups[0]["params"]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        bad = self.team.any(~(loss.detach().isfinite() & norm.isfinite()))
        if self.config.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
        # found_inf makes a fused optimizer skip the step, as with GradScaler, without a wait for the GPU.
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        optimizer.step()
        self.skipped = self.skipped | bad

    @torch.no_grad()
    def _average(self):
        """Move the colorizer's generator towards the trained one, faster in the first steps."""
        self.steps += 1
        share = max(1 - self.config.training.ema_decay, 9 / (9 + self.steps))
        torch._foreach_lerp_(list(self.colorizer.generator.parameters()), list(self.generator.parameters()), share)
        for average, buffer in zip(self.colorizer.generator.buffers(), self.generator.buffers(), strict=True):
            # Statistics of a batch norm are averages already: they are copied, or after a skipped step restored.
            buffer.copy_(torch.where(self.skipped, average, buffer))
            average.copy_(buffer)

    def step(self, batch: dict[str, torch.Tensor], features: torch.Tensor | None,
             cast: Cast) -> dict[str, torch.Tensor]:
        """One step on a batch of TrainingViews (on the device). ``features`` (N, D) are what the backbone sees of the
        whole pictures, not of the views; None without a memory.

        In this order: triplet loss on the memory; memory update; integrator; generator; discriminator. ``cast`` makes
        the autocast context of the networks; losses and memory are float32. Returns named losses (tensors), and
        ``skipped``, 1 when a loss or gradient was not finite; its optimizer then left the weights as they were.
        """
        self.skipped = torch.zeros((), dtype=torch.bool, device=self.team.device)
        view = batch["view_feature"]
        losses, advice = {}, Conditioning(view, torch.ones_like(view[:, 0]))
        if self.config.use_memory:
            losses, advice = self._step_memory(batch, features, advice)
        judged = self.steps % self.config.dis_every == 0
        fake, generated = self._step_generator(batch, advice, judged, cast)
        losses |= generated
        if judged:
            losses["dis"] = self._step_discriminator(batch, fake, cast)
        return {**losses, "skipped": self.skipped.float()}

    def _step_memory(self, batch, features, own):
        """Memory and integrator learn; returns their losses, and the advice for the generator: a picture's ``own``
        colors, or those that another frame's slot recalls.

        At test time the memory's colors are often those of another shot, so the generator must learn to take them as
        advice, the less the lower their score.
        """
        colorizer, team = self.colorizer, self.team
        # There is one memory: every process does the same to its copy, with the whole batch.
        features, color, ids = (team.gather(x) for x in (features, batch["color_feature"], batch["image_id"]))
        loss = colorizer.memory.triplet_loss(colorizer.memory.query(features), color)
        self._descend("mem", loss)
        with torch.no_grad():
            query = colorizer.memory.query(features)
        colorizer.memory.update(query, color, ids)
        losses = {"mem_triplet": loss.detach()}
        if self.config.use_feat_integrator:
            recall = colorizer.memory.read(query, colorizer.integrator.TOP)
            loss = integrator_loss(colorizer.integrator(recall.values, recall.scores), color)
            self._descend("int", loss)
            losses["int_kl"] = loss.detach()
        value, score = (team.mine(x) for x in colorizer.memory.sample_other_frame(query, ids))
        other = batch["misled"] & score.isfinite()
        return losses, Conditioning(torch.where(other[:, None], value, own.color_feature),
                              torch.where(other, score, own.score))

    def _step_generator(self, batch, advice, judged, cast):
        """The generator learns, from the discriminator too where it is ``judged``; returns its ab and its losses."""
        L, ab = batch["L"], batch["ab"]
        self.discriminator.requires_grad_(False)
        with cast():
            seen = self.colorizer.backbone(batch["gray"]) if self.colorizer.config.use_spatial_memory else None
            fake = self.paint(L, advice, None if seen is None else seen.cells)
            logits = self.discriminator(L, fake, batch["view_feature"]) if judged else None
        l1 = color_loss(fake, ab, self.config.training.chroma_weight, self.team.mean)
        loss, losses = generator_loss(logits, l1, self.config.lambda_l1)
        self._descend("gen", loss)
        self._average()
        self.discriminator.requires_grad_(True)
        return fake.detach(), losses

    def _step_discriminator(self, batch, fake, cast):
        """The discriminator learns from real and fake in one pass; none of its norms mixes the pictures of a batch."""
        with cast():
            both = self.judge(batch["L"].repeat(2, 1, 1, 1), torch.cat([batch["ab"], fake]),
                              batch["view_feature"].repeat(2, 1))
        real, painted = both.chunk(2)
        loss = discriminator_loss(real, painted, self.config.label_smoothing)
        self._descend("dis", loss)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Everything of the learner that a checkpoint keeps, beside the colorizer's configuration."""
        return {"colorizer": self.colorizer.state_dict(), "generator": self.generator.state_dict(),
                "steps": self.steps, "discriminator": self.discriminator.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned. Raises UserError when something is missing, left over or misshapen."""
        try:
            self.colorizer.load_state_dict(state["colorizer"])
            self.generator.load_state_dict(state["generator"])
            self.discriminator.load_state_dict(state["discriminator"])
            self.steps = int(state["steps"])
            for name, optimizer in self.optimizers.items():
                moments = state["optimizers"][name]["state"]
                parameters = optimizer.param_groups[0]["params"]
                if moments:  # none before the first step
                    for p, of_p in zip(parameters, moments.values(), strict=True):
                        if {k: x.shape for k, x in of_p.items()} != {"step": (), "exp_avg": p.shape,
                                                                     "exp_avg_sq": p.shape}:
                            raise ValueError(f"the moments of {name} are of another shape")
                # Moments and learning rate come from the file, all other settings from the configuration.
                optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
                optimizer.param_groups[0]["lr"] = float(state["optimizers"][name]["param_groups"][0]["lr"])
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise not_whole(error) from error


def not_whole(error: Exception) -> UserError:
    """The UserError for a checkpoint in which ``error`` was found."""
    return UserError("the checkpoint is not whole; go on from another one or train anew "
                     f"({str(error).partition(chr(10))[0]})")
