"""References added by the user, rendering of stored frames with the film response of a film, and their recognition in
shots."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.adaptation.film_response import IDENTITY_RESPONSE, FilmResponse, ResponseConfig, match_cells
from colorizer.feature_extraction import FeatureExtractor
from colorizer.letterbox import crop_borders
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.metrics import has_color
from colorizer.warping.propagation import Anchor, PropagationConfig, find_anchor_frames
from dataset import L_SCALE, REFERENCE_ID, decode_lab8, rgb_to_lab, tensors_to_lab
from fileio.images import IMAGE_SUFFIXES, list_images, read_image
from utils import UserError, warn

PICTURE_CACHE_SIZE = 256  # number of rendered pictures kept in RAM; larger: faster, more RAM


def read_references(folder: Path) -> list[np.ndarray]:
    """Read the color pictures of a folder, RGB uint8 (H, W, 3).

    Grayscale pictures are skipped with a warning, since they have not been colored yet. Raises UserError if the folder
    does not exist or has no color picture, or if a picture cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pass a folder of color pictures to --references")
    pictures = []
    for path in list_images(folder):
        picture = read_image(path)
        if has_color(picture):
            pictures.append(picture)
        else:
            warn(f"{path} is grayscale, not colored yet; skipped")
    if not pictures:
        raise UserError(f"there is no color picture in {folder} (expected {', '.join(IMAGE_SUFFIXES)})")
    return pictures


def read_reference(path: Path) -> np.ndarray:
    """Read one color picture, RGB uint8 (H, W, 3), without black borders. Raises UserError if it is grayscale."""
    picture = crop_borders(read_image(path))
    if not has_color(picture):
        raise UserError(f"the reference {path} is grayscale; pass a color picture")
    return picture


def crop_references(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return references, RGB uint8 (H, W, 3), without black borders; warn if any has them."""
    cropped = [crop_borders(picture) for picture in pictures]
    if count := sum(one.shape != other.shape for one, other in zip(pictures, cropped, strict=True)):
        warn(f"{count} of {len(pictures)} references have black borders, which are cropped")
    return cropped


def pin_references(extractor: FeatureExtractor, pictures: Sequence[np.ndarray]) -> None:
    """Append pictures, RGB uint8 (H, W, 3), to the memories of the extractor's colorizer as pinned frames."""
    colorizer, config = extractor.colorizer, extractor.colorizer.config
    for lab in map(rgb_to_lab, pictures):
        features, L, ab, predicted = extractor.encode_reference(lab)
        if config.use_spatial_memory:
            colorizer.spatial.pin(features, L, ab, predicted)
        colorizer.memory.pin(colorizer.memory.query(features.embedding), extractor.color_features([lab]))
    colorizer.config = replace(config, mem_size=config.mem_size + len(pictures),
                               spatial_size=config.spatial_size + config.use_spatial_memory * len(pictures))


def reencode_film_references(original: FeatureExtractor, adapted: FeatureExtractor) -> frozenset[int]:
    """Encode references that are frames of the film again, with the film response of ``adapted``.

    A reference counts as a frame of the film if it matches the training frames better with the response than without
    it. Write to the memories of ``adapted.colorizer``. Return the slots of these references in the spatial memory.
    """
    memory, spatial, slots = adapted.colorizer.memory, adapted.colorizer.spatial, []
    pinned = zip(*(each.pinned.nonzero()[:, 0].tolist() for each in (spatial, memory)), strict=True)
    for slot, memory_slot in pinned:
        lab = spatial.lab_pictures([slot])[0]
        without, with_response = (
            response.matching_cost(match_cells(original.embed, spatial, [lab[..., 0]], response, ResponseConfig()))
            for response in (IDENTITY_RESPONSE, adapted.response or IDENTITY_RESPONSE))
        if with_response < without:
            features, L, ab, predicted = adapted.encode_reference(lab)
            spatial.write(torch.tensor([slot]), features, L, ab, torch.tensor([REFERENCE_ID]), predicted)
            memory.keys[memory_slot] = memory.query(features.embedding)[0]
            slots.append(slot)
    return frozenset(slots)


def rendered_pictures(spatial: SpatialMemory, response: FilmResponse,
                      film_references: frozenset[int]) -> Callable[[int], np.ndarray]:
    """Return a cached function from a slot to its picture, rendered with ``response``, 8-bit Lab codes (S, S, 3).

    The slots ``film_references`` keep their lightness, since they are frames of the film. S is ``picture_size``.
    """
    @lru_cache(PICTURE_CACHE_SIZE)
    def picture_of(slot):
        picture = spatial.picture(slot)
        if slot not in film_references:
            lab = tensors_to_lab(*decode_lab8(torch.from_numpy(picture).float().permute(2, 0, 1)[None]))[0]
            picture[..., 0] = np.rint(response.render(lab) * (255 / L_SCALE))
        return picture

    return picture_of


@torch.inference_mode()
def find_anchors(spatial: SpatialMemory, embedding: torch.Tensor, signatures: np.ndarray,
                 picture_of: Callable[[int], np.ndarray], digests: Sequence[bytes]) -> list[Anchor]:
    """Find the stored pictures that show frames of a shot, given its mean ``embedding`` (D,) and ``signatures``
    (n, h, h) of its frames.

    Training frames count only if no reference shows the shot, since references correct their colors. ``digests`` are
    those of ``SpatialMemory.digests``.
    """
    config = PropagationConfig()
    similarity = spatial.similarity(F.normalize(embedding[None].to(spatial.embeddings.device)))[0]
    near = similarity.topk(min(config.candidates, len(similarity))).indices.tolist()
    for slots in ([slot for slot in near if spatial.pinned[slot]], near):
        pictures = [picture_of(slot) for slot in slots]
        if found := find_anchor_frames(signatures, [picture[..., 0] for picture in pictures], config):
            return [Anchor(frame, pictures[number], digests[slots[number]]) for frame, number in found]
    return []
