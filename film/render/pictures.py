"""Coloring of single pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from colorizer.metrics import has_color
from colorizer.predictor import Predictor
from colorizer.warping.upsampling import upsample_colors
from dataset import lab_to_rgb, resize, rgb_to_lab
from fileio.images import read_deep_image, write_image
from fileio.outputs import accompanying_path
from film.analysis.screentone import without_screen
from film.io.chroma import ab_to_chroma
from film.io.image_sequence import write_colored_frame
from film.io.planes import planes_from_rgb
from film.io.thread_pool import coloring_threads, map_in_order
from film.render.fallback import PictureFallback
from film.render.rendering import check_ground_truth
from film.report.confidence_video import confidence_map, tint_grayscale
from film.report.evaluation import Evaluation
from utils import UserError, warn

CONFIDENCE_MAP = "confidence.png"  # ``accompanying_path`` name of the confidence map of a picture


class ColoredPicture(NamedTuple):
    """A colored picture, RGB uint8 (H, W, 3) each."""

    source: np.ndarray
    result: np.ndarray
    fallback_share: float | None = None  # share of the area with colors of another program; None: it has none


def color_picture(predictor: Predictor, source: Path, target: Path, with_map: bool,
                  fallback: PictureFallback | None = None) -> ColoredPicture | None:
    """Color the picture ``source`` into ``target``, and write its confidence map if ``with_map`` is True.

    If the picture cannot be read, warns and returns None.
    """
    try:
        image = read_deep_image(source)
    except UserError as error:
        warn(f"{error}; skipped")
        return None
    planes = None if image.depth == 8 else planes_from_rgb(image.rgb, image.depth)
    picture = image.rgb if planes is None else planes.rgb_uint8()
    check_ground_truth(predictor, has_color(picture), source)
    lab = (rgb_to_lab(picture) if planes is None else
           cv2.cvtColor(planes.rgb(*planes.y.shape), cv2.COLOR_RGB2Lab))
    (ab,), confidence = predictor.predict_ab([_network_input(lab, predictor.side)])
    share = None
    if fallback:
        ab, share = fallback.blend(source, lab[..., 0], ab, next(confidence.per_picture()))
    ab = predictor.lock_colors(ab, lab[..., 0])
    if planes is None:
        lab[..., 1:] = upsample_colors(ab, lab[..., 0])
        result = lab_to_rgb(lab)
        write_image(target, result)
    else:
        height, width = planes.y.shape
        cb, cr = ab_to_chroma(planes, ab, height, width, planes.encoding)
        planes = planes._replace(cb=cb, cr=cr)
        write_colored_frame(target, planes, source)
        result = planes.rgb_uint8()
    if with_map:
        colors = confidence_map(next(confidence.per_picture()))
        write_image(accompanying_path(target, CONFIDENCE_MAP),
                    tint_grayscale(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), colors))
    return ColoredPicture(picture, result, share)


def _network_input(lab, side):
    """Return a picture, Lab (H, W, 3), or its reduced version without screentone if it has any."""
    small = resize(lab, side, side)
    L = small[..., 0]
    if (smoothed := without_screen(L)) is L:
        return lab
    small[..., 0] = smoothed
    return small


def read_colored_picture(source: Path, target: Path) -> ColoredPicture | None:
    """Return what ``color_picture`` returned when it wrote ``target``; None if a file cannot be read."""
    try:
        source_image, target_image = read_deep_image(source), read_deep_image(target)
    except UserError as error:
        warn(f"{error}; not measured")
        return None
    picture, result = (image.rgb if image.depth == 8 else planes_from_rgb(image.rgb, image.depth).rgb_uint8()
                       for image in (source_image, target_image))
    return ColoredPicture(picture, result)


def color_pictures(predictor: Predictor, pairs: Sequence[tuple[Path, Path]], evaluation: Evaluation, with_map: bool,
                   overwrite: bool, fallback: Path | None = None) -> tuple[int, list[float | None]]:
    """Color and evaluate pictures, given ``pairs`` of (input, output); return the number of colored pictures and the
    ``fallback_share`` of each.

    Existing outputs are evaluated, but replaced only with ``overwrite``. Unreadable pictures are skipped. Raises
    UserError if no picture can be read.
    """
    count, shares = 0, []
    other = PictureFallback(fallback, predictor, [source for source, _ in pairs]) if fallback else None

    def color_and_measure(pair):
        source, target = pair
        is_kept = target.exists() and not overwrite
        pictures = read_colored_picture(*pair) if is_kept else color_picture(
            predictor, source, target, with_map, other)
        if pictures is not None and not is_kept:
            shares.append(pictures.fallback_share)
        return pictures is not None and not is_kept, pictures and evaluation.measure(*pictures[:2])

    with coloring_threads() as pool:
        results = map_in_order(pool, color_and_measure, pairs)
        for _, (is_colored, measured) in tqdm(results, total=len(pairs), unit="picture", disable=None):
            evaluation.add(measured)
            count += is_colored
    if not count:
        raise UserError(f"no picture could be read in {pairs[0][0].parent}")
    return count, shares
