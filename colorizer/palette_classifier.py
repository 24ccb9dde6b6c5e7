"""The palette classifier: classification of grid cells into the colors of a series.

If two colors are equally likely, the L1 loss of the generator gives their average, a pale color that does not occur in
the series. The classifier therefore predicts probabilities for the colors of a palette.

Shapes: N pictures of H x H pixels, divided into g x g cells of CELL_SIZE pixels; V feature dimensions of such a cell;
T sampled cells; K = ``palette_size`` colors; S pixels along a side of the generator's output.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import felzenszwalb
from torch import nn

from config import ModelConfig, PaletteClassifierConfig
from dataset import AB_SCALE
from utils import to_device

MAX_INPUT_SIZE = 2048  # pixels; limits how much RAM a checkpoint can request
CELL_SIZE = 4  # input pixels along a side of a cell
CHUNK = 512  # cells that are classified at a time
NO_CHARACTER = -200.0  # a and b of the class of CharacterClassifier for all that is no character: far from all colors
UNCERTAINTY = 0.05  # added to the probability of each character in a cell
NEIGHBORHOOD = 3  # cells along a side of the neighborhood whose lightness is used to classify a cell


def shift_cell_means(ab: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Shift ab (N, 2, S, S) so that its mean in each of h x w cells moves towards ``target`` (N, 2, h, w) by the
    fraction ``weight`` (N, 1, h, w) in [0, 1]. Return the new ab. Detail finer than a cell is kept."""
    shift = weight * (target - F.adaptive_avg_pool2d(ab, (target.shape[2], target.shape[3])))
    return ab + F.interpolate(shift, ab.shape[2:], mode="bilinear", align_corners=False)


class GroupDropout(nn.Dropout):
    """Dropout for rows (R, C) with one mask for each of GROUPS groups of rows, where R is a multiple of GROUPS.

    Generating a mask for every row would take longer than the rest of a training step.
    """

    GROUPS = 64

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        mask = (torch.rand(self.GROUPS, 1, x.shape[1]) >= self.p).to(x) / (1 - self.p)
        return (x.unflatten(0, (self.GROUPS, -1)) * mask).flatten(0, 1)


