"""Measure the program on real films: colors of new scenes, of painted shots and of known shots, and their confidence.

    python -m benchmarks.real_films [--data FOLDER] [--films popeye_1 bunny_2 ...] [--minutes 2] [--seeds 1]

The excerpts of Popeye and the drawn show are in resources/; FOLDER holds the other films of FILMS. Missing films are
named and left out. Each film is colored by a checkpoint that was trained on other minutes of it, with the default
settings:

- *next scenes*: without references.
- *one frame a shot*: with the middle frame of each shot as a reference in its true colors.
- *five frames a shot*: with five evenly spaced frames of each shot.
- *known shots*: the training frames are the first, middle and last frames of the same shots.

Films are reduced to WIDTH pixels in width. Every second row and column of every 6th frame is measured, with the
lightness of the ground truth. References are not measured. *Claimed* is the mean confidence of the report, *right* the
share of pixels whose CIEDE2000 is at most 10. *Calibration* is the mean absolute difference of both over the shots;
*worst shot* is the largest value of a shot's error minus the error of its grayscale. Distances are counted in frames to
the nearest reference of the same shot.

Checkpoints are kept in --output, so that a second run measures changes of the rendering alone. Prints two Markdown
tables and writes <output>/real_films.json.
"""

import itertools
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.common import first_line, large_error_share, print_header, print_row, write_json
from benchmarks.score import LPIPS, body_errors, measure_consistency, read_pairs

from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from config import FilmConfig, GeneratorConfig, TrainConfig
from dataset import rgb_to_lab
from dataset_generator import generate
from fileio.atomic import atomic_write
from film.analysis.shot_detection import find_gray_cuts
from film.io.encoding import write_video
from film.io.video import VideoFile
from film.render.rendering import color_film
from train import train
from utils import ArgumentParser, UserError, evenly_spaced, parse_positive_int, run_cli

WIDTH = 640  # pixels
MIN_SHOT = 12  # frames; shorter shots get no reference and are not measured
DISTANCES = (0, 3, 12, 24, 48, 96)  # frames: lower bounds of the columns of the second table
PAINTED = {"next scenes": 0, "one frame a shot": 1, "five frames a shot": 5, "known shots": 0}  # references per shot


@dataclass(frozen=True)
class Film:
    """A part of a film to color, and the film to train on. Times are in seconds."""

    file: str
    trained_on: tuple[str, ...]
    start: float = 0.0
    end: float = float("inf")
    trained_until: float = float("inf")
    protocols: tuple[str, ...] = ("next scenes", "one frame a shot", "five frames a shot")
    frames_per_shot: int = 3
    split: tuple[float, float, float] = (0.7, 0.2, 0.1)
    episode: int | None = None  # drawn episode, to measure its characters


BUNNY, CLIP = "big_buck_bunny_360p.mp4", "big_buck_bunny_480p_30s.mp4"
RESOURCES = Path(__file__).resolve().parents[1] / "resources"
FILMS = {
    "popeye_1": Film("popeye_1.mkv", ("popeye_2.mkv", "popeye_3.mkv")),
    "popeye_2": Film("popeye_2.mkv", ("popeye_1.mkv", "popeye_3.mkv")),
    "popeye_3": Film("popeye_3.mkv", ("popeye_1.mkv", "popeye_2.mkv")),
    "bunny_1": Film(BUNNY, (BUNNY,), 205, 225, trained_until=180),
    "bunny_2": Film(BUNNY, (BUNNY,), 300, 320, trained_until=180),
    "bunny_3": Film(BUNNY, (BUNNY,), 420, 440, trained_until=180),
    "bunny_clip": Film(CLIP, (CLIP,), protocols=("known shots",), split=(1, 0, 0)),
    "drawn": Film("episode_2.mp4", ("episode_1.mp4",), protocols=("next scenes",), frames_per_shot=9,
                  split=(0.95, 0.05, 0), episode=2),
}

# ---------------------------------------------------------------------------------------------------------------------
# Films and checkpoints


