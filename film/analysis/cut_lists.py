"""Cut lists that editing programs exchange: OpenTimelineIO (.otio), CMX 3600 (.edl) and the CSV files of PySceneDetect.

Frames are counted from 0, the first frame of the source, also with --start. Only .otio holds transitions; in the other
formats, they are cuts at their end.
"""

import csv
import io
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from fileio.atomic import atomic_write
from fileio.outputs import short_stem
from film.analysis.transitions import Boundary
from film.io.video import FilmInfo
from utils import UserError, warn

RATE_TOLERANCE = 5e-4  # relative; 24 and 24000/1001 frames per second differ by 1e-3
_CSV_HEADER = ("Scene Number", "Start Frame", "Start Timecode", "Start Time (seconds)", "End Frame", "End Timecode",
               "End Time (seconds)", "Length (frames)", "Length (timecode)", "Length (seconds)")


def read_cut_list(path: Path, rate: Fraction) -> tuple[Boundary, ...]:
    """Read the end of each shot of a film of ``rate`` frames per second; the last one is the end of the list.

    In a timeline, these are the ends of the clips and gaps of the first video track, counted from its beginning.
    Raises UserError if the file is not a cut list or states a different rate.
    """
    readers: dict[str, Callable[[Path, Fraction], list[Boundary]]] = {
        ".csv": _read_csv, ".edl": _read_timeline, ".otio": _read_timeline}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is not a cut list; pass a {', '.join(readers)} file to --cuts")
    if not path.is_file():
        raise UserError(f"there is no file {path}; pass a cut list to --cuts")
    try:
        return tuple(sorted({boundary for boundary in reader(path, rate) if boundary.end > 0}))
    except UserError:
        raise
    except Exception as error:  # parsers raise many types of exceptions for damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot read the cut list {path}: {reason}; export it again") from error


def _read_csv(path, rate):
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    start = next((number for number, row in enumerate(rows) if "Start Frame" in row), None)
    if start is None or "End Frame" not in rows[start]:
        raise UserError(f"{path} has no columns Start Frame and End Frame, which PySceneDetect writes; pass another "
                        "file to --cuts")
    columns = [rows[start].index(name) for name in ("Start Frame", "End Frame")]
    shots = [(int(row[columns[0]]) - 1, int(row[columns[1]])) for row in rows[start + 1:] if row]  # from 1, inclusive
    return [Boundary(frame, frame) for frame in {frame for shot in shots for frame in shot}]


def _read_timeline(path, rate):
    otio, edl = _opentimelineio(), path.suffix.lower() == ".edl"
    timeline = otio.adapters.read_from_file(str(path), **({"rate": _timecode_rate(rate)} if edl else {}))
    track = next(iter(timeline.video_tracks()), None)
    if track is None:
        raise UserError(f"{path} has no video track; pass another file to --cuts")

    def frames(time):
        if abs(time.rate / rate - 1) > RATE_TOLERANCE and time.value:
            raise UserError(f"{path} has {time.rate:.6g} frames per second, but the film has {float(rate):.6g}; export "
                            "a list with the film's rate")
        return round(time.value)

    end, boundaries, transition = 0, [], None
    for item in track:
        if isinstance(item, otio.schema.Transition):
            transition = item
            continue
        if transition is not None:
            wipe = transition.transition_type != otio.schema.TransitionTypes.SMPTE_Dissolve
            boundaries[-1:] = [Boundary(end - frames(transition.in_offset), end + frames(transition.out_offset), wipe)]
        end, transition = end + frames(item.duration()), None
        boundaries.append(Boundary(end, end))
    return boundaries


def cut_list_paths(output: Path, formats: Collection[str], rate: Fraction) -> list[Path]:
    """Return the paths ``<short stem of output>.<format>``. Raises UserError if a format is unknown or cannot hold
    ``rate``."""
    if unknown := {*formats} - {"csv", "edl", "otio"}:
        raise UserError(f"--write_cuts cannot write {', '.join(sorted(unknown))}; choose from csv, edl and otio")
    if "edl" in formats:
        _timecode_rate(rate)
    if {"edl", "otio"} & {*formats}:
        _opentimelineio()
    return [output.with_name(f"{short_stem(output.stem)}.{format_}") for format_ in formats]


def write_cut_list(path: Path, film: Path, info: FilmInfo, boundaries: Sequence[Boundary],
                   overwrite: bool = False) -> None:
    """Write the end of each shot of the file ``film``; the suffix of ``path`` selects the format.

    Editing programs find the frames by the time code in ``info``. An existing file with different content is kept, with
    a warning, unless ``overwrite`` is True.
    """
    cuts = [boundary._replace(start=boundary.end) for boundary in boundaries]
    if path.suffix == ".csv":
        text = _csv_text(info.rate, [cut.end for cut in cuts])
    elif path.suffix == ".edl":
        rate = _timecode_rate(info.rate)
        timeline = _timeline(film, rate, cuts, info.timecode)
        text = _opentimelineio().adapters.write_to_string(timeline, "cmx_3600", rate=rate)
    else:
        text = _timeline(film, float(info.rate), boundaries, info.timecode).to_json_string(indent=2)
    content = text.encode()
    if path.exists() and not overwrite and path.read_bytes() != content:
        warn(f"{path} exists and is kept; pass --overwrite True to replace it")
        return
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _csv_text(rate, ends):
    def columns(count, first=0):
        seconds, milliseconds = divmod(round(count / rate * 1000), 1000)
        return [count + first, f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milliseconds:03}",
                f"{seconds}.{milliseconds:03}"]

    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(_CSV_HEADER)
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
        table.writerow([number, *columns(start, 1), *columns(end), *columns(end - start)])
    return file.getvalue()


def _timeline(film, fps, boundaries, timecode):
    otio, origin = _opentimelineio(), 0
    time = otio.opentime.RationalTime
    with suppress(ValueError, UserError):  # not a time code, or not one of this rate
        origin = round(otio.opentime.from_timecode(timecode, _timecode_rate(fps)).value)

    def span(start, end):
        return otio.opentime.TimeRange(time(origin + start, fps), time(end - start, fps))

    track = otio.schema.Track("V1", kind=otio.schema.TrackKind.Video)
    start = 0
    for boundary in boundaries:
        media = otio.schema.ExternalReference(film.name, span(0, boundaries[-1].end))
        track.append(otio.schema.Clip(film.name, media, span(start, boundary.end), {"cmx_3600": {"reel": "AX"}}))
        start = boundary.end
        if boundary.start < boundary.end:
            types = otio.schema.TransitionTypes
            track.append(otio.schema.Transition(
                "wipe" if boundary.wipe else "dissolve", types.Custom if boundary.wipe else types.SMPTE_Dissolve,
                span(0, boundary.end - boundary.start).duration, span(0, 0).duration))
    timeline = otio.schema.Timeline(film.stem)
    timeline.tracks.append(track)
    return timeline


def _timecode_rate(rate):
    """Return the frames per second of timecodes of an .edl file. Raises UserError if there are none for ``rate``."""
    nearest = _opentimelineio().opentime.RationalTime.nearest_smpte_timecode_rate(float(rate))
    if abs(nearest / rate - 1) > RATE_TOLERANCE:
        raise UserError(f"there are no timecodes of {float(rate):.6g} frames per second for .edl files; use .otio or "
                        ".csv")
    return nearest


def _opentimelineio() -> Any:
    try:
        import opentimelineio
    except ImportError as error:
        raise UserError("the package opentimelineio is not installed, since it has no version for this Python; use "
                        ".csv, or Python 3.10 to 3.13") from error
    return opentimelineio
