"""Tests of color replacement on drawings of known colors and in a film, and of the palette."""

import av
import cv2
import numpy as np
import pytest
import torch
from drawn import planes_in

from resources.draw_episodes import draw_frame

from colorizer.confidence import Confidence
from colorizer.metrics import color_differences
from colorizer.predictor import Palette
from config import FilmConfig
from dataset import lab_to_rgb, rgb_to_lab
from colorizer.series_colors import hex_to_lab
from editing.recolor import ColorChange, RecoloringPredictor, replace_colors
from film.analysis.plan import FilmPredictor
from film.io.video import VideoFile
from film.render.rendering import color_film
from utils import UserError

RED, BLUE = "#d02838", "#3060c0"
OTHERS = {"skin": "#e8b898", "brown": "#6a3a28", "orange": "#e8883a", "pink": "#f0a0a8"}  # near the red


def scene():
    """Return an anti-aliased red ball with a shaded side before of the OTHERS, RGB uint8 (96, 128, 3), and its mask."""
    rgb = np.zeros((96 * 8, 128 * 8, 3), np.uint8)
    for number, color in enumerate(OTHERS.values()):
        rgb[:, 256 * number:256 * (number + 1)] = list(bytes.fromhex(color[1:]))
    mask = cv2.circle(np.zeros(rgb.shape[:2], np.uint8), (460, 400), 230, 1, -1)
    lab = rgb_to_lab(rgb)
    lab[mask > 0] = hex_to_lab(RED)
    dark = cv2.circle(np.zeros_like(mask), (530, 450), 120, 1, -1) > 0
    lab[dark] *= 0.8
    return lab_to_rgb(cv2.resize(lab, (128, 96), interpolation=cv2.INTER_AREA)), cv2.resize(
        mask.astype(np.float32), (128, 96), interpolation=cv2.INTER_AREA)


def test_only_the_old_color_is_replaced_with_soft_edges():
    rgb, mask = scene()
    lab = rgb_to_lab(rgb)
    ab = replace_colors(lab[..., 1:], lab[..., 0], [ColorChange(RED, BLUE)])
    after = np.dstack([lab[..., 0], ab])
    difference = color_differences(after, lab)
    assert np.quantile(difference[mask == 0], 0.999) < 1 and difference[mask == 0].max() < 1.5
    hue = np.arctan2(*ab[mask == 1].T[::-1])
    assert np.abs(hue - np.arctan2(*hex_to_lab(BLUE)[:0:-1])).max() < 0.1  # also on the shaded side
    part = np.linalg.norm(ab - lab[..., 1:], axis=-1) / np.linalg.norm(hex_to_lab(BLUE)[1:] - hex_to_lab(RED)[1:])
    edge = (mask > 0.3) & (mask < 0.7)
    assert edge.sum() > 20 and np.median(np.abs(part - mask)[edge]) < 0.25  # tolerance for the shaded side
    assert part[edge].max() < 1 and part[edge].min() > 0.05


def test_two_colors_can_be_swapped():
    rgb, mask = scene()
    lab = rgb_to_lab(rgb)
    swap = [ColorChange(RED, OTHERS["orange"]), ColorChange(OTHERS["orange"], RED)]
    ab = replace_colors(lab[..., 1:], lab[..., 0], swap)
    assert np.abs(ab[(mask == 1) & (lab[..., 0] > 42)] - hex_to_lab(OTHERS["orange"])[1:]).mean() < 12
    assert ab[50, 92, 0] > lab[50, 92, 1] + 15


def test_only_the_cat_of_the_drawn_episode_changes():
    rgb, body = draw_frame(2, 160), draw_frame(2, 160, mask_of="ruby")
    lab = rgb_to_lab(rgb)
    ab = replace_colors(lab[..., 1:], lab[..., 0], [ColorChange("#ee6c80", BLUE)])
    difference = color_differences(np.dstack([lab[..., 0], ab]), lab)
    assert (difference[body] > 15).mean() > 0.95
    assert difference[cv2.dilate(np.uint8(body), np.ones((9, 9))) == 0].mean() < 0.5


class ByLightness(FilmPredictor):
    """A predictor that gives each pixel the known color of the nearest lightness."""

    side, source, identity = 64, "memory", "by lightness"

    def palette(self, labs):
        return Palette(torch.ones(1, 313) / 313, [], [], torch.zeros(3))

    def predict(self, L, palette):
        known = np.array([hex_to_lab(color) for color in (RED, *OTHERS.values())])
        nearest = np.abs(L[..., None] - known[:, 0]).argmin(-1)
        ab = known[nearest, 1:].astype(np.float32)
        return np.stack([cv2.blur(each, (3, 3)) for each in ab]), Confidence.unknown(len(L))


def test_a_color_is_replaced_in_a_whole_film(tmp_path):
    rgb, mask = scene()
    L = rgb_to_lab(rgb)[..., 0]
    gray = lab_to_rgb(np.dstack([L, np.zeros((*L.shape, 2), np.float32)]))
    with av.open(str(tmp_path / "gray.mkv"), "w") as film:
        stream = film.add_stream("libx264", rate=12, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(4):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        film.mux(stream.encode(None))
    change = [ColorChange(RED, BLUE)]
    for name, predictor in (("before", ByLightness()), ("after", RecoloringPredictor(ByLightness(), change))):
        color_film(predictor, VideoFile(tmp_path / "gray.mkv"), tmp_path / f"{name}.mkv", FilmConfig(crf=0))
    before, after = (planes_in(tmp_path / f"{name}.mkv") for name in ("before", "after"))
    inside = cv2.resize(mask, (64, 48), interpolation=cv2.INTER_AREA)
    inside[18:38, 23:43] = 0.5  # the shaded side, which is as light as the brown
    for (y, cb, _), (new_y, new_cb, _) in zip(before, after, strict=True):
        assert (y == new_y).all()
        assert (new_cb.astype(int) - cb)[inside == 1].min() > 20
        assert np.abs(new_cb.astype(int) - cb)[:, 54:].max() <= 2


def test_color_changes_are_part_of_the_identity_of_a_predictor():
    plain, change = ByLightness(), ColorChange(RED, BLUE)
    identities = [plain.identity, *(RecoloringPredictor(plain, changes).identity for changes in (
        [], [change], [ColorChange(BLUE, RED)], [change, change]))]
    assert len(set(identities)) == 5
    assert RecoloringPredictor(plain, [change]).identity == identities[2]
    assert RecoloringPredictor(plain, [change]).with_response(None).identity == identities[2]
    with pytest.raises(UserError, match="is not a color"):
        RecoloringPredictor(plain, [ColorChange(RED, "blue")])
