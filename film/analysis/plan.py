"""The Plan: the result of a film's analysis, from which it is colored; and the interface of predictors for films."""

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from colorizer.adaptation.fallback import FallbackFit
from colorizer.adaptation.film_response import FilmResponse
from colorizer.confidence import Confidence
from colorizer.predictor import Palette
from colorizer.warping.propagation import Anchor
from film.io.frame_index import FrameIndex
from film.io.interlacing import with_field_order
from film.io.planes import Box, Planes


class FilmPredictor(Protocol):
    """Interface of a predictor that colors films; implemented by ``colorizer.predictor.Predictor``."""

    source: str  # where colors come from: "memory", "integrator", "ground_truth", "reference" or "none"
    identity: str  # differs between predictors that may color differently
    base_identity: str = ""  # identity without references; "" if ``lookup_digest`` is not implemented

    @property
    def side(self) -> int:
        """Side in pixels of the square input pictures."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Plain values that determine ``identity``."""
        return {}

    def fit_response(self, lightness: Sequence[np.ndarray]) -> FilmResponse | None:
        """Return the film response estimated from frames, L float32 (H, W) in [0, 100]; None for the identity."""
        return None

    def with_response(self, response: FilmResponse | None) -> "FilmPredictor":
        """Return a predictor that is adapted to films with ``response``."""
        return self

    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        """Recall the palette of a shot from some of its frames, Lab float32 (side, side, 3)."""

    def predict(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence]:
        """Predict the colors of frames of a shot.

        Takes L float32 (N, side, side) in [0, 100]. Returns ab float32 (N, S, S, 2) in Lab units, for any S, and the
        confidence of the grid cells, arrays (N, G, G) for any G, or ``Confidence.unknown(N)``.
        """

    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette,
                                propagated: Callable[[int], np.ndarray] | None = None,
                                ) -> tuple[np.ndarray, Confidence, np.ndarray]:
        """Return the results of ``predict`` and the frame embeddings, int16 (N, D), for ``lookup_digest``.

        ``propagated`` maps the index of a frame to colors that were propagated from ``find_anchors``, if there are any.
        """
        return *self.predict(lightness, palette), np.zeros((len(lightness), 0), np.int16)

    def lock_colors(self, ab: np.ndarray, L: np.ndarray, active: Sequence[int]) -> np.ndarray:
        """Return the ab (S, S, 2) of a frame with lightness L (side, side) with the locked colors of palette files,
        given the ``named_colors`` of the palette of its shot."""
        return ab

    def find_anchors(self, signatures: np.ndarray, palette: Palette) -> list[Anchor]:
        """Find the pictures of the memory that show frames of a shot, given ``Plan.signatures`` of the shot."""
        return []

    @property
    def needs_whole_film(self) -> bool:
        """Whether shots cannot be colored before all shots of the film are known."""
        return False

    def requery_palettes(self, palettes: Sequence[Palette], signatures: Sequence[np.ndarray]) -> list[Palette]:
        """Return the palettes of all shots, given ``Plan.signatures`` of each, recalled again with the references of
        this predictor."""
        return list(palettes)

    def lookup_digest(self, palette: Palette, embeddings: np.ndarray) -> str:
        """Return a hash of everything that ``predict`` reads from the memories for frames with these embeddings.
        Predictors with the same ``base_identity`` and equal digests predict equal colors."""
        return ""


@dataclass
class Transition:
    """A gradual change from a shot to the next one. The last ``frames`` frames of the shot show both shots."""

    frames: int  # length in frames
    wipe: bool  # True: each pixel shows one of both shots (wipe, iris); False: a mixture of both (dissolve)
    next_lightness: np.ndarray  # L float16 (side, side) in [0, 100] of the first frame that shows only the next shot


@dataclass
class Shot:
    """A shot, frames [start, end) of a film, and the palette for coloring it."""

    start: int
    end: int
    palette: Palette
    in_color: bool  # whether the source is already in color
    box: Box | None = None  # the picture inside the letterbox; None: the whole frame
    transition: Transition | None = None  # into the next shot; None: a cut
    field_order: str = ""  # "tff" or "bff" of an interlaced shot
    is_flagged: bool = True  # whether its interlaced frames are flagged

    def with_fields(self, planes: Planes) -> Planes:
        """Return a frame of the shot with its field order if the file does not state it."""
        return with_field_order(planes, self.field_order, self.is_flagged)

    @property
    def transition_start(self) -> int:
        """First frame that also shows the next shot; ``end`` if a cut follows."""
        return self.end - (self.transition.frames if self.transition else 0)

    @property
    def middle(self) -> int:
        """The middle one of the frames that show only this shot."""
        return (self.start + self.transition_start) // 2

    def state(self) -> dict[str, Any]:
        """Return the shot as plain values and tensors."""
        transition = self.transition and {**vars(self.transition),
                                          "next_lightness": torch.from_numpy(self.transition.next_lightness)}
        return {**vars(self), "palette": tuple(self.palette), "transition": transition}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Shot":
        """Restore a shot from the result of ``state``."""
        transition = state["transition"]
        if transition:
            transition = Transition(**{**transition, "next_lightness": transition["next_lightness"].numpy()})
        return cls(**{**state, "palette": Palette(*state["palette"]), "transition": transition})


