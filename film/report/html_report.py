"""The HTML report of a colored film: its shots sorted by confidence, the suggested frames and the metrics.

The page is one file with embedded pictures and styles, and without scripts.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

FULL_SIZE_PICTURES = 1000  # with more pictures, all are shrunk; larger allows larger pages (17 MB at 1000)
TRAINING_THUMBNAIL = 128  # maximum width in pixels of a training frame
MAX_LINKS = 8  # maximum number of shots that a suggestion links to


@dataclass
class Report:
    """Content of the page of a colored film."""

    title: str
    records: Sequence[ShotRecord]  # Records unpacks the pictures of a record at each access
    suggestions: Sequence[Suggestion] = ()  # from suggest_frames; their pictures are in ``folder``
    folder: str = ""  # displayed name of the folder of the suggested frames
    names: dict[int, str] = field(default_factory=dict)  # file names of training frames by id
    thumbnails: Mapping[int, np.ndarray] = field(default_factory=dict)  # training frames by id, RGB uint8 of any size
    summaries: dict[str, dict[str, float]] = field(default_factory=dict)  # {row name: Scores.summary()}, or empty
    facts: dict[str, str] = field(default_factory=dict)  # {label: text} under the title
    response: FilmResponse | None = None  # set if the film's lightness differs from that of the training frames


def write_report(path: Path, report: Report) -> None:
    """Write the page of a film. Raises UserError when ``path`` cannot be written."""
    shots = [_shot_values(record) for record in report.records]
    film = _summarize(shots)
    pictures = sum(shot["pictures"] for shot in shots) + len(report.suggestions)
    width = round(THUMBNAIL * min(1, math.sqrt(FULL_SIZE_PICTURES / pictures)))
    # Generators let the template hold the pictures of only one shot in memory.
    pieces = ENVIRONMENT.get_template("report.html").generate(
        report=report, film=film, columns=Scores.COLUMNS, max_links=MAX_LINKS, bars=_bars(shots, film),
        marks=[_position((s.shot.start_time + s.shot.end_time) / 2, film) for s in report.suggestions],
        response=_describe_response(report.response), cards=_cards(report.suggestions, width),
        shots=_shot_views(report, shots, width))
    # errors="replace": a file name may contain bytes that are not valid text.
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as page:
        page.writelines(pieces)


def _shot_values(record):
    """Return the values of a shot that the page shows; None where a value is unknown."""
    values = {name: getattr(record, name) for name in ("start_frame", "end_frame", "start_time", "end_time", "frames",
                                                       "left_unchanged", "known_confidence")}
    measured = {name: _finite(getattr(record, name)) for name in ("confidence", "recalled", "cdc", "cdc_ground_truth",
                                                                 "fallback")}
    return {"number": record.index + 1, "pictures": 2 + (record.ground_truth is not None), **values, **measured}


def _finite(value):
    """Return a number as a float, None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _summarize(shots):
    """Return the values of the whole film; means are weighted by frames and None if unknown.

    The mean of ``cdc_ground_truth`` is over the shots with a ``cdc``, and None if one of these has no ground truth.
    """
    frames, start, end, confidence, cdc, cdc_ground_truth = (
        np.array([shot[name] for shot in shots], float)  # None becomes nan
        for name in ("frames", "start_time", "end_time", "confidence", "cdc", "cdc_ground_truth"))

    def mean(values, where):
        mask = np.isfinite(where)
        return _finite(np.average(values[mask], weights=frames[mask])) if mask.any() else None

    return {"frames": int(frames.sum()), "shots": len(shots), "start": float(start.min()), "end": float(end.max()),
            "confidence": mean(confidence, confidence), "cdc": mean(cdc, cdc),
            "cdc_ground_truth": mean(cdc_ground_truth, cdc)}


def _describe_response(response: FilmResponse | None) -> dict[str, Any] | None:
    """Return the values of a FilmResponse that the page shows, or None."""
    if response is None:
        return None
    return {"sensitivity": response.sensitivity, "span": None if response.is_identity else response.span,
            "points": list(zip(response.film_L, response.memory_L, strict=True))}


def _position(time, film):
    """Return the position of a time in seconds within the film, from 0 (start) to 1 (end)."""
    return (time - film["start"]) / (film["end"] - film["start"] or 1)


def _bars(shots, film):
    """Yield (shot, its bar) of the timeline, 1000 wide and 64 high; a lower confidence gives a higher bar."""
    for shot in shots:
        left, right = (1000 * _position(time, film) for time in (shot["start_time"], shot["end_time"]))
        width = right - left
        yield shot, {"left": left, "full_width": width, "width": max(width - 1, width * 0.7),
                     "height": 4 + 52 * (1 - shot["known_confidence"])}


def _cards(suggestions, width):
    for suggestion in suggestions:
        shot = suggestion.shot
        yield {"number": shot.index + 1, "frame": suggestion.frame, "time": (shot.start_time + shot.end_time) / 2,
               "gain": suggestion.gain, "others": [i + 1 for i in suggestion.helped if i != shot.index],
               "file_name": suggestion.file_name, "picture": _encode(shot.gray, width)}


def _shot_views(report, shots, width):
    """Yield (shot, its pictures and the training frames its colors were recalled from) by increasing confidence."""
    used = {i for record in report.records for i in record.slot_ids if i in report.thumbnails}
    sources = {i: _encode(report.thumbnails[i], min(TRAINING_THUMBNAIL, width)) for i in used}
    for index in np.argsort([shot["known_confidence"] for shot in shots], kind="stable"):
        record = report.records[index]
        pictures = [("grayscale", record.gray), ("colored", record.result), ("ground truth", record.ground_truth)]
        yield shots[index], {
            "pictures": [(label, _encode(rgb, width)) for label, rgb in pictures if rgb is not None],
            "aspect": f"{record.gray.shape[1]}/{record.gray.shape[0]}",
            "slots": [{"score": score, "name": report.names.get(i, f"frame {i}"), "picture": sources.get(i)}
                      for i, score in zip(record.slot_ids, record.slot_scores, strict=True)]}


def _encode(rgb, width):
    """Encode RGB uint8 as a JPEG data URI at most ``width`` pixels wide."""
    width = min(width, rgb.shape[1])
    rgb = resize(rgb, max(1, round(rgb.shape[0] * width / rgb.shape[1])), width)
    data = io.BytesIO()
    Image.fromarray(rgb).save(data, "JPEG", quality=75, optimize=True)
    source = Markup(f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}")  # needs no escaping
    return {"source": source, "width": rgb.shape[1], "height": rgb.shape[0]}


def _time(seconds):
    """Format seconds as 1:02:03.4 or 2:03.4."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{tenths // 10:02d}.{tenths % 10}"


ENVIRONMENT = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                          undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
ENVIRONMENT.filters |= {"number": format, "time": _time}
