"""Confidence: hand-computed values, calibration, and confidence maps of pictures and films."""

import itertools

import numpy as np
import pytest
import torch
from drawn import StubPredictor, draw_dataset, draw_picture, draw_shots, planes_in, times_and_sound
from test_train import flags

import test
import train

from benchmarks.common import frame_readers

from colorizer import confidence as confidences
from colorizer.confidence import PRIOR, Confidence
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.palette_classifier import CELL_SIZE
from colorizer.predictor import Predictor
from config import FilmConfig
from dataset import AB_SCALE, resize, rgb_to_lab
from fileio.checkpoints import load_checkpoint
from fileio.images import read_image, write_image
from film.io.video import VideoFile
from film.render.rendering import color_film
from film.report import confidence_video
from film.report.confidence_video import COLORS, confidence_map, tint_grayscale
from test import find_inputs
from training import calibration
from utils import UserError

SHOTS = [(60, 20), (200, 15), (110, 22)]


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


def test_the_inputs_of_the_calibration_match_the_formula():
    """A picture with recalled shares 0.8 and 0.4 (mean 0.6), agreements 0.5 and 1 (clipped to 0.999), similarity 0.75.
    """
    inputs = confidences.calibration_inputs(grid(0.8, 0.4), grid(0.5, 1.0), torch.tensor([0.75]))
    odds = [[np.e, 4**0.6, 1, 1.5, 3], [np.e, (2 / 3)**0.6, 999**0.4, 1.5, 3]]
    torch.testing.assert_close(inputs, torch.tensor(odds).log().float().view(1, 1, 2, 5), atol=1e-4, rtol=1e-4)
    probability = confidences.calibrated_probability(inputs, torch.tensor([0, 1, 0, 0, 1.0]))
    assert probability[0, 0, 0] == pytest.approx(3 * 4**0.6 / (1 + 3 * 4**0.6))


# ---------------------------------------------------------------------------------------------------------------------
# Calibration


def test_the_fit_recovers_the_coefficients_of_synthetic_data():
    rng = np.random.default_rng(0)
    inputs, coefficients = rng.normal(size=(40, 100, 3)), np.array([0.5, -1.0, 3.0])
    inputs[..., 0] = 1
    right = 1 / (1 + np.exp(-inputs @ coefficients))
    weights = rng.uniform(1, 3, 40)
    assert calibration.fit_logistic(inputs, right, weights, np.zeros(3), 0) == pytest.approx(coefficients, abs=1e-5)
    assert calibration.fit_logistic(inputs, right, weights, np.ones(3), 1e9) == pytest.approx(np.ones(3), abs=1e-5)


def test_one_picture_moves_the_prior():
    """One input, 1; the share is 1; the prior is 0. The optimum satisfies weight * (1 - sigmoid(b)) = 0.5 * b."""
    b, = calibration.fit_logistic(np.ones((1, 4, 1)), np.ones((1, 4)), np.array([3]), np.zeros(1), 0.5)
    assert 3 * (1 - 1 / (1 + np.exp(-b))) == pytest.approx(0.5 * b)


def test_blocks_end_at_cuts():
    """Shots of 5, 4 and 3 pictures with orthogonal embeddings; without cuts, blocks have equal sizes."""
    shots = torch.eye(3).repeat_interleave(torch.tensor([5, 4, 3]), 0)
    assert calibration.split_into_blocks(shots, 3).tolist() == [0] * 5 + [1] * 4 + [2] * 3
    assert calibration.split_into_blocks(shots, 1).tolist() == [0] * 12
    assert calibration.split_into_blocks(torch.eye(12), 2).unique(return_counts=True)[1].min() >= 3
    for number in (1, 2, 3):
        blocks = calibration.split_into_blocks(torch.eye(number), 3)
        assert len(blocks) == number and (blocks.diff() >= 0).all()


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
    assert confidence.recalled[-1].mean() < 0.2 and confidence.probability[-1].mean() < 0.85


