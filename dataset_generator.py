"""How does a film become pictures? Find its shots, give whole shots to train, val or test, save a few frames of each.

A film is decoded once, and memory does not grow with it (see shots.py).
"""

import csv
import itertools
import math
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from figures import SHEET_COLUMNS, SHEET_PAGES, SHEET_ROWS, SIGNATURE, draw_contact_sheets, draw_curve
from films import PARTS, SPLITS, Film, Parts, Shot, link
from sharing import Shard, parse_shard, share_out
from shots import (
    ChangeDetector, FramePool, HistogramDetector, detect_shots, frame_positions, open_video, read_frames,
    reread_frames)
from utils import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ArgumentParser, UserError, boolean, list_files, run_cli, warn

CSV_HEADER = ["file", "video", "frame", "time", "shot", "split"]
OWN_PICTURE = re.compile(r"(train|val|test)/raw_image_[^/\\]*_\d+\.png")  # what a frames.csv may name for removal
FIGURES = "figures"
POOL_BYTES = 512 * 2**20  # frames held for the open shot; 430 frames at 854x480, 86 at 1920x1080


@dataclass
class GeneratorConfig:
    """What one run does. The fields are the flags of the command line."""

    video_path: Path = Path(__file__).resolve().parent / "resources" / "episode_1.mp4"
    video_names: Sequence[str] = ()
    save_path: Path = Path("dataset")
    detector: str = "adaptive"
    col_diff_thres: float = 7000.0
    scene_thres: float | None = None  # None: PySceneDetect's own default
    shots_len_thres: int = 12
    frames_per_shot: int = 3
    split: Sequence[float] = (0.7, 0.2, 0.1)
    seed: int = 0
    overwrite: bool = False
    workers: int = 1
    shard: Shard = Shard()

    def check(self) -> None:
        """Raises UserError for a value out of its range."""
        for name, least in (("frames_per_shot", 1), ("shots_len_thres", 1), ("seed", 0), ("col_diff_thres", 0),
                            ("workers", 1)):
            if not getattr(self, name) >= least:  # so written, NaN is refused too
                raise UserError(f"--{name} is {getattr(self, name)} but must be at least {least}")
        if self.scene_thres is not None and not self.scene_thres > 0:
            raise UserError(f"--scene_thres is {self.scene_thres} but must be above 0")
        if len(self.split) != 3 or not all(0 <= share <= 1 for share in self.split) or abs(sum(self.split) - 1) > 1e-6:
            raise UserError(f"--split is {' '.join(map(str, self.split))} but must be three shares from 0 to 1 (train, "
                            "val, test) that add up to 1, such as 0.7 0.2 0.1")


# ---------------------------------------------------------------------------------------------------------------------
# Which films, which split


def make_detector(config: GeneratorConfig) -> HistogramDetector | ChangeDetector:
    """The detector that ``config`` asks for, with its threshold."""
    if config.detector == "histogram":
        return HistogramDetector(config.col_diff_thres)
    return ChangeDetector(config.detector, config.scene_thres)