@dataclass
class Plan:
    """Result of the analysis of a film: timestamps, exposure, film response and shots."""

    pts: array  # int64 timestamp of each frame, in the time base of the film
    last_duration: int  # duration of the last frame, in the same time base
    shots: list[Shot]
    has_color: bool  # whether any shot is in color, so that ground truth exists
    exposure: np.ndarray  # float32 (n, 2), gain and offset of L for each frame, see film.analysis.exposure
    signatures: np.ndarray  # uint8 (n, h, h), see colorizer.warping.propagation
    response: FilmResponse | None = None  # film response of the source; None: that of the training frames
    checksums: array = field(default_factory=lambda: array("L"))  # ``luma_checksum`` of each frame
    fallback: FallbackFit | None = None  # of the colors of another program; None: there are none

    @property
    def index(self) -> FrameIndex:
        """What identifies the frames."""
        return FrameIndex(self.pts, self.checksums)

    def requery_palettes(self, predictor: FilmPredictor) -> "Plan":
        """Return a copy with palettes recalled again by ``predictor``, which may have different references."""
        signatures = [self.signatures[shot.start:shot.transition_start] for shot in self.shots]
        palettes = predictor.requery_palettes([shot.palette for shot in self.shots], signatures)
        return replace(self, shots=[replace(shot, palette=palette)
                                    for shot, palette in zip(self.shots, palettes, strict=True)])

    def shot_pts(self, shot: Shot) -> array:
        """Return the timestamps of the frames of a shot."""
        return self.pts[shot.start:shot.end]

    def shot_signature(self, number: int) -> list[Any]:
        """Return the plain values of the plan that the colors of a shot depend on, in addition to the film and the
        predictor."""
        shot, response = self.shots[number], self.response and self.response.state()
        following = self.shots[number + 1] if shot.transition else shot
        return [shot.start, shot.transition_start, shot.end, following.transition_start, shot.box, self.has_color,
                response, shot.field_order, shot.is_flagged, self.field_order,
                self.fallback and self.fallback.state()]

    @property
    def field_order(self) -> str:
        """Field order of most frames in interlaced shots; "" if there are none."""
        frames = Counter()
        for shot in self.shots:
            frames[shot.field_order] += shot.end - shot.start
        del frames[""]
        return frames.most_common(1)[0][0] if frames else ""

    def box(self, start: int, end: int) -> Box | None:
        """Return the smallest box that contains the pictures of frames [start, end); None: the whole frame."""
        first = bisect_right(self.shots, start, key=lambda shot: shot.end)
        last = bisect_left(self.shots, end, first, key=lambda shot: shot.end)
        boxes = {shot.box for shot in self.shots[min(first, len(self.shots) - 1):last + 1]}
        if None in boxes:
            return None
        top, bottom, left, right = zip(*boxes, strict=True)
        return min(top), max(bottom), min(left), max(right)

    def state(self) -> dict[str, Any]:
        """Return the plan as plain values and tensors."""
        return {**vars(self), "pts": torch.tensor(self.pts, dtype=torch.int64),
                "checksums": torch.tensor(self.checksums, dtype=torch.int64),
                "shots": [shot.state() for shot in self.shots], "exposure": torch.from_numpy(self.exposure),
                "signatures": torch.from_numpy(self.signatures),
                "response": self.response and self.response.state(),
                "fallback": self.fallback and self.fallback.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Plan":
        """Restore a plan from the result of ``state``."""
        return cls(**{**state, "pts": array("q", state["pts"].tolist()),
                      "checksums": array("L", state["checksums"].tolist()), "exposure": state["exposure"].numpy(),
                      "signatures": state["signatures"].numpy(),
                      "shots": [Shot.from_state(shot) for shot in state["shots"]],
                      "response": state["response"] and FilmResponse.from_state(state["response"]),
                      "fallback": state["fallback"] and FallbackFit.from_state(state["fallback"])})
