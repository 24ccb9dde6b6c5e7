"""Conversion of pictures to the inputs of a Colorizer: tensors, backbone features, class logits, color features."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from colorizer.adaptation.film_response import FilmResponse
from colorizer.backbone import Features, extract_features
from colorizer.colorizer import Colorizer
from dataset import L_SCALE, color_feature, lab_to_tensors, resize
from utils import autocast, to_device


class EncodedReference(NamedTuple):
    """A color picture, encoded for the memories. S is ``ModelConfig.side``, T is ``ModelConfig.img_size``."""

    features: Features  # of one picture
    L: torch.Tensor  # (1, 1, S, S) in [0, 1]
    ab: torch.Tensor  # (1, 2, S, S) in [-1, 1]
    predicted_ab: torch.Tensor  # (1, 2, T, T), predicted from L without the spatial memory


@dataclass(frozen=True)
class FeatureExtractor:
    """Extract features of pictures of any size, given as L float32 (H, W) in [0, 100] or Lab float32 (H, W, 3)."""

    colorizer: Colorizer
    device: torch.device
    precision: str = "auto"
    response: FilmResponse | None = None  # applied to L first, except for ``color_features``

    def adapt(self, lightness: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Apply the film response to pictures, L (H, W) each."""
        return [L if self.response is None else self.response(L) for L in lightness]

    def network_input(self, lightness: Iterable[np.ndarray], side: int) -> torch.Tensor:
        """Return the adapted L of pictures, resized: a tensor (N, 1, side, side) in [0, 1]."""
        planes = np.stack([resize(L, side, side) for L in self.adapt(lightness)])
        return to_device(planes, self.device)[:, None] / L_SCALE

    def embed(self, lightness: Iterable[np.ndarray]) -> Features:
        """Return the backbone features of pictures, L (H, W) each, without class logits."""
        return extract_features(self.colorizer.backbone, self.adapt(lightness), self.device, self.precision)

    def classify(self, lightness: Iterable[np.ndarray], with_characters: bool = True) -> torch.Tensor | None:
        """Return the class logits of pictures by ``Colorizer.classify``, or None if there is no palette classifier."""
        if not self.colorizer.config.use_palette_classifier:
            return None
        L = self.network_input(lightness, self.colorizer.config.palette_classifier.input_size)
        with autocast(self.device, self.precision):
            return self.colorizer.classify(L, with_characters=with_characters)

    def color_features(self, labs: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the color features (N, 313) of pictures, Lab (H, W, 3) each, resized for the generator."""
        size = self.colorizer.config.img_size
        features = [color_feature(resize(lab, size, size)[..., 1:]) for lab in labs]
        return torch.from_numpy(np.stack(features)).to(self.device)

    def encode_reference(self, lab: np.ndarray) -> EncodedReference:
        """Encode a picture, Lab (H, W, 3), for the memories."""
        colorizer, side, lightness = self.colorizer, self.colorizer.config.side, [lab[..., 0]]
        features = self.embed(lightness)._replace(class_logits=self.classify(lightness))
        L = self.network_input(lightness, side)
        ab = lab_to_tensors(resize(lab, side, side))[1].to(self.device)
        with autocast(self.device, self.precision):
            conditioning = colorizer.conditioning(colorizer.recall(features.embedding))
            predicted, _ = colorizer(L, conditioning, features, lookup=None)
        return EncodedReference(features, L, ab, predicted)
