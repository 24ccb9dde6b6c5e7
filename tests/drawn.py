"""Small things that several test modules draw."""

import cv2
import numpy as np

from utils import write_image


def draw_picture(seed, size=(96, 64)):
    """A coloured drawing, RGB uint8: a red disc or a blue square on a ground of one of two colours."""
    rng = np.random.default_rng(seed)
    picture = np.full((size[1], size[0], 3), ((190, 220, 160), (240, 210, 130))[seed % 2], np.uint8)
    x, y = int(rng.integers(20, size[0] - 20)), int(rng.integers(20, size[1] - 20))
    if seed % 2:
        cv2.circle(picture, (x, y), 14, (210, 40, 50), -1, cv2.LINE_AA)
    else:
        cv2.rectangle(picture, (x - 12, y - 12), (x + 12, y + 12), (40, 80, 210), -1, cv2.LINE_AA)
    return picture


def draw_dataset(folder, train=6, val=2, test=2):
    """A dataset as dataset_generator.py writes it; returns the folder."""
    number = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for _ in range(count):
            write_image(folder / split / f"raw_image_drawn_{number}.png", draw_picture(number))
            number += 1
    return folder
