"""Helpers shared by all modules: user errors, command lines from dataclasses, file lists, sampling, torch devices."""

import argparse
import ctypes
import gc
import math
import os
import re
import signal
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import torch

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------------------
# Errors and the exit code of a script


class UserError(Exception):
    """An error that the user can fix. The message is one sentence: what is wrong and what to do."""


_OUT_OF_MEMORY = re.compile(  # messages of PyTorch, CUDA, OpenCV, NumPy and FFmpeg
    "out of memory|(can.?t|cannot|failed to|unable to) allocate|insufficient memory|ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the memory of the computer or of the GPU is full."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def is_internal(error: BaseException) -> bool:
    """Return whether an exception is an error of the program, so that its traceback is needed."""
    return not (isinstance(error, (UserError, OSError)) or is_out_of_memory(error))


def as_user_error(error: Exception) -> UserError:
    """Return a UserError as it is, or one with advice for full memory, the message of the system, or the type of an
    internal error."""
    if isinstance(error, UserError):
        return error
    reason = str(error).partition("\n")[0]
    if is_out_of_memory(error):
        reason = textwrap.shorten(reason, 120, placeholder=" ...") or type(error).__name__
        return UserError(f"the memory is full ({reason}); lower --batch_size, train with a smaller --img_size, or end "
                         "other programs")
    if isinstance(error, OSError):
        return UserError(f"the system reports: {error}")
    return UserError(f"internal error: {type(error).__name__}: {reason}; report it with the traceback")


def run_cli(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run ``main(argv)``; print a UserError, an OSError or a lack of memory and exit with code 1, or with code 130 on
    Ctrl-C or SIGTERM.

    ``argv`` defaults to the command line. ``--debug`` anywhere in it shows the traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.freeze()  # imported objects need no garbage collection, which would take 0.4 s at exit alone
    try:
        main(argv)
    except Exception as error:
        if is_internal(error):
            raise
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {as_user_error(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
        sys.exit(130)


def warn(message: str) -> None:
    """Print a one-line warning to stderr."""
    print(f"warning: {message}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Command lines


class ArgumentParser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults, accepts no abbreviated flags and raises UserError for invalid flags."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **kwargs)
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                          help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += "; write --flag=VALUE if the value begins with a dash"
        raise UserError(f"{message} (see --help)")


def parse_bool(text: str) -> bool:
    """Parse True or False; ``type=bool`` would turn every non-empty text into True."""
    if text in ("True", "true"):
        return True
    if text in ("False", "false"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got '{text}'")


def parse_positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    try:
        if (value := int(text)) >= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got '{text}'")


def parse_time(text: str) -> float:
    """Parse a time given as seconds, mm:ss or hh:mm:ss into seconds."""
    parts = text.split(":")
    try:
        seconds = sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf or len(parts) > 3:
        raise argparse.ArgumentTypeError(f"expected seconds, mm:ss or hh:mm:ss, got '{text}'")
    return seconds


def parse_rate(text: str) -> Fraction:
    """Parse frames per second given as a number or a fraction, such as 23.976 or 24000/1001."""
    try:
        if 0 < (rate := Fraction(text)) <= 1000:
            return rate
    except (ValueError, ZeroDivisionError):
        pass
    raise argparse.ArgumentTypeError(f"expected frames per second, such as 25 or 24000/1001, got '{text}'")


def setting(default: Any, help: str, *, group: str | None = None, default_text: str | None = None, **flag: Any) -> Any:
    """Return a dataclass field that ``read_flags`` turns into a flag.

    Args:
        default: default of the field.
        help: text for ``--help``.
        group: heading in ``--help`` for this flag and the following ones; None continues the previous group.
        default_text: text that ``--help`` shows for the default instead of its value.
        flag: further arguments of ``add_argument``, such as choices, metavar, nargs or a ``type`` that parses the text.
    """
    return field(default=default, metadata={"help": help, "group": group, "default_text": default_text, "flag": flag})


def read_flags(settings: type, argv: Sequence[str], description: str) -> dict[str, Any]:
    """Parse a command line; return {field name: value} for the flags that it contains.

    Fields of the dataclass ``settings`` made with ``setting`` define the flags. Raises UserError for unknown flags and
    invalid values.
    """
    parser = ArgumentParser(description=description)
    groups: dict[str, Any] = {}
    group: Any = parser
    for f in fields(settings):
        if "help" not in f.metadata:
            continue
        if title := f.metadata["group"]:
            group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        flag = {"type": _parser_of(f.type), **f.metadata["flag"]}
        if flag["type"] is parse_bool:
            flag["metavar"] = "True|False"
        group.add_argument(f"--{f.name}", default=argparse.SUPPRESS, help=f.metadata["help"] + _default_note(f), **flag)
    given = vars(parser.parse_args(argv))
    given.pop("debug", None)
    return given


def _default_note(f):
    if f.default in (None, math.inf, ()):
        return ""
    default = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
    return f" (default: {f.metadata['default_text'] or default})"


def _parser_of(kind):
    """Return the function that parses text into a field's type; for ``X | None``, into X."""
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return parse_bool if kind is bool else kind


def check_at_least(config: Any, minimum: float, *names: str, flag: str = "") -> None:
    """Raise UserError if a setting in ``names`` is below ``minimum``, NaN or infinite; ``flag`` prefixes its name."""
    for name in names:
        if not minimum <= getattr(config, name) < math.inf:
            raise UserError(f"{flag}{name} is {getattr(config, name)}; set it to at least {minimum}")


def check_choices(config: Any) -> None:
    """Raise UserError if a setting is not one of its choices; needed for settings that ``read_flags`` did not parse."""
    for f in fields(config):
        choices = f.metadata.get("flag", {}).get("choices")
        if choices and getattr(config, f.name) not in choices:
            raise UserError(f"{f.name} is {getattr(config, f.name)!r}; choose from {', '.join(map(str, choices))}")


# ---------------------------------------------------------------------------------------------------------------------
# Files and lists


def natural_key(name: str) -> list[int | str]:
    """Return a sort key that puts ``a_2`` before ``a_10``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", str(name))]


def list_files(folder: str | Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """Return the visible files in ``folder`` with one of ``suffixes`` (any case; None: all) in natural order."""
    paths = (path for path in Path(folder).iterdir() if suffixes is None or path.suffix.lower() in suffixes)
    return sorted((path for path in paths if path.is_file() and not path.name.startswith(".")),
                  key=lambda path: natural_key(path.name))


def evenly_spaced(count: int, n: int) -> list[int]:
    """Return min(n, count) distinct indices, evenly spaced from 0 to count - 1; a single one is in the middle."""
    n = min(n, count)
    if n == 1:
        return [(count - 1) // 2]
    return [i * (count - 1) // (n - 1) for i in range(n)]


class StreamSample(Generic[T]):
    """At most ``size`` evenly spaced items of a stream of unknown length; up to 2 * size are held in memory."""

    def __init__(self, size: int) -> None:
        self.size, self.stride, self.count = size, 1, 0
        self.held: list[T] = []  # every ``stride``-th item of the stream

    def add(self, make: Callable[[], T]) -> None:
        """Process the next item of the stream; ``make`` creates the item and is called only if it is needed."""
        if self.count % self.stride == 0:
            self.held.append(make())
            if len(self.held) == 2 * self.size:
                self.held = self.held[::2]
                self.stride *= 2
        self.count += 1

    def items(self) -> list[T]:
        """Return at most ``size`` evenly spaced items of the part of the stream that was processed."""
        return [self.held[i] for i in evenly_spaced(len(self.held), self.size)]


def image_ids(names: Iterable[str]) -> list[int]:
    """Return a unique id for each file name: the number at the end of its stem (``ep01_5.png`` -> 5).

    If a name has no number there, one of at least 2^62, or one that an earlier name has, its id is the next unused
    integer above all numbers of the list.
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
# Processes, memory and devices


def rank_and_size() -> tuple[int, int]:
    """Return (rank, number of processes) as set by torchrun; (0, 1) without torchrun."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def return_freed_memory() -> None:
    """Make the GNU C library return freed blocks of at least 4 MB to the system at once, for the rest of the process.

    By default it keeps blocks of up to 32 MB after the first of that size was freed: hundreds of MB with 4K frames.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**22)  # M_MMAP_THRESHOLD


def select_device(name: str) -> torch.device:
    """Return the torch device for "cpu", "cuda" or "auto" (CUDA if available).

    Processes of torchrun are distributed over the GPUs of a machine. Raises UserError if there is no GPU for "cuda".
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device for --device cuda; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return torch.device("cuda")


def to_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on a device: copied asynchronously to a GPU, or sharing its memory on the CPU."""
    tensor = torch.as_tensor(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Run torch on one thread in the block: on a CPU, its rounding depends on the number of threads. Also a decorator.

    Threads that start within the block use one thread, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def resolve_precision(device: torch.device, precision: str = "auto") -> str:
    """Return "fp32" or "bf16"; for auto, bf16 if the hardware supports it natively."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            cpu = torch.cpu.get_capabilities()
            native = cpu.get("avx512_bf16", False) or cpu.get("amx_bf16", False)
        precision = "bf16" if native else "fp32"
    return precision


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Return the autocast context for a precision: fp32, bf16 or auto."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(device, precision) == "bf16")
