"""Which colors has the show? Colors by their hex numbers, and the palette of what a checkpoint remembers.

A color is "#rrggbb", sRGB. Lab is float32, L in [0, 100] and ab in about [-110, 110].
"""

import re

import cv2
import numpy as np

from dataset import lab_to_rgb, rgb_to_lab
from editing.regions import Point
from utils import UserError


def lab_of(color: str) -> np.ndarray:
    """Lab (3,) of a color. Raises UserError for what is none."""
    if not isinstance(color, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
        raise UserError(f"{color!r:.40} is no color; give it as # and 6 hexadecimal digits, such as #ee6c80")
    rgb = np.array(list(bytes.fromhex(color[1:])), np.uint8)
    return rgb_to_lab(rgb.reshape(1, 1, 3)).ravel()


def color_of(lab: np.ndarray) -> str:
    """The color of Lab (3,), the inverse of ``lab_of``; one outside sRGB is clipped channel by channel."""
    return "#" + lab_to_rgb(np.float32(lab)[None, None]).tobytes().hex()


def eyedropper(picture: np.ndarray, point: Point) -> str:
    """The color of a picture, RGB uint8 (H, W, 3), at a point (x, y): the median of 5 x 5 pixels. Raises UserError for
    a point outside."""
    height, width = picture.shape[:2]
    x, y = (int(np.floor(value + 0.5)) for value in point)
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f"the point ({point[0]:g}, {point[1]:g}) is outside the picture, which is {width}x{height}; "
                        "click into it")
    around = picture[max(0, y - 2):y + 3, max(0, x - 2):x + 3].reshape(-1, 3)
    return "#" + np.uint8(np.median(around, axis=0)).tobytes().hex()


def most_chroma(hue: np.ndarray, L: np.ndarray) -> np.ndarray:
    """How far the colors of a hue, a unit vector (2,) of ab, go within sRGB at lightness L: chroma, float32 of its
    shape.

    Found by bisection at 201 values of L, and between them interpolated.
    """
    levels = np.linspace(0, 100, 201, dtype=np.float32)
    low, high = np.zeros_like(levels), np.full_like(levels, 150)
    for _ in range(12):
        middle = (low + high) / 2
        lab = np.dstack([levels, middle * hue[0], middle * hue[1]]).astype(np.float32)
        again = cv2.cvtColor(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), cv2.COLOR_RGB2Lab)  # is clipped on the way
        inside = np.abs(again - lab).max(-1)[0] < 0.5
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.interp(L, levels, low).astype(np.float32)


def shaded(color: str, L: np.ndarray, flat: float) -> np.ndarray:
    """A color on a thing of lightness L (H, W), as ab (H, W, 2): at the lightness ``flat`` with its own hue and chroma,
    and as much weaker as there is less light, for the same surface reflects it; nowhere beyond sRGB."""
    ab = lab_of(color)[1:]
    chroma = np.float32(np.hypot(*ab))
    if chroma == 0:
        return np.zeros((*L.shape, 2), np.float32)
    reached = np.minimum(chroma * L / np.float32(max(flat, 1)), most_chroma(ab / chroma, L))
    return reached[..., None] * (ab / chroma)
