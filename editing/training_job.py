"""Background job that trains the checkpoint of a project with dataset_generator.py and train.py."""

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from colorizer.predictor import load_predictor
from config import FilmConfig, PredictorConfig
from editing.background import BackgroundJob, Canceled
from editing.coloring_job import CancelableFilm, find_shots, read_log
from editing.frame_reader import write_clip
from editing.project import Project
from fileio.images import IMAGE_SUFFIXES
from film.render.rendering import color_film
from utils import UserError, warn

ROOT = Path(__file__).resolve().parents[1]
INTERPRETER = [sys.executable]  # command that runs a script
FIRST_STEPS = 3  # steps of the short training run for the preview; larger: better colors, later
PREVIEW_FRAMES = 48  # maximum length of the preview; larger: later


def train_project(project: Project, sources: Sequence[Path], minutes: float, job: BackgroundJob) -> None:
    """Train on a colored film or on colored pictures, or on the character sheets alone if there are no ``sources``, and
    add the best checkpoint to the project. Character sheets are always used.

    A canceled job adds the best checkpoint so far, or that of the preview. Raises UserError if training fails or there
    is no checkpoint yet.
    """
    dataset, folder = project.folder / "dataset", project.folder / "training"
    preview_path(project).unlink(missing_ok=True)
    flags: list[Any] = ["--data_path", dataset, "--overwrite", "True"]
    if project.sheets.files():
        flags += ["--characters", project.sheets.folder]
    if not sources or sources[0].suffix.lower() in IMAGE_SUFFIXES:
        if dataset.exists():
            shutil.rmtree(dataset)
        (dataset / "train").mkdir(parents=True)
        for number, path in enumerate(sources):
            shutil.copyfile(path, dataset / "train" / f"picture_{number}{path.suffix.lower()}")
    else:
        job.message = "finding shots of the colored film"
        run_script("dataset_generator.py", [
            "--video_path", sources[0], "--save_path", dataset, "--frames_per_shot", "9", "--split", "0.95", "0.05",
            "0", "--overwrite", "True"], project.folder / "dataset.log", job)
    if project.film is not None:
        job.message, preview = "learning the first colors", preview_path(project).parent
        run_script("train.py", [*flags, "--save_path", preview, "--end_epoch", 1, "--epoch_steps", FIRST_STEPS],
                   project.folder / "training.log", job)
        for path in [*preview.glob("epoch_*.pt"), *preview.glob("last.pt")]:  # large
            path.unlink()
        if not job.cancel.is_set():
            threading.Thread(target=color_preview, args=(project, job), daemon=True).start()
    started = time.monotonic()

    def report_progress():
        epochs = len(read_log(folder / "log.jsonl"))
        job.message = f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "preparing the training frames"
        job.progress = min(0.99, (time.monotonic() - started) / (60 * minutes))

    run_script("train.py", [*flags, "--save_path", folder, "--max_minutes", minutes, "--save_freq", "100000"],
               project.folder / "training.log", job, report_progress)
    found = [path for path in (folder / "best.pt", preview_path(project).with_name("best.pt")) if path.exists()]
    if not found:
        raise UserError("the training run was stopped before its first epoch was complete; let it run for some minutes")
    project.add_checkpoint(found[0], replace=True)


def preview_path(project: Project) -> Path:
    """Return the path of the shot that is colored during training."""
    return project.folder / "preview" / "shot.mp4"


def color_preview(project: Project, job: BackgroundJob) -> None:
    """Color the beginning of the longest shot with the preview's checkpoint, and write it to ``preview_path``."""
    side = BackgroundJob(cancel=job.cancel)  # has a progress of its own
    try:
        film = project.require_film()
        if (known := project.shot_preview()) is None:
            known = find_shots(project, side)
        start, end = max(known.shots(project.settings), key=lambda shot: shot[1] - shot[0])
        gray = preview_path(project).with_name("gray.mp4")
        write_clip(film, known.index, start, min(end, start + PREVIEW_FRAMES), gray)
        predictor = load_predictor(PredictorConfig(checkpoint=gray.with_name("best.pt")))
        color_film(predictor, CancelableFilm(gray, side), preview_path(project), FilmConfig(), overwrite=True)
    except Canceled:
        pass
    except UserError as error:
        warn(f"there is no preview of a shot: {error}")


def run_script(name: str, flags: Sequence[Any], log: Path, job: BackgroundJob,
               on_poll: Callable[[], None] | None = None) -> None:
    """Run a script in a subprocess, write its output to the file ``log``, and call ``on_poll`` repeatedly.

    If the job is canceled, the script receives SIGTERM and saves its state. Raises UserError if the script fails.
    """
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen([*INTERPRETER, str(ROOT / name), *map(str, flags)], stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while process.poll() is None:
                if job.cancel.wait(0.2):
                    process.terminate()
                    process.wait(60)
                if on_poll:
                    on_poll()
        finally:
            if process.poll() is None:
                process.kill()
    if process.returncode and not job.cancel.is_set():
        errors = re.findall(r"(?m)^error: (.*)$", log.read_text(encoding="utf-8"))
        raise UserError(errors[-1] if errors else f"{name} failed; see {log}")