def find_videos(path: str | Path, names: Iterable[str] = ()) -> list[Path]:
    """The films to read: ``path`` itself, or those in the folder ``path``, all or by name with or without suffix.

    Raises UserError when there is nothing to read or a name is not found.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--video_path {path} does not exist")
    videos = list_files(path, VIDEO_SUFFIXES) if path.is_dir() else [path]
    if not videos:
        raise UserError(f"no video in {path} (looked for {' '.join(VIDEO_SUFFIXES)})")
    chosen = []
    for name in names:
        found = [video for video in videos if name == video.name] or [video for video in videos if name == video.stem]
        if not found:
            there = ", ".join(video.name for video in videos[:20]) + (", ..." if len(videos) > 20 else "")
            raise UserError(f"--video_names: no '{name}' in {path}; there is {there}")
        chosen += [video for video in found if video not in chosen]
    return chosen or videos


def split_shots(shots: Sequence[Shot], shares: Sequence[float], seed: int) -> list[str]:
    """Give each shot to a split: a list of "train", "val" or "test" in the order of ``shots``, chosen by ``seed``.

    The counts follow ``shares`` (three, sum 1) by largest remainder, except that every split with a share above 0
    gets a shot whenever there are as many shots as such splits.
    """
    exact = [share * len(shots) for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(3), key=lambda i: round(counts[i] - exact[i], 9))  # on a tie train, then val
    for i in by_remainder[:len(shots) - sum(counts)]:
        counts[i] += 1
    active = [i for i in range(3) if shares[i] > 0]
    if len(shots) >= len(active):
        for i in active:
            if counts[i] == 0:
                counts[counts.index(max(counts))] -= 1
                counts[i] = 1
    order = np.random.default_rng(seed).permutation(len(shots))
    names = [name for name, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return [name for _, name in sorted(zip(order, names, strict=True))]


# ---------------------------------------------------------------------------------------------------------------------
# Writing pictures


class PictureWriter:
    """Writes PNGs beside the decoding. At most ``backlog`` wait, so that a slow disk does not fill the memory."""

    def __init__(self, backlog: int = 8) -> None:
        self.threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        self.pending = deque()
        self.backlog = backlog

    def submit(self, path: Path, frame: np.ndarray) -> None:
        # Drawn and filmed pictures alike are smaller by this filter than by OpenCV's default, and sooner done.
        up = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
        self.pending.append(self.threads.submit(lambda: path.write_bytes(cv2.imencode(".png", frame, up)[1])))
        self.wait(self.backlog)

    def wait(self, left: int = 0) -> None:
        """Wait until at most ``left`` pictures are still to be written; raises OSError when one cannot be."""
        while len(self.pending) > left:
            self.pending.popleft().result()

    def __enter__(self) -> "PictureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)


def scanner(config: GeneratorConfig) -> Callable[[tuple[Path, Path]], Film]:
    """What share_out needs: the function from (film, folder for its pictures) to a Film."""
    return lambda job: scan_film(*job, config)


def scan_films(jobs: Sequence[tuple[Path, Path]],
               config: GeneratorConfig) -> AbstractContextManager[Iterable[tuple[int, Film | UserError]]]:
    """Scan films, ``config.workers`` at a time, for (film, folder) in ``jobs``; yields (index, Film or the UserError
    that it caused) as each is done."""
    return closing(share_out(partial(scanner, config), jobs, config.workers))


def scan_film(path: Path, folder: Path, config: GeneratorConfig) -> Film:
    """Find the shots of a film and write the frames of those that are long enough to ``folder``.

    Pictures are numbered from 0. Returns a Film. One that ends early is warned about. Raises UserError for one that
    cannot be read.
    """
    opened = open_video(path)
    folder.mkdir()
    with PictureWriter() as writer:
        film = find_shots(path, opened, config, folder, writer)
        writer.wait()
    return film


def find_shots(path: Path, opened: tuple[cv2.VideoCapture, np.ndarray], config: GeneratorConfig, folder: Path,
               writer: PictureWriter) -> Film:
    """The Film of ``scan_film``; ``opened`` is open_video(path)."""
    capture, frame = opened
    detector = make_detector(config)
    film = Film(path, capture.get(cv2.CAP_PROP_FPS) or 24.0, detector.label, detector.threshold)
    numbers = itertools.count()
    promised = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    pool = FramePool(config.frames_per_shot, detector.delay, POOL_BYTES)
    later, checksums = {}, {}

    def deliver(shot, index, frame):
        if index in shot.images:
            writer.submit(folder / film.picture_name(shot.images[index]), frame)
        if index == (shot.first + shot.last) // 2 and shot.number < SHEET_COLUMNS * SHEET_ROWS * SHEET_PAGES:
            scale = min(224 / frame.shape[1], 126 / frame.shape[0])
            size = [max(1, round(side * scale)) for side in frame.shape[1::-1]]
            shot.thumbnail = cv2.imencode(".jpg", cv2.resize(frame, size, interpolation=cv2.INTER_AREA))[1]

    frames = tqdm(read_frames(capture, frame), desc=path.name, total=promised or None, unit=" frames", leave=False,
                  disable=None)
    for first, last in detect_shots(pool.collect(frames), detector, film.differences):
        shot = Shot(len(film.shots), first, last)
        if last - first + 1 >= config.shots_len_thres:
            shot.images = {index: next(numbers) for index in frame_positions(first, last, config.frames_per_shot)}
        for index in sorted({*shot.images, (first + last) // 2}):
            if isinstance(pool.held[index], np.ndarray):
                deliver(shot, index, pool.held[index])
            else:
                later[index], checksums[index] = shot, pool.held[index]
        film.shots.append(shot)
        pool.start_shot(last + 1)
    capture.release()
    for index, frame in reread_frames(path, checksums) if later else ():
        deliver(later[index], index, frame)
    decoded = len(film.differences)
    if promised - decoded > max(5, promised // 100):
        warn(f"{path} ends early: {decoded} of {promised} frames can be decoded, and these are used")
    return film


# ---------------------------------------------------------------------------------------------------------------------
# From the films to the dataset


def earlier_files(save_path: Path, overwrite: bool) -> list[Path]:
    """Files an earlier run wrote to ``save_path``, which this one may replace.

    Raises UserError when there is a dataset and ``overwrite`` is False, or a frames.csv that is not the generator's.
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
        files = [table] + [save_path / row[0] for row in rows[1:] if row and OWN_PICTURE.fullmatch(row[0])]
    for path in list_files(save_path / FIGURES, (".png",)) if (save_path / FIGURES).is_dir() else []:
        with suppress(OSError), Image.open(path) as picture:
            if picture.info.get("Software") == SIGNATURE:
                files.append(path)
    return [path for path in files if path.is_file()]


