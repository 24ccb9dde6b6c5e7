"""What are references from another source worth? The error of other frames of their shots, in the show's colors or not.

    python benchmarks/references.py CHECKPOINT [--keep FOLDER]

References are the middle frames of the shots of the drawn episode 2: as they are, as another source has them (cropped,
smaller, of another shape, JPEG, with a logo, in other colors), and corrected, with the red cat painted teal. Frames at
a quarter and three quarters of each shot are colored from their gray and compared with the truth, that of a corrected
film with teal, too. Measured are the colors alone, at the size of the networks: both have the truth's L. CIEDE2000 is a
mean, *> 10* the share of pixels with another color, and chroma the mean one beside the truth's. ``--keep`` keeps the
references, to look at.
"""

import copy
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.score import readers, share_far
from resources.draw_episodes import PALETTE, draw_frame

from colorizer.adaptation.reference_grading import Grade
from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from dataset import lab_to_rgb, resize, rgb_to_lab
from fileio.images import write_image
from film.analysis.shot_detection import find_gray_cuts
from utils import ArgumentParser, run_cli

EPISODE = 2
FILM = Path(__file__).resolve().parents[1] / "resources" / f"episode_{EPISODE}.mp4"


def cut(picture: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> (360, 480, 3), without 4 % at each side."""
    height, width, _ = picture.shape
    y, x = round(0.04 * height), round(0.04 * width)
    return resize(picture[y:-y, x:-x], 360, 480)


@dataclass
class Source:
    """Where pictures come from: how their colors and their luma differ from the show's."""

    grade: Grade
    gamma: float = 1.0

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """RGB uint8 (H, W, 3) -> (360, 480, 3): ``cut``, with a logo, as JPEG of quality 40."""
        codes = cv2.cvtColor(cut(picture), cv2.COLOR_RGB2YCrCb)
        codes[..., 0] = (255 * (codes[..., 0] / 255) ** self.gamma).round()
        turned = self.grade(cv2.cvtColor(codes, cv2.COLOR_YCrCb2RGB))
        cv2.putText(turned, "TV", (410, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 5, cv2.LINE_AA)
        packed = cv2.imencode(".jpg", turned[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        return cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1]


VIVID = Source(Grade(1.3, 6, (0, 0)))
FADED = Source(Grade(0.5, 0, (0, 0)), gamma=1.3)


def correct(picture, index):
    """Frame ``index`` of the episode with the red cat in the teal of the mouse."""
    body, lab = draw_frame(EPISODE, index, mask_of="ruby"), rgb_to_lab(picture)
    red, teal = (rgb_to_lab(np.array([[PALETTE[name]]], np.uint8))[0, 0, 1:] for name in ("ruby", "tilo"))
    lab[body, 1:] = teal * np.linalg.norm(lab[body, 1:], axis=1, keepdims=True) / np.linalg.norm(red)
    return lab_to_rgb(lab)


def frames():
    """The middle frames of the shots, and two others of each: {index: RGB uint8 (H, W, 3)} both."""
    small = (cv2.cvtColor(resize(picture(), 256, 256), cv2.COLOR_RGB2GRAY) for picture in readers(FILM))
    starts, count = sorted({0, *itertools.chain.from_iterable(find_gray_cuts(small))}), sum(1 for _ in readers(FILM))
    quarters = [[start + (end - start) * part // 4 for start, end in zip(starts, [*starts[1:], count], strict=True)]
                for part in (1, 2, 3)]
    wanted = {index: picture() for index, picture in enumerate(readers(FILM)) if index in np.ravel(quarters)}
    return ({index: wanted[index] for index in quarters[1]},
            {index: wanted[index] for index in sorted(quarters[0] + quarters[2])})


def measure(predictor, truths):
    """(CIEDE2000, share > 10, chroma beside the truth's) of the colors that a predictor gives to ``truths``."""
    labs = [resize(rgb_to_lab(truth), predictor.config.side, predictor.config.side) for truth in truths]
    colors = np.concatenate([predictor.predict_ab([lab])[0] for lab in labs])
    errors = np.array([color_differences(np.dstack([lab[..., :1], ab]), lab)
                       for ab, lab in zip(colors, labs, strict=True)])
    chroma = np.linalg.norm(colors, axis=-1).mean() / np.linalg.norm(np.stack(labs)[..., 1:], axis=-1).mean()
    return float(errors.mean()), share_far(errors), float(chroma)


def main(argv):
    parser = ArgumentParser(prog="references.py", description="Measure what references from another source are worth.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of train.py, which learned the show")
    parser.add_argument("--keep", type=Path, help="a folder for the references")
    args = parser.parse_args(argv)
    middles, others = frames()
    truths, fifth = list(others.values()), list(middles.values())[4]
    corrected = [correct(picture, index) for index, picture in middles.items()]
    rows = {
        "none": ([], truths), "of the film": (list(middles.values()), truths),
        "another source": ([VIVID(picture) for picture in middles.values()], truths),
        "a faded source": ([FADED(picture) for picture in middles.values()], truths),
        "one of another source": ([VIVID(fifth)], truths), "one of a faded source": ([FADED(fifth)], truths),
        "corrected": (corrected, [correct(picture, index) for index, picture in others.items()])}
    loaded = Predictor.load(args.checkpoint)
    print("| references | matched | CIEDE2000 | > 10 | chroma |\n|---|---|---|---|---|")
    for name, (pictures, truth) in rows.items():
        for index, picture in enumerate(pictures if args.keep else []):
            write_image(args.keep / f"{name.replace(' ', '_')}_{index + 1}.png", picture)
        for matched in (False, True) if pictures else (False,):
            predictor = copy.deepcopy(loaded)
            if pictures:
                predictor.add_references(pictures, matched)
            error, far, chroma = measure(predictor, truth)
            told = predictor.grade or "nothing to do" if matched else "no"
            print(f"| {name} | {told} | {error:.2f} | {far:.1%} | {chroma:.3f} |", flush=True)


if __name__ == "__main__":
    run_cli(main)
