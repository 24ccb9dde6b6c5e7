"""Character sheets: pictures of single characters on a flat or transparent background, read from
FOLDER/NAME/*.png, cut out, and pasted into other pictures."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from colorizer.metrics import has_color
from dataset import resize
from fileio.images import IMAGE_SUFFIXES, list_images, read_image_and_opacity
from utils import UserError

MARGIN = 3  # pixels of background around a picture


@dataclass(frozen=True)
class CutOutConfig:
    """Constants of the removal of the background. Differences are the largest of R, G and B, of 255."""

    max_side: int = 512  # pixels; larger pictures are downscaled; larger: finer edges, slower
    min_opacity: int = 250  # of 255, minimum opacity of the character; larger: more of soft edges is cut away
    tolerance: int = 24  # maximum difference of background at the border; larger: more compression noise, pale edges
    min_flat_share: float = 0.6  # minimum share of background along the border; larger: fewer cropped characters
    pocket_tolerance: int = 6  # maximum difference of the pixels counted in pockets that the character encloses
    min_pocket: float = 0.01  # minimum area of such a pocket relative to the character; larger: eyes, teeth are kept
    max_pockets: float = 0.3  # larger shares of enclosed background color belong to the character, such as a polar bear
    min_part: float = 0.01  # minimum area of a part of the character relative to the largest one; larger: fewer specks
    max_filled: float = 0.97  # a larger share of its bounding box is a scene with a flat border


class Character(NamedTuple):
    """A picture of a character, cropped to it."""

    name: str
    rgb: np.ndarray  # uint8 (h, w, 3); pixels outside the mask have the color of the nearest part of the character
    mask: np.ndarray  # bool (h, w)

    @property
    def digest(self) -> bytes:
        """Hash of the name and the picture."""
        return hashlib.sha256(b"\0".join([self.name.encode(), self.rgb.tobytes(), self.mask.tobytes()])).digest()


class Patch(NamedTuple):
    """A character, resized and ready to paste: ``place`` is where it belongs in the picture."""

    rgb: np.ndarray  # uint8 (h, w, 3)
    opacity: np.ndarray  # float32 (h, w, 1) in [0, 1]
    place: tuple[slice, slice]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_characters(folder: Path) -> list[Character]:
    """Read the pictures in the subfolders of ``folder``, which are named after the characters.

    Raises UserError if there is no such subfolder or one has no pictures, and for a picture that cannot be read, is
    grayscale, or is a scene.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pass a folder with a subfolder of pictures of each character to "
                        "--characters")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not subfolders:
        raise UserError(f"{folder} has no subfolders; put the pictures of each character into a subfolder that is "
                        "named after it")
    characters = []
    for subfolder in subfolders:
        paths = list_images(subfolder)
        if not paths:
            raise UserError(f"there is no picture in {subfolder} (expected {', '.join(IMAGE_SUFFIXES)}); add some or "
                            "remove the folder")
        characters += [read_character(path) for path in paths]
    return characters


def read_character(path: Path, config: CutOutConfig | None = None) -> Character:
    """Read a picture and cut its character out. Raises UserError as ``read_characters`` does."""
    config = config or CutOutConfig()
    rgb, opacity = read_image_and_opacity(path)
    scale = min(1, config.max_side / max(rgb.shape[:2]))
    size = [max(1, round(side * scale)) for side in rgb.shape[:2]]
    rgb, opacity = resize(rgb, *size), None if opacity is None else resize(opacity, *size)
    try:
        mask = cut_out(rgb, config) if opacity is None else opacity >= config.min_opacity
        if not mask.any():
            raise ValueError("is blank; pass a picture of a character")
        if not has_color(rgb[mask][None]):
            raise ValueError("is grayscale; color it or remove it")
    except ValueError as error:
        raise UserError(f"{path} {error}") from error
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Character(path.parent.name, _spread_colors(rgb[box], mask[box]), mask[box])


def cut_out(rgb: np.ndarray, config: CutOutConfig) -> np.ndarray:
    """Return the mask, bool (H, W), of the character in a picture, RGB uint8 (H, W, 3), on a flat background.

    The background is what a flood fill from the border reaches, and pockets of exactly its color that the character
    encloses, such as between arm and body, unless they are so large that the character must have this color. Raises
    ValueError if the picture is a scene.
    """
    edge = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    color = np.median(edge, axis=0)
    if (_difference(edge, color) <= config.tolerance).mean() < config.min_flat_share:
        raise ValueError("is a scene, since its border is not flat; pass one character on a flat or transparent "
                         "background, or put it into the folder of --references")
    difference, kernel = _difference(rgb, color), np.ones((3, 3), np.uint8)
    # A margin connects parts of the background that the character separates.
    similar = np.pad(difference <= config.tolerance, MARGIN, constant_values=True).astype(np.uint8)
    # Eroded background does not leak through small gaps of an outline.
    labels = cv2.connectedComponents(cv2.erode(similar, kernel), connectivity=4)[1]
    outside = cv2.dilate((labels == labels[0, 0]).astype(np.uint8), kernel) & similar
    filled = outside[MARGIN:-MARGIN, MARGIN:-MARGIN] == 0
    mask = filled & ~_find_pockets(filled, difference, config)
    mask = cv2.erode(mask.astype(np.uint8), kernel)  # the outermost pixels are mixed with the background
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[:, cv2.CC_STAT_AREA] * (np.arange(len(stats)) > 0)
    mask = (areas >= max(1, config.min_part * areas.max()))[labels]
    if mask.any():
        rows, columns = mask.any(1), mask.any(0)
        if mask.sum() > config.max_filled * np.ptp(np.flatnonzero(rows)) * np.ptp(np.flatnonzero(columns)):
            raise ValueError("is a scene with a flat border; pass one character on a flat or transparent background, "
                             "or put it into the folder of --references")
    return mask


