"""Measure how well clicks select regions: parts of the characters of the drawn episode 2.

    python -m benchmarks.region_clicks [--every 24]

A target is a part of a body enclosed by lines, such as an arm or a head, in one or two tones (``draw_frame`` with
``mask_of``). A simulated user clicks into the center of the largest missing part, and undoes a click that does not
raise the intersection over union (IoU). Prints the mean IoU after 1, 2 and 3 clicks and the share of targets with an
IoU above 0.9, by their area in pixels of 640 x 360. Outlines and pixels next to the edge of the target are not counted.
"""

import cv2
import numpy as np

from benchmarks.common import first_line, print_header, print_row
from resources.draw_episodes import INK, PALETTE, draw_frame, effect_frames, frame_count

from dataset import rgb_to_lab
from editing.regions import Regions
from utils import ArgumentParser, parse_positive_int, run_cli

EPISODE, CLICKS = 2, 3
AREAS = (40, 120, 400, 1500)  # lower limits of the rows, in pixels; smaller targets are not counted
DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


def read_targets(index):
    """Yield the masks of the targets of a frame, bool (H, W)."""
    for name in PALETTE:
        body = draw_frame(EPISODE, index, mask_of=name)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(np.uint8(body), connectivity=4)
        for part in range(1, count):
            if stats[part, cv2.CC_STAT_AREA] >= AREAS[0]:
                yield parts == part


def center_of(mask):
    """Return the point (x, y) of a mask with the largest distance from its edge."""
    distance = cv2.distanceTransform(np.pad(np.uint8(mask), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x), int(y)


def select_by_clicks(regions, target, counted):
    """Simulate the user. Returns the IoU after each of CLICKS clicks; pixels outside of ``counted`` are ignored."""
    clicks, mask, ious, best = [], np.zeros(target.shape, np.float32), [], 0.0
    for _ in range(CLICKS):
        missing = target & (mask < 0.5)
        if missing.any():
            candidate = regions.fill([*clicks, center_of(missing)])
            selected = candidate > 0.5
            iou = (target & selected).sum() / ((target | selected) & counted).sum()
            if iou > best:
                clicks, mask, best = [*clicks, center_of(missing)], candidate, float(iou)
        ious.append(best)
    return ious


def measure(index):
    """Return [(area, IoU after 1 click, after 2, after 3)] of all targets of a frame."""
    rgb, rows = draw_frame(EPISODE, index), []
    regions = Regions(rgb_to_lab(cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))[..., 0])
    ink = cv2.dilate(np.uint8((np.abs(rgb.astype(int) - INK) < 50).all(-1)), DISC[1:4, 1:4]) > 0
    for target in read_targets(index):
        edge = (cv2.dilate(np.uint8(target), DISC) > 0) & ~target
        rows.append((int(target.sum()), *select_by_clicks(regions, target, target | ~(ink | edge))))
    return rows


def main(argv):
    parser = ArgumentParser(prog="benchmarks.region_clicks", description=first_line(__doc__))
    parser.add_argument("--every", type=parse_positive_int, default=24, help="measure every N-th frame")
    args = parser.parse_args(argv)
    flash, fade = effect_frames(EPISODE)
    frames = [index for index in range(6, frame_count(EPISODE), args.every) if index not in flash | fade]
    rows = np.array([row for index in frames for row in measure(index)])
    print_header("area", "targets", *(f"{title} after {click}" for click in range(1, CLICKS + 1)
                                      for title in ("IoU", "share > 0.9")))
    for low, high in zip((*AREAS, AREAS[0]), (*AREAS[1:], np.inf, np.inf), strict=True):
        ious = rows[(rows[:, 0] >= low) & (rows[:, 0] < high), 1:]
        print_row(f"{low} to {high:g}", len(ious), *(f"{iou.mean():.3f} | {(iou > 0.9).mean():.0%}" for iou in ious.T))


if __name__ == "__main__":
    run_cli(main)
