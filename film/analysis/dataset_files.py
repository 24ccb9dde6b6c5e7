"""Files of a dataset: assigns shots to splits, writes images and frames.csv, and replaces an earlier dataset."""

import csv
import itertools
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from config import GeneratorConfig
from fileio.atomic import link_or_copy
from fileio.images import IMAGE_SUFFIXES
from film.analysis.detected_shots import SPLITS, DetectedFilm
from utils import UserError, list_files, warn

CSV_HEADER = ["file", "video", "frame", "time", "shot", "split"]
OWN_IMAGE = re.compile(r"(train|val|test)/raw_image_[^/\\]*_\d+\.png")  # images that --overwrite may remove
FIGURES = "figures"
SIGNATURE = "dataset_generator.py"  # in the metadata of each figure, so that --overwrite removes no other files


def split_shots(count: int, shares: Sequence[float], seed: int) -> list[str]:
    """Assign ``count`` shots at random to the splits; return "train", "val" or "test" for each.

    The counts follow ``shares`` (three, sum 1) by the largest remainder method, except that every split with a share
    above 0 gets a shot if there are enough shots.
    """
    exact = [share * count for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(3), key=lambda i: round(counts[i] - exact[i], 9))  # on a tie train, then val
    for i in by_remainder[:count - sum(counts)]:
        counts[i] += 1
    active = [i for i in range(3) if shares[i] > 0]
    if count >= len(active):
        for i in active:
            if counts[i] == 0:
                counts[counts.index(max(counts))] -= 1
                counts[i] = 1
    order = np.random.default_rng(seed).permutation(count)
    names = [name for name, n in zip(SPLITS, counts, strict=True) for _ in range(n)]
    return [name for _, name in sorted(zip(order, names, strict=True))]


def assign_splits(films: Sequence[DetectedFilm], config: GeneratorConfig) -> None:
    """Set the split of each shot that is long enough. Raises UserError if no shot is."""
    shots = [shot for film in films for shot in film.shots]
    kept = [shot for shot in shots if shot.images]
    if not kept:
        longest = max(shot.length for shot in shots)
        flag = "--col_diff_thres" if config.detector == "histogram" else "--scene_thres"
        raise UserError(f"no shot is long enough: of {len(shots)} shots the longest has {longest} frames, fewer than "
                        f"--shots_len_thres {config.shots_len_thres}; lower that to {longest} or less, or raise {flag} "
                        f"(now {films[0].threshold:g}) to find fewer cuts")
    for shot, split in zip(kept, split_shots(len(kept), config.split, config.seed), strict=True):
        shot.split = split
    for split, share in zip(SPLITS, config.split, strict=True):
        if share > 0 and all(shot.split != split for shot in kept):
            warn(f"too few shots ({len(kept)}) for every split: {split} stays empty")


def write_images(folder: Path, films: Sequence[tuple[DetectedFilm, Path]]) -> None:
    """Write frames.csv, the split folders with images, and an empty folder for figures to ``folder``. ``films`` has
    pairs of a film and the folder of its images."""
    for name in (*SPLITS, FIGURES):
        (folder / name).mkdir()
    numbers = itertools.count()  # over all films
    with open(folder / "frames.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(CSV_HEADER)
        for film, images in films:
            for shot in film.shots:
                for frame, number in shot.images.items():
                    name = f"{shot.split}/{film.image_name(next(numbers))}"
                    link_or_copy(images / film.image_name(number), folder / name)
                    table.writerow([name, film.path.name, frame, f"{frame / film.fps:.3f}", shot.number, shot.split])


def replaceable_files(save_path: Path, overwrite: bool) -> list[Path]:
    """Return the files of an earlier dataset in ``save_path`` that a new one may replace; [] without ``overwrite``.

    Raises UserError if there is a dataset and ``overwrite`` is False, if frames.csv was written by a different program,
    or if one of the needed folders exists as a file.
    """
    table = save_path / "frames.csv"
    folders = [save_path / split for split in SPLITS]
    for path in (*save_path.parents, save_path, *folders, save_path / FIGURES):
        if path.exists() and not path.is_dir():
            raise UserError(f"cannot write to --save_path {save_path}: {path} is a file, not a folder")
    if not overwrite:
        full = [folder for folder in folders if folder.is_dir() and list_files(folder, IMAGE_SUFFIXES)]
        if full or table.exists():
            raise UserError(f"{save_path} already holds a dataset ({(full or [table])[0].name}); choose another "
                            "--save_path, or replace it with --overwrite True")
        return []
    files = []
    if table.exists():
        try:
            rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
        except (OSError, ValueError, csv.Error):
            rows = []
        if not rows or rows[0] != CSV_HEADER:
            raise UserError(f"{table} was not written by this program; move it away or choose another --save_path")
        files = [table] + [save_path / row[0] for row in rows[1:] if row and OWN_IMAGE.fullmatch(row[0])]
    for path in list_files(save_path / FIGURES, (".png",)) if (save_path / FIGURES).is_dir() else []:
        with suppress(OSError), Image.open(path) as picture:
            if picture.info.get("Software") == SIGNATURE:
                files.append(path)
    return [path for path in files if path.is_file()]


def install(folder: Path, save_path: Path, replaced: Sequence[Path]) -> None:
    """Move the files in ``folder`` to ``save_path``, and before that the old files ``replaced`` into a subfolder.

    All moves are undone on an error. Raises UserError if a file not in ``replaced`` would be overwritten.
    """
    new = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in new:
        if (save_path / name).exists() and save_path / name not in replaced:
            raise UserError(f"{save_path / name} is in the way and was not written by an earlier run; move it away or "
                            "choose another --save_path")
    for name in (*SPLITS, FIGURES):
        (save_path / name).mkdir(parents=True, exist_ok=True)
    old = folder / "replaced"
    old.mkdir()
    moves = [(path, old / str(i)) for i, path in enumerate(replaced)]
    moves += [(folder / name, save_path / name) for name in new]
    done = []
    try:
        for source, target in moves:
            done.append((source, target))
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(done):
            if not source.exists():
                os.replace(target, source)
        raise
