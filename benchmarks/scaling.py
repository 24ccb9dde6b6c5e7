"""Measure how time and memory scale with the size of films and of the memory.

    python -m benchmarks.scaling film_length [--minutes 20]
    python -m benchmarks.scaling frame_size [--checkpoint CHECKPOINT] [--seconds 5] [--lines 360 1080 2160] [--rounds 3]
    python -m benchmarks.scaling remembered_frames [--frames 50000] [--folder FOLDER]

- film_length: the peak memory of coloring a film of 30 s and one of ``--minutes`` minutes, with report and metrics.
- frame_size: the speed and the peak memory of transcoding and of coloring a film with the given numbers of ``--lines``,
  in 8 and in 10 bits. Medians of the rounds.
- remembered_frames: the time for loading and retrieval and the peak memory, for checkpoints with 16 and with
  ``--frames`` synthetic remembered frames. The archive of the latter takes 258 kB per frame.

All tables are Markdown. Each measurement runs in a process of its own. Without a checkpoint, all pixels get
a constant color, since the time and memory of the networks do not depend on the length of a film.
"""

import itertools
import statistics
import tempfile
import time
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F

import test

from benchmarks.common import (
    EPISODE, FunctionPredictor, constant_colors, existing_film, fill_memory, first_line, peak_memory, print_header,
    print_row, run_in_process, untrained_predictor, write_film_frames)

from colorizer.memory.frame_archive import RECORD_FIELDS, write_archive
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.predictor import load_predictor
from config import ColorConfig, FilmConfig, PredictorConfig, TrainConfig
from dataset import ColorizationDataset
from fileio.checkpoints import save_checkpoint
from film.io.thread_pool import prefetch
from film.io.video import VideoFile
from film.render.rendering import color_film
from film.render.writers import FilmWriter
from networks import MemoryNetwork
from utils import ArgumentParser, parse_positive_int, run_cli

# ---------------------------------------------------------------------------------------------------------------------
# film_length

SIZE, RATE, SHOT_SECONDS, SOUND_RATE = (96, 64), 24, 4, 8000  # drawn film: pixels, frames/s, s, samples/s


def draw_film(path, seconds):
    """Draw a film of moving bars with sound. Each shot has a different color. Returns ``path``."""
    width, height = SIZE
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = film.add_stream("pcm_s16le", rate=SOUND_RATE, layout="mono")
        rng = np.random.default_rng(0)
        for i in range(seconds * RATE):
            if i % (SHOT_SECONDS * RATE) == 0:
                color, bars = rng.uniform(60, 190, 3), 40 * np.sin(rng.normal(0, 0.5, width).cumsum())
            picture = (color + np.roll(bars, -i)[None, :, None].repeat(height, 0)).astype(np.uint8)
            film.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            if i % RATE == 0:
                sound = av.AudioFrame.from_ndarray(rng.integers(-99, 99, (1, SOUND_RATE), np.int16), "s16", "mono")
                sound.sample_rate, sound.pts = SOUND_RATE, i // RATE * SOUND_RATE
                film.mux(audio.encode(sound))
        film.mux(video.encode(None))
    return path


def color_constant(film, output):
    """Color a film with a constant color, with report and metrics. Returns the peak memory in GB."""
    predictor: Any = FunctionPredictor("constant color", constant_colors((20, 20)))
    test.color_film_and_report(predictor, ColorConfig(), VideoFile(film), output)
    return peak_memory()


def measure_film_length(args):
    peaks = []
    print_header("film, s", "frames", "peak memory, GB", "coloring, s")
    with tempfile.TemporaryDirectory() as folder:
        for seconds in (30, 60 * args.minutes):
            film, started = draw_film(Path(folder) / f"{seconds}.mkv", seconds), time.monotonic()
            peaks.append(run_in_process(color_constant, film, film.with_name(f"{seconds}_colored.mkv")))
            print_row(seconds, seconds * RATE, f"{peaks[-1]:.3f}", f"{time.monotonic() - started:.0f}")
    print(f"\ngrowth: {1000 * (peaks[1] - peaks[0]):.0f} MB")


