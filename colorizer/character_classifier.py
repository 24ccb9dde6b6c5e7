"""The character classifier: finds the parts of characters in a grayscale picture, whatever scene they are in.

It is a palette classifier whose classes are the colors of character sheets, and "no character". It is trained on
characters that are pasted at random sizes and places into remembered frames, in seconds and without training the other
networks.

Shapes: N pictures; g grid side of the palette classifier; K = ``character_colors``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from colorizer.characters import Character, PasteConfig, names_of, neutral_background, paste, place_character
from colorizer.feature_extraction import FeatureExtractor
from colorizer.palette_classifier import CELL_SIZE, NO_CHARACTER, CharacterClassifier, cluster_colors
from colorizer.series_colors import main_colors
from dataset import AB_SCALE, L_SCALE, downsample, lab_to_rgb, lab_to_tensors, resize, rgb_to_lab
from utils import UserError, autocast, evenly_spaced


@dataclass(frozen=True)
class CharacterConfig:
    """Constants of the training of the character classifier."""

    colors: int = 24  # number of character colors; larger: finer distinctions, fewer examples of each color
    views: int = 96  # maximum number of pictures with pasted characters; larger: more sizes and backgrounds, slower
    max_characters: int = 3  # maximum number of characters in a view
    cells: int = 400  # maximum number of sampled cells on and off the characters of a view; larger: slower
    steps: int = 600  # maximum number of optimizer steps of the MLP; larger: closer fit, slower
    batch: int = 2048  # cells in a step
    known_margin: int = 20  # around cells that may show a character, 1 / known_margin of the picture is not sampled
    known_distance: float = 10.0  # cells of a frame with a character's color, up to this Lab distance, are not sampled
    known_chroma: float = 15.0  # if their chroma is above this: the character may be in the frame


@torch.no_grad()
def fit_characters(extractor: FeatureExtractor, characters: Sequence[Character]) -> None:
    """Replace the character classifier of the extractor's colorizer with one that is trained on ``characters``.

    Raises UserError if the colorizer has no palette classifier, whose inputs the character classifier shares.
    """
    colorizer, config = extractor.colorizer, CharacterConfig()
    if not colorizer.config.use_palette_classifier:
        raise UserError("--characters needs a checkpoint with a palette classifier; train with use_palette_classifier "
                        "True or leave --characters out")
    count = max(config.colors, len(names_of(characters)))
    colorizer.config = replace(colorizer.config, character_colors=count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = CharacterClassifier(colorizer.palette_classifier.channels[:-1], colorizer.config)
        classifier.to(extractor.device)
        centers, owners = _character_palette(characters, count)
        palette = torch.cat([centers, torch.full((1, 2), NO_CHARACTER)]).to(extractor.device)
        classifier.owners[:len(owners)] = owners.to(extractor.device)
        features, colors, rng = [], [], np.random.default_rng(0)
        for number in range(min(config.views, classifier.config.training_views)):
            lab, mask = _make_view(colorizer, characters, number, config, rng)
            on_character, other = _sample_cells(lab, mask, palette, config, rng)
            L, ab = (x.to(extractor.device) for x in lab_to_tensors(lab))
            with autocast(extractor.device, extractor.precision):
                maps = colorizer.classifier_maps(L)
            cells = torch.from_numpy(np.concatenate([on_character, other])).to(extractor.device)
            features.append(classifier.cell_features(maps, L, cells)[0].half())
            color = AB_SCALE * downsample(ab, len(mask))[0].flatten(1).T[cells]
            color[len(on_character):] = NO_CHARACTER
            colors.append(color)
        feature, color = torch.cat(features), torch.cat(colors)
        classifier.train_mlp(classifier.fit(feature, color, palette), color,
                             min(config.steps, classifier.config.training_steps), config.batch)
    colorizer.character_classifier = classifier.eval()


def _character_palette(characters, count):
    """Return ``count`` colors of the characters, ab (count, 2), and for each of C characters the probability (C, count)
    that a color belongs to it."""
    pixels: dict[str, list[np.ndarray]] = {}
    for character in characters:
        small, mask = resize(character.rgb, 64, 64), resize(character.mask.astype(np.float32), 64, 64)
        pixels.setdefault(character.name, []).append(rgb_to_lab(small)[mask > 0.9, 1:])
    groups = [torch.from_numpy(np.concatenate(group)) for group in pixels.values()]
    ab = torch.cat(groups)
    centers = cluster_colors(ab, 1 + ab.norm(dim=1) / AB_SCALE, count)
    counts = torch.stack([torch.cdist(group, centers).argmin(1).bincount(minlength=count) for group in groups])
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return centers, shares / shares.sum(0).clamp(min=1e-6)


def _make_view(colorizer, characters, number, config, rng):
    """Paste random characters into a remembered frame. Return Lab (S, S, 3) and the mask (g, g) in [0, 1] of the
    characters, where S is the classifier input size."""
    spatial, size = colorizer.spatial, colorizer.config.palette_classifier.input_size
    squeeze = rng.uniform(*PasteConfig.aspect)
    if colorizer.config.only_characters:
        side = int(rng.integers(size // 3, size + 1))
        rgb = neutral_background(side, side, rng)
    else:
        slots = evenly_spaced(len(spatial.ids), config.views)
        rgb = lab_to_rgb(spatial.lab_pictures([slots[number % len(slots)]])[0])
    height, width = rgb.shape[:2]
    mask = np.zeros((height, width, 1), np.float32)
    for _ in range(int(rng.integers(1, config.max_characters + 1))):
        character = characters[int(rng.integers(len(characters)))]
        patch = place_character(character, height, width, PasteConfig(), rng, squeeze)
        paste(rgb, patch)
        paste(mask, patch, np.ones_like(patch.opacity))
    grid = size // CELL_SIZE
    return rgb_to_lab(resize(rgb, size, size)), resize(mask[..., 0], grid, grid)


def _sample_cells(lab, mask, palette, config, rng):
    """Return the indices of random cells on characters and of other cells, int64 (n,) each."""
    ab = cv2.resize(lab[..., 1:], mask.shape[::-1], interpolation=cv2.INTER_AREA).reshape(-1, 1, 2)
    distance = np.linalg.norm(ab - palette[None, :-1].cpu().numpy(), axis=2).min(1)
    known = (distance < config.known_distance) & (np.linalg.norm(ab[:, 0], axis=1) > config.known_chroma)
    around = np.ones((2 * (len(mask) // config.known_margin) + 1,) * 2, np.uint8)
    known = cv2.dilate(known.reshape(mask.shape).astype(np.uint8), around).ravel() > 0
    groups = (mask.ravel() > 0.8).nonzero()[0], ((mask.ravel() < 0.05) & ~known).nonzero()[0]
    return [rng.permutation(group)[:config.cells] for group in groups]


# ---------------------------------------------------------------------------------------------------------------------
# Shots

SAMPLE_SIDE = 192  # pixels along a side of the stored samples of a shot; larger: small characters are found, more disk
MIN_CELLS = 16  # minimum number of cells of a character in a sample for the shot to count as showing characters


def pack_samples(lightness: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Compress samples of a shot, L (H, W) in [0, 100] each, to JPEG files, uint8 (n,) each."""
    return [torch.from_numpy(cv2.imencode(".jpg", cv2.convertScaleAbs(
        resize(L, SAMPLE_SIDE, SAMPLE_SIDE), alpha=255 / L_SCALE))[1]) for L in lightness]


