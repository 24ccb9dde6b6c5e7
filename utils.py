"""What do the scripts share? Errors, flags, pictures, checkpoints, locks and metrics."""

import argparse
import ctypes
import gc
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch


# ---------------------------------------------------------------------------------------------------------------------
# Errors and flags


class UserError(Exception):
    """Something the user can mend. The message is one sentence: what is wrong and what to change."""


def run_cli(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run ``main(argv)`` as a script: exit code 0 done, 1 a user's error in one sentence, 130 interrupted.

    SIGTERM counts as Ctrl-C. ``--debug`` anywhere on the command line shows the traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.freeze()  # what was imported stays: looking through it for garbage takes 0.4 s at the end alone
    try:
        main(argv)
    except UserError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
        sys.exit(130)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with our conventions: defaults shown, whole names only, a wrong flag is a user's error (exit code 1)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **kwargs)
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                          help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def boolean(text: str) -> bool:
    """The value of a flag that takes True or False. ``type=bool`` would make every non-empty text True."""
    if text in ("True", "true"):
        return True
    if text in ("False", "false"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got '{text}'")


def positive(text: str) -> int:
    """The value of a flag that takes a whole number of at least 1."""
    try:
        if (value := int(text)) >= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")


def warn(message: str) -> None:
    """Tell the user on stderr, in one line, about something that does not stop the work."""
    print(f"warning: {message}", file=sys.stderr)


def return_large_blocks() -> None:
    """From now on, blocks of memory of 4 MB and more go back to the system when they are freed. GNU's C library keeps
    blocks of up to 32 MB, once one as large was freed, and of 4K frames hundreds of MB come together. Others do not,
    and are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**22)  # M_MMAP_THRESHOLD


def rank_and_size() -> tuple[int, int]:
    """Which process this is, from 0, of how many that torchrun started; (0, 1) without it."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


# ---------------------------------------------------------------------------------------------------------------------
# Files and pictures


def natural_key(name: str) -> list[int | str]:
    """Sort key that puts ``a_2`` before ``a_10``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", str(name))]


def list_files(folder: str | Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """Files directly in ``folder`` with one of ``suffixes`` (any case; None: with any), in natural order. Hidden files
    are left out."""
    paths = (path for path in Path(folder).iterdir() if suffixes is None or path.suffix.lower() in suffixes)
    return sorted((path for path in paths if path.is_file() and not path.name.startswith(".")),
                  key=lambda path: natural_key(path.name))


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices below ``count``, evenly spread."""
    return sorted({round(i) for i in torch.linspace(0, count - 1, min(count, wanted)).tolist()})


def image_ids(names: Iterable[str]) -> list[int]:
    """Image ids: the number at the end of each name's stem (``ep01_5.png`` -> 5), unique within the list.

    A name without a number, with that of an earlier name, or with one of 2^62 or more gets the next number above all.
    """
    numbers = [re.findall(r"\d*$", Path(name).stem)[0] for name in names]
    numbers = [int(number) if number and int(number) < 2**62 else None for number in numbers]
    free = max((number for number in numbers if number is not None), default=-1) + 1
    ids, taken = [], set()
    for number in numbers:
        if number is None or number in taken:
            number, free = free, free + 1
        ids.append(number)
        taken.add(number)
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints and devices

def select_device(name: str) -> torch.device:
    """The torch device for auto, cpu or cuda; the processes of torchrun share the GPUs of their machine. Raises
    UserError when CUDA is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device for --device cuda; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return torch.device("cuda")


def upload(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of an array on a device. To a GPU it is brought from pinned memory, and nobody waits for what the GPU
    still has to do before."""
    tensor = torch.as_tensor(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """A context for the networks: bfloat16 where the hardware is fast at it (``auto``), or as told by fp32 or bf16."""
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            cpu = torch.cpu.get_capabilities()
            fast = cpu.get("avx512_bf16", False) or cpu.get("amx_bf16", False)
        precision = "bf16" if fast else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


