"""How likely is each color? The voter: at each place of a gray picture, votes for the colors of the show.

A mean of two possible colors is no color of the show: what is red or cream comes out pale. So a color is chosen by
votes, as a class, and only then turned into ab. Shapes: N batch, G x G places, P of them in a sample, E features of a
place, K ``colors``.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import felzenszwalb
from torch import nn

from config import PaletteClassifierConfig
from dataset import AB_SCALE
from utils import to_device

LARGEST_LOOK = 2048  # pixels; a checkpoint could ask for any
STRIDE = 4  # pixels of a look along a side of a place
AROUND = 3  # places along a side of the square whose lightness is a place's


def moved(ab: torch.Tensor, hint: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """ab (N, 2, S, S) with its mean over each of h x w places moved towards ``hint`` (N, 2, h, w): not at all where
    ``weight`` (N, 1, h, w) is 0, all the way where it is 1. Detail finer than a place stays."""
    change = weight * (hint - F.adaptive_avg_pool2d(ab, (hint.shape[2], hint.shape[3])))
    return ab + F.interpolate(change, ab.shape[2:], mode="bilinear", align_corners=False)


class GroupDropout(nn.Dropout):
    """Dropout for rows (P, C) of which each of GROUPS parts, P a multiple of them, has one mask: a mask for every row
    takes longer to draw than all else in a step."""

    GROUPS = 64

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        kept = (torch.rand(self.GROUPS, 1, x.shape[1]) >= self.p).to(x) / (1 - self.p)
        return (x.unflatten(0, (self.GROUPS, -1)) * kept).flatten(0, 1)


class PaletteClassifier(nn.Module):
    """Votes for the K colors of a show, at each place of a gray picture, by what the backbone sees there.

    The colors are the centers of K clusters of the ab of the training pictures. Features of a place are all maps of the
    backbone there, from the finest, which see its lines, to the coarsest, which see whose arm it is, and the lightness
    around it. They are projected by linear discriminant analysis (Fisher 1936; Rao 1948): scaled so that places of one
    color vary by 1 in each direction, and reduced to the directions in which the colors differ most. An MLP of two
    layers, trained by cross entropy with soft labels on single places (as Kirillov et al. 2020, arXiv 1912.08193, learn
    the masks of things), makes votes of them, so that it learns a character from a few frames, in seconds.
    """

    mean: torch.Tensor  # (E,)
    projection: torch.Tensor  # (E, axes)
    palette: torch.Tensor  # (K, 2) ab in Lab units

    def __init__(self, channels: Sequence[int], config: PaletteClassifierConfig) -> None:
        """For a backbone whose maps have so many ``channels``. Raises ValueError for a look that is no multiple of 32
        pixels, by which the backbone's coarsest map divides it, or that nobody could pay for."""
        super().__init__()
        if config.input_size % 32 or config.input_size > LARGEST_LOOK:
            raise ValueError(f"the look of {config.input_size} pixels is no multiple of 32 up to {LARGEST_LOOK}")
        self.config, self.parts = config, [*channels, AROUND**2 + 1]  # of the features: E is their sum
        self.register_buffer("mean", torch.zeros(sum(self.parts)))
        self.register_buffer("projection", torch.zeros(sum(self.parts), config.discriminant_axes))
        self.register_buffer("palette", torch.zeros(config.palette_size, 2))
        self.mlp = nn.Sequential(GroupDropout(0.2), nn.Linear(config.discriminant_axes, config.hidden_dim), nn.ReLU(), GroupDropout(0.3),
                                 nn.Linear(config.hidden_dim, config.palette_size))

    @staticmethod
    def describe(maps: Sequence[torch.Tensor], L: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The features (N, P, E) of the places of the numbers ``chosen`` (P,), counted line by line, by the backbone's
        maps (N, C, h, w) of pictures with L (N, 1, H, H) in [0, 1]: all maps there, interpolated, the lightness of the
        3 x 3 places around, and the square of its own."""
        grid = L.shape[2] // STRIDE
        points = (2 * torch.stack([chosen % grid, chosen // grid], 1).float() + 1) / grid - 1
        points = points.expand(len(L), 1, -1, -1)
        seen = [F.grid_sample(m, points, padding_mode="border", align_corners=False)[:, :, 0] for m in maps]
        return torch.cat([*seen, _lightness(L, grid)[..., chosen]], 1).transpose(1, 2)

    def labels(self, ab: torch.Tensor) -> torch.Tensor:
        """Soft labels (P, K) of sum 1 of colors (P, 2) in Lab units: exp(-d^2 / (2 softness^2)) of the distances d to
        the K colors."""
        nearness = ab @ self.palette.T - self.palette.square().sum(1) / 2  # -d^2 / 2, but for a constant
        return (nearness / self.config.label_sigma**2).softmax(1)

    def weights(self, ab: torch.Tensor) -> torch.Tensor:
        """How much colors (P, 2) in Lab units count, of mean 1: characters are small and vivid."""
        weight = 1 + self.config.chroma_weight * ab.norm(dim=1) / AB_SCALE
        return weight / weight.mean()

    @torch.no_grad()
    def fit(self, features: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        """Find the colors and the projection by P places: features (P, E), float16 or float32, and ab (P, 2) in Lab
        units. Returns the projected features (P, axes), float32."""
        weight = self.weights(ab)
        self.palette.copy_(_clusters(ab, weight, self.config.palette_size))
        self.mean.copy_(features.mean(0, dtype=torch.float32))
        dim = len(self.mean)
        scatter, sums = torch.zeros(dim, dim).to(self.mean), torch.zeros(self.config.palette_size, dim).to(self.mean)
        share = torch.zeros(self.config.palette_size).to(self.mean)
        for part, color, factor in zip(features.split(2**14), ab.split(2**14), weight.split(2**14), strict=True):
            centered, label = part.float() - self.mean, factor[:, None] * self.labels(color)
            scatter += (factor[:, None] * centered).T @ centered
            sums += label.T @ centered
            share += label.sum(0)
        centers = sums / share.clamp(min=1e-6)[:, None]
        between = (share[:, None] * centers).T @ centers / len(ab)
        within = (scatter / len(ab) - between).double()
        within += self.config.shrinkage * within.diagonal().mean().clamp(min=1e-9) * torch.eye(dim).to(within)
        size, axes = torch.linalg.eigh(within)
        whitening = axes * size.clamp(min=1e-12).rsqrt()
        _, axes = torch.linalg.eigh(whitening.T @ between.double() @ whitening)
        self.projection.copy_(whitening @ axes[:, -self.config.discriminant_axes:])
        return torch.cat([(part.float() - self.mean) @ self.projection for part in features.split(2**14)])

    @torch.enable_grad()
    def learn(self, projected: torch.Tensor, ab: torch.Tensor, steps: int, batch: int = 4096) -> None:
        """Train the MLP on P places, as ``fit`` returned them, for so many steps."""
        self.mlp.train()
        optimizer = torch.optim.AdamW(self.mlp.parameters(), self.config.learning_rate, weight_decay=0.01)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = self.config.learning_rate * min(1, 2 * (1 - step / steps))
            chosen = torch.randint(len(ab), (batch,)).to(ab.device)
            color = ab[chosen]
            votes = self.mlp(projected[chosen]).log_softmax(1)
            loss = -((self.labels(color) * votes).sum(1) * self.weights(color)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.mlp.eval()

    @torch.no_grad()
    def forward(self, maps: Sequence[torch.Tensor], L: torch.Tensor,
                regions: torch.Tensor | None = None) -> torch.Tensor:
        """Votes (N, K, G, G), logits, float32, for all places of pictures, ``maps`` and L as for ``describe``: those of
        each place and, in equal parts, those of the region that it belongs to. ``regions`` are numbers as the method of
        this name finds them, below G^2; None finds them."""
        grid = L.shape[2] // STRIDE
        *parts, light = self.projection.split(self.parts)
        with torch.autocast(L.device.type, enabled=False):
            lightness = _lightness(L, grid)
            axes = lightness.transpose(1, 2) @ light - self.mean @ self.projection
            for seen, part in zip(maps, parts, strict=True):  # to project before enlarging is the same, and cheaper
                seen = (seen.permute(0, 2, 3, 1) @ part).permute(0, 3, 1, 2)
                seen = F.interpolate(seen, (grid, grid), mode="bilinear", align_corners=False)
                axes = axes + seen.flatten(2).transpose(1, 2)
            votes = self.mlp(axes).log_softmax(2)
            count = grid**2
            if regions is None:
                regions = self.regions(lightness[:, AROUND**2 // 2].unflatten(1, (grid, grid)))
                count = int(regions.max()) + 1
            regions = to_device(regions, votes.device)
            pooled = _pooled if votes.device.type == "cpu" else _pooled_by_product
            return ((votes + pooled(votes, regions, count)) / 2).transpose(1, 2).unflatten(2, (grid, grid))

    def regions(self, lightness: torch.Tensor) -> torch.Tensor:
        """Which region each place belongs to, numbers (N, G^2) from 0, on the CPU, by the lightness (N, G, G) in [0, 1]
        of places: parts that differ from each other by more than within (Felzenszwalb and Huttenlocher 2004)."""
        pictures = lightness.cpu().numpy()
        found = [felzenszwalb(picture, self.config.region_scale, sigma=0.5, min_size=8) for picture in pictures]
        return torch.from_numpy(np.stack(found)).flatten(1)

    def join(self, ab: torch.Tensor, votes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ab (N, 2, S, S) in [-1, 1] of a generator, moved, place by place, to the color that it and the votes
        (N, K, G, G), logits, agree on; and the votes of both, of sum 1 (N, K, G, G).

        The generator's mean color m of a place votes as well, by exp(-|color - m|^2 / (2 trust^2)). The product of both
        is sharpened (the annealed mean of Zhang et al. 2016, arXiv 1603.08511), and its mean is painted.
        """
        config, palette = self.config, self.palette / AB_SCALE
        mean = F.adaptive_avg_pool2d(ab.float(), votes.shape[2])
        nearness = torch.einsum("nchw,kc->nkhw", mean, palette) - palette.square().sum(1)[:, None, None] / 2
        joint = ((votes + nearness * (AB_SCALE / config.generator_sigma)**2) / config.temperature).softmax(1)
        return moved(ab, torch.einsum("nkhw,kc->nchw", joint, palette)), joint


def _lightness(L, grid):
    """Of each of grid x grid places of L (N, 1, H, H), the lightness of the 3 x 3 places around, at borders repeated,
    and the square of its own: (N, 10, grid^2)."""
    lightness = F.adaptive_avg_pool2d(L.float(), grid)
    around = F.unfold(F.pad(lightness, [AROUND // 2] * 4, mode="replicate"), AROUND)
    return torch.cat([around, lightness.flatten(2).square()], 1)


def _pooled(votes, regions, count):
    """The votes (N, P, K), logarithms of probabilities, as means of those over each of the regions (N, P), numbers
    below ``count``: a thing is known as a whole, so that the parts of it that are surely known decide for the others.
    """
    numbers = (regions + count * torch.arange(regions.shape[0], device=regions.device)[:, None]).flatten()
    rows = votes.new_zeros(regions.shape[0] * count, votes.shape[2] + 1)  # the last number counts the places
    rows = rows.index_add(0, numbers, F.pad(votes.exp(), (0, 1), value=1.0).flatten(0, 1))
    means = rows[:, :-1] / rows[:, -1:].clamp(min=1)
    return means.clamp(min=1e-6).log()[numbers].view_as(votes)


def _pooled_by_product(votes, regions, count):
    """``_pooled`` as a product of matrices: where many threads add to the rows, they do so in any order."""
    belongs = (torch.arange(count, device=votes.device)[:, None] == regions[:, None]).float()
    means = belongs @ votes.exp() / belongs.sum(2, keepdim=True).clamp(min=1)
    return means.clamp(min=1e-6).log().take_along_dim(regions[:, :, None], 1)


def _clusters(ab, weight, count):
    """The centers (count, 2) of so many clusters of colors (P, 2), found on a weighted sample of them. Where there are
    not that many colors, some come twice."""
    from sklearn.cluster import MiniBatchKMeans  # takes half a second, for which no coloring needs wait
    from sklearn.exceptions import ConvergenceWarning

    rng = np.random.default_rng(0)
    colors, weight = ab.cpu().numpy().astype(np.float64), weight.cpu().numpy().astype(np.float64)
    sample = colors[rng.choice(len(colors), 40000, p=weight / weight.sum())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer colors than clusters
        found = MiniBatchKMeans(min(count, len(np.unique(sample, axis=0))), batch_size=4096, n_init=3,
                                random_state=0).fit(sample).cluster_centers_
    return torch.from_numpy(np.resize(found, (count, 2))).to(ab)
