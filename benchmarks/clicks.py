"""How many clicks does a thing take? Things of the drawn episode 2, filled by a user who sees the truth.

    python benchmarks/clicks.py [--every 24] [--show FOLDER]

A thing is a part of a character's body that is closed by lines, an arm or a head, in one tone or two
(``draw_frame(..., mask_of=...)``). The user clicks into the middle of the largest part that is missing, and takes a
click back that makes it worse. Prints the mean IoU after 1, 2 and 3 clicks and the share of things of an IoU above 0.9,
by the area of the things in pixels of 640 x 360. Outlines and the pixels beside the edge of a thing are not counted.
``--show`` writes a picture of each frame: gray, with all its things as they were filled.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from resources.draw_episodes import INK, PALETTE, draw_frame, effect_frames, frame_count

from dataset import rgb_to_lab
from editing.regions import Regions
from fileio.images import write_image
from utils import ArgumentParser, parse_positive_int, run_cli

EPISODE, CLICKS = 2, 3
AREAS = (40, 120, 400, 1500)  # pixels; smaller parts are not counted
DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


def gray_of(rgb):
    """The gray frame of RGB uint8 (H, W, 3): L float32 (H, W)."""
    return rgb_to_lab(cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))[..., 0]


def things(index):
    """Yield the things of a frame: bool (H, W) each."""
    for name in PALETTE:
        body = draw_frame(EPISODE, index, mask_of=name)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(np.uint8(body), connectivity=4)
        for part in range(1, count):
            if stats[part, cv2.CC_STAT_AREA] >= AREAS[0]:
                yield parts == part


def middle(mask):
    """The point (x, y) of a mask that is farthest from its edge."""
    room = cv2.distanceTransform(np.pad(np.uint8(mask), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(room.argmax(), room.shape)
    return int(x), int(y)


def click_through(regions, thing, counted):
    """The IoU after each of CLICKS clicks, counted where ``counted`` is, and the mask at the end."""
    clicks, mask, ious, best = [], np.zeros(thing.shape, np.float32), [], 0.0
    for _ in range(CLICKS):
        missing = thing & (mask < 0.5)
        if missing.any():
            tried = regions.fill([*clicks, middle(missing)])
            filled = tried > 0.5
            iou = (thing & filled).sum() / ((thing | filled) & counted).sum()
            if iou > best:
                clicks, mask, best = [*clicks, middle(missing)], tried, float(iou)
        ious.append(best)
    return ious, mask


def measure(index, show=None):
    """[(area, IoU after 1 click, 2, 3)] of all things of a frame; ``show`` is the picture to write."""
    rgb = draw_frame(EPISODE, index)
    L = gray_of(rgb)
    regions, rows = Regions(L), []
    ink = cv2.dilate(np.uint8((np.abs(rgb.astype(int) - INK) < 50).all(-1)), DISC[1:4, 1:4]) > 0
    picture, colors = np.repeat(L[..., None] * np.float32(2.55), 3, 2), np.random.default_rng(0)
    for thing in things(index):
        beside = (cv2.dilate(np.uint8(thing), DISC) > 0) & ~thing
        ious, mask = click_through(regions, thing, thing | ~(ink | beside))
        rows.append((int(thing.sum()), *ious))
        color = colors.integers(0, 256, 3) * (picture / 255)
        picture += mask[..., None] * (0.3 * picture + 0.7 * color - picture)
    if show:
        write_image(show, picture.clip(0, 255).astype(np.uint8))
    return rows


def main(argv):
    parser = ArgumentParser(prog="clicks.py", description="Measure how many clicks the things of a film take.")
    parser.add_argument("--every", type=parse_positive_int, default=24, help="measure one of so many frames")
    parser.add_argument("--show", type=Path, help="folder for pictures of what was filled")
    args = parser.parse_args(argv)
    flash, fade = effect_frames(EPISODE)
    frames = [index for index in range(6, frame_count(EPISODE), args.every) if index not in flash | fade]
    rows = np.array([row for index in frames for row in measure(index, args.show and args.show / f"{index:04d}.png")])
    titles = [f"{what} after {click}" for click in range(1, CLICKS + 1) for what in ("IoU", "above 0.9")]
    print(f"| area | things | {' | '.join(titles)} |\n|---|---|{'---|' * len(titles)}")
    for least, most in zip((*AREAS, AREAS[0]), (*AREAS[1:], np.inf, np.inf), strict=True):
        some = rows[(rows[:, 0] >= least) & (rows[:, 0] < most), 1:]
        cells = [f"{iou.mean():.3f} | {(iou > 0.9).mean():.0%}" for iou in some.T]
        print(f"| {least} to {most:g} | {len(some)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_cli(main)
