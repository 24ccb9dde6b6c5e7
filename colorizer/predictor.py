"""The Predictor: a trained colorizer and its settings, for coloring single pictures and shots of a film.

L is float32 in [0, 100]; ab and Lab are float32 in Lab units; RGB is uint8. Shapes: N pictures, D embedding dimensions,
G grid side of the confidence, S = ``Predictor.config.side``: side in pixels of the predicted ab.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from colorizer.adaptation.film_response import FilmResponse, ResponseConfig, fit_film_response
from colorizer.adaptation.reference_grading import GradeConfig, fit_grade
from colorizer.character_classifier import (
    character_entries, characters_of, fit_characters, pack_samples, shows_characters)
from colorizer.characters import Character, read_characters
from colorizer.colorizer import Colorizer, MemoryLookup, model_config_of
from colorizer.confidence import Confidence
from colorizer.contradictions import find_contradictions
from colorizer.memory.frame_archive import open_archive
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.palette_scopes import ScopedColors, ScopedPalette, read_palettes
from colorizer.picture_predictor import PicturePredictor
from colorizer.references import (
    Reference, crop_references, find_anchors, pin_references, read_reference, read_references, reencode_film_references)
from colorizer.scopes import ONLY_THIS_SHOT, SIMILAR_SHOTS, ShotView, shared_pairs, shot_numbers
from colorizer.series_colors import learned_colors
from colorizer.warping.in_betweens import InBetweenConfig, InBetweens
from colorizer.warping.propagation import Anchor
from config import PredictorConfig
from dataset import REFERENCE_ID, rgb_to_lab
from fileio.checkpoints import load_checkpoint, save_checkpoint
from networks import Conditioning
from utils import UserError, resolve_precision, select_device, single_torch_thread, to_device, warn


class Palette(NamedTuple):
    """Conditioning shared by all frames of a shot, and the memory slots that it was computed from."""

    color_feature: torch.Tensor | None  # (1, 313); None for a plain GAN
    slot_ids: list[int]  # training frame ids of the best memory slots, best first; [] if no memory is read
    slot_scores: list[float]  # their cosine similarities
    embedding: torch.Tensor  # (D,) mean frame embedding of the shot; (0,) if no memory is read
    score: float = 1.0  # cosine similarity of the slot of the color feature; 1 if no memory is read
    samples: Sequence[torch.Tensor] = ()  # packed samples of the shot, in which characters are searched
    has_characters: bool = False  # whether they show characters
    ranks: Sequence[int] = ()  # of the references in this shot (colorizer/scopes.py); () outside of all scopes
    named_colors: Sequence[int] = ()  # palette files with a scope that hold in the shot, see ScopedColors


@dataclass
class Predictor(PicturePredictor):
    """A PicturePredictor that also colors films and takes references, created by ``Predictor.load("best.pt")``."""

    @classmethod
    def load(cls, checkpoint: str | Path, **settings: Any) -> "Predictor":
        """Load a checkpoint written by train.py. ``settings`` are fields of PredictorConfig, such as ``rank=2``.

        Raises UserError if the checkpoint cannot be read or does not support the settings.
        """
        return load_predictor(PredictorConfig(checkpoint=Path(checkpoint), **settings))

    @torch.inference_mode()
    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        """Return the Palette of a shot, given some of its frames, Lab (side, side, 3), from their mean embedding."""
        if not self.uses_memory:
            color_feature = (None if self.source == "none" else
                             self.pictures_conditioning(labs).color_feature.mean(0, keepdim=True).cpu())
            return Palette(color_feature, [], [], torch.zeros(0))
        lightness = [lab[..., 0] for lab in labs]
        samples = pack_samples(lightness) if self.config.use_palette_classifier else []
        return self._recall_palette(self.extractor.embed(lightness).embedding.mean(0), samples, ())

    def _recall_palette(self, embedding, samples, ranks):
        matches = self.colorizer.recall(embedding[None].to(self.device), ranks)
        conditioning, filled = self.memory_conditioning(matches), matches.scores[0].isfinite()
        return Palette(conditioning.color_feature.cpu(), matches.ids[0][filled].tolist(),
                       matches.scores[0][filled].tolist(), embedding.cpu(), conditioning.score.item(), samples,
                       shows_characters(self.extractor, samples), ranks)

    def predict(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence]:
        """Predict ab (N, S, S, 2) and its Confidence for consecutive frames of one shot, L (N, side, side)."""
        return self.predict_with_embeddings(lightness, palette)[:2]

    @torch.inference_mode()
    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette,
                                propagated: Callable[[int], np.ndarray] | None = None,
                                ) -> tuple[np.ndarray, Confidence, np.ndarray]:
        """Return the results of ``predict`` and the quantized frame embeddings (N, D); (N, 0) without a spatial memory.

        The networks color keyframes. In-between frames get colors warped from keyframes, and the embedding of the
        nearest keyframe. ``propagated`` maps the index of a frame to its propagated colors, see ``ShotColors``.
        """
        between = InBetweens(lightness, InBetweenConfig())
        keyframes, conditioning = lightness[between.keyframes], None
        if palette.color_feature is not None:
            feature = to_device(palette.color_feature, self.device).expand(len(keyframes), -1)
            conditioning = Conditioning(feature, torch.full((len(keyframes),), palette.score, device=self.device))
        features = self.extract_features(keyframes, palette.has_characters)
        known = np.stack(list(map(propagated, between.keyframes))) if propagated else None
        lookup = MemoryLookup(self._picture_of, palette.ranks)
        ab, confidence = self.generate_ab(keyframes, conditioning, features, lookup, known)
        embeddings = np.zeros((len(keyframes), 0), np.int16)
        if features and self.uses_spatial_memory:
            embeddings = quantize_embeddings(features.embedding).cpu().numpy()
        return (between.propagate_colors(ab, propagated), between.propagate_confidence(confidence),
                between.propagate_embeddings(embeddings))

    @torch.no_grad()
    @single_torch_thread()
    def add_references(self, references: Sequence[np.ndarray | Reference], match_references: bool = True) -> None:
        """Add color pictures, RGB (H, W, 3) of any sizes or Reference, to the memories as pinned frames, without
        training.

        With ``match_references``, pictures for the whole film that clearly come from a different source, such as a
        broadcast, are graded to match the colors of the series, with a warning. Raises UserError if no memory is read,
        or for a reference with a scope if there is no spatial memory.
        """
        self._check_references(references)
        references = crop_references([each if isinstance(each, Reference) else Reference(each) for each in references])
        self._record_reference([bytes([match_references]), *(each.picture.tobytes() for each in references),
                                repr([each.scope for each in references]).encode()])
        self.grade = None
        if match_references and self.config.use_spatial_memory:
            references = self._grade(references)
        pin_references(self.extractor, references)
        self.reference_names = [*self.reference_names, *(each.name for each in references)]
        self.__dict__.pop("_digests", None)

    def _check_references(self, references):
        """Raise UserError if references cannot be added."""
        if not self.config.use_memory:
            raise UserError("references are stored in the memory, and the checkpoint is a plain GAN; leave "
                            "--references out or train with use_memory True")
        if not self.uses_memory:
            raise UserError("--references adds to the memory, which is not read with --color_feature ground_truth or "
                            "--reference; use one of them")
        if not self.config.use_spatial_memory and any(isinstance(each, Reference) and each.scope
                                                      for each in references):
            raise UserError("references for single shots need the spatial memory; move them out of their subfolders or "
                            "train with use_spatial_memory True")

    def _grade(self, references):
        """Return references, those for the whole film graded to match the series. The colors of the others are those of
        their shots."""
        pictures = [each.picture for each in references if not each.scope]
        if pictures:
            self.grade = fit_grade(self.extractor.embed, self.colorizer.spatial, pictures, GradeConfig())
        if self.grade is None:
            return references
        warn(f"the references differ from the series ({self.grade}) and were graded to match it; to keep their "
             "colors, pass --match_references False")
        return [each if each.scope else each._replace(picture=self.grade(each.picture)) for each in references]

    @property
    def needs_whole_film(self) -> bool:
        """Whether the shots of a reference or a palette are known only when all shots of the film are known."""
        palettes = self.named_colors.scopes if self.named_colors else []
        return ONLY_THIS_SHOT in [*self.config.reference_scopes, *palettes]

    def _record_reference(self, content):
        """Add the hash of ``content``, an iterable of bytes, to the references that the colors depend on."""
        references = [*self.provenance.get("references", []), _digest(content)]
        self.provenance = {**self.provenance, "references": references}
        self.identity = _digest([repr(self.provenance).encode()])

    @single_torch_thread()
    def add_characters(self, characters: Sequence[Character]) -> None:
        """Train the character classifier on ``characters`` and on those that the checkpoint knows. Pictures that it
        knows already are left out.

        Raises UserError if no memory is read or there is no palette classifier.
        """
        if not self.uses_memory:
            raise UserError("--characters needs the memory, which is not used here; leave --color_feature and "
                            "--reference out, or train with use_memory True")
        known = {each.digest for each in self.characters}
        characters = [each for each in characters if each.digest not in known]
        if not characters:
            return
        self.characters = [*self.characters, *characters]
        self._record_reference(each.digest for each in characters)
        fit_characters(self.extractor, self.characters)
        self.__dict__.pop("_character_digest", None)

    def use_palettes(self, palettes: Sequence[ScopedPalette]) -> None:
        """Apply palette files to all pictures; warn about locked colors that the series does not have. Call it after
        ``add_characters``, whose colors are known, and before ``add_references``, so that references do not change
        which colors are known. Raises UserError if palettes contradict each other, or for similar_shots without memory.
        """
        if not self.uses_memory and any(each.scope == SIMILAR_SHOTS for each in palettes):
            raise UserError(f"palettes for {SIMILAR_SHOTS} need the memory, which is not used here; move them to "
                            f"{ONLY_THIS_SHOT} or shot numbers")
        learned = learned_colors(self.colorizer, self.frame_names, self.characters)
        colors = ScopedColors(palettes, [color.color for color in learned])
        self.named_colors = colors if colors.has_locked else None
        for message in colors.unknown():
            warn(message)
        if self.named_colors:
            self.provenance = {**self.provenance, "palette": colors.digest}
            self.identity = _digest([repr(self.provenance).encode()])

    @torch.inference_mode()
    def requery_palettes(self, palettes: Sequence[Palette], signatures: Sequence[np.ndarray]) -> list[Palette]:
        """Return the palettes of all shots of a film, computed from the current content of the memory and with the
        palette files of their scopes, given the ``signatures``, uint8 (n, h, h), of the frames of each shot.

        Raises UserError if two palette files contradict each other in a shot.
        """
        shots = [ShotView(palette.embedding, of_shot) for palette, of_shot in zip(palettes, signatures, strict=True)]
        if self.uses_memory:
            ranks = self.rank_references(shots, self.reference_names)
            self.warn_of_contradictions(ranks)
            palettes = [self._recall_palette(palette.embedding, palette.samples, own)
                        for palette, own in zip(palettes, ranks, strict=True)]
        named = self.find_palettes(shots)
        return [palette._replace(named_colors=own) for palette, own in zip(palettes, named, strict=True)]

    @torch.inference_mode()
    def warn_of_contradictions(self, shots: Sequence[Sequence[int]] = ((),)) -> None:
        """Warn, once, if an added reference contradicts another one of the same rank, given the ranks in each of
        ``shots``."""
        if not self.reference_names or not self.uses_spatial_memory:
            return
        names = ["a reference of the checkpoint"] * len(self.config.reference_scopes)
        names[len(names) - len(self.reference_names):] = self.reference_names
        for first, second, *colors in find_contradictions(self.colorizer.spatial, shared_pairs(
                [ranks or self.colorizer.unscoped_ranks for ranks in shots], len(self.reference_names))):
            message = (f"{names[first]} and {names[second]} contradict each other: a region is {colors[0]} in one and "
                       f"{colors[1]} in the other; correct one of them, or move one into a folder for its shots, such "
                       f"as {ONLY_THIS_SHOT}")
            if message not in self.warnings:
                self.warnings.add(message)
                warn(message)

    def find_anchors(self, signatures: np.ndarray, palette: Palette) -> list[Anchor]:
        """Return the result of ``find_anchors`` for a shot, given the signatures (n, h, h) of its frames."""
        if not self.uses_spatial_memory:
            return []
        return find_anchors(self.colorizer.spatial, ShotView(palette.embedding, signatures), self._picture_of,
                            self._digests, palette.ranks or self.colorizer.unscoped_ranks)

    @torch.inference_mode()
    def lookup_digest(self, palette: Palette, embeddings: np.ndarray) -> str:
        """Return a hash of all memory content that affects a shot with ``palette`` and frame ``embeddings`` (N, D), and
        the palette, or "" if there is nothing of both. Predictors with equal ``base_identity`` and digest predict equal
        colors."""
        locked = self.named_colors.in_shot(palette.named_colors).digest if self.named_colors else ""
        if not self.uses_memory:
            return locked
        digest = hashlib.sha256((repr(palette.score) + locked).encode())
        if palette.has_characters:
            digest.update(self._character_digest)
        digest.update(palette.color_feature.numpy().tobytes())  # type: ignore[union-attr]  # comes from the memory
        if embeddings.size:
            nearest = find_nearest_frames(self.colorizer.spatial, torch.from_numpy(embeddings).to(self.device),
                                          palette.ranks or self.colorizer.unscoped_ranks)
            for slots, preferred in zip(*(x.tolist() for x in nearest), strict=True):
                digest.update(b"".join(self._digests[slot] for slot in slots) + repr(preferred).encode())
        return digest.hexdigest()

    @cached_property
    def _digests(self):
        return self.colorizer.spatial.digests()

    @cached_property
    def _character_digest(self):
        state = self.colorizer.character_classifier.state_dict()
        return _digest(x.cpu().numpy().tobytes() for x in state.values()).encode()

    def save(self, path: str | Path) -> None:
        """Write the checkpoint, including added references and characters, to ``path``, and its frame archive to the
        same folder.

        Raises ValueError if the Predictor was not loaded from a checkpoint, and UserError for references whose scope
        has numbers of shots, since these belong to one film.
        """
        if self.checkpoint is None:
            raise ValueError("this Predictor was not loaded from a checkpoint")
        if numbered := list(filter(shot_numbers, self.config.reference_scopes)):
            raise UserError(f"{numbered[0]} cannot be saved in a checkpoint, since shot numbers belong to one film; "
                            f"move its references to {ONLY_THIS_SHOT} or {SIMILAR_SHOTS}")
        if self.config.use_spatial_memory and self.colorizer.spatial.archive is not None:
            self.colorizer.spatial.archive.copy_to(Path(path).parent)
        save_checkpoint(path, {**load_checkpoint(self.checkpoint), "colorizer": self.colorizer.state_dict(),
                               "model_config": asdict(self.config), **character_entries(self.characters)})

    @torch.inference_mode()
    def fit_response(self, lightness: Sequence[np.ndarray]) -> FilmResponse | None:
        """Estimate the film response of a film from some of its frames, L (H, W) each.

        Return None if no response fits clearly better than the identity, or if no spatial memory is read.
        """
        if not self.uses_spatial_memory:
            return None
        return fit_film_response(self.extractor.embed, self.colorizer.spatial, lightness, ResponseConfig())

    @torch.inference_mode()
    def with_response(self, response: FilmResponse | None) -> "Predictor":
        """Return a Predictor that applies ``response`` to its input, or this Predictor if ``response`` is None.

        References that are frames of the same film are encoded with the response, in a copy of the memories.
        """
        if response is None:
            return self
        predictor = replace(self, response=response)
        if not self.colorizer.spatial.pinned.any():
            return predictor
        predictor.colorizer = copy.deepcopy(self.colorizer)
        predictor.film_references = reencode_film_references(self.extractor, predictor.extractor)
        return predictor


def _digest(parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def load_colorizer(path: str | Path, device: torch.device) -> tuple[Colorizer, dict[str, Any]]:
    """Load a checkpoint. Return its Colorizer and its content. Raises UserError if the checkpoint is incomplete."""
    content = load_checkpoint(path)
    try:
        colorizer = Colorizer(model_config_of(content))
    except ValueError as error:
        raise UserError(f"{path} does not hold a complete colorizer ({error}); use another checkpoint") from error
    if not isinstance(content.get("frames"), dict):
        raise UserError(f"{path} does not hold the names of its frames; train again")
    colorizer.load_state_dict(content["colorizer"])
    colorizer.to(device).eval()
    if colorizer.config.use_spatial_memory:
        colorizer.spatial.attach_archive(open_archive(path, content))
    return colorizer, content


def _source(config, model_config):
    """Return ``Predictor.source`` for a PredictorConfig. Raises UserError if the model does not support it."""
    trained = "integrator" if model_config.use_feat_integrator else "memory" if model_config.use_memory else "none"
    if config.reference and config.color_feature != "auto":
        raise UserError("--reference and --color_feature exclude each other; leave --color_feature out")
    requested = "reference" if config.reference else config.color_feature
    source = trained if requested == "auto" else requested
    if source != "none" and model_config.gen_norm == "batch":
        raise UserError(f"{config.checkpoint} is a plain GAN, which takes no color feature; leave --color_feature and "
                        "--reference out or train with use_memory True")
    if source == "integrator" and not model_config.use_feat_integrator:
        raise UserError(f"{config.checkpoint} was trained without an integrator; use --color_feature memory or train "
                        "with use_feat_integrator True")
    return source


@single_torch_thread()
def load_predictor(config: PredictorConfig) -> Predictor:
    """Load a Predictor. Adds characters, palette and references, and saves the result if ``save_checkpoint`` is set.

    Raises UserError if a file cannot be read or the checkpoint does not support the settings.
    """
    PredictorConfig.check(config)
    device = select_device(config.device)
    torch.backends.cudnn.deterministic = True  # otherwise two runs on a GPU may differ
    colorizer, content = load_colorizer(config.checkpoint, device)
    precision = resolve_precision(device, config.precision)
    predictor = Predictor(colorizer, device, precision, _source(config, colorizer.config), config.rank,
                          frame_names={**content["frames"], REFERENCE_ID: "a reference"}, checkpoint=config.checkpoint,
                          characters=characters_of(content))
    if config.reference:
        lab = rgb_to_lab(read_reference(config.reference))
        predictor.reference = predictor.extractor.color_features([lab])[0].cpu().numpy()
    with open(config.checkpoint, "rb") as file:  # holds digests of archived frames, so its hash covers them
        checkpoint = _digest(iter(partial(file.read, 2**20), b""))
    predictor.provenance = {
        "checkpoint": checkpoint, "color_feature": predictor.source, "rank": predictor.rank,
        "reference": "" if predictor.reference is None else _digest([predictor.reference.tobytes()]),
        "device": device.type, "precision": precision}
    predictor.identity = predictor.base_identity = _digest([repr(predictor.provenance).encode()])
    if config.characters:  # before references, so that these do not change how characters are recognized
        predictor.add_characters(read_characters(config.characters))
    if config.palette:
        predictor.use_palettes(read_palettes(config.palette))
    if config.references:
        predictor.add_references(read_references(config.references), config.match_references)
    if config.save_checkpoint:
        predictor.save(config.save_checkpoint)
    return predictor