def install(folder: Path, save_path: Path, earlier: Sequence[Path]) -> None:
    """Move the files in ``folder`` to ``save_path`` in place of the files ``earlier``. All is undone on an error."""
    new = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in new:
        if (save_path / name).exists() and save_path / name not in earlier:
            raise UserError(f"{save_path / name} is in the way and was not written by an earlier run; move it away or "
                            "choose another --save_path")
    for name in (*SPLITS, FIGURES):
        (save_path / name).mkdir(parents=True, exist_ok=True)
    old = folder / "earlier"
    old.mkdir()
    moves = [(path, old / str(i)) for i, path in enumerate(earlier)]
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


def generate(config: GeneratorConfig) -> tuple[list[dict[str, Any]], int]:
    """Make the dataset that ``config`` asks for.

    Returns (summaries, how many films are left out because they cannot be read). A summary is a dict per film: video,
    shots, kept, dropped, and frames, a dict split -> number of pictures written; there is none while other shards have
    films to read.
    Raises UserError for all that the user can mend; then what was in ``save_path`` is as it was.
    """
    config.check()
    save_path = Path(os.path.abspath(config.save_path))
    videos = find_videos(config.video_path, config.video_names)
    earlier = earlier_files(save_path, config.overwrite)
    try:
        if config.shard.count > 1:
            return generate_shard(config, save_path, videos, earlier)
        # Next to the files it will replace, so that moving them in is a rename.
        beside = next(path for path in (save_path, *save_path.parents) if path.is_dir())
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=beside) as folder:
            folder = Path(folder)
            folders = [folder / str(i) for i in range(len(videos))]
            found = {}
            with scan_films(list(zip(videos, folders, strict=True)), config) as scanned:
                for index, film in scanned:
                    found[index] = film
                    tell_failure(film, videos)
            (folder / "dataset").mkdir()
            return fill(folder / "dataset", [found[i] for i in range(len(videos))], folders, config, save_path, earlier,
                        os.replace)
    except OSError as error:
        raise UserError(f"cannot write to {config.save_path}: {error.strerror or error}") from error


