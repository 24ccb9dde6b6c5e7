"""What do the planes of a film's picture hold? Y', Cb and Cr of any coding to RGB and Lab, and colors to Cb and Cr."""

from functools import cache
from typing import NamedTuple

import av
import cv2
import numpy as np

from colorizer.warping.upsampling import lines
from dataset import resize

# ---------------------------------------------------------------------------------------------------------------------
# Codes

_LUMA_WEIGHTS = {  # colorspace tag: weights of red and blue (ITU-T H.273, table 4)
    1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
    9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}  # fmt: skip
BT709, BT601 = 1, 6


class Coding(NamedTuple):
    """What the numbers in the planes of a picture mean."""

    depth: int  # bits
    full_range: bool  # full range, 0..255 at 8 bits; limited is 16..235 for luma and 16..240 for chroma
    colorspace: int  # the matrix, as tagged in files; one of _LUMA_WEIGHTS

    @property
    def luma_range(self) -> tuple[int, int]:
        """(code of black, number of codes from black to white)."""
        return (0, 2**self.depth - 1) if self.full_range else (16 << self.depth - 8, 219 << self.depth - 8)

    @property
    def chroma_range(self) -> tuple[int, int]:
        """(code of neutral, number of codes from -0.5 to 0.5)."""
        return 1 << self.depth - 1, 2**self.depth - 1 if self.full_range else 224 << self.depth - 8

    def to_rgb(self, y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> np.ndarray:
        """Planes of codes (H, W) -> RGB float32 (H, W, 3) in [0, 1], clipped."""
        red, blue = _LUMA_WEIGHTS[self.colorspace]
        (black, span), (neutral, reach) = self.luma_range, self.chroma_range
        # In place: a new map of a whole picture costs more than the arithmetic.
        y = np.subtract(y, black, dtype=np.float32)
        y /= np.float32(span)
        r, b = (np.subtract(plane, neutral, dtype=np.float32) for plane in (cr, cb))
        r *= np.float32(2 * (1 - red) / reach)
        r += y
        b *= np.float32(2 * (1 - blue) / reach)
        b += y
        y -= np.float32(red) * r
        y -= np.float32(blue) * b
        y /= np.float32(1 - red - blue)  # green
        rgb = cv2.merge([r, y, b])
        return np.clip(rgb, 0, 1, out=rgb)

    def luma_of(self, rgb: np.ndarray) -> np.ndarray:
        """RGB float32 (H, W, 3) in [0, 1] -> Y' (H, W) in [0, 1]."""
        red, blue = _LUMA_WEIGHTS[self.colorspace]
        return cv2.transform(rgb, np.array([[red, 1 - red - blue, blue]], np.float32))

    def to_chroma(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """RGB float32 (H, W, 3) in [0, 1] -> Cb and Cr, planes of codes (H, W): the inverse of ``to_rgb``."""
        red, blue = _LUMA_WEIGHTS[self.colorspace]
        neutral, reach = self.chroma_range
        y = self.luma_of(rgb)

        def codes(plane, weight):
            plane -= y
            plane *= np.float32(reach / (2 * (1 - weight)))
            plane += neutral
            return np.clip(np.rint(plane, out=plane), 0, 2**self.depth - 1, out=plane).astype(self.dtype)

        r, _, b = cv2.split(rgb)
        return codes(b, blue), codes(r, red)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint8 if self.depth == 8 else np.uint16


Box = tuple[int, int, int, int]  # the part of a picture that is no bars: top, bottom, left and right, in pixels


def plane_slices(box: Box | None, picture: tuple[int, ...], plane: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of a ``plane`` (h, w) of a ``picture`` (H, W) that lie in its box as a whole; None is all.
    """
    if box is None:
        return slice(0, plane[0]), slice(0, plane[1])

    def samples(first, end, size, count):
        step = -(-size // count)
        return slice(-(-first // step), count if end == size else end // step)

    return samples(*box[:2], picture[0], plane[0]), samples(*box[2:], picture[1], plane[1])


class Planes(NamedTuple):
    """A picture as it is stored: codes Y' (H, W), and Cb and Cr (h, w), h <= H and w <= W, or None if it is gray."""

    y: np.ndarray
    cb: np.ndarray | None
    cr: np.ndarray | None
    coding: Coding
    interlaced: bool = False  # the rows of each plane are in turn of two fields, which show two moments

    def _still(self):
        """What is looked at: the picture, or the mean of its fields. Their chroma is never mixed with rows of the other
        field's luma, and nothing is combed."""
        if not self.interlaced:
            return self
        y, cb, cr = map(_mean_of_fields, self[:3])
        return Planes(y, cb, cr, self.coding)

    def crop(self, box: Box | None) -> "Planes":
        """What lies in the box; None is all."""
        cb, cr = (plane if plane is None else plane[plane_slices(box, self.y.shape, plane.shape)] for plane in self[1:3])
        return self._replace(y=self.y[plane_slices(box, self.y.shape, self.y.shape)], cb=cb, cr=cr)

    def rgb(self, height: int, width: int) -> np.ndarray:
        """RGB float32 (height, width, 3) in [0, 1]; of interlaced pictures, the mean of their fields."""
        self = self._still()
        y = _resized(self.y, height, width)
        if self.cb is None or self.cr is None:
            cb = cr = np.full((height, width), self.coding.chroma_range[0], self.coding.dtype)
        else:
            cb, cr = _resized(self.cb, height, width), _resized(self.cr, height, width)
        return self.coding.to_rgb(y, cb, cr)

    def downscale(self, side: int) -> "Planes":
        """The picture of side x side pixels, all planes of one size; its ``rgb`` and ``lightness`` of that size are
        this one's."""
        self = self._still()
        cb, cr = (plane if plane is None else _resized(plane, side, side) for plane in (self.cb, self.cr))
        return Planes(_resized(self.y, side, side), cb, cr, self.coding)

    def rgb_uint8(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """RGB uint8 (height, width, 3); None takes the picture's own size."""
        rgb = self.rgb(height or self.y.shape[0], width or self.y.shape[1])
        rgb *= 255
        return np.rint(rgb, out=rgb).astype(np.uint8)

    def rgb_codes(self) -> np.ndarray:
        """The picture in its own depth: RGB codes (H, W, 3), uint8 or uint16."""
        rgb = self.rgb(*self.y.shape)
        rgb *= 2**self.coding.depth - 1
        return np.rint(rgb, out=rgb).astype(self.coding.dtype)

    def gray_uint8(self, height: int, width: int) -> np.ndarray:
        """The luma alone as RGB uint8 (height, width, 3)."""
        y = _resized(self._still().y, height, width)
        return cv2.cvtColor(_grays_of_codes(self.coding)[y], cv2.COLOR_GRAY2RGB)

    def lightness(self, side: int) -> np.ndarray:
        """L float32 (side, side) in [0, 100] of the gray that the luma alone shows, whatever the chroma."""
        return _lightness_of_codes(self.coding)[_resized(self._still().y, side, side)]

    def luma_uint8(self, height: int, width: int) -> np.ndarray:
        """Y' uint8 (height, width), full range."""
        black, span = self.coding.luma_range
        return cv2.convertScaleAbs(np.maximum(_resized(self.y, height, width), black), None, 255 / span,
                                   -255 * black / span)


NEAR = 512  # rows and columns that are left of a large picture before it is shrunk to any size


def _resized(plane, height, width):
    """``resize``, in a tenth of the time where a large plane is shrunk: it is halved as often as NEAR allows, which
    rounds each time."""
    rows, columns = plane.shape
    while not (rows % 2 or columns % 2) and rows // 2 >= max(NEAR, height) and columns // 2 >= max(NEAR, width):
        rows, columns = rows // 2, columns // 2
        plane = resize(plane, rows, columns)
    return resize(plane, height, width)


def _mean_of_fields(plane):
    return plane if plane is None else cv2.addWeighted(plane[:len(plane) // 2 * 2:2], 0.5, plane[1::2], 0.5, 0)


def plane_array(frame: av.VideoFrame, index: int, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """A plane of a decoded frame as an array (h, w) that shares its memory."""
    plane = frame.planes[index]
    rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)
    return rows[:, :plane.width]


def has_fields(frame: av.VideoFrame) -> bool:
    """Whether the rows of a frame, as it is shown, can be those of two fields."""
    return not (frame.rotation % 360 or frame.height % 2) and frame.height > 3


def planes_from_frame(frame: av.VideoFrame) -> Planes:
    """Planes of a decoded frame, turned upright. Planar Y'CbCr and gray are taken as they are; any other format is
    converted to 4:4:4. An untagged matrix counts as BT.601 below 720 lines, else as BT.709, as in players."""
    name, depth = frame.format.name, frame.format.components[0].bits
    full = frame.color_range == 2 or name.startswith("yuvj") or (name.startswith("gray") and frame.color_range != 1)
    colorspace = frame.colorspace if frame.colorspace in _LUMA_WEIGHTS else BT709 if frame.height >= 720 else BT601
    interlaced = frame.interlaced_frame and has_fields(frame)
    planar = name.startswith(("yuv4", "yuvj4", "yuva4", "gray")) and not name.endswith("be")
    if not planar:
        depth = 10 if depth > 8 else 8
        if frame.format.is_rgb or frame.format.has_palette:
            given, full, colorspace = {}, False, BT709
        else:
            given = {"src_colorspace": colorspace, "src_color_range": 1 + full}
        frame = frame.reformat(format="yuv444p10le" if depth > 8 else "yuv444p", **given,
                               dst_colorspace=colorspace, dst_color_range=1 + full)
    coding = Coding(depth, full, colorspace)
    gray = frame.format.name.startswith("gray")
    planes = [plane_array(frame, index, coding.dtype) for index in range(1 if gray else 3)]
    if frame.rotation % 360:
        planes = [np.ascontiguousarray(np.rot90(plane, round(frame.rotation / 90))) for plane in planes]
    cb, cr = (None, None) if gray else planes[1:]
    return Planes(planes[0], cb, cr, coding, interlaced)


def planes_from_rgb(rgb: np.ndarray, depth: int = 8) -> Planes:
    """Planes of a picture, RGB codes (H, W, 3) of ``depth`` bits: 4:4:4 in full range, so that the Y' of a gray is its
    R, G and B."""
    coding, rgb = Coding(depth, True, BT601), rgb.astype(np.float32) / (2**depth - 1)
    return Planes(np.rint(coding.luma_of(rgb) * (2**depth - 1)).astype(coding.dtype), *coding.to_chroma(rgb), coding)


def change_depth(plane: np.ndarray, old: int, new: int) -> np.ndarray:
    """A plane of codes of ``old`` bits as codes of ``new`` bits: shifted, and rounded if they are fewer."""
    if old == new:
        return plane
    if old < new:
        return plane.astype(np.uint16) << (new - old)
    shift = old - new
    rounded = (plane.astype(np.uint32) + (1 << shift - 1)) >> shift
    return np.minimum(rounded, 2**new - 1).astype(np.uint8 if new == 8 else np.uint16)


_GRAYS = np.linspace(0, 1, 4096, dtype=np.float32)
_GRAY_L = cv2.cvtColor(np.repeat(_GRAYS[None, :, None], 3, 2), cv2.COLOR_RGB2Lab)[0, :, 0].copy()


def gray_lightness(luma: np.ndarray) -> np.ndarray:
    """L of CIE Lab of a gray of Y', float32 of any shape in [0, 1]."""
    return _GRAY_L[(luma * 4095 + 0.5).astype(np.uint16)]


@cache
def _grays_of_codes(coding):
    """The gray, uint8 (2^depth,), of each code of luma."""
    return np.rint(_luma_of_codes(coding) * 255).astype(np.uint8)


@cache
def _lightness_of_codes(coding):
    """L of a gray of each code of luma, float32 (2^depth,)."""
    return gray_lightness(_luma_of_codes(coding))


def lightness_of(y: np.ndarray, coding: Coding) -> np.ndarray:
    """L of grays of codes of luma, float32 of their shape."""
    table = _lightness_of_codes(coding)
    return cv2.LUT(y, table) if y.dtype == np.uint8 else table[y]


def _luma_of_codes(coding):
    """Y' in [0, 1] of each code of luma."""
    black, span = coding.luma_range
    return np.clip((np.arange(2**coding.depth, dtype=np.float32) - black) / np.float32(span), 0, 1)


PAINTED = 2**16  # pixels that are painted at a time: what is computed of them fits into the cache of a core


def ab_to_chroma(planes: Planes, ab: np.ndarray, height: int, width: int,
                 coding: Coding) -> tuple[np.ndarray, np.ndarray]:
    """Cb and Cr (height, width), codes of ``coding``, that give the picture the colors ab (h, w, 2) at its own luma.

    A color with the L of a gray of that luma and with a given ab has another luma: blue and red ones are darker. So L
    is corrected by one step towards the picture's luma, before Cb and Cr are taken from the color.
    """
    y = resize(planes.y, height, width)
    wanted = lightness_of(y, planes.coding)
    steep, rest = (resize(plane, height, width) for plane in lines(ab, resize(wanted, *ab.shape[:2])))
    cb, cr = (np.empty((height, width), coding.dtype) for _ in range(2))
    rows = max(1, PAINTED // width)
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        light = wanted[part]
        lab = cv2.merge([light, *cv2.split(steep[part] * light[..., None] + rest[part])])
        rgb = _clipped(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB))
        lab[..., 0] += light - gray_lightness(coding.luma_of(rgb))
        cb[part], cr[part] = coding.to_chroma(_clipped(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB, dst=rgb)))
    return cb, cr


def _clipped(rgb):
    return np.clip(rgb, 0, 1, out=rgb)
