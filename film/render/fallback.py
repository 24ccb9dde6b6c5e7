"""Colors of another program for the frames of a film and for pictures: checks, the fit, and the colors of each."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from colorizer.adaptation.fallback import (
    FallbackBlender, FallbackConfig, FallbackFit, Sample, fit_fallback, lightness_correlation)
from colorizer.confidence import Confidence
from colorizer.metrics import has_color
from colorizer.predictor import Predictor
from config import FilmConfig
from dataset import resize, rgb_to_lab
from fileio.images import read_image
from film.analysis.exposure import normalize_exposure
from film.analysis.plan import FilmPredictor, Plan, Shot
from film.io.fallback import FallbackReader, find_fallback, find_fallback_picture
from film.io.frame_index import frames_at
from film.io.planes import Box, Planes
from film.io.video import Film
from utils import UserError, evenly_spaced, warn

CHECKED_FRAMES = 8  # evenly spaced frames that are compared with the film before it is analyzed


def open_fallback(film: Film, config: FilmConfig) -> Film | None:
    """Return the fallback of a film, None if there is none. Raises UserError as ``find_fallback`` does."""
    return find_fallback(config.fallback, film) if config.fallback else None


def check_fallback(fallback: Film, film: Film, output: Path, config: FilmConfig) -> None:
    """Raise UserError if ``fallback`` cannot serve ``film``: it is the film itself or its output, has no color, shows
    other pictures, or has no frame between --start and --end."""
    if fallback.fingerprint() == film.fingerprint():
        raise UserError(f"the fallback {fallback.path} is the input itself; pass a version colored by another program")
    if fallback.is_overwritten_by(output):
        raise UserError(f"the fallback {fallback.path} would be overwritten; pass another --output")
    with closing(FallbackReader(fallback, film)) as others, closing(FallbackReader(film, film)) as frames:
        first, last = map(float, others.span())
        stated = float(film.info.stated_frames / film.info.rate)
        begin, end = max(config.start, first), min(config.end, last, stated or last)
        pairs = []
        if begin < end:
            for time in np.linspace(begin, end, CHECKED_FRAMES + 2)[1:-1]:
                pts = round((float(frames.origin) + time) / film.info.time_base)
                pairs.append((frames.frame(pts), others.frame(pts)))
    found = [(planes, other) for planes, other in pairs if planes is not None and other is not None]
    if not found:
        raise UserError(f"no frame of the fallback {fallback.path} has the time of a frame of {film.path}; times count "
                        "from the first frame of each, so pass a version of the whole film")
    pictures = [other.rgb_uint8(192, 192) for _, other in found]
    if not any(map(has_color, pictures)):
        raise UserError(f"the fallback {fallback.path} is grayscale; pass a version in color")
    correlation = np.median([lightness_correlation(planes.lightness(192), picture)
                             for (planes, _), picture in zip(found, pictures, strict=True)])
    if correlation < FallbackConfig.min_correlation:
        raise UserError(f"the fallback {fallback.path} shows other pictures than {film.path} at the same times; pass a "
                        "version of the whole film, with the same first frame")


class FilmFallback:
    """The colors of a fallback for the frames of a film with a plan."""

    @classmethod
    def open(cls, film: Film, plan: Plan, config: FilmConfig) -> "FilmFallback | None":
        """Return the fallback that ``plan`` was made with, or None."""
        fallback = open_fallback(film, config)
        return cls(fallback, film, plan, plan.fallback) if fallback and plan.fallback else None

    def __init__(self, fallback: Film, film: Film, plan: Plan, fit: FallbackFit) -> None:
        self.reader, self.plan, self.fit, self.size = FallbackReader(fallback, film), plan, fit, FallbackConfig.size

    def picture(self, index: int, shot: Shot, size: tuple[int, ...]) -> np.ndarray | None:
        """Return the fallback of frame ``index`` inside the letterbox, RGB uint8, or None. ``size`` is the (height,
        width) of the film's frames."""
        planes = self.reader.frame(self.plan.pts[index])
        if planes is None:
            return None
        return planes.crop(_scale_box(shot.box, size, planes)).rgb_uint8(self.size, self.size)

    def colors(self, index: int, shot: Shot, size: tuple[int, ...]) -> np.ndarray | None:
        """Return the graded ab, float16 (h, w, 2), of ``picture`` at the normal exposure of the shot, or None."""
        picture = self.picture(index, shot, size)
        if picture is None:
            return None
        return (self.fit.colors(picture) * self.plan.exposure[index, 0]).astype(np.float16)

    def close(self) -> None:
        """Stop decoding."""
        self.reader.close()