def find_film(data: Path, file: str) -> Path:
    """Return the path of a film in ``data``, or else in RESOURCES, where it may be missing."""
    return data / file if (data / file).is_file() else RESOURCES / file


def existing_films(names: list[str], data: Path) -> list[str]:
    """Return those of ``names``, keys of FILMS, whose file exists; name the others on stderr."""
    found = [name for name in names if find_film(data, FILMS[name].file).is_file()]
    for name in names:
        if name not in found:
            print(f"{name} is left out: there is no {data / FILMS[name].file}", file=sys.stderr)
    return found


def copy_until(source: Path, target: Path, end: float) -> None:
    """Copy the video packets of a film that start before ``end`` seconds to ``target``, without decoding."""
    with atomic_write(target) as temporary, av.open(str(source)) as film, av.open(str(temporary), "w") as copy:
        stream = film.streams.video[0]
        target_stream = copy.add_stream_from_template(stream)
        for packet in film.demux(stream):
            if packet.pts is not None and packet.pts * stream.time_base < end:
                packet.stream = target_stream
                copy.mux(packet)


def write_excerpt(source: Path, target: Path, start: float, end: float) -> None:
    """Write the frames of a film from ``start`` to ``end`` seconds, reduced to WIDTH pixels in width."""
    film = VideoFile(source)
    base = film.info.time_base

    def frames():
        for pts, _, planes in film.read(round((film.info.start + start) / base) if start else None):
            time = pts * base - film.info.start
            if time >= end:
                return
            if time >= start:
                height, width = planes.y.shape
                scale = min(1, WIDTH / width)
                yield pts - round(start / base), planes.rgb_uint8(2 * round(height * scale / 2),
                                                                  2 * round(width * scale / 2))

    write_video(target, film, frames())


def trained_checkpoint(film: Film, data: Path, folder: Path, minutes: float, seed: int) -> Path:
    """Return the checkpoint that colors ``film``; train it first unless it exists in ``folder``."""
    names = [Path(name).stem for name in film.trained_on]
    run = folder / f"{'_'.join(names)}_{film.frames_per_shot}_{minutes:g}_min_seed_{seed}"
    if not (run / "checkpoints" / "best.pt").exists():
        videos = run / "videos"
        videos.mkdir(parents=True, exist_ok=True)
        for name in film.trained_on:
            copy_until(find_film(data, name), videos / name, film.trained_until)
        print(f"training on {', '.join(names)}, seed {seed}", file=sys.stderr)
        with redirect_stdout(sys.stderr):
            generate(GeneratorConfig(video_path=videos, save_path=run / "dataset", split=film.split, seed=seed,
                                     frames_per_shot=film.frames_per_shot, overwrite=True))
            train(TrainConfig(data_path=str(run / "dataset"), save_path=str(run / "checkpoints"), max_minutes=minutes,
                              seed=seed, overwrite=True))
    return run / "checkpoints" / "best.pt"


def find_shots(path: Path) -> list[tuple[int, int]]:
    """Return the (start, end) of the shots of an excerpt with at least MIN_SHOT frames."""
    lumas = [planes.luma_uint8(256, 256) for _, _, planes in VideoFile(path).read()]
    cuts = [0, *itertools.chain.from_iterable(find_gray_cuts(iter(lumas))), len(lumas)]
    return [(start, end) for start, end in itertools.pairwise(cuts) if end - start >= MIN_SHOT]


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


@dataclass
class ShotScore:
    """Means over the measured frames of a shot; ``distances`` holds (distance, CIEDE2000) of each frame."""

    frames: int
    gray: float
    error: float
    share_above_10: float
    claimed: float
    distances: list[tuple[int, float]]
    bodies: float | None = None


