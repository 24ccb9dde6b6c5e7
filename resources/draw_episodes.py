"""Draw the two sample films, short episodes of a cartoon series. Each frame is a function of its index.

``python resources/draw_episodes.py`` writes episode_1.mp4 and episode_2.mp4 to the folder of this file. Positions are
in world units: x points right, y points down, and a background is 1200 x 540. At zoom 1 the camera shows 640 x 360.
"""

import sys
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fileio.atomic import atomic_write

FPS, WIDTH, HEIGHT = 24, 640, 360
WORLD = (1200, 540)  # width and height of a background in world units
SUPERSAMPLING = 2  # frames are drawn at this multiple of their size and averaged; larger: smoother lines, slower
SAMPLE_RATE = 44100

# Ruby and Tilo have the same CIE lightness (L = 62.1) and opposite hues. In grayscale, only their shapes differ.
PALETTE = {"ruby": (238, 108, 128), "tilo": (18, 168, 156), "pip": (249, 197, 57), "bo": (134, 109, 200),
           "momo": (250, 233, 208)}
TWINS = ("ruby", "tilo")
INK, WHITE, CREAM, BLUSH = (52, 38, 52), (255, 255, 252), (255, 240, 219), (246, 150, 140)


# ---------------------------------------------------------------------------------------------------------------------
# Episodes: the shots with their backgrounds, characters and camera moves


@dataclass(frozen=True)
class Actor:
    """A character in a shot. Its feet move from ``start`` to ``end`` (x, y). ``facing`` is 1 (right) or -1 (left)."""
    name: str
    act: str  # stand, talk, wave, walk, bounce or cheer
    start: tuple
    end: tuple = None
    facing: int = 1


@dataclass(frozen=True)
class Shot:
    """A shot of ``length`` frames. ``camera`` is a pair of (x, y, zoom), for the first and for the last frame.

    Each pose is held for ``hold`` frames. The last ``fade`` frames fade to black. ``flash`` is (first, count):
    the range of frames of the shot that are white.
    """
    length: int
    place: str
    camera: tuple
    actors: tuple
    hold: int = 1
    fade: int = 0
    flash: tuple = (0, 0)


def still(x, y, zoom):
    """Return the ``camera`` of a shot in which it does not move."""
    return (x, y, zoom), (x, y, zoom)


EPISODES = {
    1: (
        Shot(58, "meadow", ((330, 290, 1.0), (590, 290, 1.0)),
             (Actor("ruby", "walk", (250, 425), (560, 425)),)),
        Shot(44, "meadow", still(800, 330, 1.3),
             (Actor("tilo", "bounce", (790, 440)),), hold=2),
        Shot(50, "room", still(460, 300, 1.05),
             (Actor("momo", "wave", (380, 425)), Actor("pip", "stand", (560, 440), facing=-1)), hold=2),
        Shot(56, "beach", ((760, 290, 0.95), (520, 290, 0.95)),
             (Actor("bo", "walk", (820, 440), (520, 440), facing=-1),)),
        Shot(48, "meadow", still(480, 320, 1.35),
             (Actor("ruby", "talk", (410, 440)), Actor("tilo", "stand", (545, 440), facing=-1)), hold=2),
        Shot(52, "street", ((300, 300, 1.0), (500, 300, 1.0)),
             (Actor("tilo", "walk", (240, 450), (500, 450)),)),
        Shot(48, "street", still(760, 300, 1.0),
             (Actor("ruby", "wave", (640, 445)), Actor("bo", "stand", (850, 445), facing=-1)), hold=2, flash=(26, 2)),
        Shot(38, "room", still(840, 345, 1.7),
             (Actor("ruby", "talk", (850, 440), facing=-1),), hold=2),
        Shot(54, "forest", ((360, 310, 1.0), (600, 310, 1.0)),
             (Actor("momo", "walk", (290, 440), (580, 440)), Actor("pip", "walk", (180, 455), (470, 455)))),
        Shot(46, "forest", still(860, 310, 1.1),
             (Actor("bo", "wave", (780, 440)), Actor("tilo", "bounce", (940, 455), facing=-1)), hold=2),
        Shot(48, "beach", still(600, 320, 1.15),
             (Actor("ruby", "cheer", (490, 445)), Actor("pip", "bounce", (600, 460)),
              Actor("tilo", "wave", (710, 445), facing=-1)), hold=2),
        Shot(40, "room", ((600, 320, 1.2), (600, 325, 1.3)),
             (Actor("tilo", "stand", (530, 435)), Actor("momo", "talk", (670, 435), facing=-1))),
        Shot(34, "street", still(980, 350, 1.6),
             (Actor("pip", "talk", (975, 440)),), hold=2),
        Shot(52, "meadow", ((560, 290, 0.95), (600, 290, 0.95)),
             (Actor("bo", "stand", (400, 425)), Actor("ruby", "cheer", (520, 445)), Actor("pip", "bounce", (600, 460)),
              Actor("tilo", "wave", (690, 445), facing=-1), Actor("momo", "stand", (790, 430), facing=-1)), fade=12),
    ),
    2: (
        Shot(60, "forest", ((820, 300, 1.05), (650, 300, 1.05)),
             (Actor("ruby", "walk", (890, 445), (630, 445), facing=-1),)),
        Shot(40, "room", still(380, 345, 1.75),
             (Actor("tilo", "wave", (375, 440)),), hold=2),
        Shot(52, "beach", ((420, 300, 0.9), (480, 300, 0.9)),
             (Actor("momo", "bounce", (350, 440)), Actor("pip", "walk", (640, 455), (520, 455), facing=-1))),
        Shot(38, "beach", still(860, 335, 1.45),
             (Actor("ruby", "wave", (870, 440), facing=-1),), hold=2),
        Shot(58, "street", ((900, 290, 0.9), (700, 290, 0.9)),
             (Actor("bo", "walk", (960, 440), (700, 440), facing=-1),
              Actor("momo", "walk", (1080, 455), (820, 455), facing=-1))),
        Shot(56, "meadow", still(700, 300, 1.1),
             (Actor("tilo", "talk", (620, 430)), Actor("ruby", "stand", (780, 430), facing=-1)), hold=2, fade=12),
        Shot(48, "room", still(700, 300, 0.95),
             (Actor("bo", "talk", (560, 430)), Actor("ruby", "bounce", (720, 445)),
              Actor("pip", "stand", (860, 450), facing=-1)), hold=2),
        Shot(44, "forest", still(420, 325, 1.3),
             (Actor("tilo", "stand", (350, 440)), Actor("pip", "bounce", (490, 450), facing=-1)), hold=2),
        Shot(42, "street", still(420, 340, 1.5),
             (Actor("ruby", "talk", (430, 450)),), hold=2, flash=(22, 1)),
        Shot(48, "meadow", ((300, 300, 1.15), (320, 300, 1.2)),
             (Actor("bo", "cheer", (300, 440)),)),
        Shot(54, "beach", ((480, 300, 1.1), (720, 300, 1.1)),
             (Actor("tilo", "walk", (420, 450), (700, 450)),)),
        Shot(46, "forest", still(640, 315, 1.05),
             (Actor("momo", "wave", (520, 440)), Actor("tilo", "stand", (640, 455)),
              Actor("ruby", "cheer", (770, 445), facing=-1)), hold=2),
        Shot(56, "room", ((520, 300, 0.9), (580, 300, 0.9)),
             (Actor("momo", "cheer", (330, 425)), Actor("ruby", "wave", (450, 450)), Actor("pip", "talk", (550, 465)),
              Actor("tilo", "bounce", (650, 450), facing=-1), Actor("bo", "wave", (780, 430), facing=-1))),
    ),
}