class PaletteClassifier(nn.Module):
    """Classifies the grid cells of a grayscale picture into the K palette colors of a series.

    The palette holds K cluster centers of ab in training pictures. The features of a cell are all backbone maps,
    interpolated at its center, and the lightness of its neighborhood. Linear discriminant analysis (Fisher 1936; Rao
    1948) whitens the features within the classes and projects them on the axes that separate the colors best. An MLP
    of two layers computes the logits. It is trained by cross entropy with soft labels on a sample of cells (like the
    sampled points of Kirillov et al. 2020, arXiv 1912.08193), which takes seconds.
    """

    mean: torch.Tensor  # (V,)
    projection: torch.Tensor  # (V, discriminant_axes)
    palette: torch.Tensor  # (K, 2) ab in Lab units

    def __init__(self, channels: Sequence[int], config: PaletteClassifierConfig) -> None:
        """Create a classifier for a backbone whose maps have ``channels``, from fine to coarse. Raises ValueError for
        an invalid ``input_size``."""
        super().__init__()
        if config.input_size % 32 or config.input_size > MAX_INPUT_SIZE:  # 32: stride of the backbone's coarsest map
            raise ValueError(f"input_size {config.input_size} is not a multiple of 32 up to {MAX_INPUT_SIZE}")
        self.config, self.channels = config, [*channels, NEIGHBORHOOD**2 + 1]
        features = sum(self.channels)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("projection", torch.zeros(features, config.discriminant_axes))
        self.register_buffer("palette", torch.zeros(config.palette_size, 2))
        self.mlp = nn.Sequential(GroupDropout(0.2), nn.Linear(config.discriminant_axes, config.hidden_dim), nn.ReLU(),
                                 GroupDropout(0.3), nn.Linear(config.hidden_dim, config.palette_size))

    # Training

    @staticmethod
    def cell_features(maps: Sequence[torch.Tensor], L: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Return the features (N, T, V) of the cells with row-major indices ``cells`` (T,), from the backbone's maps
        (N, C, h, w) and L (N, 1, H, H) in [0, 1] of the pictures."""
        grid = L.shape[2] // CELL_SIZE
        points = (2 * torch.stack([cells % grid, cells // grid], 1).float() + 1) / grid - 1
        points = points.expand(len(L), 1, -1, -1)
        sampled = [F.grid_sample(m, points, padding_mode="border", align_corners=False)[:, :, 0] for m in maps]
        return torch.cat([*sampled, _lightness_features(L, grid)[..., cells]], 1).transpose(1, 2)

    def soft_labels(self, ab: torch.Tensor) -> torch.Tensor:
        """Return the labels (T, K) of colors ab (T, 2) in Lab units: softmax(-d^2 / (2 label_sigma^2)) over the
        distances d to the palette colors."""
        similarity = ab @ self.palette.T - self.palette.square().sum(1) / 2  # -d^2 / 2 plus a constant
        return (similarity / self.config.label_sigma**2).softmax(1)

    def sample_weights(self, ab: torch.Tensor) -> torch.Tensor:
        """Return the loss weights (T,), with mean 1, of colors ab (T, 2) in Lab units. Saturated colors weigh more,
        since characters are small and saturated."""
        weight = 1 + self.config.chroma_weight * ab.norm(dim=1) / AB_SCALE
        return weight / weight.mean()

    @torch.no_grad()
    def fit(self, features: torch.Tensor, ab: torch.Tensor, palette: torch.Tensor | None = None) -> torch.Tensor:
        """Fit the palette, unless it is given, and the projection to T cells: features (T, V), float16 or float32, and
        ab (T, 2) in Lab units. Return the projected features, float32 (T, discriminant_axes)."""
        config, weight = self.config, self.sample_weights(ab)
        self.palette.copy_(cluster_colors(ab, weight, config.palette_size) if palette is None else palette)
        self.mean.copy_(features.mean(0, dtype=torch.float32))
        dim = len(self.mean)
        scatter, sums = torch.zeros(dim, dim).to(self.mean), torch.zeros(config.palette_size, dim).to(self.mean)
        mass = torch.zeros(config.palette_size).to(self.mean)
        for chunk, color, factor in zip(features.split(2**14), ab.split(2**14), weight.split(2**14), strict=True):
            centered, label = chunk.float() - self.mean, factor[:, None] * self.soft_labels(color)
            scatter += (factor[:, None] * centered).T @ centered
            sums += label.T @ centered
            mass += label.sum(0)
        centers = sums / mass.clamp(min=1e-6)[:, None]
        between = (mass[:, None] * centers).T @ centers / len(ab)
        within = (scatter / len(ab) - between).double()
        within += config.shrinkage * within.diagonal().mean().clamp(min=1e-9) * torch.eye(dim).to(within)
        variance, axes = torch.linalg.eigh(within)
        whitening = axes * variance.clamp(min=1e-12).rsqrt()
        _, axes = torch.linalg.eigh(whitening.T @ between.double() @ whitening)
        self.projection.copy_(whitening @ axes[:, -config.discriminant_axes:])
        return torch.cat([(chunk.float() - self.mean) @ self.projection for chunk in features.split(2**14)])

    @torch.enable_grad()
    def train_mlp(self, projected: torch.Tensor, ab: torch.Tensor, steps: int, batch: int = 4096) -> None:
        """Train the MLP for ``steps`` steps on T cells: projected features, as returned by ``fit``, and ab (T, 2)."""
        self.mlp.train()
        optimizer = torch.optim.AdamW(self.mlp.parameters(), self.config.learning_rate, weight_decay=0.01)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = self.config.learning_rate * min(1, 2 * (1 - step / steps))
            chosen = torch.randint(len(ab), (batch,)).to(ab.device)
            color = ab[chosen]
            log_probabilities = self.mlp(projected[chosen]).log_softmax(1)
            loss = -((self.soft_labels(color) * log_probabilities).sum(1) * self.sample_weights(color)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.mlp.eval()

    # Inference

    @torch.no_grad()
    def forward(self, maps: Sequence[torch.Tensor], L: torch.Tensor,
                regions: torch.Tensor | None = None) -> torch.Tensor:
        """Return class logits, float32 (N, K, g, g), from ``maps`` and L as in ``cell_features``.

        The logits of a cell are the average of its own log-probabilities and those of its region. ``regions`` (N, g^2)
        holds indices below g^2 as returned by ``find_regions``; if None, they are computed.
        """
        grid = L.shape[2] // CELL_SIZE
        to_grid = partial(F.interpolate, size=(grid, grid), mode="bilinear", align_corners=False)
        *map_projections, lightness_projection = self.projection.split(self.channels)
        with torch.autocast(L.device.type, enabled=False):
            lightness = _lightness_features(L, grid)
            projected = lightness.mT @ lightness_projection - self.mean @ self.projection
            for m, projection in zip(maps, map_projections, strict=True):
                if m.shape[2] > grid:  # the order of projecting and resizing does not matter; this is faster
                    m = to_grid(m)
                m = (m.flatten(2).mT @ projection).unflatten(1, m.shape[2:]).permute(0, 3, 1, 2)
                if m.shape[2] < grid:
                    m = to_grid(m)
                projected += m.flatten(2).mT
            chunks = projected.split(CHUNK, 1)  # fit into a CPU cache
            logits = torch.cat([self.mlp(chunk).log_softmax(2) for chunk in chunks], 1)
            count = grid**2
            if regions is None:
                regions = self.find_regions(lightness[:, NEIGHBORHOOD**2 // 2].unflatten(1, (grid, grid)))
                count = int(regions.max()) + 1
            regions = to_device(regions, logits.device)
            # Addition in parallel on a GPU is not deterministic; on a CPU, the product would be slower.
            pool = _pool_regions if logits.device.type == "cpu" else _pool_regions_by_product
            return ((logits + pool(logits, regions, count)) / 2).transpose(1, 2).unflatten(2, (grid, grid))

    def find_regions(self, lightness: torch.Tensor) -> torch.Tensor:
        """Segment pictures, given the lightness (N, g, g) of their cells (Felzenszwalb and Huttenlocher 2004). Return
        the zero-based region index of each cell, int64 (N, g^2) on the CPU."""
        pictures = lightness.cpu().numpy()
        found = [felzenszwalb(picture, self.config.region_scale, sigma=0.5, min_size=8) for picture in pictures]
        return torch.from_numpy(np.stack(found)).flatten(1)

    def combine(self, ab: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Combine ab (N, 2, S, S) in [-1, 1], predicted by the generator, with class logits (N, K, g, g).

        Class probabilities are multiplied by exp(-|color - m|^2 / (2 generator_sigma^2)), where m is the mean predicted
        color of the cell. The annealed mean of the product (Zhang et al. 2016, arXiv 1603.08511) replaces m. Return the
        new ab and the joint probabilities (N, K, g, g).
        """
        config, palette = self.config, self.palette / AB_SCALE
        mean = F.adaptive_avg_pool2d(ab.float(), logits.shape[2])
        similarity = torch.einsum("nchw,kc->nkhw", mean, palette) - palette.square().sum(1)[:, None, None] / 2
        scale = (AB_SCALE / config.generator_sigma)**2
        probabilities = ((logits + similarity * scale) / config.temperature).softmax(1)
        return shift_cell_means(ab, torch.einsum("nkhw,kc->nchw", probabilities, palette)), probabilities


class CharacterClassifier(PaletteClassifier):
    """A palette classifier for the colors of character sheets; its last class is NO_CHARACTER. A cell may look like
    several characters, but an object is one of them."""

    owners: torch.Tensor  # row c: the probability that a color belongs to character c; rows after the last one are 0

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        """``channels`` are as in PaletteClassifier."""
        count = config.character_colors
        super().__init__(channels, replace(config.palette_classifier, palette_size=count + 1, discriminant_axes=count,
                                           chroma_weight=0.0))
        self.register_buffer("owners", torch.zeros(count, count))

    def locate(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the colors of characters, ab / 110 (N, 2, g, g), and their weight (N, 1, g, g) in [0, 1], given class
        logits (N, K + 1, g, g). The weight rises from 0, where the probability of a character is
        ``character_threshold``."""
        threshold = self.config.character_threshold
        probability = 1 - logits.softmax(1)[:, -1:]
        weight = (1.6 * (probability - threshold) / (1 - threshold)).clamp(0, 1)
        owners = self.owners[self.owners.any(1)]
        owned = torch.einsum("nkhw,ck->nchw", logits[:, :-1].softmax(1), owners)
        shares = np.stack([identify_objects(*each, self.config) for each in zip(
            owned.float().cpu().numpy(), weight[:, 0].float().cpu().numpy(), strict=True)])
        colors = (logits[:, :-1] / self.config.temperature).softmax(1) * torch.einsum(
            "nchw,ck->nkhw", torch.from_numpy(shares).to(logits), owners)
        colors = colors / colors.sum(1, keepdim=True).clamp(min=1e-9)
        return torch.einsum("nkhw,kc->nchw", colors, self.palette[:-1] / AB_SCALE), weight


def identify_objects(probability: np.ndarray, weight: np.ndarray, config: PaletteClassifierConfig) -> np.ndarray:
    """Return the probability of each character in each cell, float32 (C, g, g), given that of the cell alone,
    ``probability`` (C, g, g), and the weight (g, g) of all characters.

    Log-probabilities are averaged over connected cells and, since several characters may be connected, around each
    cell. Their sum is weighted by ``object_certainty``. Certain cells are limited by UNCERTAINTY, so that a few do not
    outvote the rest of an object.
    """
    def blur(plane):
        return cv2.GaussianBlur(plane, (0, 0), config.object_radius * len(weight))

    evidence = np.log(probability + np.float32(UNCERTAINTY))
    around = np.stack([blur(plane * weight) for plane in evidence]) / (blur(weight) + np.float32(1e-6))
    count, labels = cv2.connectedComponents((weight > 0.5).astype(np.uint8))
    size = np.bincount(labels.ravel(), minlength=count)
    means = np.stack([np.bincount(labels.ravel(), plane.ravel(), count) for plane in evidence]) / size
    total = config.object_certainty * (around + np.where(labels > 0, means[:, labels], evidence))
    shares = np.exp(total - total.max(0))
    return (shares / shares.sum(0)).astype(np.float32)


def _lightness_features(L, grid):
    """Return features (N, 10, grid^2) of the cells of L (N, 1, H, H): the lightness of the 3 x 3 neighborhood, with
    replicated borders, and the squared lightness of the cell."""
    lightness = F.adaptive_avg_pool2d(L.float(), grid)
    neighborhood = F.unfold(F.pad(lightness, [NEIGHBORHOOD // 2] * 4, mode="replicate"), NEIGHBORHOOD)
    return torch.cat([neighborhood, lightness.flatten(2).square()], 1)


def _pool_regions(logits, regions, count):
    """Return the log of the mean class probabilities in the region of each cell, (N, g^2, K). ``logits`` (N, g^2, K)
    are log-probabilities; ``regions`` (N, g^2) are indices below ``count``. Confidently classified parts of an object
    thus determine its ambiguous parts."""
    index = (regions + count * torch.arange(regions.shape[0], device=regions.device)[:, None]).flatten()
    rows = logits.new_zeros(regions.shape[0] * count, logits.shape[2] + 1)  # the last column counts the cells
    rows = rows.index_add(0, index, F.pad(logits.exp(), (0, 1), value=1.0).flatten(0, 1))
    means = rows[:, :-1] / rows[:, -1:].clamp(min=1)
    return means.clamp(min=1e-6).log()[index].view_as(logits)


def _pool_regions_by_product(logits, regions, count):
    """Compute the result of ``_pool_regions`` by a matrix product."""
    membership = (torch.arange(count, device=logits.device)[:, None] == regions[:, None]).float()
    means = membership @ logits.exp() / membership.sum(2, keepdim=True).clamp(min=1)
    return means.clamp(min=1e-6).log().take_along_dim(regions[:, :, None], 1)


def cluster_colors(ab: torch.Tensor, weight: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``count`` cluster centers (count, 2) of colors (T, 2), sampled in proportion to ``weight`` (T,). If there
    are fewer distinct colors, centers are repeated."""
    from sklearn.cluster import MiniBatchKMeans  # imported here since it takes half a second
    from sklearn.exceptions import ConvergenceWarning

    rng = np.random.default_rng(0)
    colors, weight = ab.cpu().numpy().astype(np.float64), weight.cpu().numpy().astype(np.float64)
    sample = colors[rng.choice(len(colors), 40000, p=weight / weight.sum())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer colors than clusters
        centers = MiniBatchKMeans(min(count, len(np.unique(sample, axis=0))), batch_size=4096, n_init=3,
                                  random_state=0).fit(sample).cluster_centers_
    return torch.from_numpy(np.resize(centers, (count, 2))).to(ab)
