"""Measure the colors of a film after degradations of its grayscale, such as spectral sensitivity, grain or fading.

    python -m benchmarks.degraded_films CHECKPOINT [--film FILM] [--every 16] [--rows faded print] [--folder FOLDER]
    python -m benchmarks.degraded_films --folder FOLDER

FILM is the ground truth in color. For each row of DEGRADATIONS, it is degraded with FFmpeg filters, encoded losslessly,
and colored as by test.py. Every 16th frame is measured at a width of 192 pixels, with the L of the ground truth: mean
CIEDE2000, the share of pixels above 10, and the mean chroma relative to the ground truth. For each row of TRANSITIONS,
pairs of shots are joined by a transition of 1.5 seconds, and the error in the middle third of the transitions is
compared with the error of all frames.

To measure a different program, omit CHECKPOINT: the grayscale films are written to FOLDER/ROW_gray.mkv, and the files
FOLDER/ROW_colored.mkv, where they exist, are measured.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from benchmarks.common import (
    EPISODE, existing_film, first_line, frame_readers, large_error_share, print_header, print_row)

from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from dataset import resize, rgb_to_lab
from film.analysis.shot_detection import find_gray_cuts
from film.io.planes import planes_from_frame
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import ArgumentParser, UserError, parse_positive_int, run_cli

WIDTH = 192  # pixels at which colors are compared
GRAY = "lutyuv=u=128:v=128"


def eq(contrast, brightness, gamma):
    """Return a filter that equals FFmpeg's eq for luma, by its documented formula. LGPL builds of FFmpeg lack eq."""
    y = f"pow(clip({contrast}*((val-16)/219-0.5)+0.5+{brightness},0,1),{1 / gamma})"
    return f"lutyuv=y='16+219*{y}':u=128:v=128"


def sensitivity(red, green, blue):
    """Return filters that convert to the grayscale of a film with a spectral sensitivity: weights that sum to 1."""
    weights = ":".join([f"{red}:{green}:{blue}:0"] * 3)
    return f"format=gbrp,colorchannelmixer={weights},format=yuv420p"


@dataclass
class Degradation:
    """FFmpeg filters that degrade a film in color."""

    filters: str
    picture_width: float = 1.0  # fraction of the frame width inside the pillarbox


DEGRADATIONS = {
    "original": Degradation(""),
    "luma": Degradation(GRAY),
    "orthochromatic stock": Degradation(sensitivity(0.03, 0.57, 0.40)),
    "red filter": Degradation(sensitivity(0.60, 0.35, 0.05)),
    "faded": Degradation(eq(0.55, 0.12, 1.35)),
    "hard": Degradation(f"{GRAY},format=gbrp,curves=preset=strong_contrast,format=yuv420p"),
    "print": Degradation(f"{GRAY},noise=alls=22:allf=t,hue=b=0.515*sin(n*1.9)"),
    "kinescope": Degradation(f"{eq(1.25, -0.05, 0.8)},gblur=sigma=1.5,noise=c0s=10:c0f=t"),
    "low resolution": Degradation(f"{GRAY},scale=160:90,scale=640:360"),
    "pillarbox": Degradation(f"{GRAY},pad=w=ceil(iw*0.67)*2:h=ih:x=(ow-iw)/2", picture_width=1 / 1.34),
}
TRANSITION_SECONDS = 1.5
# Weight of the next shot at the positions x, y (arrays in [0, 1]) for a progress in [0, 1].
TRANSITIONS: dict[str, Callable] = {
    "dissolve": lambda x, y, progress: progress + 0 * x,
    "wipe": lambda x, y, progress: x > 1 - progress,
    "iris": lambda x, y, progress: np.hypot((x - 0.5) * 16 / 9, y - 0.5) < 1.03 * progress}

# ---------------------------------------------------------------------------------------------------------------------
# Films