def frame_count(episode):
    """Return the number of frames of an episode."""
    return sum(shot.length for shot in EPISODES[episode])


def shot_starts(episode):
    """Return the index of the first frame of every shot except the first: the positions of the hard cuts."""
    return np.cumsum([shot.length for shot in EPISODES[episode]])[:-1].tolist()


def effect_frames(episode):
    """Return (flash, fade): the sets of indices of white frames and of frames that fade to black."""
    flash, fade = set(), set()
    for start, shot in zip([0, *shot_starts(episode)], EPISODES[episode], strict=True):
        flash.update(range(start + shot.flash[0], start + sum(shot.flash)))
        fade.update(range(start + shot.length - shot.fade, start + shot.length))
    return flash, fade


# ---------------------------------------------------------------------------------------------------------------------
# Backgrounds, painted once and cached


def oval(x, y, rx, ry, tilt=0.0, turns=(0.0, 1.0)):
    """Return points (48, 2) of an ellipse, or of its arc between two angles in ``turns``; ``tilt`` is in degrees."""
    angle = 2 * np.pi * np.linspace(*turns, 48)
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    dx, dy = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack([x + dx * cos - dy * sin, y + dx * sin + dy * cos], 1)


def box(x0, y0, x1, y1):
    """Return the corners (4, 2) of a rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def fill(picture, points, color):
    """Fill a polygon (n, 2), given in fractional pixels, in ``picture`` with anti-aliasing."""
    cv2.fillPoly(picture, [np.round(np.asarray(points) * 16).astype(np.int32)], color, cv2.LINE_AA, shift=4)


class Painting:
    """A background in progress: ``pixels`` is RGB float32 in [0, 255], (1080, 2400, 3)."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        width, height = WORLD[0] * SUPERSAMPLING, WORLD[1] * SUPERSAMPLING
        self.pixels, self.grain = np.zeros((2, height, width, 3), np.float32)
        for cell, strength in ((220, 0.9), (90, 0.6), (36, 0.35)):  # smooth paper texture, mostly in lightness
            noise = self.rng.normal(size=(height // cell + 3, width // cell + 3, 4)).astype(np.float32)
            noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
            self.grain += strength * (noise[..., 3:] + 0.15 * noise[..., :3])

    def wash(self, points, top, bottom=None, rough=7.0, soft=0.0, alpha=1.0):
        """Paint a polygon with a vertical gradient from ``top`` to ``bottom``.

        ``rough`` scales the paper texture. ``soft`` is the standard deviation of the edge's blur in world units.
        """
        points = np.asarray(points, float) * SUPERSAMPLING
        pad = int(soft * SUPERSAMPLING * 3) + 2
        height, width = self.pixels.shape[:2]
        x0, y0 = np.clip(np.floor(points.min(0)).astype(int) - pad, 0, (width, height))
        x1, y1 = np.clip(np.ceil(points.max(0)).astype(int) + pad, 0, (width, height))
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fill(mask, points - (x0, y0), 255)
        mask = mask.astype(np.float32)[..., None] * (alpha / 255)
        if soft:
            mask = cv2.GaussianBlur(mask, (0, 0), soft * SUPERSAMPLING)[..., None]
        span = max(points[:, 1].max() - points[:, 1].min(), 1)
        down = np.clip((np.arange(y0, y1) - points[:, 1].min()) / span, 0, 1).astype(np.float32)[:, None, None]
        top, bottom = np.float32(top), np.float32(top if bottom is None else bottom)
        color = top + (bottom - top) * down + rough * self.grain[y0:y1, x0:x1]
        part = self.pixels[y0:y1, x0:x1]
        part += mask * (color - part)

    def ridge(self, y, swell, step=260.0):
        """Return the polygon below a wavy line around ``y``, with amplitude ``swell`` and length scale ``step``."""
        x = np.linspace(-20, WORLD[0] + 20, 200)
        waves = sum(np.sin(x / (step / k) + self.rng.uniform(0, 6.3)) / k for k in (1, 2, 3))
        return np.concatenate([np.stack([x, y + swell * waves], 1), [(WORLD[0] + 20, 560), (-20, 560)]])

    def scatter(self, count, x, y):
        """Return ``count`` random (x, y, y scaled to [0, 1]) in the ranges ``x`` and ``y``, sorted by y."""
        ys = np.sort(self.rng.uniform(*y, count))
        return zip(self.rng.uniform(*x, count), ys, (ys - y[0]) / (y[1] - y[0]), strict=True)

    def leaves(self, x, y, radius, dark, light):
        """Paint the crown of a tree: soft tufts, dark at the bottom and lit from the upper left."""
        for tuft in range(26):
            lit = tuft / 25
            angle = 2.4 * tuft + self.rng.uniform(0, 1)  # steps of the golden angle are evenly spread
            reach = radius * np.sqrt(tuft * 0.618 % 1) * (0.85 - 0.3 * lit)
            lift = 0.22 * radius * lit
            center = x + reach * np.cos(angle) - lift, y + 0.7 * reach * np.sin(angle) - lift
            color = np.float32(dark) * (1 - lit) + np.float32(light) * lit
            self.wash(oval(*center, radius * 0.36, radius * 0.3), color + 8, color - 8, soft=1.2)


def meadow():
    art = Painting(11)
    art.wash(box(0, 0, 1200, 400), (92, 160, 224), (222, 238, 240), soft=1)
    for radius, alpha in ((120, 0.25), (75, 0.4)):
        art.wash(oval(960, 120, radius, radius), (255, 244, 190), soft=18, alpha=alpha)
    art.wash(oval(960, 120, 40, 40), (255, 246, 196), (255, 226, 140), soft=1)
    for x, y, size in ((150, 110, 1.0), (470, 170, 0.8), (700, 70, 1.1), (1110, 200, 0.8)):
        for dx, dy, r in ((-50, 8, 26), (-15, -8, 36), (28, 0, 30), (58, 10, 20)):
            art.wash(oval(x + dx * size, y + dy * size, r * size * 1.3, r * size * 0.8), (255, 254, 250),
                     (206, 222, 238), soft=3, rough=4)
    art.wash(art.ridge(290, 26, 300), (128, 178, 176), (160, 200, 150))
    art.wash(art.ridge(325, 18, 200), (112, 176, 118), (150, 196, 96))
    for x, y, near in art.scatter(24, (0, 1200), (318, 350)):
        art.leaves(x, y - 6 - 8 * near, 12 + 8 * near, (58, 116, 78), (122, 172, 92))
    art.wash(art.ridge(372, 8, 240), (146, 200, 84), (84, 148, 66), rough=9)
    for x in range(640, 1180, 54):
        art.wash(box(x, 332, x + 10, 392), (226, 204, 172), (176, 142, 110), rough=5)
    for y in (345, 368):
        art.wash(box(630, y, 1180, y + 8), (232, 212, 180), (190, 156, 122), rough=5)
    art.wash([(218, 240), (262, 240), (268, 360), (290, 396), (196, 396), (214, 360)], (134, 96, 72), (92, 66, 58))
    art.leaves(240, 185, 125, (44, 108, 66), (132, 188, 84))
    for x, y, near in art.scatter(420, (0, 1200), (385, 535)):
        height = 5 + 9 * near
        art.wash([(x - 2, y), (x + 2, y), (x + art.rng.uniform(-5, 5), y - height)], (168, 212, 92), (98, 160, 70))
    for x, y, near in art.scatter(90, (0, 1200), (390, 535)):
        petal = ((252, 240, 236), (250, 206, 92), (238, 150, 170), (188, 160, 226))[art.rng.integers(4)]
        art.wash(oval(x, y, 2.5 + 3 * near, 2 + 2.4 * near), petal, rough=4)
        art.wash(oval(x, y, 1 + near, 1 + near), (214, 140, 60), rough=4)
    return art


def room():
    art = Painting(12)
    art.wash(box(0, 0, 1200, 400), (232, 194, 152), (206, 160, 132), rough=6)
    for x in range(0, 1200, 50):
        art.wash(box(x, -5, x + 24, 372), (242, 210, 170), (220, 178, 146), rough=5, soft=1)
    art.wash(box(-5, 364, 1205, 388), (170, 112, 84), (138, 86, 68))
    for row, y in enumerate(np.linspace(0, 1, 8)[:-1]):
        y0, y1 = 388 + 152 * y ** 1.3, 388 + 152 * (y + 1 / 7) ** 1.3
        edges = [-10, *np.sort(art.rng.uniform(0, 1200, 6)), 1210]
        for x0, x1 in zip(edges[:-1], edges[1:], strict=True):
            tone = np.array((176, 122, 84)) + art.rng.uniform(-12, 12) + 3 * row
            art.wash(box(x0, y0, x1 - 1.5, y1 - 1.2), tone + 8, tone - 8, rough=6)
    art.wash(box(490, 130, 690, 300), (250, 240, 224), (216, 196, 176))
    art.wash(box(502, 142, 678, 288), (128, 190, 232), (226, 240, 236))
    art.wash(np.clip(art.ridge(262, 10, 90), (502, 142), (678, 288)), (140, 190, 120), (110, 164, 96))
    art.wash(box(585, 140, 595, 290), (250, 240, 224), (226, 208, 188))
    art.wash(box(500, 208, 680, 217), (250, 240, 224), (226, 208, 188))
    for side in (-1, 1):
        art.wash([(590 + side * 128, 112), (590 + side * 60, 112), (590 + side * 84, 214), (590 + side * 92, 318),
                  (590 + side * 128, 318)], (116, 140, 186), (78, 98, 150), soft=1)
    art.wash(box(446, 106, 734, 114), (126, 84, 66), (98, 64, 54))
    art.wash(box(860, 130, 1090, 372), (142, 92, 70), (112, 72, 60))
    for shelf in (142, 222, 302):
        art.wash(box(872, shelf, 1078, shelf + 66), (92, 60, 54), (70, 46, 46))
        x = 878.0
        while x < 1058:
            wide, tall = art.rng.uniform(9, 18), art.rng.uniform(40, 58)
            spine = np.array(((186, 92, 80), (92, 132, 150), (216, 176, 98), (112, 146, 104), (150, 112, 150),
                              (222, 206, 180))[art.rng.integers(6)])
            if art.rng.uniform() < 0.85:
                art.wash(box(x, shelf + 66 - tall, x + wide - 1, shelf + 66), spine + 12, spine - 18, rough=5)
            x += wide
    for x, y, wide, tall, sky in ((250, 190, 120, 84, (246, 202, 160)), (395, 160, 60, 74, (180, 206, 206))):
        art.wash(box(x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2), (150, 104, 70), (118, 78, 56))
        inside = (x - wide / 2 + 7, y - tall / 2 + 7), (x + wide / 2 - 7, y + tall / 2 - 7)
        art.wash(box(*inside[0], *inside[1]), sky, (236, 232, 214))
        art.wash(np.clip(art.ridge(y + 12, 8, 60), *inside), (132, 156, 130), (98, 128, 110))
    art.wash(oval(780, 170, 110, 90), (255, 236, 180), soft=30, alpha=0.5)
    art.wash(box(776, 200, 784, 392), (112, 82, 74), (88, 62, 60))
    art.wash([(758, 150), (802, 150), (826, 212), (734, 212)], (255, 232, 176), (246, 200, 130))
    art.wash(oval(780, 394, 34, 8), (112, 82, 74), (88, 62, 60))
    art.wash(oval(600, 462, 330, 52), (150, 164, 140), (112, 132, 118), rough=8)
    art.wash(oval(600, 462, 296, 44), (226, 212, 180), (196, 180, 152), rough=8)
    art.wash(oval(600, 462, 240, 34), (164, 176, 150), (126, 144, 128), rough=8)
    for x, y, wide, tall, light in ((210, 326, 130, 46, 0), (155, 366, 66, 24, 14), (265, 366, 66, 24, 14),
                                    (210, 392, 134, 20, -8), (80, 362, 26, 48, 4), (340, 362, 26, 48, 4)):
        cloth = np.array((112, 150, 138)) + light  # sofa: back, two cushions, seat and arms, all rounded boxes
        corner = oval(0, 0, 14, 14)
        pad = corner + np.sign(corner.round(6)) * (wide - 14, tall - 14) + (x, y)
        art.wash(pad + (0, 3), (54, 74, 80), soft=1.5, alpha=0.8)
        art.wash(pad, cloth + 14, cloth - 26, soft=0.6)
    return art


def beach():
    art = Painting(13)
    art.wash(box(0, 0, 1200, 290), (116, 190, 226), (252, 232, 204), soft=1)
    art.wash(oval(330, 112, 80, 80), (255, 250, 214), soft=20, alpha=0.7)
    art.wash(oval(330, 112, 36, 36), (255, 252, 226), (255, 236, 176), soft=1)
    for x, y, size in ((560, 120, 1.2), (960, 80, 1.0), (90, 190, 0.8), (780, 210, 0.7)):
        for dx, dy, r in ((-60, 6, 18), (-20, 0, 24), (26, 2, 22), (66, 8, 14)):
            art.wash(oval(x + dx * size, y + dy * size, r * size * 1.8, r * size * 0.6), (255, 252, 244),
                     (242, 220, 206), soft=3, rough=4)
    art.wash(box(0, 268, 1200, 400), (62, 138, 176), (140, 208, 198), soft=0.6)
    art.wash([(930, 268), (960, 246), (1010, 236), (1070, 242), (1120, 268)], (112, 150, 150), (126, 170, 140))
    for x, y, near in art.scatter(190, (-20, 1220), (274, 380)):
        art.wash(oval(x, y, 14 + 30 * near, 0.7 + 1.5 * near), (206, 236, 228), soft=0.6, alpha=0.55)
    sand = art.ridge(384, 6, 200)
    art.wash(sand - (0, 9), (250, 252, 244), soft=2, alpha=0.9)
    art.wash(sand, (196, 168, 124), (226, 194, 142), soft=1.5)
    art.wash(sand + (0, 16), (246, 220, 170), (222, 182, 126), soft=4, rough=9)
    for x, y, near in art.scatter(260, (0, 1200), (410, 535)):
        art.wash(oval(x, y, 3 + 16 * near, 0.8 + 2 * near), ((206, 166, 112), (252, 232, 190))[art.rng.integers(2)],
                 soft=1, alpha=0.6)
    for x, y, near in art.scatter(26, (0, 1200), (420, 530)):
        art.wash(oval(x, y, 3 + 3 * near, 2 + 2 * near), ((250, 236, 224), (232, 160, 140))[art.rng.integers(2)],
                 (190, 140, 120), rough=4)
    trunk = np.array([(150 + 46 * t * t, 400 - 250 * t) for t in np.linspace(0, 1, 14)])
    for (x0, y0), (x1, y1) in zip(trunk[:-1], trunk[1:], strict=True):
        art.wash([(x0 - 13, y0), (x0 + 13, y0), (x1 + 10, y1 - 3), (x1 - 10, y1 - 3)], (172, 130, 92), (128, 92, 70))
    for angle in (-170, -145, -110, -70, -35, -10, 20, 160):
        t = np.linspace(0, 1, 20)[:, None]
        reach = 118 * t * np.array([[np.cos(np.radians(angle)), 0.75 * np.sin(np.radians(angle))]])
        spine = np.array([(196, 150)]) + reach + np.array([(0, 66)]) * t ** 2
        width = np.array([(0, 1.0)]) * 15 * np.sin(np.pi * t ** 0.7)
        art.wash(np.concatenate([spine - width, spine[::-1]]), (116, 176, 92), (66, 132, 84))
        art.wash(np.concatenate([spine, (spine + width * 0.8)[::-1]]), (70, 134, 84), (46, 102, 76))
    art.wash([(936, 190), (942, 190), (946, 420), (940, 420)], (236, 220, 200), (186, 160, 140))
    for panel in range(6):  # parasol: panels of a dome, alternately red and cream
        left, right = (oval(938, 248, 150 * k, 98, turns=(0.75, 1.0)) for k in np.linspace(-1, 1, 7)[panel:panel + 2])
        red = ((236, 112, 88), (200, 80, 72))
        art.wash([*left, *right[::-1]], *(((255, 246, 226), (228, 208, 184)) if panel % 2 else red), rough=5)
    return art


def street():
    art = Painting(14)
    art.wash(box(0, 0, 1200, 420), (22, 30, 74), (104, 86, 140), soft=1, rough=5)
    for x, y, _ in art.scatter(110, (0, 1200), (0, 250)):
        size = art.rng.uniform(0.8, 2.0)
        art.wash(oval(x, y, size, size), (240, 236, 214), rough=2, soft=0.4)
    art.wash(oval(180, 90, 90, 90), (170, 170, 210), soft=24, alpha=0.35)
    art.wash(oval(180, 90, 34, 34), (250, 244, 214), (222, 214, 190))
    x = -20
    while x < 1200:  # a far row of dark houses; the near row has lit windows
        wide = art.rng.uniform(50, 110)
        art.wash(box(x, art.rng.uniform(190, 270), x + wide, 420), (62, 58, 112), (76, 64, 112), rough=4)
        x += wide
    x, walls = -30, ((92, 72, 108), (72, 80, 120), (112, 78, 100), (66, 88, 110))
    for number in range(9):
        wide, top = art.rng.uniform(120, 170), art.rng.uniform(175, 235)
        wall = np.array(walls[number % 4])
        art.wash(box(x, top, x + wide, 402), wall + 6, wall - 16, rough=5)
        roof = np.array(((120, 62, 72), (60, 56, 92), (96, 66, 60))[number % 3])
        art.wash([(x - 8, top + 4), (x + wide * 0.2, top - 44), (x + wide * 0.8, top - 44), (x + wide + 8, top + 4)],
                 roof + 8, roof - 12, rough=5)
        for wx in np.linspace(x + 18, x + wide - 44, 3):
            for wy in (top + 22, top + 84):
                lit = art.rng.uniform() < 0.6
                art.wash(box(wx - 3, wy - 3, wx + 29, wy + 41), wall - 26, rough=3)
                if lit:
                    art.wash(box(wx - 6, wy - 6, wx + 32, wy + 44), (255, 200, 110), soft=9, alpha=0.3)
                art.wash(box(wx, wy, wx + 26, wy + 38), *(((255, 226, 150), (242, 176, 92)) if lit else
                                                          ((58, 66, 112), (84, 90, 136))), rough=5)
                art.wash(box(wx + 12, wy, wx + 14, wy + 38), wall - 20, rough=2)
                art.wash(box(wx, wy + 18, wx + 26, wy + 20), wall - 20, rough=2)
        x += wide + 4
    art.wash(box(0, 396, 1200, 420), (124, 116, 144), (98, 90, 122))
    art.wash(box(0, 416, 1200, 426), (70, 64, 98), (58, 54, 86))
    art.wash(box(0, 424, 1200, 560), (76, 72, 106), (50, 48, 82), rough=6)
    for x, y, near in art.scatter(160, (0, 1200), (430, 535)):
        art.wash(oval(x, y, 10 + 16 * near, 2 + 3 * near), ((96, 92, 126), (48, 46, 78))[art.rng.integers(2)], soft=1.5,
                 alpha=0.4)
    for x in (130, 610, 1090):
        art.wash(oval(x, 440, 170, 34), (236, 186, 120), soft=18, alpha=0.4)
        art.wash(oval(x, 214, 80, 80), (255, 216, 140), soft=26, alpha=0.6)
        art.wash(box(x - 4, 220, x + 4, 416), (54, 50, 74), (40, 38, 60), rough=3)
        art.wash(box(x - 10, 402, x + 10, 420), (54, 50, 74), (40, 38, 60), rough=3)
        art.wash([(x - 12, 196), (x + 12, 196), (x + 8, 228), (x - 8, 228)], (255, 246, 206), (255, 216, 130), rough=4)
        art.wash([(x - 16, 198), (x, 184), (x + 16, 198)], (54, 50, 74), rough=3)
    return art


def forest():
    art = Painting(15)
    art.wash(box(0, 0, 1200, 420), (96, 158, 136), (214, 226, 166), soft=1)
    trunks = (((128, 172, 142), (156, 194, 154), 26), ((92, 136, 112), (122, 160, 120), 18),
              ((62, 84, 74), (96, 108, 82), 9))
    for depth, (dark, light, count) in enumerate(trunks):  # far trunks are pale, near ones dark
        for x in np.linspace(0, 1200, count) + art.rng.uniform(-25, 25, count):
            half = (6, 11, 22)[depth] * art.rng.uniform(0.8, 1.2)
            foot = (372, 386, 404)[depth] + art.rng.uniform(-4, 4)
            art.wash([(x - half, -10), (x + half, -10), (x + half * 1.1, foot - 40), (x + half * 1.9, foot),
                      (x - half * 1.9, foot), (x - half * 1.1, foot - 40)], light, dark, soft=(1.5, 1, 0.3)[depth])
            if depth == 2:
                for y in np.arange(20, 360, 34):
                    art.wash(oval(x + art.rng.uniform(-0.5, 0.5) * half, y, 2.2, 12), (48, 66, 62), soft=1, alpha=0.7)
        if depth < 2:
            art.wash(art.ridge((352, 374)[depth], 7, 150), ((148, 190, 124), (118, 170, 100))[depth], (90, 146, 86))
    art.wash(art.ridge(396, 6, 200), (124, 172, 88), (66, 116, 66), rough=9)
    for x, y, near in art.scatter(40, (-20, 1220), (395, 412)):
        art.leaves(x, y, 12 + 8 * near, (50, 104, 66), (124, 174, 84))
    for x in np.arange(-20, 1240, 55):
        art.leaves(x, art.rng.uniform(10, 50), art.rng.uniform(60, 85), (38, 92, 66), (118, 172, 84))
    for x in (210, 480, 700, 1010):
        art.wash([(x, -10), (x + 60, -10), (x - 60, 420), (x - 170, 420)], (255, 246, 190), soft=12, alpha=0.2)
    for x, y, near in art.scatter(320, (0, 1200), (415, 535)):
        art.wash([(x - 3, y), (x + 3, y), (x + art.rng.uniform(-6, 6), y - 6 - 12 * near)], (140, 186, 92),
                 (80, 136, 72))
    for x, y, near in art.scatter(16, (0, 1200), (415, 530)):
        size = 0.6 + 0.7 * near
        art.wash(box(x - 3 * size, y - 9 * size, x + 3 * size, y), (246, 232, 208), (206, 186, 164), rough=3)
        art.wash(oval(x, y - 8 * size, 9 * size, 8 * size, turns=(0.5, 1)), (222, 98, 74), (186, 66, 60), rough=4)
        art.wash(oval(x - 3 * size, y - 11 * size, 1.8 * size, 1.5 * size), (252, 240, 222), rough=2)
    return art


PLACES = {"meadow": meadow, "room": room, "beach": beach, "street": street, "forest": forest}


@cache
def background(place):
    """Return the background of a place: RGB uint8 (1080, 2400, 3), at SUPERSAMPLING times its size."""
    return np.clip(np.round(PLACES[place]().pixels), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Characters


@cache
def tone(color, change):
    """Return ``color`` (RGB in [0, 255]) with its CIE lightness shifted by ``change`` and the same hue and saturation.
    """
    lab = cv2.cvtColor(np.float32([[color]]) / 255, cv2.COLOR_RGB2LAB)
    lab[..., 0] += change
    lab[..., 1:] *= lab[..., :1] / (lab[..., :1] - change)
    return tuple(int(value) for value in np.round(np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)[0, 0], 0, 1) * 255))


class Pen:
    """Draw one character. Points are in world units relative to its feet, with x in the direction that it faces.

    ``picture`` is RGB uint8 (720, 1280, 3). ``labels`` is None or uint8 (720, 1280): it is set to ``label`` inside
    shapes of the body color, and to 0 inside other shapes.
    """

    def __init__(self, picture, labels, label, feet, size, facing):
        self.picture, self.labels, self.label = picture, labels, label
        self.feet, self.size, self.facing = np.asarray(feet), size, facing

    def to_pixels(self, points):
        """Return points in pixels of ``picture``."""
        return self.feet + np.asarray(points, float) * (self.facing * self.size, self.size)

    def shape(self, points, color, body=True, line=2.2):
        """Fill a polygon and draw its outline, ``line`` units wide; 0 draws no outline."""
        points = self.to_pixels(points)
        fill(self.picture, points, color)
        if self.labels is not None:
            cv2.fillPoly(self.labels, [np.round(points).astype(np.int32)], self.label if body else 0)
        if line:
            self.polyline(points, INK, line, closed=True)

    def stroke(self, points, color=INK, width=2.2, body=False):
        """Draw an open line through points in world units."""
        self.polyline(self.to_pixels(points), color, width, self.label if body else 0)

    def polyline(self, points, color, width, label=0, closed=False):
        """Draw a line through points in pixels."""
        thick = max(round(width * self.size), 1)
        points = np.round(points * 16).astype(np.int32)
        cv2.polylines(self.picture, [points], closed, color, thick, cv2.LINE_AA, shift=4)
        if self.labels is not None:
            cv2.polylines(self.labels, [points], closed, label, thick, cv2.LINE_8, shift=4)

    def limb(self, start, bend, end, width, color, body=True):
        """Draw a bent tube with round ends and an outline."""
        t = np.linspace(0, 1, 12)[:, None]
        points = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t ** 2 * np.array(end)
        self.stroke(points, INK, width + 4.4)
        self.stroke(points, color, width, body)

    def ball(self, x, y, rx, ry, color, tilt=0.0, body=True):
        """Draw an ellipse in two flat tones, lit from the upper left of the screen."""
        self.shape(oval(x, y, rx, ry, tilt), tone(color, -9), body, line=0)
        self.shape(oval(x - 0.09 * rx * self.facing, y - 0.08 * ry, rx * 0.9, ry * 0.9, tilt), color, body, line=0)
        self.polyline(self.to_pixels(oval(x, y, rx, ry, tilt)), INK, 2.2, closed=True)


# In world units: height of the ``legs``, radii of the ``belly``, and (height, rx, ry) of the ``head``.
BUILD = {
    "ruby": {"legs": 16, "belly": (24, 27), "head": (94, 37, 32), "patch": CREAM},
    "tilo": {"legs": 16, "belly": (24, 27), "head": (94, 37, 32), "patch": CREAM},
    "pip": {"legs": 12, "belly": (24, 22), "head": (50, 23, 21), "patch": (255, 232, 150)},
    "bo": {"legs": 18, "belly": (52, 54), "head": (138, 50, 42), "patch": (206, 190, 238)},
    "momo": {"legs": 16, "belly": (22, 27), "head": (92, 33, 30), "patch": (255, 250, 240)},
}


def pose_of(act, t):
    """Return the pose of a character ``t`` frames into its act.

    A pose is (lift, squash, step, arms, mouth): height above the ground, vertical scale, phase of the gait in radians
    or None, angles of both arms in degrees above the horizontal, and how far the mouth is open in [0, 1].
    """
    lift, squash, step, arms, mouth = 0.0, 1.0, None, (-62, -62), 0.0
    if act == "walk":
        step = 2 * np.pi * t / 18
        lift, swing = 3 * abs(np.sin(step)), 26 * np.sin(step)
        arms = (-70 + swing, -70 - swing)
    elif act in ("bounce", "cheer"):
        beat = (t % 20) / 20
        lift = 30 * 4 * beat * (1 - beat) if act == "bounce" else 12 * 4 * beat * (1 - beat)
        squash = 1 + 0.16 * min(lift / 12, 1) - 0.1
        arms = (-20 - 30 * (1 - min(lift / 12, 1)),) * 2 if act == "bounce" else (34 + 16 * np.sin(t / 3),) * 2
        mouth = 0.8
    elif act == "wave":
        arms, mouth = (-62, 24 + 24 * np.sin(2 * np.pi * t / 14)), 0.35
    elif act == "talk":
        mouth = (0.15, 0.9, 0.5, 0.0, 0.7, 0.3)[int(t) // 4 % 6]
        arms = (-62, -30 + 10 * np.sin(2 * np.pi * t / 32))
    return lift, squash, step, arms, mouth


def draw_actor(pen, name, act, t):
    """Draw a character ``t`` frames into its act. Parts are drawn from back to front."""
    build, base = BUILD[name], PALETTE[name]
    lift, squash, step, arms, mouth = pose_of(act, t)
    (wide, tall), (head_y, head_x, head_r) = build["belly"], build["head"]
    legs, middle = build["legs"], -build["legs"] - tall * 0.86
    limb = {"bo": 18, "pip": 3}.get(name, 11)
    foot_color = {"pip": (238, 140, 62), "momo": base}.get(name, tone(base, -14))

    for side in (-1, 1):  # legs, far one first
        swing, raise_foot = (0.0, 0.0) if step is None else (np.sin(step + side * np.pi / 2) * wide * 0.55,
                                                             max(0.0, np.cos(step + side * np.pi / 2)) * 9)
        foot = (side * wide * 0.42 + swing, -4 - raise_foot - lift * (step is None))
        pen.limb((side * wide * 0.42, -legs - 8 - lift), (side * wide * 0.46 + swing * 0.6, -legs * 0.6 - lift),
                 foot, limb, foot_color if name == "pip" else base, name != "pip")
        pen.shape(oval(foot[0] + 3, foot[1], limb * 0.55 + 6, 5.5), foot_color, name == "momo")

    def up(y):  # apply squash and stretch, which leave the hips in place
        return (y + legs) * squash - legs - lift

    if name == "ruby":
        pen.limb((-16, up(-26)), (-46, up(-14) + 4 * np.sin(t / 6)), (-44, up(-52)), 8, base)
    elif name == "tilo":
        pen.limb((-16, up(-26)), (-34, up(-12)), (-54, up(-22) + 5 * np.sin(t / 6)), 4, base)
    elif name == "momo":
        pen.ball(-wide, up(-28), 9, 9, (255, 250, 240), body=False)
    elif name == "pip":
        pen.shape([(-18, up(-32)), (-38, up(-44)), (-34, up(-32)), (-37, up(-24)), (-14, up(-20))], base)

    def arm(side, angle):
        shoulder = np.array((side * wide * 0.72, up(middle - tall * 0.5)))
        reach = tall * (0.62 if name == "pip" else 1.15) + (4 if name != "bo" else -12)
        way = np.array((side * np.cos(np.radians(angle)), -np.sin(np.radians(angle))))
        bend = shoulder + way * reach * 0.5 + (side * 5, 4)
        pen.limb(shoulder, bend, shoulder + way * reach, 13 if name == "pip" else limb - 1, base)

    arm(-1, arms[0])
    pen.ball(0, up(middle), wide, tall * squash, base)
    pen.shape(oval(5, up(middle + tall * 0.18), wide * 0.62, tall * 0.66), build["patch"], False, line=0)
    arm(1, arms[1])
    if name == "momo":
        pen.shape([(-19, up(-66)), (20, up(-66)), (18, up(-54)), (-17, up(-54))], (92, 140, 204), False)
        pen.shape([(8, up(-57)), (20, up(-57)), (23, up(-34)), (12, up(-32))], (76, 120, 188), False)
    draw_head(pen, name, np.array((2.0, up(-head_y))), head_x, head_r, mouth, blink=(t + 7 * len(name)) % 58 < 4)


def draw_head(pen, name, center, rx, ry, mouth, blink):
    """Draw ears, head and face around ``center``; ``mouth`` is how far the mouth is open, in [0, 1]."""
    base, patch = PALETTE[name], BUILD[name]["patch"]

    def at(points):
        return np.asarray(points, float) * (rx, ry) + center

    for side in (-1, 1):
        if name == "ruby":
            pen.shape(at([(side * 0.94, -0.25), (side * 0.93, -1.55), (side * 0.25, -0.9)]), base)
            pen.shape(at([(side * 0.84, -0.6), (side * 0.84, -1.25), (side * 0.48, -0.92)]), BLUSH, False, line=0)
        elif name == "tilo":
            pen.ball(*at((side * 0.82, -0.85)), 17, 17, base)
            pen.shape(oval(*at((side * 0.82, -0.85)), 10, 10), BLUSH, False, line=0)
        elif name == "momo":
            pen.ball(*at((side * 0.45, -1.6)), 9.5, 32, base, tilt=side * 12)
            pen.shape(oval(*at((side * 0.45, -1.55)), 4.5, 24, side * 12), BLUSH, False, line=0)
        elif name == "bo":
            pen.shape(at([(side * 0.72, -0.55), (side * 0.86, -1.4), (side * 0.38, -0.85)]), (250, 226, 178), False)
    if name == "pip":
        for x, y in ((-0.3, -1.5), (0.05, -1.65), (0.35, -1.45)):
            pen.limb(at((0, -0.8)), at((x * 0.6, -1.2)), at((x, y)), 3.5, base)
    pen.ball(*center, rx, ry, base)

    turn = 0.16  # the face is shifted in the direction that the character faces, as in a three-quarter view
    if name in ("ruby", "tilo", "bo"):
        pen.shape(oval(*at((turn, 0.42)), rx * 0.5, ry * 0.4), patch, False, line=0)
    for side in (-1, 1):
        pen.shape(oval(*at((turn + side * 0.66, 0.34)), rx * 0.14, ry * 0.11), BLUSH, False, line=0)
        eye = at((turn + side * 0.38, -0.12))
        if blink:
            pen.stroke(oval(*eye, rx * 0.14, ry * 0.1, turns=(0.0, 0.5)), width=2.4)
            continue
        for x, y, wide, tall, color in ((0, 0, 0.17, 0.27, WHITE), (0.04, 0.03, 0.105, 0.18, INK),
                                         (-0.01, -0.07, 0.04, 0.055, WHITE)):
            pen.shape(oval(*eye + (rx * x, ry * y), rx * wide, ry * tall), color, False, 1.6 if wide == 0.17 else 0)
    if name == "pip":
        drop = 0.1 + 0.35 * mouth
        pen.shape(at([(0.1, 0.3), (0.45, 0.36 + drop), (0.3, 0.5 + drop), (0.05, 0.4)]), (206, 108, 52), False, 1.6)
        pen.shape(at([(-0.1, 0.25), (0.25, 0.05), (0.68, 0.36), (0.2, 0.44)]), (242, 150, 62), False, line=1.8)
        return
    if name != "bo":
        pen.shape(oval(*at((turn, 0.2)), rx * 0.1, ry * 0.075), (96, 52, 66), False, line=0)
    if mouth > 0.1:
        deep = ry * (0.1 + 0.26 * mouth)
        pen.shape(oval(*at((turn, 0.4)), rx * 0.2, deep, turns=(0.0, 0.5)), (136, 48, 62), False, line=1.8)
        tongue = at((turn, 0.4)) + (0, deep * 0.72)
        pen.shape(oval(*tongue, rx * 0.1, deep * 0.22), (240, 128, 126), False, line=0)
    else:
        pen.stroke(oval(*at((turn, 0.4)), rx * 0.2, ry * 0.16, turns=(0.05, 0.45)), width=2.2)


# ---------------------------------------------------------------------------------------------------------------------
# Frames


@cache
def lighting():
    """Return the int16 offsets (360, 640, 1) of every frame: light from the upper left and smooth paper texture.

    They spread each flat area over several neighboring values, as in a scanned cel. Without it, rounding in the
    codec would move thousands of pixels from one value to the next at the same time.
    """
    rng = np.random.default_rng(5)
    x, y = np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))
    grain = sum(strength * cv2.resize(rng.normal(size=(HEIGHT // cell, WIDTH // cell)), (WIDTH, HEIGHT),
                                      interpolation=cv2.INTER_CUBIC) for cell, strength in ((90, 2.0), (40, 1.5)))
    return np.round(grain - 4 * x - 5 * y).astype(np.int16)[..., None]


def draw_frame(episode, index, mask_of=None):
    """Return frame ``index`` of an episode: RGB uint8 (360, 640, 3).

    With ``mask_of``, a name in PALETTE, return the mask of the body color of that character instead: bool (360, 640),
    True in its lit and its shaded tone, False in outlines, face and clothes, and all False in a white or black frame.
    """
    starts = [0, *shot_starts(episode)]
    number = int(np.searchsorted(starts, index, side="right")) - 1
    if not 0 <= index < frame_count(episode):
        raise IndexError(f"episode {episode} has no frame {index}")
    shot, t = EPISODES[episode][number], int(index) - starts[number]
    white = shot.flash[0] <= t < sum(shot.flash)
    bright = min((shot.length - 1 - t) / shot.fade, 1.0) if shot.fade else 1.0
    if mask_of is not None and (white or bright == 0):
        return np.zeros((HEIGHT, WIDTH), bool)
    if white:
        return np.full((HEIGHT, WIDTH, 3), 255, np.uint8)

    cx, cy, zoom = np.array(shot.camera[0]) + np.subtract(*shot.camera[::-1]) * (t / (shot.length - 1))
    shift = SUPERSAMPLING * (np.array((WIDTH, HEIGHT)) / 2 - np.array((cx, cy)) * zoom)
    picture = cv2.warpAffine(background(shot.place), np.float64([[zoom, 0, shift[0]], [0, zoom, shift[1]]]),
                             (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING), flags=cv2.INTER_LINEAR,
                             borderMode=cv2.BORDER_REFLECT)
    labels = None if mask_of is None else np.zeros(picture.shape[:2], np.uint8)
    pose_frame = t - t % shot.hold
    for actor in shot.actors:
        start, end = np.array(actor.start, float), np.array(actor.end or actor.start, float)
        feet = (start + (end - start) * (pose_frame / (shot.length - 1))) * zoom * SUPERSAMPLING + shift
        size, lift = zoom * SUPERSAMPLING, pose_of(actor.act, pose_frame)[0]
        draw_shadow(picture, feet, size * BUILD[actor.name]["belly"][0] * (1.3 - lift / 120))
        draw_actor(Pen(picture, labels, 1 + list(PALETTE).index(actor.name), feet, size, actor.facing),
                   actor.name, actor.act, pose_frame)
    if mask_of is not None:
        own = (labels == 1 + list(PALETTE).index(mask_of)).astype(np.uint8)
        own = cv2.erode(own, np.ones((3, 3), np.uint8))  # exclude anti-aliased edges
        return cv2.resize(own * 255, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) == 255
    picture = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.int16) + lighting()
    return np.round(np.clip(picture, 0, 255) * bright).astype(np.uint8)


def draw_sheet(name, act, t=0, facing=1):
    """Return a character sheet: a character on white, ``t`` frames into its act, RGB uint8 (360, 360, 3)."""
    side = HEIGHT * SUPERSAMPLING
    picture = np.full((side, side, 3), 255, np.uint8)
    draw_actor(Pen(picture, None, 1, (side / 2, side * 0.9), SUPERSAMPLING * 1.5, facing), name, act, t)
    return cv2.resize(picture, (HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA)


def draw_shadow(picture, feet, radius):
    """Draw the shadow of a character on the ground."""
    x0, y0 = np.maximum(np.floor(feet - (radius * 1.3, radius * 0.5)).astype(int), 0)
    x1, y1 = np.maximum(np.ceil(feet + (radius * 1.3, radius * 0.5)).astype(int), 0)
    part = picture[y0:y1, x0:x1]
    if part.size:
        mask = np.zeros(part.shape[:2], np.uint8)
        fill(mask, oval(*(feet - (x0, y0)), radius, radius * 0.26), 110)
        dark = cv2.GaussianBlur(mask, (0, 0), radius * 0.06).astype(np.uint16)[..., None]
        part[...] = (part * (256 - dark) >> 8).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Film


def tune(episode):
    """Return a music-box melody that is as long as the episode: float32 (samples,) in [-1, 1]."""
    length = frame_count(episode) * SAMPLE_RATE // FPS
    rng = np.random.default_rng(100 + episode)
    sound, step = np.zeros(length + SAMPLE_RATE * 2, np.float32), SAMPLE_RATE // 4
    scale = np.array((0, 2, 4, 7, 9, 12, 14, 16)) + (72, 69)[episode - 1]
    t = np.arange(SAMPLE_RATE * 3 // 2) / SAMPLE_RATE

    def note(beat, pitch, loud, decay):
        wave = sum(np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * k * t) / k ** 2 for k in (1, 2, 3, 4))
        begin = beat * step
        sound[begin:begin + len(t)] += loud * np.minimum(t * 200, 1) * np.exp(-t * decay) * wave

    place = 2
    for beat in range(length // step - 3):
        if beat % 4 == 0:
            note(beat, scale[0] - 24 + (0, 5, 7, 0)[beat // 4 % 4], 0.22, 2.5)
        if beat % 2 == 0 or rng.uniform() < 0.4:
            place = int(np.clip(place + rng.integers(-2, 3), 0, len(scale) - 1))
            note(beat, scale[place], 0.2, 5)
    return np.clip(sound[:length], -1, 1)


def write_episode(episode, path, crf=20):
    """Write an episode as H.264 with AAC sound. The file is written atomically."""
    with atomic_write(path) as temporary, av.open(str(temporary), "w", options={"movflags": "faststart"}) as film:
        video = film.add_stream("libx264", rate=FPS, options={"crf": str(crf), "preset": "slow", "tune": "animation",
                                                               "g": "240"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = film.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        sound.bit_rate = 48_000
        samples, sent = tune(episode), 0
        for index in range(frame_count(episode)):
            frame = av.VideoFrame.from_ndarray(draw_frame(episode, index), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            film.mux(video.encode(frame))
            last = index == frame_count(episode) - 1
            while sent < len(samples) and (last or sent * FPS < index * SAMPLE_RATE):  # interleave the tracks
                chunk = av.AudioFrame.from_ndarray(samples[None, sent:sent + 1024], format="fltp", layout="mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = SAMPLE_RATE, sent, Fraction(1, SAMPLE_RATE)
                film.mux(sound.encode(chunk))
                sent += chunk.samples
        film.mux(video.encode(None))
        film.mux(sound.encode(None))


def main():
    for episode in EPISODES:
        path = Path(__file__).resolve().parent / f"episode_{episode}.mp4"
        write_episode(episode, path)
        print(f"{path.name}: {frame_count(episode)} frames, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
