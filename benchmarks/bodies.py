"""What a viewer looks at: how far the characters of a drawn episode, colored by us or anybody, are from their colors.

    python benchmarks/bodies.py results/demo/episode_2.mp4 [--episode 2] [--every 12]

The mean over a picture is that of its background. So the pixels of each character's body (``draw_frame`` with
``mask_of``, without outlines, face and clothes) are measured alone, in every 12th frame, at full size: mean CIEDE2000
and the share of the pixels further away than 10, at which one sees another color. The truth is the bundled film.
"""

import itertools
import sys
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import rgb_to_lab
from resources.draw_episodes import PALETTE, draw_frame
from utils import FAR, ArgumentParser, UserError, color_differences, run_cli

RESOURCES = Path(__file__).resolve().parents[1] / "resources"


def pictures(path, every):
    """Yield (index, RGB uint8 (H, W, 3)) of every so many frames of a film. Raises UserError when it has none."""
    try:
        with av.open(str(path)) as film:
            for index, frame in enumerate(film.decode(video=0)):
                if index % every == 0:
                    yield index, frame.to_ndarray(format="rgb24")
    except (OSError, av.error.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a film that can be read; name one that test.py has colored") from error


def measure(colored, episode, every):
    """{"whole" or "bodies" or a character: CIEDE2000 of each of its pixels} over the frames. Raises UserError for a
    film of another size or length."""
    found = {name: [] for name in ("whole", "bodies", *PALETTE)}
    truths = pictures(RESOURCES / f"episode_{episode}.mp4", every)
    for result, true in itertools.zip_longest(pictures(colored, every), truths):
        if result is None or true is None or result[1].shape != true[1].shape:
            raise UserError(f"{colored} is not episode {episode} in its size and length; color that one whole")
        differences = color_differences(rgb_to_lab(result[1]), rgb_to_lab(true[1]))
        found["whole"].append(differences.ravel())
        for name in PALETTE:
            body = differences[draw_frame(episode, true[0], mask_of=name)]
            found[name].append(body)
            found["bodies"].append(body)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def main(argv):
    parser = ArgumentParser(prog="bodies.py", description="Measure the characters of a drawn episode.")
    parser.add_argument("colored", type=Path, metavar="FILM", help="the episode as it was colored")
    parser.add_argument("--episode", type=int, choices=(1, 2), default=2, help="which one it is")
    parser.add_argument("--every", type=int, default=12, help="measure one of so many frames")
    args = parser.parse_args(argv)
    if args.every < 1:
        raise UserError(f"--every is {args.every}; set it to at least 1")
    found = measure(args.colored, args.episode, args.every)
    print("| | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    found = {name: values if len(values) else np.array([np.nan]) for name, values in found.items()}  # never seen
    print("| CIEDE2000 | " + " | ".join(f"{values.mean():.2f}" for values in found.values()) + " |")
    far = {name: np.where(np.isnan(values), np.nan, values > FAR).mean() for name, values in found.items()}
    print("| further away than 10 | " + " | ".join(f"{share:.1%}" for share in far.values()) + " |")


if __name__ == "__main__":
    run_cli(main)
