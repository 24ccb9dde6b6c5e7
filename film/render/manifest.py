"""The manifest of a colored film: all that its content depends on, as a JSON file that people can read.

Settings that do not change the film (OPERATIONAL, threads, reports) are stored apart, so a run may be repeated with
other ones.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import torch

from colorizer.warping.in_betweens import InBetweenConfig
from config import FilmConfig
from fileio.atomic import atomic_write
from film.analysis.film_analysis import ANALYSIS_VERSION
from film.analysis.plan import FilmPredictor, Plan
from film.io.encoding import EncodingTarget
from film.io.video import Film
from film.render.fallback import open_fallback

FORMAT = 29  # version of the files of a SegmentStore and of the coloring; files of a different version are not used
OPERATIONAL = ("batch_size", "confidence")  # fields of FilmConfig
DERIVED = ("predictor", "encoding")  # entries that change with others, which say more
MAX_SHOWN = 20  # characters of a value that an explanation shows; longer ones are hashes and lists


@dataclass(frozen=True)
class Manifest:
    """``content`` is nested plain values that all shots depend on.

    ``operation`` has the settings that do not change the film, and references and palette, which are part of the
    digest of each shot.
    """

    content: dict[str, Any]
    operation: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of the content."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    def save(self, path: Path, plan: Plan) -> None:
        """Write the manifest, with the first and the last frame of each shot of ``plan``."""
        shots = [[shot.start, shot.end - 1] for shot in plan.shots]
        text = json.dumps({**self.content, "operation": self.operation}, indent=2)
        with atomic_write(path) as temporary:
            temporary.write_text(f'{text[:-2]},\n  "shots": {json.dumps(shots)}\n}}\n')

    @classmethod
    def load(cls, path: Path) -> "Manifest | None":
        """Load a manifest; None if it is missing or damaged."""
        try:
            content = json.loads(path.read_text())
            del content["shots"]
            return cls(content, content.pop("operation"))
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def changes(self, earlier: "Manifest") -> str:
        """Describe what differs from an earlier manifest, "" if nothing does: "crf was 16 and is 20"."""
        before, now = (dict(_leaves(each.content)) for each in (earlier, self))
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        names = [name for name in names if name not in DERIVED] or names
        return " and ".join(_describe(name, before.get(name), now.get(name)) for name in names)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, key)
    else:
        yield name, value


def _describe(name, before, now):
    if max(len(str(before)), len(str(now))) > MAX_SHOWN:
        return f"{name} has changed"
    return f"{name} was {before} and is {now}"


def film_manifest(predictor: FilmPredictor, film: Film, target: EncodingTarget, config: FilmConfig,
                  updates_shots: bool, overwrite: bool) -> Manifest:
    """Return the manifest of ``film`` colored by ``predictor``.

    References and palette are left out if the output ``updates_shots``, since they are part of each ``shot_digest``
    then.
    """
    settings, provenance = asdict(config), dict(predictor.provenance)
    fallback = open_fallback(film, config)
    settings["fallback"] = fallback and fallback.fingerprint()
    settings["end"] = None if math.isinf(config.end) else config.end  # JSON has no infinity
    operation = {**{name: settings.pop(name) for name in OPERATIONAL}, "overwrite": overwrite}
    identity = predictor.identity
    if updates_shots:
        identity = predictor.base_identity
        operation["references"] = provenance.pop("references", [])
        operation["palette"] = provenance.pop("palette", "")
    versions = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    content = {"format": FORMAT, "film": film.fingerprint(), "predictor": identity, **provenance, "settings": settings,
               "encoding": repr(target), "analysis": ANALYSIS_VERSION, "keyframes": asdict(InBetweenConfig()),
               "versions": {"torch": torch.__version__, "opencv": cv2.__version__, **versions}}
    return Manifest(json.loads(json.dumps(content, default=str)), operation)
