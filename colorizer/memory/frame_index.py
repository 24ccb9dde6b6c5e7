"""Which of very many frames are worth comparing? An index that shortlists those that look most like a picture."""

from typing import Any

import torch

from utils import evenly_spaced

AXES = 128  # of greatest variance of the features, along which frames are compared
SAMPLE = 4096  # frames, at most, spread evenly, by which the axes are found
LOOK_STEPS = 256  # of a number of a look, between 0 and 1
STEPS = 2048  # of a number of a sketch: a sum of products of two sketches is below 2^24, exact in float32 in any order


class FrameIndex:
    """The sketches of frames: their features along the ``AXES`` of greatest variance, as whole numbers.

    A product of sketches takes a tenth of the time of one of features, and is exact, so that the same frames are
    shortlisted in whatever batch and on every machine. They never change.
    """

    def __init__(self, axes: torch.Tensor, sketches: torch.Tensor) -> None:
        """``axes`` (D, W) float16 and ``sketches`` (A, W) int16. Raises ValueError for tensors that are not."""
        if (axes.dtype, sketches.dtype, axes.dim()) != (torch.float16, torch.int16, 2) or (
                sketches.shape[1:] != axes.shape[1:] or len(sketches) and sketches.abs().amax() > 1.1 * STEPS):
            raise ValueError("the index of its frames is of another shape")
        self.axes, self.sketches = axes, sketches.float()

    @classmethod
    def of(cls, features: torch.Tensor) -> "FrameIndex":
        """The Index of frames by their features (A, D), float16 of unit length."""
        sample = features[evenly_spaced(len(features), SAMPLE)].double()
        axes = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -AXES:].half()  # not centered: as products see it
        parts = [part.float() @ axes.float() for part in features.split(SAMPLE)]
        return cls(axes, (STEPS * torch.cat(parts)).round().to(torch.int16))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: the arguments of Index."""
        return {"axes": self.axes.cpu(), "sketches": self.sketches.cpu().to(torch.int16)}

    def to(self, device: torch.device) -> "FrameIndex":
        self.axes, self.sketches = self.axes.to(device), self.sketches.to(device)
        return self

    def __deepcopy__(self, _: Any) -> "FrameIndex":
        return self

    def shortlist(self, looks: torch.Tensor, count: int) -> torch.Tensor:
        """The slots (N, c), rising, of the ``count`` frames, or all, whose sketches have the greatest products with
        those of looks (N, D); of equal ones those of lower slots."""
        sketches = (looks.double() / LOOK_STEPS @ self.axes.double() * STEPS).round().float()
        size = len(self.sketches)
        with torch.autocast(looks.device.type, enabled=False):
            products = (self.sketches @ sketches.T).T  # in half the time of the same the other way around
        order = products.double() * size - torch.arange(size, device=looks.device)  # no two are equal
        return order.topk(min(count, size)).indices.sort(1).values
