"""Code shared by the benchmarks: film input, untrained predictors, timing, subprocesses, and output of tables."""

import json
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from colorizer.confidence import Confidence
from colorizer.metrics import LARGE_ERROR
from colorizer.predictor import Palette, Predictor
from fileio.atomic import atomic_write
from fileio.images import IMAGE_SUFFIXES, read_image, write_image
from film.analysis.plan import FilmPredictor
from film.io.planes import planes_from_frame
from film.io.video import VideoFile, read_frames
from training.learner import Learner
from training.preparation import build_model_config, fill_spatial_memory, frame_embeddings
from utils import UserError, autocast, evenly_spaced, list_files

EPISODE = Path(__file__).resolve().parents[1] / "resources" / "episode_2.mp4"

# ---------------------------------------------------------------------------------------------------------------------
# Films


def frame_readers(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    """Yield a function for each frame of a film or picture of a folder. It returns the frame as RGB uint8 (H, W, 3)."""
    if path.is_dir():
        yield from (partial(read_image, picture) for picture in list_files(path, IMAGE_SUFFIXES))
    else:
        yield from (planes_from_frame(frame).rgb_uint8 for _, frame in read_frames(path))


def write_film_frames(film: Path, folder: Path, count: int) -> list[Path]:
    """Write ``count`` evenly spaced frames of a film to ``folder`` as PNG. Returns their paths."""
    frames = sum(1 for _ in VideoFile(film).read())
    if frames < count:
        raise UserError(f"{film} has {frames} frames, but {count} are needed; pass a longer film")
    selected = set(evenly_spaced(frames, count))
    for index, (_, _, planes) in enumerate(VideoFile(film).read()):
        if index in selected:
            write_image(folder / f"frame_{index}.png", planes.rgb_uint8())
    return sorted(folder.glob("*.png"))


def existing_film(path: Path) -> Path:
    """Return ``path``. Raises UserError if it is not a file."""
    if not path.is_file():
        raise UserError(f"there is no film {path}; pass another one")
    return path


def large_error_share(errors: np.ndarray) -> float:
    """Return the share of pixels whose CIEDE2000 is above LARGE_ERROR."""
    return float((errors > LARGE_ERROR).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Predictors


class FunctionPredictor(FilmPredictor):
    """A FilmPredictor without networks: ``colors`` maps N Lab pictures (H, W, 3) with ab = 0 to ab (N, S, S, 2)."""

    side, source, uses_memory, frame_names, grade, characters = 256, "none", False, {}, None, ()

    def __init__(self, identity: str, colors: Callable[[list[np.ndarray]], np.ndarray]) -> None:
        self.identity, self.colors = identity, colors

    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        return Palette(None, [], [], torch.from_numpy(labs[0].ravel()[:1280].copy()))

    def predict(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence]:
        ab = self.colors([cv2.merge([L, 0 * L, 0 * L]) for L in lightness])
        return ab.astype(np.float32), Confidence.unknown(len(lightness))


def constant_colors(ab: Any, side: int = 32) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Return a function for FunctionPredictor that gives every pixel the same ab (2,)."""
    return lambda labs: np.broadcast_to(np.asarray(ab), (len(labs), side, side, 2))


def untrained_predictor(data: Any, config: Any, device: torch.device, precision: str) -> Predictor:
    """Return a Predictor with random weights that remembers the pictures of a ColorizationDataset."""
    cast = partial(autocast, device)
    colorizer = Learner(config, build_model_config(config, len(data)), device).colorizer
    memory = colorizer.memory
    with torch.no_grad():
        if config.use_spatial_memory:
            fill_spatial_memory(data, colorizer, cast)
        memory.update(memory.query(frame_embeddings(data, colorizer, cast)), data.color_features.to(device),
                      torch.tensor(data.ids))
    return Predictor(colorizer.eval(), device, precision)


def fill_memory(memory: Any) -> None:
    """Fill all slots of a MemoryNetwork with random keys and a uniform color feature."""
    memory.keys.normal_()
    memory.keys /= memory.keys.norm(dim=1, keepdim=True)
    memory.values.fill_(1 / 313)
    memory.used.fill_(True)
    memory.ids.copy_(torch.arange(len(memory.ids)))


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def time_in_turn(rounds: int, **functions: Callable[[], Any]) -> dict[str, list[float]]:
    """Call each function once per round: one warm-up round, then ``rounds`` timed ones. Returns {name: [seconds]}."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def run_in_process(function: Callable, *arguments: Any) -> Any:
    """Call a function in a new process and return its result."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(function, arguments)


def peak_memory() -> float:
    """Return the peak resident memory of this process in GB (1e9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the names of processor and GPU, the number of threads and the torch version."""
    name, cpu_info = platform.processor(), Path("/proc/cpuinfo")
    if cpu_info.is_file():
        name = next((line.partition(":")[2].strip() for line in cpu_info.read_text().splitlines()
                     if line.startswith("model name")), name)
    return {"cpu": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None}


# ---------------------------------------------------------------------------------------------------------------------
# Output


def print_row(*cells: Any) -> None:
    """Print a row of a Markdown table."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def print_header(*titles: str) -> None:
    """Print the header of a Markdown table."""
    print_row(*titles)
    print("|" + "---|" * len(titles))


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, replacing an existing file."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure, replacing an existing file."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)


def first_line(text: str | None) -> str:
    """Return the first line of a module docstring, for --help."""
    return (text or "").partition("\n")[0]
