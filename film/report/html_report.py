"""How did it go? ``write_report`` makes the page of a colored film, and ``suggest_frames`` says what to color next.

The page is a single file that needs nothing else: pictures and styles are inside, and there is no script.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from colorizer.adaptation.film_response import FilmResponse
from colorizer.metrics import Scores
from dataset import resize
from fileio.atomic import atomic_write
from film.report.records import THUMBNAIL, ShotRecord
from film.report.suggestions import Suggestion


# ---------------------------------------------------------------------------------------------------------------------
# Color these next


# ---------------------------------------------------------------------------------------------------------------------
# The page

PICTURES = 1000  # up to so many are THUMBNAIL wide, more are smaller: an episode's page is 17 MB, a long film's 26 MB
SOURCE_THUMBNAIL = 128  # width of a training frame
LINKS = 8  # shots that a suggestion names


@dataclass
class Report:
    """What the page of a colored film shows."""

    title: str
    records: Sequence[ShotRecord]  # such as Records, which unpacks a record at each access
    suggestions: Sequence[Suggestion] = ()  # of suggest_frames; their pictures are in ``folder``
    folder: str = ""  # name of the folder of the suggested pictures, as shown
    names: dict[int, str] = field(default_factory=dict)  # file names of training frames by their id, as far as known
    thumbnails: Mapping[int, np.ndarray] = field(default_factory=dict)  # and their pictures, RGB uint8 of any size
    summaries: dict[str, dict[str, float]] = field(default_factory=dict)  # {row name: Scores.summary()}, with a truth
    facts: dict[str, str] = field(default_factory=dict)  # {label: text} under the title
    response: FilmResponse | None = None  # of the film, where its gray is not that of the training frames


def write_report(path: Path, report: Report) -> None:
    """Write the page of a film. Raises UserError when ``path`` cannot be written."""
    shots = [_Shot.of(record) for record in report.records]
    film = _summarize(shots)
    pictures = sum(shot.pictures for shot in shots) + len(report.suggestions)
    width = round(THUMBNAIL * min(1, math.sqrt(PICTURES / pictures)))
    # Generators: the template takes one after another, so that the pictures of the film are never all in memory.
    pieces = ENVIRONMENT.get_template("report.html").generate(
        report=report, film=film, columns=Scores.COLUMNS, links=LINKS, bars=_bars(shots, film),
        marks=_marks(report.suggestions, film), cards=_cards(report.suggestions, width),
        shots=_views(report, shots, width))
    # errors="replace": a file name may have bytes that are no valid text.
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as page:
        page.writelines(pieces)


@dataclass
class _Shot:
    """What the page tells of a shot, but for its pictures; None is unknown."""

    number: int  # from 1
    start_frame: int
    end_frame: int  # exclusive
    start_time: float  # seconds in the film
    end_time: float
    kept: bool
    confidence: float | None
    recalled: float | None
    certainty: float
    cdc: float | None
    cdc_ground_truth: float | None
    pictures: int  # how many it has

    @classmethod
    def of(cls, record: ShotRecord) -> "_Shot":
        return cls(record.index + 1, record.start_frame, record.end_frame, record.start_time, record.end_time,
                   record.left_unchanged, _known(record.confidence), _known(record.recalled), record.known_confidence,
                   _known(record.cdc), _known(record.cdc_ground_truth), 2 + (record.ground_truth is not None))


def _known(value):
    return float(value) if math.isfinite(value) else None


def _summarize(shots):
    """Figures of the whole film; means are weighted by frames, and None where unknown. That of cdc_ground_truth is over the
    shots whose cdc is known, and None if one of these has no truth."""
    frames, start, end, confidence, cdc, truth = np.array(
        [(s.end_frame - s.start_frame, s.start_time, s.end_time, s.confidence, s.cdc, s.cdc_ground_truth) for s in shots],
        float).T  # None becomes nan

    def mean(values, where):
        known = np.isfinite(where)
        return _known(np.average(values[known], weights=frames[known])) if known.any() else None

    return {"frames": int(frames.sum()), "shots": len(shots), "start": float(start.min()), "end": float(end.max()),
            "confidence": mean(confidence, confidence), "cdc": mean(cdc, cdc), "cdc_ground_truth": mean(truth, cdc)}


def _place(time, film):
    """Where in the film a time in seconds is: 0 at its start, 1 at its end."""
    return (time - film["start"]) / (film["end"] - film["start"] or 1)


def _bars(shots, film):
    """(_Shot, its bar) of the timeline, 1000 wide and 64 high. The higher a bar, the more doubtful is its shot."""
    for shot in shots:
        left, right = (1000 * _place(time, film) for time in (shot.start_time, shot.end_time))
        room = right - left
        yield shot, {"left": left, "room": room, "width": max(room - 1, room * 0.7),
                     "height": 4 + 52 * (1 - shot.certainty)}


def _marks(suggestions, film):
    return [_place((s.shot.start_time + s.shot.end_time) / 2, film) for s in suggestions]


def _cards(suggestions, width):
    for suggestion in suggestions:
        shot = suggestion.shot
        yield {"number": shot.index + 1, "frame": suggestion.frame, "time": (shot.start_time + shot.end_time) / 2,
               "gain": suggestion.gain, "others": [i + 1 for i in suggestion.helped if i != shot.index],
               "file_name": suggestion.file_name, "picture": _picture(shot.gray, width)}


def _views(report, shots, width):
    """(_Shot, its pictures and the training frames that its colors come from), the doubtful ones first."""
    wanted = {i for record in report.records for i in record.slot_ids if i in report.thumbnails}
    sources = {i: _picture(report.thumbnails[i], min(SOURCE_THUMBNAIL, width)) for i in wanted}
    for place in np.argsort([shot.certainty for shot in shots], kind="stable"):
        record = report.records[place]
        pictures = [("gray", record.gray), ("colored", record.result), ("ground truth", record.ground_truth)]
        yield shots[place], {
            "pictures": [(label, _picture(rgb, width)) for label, rgb in pictures if rgb is not None],
            "aspect": f"{record.gray.shape[1]}/{record.gray.shape[0]}",
            "slots": [{"score": score, "name": report.names.get(i, f"frame {i}"), "picture": sources.get(i)}
                      for i, score in zip(record.slot_ids, record.slot_scores, strict=True)]}


def _picture(rgb, width):
    """RGB uint8 as a data URI, at most ``width`` wide."""
    width = min(width, rgb.shape[1])
    rgb = resize(rgb, max(1, round(rgb.shape[0] * width / rgb.shape[1])), width)
    data = io.BytesIO()
    Image.fromarray(rgb).save(data, "JPEG", quality=75, optimize=True)
    source = Markup(f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}")  # has nothing to escape
    return {"source": source, "width": rgb.shape[1], "height": rgb.shape[0]}


def _time(seconds):
    """Seconds as 1:02:03.4 or 2:03.4."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{tenths // 10:02d}.{tenths % 10}"


ENVIRONMENT = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                          undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
ENVIRONMENT.filters |= {"number": format, "time": _time, "transposed": lambda rows: zip(*rows, strict=True)}
