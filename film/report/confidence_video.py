"""Confidence maps of pictures and films: recalled, predicted and unknown colors, tinted over the grayscale.

The confidence video of a film is encoded while the film is colored, in a segment for each shot. When the film is
complete, the segments are joined.
"""

from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from colorizer.confidence import Confidence
from dataset import resize
from fileio.atomic import atomic_write
from film.io.encoding import EncodingTarget, choose_small_encoding
from film.io.mux import segment_packets
from film.io.planes import Box, Planes

# Blue, bluish green and vermillion of the color-blind safe palette of Okabe and Ito.
COLORS = {"recalled": (0, 114, 178), "predicted": (0, 158, 115), "unknown": (213, 94, 0)}
OPACITY = 0.55  # of these colors over the grayscale picture
MAX_HEIGHT = 720  # pixels of the confidence video; larger: slower


def confidence_map(confidence: Confidence) -> np.ndarray:
    """Return RGB uint8 (G, G, 3), the mixture of COLORS for the confidence of a picture, arrays (G, G).

    The share of "unknown" is 1 - probability; the rest is "recalled" to the share ``recalled``, else "predicted".
    """
    recalled, probability = (np.asarray(x, np.float32) for x in (confidence.recalled, confidence.probability))
    shares = np.stack([probability * recalled, probability * (1 - recalled), 1 - probability], 2)
    return np.rint(shares @ np.array(list(COLORS.values()), np.float32)).astype(np.uint8)


def tint_grayscale(gray: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Tint a grayscale picture, uint8 (H, W), with a ``confidence_map``. Return RGB uint8 (H, W, 3)."""
    picture = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(picture, 1 - OPACITY, resize(colors, *gray.shape), OPACITY, 0)


def confidence_encoding(film: EncodingTarget) -> EncodingTarget:
    """Return the encoding of the confidence video of a ``film``."""
    return choose_small_encoding(film, MAX_HEIGHT)


def tint_frame(planes: Planes, confidence: Confidence | None, box: Box | None, target: EncodingTarget) -> Planes:
    """Return a frame of the confidence video, encoded for ``target``: the luma of ``planes``, tinted inside ``box``.

    The frame is gray if its confidence is None or NaN.
    """
    size, encoding = (target.height, target.width), target.encoding
    black, white = encoding.luma_range
    y = cv2.convertScaleAbs(planes.luma_uint8(*size), None, (white - black) / 255, black)
    cb, cr = (np.full(target.chroma_size, encoding.neutral_chroma, np.uint8) for _ in range(2))
    if confidence is not None and not np.isnan(confidence.probability).any():
        rgb = confidence_map(confidence) / np.float32(255)
        luma = np.rint(black + (white - black) * encoding.luma_of(rgb)).astype(np.uint8)
        for plane, colors in zip((y, cb, cr), (luma, *encoding.to_chroma(rgb)), strict=True):
            part = plane[_inside(box, planes.y.shape, plane.shape)]
            part[:] = cv2.addWeighted(part, 1 - OPACITY, resize(colors, *part.shape), OPACITY, 0)
    return Planes(y, cb, cr, encoding)


def _inside(box, frame_size, size):
    """Return the slices of rows and columns of a picture of ``size``, reduced from ``frame_size``, inside ``box``."""
    if box is None:
        return slice(None), slice(None)
    return tuple(slice(-(-first * reduced // side), end * reduced // side) for first, end, side, reduced in
                 zip(box[::2], box[1::2], frame_size, size, strict=True))


def join_confidence_video(path: Path, segments: Sequence[Path], times: Sequence[int], last_duration: int,
                          target: EncodingTarget) -> None:
    """Write the confidence video from its ``segments``, one for each shot, encoded for ``target``.

    ``times`` are the timestamps of all frames in the time base of ``target``, as is the duration of the last frame.
    """
    with (av.open(str(segments[0])) as first, atomic_write(path) as temporary,
          av.open(str(temporary), "w") as video):
        stream = video.add_stream_from_template(first.streams.video[0], opaque=True)
        stream.time_base = target.time_base
        for tag, value in target.tags.items():
            setattr(stream.codec_context, tag, value)
        for packet in segment_packets(segments, times, last_duration, target.time_base):
            packet.stream = stream
            video.mux(packet)