@torch.inference_mode()
def shows_characters(extractor: FeatureExtractor, samples: Sequence[torch.Tensor]) -> bool:
    """Return whether any of the packed samples of a shot shows a character.

    Characters that no sample shows are left out of the whole shot, so that a changed set of characters affects only
    shots that show some, and false detections do not flicker.
    """
    config = extractor.colorizer.config
    if not config.character_colors or not samples:
        return False
    lightness = [cv2.imdecode(sample.numpy(), cv2.IMREAD_GRAYSCALE) * np.float32(L_SCALE / 255) for sample in samples]
    logits = extractor.classify(lightness)
    assert logits is not None  # there is a palette classifier
    _, weight = extractor.colorizer.character_classifier.locate(logits[:, config.palette_classifier.palette_size:])
    return bool(((weight > 0).sum((1, 2, 3)) >= MIN_CELLS).any())


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def character_entries(characters: Sequence[Character]) -> dict[str, Any]:
    """Return the entries of a checkpoint: ``characters``, {name: main colors, sRGB uint8 (n, 3), most frequent first},
    and ``character_sheets``, which ``characters_of`` reads."""
    groups = {name: [each for each in characters if each.name == name] for name in names_of(characters)}
    return {"characters": {name: torch.from_numpy(main_colors([each.rgb for each in group],
                                                              [each.mask for each in group]))
                           for name, group in groups.items()},
            "character_sheets": [{"name": each.name, "rgb": torch.from_numpy(each.rgb),
                                  "mask": torch.from_numpy(each.mask)} for each in characters]}


def characters_of(content: dict[str, Any]) -> list[Character]:
    """Return the characters in the content of a checkpoint. Raises UserError if they are damaged."""
    try:
        sheets = [Character(str(each["name"]), each["rgb"].numpy(), each["mask"].numpy())
                  for each in content.get("character_sheets", [])]
        if any(rgb.dtype != np.uint8 or mask.dtype != bool or rgb.shape != (*mask.shape, 3) or not mask.any()
               for _, rgb, mask in sheets):
            raise ValueError("a character sheet has the wrong shape or type")
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise UserError(f"the character sheets of the checkpoint are damaged ({error}); use another one") from error
    return sheets
