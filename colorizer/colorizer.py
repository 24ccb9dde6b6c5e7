"""The Colorizer: backbone, memories, palette classifier, integrator and generator as one module.

Shapes: N pictures; G, g grid sides of the spatial memory and the classifier; K palette colors; S = ``config.side``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from colorizer.backbone import Backbone, BackboneDims, Features, Weights, backbone_dims
from colorizer.confidence import (
    PRIOR, Confidence, calibrated_probability, calibration_inputs, class_agreement, recalled_share)
from colorizer.memory.attention import attend_to_frames
from colorizer.memory.frame_retrieval import find_nearest_frames, nearest_similarity, quantize_embeddings
from colorizer.memory.frame_warping import warp_colors
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.palette_classifier import CharacterClassifier, PaletteClassifier, shift_cell_means
from colorizer.scopes import HIDDEN, RANKS
from config import ModelConfig, restore
from dataset import backbone_input, downsample
from networks import Conditioning, FeatureIntegrator, Generator, MemoryMatches, MemoryNetwork


class MemoryLookup(NamedTuple):
    """How the memories are read for frames of one shot, or for unrelated pictures."""

    picture_of: Callable[[int], np.ndarray] | None = None  # see ``warp_colors``
    ranks: Sequence[int] = ()  # of the references, see ``Colorizer.recall``


UNSCOPED = MemoryLookup()  # without references that have a scope


class Colorizer(nn.Module):
    """All networks and memories. Coloring requires only its ``state_dict`` and ``config``."""

    calibration: torch.Tensor  # (5,) coefficients of ``calibrated_probability``

    def __init__(self, config: ModelConfig, backbone_weights: Weights = False) -> None:
        """``backbone_weights`` are the ``weights`` of Backbone. Raises ValueError if ``config`` is inconsistent."""
        super().__init__()
        self.config = config
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
            self.register_buffer("calibration", torch.tensor(PRIOR))
        if config.use_palette_classifier:
            if not config.use_spatial_memory:
                raise ValueError("the palette classifier needs a spatial memory; set use_spatial_memory True")
            self.palette_classifier = PaletteClassifier(dims.maps, config.palette_classifier)
            if config.character_colors:
                self.character_classifier = CharacterClassifier(dims.maps, config)

    def recall(self, embedding: torch.Tensor, ranks: Sequence[int] = ()) -> MemoryMatches:
        """Return the best 3 memory slots (fewer if the memory is smaller) for frame embeddings (N, D), given the ranks
        of the references (``colorizer/scopes.py``); without ``ranks``, references with a scope are not returned."""
        return self.memory.read(self.memory.query(embedding), FeatureIntegrator.TOP, ranks or self.unscoped_ranks)

    @property
    def unscoped_ranks(self) -> list[int]:
        """Ranks of the references outside of all scopes."""
        return [HIDDEN if scope else 0 for scope in self.config.reference_scopes]

    def conditioning(self, matches: MemoryMatches, rank: int | None = None) -> Conditioning:
        """Return the conditioning from memory matches.

        ``rank`` 1, 2 or 3 selects that slot, or the best slot if it is empty. None selects the combination of
        the integrator, with the score of the best slot. Without an integrator, None selects the best slot.
        """
        if rank is None and self.config.use_feat_integrator:
            return Conditioning(self.integrator(matches.values, matches.scores), matches.scores[:, 0])
        column = min(rank or 1, matches.values.shape[1]) - 1
        slot = torch.where(matches.scores[:, column].isfinite(), column, 0)[:, None]
        return Conditioning(matches.values.take_along_dim(slot[:, :, None], 1)[:, 0],
                            matches.scores.take_along_dim(slot, 1)[:, 0])

    def classifier_maps(self, L: torch.Tensor) -> list[torch.Tensor]:
        """Return the backbone maps of L (N, 1, H, H) in [0, 1], where H is the classifier input size."""
        return self.backbone.maps(backbone_input(L))

    def classify(self, L: torch.Tensor, classifier: PaletteClassifier | None = None,
                 with_characters: bool = True) -> torch.Tensor:
        """Return the class logits (N, K, g, g) of pictures, with L as in ``classifier_maps``, by ``classifier`` or, if
        it is None, by the palette classifier. Those of the character classifier follow if there is one and
        ``with_characters`` is True."""
        parts = zip(*(x.split(1) for x in (L, *self.classifier_maps(L))), strict=True)  # each fits into a CPU cache
        classifiers = [classifier or self.palette_classifier]
        classifiers += [self.character_classifier] if self.config.character_colors and with_characters else []
        return torch.cat([torch.cat([each(maps, L) for each in classifiers], 1) for L, *maps in parts])

    def forward(self, L: torch.Tensor, conditioning: Conditioning | None = None, features: Features | None = None,
                lookup: MemoryLookup | None = UNSCOPED,
                propagated: torch.Tensor | None = None) -> tuple[torch.Tensor, Confidence | None]:
        """Predict ab (N, 2, S, S) in [-1, 1] and its Confidence from L (N, 1, S, S) in [0, 1].

        The generator predicts ab. If ``features`` has class logits, the mean color of each cell is replaced with the
        joint estimate of classifier and generator. Then the mean color of each cell moves towards the color recalled by
        attention, then towards that of a recognized character if the logits of the character classifier are given, and
        finally each pixel towards the color warped from remembered frames, in proportion to confidence. Before warping,
        detail finer than a cell comes from the generator.

        Without a spatial memory, or if ``lookup`` is None, no colors are recalled and the Confidence is None.
        ``propagated`` (N, 3, h, h), ab and confidence, are colors of other frames of the shot; they replace warped
        colors of lower confidence. Raises ValueError if required ``features`` are missing.
        """
        if not self.config.use_spatial_memory:
            return self.generator(L, conditioning), None
        if features is None:
            raise ValueError("a colorizer with a spatial memory needs the features of the backbone")
        predicted = self.generator(downsample(L, self.config.img_size), conditioning, features.cells)
        joint, character_logits = None, features.class_logits
        if features.class_logits is not None:
            logits, character_logits = features.class_logits.tensor_split([len(self.palette_classifier.palette)], 1)
            predicted, joint = self._join(predicted, logits)
        ab = F.interpolate(predicted, L.shape[2:], mode="bilinear", align_corners=False)
        if lookup is None:
            return ab, None
        keys = self.spatial.make_keys(features.cells, L, predicted)
        nearest = find_nearest_frames(self.spatial, quantize_embeddings(features.embedding),
                                      lookup.ranks or self.unscoped_ranks)
        warped = warp_colors(self.spatial, nearest, keys, L, lookup.picture_of)  # (N, 3, S, S): ab and confidence
        if propagated is not None:
            warped = torch.where(propagated[:, 2:] > warped[:, 2:], propagated, warped)
        warped_share = F.adaptive_avg_pool2d(warped[:, 2], self.config.spatial.grid)
        attended = attend_to_frames(self.spatial, nearest, keys,  # (N, 3, G, G): ab and confidence
                                    warped_share.flatten(1) < self.config.spatial.skip_attention_above)
        ab = shift_cell_means(ab, *attended.split([2, 1], 1))
        if character_logits is not None and character_logits.shape[1]:
            ab = shift_cell_means(ab, *self.character_classifier.locate(character_logits))
        ab = shift_cell_means(ab, *warped.split([2, 1], 1))
        similarity = nearest_similarity(self.spatial, nearest, features.embedding)
        return ab, self._confidence(ab, joint, attended[:, 2], warped[:, 2], similarity)

    def _join(self, ab, logits):
        """Combine predicted ab with class logits. Return ab and the joint probabilities (N, K, g / 2, g / 2), averaged
        over 2 x 2 cells: this is enough for the confidence and takes a quarter of the time."""
        joined = [self.palette_classifier.combine(*part) for part in zip(ab.split(1), logits.split(1), strict=True)]
        return torch.cat([ab for ab, _ in joined]), torch.cat([F.avg_pool2d(joint.float(), 2) for _, joint in joined])

    def _confidence(self, ab, joint, attended, warped, similarity):
        """Return the Confidence of ab (N, 2, S, S), given joint probabilities (N, K, g / 2, g / 2) or None, the
        confidences of the attention (N, G, G) and of the warped colors (N, S, S), and the similarity (N,) to the
        nearest remembered frame."""
        with torch.autocast(ab.device.type, enabled=False):
            recalled = recalled_share(attended, warped, (attended if joint is None else joint).shape[-1])
            agreement = (torch.zeros_like(recalled) if joint is None else
                         class_agreement(joint, self.palette_classifier.palette, ab))
            inputs = calibration_inputs(recalled, agreement, similarity)
            return Confidence(recalled, agreement, calibrated_probability(inputs, self.calibration))


def model_config_of(content: dict[str, Any]) -> ModelConfig:
    """Return the ModelConfig stored in the content of a checkpoint.

    Raises ValueError if a tensor of the colorizer is missing, unexpected, or has a different shape or dtype than the
    configuration requires. The check allocates no tensors, since an invalid configuration may require huge ones.
    """
    try:
        config = restore(ModelConfig, content["model_config"])
        with torch.device("meta"):
            needed = Colorizer(config).state_dict()
        pinned = {int(x.sum()) for name, x in content["colorizer"].items() if name.endswith(".pinned")}
        if pinned - {len(config.reference_scopes)} or set(config.reference_scopes) - RANKS.keys():
            raise ValueError("the scopes of its references are missing or unknown")
        found, needed = ({name: (x.shape, x.dtype) for name, x in state.items()}
                         for state in (content["colorizer"], needed))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    for name in sorted(found.keys() | needed.keys()):
        if found.get(name) != needed.get(name):
            raise ValueError(f"{name} is missing, unexpected or of a different shape or type")
    return config