def split_filters(chain):
    """Split "name=settings,name=settings" into pairs (name, settings); commas within parentheses do not split."""
    parts, depth = [""], 0
    for letter in chain:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.partition("=")[::2] for part in parts if part]


def degrade(path: Path, chain: str) -> Iterator[av.VideoFrame]:
    """Yield the frames of a film after a chain of FFmpeg filters."""
    with av.open(str(path)) as film:
        stream, graph = film.streams.video[0], Graph()
        source = last = graph.add_buffer(template=stream, time_base=stream.time_base)
        for name, settings in [*split_filters(chain), ("buffersink", "")]:
            node = graph.add(name, settings or None)
            last.link_to(node)
            last = node
        graph.configure()
        for frame in film.decode(stream):
            source.push(frame)
            yield last.pull()


def read_shots(path: Path) -> Iterator[list[np.ndarray]]:
    """Yield a list of the frames of each shot. A frame is Y, Cb, Cr: uint8 (3, H, W)."""
    with av.open(str(path)) as film:
        lumas = (planes_from_frame(frame).luma_uint8(256, 256) for frame in film.decode(video=0))
        cuts = {*itertools.chain.from_iterable(find_gray_cuts(lumas))}
    with av.open(str(path)) as film:
        shot = []
        for index, frame in enumerate(film.decode(video=0)):
            if index in cuts:
                yield shot
                shot = []
            shot.append(frame.to_ndarray(format="yuv444p"))
        yield shot


