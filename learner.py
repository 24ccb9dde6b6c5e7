"""What one step of training does: the losses, and the learner, which holds all that training changes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from distributed import Team
from networks import Colorizer, Discriminator, ModelConfig
from utils import UserError

if TYPE_CHECKING:
    from train import TrainConfig

VIVID = 2.0  # how much more a pixel of chroma 110 counts than a grey one in the colour loss
EMA_DECAY = 0.995  # of the moving average of the generator's weights

Cast = Callable[[], torch.autocast]  # makes the context of the networks

# ---------------------------------------------------------------------------------------------------------------------
# Losses


def integrator_loss(combined: torch.Tensor, color_feature: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """KL(true || combined) of colour features (N, 313), smoothed by eps, mean over the batch."""
    return F.kl_div((combined + eps).log(), color_feature + eps, reduction="none").sum(1).mean()


def color_loss(ab_fake: torch.Tensor, ab: torch.Tensor,
               over_all: Callable[[torch.Tensor], torch.Tensor] = lambda mean: mean) -> torch.Tensor:
    """L1 of ab (N, 2, S, S), weighted by 1 + VIVID * chroma and brought back to the mean weight 1.

    Characters are small and vivid, backgrounds large and pale, and it is on characters that a wrong colour is seen.
    ``over_all`` makes the mean weight of this process's pictures that of the whole batch.
    """
    weight = 1 + VIVID * ab.square().sum(1, keepdim=True).sqrt()
    return ((ab_fake - ab).abs() * weight).mean() / over_all(weight.mean())


def generator_loss(logits_fake: torch.Tensor | None, ab_fake: torch.Tensor, ab: torch.Tensor, lambda_l1: float,
                   over_all: Callable[[torch.Tensor], torch.Tensor] = lambda mean: mean
                   ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Adversarial (where there are ``logits_fake``) + lambda * color_loss. Returns the loss and its named parts."""
    l1 = color_loss(ab_fake, ab, over_all)
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
    """What training changes: the colorizer, the discriminator and their optimisers; one copy in each process."""

    skipped: torch.Tensor  # bool, whether a part of the step was not finite

    def __init__(self, config: "TrainConfig", model_config: ModelConfig, device: torch.device,
                 backbone_weights: str | Path | Literal[False] | None = None, team: Team | None = None) -> None:
        self.config, self.team = config, team or Team(device)
        self.colorizer = Colorizer(model_config, backbone_weights).to(device)
        norm = None if config.dis_norm == "None" else config.dis_norm
        self.discriminator = Discriminator(norm, config.width).to(device)
        # The generator that is trained. The colorizer's own is the moving average of it, which colours better.
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
        optimizer.found_inf = bad.float()  # as GradScaler tells a fused optimiser to skip a step: no wait for the GPU
        optimizer.step()
        self.skipped = self.skipped | bad

    @torch.no_grad()
    def _average(self):
        """Move the colorizer's generator towards the trained one, faster in the first steps."""
        self.steps += 1
        share = max(1 - EMA_DECAY, 9 / (9 + self.steps))
        torch._foreach_lerp_(list(self.colorizer.generator.parameters()), list(self.generator.parameters()), share)
        for average, buffer in zip(self.colorizer.generator.buffers(), self.generator.buffers(), strict=True):
            # Statistics of a batch norm, which are averages already. Of a skipped step they are not to be trusted.
            buffer.copy_(torch.where(self.skipped, average, buffer))
            average.copy_(buffer)

    def step(self, batch: dict[str, torch.Tensor], features: torch.Tensor | None,
             cast: Cast) -> dict[str, torch.Tensor]:
        """One step on a batch of the dataset (on the device); features (N, D) are those of its backbone.

        In this order: triplet loss on the memory; memory update; integrator; generator; discriminator. ``cast`` makes
        the autocast context of the networks; losses and memory are float32. Returns named losses (tensors), and
        ``skipped``, 1 when a loss or gradient was not finite, whose optimiser then kept still.
        """
        config, colorizer, team = self.config, self.colorizer, self.team
        self.skipped = torch.zeros((), dtype=torch.bool, device=team.device)
        L, ab, color, view = (batch[name] for name in ("L", "ab", "color_feature", "view_feature"))
        losses, palette = {}, (view, torch.ones_like(view[:, 0]))

        if config.use_memory:
            # There is one memory: every process does the same to its copy, with the whole batch.
            features, color, ids = (team.gather(x) for x in (features, color, batch["image_id"]))
            loss = colorizer.memory.triplet_loss(colorizer.memory.query(features), color)
            self._descend("mem", loss)
            with torch.no_grad():
                query = colorizer.memory.query(features)
            colorizer.memory.update(query, color, ids)
            losses["mem_triplet"] = loss.detach()
            if config.use_feat_integrator:
                recall = colorizer.memory.read(query, colorizer.integrator.TOP)
                loss = integrator_loss(colorizer.integrator(recall.values, recall.scores), color)
                self._descend("int", loss)
                losses["int_kl"] = loss.detach()

            # At test time the memory's colours are often those of another shot, so the generator must learn to take
            # them as advice, the less the lower their score: some pictures are coloured from another frame's slot.
            value, score = (team.mine(x) for x in colorizer.memory.recall_other(query, ids))
            other = batch["misled"] & score.isfinite()
            palette = torch.where(other[:, None], value, view), torch.where(other, score, palette[1])

        judged = self.steps % config.dis_every == 0
        self.discriminator.requires_grad_(False)
        with cast():
            places = colorizer.backbone(batch["grey"])[1] if colorizer.config.use_spatial_memory else None
            fake = self.paint(L, palette, places)
            logits = self.discriminator(L, fake, view) if judged else None
        loss, parts = generator_loss(logits, fake, ab, config.lambda_l1, team.mean)
        self._descend("gen", loss)
        self._average()
        self.discriminator.requires_grad_(True)
        losses |= parts

        if judged:
            with cast():  # real and fake in one pass: no norm here looks over the batch
                both = self.judge(L.repeat(2, 1, 1, 1), torch.cat([ab, fake.detach()]), view.repeat(2, 1))
            real, painted = both.chunk(2)
            loss = discriminator_loss(real, painted, config.label_smoothing)
            self._descend("dis", loss)
            losses["dis"] = loss.detach()
        return {**losses, "skipped": self.skipped.float()}

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
                # What to do comes from the configuration, and only the moments and the rate from the file.
                optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
                optimizer.param_groups[0]["lr"] = float(state["optimizers"][name]["param_groups"][0]["lr"])
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise not_whole(error) from error


def not_whole(error: Exception) -> UserError:
    """The UserError for a checkpoint in which ``error`` was found."""
    return UserError("the checkpoint is not whole; go on from another one or train anew "
                     f"({str(error).partition(chr(10))[0]})")
