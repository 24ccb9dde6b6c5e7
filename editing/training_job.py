"""How does a project learn colors? As on the command line: the scripts run, in processes that can be stopped."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from editing.jobs import BackgroundTask, log_lines
from editing.project import Project
from fileio.images import IMAGE_SUFFIXES
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = [sys.executable]  # what runs a script


def learn(project: Project, colors: Sequence[Path], minutes: float, work: BackgroundTask) -> None:
    """Learn a colored film, or colored pictures, as dataset_generator.py and train.py do; the checkpoint becomes the
    project's, also if it was stopped after an epoch. Raises UserError when it fails."""
    dataset, folder = project.folder / "dataset", project.folder / "training"
    if colors[0].suffix.lower() in IMAGE_SUFFIXES:
        if dataset.exists():
            shutil.rmtree(dataset)
        (dataset / "train").mkdir(parents=True)
        for number, path in enumerate(colors):
            shutil.copyfile(path, dataset / "train" / f"picture_{number}{path.suffix.lower()}")
    else:
        work.note = "finding shots of the colored episode"
        run_script("dataset_generator.py", [
            "--video_path", colors[0], "--save_path", dataset, "--frames_per_shot", "9", "--split", "0.95", "0.05", "0",
            "--overwrite", "True"], project.folder / "dataset.log", work)
    began = time.monotonic()

    def watch():
        epochs = len(log_lines(folder / "log.jsonl"))
        work.note = f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "looking at the pictures"
        work.done = min(0.99, (time.monotonic() - began) / (60 * minutes))

    run_script("train.py", ["--data_path", dataset, "--save_path", folder, "--max_minutes", minutes, "--overwrite",
                            "True", "--save_freq", "100000"], project.folder / "training.log", work, watch)
    if not (folder / "best.pt").exists():
        raise UserError("the training was stopped before its first epoch was over, and nothing is learned; let it run "
                        "for some minutes")
    project.take_checkpoint(folder / "best.pt", replace=True)


def run_script(name: str, flags: Sequence[Any], log: Path, work: BackgroundTask,
               watch: Callable[[], None] | None = None) -> None:
    """Run a script of this folder in a process of its own, what it prints in ``log``. When the work shall stop, it is
    asked to end, as by Ctrl-C. Raises UserError with what it says when it fails."""
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen([*SCRIPT, str(ROOT / name), *map(str, flags)], stdin=subprocess.DEVNULL, stdout=file,
                                   stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while process.poll() is None:
                if work.stop.wait(0.2):
                    process.terminate()
                    process.wait(60)
                if watch:
                    watch()
        finally:
            if process.poll() is None:
                process.kill()
    if process.returncode and not work.stop.is_set():
        said = re.findall(r"(?m)^error: (.*)$", log.read_text(encoding="utf-8"))
        raise UserError(said[-1] if said else f"{name} ended by itself; see {log}")
