"""Degraded films: detection of color, changes of exposure, and the film response."""

import math
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
import torch
from drawn import StubPredictor, draw_shots

from colorizer import predictor as predictor_module
from colorizer.adaptation.film_response import (
    IDENTITY_RESPONSE, FilmResponse, Matches, ResponseConfig, fit_film_response, fit_tone_curve, left_out_cost)
from colorizer.backbone import Features
from colorizer.colorizer import Colorizer
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.metrics import shot_has_color
from colorizer.predictor import Palette, Predictor
from config import FilmConfig, ModelConfig, SpatialConfig
from dataset import (
    AB_SCALE, L_SCALE, hd_luma_lightness, lab_to_rgb, luma_lightness, resize, rgb_to_lab, spectral_lightness)
from film.analysis.exposure import ExposureTracker, normalize_exposure
from film.analysis.film_analysis import analyze_film
from film.analysis.film_scan import FilmScan
from film.analysis.plan import Plan
from film.io.planes import gray_lightness
from film.io.video import VideoFile
from film.render.rendering import color_film

from resources.draw_episodes import draw_frame

# ---------------------------------------------------------------------------------------------------------------------
# Detection of color


GRAYS = draw_frame(1, 30)[..., :1].astype(np.float32)  # luma of a drawn frame


def noise(seed, sigma, height, width):
    """Return RGB noise on Cr and Cb, enlarged to the size of GRAYS."""
    coarse = np.random.default_rng(seed).normal(0, sigma, (height, width, 2)).astype(np.float32)
    cr, cb = cv2.split(cv2.resize(coarse, GRAYS.shape[1::-1]))
    return np.dstack([1.402 * cr, -0.714 * cr - 0.344 * cb, 1.772 * cb])


