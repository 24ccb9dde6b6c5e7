"""Incremental rendering: finds the shots of a colored film whose colors change when the references change.

The colors of a shot depend on what the memories return for its frame embeddings. The embeddings are stored, so the
lookups can be repeated without decoding the film. If their results are bitwise equal, the colors do not change.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from config import FilmConfig, part_of
from film.analysis.plan import FilmPredictor, Plan
from film.io.image_sequence import ImageSequence
from film.io.video import Film
from film.render.manifest import film_manifest
from film.render.pipeline import shot_anchors
from film.render.segments import SegmentStore, read_completion
from film.render.writers import FilmWriter, Writer
from utils import single_torch_thread


def open_segment_store(predictor: FilmPredictor, film: Film, output: Path, writer: Writer, config: FilmConfig,
                       overwrite: bool = False) -> SegmentStore:
    """Return the SegmentStore of a film with its manifest."""
    updates_shots = writer.single_file and bool(predictor.base_identity)
    return SegmentStore(output, film_manifest(predictor, film, writer.target, config, updates_shots, overwrite))


def shot_digest(predictor: FilmPredictor, plan: Plan, index: int, embeddings: np.ndarray, config: FilmConfig) -> str:
    """Return the lookup digest of a shot, a hash of everything that its colors depend on; "" if it stays unchanged.

    ``embeddings``, int16 (n, D), are those of its frames that are neither held nor in a transition. If the shot ends in
    a transition, the last row belongs to the first frame of the next shot. The palettes of the plan must have been
    recalled by ``predictor``.
    """
    shot = plan.shots[index]
    if config.keep_color_shots and shot.in_color:
        return ""
    anchors = "".join(f"{anchor.frame} {anchor.digest.hex()} " for anchor in shot_anchors(predictor, plan, index))
    if shot.transition is None:
        return anchors + predictor.lookup_digest(shot.palette, embeddings)
    return (anchors + predictor.lookup_digest(shot.palette, embeddings[:-1])
            + predictor.lookup_digest(plan.shots[index + 1].palette, embeddings[-1:]))


def load_all_shots(predictor: FilmPredictor, plan: Plan, segments: SegmentStore,
                   config: FilmConfig) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
    """Yield, for each shot, its stored state (``SegmentStore.load_shot``) and its ``shot_digest``, recomputed with
    ``predictor``; (None, None) for an unfinished shot.
    """
    for index in range(len(plan.shots)):
        stored = segments.load_shot(plan, index)
        yield stored, (None if stored is None else
                       shot_digest(predictor, plan, index, stored["embeddings"], config))


def can_update(predictor: FilmPredictor, film: Film, output: Path, config: FilmConfig) -> bool:
    """Return whether a film was colored with different references and can be updated shot by shot."""
    completion = read_completion(output)
    if isinstance(film, ImageSequence) or completion is None or completion.predictor == predictor.identity:
        return False
    return _open(predictor, film, output, part_of(config, FilmConfig)).load_plan() is not None


@single_torch_thread()
def find_changed_shots(predictor: FilmPredictor, film: Film, output: str | Path,
                       config: FilmConfig | None = None) -> list[int] | None:
    """Return the indices of the shots that ``color_film``, called with the same arguments, would color again.

    Returns None if it would color all shots: for an image sequence, or if ``output`` does not exist, was colored with
    different settings, or was written by another program. The film is not decoded, so this takes only seconds. Raises
    UserError as ``color_film`` does.
    """
    output, config = Path(output), part_of(config or FilmConfig(), FilmConfig)
    if isinstance(film, ImageSequence):
        return None
    segments = _open(predictor, film, output, config)
    plan, joined = segments.load_plan(), segments.joined_digests()
    if plan is None or not joined:
        return None
    predictor = predictor.with_response(plan.response)
    shots = load_all_shots(predictor, plan.requery_palettes(predictor), segments, config)
    return [index for index, (_, digest) in enumerate(shots) if digest is None or digest != joined[index]]


def _open(predictor, film, output, config):
    return open_segment_store(predictor, film, output, FilmWriter(film, output, config), config)
