"""What does a memory of a whole show cost? Start, choice, and resident memory, beside a memory of hardly any frames.

    python benchmarks/show.py [--frames 50000] [--folder FOLDER] [--seconds 4]

Writes a checkpoint that knows so many made-up frames, with their file (258 kB each, all of it written), and one that
knows few, and lets a process of its own load each and color the first seconds of a film. The frames are those of FILM,
repeated; their features those of shots, of which each is a random direction with 20 frames around it, so that what is
chosen, and read, is spread over the file. Linux only.

- start: seconds of load_predictor.
- choice: milliseconds of SpatialMemory.nearest for 8 frames, neighbors of a shot and of 8 shots; median of 21.
- resident: most memory in GB (VmHWM), with everything, when the film is colored.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import colorizer.threads  # noqa: F401  before torch is imported

import torch
import torch.nn.functional as F
from benchmarks import speed

from colorizer.memory.frame_archive import RECORD_FIELDS, write_archive
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.predictor import load_predictor
from config import FilmConfig, PredictorConfig, TrainConfig
from dataset import ColorizationDataset
from fileio.checkpoints import save_checkpoint
from film.io.video import VideoFile
from film.render.rendering import color_film
from networks import MemoryNetwork
from utils import ArgumentParser, UserError, run_cli, select_device

IMG_SIZE, PICTURES, SHOT = 128, 16, 20  # SHOT: frames
ROUNDS = 21


def shots(count, dim):
    """Features (count, dim) of unit length like those of a show: all positive, alike within a shot."""
    torch.manual_seed(0)
    middles = torch.rand(-(-count // SHOT), dim).repeat_interleave(SHOT, 0)[:count]
    return F.normalize(middles + 0.15 * torch.rand(count, dim), dim=1)


def write(film, folder, count):
    """A checkpoint, in a folder of its own, that knows ``count`` frames."""
    with tempfile.TemporaryDirectory() as pictures:
        data = ColorizationDataset(speed.film_pictures(film, Path(pictures), PICTURES), IMG_SIZE)
    predictor = speed.make_predictor(data, TrainConfig(img_size=IMG_SIZE), torch.device("cpu"), "auto")
    net = predictor.colorizer
    spatial, some = net.spatial, {name: getattr(net.spatial, name) for name in RECORD_FIELDS}  # before it gets another size
    folder.mkdir()
    archived = count if count > spatial.config.max_inline_frames else 0
    spatial.allocate(count, archived)
    spatial.embeddings.copy_(shots(count, spatial.embeddings.shape[1]))

    def rows():
        for slots in torch.arange(count).split(64):
            of_some = {name: x[slots % len(x)] for name, x in some.items()}
            yield spatial.store_rows(slots, {**of_some, "embeddings": spatial.embeddings[slots], "ids": slots})

    content: dict[str, Any] = {"frames": {i: f"{i}.png" for i in range(count)}}
    if archived:
        content["archive"] = write_archive(folder, spatial.config, archived, rows()).state()
    else:
        for _ in rows():
            pass
    slots = -(-6 * count // 5)
    memory = MemoryNetwork(net.memory.encoder.in_features, slots, 256, 0.1, 0.5)
    memory.encoder = net.memory.encoder
    speed.fill_memory(memory)
    net.memory = memory
    config = replace(net.config, spatial_size=count, archived_frames=archived, mem_size=slots, top_k=min(256, slots))
    save_checkpoint(folder / "best.pt", {**content, "colorizer": net.state_dict(), "model_config": asdict(config)})
    return folder / "best.pt"


def status(name):
    """A line of /proc/self/status, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024 / 1e9


def measure(checkpoint, film, seconds):
    """In a process of its own: {figure: value} of a checkpoint."""
    began = time.monotonic()
    predictor = load_predictor(PredictorConfig(checkpoint=checkpoint))
    found, choice = {"start": time.monotonic() - began}, {}
    with tempfile.TemporaryDirectory() as folder:
        color_film(predictor, VideoFile(film), Path(folder) / "colored.mp4", FilmConfig(end=seconds))
    found |= {"resident": status("VmRSS"), "most": status("VmHWM")}
    spatial, numbers = predictor.colorizer.spatial, torch.arange(8)
    size = len(spatial.embeddings)
    for name, slots in (("of one shot", numbers % size), ("of 8 shots", numbers * (size // 8))):
        looks, taken = spatial.embeddings[slots].float(), []
        looks = quantize_embeddings(looks + 0.01 * torch.rand(looks.shape).to(looks))
        for _ in range(ROUNDS):
            began = time.perf_counter()
            find_nearest_frames(spatial, looks)
            taken.append(time.perf_counter() - began)
        choice[name] = 1000 * statistics.median(taken)
    return {**found, "choice": choice}


def main(argv):
    parser = ArgumentParser(prog="benchmarks/show.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--film", type=Path, default=speed.FILM, help="a film in color")
    parser.add_argument("--frames", type=int, default=50_000, help="frames that are known")
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints; with room for 13 GB")
    parser.add_argument("--seconds", type=float, default=4, help="of the film that are colored")
    parser.add_argument("--checkpoint", type=Path, help="measure this one in this process")
    args = parser.parse_args(argv)
    if not Path("/proc/self/status").is_file():
        raise UserError("the memory of a process is read from /proc, which is not there; run this on Linux")
    if args.checkpoint:
        print(json.dumps(measure(args.checkpoint, args.film, args.seconds)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = {}
        for count in (PICTURES, args.frames):
            path = write(args.film, Path(folder, str(count)), count)
            command = [sys.executable, __file__, "--checkpoint", path, "--film", args.film, "--seconds", args.seconds]
            lines = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True).stdout
            found[count] = json.loads(lines.splitlines()[-1])
            choice = ", ".join(f"{name} {value:.1f} ms" for name, value in found[count]["choice"].items())
            print(f"{count:,} frames: start {found[count]['start']:.2f} s; choice {choice}; resident "
                  f"{found[count]['resident']:.2f} GB, at most {found[count]['most']:.2f} GB")
    few, many = found.values()
    print(f"resident above a memory of {PICTURES}: {many['resident'] - few['resident']:.2f} GB, at most "
          f"{many['most'] - few['most']:.2f} GB ({speed.machine(select_device('cpu'), [])['cpu']})")


if __name__ == "__main__":
    run_cli(main)
