"""The scoreboard: how well each way of coloring does on a film, and what each part of the system is worth.

    python benchmarks/quality.py FILM [FILM ...] [--minutes 3] [--img_size 128] [--seeds 3]

Two protocols. *Known shots*: training on the first, middle and last frame of each shot, test on the frames at 1/4 and
3/4. *Unseen shots*: 30% of the shots are held out, another draw for each seed; training on first, middle and last
frame of the others, test on the frames at 1/4 and 3/4 of those held out. No test frame chooses anything: there is no
validation set, and the weights are those at the end of training (last.pt), whatever best.pt may hold.

There are three trainings for each seed and protocol, of equal length: the plain GAN; the GAN with memory and
integrator, which colors by the memory's best slot, by the integrator and by the true color feature (the integrator
does not touch the other parts); the full system with the defaults of train.py, whose spatial memory is also read alone.
So the seconds of training of rows that share one are the same.

All is measured at ``img_size``: the truth's Lab shrunk to img_size x img_size, and its L joined to the predicted ab.
CIEDE2000 is that of the two Lab pictures; PSNR ab, SSIM and the difference in colorfulness are those of ``Scores``, on
the same pictures as RGB. The intersection is sum(min(v, v')) of the color features of result and truth, 1 when they
are equal. Share > 10 is that of the pixels further away than 10, LPIPS that of lpips.py.
Frames a second are those of predicting ab, from a picture in memory, in batches of BATCH.

Writes quality.json and a picture for each protocol, <protocol>.png, to <output>/<film's name without suffix>/.
"""

import copy
import csv
import json
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
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.lpips import load_lpips

from colorizer.backbone import Backbone, extract_features
from colorizer.memory.attention import attend_to_frames
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.metrics import AB_PEAK, LARGE_ERROR, Scores, color_differences, psnr
from colorizer.predictor import Predictor, load_colorizer
from config import GeneratorConfig, TrainConfig
from dataset import AB_SCALE, L_SCALE, color_feature, lab_to_rgb, resize, rgb_to_lab
from dataset_generator import generate
from fileio.atomic import atomic_write
from fileio.images import image_grid, read_image, write_image
from fileio.outputs import refuse_existing
from film.analysis.dataset_files import split_shots
from train import train
from utils import ArgumentParser, UserError, evenly_spaced, parse_bool, run_cli, select_device

