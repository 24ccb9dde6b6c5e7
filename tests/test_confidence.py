"""Confidence: hand-computed values, calibration, and confidence maps of pictures and films."""

import itertools

import numpy as np
import pytest
import torch
from drawn import StubPredictor, draw_dataset, draw_picture, draw_shots, planes_in, times_and_sound
from test_train import flags

import test
import train

from benchmarks import calibration
from benchmarks.common import frame_readers

from colorizer import confidence as confidences
from colorizer.confidence import CalibrationConfig, Confidence
from colorizer.palette_classifier import CELL_SIZE
from colorizer.predictor import Predictor
from config import FilmConfig
from dataset import AB_SCALE, rgb_to_lab
from fileio.images import read_image, write_image
from film.io.video import VideoFile
from film.render.rendering import color_film
from film.report.confidence_video import COLORS, confidence_map, tint_grayscale
from test import find_inputs
from utils import UserError

SHOTS = [(60, 20), (200, 15), (110, 22)]
CONFIG = CalibrationConfig(probability_margin=0.01, bias=0.5, recalled_weight=1.0, agreement_weight=0.5)


def grid(*values):
    return torch.tensor(values).view(1, 1, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Hand-computed values


def test_the_recalled_share_combines_attention_and_warping():
    """Confidence 0.25 of the attention and 0.5 on average of the warped colors: 1 - 0.75 * 0.5."""
    warped = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None]
    assert confidences.recalled_share(torch.tensor([[[0.25]]]), warped, 1).item() == pytest.approx(0.625)
    assert confidences.recalled_share(torch.tensor([[[0.25]]]), warped, 2)[0].tolist() == [[1.0, 0.25], [0.625, 0.625]]


def test_agreement_is_the_probability_of_classes_near_the_color():
    """The color has chroma 50. The palette has this color, one with a chroma of 63 and one that differs by 35 in hue;
    by CIE94 the distances are 0, 13 / 3.25 = 4 and 35 / 1.75 = 20."""
    palette = torch.tensor([[30.0, 40.0], [37.8, 50.4], [2.0, 61.0]])
    ab = (palette[0] / AB_SCALE).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    near = torch.tensor([1, np.exp(-0.4**2), np.exp(-2.0**2)]).float()
    for probabilities in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0.25]):
        probabilities = torch.tensor(probabilities).float()
        agreement = confidences.class_agreement(probabilities.view(1, 3, 1, 1).expand(1, 3, 2, 2), palette, ab)
        torch.testing.assert_close(agreement, (probabilities @ near).expand(1, 2, 2), atol=1e-4, rtol=0)


def test_the_probability_matches_the_formula():
    """The odds are e^0.5 times those of the recalled share, times the root of those of the agreement; both clipped."""
    probability = confidences.calibrated_probability(grid(0.5, 0.8, 0.8, 0.0), grid(0.5, 0.5, 0.9, 1.0), CONFIG)
    odds = np.exp(0.5) * np.array([1, 4, 4 * 3, 99**-1 * 99**0.5])
    assert probability.flatten().tolist() == pytest.approx(odds / (1 + odds))


def test_the_probability_rises_with_both_inputs():
    config = CalibrationConfig()
    steps = torch.linspace(0, 1, 21)
    for probability in (confidences.calibrated_probability(steps, steps * 0, config),
                 confidences.calibrated_probability(steps * 0, steps, config)):
        assert (probability.diff() >= 0).all() and probability[0] < 0.1
    assert confidences.calibrated_probability(grid(1.0), grid(1.0), config) > 0.99


# ---------------------------------------------------------------------------------------------------------------------
# Calibration


def test_reliability_matches_hand_computed_values():
    """Two cells with probability 0.25, one of them right, and one with 1, which is right; the second has weight 3."""
    rows = calibration.reliability(np.array([0.25, 0.25, 1.0]), np.array([1.0, 1 / 3, 1.0]), np.array([1, 3, 1]))
    assert np.allclose(rows, [(0.25, 0.5, 0.8), (1, 1, 0.2)])


