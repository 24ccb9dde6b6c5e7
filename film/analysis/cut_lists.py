"""Cut lists that editing programs exchange: OpenTimelineIO (.otio), CMX 3600 (.edl) and the CSV files of PySceneDetect.

Frames are counted from 0. Only .otio holds transitions; in the other formats, they are cuts at their end.
"""

import csv
import io
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from fileio.atomic import atomic_write
from film.analysis.transitions import Boundary
from utils import UserError, warn

RATE_TOLERANCE = 5e-4  # relative; 24 and 24000/1001 frames per second differ by 1e-3
_CSV_HEADER = ("Scene Number", "Start Frame", "Start Timecode", "Start Time (seconds)", "End Frame", "End Timecode",
               "End Time (seconds)", "Length (frames)", "Length (timecode)", "Length (seconds)")


def read_cut_list(path: Path, rate: Fraction) -> tuple[Boundary, ...]:
    """Read all shot boundaries of a film of ``rate`` frames per second.

    In a timeline, these are the ends of the clips and gaps of the first video track, counted from its beginning.
    Raises UserError if the file is not a cut list or states a different rate.
    """
    readers: dict[str, Callable[[Path, Fraction], list[Boundary]]] = {
        ".csv": _read_csv, ".edl": _read_timeline, ".otio": _read_timeline}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is not a cut list; pass a {', '.join(readers)} file to --cuts")
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
    last = max((end for _, end in shots), default=0)
    return [Boundary(frame, frame) for frame in {frame for shot in shots for frame in shot} - {last}]


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
    return boundaries[:-1]


def cut_list_paths(output: Path, formats: Collection[str], rate: Fraction) -> list[Path]:
    """Return the paths ``<output stem>.<format>``. Raises UserError if a format is unknown or cannot hold ``rate``."""
    if unknown := {*formats} - {"csv", "edl", "otio"}:
        raise UserError(f"--write_cuts cannot write {', '.join(sorted(unknown))}; choose from csv, edl and otio")
    if "edl" in formats:
        _timecode_rate(rate)
    if {"edl", "otio"} & {*formats}:
        _opentimelineio()
    return [output.with_name(f"{output.stem}.{format_}") for format_ in formats]


def write_cut_list(path: Path, film: Path, rate: Fraction, boundaries: Sequence[Boundary], frames: int,
                   overwrite: bool = False) -> None:
    """Write the shots of the file ``film`` with ``frames`` frames; the suffix of ``path`` selects the format.

    An existing file with different content is kept, with a warning, unless ``overwrite`` is True.
    """
    if path.suffix == ".csv":
        text = _csv_text(rate, [boundary.end for boundary in boundaries], frames)
    elif path.suffix == ".edl":
        cuts, fps = [boundary._replace(start=boundary.end) for boundary in boundaries], _timecode_rate(rate)
        text = _opentimelineio().adapters.write_to_string(_timeline(film, fps, cuts, frames), "cmx_3600", rate=fps)
    else:
        text = _timeline(film, float(rate), boundaries, frames).to_json_string(indent=2)
    content = text.encode()
    if path.exists() and not overwrite and path.read_bytes() != content:
        warn(f"{path} exists and is kept; pass --overwrite True to replace it")
        return
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _csv_text(rate, cuts, frames):
    def columns(count, first=0):
        seconds, milliseconds = divmod(round(count / rate * 1000), 1000)
        return [count + first, f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milliseconds:03}",
                f"{seconds}.{milliseconds:03}"]

    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(_CSV_HEADER)
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, frames], strict=True), 1):
        table.writerow([number, *columns(start, 1), *columns(end), *columns(end - start)])
    return file.getvalue()


def _timeline(film, fps, boundaries, frames):
    otio = _opentimelineio()

    def span(start, end):
        time = otio.opentime.RationalTime
        return otio.opentime.TimeRange(time(start, fps), time(end - start, fps))

    track = otio.schema.Track("V1", kind=otio.schema.TrackKind.Video)
    cuts = [boundary.end for boundary in boundaries]
    for start, end, boundary in zip([0, *cuts], [*cuts, frames], [*boundaries, None], strict=True):
        media = otio.schema.ExternalReference(film.name, span(0, frames))
        track.append(otio.schema.Clip(film.name, media, span(start, end), {"cmx_3600": {"reel": "AX"}}))
        if boundary is not None and boundary.start < boundary.end:
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
