"""How cost grows: dataset, training step, reading of the memories and coloring, each over a range of sizes.

    python benchmarks/growth.py [--film FILM] [--quick]

Every part is timed ROUNDS times, its sizes in turn, after a round that does not count, and medians are taken.

- dataset_generator.py with the length of the film: FILM joined to itself LOOPS times.
- A training step at 128 px with the size of the set (width 64, batch 8, as in the paper).
- Reading the memory for a shot with the number of slots, and their bytes.
- Choosing the 8 frames of the spatial memory that are read for a batch of 8 frames, with the number of frames that it
  knows, and the bytes of what is compared; attention over the places of those that are chosen, and carrying their
  colors along the optical flow, which do not depend on that number; and the bytes that are kept of a frame.
- Coloring a film with its length and with its resolution, network at 128 px.

Prints a table and writes results/bench/growth.json. About 5 minutes on 2 CPU cores.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import av
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import speed

from colorizer.memory.frame_index import EMBEDDING_SCALE, FrameIndex
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.memory.spatial_memory import SpatialMemory
from config import FilmConfig, GeneratorConfig, SpatialConfig
from dataset import ColorizationDataset
from dataset_generator import generate
from fileio.atomic import atomic_write
from film.io.video import VideoFile
from film.render.rendering import color_film
from networks import MemoryNetwork
from train import TrainConfig
from utils import ArgumentParser, UserError, run_cli, select_device

ROUNDS = 3
IMG_SIZE = 128
LOOPS = 1, 2, 4  # times that the film is joined to itself
SET_SIZES = 100, 1_000, 10_000  # pictures
SLOTS = 100, 1_000, 10_000, 100_000
READS = 10  # of a memory, that are timed together
CLIP_SECONDS = 2, 4, 8  # lengths of film to color
HEIGHTS = 180, 360, 720  # resolutions of film to color, CLIP_SECONDS[0] long


def rows(figure, unit, functions, rounds, frames=None, size_in_bytes=None):
    """Lines of the table: for each size the median seconds of its function, those of a frame, and its bytes."""
    seconds = speed.in_turn(rounds, **{str(size): function for size, function in functions.items()})
    for size in functions:
        median = statistics.median(seconds[str(size)])
        yield {"figure": figure, "size": size, "unit": unit, "seconds": median, "all": seconds[str(size)],
               "milliseconds_a_frame": median / frames(size) * 1000 if frames else None,
               "bytes": size_in_bytes(size) if size_in_bytes else None}


def join_to_itself(film, target, times):
    """Write the pictures of a film ``times`` times after another, without encoding them anew."""
    with av.open(str(target), "w") as container:
        stream = offset = None
        for _ in range(times):
            with av.open(str(film)) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream, offset = container.add_stream_from_template(template), 0
                for packet in source.demux(template):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                        container.mux(packet)
                offset += template.duration
    return target


def change_size(film, target, height, seconds):
    """Write the first seconds of a film in another resolution."""
    with av.open(str(film)) as source, av.open(str(target), "w") as container:
        template = source.streams.video[0]
        stream = container.add_stream("libx264", rate=template.average_rate)
        stream.width, stream.height = round(height * template.width / template.height / 2) * 2, height
        stream.pix_fmt = "yuv420p"
        for frame in source.decode(template):
            if frame.time >= seconds:
                break
            container.mux(stream.encode(frame.reformat(stream.width, height, "yuv420p")))
        container.mux(stream.encode(None))
    return target


def count_frames(film):
    with av.open(str(film)) as source:
        return source.streams.video[0].frames


def dataset_making(film, folder, rounds):
    number, frames = itertools.count(), count_frames(film)
    films = {frames * times: join_to_itself(film, folder / f"{times}.mp4", times) for times in LOOPS}
    yield from rows("dataset", "frames", {size: lambda path=path: generate(GeneratorConfig(
        video_path=path, save_path=folder / f"dataset_{next(number)}")) for size, path in films.items()}, rounds,
                    frames=lambda size: size)


def training(device, rounds):
    yield from rows("training step", "pictures", {size: speed.step_with(size, device) for size in SET_SIZES},
                    4 * rounds)


def repeated(function, *arguments):
    """A function that calls ``function`` READS times."""
    return lambda: [function(*arguments) for _ in range(READS)]


def memory_reading(predictor, device, rounds):
    """Reading both memories of the predictor's colorizer, were they as large."""
    def state_bytes(module):
        return sum(buffer.nbytes for buffer in module.buffers())

    def one_read(lines):
        return ({**line, "seconds": line["seconds"] / READS} for line in lines)

    memories, frame_dim = {}, predictor.colorizer.memory.encoder.in_features
    for slots in SLOTS:
        memories[slots] = MemoryNetwork(frame_dim, slots, 3, 0.1, 0.5).to(device)
        speed.fill_memory(memories[slots])
    query = torch.nn.functional.normalize(torch.rand(1, memories[SLOTS[0]].keys.shape[1], device=device))
    yield from one_read(rows("memory, a shot", "slots", {slots: repeated(memory.read, query, 3) for slots, memory in
                                                         memories.items()}, rounds,
                             size_in_bytes=lambda slots: state_bytes(memories[slots])))
    memories.clear()

    known, looks = {}, quantize_embeddings(torch.rand(8, frame_dim, device=device))
    for frames in SLOTS:
        config = SpatialConfig(grid=1, picture_size=1)
        known[frames] = SpatialMemory(frame_dim, 1, 0, config).to(device)
        known[frames].allocate(frames, frames if frames > config.max_inline_frames else 0)
        known[frames].embeddings.copy_(quantize_embeddings(torch.rand(frames, frame_dim, device=device)) / EMBEDDING_SCALE)
        known[frames].index = FrameIndex.build(known[frames].embeddings) if known[frames].archived_frames else None
    yield from one_read(rows("spatial memory, choice for 8 frames", "frames", {
        frames: repeated(memory.nearest, looks) for frames, memory in known.items()}, rounds,
        size_in_bytes=lambda frames: known[frames].embeddings.nbytes))
    known.clear()

    spatial = predictor.colorizer.spatial
    size, chosen = len(spatial.ids), find_nearest_frames(spatial, looks)
    a_frame = sum(buffer.nbytes for buffer in spatial.buffers() if len(buffer) == size) // size
    keys, L = spatial.keys[torch.arange(8) % size].float(), torch.rand(8, 1, IMG_SIZE, IMG_SIZE, device=device)
    for name, function, arguments in (("attention of", spatial.read, (chosen, keys)),
                                      ("carrying to", spatial.carry, (chosen, keys, L))):
        yield from one_read(rows(f"spatial memory, {name} 8 frames", "frames", {size: repeated(
            function, *arguments)}, rounds))
    yield {"figure": "spatial memory, kept of a frame", "size": 1, "unit": "frame", "seconds": None,
           "milliseconds_a_frame": None, "bytes": a_frame}


