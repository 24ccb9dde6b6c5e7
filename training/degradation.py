"""Degradation augmentations: random spectral sensitivity, contrast, blur and grain, which simulate other films."""

import cv2
import numpy as np

from config import DegradationConfig
from dataset import L_SCALE, rgb_to_lab, spectral_lightness


def degrade(rgb: np.ndarray, rng: np.random.Generator, config: DegradationConfig) -> np.ndarray:
    """Return L float32 (H, W) in [0, 100] of an RGB uint8 picture (H, W, 3) with random degradations.

    Each degradation is applied with its own probability, so some pictures remain unchanged.
    """
    L = rgb_to_lab(rgb)[..., 0]
    if rng.random() < config.probability:
        L = spectral_lightness(rgb, rng.dirichlet(config.spectral_sensitivity))
    if rng.random() < config.probability:
        curved = L_SCALE * (L / L_SCALE).clip(0, 1) ** np.exp(rng.normal(0, config.log_gamma))
        L = (curved - L.mean()) * rng.uniform(*config.contrast) + L.mean()
    if rng.random() < config.probability / 2:
        L = cv2.GaussianBlur(L, (0, 0), rng.uniform(*config.blur) * len(L) / 512)
    if rng.random() < config.probability:
        grain = rng.normal(0, rng.uniform(0, config.grain), L.shape).astype(np.float32)
        if rng.random() < 0.5:
            # The blur divides the standard deviation of white noise by 2 * sqrt(pi) * sigma.
            grain = cv2.GaussianBlur(grain, (0, 0), config.coarse_grain) * 2 * np.sqrt(np.pi) * config.coarse_grain
        L = L + grain
    return L.clip(0, L_SCALE).astype(np.float32)
