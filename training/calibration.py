"""Calibration of the confidence of a checkpoint, on training pictures that are colored as if they were unknown.

The training pictures, in natural order, are divided into blocks of shots. Some pictures of each block are colored
without the remembered frames of the block, by a palette classifier that was trained on the other blocks. Other pictures
are colored while only they are left out: their shots are known. The coefficients of the confidence are fit to both, and
to the validation pictures.

Shapes: N training pictures; P pictures to color; D embedding dimensions; S pixels along a side of the colors.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.colorizer import Colorizer
from colorizer.confidence import PRIOR, calibration_inputs
from colorizer.memory.frame_retrieval import find_nearest_frames, nearest_similarity, quantize_embeddings
from colorizer.metrics import LARGE_ERROR, color_differences
from colorizer.palette_classifier import PaletteClassifier
from dataset import ColorizationDataset, resize, tensors_to_lab
from fileio.checkpoints import load_checkpoint, save_checkpoint
from training.preparation import Autocast, classify_pictures, load_with_features
from training.validation import without_generator
from utils import evenly_spaced


@dataclass
class CalibrationConfig:
    """Constants of the calibration."""

    blocks: int = 3  # number of blocks; larger: more similar frames remain, and one more classifier is trained
    pictures: int = 16  # pictures of left-out blocks, of known shots and for validation; larger: less noise, slower
    known_step: int = 3  # one in this many pictures is left out to color known shots
    val_weight: float = 2.0  # weight of a validation picture, which no network has seen; the others have weight 1
    prior_weight: float = 0.3  # precision of the prior coefficients


class LeftOut(NamedTuple):
    """Pictures to color while some training pictures are left out."""

    data: ColorizationDataset
    indices: list[int]  # (P,) pictures of ``data`` to color
    hidden_ids: list[int]  # ids of the frames that are left out
    class_logits: torch.Tensor | None  # float16 (P, K, g, g)
    as_unknown: bool = False  # whether the shots count as unknown, although the generator has seen them
    weight: float = 1.0  # of each picture in the fit


def split_into_blocks(embeddings: torch.Tensor, count: int) -> torch.Tensor:
    """Divide pictures with ``embeddings`` (N, D), in order, into ``count`` blocks of similar size. Return the block of
    each, int64 (N,).

    A block ends where consecutive pictures are least similar, up to a quarter of a block from its nominal end: this is
    usually a cut.
    """
    number = len(embeddings)
    similarity = F.cosine_similarity(embeddings[1:], embeddings[:-1])  # of the pictures i + 1 and i
    blocks = torch.zeros(number, dtype=torch.long)
    for block in range(1, count):
        center, reach = block * number / count, number / count / 4
        first, last = max(1, round(center - reach)), min(number - 1, round(center + reach))
        if first <= last:
            blocks[first + int(similarity[first - 1:last].argmin()):] = block
    return blocks


@contextmanager
def hide_frames(colorizer: Colorizer, ids: Sequence[int]) -> Iterator[None]:
    """Context in which the memories do not return frames with ``ids``, unless nothing else is in them."""
    memory, spatial, used = colorizer.memory, colorizer.spatial, colorizer.memory.used
    hidden = torch.tensor(ids, dtype=torch.long, device=used.device)
    remaining, spatial_hidden = used & ~torch.isin(memory.ids, hidden), torch.isin(spatial.ids, hidden)
    try:
        memory.used = remaining if remaining.any() else used
        spatial.hidden = None if spatial_hidden.all() else spatial_hidden
        yield
    finally:
        memory.used, spatial.hidden = used, None


class Calibration:
    """The pictures that a colorizer is calibrated with, and the classifiers of the left-out blocks."""

    def __init__(self, colorizer: Colorizer, data: ColorizationDataset, autocast: Autocast) -> None:
        self.colorizer, self.data, self.autocast, self.config = colorizer, data, autocast, CalibrationConfig()
        self.classifiers: list[PaletteClassifier] = []
        self.parts: list[LeftOut] = []

    def blocks(self, embeddings: torch.Tensor | None) -> torch.Tensor:
        """Return the block, int64 (N,), of each training picture, given their ``embeddings`` (N, D)."""
        assert embeddings is not None  # there is a spatial memory
        return split_into_blocks(embeddings.cpu(), self.config.blocks)

    def state(self) -> dict[int, dict[str, torch.Tensor]]:
        """Return {block: state of its classifier} for a checkpoint."""
        return {block: classifier.state_dict() for block, classifier in enumerate(self.classifiers)}

    def load(self, states: dict[int, dict[str, torch.Tensor]]) -> None:
        """Load the result of ``state``."""
        for state in states.values():
            self.classifiers.append(copy.deepcopy(self.colorizer.palette_classifier).eval())
            self.classifiers[-1].load_state_dict(state)

    def select_pictures(self, embeddings: torch.Tensor | None, val_data: ColorizationDataset, val_indices: list[int],
                        val_logits: torch.Tensor | None) -> None:
        """Select the pictures to color and classify them, except for the validation pictures at ``val_indices``, whose
        logits are given. Without a spatial memory, there is no confidence and nothing to do."""
        if not self.colorizer.config.use_spatial_memory:
            return
        number, config, blocks = len(self.data), self.config, self.blocks(embeddings)
        chosen = evenly_spaced(number, config.pictures)
        for block in range(int(blocks.max()) + 1) if blocks.max() > 0 else ():
            of_block = (blocks == block).nonzero()[:, 0].tolist()
            self._add([i for i in chosen if blocks[i] == block], of_block,
                      self.classifiers[block] if self.classifiers else None)
        known = list(range(config.known_step // 2, number, config.known_step)) if number > 1 else []
        self._add([known[i] for i in evenly_spaced(len(known), config.pictures)], known)
        if val_data is not self.data:
            some = evenly_spaced(len(val_indices), config.pictures)
            self.parts.append(LeftOut(val_data, [val_indices[i] for i in some], [],
                                      None if val_logits is None else val_logits[some], weight=config.val_weight))

    def _add(self, indices, hidden, classifier=None):
        """Add training pictures to color while those at ``hidden`` are left out."""
        if indices:
            use_classifier = self.colorizer.config.use_palette_classifier
            logits = (classify_pictures(self.data, indices, self.colorizer, self.autocast, classifier)
                      if use_classifier else None)
            self.parts.append(LeftOut(self.data, indices, [self.data.ids[i] for i in hidden], logits,
                                      as_unknown=classifier is not None))

    def __len__(self) -> int:
        """Return the number of pictures to color."""
        return sum(len(part.indices) for part in self.parts)

    @torch.no_grad()
    def fit(self) -> None:
        """Color the pictures, and fit the calibration of the colorizer to the share of each cell that is right.

        Pictures of characters on neutral backgrounds are not representative of scenes: the calibration does not change.
        """
        if self.colorizer.config.only_characters:
            return
        self.colorizer.eval()
        cells = []
        for part in self.parts:
            with hide_frames(self.colorizer, part.hidden_ids):
                cells += [(*_color(self.colorizer, part, number, self.autocast), part.weight)
                          for number in range(len(part.indices))]
        if cells:
            inputs, right, weights = (np.stack(column) for column in zip(*cells, strict=True))
            coefficients = fit_logistic(inputs, right, weights, np.array(PRIOR), self.config.prior_weight)
            self.colorizer.calibration.copy_(torch.from_numpy(coefficients))

    def copy_to(self, checkpoint: Path) -> None:
        """Set the calibration in a checkpoint of an earlier epoch."""
        if self.parts:
            content = load_checkpoint(checkpoint)
            content["colorizer"]["calibration"] = self.colorizer.calibration.cpu()
            save_checkpoint(checkpoint, content)


def _color(colorizer, part, number, autocast):
    """Color a picture of a LeftOut. Return the calibration inputs (C, 5) of its cells, and the shares (C,) of right
    pixels. If its shot counts as unknown, these are measured without the generator, which colors it too well."""
    features, L, ab = load_with_features(part.data, torch.tensor(part.indices[number:number + 1]), colorizer, autocast)
    assert features is not None  # there is a spatial memory
    logits = None if part.class_logits is None else part.class_logits[number:number + 1].float()
    arguments = (L, colorizer.conditioning(colorizer.recall(features.embedding)),
                 features._replace(class_logits=logits))
    with autocast():
        fake, found = colorizer(*arguments)
        if part.as_unknown:
            with without_generator(colorizer):
                fake, _ = colorizer(*arguments)
    nearest = find_nearest_frames(colorizer.spatial, quantize_embeddings(features.embedding))
    similarity = nearest_similarity(colorizer.spatial, nearest, features.embedding)
    inputs = calibration_inputs(found.recalled, found.agreement, similarity).flatten(0, 2)
    errors = color_differences(*(tensors_to_lab(L, x.float())[0] for x in (fake, ab)))
    grid = found.recalled.shape[1]
    right = resize((errors <= LARGE_ERROR).astype(np.float32), grid, grid)
    return inputs.double().cpu().numpy(), right.ravel().astype(np.float64)


def fit_logistic(inputs: np.ndarray, right: np.ndarray, weights: np.ndarray, prior: np.ndarray,
                 prior_weight: float) -> np.ndarray:
    """Return coefficients (c,) of a logistic model of ``inputs`` (P, C, c) that predicts ``right`` (P, C) in [0, 1].

    Newton's method minimizes the cross entropy, averaged over the C cells and summed over the P pictures with
    ``weights`` (P,), plus prior_weight / 2 * |coefficients - prior|^2.
    """
    cells = right.shape[1]
    x, y, weight = inputs.reshape(-1, inputs.shape[-1]), right.ravel(), np.repeat(weights / cells, cells)
    coefficients = prior.astype(np.float64)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ coefficients))
        gradient = x.T @ (weight * (p - y)) + prior_weight * (coefficients - prior)
        hessian = (x.T * (weight * p * (1 - p))) @ x + prior_weight * np.eye(len(prior))
        step = np.linalg.solve(hessian, gradient)
        coefficients = coefficients - step / max(1, np.abs(step).max())  # steps of at most 1: a full one may overshoot
        if np.abs(step).max() < 1e-6:
            break
    return coefficients
