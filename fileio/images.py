"""TODO: module docstring."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageOps

from fileio.atomic import atomic_write
from utils import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".dpx", ".exr")

LUMINANCE_WEIGHTS = np.array([0.2126, 0.7152, 0.0722], np.float32)  # shares of linear light with sRGB's primaries

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, which MAX_PIXELS replaces
MAX_PIXELS = 200_000_000  # a larger picture is refused by its header, before 600 MB of RGB are allocated


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture as RGB uint8 of shape (H, W, 3), turned the way its EXIF tag says.

    Gray, palette and deeper pictures become 8-bit RGB; transparent places become white, as most viewers show them.
    Raises UserError, naming the file, for anything that cannot be read whole or is larger than MAX_PIXELS.
    """
    if not Path(path).is_file():  # a pipe or a device might never end
        raise UserError(f"{path} is not a file; name a picture")
    if Path(path).suffix.lower() != ".png" and is_deep(path):
        picture = read_deep_image(path)
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


class DeepImage(NamedTuple):
    """A picture in the depth of its file."""

    rgb: np.ndarray  # codes (H, W, 3): uint8, or uint16 of ``depth`` bits
    depth: int
    linear: np.ndarray | None = None  # of OpenEXR, of which rgb is what is seen: linear float32 (H, W, 3) of any range

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


def read_deep_image(path: str | Path) -> DeepImage:
    """Read a picture in its own depth; TIFF and PNG of 16 bits, DPX and OpenEXR without their transparency.

    Raises UserError as ``read_image`` does.
    """
    if not Path(path).is_file() or not is_deep(path):
        return DeepImage(read_image(path), 8)
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
        return DeepImage(pixels, depth)
    seen = np.clip(srgb_encode(np.nan_to_num(pixels)), 0, 1)
    return DeepImage(np.rint(seen * 65535).astype(np.uint16), 16, pixels)


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


def srgb_encode(light: np.ndarray) -> np.ndarray:
    """Linear light -> the values of sRGB, of the same shape; 1 is white. Negative light is none."""
    light = np.maximum(light, 0)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def srgb_decode(values: np.ndarray) -> np.ndarray:
    """The inverse of ``srgb_encode``."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def write_image(path: str | Path, rgb: np.ndarray, depth: int = 8) -> None:
    """Write RGB of shape (H, W, 3) in the format of ``path``'s suffix; it appears whole or not at all.

    ``rgb``: uint8; uint16 of ``depth`` bits, which become 8 in a format that cannot carry them; or float32, linear
    light, for OpenEXR alone, which takes any of these.
    """
    suffix = Path(path).suffix.lower()
    codec, formats = _ENCODERS.get(suffix, ("", {}))
    if suffix == ".exr":
        rgb, depth = (rgb if rgb.dtype == np.float32 else srgb_decode(rgb / np.float32(2**depth - 1))), 32
    elif depth not in formats and 16 in formats and depth > 8:
        rgb, depth = np.rint(rgb * (65535 / (2**depth - 1))).astype(np.uint16), 16
    with atomic_write(path) as temporary:
        if depth in formats:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=formats[depth])
            context: Any = av.CodecContext.create(codec, "w")
            context.height, context.width = rgb.shape[:2]
            context.pix_fmt, context.time_base = formats[depth], Fraction(1, 24)
            temporary.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
        else:
            eight = rgb if rgb.dtype == np.uint8 else (rgb >> depth - 8).astype(np.uint8)
            Image.fromarray(eight).save(temporary, quality=95)  # PNG, BMP and TIFF take no quality


def image_grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Rows of equally large RGB uint8 pictures (H, W, 3) -> one picture with white gaps."""
    height, width = rows[0][0].shape[:2]
    grid = np.full((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            y, x = r * (height + gap), c * (width + gap)
            grid[y:y + height, x:x + width] = picture
    return grid
