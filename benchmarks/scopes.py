"""Measure scopes of references and the detection of contradictions, on a film in color.

    python -m benchmarks.scopes CHECKPOINT FILM [--shots 3] [--output FOLDER]

*Scopes*: LENGTH frames of each of the first long shots are joined to a film that has each shot twice: in its own colors
(day), and darker and blue (night) or with the same lightness and rotated hues (costume). The middle frames are the
references. The first table has the CIEDE2000 of the other frames if only the references of their own version are
added, if those of both are added to the whole film, and if those of the second version have their shot as scope.

*Contradictions*: two frames of each shot, the second of which has its largest region of one color recolored, must be
found. True frames of the same shot, of neighboring shots and of distant shots must not be found.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import existing_film, print_header, print_row
from benchmarks.real_films import find_shots
from benchmarks.score import read_pairs

from colorizer.contradictions import find_contradictions
from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from colorizer.references import Reference
from config import FilmConfig
from dataset import lab_to_rgb, rgb_to_lab
from film.io.encoding import write_video
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import ArgumentParser, UserError, parse_positive_int, run_cli

LENGTH, STEP = 12, 3  # frames of a shot in the film, and from measured frame to measured frame
NIGHT = 0.45, 0.55, 0.85  # factors of R, G and B
ROTATION = 140.0  # degrees of hue, also of recolored regions
MIN_CHROMA, MIN_SHARE, MAX_SHARE = 15.0, 0.03, 0.3  # of a region that is recolored


def to_night(rgb: np.ndarray) -> np.ndarray:
    return (rgb * np.array(NIGHT)).astype(np.uint8)


def rotate_hues(rgb: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Rotate the hues of RGB uint8 (H, W, 3), also to a chroma of at least 35 if they are inside of ``mask`` (H, W)."""
    lab, angle = rgb_to_lab(rgb), np.radians(ROTATION)
    rotated = lab[..., 1:] @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    if mask is None:
        lab[..., 1:] = rotated
    else:
        rotated *= np.maximum(1, 35 / np.linalg.norm(rotated, axis=2, keepdims=True).clip(min=MIN_CHROMA))
        weight = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1)[..., None]
        lab[..., 1:] += weight * (rotated - lab[..., 1:])
    return lab_to_rgb(lab)


def largest_region(rgb: np.ndarray) -> np.ndarray | None:
    """Return the mask (H, W) of the largest region of one clear color within the limits, or None."""
    ab, best = rgb_to_lab(rgb)[..., 1:].astype(np.float32), None
    cv2.setRNGSeed(0)
    _, labels, centers = cv2.kmeans(ab.reshape(-1, 2), 6, None, (3, 20, 1), 1, cv2.KMEANS_PP_CENTERS)
    for label in np.flatnonzero(np.linalg.norm(centers, axis=1) >= MIN_CHROMA):
        chosen = cv2.morphologyEx((labels.reshape(ab.shape[:2]) == label).astype(np.uint8), cv2.MORPH_OPEN,
                                  np.ones((5, 5), np.uint8))
        count, regions, sizes, _ = cv2.connectedComponentsWithStats(chosen)
        for region in range(1, count):
            share = sizes[region, cv2.CC_STAT_AREA] / chosen.size
            if MIN_SHARE <= share <= MAX_SHARE and (best is None or share > best[0]):
                best = share, regions == region
    return None if best is None else best[1]


