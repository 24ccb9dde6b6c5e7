"""What do other references change in a film that was colored? Its shots that read something else.

A shot is colored by what the memories answer for its frames. What they are asked by, the looks of its drawings, is
kept, so that they can be asked again without reading the film: where all that they answer is the same, bit by bit, so
is the shot.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np

from config import FilmConfig, part_of
from film.analysis.plan import FilmPredictor, Plan
from film.io.image_sequence import ImageSequence
from film.io.video import Film
from film.render.segments import SegmentStore, read_completion
from film.render.writers import FilmWriter, Writer

SEGMENTS_FORMAT = 13  # of what is kept of a film's shots


def open_segment_store(predictor: FilmPredictor, film: Film, output: Path, writer: Writer, config: FilmConfig) -> SegmentStore:
    """The Parts of a film, whose key is a hash of all that they depend on, but for references that ``reading_of`` tells
    of."""
    identity = predictor.origin if writer.cuts and predictor.origin else predictor.identity
    content = [SEGMENTS_FORMAT, identity, *film.fingerprint(), repr(writer.target), repr(asdict(config)),
               sorted(av.library_versions.items())]
    return SegmentStore(output, hashlib.sha256(json.dumps(content).encode()).hexdigest())


def shot_digest(predictor: FilmPredictor, plan: Plan, number: int, looks: np.ndarray, config: FilmConfig) -> str:
    """A hash of all that is read for a shot of a plan ``by`` the predictor, by the looks of its drawings and, where it
    becomes the next shot bit by bit, that of the first frame of this."""
    shot = plan.shots[number]
    if config.keep_color_shots and shot.in_color:
        return ""
    if shot.transition is None:
        return predictor.lookup_digest(shot.palette, looks)
    return (predictor.lookup_digest(shot.palette, looks[:-1])
            + predictor.lookup_digest(plan.shots[number + 1].palette, looks[-1:]))


def finished_shots(predictor: FilmPredictor, plan: Plan, parts: SegmentStore,
                   config: FilmConfig) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
    """For each shot of a plan ``by`` the predictor, what ``Parts.save`` noted of it and what would be read for it now;
    None for a shot that is not finished."""
    for number in range(len(plan.shots)):
        noted = parts.finished(plan, number)
        yield noted, None if noted is None else shot_digest(predictor, plan, number, noted["looks"], config)


def can_update(predictor: FilmPredictor, film: Film, output: Path, config: FilmConfig) -> bool:
    """Whether ``affected`` can tell what other references than those of ``predictor`` have changed in a colored film."""
    finished = read_completion(output)
    if isinstance(film, ImageSequence) or finished is None or finished.predictor == predictor.identity:
        return False
    config = part_of(config, FilmConfig)
    return open_segment_store(predictor, film, output, FilmWriter(film.path, output, config), config).plan() is not None


def find_changed_shots(predictor: FilmPredictor, film: Film, output: str | Path,
             config: FilmConfig | None = None) -> list[int] | None:
    """The numbers, from 0, of the shots that ``color_film`` with the same arguments would color again: those that read
    something else, as the predictor's references are others than those by which the film ``output`` was colored. None
    where it would color all, as that film has other settings, or was not colored by us.

    It takes seconds, as it does not look at the film. Raises UserError as ``color_film`` does.
    """
    output, config = Path(output), part_of(config or FilmConfig(), FilmConfig)
    if isinstance(film, ImageSequence):
        return None
    parts = open_segment_store(predictor, film, output, FilmWriter(film.path, output, config), config)
    plan, held = parts.plan(), parts.held()
    if plan is None or not held:
        return None
    predictor = predictor.with_response(plan.response)
    shots = finished_shots(predictor, plan.requery_palettes(predictor), parts, config)
    return [number for number, (_, reading) in enumerate(shots) if reading is None or reading != held[number]]