def generate_shard(config: GeneratorConfig, save_path: Path, videos: list[Path],
                   earlier: Sequence[Path]) -> tuple[list[dict[str, Any]], int]:
    """The work of ``generate`` for one shard: read its films, and make the dataset when all films are read."""
    parts = Parts(save_path / PARTS, videos, config)
    parts.folder.mkdir(parents=True, exist_ok=True)
    mine = [video for video in config.shard.of(videos) if not isinstance(parts.get(video), Film)]
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=save_path) as folder:
        folder = Path(folder)
        failures = 0
        with scan_films([(video, folder / str(i)) for i, video in enumerate(mine)], config) as scanned:
            for index, film in scanned:
                parts.add(mine[index], film, folder / str(index))
                failures += tell_failure(film, videos)
        found, shard = [film for film in map(parts.get, videos) if film is not None], config.shard
        missing = len(videos) - len(found)
        if missing:
            print(f"shard {shard.number} of {shard.count} is done; {missing} of {len(videos)} films are still to be "
                  "read by the others")
            return [], failures
        with parts.claim() as claimed:
            if not claimed:
                print(f"shard {shard.number} of {shard.count} is done; another one makes the dataset")
                return [], failures
            for video, film in zip(videos, found, strict=True):
                if video not in mine:
                    tell_failure(film, videos)
            (folder / "dataset").mkdir()
            done = fill(folder / "dataset", found, [parts.pictures(video) for video in videos], config, save_path,
                        earlier, link)
            shutil.rmtree(parts.folder)
            return done


def tell_failure(film: Film | UserError, videos: Sequence[Path]) -> bool:
    """Warn of one of several films that cannot be read; returns True for such a one."""
    failed = isinstance(film, UserError)
    if failed and len(videos) > 1:
        warn(f"{film}; it is left out")
    return failed


