"""Reading and writing of still images (8 to 16 bits, or linear floating point), sRGB conversion and image grids."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageCms, ImageOps

from fileio.atomic import atomic_write
from utils import UserError, list_files, warn

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".jp2", ".bmp", ".tga", ".tif", ".tiff", ".dpx",
                  ".exr")
MAX_PIXELS = 200_000_000  # maximum size of an image, checked in its header before 600 MB of RGB are allocated
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, replaced by MAX_PIXELS

LUMINANCE_WEIGHTS = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of linear R, G and B (sRGB primaries)

# FFmpeg reads and writes images of more than 8 bits. Pillow loses depth, and OpenImageIO 3.2 misreads DPX files written
# by FFmpeg with 8 bits and a width that is not a multiple of 4, or with 12 or 16 bits and an odd width.
_CODECS = {  # suffix: (FFmpeg encoder, {bits: pixel format}); the demuxer is named "<encoder>_pipe"
    ".png": ("png", {16: "rgb48be"}), ".tif": ("tiff", {16: "rgb48le"}), ".tiff": ("tiff", {16: "rgb48le"}),
    ".dpx": ("dpx", {8: "rgb24", 10: "gbrp10be", 12: "gbrp12be", 16: "rgb48be"}), ".exr": ("exr", {32: "gbrpf32le"}),
}  # fmt: skip
_BITS_PER_SAMPLE = 258  # TIFF tag
_FORMATS = "PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "BMP", "TIFF"  # that Pillow reads


class DeepImage(NamedTuple):
    """An image at the bit depth of its file."""

    rgb: np.ndarray  # (H, W, 3): uint8, or uint16 with values of ``depth`` bits
    depth: int
    linear: np.ndarray | None = None  # OpenEXR only: unbounded float32 (H, W, 3); rgb is its sRGB version


def list_images(folder: str | Path) -> list[Path]:
    """Return the visible images in ``folder`` in natural order; warn about other visible files."""
    paths = list_files(folder)
    if others := [path.name for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES]:
        warn(f"skipped in {folder}, since they are not {', '.join(IMAGE_SUFFIXES)}: {', '.join(others)}")
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as sRGB uint8 (H, W, 3), rotated according to its EXIF tag and composited on white.

    DPX, OpenEXR and 16-bit TIFF images are not rotated and lose their transparency. Raises UserError if the file is not
    a complete image or has more than MAX_PIXELS pixels.
    """
    return read_image_and_opacity(path)[0]


