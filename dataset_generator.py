"""How does a film become pictures? Find its shots, give whole shots to train, val or test, save a few frames of each.

A film is decoded once, and memory hardly grows with it (see film/analysis/shot_detection.py). Bars are known at its end, and cropped from
the pictures then.
"""

import csv
import itertools
import math
import os
import re
import sys
import tempfile
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from config import GeneratorConfig
from fileio.atomic import exclusive_lock
from fileio.images import IMAGE_SUFFIXES
from film.analysis.detected_shots import SPLITS, DetectedFilm, DetectedShot, DetectionResults, link
from film.analysis.letterbox import Margin, Profile, find_boxes, margins, profile
from film.analysis.shot_detection import (
    ChangeDetector, Detector, FramePool, HistogramDetector, detect_shots, reread_frames, small_picture)
from film.io.planes import Box, Planes
from film.io.video import DamageLog, VideoFile, find_videos, prefetch
from film.render.worker_group import WorkerGroup, run_isolated
from film.report.shot_figures import SHEET_COLUMNS, SHEET_PAGES, SHEET_ROWS, SIGNATURE, draw_contact_sheets, draw_curve
from utils import UserError, evenly_spaced, list_files, rank_and_size, read_flags, run_cli, warn

CSV_HEADER = ["file", "video", "frame", "time", "shot", "split"]
OWN_PICTURE = re.compile(r"(train|val|test)/raw_image_[^/\\]*_\d+\.png")  # files that --overwrite may remove
FIGURES = "figures"
POOL_BYTES = 512 * 2**20  # of frames held for the open shot: 870 frames of 854x480, 172 of 1920x1080
AHEAD = 4  # frames that are decoded ahead


# ---------------------------------------------------------------------------------------------------------------------
# Which films, which split


def make_detector(config: GeneratorConfig) -> Detector:
    """The detector that ``config`` asks for, with its threshold."""
    if config.detector == "histogram":
        return HistogramDetector(config.col_diff_thres)
    return ChangeDetector(config.detector, config.scene_thres)


