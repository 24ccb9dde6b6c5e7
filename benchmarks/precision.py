"""Does bfloat16 learn as well as float32? Validation error after the same steps, of the same seeds.

    python benchmarks/precision.py [--film FILM] [--epochs 6] [--seeds 3]

The pictures are those that dataset_generator.py makes of FILM, and everything but ``--precision`` is the default of
train.py; an epoch has at least 50 steps. Prints CIEDE2000 of the validation pictures at the end of training, for each
seed and precision, and the ratio of the means, which is to lie within 3% of 1. About 8 minutes on 2 CPU cores.
"""

import json
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.speed import FILM

from config import GeneratorConfig, TrainConfig
from dataset_generator import generate
from train import train
from utils import ArgumentParser, UserError, run_cli


def error_after(data, folder, epochs, seed, precision):
    """CIEDE2000 of the validation pictures after training on the folder ``data``."""
    with redirect_stdout(sys.stderr):
        train(TrainConfig(data_path=str(data), save_path=str(folder), end_epoch=epochs, save_freq=10**6, seed=seed,
                          precision=precision))
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["val_ciede2000"]


def main(argv):
    parser = ArgumentParser(prog="precision.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--film", type=Path, default=FILM.with_name("episode_1.mp4"), help="the film to learn")
    parser.add_argument("--epochs", type=int, default=6, help="length of each training")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each precision")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"seeds is {args.seeds}; set it to at least 1")
    errors = {"fp32": [], "bf16": []}
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        with redirect_stdout(sys.stderr):
            generate(GeneratorConfig(video_path=args.film, save_path=data))
        for seed in range(args.seeds):
            for precision, found in errors.items():
                found.append(error_after(data, Path(temporary) / f"{precision}_{seed}", args.epochs, seed, precision))
                print(f"seed {seed}, {precision}: {found[-1]:.3f}", flush=True)
    means = {precision: statistics.fmean(found) for precision, found in errors.items()}
    print(f"fp32 {means['fp32']:.3f}, bf16 {means['bf16']:.3f}: bf16 / fp32 {means['bf16'] / means['fp32']:.3f}")


if __name__ == "__main__":
    run_cli(main)