def fill(folder: Path, found: Sequence[Film | UserError], folders: Sequence[Path], config: GeneratorConfig,
         save_path: Path, earlier: Sequence[Path],
         place: Callable[[Path, Path], None]) -> tuple[list[dict[str, Any]], int]:
    """Make the dataset in ``folder``, and then move it to ``save_path``, from a Film or UserError for each film and the
    folders with their pictures, which ``place(source, target)`` puts there."""
    films = [(film, pictures) for film, pictures in zip(found, folders, strict=True) if isinstance(film, Film)]
    failures = [film for film in found if isinstance(film, UserError)]
    if not films:
        raise failures[0] if len(failures) == 1 else UserError(f"none of the {len(found)} videos can be read")
    shots = [shot for film, _ in films for shot in film.shots]
    kept = [shot for shot in shots if shot.images]
    if not kept:
        longest = max(shot.last - shot.first + 1 for shot in shots)
        flag = "--col_diff_thres" if config.detector == "histogram" else "--scene_thres"
        raise UserError(f"no shot is long enough: of {len(shots)} shots the longest has {longest} frames, fewer than "
                        f"--shots_len_thres {config.shots_len_thres}; lower that to {longest} or less, or raise {flag} "
                        f"(now {films[0][0].threshold:g}) to find fewer cuts")
    for shot, split in zip(kept, split_shots(kept, config.split, config.seed), strict=True):
        shot.split = split
    for split, share in zip(SPLITS, config.split, strict=True):
        if share > 0 and all(shot.split != split for shot in kept):
            warn(f"too few shots ({len(kept)}) for every split: {split} stays empty")

    for name in (*SPLITS, FIGURES):
        (folder / name).mkdir()
    numbers = itertools.count()  # over all films
    with open(folder / "frames.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(CSV_HEADER)
        for film, pictures in films:
            for shot in film.shots:
                for frame, number in shot.images.items():
                    name = f"{shot.split}/{film.picture_name(next(numbers))}"
                    place(pictures / film.picture_name(number), folder / name)
                    table.writerow([name, film.path.name, frame, f"{frame / film.fps:.3f}", shot.number, shot.split])
    for film, _ in films:
        draw_curve(film, folder / FIGURES / f"{film.path.name}_curve.png")
        draw_contact_sheets(film, folder / FIGURES)
    install(folder, save_path, earlier)
    return [film.summary() for film, _ in films], len(failures)


def main(argv: list[str]) -> None:
    defaults = GeneratorConfig()
    parser = ArgumentParser(description="Cut films into shots and save a few frames of each, whole shots to train, val "
                                        "or test. Look at the pictures in figures/ to tune the thresholds.")
    group = parser.add_argument_group("what to read and where to write")
    group.add_argument("--video_path", type=Path, default=defaults.video_path, help="a folder of videos, or one video")
    group.add_argument("--video_names", nargs="+", default=[], metavar="NAME",
                       help="only these videos of the folder, named with or without suffix; none named: all")
    group.add_argument("--save_path", type=Path, default=defaults.save_path,
                       help="folder to write train/, val/, test/, frames.csv and figures/ to")
    group.add_argument("--overwrite", type=boolean, default=defaults.overwrite, metavar="True|False",
                       help="replace what an earlier run wrote there; other files are never touched")
    group = parser.add_argument_group("where a shot ends")
    group.add_argument("--detector", choices=("histogram", "adaptive", "content"), default=defaults.detector,
                       help="histogram compares colour distributions; adaptive and content are PySceneDetect's, which "
                            "compare pixels, adaptive against the frames around and so calmer in fast motion")
    group.add_argument("--col_diff_thres", type=float, default=defaults.col_diff_thres,
                       help="histogram: a greater difference between neighbouring frames is a cut; lower finds more")
    group.add_argument("--scene_thres", type=float,
                       help="adaptive, content: the same for these two; not given: 3 for adaptive, 27 for content")
    group = parser.add_argument_group("what is kept")
    group.add_argument("--shots_len_thres", type=int, default=defaults.shots_len_thres,
                       help="drop shots of fewer frames; 12 is half a second at 24 frames a second")
    group.add_argument("--frames_per_shot", type=int, default=defaults.frames_per_shot,
                       help="frames to save of each shot, spread evenly: 1 is the middle, 3 first, middle and last")
    group.add_argument("--split", type=float, nargs=3, default=defaults.split, metavar=("TRAIN", "VAL", "TEST"),
                       help="shares of the shots for train, val and test, which add up to 1")
    group.add_argument("--seed", type=int, default=defaults.seed, help="decides which shot goes where")
    group = parser.add_argument_group("machine")
    group.add_argument("--workers", type=int, default=defaults.workers, help="films to read at the same time")
    group.add_argument("--shard", type=parse_shard, default=defaults.shard, metavar="i/n",
                       help="read the i-th of n parts of the films, from 1 on, as on n machines that see the same "
                            "save_path; the last one to be done makes the dataset")
    arguments = vars(parser.parse_args(argv))
    arguments.pop("debug", None)
    config = GeneratorConfig(**arguments)

    films, left_out = generate(config)
    if films:
        tell(films, config)
    if left_out:
        raise UserError(f"{left_out} film{'s' * (left_out > 1)} cannot be read; mend or remove what is left out "
                        "and run again with --overwrite True")


def tell(films: Sequence[dict[str, Any]], config: GeneratorConfig) -> None:
    """Print the summaries of ``generate``."""
    total = {"video": "total", "frames": {split: sum(film["frames"][split] for film in films) for split in SPLITS}}
    total |= {key: sum(film[key] for film in films) for key in ("shots", "kept", "dropped")}
    for film in [*films, total] if len(films) > 1 else films:
        frames = ", ".join(f"{split} {count}" for split, count in film["frames"].items())
        print("{video}: shots {shots}, kept {kept}, dropped {dropped}".format(**film) + f"; frames: {frames}")
    print(f"written to {config.save_path}; to tune the thresholds look at {config.save_path / FIGURES}")


if __name__ == "__main__":
    run_cli(main)
