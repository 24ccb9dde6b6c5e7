"""What it does for you: ``python test.py`` colours a picture, a video or a folder of either by a checkpoint.

Colour input counts as the truth: it is turned grey first, and the result is measured against it.
"""

import json
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataset import lab_to_rgb, resize, rgb_to_lab
from encoding import OUTPUT_SUFFIXES, VideoSettings, parse_time
from episode import color_video, compare, planned_frames
from painter import Painter, load_painter
from panel import memory_pictures, write_panel
from parts import Records, ShotRecord, is_joined, parts_folder
from report import Suggestion, suggest_frames, write_report
from sequence import NumberedFrames, find_sequences
from sharing import Shard, parse_shard, share_out
from utils import (
    IMAGE_SUFFIXES, VIDEO_SUFFIXES, ArgumentParser, Scores, UserError, boolean, is_color, list_files, metrics_table,
    picture_grid, read_image, replace_when_done, run_cli, warn, write_image)
from video import Film

# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


class Evaluation:
    """Scores of results and of plain grey against the truth, and pictures for the comparison."""

    ROWS = 6  # of the comparison picture
    WIDTH = 320  # of a picture in it

    def __init__(self) -> None:
        self.scores = {"grey": Scores(), "result": Scores()}
        self.rows = []
        self.stride = 1  # every so many pictures one is kept for the comparison
        self.seen = 0

    def add(self, truth: np.ndarray, result: np.ndarray) -> None:
        """Add a picture, RGB uint8; one without colour is no truth and does not count."""
        if not is_color(truth):
            return
        lab = rgb_to_lab(truth)
        lab[..., 1:] = 0
        grey = lab_to_rgb(lab)
        self.scores["grey"].add(grey, truth)
        self.scores["result"].add(result, truth)
        if self.seen % self.stride == 0:
            height = max(1, round(self.WIDTH * truth.shape[0] / truth.shape[1]))
            self.rows.append([resize(picture, height, self.WIDTH) for picture in (grey, result, truth)])
            if len(self.rows) == 2 * self.ROWS:  # bounded, and spread evenly over however many pictures come
                self.rows, self.stride = self.rows[::2], 2 * self.stride
        self.seen += 1

    def summaries(self) -> dict[str, dict[str, float]]:
        """{row name: Scores.summary()}; empty without a truth."""
        return {name: scores.summary() for name, scores in self.scores.items()} if self.seen else {}

    def report(self, folder: Path, prefix: str, facts: dict[str, Any], overwrite: bool) -> None:
        """Print the table and write <prefix>metrics.json and, with a truth, <prefix>comparison.png into ``folder``."""
        summary = dict(facts)
        if self.seen:
            rows = self.summaries()
            summary |= {"measured_pictures": self.seen, **rows}
            print(metrics_table(rows) + f"\nmeasured on {self.seen} pictures")
            heights = {row[0].shape[0] for row in self.rows}
            if len(heights) > 1:
                self.rows = [[resize(p, max(heights), self.WIDTH) for p in row] for row in self.rows]
            comparison = folder / f"{prefix}comparison.png"
            if not (folder / f"{prefix}metrics.json").exists():  # else it is our own, of an earlier run
                refuse_existing([comparison], overwrite)
            write_image(comparison, picture_grid(self.rows[:self.ROWS]))
            print(f"compare grey | result | truth in {comparison}")
        with replace_when_done(folder / f"{prefix}metrics.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and videos


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises UserError when one of the files exists and may not be replaced."""
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists already; pass --overwrite True or another --output")


def need_color(painter: Painter, picture: np.ndarray, path: Path) -> None:
    """Raises UserError when the colours of the truth are asked for and the input has none."""
    if painter.source == "truth" and not is_color(picture):
        raise UserError(f"{path} has no colours of its own for --color_feature truth; use another --color_feature")


def color_pictures(painter: Painter, pairs: Sequence[tuple[Path, Path]], evaluation: Evaluation) -> int:
    """Colour pictures one by one, pairs of (input, output) paths; returns how many. An unreadable one is skipped."""
    done = 0
    for source, target in tqdm(pairs, unit="picture", disable=None):
        try:
            picture = read_image(source)
        except UserError as error:
            warn(f"{error}; skipped")
            continue
        need_color(painter, picture, source)
        result = painter.colorize([picture])[0]
        write_image(target, result)
        evaluation.add(picture, result)
        done += 1
    if not done:
        raise UserError(f"no picture could be read in {pairs[0][0].parent}")
    return done


def measure_film(records: Sequence[ShotRecord], film: Film | NumberedFrames, result: Film | NumberedFrames,
                 settings: VideoSettings, evaluation: Evaluation) -> None:
    """Measure one frame a second, at most 200, of a film and of its ``result``, as they are in their files; shots left
    as they were do not count."""
    kept = [range(record.start_frame, record.end_frame) for record in records if record.kept]
    frames = records[-1].end_frame
    rate = frames / (records[-1].end_time - records[0].start_time)
    every = min(frames, max(1, round(rate), math.ceil(frames / 200)))
    for index, truth, painted in compare(film, result, settings, every):
        if not any(index in shot for shot in kept):
            evaluation.add(truth, painted)


def beside(target: Path, name: str) -> Path:
    """The path of a file beside the coloured film ``target`` that belongs to it."""
    return target.with_name(f"{target.stem}_{name}")


def save_suggestions(folder: Path, film: Film | NumberedFrames, times: Sequence[int],
                     suggestions: Iterable[Suggestion]) -> None:
    """Write the suggested frames of ``film`` as grey pictures of its size, to be painted. ``times`` are the
    pts of all frames. What is there already stays, painted or not: it is the same frame."""
    for suggestion in suggestions:
        path = folder / suggestion.file_name
        if not path.exists():
            with closing(planned_frames(film, times, suggestion.frame)) as frames:
                _, planes = next(frames)
            write_image(path, planes.grey(*planes.y.shape))


def explain_film(painter: Painter, records: Records, film: Film | NumberedFrames, target: Path,
                 summaries: dict[str, dict[str, float]], args: Namespace) -> None:
    """Write what goes with a coloured film: the report, the frames to colour next, the panel."""
    suggestions, folder = suggest_frames(records, args.suggest), beside(target, "colour_these")
    thumbnails = memory_pictures(painter.colorizer) if painter.remembers else {}
    report = beside(target, "report.html")
    write_report(report, records, film.name, suggestions, names=painter.names, thumbnails=thumbnails,
                 summaries=summaries, facts={"checkpoint": args.checkpoint, "palette from": painter.source},
                 folder=folder.name)
    print(f"how it went, shot by shot: {report}")
    if suggestions:
        save_suggestions(folder, film, records.pts, suggestions)
        print(f"{len(suggestions)} frames to colour next, for --references: {folder}")
    if args.panel:
        begin = records.pts[0] if args.start else None
        write_panel(painter, film, beside(target, "panel.mp4"), records, begin, args.batch_size)
        print(f"what the memory recalls: {beside(target, 'panel.mp4')}")


def find_work(source: Path, output: Path) -> tuple[list[tuple[Path, Path]], list[tuple[Path | NumberedFrames, Path]]]:
    """(pictures, films), each a list of (input, output), for --input and --output. The input of a film is its path, or
    NumberedFrames, whose output is what all that goes with them is named like. Raises UserError when there is none, or
    when two outputs or an input and an output are the same file."""
    def video_name(path):
        return path.stem + (path.suffix if path.suffix.lower() in OUTPUT_SUFFIXES else ".mkv")  # .mkv carries all

    pictures: list[tuple[Path, Path]] = []
    films: list[tuple[Path | NumberedFrames, Path]] = []
    if not source.exists():
        raise UserError(f"there is no {source}; name a picture, a video or a folder of either by --input")
    if source.is_dir():
        sequences, paths = find_sequences(list_files(source, IMAGE_SUFFIXES))
        pictures = [(path, output / path.name) for path in paths]
        films += [(path, output / video_name(path)) for path in list_files(source, VIDEO_SUFFIXES)]
        films += [(frames, output / frames.stem) for frames in sequences]
        if not pictures and not films:
            raise UserError(f"there is no picture in {source} (expected {', '.join(IMAGE_SUFFIXES)}), and no video "
                            f"({', '.join(VIDEO_SUFFIXES)})")
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        films = [(source, output if output.suffix.lower() in VIDEO_SUFFIXES else output / video_name(source))]
    elif source.suffix.lower() in IMAGE_SUFFIXES:
        pictures = [(source, output if output.suffix.lower() in IMAGE_SUFFIXES else output / source.name)]
    else:
        raise UserError(f"{source} is neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a video "
                        f"({', '.join(VIDEO_SUFFIXES)})")
    if any(source.resolve() == output.resolve() if isinstance(path, NumberedFrames) else
           path.resolve() == target.resolve() for path, target in pictures + films):
        raise UserError(f"the output {output} is the input itself; name another --output")
    names = {}
    for path, target in [*pictures, *((path, beside(target, "report.html")) for path, target in films)]:
        if target in names:
            raise UserError(f"{names[target]} and {path} would both be written to {target}; rename one of them")
        names[target] = path
    return pictures, films


def is_done(path: Path | NumberedFrames, target: Path) -> bool:
    """Whether a film of ``find_work`` is coloured, and all that goes with it was written."""
    if isinstance(path, NumberedFrames):
        coloured = path.coloured(target, path.paths)
        return all(picture.exists() for picture in coloured.paths.values()) and not parts_folder(target).exists()
    return target.exists() and not is_joined(target)


def color_film(painter: Painter, args: Namespace, work: tuple[Path | NumberedFrames, Path]) -> None:
    """Colour a film of ``find_work``, a pair of (input, output), and write what goes with it."""
    path, target = work
    settings = VideoSettings(args.codec, args.crf, args.pix_fmt, args.colour_only, args.keep_colour_shots, args.start,
                             args.end, args.batch_size)
    film = path if isinstance(path, NumberedFrames) else Film(path)
    ours = args.overwrite or beside(target, "metrics.json").exists() or parts_folder(target).exists()
    refuse_existing([beside(target, name) for name in ("report.html", "panel.mp4", "comparison.png")], ours)
    started = time.monotonic()

    def explain(records):
        seconds, count = time.monotonic() - started, records[-1].end_frame
        evaluation, result = Evaluation(), film.coloured(target, records.pts)
        print(f"coloured {count} frames of {len(records)} shots in {seconds:.1f} s: {result.path}")
        try:
            if not args.colour_only and any(record.truth is not None for record in records):
                measure_film(records, film, result, settings, evaluation)
            evaluation.report(target.parent, f"{target.stem}_", {
                "input": str(film.path), **facts_of(painter, args), "pictures": count, "shots": len(records),
                "seconds": round(seconds, 2)}, True)
            explain_film(painter, records, film, target, evaluation.summaries(), args)
        except UserError as error:
            raise UserError(f"{error}; the film itself is whole, and the same command makes what is missing") from error

    color_video(painter, film, target, settings, args.overwrite, explain)


def facts_of(painter: Painter, args: Namespace) -> dict[str, str]:
    """What the metrics say of how it was coloured."""
    return {"checkpoint": str(args.checkpoint), "color_feature": painter.source}


def run(args: Namespace) -> None:
    """Colour ``args.input`` into ``args.output`` as the command line says."""
    source, output = Path(args.input), Path(args.output)
    pictures, films = find_work(source, output)
    pictures = pictures if args.shard.number == 1 else []  # all together, as they are measured together
    films = args.shard.of(films)
    if source.is_dir() and not args.overwrite:
        asked = len(pictures) + len(films)
        pictures = [pair for pair in pictures if not pair[1].exists()]
        films = [pair for pair in films if not is_done(*pair)]
        if done := asked - len(pictures) - len(films):
            print(f"{done} of {source} are in {output} already and skipped (--overwrite True does them again)")
    if args.save_checkpoint and not args.references:
        raise UserError("--save_checkpoint keeps the references; name their folder by --references")
    kept = [args.save_checkpoint] if args.save_checkpoint else []
    refuse_existing([target for _, target in pictures] + [target for path, target in films if is_done(path, target)]
                    + kept, args.overwrite)
    if not pictures and not films:
        return
    painter = load_painter(args)
    if args.panel and not painter.remembers:
        raise UserError("--panel shows what the memory recalls, and none is read here; leave --color_feature and "
                        "--reference out, or train with use_memory True")
    if pictures:
        evaluation, started = Evaluation(), time.monotonic()
        count = color_pictures(painter, pictures, evaluation)
        seconds = time.monotonic() - started
        place = output if source.is_dir() else pictures[0][1]
        print(f"coloured {count} pictures in {seconds:.1f} s: {place}")
        folder, prefix = (output, "") if source.is_dir() else (place.parent, f"{place.stem}_")
        evaluation.report(folder, prefix, {"input": str(source), **facts_of(painter, args), "pictures": count,
                                           "seconds": round(seconds, 2)}, args.overwrite)
    if films:
        alone = min(args.workers, len(films)) == 1
        prepare = partial(partial, color_film, painter, args) if alone else partial(prepare_worker, args)
        color_films(prepare, films, args.workers)


def color_films(prepare: Callable[[], Callable[[Any], None]], films: Sequence[tuple[Path | NumberedFrames, Path]],
                workers: int) -> None:
    """Colour films of ``find_work`` by ``workers`` processes; see share_out. Raises UserError at the end when some of
    them could not be coloured."""
    failures = 0
    with closing(share_out(prepare, films, workers)) as answers:
        for _, error in answers:
            if error is not None and len(films) == 1:
                raise error
            if error is not None:
                warn(f"{error}; the others go on")
                failures += 1
    if failures:
        raise UserError(f"{failures} of {len(films)} films failed; mend or remove them and run again")


def prepare_worker(args: Namespace) -> Callable[[tuple[Path | NumberedFrames, Path]], None]:
    """The work of a process of its own: color_film with its own painter."""
    args.save_checkpoint = None  # it is written already
    return partial(color_film, load_painter(args), args)


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="test.py", description=__doc__)
    group = parser.add_argument_group("files")
    group.add_argument("--checkpoint", type=Path, default="checkpoints/best.pt", help="what train.py wrote")
    group.add_argument("--input", type=Path, default="dataset/test", help="a picture, a video, or a folder of either")
    group.add_argument("--output", type=Path, default="results",
                       help="a folder, or for a single input the file to write (.mp4, .mkv, .mov or .webm for a video)")
    group.add_argument("--overwrite", type=boolean, default=False,
                       help="replace results that exist; else those of a folder are skipped")
    group = parser.add_argument_group("colours")
    group.add_argument("--color_feature", choices=["auto", "memory", "integrator", "truth"], default="auto",
                       help="where the palette of each picture comes from: the memory's slot of --rank, the integrator "
                       "or the input's own colours; auto is the way that the checkpoint was trained")
    group.add_argument("--rank", type=int, choices=[1, 2, 3], default=1, help="which of the memory's best slots")
    group.add_argument("--reference", type=Path, help="a picture in colour whose palette is used for everything")
    group.add_argument("--references", type=Path, help="a folder of colour pictures to add to the memory: frames like "
                       "them take their colours, with no training")
    group.add_argument("--save_checkpoint", type=Path, help="write the checkpoint with the references to this file")
    group = parser.add_argument_group("video")
    group.add_argument("--start", type=parse_time, default=0.0, metavar="TIME",
                       help="colour only from here on, in seconds or hh:mm:ss")
    group.add_argument("--end", type=parse_time, default=math.inf, metavar="TIME", help="and up to here")
    group.add_argument("--codec", help="FFmpeg's encoder, such as h264, hevc, vp9 or av1; vp9 for .webm, else h264")
    group.add_argument("--crf", type=int, help="quality of that encoder, lower is better; 16 for h264")
    group.add_argument("--pix_fmt", help="FFmpeg's pixel format; 4:2:0 with 10 bits for a source of more than 8")
    group.add_argument("--colour_only", type=boolean, default=False,
                       help="write the chroma alone, on neutral lightness, for compositing")
    group.add_argument("--keep_colour_shots", type=boolean, default=False,
                       help="leave shots that are already in colour as they are")
    group.add_argument("--suggest", type=int, default=10,
                       help="how many frames to write as grey pictures whose colouring would help most; 0 for none")
    group.add_argument("--panel", type=boolean, default=False,
                       help="write a second film that shows what the memory recalls")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch_size", type=int, default=8, help="frames of a video in one pass of the network")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to run the networks")
    group.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto",
                       help="of the networks; auto is bf16 where the hardware is fast at it")
    group.add_argument("--workers", type=int, default=1,
                       help="films of a folder to colour at the same time, in processes with networks of their own")
    group.add_argument("--shard", type=parse_shard, default=Shard(), metavar="i/n",
                       help="do the i-th of n parts of a folder, from 1 on, as on n machines; part 1 has all pictures")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise UserError(f"workers is {args.workers}; set it to at least 1")
    if args.batch_size < 1:
        raise UserError(f"batch_size is {args.batch_size}; set it to at least 1")
    if args.suggest < 0:
        raise UserError(f"suggest is {args.suggest}; set it to at least 0")
    if args.end <= args.start:
        raise UserError(f"--end {args.end:g} s is not after --start {args.start:g} s")
    run(args)


if __name__ == "__main__":
    run_cli(main)
