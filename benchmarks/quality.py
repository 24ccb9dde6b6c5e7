"""Compare colorization methods on films, and measure the contribution of each part of the system.

    python -m benchmarks.quality FILM [FILM ...] [--minutes 3] [--img_size 128] [--seeds 3]

There are two protocols. *Known shots*: training on the first, middle and last frame of each shot, and test on its
frames at 1/4 and 3/4. *Unseen shots*: 30% of the shots, selected by the seed, are held out; training on the first,
middle and last frame of each other shot, and test on the frames at 1/4 and 3/4 of the shots held out. There is no
validation set; the weights at the end of training (last.pt) are tested.

For each seed and protocol, three training runs of equal length are made: a plain GAN; a GAN with memory and feature
integrator, which is tested with three sources of the color feature; and the full system with the defaults of train.py,
whose spatial memory is also tested alone.

Everything is measured at ``img_size``, with the L of the ground truth: mean CIEDE2000, the share of pixels above 10,
PSNR of ab, SSIM, the difference in colorfulness, LPIPS, and the intersection sum(min(v, v')) of the color features of
result and ground truth. Frames per second are those of predicting ab in batches of BATCH pictures.

Prints Markdown tables and writes <output>/<name of the film>/quality.json.
"""

import copy
import csv
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import (
    constant_colors, existing_film, first_line, large_error_share, print_header, print_row, write_json)
from benchmarks.score import LPIPS

from colorizer.backbone import Backbone, extract_features
from colorizer.memory.attention import attend_to_frames
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.metrics import AB_PEAK, Scores, color_differences, psnr
from colorizer.predictor import Predictor, load_colorizer
from config import GeneratorConfig, TrainConfig
from dataset import AB_SCALE, L_SCALE, color_feature, lab_to_rgb, resize, rgb_to_lab
from dataset_generator import generate
from fileio.images import read_image
from fileio.outputs import refuse_existing
from film.analysis.dataset_files import split_shots
from train import train
from utils import ArgumentParser, UserError, parse_bool, run_cli, select_device

TRAININGS: dict[str, dict[str, Any]] = {  # settings of TrainConfig
    "gan": {"use_memory": False, "gen_norm": "batch", "dis_norm": "None"},
    "memory": {"use_spatial_memory": False, "use_feat_integrator": True},
    "full": {},
}
ROWS = {  # name: (title, training)
    "gray": ("grayscale", None),
    "mean": ("mean ab of the training set", None),
    "nearest": ("nearest frame's ab pasted", None),
    "gan": ("plain GAN", "gan"),
    "memory": ("memory, top-1", "memory"),
    "integrator": ("memory + integrator", "memory"),
    "ground_truth": ("memory, ground truth color feature", "memory"),
    "spatial": ("spatial memory alone", "full"),
    "full": ("full system", "full"),
}
COLUMNS = {  # name: (title, decimals)
    "ciede2000": ("CIEDE2000", 2), "share_above_10": ("share > 10", 3), "psnr_ab": ("PSNR ab", 2), "ssim": ("SSIM", 4),
    "intersection": ("intersection", 3), "colorfulness": ("|colorfulness|", 2), "lpips": ("LPIPS", 4),
    "train_seconds": ("training s", 0), "frames_per_second": ("frames/s", 0),
}
PROTOCOLS = {"known": "known shots", "unseen": "unseen shots"}
FRAMES = 5  # of each shot: first, 1/4, middle, 3/4, last
BATCH = 8

# ---------------------------------------------------------------------------------------------------------------------
# Frames and protocols


