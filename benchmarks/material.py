"""How well does a film come out whose gray is not our own? A row for each kind of material, made by FFmpeg.

    python benchmarks/material.py CHECKPOINT [--film FILM] [--every 16] [--rows faded print] [--keep FOLDER]
    python benchmarks/material.py --keep FOLDER

FILM has color, which counts as the truth. For each row it is turned by the FFmpeg filters that stand in ROWS, stored
without loss, and colored as test.py does. Measured are the colors alone: of one of ``--every`` frames, at WIDTH pixels,
both results and truth get the truth's L. CIEDE2000 is a mean, *> 10* the share of pixels with another color, and chroma
the mean one beside the truth's. ``--keep`` keeps all films, to look at.

Without CHECKPOINT, another program is measured: FOLDER gets the gray film of each row, ROW_gray.mkv, and what that
program has made of it, ROW_colored.mkv, is measured where it is there.

Of the rows of TRANSITIONS, each pair of shots that are long enough is joined by one of LASTS seconds, and measured is
the middle third of them, beside all frames of the same film.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.score import readers, share_far

from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from config import FilmConfig
from dataset import resize, rgb_to_lab
from film.analysis.shot_detection import find_gray_cuts
from film.io.planes import planes_from_frame
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import ArgumentParser, UserError, parse_positive_int, run_cli

FILM = Path(__file__).resolve().parents[1] / "resources" / "episode_2.mp4"
WIDTH = 192
GRAY = "lutyuv=u=128:v=128"


def eq(contrast, brightness, gamma):
    """FFmpeg's filter eq, which builds under the LGPL lack, for the luma, by the formula of its documentation."""
    y = f"pow(clip({contrast}*((val-16)/219-0.5)+0.5+{brightness},0,1),{1 / gamma})"
    return f"lutyuv=y='16+219*{y}':u=128:v=128"


def stock(red, green, blue):
    """A film that sees so much of each color."""
    weights = ":".join([f"{red}:{green}:{blue}:0"] * 3)
    return f"format=gbrp,colorchannelmixer={weights},format=yuv420p"


@dataclass
class Material:
    """A kind of material: FFmpeg's filters that make it of a film in color."""

    filters: str
    across: float = 1.0  # share of the width that the picture has; bars are left and right of it


ROWS = {
    "as it is": Material(""),
    "luma": Material(GRAY),
    "orthochromatic stock": Material(stock(0.03, 0.57, 0.40)),
    "red filter": Material(stock(0.60, 0.35, 0.05)),
    "faded": Material(eq(0.55, 0.12, 1.35)),
    "hard": Material(f"{GRAY},format=gbrp,curves=preset=strong_contrast,format=yuv420p"),
    "print": Material(f"{GRAY},noise=alls=22:allf=t,hue=b=0.515*sin(n*1.9)"),
    "kinescope": Material(f"{eq(1.25, -0.05, 0.8)},gblur=sigma=1.5,noise=c0s=10:c0f=t"),
    "low resolution": Material(f"{GRAY},scale=160:90,scale=640:360"),
    "pillarbox": Material(f"{GRAY},pad=w=ceil(iw*0.67)*2:h=ih:x=(ow-iw)/2", across=1 / 1.34),
}

LASTS = 1.5  # seconds of a transition


def iris(x, y, done):
    return np.hypot((x - 0.5) * 16 / 9, y - 0.5) < 1.03 * done


# Share of the next shot at places x and y in [0, 1] when so much of the transition is done.
TRANSITIONS: dict[str, Callable] = {
    "dissolve": lambda x, y, done: done + 0 * x, "wipe": lambda x, y, done: x > 1 - done, "iris": iris}


def filters(chain):
    """The filters of a chain, "name=settings,name=settings", as pairs; commas within brackets do not part them."""
    parts, depth = [""], 0
    for letter in chain:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        parts[-1] += letter
        if letter == "," and not depth:
            parts[-1] = parts[-1][:-1]
            parts.append("")
    return [part.partition("=")[::2] for part in parts if part]


def turned(path: Path, chain: str) -> Iterator[av.VideoFrame]:
    """The frames of a film behind a chain of FFmpeg's filters."""
    with av.open(str(path)) as film:
        stream, graph = film.streams.video[0], Graph()
        source = last = graph.add_buffer(template=stream, time_base=stream.time_base)
        for name, settings in [*filters(chain), ("buffersink", "")]:
            node = graph.add(name, settings or None)
            last.link_to(node)
            last = node
        graph.configure()
        for frame in film.decode(stream):
            source.push(frame)
            yield last.pull()


def shots_of(path: Path) -> Iterator[list[np.ndarray]]:
    """The frames of one shot after another, Y, Cb and Cr uint8 (3, H, W)."""
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