def in_corner(picture):
    height, width = picture.shape[:2]
    picture[height // 20:height // 5, -width // 6:-width // 20] = 220, 30, 40
    return picture


@pytest.mark.parametrize("paint", [
    lambda i: GRAYS * [1.07, 0.95, 0.75] + [18, 6, 0],  # sepia
    lambda i: GRAYS * [0.8, 0.9, 1.1] + [0, 0, 20],  # blue
    lambda i: GRAYS + noise(i, 10, 90, 80),  # the chroma of a VHS tape
    lambda i: GRAYS * [1.07, 0.95, 0.75] + noise(i, 20, *GRAYS.shape[:2]),
    lambda i: in_corner(GRAYS.repeat(3, 2)),  # a logo
    lambda i: np.dstack([GRAYS, GRAYS, np.roll(GRAYS, 3, 1)]),  # a fringe of color along lines
], ids=["sepia", "blue", "noise", "noisy sepia", "logo", "fringe"])
def test_tints_noise_logos_and_fringes_do_not_count_as_color(paint):
    assert not shot_has_color([np.clip(paint(i), 0, 255).astype(np.uint8) for i in range(8)])


def test_pale_colors_and_colors_with_a_cast_count_as_color():
    frames = [draw_frame(1, i).astype(np.float32) for i in range(30, 54, 3)]
    gray = [frame.mean(2, keepdims=True) for frame in frames]
    for pictures in (frames, [0.5 * a + 0.5 * b for a, b in zip(frames, gray, strict=True)],
                     [frame * [1.15, 0.95, 0.7] for frame in frames]):
        assert shot_has_color([np.clip(picture, 0, 255).astype(np.uint8) for picture in pictures])


# ---------------------------------------------------------------------------------------------------------------------
# Exposure


def lightness(luma):
    return gray_lightness(luma.astype(np.float32) / 255)


def lumas(first, count):
    return [cv2.cvtColor(draw_frame(1, first + i), cv2.COLOR_RGB2GRAY) for i in range(count)]


def exposure_of(pictures):
    tracker = ExposureTracker()
    for picture in pictures:
        tracker.add(np.rint(picture).astype(np.uint8))
    return tracker.shot_exposure(0, len(pictures))


def test_a_shot_of_constant_exposure_is_not_changed():
    """Moving characters, a pan, a tilt over a gradient and a missed dissolve are not changes of exposure."""
    wide = np.concatenate([lumas(1, 1)[0], lumas(200, 1)[0]], 1)
    pan = [wide[:, 6 * i:6 * i + 640] for i in range(12)]
    one, other = lumas(1, 1)[0].astype(np.float32), lumas(200, 1)[0].astype(np.float32)
    dissolve = [one + i / 36 * (other - one) for i in range(37)]
    tall = 0.5 * np.tile(one, (2, 1)) + np.linspace(120, 0, 720)[:, None]
    tilt = [tall[3 * i:3 * i + 360] for i in range(60)]
    for pictures in (lumas(30, 12), pan, tilt, dissolve, [pan[0]] * 3, [np.zeros((36, 64))] * 3):
        assert np.array_equal(exposure_of(pictures), [[1, 0]] * len(pictures))


def test_exposure_is_normal_after_a_flash():
    one, other = (lumas(first, 1)[0].astype(np.float32) for first in (1, 200))
    dissolve = [one + i / 36 * (other - one) for i in range(37)]
    for pictures, tolerance in ((lumas(30, 12), 1e-3), (dissolve, 1.5)):
        flashed = [0.5 * picture + 127 if i == 8 else picture for i, picture in enumerate(pictures)]
        for picture, exposure in zip(pictures, exposure_of(flashed), strict=True):
            error = np.abs(normalize_exposure(lightness(picture), exposure) - lightness(picture)).mean()
            assert exposure[0] > 1.5 or error < tolerance


def test_fades_and_flicker_are_normalized():
    plain = lumas(30, 28)  # one shot
    fade = [picture * min(1, (i + 3) / 24) for i, picture in enumerate(plain)]
    flicker = [np.clip(picture + 15 * math.sin(1.9 * i), 0, 255) for i, picture in enumerate(plain)]
    for pictures, expected, bright in ((fade, plain, slice(2, None)), (fade[::-1], plain[::-1], slice(0, -2)),
                                 (flicker, plain, slice(None))):
        exposures = exposure_of(pictures)
        before = [np.abs(lightness(a) - lightness(b)).mean() for a, b in zip(pictures, expected, strict=True)]
        after = [np.abs(normalize_exposure(lightness(a), exposure) - lightness(b)).mean()
                for a, exposure, b in zip(pictures, exposures, expected, strict=True)]
        assert np.mean(before[bright]) > 3 * np.mean(after[bright]) and max(after[bright]) < 4


def test_chroma_follows_the_contrast_of_a_fade(tmp_path):
    """The predictor gets frames of normal exposure; the written chroma is scaled with the contrast of the frame."""
    source = tmp_path / "in.mkv"
    picture = cv2.resize(draw_frame(1, 30), (128, 72)).astype(np.float32)
    with av.open(str(source), "w") as film:
        stream = film.add_stream("ffv1", 12)
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv444p"
        for i in range(30):
            faded = np.rint(picture * min(1, (i + 1) / 15)).astype(np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(faded, format="rgb24")))
        film.mux(stream.encode(None))
    inputs = []

    class RecordingPredictor(StubPredictor):
        def predict(self, L, palette):
            inputs.extend(L)
            ab, confidence = super().predict(L, palette)
            return np.full_like(ab, 20), confidence

    color_film(RecordingPredictor(), VideoFile(source), tmp_path / "out.mkv", FilmConfig(crf=0, pix_fmt="yuv444p"))
    assert np.abs(inputs[8] - inputs[-1]).mean() < 3 and np.abs(inputs[8].std() / inputs[-1].std() - 1) < 0.1
    with av.open(str(tmp_path / "out.mkv")) as film:
        chroma = [np.abs(frame.to_ndarray()[1:].astype(float) - 128).mean() for frame in film.decode(video=0)]
    assert chroma[-1] > 8 and chroma[5] / chroma[-1] == pytest.approx((6 / 15)**0.73, abs=0.12)


# ---------------------------------------------------------------------------------------------------------------------
# Film response

CURVES = {"faded": lambda luma: 0.5 + 0.4 * luma, "hard": lambda luma: luma + 0.12 * np.sin(2 * np.pi * (luma - 0.5)),
          "dark": lambda luma: luma**1.8}


def apply_curve(lab, curve):
    """Return L of a picture, Lab (H, W, 3), with a curve applied to its luma."""
    luma = np.interp(lab[..., 0], gray_lightness(np.linspace(0, 1, 256, dtype=np.float32)), np.linspace(0, 1, 256))
    return gray_lightness(curve(luma).clip(0, 1).astype(np.float32))


