"""What holds the networks together? The Colorizer: backbone, memories, integrator and generator as one module."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from colorizer import confidence as certainty
from colorizer.backbone import Backbone, BackboneDims, Features, Weights, backbone_dims
from colorizer.confidence import Confidence
from colorizer.memory.attention import attend_to_frames
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.memory.frame_warping import warp_colors
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.palette_classifier import PaletteClassifier, moved
from config import CalibrationConfig, ModelConfig, restore
from dataset import backbone_input, downsample
from networks import Conditioning, FeatureIntegrator, Generator, MemoryMatches, MemoryNetwork


class Colorizer(nn.Module):
    """Backbone, memories, integrator and generator: its ``state_dict`` and ``config`` are all that coloring needs."""

    def __init__(self, config: ModelConfig, backbone_weights: Weights = False) -> None:
        """``backbone_weights`` as for Backbone; False when a state dict is loaded next."""
        super().__init__()
        self.config, self.certainty = config, CalibrationConfig()
        dims = backbone_dims(config.backbone) if config.use_memory else BackboneDims(0, ())
        cell_dim = dims.cell if config.use_spatial_memory else 0
        self.generator = Generator(config.gen_norm, config.width, cell_dim, config.img_size, config.spatial.grid)
        if config.use_memory:
            self.backbone = Backbone(config.backbone, backbone_weights, config.spatial.grid)
            self.memory = MemoryNetwork(dims.frame, config.mem_size, config.top_k, config.alpha, config.color_thres)
        if config.use_feat_integrator:
            self.integrator = FeatureIntegrator()
        if config.use_spatial_memory:
            self.spatial = SpatialMemory(dims.frame, cell_dim, config.spatial_size, config.spatial,
                                         config.archived_frames)
        if config.use_palette_classifier:
            if not config.use_spatial_memory:
                raise ValueError("votes need the places of a spatial memory")
            self.palette_classifier = PaletteClassifier(dims.maps, config.palette_classifier)

    def recall(self, features: torch.Tensor) -> MemoryMatches:
        """Backbone features (N, D) -> the 3 best slots (fewer in a memory of fewer slots)."""
        return self.memory.read(self.memory.query(features), FeatureIntegrator.TOP)

    def conditioning(self, recall: MemoryMatches, rank: int | None = None) -> Conditioning:
        """What the generator is told of the colors, by what the memory recalled.

        ``rank`` 1, 2 or 3 takes that slot (the best one where it is empty); None takes the integrator's combination
        where there is an integrator (with the score of the best slot), else the best slot.
        """
        if rank is None and self.config.use_feat_integrator:
            return Conditioning(self.integrator(recall.values, recall.scores), recall.scores[:, 0])
        place = min(rank or 1, recall.values.shape[1]) - 1
        slot = torch.where(recall.scores[:, place].isfinite(), place, 0)[:, None]
        return Conditioning(recall.values.take_along_dim(slot[:, :, None], 1)[:, 0],
                      recall.scores.take_along_dim(slot, 1)[:, 0])

    def classifier_maps(self, L: torch.Tensor) -> list[torch.Tensor]:
        """The backbone's maps that the voter sees of pictures, L (N, 1, H, H) in [0, 1], H the size of its look."""
        return self.backbone.maps(backbone_input(L))

    def classify(self, L: torch.Tensor) -> torch.Tensor:
        """The votes (N, K, G, G) for the colors of pictures, L as for ``classifier_maps``."""
        parts = zip(*(x.split(1) for x in (L, *self.classifier_maps(L))), strict=True)  # which fit into a CPU's cache
        return torch.cat([self.palette_classifier(maps, L) for L, *maps in parts])

    def forward(self, L: torch.Tensor, advice: Conditioning | None = None, seen: Features | None = None,
                remember: bool = True,
                shown: Callable[[int], np.ndarray] | None = None) -> tuple[torch.Tensor, Confidence | None]:
        """L (N, 1, S, S) in [0, 1], S = ``config.side`` -> ab (N, 2, S, S) in [-1, 1], and what is Known of G x G
        places, each of 2 x 2 of the votes, else those of the spatial memory; None where that is not read.

        A spatial memory needs what the backbone has ``seen`` of the pictures. Where there are votes, the mean color of
        each of their places becomes one that they and the generator agree on. Then that of each place of the spatial
        memory moves to the remembered one, as far as it is confident; what is finer than a place stays the generator's.
        At last every pixel moves to the color that the optical flow carries to it, as far as that is certain. With
        ``remember`` False, nothing is read from the spatial memory; ``shown`` is as for ``SpatialMemory.carry``. Raises
        ValueError when ``seen`` is needed and missing.
        """
        if not self.config.use_spatial_memory:
            return self.generator(L, advice), None
        if seen is None:
            raise ValueError("a spatial memory needs what the backbone has seen")
        guess = self.generator(downsample(L, self.config.img_size), advice, seen.cells)
        joint = None
        if seen.class_logits is not None:
            guess, joint = self._join(guess, seen.class_logits)
        ab = F.interpolate(guess, L.shape[2:], mode="bilinear", align_corners=False)
        if not remember:
            return ab, None
        keys = self.spatial.make_keys(seen.cells, L, guess)
        nearest = find_nearest_frames(self.spatial, quantize_embeddings(seen.embedding))
        carried = warp_colors(self.spatial, nearest, keys, L, shown)
        certain = F.adaptive_avg_pool2d(carried[:, 2], self.config.spatial.grid)
        hint = attend_to_frames(self.spatial, nearest, keys,
                                certain.flatten(1) < self.config.spatial.skip_attention_above)
        ab = moved(moved(ab, *hint.split([2, 1], 1)), *carried.split([2, 1], 1))
        return ab, self._known(ab, joint, hint[:, 2], carried[:, 2])

    def _join(self, guess, votes):
        """``PaletteClassifier.join`` of guesses and votes; of the joint votes, the means over 2 x 2 places, which are enough to
        tell what is Known, in a quarter of the time."""
        joined = [self.palette_classifier.join(*part) for part in zip(guess.split(1), votes.split(1), strict=True)]
        return torch.cat([ab for ab, _ in joined]), torch.cat([F.avg_pool2d(joint.float(), 2) for _, joint in joined])

    def _known(self, ab, joint, hint, carried):
        """What is Known of ab (N, 2, S, S), by the joint votes (N, K, G, G), None without votes, and the confidences of
        what is looked up (N, g, g) and of what is carried (N, S, S)."""
        with torch.autocast(ab.device.type, enabled=False):
            if joint is None:
                recalled = certainty.recalled_share(hint, carried, hint.shape[1])
                agreed = torch.zeros_like(recalled)
            else:
                recalled = certainty.recalled_share(hint, carried, joint.shape[2])
                agreed = certainty.class_agreement(joint, self.palette_classifier.palette, ab)
            return Confidence(recalled, agreed, certainty.calibrated_probability(recalled, agreed, self.certainty))


def model_config_of(content: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of what load_checkpoint read.

    Raises ValueError when a tensor of the colorizer is missing, left over or of another shape than the networks of
    this configuration need, before anything of a size that the file merely claims is allocated.
    """
    try:
        config = restore(ModelConfig, content["model_config"])
        with torch.device("meta"):
            needed = Colorizer(config).state_dict()
        kinds, needed = ({name: (x.shape, x.dtype) for name, x in state.items()}
                         for state in (content["colorizer"], needed))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    for name in sorted(kinds.keys() | needed.keys()):
        if kinds.get(name) != needed.get(name):
            raise ValueError(f"{name} is missing, left over or of another shape")
    return config
