"""References added by the user, rendering of stored frames with the film response of a film, and their recognition in
shots."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from colorizer.adaptation.film_response import IDENTITY_RESPONSE, FilmResponse, ResponseConfig, match_cells
from colorizer.feature_extraction import FeatureExtractor
from colorizer.letterbox import crop_borders
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.metrics import has_color
from colorizer.scopes import WHOLE_FILM, ShotView, list_scopes, shot_numbers
from colorizer.warping.propagation import Anchor, PropagationConfig, find_anchor_frames
from dataset import L_SCALE, REFERENCE_ID, decode_lab8, rgb_to_lab, tensors_to_lab
from fileio.images import IMAGE_SUFFIXES, list_images, read_image
from networks import slot_ranks
from utils import UserError, warn

PICTURE_CACHE_SIZE = 256  # number of rendered pictures kept in RAM; larger: faster, more RAM


class Reference(NamedTuple):
    """A color picture that the user adds to the memory."""

    picture: np.ndarray  # RGB uint8 (H, W, 3)
    scope: str = WHOLE_FILM  # see colorizer/scopes.py
    name: str = "a reference"  # for messages


def reference_path(folder: Path, name: str, scope: str = WHOLE_FILM) -> Path:
    """Return the path of the reference ``name`` in a folder for ``read_references``, in the subfolder of its scope.

    Raises UserError if ``scope`` is not a scope.
    """
    shot_numbers(scope)
    return folder / scope / name


def read_references(folder: Path) -> list[Reference]:
    """Read the color pictures of a folder and of its subfolders, which are named after their scope.

    Grayscale pictures are skipped with a warning, since they have not been colored yet. Raises UserError if there is no
    color picture or if one cannot be read, and as ``list_scopes`` does.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pass a folder of color pictures to --references")
    references = []
    for scope in list_scopes(folder):
        for path in list_images(folder / scope):
            picture = read_image(path)
            if has_color(picture):
                references.append(Reference(picture, scope, path.relative_to(folder).as_posix()))
            else:
                warn(f"{path} is grayscale, not colored yet; skipped")
    if not references:
        raise UserError(f"there is no color picture in {folder} (expected {', '.join(IMAGE_SUFFIXES)})")
    return references


def read_reference(path: Path) -> np.ndarray:
    """Read one color picture, RGB uint8 (H, W, 3), without black borders. Raises UserError if it is grayscale."""
    picture = crop_borders(read_image(path))
    if not has_color(picture):
        raise UserError(f"the reference {path} is grayscale; pass a color picture")
    return picture


def crop_references(references: Sequence[Reference]) -> list[Reference]:
    """Return references without black borders; warn if any has them."""
    cropped = [each._replace(picture=crop_borders(each.picture)) for each in references]
    if count := sum(one.picture.shape != other.picture.shape for one, other in zip(references, cropped, strict=True)):
        warn(f"{count} of {len(references)} references have black borders, which are cropped")
    return cropped


def pin_references(extractor: FeatureExtractor, references: Sequence[Reference]) -> None:
    """Append references to the memories of the extractor's colorizer as pinned frames."""
    colorizer, config = extractor.colorizer, extractor.colorizer.config
    for picture, scope, _ in references:
        lab = rgb_to_lab(picture)
        features, L, ab, predicted = extractor.encode_reference(lab)
        if config.use_spatial_memory:
            colorizer.spatial.pin(features, L, ab, predicted)
        colorizer.memory.pin(colorizer.memory.query(features.embedding), extractor.color_features([lab]))
        config = replace(config, mem_size=config.mem_size + 1, reference_scopes=[*config.reference_scopes, scope],
                         spatial_size=config.spatial_size + config.use_spatial_memory)
        colorizer.config = config


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
def find_anchors(spatial: SpatialMemory, shot: ShotView, picture_of: Callable[[int], np.ndarray],
                 digests: Sequence[bytes], ranks: Sequence[int]) -> list[Anchor]:
    """Find the stored pictures that show frames of a shot.

    Training frames count only if no reference shows the shot, since references correct their colors, and references of
    a wider scope only if none of a narrower one does, given the ``ranks`` of the references. ``digests`` are those of
    ``SpatialMemory.digests``.
    """
    config, rank = PropagationConfig(), slot_ranks(spatial.pinned, ranks)
    similarity = spatial.similarity(F.normalize(shot.embedding[None].to(rank.device)))[0] + 3 * rank
    near = similarity.masked_fill(rank < 0, -torch.inf).topk(min(config.candidates, int((rank >= 0).sum()))).indices
    levels = (rank + spatial.pinned)[near].tolist()  # 0 for training frames
    for level in sorted(set(levels), reverse=True):
        slots = [slot for slot, own in zip(near.tolist(), levels, strict=True) if own >= level]
        pictures = [picture_of(slot) for slot in slots]
        if found := find_anchor_frames(shot.signatures, [picture[..., 0] for picture in pictures], config):
            return [Anchor(frame, pictures[number], digests[slots[number]]) for frame, number in found]
    return []
