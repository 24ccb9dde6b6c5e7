"""How much memory does it take to train on many pictures?

    python benchmarks/large_set.py [--pictures 10000] [--img_size 256] [--minutes 15]

Trains with the defaults of train.py in a process of its own on DISTINCT frames of a film under so many names, for
``--minutes`` with all that is prepared before. Prints the most memory that the process ever had for itself, without
pages of files: the cache on the disk is mapped, and its pages go when others need the memory. Linux only.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.speed import FILM, film_pictures

from utils import ArgumentParser, UserError, run_cli

DISTINCT = 200
TRAIN = Path(__file__).resolve().parents[1] / "train.py"
PAUSE = 0.05  # seconds between two looks at the process


def own_memory(process):
    """Bytes that a process has for itself, pages of files left out; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except ProcessLookupError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def main(argv):
    parser = ArgumentParser(prog="benchmarks/large_set.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--film", type=Path, default=FILM, help="the film whose frames are the pictures")
    parser.add_argument("--pictures", type=int, default=10_000, help="files to train on")
    parser.add_argument("--img_size", type=int, default=256, help="side of the square that the networks see")
    parser.add_argument("--minutes", type=float, default=15, help="of preparing and training")
    args = parser.parse_args(argv)
    if args.pictures < 1:
        raise UserError(f"--pictures is {args.pictures}; set it to at least 1")
    if not Path("/proc/self/status").is_file():
        raise UserError("the memory of a process is read from /proc, which is not there; run this on Linux")
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "train")
        pictures.mkdir()
        frames = film_pictures(args.film, pictures, min(DISTINCT, args.pictures))
        for number, frame in zip(range(len(frames), args.pictures), itertools.cycle(frames), strict=False):
            (pictures / f"again_{number}.png").hardlink_to(frame)
        peak, told, started = 0, 0, time.monotonic()
        command = [sys.executable, TRAIN, "--data_path", folder, "--save_path", f"{folder}/checkpoints",
                   "--img_size", args.img_size, "--max_minutes", args.minutes]
        with subprocess.Popen(list(map(str, command))) as process:
            while process.poll() is None:
                now = own_memory(process)
                if now > told + 1e8:
                    print(f"after {time.monotonic() - started:.0f} s: {now / 1e9:.2f} GB", file=sys.stderr)
                    told = now
                peak = max(peak, now)
                time.sleep(PAUSE)
        if process.returncode:
            raise UserError("the training failed; what it says above tells why")
    print(f"{args.pictures:,} pictures at {args.img_size} px: {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    run_cli(main)
