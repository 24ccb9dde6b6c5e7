"""How steady is a colored film, beside the truth and beside coloring each frame by itself?

    python benchmarks/steadiness.py FILM COLORED [--checkpoint checkpoints/best.pt]

COLORED is what ``test.py --input FILM --output COLORED`` wrote with that checkpoint; the shots are those of its
_shots.jsonl, and those that were left as they were do not count. *Frame by frame* is the same checkpoint with a palette
for each frame instead of one for the shot, and colors that are not steadied, encoded as test.py does without flags.

Prints color distribution consistency (CDC) and warping error, the means over the shots by their frames, and the mean
CIEDE2000 of one frame a second, all on pictures WarpError.WIDTH wide; and what is to be reached: the CDC of the result
over that of the truth, and its warping error over that of frame by frame.
"""

import json
import math
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from colorizer.confidence import Confidence
from colorizer.metrics import ciede2000, has_color
from colorizer.predictor import Predictor
from config import FilmConfig, TemporalFilterConfig
from dataset import rgb_to_lab
from film.io.planes import planes_from_frame
from film.io.thread_pool import prefetch
from film.io.video import VideoFile, frame_rate, open_video, read_frames
from film.render.rendering import color_film
from film.report.consistency import CDC, WarpError
from utils import ArgumentParser, UserError, run_cli

ROWS = ("result", "frame by frame", "ground_truth")


def read_shots(colored):
    """The lines of a film's log, one a shot."""
    log = colored.with_name(f"{colored.stem}_shots.jsonl")
    if not log.is_file():
        raise UserError(f"there is no {log}; color the film with test.py, which writes it")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


class Alone:
    """A ``plan.FilmPredictor`` that gives each frame a palette of its own."""

    def __init__(self, predictor):
        self._predictor = predictor

    def __getattr__(self, name):
        return getattr(self._predictor, name)

    def with_response(self, response):
        return Alone(self._predictor.with_response(response))

    def predict_with_embeddings(self, lightness, palette):
        labs = [cv2.merge([L, 0 * L, 0 * L]) for L in lightness]
        each = [self._predictor.predict_with_embeddings(lab[None, ..., 0], self._predictor.palette([lab])) for lab in labs]
        ab, known, looks = zip(*each, strict=True)
        return np.concatenate(ab), Confidence(*map(np.concatenate, zip(*known, strict=True))), np.concatenate(looks)


def color_alone(predictor, film, shots, target):
    """Color the part of a film that ``shots`` are of, each frame by itself, and encode it as test.py does."""
    film, alone = VideoFile(film), TemporalFilterConfig(previous_weight=0.0)  # nothing is left of the frame before
    start, end = (time - float(film.info.start) for time in (shots[0]["start_time"], shots[-1]["end_time"]))
    color_film(Alone(predictor), film, target, FilmConfig(start=start, end=end, temporal_filter=alone))


def measure(predictor, film, colored, shots):
    """{row: {"cdc", "warp_error", "ciede2000"}}; without "ground_truth" and "ciede2000" when the film has no color."""
    with tempfile.TemporaryDirectory() as folder:
        by_itself = Path(folder) / "alone.mkv"
        color_alone(predictor, film, shots, by_itself)
        return compare(film, colored, by_itself, shots)


def compare(film, colored, by_itself, shots):
    """What ``measure`` returns, by the films of the rows."""
    with open_video(film) as (_, stream):
        begin, every = round(shots[0]["start_time"] / stream.time_base), max(1, round(frame_rate(stream)))
    values, weights, distances, in_color = [], [], [], False
    with (closing(prefetch(read_frames(film, begin), 8)) as sources, closing(prefetch(read_frames(colored), 8)) as results,
          closing(prefetch(read_frames(by_itself), 8)) as others,
          tqdm(total=shots[-1]["end_frame"], unit=" frames", disable=None) as bar):
        for shot in shots:
            cdcs, warp = [CDC() for _ in ROWS], WarpError()
            for index in range(shot["start_frame"], shot["end_frame"]):
                source, result, other = (planes_from_frame(next(frames)[1]) for frames in (sources, results, others))
                bar.update()
                if shot["left_unchanged"]:
                    continue
                height, width = source.y.shape
                size = max(1, round(WarpError.WIDTH * height / width)), WarpError.WIDTH
                pictures = [planes.rgb_uint8(*size) for planes in (result, other, source)]
                for cdc, picture in zip(cdcs, pictures, strict=True):
                    cdc.add(picture)
                warp.add(source.luma_uint8(*size), *pictures)
                if index % every == every // 2 and has_color(pictures[2]):
                    in_color = True
                    *labs, truth = map(rgb_to_lab, pictures)
                    distances.append([ciede2000(lab, truth) for lab in labs])
            if not shot["left_unchanged"]:
                values.append([[cdc.value() for cdc in cdcs], warp.values()])
                weights.append(shot["end_frame"] - shot["start_frame"])
    if not values:
        raise UserError(f"every shot of {colored} was left as it was, so that there is nothing to measure")
    values, weights = np.array(values), np.array(weights)[:, None, None] * np.isfinite(values)
    cdc, warp = np.nansum(values * weights, 0) / weights.sum(0)
    rows = {name: {"cdc": c, "warp_error": w} for name, c, w in zip(ROWS, cdc, warp, strict=True)}
    if not in_color:
        del rows["ground_truth"]
    else:
        for name, distance in zip(ROWS, [*np.mean(distances, 0), 0.0], strict=True):
            rows[name]["ciede2000"] = distance
    return rows


def table(rows):
    """The measures as text, with the two ratios."""
    lines = [f"{'':16s}{'CDC':>10s}{'warping error':>16s}{'CIEDE2000':>12s}"]
    lines += [f"{name:16s}{row['cdc']:10.5f}{row['warp_error']:16.3f}{row.get('ciede2000', math.nan):12.3f}"
              for name, row in rows.items()]
    if "ground_truth" in rows:
        lines.append(f"CDC, result / truth: {rows['result']['cdc'] / rows['truth']['cdc']:.3f}")
    ratio = rows["result"]["warp_error"] / rows["frame by frame"]["warp_error"]
    return "\n".join([*lines, f"warping error, result / frame by frame: {ratio:.3f}"])


def main(argv):
    parser = ArgumentParser(prog="benchmarks/steadiness.py", description=__doc__.partition("\n")[0])
    parser.add_argument("film", type=Path, help="the source")
    parser.add_argument("colored", type=Path, help="what test.py made of it")
    parser.add_argument("--checkpoint", type=Path, default="checkpoints/best.pt", help="that it was colored with")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to run the networks")
    args = parser.parse_args(argv)
    shots = read_shots(args.colored)
    predictor = Predictor.load(args.checkpoint, device=args.device)
    print(table(measure(predictor, args.film, args.colored, shots)))


if __name__ == "__main__":
    run_cli(main)
