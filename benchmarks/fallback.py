"""Measure --fallback on a film of known and unknown shots, with blurred ground truth as another program's colors.

    python -m benchmarks.fallback CHECKPOINT OUTPUT --known bunny.mp4:20 bunny.mp4:45 --unknown bunny.mp4:301

Excerpts of SECONDS are cut from the films at the given seconds: those of --known show shots that the checkpoint was
trained on. They are joined to OUTPUT/film.mp4. The other program's version has the luma of the film and its chroma,
averaged to 16 x 16 pixels. Every 6th frame of each excerpt is measured (CIEDE2000), without and with the fallback.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import existing_film, first_line, print_header, print_row
from benchmarks.score import read_pairs

from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from config import FilmConfig
from dataset import lab_to_rgb, resize, rgb_to_lab
from film.io.encoding import write_video
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import ArgumentParser, run_cli

SECONDS, HEIGHT, WIDTH, STEP = 2, 360, 640, 6
CELLS = 16  # pixels along a side of the other program's chroma


def read_excerpt(part: str) -> Iterator[np.ndarray]:
    """Yield the frames, RGB uint8 (HEIGHT, WIDTH, 3), of an excerpt FILM:SECOND."""
    path, second = part.rsplit(":", 1)
    film = VideoFile(existing_film(Path(path)))
    base = film.info.time_base
    for pts, _, planes in film.read(round((film.info.start + float(second)) / base)):
        if pts * base - film.info.start >= float(second) + SECONDS:
            return
        yield planes.rgb_uint8(HEIGHT, WIDTH)


def blur_chroma(rgb: np.ndarray) -> np.ndarray:
    """Return a picture, RGB uint8 (H, W, 3), with its chroma averaged to CELLS x CELLS pixels."""
    lab = rgb_to_lab(rgb)
    lab[..., 1:] = cv2.resize(resize(lab[..., 1:], CELLS, CELLS), rgb.shape[1::-1])
    return lab_to_rgb(lab)


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="benchmarks.fallback", description=first_line(__doc__))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--known", nargs="+", required=True, metavar="FILM:SECOND")
    parser.add_argument("--unknown", nargs="+", required=True, metavar="FILM:SECOND")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    film, other = args.output / "film.mp4", args.output / "other.mp4"
    parts, bounds = [*args.known, *args.unknown], [0]

    def frames():
        for part in parts:
            count = bounds[-1]
            for rgb in read_excerpt(part):
                yield count, rgb
                count += 1
            bounds.append(count)

    source = VideoFile(parts[0].rsplit(":", 1)[0])
    rate = 1 / (source.info.rate * source.info.time_base)
    write_video(film, source, ((round(number * rate), rgb) for number, rgb in frames()))
    write_video(other, VideoFile(film), ((pts, blur_chroma(planes.rgb_uint8()))
                                         for pts, _, planes in VideoFile(film).read()))
    errors = {}
    for name, fallback in (("without", None), ("with", other)):
        result = args.output / f"{name}.mp4"
        records = color_film(Predictor.load(args.checkpoint), VideoFile(film), result, FilmConfig(fallback=fallback),
                             overwrite=True)
        errors[name] = {index: float(color_differences(rgb_to_lab(rgb), rgb_to_lab(truth)).mean())
                        for index, rgb, truth in read_pairs(result, film, STEP)}
    print(records.fallback_facts())
    print_header("excerpt", "known", "without fallback", "with fallback")
    rows = [(part, number < len(args.known), *([error for index, error in errors[name].items() if start <= index < end]
                                               for name in errors))
            for number, (part, start, end) in enumerate(zip(parts, bounds, bounds[1:], strict=False))]
    for part, is_known, before, after in rows:
        print_row(Path(part).name, is_known, f"{np.mean(before):.2f}", f"{np.mean(after):.2f}")
    for is_known in (True, False):
        before, after = (np.concatenate([row[column] for row in rows if row[1] == is_known]) for column in (2, 3))
        print_row("all", is_known, f"{np.mean(before):.2f}", f"{np.mean(after):.2f}")


if __name__ == "__main__":
    run_cli(main)