def test_hidden_frames_are_not_recalled(home):
    predictor = Predictor.load(home / "best.pt", precision="fp32")
    colorizer, (own, name) = predictor.colorizer, max(predictor.frame_names.items())
    spatial, used = colorizer.spatial, colorizer.memory.used
    embedding = predictor.extract_features([rgb_to_lab(read_image(home / "train" / name))[..., 0]]).embedding

    def nearest_ids():
        return spatial.ids[find_nearest_frames(spatial, quantize_embeddings(embedding)).slots[0]].tolist()

    assert nearest_ids()[0] == own
    with calibration.hide_frames(colorizer, [own]):
        assert own not in nearest_ids() and own not in colorizer.recall(embedding).ids[:, 0]
    assert nearest_ids()[0] == own
    assert colorizer.memory.used is used and colorizer.spatial.hidden is None
    with calibration.hide_frames(colorizer, list(predictor.frame_names)):
        assert colorizer.recall(embedding).ids[0, 0] >= 0  # an empty memory could not color anything


def test_a_checkpoint_has_its_own_calibration(home):
    coefficients = load_checkpoint(home / "best.pt")["colorizer"]["calibration"]
    assert coefficients.shape == (len(PRIOR),) and not torch.allclose(coefficients, torch.tensor(PRIOR))
    last = load_checkpoint(home / "last.pt")
    assert torch.equal(last["colorizer"]["calibration"], coefficients) and len(last["left_out_classifiers"]) > 1
    assert "left_out_classifiers" not in load_checkpoint(home / "best.pt")
    palettes = [state["palette"] for state in last["left_out_classifiers"].values()]
    assert all(torch.equal(palette, last["colorizer"]["palette_classifier.palette"]) for palette in palettes)


def test_without_a_memory_confidence_is_nan(home):
    for predictor in (Predictor.load(home / "gan" / "best.pt"),
                      Predictor.load(home / "best.pt", color_feature="ground_truth")):
        _, confidence = predictor.predict_ab([rgb_to_lab(draw_picture(0))])
        assert all(x.shape == (1, 1, 1) and np.isnan(x).all() for x in confidence)
    for settings in ({"checkpoint": home / "gan" / "best.pt"}, {"color_feature": "ground_truth"}):
        with pytest.raises(UserError, match="--confidence needs the spatial memory"):
            test.main(flags(**{"checkpoint": home / "best.pt", "input": home / "test", "output": home / "no",
                               "confidence": True, **settings}))


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
    pictures, films, _ = find_inputs(tmp_path, tmp_path / "out", True)
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
    assert times_and_sound(tmp_path / "out_confidence.mp4")[2] == (132, 96)

    class Blind(StubPredictor):
        def predict(self, L, palette):
            return super().predict(L, palette)[0], Confidence.unknown(len(L))

    assert np.isnan(color(source, tmp_path / "blind.mkv", Blind())[0].confidence)
    assert all(np.ptp(read(), 2).max() < 8 for read in frame_readers(tmp_path / "blind_confidence.mp4"))


def test_maps_of_large_films_are_smaller(tmp_path, monkeypatch):
    """Height and width are those of the film, divided by the same whole number."""
    monkeypatch.setattr(confidence_video, "MAX_HEIGHT", 90)
    source = draw_shots(tmp_path / "in.mkv", [(60, 12)], size=(256, 192))
    color(source, tmp_path / "out.mkv", Doubter())
    assert times_and_sound(tmp_path / "out_confidence.mp4")[2] == (86, 64)
    (picture, *_), (gray, *_) = ([read() for read in frame_readers(path)] for path in
                                 (tmp_path / "out_confidence.mp4", source))
    expected = 0.45 * resize(gray, 64, 86) + 0.55 * np.where(np.arange(86)[:, None] < 43, *(
        np.array(COLORS[name]) for name in ("recalled", "unknown")))
    assert np.abs(picture - expected)[:, np.r_[:20, 66:86]].mean() < 3


def test_image_sequences_get_a_video_as_map(home, tmp_path):
    for number in range(12):
        write_image(tmp_path / "in" / f"frame_{number}.png", draw_picture(0))
    run(home, tmp_path / "in", tmp_path / "out", confidence=True)
    assert len(times_and_sound(tmp_path / "out" / "frame_confidence.mp4")[0]) == 12
    assert (tmp_path / "out" / "frame_11.png").exists() and not list((tmp_path / "out").glob("*_confidence.png"))
