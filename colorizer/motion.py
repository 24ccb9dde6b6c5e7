"""How do many pictures move at once, on a GPU? Optical flow of a batch, and what is carried along it.

The twin of ``flow.py`` for tensors, which are float32 here: P pairs of pictures (P, H, W), of values in [0, 255], and
flows (P, H, W, 2). It launches few kernels, waits for none of them, and adds in one order, so that it gives the same
bytes again.
"""

import torch
import torch.nn.functional as F

from colorizer.flow import EVEN, WINDOW
from dataset import shrink

PATCH, STRIDE = 8, 4  # pixels along a side of a patch, and from one to the next
SMALLEST = 24  # pixels along the shorter side of the top of the pyramid, at least
ROUNDS, STEPS = 2, 2  # at each scale, flows are passed on among patches so often, and then descend so many steps
DAMPING = 64.0  # squared steps of gray added to the squared slopes of a patch: where it is even, its flow stays


def flows(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The flows from P pictures to as many others, by dense inverse search (Kroeger et al. 2016).

    Patches of the first picture look for themselves in the second one, whatever their mean, at half the size and below,
    from coarse to fine. Those of all pairs do so at once: where one would take over the flow of the neighbor before it,
    it takes the best of all neighbors' (Barnes et al. 2009) and of standing still. There is no variational refinement,
    which changes colors carried by nothing (``benchmarks/trials.md``).
    """
    pair = torch.stack([first, second], 1)
    flow, size = None, first.shape[1:]
    for level in range(max(1, (min(size) // SMALLEST).bit_length() - 1), 0, -1):
        height, width = (max(2 * PATCH, STRIDE * round(side / 2**level / STRIDE)) for side in size)
        small = F.adaptive_avg_pool2d(pair, (height, width))
        flow = torch.zeros_like(small) if flow is None else _enlarged(flow, height, width)
        flow = _search(small, flow)
    return _enlarged(flow, *size).permute(0, 2, 3, 1)


def _enlarged(flow, height, width):
    """Flows (P, 2, h, w) for pictures of another size."""
    x, y = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False).split(1, 1)
    return torch.cat([x * (width / flow.shape[3]), y * (height / flow.shape[2])], 1)


def _patches(x):
    """Maps (P, C, h, w) -> their patches (P, C, PATCH^2, n), line by line."""
    return F.unfold(x, PATCH, stride=STRIDE).unflatten(1, (x.shape[1], -1))


def _search(pair, flow):
    """One scale: both pictures (P, 2, h, w), and the flows (P, 2, h, w) to begin with -> better ones."""
    first, second = pair.split(1, 1)
    height, width = pair.shape[2:]
    lines, columns = ((side - PATCH) // STRIDE + 1 for side in (height, width))
    edge = F.pad(first, (1, 1, 1, 1), mode="replicate")
    slope = torch.cat([edge[..., 1:-1, 2:] - edge[..., 1:-1, :-2], edge[..., 2:, 1:-1] - edge[..., :-2, 1:-1]], 1) / 2
    own, slope = _patches(first), _patches(slope)
    slope = slope - slope.mean(2, keepdim=True)  # so that the mean of a patch tells nothing
    (xx, yy), xy = (slope.square().sum(2) + DAMPING).unbind(1), slope.prod(1).sum(1)
    gain = torch.stack([torch.stack([yy, -xy], 1), torch.stack([-xy, xx], 1)], 1) / (xx * yy - xy * xy)[:, None, None]
    step = (gain[:, :, :, None] * slope[:, None]).sum(2)  # (P, 2, PATCH^2, n): a gray step of a pixel, in pixels of flow
    y, x = (torch.arange(side, device=pair.device, dtype=pair.dtype) for side in (height, width))
    place = _patches(torch.stack(torch.meshgrid((2 * x + 1) / width - 1, (2 * y + 1) / height - 1, indexing="xy"))[None])

    def seen(flow):
        """What the second picture shows of the patches (P, m, PATCH^2, n), by m flows of each (P, 2, m, n)."""
        x, y = flow.unbind(1)
        target = torch.stack([place[:, :1] + x[:, :, None] * (2 / width), place[:, 1:] + y[:, :, None] * (2 / height)], -1)
        found = F.grid_sample(second, target.flatten(1, 2), padding_mode="border", align_corners=False)
        return found.view_as(target[..., 0])

    def best(flow):
        """Of m flows of each patch (P, 2, m, n), the one that fits best (P, 2, n)."""
        chosen = (seen(flow) - own).var(2).argmin(1)
        return flow.take_along_dim(chosen[:, None, None], 2)[:, :, 0]

    found = F.avg_pool2d(flow, PATCH, STRIDE)
    for _ in range(ROUNDS):
        around = F.unfold(F.pad(found, (1, 1, 1, 1), mode="replicate"), 3).unflatten(1, (2, 9))
        start = now = best(torch.cat([around, torch.zeros_like(around[:, :, :1])], 2))
        for _ in range(STEPS):
            now = now - (step * (seen(now[:, :, None]) - own)).sum(2)
        found = best(torch.stack([start, now], 2)).unflatten(2, (lines, columns))
    # A pixel takes the mean flow of the patches that have it, each weighed by how well it fits there.
    found = found.flatten(2)[:, :, None]
    weight = 1 / (seen(found) - own).square().clamp(min=1)
    total = F.fold(torch.cat([weight * found, weight], 1).flatten(1, 2), (height, width), PATCH, stride=STRIDE)
    return total[:, :2] / total[:, 2:]


def fetch(maps: torch.Tensor, flows: torch.Tensor) -> torch.Tensor:
    """For each pixel of the first pictures, the values of ``maps`` (P, C, h, w) of the second ones, of any size, at the
    positions to which ``flows`` (P, H, W, 2) lead: (P, C, H, W). Positions outside get the value at the border."""
    height, width = flows.shape[1:3]
    y, x = (torch.arange(side, device=flows.device, dtype=flows.dtype) for side in (height, width))
    target = flows + torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    target = torch.stack([(2 * target[..., 0] + 1) / width - 1, (2 * target[..., 1] + 1) / height - 1], -1)
    return F.grid_sample(maps, target, padding_mode="border", align_corners=False)


def scaled(flows: torch.Tensor, side: int) -> torch.Tensor:
    """Flows (P, S, S, 2) for square pictures of another ``side``."""
    maps = flows.permute(0, 3, 1, 2)
    if side <= maps.shape[3]:
        maps = shrink(maps, side)
    else:
        maps = F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
    return maps.permute(0, 2, 3, 1) * (side / flows.shape[1])


def blur(maps: torch.Tensor) -> torch.Tensor:
    """Means over WINDOW x WINDOW pixels of maps (P, C, H, W), as ``flow.blur`` gives them."""
    return F.avg_pool2d(F.pad(maps, [WINDOW // 2] * 4, mode="reflect"), WINDOW, 1)


def relit(ab: torch.Tensor, known: torch.Tensor, L: torch.Tensor) -> torch.Tensor:
    """``flow.relit`` for colors (P, 2, H, W) and lightness (P, 1, H, W) each."""
    light, color = blur(known), blur(ab)
    slope = (blur(known * ab) - light * color) / (blur(known * known) - light * light + EVEN)
    return ab + slope * (L - known)
