"""How well do exported networks color, beside the program they come from? What ONNX lacks, and what that costs.

    python benchmarks/exported.py CHECKPOINT FILM [--every 24]

FILM, which is in color, is colored by test.py; one of ``--every`` frames is measured against the truth. The same frames
are colored one by one: as pictures, as test.py colors them; as pictures of which no color is carried along the optical
flow; and by the exported folder, with the regions that the program finds handed in, and as color.py does it, without.
Prints CIEDE2000, the share of the pixels that have another color (> 10), the seconds a frame, median, and how far the
colors of color.py with both left out of the program, too, are apart from it: the rounding of ONNX alone.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from resources.color_by_onnx import Exported

from colorizer.export import ExportConfig, export
from colorizer.metrics import Scores
from colorizer.palette_classifier import CELL_SIZE, PaletteClassifier
from colorizer.predictor import Predictor
from config import ColorConfig
from dataset import L_SCALE, resize
from film.io.video import VideoFile
from film.report.evaluation import compare_frames
from test import color
from utils import ArgumentParser, parse_positive_int, run_cli


class WithRegions(Exported):
    """Exported networks with the regions that the program finds."""

    def __init__(self, folder: Path, palette_classifier: PaletteClassifier) -> None:
        super().__init__(folder)
        self.palette_classifier = palette_classifier

    def regions(self, lightness):
        grid = self.palette_classifier.config.input_size // CELL_SIZE
        places = np.stack([resize(resize(L, 4 * grid, 4 * grid), grid, grid) for L in lightness]) / np.float32(L_SCALE)
        return self.palette_classifier.find_regions(torch.from_numpy(places)).view(-1, grid, grid).numpy()


@contextmanager
def nothing_carried() -> Iterator[None]:
    """Colors are not carried along the optical flow."""
    with patch("colorizer.colorizer.warp_colors", lambda memory, nearest, keys, L, picture_of: 0 * L.expand(-1, 3, -1, -1)):
        yield


@contextmanager
def no_regions() -> Iterator[None]:
    """Every place votes for itself."""
    with patch.object(PaletteClassifier, "find_regions", lambda self, lightness: torch.arange(lightness[0].numel()).expand(
            len(lightness), -1)):
        yield


def measure(name: str, colorize: Callable[[list[np.ndarray]], list[np.ndarray]],
            frames: list[np.ndarray]) -> list[np.ndarray]:
    """Color frames one by one and print a row; returns the results."""
    results, seconds, scores = [], [], Scores()
    for frame in frames:
        started = time.monotonic()
        results.append(colorize([frame])[0])
        seconds.append(time.monotonic() - started)
        scores.add(results[-1], frame)
    tell(name, scores, f"{statistics.median(seconds):.2f}")
    return results


def tell(name, scores, seconds=""):
    row = scores.summary()
    print(f"| {name} | {row['ciede2000']:.2f} | {row['share_above_10']:.1%} | {seconds} |", flush=True)


def main(argv):
    parser = ArgumentParser(prog="benchmarks/exported.py", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--every", type=parse_positive_int, default=24, help="measure one of so many frames")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder, output = Path(temporary) / "exported", Path(temporary) / "colored.mp4"
        config = ColorConfig(input=args.film, output=output, checkpoint=args.checkpoint, suggest=0)
        with redirect_stdout(sys.stderr):
            color(config)
        film, scores, frames = VideoFile(args.film), Scores(), []
        for _, truth, painted in compare_frames(film, VideoFile(output), config, args.every):
            frames.append(truth.rgb_uint8())
            scores.add(painted.rgb_uint8(), frames[-1])
        predictor = Predictor.load(args.checkpoint, precision="fp32")
        export(ExportConfig(args.checkpoint, folder))
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{len(frames)} frames; the exported folder has {size / 1e6:.0f} MB\n")
        print("| colored by | CIEDE2000 | share > 10 | seconds a frame |\n|---|---|---|---|")
        tell("test.py, as a film", scores)
        measure("test.py, as pictures", predictor.colorize, frames)
        with nothing_carried():
            measure("the same, nothing carried", predictor.colorize, frames)
        measure("exported, with the program's regions", WithRegions(folder, predictor.colorizer.palette_classifier).color, frames)
        exported = measure("exported, color.py", Exported(folder).color, frames)
        with nothing_carried(), no_regions():
            bare = measure("the program with as little", predictor.colorize, frames)
        apart = [np.abs(x.astype(int) - y).mean() for x, y in zip(exported, bare, strict=True)]
        print(f"\ncolor.py and the program with as little are {np.mean(apart):.2f} of 255 apart")


if __name__ == "__main__":
    run_cli(main)
