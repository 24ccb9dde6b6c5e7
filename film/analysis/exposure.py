"""How does the light of a shot change? A gain and an offset for each frame, by which fades and flicker are undone."""

from array import array

import cv2
import numpy as np

from colorizer.warping.optical_flow import Flow, blur, fetch
from dataset import L_SCALE, resize
from film.io.planes import gray_lightness

SIDE = 64  # pixels along a side of the pictures that are compared
LEAST = 0.25  # a mean change of L that is less is none: it would add up from frame to frame
SPREAD = 2.0  # standard deviation of L below which a picture tells nothing, as a black one
UNLIKE = 3.0  # median of what is left of the change of L: more is motion
LEFT = 0.2  # of the change without noise: light leaves at most 0.13, a shot that becomes another one 0.28 or more
STEADY = np.array([[1, 0]], np.float32)  # gain and offset of a frame in full light, or of two shots
STILL = 1.0, 0.0  # gain and offset between two frames in one light
GREATEST = 8.0  # gain: what is darker shows nothing


def normalize_exposure(L: np.ndarray, light: np.ndarray) -> np.ndarray:
    """L in [0, 100], of any shape, in the full light of its shot: gain * L + offset, ``light`` being both."""
    gain, offset = light
    return L if gain == 1 and offset == 0 else (gain * L + offset).clip(0, L_SCALE)


class ExposureTracker:
    """Follows the light through a film. L of a frame is about a * that of an earlier one + b where nothing moves, in a
    fade, whose L + 16 falls by one factor as long as no color is very dark, and in a flicker. A frame whose light
    differs from that of the frame before is compared with one that is as far back as both show the same, since errors
    of steps from frame to frame would add up."""

    def __init__(self) -> None:
        self.before: np.ndarray | None = None
        self.steps = array("f")  # a and b of each frame that was added, beside the frame before
        self._anchor, self._at = np.zeros(0), STILL  # the earlier frame, and a and b of the frame before beside it
        self._flow = Flow()

    def add(self, luma: np.ndarray) -> None:
        """Take the next frame, Y' uint8 (H, W), full range."""
        small = resize(luma, SIDE, SIDE)
        if self.before is None:
            self.before = self._anchor = small
        step = self._change(self.before, small)
        found = self._at if step == STILL else self._change(self._anchor, small)
        if found is None and step is None and _apart(self._anchor, small) < _apart(self.before, small):
            found = STILL  # as behind a flash
        if found is None:
            self._anchor, found = small, STILL
        else:
            (a, b), (a_before, b_before) = found, self._at
            step = a / a_before, b - a / a_before * b_before
        self.steps.extend(step or STILL)
        self.before, self._at = small, found

    def _change(self, before, after):
        """a and b between two frames, None where their light cannot be compared."""
        x, y = (gray_lightness(luma / np.float32(255)) for luma in (before, after))
        if abs(x.mean() - y.mean()) < LEAST / 2 and abs(x.std() - y.std()) < LEAST / 2:
            return STILL  # a change of light would be less than LEAST, whatever has moved
        moved = fetch(before.astype(np.float32), self._flow(after, before))
        x = gray_lightness(moved / np.float32(255))
        inside = (np.minimum(x, y) > 1) & (np.maximum(x, y) < 99)
        fit = self._fit(x[inside], y[inside]) if inside.sum() >= SIDE else None
        if fit is None:
            return None
        a, b = fit
        if np.abs((a - 1) * x[inside] + b).mean() < LEAST:
            return STILL
        change, left = (np.median(np.abs(blur(plane * inside)[inside])) for plane in (y - x, y - a * x - b))
        return fit if left <= LEFT * change else None

    def _fit(self, x, y):
        """a and b of the pixels of two frames, None where they are too unlike or too even to tell."""
        kept = np.ones(len(x), bool)
        for _ in range(4):
            if x[kept].std() < SPREAD or y[kept].std() < SPREAD / 2:
                return None
            a = y[kept].std() / x[kept].std()  # not least squares, which noise would flatten frame by frame
            b = y[kept].mean() - a * x[kept].mean()
            rest = np.abs(y - a * x - b)
            kept = rest <= max(0.5, 2 * np.median(rest))
        return None if np.median(rest) > UNLIKE else (float(a), float(b))

    def of_shot(self, start: int, end: int) -> np.ndarray:
        """(gain, offset) float32 (end - start, 2) of the frames from ``start`` to ``end``, counted from the first that
        was added: by them L is that in the full light of the shot, as ``lit`` does it."""
        gains, offsets = np.ones(end - start), np.zeros(end - start)
        steps = np.array(self.steps[2 * start + 2:2 * end]).reshape(-1, 2)
        for i, (a, b) in enumerate(steps, 1):
            gains[i], offsets[i] = a * gains[i - 1], a * offsets[i - 1] + b
        full = np.median(gains[gains > 0.8 * gains.max()])  # of a flicker the middle, of a fade where it has not begun
        usual = np.median(offsets[np.abs(gains / full - 1) < 0.1])
        gain = full / gains
        light = np.stack([gain, usual - gain * offsets], 1)
        dark = gain > GREATEST
        light[dark] = [GREATEST, 0]
        return light.astype(np.float32)


def _apart(one, other):
    return cv2.norm(one, other, cv2.NORM_L1)