@pytest.fixture(autouse=True)
def complete_estimation(monkeypatch):
    """Undo the simplification that makes other tests quick."""
    monkeypatch.setattr(predictor_module, "fit_film_response", fit_film_response)


@pytest.fixture(scope="module")
def predictor():
    """An untrained predictor with every 12th frame of the start of drawn episode 1 in its memory."""
    torch.manual_seed(0)
    config = ModelConfig(img_size=128, width=4, mem_size=2, spatial_size=12, top_k=2)
    predictor = Predictor(Colorizer(config, None).eval(), torch.device("cpu"), "fp32")
    spatial = predictor.colorizer.spatial
    labs = [resize(rgb_to_lab(draw_frame(1, 12 * i)), 256, 256) for i in range(12)]
    features = predictor.extract_features([lab[..., 0] for lab in labs])
    spatial.fit_projection(features.cells)
    planes = torch.from_numpy(np.stack(labs)).permute(0, 3, 1, 2)
    spatial.write(torch.arange(12), features, planes[:, :1] / L_SCALE, planes[:, 1:] / AB_SCALE, torch.arange(12))
    predictor.colorizer.memory.used[:] = True
    predictor.colorizer.memory.keys[:] = torch.eye(2, 512)
    return predictor


FRAMES = [rgb_to_lab(draw_frame(1, 12 * i + 5)) for i in range(0, 12, 3)]  # not in the memory


@pytest.mark.parametrize("kind", CURVES)
def test_the_tone_curve_of_a_film_is_found(predictor, kind):
    film = [apply_curve(lab, CURVES[kind]) for lab in FRAMES]
    response = predictor.fit_response(film)
    undone, done = (np.mean([np.abs(change(L) - lab[..., 0]).mean() for L, lab in zip(film, FRAMES, strict=True)])
                    for change in (lambda L: L, response))
    assert done < min(2.5, undone / 3)


def test_a_film_like_the_remembered_frames_has_no_response(predictor):
    assert predictor.fit_response([lab[..., 0] for lab in FRAMES]) is None
    assert predictor.fit_response([apply_curve(lab, lambda luma: 0.02 + 0.97 * luma) for lab in FRAMES]) is None
    faded = [apply_curve(lab, CURVES["faded"]) for lab in FRAMES]
    assert replace(predictor, source="ground_truth").fit_response(faded) is None


ORTHOCHROMATIC = np.array([0.05, 0.5, 0.45])


@pytest.mark.parametrize("sensitivity, curve", [(np.array([0.7, 0.2, 0.1]), None), (ORTHOCHROMATIC, CURVES["faded"])],
                         ids=["red filter", "faded orthochromatic"])
def test_the_spectral_sensitivity_of_a_film_is_found(predictor, sensitivity, curve):
    film = [spectral_lightness(lab_to_rgb(lab), sensitivity) for lab in FRAMES]
    response = predictor.fit_response(film if curve is None else [apply_curve(L[..., None], curve) for L in film])
    assert response.sensitivity == pytest.approx(sensitivity, abs=0.15)
    assert response.is_identity == (curve is None)
    if curve is not None:
        done = [np.abs(response(apply_curve(L[..., None], curve)) - L).mean() for L in film]
        assert np.mean(done) < 3


def test_left_out_matches_are_tested_with_the_other_parts_of_a_film():
    """In part 0, memory L equals film L, in part 1 it is 4 higher. Each shift is off by 4 in the other part."""
    def shift(matches):
        return FilmResponse(np.array([0, 100]), np.array([0, 100]) + (matches.memory_L - matches.film_L).mean())

    film_L, part = np.array([50.0, 50, 30]), np.array([0, 0, 1])
    matches = Matches(np.arange(3), film_L, film_L + 4 * part, np.zeros((3, 2)), part, 0)
    assert left_out_cost(shift, matches, matches) == pytest.approx(math.sqrt(1 + (4 / 3)**2) - 1, abs=0.07)
    unadapted = matches._replace(memory_L=film_L + 4 * (1 - part))  # predicted by the other part
    assert left_out_cost(shift, matches, unadapted) == pytest.approx(0, abs=0.02)
    assert left_out_cost(shift, matches.select(part == 0), matches) == math.inf


