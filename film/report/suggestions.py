"""Selection of the frames that are most worth coloring by hand, and their pictures."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fileio.images import write_image
from film.io.thread_pool import coloring_threads, map_in_order
from film.io.frame_index import FrameIndex, frames_at
from film.io.video import Film
from film.report.records import ShotRecord


@dataclass
class SuggestionConfig:
    """Constants of ``suggest_frames``."""

    # Similarity of two shots is cosine^power: larger values let a frame help fewer shots. Embeddings of frames of one
    # shot have cosines of 0.8 to 1 (0.2 to 1 to the power of 8), three in four pairs of shots less than 0.65 (0.03).
    power: int = 8
    min_gain: float = 0.005  # minimum share of the film's uncertainty that a suggested frame removes
    helped_gain: float = 0.25  # minimum increase of the best similarity of a shot that counts as helped


@dataclass
class Suggestion:
    """A frame worth coloring by hand: the middle frame of ``shot``."""

    shot: ShotRecord
    gain: float  # share of the film's uncertainty that it removes after the suggestions before it
    helped: list[int]  # indices of the shots that it helps, including its own; most helped first

    @property
    def frame(self) -> int:
        """Index of the frame in the film; with --start, counted from there."""
        return self.shot.middle

    @property
    def file_name(self) -> str:
        return f"shot_{self.shot.index + 1}_frame_{self.frame}.png"


def suggest_frames(records: Sequence[ShotRecord], count: int = 10,
                   config: SuggestionConfig | None = None) -> list[Suggestion]:
    """Return up to ``count`` frames that would reduce the uncertainty the most if colored by hand, best first; fewer if
    no further frame gains more than ``min_gain``.

    The uncertainty of a shot is its number of frames * (1 - confidence). A greedy cover (facility location; Nemhauser,
    Wolsey and Fisher 1978) maximizes the sum over shots of uncertainty * similarity to the most similar chosen frame,
    so that one frame is chosen for many similar shots.
    """
    config = config or SuggestionConfig()
    embeddings, uncertainty, indices = zip(
        *((r.embedding, r.frames * (1 - r.known_confidence), r.index) for r in records), strict=True)
    embeddings, uncertainty = np.stack(embeddings).astype(np.float32), np.array(uncertainty)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    similarity = (embeddings @ embeddings.T).clip(0, 1) ** config.power  # (shots, candidates)
    covered, suggestions = np.zeros(len(records), np.float32), []
    while len(suggestions) < count:
        increase = (similarity - covered[:, None]).clip(min=0)
        gain = uncertainty @ increase
        best = int(gain.argmax())
        if gain[best] <= config.min_gain * uncertainty.sum():
            break
        helped = [indices[i] for i in np.argsort(-uncertainty * increase[:, best], kind="stable")
                  if increase[i, best] >= config.helped_gain and uncertainty[i] > 0]
        suggestions.append(Suggestion(records[best], float(gain[best] / uncertainty.sum()), helped))
        covered = np.maximum(covered, similarity[:, best])
    return suggestions


def write_suggested_frames(folder: Path, film: Film, times: Sequence[int], suggestions: Iterable[Suggestion]) -> None:
    """Write the suggested frames of ``film`` into ``folder`` as grayscale pictures without letterbox.

    ``times`` are the pts of all colored frames. Existing files are kept, since the user may have colored them.
    """
    missing = {suggestion.frame: suggestion for suggestion in suggestions
               if not (folder / suggestion.file_name).exists()}

    def write(frame):
        index, planes = frame
        planes = planes.crop(missing[index].shot.box)
        write_image(folder / missing[index].file_name, planes.gray_uint8(*planes.y.shape))

    with coloring_threads() as pool, closing(frames_at(film, FrameIndex(times), sorted(missing))) as frames:
        for _ in map_in_order(pool, write, frames):
            pass