WAYS: dict[str, dict[str, Any]] = {  # the trainings, as settings of TrainConfig
    "gan": {"use_memory": False, "gen_norm": "batch", "dis_norm": "None"},
    "memory": {"use_spatial_memory": False, "use_feat_integrator": True},
    "full": {},
}
ROWS = {  # name: (what it is, the training that it takes)
    "gray": ("gray", None),
    "mean": ("mean ab of the training set", None),
    "nearest": ("nearest frame's ab pasted", None),
    "gan": ("plain GAN", "gan"),
    "memory": ("memory, top-1", "memory"),
    "integrator": ("memory + integrator", "memory"),
    "ground_truth": ("memory, true color feature", "memory"),
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
PLACES, WIDTH = 6, 240  # rows of the picture, and the width of a frame in it

# ---------------------------------------------------------------------------------------------------------------------
# Frames and protocols


def film_frames(film, folder, frames=FRAMES):
    """Write ``frames`` frames of each shot of a film to ``folder``; returns their paths, a list for each shot."""
    generate(GeneratorConfig(video_path=film, save_path=folder, frames_per_shot=frames, shots_len_thres=12,
                             split=(1.0, 0.0, 0.0)))
    shots = {}
    with open(folder / "frames.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            shots.setdefault(row["shot"], []).append(folder / row["file"])
    return list(shots.values())


def split_frames(shots, protocol, seed):
    """The training and the test frames, two lists, of shots of an odd number of evenly spaced frames each: the first,
    middle and last one, and every second one of all. Raises UserError for unseen shots of a film of one shot."""
    trained = tested = shots
    if protocol == "unseen":
        parts = split_shots(len(shots), (0.7, 0.0, 0.3), seed)
        trained, tested = ([shot for shot, part in zip(shots, parts, strict=True) if part == wanted]
                           for wanted in ("train", "test"))
        if not tested:
            raise UserError("the film has one shot, and none can be held out; use --protocol known")
    return ([frame for shot in trained for frame in shot[::len(shot) // 2]],
            [frame for shot in tested for frame in shot[1::2]])


def read_batches(paths):
    """Yield lists of BATCH pictures, Lab float32 (H, W, 3)."""
    for start in range(0, len(paths), BATCH):
        yield [rgb_to_lab(read_image(path)) for path in paths[start:start + BATCH]]


# ---------------------------------------------------------------------------------------------------------------------
# Methods: each takes a list of Lab pictures (H, W, 3), looks at their lightness, and returns ab (N, S, S, 2)


class Pasted:
    """The ab of the training frame whose pooled backbone features have the highest cosine with those of the frame."""

    def __init__(self, paths, img_size, device):
        self.backbone, self.device = Backbone().to(device), device
        ab, features = [], []
        for labs in read_batches(paths):
            ab += [resize(lab, img_size, img_size)[..., 1:] for lab in labs]
            features.append(self._features(labs))
        self.ab, self.features = np.stack(ab), torch.cat(features)

    def _features(self, labs):
        return F.normalize(extract_features(self.backbone, [lab[..., 0] for lab in labs], self.device).embedding, dim=1)

    def __call__(self, labs):
        return self.ab[(self._features(labs) @ self.features.T).argmax(1).cpu().numpy()]


def spatial_alone(predictor):
    """What the spatial memory of a predictor's colorizer reads, enlarged and trusted everywhere, without generator: keys
    hold no colors, since nobody guesses those of a query."""
    spatial, size = copy.deepcopy(predictor.colorizer.spatial), predictor.colorizer.config.img_size
    spatial.keys[:, :, -2:] = 0

    @torch.inference_mode()
    def colors(labs):
        seen = predictor.extract_features([lab[..., 0] for lab in labs])
        L = torch.from_numpy(np.stack([resize(lab[..., 0], size, size) for lab in labs]))[:, None] / L_SCALE
        L = L.to(predictor.device)
        keys = spatial.make_keys(seen.cells, L, torch.cat([L, L], 1) * 0)
        hint = attend_to_frames(spatial, find_nearest_frames(spatial, quantize_embeddings(seen.embedding)), keys)[:, :2]
        hint = F.interpolate(hint, (size, size), mode="bilinear", align_corners=False)
        return (hint * AB_SCALE).permute(0, 2, 3, 1).cpu().numpy()

    return colors


def make_methods(rows, paths, folder, minutes, img_size, seed):
    """Train on the pictures ``paths`` as far as ``rows`` need it, in ``folder``.

    Returns a dict row -> method and a dict row -> seconds of training.
    """
    device = select_device("auto")
    (folder / "data" / "train").mkdir(parents=True)
    for path in paths:
        (folder / "data" / "train" / path.name).hardlink_to(path)
    colorizers: dict[str | None, Any] = {}
    seconds: dict[str | None, float] = {None: 0.0}
    for way in dict.fromkeys(way for _, way in map(ROWS.__getitem__, rows) if way):
        print(f"training {way}, seed {seed}, on {len(paths)} pictures", file=sys.stderr)
        started = time.monotonic()
        with redirect_stdout(sys.stderr):  # stdout has the tables alone
            train(TrainConfig(data_path=str(folder / "data"), save_path=str(folder / way), img_size=img_size, seed=seed,
                              max_minutes=minutes, end_epoch=10**6, save_freq=10**6, **WAYS[way]))  # time ends it
        seconds[way] = time.monotonic() - started
        colorizers[way], _ = load_colorizer(folder / way / "last.pt", device)

    pasted = Pasted(paths, img_size, device)
    mean = pasted.ab.mean((0, 1, 2), dtype=np.float64).astype(np.float32)  # float32 would lose digits over a film
    methods = {
        "gray": lambda labs: np.zeros((len(labs), img_size, img_size, 2), np.float32),
        "mean": lambda labs: np.broadcast_to(mean, (len(labs), img_size, img_size, 2)),
        "nearest": pasted}
    for name in set(rows) - set(methods):
        source = {"gan": "none", "full": "memory", "spatial": "memory"}.get(name, name)
        predictor = Predictor(colorizers[ROWS[name][1]], device, source=source)
        methods[name] = (spatial_alone(predictor) if name == "spatial"
                         else lambda labs, predict_ab=predictor.predict_ab: predict_ab(labs)[0])
    return {name: methods[name] for name in rows}, {name: seconds[ROWS[name][1]] for name in rows}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


class Measured:
    """The columns of a row, gathered picture by picture."""

    def __init__(self, lpips):
        self.scores, self.errors, self.overlaps, self.distances = Scores(), [], [], []
        self.lpips = lpips
        self.seconds = 0.0

    def add(self, lab, truth):
        """Add a result, Lab float32 (S, S, 3), and its truth."""
        rgb, rgb_truth = lab_to_rgb(lab), lab_to_rgb(truth)
        self.scores.add(rgb, rgb_truth)
        self.errors.append(color_differences(lab, truth))
        self.overlaps.append(np.minimum(color_feature(lab[..., 1:]), color_feature(truth[..., 1:])).sum())
        if self.lpips:
            self.distances.append(self.lpips(rgb, rgb_truth))

    def columns(self):
        """Means over the pictures (PSNR of the mean error), a dict of COLUMNS but for the seconds of training."""
        rows = self.scores.rows
        return {"ciede2000": float(np.mean(self.errors)), "share_above_10": float((np.stack(self.errors) > LARGE_ERROR).mean()),
                "psnr_ab": psnr(np.mean([row["mse_ab"] for row in rows]), AB_PEAK),
                "ssim": float(np.mean([row["ssim"] for row in rows])),
                "intersection": float(np.mean(self.overlaps)),
                "colorfulness": float(np.mean([abs(row["colorfulness"] - row["colorfulness_ground_truth"]) for row in rows])),
                "lpips": float(np.mean(self.distances)) if self.lpips else None,
                "frames_per_second": len(rows) / self.seconds}


def measure(methods, paths, img_size, lpips=None):
    """Color the pictures ``paths`` by each of ``methods``.

    Returns a dict row -> columns, and PLACES rows of RGB pictures, WIDTH wide: the result of each method, the truth.
    """
    measured = {name: Measured(lpips) for name in methods}
    shown, pictures, index = evenly_spaced(len(paths), PLACES), [], 0
    for labs in read_batches(paths):
        row_of = {i: [] for i in range(len(labs)) if index + i in shown}
        for name, method in methods.items():
            if index == 0:
                method(labs)  # the first pass of a network is slower than all others
            started = time.monotonic()
            colors = method(labs)
            measured[name].seconds += time.monotonic() - started
            for i, (lab, ab) in enumerate(zip(labs, colors, strict=True)):
                truth, ab = resize(lab, img_size, img_size), resize(ab.astype(np.float32), img_size, img_size)
                measured[name].add(np.concatenate([truth[..., :1], ab], 2), truth)
                if i in row_of:
                    row_of[i].append(thumbnail(lab, ab))
        pictures += [[*row, thumbnail(labs[i], labs[i][..., 1:])] for i, row in row_of.items()]
        index += len(labs)
    return {name: row.columns() for name, row in measured.items()}, pictures


def thumbnail(lab, ab):
    """The lightness of a Lab picture (H, W, 3), with ab of any size, as RGB uint8 WIDTH wide."""
    size = max(1, round(WIDTH * lab.shape[0] / lab.shape[1])), WIDTH
    ab = resize(np.asarray(ab, np.float32), *size)
    return lab_to_rgb(np.concatenate([resize(lab[..., 0], *size)[..., None], ab], 2))


# ---------------------------------------------------------------------------------------------------------------------
# The report


def summarize(seeds):
    """Mean, spread (standard deviation) and single values over the seeds: dicts row -> columns, one for each seed."""
    summary = {}
    for name in seeds[0]:
        summary[name] = {}
        for column in COLUMNS:
            values = [seed[name][column] for seed in seeds]
            summary[name][column] = None if None in values else {
                "mean": statistics.fmean(values), "spread": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": values}
    return summary


def table(summary):
    """A text table of what ``summarize`` returned, one line a row."""
    def cell(value, decimals):
        if value is None:
            return "no weights"
        spread = "" if value["spread"] is None else f" ± {value['spread']:.{decimals}f}"
        return f"{value['mean']:.{decimals}f}{spread}"

    cells = [["", *(title for title, _ in COLUMNS.values())]]
    cells += [[ROWS[name][0], *(cell(row[column], decimals) for column, (_, decimals) in COLUMNS.items())]
              for name, row in summary.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells)


def draw_pictures(pictures, names):
    """Rows of pictures, one column a row of the table and the truth, under their titles."""
    grid, gap, header = image_grid(pictures), 4, 22
    canvas = Image.new("RGB", (grid.shape[1], grid.shape[0] + header), "white")
    canvas.paste(Image.fromarray(grid), (0, header))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for column, title in enumerate([*(ROWS[name][0] for name in names), "ground truth"]):
        draw.text((column * (WIDTH + gap) + 4, 2), title, fill="black", font=font)
    return np.asarray(canvas)


def score_film(film, folder, args, lpips):
    """Run the protocols on a film, print their tables and write JSON and pictures to ``folder``."""
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
                    rows, pictures = measure(methods, tested, args.img_size, lpips)
                seeds.append({name: {**row, "train_seconds": seconds[name]} for name, row in rows.items()})
                if seed == 0:
                    write_image(folder / f"{protocol}.png", draw_pictures(pictures, args.rows))
            summary = summarize(seeds)
            report["protocols"][protocol] = {"shots": len(shots), "training_frames": len(trained),
                                             "test_frames": len(tested), "rows": summary}
            print(f"\n{film.name}, {PROTOCOLS[protocol]}: {len(trained)} training frames, {len(tested)} test frames, "
                  f"{args.seeds} seeds of {args.minutes:g} minutes at {args.img_size} px\n{table(summary)}", flush=True)
            with atomic_write(folder / "quality.json") as path:  # after each protocol: the next may take an hour
                path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {folder}")


def main(argv):
    parser = ArgumentParser(prog="quality.py", description="Score every way of coloring on films.")
    parser.add_argument("films", nargs="+", type=Path, metavar="FILM")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each training")
    parser.add_argument("--img_size", type=int, default=128, help="side of the square that the networks see")
    parser.add_argument("--seeds", type=int, default=3, help="runs over which mean and spread are taken")
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="what is held out")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="the ways of coloring")
    parser.add_argument("--output", type=Path, default=Path("results/quality"), help="folder of a folder for each film")
    parser.add_argument("--overwrite", type=parse_bool, default=False, help="replace results that exist")
    args = parser.parse_args(argv)
    if not args.minutes > 0 or args.seeds < 1:
        raise UserError(f"--minutes is {args.minutes:g} and --seeds {args.seeds}; set them above 0")
    TrainConfig(img_size=args.img_size).check()
    for film in args.films:
        if not film.is_file():
            raise UserError(f"there is no film {film}; name another one")
    folders = {args.output / film.stem: film for film in args.films}
    if len(folders) < len(args.films):
        raise UserError("two of the films have the same name; score them one by one with different --output")
    refuse_existing([folder / "quality.json" for folder in folders], args.overwrite)
    lpips = load_lpips()
    for folder, film in folders.items():
        score_film(film, folder, args, lpips)


if __name__ == "__main__":
    run_cli(main)