def test_a_curve_that_explains_only_its_own_matches_is_rejected():
    """With lightness as the only feature, a dark film matches light frames under each curve that makes it lighter."""
    def embed(lightness):
        cells = torch.from_numpy(np.stack([resize(L, 32, 32) for L in lightness])[:, None] / 10)
        return Features(torch.ones(len(cells), 1), cells)

    random = np.random.default_rng(0)
    film, remembered = (list(random.uniform(low, high, (4, 32, 32)).astype(np.float32).repeat(8, 1).repeat(8, 2))
                        for low, high in ((0, 40), (60, 95)))
    memory = SpatialMemory(1, 1, 4, SpatialConfig(key_dim=1))
    memory.projection[:] = 1
    L = torch.from_numpy(np.stack(remembered))[:, None] / L_SCALE
    memory.write(torch.arange(4), embed(remembered), L, torch.zeros(4, 2, 256, 256), torch.arange(4))
    assert fit_tone_curve(embed, memory, film, replace(ResponseConfig(), min_left_out_curve_reduction=-10))[0]
    assert fit_tone_curve(embed, memory, film, ResponseConfig())[0] is None


@pytest.mark.parametrize("gray", [luma_lightness, hd_luma_lightness, lambda rgb: rgb_to_lab(rgb)[..., 0]],
                         ids=["luma", "HD luma", "luminance"])
def test_luma_and_luminance_give_no_sensitivity(predictor, gray):
    assert predictor.fit_response([gray(lab_to_rgb(lab)) for lab in FRAMES]) is None


def test_remembered_frames_are_rendered_with_the_sensitivity(predictor):
    """A remembered frame recorded with another sensitivity is recalled as well as its luma, if there is a response."""
    remembered, response = draw_frame(1, 48), replace(IDENTITY_RESPONSE, sensitivity=ORTHOCHROMATIC)
    nothing = Palette(torch.ones(1, 313) / 313, [], [], torch.zeros(512))

    def error(L, response):
        adapted = predictor.with_response(response)
        ab = adapted.predict(resize(L, adapted.side, adapted.side)[None], nothing)[0][0]
        return np.linalg.norm(ab - resize(rgb_to_lab(remembered), *ab.shape[:2])[..., 1:], axis=2).mean()

    video = error(luma_lightness(remembered), None)
    assert error(spectral_lightness(remembered, ORTHOCHROMATIC), response) < 1.1 * video
    assert error(spectral_lightness(remembered, ORTHOCHROMATIC), None) > 1.3 * video


def test_luma_lightness_matches_hand_computed_values():
    colors = np.array([[[255, 0, 0], [0, 0, 255], [119, 119, 119]]], np.uint8)
    red, blue, gray = luma_lightness(colors)[0]
    assert red == pytest.approx(gray_lightness(np.float32([0.299]))[0], abs=0.3)
    assert blue == pytest.approx(gray_lightness(np.float32([0.114]))[0], abs=0.3)
    assert hd_luma_lightness(colors)[0, :2] == pytest.approx(gray_lightness(np.float32([0.2126, 0.0722])), abs=0.3)
    assert gray == pytest.approx(rgb_to_lab(colors)[0, 2, 0], abs=0.3)


def test_a_response_is_extrapolated_linearly_and_restored_from_its_state():
    response = FilmResponse.match_histograms(np.linspace(20, 60, 1000), np.linspace(10, 90, 1000))
    assert response(np.array([20, 40, 60, 25, 100, 0])) == pytest.approx([10, 50, 90, 20, 100, 0], abs=0.1)
    assert response.span == pytest.approx((10.8, 20.4, 89.2, 59.6), abs=0.1)
    assert FilmResponse.from_state(response.state())(np.arange(100)) == pytest.approx(response(np.arange(100)))
    assert FilmResponse.from_state(response.state()).sensitivity is None
    state = replace(response, sensitivity=ORTHOCHROMATIC).state()
    assert FilmResponse.from_state(state).sensitivity == pytest.approx(ORTHOCHROMATIC)
    many_equal = FilmResponse.match_histograms(np.zeros(10), np.full(10, 50.0))  # a black film
    assert np.isfinite(many_equal(np.array([0, 50, 100]))).all()