def film_frames(film, folder, frames=FRAMES):
    """Write ``frames`` frames of each shot of a film to ``folder``. Returns their paths, a list for each shot."""
    generate(GeneratorConfig(video_path=film, save_path=folder, frames_per_shot=frames, shots_len_thres=12,
                             split=(1.0, 0.0, 0.0)))
    shots = {}
    with open(folder / "frames.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            shots.setdefault(row["shot"], []).append(folder / row["file"])
    return list(shots.values())


def split_frames(shots, protocol, seed):
    """Return the training frames (first, middle and last) and test frames (every second one) of shots.

    Each shot has an odd number of evenly spaced frames. Raises UserError if the film has no shot to hold out.
    """
    trained = tested = shots
    if protocol == "unseen":
        parts = split_shots(len(shots), (0.7, 0.0, 0.3), seed)
        trained, tested = ([shot for shot, part in zip(shots, parts, strict=True) if part == wanted]
                           for wanted in ("train", "test"))
        if not tested:
            raise UserError("the film has only one shot, so none can be held out; use --protocol known")
    return ([frame for shot in trained for frame in shot[::len(shot) // 2]],
            [frame for shot in tested for frame in shot[1::2]])


def read_batches(paths):
    """Yield lists of BATCH pictures, Lab float32 (H, W, 3)."""
    for start in range(0, len(paths), BATCH):
        yield [rgb_to_lab(read_image(path)) for path in paths[start:start + BATCH]]


# ---------------------------------------------------------------------------------------------------------------------
# Methods: functions from a list of Lab pictures (H, W, 3), whose L they use, to ab (N, S, S, 2)


class NearestFrame:
    """Method that returns the ab of the training frame with the most similar embedding (cosine)."""

    def __init__(self, paths, img_size, device):
        self.backbone, self.device = Backbone().to(device), device
        ab, embeddings = [], []
        for labs in read_batches(paths):
            ab += [resize(lab, img_size, img_size)[..., 1:] for lab in labs]
            embeddings.append(self._embed(labs))
        self.ab, self.embeddings = np.stack(ab), torch.cat(embeddings)

    def _embed(self, labs):
        return F.normalize(extract_features(self.backbone, [lab[..., 0] for lab in labs], self.device).embedding, dim=1)

    def __call__(self, labs):
        return self.ab[(self._embed(labs) @ self.embeddings.T).argmax(1).cpu().numpy()]


def spatial_memory_alone(predictor):
    """Return the method whose result is the attention to the spatial memory, without a generator.

    The colors in the keys of remembered frames are ignored, since those of a query are unknown.
    """
    spatial, size = copy.deepcopy(predictor.colorizer.spatial), predictor.colorizer.config.img_size
    spatial.keys[:, :, -2:] = 0

    @torch.inference_mode()
    def colors(labs):
        features = predictor.extract_features([lab[..., 0] for lab in labs])
        L = torch.from_numpy(np.stack([resize(lab[..., 0], size, size) for lab in labs]))[:, None] / L_SCALE
        L = L.to(predictor.device)
        keys = spatial.make_keys(features.cells, L, torch.cat([L, L], 1) * 0)
        nearest = find_nearest_frames(spatial, quantize_embeddings(features.embedding))
        hint = attend_to_frames(spatial, nearest, keys)[:, :2]
        hint = F.interpolate(hint, (size, size), mode="bilinear", align_corners=False)
        return (hint * AB_SCALE).permute(0, 2, 3, 1).cpu().numpy()

    return colors


def make_methods(rows, paths, folder, minutes, img_size, seed):
    """Train the networks that ``rows`` need on the pictures ``paths``, and save them in ``folder``.

    Returns {row: method} and {row: seconds of training}.
    """
    device = select_device("auto")
    (folder / "data" / "train").mkdir(parents=True)
    for path in paths:
        (folder / "data" / "train" / path.name).hardlink_to(path)
    colorizers: dict[str | None, Any] = {}
    seconds: dict[str | None, float] = {None: 0.0}
    for name in dict.fromkeys(training for _, training in map(ROWS.__getitem__, rows) if training):
        print(f"training {name}, seed {seed}, on {len(paths)} pictures", file=sys.stderr)
        started = time.monotonic()
        with redirect_stdout(sys.stderr):  # stdout is for the tables
            train(TrainConfig(data_path=str(folder / "data"), save_path=str(folder / name), img_size=img_size,
                              seed=seed, max_minutes=minutes, end_epoch=10**6, save_freq=10**6, **TRAININGS[name]))
        seconds[name] = time.monotonic() - started
        colorizers[name], _ = load_colorizer(folder / name / "last.pt", device)

    nearest = NearestFrame(paths, img_size, device)
    mean = nearest.ab.mean((0, 1, 2), dtype=np.float64).astype(np.float32)  # float32 would be inexact over a film
    methods = {"gray": constant_colors(np.zeros(2, np.float32), img_size), "mean": constant_colors(mean, img_size),
               "nearest": nearest}
    for name in set(rows) - set(methods):
        source = {"gan": "none", "full": "memory", "spatial": "memory"}.get(name, name)
        predictor = Predictor(colorizers[ROWS[name][1]], device, source=source)
        methods[name] = (spatial_memory_alone(predictor) if name == "spatial"
                         else lambda labs, predict_ab=predictor.predict_ab: predict_ab(labs)[0])
    return {name: methods[name] for name in rows}, {name: seconds[ROWS[name][1]] for name in rows}


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


class RowScores:
    """The scores of a method, accumulated over pictures."""

    def __init__(self, lpips):
        self.scores, self.errors, self.intersections, self.distances = Scores(), [], [], []
        self.lpips, self.seconds = lpips, 0.0

    def add(self, lab, ground_truth):
        """Add a result and its ground truth, Lab float32 (S, S, 3)."""
        rgb, true_rgb = lab_to_rgb(lab), lab_to_rgb(ground_truth)
        self.scores.add(rgb, true_rgb)
        self.errors.append(color_differences(lab, ground_truth))
        self.intersections.append(
            np.minimum(color_feature(lab[..., 1:]), color_feature(ground_truth[..., 1:])).sum())
        if self.lpips:
            self.distances.append(self.lpips(rgb, true_rgb))

    def columns(self):
        """Return {column: mean over the pictures}, except for the training time. PSNR is that of the mean error."""
        rows = self.scores.rows
        differences = [abs(row["colorfulness"] - row["colorfulness_ground_truth"]) for row in rows]
        return {"ciede2000": float(np.mean(self.errors)), "share_above_10": large_error_share(np.stack(self.errors)),
                "psnr_ab": psnr(np.mean([row["mse_ab"] for row in rows]), AB_PEAK),
                "ssim": float(np.mean([row["ssim"] for row in rows])),
                "intersection": float(np.mean(self.intersections)), "colorfulness": float(np.mean(differences)),
                "lpips": float(np.mean(self.distances)) if self.lpips else None,
                "frames_per_second": len(rows) / self.seconds}


def measure(methods, paths, img_size, lpips=None):
    """Color the pictures ``paths`` with each method. Returns {row: {column: value}}."""
    scores = {name: RowScores(lpips) for name in methods}
    for number, labs in enumerate(read_batches(paths)):
        for name, method in methods.items():
            if number == 0:
                method(labs)  # warm-up
            started = time.monotonic()
            colors = method(labs)
            scores[name].seconds += time.monotonic() - started
            for lab, ab in zip(labs, colors, strict=True):
                true_lab, ab = resize(lab, img_size, img_size), resize(ab.astype(np.float32), img_size, img_size)
                scores[name].add(np.concatenate([true_lab[..., :1], ab], 2), true_lab)
    return {name: row.columns() for name, row in scores.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Report


def summarize(seeds):
    """Return {row: {column: {"mean", "spread" (standard deviation), "seeds" (values)}}} of {row: columns} per seed."""
    summary = {}
    for name in seeds[0]:
        summary[name] = {}
        for column in COLUMNS:
            values = [seed[name][column] for seed in seeds]
            summary[name][column] = None if None in values else {
                "mean": statistics.fmean(values), "spread": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": values}
    return summary


def print_table(summary):
    """Print the result of ``summarize`` as a Markdown table."""
    def cell(value, decimals):
        if value is None:
            return "no weights"
        spread = "" if value["spread"] is None else f" ± {value['spread']:.{decimals}f}"
        return f"{value['mean']:.{decimals}f}{spread}"

    print_header("", *(title for title, _ in COLUMNS.values()))
    for name, row in summary.items():
        print_row(ROWS[name][0], *(cell(row[column], decimals) for column, (_, decimals) in COLUMNS.items()))


def score_film(film, folder, args, lpips):
    """Run the protocols on a film, print their tables and write quality.json to ``folder``."""
    report = {"film": str(film), "minutes": args.minutes, "img_size": args.img_size,
              "device": select_device("auto").type, "protocols": {}}
    with tempfile.TemporaryDirectory() as temporary:
        shots = film_frames(film, Path(temporary) / "frames")
        for protocol in args.protocol:
            seeds = []
            for seed in range(args.seeds):
                trained, tested = split_frames(shots, protocol, seed)
                with tempfile.TemporaryDirectory(dir=temporary) as work:
                    methods, seconds = make_methods(args.rows, trained, Path(work), args.minutes, args.img_size, seed)
                    rows = measure(methods, tested, args.img_size, lpips)
                seeds.append({name: {**row, "train_seconds": seconds[name]} for name, row in rows.items()})
            summary = summarize(seeds)
            report["protocols"][protocol] = {"shots": len(shots), "training_frames": len(trained),
                                             "test_frames": len(tested), "rows": summary}
            print(f"\n{film.name}, {PROTOCOLS[protocol]}: {len(trained)} training frames, {len(tested)} test frames, "
                  f"{args.seeds} seeds of {args.minutes:g} minutes at {args.img_size} px\n")
            print_table(summary)
            write_json(folder / "quality.json", report)  # after each protocol, since the next may take an hour
    print(f"\nwritten to {folder}")


def main(argv):
    parser = ArgumentParser(prog="benchmarks.quality", description=first_line(__doc__))
    parser.add_argument("films", nargs="+", type=Path, metavar="FILM")
    parser.add_argument("--minutes", type=float, default=3.0, help="length of each training run")
    parser.add_argument("--img_size", type=int, default=128, help="side of the network input in pixels")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs for mean and standard deviation")
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="protocols to run")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="methods to compare")
    parser.add_argument("--output", type=Path, default=Path("results/quality"), help="folder for the results")
    parser.add_argument("--overwrite", type=parse_bool, default=False, help="replace existing results")
    args = parser.parse_args(argv)
    if not args.minutes > 0 or args.seeds < 1:
        raise UserError(f"--minutes is {args.minutes:g} and --seeds {args.seeds}; set them above 0")
    TrainConfig(img_size=args.img_size).check()
    folders = {args.output / film.stem: existing_film(film) for film in args.films}
    if len(folders) < len(args.films):
        raise UserError("two films have the same name; score them one by one with different values of --output")
    refuse_existing([folder / "quality.json" for folder in folders], args.overwrite)
    lpips = LPIPS.load()
    for folder, film in folders.items():
        score_film(film, folder, args, lpips)


if __name__ == "__main__":
    run_cli(main)