def join_shots(path: Path, kind: str, middles: list[int]) -> Iterator[av.VideoFrame]:
    """Yield the frames of pairs of shots joined by transitions, and append the indices in their middle thirds to
    ``middles``."""
    count, written, first = round(TRANSITION_SECONDS * VideoFile(path).info.rate), 0, None
    for shot in read_shots(path):
        if len(shot) < count + 6:
            continue
        if first is None:
            first = shot
            continue
        height, width = shot[0].shape[1:]
        y, x = np.mgrid[:height, :width] / np.array([height - 1, width - 1])[:, None, None]
        shares = [TRANSITIONS[kind](x, y, (i + 1) / (count + 1)) for i in range(count)]
        mixed = [np.rint(before + share * (after.astype(np.float32) - before)).astype(np.uint8)
                 for before, after, share in zip(first[-count:], shot, shares, strict=False)]
        start = written + len(first) - count
        middles.extend(range(start + count // 3, start + count - count // 3))
        for picture in (*first[:-count], *mixed, *shot[count:]):
            yield av.VideoFrame.from_ndarray(picture, format="yuv444p")
            written += 1
        first = None


def write_lossless(frames: Iterator[av.VideoFrame], path: Path, rate: Fraction) -> None:
    """Encode frames losslessly as FFV1."""
    first = next(frames)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        for index, frame in enumerate(itertools.chain([first], frames)):
            frame.pts, frame.time_base = index, 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


# ---------------------------------------------------------------------------------------------------------------------
# Measures


def measure(result: Path, ground_truth: Path, every: int, picture_width: float = 1,
            indices: list[int] | None = None) -> tuple[float, float, float]:
    """Return (CIEDE2000, share above 10, relative chroma) of the colors of every ``every``-th frame.

    If ``indices`` is given, only frames with these indices are measured.
    """
    errors, chroma = [], []
    for index, pair in enumerate(zip(frame_readers(result), frame_readers(ground_truth), strict=True)):
        if index % every == every // 2 and (indices is None or index in indices):
            rgb, true_rgb = (read() for read in pair)
            width = rgb.shape[1]
            rgb = rgb[:, round(width * (1 - picture_width) / 2):round(width * (1 + picture_width) / 2)]
            size = round(WIDTH * true_rgb.shape[0] / true_rgb.shape[1]), WIDTH
            lab, true_lab = (rgb_to_lab(resize(picture, *size)) for picture in (rgb, true_rgb))
            lab[..., 0] = true_lab[..., 0]
            errors.append(color_differences(lab, true_lab))
            chroma.append([np.linalg.norm(each[..., 1:], axis=-1).mean() for each in (lab, true_lab)])
    mean, true_mean = np.mean(chroma, 0)
    return float(np.mean(errors)), large_error_share(np.array(errors)), float(mean / true_mean)


def color(predictor: Predictor | None, source: Path) -> Path | None:
    """Color NAME_gray.mkv, if there is a predictor. Returns the path NAME_colored.mkv, or None if it does not exist."""
    result = source.with_name(source.name.replace("_gray.", "_colored."))
    if predictor is not None:
        color_film(predictor, VideoFile(source), result, overwrite=True)
    elif not result.exists():
        print(f"color {source} as {result} to have it measured", file=sys.stderr)
        return None
    return result


def measure_degradation(predictor: Predictor | None, film: Path, name: str, folder: Path,
                        every: int) -> tuple[float, float, float] | None:
    """Degrade a film by one of DEGRADATIONS and color it. Returns the result of ``measure``; None if not colored."""
    source = folder / f"{name.replace(' ', '_')}_gray.mkv"
    write_lossless(degrade(film, DEGRADATIONS[name].filters), source, VideoFile(film).info.rate)
    result = color(predictor, source)
    return None if result is None else measure(result, film, every, DEGRADATIONS[name].picture_width)


def measure_transition(predictor: Predictor | None, film: Path, kind: str, folder: Path) -> None:
    """Measure one of TRANSITIONS and print its row."""
    ground_truth, source, middles = folder / f"{kind}.mkv", folder / f"{kind}_gray.mkv", []
    rate = VideoFile(film).info.rate
    write_lossless(join_shots(film, kind, middles), ground_truth, rate)
    write_lossless(degrade(ground_truth, GRAY), source, rate)
    result = color(predictor, source)
    if result is not None:
        whole, middle = (measure(result, ground_truth, 3, indices=indices)[0] for indices in (None, middles))
        print_row(kind, f"{whole:.2f}", f"{middle:.2f}", f"{middle / whole:.2f}")


def main(argv):
    parser = ArgumentParser(prog="benchmarks.degraded_films", description=first_line(__doc__))
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT",
                        help="checkpoint of train.py; without it, the results of another program are measured")
    parser.add_argument("--film", type=Path, default=EPISODE, help="a film in color, the ground truth")
    parser.add_argument("--every", type=parse_positive_int, default=16, help="measure every N-th frame")
    parser.add_argument("--rows", nargs="+", choices=[*DEGRADATIONS, *TRANSITIONS],
                        default=[*DEGRADATIONS, *TRANSITIONS], help="the rows to measure")
    parser.add_argument("--folder", type=Path, help="folder in which all films are kept")
    args = parser.parse_args(argv)
    if args.checkpoint is None and args.folder is None:
        raise UserError("pass a CHECKPOINT, or the folder with the films of another program to --folder")
    film, base = existing_film(args.film), None
    predictor = args.checkpoint and Predictor.load(args.checkpoint)
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if {*args.rows} & {*DEGRADATIONS}:
            print_header("degradation", "CIEDE2000", "share > 10", "relative chroma", "relative CIEDE2000")
        for row in [row for row in args.rows if row in DEGRADATIONS]:
            values = measure_degradation(predictor, film, row, folder, args.every)
            if values is not None:
                error, far, chroma = values
                base = base or error
                print_row(row, f"{error:.2f}", f"{far:.1%}", f"{chroma:.2f}", f"{error / base:.2f}")
        if {*args.rows} & {*TRANSITIONS}:
            print_header("transition", "CIEDE2000", "middle third", "relative to all frames")
        for kind in [row for row in args.rows if row in TRANSITIONS]:
            measure_transition(predictor, film, kind, folder)


if __name__ == "__main__":
    run_cli(main)
