"""Conversion of predicted colors to the Cb and Cr of a film, by a table."""

from functools import cache

import cv2
import numpy as np

from colorizer.warping.upsampling import guided_filter_coefficients
from dataset import resize
from film.io.planes import ColorEncoding, Planes, change_depth, gray_lightness, lightness_of

CHUNK_PIXELS = 2**16  # pixels converted at a time, so that intermediate results fit into a core's cache
AB_STEP = 4  # Lab units between the entries of the table; larger: smaller table, less accurate near the gamut boundary
AB_ENTRIES = 33  # entries from gray to the most saturated color
CORRECTIONS = 3  # steps in which L is adapted to the luma; larger: saturated colors are more exact, slower start
SIDE = 2 * AB_ENTRIES + 1  # entries along a side of the tile of one luma
TILES = 16  # tiles along a side of the table, 256 in all


def ab_to_chroma(planes: Planes, ab: np.ndarray, height: int, width: int,
                 encoding: ColorEncoding) -> tuple[np.ndarray, np.ndarray]:
    """Convert the colors ab (h, w, 2) of a frame to Cb and Cr (height, width) in ``encoding``.

    ab is upsampled by a guided filter along the lightness of the frame.
    """
    y, table = resize(planes.y, height, width), _chroma_table(planes.encoding, encoding)
    L, level = lightness_of(y, planes.encoding), change_depth(y, planes.encoding.depth, 8)
    coefficients = guided_filter_coefficients(ab, resize(L, *ab.shape[:2]))
    coefficients = resize(coefficients / np.float32(AB_STEP), height, width)  # in units of table entries
    centers = np.arange(TILES, dtype=np.float32) * SIDE + AB_ENTRIES
    centers = np.repeat(centers, TILES), np.tile(centers, TILES)
    cb, cr = (np.empty((height, width), encoding.dtype) for _ in range(2))
    rows = max(1, CHUNK_PIXELS // width)
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        *slopes, a, b = cv2.split(coefficients[part])
        for slope, offset, center in zip(slopes, (a, b), centers, strict=True):  # in place: the result is in ``slopes``
            slope *= L[part]
            slope += offset
            np.clip(slope, -AB_ENTRIES, AB_ENTRIES, out=slope)
            slope += cv2.LUT(level[part], center)
        found = cv2.remap(table, slopes[1], slopes[0], cv2.INTER_LINEAR)
        cb[part], cr[part] = (_rounded(plane, encoding) for plane in cv2.split(found))
    return cb, cr


def lightness_with_luma(L: np.ndarray, ab: np.ndarray, encoding: ColorEncoding) -> np.ndarray:
    """Return the L (H, W), not clipped, that colors ab (H, W, 2) need to have the luma of grays of lightness L (H, W).

    Combined with the L of a gray, ab would change the luma: lower it for blue and red.
    """
    adapted = L
    for _ in range(CORRECTIONS):
        rgb = cv2.cvtColor(np.dstack([adapted, ab]).astype(np.float32), cv2.COLOR_Lab2RGB).clip(0, 1)
        adapted = adapted + (L - gray_lightness(encoding.luma_of(rgb)))
    return adapted


@cache
def _chroma_table(source, target):
    """Return Cb and Cr, with the 16 bits of ``_fine``, of the luma levels of ``source`` in 8 bits and of colors ab:
    uint16 (TILES * SIDE, TILES * SIDE, 2), a tile for each level with rows for a and columns for b.

    L is adapted by ``lightness_with_luma``.
    """
    axis = AB_STEP * np.arange(-AB_ENTRIES, AB_ENTRIES + 1, dtype=np.float32)
    levels = np.arange(TILES**2, dtype=np.uint16) << source.depth - 8
    L = np.repeat(lightness_of(levels.astype(source.dtype), source).ravel(), SIDE)[:, None] + 0 * axis
    ab = cv2.merge([np.tile(axis, TILES**2)[:, None] + 0 * axis, axis + np.zeros_like(L)])
    lab = np.dstack([lightness_with_luma(L, ab, target), ab])
    cb_cr = np.dstack(_fine(target).to_chroma(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB).clip(0, 1)))
    return np.ascontiguousarray(cb_cr.reshape(TILES, TILES, SIDE, SIDE, 2).swapaxes(1, 2).reshape(
        TILES * SIDE, TILES * SIDE, 2))


def _fine(encoding):
    """Return ``encoding`` with 16 bits."""
    return encoding._replace(depth=16)


def _rounded(plane, encoding):
    """Convert a plane of Cb or Cr from ``_fine(encoding)`` to ``encoding``."""
    if encoding.depth == 16:
        return plane
    fine = _fine(encoding)
    scale = encoding.chroma_span / fine.chroma_span
    offset = encoding.neutral_chroma - fine.neutral_chroma * scale
    if encoding.depth == 8:
        return cv2.convertScaleAbs(plane, None, scale, offset)
    return np.rint(plane * np.float32(scale) + np.float32(offset)).clip(0, 2**encoding.depth - 1)
