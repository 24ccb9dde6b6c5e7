"""How long does a film of 100 shots take once a reference was added, beside the time of the whole film?

    python benchmarks/again.py CHECKPOINT

Cuts a film of 100 shots of 8 frames out of the drawn episodes, gray, and colors it; asks which shots a reference will
change (the middle frame of one shot, in its true colors), adds it, and takes it back. Prints how many shots were
colored again and how long each took, as a share of the first time, how large is what is kept beside the film, and
whether taking the reference back gave the same bytes.
"""

import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.score import readers
from resources.draw_episodes import EPISODES

from colorizer.predictor import Predictor
from config import ColorConfig
from fileio.images import write_image
from film.io.video import VideoFile
from film.render.incremental import find_changed_shots
from film.render.segments import segment_folder
from test import color
from utils import ArgumentParser, run_cli

RESOURCES = Path(__file__).resolve().parents[1] / "resources"
SHOTS, FRAMES, RATE = 100, 8, 24
CHANGED = 40  # the shot of the reference, counted from 0


def pieces() -> list[list[np.ndarray]]:
    """SHOTS lists of FRAMES frames, RGB uint8: pieces of each shot of both episodes in turn, so that no piece follows
    another one of its shot."""
    shots = []
    for episode in (1, 2):
        frames = [picture() for picture in readers(RESOURCES / f"episode_{episode}.mp4")]
        start = 0
        for shot in EPISODES[episode]:
            shots.append(frames[start:start + shot.length])
            start += shot.length
    count = -(-SHOTS // len(shots))
    starts = [[round(start) for start in np.linspace(0, len(shot) - FRAMES, count)] for shot in shots]
    return [shot[start[turn]:start[turn] + FRAMES] for turn in range(count)
            for shot, start in zip(shots, starts, strict=True)][:SHOTS]


def write(path, shots):
    """Write shots, lists of RGB uint8 (H, W, 3), as a gray film."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=RATE, options={"crf": "16"})
        stream.height, stream.width = shots[0][0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in (picture for shot in shots for picture in shot):
            gray = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        film.mux(stream.encode(None))


def timed(function, *arguments):
    """(what a function returns, seconds)."""
    started = time.monotonic()
    return function(*arguments), time.monotonic() - started


def main(argv):
    parser = ArgumentParser(prog="benchmarks/again.py", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    checkpoint = parser.parse_args(argv).checkpoint
    shots = pieces()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film, output, references = folder / "film.mkv", folder / "out.mp4", folder / "references"
        write(film, shots)
        write_image(references / "frame.png", shots[CHANGED][FRAMES // 2])
        plain = ColorConfig(input=film, output=output, checkpoint=checkpoint)
        added = ColorConfig(input=film, output=output, checkpoint=checkpoint, references=references)
        _, whole = timed(color, plain)
        before, kept = output.read_bytes(), sum(path.stat().st_size for path in segment_folder(output).iterdir())
        predictor = Predictor.load(checkpoint, references=references)
        told, asking = timed(find_changed_shots, predictor, VideoFile(film), output)
        _, again = timed(color, added)
        _, back = timed(color, plain)
        print(f"the whole film: {whole:.1f} s")
        print(f"shots that the reference changes, told in {asking:.2f} s: {len(told)} of {SHOTS}")
        print(f"the reference added: {again:.1f} s, {again / whole:.3f} of the whole film's time")
        print(f"the reference taken back: {back:.1f} s, {back / whole:.3f}; the same bytes: "
              f"{output.read_bytes() == before}")
        print(f"kept beside the film of {len(before) / 1e6:.2f} MB: {kept / 1e6:.2f} MB")


if __name__ == "__main__":
    run_cli(main)
