"""What does painting by hand gain? The error of a film after 0, 1, 2, 5 and 10 painted frames.

    python benchmarks/effort.py CHECKPOINT FILM [--episode 2] [--figure effort.png]

FILM has color, which counts as the truth: it is colored from its gray as test.py does. The frames that the program then
suggests (``suggest_frames``, "color these next") get their true colors in place of a predictor's and are added as
references, the first k of the list made once, before anything is painted, since the program suggests them all at
once; then the whole film is colored again, by a Predictor loaded anew. Beside them, as many frames at equal steps: the
middles of k equal parts of the film.

Every so many frames are measured as score.py does (``--every``), painted ones among them, for who paints gets these,
too; bodies are those of a drawn episode. Prints a Markdown table, a line as soon as it is known; ``--figure`` draws it.
"""

import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.score import COLUMNS, measure, readers
from resources.draw_episodes import EPISODES

from colorizer.predictor import Predictor
from config import FilmConfig
from fileio.atomic import atomic_write
from film.io.video import VideoFile
from film.render.incremental import can_update
from film.render.rendering import color_film
from film.report.suggestions import suggest_frames
from utils import ArgumentParser, parse_positive_int, run_cli

PAINTED = (0, 1, 2, 5, 10)
WAYS = ("suggested", "equal steps")
MEASURES = ("ciede2000", "share_above_10", "bodies", "bodies_share_above_10")


def equal_steps(frames, count):
    """The middle frames of ``count`` equal parts of a film of so many frames."""
    return [(2 * part + 1) * frames // (2 * count) for part in range(count)]


def color(checkpoint, film, painted, output):
    """Color a film whose frames ``painted``, indices, are painted by the truth; returns the Records of its shots."""
    predictor, source, config = Predictor.load(checkpoint), VideoFile(film), FilmConfig()
    if painted:
        predictor.add_references([picture() for index, picture in enumerate(readers(film)) if index in painted])
    return color_film(predictor, source, output, config, overwrite=not can_update(predictor, source, output, config))


def gains(checkpoint, film, every, episode):
    """Yield (frames painted, {way: {measure: value}}) for each of PAINTED, as far as there are suggestions; and print
    which they are."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "film.mp4"  # of which only shots that other frames change are colored again

        def score(painted):
            records = color(checkpoint, film, painted, output)
            values = measure(output, film, every, episode)[0]
            return records, {name: values[name] for name in MEASURES if name in values}

        records, nothing = score([])
        yield 0, dict.fromkeys(WAYS, nothing)
        suggested = [suggestion.frame for suggestion in suggest_frames(records, max(PAINTED))]
        print(f"suggested, in this order: frames {', '.join(map(str, suggested))}", file=sys.stderr)
        for count in sorted({min(count, len(suggested)) for count in PAINTED} - {0}):
            chosen = suggested[:count], equal_steps(records[-1].end_frame, count)
            yield count, {way: score(painted)[1] for way, painted in zip(WAYS, chosen, strict=True)}


def draw(rows, path):
    """Draw each measure over the frames painted, a line for each way, into ``path``."""
    names = list(rows[0][1][WAYS[0]])
    figure = Figure(figsize=(3.2 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for way in WAYS:
            axes.plot([count for count, _ in rows], [values[way][name] for _, values in rows], marker=".", label=way)
        axes.set_title(COLUMNS[name][0])
        axes.set_xlabel("frames painted")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)


def main(argv):
    parser = ArgumentParser(prog="effort.py", description="Measure what painting by hand gains.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of train.py")
    parser.add_argument("film", type=Path, metavar="FILM", help="a film in color, which counts as the truth")
    parser.add_argument("--episode", type=int, choices=EPISODES, help="which drawn one it is, to measure characters")
    parser.add_argument("--every", type=parse_positive_int, default=12, help="measure one of so many frames")
    parser.add_argument("--figure", type=Path, help="picture of the curves to write, such as effort.png")
    args = parser.parse_args(argv)
    rows = []
    for count, values in gains(args.checkpoint, args.film, args.every, args.episode):
        if not rows:
            titles = [f"{way}: {COLUMNS[name][0]}" for way, measured in values.items() for name in measured]
            print(f"| frames painted | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}")
        rows.append((count, values))
        cells = [f"{value:{COLUMNS[name][1]}}" for measured in values.values() for name, value in measured.items()]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    run_cli(main)