def test_corrections_of_a_faded_film_are_recalled(predictor):
    """Corrections with the lightness of the film are encoded again with its response; corrections with the lightness
    of the series stay unchanged."""
    lab = FRAMES[0].copy()
    lab[..., 1:] = 40, -30  # a color that the user chose
    over = lab.copy()
    over[..., 0] = apply_curve(lab, CURVES["faded"])
    response = predictor.fit_response([apply_curve(each, CURVES["faded"]) for each in FRAMES])
    for picture in (over, lab):
        corrected = replace(predictor, colorizer=Colorizer(predictor.config, None).eval())
        corrected.colorizer.load_state_dict(predictor.colorizer.state_dict())
        corrected.add_references([lab_to_rgb(picture)])
        adapted = corrected.with_response(response)
        ab = adapted.predict_ab([over])[0][0].mean((0, 1))
        assert ab == pytest.approx([40, -30], abs=6)
        assert corrected.colorizer.spatial.pictures[-1, ..., 0].float().mean() == pytest.approx(
            2.55 * picture[..., 0].mean(), abs=2)  # the original memory is unchanged


def test_corrections_with_the_lightness_of_the_film_are_distinguished_from_others(predictor):
    lab = FRAMES[0]
    over = lab.copy()
    over[..., 0] = spectral_lightness(lab_to_rgb(lab), ORTHOCHROMATIC)
    corrected = replace(predictor, colorizer=Colorizer(predictor.config, None).eval())
    corrected.colorizer.load_state_dict(predictor.colorizer.state_dict())
    corrected.add_references([lab_to_rgb(over), lab_to_rgb(lab)], match_references=False)
    response = replace(IDENTITY_RESPONSE, sensitivity=ORTHOCHROMATIC)
    assert corrected.with_response(response).film_references == {12}  # the other has the lightness of the series


def test_a_film_response_needs_no_second_pass(tmp_path, monkeypatch):
    """The palettes are recalled again from the frames that were sampled in the first pass."""
    passes, labs = [], {True: [], False: []}

    class Responding(StubPredictor):
        is_adapted = False

        def fit_response(self, lightness):
            return FilmResponse.match_histograms(np.arange(50), np.arange(100))

        def with_response(self, response):
            adapted = Responding()
            adapted.is_adapted = True
            return adapted

        def palette(self, of_shot):
            labs[self.is_adapted].append([lab[..., 0] for lab in of_shot])
            return super().palette(of_shot)._replace(slot_ids=[int(self.is_adapted)])

    frames = FilmScan.frames
    monkeypatch.setattr(FilmScan, "frames", lambda scan: (passes.append(scan), frames(scan))[1])
    source = draw_shots(tmp_path / "in.mkv", [(lambda i: 60 * 0.95**i, 14), (200, 30)])  # the first shot fades
    plan = analyze_film(VideoFile(source), Responding(), FilmConfig())
    assert len(passes) == 1 and plan.response and [shot.palette.slot_ids for shot in plan.shots] == [[1], [1]]
    assert len(labs[True]) == 2 and all(np.array_equal(*pair) for pair in zip(labs[True], labs[False], strict=True))


def test_plan_state_keeps_response_and_exposure(predictor, tmp_path):
    source = draw_shots(tmp_path / "in.mkv", [(60, 14), (200, 14)])
    plan = analyze_film(VideoFile(source), StubPredictor(), FilmConfig())
    plan.response, plan.exposure[3] = FilmResponse.match_histograms(np.arange(50), np.arange(100)), (2, -3)
    restored = Plan.from_state(plan.state())
    assert np.array_equal(restored.exposure, plan.exposure) and restored.response.state() == plan.response.state()


def test_response_none_fits_no_response(tmp_path):
    source, calls = draw_shots(tmp_path / "in.mkv", [(60, 14), (200, 14)]), []

    class RecordingPredictor(StubPredictor):
        def fit_response(self, lightness):
            calls.append(len(lightness))

    analyze_film(VideoFile(source), RecordingPredictor(), FilmConfig())
    analyze_film(VideoFile(source), RecordingPredictor(), FilmConfig(response="none"))
    assert calls == [12]
