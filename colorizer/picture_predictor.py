"""The PicturePredictor: a trained colorizer and its settings, for coloring single pictures.

L is float32 in [0, 100]; ab and Lab are float32 in Lab units; RGB is uint8. Shapes: N pictures, G grid side of the
confidence, S = ``PicturePredictor.config.side``: side in pixels of the predicted ab.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colorizer.adaptation.film_response import IDENTITY_RESPONSE, FilmResponse
from colorizer.adaptation.reference_grading import Grade
from colorizer.backbone import Features
from colorizer.characters import Character
from colorizer.colorizer import UNSCOPED, Colorizer, MemoryLookup
from colorizer.confidence import Confidence
from colorizer.feature_extraction import FeatureExtractor
from colorizer.palette_scopes import ScopedColors
from colorizer.references import rendered_pictures
from colorizer.scopes import ShotView, rank_references
from colorizer.warping.optical_flow import to_flow_image
from colorizer.warping.propagation import signature
from colorizer.warping.upsampling import upsample_colors
from config import ModelConfig
from dataset import AB_SCALE, GRAY_SIZE, lab_to_rgb, resize, rgb_to_lab
from networks import Conditioning, MemoryMatches
from utils import autocast, to_device, warn


@dataclass
class PicturePredictor:
    """A trained colorizer and its settings; colors pictures that are unrelated to each other.

    ``source`` states where color features come from: "memory" (slot of ``rank`` 1, 2 or 3), "integrator",
    "ground_truth" (the input's own colors), "reference" (``reference``, (313,)) or "none" (plain GAN).
    """

    colorizer: Colorizer
    device: torch.device
    precision: str = "auto"
    source: str = "memory"
    rank: int = 1
    reference: np.ndarray | None = None
    identity: str = ""  # hash of ``provenance``; equal only for predictors that predict the same colors
    base_identity: str = ""  # ``identity`` before references were added
    provenance: dict[str, Any] = field(default_factory=dict)  # all that colors depend on; hashes stand for files
    frame_names: dict[int, str] = field(default_factory=dict)  # {id of a remembered frame: file name}
    checkpoint: Path | None = None  # file that the predictor was loaded from
    response: FilmResponse | None = None  # applied to the lightness of the input
    film_references: frozenset[int] = frozenset()  # spatial memory slots of references with the lightness of the film
    grade: Grade | None = None  # grade that was applied to the references
    characters: list[Character] = field(default_factory=list)  # pictures that the character classifier is trained on
    reference_names: list[str] = field(default_factory=list)  # of the added references, in order; for messages
    named_colors: ScopedColors | None = None  # of palette files with locked colors
    warnings: set[str] = field(default_factory=set)  # given already

    @property
    def config(self) -> ModelConfig:
        return self.colorizer.config

    @property
    def side(self) -> int:
        """Side in pixels of the square pictures for ``palette`` and ``predict``: the largest network input."""
        config = self.config
        return max(GRAY_SIZE, config.side, config.palette_classifier.input_size if config.use_palette_classifier else 0)

    @property
    def uses_memory(self) -> bool:
        """Whether the memories are read. With another source of color features, they are not used."""
        return self.source in ("memory", "integrator")

    @property
    def uses_spatial_memory(self) -> bool:
        """Whether the spatial memory is read."""
        return self.uses_memory and self.config.use_spatial_memory

    @property
    def extractor(self) -> FeatureExtractor:
        """A FeatureExtractor with the colorizer and the film response of this predictor."""
        return FeatureExtractor(self.colorizer, self.device, self.precision, self.response)

    def extract_features(self, lightness: Iterable[np.ndarray], with_characters: bool = True) -> Features | None:
        """Return Features of pictures, L (H, W) each, with class logits if this predictor reads the memories; None if
        the checkpoint was trained without memory."""
        if not self.config.use_memory:
            return None
        lightness = list(lightness)
        logits = self.extractor.classify(lightness, with_characters) if self.uses_memory else None
        return self.extractor.embed(lightness)._replace(class_logits=logits)

    def pictures_conditioning(self, labs: Sequence[np.ndarray]) -> Conditioning:
        """Return the conditioning from ``reference`` or, if it is None, from the colors of pictures, Lab (H, W, 3)."""
        features = (self.extractor.color_features(labs) if self.reference is None else
                    torch.from_numpy(self.reference).to(self.device).expand(len(labs), -1))
        return Conditioning(features, torch.ones(len(labs), device=self.device))

    def memory_conditioning(self, matches: MemoryMatches) -> Conditioning:
        """Return the conditioning from memory matches, by ``rank`` or by the integrator."""
        return self.colorizer.conditioning(matches, self.rank if self.source == "memory" else None)

    def generate_ab(self, lightness: Iterable[np.ndarray], conditioning: Conditioning | None, features: Features | None,
                    lookup: MemoryLookup = UNSCOPED,
                    propagated: np.ndarray | None = None) -> tuple[np.ndarray, Confidence]:
        """Run the colorizer on pictures, L (H, W) each; return ab (N, S, S, 2) and its Confidence, arrays (N, G, G).

        It is ``Confidence.unknown`` if no spatial memory is read. The last two arguments are passed to the colorizer.
        """
        L = self.extractor.network_input(lightness, self.config.side)
        if features is not None and not self.uses_memory:
            features = features._replace(class_logits=None)
        with autocast(self.device, self.precision):
            ab, found = self.colorizer(L, conditioning, features, lookup if self.uses_memory else None,
                                       None if propagated is None else to_device(propagated, self.device))
        confidence = Confidence.unknown(len(ab)) if found is None else Confidence(*(x.cpu().numpy() for x in found))
        return (ab * AB_SCALE).permute(0, 2, 3, 1).contiguous().cpu().numpy(), confidence

    @torch.inference_mode()
    def predict_ab(self, labs: Sequence[np.ndarray]) -> tuple[np.ndarray, Confidence]:
        """Predict ab (N, S, S, 2) of unrelated pictures, Lab (H, W, 3) each, and its Confidence, arrays (N, G, G).
        Colors of the palette are not locked.

        Colors of the pictures are used only if ``source`` is "ground_truth". References with a scope are used for the
        pictures that they show (only_this_shot) or resemble (similar_shots), but not those for numbers of shots.
        """
        if any(self.config.reference_scopes) and len(labs) > 1:
            ab, confidences = zip(*(self.predict_ab([lab]) for lab in labs), strict=True)
            return np.concatenate(ab), Confidence(*map(np.concatenate, zip(*confidences, strict=True)))
        lightness = [lab[..., 0] for lab in labs]
        features, conditioning, ranks = self.extract_features(lightness), None, list[int]()
        if self.uses_memory:
            embedding = features.embedding  # type: ignore[union-attr]  # there is a backbone
            if any(self.config.reference_scopes):
                side = self.config.spatial.picture_size
                signatures = signature(to_flow_image(lightness[0], side, side))[None]
                ranks, = self.rank_references([ShotView(embedding[0], signatures)], None)
            conditioning = self.memory_conditioning(self.colorizer.recall(embedding, ranks))
        elif self.source != "none":
            conditioning = self.pictures_conditioning(labs)
        return self.generate_ab(lightness, conditioning, features,
                                MemoryLookup(self._picture_of if self.response else None, ranks))

    def lock_colors(self, ab: np.ndarray, L: np.ndarray, active: Sequence[int] | None = None) -> np.ndarray:
        """Return predicted ab (S, S, 2) of a frame with lightness L (H, W), with the locked colors of the palettes.

        ``active`` is as in ScopedColors. If it is None, the frame is a single picture, to which palettes for numbers of
        shots do not apply.
        """
        if self.named_colors is None:
            return ab
        if active is None:
            active, = self.find_palettes([self.view(L)], has_numbers=False)
        colors = self.named_colors.in_shot(active)
        return colors.apply(ab, resize(self.extractor.adapt([L])[0], *ab.shape[:2])) if colors.locked else ab

    def find_palettes(self, shots: Sequence[ShotView], has_numbers: bool = True) -> list[list[int]]:
        """Return the palettes with a scope that hold in each shot, see ``ScopedColors.find_active``. Warn, once, about
        those that no shot of a film uses. Raises UserError if palettes contradict each other in a shot."""
        colors = self.named_colors
        if colors is None:
            return [[] for _ in shots]
        active = colors.find_active(shots, self.view, has_numbers)
        for message in colors.unused(active) if has_numbers else ():
            if message not in self.warnings:
                self.warnings.add(message)
                warn(message)
        for of_shot in active:
            colors.in_shot(of_shot)
        return active

    @torch.inference_mode()
    def view(self, L: np.ndarray) -> ShotView:
        """Return the view of a picture, L (H, W)."""
        side = self.config.spatial.picture_size
        embedding = self.extractor.embed([L]).embedding[0] if self.uses_memory else torch.zeros(0)
        return ShotView(embedding, signature(to_flow_image(L, side, side))[None])

    def rank_references(self, shots: Sequence[ShotView], names: Sequence[str] | None) -> list[list[int]]:
        """Return the ranks of the references in each shot of a film; ``names`` are as in ``scopes.rank_references``."""
        if not any(self.config.reference_scopes):
            return [[] for _ in shots]
        return rank_references(self.colorizer.spatial, self.config.reference_scopes, shots, self._picture_of, names)

    def colorize(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Color pictures, RGB (H, W, 3) of any sizes; return RGB of the same sizes.

        ab is predicted at S x S pixels, upsampled with lightness as guide, and joined to the full-resolution L.
        """
        return self.colorize_with_confidence(pictures)[0]

    def colorize_with_confidence(self, pictures: Sequence[np.ndarray]) -> tuple[list[np.ndarray], Confidence]:
        """Return the results of ``colorize`` and the Confidence of their colors, arrays (N, G, G)."""
        labs = [rgb_to_lab(picture) for picture in pictures]
        colors, confidence = self.predict_ab(labs)
        for lab, ab in zip(labs, colors, strict=True):
            lab[..., 1:] = upsample_colors(self.lock_colors(ab, lab[..., 0]), lab[..., 0])
        return [lab_to_rgb(lab) for lab in labs], confidence

    @cached_property
    def _picture_of(self):
        """Function from a slot to its picture with the lightness of the film; None if no spatial memory is read."""
        if not self.uses_spatial_memory:
            return None
        return rendered_pictures(self.colorizer.spatial, self.response or IDENTITY_RESPONSE, self.film_references)
