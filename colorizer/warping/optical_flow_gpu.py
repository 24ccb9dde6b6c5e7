"""How do many pictures move at once, on a GPU? Optical flow of a batch, and what is carried along it.

The twin of ``flow.py`` for tensors, which are float32 here: P pairs of square pictures (P, S, S), of values in [0,
255], and flows (P, S, S, 2). It launches few kernels, waits for none of them, and adds in one order, so that it gives
the same bytes again.
"""

import torch
import torch.nn.functional as F

from colorizer.warping.optical_flow import EVEN, WINDOW
from dataset import downsample

PATCH, STRIDE = 8, 4  # pixels along a side of a patch, and from one to the next
SMALLEST = 24  # pixels along a side of the top of the pyramid, at least
ROUNDS, STEPS = 2, 2  # at each scale, flows are passed on among patches so often, each time to descend so many steps
FIRST_ROUNDS = 6  # at the coarsest one, so that what a whole picture does comes to all of its patches
DAMPING = 64.0  # squared steps of gray added to the squared slopes of a patch: where it is even, its flow stays


def flows(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The flows from P pictures to as many others, by dense inverse search (Kroeger et al. 2016).

    Patches of the first picture look for themselves in the second one, whatever their mean, at half the size and below,
    from coarse to fine. All do so at once: where one would take over the flow of the patch before it, it takes the best
    of all its neighbors' (Barnes et al. 2009) and of standing still. There is no variational refinement, which makes
    nothing better here (``benchmarks/trials.md``).
    """
    pair, side = torch.stack([first, second], 1), first.shape[1]
    flow = None
    for level in range(max(1, (side // SMALLEST).bit_length() - 1), 0, -1):
        small = F.adaptive_avg_pool2d(pair, max(2 * PATCH, STRIDE * round(side / 2**level / STRIDE)))
        if flow is None:
            flow = _search(small, torch.zeros_like(small), FIRST_ROUNDS)
        else:
            flow = _search(small, _resized(flow, small.shape[2]), ROUNDS)
    return _resized(flow, side).permute(0, 2, 3, 1)


def _patches(x):
    """Maps (P, C, s, s) -> their patches (P, C, PATCH^2, n), line by line."""
    return F.unfold(x, PATCH, stride=STRIDE).unflatten(1, (x.shape[1], -1))


def _search(pair, flow, rounds):
    """One scale: both pictures (P, 2, s, s), and the flows (P, 2, s, s) to begin with -> better ones."""
    first, second = pair.split(1, 1)
    edge = F.pad(first, (1, 1, 1, 1), mode="replicate")
    slope = torch.cat([edge[..., 1:-1, 2:] - edge[..., 1:-1, :-2], edge[..., 2:, 1:-1] - edge[..., :-2, 1:-1]], 1) / 2
    own, slope = _patches(first), _patches(slope)
    slope = slope - slope.mean(2, keepdim=True)  # so that the mean of a patch tells nothing
    (xx, yy), xy = (slope.square().sum(2) + DAMPING).unbind(1), slope.prod(1).sum(1)
    gain = torch.stack([torch.stack([yy, -xy], 1), torch.stack([-xy, xx], 1)], 1) / (xx * yy - xy * xy)[:, None, None]
    step = (gain[:, :, :, None] * slope[:, None]).sum(2)  # (P, 2, PATCH^2, n), in pixels of flow for a step of gray
    place = _patches(_places(pair.shape[2], pair).permute(2, 0, 1)[None])  # (1, 2, PATCH^2, n)

    def seen(flow):
        """What the second picture shows of the patches (P, m, PATCH^2, n), by m flows of each (P, 2, m, n)."""
        target = (place[:, :, None] + flow[:, :, :, None]).permute(0, 2, 3, 4, 1)
        return _sample(second, target.flatten(1, 2), pair.shape[2]).view(target.shape[:-1])

    def best(flow):
        """Of m flows of each patch (P, 2, m, n), the one that fits best (P, 2, n)."""
        chosen = (seen(flow) - own).var(2).argmin(1)
        return flow.take_along_dim(chosen[:, None, None], 2)[:, :, 0]

    found = F.avg_pool2d(flow, PATCH, STRIDE)
    lines = found.shape[2:]
    for _ in range(rounds):
        around = F.unfold(F.pad(found, (1, 1, 1, 1), mode="replicate"), 3).unflatten(1, (2, 9))
        start = now = best(torch.cat([around, torch.zeros_like(around[:, :, :1])], 2))
        for _ in range(STEPS):
            now = now - (step * (seen(now[:, :, None]) - own)).sum(2)
        found = best(torch.stack([start, now], 2)).unflatten(2, lines)
    # A pixel takes the mean flow of the patches that have it, each weighed by how well it fits there.
    found = found.flatten(2)[:, :, None]
    weight = 1 / (seen(found) - own).square().clamp(min=1)
    total = F.fold(torch.cat([weight * found, weight], 1).flatten(1, 2), pair.shape[2:], PATCH, stride=STRIDE)
    return total[:, :2] / total[:, 2:]


def _places(side, like):
    """The position (x, y) of each pixel: (side, side, 2), of the type and on the device of ``like``."""
    line = torch.arange(side, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def _sample(maps, places, side):
    """Maps (P, C, s, s) at places (P, H, W, 2), in pixels of a picture of ``side`` pixels."""
    return F.grid_sample(maps, (2 * places + 1) / side - 1, padding_mode="border", align_corners=False)


def _resized(flow, side):
    """Flows (P, 2, s, s) for pictures of another side."""
    ratio = side / flow.shape[2]
    flow = downsample(flow, side) if ratio <= 1 else F.interpolate(flow, (side, side), mode="bilinear", align_corners=False)
    return flow * ratio


def scaled(flows: torch.Tensor, side: int) -> torch.Tensor:
    """Flows (P, S, S, 2) for pictures of another ``side``."""
    return _resized(flows.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)


def fetch(maps: torch.Tensor, flows: torch.Tensor) -> torch.Tensor:
    """For each pixel of the first pictures, the values of ``maps`` (P, C, s, s) of the second ones, of any size, at the
    positions to which ``flows`` (P, S, S, 2) lead: (P, C, S, S). Positions outside get the value at the border."""
    return _sample(maps, flows + _places(flows.shape[1], flows), flows.shape[1])


def blur(maps: torch.Tensor) -> torch.Tensor:
    """Means over WINDOW x WINDOW pixels of maps (P, C, H, W), as ``flow.blur`` gives them."""
    return F.avg_pool2d(F.pad(maps, [WINDOW // 2] * 4, mode="reflect"), WINDOW, 1)


def relit(ab: torch.Tensor, known: torch.Tensor, L: torch.Tensor) -> torch.Tensor:
    """``flow.relit`` for colors (P, 2, H, W) and lightness (P, 1, H, W) each."""
    light, color = blur(known), blur(ab)
    slope = (blur(known * ab) - light * color) / (blur(known * known) - light * light + EVEN)
    return ab + slope * (L - known)
