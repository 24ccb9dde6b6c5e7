"""Tests of temporal denoising of the network input."""

from dataclasses import dataclass

import av
import cv2
import numpy as np
import pytest
from drawn import StubPredictor, planes_in

from config import FilmConfig
from dataset import resize, rgb_to_lab
from film.analysis.denoising import DenoisingConfig, denoise_shot, estimate_grain
from film.io.planes import gray_lightness
from film.io.video import VideoFile
from film.render.rendering import color_film

from resources.draw_episodes import draw_frame

SIDE = 256
RADIUS = DenoisingConfig().radius


@dataclass
class Features:
    L: np.ndarray | None


@pytest.fixture(scope="module")
def drawn():
    """L of the frames of a shot with walking characters."""
    return [resize(rgb_to_lab(draw_frame(1, 30 + i))[..., 0], SIDE, SIDE) for i in range(2 * RADIUS + 3)]


def grainy(pictures, sigma):
    rng = np.random.default_rng(0)
    return [(L + rng.normal(0, sigma, L.shape)).clip(0, 100).astype(np.float32) for L in pictures]


@pytest.mark.parametrize("sigma", [1.5, 4.0])
def test_grain_is_estimated(drawn, sigma):
    assert estimate_grain(grainy(drawn, sigma)) == pytest.approx(sigma, rel=0.15)


def test_motion_is_not_estimated_as_grain(drawn):
    wide = np.concatenate([drawn[0], drawn[-1]], 1)
    for pictures in (drawn, [wide[:, 5 * i:5 * i + SIDE] for i in range(8)], drawn[:1] * 3, grainy(drawn, 4)[:1], []):
        assert estimate_grain(pictures) < 0.5


def test_clean_shots_and_frames_without_network_input_are_not_changed(drawn):
    frames = [Features(None if i % 3 == 1 else L) for i, L in enumerate(drawn)]
    before = [frame.L for frame in frames]
    after = list(denoise_shot(iter(frames)))
    assert all(a is b and a.L is L for a, b, L in zip(after, frames, before, strict=True))


@pytest.mark.parametrize("count", [2, RADIUS, 2 * RADIUS + 3])
def test_denoising_removes_grain_from_static_and_moving_parts(drawn, count):
    frames = [Features(L) for L in grainy(drawn[:count], 4)]
    raw = [frame.L for frame in frames]
    frames.insert(1, Features(None))
    after = list(denoise_shot(iter(frames)))
    assert all(a is b for a, b in zip(after, frames, strict=True)) and after.pop(1).L is None
    moving = cv2.dilate(np.float32(np.abs(drawn[0] - drawn[count - 1]) > 10), np.ones((5, 5))) > 0
    for L, noisy, true in zip([frame.L for frame in after], raw, drawn, strict=False):
        for places in (~moving, moving):
            less = np.abs(L - true)[places].mean() / np.abs(noisy - true)[places].mean()
            assert less < (0.8 if count == 2 else 0.6)


def test_network_input_is_denoised_and_the_luma_of_the_film_is_not_changed(tmp_path):
    source, rng, inputs = tmp_path / "in.mkv", np.random.default_rng(0), []
    picture = resize(cv2.cvtColor(draw_frame(1, 30), cv2.COLOR_RGB2GRAY), 64, 64)
    with av.open(str(source), "w") as film:
        stream = film.add_stream("ffv1", 12)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        for _ in range(12):
            luma = np.clip(np.rint(16 + picture * (219 / 255) + rng.normal(0, 9, picture.shape)), 0, 255)
            planes = np.stack([luma, *np.full((2, 64, 64), 128)]).astype(np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
        film.mux(stream.encode(None))

    class Watcher(StubPredictor):
        def predict(self, L, palette):
            inputs.extend(L)
            return super().predict(L, palette)

    color_film(Watcher(), VideoFile(source), tmp_path / "out.mkv", FilmConfig(crf=0, pix_fmt="yuv444p"))
    true = gray_lightness(picture / np.float32(255))
    assert len(inputs) == 12 and max(np.abs(L - true).mean() for L in inputs) < 1.5  # 3 without denoising
    for one, other in zip(planes_in(source), planes_in(tmp_path / "out.mkv"), strict=True):
        assert np.array_equal(one[0], other[0])
