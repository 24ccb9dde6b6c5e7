"""Are 80 % of the places right that are said to be 80 % sure? What ``Known.sure`` says, beside what is right.

    python benchmarks/calibration.py CHECKPOINT FRAMES [CHECKPOINT FRAMES ...] [--fit True] [--figure curve.png]

FRAMES, a film in color or a folder of color pictures, are colored one by one by the CHECKPOINT before them; one of
``--every`` is. They should be no frames that it was trained on, both of shots that it knows and of others: such as a
whole film, with a training on 70 % of its shots (``dataset_generator.py --split 0.7 0 0.3 --seed 1``). All pairs count
the same. A pixel is right if it is within CIEDE2000 LARGE_ERROR of the truth, at the size that the networks paint.

Prints the table of reliability, in BINS of what is said, and the expected calibration error: the mean distance of what
is said from what is right. ``--fit True`` fits the constants of CalibrationConfig to these frames and prints them, and
the table is that with these; ``--figure`` draws the curve.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.score import readers

from colorizer import confidence as certainty
from colorizer.confidence import CalibrationConfig
from colorizer.metrics import LARGE_ERROR, color_differences, has_color
from colorizer.predictor import Predictor
from dataset import resize, rgb_to_lab
from fileio.atomic import atomic_write
from utils import ArgumentParser, UserError, parse_bool, parse_positive_int, run_cli

BINS = 10


def places_of(predictor, lab):
    """(recalled, agreed, share of pixels that are right) of the places of a picture, Lab (H, W, 3): float32 (P,)."""
    (ab,), known = predictor.predict_ab([lab])
    truth = resize(lab, *ab.shape[:2])
    wrong = color_differences(np.dstack([truth[..., 0], ab]), truth) > LARGE_ERROR
    grid = known.recalled.shape[1]
    right = 1 - resize(wrong.astype(np.float32), grid, grid)
    return np.stack([known.recalled[0], known.agreement[0], right]).reshape(3, -1)


def read_places(checkpoint, frames, every):
    """``places_of`` all of one of ``every`` frames, as one array (3, P). Raises UserError where nothing is remembered,
    and for frames without color."""
    predictor = Predictor.load(checkpoint)
    if not predictor.uses_spatial_memory:
        raise UserError(f"{checkpoint} has no spatial memory, so that it is never sure; train with use_spatial_memory "
                        "True")
    pictures = (read() for index, read in enumerate(readers(frames)) if index % every == 0)
    found = [places_of(predictor, rgb_to_lab(picture)) for picture in pictures if has_color(picture)]
    if not found:
        raise UserError(f"there is no picture in color in {frames}; name a film or a folder in color")
    return np.concatenate(found, 1)


def fit(recalled, agreed, right, weight, config):
    """A CalibrationConfig with the constants that explain best what is right: shares (P,), weighted."""
    logits = certainty.confidence_logits(torch.from_numpy(recalled), torch.from_numpy(agreed), config.probability_margin)
    classes = np.repeat([1, 0], len(right))  # each place is right as far as it is, and else wrong
    model = LogisticRegression(C=np.inf).fit(np.tile(np.stack(logits, 1), (2, 1)), classes,
                                             np.concatenate([weight * right, weight * (1 - right)]) * len(right))
    memory, votes = model.coef_[0]
    return replace(config, bias=float(model.intercept_[0]), recalled_weight=float(memory),
                   agreement_weight=float(votes))


def reliability(sure, right, weight):
    """[(what is said, what is right, share of the pixels)] of BINS equal steps of what is said, without empty ones."""
    steps = np.minimum((sure * BINS).astype(int), BINS - 1)
    rows = []
    for step in np.unique(steps):
        part = steps == step
        share = weight[part].sum()
        rows.append((np.dot(sure[part], weight[part]) / share, np.dot(right[part], weight[part]) / share,
                     share / weight.sum()))
    return rows


def draw(rows, path):
    """Draw what is right over what is said, and how many pixels are, into ``path``."""
    said, right, share = zip(*rows, strict=True)
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(said, share, 0.06, color="lightgray", label="share of the pixels")
    axes.plot([0, 1], [0, 1], ":", color="gray")
    axes.plot(said, right, marker=".", label="right")
    axes.set(xlabel="said to be sure", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)


def main(argv):
    parser = ArgumentParser(prog="calibration.py", description="Measure whether what is said to be sure is right.")
    parser.add_argument("pairs", nargs="+", type=Path, metavar="CHECKPOINT FRAMES", help="what colors, and the truth")
    parser.add_argument("--every", type=parse_positive_int, default=12, help="measure one of so many frames")
    parser.add_argument("--fit", type=parse_bool, default=False, help="fit the constants to these frames")
    parser.add_argument("--figure", type=Path, help="picture of the curve to write, such as curve.png")
    args = parser.parse_args(argv)
    if len(args.pairs) % 2:
        raise UserError(f"there are {len(args.pairs)} paths; name a checkpoint and its frames, or several such pairs")
    found = [read_places(*pair, args.every) for pair in zip(args.pairs[::2], args.pairs[1::2], strict=True)]
    weight = np.concatenate([np.full(places.shape[1], 1 / places.shape[1]) for places in found])
    recalled, agreed, right = np.concatenate(found, 1)
    config = CalibrationConfig()
    if args.fit:
        config = fit(recalled, agreed, right, weight, config)
        print(f"bias {config.bias:.3f}, recalled_weight {config.recalled_weight:.3f}, agreement_weight {config.agreement_weight:.3f}\n")
    sure = certainty.calibrated_probability(torch.from_numpy(recalled), torch.from_numpy(agreed), config).numpy()
    rows = reliability(sure, right, weight)
    print("| said | right | share of the pixels |\n|---|---|---|")
    for said, true, share in rows:
        print(f"| {said:.1%} | {true:.1%} | {share:.1%} |")
    error = sum(share * abs(said - true) for said, true, share in rows)
    print(f"\nexpected calibration error {error:.4f}; {np.average(right, weights=weight):.1%} of the pixels are right")
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    run_cli(main)