# ---------------------------------------------------------------------------------------------------------------------
# frame_size


def scale_film(film, target, lines, depth, seconds):
    """Write the first ``seconds`` of a film, scaled to ``lines`` with ``depth`` bits. Returns the number of frames."""
    with av.open(str(film)) as source, av.open(str(target), "w") as container:
        template, count = source.streams.video[0], 0
        stream = container.add_stream("libx264", rate=template.average_rate, options={"preset": "veryfast"})
        stream.width, stream.height = round(lines * template.width / template.height / 2) * 2, lines
        stream.pix_fmt = "yuv420p10le" if depth == 10 else "yuv420p"
        for frame in source.decode(template):
            if frame.time >= seconds:
                break
            frame = frame.reformat(stream.width, lines, stream.pix_fmt)
            frame.pts, frame.time_base, count = count, 1 / Fraction(template.average_rate), count + 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return count


def transcode(film, output):
    """Decode and encode a film as coloring does. Returns the seconds and the peak memory in GB."""
    source = VideoFile(film)
    writer = FilmWriter(source, output, FilmConfig())
    times = [pts for pts, _, _ in source.read()]
    started = time.perf_counter()
    with writer.write_shot(output.with_suffix(".part"), times) as write, closing(prefetch(source.read(), 8)) as frames:
        for pts, _, planes in frames:
            write(planes, pts)
    return time.perf_counter() - started, peak_memory()


def color_alone(checkpoint, film, output):
    """Color a film without report and metrics. Returns the seconds and the peak memory in GB."""
    predictor = (load_predictor(PredictorConfig(checkpoint=checkpoint)) if checkpoint
                 else FunctionPredictor("constant color", constant_colors((20, 20))))
    started = time.perf_counter()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        color_film(predictor, VideoFile(film), output, overwrite=True)
    return time.perf_counter() - started, peak_memory()


