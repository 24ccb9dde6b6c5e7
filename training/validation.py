"""Validation: metrics on held-out pictures, and the grid of sample pictures."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from colorizer.colorizer import UNSCOPED, Colorizer
from colorizer.metrics import AB_PEAK, ciede2000, psnr
from dataset import AB_SCALE, ColorizationDataset, lab_to_rgb, resize, tensors_to_lab
from fileio.images import image_grid
from networks import Conditioning
from training.learner import Learner
from training.preparation import Autocast, classify_pictures, load_with_features
from utils import evenly_spaced

SAMPLE_ROWS = 4  # rows of the sample grid


@dataclass
class Sample:
    """A colored validation picture."""

    index: int  # index in the validation set
    lab: np.ndarray  # result, Lab float32 (S, S, 3)
    slot_ids: list[int]  # ids of the frames in the three best slots of the memory


@torch.no_grad()
def validate(learner: Learner, data: ColorizationDataset, autocast: Autocast, class_logits: torch.Tensor | None = None,
             read_spatial: bool = True) -> tuple[dict[str, float], list[Sample]]:
    """Color up to ``val_pictures`` pictures as at test time, and return {name: metric} and at most SAMPLE_ROWS samples.

    Metrics are measured at the side of the colorizer. ``class_logits`` is the result of ``classify_pictures``. Pass
    ``read_spatial=False`` if ``data`` is the training set, whose colors the spatial memory contains.
    """
    colorizer = learner.colorizer.eval()
    selected = evenly_spaced(len(data), learner.config.training.val_pictures)
    sampled = {selected[i] for i in evenly_spaced(len(selected), SAMPLE_ROWS)}
    errors, squares, intersections, samples = [], [], [], []
    for part in torch.arange(len(selected)).split(learner.config.batch_size):
        indices = torch.tensor(selected)[part]
        features, L, ab = load_with_features(data, indices, colorizer, autocast)
        conditioning, slot_ids = None, torch.empty(len(indices), 0)
        if features is not None:
            features = features._replace(class_logits=None if class_logits is None else class_logits[part].float())
            recall = colorizer.recall(features.embedding)
            conditioning, slot_ids = colorizer.conditioning(recall), recall.ids
            shared = torch.minimum(conditioning.color_feature, data.color_features[indices].to(L.device))
            intersections += shared.sum(1).tolist()
        with autocast():
            fake, _ = colorizer(L, conditioning, features, UNSCOPED if read_spatial else None)
        squares += ((fake - ab) * AB_SCALE).square().mean((1, 2, 3)).tolist()
        pairs = zip(tensors_to_lab(L, fake), tensors_to_lab(L, ab), strict=True)
        for index, (lab, ground_truth), ids in zip(indices.tolist(), pairs, slot_ids.tolist(), strict=True):
            errors.append(ciede2000(lab, ground_truth))
            if index in sampled:
                samples.append(Sample(index, resize(lab, data.img_size, data.img_size), ids))
    colorizer.train()
    metrics = {"val_ciede2000": sum(errors) / len(errors), "val_psnr_ab": psnr(sum(squares) / len(squares), AB_PEAK)}
    if intersections:
        metrics["val_feature_intersection"] = sum(intersections) / len(intersections)
    return metrics, samples


@contextmanager
def without_generator(colorizer: Colorizer) -> Iterator[None]:
    """Context in which the palette classifier ignores the generator."""
    classifier, config = colorizer.palette_classifier, colorizer.palette_classifier.config
    classifier.config = replace(config, generator_sigma=math.inf)
    try:
        yield
    finally:
        classifier.config = config


@torch.no_grad()
def preview(colorizer: Colorizer, val: ColorizationDataset, train: ColorizationDataset,
            autocast: Autocast) -> np.ndarray:
    """Return the sample grid before the first step: the colors of the palette classifier and of the spatial memory, or
    of the classifier alone if ``val`` is the training set."""
    colorizer.eval()
    indices = evenly_spaced(len(val), SAMPLE_ROWS)
    features, L, _ = load_with_features(val, torch.tensor(indices), colorizer, autocast)
    assert features is not None  # there is a spatial memory
    features = features._replace(class_logits=classify_pictures(val, indices, colorizer, autocast).float())
    blank = Conditioning(torch.zeros(len(L), val.color_features.shape[1], device=L.device),
                         torch.zeros(len(L), device=L.device))  # only the generator sees it
    with autocast(), without_generator(colorizer):
        fake, _ = colorizer(L, blank, features, None if val is train else UNSCOPED)
    colorizer.train()
    size = val.img_size
    return sample_grid([Sample(index, resize(lab, size, size), [])
                        for index, lab in zip(indices, tensors_to_lab(L, fake), strict=True)], val, train)


def sample_grid(samples: Iterable[Sample], val: ColorizationDataset, train: ColorizationDataset) -> np.ndarray:
    """Return RGB uint8 (H, W, 3) with a row for each sample: grayscale, result, ground truth, frames of the best slots.
    """
    index_of = {image_id: index for index, image_id in enumerate(train.ids)}
    rows = []
    for sample in samples:
        gray = sample.lab.copy()
        gray[..., 1:] = 0
        pictures = [gray, sample.lab, _item_lab(val[sample.index])]
        pictures += [_item_lab(train[index_of[i]]) if i in index_of else gray * 0 for i in sample.slot_ids]
        rows.append([lab_to_rgb(picture) for picture in pictures])
    return image_grid(rows)


def _item_lab(item: dict[str, Any]) -> np.ndarray:
    """Return an item of a dataset as Lab float32 (S, S, 3)."""
    return tensors_to_lab(item["L"][None], item["ab"][None])[0]