def read_image_and_opacity(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the result of ``read_image`` and the opacity of its pixels, uint8 (H, W); None if all are opaque."""
    if not Path(path).is_file():  # a pipe or a device might never end
        raise UserError(f"{path} is not a file; pass an image file")
    if Path(path).suffix.lower() != ".png" and _is_deep(path):
        deep = read_deep_image(path)
        image = Image.fromarray((deep.rgb >> deep.depth - 8).astype(np.uint8))
        return np.array(_to_srgb(image, _profile_of(path), path)), None
    try:
        # TGA has no signature, so any damaged file might be taken for one.
        formats = ("TGA",) if Path(path).suffix.lower() == ".tga" else _FORMATS
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} is {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels; shrink it")
            profile, image = image.info.get("icc_profile"), ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grayscale, which Pillow's convert would clip
                gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2), None
            opacity = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            image = _to_srgb(image, profile, path)
            if opacity is None or opacity.getextrema() == (255, 255):
                return np.array(image), None
            composite = Image.composite(image, Image.new("RGB", image.size, "white"), opacity)
            return np.array(composite), np.array(opacity)
    except UserError:
        raise
    except Exception as error:  # decoders raise many types of exceptions for damaged files
        raise UserError(f"cannot read {path} as an image: {error}") from error


def read_deep_image(path: str | Path) -> DeepImage:
    """Read an image at the bit depth of its file.

    16-bit, DPX and OpenEXR images lose their transparency and keep the colors of their profile. Raises UserError as
    ``read_image`` does.
    """
    if not Path(path).is_file() or not _is_deep(path):
        return DeepImage(read_image(path), 8)
    try:
        with open(path, "rb") as file, av.open(
                file, format=f"{_CODECS[Path(path).suffix.lower()][0]}_pipe", options={"max_pixels": str(MAX_PIXELS)},
                container_options={"protocol_whitelist": "none"}) as container:
            frame = next(container.decode(video=0))
            if container.format.name == "exr_pipe" and not _has_all_chunks(Path(path).read_bytes()):
                raise ValueError("it is truncated")
            depth = frame.format.components[0].bits
            if frame.format.name.startswith(("gbr", "gray")) and "f" in frame.format.name[4:]:
                depth, frame = 32, frame.reformat(format="gbrpf32le")
            elif frame.format.has_palette or not (frame.format.is_rgb or frame.format.name.startswith("gray")):
                raise ValueError(f"its pixel format is {frame.format.name}; convert it to RGB")
            pixels = frame.to_ndarray()
    except (av.error.FFmpegError, OSError, ValueError, IndexError, StopIteration) as error:
        raise UserError(f"cannot read {path} as an image: {getattr(error, 'strerror', None) or error}") from error
    pixels = pixels[..., :3] if pixels.ndim == 3 else pixels[..., None].repeat(3, -1)
    if depth < 32:
        return DeepImage(pixels, depth)
    displayed = np.clip(srgb_encode(np.nan_to_num(pixels)), 0, 1)
    return DeepImage(np.rint(displayed * 65535).astype(np.uint16), 16, pixels)


def _profile_of(path):
    """Return the ICC profile of a PNG or TIFF file, or None."""
    if Path(path).suffix.lower() in (".dpx", ".exr"):
        return None
    with Image.open(path, formats=("PNG", "TIFF")) as image:
        return image.info.get("icc_profile")


def _to_srgb(image, profile, path):
    """Convert a Pillow image to RGB, from its ICC ``profile`` (bytes or None) to sRGB. Warns if it is damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else None
        if source is None or "sRGB" in ImageCms.getProfileDescription(source):
            return image.convert("RGB")
        mode = {"GRAY": "L", "CMYK": "CMYK"}.get(source.profile.xcolor_space.strip(), "RGB")
        converted: Any = ImageCms.profileToProfile(image.convert(mode), source, ImageCms.createProfile("sRGB"),
                                              outputMode="RGB")
        return Image.merge("RGB", [converted.getchannel("G")] * 3) if mode == "L" else converted  # exactly gray
    except (ImageCms.PyCMSError, OSError) as error:
        warn(f"the color profile of {path} cannot be used ({error}); its colors are read as sRGB")
        return image.convert("RGB")


def _is_deep(path):
    """Return whether an image file is DPX, OpenEXR, or PNG or TIFF with more than 8 bits per sample."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".png":
            with open(path, "rb") as file:
                return file.read(25)[24:] == b"\x10"  # bits per sample, in the header
        if suffix in (".tif", ".tiff"):
            with Image.open(path, formats=("TIFF",)) as image:
                return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8  # type: ignore[attr-defined]  # is a TIFF
    except OSError:  # reported when the image is read
        return False
    return suffix in _CODECS


def _has_all_chunks(exr):
    """Return whether ``exr``, the bytes of an OpenEXR file, contains all chunks of its offset table.

    Multi-part files are not checked (True). FFmpeg leaves missing chunks black without an error. Format: https://openexr.com/en/latest/OpenEXRFileLayout.html
    """
    tiled, multipart = exr[5] & 2, exr[5] & 16
    position, offsets, first_chunk = 8, [], len(exr)
    while exr[position]:  # an attribute: name, type, size of the value, value
        position = exr.index(0, exr.index(0, position) + 1) + 1
        position += 4 + int.from_bytes(exr[position:position + 4], "little")
    position += 1
    while position + 8 <= first_chunk and not multipart:  # the table ends where the first chunk begins
        offsets.append(int.from_bytes(exr[position:position + 8], "little"))
        position, first_chunk = position + 8, min(first_chunk, offsets[-1])
    header = 20 if tiled else 8  # bytes; the last 4 are the size of the chunk's data
    return all(0 < offset <= len(exr) - header - int.from_bytes(exr[offset + header - 4:offset + header], "little")
               for offset in offsets)


def write_image(path: str | Path, rgb: np.ndarray, depth: int = 8) -> None:
    """Write an RGB image (H, W, 3) atomically; the suffix of ``path`` determines the format.

    ``rgb`` is uint8, uint16 with values of ``depth`` bits, or, only for OpenEXR, linear float32. Integers are converted
    to linear light for OpenEXR, and to 8 bits for formats that store no more.
    """
    suffix = Path(path).suffix.lower()
    encoder, formats = _CODECS.get(suffix, ("", {}))
    if suffix == ".exr":
        rgb, depth = (rgb if rgb.dtype == np.float32 else srgb_decode(rgb / np.float32(2**depth - 1))), 32
    elif depth not in formats and 16 in formats and depth > 8:
        rgb, depth = np.rint(rgb * (65535 / (2**depth - 1))).astype(np.uint16), 16
    with atomic_write(path) as temporary:
        if depth in formats:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=formats[depth])
            context: Any = av.CodecContext.create(encoder, "w")
            context.height, context.width = rgb.shape[:2]
            context.pix_fmt, context.time_base = formats[depth], Fraction(1, 24)
            temporary.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
        else:
            rgb = rgb if rgb.dtype == np.uint8 else (rgb >> depth - 8).astype(np.uint8)
            Image.fromarray(rgb).save(temporary, quality=95)  # PNG, BMP and TIFF ignore the quality


def srgb_encode(light: np.ndarray) -> np.ndarray:
    """Convert linear light (1 is white; negative values become 0) to sRGB values (IEC 61966-2-1), float32."""
    light = np.maximum(light, 0)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def srgb_decode(values: np.ndarray) -> np.ndarray:
    """Convert sRGB values (1 is white) to linear light, float32: the inverse of ``srgb_encode``."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def image_grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Arrange equally long rows of RGB uint8 images (H, W, 3) of one size in a grid with white gaps of ``gap`` px."""
    height, width = rows[0][0].shape[:2]
    grid = np.full((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            y, x = r * (height + gap), c * (width + gap)
            grid[y:y + height, x:x + width] = image
    return grid