def _scale_box(box: Box | None, size: tuple[int, ...], planes: Planes) -> Box | None:
    """Return the box of frames with (height, width) ``size`` in a frame of another size, at even pixels."""
    if box is None:
        return None
    (height, width), (rows, columns) = size, planes.y.shape
    top, bottom = (2 * round(side * rows / height / 2) for side in box[:2])
    left, right = (2 * round(side * columns / width / 2) for side in box[2:])
    return top, min(bottom, rows), left, min(right, columns)


def fit_film_fallback(fallback: Film, film: Film, plan: Plan, predictor: FilmPredictor) -> FallbackFit:
    """Estimate the grade and the error of a fallback from the middle frames of some shots of the film."""
    config, samples = FallbackConfig(), []
    middles = [shot.middle for shot in plan.shots]
    chosen = evenly_spaced(len(middles), config.sampled_frames)
    with (closing(FilmFallback(fallback, film, plan, FallbackFit())) as colors,
          closing(frames_at(film, plan.index, (middles[number] for number in chosen))) as frames):
        for number, (index, planes) in zip(chosen, frames, strict=True):
            shot = plan.shots[number]
            picture = colors.picture(index, shot, planes.y.shape)
            if picture is not None:
                L = normalize_exposure(shot.with_fields(planes).crop(shot.box).lightness(predictor.side),
                                       plan.exposure[index])
                ab, confidence = predictor.predict(L[None], shot.palette)
                samples.append(Sample(L, ab[0], next(confidence.per_picture()), picture))
    return fit_fallback(samples, config)


class PictureFallback:
    """The colors of another program for single pictures, in a folder of equally named ones or in one file."""

    def __init__(self, path: Path, predictor: Predictor, sources: Sequence[Path]) -> None:
        """Fit the fallback to some of the pictures ``sources``.

        Raises UserError if a picture is its own fallback, or if all fallbacks are grayscale.
        """
        self.path, self.fit, samples = path, FallbackFit(), []
        found = [source for source in sources if find_fallback_picture(path, source)]
        for number in evenly_spaced(len(found), FallbackConfig.sampled_frames):
            picture, other = found[number], self.read(found[number])
            try:
                lab = rgb_to_lab(read_image(picture))
            except UserError:  # reported when the picture is colored
                continue
            if other is not None:
                ab, confidence = predictor.predict_ab([lab])
                L, other = (resize(each, FallbackConfig.size, FallbackConfig.size) for each in (lab[..., 0], other))
                samples.append(Sample(L, ab[0], next(confidence.per_picture()), other))
        if samples and not any(has_color(sample.fallback) for sample in samples):
            raise UserError(f"the fallback {path} is grayscale; pass a version in color")
        self.fit = fit_fallback(samples, FallbackConfig())

    def read(self, source: Path) -> np.ndarray | None:
        """Return the fallback of the picture ``source``, RGB uint8 of any size; None, with a warning, if it cannot be
        read. Raises UserError if it is ``source`` itself."""
        other = find_fallback_picture(self.path, source)
        if other is None:
            return None
        if other.samefile(source):
            raise UserError(f"the fallback {other} is the input itself; pass a version colored by another program")
        try:
            return read_image(other)
        except UserError as error:
            warn(f"{error}; {source} is colored without a fallback")
            return None

    def blend(self, source: Path, L: np.ndarray, ab: np.ndarray,
              confidence: Confidence) -> tuple[np.ndarray, float | None]:
        """Return the result of ``FallbackBlender`` for the picture ``source``; the share is None if there is no
        fallback for it."""
        other = self.read(source)
        if other is None:
            return ab, None
        size = FallbackConfig.size
        return FallbackBlender(self.fit)(L, ab, confidence, self.fit.colors(resize(other, size, size)))