def coloring(film, predictor, folder, rounds):
    def color(path, seconds):
        (folder / "colored.mp4").unlink(missing_ok=True)
        color_film(predictor, VideoFile(path), folder / "colored.mp4", FilmConfig(end=seconds))

    with av.open(str(film)) as source:
        rate = float(source.streams.video[0].average_rate)
    yield from rows("coloring, with length", "s of film", {
        seconds: partial(color, film, seconds) for seconds in CLIP_SECONDS}, rounds,
        frames=lambda seconds: seconds * rate)
    seconds = CLIP_SECONDS[0]
    films = {height: change_size(film, folder / f"{height}.mp4", height, seconds) for height in HEIGHTS}
    yield from rows("coloring, with resolution", "lines", {
        height: partial(color, path, seconds) for height, path in films.items()}, rounds,
        frames=lambda height: seconds * rate)


def number(value, unit):
    """A number of seconds or bytes with a unit that suits it."""
    if value is None:
        return ""
    units = {"s": (("s", 1), ("ms", 1e-3)), "B": (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))}[unit]
    name, size = next((pair for pair in units if value >= pair[1]), units[-1])
    return f"{value / size:.3g} {name}"


def table(lines):
    text = [f"{'':40s}{'size':>20s}{'time':>12s}{'ms a frame':>12s}{'size':>12s}"]
    for line in lines:
        each = line["milliseconds_a_frame"]
        text.append(f"{line['figure']:40s}{line['size']:>10,} {line['unit']:9s}{number(line['seconds'], 's'):>12s}"
                    f"{'' if each is None else f'{each:.3g}':>12s}{number(line['bytes'], 'B'):>12s}")
    return "\n".join(text)


def main(argv):
    parser = ArgumentParser(prog="growth.py", description="Time every part over a range of sizes.")
    parser.add_argument("--film", type=Path, default=speed.FILM, help="the film to measure on, at least 8 s")
    parser.add_argument("--quick", action="store_true", help="one round instead of several")
    parser.add_argument("--output", type=Path, default=Path("results/bench/growth.json"), help="replaced if it exists")
    args = parser.parse_args(argv)
    if not args.film.is_file():
        raise UserError(f"there is no film {args.film}; name another one")
    device, rounds, lines, started = select_device("auto"), 1 if args.quick else ROUNDS, [], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pictures").mkdir()
        paths = speed.film_pictures(args.film, folder / "pictures", speed.PICTURES)
        data, config = ColorizationDataset(paths, IMG_SIZE), TrainConfig(img_size=IMG_SIZE)
        predictor = speed.make_predictor(data, config, device, "auto")
        for part in (dataset_making(args.film, folder, rounds), training(device, rounds),
                     memory_reading(predictor, device, rounds), coloring(args.film, predictor, folder, rounds)):
            for line in part:
                lines.append(line)
                print(f"{line['figure']}, {line['size']:,} {line['unit']}: {number(line['seconds'], 's')}",
                      file=sys.stderr)
    report = {"machine": speed.machine(device, ["auto"]), "film": args.film.name, "rounds": rounds,
              "seconds": round(time.monotonic() - started), "rows": lines}
    with atomic_write(args.output) as path:
        path.write_text(json.dumps(report, indent=2) + "\n")
    print("{cpu}, {threads} threads, GPU: {gpu}, torch {torch}; ".format(**report["machine"])
          + f"{args.film.name}; medians of {rounds}\n{table(lines)}\nwritten to {args.output}")


if __name__ == "__main__":
    run_cli(main)