def score_shots(result: Path, truth: Path, shots: list[tuple[int, int]], painted: list[list[int]],
                claimed: np.ndarray, every: int, episode: int | None) -> list[ShotScore]:
    """Measure a colored excerpt. ``claimed`` (n,) is the confidence of each frame, ``painted`` the references."""
    scores = []
    measured: dict[int, list[Any]] = {number: [] for number in range(len(shots))}
    for index, rgb, true_rgb in read_pairs(result, truth, every):
        for number, (start, end) in enumerate(shots):
            if start <= index < end and index not in painted[number]:
                lab, true_lab = (rgb_to_lab(picture)[::2, ::2] for picture in (rgb, true_rgb))
                lab[..., 0] = true_lab[..., 0]
                errors = color_differences(lab, true_lab)
                gray = color_differences(true_lab * np.array([1, 0, 0], np.float32), true_lab)
                distance = min((abs(index - frame) for frame in painted[number]), default=0)
                bodies = float(body_errors(episode, index, rgb, true_rgb)["bodies"].mean()) if episode else None
                measured[number].append((gray.mean(), errors.mean(), large_error_share(errors), claimed[index],
                                         distance, bodies))
    for rows in filter(None, measured.values()):
        *columns, distances, bodies = zip(*rows, strict=True)
        gray, error, share, confidence = (float(np.mean(column)) for column in columns)
        pairs = [(distance, float(row[1])) for distance, row in zip(distances, rows, strict=True)]
        scores.append(ShotScore(len(rows), gray, error, share, confidence, pairs,
                                float(np.nanmean(bodies)) if episode else None))
    return scores


def summarize(shots: list[ShotScore]) -> dict[str, Any]:
    """Return the columns of the first table: means over the frames, and the calibration over the shots."""
    weights = np.array([shot.frames for shot in shots], float)
    weights /= weights.sum()
    gray, error, share, claimed = (np.array([getattr(shot, name) for shot in shots])
                                   for name in ("gray", "error", "share_above_10", "claimed"))
    summary = {"gray": weights @ gray, "ours": weights @ error, "share_above_10": weights @ share,
               "claimed": weights @ claimed, "right": 1 - weights @ share,
               "calibration": weights @ abs(claimed - (1 - share)), "worst_shot": (error - gray).max()}
    if shots[0].bodies is not None:
        summary["bodies"] = weights @ np.array([shot.bodies for shot in shots])
    return {name: float(value) for name, value in summary.items()}


def by_distance(shots: list[ShotScore]) -> list[float | None]:
    """Return the mean CIEDE2000 for each range of DISTANCES to the nearest reference."""
    distance, error = np.array([pair for shot in shots for pair in shot.distances]).T
    rows = np.digitize(distance, DISTANCES) - 1
    return [float(error[rows == row].mean()) if (rows == row).any() else None for row in range(len(DISTANCES))]


