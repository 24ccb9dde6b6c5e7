"""How might another film show it? On a stock of its own, harder or softer, blurred, with grain: views to learn from."""

import cv2
import numpy as np

from dataset import L_SCALE, rgb_to_lab, spectral_lightness

SHARE = 0.5  # of the views that are changed in each way, but blur, which is as rare again
STOCK = (1.2, 2.5, 0.8)  # of the Dirichlet distribution of how much red, green and blue light expose a stock
GAMMA, CONTRAST = 0.15, (0.8, 1.15)  # standard deviation of the logarithm of the one, range of the other
BLUR = (0.3, 2.0)  # pixels of 512, standard deviation
GRAIN = 8.0  # L, greatest standard deviation; half of it is coarse
COARSE = 0.7  # pixels


def degrade(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """L float32 (H, W) in [0, 100] of a picture, RGB uint8 (H, W, 3), as another film might show it, or as it is."""
    L = rgb_to_lab(rgb)[..., 0]
    if rng.random() < SHARE:
        L = spectral_lightness(rgb, rng.dirichlet(STOCK))
    if rng.random() < SHARE:
        curved = L_SCALE * (L / L_SCALE).clip(0, 1) ** np.exp(rng.normal(0, GAMMA))
        L = (curved - L.mean()) * rng.uniform(*CONTRAST) + L.mean()
    if rng.random() < SHARE / 2:
        L = cv2.GaussianBlur(L, (0, 0), rng.uniform(*BLUR) * len(L) / 512)
    if rng.random() < SHARE:
        grain = rng.normal(0, rng.uniform(0, GRAIN), L.shape).astype(np.float32)
        if rng.random() < 0.5:
            grain = cv2.GaussianBlur(grain, (0, 0), COARSE) * 2 * np.sqrt(np.pi) * COARSE  # as strong as before
        L = L + grain
    return L.clip(0, L_SCALE).astype(np.float32)