def joined(path: Path, kind: str, middles: list[int]) -> Iterator[av.VideoFrame]:
    """The film of pairs of shots that a transition joins; ``middles`` gets the frames of the middle thirds."""
    count, written, waiting = round(LASTS * VideoFile(path).info.rate), 0, None
    for shot in shots_of(path):
        if len(shot) < count + 6:
            continue
        if waiting is None:
            waiting = shot
            continue
        height, width = shot[0].shape[1:]
        y, x = np.mgrid[:height, :width] / np.array([height - 1, width - 1])[:, None, None]
        shares = [TRANSITIONS[kind](x, y, (i + 1) / (count + 1)) for i in range(count)]
        mixed = [np.rint(one + share * (other.astype(np.float32) - one)).astype(np.uint8)
                 for one, other, share in zip(waiting[-count:], shot, shares, strict=False)]
        start = written + len(waiting) - count
        middles.extend(range(start + count // 3, start + count - count // 3))
        for picture in (*waiting[:-count], *mixed, *shot[count:]):
            yield av.VideoFrame.from_ndarray(picture, format="yuv444p")
            written += 1
        waiting = None


def store(frames: Iterator[av.VideoFrame], path: Path, rate: Fraction) -> None:
    """Write frames without loss."""
    first = next(frames)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        for index, frame in enumerate(itertools.chain([first], frames)):
            frame.pts, frame.time_base = index, 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def measure(result: Path, truth: Path, every: int, across: float = 1,
            among: list[int] | None = None) -> dict[str, float]:
    """{"ciede2000", "share_above_10", "chroma", its ratio to the truth's} of the colors of one of ``every`` frames, of those
    ``among`` all."""
    errors, chroma = [], []
    for index, (ours, true) in enumerate(zip(readers(result), readers(truth), strict=True)):
        if index % every == every // 2 and (among is None or index in among):
            ours, true = ours(), true()
            width = ours.shape[1]
            ours = ours[:, round(width * (1 - across) / 2):round(width * (1 + across) / 2)]
            size = round(WIDTH * true.shape[0] / true.shape[1]), WIDTH
            lab, lab_truth = (rgb_to_lab(resize(picture, *size)) for picture in (ours, true))
            lab[..., 0] = lab_truth[..., 0]
            errors.append(color_differences(lab, lab_truth))
            chroma.append([np.linalg.norm(each[..., 1:], axis=-1).mean() for each in (lab, lab_truth)])
    ours, true = np.mean(chroma, 0)
    return {"ciede2000": float(np.mean(errors)), "share_above_10": share_far(np.array(errors)), "chroma": float(ours / true)}


def colored(predictor: Predictor | None, source: Path) -> Path | None:
    """The colored film beside ``source``, NAME_gray.mkv; without a predictor None if there is none."""
    result = source.with_name(source.name.replace("_gray.", "_colored."))
    if predictor is not None:
        color_film(predictor, VideoFile(source), result, FilmConfig(), overwrite=True)
    elif not result.exists():
        print(f"{source} is to be colored into {result}", file=sys.stderr)
        return None
    return result


def measure_row(predictor: Predictor | None, film: Path, name: str, folder: Path, every: int) -> dict[str, float] | None:
    """Make the film of one of ROWS, and measure what comes of it; None where it is still to be colored."""
    source = folder / f"{name.replace(' ', '_')}_gray.mkv"
    store(turned(film, ROWS[name].filters), source, VideoFile(film).info.rate)
    result = colored(predictor, source)
    return None if result is None else measure(result, film, every, ROWS[name].across)


def measure_transition(predictor: Predictor | None, film: Path, kind: str, folder: Path) -> None:
    """Print the row of one of TRANSITIONS."""
    truth, source, middles = folder / f"{kind}.mkv", folder / f"{kind}_gray.mkv", []
    store(joined(film, kind, middles), truth, VideoFile(film).info.rate)
    store(turned(truth, GRAY), source, VideoFile(film).info.rate)
    result = colored(predictor, source)
    if result is not None:
        whole, middle = (measure(result, truth, 3, among=among)["ciede2000"] for among in (None, middles))
        print(f"| {kind} | {whole:.2f} | {middle:.2f} | {middle / whole:.2f} |", flush=True)


def main(argv):
    parser = ArgumentParser(prog="material.py", description="Measure how a film comes out whose gray is not our own.")
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT",
                        help="of train.py; without one, what another program has made in the folder --keep is measured")
    parser.add_argument("--film", type=Path, default=FILM, help="a film in color, which counts as the truth")
    parser.add_argument("--every", type=parse_positive_int, default=16, help="measure one of so many frames")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *TRANSITIONS], default=[*ROWS, *TRANSITIONS],
                        help="which of the rows")
    parser.add_argument("--keep", type=Path, help="a folder for all films")
    args = parser.parse_args(argv)
    if args.checkpoint is None and args.keep is None:
        raise UserError("name a CHECKPOINT, or by --keep the folder of films that another program has colored")
    predictor, base = args.checkpoint and Predictor.load(args.checkpoint), None
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if {*args.rows} & {*ROWS}:
            print("| material | CIEDE2000 | > 10 | chroma | times the first |\n|---|---|---|---|---|")
        for row in [row for row in args.rows if row in ROWS]:
            values = measure_row(predictor, args.film, row, folder, args.every)
            if values is not None:
                base = base or values["ciede2000"]
                print(f"| {row} | {values['ciede2000']:.2f} | {values['share_above_10']:.1%} | {values['chroma']:.2f} | "
                      f"{values['ciede2000'] / base:.2f} |", flush=True)
        if {*args.rows} & {*TRANSITIONS}:
            print("| between two shots | CIEDE2000 | of the middle third | times all |\n|---|---|---|---|")
        for kind in [row for row in args.rows if row in TRANSITIONS]:
            measure_transition(predictor, args.film, kind, folder)


if __name__ == "__main__":
    run_cli(main)
