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

    source: str  # where its colors come from: "memory", "integrator", "truth", "reference" or "none"
    identity: str  # differs for every painter that colors differently
    origin: str = ""  # its identity before references were added; "" where it cannot tell what it reads of them

    @property
    def side(self) -> int:
        """Pixels along a side of the square pictures that it wants."""

    def respond(self, lightness: Sequence[np.ndarray]) -> FilmResponse | None:
        """How the gray of a film differs from what is known, by some of its frames, L float32 (h, w) in [0, 100] each;
        None where it does not, clearly."""
        return None

    def through(self, response: FilmResponse | None) -> "FilmPredictor":
        """What paints a film with that Response."""
        return self

    def palette(self, labs: Sequence[np.ndarray]) -> Palette:
        """The colors of a shot, by some of its frames, Lab float32 (side, side, 3) each."""

    def paint(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence]:
        """Frames of a shot, L float32 (n, side, side) in [0, 100] -> ab float32 (n, S, S, 2) in Lab units, of any S,
        and what is Known of their places, arrays (n, G, G) of any G, nan if nothing is (``Known.nothing(n)``)."""

    def predict_with_embeddings(self, lightness: np.ndarray, palette: Palette) -> tuple[np.ndarray, Confidence, np.ndarray]:
        """``paint``, and what the frames look like to the painter, int16 (n, D) of any D, for ``reading``."""
        return *self.paint(lightness, palette), np.zeros((len(lightness), 0), np.int16)

    def requery_palette(self, palette: Palette) -> Palette:
        """The palette of the same frames as another one, which was chosen with other references."""
        return palette

    def reading(self, palette: Palette, looks: np.ndarray) -> str:
        """A hash of all that ``paint`` reads of references and of what else is known, for frames of a shot of these
        looks by this palette: where it is the same, of painters of one ``origin``, so are their colors."""
        return ""


@dataclass
class Blend:
    """How a shot becomes the next one: its last frames show both."""

    frames: int  # how many
    wipe: bool  # whether each place shows one of both, not a mixture
    following: np.ndarray  # L (side, side), float16 in [0, 100], of the first frame that shows the next shot alone


@dataclass
class Shot:
    """Frames [start, end) of the film and what they are colored by."""

    start: int
    end: int
    palette: Palette
    in_color: bool  # already; keep_color_shots leaves it as it is
    box: Box | None = None  # what is colored, without the bars; None is all
    blend: Blend | None = None

    @property
    def alone(self) -> int:
        """End of the frames that show this shot alone."""
        return self.end - (self.blend.frames if self.blend else 0)

    def state(self) -> dict[str, Any]:
        """The shot as plain values and tensors."""
        blend = self.blend and {**vars(self.blend), "following": torch.from_numpy(self.blend.following)}
        return {**vars(self), "palette": tuple(self.palette), "blend": blend}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Shot":
        """The inverse of ``state``."""
        blend = state["blend"] and Blend(**{**state["blend"], "following": state["blend"]["following"].numpy()})
        return cls(**{**state, "palette": Palette(*state["palette"]), "blend": blend})


@dataclass
class Plan:
    """What the first pass over a film found: the time and the light of every frame, and the shots with what is colored
    of them."""

    pts: array  # of int64, in the film's time base
    last_duration: int  # of the last frame
    shots: list[Shot]
    has_color: bool  # whether any frame that was sampled has, so that there is a truth
    light: np.ndarray  # (n, 2) float32, gain and offset of L of each frame, see film/analysis/exposure.py
    response: FilmResponse | None = None  # through which it is looked at

    def by(self, painter: FilmPredictor) -> "Plan":
        """The same plan with the palettes that ``painter``, which may have other references, recalls."""
        return replace(self, shots=[replace(shot, palette=painter.requery_palette(shot.palette)) for shot in self.shots])

    def times(self, shot: Shot) -> array:
        """The pts of the frames of a Shot."""
        return self.pts[shot.start:shot.end]

    def outline(self, number: int) -> list[Any]:
        """Plain values of a shot, on which alone it depends what it is colored by, and its record, for one film and one
        painter."""
        shot, response = self.shots[number], self.response and self.response.state()
        following = self.shots[number + 1] if shot.blend else shot
        return [shot.start, shot.alone, shot.end, following.alone, shot.box, self.has_color, response]

    def box(self, start: int, end: int) -> Box | None:
        """What is colored of any of the frames [start, end); None is all."""
        first = bisect_right(self.shots, start, key=lambda shot: shot.end)
        last = bisect_left(self.shots, end, first, key=lambda shot: shot.end)
        boxes = {shot.box for shot in self.shots[min(first, len(self.shots) - 1):last + 1]}
        if None in boxes:
            return None
        top, bottom, left, right = zip(*boxes, strict=True)
        return min(top), max(bottom), min(left), max(right)

    def state(self) -> dict[str, Any]:
        """The plan as plain values and tensors."""
        shots = [shot.state() for shot in self.shots]
        response = self.response and self.response.state()
        return {"pts": torch.tensor(self.pts, dtype=torch.int64), "last_duration": self.last_duration, "shots": shots,
                "has_color": self.has_color, "light": torch.from_numpy(self.light), "response": response}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Plan":
        """The inverse of ``state``."""
        shots = [Shot.of(shot) for shot in state["shots"]]
        response = state["response"] and FilmResponse.of(state["response"])
        return cls(array("q", state["pts"].tolist()), state["last_duration"], shots, state["has_color"],
                   state["light"].numpy(), response)
