"""Color a picture, a video, or a folder of pictures and videos with a trained checkpoint: ``python test.py``.

Input in color is converted to grayscale first, and its original colors serve as the ground truth for the metrics.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import colorizer.threads  # noqa: F401  before torch is imported

from colorizer.characters import names_of
from colorizer.predictor import Predictor, load_predictor
from colorizer.scopes import ONLY_THIS_SHOT, SIMILAR_SHOTS, list_scopes, shot_numbers
from colorizer.series_colors import learned_colors
from config import ColorConfig, FilmConfig, part_of
from fileio.images import IMAGE_SUFFIXES
from fileio.outputs import accompanying_path, check_writable, refuse_existing
from fileio.palettes import check_palette_suffix, write_palette
from film.analysis.cut_lists import cut_list_paths, read_cut_list, write_cut_list
from film.analysis.transitions import Boundary
from film.io.fallback import find_fallback, find_fallback_picture
from film.io.image_sequence import ImageSequence, find_sequences
from film.io.luma_check import check_luma
from film.io.mux import OUTPUT_SUFFIXES
from film.io.video import VIDEO_SUFFIXES, Film, VideoFile, find_videos, frames_before, is_video
from film.render.incremental import can_update
from film.render.pictures import CONFIDENCE_MAP, color_pictures
from film.render.rendering import RenderJob, confidence_video_path
from film.render.segments import is_complete, read_completion, segment_folder
from film.render.work_queue import WorkQueue
from film.render.worker_group import WorkerGroup, run_isolated
from film.report.evaluation import Evaluation
from film.report.html_report import Report, write_report
from film.report.memory_thumbnails import memory_thumbnails
from film.report.memory_video import write_memory_video
from film.report.records import Records
from film.report.suggestions import suggest_frames, write_suggested_frames
from utils import UserError, list_files, read_flags, run_cli, warn

ALL_PICTURES = "the pictures"  # WorkerGroup key for all pictures together; the key of a film is its path


class Inputs(NamedTuple):
    """Pairs of (input, output). For an image sequence, accompanying files are named after the output path."""

    pictures: list[tuple[Path, Path]]
    films: list[tuple[Film, Path]]
    boundaries: Sequence[tuple[int, int, bool]] | None = None  # see FilmConfig; from --cuts


# ---------------------------------------------------------------------------------------------------------------------
# Inputs and outputs


def find_inputs(source: Path, output: Path, confidence: bool = False, rate: Fraction = ColorConfig.fps,
                luma_range: str = "auto") -> Inputs:
    """Find the pictures and films in ``source``, and pair each with its output path; ``rate`` is that of numbered
    frames, ``luma_range`` that of videos.

    Confidence maps, confidence videos and memory videos of earlier runs are left out. Raises UserError if there is no
    input, or as ``refuse_clashes`` does.
    """
    def output_name(path):
        return path.stem + (path.suffix if path.suffix.lower() in OUTPUT_SUFFIXES else ".mkv")  # .mkv holds all codecs

    inputs = Inputs([], [])
    if not source.exists():
        raise UserError(f"{source} does not exist; pass a picture, a video or a folder of either to --input")
    if source.is_dir():
        sequences, paths = find_sequences(_without_results(list_files(source, IMAGE_SUFFIXES)), rate)
        inputs.pictures.extend((path, output / path.name) for path in paths)
        inputs.films.extend((VideoFile(path, luma_range), output / output_name(path))
                            for path in _without_results(find_videos(source)))
        inputs.films.extend((sequence, output / sequence.stem) for sequence in sequences)
        if not inputs.pictures and not inputs.films:
            raise UserError(f"{source} contains neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a video")
    elif source.suffix.lower() in IMAGE_SUFFIXES:
        is_file = output.suffix.lower() in IMAGE_SUFFIXES
        inputs.pictures.append((source, output if is_file else output / source.name))
    elif source.suffix.lower() in VIDEO_SUFFIXES or is_video(source):
        is_file = output.suffix.lower() in VIDEO_SUFFIXES
        inputs.films.append((VideoFile(source, luma_range), output if is_file else output / output_name(source)))
    else:
        raise UserError(f"{source} is neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a video that FFmpeg reads")
    refuse_clashes(inputs, output, confidence)
    return inputs


def _without_results(paths):
    """Return ``paths`` without the confidence and memory files that belong to other ``paths``."""
    stems = {path.stem for path in paths}
    return [path for path in paths if re.sub("_(confidence|memory)$", "", path.stem) not in stems - {path.stem}]


def refuse_clashes(inputs: Inputs, output: Path, confidence: bool) -> None:
    """Raise UserError if two outputs (confidence maps included if ``confidence``) or an input and its output clash."""
    if (any(path.resolve() == target.resolve() for path, target in inputs.pictures)
            or any(film.is_overwritten_by(target) for film, target in inputs.films)):
        raise UserError(f"the output {output} is the input itself; pass another --output")
    maps = [(path, accompanying_path(target, CONFIDENCE_MAP)) for path, target in inputs.pictures if confidence]
    reports = [(film.path, accompanying_path(target, "report.html")) for film, target in inputs.films]
    sources: dict[Path, Path] = {}
    for path, target in [*inputs.pictures, *maps, *reports]:
        if target in sources:
            raise UserError(f"{sources[target]} and {path} would both be written to {target}; rename one of them")
        sources[target] = path


def prepare_inputs(config: ColorConfig, largest_films_first: bool) -> Inputs:
    """Return the inputs to color; also load the predictor to save it, if ``config.save_checkpoint`` is set.

    In a folder, finished inputs are skipped, except for films that were colored with a different palette or different
    references. Raises UserError if an existing file would be overwritten without ``config.overwrite``.
    """
    pictures, films, _ = find_inputs(config.input, config.output, config.confidence, config.fps, config.range)
    refuse_shot_numbers(config.references, len(films))
    refuse_shot_numbers(config.palette, len(films))
    config = replace(config, boundaries=listed_boundaries(config, films))
    check_fallbacks(config, pictures, films)
    kept, finished, found_films = [], [], len(films)
    if config.input.is_dir() and not config.overwrite:
        kept = [target for _, target in pictures if target.exists()]
        pictures = [] if len(kept) == len(pictures) else pictures  # metrics are those of all pictures
        finished = [pair for pair in films if is_complete(*pair)]
        films = [pair for pair in films if pair not in finished]
    saved = [config.save_checkpoint] if config.save_checkpoint else []
    new = [target for _, target in pictures if target not in kept]
    maps = [accompanying_path(target, CONFIDENCE_MAP) for target in new if config.confidence]
    foreign = [target for film, target in films if is_complete(film, target) and not read_completion(target)]
    refuse_existing([*new, *foreign, *saved, *maps], config.overwrite)
    check_writable([*(target for _, target in [*pictures, *films]), *saved])
    added = config.references or config.characters or config.palette
    finished = [(film, target) for film, target in finished
                if (completion := read_completion(target)) and (added or completion.references)]
    if finished or config.save_checkpoint:
        predictor = load(config)  # saves config.save_checkpoint
        films += [(film, target) for film, target in finished if can_update(predictor, film, target, config)]
    if skipped := len(kept) + found_films - len(films):
        print(f"{skipped} of {config.input} are in {config.output} already and are skipped (pass --overwrite True to "
              "color them again)")
    if largest_films_first:
        films.sort(key=_size, reverse=True)
    return Inputs(pictures, films, config.boundaries)


def check_fallbacks(config: ColorConfig, pictures: Sequence[tuple[Path, Path]],
                    films: Sequence[tuple[Film, Path]]) -> None:
    """Warn about inputs without a version in ``config.fallback``. Raises UserError if none has one."""
    if config.fallback is None:
        return
    missing = [path.name for path, _ in pictures if find_fallback_picture(config.fallback, path) is None]
    missing += [film.path.name for film, _ in films if find_fallback(config.fallback, film) is None]
    if len(missing) == len(pictures) + len(films):
        raise UserError(f"{config.fallback} has no version of {config.input}; pass a file, or a folder of files that "
                        "are named like the inputs")
    if missing:
        warn(f"{config.fallback} has no version of {len(missing)} inputs, which are colored without a fallback: "
             f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")


def _size(pair):
    film, _ = pair
    paths = film.paths.values() if isinstance(film, ImageSequence) else [film.path]
    return sum(path.stat().st_size for path in paths)


def load(config: ColorConfig) -> Predictor:
    """Load the predictor, and save it if ``save_checkpoint`` is set. Raises UserError for options it cannot use."""
    predictor = load_predictor(config)
    if config.memory_video and not predictor.uses_memory:
        raise UserError("--memory_video needs the memory, which is not used here; leave --color_feature and "
                        "--reference out, or train with --use_memory True")
    flag = "--confidence" if config.confidence else "--fallback" if config.fallback else ""
    if flag and not predictor.uses_spatial_memory:
        raise UserError(f"{flag} needs the spatial memory, which is not used here; leave --color_feature and "
                        "--reference out, or train with --use_spatial_memory True")
    return predictor


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and films


def color_all_pictures(predictor: Predictor, config: ColorConfig, pictures: Sequence[tuple[Path, Path]]) -> None:
    """Color ``pictures``, pairs of (input, output), and write one file of metrics for all of them."""
    palettes = predictor.named_colors.scopes if predictor.named_colors else []
    if any(map(shot_numbers, [*predictor.config.reference_scopes, *palettes])):
        warn("references and palettes for shot numbers are not used, since single pictures have no shots; move them to "
             f"{ONLY_THIS_SHOT} or {SIMILAR_SHOTS}")
    predictor.warn_of_contradictions()
    evaluation, started = Evaluation(), time.monotonic()
    kept = 0 if config.overwrite else sum(target.exists() for _, target in pictures)
    count, shares = color_pictures(predictor, pictures, evaluation, config.confidence, config.overwrite,
                                   config.fallback)
    seconds, used = time.monotonic() - started, [share for share in shares if share is not None]
    facts = {"input": str(config.input), **coloring_facts(predictor, config), "pictures": kept + count,
             **({"colored_by_earlier_runs": kept} if kept else {}), "seconds": round(seconds, 2),
             **({"fallback": {"path": str(config.fallback), "share": round(sum(used) / max(1, len(shares)), 4),
                              "pictures_without": len(shares) - len(used)}} if config.fallback else {})}
    target = config.output if config.input.is_dir() else pictures[0][1]
    path_of = target.joinpath if config.input.is_dir() else partial(accompanying_path, target)
    print(f"colored {count} pictures in {seconds:.1f} s: {target}")
    evaluation.write(path_of("metrics.json"), path_of("comparison.png"), facts, config.overwrite)


def color_film_and_report(predictor: Predictor, config: ColorConfig, film: Film, target: Path,
                          queue: WorkQueue | None = None) -> None:
    """Color a film as the owner of ``queue``, and write its metrics, report and other accompanying files."""
    cut_lists = cut_list_paths(target, config.write_cuts, film.info.rate)
    resumes = accompanying_path(target, "metrics.json").exists() or segment_folder(target).exists()
    refuse_existing([accompanying_path(target, name) for name in ("report.html", "memory.mp4", "comparison.png")],
                    config.overwrite or resumes)
    started = time.monotonic()

    def write_accompanying_files(records):
        seconds, count = time.monotonic() - started, records[-1].end_frame
        evaluation, result = Evaluation(), film.colored_film(target, records.pts)
        print(f"colored {count} frames of {len(records)} shots in {seconds:.1f} s: {result.path}")
        facts: dict[str, Any] = {"input": str(film.path), **coloring_facts(predictor, config), "pictures": count,
                                 "shots": len(records), "seconds": round(seconds, 2)}
        if fallback := records.fallback_facts():
            facts["fallback"] = {"path": str(config.fallback), **fallback}
        if cut_lists:
            first = frames_before(film, config.start)
            shots = [Boundary(first, first)] * bool(first) + [shot.shift(first) for shot in records.boundaries()]
        for path in cut_lists:
            write_cut_list(path, film.path if config.start else result.path, film.info, shots, config.overwrite)
        if config.verify_luma:
            facts["luma"] = check_luma(film, result, config)
            print(facts["luma"])
        try:
            evaluation.add_film(records)
            evaluation.write(accompanying_path(target, "metrics.json"), accompanying_path(target, "comparison.png"),
                             facts, overwrite=True)
            write_film_report(predictor, config, records, film, target, evaluation.summaries())
        except UserError as error:
            raise UserError(f"{error}; the film itself is complete; run the same command again to write the missing "
                            "files") from error

    render_job(predictor, config, film, target).run_as_owner(queue or WorkQueue(), write_accompanying_files)


def listed_boundaries(config: ColorConfig, films: Sequence[tuple[Film, Path]]) -> tuple[Boundary, ...] | None:
    """Return the boundaries listed in ``config.cuts``, counted from --start, or None. Raises UserError unless there is
    one film."""
    if config.cuts is None:
        return None
    if len(films) != 1:
        raise UserError(f"--cuts lists the cuts of one film, but there are {len(films)} in --input; pass a single film")
    film, first = films[0][0], frames_before(films[0][0], config.start)
    return tuple(end.shift(-first) for end in read_cut_list(config.cuts, film.info.rate) if end.end > first)


def refuse_shot_numbers(folder: Path | None, films: int) -> None:
    """Raise UserError if references or palettes are limited to numbers of shots and there are several films."""
    if folder and films > 1 and (numbered := list(filter(shot_numbers, list_scopes(folder)))):
        raise UserError(f"{folder / numbered[0]} is for shots of one film, but there are {films} in --input; pass a "
                        f"single film, or move its files to {ONLY_THIS_SHOT} or {SIMILAR_SHOTS}")


def render_job(predictor: Predictor, config: ColorConfig, film: Film, target: Path) -> RenderJob:
    return RenderJob(predictor, film, target, part_of(config, FilmConfig), config.overwrite)


def write_film_report(predictor: Predictor, config: ColorConfig, records: Records, film: Film, target: Path,
                      summaries: dict[str, dict[str, float]]) -> None:
    """Write the report, the suggested frames and the memory video of a colored film."""
    suggestions, folder = suggest_frames(records, config.suggest), accompanying_path(target, "color_these")
    thumbnails = memory_thumbnails(predictor.colorizer) if predictor.uses_memory else {}
    facts = {label.replace("color_feature", "palette from"): text
             for label, text in coloring_facts(predictor, config).items()}
    if fallback := records.fallback_facts():
        facts["fallback"] = f"{config.fallback}, {fallback['share']:.0%} of the frame area, grade: {fallback['grade']}"
    report = accompanying_path(target, "report.html")
    write_report(report, Report(film.path.name, records, suggestions, folder.name, predictor.frame_names, thumbnails,
                                summaries, facts, records.response))
    print(f"report: {report}")
    if suggestions:
        write_suggested_frames(folder, film, records.pts, suggestions)
        print(f"{len(suggestions)} suggested frames, to be colored by hand and passed to --references: {folder}")
    if config.confidence:
        print(f"confidence video (recalled, predicted, unknown): {confidence_video_path(target)}")
    if config.memory_video:
        begin = records.pts[0] if config.start else None
        path = accompanying_path(target, "memory.mp4")
        write_memory_video(predictor.with_response(records.response), film, path, records, begin)
        print(f"memory video: {path}")


def coloring_facts(predictor: Predictor, config: ColorConfig) -> dict[str, str]:
    """Return the entries of metrics.json and the report that describe how the input was colored."""
    grade = {"references": f"{predictor.grade}; graded to match the series"} if predictor.grade else {}
    characters = {"characters": ", ".join(names_of(predictor.characters))} if predictor.characters else {}
    palette = {"palette": str(config.palette)} if config.palette else {}
    return {"checkpoint": str(config.checkpoint), "color_feature": predictor.source, **characters, **grade, **palette}


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def color(config: ColorConfig) -> None:
    """Color ``config.input`` into ``config.output``, with all processes that torchrun started.

    Raises UserError for errors that the user can fix; processes other than the leader raise SystemExit instead.
    """
    config.check()
    group = WorkerGroup.join()
    if config.save_palette:
        group.compute_on_leader("palette", partial(save_palette, config, config.save_palette))
        return
    inputs = group.compute_on_leader("inputs", partial(prepare_inputs, config, largest_films_first=group.size > 1))
    config = replace(config, save_checkpoint=None, boundaries=inputs.boundaries)  # prepare_inputs has saved it
    if group.is_single_process and len(inputs.films) > 1:
        run_isolated(group_keys(inputs), color_inputs, config, inputs)
    elif inputs.pictures or inputs.films:
        color_inputs(group, config, inputs)


def save_palette(config: ColorConfig, path: Path) -> None:
    """Write the colors that the checkpoint and the references of ``config`` contain to a palette file."""
    check_palette_suffix(path)
    refuse_existing([path], config.overwrite, "--save_palette")
    check_writable([path], "--save_palette")
    predictor = load(config)
    colors = learned_colors(predictor.colorizer, predictor.frame_names, predictor.characters)
    if not colors:
        raise UserError(f"{config.checkpoint} remembers no frames to take colors from; train with --use_spatial_memory "
                        "True")
    write_palette(path, colors)
    print(f"{len(colors)} colors in {', '.join(dict.fromkeys(color.character for color in colors))}: {path}")


def group_keys(inputs: Inputs) -> list[str]:
    """Return the keys of the inputs in a WorkerGroup: one for all pictures, and one for each film."""
    return [ALL_PICTURES] * bool(inputs.pictures) + [str(film.path) for film, _ in inputs.films]


def color_inputs(group: WorkerGroup, config: ColorConfig, inputs: Inputs) -> None:
    """Color all inputs with all processes of the group: pictures in one process, films shot by shot.

    If an input fails, raises UserError (processes other than the leader: SystemExit) after all others are finished.
    """
    load_once = cache(partial(load, config))
    films = {str(film.path): (film, target) for film, target in inputs.films}

    def own(key):
        if key == ALL_PICTURES:
            color_all_pictures(load_once(), config, inputs.pictures)
        else:
            color_film_and_report(load_once(), config, *films[key], WorkQueue(group, key))

    def help(key, queue):
        render_job(load_once(), config, *films[key]).run_as_helper(WorkQueue(group, key, queue))

    keys = group_keys(inputs)
    if group.pending(keys):
        load_once()  # raises its errors here once instead of for each film
    errors = group.run_all(keys, own, help)
    if not errors:
        return
    if not group.is_leader:
        raise SystemExit(1)
    failed = len(films.keys() & errors.keys())
    if failed == 0 or len(films) == 1:
        raise next(iter(errors.values()))
    raise UserError(f"{failed} of {len(films)} films failed; fix or remove them and run the same command again")


def main(argv: list[str]) -> None:
    color(ColorConfig(**read_flags(ColorConfig, argv, __doc__)))


if __name__ == "__main__":
    run_cli(main)