def _difference(rgb, color):
    return np.abs(rgb.astype(np.int16) - color.astype(np.int16)).max(-1)


def _find_pockets(filled, difference, config):
    """Return the large parts of the background color in ``filled``, bool (H, W), or none if they are too much of it."""
    similar = (filled & (difference <= config.tolerance)).astype(np.uint8)
    _, labels = cv2.connectedComponents(similar, connectivity=4)
    areas = np.bincount(labels.ravel(), (similar > 0).ravel() & (difference <= config.pocket_tolerance).ravel())
    areas[areas < config.min_pocket * filled.sum()] = 0
    return (areas > 0)[labels] if areas.sum() <= config.max_pockets * filled.sum() else np.zeros_like(filled)


def _spread_colors(rgb, mask):
    """Give pixels outside the mask the color of the nearest pixel inside, so that resizing mixes no background in."""
    _, labels = cv2.distanceTransformWithLabels((~mask).astype(np.uint8), cv2.DIST_L2, 3,
                                                labelType=cv2.DIST_LABEL_PIXEL)
    nearest = np.zeros((labels.max() + 1, 3), np.uint8)
    nearest[labels[mask]] = rgb[mask]
    return nearest[labels]


# ---------------------------------------------------------------------------------------------------------------------
# Pasting


@dataclass(frozen=True)
class PasteConfig:
    """Constants of pasted characters."""

    heights: tuple[float, float] = (0.25, 1.1)  # range of the height, relative to the picture
    outside: float = 0.25  # maximum share of width and of height that is outside the picture
    aspect: tuple[float, float] = (1.33, 1.85)  # range of the aspect ratio of films, which networks see as squares


def place_character(character: Character, height: int, width: int, config: PasteConfig, rng: np.random.Generator,
                    squeeze: float = 1.0) -> Patch:
    """Return a character of random size, maybe mirrored, at a random place of a picture of ``height`` x ``width``
    pixels. Its width is divided by ``squeeze``."""
    h = max(2, round(rng.uniform(*config.heights) * height))
    w = max(2, round(h * character.rgb.shape[1] / character.rgb.shape[0] / squeeze))
    rgb, opacity = resize(character.rgb, h, w), resize(character.mask.astype(np.float32), h, w)
    if rng.random() < 0.5:
        rgb, opacity = rgb[:, ::-1], opacity[:, ::-1]
    top, left = (round(rng.uniform(-config.outside * size, max(0, side - (1 - config.outside) * size)))
                 for size, side in ((h, height), (w, width)))
    rows, columns = ((max(0, start), min(side, start + size)) for start, size, side in
                     ((top, h, height), (left, w, width)))
    inside = slice(rows[0] - top, rows[1] - top), slice(columns[0] - left, columns[1] - left)
    return Patch(rgb[inside], opacity[inside][..., None], (slice(*rows), slice(*columns)))


def paste(picture: np.ndarray, patch: Patch, pixels: np.ndarray | None = None) -> None:
    """Paste a patch into ``picture`` (H, W, C) in place; ``pixels`` are its colors as those of the picture, by default
    RGB."""
    part = picture[patch.place]
    blended = part + patch.opacity * ((patch.rgb if pixels is None else pixels).astype(np.float32) - part)
    part[...] = blended if picture.dtype != np.uint8 else np.rint(blended)


def neutral_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return a gray background, RGB uint8 (height, width, 3), that is flat or has a random texture."""
    gray = np.full((height, width), rng.uniform(40, 235), np.float32)
    if rng.random() < 0.8:
        for cells in (3, 8, 24):
            noise = rng.normal(size=(cells, cells)).astype(np.float32) * rng.uniform(0, 35)
            method = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_NEAREST  # soft, or with edges
            gray += cv2.resize(noise, (width, height), interpolation=method)
    return np.rint(gray.clip(0, 255)).astype(np.uint8)[..., None].repeat(3, 2)


def names_of(characters: Sequence[Character]) -> list[str]:
    """Return the distinct names of characters, in order."""
    return list(dict.fromkeys(character.name for character in characters))