def list_videos(path: str | Path, names: Iterable[str] = ()) -> list[Path]:
    """The films to read: ``path`` itself, or those in the folder ``path``, all or by name with or without suffix.

    Raises UserError when there is nothing to read or a name is not found.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--video_path {path} does not exist")
    videos = find_videos(path) if path.is_dir() else [path]
    if not videos:
        raise UserError(f"no video in {path}; name a video, or a folder of some, by --video_path")
    chosen = []
    for name in names:
        found = [video for video in videos if name == video.name] or [video for video in videos if name == video.stem]
        if not found:
            there = ", ".join(video.name for video in videos[:20]) + (", ..." if len(videos) > 20 else "")
            raise UserError(f"--video_names: no '{name}' in {path}; there is {there}")
        chosen += [video for video in found if video not in chosen]
    return chosen or videos


def split_shots(shots: Sequence[Any], shares: Sequence[float], seed: int) -> list[str]:
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

    def submit(self, path: Path, planes: Planes) -> None:
        self._submit(lambda: self._write(path, cv2.cvtColor(planes.rgb_uint8(), cv2.COLOR_RGB2BGR)))

    def crop(self, path: Path, box: Box) -> None:
        """Crop a picture that is written."""
        top, bottom, left, right = box
        self._submit(lambda: self._write(path, cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)[
            top:bottom, left:right]))

    def _submit(self, job):
        self.pending.append(self.threads.submit(job))
        self.wait(self.backlog)

    @staticmethod
    def _write(path: Path, bgr: np.ndarray) -> None:
        # This filter is faster and gives smaller files than OpenCV's default, for drawn and filmed pictures alike.
        up = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
        path.write_bytes(cv2.imencode(".png", bgr, up)[1].tobytes())

    def wait(self, left: int = 0) -> None:
        """Wait until at most ``left`` pictures are still to be written; raises OSError when one cannot be."""
        while len(self.pending) > left:
            self.pending.popleft().result()

    def __enter__(self) -> "PictureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)


def scan_film(path: Path, folder: Path, config: GeneratorConfig) -> DetectedFilm:
    """Find the shots of a film and write the frames of those that are long enough to ``folder``.

    Pictures are numbered from 0. Warns of a film that ends early. Raises UserError for a film that cannot be read.
    """
    film, detector = VideoFile(path), make_detector(config)
    found = DetectedFilm(path, float(film.rate), detector.label, detector.threshold)
    folder.mkdir()
    with PictureWriter() as writer:
        Scan(film, found, config, folder, writer).run(detector)
        writer.wait()
    return found


class Scan:
    """One film that is read for its shots and pictures."""

    def __init__(self, film: VideoFile, found: DetectedFilm, config: GeneratorConfig, folder: Path,
                 writer: PictureWriter) -> None:
        self.film, self.found, self.config, self.folder, self.writer = film, found, config, folder, writer
        self.numbers = itertools.count()
        self.times = array("q")  # pts of all frames
        self.interlaced = False  # whether any frame is
        self.later: dict[int, DetectedShot] = {}  # index of a frame that must be read again -> its shot
        self.checksums: dict[int, int] = {}  # index of the same frames -> checksum
        self.size = (0, 0)  # height and width of a frame
        self.profiles: dict[int, list[Profile]] = {}  # number of a shot -> those of its frames, until all are seen
        self.told: dict[int, list[Margin]] = {}  # number of a shot -> what it tells of bars

    def run(self, detector: Detector) -> None:
        """Read the film, fill in what was found and write its pictures."""
        film, found, damage = self.film, self.found, DamageLog()
        pool = FramePool(self.config.frames_per_shot, detector.delay, POOL_BYTES)
        with closing(prefetch(film.read(None, damage), AHEAD)) as frames:
            smalls = map(small_picture, pool.collect(self._clocked(frames)))
            for first, last in detect_shots(smalls, detector, found.differences):
                self._close(DetectedShot(len(found.shots), first, last), pool)
        if not self.times:
            raise UserError(f"no frame of {film.path} can be decoded")
        if self.interlaced:
            warn(f"{film.path} is interlaced: its pictures are the mean of both fields")
        for index, planes in reread_frames(film, self.times, self.checksums) if self.later else ():
            self._deliver(self.later[index], index, planes)
        self._crop_bars()
        decoded = len(self.times)
        if film.stated_frames - decoded > max(5, film.stated_frames // 100):
            warn(f"{film.path} ends early: {decoded} of {film.stated_frames} frames can be decoded, and these are used")
        else:
            damage.report(film.path)

    def _clocked(self, frames):
        """Yield the planes of ``frames`` (pts, duration, planes), and note their pts."""
        for pts, _, planes in tqdm(frames, desc=self.film.name, total=self.film.stated_frames or None, unit=" frames",
                                   leave=False, disable=None):
            self.times.append(pts)
            self.interlaced |= planes.interlaced
            self.size = planes.y.shape
            yield planes

    def _close(self, shot, pool):
        """A shot has ended: write the wanted frames that are held, and note the others to be read again."""
        first, last = shot.first, shot.last
        if last - first + 1 >= self.config.shots_len_thres:
            positions = evenly_spaced(last - first + 1, self.config.frames_per_shot)
            shot.images = {first + index: next(self.numbers) for index in positions}
        wanted = sorted({*shot.images, (first + last) // 2})
        for index in wanted:
            held = pool.held[index]
            if isinstance(held, Planes):
                self._deliver(shot, index, held)
            else:
                self.later[index], self.checksums[index] = shot, held
        self.found.shots.append(shot)
        if not any(index in self.later for index in wanted):
            self.told[shot.number] = margins(self.profiles.pop(shot.number))
        pool.start_shot(last + 1)

    def _deliver(self, shot, index, planes):
        """Write a wanted frame; of a shot's middle frame also keep a thumbnail, if the contact sheets show the shot."""
        self.profiles.setdefault(shot.number, []).append(profile(planes))
        if index in shot.images:
            self.writer.submit(self.folder / self.found.picture_name(shot.images[index]), planes)
        if index == (shot.first + shot.last) // 2 and shot.number < SHEET_COLUMNS * SHEET_ROWS * SHEET_PAGES:
            height, width = planes.y.shape
            scale = min(224 / width, 126 / height)
            small = planes.rgb_uint8(*(max(1, round(side * scale)) for side in (height, width)))
            shot.thumbnail = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]

    def _crop_bars(self):
        """Crop the pictures of all shots, which are written, to what lies within the bars."""
        self.writer.wait()
        self.told |= {number: margins(profiles) for number, profiles in self.profiles.items()}
        shots = self.found.shots
        boxes = find_boxes([self.told[shot.number] for shot in shots], [shot.last - shot.first + 1 for shot in shots],
                           self.size)
        for shot, box in zip(shots, boxes, strict=True):
            if box is not None:
                for number in shot.images.values():
                    self.writer.crop(self.folder / self.found.picture_name(number), box)


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
    """Move the files in ``folder`` to ``save_path`` in place of the files ``earlier``. An error undoes all moves."""
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
    """Make the dataset that ``config`` asks for, with all processes that torchrun started.

    Returns (summaries, how many films are left out because they cannot be read). A summary is a dict per film: video,
    shots, kept, dropped, and frames, a dict split -> number of pictures written.
    Raises UserError for all that the user can mend, and of several processes the others SystemExit; then what was in
    ``save_path`` is as it was. A run that is interrupted goes on with the films that were not read.
    """
    config.check()
    save_path, group = Path(os.path.abspath(config.save_path)), WorkerGroup.join()
    try:
        work = group.compute_on_leader("work", partial(plan_work, config, save_path))
        findings = DetectionResults(save_path, map(Path, work["videos"]), config)
        with lead(findings, config) if group.is_leader else nullcontext():
            group.compute_on_leader("begun", bool)  # the others wait for the leader
            if group.is_single_process and len(work["videos"]) > 1:
                errors = run_isolated(work["videos"], read_films, config, findings)
            else:
                errors = read_films(group, config, findings)
            films, left_out = group.compute_on_leader("dataset", partial(
                make_dataset, config, save_path, findings, errors, [Path(path) for path in work["earlier"]]))
            return films, left_out
    except OSError as error:
        raise UserError(f"cannot write to {config.save_path}: {error.strerror or error}") from error