def measure_film(name: str, protocol: str, args: Any, seed: int, lpips: LPIPS | None) -> dict[str, Any]:
    """Color and measure a film of FILMS under a protocol. Returns its summary, shots and consistency."""
    film, folder = FILMS[name], args.output
    excerpt = folder / "excerpts" / f"{name}.mp4"
    if not excerpt.exists():
        excerpt.parent.mkdir(parents=True, exist_ok=True)
        write_excerpt(find_film(args.data, film.file), excerpt, film.start, film.end)
    checkpoint = trained_checkpoint(film, args.data, folder, args.minutes, seed)
    shots, count = find_shots(excerpt), PAINTED[protocol]
    painted = [[(start + end) // 2] if count == 1 else [start + i for i in evenly_spaced(end - start, count)]
               for start, end in shots]
    predictor = Predictor.load(checkpoint)
    if count:
        wanted = set(itertools.chain.from_iterable(painted))
        predictor.add_references([planes.rgb_uint8() for index, (_, _, planes) in enumerate(VideoFile(excerpt).read())
                                  if index in wanted])
    result = folder / f"{name}_{protocol.replace(' ', '_')}_seed_{seed}.mp4"
    records = color_film(predictor, VideoFile(excerpt), result, FilmConfig(), overwrite=True)
    claimed = np.concatenate([np.full(record.frames, record.confidence) for record in records])
    scores = score_shots(result, excerpt, shots, painted, claimed, args.every, film.episode)
    report = {**summarize(scores), "distances": by_distance(scores), "shots": list(map(asdict, scores))}
    if args.consistency:
        report |= measure_consistency(result, excerpt)
    if lpips:
        report["lpips"] = float(np.mean([lpips(*pair) for _, *pair in read_pairs(result, excerpt, 8 * args.every)]))
    return report


# ---------------------------------------------------------------------------------------------------------------------
# Output

COLUMNS = {  # name: (title, format)
    "gray": ("grayscale", ".2f"), "ours": ("ours", ".2f"), "share_above_10": ("> 10", ".1%"),
    "bodies": ("bodies", ".2f"), "lpips": ("LPIPS", ".4f"), "claimed": ("claimed", ".2f"), "right": ("right", ".2f"),
    "calibration": ("calibration", ".2f"), "worst_shot": ("worst shot", "+.1f"), "cdc": ("CDC", ".4f"),
    "cdc_ground_truth": ("ground truth", ".4f"), "warp_error": ("warping error", ".2f"),
    "warp_error_ground_truth": ("ground truth", ".2f"),
}


def mean_report(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of the columns and distances that all reports have."""
    mean = {name: float(np.mean([report[name] for report in reports])) for name in COLUMNS
            if all(name in report for report in reports)}
    columns = zip(*(report["distances"] for report in reports), strict=True)
    return mean | {"distances": [float(np.mean(present)) if (present := [x for x in column if x is not None]) else None
                                 for column in columns]}


def print_tables(rows: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Print the tables of {(film, protocol): reports}, with the mean of each protocol over the films."""
    means = {key: mean_report(reports) for key, reports in rows.items()}
    for protocol in dict.fromkeys(protocol for _, protocol in rows):
        films = [mean for (_, other), mean in means.items() if other == protocol]
        if len(films) > 1:
            means["mean", protocol] = mean_report(films)
    print_header("film", "protocol", *(title for title, _ in COLUMNS.values()))
    for (name, protocol), mean in means.items():
        print_row(name, protocol, *(f"{mean[key]:{form}}" if key in mean else "-"
                                    for key, (_, form) in COLUMNS.items()))
    print()
    print_header("frames to the nearest reference", "", *(
        f"{first}-{last - 1}" if last else f"{first} and more" for first, last in
        itertools.zip_longest(DISTANCES, DISTANCES[1:])))
    for (name, protocol), mean in means.items():
        if PAINTED[protocol]:
            print_row(name, protocol, *("-" if x is None else f"{x:.2f}" for x in mean["distances"]))


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="benchmarks.real_films", description=first_line(__doc__))
    parser.add_argument("--data", type=Path, default=RESOURCES, help="folder with the films that are not in resources/")
    parser.add_argument("--films", nargs="+", choices=FILMS, default=list(FILMS), help="films to color")
    parser.add_argument("--protocols", nargs="+", choices=PAINTED, default=list(PAINTED), help="protocols to run")
    parser.add_argument("--minutes", type=float, default=2.0, help="length of each training run")
    parser.add_argument("--seeds", type=parse_positive_int, default=1, help="number of training runs of each film")
    parser.add_argument("--every", type=parse_positive_int, default=6, help="measure every N-th frame")
    parser.add_argument("--consistency", action="store_true", help="also measure CDC and warping error")
    parser.add_argument("--output", type=Path, default=Path("results/real_films"), help="folder for the results")
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        raise UserError(f"--minutes is {args.minutes:g}; set it above 0")
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    lpips = LPIPS.load()
    for seed, name in itertools.product(range(args.seeds), existing_films(args.films, args.data)):
        for protocol in FILMS[name].protocols:
            if protocol in args.protocols:
                report = measure_film(name, protocol, args, seed, lpips)
                rows.setdefault((name, protocol), []).append(report)
                write_json(args.output / "real_films.json", {f"{film}, {kind}": reports for (film, kind), reports
                                                             in rows.items()})
    if not rows:
        raise UserError("there is nothing to measure; pass the folder with the films to --data")
    print_tables(rows)


if __name__ == "__main__":
    run_cli(main)
