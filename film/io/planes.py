"""Y'CbCr planes of video frames, and their conversion to RGB and lightness."""

import re
from functools import cache
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type

from colorizer.letterbox import Box
from dataset import resize
from fileio.images import srgb_decode, srgb_encode
from film.io.filters import frame_filter

# ---------------------------------------------------------------------------------------------------------------------
# Color encoding

_LUMA_WEIGHTS = {  # colorspace tag: weights of red and blue in Y' (ITU-T H.273, table 4)
    1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
    9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}  # fmt: skip
BT709, BT601 = 1, 6
_CHROMATICITIES = {  # color primaries tag: (x, y) of red, green and blue (table 2); the white point is that of sRGB
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), 12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))}
_SRGB_CHROMATICITIES = (0.640, 0.330), (0.300, 0.600), (0.150, 0.060)
_WHITE = 0.3127, 0.3290


def _to_xyz(chromaticities):
    """Return the matrix (3, 3) from linear RGB to XYZ."""
    xyz, white = (np.array([(x / y, 1, (1 - x - y) / y) for x, y in points]).T for points in (chromaticities, [_WHITE]))
    return xyz * np.linalg.solve(xyz, white).T


_TO_SRGB = {tag: np.linalg.solve(_to_xyz(_SRGB_CHROMATICITIES), _to_xyz(points))
            for tag, points in _CHROMATICITIES.items()}  # matrices of linear RGB


def _change_primaries(rgb, matrix):
    return np.clip(srgb_encode(cv2.transform(srgb_decode(rgb), matrix)), 0, 1)


