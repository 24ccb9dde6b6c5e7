"""Make a dataset from films: find their shots, assign whole shots to train, val or test, and save some frames."""

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from config import GeneratorConfig
from film.analysis.dataset_files import FIGURES, assign_splits, install, replaceable_files, write_images
from film.analysis.detected_shots import SPLITS, DetectionResults
from film.analysis.training_frames import extract_training_frames
from film.io.video import find_videos
from film.render.worker_group import WorkerGroup, run_isolated
from film.report.shot_figures import draw_contact_sheets, draw_curve
from utils import UserError, rank_and_size, read_flags, run_cli


def list_videos(path: str | Path, names: Iterable[str] = ()) -> list[Path]:
    """Return the videos to read: the file ``path``, or the videos in the folder ``path``. ``names``, file names with or
    without suffix, restrict them if given.

    Raises UserError if there is no video or a name is not found.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--video_path {path} does not exist")
    videos = find_videos(path) if path.is_dir() else [path]
    if not videos:
        raise UserError(f"no video in {path}; pass a video or a folder of videos to --video_path")
    chosen = []
    for name in names:
        found = [video for video in videos if name == video.name] or [video for video in videos if name == video.stem]
        if not found:
            available = ", ".join(video.name for video in videos[:20]) + (", ..." if len(videos) > 20 else "")
            raise UserError(f"--video_names: no '{name}' in {path}; available are {available}")
        chosen += [video for video in found if video not in chosen]
    return chosen or videos


def generate(config: GeneratorConfig) -> tuple[list[dict[str, Any]], int]:
    """Make the configured dataset, together with all processes that torchrun started.

    Returns (summaries, number of unreadable films). The summary of a film is a dict: video, shots, kept, dropped, and
    frames, {split: number of images}. Raises UserError for bad input; processes other than the leader raise
    SystemExit. On an error ``save_path`` is unchanged. A run after an interruption continues with the remaining films.
    """
    config.check()
    save_path, group = Path(os.path.abspath(config.save_path)), WorkerGroup.join()
    try:
        work = group.compute_on_leader("work", partial(plan_work, config, save_path))
        results = DetectionResults(save_path, map(Path, work["videos"]), config)
        with results.open() if group.is_leader else nullcontext():
            group.compute_on_leader("begun", bool)  # other processes wait until the leader has opened the results
            if group.is_single_process and len(work["videos"]) > 1:
                errors = run_isolated(work["videos"], read_films, config, results)
            else:
                errors = read_films(group, config, results)
            return group.compute_on_leader("dataset", partial(
                make_dataset, config, save_path, results, errors, [Path(path) for path in work["replaced"]]))
    except OSError as error:
        raise UserError(f"cannot write to {config.save_path}: {error.strerror or error}") from error


def plan_work(config: GeneratorConfig, save_path: Path) -> dict[str, list[str]]:
    """Return the paths of the ``videos`` to read, and of ``replaced``, files of an earlier dataset to replace."""
    videos = list_videos(config.video_path, config.video_names)
    return {"videos": list(map(str, videos)),
            "replaced": list(map(str, replaceable_files(save_path, config.overwrite)))}


def read_films(group: WorkerGroup, config: GeneratorConfig, results: DetectionResults) -> dict[str, UserError]:
    """Read the films that have no results yet, distributed over the group; return {path: error} of unreadable films."""
    def read(path):
        if Path(path) not in results:
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=results.folder) as folder:
                images = Path(folder) / "images"
                results.add(extract_training_frames(Path(path), images, config), images)

    return group.run_all(list(map(str, results.keys)), read)


def make_dataset(config: GeneratorConfig, save_path: Path, results: DetectionResults, errors: dict[str, UserError],
                 replaced: Sequence[Path]) -> tuple[list[dict[str, Any]], int]:
    """Write the dataset from the results of all readable films; return the value of ``generate``."""
    films = [(results[path], results.images(path)) for path in results.keys if str(path) not in errors]
    if not films:
        raise (next(iter(errors.values())) if len(errors) == 1 else
               UserError(f"none of the {len(errors)} videos can be read"))
    with tempfile.TemporaryDirectory(prefix=".dataset-", dir=results.folder) as name:
        folder = Path(name)
        assign_splits([film for film, _ in films], config)
        write_images(folder, films)
        for film, _ in films:
            draw_curve(film, folder / FIGURES / f"{film.path.name}_curve.png")
            draw_contact_sheets(film, folder / FIGURES)
        install(folder, save_path, replaced)
    return [film.summary() for film, _ in films], len(errors)


def print_summaries(films: Sequence[dict[str, Any]], config: GeneratorConfig) -> None:
    """Print the summaries of ``generate`` and their total."""
    total = {"video": "total", "frames": {split: sum(film["frames"][split] for film in films) for split in SPLITS}}
    total |= {key: sum(film[key] for film in films) for key in ("shots", "kept", "dropped")}
    for film in [*films, total] if len(films) > 1 else films:
        frames = ", ".join(f"{split} {count}" for split, count in film["frames"].items())
        print("{video}: shots {shots}, kept {kept}, dropped {dropped}".format(**film) + f"; frames: {frames}")
    print(f"written to {config.save_path}; to tune the thresholds, look at {config.save_path / FIGURES}")


def main(argv: list[str]) -> None:
    config = GeneratorConfig(**read_flags(
        GeneratorConfig, argv, "Find the shots of films, assign whole shots to train, val or test, and save some "
        "frames of each shot. The images in figures/ help to tune the thresholds."))
    films, failed = generate(config)
    is_leader = rank_and_size()[0] == 0  # reports the result of all processes
    if is_leader:
        print_summaries(films, config)
    if failed and not is_leader:
        sys.exit(1)
    if failed:
        raise UserError(f"{failed} film{'s' * (failed > 1)} cannot be read; repair or remove the films that were "
                        "skipped and run again with --overwrite True")


if __name__ == "__main__":
    run_cli(main)
