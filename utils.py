"""What do the scripts share? Errors, flags, pictures, checkpoints, locks and metrics."""

import argparse
import ctypes
import gc
import math
import os
import re
import signal
import sys
import traceback
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import av
import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".dpx", ".exr")
VIDEO_SUFFIXES = (  # a file of such a name is a film or a damaged one; of others, FFmpeg decides
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".m2ts", ".mts", ".mxf", ".dv",
    ".flv", ".wmv", ".asf", ".ogv", ".3gp", ".gif", ".nut")
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # shares of linear light with sRGB's primaries
MAX_PIXELS = 200_000_000  # a larger picture is refused by its header, before 600 MB of RGB are allocated
MAX_FRAME_PIXELS = 8192 * 8192  # the same for films, of which a decoder holds many frames
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, which MAX_PIXELS replaces


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


@contextmanager
def replace_when_done(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes ``path``'s name only when the block ends without an error.

    Raises UserError for any OSError, also one that is raised in the block.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def only_one(path: Path, message: str) -> Iterator[None]:
    """Run the block in one process at a time: the others raise UserError with ``message``.

    ``path`` is the lock file, which is removed at the end. The system releases the lock when the process dies, however
    it does. Raises OSError when the file cannot be written.
    """
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(message) from error
    try:
        yield
    finally:
        if os.name == "posix":  # while locked: who has opened it then sees that it has no name any more
            path.unlink(missing_ok=True)
        lock.release()


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture as RGB uint8 of shape (H, W, 3), turned the way its EXIF tag says.

    Gray, palette and deeper pictures become 8-bit RGB; transparent places become white, as most viewers show them.
    Raises UserError, naming the file, for anything that cannot be read whole or is larger than MAX_PIXELS.
    """
    if not Path(path).is_file():  # a pipe or a device might never end
        raise UserError(f"{path} is not a file; name a picture")
    if Path(path).suffix.lower() != ".png" and is_deep(path):
        picture = read_picture(path)
        return (picture.rgb >> picture.depth - 8).astype(np.uint8)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} is {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of gray; Pillow would clip them to white
                gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # decoders raise exceptions of many kinds for damaged files
        raise UserError(f"cannot read {path} as a picture: {error}") from error


class Picture(NamedTuple):
    """A picture in the depth of its file."""

    rgb: np.ndarray  # codes (H, W, 3): uint8, or uint16 of ``depth`` bits
    depth: int
    light: np.ndarray | None = None  # of OpenEXR, of which rgb is what is seen: linear float32 (H, W, 3) of any range


BITS_PER_SAMPLE = 258  # a tag of TIFF
_DECODERS = {".tif": "tiff_pipe", ".tiff": "tiff_pipe", ".dpx": "dpx_pipe", ".exr": "exr_pipe", ".png": "png_pipe"}
_ENCODERS = {  # suffix: (FFmpeg's encoder, {bits: its pixels})
    ".png": ("png", {16: "rgb48be"}), ".tif": ("tiff", {16: "rgb48le"}), ".tiff": ("tiff", {16: "rgb48le"}),
    ".dpx": ("dpx", {8: "rgb24", 10: "gbrp10be", 12: "gbrp12be", 16: "rgb48be"}), ".exr": ("exr", {32: "gbrpf32le"}),
}  # fmt: skip


def is_deep(path: str | Path) -> bool:
    """Whether a picture is one of those that Pillow cannot read without losing depth."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".png":
            with open(path, "rb") as file:
                return file.read(25)[24:] == b"\x10"  # bits of a sample, in the header
        if suffix in (".tif", ".tiff"):
            with Image.open(path, formats=("TIFF",)) as image:
                return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8  # type: ignore[attr-defined]  # is a TIFF
    except OSError:  # who reads it says so
        return False
    return suffix in _DECODERS


def read_picture(path: str | Path) -> Picture:
    """Read a picture in its own depth; TIFF and PNG of 16 bits, DPX and OpenEXR without their transparency.

    Raises UserError as ``read_image`` does.
    """
    if not Path(path).is_file() or not is_deep(path):
        return Picture(read_image(path), 8)
    try:
        with open(path, "rb") as file, av.open(
                file, format=_DECODERS[Path(path).suffix.lower()], options={"max_pixels": str(MAX_PIXELS)},
                container_options={"protocol_whitelist": "none"}) as film:
            frame = next(film.decode(video=0))
            if film.format.name == "exr_pipe" and not _has_all_chunks(Path(path).read_bytes()):
                raise ValueError("it is cut off")
            depth = frame.format.components[0].bits
            if frame.format.name.startswith(("gbr", "gray")) and "f" in frame.format.name[4:]:
                depth, frame = 32, frame.reformat(format="gbrpf32le")
            elif frame.format.has_palette or not (frame.format.is_rgb or frame.format.name.startswith("gray")):
                raise ValueError(f"its pixels are {frame.format.name}; convert it to RGB")
            pixels = frame.to_ndarray()
    except (av.error.FFmpegError, OSError, ValueError, IndexError, StopIteration) as error:
        raise UserError(f"cannot read {path} as a picture: {getattr(error, 'strerror', None) or error}") from error
    pixels = pixels[..., :3] if pixels.ndim == 3 else pixels[..., None].repeat(3, -1)
    if depth < 32:
        return Picture(pixels, depth)
    seen = np.clip(encode_light(np.nan_to_num(pixels)), 0, 1)
    return Picture(np.rint(seen * 65535).astype(np.uint16), 16, pixels)


def _has_all_chunks(exr):
    """Whether the bytes of an OpenEXR file hold all the chunks that its table names: FFmpeg leaves black what is
    missing. Of files of several parts, True."""
    tiled, several = exr[5] & 2, exr[5] & 16
    place, offsets, first = 8, [], len(exr)
    while exr[place]:  # an attribute: its name, its type, the length of its value, and that
        place = exr.index(0, exr.index(0, place) + 1) + 1
        place += 4 + int.from_bytes(exr[place:place + 4], "little")
    place += 1
    while place + 8 <= first and not several:  # the table ends where the first chunk begins
        offsets.append(int.from_bytes(exr[place:place + 8], "little"))
        place, first = place + 8, min(first, offsets[-1])
    head = 20 if tiled else 8  # bytes, of which the last 4 are the length of what follows
    return all(0 < offset <= len(exr) - head - int.from_bytes(exr[offset + head - 4:offset + head], "little")
               for offset in offsets)


def encode_light(light: np.ndarray) -> np.ndarray:
    """Linear light -> the values of sRGB, of the same shape; 1 is white. Negative light is none."""
    light = np.maximum(light, 0)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def decode_light(values: np.ndarray) -> np.ndarray:
    """The inverse of ``encode_light``."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def write_image(path: str | Path, rgb: np.ndarray, depth: int = 8) -> None:
    """Write RGB of shape (H, W, 3) in the format of ``path``'s suffix; it appears whole or not at all.

    ``rgb``: uint8; uint16 of ``depth`` bits, which become 8 in a format that cannot carry them; or float32, linear
    light, for OpenEXR alone, which takes any of these.
    """
    suffix = Path(path).suffix.lower()
    codec, formats = _ENCODERS.get(suffix, ("", {}))
    if suffix == ".exr":
        rgb, depth = (rgb if rgb.dtype == np.float32 else decode_light(rgb / np.float32(2**depth - 1))), 32
    elif depth not in formats and 16 in formats and depth > 8:
        rgb, depth = np.rint(rgb * (65535 / (2**depth - 1))).astype(np.uint16), 16
    with replace_when_done(path) as temporary:
        if depth in formats:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=formats[depth])
            context: Any = av.CodecContext.create(codec, "w")
            context.height, context.width = rgb.shape[:2]
            context.pix_fmt, context.time_base = formats[depth], Fraction(1, 24)
            temporary.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
        else:
            eight = rgb if rgb.dtype == np.uint8 else (rgb >> depth - 8).astype(np.uint8)
            Image.fromarray(eight).save(temporary, quality=95)  # PNG, BMP and TIFF take no quality


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints and devices

CHECKPOINT_FORMAT = 10
FINER = {"efficientnet_lite0": 16 + 24, "resnet18": 64}  # channels of maps that voters see since format 9


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values; the file appears under its name only when it is whole on the disk."""
    with replace_when_done(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": CHECKPOINT_FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote, on the CPU, executing nothing and in memory of about the file's size.

    Formats 5 to 9 are converted. Raises UserError for any other file, and for tensors with numbers that are not
    finite.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}; train one with train.py or name another by --checkpoint")
    try:
        with zipfile.ZipFile(path) as file:
            if sum(member.file_size for member in file.infolist()) > os.path.getsize(path):
                raise ValueError("it is compressed")  # torch.save never compresses; a few kB could unpack into GBs
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it has no format")
        finite = all(_is_sound(tensor) for tensor in _tensors(content))
    except Exception as error:  # a file of any content: zip, pickle and tensor readers each raise their own kinds
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a checkpoint of train.py, or not a whole one; use another: {reason}") from error
    if content["format"] in (5, 6, 7, 8, 9):
        _convert(content)
    elif content["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"{path} has checkpoint format {content['format']}, and this version reads "
                        f"{CHECKPOINT_FORMAT}; train again or use the version that wrote it")
    if not finite:
        raise UserError(f"{path} holds numbers that are not finite; use an earlier checkpoint")
    return content


def _convert(content):
    """Bring a checkpoint to the format of now: in 5 frames had another name, 6 had no votes, in 7 votes counted less
    where lightness changes along the motion, in 8 voters saw nothing finer than 8 pixels, and 9 kept all frames itself.
    """
    blind, content["format"] = content["format"] < 9, CHECKPOINT_FORMAT
    networks = content.get("colorizer")
    if isinstance(networks, dict) and "spatial.frames" in networks:
        networks["spatial.features"] = networks.pop("spatial.frames")
    for name in ("model_config", "train_config"):
        if isinstance(content.get(name), dict):
            content[name].setdefault("use_votes", False)
            if isinstance(content[name].get("votes"), dict):
                content[name]["votes"].pop("unlit", None)
    if blind and isinstance(networks, dict) and isinstance(content.get("model_config"), dict):
        finer = FINER.get(content["model_config"].get("backbone"), 0)
        for name in ("voter.mean", "voter.projection"):
            if isinstance(rows := networks.get(name), torch.Tensor) and rows.dim():
                networks[name] = _blind(rows, finer)


def _blind(rows, finer):
    """The rows of a voter's features, of which the last two are L and L^2, with zeros for what it does not see: finer
    maps in front, and the lightness of the 8 places around."""
    maps, L, squared = rows[:-2], rows[-2:-1], rows[-1:]
    zeros = [rows.new_zeros(count, *rows.shape[1:]) for count in (finer, 4, 4)]
    return torch.cat([zeros[0], maps, zeros[1], L, zeros[2], squared])


def _tensors(content):
    """All tensors in nested dicts, lists and tuples, each once."""
    waiting, known = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in known:  # a hostile file could nest one list a thousand times in itself
            continue
        known.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _is_sound(tensor):
    """True when all numbers of a tensor are finite. Raises ValueError when it claims more than the file stores."""
    if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor is larger than what is stored of it")
    return bool(tensor.isfinite().all())


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


AB_PEAK = 220  # peak for the PSNR of ab: the width of its range
FAR = 10  # CIEDE2000 at which one sees another color: a mean over a picture hides a character


def color_differences(lab: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """CIEDE2000 of each pixel (H, W) of two Lab pictures (H, W, 3): 0 is equal, 1 just visible, FAR another color."""
    return deltaE_ciede2000(truth, lab, channel_axis=-1)


def ciede2000(lab: np.ndarray, truth: np.ndarray) -> float:
    """Mean of ``color_differences``."""
    return float(color_differences(lab, truth).mean())


def psnr(mean_squared_error: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, inf for an error of 0. For a set, pass the mean of its squared errors: the mean
    of its PSNRs would be infinite as soon as one picture is exact."""
    return 10 * math.log10(peak**2 / mean_squared_error) if mean_squared_error else math.inf


def colorfulness(rgb: np.ndarray) -> float:
    """Colorfulness of RGB uint8 (H, W, 3) by Hasler and Suesstrunk (2003): 0 gray, 33 moderate, 82 high."""
    red, green, blue = np.moveaxis(rgb.astype(np.float32), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def is_color(rgb: np.ndarray) -> bool:
    """True when RGB uint8 (H, W, 3) has color: its channels differ by more than coding noise, which is by more than 1
    on average, or by more than 16 in more than 0.1% of the pixels."""
    spread = rgb.max(-1).astype(np.int16) - rgb.min(-1)
    return bool(spread.mean() > 1 or (spread > 16).mean() > 0.001)


MEASURED = 720 * 576  # pixels


def measured_size(height: int, width: int) -> tuple[int, int]:
    """The size at which a picture is measured: its own up to MEASURED pixels, and else one of about so many. Colors
    are no finer than the networks paint them, and the metrics of 4K would take longer than coloring it."""
    scale = min(1.0, math.sqrt(MEASURED / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Scores:
    """Quality of results against the truth, over a set of pictures."""

    COLUMNS = {"ciede2000": "CIEDE2000", "far": "share > 10", "psnr_rgb": "PSNR RGB", "psnr_ab": "PSNR ab",
               "ssim": "SSIM", "colorfulness": "colorfulness", "colorfulness_truth": "of the truth"}

    def __init__(self) -> None:
        self.rows = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rgb: np.ndarray, truth: np.ndarray) -> None:
        """Add a result and its truth, RGB uint8 (H, W, 3) of one size."""
        self.rows.append(self.measure(rgb, truth))

    @staticmethod
    def measure(rgb: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        """A row of ``rows``: what a result, given as for ``add``, is beside its truth. Lab, CIEDE2000, SSIM are
        scikit-image's."""
        lab, lab_truth = (rgb2lab(x.astype(np.float32) / 255) for x in (rgb, truth))
        side = min(7, *(size - (size + 1) % 2 for size in rgb.shape[:2]))  # SSIM's window, odd, for tiny pictures too
        differences = color_differences(lab, lab_truth)
        return {
            "ciede2000": float(differences.mean()),
            "far": float((differences > FAR).mean()),
            "mse_rgb": float(((rgb.astype(np.float32) - truth) ** 2).mean()),
            "mse_ab": float(((lab[..., 1:] - lab_truth[..., 1:]) ** 2).mean()),
            "ssim": float(structural_similarity(rgb, truth, win_size=side, channel_axis=-1)) if side >= 3 else math.nan,
            "colorfulness": colorfulness(rgb),
            "colorfulness_truth": colorfulness(truth)}

    def summary(self) -> dict[str, float]:
        """{name in COLUMNS: mean over the set, which must not be empty}; PSNR (peak 255 for RGB, AB_PEAK for ab) is
        that of the mean squared error."""
        mean = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
        mean["psnr_rgb"], mean["psnr_ab"] = psnr(mean["mse_rgb"], 255), psnr(mean["mse_ab"], AB_PEAK)
        return {name: mean[name] for name in self.COLUMNS}


def metrics_table(summaries: dict[str, dict[str, float]]) -> str:
    """A text table of summaries {row name: Scores.summary()}, one line a row."""
    lines = [f"{'':10s}" + "".join(f"{title:>15s}" for title in Scores.COLUMNS.values())]
    for name, row in summaries.items():
        lines.append(f"{name:10s}" + "".join(f"{row[column]:15.3f}" for column in Scores.COLUMNS))
    return "\n".join(lines)


def picture_grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Rows of equally large RGB uint8 pictures (H, W, 3) -> one picture with white gaps."""
    height, width = rows[0][0].shape[:2]
    grid = np.full((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            y, x = r * (height + gap), c * (width + gap)
            grid[y:y + height, x:x + width] = picture
    return grid