class ColorEncoding(NamedTuple):
    """Bit depth, range, matrix and primaries of Y', Cb and Cr planes. RGB of its methods is sRGB."""

    depth: int  # bits
    full_range: bool  # at 8 bits: 0..255 if True, else 16..235 for luma and 16..240 for chroma
    colorspace: int  # matrix, as tagged in files; a key of _LUMA_WEIGHTS
    primaries: int = BT709  # as tagged in files; those without _CHROMATICITIES are taken for sRGB

    @property
    def luma_range(self) -> tuple[int, int]:
        """Luma of black and of white."""
        return (0, 2**self.depth - 1) if self.full_range else (16 << self.depth - 8, 235 << self.depth - 8)

    @property
    def neutral_chroma(self) -> int:
        """Cb and Cr of grays."""
        return 1 << self.depth - 1

    @property
    def chroma_span(self) -> int:
        """Difference between the nominal maximum and minimum of Cb and Cr."""
        return 2**self.depth - 1 if self.full_range else 224 << self.depth - 8

    def to_rgb(self, y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> np.ndarray:
        """Convert planes (H, W) to RGB float32 (H, W, 3), clipped to [0, 1]."""
        red, blue = _LUMA_WEIGHTS[self.colorspace]
        (black, white), span, neutral = self.luma_range, self.chroma_span, self.neutral_chroma
        # In place: allocating whole frames costs more time than the arithmetic.
        y = np.subtract(y, black, dtype=np.float32)
        y /= np.float32(white - black)
        r, b = (np.subtract(plane, neutral, dtype=np.float32) for plane in (cr, cb))
        r *= np.float32(2 * (1 - red) / span)
        r += y
        b *= np.float32(2 * (1 - blue) / span)
        b += y
        y -= np.float32(red) * r
        y -= np.float32(blue) * b
        y /= np.float32(1 - red - blue)  # green
        rgb = cv2.merge([r, y, b])
        np.clip(rgb, 0, 1, out=rgb)
        return _change_primaries(rgb, _TO_SRGB[self.primaries]) if self.primaries in _TO_SRGB else rgb

    def _with_primaries(self, rgb):
        matrix = _TO_SRGB.get(self.primaries)
        return rgb if matrix is None else _change_primaries(rgb, np.linalg.inv(matrix))

    def _weighted(self, rgb):
        red, blue = _LUMA_WEIGHTS[self.colorspace]
        return cv2.transform(rgb, np.array([[red, 1 - red - blue, blue]], np.float32))

    def luma_of(self, rgb: np.ndarray) -> np.ndarray:
        """Return Y' (H, W) in [0, 1] of RGB float32 (H, W, 3) in [0, 1]."""
        return self._weighted(self._with_primaries(rgb))

    def to_chroma(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert RGB float32 (H, W, 3) in [0, 1] to Cb and Cr (H, W); with ``luma_of``, it inverts ``to_rgb``."""
        red, blue = _LUMA_WEIGHTS[self.colorspace]
        rgb = self._with_primaries(rgb)
        y, span, neutral = self._weighted(rgb), self.chroma_span, self.neutral_chroma

        def quantized(plane, weight):
            plane -= y
            plane *= np.float32(span / (2 * (1 - weight)))
            plane += neutral
            return np.clip(np.rint(plane, out=plane), 0, 2**self.depth - 1, out=plane).astype(self.dtype)

        r, _, b = cv2.split(rgb)
        return quantized(b, blue), quantized(r, red)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint8 if self.depth == 8 else np.uint16


# ---------------------------------------------------------------------------------------------------------------------
# Planes of a frame


def plane_slices(box: Box | None, frame_size: tuple[int, ...], plane_size: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the slices of rows and columns of a plane whose samples lie completely inside the box of its frame.

    Sizes are (height, width); None as the box means the whole frame.
    """
    if box is None:
        return slice(0, plane_size[0]), slice(0, plane_size[1])

    def samples(first, end, size, count):
        step = -(-size // count)
        return slice(-(-first // step), count if end == size else end // step)

    return samples(*box[:2], frame_size[0], plane_size[0]), samples(*box[2:], frame_size[1], plane_size[1])


class Planes(NamedTuple):
    """A frame as stored: Y' (H, W), Cb and Cr (h, w) with h <= H and w <= W; Cb and Cr are None for grayscale."""

    y: np.ndarray
    cb: np.ndarray | None
    cr: np.ndarray | None
    encoding: ColorEncoding
    field_order: str = ""  # "tff" or "bff": even and odd rows are two fields, captured at different times, the top or
    # bottom one first; "": progressive
    alpha: np.ndarray | None = None  # opacity (H, W) in full range, at the depth of ``encoding``; None: opaque
    source: av.VideoFrame | None = None  # the decoded frame if it has any of SIDE_DATA

    def _deinterlaced(self):
        """Return the mean of the two fields of an interlaced frame, which has no combing; other frames unchanged."""
        if not self.field_order:
            return self
        y, cb, cr = map(_mean_of_fields, self[:3])
        return Planes(y, cb, cr, self.encoding)

    def crop(self, box: Box | None) -> "Planes":
        """Return the part of the frame inside the box; None means the whole frame."""
        size = self.y.shape
        cb, cr = (plane if plane is None else plane[plane_slices(box, size, plane.shape)] for plane in self[1:3])
        return self._replace(y=self.y[plane_slices(box, size, size)], cb=cb, cr=cr, alpha=None)

    def rgb(self, height: int, width: int) -> np.ndarray:
        """Return RGB float32 (height, width, 3) in [0, 1]; the fields of an interlaced frame are averaged."""
        y, cb, cr, *_ = self._deinterlaced()
        y = resize(y, height, width)
        if cb is None or cr is None:
            cb = cr = np.full((height, width), self.encoding.neutral_chroma, self.encoding.dtype)
        else:
            cb, cr = resize(cb, height, width), resize(cr, height, width)
        return self.encoding.to_rgb(y, cb, cr)

    def downscale(self, side: int) -> "Planes":
        """Return the deinterlaced frame at side x side pixels, without chroma subsampling.

        Its ``rgb`` and ``lightness`` at this size equal those of the original frame.
        """
        y, *chroma = self._deinterlaced()[:3]
        cb, cr = (plane if plane is None else _resized_chroma(plane, side, side) for plane in chroma)
        return Planes(resize(y, side, side), cb, cr, self.encoding)

    def subsample(self, height: int, width: int) -> "Planes":
        """Return the samples of a regular grid of height x width pixels of the frame, without averaging."""
        def sample(plane):
            return plane if plane is None else cv2.resize(plane, (width, height), interpolation=cv2.INTER_NEAREST)

        return Planes(sample(self.y), sample(self.cb), sample(self.cr), self.encoding)

    def rgb_uint8(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Return RGB uint8 (height, width, 3); None means the size of the frame."""
        rgb = self.rgb(height or self.y.shape[0], width or self.y.shape[1])
        rgb *= 255
        return np.rint(rgb, out=rgb).astype(np.uint8)

    def rgb_codes(self) -> np.ndarray:
        """Return RGB at the bit depth of the frame: uint8 or uint16 (H, W, 3)."""
        rgb = self.rgb(*self.y.shape)
        rgb *= 2**self.encoding.depth - 1
        return np.rint(rgb, out=rgb).astype(self.encoding.dtype)

    def gray_uint8(self, height: int, width: int) -> np.ndarray:
        """Return the frame in grayscale as RGB uint8 (height, width, 3)."""
        y = resize(self._deinterlaced().y, height, width)
        return cv2.cvtColor(_gray_tables(self.encoding)[0][y], cv2.COLOR_GRAY2RGB)

    def lightness(self, side: int) -> np.ndarray:
        """Return L float32 (side, side) in [0, 100] of the frame in grayscale; chroma is ignored."""
        return lightness_of(resize(self._deinterlaced().y, side, side), self.encoding)

    def luma_uint8(self, height: int, width: int) -> np.ndarray:
        """Return Y' as uint8 (height, width) in full range; fields are not averaged."""
        black, white = self.encoding.luma_range
        y = np.maximum(resize(self.y, height, width), black)
        return cv2.convertScaleAbs(y, None, 255 / (white - black), -255 * black / (white - black))


def _resized_chroma(plane, height, width):
    """Resize Cb or Cr, which are constant in a grayscale film."""
    low, high, *_ = cv2.minMaxLoc(plane)
    return np.full((height, width), plane[0, 0]) if low == high else resize(plane, height, width)


def _mean_of_fields(plane):
    return plane if plane is None else cv2.addWeighted(plane[:len(plane) // 2 * 2:2], 0.5, plane[1::2], 0.5, 0)


# ---------------------------------------------------------------------------------------------------------------------
# From decoded frames and images


def plane_array(frame: av.VideoFrame, index: int, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Return plane ``index`` of a frame as an array (h, w) that shares the memory of the frame."""
    interleaved = 2 if frame.format.name.startswith("ya") else 1  # grayscale with alpha
    plane = frame.planes[index // interleaved]
    rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)
    return rows[:, index % interleaved:plane.width * interleaved:interleaved]


SIDE_DATA = {  # what may accompany a frame and is lost if the encoder does not write it
    Type.A53_CC: "closed captions", Type.AFD: "active format description", Type.STEREO3D: "3D arrangement",
    Type.SPHERICAL: "spherical projection", Type.S12M_TIMECODE: "time codes of frames", Type.ICC_PROFILE: "ICC profile",
    Type.MASTERING_DISPLAY_METADATA: "mastering display metadata", Type.CONTENT_LIGHT_LEVEL: "content light level",
    Type.DYNAMIC_HDR_PLUS: "HDR10+ metadata", Type.DOVI_METADATA: "Dolby Vision metadata"}  # fmt: skip


class Orientation(NamedTuple):
    """How a frame must be turned to be upright: transposed first, then flipped."""

    transpose: bool
    flip_rows: bool  # upside down
    flip_columns: bool  # left to right

    def apply(self, plane: np.ndarray) -> np.ndarray:
        """Return a plane upright."""
        plane = plane.T if self.transpose else plane
        return np.ascontiguousarray(plane[::-1 if self.flip_rows else 1, ::-1 if self.flip_columns else 1])


UPRIGHT = Orientation(False, False, False)


def orientation(frame: av.VideoFrame) -> Orientation:
    """Return the orientation that the display matrix of a frame states, rounded to quarter turns and mirrors."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return UPRIGHT
    (a, b), (c, d) = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3)[:2, :2].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):  # x moves along y
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)


def has_fields(frame: av.VideoFrame) -> bool:
    """Return whether a frame can be split into two fields: upright, with an even height of at least 4."""
    return orientation(frame) == UPRIGHT and frame.height % 2 == 0 and frame.height > 3


def frame_field_order(frame: av.VideoFrame) -> str:
    """Return the field order of a frame according to its flags, "tff" or "bff"; "" if it is progressive or rotated.

    PyAV does not expose the order: a filter drops frames that are not "tff".
    """
    if not (frame.interlaced_frame and has_fields(frame)):
        return ""
    is_tff = frame_filter(frame.width, frame.height, frame.format.name, ("select", "eq(interlace_type,TOPFIRST)"))
    try:
        is_tff(frame)
    except av.error.BlockingIOError:  # the frame was dropped
        return "bff"
    return "tff"


class ColorTags(NamedTuple):
    """Tags of a film that PyAV does not attach to its frames."""

    full_range: bool | None = None  # None: as tagged in each frame, else full for grayscale and limited for Y'CbCr
    primaries: int = BT709


def planes_from_frame(frame: av.VideoFrame, tags: ColorTags | None = None) -> Planes:
    """Return the planes of a decoded frame, rotated upright.

    The samples of planar little-endian Y'CbCr and of grayscale are kept; all other formats are converted to 4:4:4 with
    8, 10, 12 or 16 bits. A frame without a matrix tag has BT.601 below 720 lines, else BT.709, as in players.
    """
    source, name, depth, options = frame, frame.format.name, frame.format.components[0].bits, {}
    is_gray = name.startswith(("gray", "ya", "mono"))
    full = frame.color_range == 2 or name.startswith("yuvj") or is_gray and frame.color_range != 1
    tags = tags or ColorTags()
    full = full if tags.full_range is None else tags.full_range
    colorspace = frame.colorspace if frame.colorspace in _LUMA_WEIGHTS else BT709 if frame.height >= 720 else BT601
    order, turn = frame_field_order(frame), orientation(frame)
    has_alpha = frame.format.components[-1].is_alpha and not frame.format.has_palette
    if not re.fullmatch(r"(yuva?4|yuvj4|gray).*(?<!be)(?<!f16le)(?<!f32le)", name):
        depth = min(max(depth, 8), 16) if is_gray else next((bits for bits in (8, 10, 12) if bits >= depth), 16)
        bits = f"{depth}le" if depth > 8 else ""
        if frame.format.is_rgb or frame.format.has_palette:
            full, colorspace = False, BT709
        else:
            options = {"src_colorspace": colorspace, "src_color_range": 1 + full}
        if is_gray and "f" not in name:  # not of floats; FFmpeg would change the range in Y'CbCr
            frame = frame.reformat(format="ya" + (bits or "8") if has_alpha else "gray" + bits)
        else:
            frame = frame.reformat(format=f"yuv{'a' * has_alpha}444p{bits}", **options, dst_colorspace=colorspace,
                                   dst_color_range=1 + full)
    encoding = ColorEncoding(depth, full, colorspace, tags.primaries if tags.primaries in _TO_SRGB else BT709)
    planes = [turn.apply(plane) if turn != UPRIGHT else plane for plane in (
        plane_array(frame, index, encoding.dtype) for index in range(max(len(frame.planes), 1 + has_alpha)))]
    cb, cr = (None, None) if is_gray else planes[1:3]
    return Planes(planes[0], cb, cr, encoding, order, planes[-1] if has_alpha else None,
                  source if any(data.type in SIDE_DATA for data in source.side_data) else None)


def planes_from_rgb(rgb: np.ndarray, depth: int = 8) -> Planes:
    """Return the planes (4:4:4, full range) of RGB (H, W, 3) of ``depth`` bits; gray pixels keep their values as Y'."""
    encoding, white = ColorEncoding(depth, True, BT601), 2**depth - 1
    rgb = rgb.astype(np.float32) / white
    y = np.rint(encoding.luma_of(rgb) * white).astype(encoding.dtype)
    return Planes(y, *encoding.to_chroma(rgb), encoding)


def change_depth(plane: np.ndarray, old: int, new: int) -> np.ndarray:
    """Convert a plane from ``old`` to ``new`` bits per sample by shifting; a reduction rounds and clips."""
    if old == new:
        return plane
    if old < new:
        return plane.astype(np.uint16) << (new - old)
    shift = old - new
    rounded = (plane.astype(np.uint32) + (1 << shift - 1)) >> shift
    return np.minimum(rounded, 2**new - 1).astype(np.uint8 if new == 8 else np.uint16)


def scale_depth(plane: np.ndarray, old: int, new: int) -> np.ndarray:
    """Convert a plane from ``old`` to ``new`` bits per sample by scaling, so that the maximum stays the maximum."""
    if old == new:
        return plane
    return np.rint(plane * np.float32((2**new - 1) / (2**old - 1))).astype(np.uint8 if new == 8 else np.uint16)


# ---------------------------------------------------------------------------------------------------------------------
# Lightness and colors

_GRAYS = np.linspace(0, 1, 4096, dtype=np.float32)
_GRAY_L = cv2.cvtColor(np.repeat(_GRAYS[None, :, None], 3, 2), cv2.COLOR_RGB2Lab)[0, :, 0].copy()


def gray_lightness(luma: np.ndarray) -> np.ndarray:
    """Return L in [0, 100] of grays with Y' ``luma`` in [0, 1], float32 of any shape."""
    return _GRAY_L.take((luma * 4095 + 0.5).astype(np.uint16))


@cache
def _gray_tables(encoding):
    """Return two tables (2^depth,) from luma to the 8-bit gray level (uint8) and to its L (float32)."""
    black, white = encoding.luma_range
    luma = np.clip((np.arange(2**encoding.depth, dtype=np.float32) - black) / np.float32(white - black), 0, 1)
    return np.rint(luma * 255).astype(np.uint8), gray_lightness(luma)


def lightness_of(y: np.ndarray, encoding: ColorEncoding) -> np.ndarray:
    """Return L in [0, 100] of grays with luma ``y`` in ``encoding``, float32 of the same shape."""
    table = _gray_tables(encoding)[1]
    return cv2.LUT(y, table) if y.dtype == np.uint8 else table[y]
