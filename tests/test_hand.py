"""benchmarks/hand.py: a user who clicks."""

import cv2
import numpy as np

from benchmarks.hand import corrected

from colorizer.metrics import color_differences
from dataset import lab_to_rgb, rgb_to_lab


def drawn():
    """A blue ground with a red and a green disc, outlined; and the same with colors of the machine: gray discs."""
    truth = np.full((120, 200, 3), (90, 140, 200), np.uint8)
    for x, color in ((55, (210, 60, 60)), (145, (60, 160, 80))):
        cv2.circle(truth, (x, 60), 30, color, -1)
        cv2.circle(truth, (x, 60), 30, (20, 20, 20), 3)
    lab = rgb_to_lab(truth)
    lab[:, 20:180, 1:] *= 0.1
    lab[:20, :, 1:], lab[:, :20, 1:] = rgb_to_lab(truth)[:20, :, 1:], rgb_to_lab(truth)[:, :20, 1:]
    return lab_to_rgb(lab), truth


def test_each_wrong_thing_takes_a_click():
    machine, truth = drawn()
    picture, clicks = corrected(machine, truth, 20)
    inside = np.zeros(truth.shape[:2], np.uint8)
    for x in (55, 145):
        cv2.circle(inside, (x, 60), 26, 1, -1)
    errors = color_differences(rgb_to_lab(picture), rgb_to_lab(truth))
    assert 3 <= clicks <= 8 and errors[inside > 0].mean() < 2
    assert (errors > 6).mean() < 0.05  # the outlines, which the machine has made gray, too


def test_a_frame_that_is_right_takes_none_and_no_more_than_allowed():
    machine, truth = drawn()
    assert corrected(truth, truth, 20)[1] == 0
    assert corrected(machine, truth, 1)[1] == 1