def measure_scopes(checkpoint: Path, film: Path, shots: Sequence[tuple[int, int]], change: Callable, folder: Path,
                   title: str) -> None:
    """Print the rows of the first table for one kind of ``change`` of the second version of each shot."""
    starts = [(start + end - LENGTH) // 2 for start, end in shots]
    frames = {index: planes.rgb_uint8() for index, (_, _, planes) in enumerate(VideoFile(film).read())
              if any(start <= index < start + LENGTH for start in starts)}
    pictures = [version(frames[index]) for start in starts for version in (lambda rgb: rgb, change)
                for index in range(start, start + LENGTH)]
    source, tick = folder / f"{title}.mp4", round(1 / (VideoFile(film).info.rate * VideoFile(film).info.time_base))
    write_video(source, VideoFile(film), ((tick * index, picture) for index, picture in enumerate(pictures)))
    middles = [part * LENGTH + LENGTH // 2 for part in range(2 * len(shots))]
    shown = [planes.rgb_uint8() for _, _, planes in VideoFile(source).read()]
    ends = [(LENGTH * (part + 1),) * 2 + (False,) for part in range(2 * len(shots))]
    results = {}
    for name, parts, scoped in (("day", (0,), False), (title, (1,), False), ("both", (0, 1), False),
                                ("scopes", (0, 1), True)):
        predictor = Predictor.load(checkpoint)
        predictor.add_references([Reference(shown[middle], f"shot_{part + 1}" if scoped and part % 2 else "")
                                  for part, middle in enumerate(middles) if part % 2 in parts], match_references=False)
        result = folder / f"{title}_{name}.mp4"
        color_film(predictor, VideoFile(source), result, FilmConfig(boundaries=ends), overwrite=True)
        errors: list[list[float]] = [[], []]
        for index, rgb, ground_truth in read_pairs(result, source, STEP):
            if index not in middles:
                labs = rgb_to_lab(rgb), rgb_to_lab(ground_truth)
                errors[index // LENGTH % 2].append(float(color_differences(*labs).mean()))
        results[name] = [float(np.mean(each)) for each in errors]
    for version, name in enumerate(("day", title)):
        print_row(f"{name} of {title}", *(f"{results[each][version]:.2f}" for each in (name, "both", "scopes")))


def measure_contradictions(checkpoint: Path, film: Path, shots: Sequence[tuple[int, int]]) -> None:
    """Print how many of the recolored and of the true pairs are found."""
    predictor, chosen = Predictor.load(checkpoint), {}
    for number, (start, end) in enumerate(shots):
        chosen |= {start + (end - start) // 3: (number, 0), start + 2 * (end - start) // 3: (number, 1)}
    pictures, recolored = {}, {}
    for index, (_, _, planes) in enumerate(VideoFile(film).read()):
        if index in chosen:
            pictures[chosen[index]] = rgb = planes.rgb_uint8()
            if chosen[index][1] and (mask := largest_region(rgb)) is not None:
                recolored[chosen[index][0]] = rotate_hues(rgb, mask)
    keys = [*pictures, *((number, 2) for number in recolored)]
    predictor.add_references([*pictures.values(), *recolored.values()], match_references=False)
    middle = len(shots) // 2
    kinds = {"recolored, same shot": [((number, 0), (number, 2)) for number in recolored],
             "true, same shot": [((number, 0), (number, 1)) for number in range(len(shots))],
             "true, neighboring shots": [((number, 1), (number + 1, 0)) for number in range(len(shots) - 1)],
             "true, distant shots": [((number, 0), (number + middle, 0)) for number in range(middle)]}
    print_header("pairs", "found", "of")
    for kind, pairs in kinds.items():
        found = [bool(list(find_contradictions(predictor.colorizer.spatial, {
            tuple(sorted((keys.index(one), keys.index(other))))}))) for one, other in pairs]  # type: ignore[arg-type]
        print_row(kind, sum(found), len(found))


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m benchmarks.scopes", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("film", type=lambda path: existing_film(Path(path)))
    parser.add_argument("--shots", type=parse_positive_int, default=3, help="shots of the first table")
    parser.add_argument("--output", type=Path, help="folder to keep the films in")
    args = parser.parse_args(argv)
    shots = find_shots(args.film)
    long = [(start, end) for start, end in shots if end - start >= LENGTH][:args.shots]
    if len(long) < 2:
        raise UserError(f"{args.film} has fewer than 2 shots of {LENGTH} frames; pass a longer film")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print_header("shots", "their references alone", "all references", "all references with scopes")
        measure_scopes(args.checkpoint, args.film, long, to_night, folder, "night")
        measure_scopes(args.checkpoint, args.film, long, rotate_hues, folder, "costume")
    measure_contradictions(args.checkpoint, args.film, shots)


if __name__ == "__main__":
    run_cli(main)
