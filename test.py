"""What does it do for you? ``python test.py`` colors a picture, a video or a folder of either by a checkpoint.

Color input counts as the truth: it is turned gray first, and the result is measured against it.
"""

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import colorizer.threads  # noqa: F401  before torch is imported

import cv2
import numpy as np
from tqdm import tqdm

from colorizer.confidence import Confidence
from colorizer.metrics import Scores, has_color, measured_size, metrics_table
from colorizer.predictor import Predictor, load_predictor
from config import ColorConfig, FilmConfig, part_of
from dataset import lab_to_rgb, resize, rgb_to_lab
from fileio.atomic import atomic_write
from fileio.images import IMAGE_SUFFIXES, image_grid, read_deep_image, write_image
from film.io.encoding import OUTPUT_SUFFIXES
from film.io.image_sequence import ImageSequence, find_sequences, write_colored_frame
from film.io.luma_check import check_luma
from film.io.planes import Planes, ab_to_chroma, planes_from_rgb
from film.io.thread_pool import coloring_threads, map_in_order
from film.io.video import VIDEO_SUFFIXES, Film, VideoFile, find_videos, frames_at, is_video
from film.render.incremental import can_update
from film.render.rendering import RenderJob, compare, confidence_video_path
from film.render.segments import is_complete, read_completion, segment_folder
from film.render.work_queue import WorkQueue
from film.render.worker_group import WorkerGroup, run_isolated
from film.report.confidence_video import confidence_map, tint_grayscale
from film.report.html_report import Report, write_report
from film.report.memory_thumbnails import memory_thumbnails
from film.report.memory_video import write_memory_video
from film.report.records import Records
from film.report.suggestions import Suggestion, suggest_frames
from utils import UserError, list_files, read_flags, run_cli, warn

# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


class Measured(NamedTuple):
    """What was measured of a picture."""

    gray: dict[str, float]  # of ``Scores.rows``
    result: dict[str, float]
    row: list[np.ndarray]  # of the comparison: gray, result and truth


