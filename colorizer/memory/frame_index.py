"""Fast, approximate preselection of candidate frames in a large archive of A frames; ``frame_retrieval`` refines it."""

from typing import Any

import torch

from utils import evenly_spaced

AXES = 128  # number of principal axes; larger: more precise shortlists, slower
FIT_FRAMES = 4096  # maximum number of evenly spaced frames for fitting the axes; larger: slower
EMBEDDING_SCALE = 256  # quantization steps per unit of an embedding
SKETCH_SCALE = 2048  # quantization steps per unit of a sketch; float32 sums of products are exact up to 2^24


class FrameIndex:
    """Sketches of frames: embeddings projected on their principal axes and rounded to integers.

    Products of sketches take a tenth of the time of products of embeddings. They are exact, so that the same frames are
    shortlisted for all batch sizes and on all machines. An index is immutable except for its device.
    """

    def __init__(self, axes: torch.Tensor, sketches: torch.Tensor) -> None:
        """Take W ``axes``, float16 (D, W), and ``sketches``, int16 (A, W). Raises ValueError if they are invalid."""
        if (axes.dtype, sketches.dtype, axes.dim()) != (torch.float16, torch.int16, 2) or (
                sketches.shape[1:] != axes.shape[1:] or len(sketches) and sketches.abs().amax() > 1.1 * SKETCH_SCALE):
            raise ValueError("the index of the archived frames has the wrong shape, type or range")
        self.axes, self.sketches = axes, sketches.float()

    @classmethod
    def build(cls, embeddings: torch.Tensor, count: int = AXES) -> "FrameIndex":
        """Build the index of embeddings, float16 (A, D) of unit length, with W = ``count`` axes."""
        sample = embeddings[evenly_spaced(len(embeddings), FIT_FRAMES)].double()
        # Axes of the uncentered second moments, since products of embeddings are not centered, either.
        axes = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -count:].half()
        sketches = torch.cat([chunk.float() @ axes.float() for chunk in embeddings.split(FIT_FRAMES)])
        return cls(axes, (SKETCH_SCALE * sketches).round().to(torch.int16))

    def state(self) -> dict[str, Any]:
        """Return the arguments of the constructor, for a checkpoint."""
        return {"axes": self.axes.cpu(), "sketches": self.sketches.cpu().to(torch.int16)}

    def to(self, device: torch.device) -> "FrameIndex":
        self.axes, self.sketches = self.axes.to(device), self.sketches.to(device)
        return self

    def __deepcopy__(self, _: Any) -> "FrameIndex":
        return self

    def shortlist(self, embeddings: torch.Tensor, count: int) -> torch.Tensor:
        """Return the slots (N, min(count, A)) of the frames most similar to each of the quantized embeddings (N, D).

        Slots are sorted by number. Similarity is the inner product of the sketches; ties go to the lower slot.
        """
        sketches = (embeddings.double() / EMBEDDING_SCALE @ self.axes.double() * SKETCH_SCALE).round().float()
        size = len(self.sketches)
        with torch.autocast(embeddings.device.type, enabled=False):
            products = (self.sketches @ sketches.T).T  # twice as fast as sketches @ self.sketches.T
        order = products.double() * size - torch.arange(size, device=embeddings.device)  # makes all values distinct
        return order.topk(min(count, size)).indices.sort(1).values