def measure_frame_size(args):
    print_header("lines", "bits", "transcoding, frames/s", "coloring, frames/s", "speed relative to transcoding",
                 "transcoding, GB", "coloring, GB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for depth, lines in itertools.product((8, 10), args.lines):
            clip = folder / f"clip_{lines}_{depth}.mp4"
            frames = run_in_process(scale_film, existing_film(args.film), clip, lines, depth, args.seconds)
            rounds = [(run_in_process(transcode, clip, folder / "transcoded.mkv"),
                       run_in_process(color_alone, args.checkpoint, clip, folder / "colored.mkv"))
                      for _ in range(args.rounds)]
            (alone, coloring), (alone_peak, peak) = np.median(np.array(rounds), 0).T
            print_row(lines, depth, f"{frames / alone:.1f}", f"{frames / coloring:.1f}", f"{alone / coloring:.2f}",
                      f"{alone_peak:.2f}", f"{peak:.2f}")


# ---------------------------------------------------------------------------------------------------------------------
# remembered_frames

IMG_SIZE, PICTURES, SHOT_FRAMES, READS = 128, 16, 20, 21


def shot_embeddings(count, dim):
    """Return embeddings (count, dim) of unit length: random directions, each with SHOT_FRAMES similar frames."""
    torch.manual_seed(0)
    centers = torch.rand(-(-count // SHOT_FRAMES), dim).repeat_interleave(SHOT_FRAMES, 0)[:count]
    return F.normalize(centers + 0.15 * torch.rand(count, dim), dim=1)


def write_checkpoint(film, folder, count):
    """Write an untrained checkpoint with ``count`` remembered frames, copies of frames of a film. Returns its path."""
    with tempfile.TemporaryDirectory() as pictures:
        data = ColorizationDataset(write_film_frames(film, Path(pictures), PICTURES), IMG_SIZE)
    net = untrained_predictor(data, TrainConfig(img_size=IMG_SIZE), torch.device("cpu"), "auto").colorizer
    spatial, frames = net.spatial, {name: getattr(net.spatial, name) for name in RECORD_FIELDS}
    archived = count if count > spatial.config.max_inline_frames else 0
    spatial.allocate(count, archived)
    spatial.embeddings.copy_(shot_embeddings(count, spatial.embeddings.shape[1]))
    folder.mkdir()

    def rows():
        for slots in torch.arange(count).split(64):
            copies = {name: x[slots % len(x)] for name, x in frames.items()}
            yield spatial.store_rows(slots, {**copies, "embeddings": spatial.embeddings[slots], "ids": slots})

    content: dict[str, Any] = {"frames": {i: f"{i}.png" for i in range(count)}}
    if archived:
        content["archive"] = write_archive(folder, spatial.config, archived, rows()).state()
    else:
        for _ in rows():
            pass
    slots = -(-6 * count // 5)
    memory = MemoryNetwork(net.memory.encoder.in_features, slots, 256, 0.1, 0.5)
    memory.encoder = net.memory.encoder
    fill_memory(memory)
    net.memory = memory
    config = replace(net.config, spatial_size=count, archived_frames=archived, mem_size=slots, top_k=min(256, slots))
    save_checkpoint(folder / "best.pt", {**content, "colorizer": net.state_dict(), "model_config": asdict(config)})
    return folder / "best.pt"


def measure_checkpoint(checkpoint, film, seconds):
    """Return the seconds for loading, the milliseconds for retrieval for 8 frames of one shot and of 8 shots, and the
    peak memory in GB after coloring the first ``seconds`` of a film."""
    started = time.monotonic()
    predictor = load_predictor(PredictorConfig(checkpoint=checkpoint))
    loading, retrieval = time.monotonic() - started, []
    with tempfile.TemporaryDirectory() as folder:
        color_film(predictor, VideoFile(film), Path(folder) / "colored.mp4", FilmConfig(end=seconds))
    peak, spatial, indices = peak_memory(), predictor.colorizer.spatial, torch.arange(8)
    count = len(spatial.embeddings)
    for slots in (indices % count, indices * (count // 8)):
        query = spatial.embeddings[slots].float()
        query = quantize_embeddings(query + 0.01 * torch.rand(query.shape).to(query))
        times = []
        for _ in range(READS):
            started = time.perf_counter()
            find_nearest_frames(spatial, query)
            times.append(time.perf_counter() - started)
        retrieval.append(1000 * statistics.median(times))
    return loading, *retrieval, peak


def measure_remembered_frames(args):
    print_header("remembered frames", "loading, s", "retrieval, one shot, ms", "retrieval, 8 shots, ms",
                 "peak memory, GB")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for count in (PICTURES, args.frames):
            path = write_checkpoint(existing_film(args.film), Path(folder, str(count)), count)
            values = run_in_process(measure_checkpoint, path, args.film, args.seconds)
            print_row(f"{count:,}", *(f"{value:.2f}" for value in values))


PARTS = {"film_length": measure_film_length, "frame_size": measure_frame_size,
         "remembered_frames": measure_remembered_frames}


def main(argv):
    parser = ArgumentParser(prog="benchmarks.scaling", description=first_line(__doc__))
    parser.add_argument("part", choices=PARTS, help="what to measure")
    parser.add_argument("--film", type=Path, default=EPISODE, help="a film in color")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint for frame_size")
    parser.add_argument("--minutes", type=parse_positive_int, default=20, help="length of the long film")
    parser.add_argument("--seconds", type=parse_positive_int, default=5, help="seconds of the film to color")
    parser.add_argument("--lines", type=parse_positive_int, nargs="+", default=[360, 1080, 2160], help="even heights")
    parser.add_argument("--rounds", type=parse_positive_int, default=3, help="number of rounds")
    parser.add_argument("--frames", type=parse_positive_int, default=50_000, help="remembered frames")
    parser.add_argument("--folder", type=Path, help="folder for the checkpoints, with 258 kB per remembered frame")
    args = parser.parse_args(argv)
    PARTS[args.part](args)


if __name__ == "__main__":
    run_cli(main)
