"""Upsampling of colors, guided by the lightness of a larger picture, with the guided filter (He et al. 2013).

Within a small window, color is modeled as a linear function of lightness. The coefficients are computed at the size of
the colors and then enlarged, so that thin lines and texture keep colors of their own instead of blending with their
surroundings.
"""

import cv2
import numpy as np

from dataset import resize

WINDOW = 3  # pixels along a side of the window; larger: smoother coefficients
REGULARIZATION = 20.0  # added to the variance of L in [0, 100]; larger: color follows lightness less
MAX_SLOPE = 1.5  # maximum change of a or b per unit of L; larger: stronger colors at low-contrast edges


def guided_filter_slope(ab: np.ndarray, L: np.ndarray, window: int, regularization: float) -> np.ndarray:
    """Return the slopes, float32 (H, W, 2), of colors ab (H, W, 2) over lightness L (H, W): their covariance
    within ``window`` x ``window`` pixels, divided by (variance of L + ``regularization``)."""
    def mean(plane):
        return cv2.blur(plane, (window, window))

    mean_L = mean(L)
    variance = mean(L * L) - mean_L * mean_L + np.float32(regularization)
    return cv2.merge([(mean(L * channel) - mean_L * mean(channel)) / variance for channel in cv2.split(ab)])


def guided_filter_coefficients(ab: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Return the slopes of a and b and their intercepts, float32 (h, w, 4), such that color = slope * L + intercept,
    for colors ab (h, w, 2) and lightness L (h, w) in [0, 100]."""
    slopes = cv2.split(guided_filter_slope(ab, L, WINDOW, REGULARIZATION).clip(-MAX_SLOPE, MAX_SLOPE))
    return cv2.merge([*slopes, *(color - slope * L for color, slope in zip(cv2.split(ab), slopes, strict=True))])


def upsample_colors(ab: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Enlarge colors ab (h, w, 2) to the size of L (H, W) in [0, 100], which guides them. Return float32 (H, W, 2)."""
    coefficients = resize(guided_filter_coefficients(ab, resize(L, *ab.shape[:2])), *L.shape)
    *slopes, a, b = cv2.split(coefficients)
    return cv2.merge([slope * L + intercept for slope, intercept in zip(slopes, (a, b), strict=True)])
