"""What does a large picture cost? Films of several sizes, colored beside decoding and encoding them alone.

    python benchmarks/hd.py CHECKPOINT [--film FILM] [--seconds 5] [--rounds 3] [--lines 360 1080 2160] [--depths 8 10]

The first seconds of FILM are scaled to each number of lines, H.264 of 8 and of 10 bits. Each of these clips is decoded
and encoded, by the reader and with the encoder and the settings of a colored film, and colored by test.py with all
that goes with it; in turn, each time in a process of its own, of which the peak of the resident memory is noted.
"Beside alone" is the median over the rounds of the seconds of decoding and encoding over those of coloring, the search
for shots and joining included; "of cores" is the same of the time that all threads of both take on a core, which a
busy machine does not change much; "behind" is what measuring and the report take after it, as a share of it.

Prints a table in Markdown and writes results/bench/hd.json. About 12 minutes on 2 CPU cores.
"""

import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from contextlib import closing, redirect_stderr, redirect_stdout
from fractions import Fraction
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import colorizer.threads  # noqa: F401  before torch is imported

import av

import test
from config import ColorConfig, FilmConfig
from fileio.atomic import atomic_write
from film.io.thread_pool import prefetch
from film.io.video import VideoFile
from film.render import rendering as episode
from film.render.writers import FilmWriter
from utils import ArgumentParser, UserError, parse_positive_int, run_cli

FILM = Path(__file__).resolve().parents[1] / "resources" / "episode_2.mp4"
STAGES: dict[str, list[tuple[Any, str]]] = {  # stage: (where its function is, its name)
    "scan": [(episode, "analyze_film")], "join": [(FilmWriter, "join")], "all": [(episode.RenderJob, "run_as_owner")],
    "measuring": [(test, "measure_film"), (test.Evaluation, "write")], "report": [(test, "write_film_report")]}


def in_a_process(function, *arguments):
    """What a function answers in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(function, arguments)


def peak():
    """GB that this process needed at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def scale(film, target, lines, depth, seconds):
    """Write the first seconds of a film with so many lines and bits; returns the number of frames."""
    with av.open(str(film)) as source, av.open(str(target), "w") as container:
        template, count = source.streams.video[0], 0
        stream = container.add_stream("libx264", rate=template.average_rate, options={"preset": "veryfast"})
        stream.width, stream.height = round(lines * template.width / template.height / 2) * 2, lines
        stream.pix_fmt = "yuv420p10le" if depth == 10 else "yuv420p"
        for frame in source.decode(template):
            if frame.time >= seconds:
                break
            frame = frame.reformat(stream.width, lines, stream.pix_fmt)
            frame.pts, frame.time_base, count = count, 1 / Fraction(template.average_rate), count + 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return count


def alone(film, output):
    """({"all": seconds, "cores": seconds on a core}, GB at most) of decoding a film and encoding it as if it had been
    colored."""
    source, writer = VideoFile(film), FilmWriter(film, output, FilmConfig())
    times = [pts for pts, _, _ in source.read()]
    started, on_cores = time.perf_counter(), time.process_time()
    with writer.write_shot(output.with_suffix(".part"), times) as write, closing(prefetch(source.read(), 8)) as frames:
        for pts, _, planes in frames:
            write(planes, pts)
    return {"all": time.perf_counter() - started, "cores": time.process_time() - on_cores}, peak()


def colored(checkpoint, film, output):
    """({stage: seconds}, GB at most) of test.py on a film; "color" is what is neither of the other stages, and "cores"
    the seconds on a core of all but measuring and report."""
    seconds, on_cores = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)

    def timed(function, stage):
        @wraps(function)
        def call(*arguments, **named):
            started = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                seconds[stage] += time.perf_counter() - started[0]
                on_cores[stage] += time.process_time() - started[1]

        return call

    plain = [(owner, name, getattr(owner, name)) for places in STAGES.values() for owner, name in places]
    try:
        for stage, places in STAGES.items():
            for owner, name in places:
                setattr(owner, name, timed(getattr(owner, name), stage))
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            test.color(ColorConfig(checkpoint=checkpoint, input=film, output=output, overwrite=True))
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)
    every, cores = seconds.pop("all"), on_cores["all"] - on_cores["measuring"] - on_cores["report"]
    return {**seconds, "color": every - sum(seconds.values()), "cores": cores}, peak()


def measure(checkpoint, film, folder, rounds):
    """A line of the table: decoding and encoding alone, and coloring, of a film."""
    alones, colorings, sizes = [], [], []
    for _ in range(rounds):
        one, least = in_a_process(alone, film, folder / "alone.mkv")
        stages, most = in_a_process(colored, checkpoint, film, folder / "colored.mkv")
        stages["all"] = sum(stages[stage] for stage in ("scan", "color", "join"))
        stages["behind"] = (stages["measuring"] + stages["report"]) / stages["all"]
        stages["beside alone"], stages["of cores"] = (one[name] / stages[name] for name in ("all", "cores"))
        alones.append(one)
        colorings.append(stages)
        sizes.append((least, most))
    line = {name: statistics.median(stages[name] for stages in colorings) for name in colorings[0]}
    least, most = map(max, zip(*sizes, strict=True))
    return {**line, "alone": statistics.median(one["all"] for one in alones), "alone, GB": least, "GB": most,
            "rounds": list(zip(alones, colorings, strict=True))}


def cells(line):
    return [f"{line['lines']}", f"{line['depth']}", f"{line['frames'] / line['alone']:.1f}",
            f"{line['frames'] / line['all']:.1f}", f"{line['beside alone']:.2f}", f"{line['of cores']:.2f}",
            *(f"{line[stage]:.1f}" for stage in ("scan", "color", "join", "measuring", "report")),
            f"{line['behind']:.0%}", f"{line['alone, GB']:.2f}", f"{line['GB']:.2f}"]


def main(argv):
    parser = ArgumentParser(prog="hd.py", description="Color films of several sizes, beside decoding and encoding.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of train.py")
    parser.add_argument("--film", type=Path, default=FILM, help="the film to scale")
    parser.add_argument("--seconds", type=parse_positive_int, default=5, help="how much of it")
    parser.add_argument("--rounds", type=parse_positive_int, default=3, help="of which the median is taken")
    parser.add_argument("--lines", type=parse_positive_int, nargs="+", default=[360, 1080, 2160], help="even heights")
    parser.add_argument("--depths", type=int, nargs="+", choices=[8, 10], default=[8, 10], help="bits of a sample")
    parser.add_argument("--output", type=Path, default=Path("results/bench/hd.json"), help="replaced if it exists")
    args = parser.parse_args(argv)
    if not args.film.is_file():
        raise UserError(f"there is no film {args.film}; name another one")
    print("| lines | bits | alone, frames/s | colored, frames/s | beside alone | of cores | scan, s | color, s "
          "| join, s | measuring, s | report, s | behind | alone, GB | GB |\n|" + "---|" * 14)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for depth in args.depths:
            for lines in args.lines:
                clip = Path(temporary) / f"clip_{lines}_{depth}.mp4"
                frames = in_a_process(scale, args.film, clip, lines, depth, args.seconds)
                found.append({"lines": lines, "depth": depth, "frames": frames,
                              **measure(args.checkpoint, clip, Path(temporary), args.rounds)})
                print(f"| {' | '.join(cells(found[-1]))} |", flush=True)
    with atomic_write(args.output) as path:
        path.write_text(json.dumps({"film": args.film.name, "seconds": args.seconds, "rounds": args.rounds,
                                    "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    run_cli(main)