class Evaluation:
    """Scores of results and of plain gray against the truth, and pictures for the comparison."""

    ROWS = 6  # of the comparison picture
    WIDTH = 320  # of a picture in it

    def __init__(self) -> None:
        self.scores = {"gray": Scores(), "result": Scores()}
        self.rows = []
        self.stride = 1  # one picture in so many is kept for the comparison
        self.seen = 0

    @classmethod
    def measure(cls, truth: np.ndarray, result: np.ndarray) -> Measured | None:
        """Measure a truth and its result, RGB uint8 (H, W, 3) of one size, at their ``measured_size``; a truth without
        color does not count."""
        if not has_color(truth):
            return None
        truth, result = (resize(picture, *measured_size(*truth.shape[:2])) for picture in (truth, result))
        lab = rgb_to_lab(truth)
        lab[..., 1:] = 0
        gray = lab_to_rgb(lab)
        height = max(1, round(cls.WIDTH * truth.shape[0] / truth.shape[1]))
        return Measured(Scores.measure(gray, truth), Scores.measure(result, truth),
                        [resize(picture, height, cls.WIDTH) for picture in (gray, result, truth)])

    def add(self, measured: Measured | None) -> None:
        """Take what ``measure`` gave."""
        if measured is None:
            return
        self.scores["gray"].rows.append(measured.gray)
        self.scores["result"].rows.append(measured.result)
        if self.seen % self.stride == 0:
            self.rows.append(measured.row)
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
            if not (folder / f"{prefix}metrics.json").exists():  # else an earlier run wrote the comparison
                refuse_existing([comparison], overwrite)
            write_image(comparison, image_grid(self.rows[:self.ROWS]))
            print(f"compare gray | result | truth in {comparison}")
        with atomic_write(folder / f"{prefix}metrics.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and videos


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises UserError when one of the files exists and may not be replaced."""
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists already; pass --overwrite True or another --output")


def need_color(predictor: Predictor, picture: np.ndarray, path: Path) -> None:
    """Raises UserError when the input's own colors are asked for (--color_feature truth) and it has none."""
    if predictor.source == "truth" and not has_color(picture):
        raise UserError(f"{path} has no colors of its own for --color_feature truth; use another --color_feature")


def color_deep(predictor: Predictor, planes: Planes) -> tuple[Planes, Confidence]:
    """Color a picture of more than 8 bits, at its own luma; returns it and what is Known of its places."""
    height, width = planes.y.shape
    (ab,), known = predictor.predict_ab([cv2.cvtColor(planes.rgb(height, width), cv2.COLOR_RGB2Lab)])
    cb, cr = ab_to_chroma(planes, ab, height, width, planes.coding)
    return planes._replace(cb=cb, cr=cr), known


def color_picture(predictor: Predictor, confidence: bool, pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray] | None:
    """Color a picture, a pair of (input, output) paths, and map what is known of it if ``confidence``; returns it and
    the result, RGB uint8 (H, W, 3). An unreadable one is skipped: None."""
    source, target = pair
    try:
        read = read_deep_image(source)
    except UserError as error:
        warn(f"{error}; skipped")
        return None
    if read.depth == 8:
        picture = read.rgb
        need_color(predictor, picture, source)
        (result,), known = predictor.colorize_with_confidence([picture])
        write_image(target, result)
    else:
        planes = planes_from_rgb(read.rgb, read.depth)
        picture = planes.rgb_uint8()
        need_color(predictor, picture, source)
        planes, known = color_deep(predictor, planes)
        write_colored_frame(target, planes, source)
        result = planes.rgb_uint8()
    if confidence:
        gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        write_image(beside(target, MAP), tint_grayscale(gray, confidence_map(next(known.each()))))
    return picture, result


def color_pictures(predictor: Predictor, pairs: Sequence[tuple[Path, Path]], evaluation: Evaluation,
                   confidence: bool) -> int:
    """``color_picture`` for all pairs; returns how many were colored."""
    done = 0

    def colored(pair):
        """Whether the picture was colored, and what was measured of it."""
        pictures = color_picture(predictor, confidence, pair)
        return (False, None) if pictures is None else (True, evaluation.measure(*pictures))

    with coloring_threads() as pool:
        answers = map_in_order(pool, colored, pairs)
        for _, (was_colored, measured) in tqdm(answers, total=len(pairs), unit="picture", disable=None):
            evaluation.add(measured)
            done += was_colored
    if not done:
        raise UserError(f"no picture could be read in {pairs[0][0].parent}")
    return done


def measure_film(records: Records, film: Film, result: Film, config: ColorConfig, evaluation: Evaluation) -> None:
    """Compare one frame a second, at most 200, of a film with its ``result``, both read from their files, at their
    ``measured_size``. Shots that were left as they were do not count, nor do bars."""
    shots = [(range(record.start_frame, record.end_frame), record.box) for record in records if not record.left_unchanged]
    frames = records[-1].end_frame
    rate = frames / (records[-1].end_time - records[0].start_time)
    every = min(frames, max(1, round(rate), math.ceil(frames / 200)))
    pairs = ((truth.crop(box), painted.crop(box)) for index, truth, painted in compare(film, result, config, every)
             for shot, box in shots if index in shot)

    def measure(pair):
        return evaluation.measure(*(planes.rgb_uint8(*measured_size(*planes.y.shape)) for planes in pair))

    with coloring_threads() as pool:
        for _, measured in map_in_order(pool, measure, pairs):
            evaluation.add(measured)


STILLS = "the pictures"
MAP = "confidence.png"  # of what is known of a picture


def beside(target: Path, name: str) -> Path:
    """The path of a file beside the colored film or picture ``target`` that belongs to it."""
    return target.with_name(f"{target.stem}_{name}")


def save_suggestions(folder: Path, film: Film, times: Sequence[int],
                     suggestions: Iterable[Suggestion]) -> None:
    """Write the suggested frames of ``film`` as gray pictures of its size, without bars, to be painted. ``times`` are
    the pts of all colored frames. A file that exists is kept, as it may be painted; it shows the same frame if --start
    is the same."""
    missing = {suggestion.frame: suggestion for suggestion in suggestions
               if not (folder / suggestion.file_name).exists()}

    def write(frame):
        index, planes = frame
        planes = planes.crop(missing[index].shot.box)
        write_image(folder / missing[index].file_name, planes.gray_uint8(*planes.y.shape))

    with coloring_threads() as pool, closing(frames_at(film, times, sorted(missing))) as frames:
        for _ in map_in_order(pool, write, frames):
            pass


def write_film_report(predictor: Predictor, records: Records, film: Film, target: Path, summaries: dict[str, dict[str, float]],
                 config: ColorConfig) -> None:
    """Write what goes with a colored film: the report, the frames to color next, the panel."""
    suggestions, folder = suggest_frames(records, config.suggest), beside(target, "color_these")
    thumbnails = memory_thumbnails(predictor.colorizer) if predictor.uses_memory else {}
    facts = {label.replace("color_feature", "palette from"): text for label, text in coloring_facts(predictor, config).items()}
    report = Report(film.name, records, suggestions, folder.name, predictor.names, thumbnails, summaries,
                    facts, records.response)
    write_report(beside(target, "report.html"), report)
    print(f"how it went, shot by shot: {beside(target, 'report.html')}")
    if suggestions:
        save_suggestions(folder, film, records.pts, suggestions)
        print(f"{len(suggestions)} frames to color next, for --references: {folder}")
    if config.confidence:
        print(f"what is recalled, guessed and unknown: {confidence_video_path(target)}")
    if config.panel:
        begin = records.pts[0] if config.start else None
        write_memory_video(predictor.with_response(records.response), film, beside(target, "panel.mp4"), records, begin,
                    config.batch_size)
        print(f"what the memory recalls: {beside(target, 'panel.mp4')}")


def find_inputs(source: Path, output: Path,
              maps: bool = False) -> tuple[list[tuple[Path, Path]], list[tuple[Film, Path]]]:
    """(pictures, films) for --input and --output, each a list of (input, output). For numbered frames, output is the
    path that report, metrics and log are named after. What an earlier run wrote beside a result, a map (``maps``: with
    them) or a panel, is no input. Raises UserError when there is no input, or when two outputs, or an input and an
    output, are the same file."""
    def video_name(path):
        return path.stem + (path.suffix if path.suffix.lower() in OUTPUT_SUFFIXES else ".mkv")  # .mkv carries all

    pictures: list[tuple[Path, Path]] = []
    films: list[tuple[Film, Path]] = []
    if not source.exists():
        raise UserError(f"there is no {source}; name a picture, a video or a folder of either by --input")
    if source.is_dir():
        sequences, paths = find_sequences(_inputs(list_files(source, IMAGE_SUFFIXES)))
        pictures = [(path, output / path.name) for path in paths]
        films += [(VideoFile(path), output / video_name(path)) for path in _inputs(find_videos(source))]
        films += [(frames, output / frames.stem) for frames in sequences]
        if not pictures and not films:
            raise UserError(f"there is no picture in {source} (expected {', '.join(IMAGE_SUFFIXES)}), and no video")
    elif source.suffix.lower() in IMAGE_SUFFIXES:
        pictures = [(source, output if output.suffix.lower() in IMAGE_SUFFIXES else output / source.name)]
    elif source.suffix.lower() in VIDEO_SUFFIXES or is_video(source):
        target = output if output.suffix.lower() in VIDEO_SUFFIXES else output / video_name(source)
        films = [(VideoFile(source), target)]
    else:
        raise UserError(f"{source} is neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a video that FFmpeg reads")
    refuse_clashes(pictures, films, output, maps)
    return pictures, films


def _inputs(paths):
    """``paths`` of one folder without what an earlier run wrote beside one of them."""
    stems = {path.stem for path in paths}
    return [path for path in paths if re.sub("_(confidence|panel)$", "", path.stem) not in stems - {path.stem}]


def refuse_clashes(pictures: Sequence[tuple[Path, Path]], films: Sequence[tuple[Film, Path]], output: Path,
                   maps: bool) -> None:
    """Raises UserError when two outputs, or an input and an output, are the same file."""
    if (any(path.resolve() == target.resolve() for path, target in pictures)
            or any(film.is_overwritten_by(target) for film, target in films)):
        raise UserError(f"the output {output} is the input itself; name another --output")
    names: dict[Path, Path] = {}
    mapped = [(path, beside(target, MAP)) for path, target in pictures] if maps else []
    for path, target in [*pictures, *mapped, *((film.path, beside(target, "report.html")) for film, target in films)]:
        if target in names:
            raise UserError(f"{names[target]} and {path} would both be written to {target}; rename one of them")
        names[target] = path


def color_film_and_report(predictor: Predictor, config: ColorConfig, work: tuple[Film, Path], queue: WorkQueue | None = None) -> None:
    """Color a film of ``find_work``, a pair of (input, output), with all who help by the ``board``, and write what goes
    with it."""
    film, target = work
    ours = config.overwrite or beside(target, "metrics.json").exists() or segment_folder(target).exists()
    refuse_existing([beside(target, name) for name in ("report.html", "panel.mp4", "comparison.png")], ours)
    started = time.monotonic()

    def explain(records):
        seconds, count = time.monotonic() - started, records[-1].end_frame
        evaluation, result = Evaluation(), film.colored_film(target, records.pts)
        print(f"colored {count} frames of {len(records)} shots in {seconds:.1f} s: {result.path}")
        proof = {}
        if config.proof:
            proof["luma"] = check_luma(film, result, config)
            print(proof["luma"])
        try:
            if not config.color_only and any(record.ground_truth is not None for record in records):
                measure_film(records, film, result, config, evaluation)
            evaluation.report(target.parent, f"{target.stem}_", {
                "input": str(film.path), **coloring_facts(predictor, config), "pictures": count, "shots": len(records),
                "seconds": round(seconds, 2), **proof}, True)
            write_film_report(predictor, records, film, target, evaluation.summaries(), config)
        except UserError as error:
            raise UserError(f"{error}; the film itself is whole, and the same command makes what is missing") from error

    film_work(predictor, config, work).run_as_owner(queue or WorkQueue(), explain)


def film_work(predictor: Predictor, config: ColorConfig, work: tuple[Film, Path]) -> RenderJob:
    """The work on a film of ``find_work``, a pair of (input, output)."""
    return RenderJob(predictor, *work, part_of(config, FilmConfig), config.overwrite)


def coloring_facts(predictor: Predictor, config: ColorConfig) -> dict[str, str]:
    """The entries of metrics.json and of the report that tell how the input was colored."""
    told = {"references": f"{predictor.grade}; brought to its colors"} if predictor.grade else {}
    return {"checkpoint": str(config.checkpoint), "color_feature": predictor.source, **told}


def color(config: ColorConfig) -> None:
    """Color ``config.input`` into ``config.output``, with all processes that torchrun started. Raises UserError for all
    that the user can mend; of several processes the others raise SystemExit then."""
    config.check()
    group = WorkerGroup.join()
    work = group.compute_on_leader("work", partial(plan_work, config, group.size > 1))
    config = replace(config, save_checkpoint=None)  # it is written
    if group.is_single_process and len(work["films"]) > 1:
        run_isolated(keys_of(work), color_shared, config, work)
    elif work["pictures"] or work["films"]:
        color_shared(group, config, work)


def prepare(config: ColorConfig) -> Predictor:
    """The predictor. Raises UserError where it cannot do what ``config`` asks for."""
    predictor = load_predictor(config)
    if config.panel and not predictor.uses_memory:
        raise UserError("--panel shows what the memory recalls, and none is read here; leave --color_feature and "
                        "--reference out, or train with use_memory True")
    if config.confidence and not predictor.uses_spatial_memory:
        raise UserError("--confidence shows what the spatial memory recalls, and none is read here; leave "
                        "--color_feature and --reference out, or train with use_spatial_memory True")
    return predictor


def plan_work(config: ColorConfig, largest_first: bool) -> dict[str, Any]:
    """What is to be done, as plain values: ``pictures``, pairs (input, output), and ``films``, a dict from its name to
    (its path, or {number: path} of numbered frames; prefix of their names; output). Raises UserError when something is
    in the way."""
    def size(pair):
        film, _ = pair
        paths = film.paths.values() if isinstance(film, ImageSequence) else [film.path]
        return sum(path.stat().st_size for path in paths)

    pictures, films = find_inputs(config.input, config.output, config.confidence)
    asked, done = len(pictures) + len(films), []
    if config.input.is_dir() and not config.overwrite:
        pictures = [pair for pair in pictures if not pair[1].exists()]
        done = [(film, target) for film, target in films if is_complete(film, target)]
        films = [pair for pair in films if pair not in done]
    kept = [config.save_checkpoint] if config.save_checkpoint else []
    maps = [beside(target, MAP) for _, target in pictures] if config.confidence else []
    refuse_existing([target for _, target in pictures]
                    + [target for film, target in films if is_complete(film, target) and not read_completion(target)]
                    + kept + maps, config.overwrite)
    done = [(film, target) for film, target in done
            if (finished := read_completion(target)) and (config.references or finished.references)]
    if done or config.save_checkpoint:
        predictor = prepare(config)
        films += [(film, target) for film, target in done if can_update(predictor, film, target, config)]
    if skipped := asked - len(pictures) - len(films):
        print(f"{skipped} of {config.input} are in {config.output} already and skipped (--overwrite True does them "
              "again)")
    if largest_first:
        films.sort(key=size, reverse=True)
    return {"pictures": [(str(path), str(target)) for path, target in pictures],
            "films": {str(film): ({number: str(path) for number, path in film.paths.items()}, film.prefix, str(target))
                      if isinstance(film, ImageSequence) else (str(film.path), "", str(target))
                      for film, target in films}}


def keys_of(work: dict[str, Any]) -> list[str]:
    """What processes share of ``plan_work``: the pictures together, and each film."""
    return [STILLS] * bool(work["pictures"]) + list(work["films"])


def planned_film(source: str | dict[str, str], prefix: str, target: str) -> tuple[Film, Path]:
    """(film, output) of a film of ``plan_work``."""
    if isinstance(source, str):
        return VideoFile(source), Path(target)
    return ImageSequence({int(number): Path(path) for number, path in source.items()}, prefix), Path(target)


def color_shared(group: WorkerGroup, config: ColorConfig, work: dict[str, Any]) -> None:
    """Do what ``plan_work`` found, with all processes of the crew: pictures by one of them, films shot by shot.
    Returns, or raises UserError, when all is done."""
    load = cache(partial(prepare, config))
    films = {key: planned_film(*entry) for key, entry in work["films"].items()}
    stills = [(Path(path), Path(target)) for path, target in work["pictures"]]

    def host(key):
        if key == STILLS:
            color_stills(load(), config, stills)
        else:
            color_film_and_report(load(), config, films[key], WorkQueue(group, key))

    def help(key, queue):
        film_work(load(), config, films[key]).run_as_helper(WorkQueue(group, key, queue))

    keys = keys_of(work)
    if group.pending(keys):
        load()  # or raise what is wrong with it, once
    errors = group.run_all(keys, host, help)
    if not errors:
        return
    if not group.is_leader:
        raise SystemExit(1)
    failed = len(films.keys() & errors.keys())
    if failed == 0 or len(films) == 1:
        raise next(iter(errors.values()))
    raise UserError(f"{failed} of {len(films)} films failed; mend or remove them and run again")


def color_stills(predictor: Predictor, config: ColorConfig, pictures: Sequence[tuple[Path, Path]]) -> None:
    """Color pictures of ``find_work``, pairs of (input, output), and measure them together."""
    evaluation, started = Evaluation(), time.monotonic()
    count = color_pictures(predictor, pictures, evaluation, config.confidence)
    seconds = time.monotonic() - started
    folder, prefix, place = config.output, "", config.output
    if not config.input.is_dir():
        place = pictures[0][1]
        folder, prefix = place.parent, f"{place.stem}_"
    print(f"colored {count} pictures in {seconds:.1f} s: {place}")
    evaluation.report(folder, prefix, {"input": str(config.input), **coloring_facts(predictor, config), "pictures": count,
                                       "seconds": round(seconds, 2)}, config.overwrite)


def main(argv: list[str]) -> None:
    color(ColorConfig(**read_flags(ColorConfig, argv, __doc__)))


if __name__ == "__main__":
    run_cli(main)