def test_calibration_recovers_the_constants_of_synthetic_data():
    rng = np.random.default_rng(0)
    recalled, agreement = rng.uniform(0, 1, (2, 4000)).astype(np.float32)
    right = confidences.calibrated_probability(torch.from_numpy(recalled), torch.from_numpy(agreement), CONFIG).numpy()
    found = calibration.fit(recalled, agreement, right, np.full(4000, 1 / 4000),
                            CalibrationConfig(probability_margin=0.01))
    assert (found.bias, found.recalled_weight, found.agreement_weight) == pytest.approx((0.5, 1.0, 0.5), abs=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Trained networks


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a drawn dataset, best.pt of small networks with a palette classifier, and gan/ without memories."""
    home = draw_dataset(tmp_path_factory.mktemp("home"))
    for folder, way in ((home, {}), (home / "gan", {"use_memory": False, "gen_norm": "batch", "dis_norm": "None"})):
        train.main(flags(data_path=home, save_path=folder, width=4, batch_size=6, epoch_steps=4, end_epoch=1, **way))
    return home


def run(home, source, output, **settings):
    test.main(flags(checkpoint=home / "best.pt", input=source, output=output, **settings))


def test_training_pictures_are_recalled_and_unrelated_ones_are_not(home):
    predictor = Predictor.load(home / "best.pt", precision="fp32")
    unrelated = np.random.default_rng(0).integers(0, 255, (64, 96, 1)).astype(np.uint8).repeat(3, 2)
    pictures = [read_image(path) for path in sorted((home / "train").glob("*.png"))]
    _, confidence = predictor.colorize_with_confidence([*pictures, unrelated])
    grid_size = predictor.config.palette_classifier.input_size // CELL_SIZE // 2
    assert all(x.shape == (len(pictures) + 1, grid_size, grid_size) for x in confidence)
    assert confidence.recalled[:-1].mean() > 0.95 and confidence.probability[:-1].mean() > 0.9
    assert confidence.recalled[-1].mean() < 0.2 and confidence.probability[-1].mean() < 0.7


def test_without_a_memory_confidence_is_nan(home):
    for predictor in (Predictor.load(home / "gan" / "best.pt"),
                      Predictor.load(home / "best.pt", color_feature="ground_truth")):
        _, confidence = predictor.predict_ab([rgb_to_lab(draw_picture(0))])
        assert all(x.shape == (1, 1, 1) and np.isnan(x).all() for x in confidence)
    for settings in ({"checkpoint": home / "gan" / "best.pt"}, {"color_feature": "ground_truth"}):
        with pytest.raises(UserError, match="--confidence needs the spatial memory"):
            test.main(flags(**{"checkpoint": home / "best.pt", "input": home / "test", "output": home / "no",
                               "confidence": True, **settings}))


def test_the_calibration_table_and_curve(home, tmp_path, capsys):
    pair = [str(home / "best.pt"), str(home / "test")]
    calibration.main([*pair, *pair, "--every", "1", "--figure", str(tmp_path / "curve.png"), "--fit", "True"])
    printed = capsys.readouterr().out
    assert "bias " in printed and "| predicted | correct | share of pixels |" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| ") and line.endswith("% |")]
    assert rows and sum(float(row.split("|")[3].strip(" %")) for row in rows) == pytest.approx(100, abs=1)
    assert "expected calibration error" in printed and read_image(tmp_path / "curve.png").shape == (400, 400, 3)
    for arguments, message in ((pair[:1], "there are 1 paths"), ([*pair, "--every", "0"], "at least 1, got .0."),
                               ([str(home / "gan" / "best.pt"), pair[1]], "no spatial memory")):
        with pytest.raises(UserError, match=message):
            calibration.main(arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Confidence maps


def test_map_colors_are_mixed_by_confidence():
    confidence = Confidence(*(np.array([x], np.float32) for x in ([1, 0, 1, 0.5], [0, 0, 0, 0], [1, 1, 0, 0.5])))
    blue, green, red = (np.array(color) for color in COLORS.values())
    assert confidence_map(confidence).tolist() == [[*(color.tolist() for color in (blue, green, red)),
                                        np.rint(blue / 4 + green / 4 + red / 2).astype(int).tolist()]]
    gray = draw_picture(0)[..., 1]
    picture = tint_grayscale(gray, confidence_map(confidence))
    assert picture.shape == (64, 96, 3) and np.abs(picture[:, :8] - 0.45 * gray[:, :8, None] - 0.55 * blue).max() <= 1
    assert np.array_equal(tint_grayscale(gray, np.zeros((0, 0, 3), np.uint8)), gray[..., None].repeat(3, 2))


def test_pictures_get_maps_and_keep_their_colors(home, tmp_path):
    run(home, home / "test", tmp_path / "plain")
    run(home, home / "test", tmp_path / "mapped", confidence=True)
    names = sorted(path.name for path in (home / "test").iterdir())
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "mapped" / name).read_bytes()
        mapped = read_image(tmp_path / "mapped" / f"{name.removesuffix('.png')}_confidence.png")
        assert mapped.shape == read_image(home / "test" / name).shape
    assert len(list((tmp_path / "mapped").glob("*_confidence.png"))) == len(names)
    (tmp_path / "mapped" / names[0]).unlink()
    with pytest.raises(UserError, match="_confidence.png exists already"):
        run(home, home / "test", tmp_path / "mapped", confidence=True)


def test_maps_are_not_taken_as_inputs(tmp_path):
    for name in ("a.png", "a_confidence.png", "full_confidence.png", "b.jpg"):
        write_image(tmp_path / name, draw_picture(0))
    for name in ("film.mp4", "film_confidence.mp4", "film_memory.mp4"):
        (tmp_path / name).write_bytes(b"")
    pictures, films = find_inputs(tmp_path, tmp_path / "out", True)
    assert [path.name for path, _ in pictures] == ["a.png", "b.jpg", "full_confidence.png"]
    assert [film.path.name for film, _ in films] == ["film.mp4"]
    write_image(tmp_path / "a.jpg", draw_picture(0))
    with pytest.raises(UserError, match="a.jpg and .*a.png would both be written to .*a_confidence.png"):
        find_inputs(tmp_path, tmp_path / "out", True)


class Doubter(StubPredictor):
    """Recalls the left half of each picture only."""

    def predict(self, L, palette):
        ab, _ = super().predict(L, palette)
        probability = np.zeros((len(L), 2, 2), np.float32)
        probability[..., 0] = 1
        return ab, Confidence(probability, probability, probability)


def color(source, output, predictor, **settings):
    return color_film(predictor, VideoFile(source), output, FilmConfig(confidence=True), **settings)


def test_the_map_of_a_film_has_the_same_timestamps_and_size(tmp_path):
    source = draw_shots(tmp_path / "in.mkv", SHOTS, hold=2)
    records = color(source, tmp_path / "out.mkv", Doubter())
    assert [record.confidence for record in records] == [0.5] * 3 == [record.recalled for record in records]
    times, sound, size = times_and_sound(tmp_path / "out_confidence.mp4")
    assert (times, size) == (times_and_sound(source)[0], (128, 96)) and not sound
    for index, read in enumerate(frame_readers(tmp_path / "out_confidence.mp4")):
        if index % 8 == 0:
            picture = read().astype(int)
            assert picture[:, 8].mean(0).argmax() == 2 and picture[:, -8].mean(0).argmax() == 0  # blue, vermillion
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv", "out_confidence.mp4",
                                                               "out_shots.jsonl"]
    color_film(StubPredictor(), VideoFile(source), tmp_path / "plain.mkv", FilmConfig())
    plain, mapped = (planes_in(tmp_path / name) for name in ("plain.mkv", "out.mkv"))
    assert all(map(np.array_equal, itertools.chain(*plain), itertools.chain(*mapped)))


def test_a_resumed_film_has_the_same_map(tmp_path):
    """Interrupted during coloring, and again before the other output files are written."""
    source = draw_shots(tmp_path / "in.mkv", SHOTS)
    color(source, tmp_path / "whole.mkv", Doubter())

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        color(source, tmp_path / "out.mkv", Doubter(fail_at=30, action=stop))
    with pytest.raises(KeyboardInterrupt):
        color(source, tmp_path / "out.mkv", Doubter(), on_complete=stop)
    predictor = Doubter()
    color(source, tmp_path / "out.mkv", predictor)
    assert predictor.frames == 0
    assert (tmp_path / "out_confidence.mp4").read_bytes() == (tmp_path / "whole_confidence.mp4").read_bytes()


def test_existing_maps_are_kept(tmp_path):
    source = draw_shots(tmp_path / "in.mkv", SHOTS[:1])
    (tmp_path / "out_confidence.mp4").write_bytes(b"of the user")
    with pytest.raises(UserError, match="out_confidence.mp4 exists already"):
        color(source, tmp_path / "out.mkv", Doubter())
    assert (tmp_path / "out_confidence.mp4").read_bytes() == b"of the user"
    color(source, tmp_path / "out.mkv", Doubter(), overwrite=True)
    assert len(times_and_sound(tmp_path / "out_confidence.mp4")[0]) == 20


def test_maps_of_a_film_of_odd_size_and_of_one_without_confidence(tmp_path):
    """The map of the second one is grayscale."""
    source = draw_shots(tmp_path / "in.mkv", [(60, 12)], size=(131, 97), pix_fmt="yuv444p")
    color(source, tmp_path / "out.mkv", StubPredictor())
    assert times_and_sound(tmp_path / "out_confidence.mp4")[2] == (131, 97)

    class Blind(StubPredictor):
        def predict(self, L, palette):
            return super().predict(L, palette)[0], Confidence.unknown(len(L))

    assert np.isnan(color(source, tmp_path / "blind.mkv", Blind())[0].confidence)
    assert all(np.ptp(read(), 2).max() < 8 for read in frame_readers(tmp_path / "blind_confidence.mp4"))


def test_image_sequences_get_a_video_as_map(home, tmp_path):
    for number in range(12):
        write_image(tmp_path / "in" / f"frame_{number}.png", draw_picture(0))
    run(home, tmp_path / "in", tmp_path / "out", confidence=True)
    assert len(times_and_sound(tmp_path / "out" / "frame_confidence.mp4")[0]) == 12
    assert (tmp_path / "out" / "frame_11.png").exists() and not list((tmp_path / "out").glob("*_confidence.png"))
