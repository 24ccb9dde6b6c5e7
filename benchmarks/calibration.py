"""Measure the calibration of the confidence: predicted probabilities against observed frequencies of correct colors.

    python -m benchmarks.calibration CHECKPOINT FRAMES [CHECKPOINT FRAMES ...] [--fit True] [--figure curve.png]

Each pair is a checkpoint and the film, or folder of pictures, in color that it colors frame by frame. FRAMES should
contain both shots of the training set and other shots, but no training frames. An example is a whole film, with a
training run on 70 % of its shots (``dataset_generator.py --split 0.7 0 0.3 --seed 1``). All pairs have the same weight.
A pixel is correct if its CIEDE2000 is at most LARGE_ERROR at network size.

Prints the reliability table and the expected calibration error: the mean difference of probability and frequency.
``--fit True`` fits the CalibrationConfig to these frames, prints it, and uses it for the table.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

from benchmarks.common import first_line, frame_readers, print_header, print_row, save_figure

from colorizer.confidence import CalibrationConfig, calibrated_probability, confidence_logits
from colorizer.metrics import LARGE_ERROR, color_differences, has_color
from colorizer.predictor import Predictor
from dataset import resize, rgb_to_lab
from utils import ArgumentParser, UserError, parse_bool, parse_positive_int, run_cli

BINS = 10  # number of bins of the reliability table, of equal width


def measure_cells(checkpoint, frames, every):
    """Color every ``every``-th frame. Returns (3, P): recalled, agreement and share of correct pixels of P cells.

    Raises UserError for a checkpoint without spatial memory and for frames without color.
    """
    predictor = Predictor.load(checkpoint)
    if not predictor.uses_spatial_memory:
        raise UserError(f"{checkpoint} has no spatial memory and therefore no confidence; train with "
                        "--use_spatial_memory True")
    cells = []
    for picture in (read() for index, read in enumerate(frame_readers(frames)) if index % every == 0):
        if not has_color(picture):
            continue
        lab = rgb_to_lab(picture)
        (ab,), confidence = predictor.predict_ab([lab])
        true_lab = resize(lab, *ab.shape[:2])
        wrong = color_differences(np.dstack([true_lab[..., 0], ab]), true_lab) > LARGE_ERROR
        grid = confidence.recalled.shape[1]
        correct = 1 - resize(wrong.astype(np.float32), grid, grid)
        cells.append(np.stack([confidence.recalled[0], confidence.agreement[0], correct]).reshape(3, -1))
    if not cells:
        raise UserError(f"there is no picture in color in {frames}; name a film or a folder in color")
    return np.concatenate(cells, 1)


def fit(recalled, agreement, correct, weight, config):
    """Return ``config`` with constants fitted to ``correct``, the share of correct pixels. All arrays are (P,)."""
    logits = confidence_logits(torch.from_numpy(recalled), torch.from_numpy(agreement), config.probability_margin)
    classes = np.repeat([1, 0], len(correct))  # each cell is a weighted pair of a correct and a wrong sample
    model = LogisticRegression(C=np.inf).fit(np.tile(np.stack(logits, 1), (2, 1)), classes,
                                             np.concatenate([weight * correct, weight * (1 - correct)]) * len(correct))
    recalled_weight, agreement_weight = map(float, model.coef_[0])
    return replace(config, bias=float(model.intercept_[0]), recalled_weight=recalled_weight,
                   agreement_weight=agreement_weight)


def reliability(probability, correct, weight):
    """Return [(mean probability, share of correct pixels, share of all pixels)], one for each non-empty bin."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    rows = []
    for index in np.unique(bins):
        part = bins == index
        share = weight[part].sum()
        rows.append((np.dot(probability[part], weight[part]) / share, np.dot(correct[part], weight[part]) / share,
                     share / weight.sum()))
    return rows


def draw(rows, path):
    """Draw the reliability curve and the histogram of probabilities."""
    probability, correct, share = zip(*rows, strict=True)
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(probability, share, 0.06, color="lightgray", label="share of pixels")
    axes.plot([0, 1], [0, 1], ":", color="gray")
    axes.plot(probability, correct, marker=".", label="correct")
    axes.set(xlabel="predicted probability", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main(argv):
    parser = ArgumentParser(prog="benchmarks.calibration", description=first_line(__doc__))
    parser.add_argument("pairs", nargs="+", type=Path, metavar="CHECKPOINT FRAMES", help="checkpoint and ground truth")
    parser.add_argument("--every", type=parse_positive_int, default=12, help="measure every N-th frame")
    parser.add_argument("--fit", type=parse_bool, default=False, help="fit the constants to these frames")
    parser.add_argument("--figure", type=Path, help="file for the reliability curve, such as curve.png")
    args = parser.parse_args(argv)
    if len(args.pairs) % 2:
        raise UserError(f"there are {len(args.pairs)} paths; name a checkpoint and its frames, or several such pairs")
    parts = [measure_cells(*pair, args.every) for pair in zip(args.pairs[::2], args.pairs[1::2], strict=True)]
    weight = np.concatenate([np.full(cells.shape[1], 1 / cells.shape[1]) for cells in parts])
    recalled, agreement, correct = np.concatenate(parts, 1)
    config = CalibrationConfig()
    if args.fit:
        config = fit(recalled, agreement, correct, weight, config)
        print(f"bias {config.bias:.3f}, recalled_weight {config.recalled_weight:.3f}, "
              f"agreement_weight {config.agreement_weight:.3f}\n")
    probability = calibrated_probability(torch.from_numpy(recalled), torch.from_numpy(agreement), config).numpy()
    rows = reliability(probability, correct, weight)
    print_header("predicted", "correct", "share of pixels")
    for row in rows:
        print_row(*(f"{value:.1%}" for value in row))
    error = sum(share * abs(predicted - observed) for predicted, observed, share in rows)
    print(f"\nexpected calibration error {error:.4f}; {np.average(correct, weights=weight):.1%} of the pixels correct")
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    run_cli(main)
