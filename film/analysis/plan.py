"""What is known of a film before it is colored? Its shots with their palettes, how it is encoded, what paints it."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from colorizer.adaptation.film_response import FilmResponse
from colorizer.confidence import Confidence
from colorizer.predictor import Palette
from film.io.planes import Box


class FilmPredictor(Protocol):
    """What paints a film; ``colorizer.predictor.Predictor`` does. One that says nothing of responses has none."""

    source: str  # where its colors come from: "memory", "integrator", "ground_truth", "reference" or "none"
    identity: str  # differs for every predictor that colors differently
    base_identity: str = ""  # its identity before references were added; "" where it cannot tell what it reads of them

    @property
    def side(self) -> int:
        """Pixels along a side of the square pictures that it wants."""

    def fit_response(self, lightness: Sequence[np.ndarray]) -> FilmResponse | None:
        """How the gray of a film differs from what is known, by some of its frames, L float32 (h, w) in [0, 100] each;
        None where it does not, clearly."""
        return None

    def with_response(self, response: FilmResponse | None) -> "FilmPredictor":
        """What paints a film with that Response."""
        return self

    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        """The colors of a shot, by some of its frames, Lab float32 (side, side, 3) each."""

    def predict(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence]:
        """Frames of a shot, L float32 (n, side, side) in [0, 100] -> ab float32 (n, S, S, 2) in Lab units, of any S,
        and what is Known of their places, arrays (n, G, G) of any G, nan if nothing is (``Confidence.unknown(n)``)."""

    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence, np.ndarray]:
        """``predict``, and what the frames look like to the predictor, int16 (n, D) of any D, for ``lookup_digest``."""
        return *self.predict(lightness, palette), np.zeros((len(lightness), 0), np.int16)

    def requery_palette(self, palette: Palette) -> Palette:
        """The palette of the same frames as another one, which was chosen with other references."""
        return palette

    def lookup_digest(self, palette: Palette, looks: np.ndarray) -> str:
        """A hash of all that ``predict`` reads of references and of what else is known, for frames of a shot of these
        looks by this palette: where it is the same, of predictors of one ``base_identity``, so are their colors."""
        return ""


@dataclass
class Transition:
    """A gradual change from a shot to the next one. The last ``frames`` frames of the shot show both."""

    frames: int  # length in frames
    wipe: bool  # True: each pixel shows one of both shots (wipe, iris); False: a mixture of both (dissolve)
    next_lightness: np.ndarray  # L float16 (side, side) in [0, 100] of the first frame that shows only the next shot


@dataclass
class Shot:
    """Frames [start, end) of a film, and the palette that they are colored with."""

    start: int
    end: int
    palette: Palette
    in_color: bool  # whether the source is already in color
    box: Box | None = None  # the picture inside of the letterbox; None: the whole frame
    transition: Transition | None = None  # into the next shot; None: a cut

    @property
    def transition_start(self) -> int:
        """First frame that also shows the next shot; ``end`` if a cut follows."""
        return self.end - (self.transition.frames if self.transition else 0)

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
    """Result of the first pass over a film: timestamps, exposure, film response and shots."""

    pts: array  # int64 timestamp of each frame, in the time base of the film
    last_duration: int  # duration of the last frame, in the same time base
    shots: list[Shot]
    has_color: bool  # whether any sampled frame is in color, so that ground truth exists
    exposure: np.ndarray  # float32 (n, 2), gain and offset of L for each frame, see film.analysis.exposure
    response: FilmResponse | None = None  # film response of the source; None: that of the training frames

    def requery_palettes(self, predictor: FilmPredictor) -> "Plan":
        """Return a copy with the palettes that ``predictor``, which may have other references, recalls."""
        return replace(self, shots=[replace(shot, palette=predictor.requery_palette(shot.palette))
                                    for shot in self.shots])

    def shot_pts(self, shot: Shot) -> array:
        """Return the timestamps of the frames of a shot."""
        return self.pts[shot.start:shot.end]

    def shot_signature(self, number: int) -> list[Any]:
        """Return plain values that are equal if a shot is colored from the same frames in the same way, given the same
        film and predictor."""
        shot, response = self.shots[number], self.response and self.response.state()
        following = self.shots[number + 1] if shot.transition else shot
        return [shot.start, shot.transition_start, shot.end, following.transition_start, shot.box, self.has_color,
                response]

    def box(self, start: int, end: int) -> Box | None:
        """Return the smallest box around the pictures of frames [start, end); None is the whole frame."""
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
                "shots": [shot.state() for shot in self.shots], "exposure": torch.from_numpy(self.exposure),
                "response": self.response and self.response.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Plan":
        """Restore a plan from the result of ``state``."""
        return cls(**{**state, "pts": array("q", state["pts"].tolist()), "exposure": state["exposure"].numpy(),
                      "shots": [Shot.from_state(shot) for shot in state["shots"]],
                      "response": state["response"] and FilmResponse.from_state(state["response"])})