def plan_work(config: GeneratorConfig, save_path: Path) -> dict[str, list[str]]:
    """The paths of the ``videos`` to read and of the ``earlier`` files to replace."""
    videos = list_videos(config.video_path, config.video_names)
    return {"videos": list(map(str, videos)), "earlier": list(map(str, earlier_files(save_path, config.overwrite)))}


@contextmanager
def lead(findings: DetectionResults, config: GeneratorConfig) -> Iterator[None]:
    """In the block no other run writes the dataset."""
    with exclusive_lock(findings.lock, f"another run is writing {config.save_path}; wait for it or choose another "
                                 "--save_path"), findings.begun():
        yield


def read_films(group: WorkerGroup, config: GeneratorConfig, findings: DetectionResults) -> dict[str, UserError]:
    """Read the films that were not read yet, each by one process of the crew; returns {path: error} of those that
    cannot be."""
    def host(path):
        if Path(path) not in findings:
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=findings.folder) as folder:
                pictures = Path(folder) / "pictures"
                findings.add(scan_film(Path(path), pictures, config), pictures)

    return group.run_all(list(map(str, findings.keys)), host)


def make_dataset(config: GeneratorConfig, save_path: Path, findings: DetectionResults, errors: dict[str, UserError],
                 earlier: Sequence[Path]) -> tuple[list[dict[str, Any]], int]:
    """Make the dataset from all films that could be read; returns what ``generate`` does."""
    films = [(findings[path], findings.pictures(path)) for path in findings.keys if str(path) not in errors]
    if not films:
        raise (next(iter(errors.values())) if len(errors) == 1 else
               UserError(f"none of the {len(errors)} videos can be read"))
    with tempfile.TemporaryDirectory(prefix=".dataset-", dir=findings.folder) as folder:
        assign_splits([film for film, _ in films], config)
        write_pictures(Path(folder), films)
        for film, _ in films:
            draw_curve(film, Path(folder) / FIGURES / f"{film.path.name}_curve.png")
            draw_contact_sheets(film, Path(folder) / FIGURES)
        install(Path(folder), save_path, earlier)
    return [film.summary() for film, _ in films], len(errors)


def assign_splits(films: Sequence[DetectedFilm], config: GeneratorConfig) -> None:
    """Give each kept shot of all films to a split. Raises UserError when there is none."""
    shots = [shot for film in films for shot in film.shots]
    kept = [shot for shot in shots if shot.images]
    if not kept:
        longest = max(shot.last - shot.first + 1 for shot in shots)
        flag = "--col_diff_thres" if config.detector == "histogram" else "--scene_thres"
        raise UserError(f"no shot is long enough: of {len(shots)} shots the longest has {longest} frames, fewer than "
                        f"--shots_len_thres {config.shots_len_thres}; lower that to {longest} or less, or raise {flag} "
                        f"(now {films[0].threshold:g}) to find fewer cuts")
    for shot, split in zip(kept, split_shots(kept, config.split, config.seed), strict=True):
        shot.split = split
    for split, share in zip(SPLITS, config.split, strict=True):
        if share > 0 and all(shot.split != split for shot in kept):
            warn(f"too few shots ({len(kept)}) for every split: {split} stays empty")


def write_pictures(folder: Path, films: Sequence[tuple[DetectedFilm, Path]]) -> None:
    """Write frames.csv and the folders of the splits; ``films`` are pairs (DetectedFilm, folder with its pictures)."""
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
                    link(pictures / film.picture_name(number), folder / name)
                    table.writerow([name, film.path.name, frame, f"{frame / film.fps:.3f}", shot.number, shot.split])


def tell(films: Sequence[dict[str, Any]], config: GeneratorConfig) -> None:
    """Print the summaries of ``generate``."""
    total = {"video": "total", "frames": {split: sum(film["frames"][split] for film in films) for split in SPLITS}}
    total |= {key: sum(film[key] for film in films) for key in ("shots", "kept", "dropped")}
    for film in [*films, total] if len(films) > 1 else films:
        frames = ", ".join(f"{split} {count}" for split, count in film["frames"].items())
        print("{video}: shots {shots}, kept {kept}, dropped {dropped}".format(**film) + f"; frames: {frames}")
    print(f"written to {config.save_path}; to tune the thresholds look at {config.save_path / FIGURES}")


def main(argv: list[str]) -> None:
    config = GeneratorConfig(**read_flags(GeneratorConfig, argv, "Cut films into shots and save a few frames of each, "
                                          "whole shots to train, val or test. Look at the pictures in figures/ to tune "
                                          "the thresholds."))
    films, left_out = generate(config)
    leads = rank_and_size()[0] == 0  # and says what all did
    if leads:
        tell(films, config)
    if left_out and not leads:
        sys.exit(1)
    if left_out:
        raise UserError(f"{left_out} film{'s' * (left_out > 1)} cannot be read; mend or remove what is left out "
                        "and run again with --overwrite True")


if __name__ == "__main__":
    run_cli(main)
