"""The palette classifier: palette, projection, class logits and their combination with the generator."""

from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
from drawn import draw_picture, feature
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from colorizer.colorizer import Colorizer
from colorizer.feature_extraction import FeatureExtractor
from colorizer.palette_classifier import (
    GroupDropout, PaletteClassifier, _pool_regions, _pool_regions_by_product, shift_cell_means)
from colorizer.predictor import Palette, Predictor
from config import ModelConfig, PaletteClassifierConfig, TrainConfig
from dataset import AB_SCALE, ColorizationDataset, rgb_to_lab
from fileio.images import write_image
from training.preparation import build_model_config, classify_pictures, train_palette_classifier

CHANNELS = (2,)  # of the only backbone map; cells have 12 features: these and 10 of the lightness
RED, CREAM, TEAL = (60.0, 45.0), (5.0, 20.0), (-40.0, -8.0)


def classifier_with(*colors, **settings):
    """Return a classifier with these colors as its palette."""
    config = PaletteClassifierConfig(palette_size=len(colors), discriminant_axes=2, **settings)
    classifier = PaletteClassifier(CHANNELS, config)
    classifier.palette.copy_(torch.tensor(colors))
    return classifier


def clouds(count=2000, seed=0):
    """Return features (T, 12) of cells, their ab (T, 2) and class (T,), for three colors. Two channels separate the
    classes; the other channels are noise, which is much stronger in one of them."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, count)
    features = rng.normal(size=(count, 12)) * [0.1, 0.1, 5, 0.3, 0.1, *[0.2] * 7]
    features[:, 0] += 0.5 * (kind == 1)
    features[:, 4] += 0.5 * (kind == 2)
    features[:, 1] += features[:, 2] / 9  # correlated noise
    ab = np.array([RED, CREAM, TEAL])[kind]
    return torch.from_numpy(features).float(), torch.from_numpy(ab).float(), kind


def test_the_palette_has_the_colors_of_the_series():
    features, ab, _ = clouds()
    classifier = PaletteClassifier(CHANNELS, PaletteClassifierConfig(palette_size=5, discriminant_axes=2))
    classifier.fit(features, ab)
    distance = torch.cdist(classifier.palette, torch.tensor([RED, CREAM, TEAL]))
    assert (distance.min(1).values < 0.01).all() and (distance.min(0).values < 0.01).all()


def test_labels_are_soft_and_weights_have_mean_one():
    classifier = classifier_with(RED, CREAM, (5.0, 25.0))
    labels = classifier.soft_labels(torch.tensor([RED, CREAM]))
    torch.testing.assert_close(labels[0], torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)
    near = np.exp(-25 / (2 * 5**2))
    torch.testing.assert_close(labels[1], torch.tensor([0, 1 / (1 + near), near / (1 + near)]).float())
    weights = classifier.sample_weights(torch.tensor([[110.0, 0], [0, 0]]))
    assert weights.mean() == 1 and weights[0] / weights[1] == pytest.approx(1 + PaletteClassifierConfig.chroma_weight)


def test_the_projection_is_that_of_discriminant_analysis():
    """With hard labels, equal weights and no shrinkage, distances between centers equal those of scikit-learn."""
    features, ab, kind = clouds()
    config = PaletteClassifierConfig(palette_size=3, discriminant_axes=2, shrinkage=0.0, label_sigma=0.1,
                                     chroma_weight=0.0)
    classifier = PaletteClassifier(CHANNELS, config)
    projected = classifier.fit(features, ab).numpy()
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(features.numpy(), kind).transform(features.numpy())

    def distances(points):
        centers = np.stack([points[kind == k].mean(0) for k in range(3)])
        return np.linalg.norm(centers[:, None] - centers[None], axis=2)

    np.testing.assert_allclose(distances(projected), distances(reference), rtol=5e-3)
    spread = np.concatenate([projected[kind == k] - projected[kind == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(spread.T @ spread / len(spread), np.eye(2), atol=1e-2)


def test_cell_features_equal_a_direct_computation():
    """Maps resized to the cells, and the lightness of 3 x 3 cells with repeated borders."""
    maps = [torch.randn(2, 3, 16, 16), torch.randn(2, 4, 8, 8), torch.randn(2, 5, 3, 3)]
    L = torch.rand(2, 1, 32, 32)
    features = PaletteClassifier.cell_features(maps, L, torch.arange(64)).unflatten(1, (8, 8))
    expected = torch.nn.functional.interpolate(maps[2], (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features[..., :3], torch.nn.functional.avg_pool2d(maps[0], 2).permute(0, 2, 3, 1))
    torch.testing.assert_close(features[..., 3:7], maps[1].permute(0, 2, 3, 1))
    torch.testing.assert_close(features[..., 7:12], expected.permute(0, 2, 3, 1))
    lightness = torch.nn.functional.avg_pool2d(L, 4)[:, 0]
    torch.testing.assert_close(features[:, 1:-1, 1:-1, 12:21].flatten(3), torch.stack(
        [lightness[:, y:y + 6, x:x + 6] for y in range(3) for x in range(3)], 3))
    torch.testing.assert_close(features[:, 0, 0, 12:14], lightness[:, 0, 0, None].expand(2, 2))
    torch.testing.assert_close(features[..., 21], lightness.square())


def test_logits_of_all_cells_equal_those_of_single_cells(monkeypatch):
    """Projecting the maps before enlarging them gives the same result. Each cell is its own region."""
    torch.manual_seed(0)
    classifier = PaletteClassifier((3, 4), PaletteClassifierConfig(input_size=64, palette_size=5, discriminant_axes=4))
    for weights in (classifier.mean, classifier.projection):
        weights.normal_()
    maps, L = [torch.randn(2, 3, 32, 32), torch.randn(2, 4, 4, 4)], torch.rand(2, 1, 64, 64)
    monkeypatch.setattr(classifier, "find_regions", lambda lightness: torch.arange(256).expand(2, -1))
    logits = classifier.eval()(maps, L)
    chosen = torch.tensor([200, 3, 17])
    features = classifier.cell_features(maps, L, chosen) - classifier.mean
    alone = classifier.mlp(features @ classifier.projection).log_softmax(2)
    assert logits.shape == (2, 5, 16, 16)
    torch.testing.assert_close(logits.flatten(2)[..., chosen].transpose(1, 2), alone, rtol=1e-4, atol=1e-4)


def test_class_probabilities_are_pooled_over_regions():
    """In a dark disc on a light background, clearly red cells determine those that could also be teal; the
    background keeps its color."""
    y, x = np.indices((32, 32))
    far = torch.from_numpy(np.hypot(y - 16, x - 16))
    region, = classifier_with(RED, CREAM, TEAL).find_regions(torch.where(far < 10, 0.2, 0.9)[None].float())
    disc, ground = (far < 8).flatten(), (far > 12).flatten()  # the edge may be a third region
    assert [region[part].unique().numel() for part in (disc, ground, disc | ground)] == [1, 1, 2]
    chances = torch.tensor([0.02, 0.96, 0.02]).repeat(1024, 1)
    chances[disc] = torch.tensor([0.9, 0.05, 0.05])
    unsure = disc & torch.from_numpy(x < 12).flatten()
    chances[unsure] = torch.tensor([0.45, 0.05, 0.5])
    pooled, = _pool_regions(chances.log()[None], region[None], int(region.max()) + 1)
    torch.testing.assert_close(pooled[unsure][0].exp(), chances[region == region[disc][0]].mean(0))
    joint = (chances.log() + pooled).argmax(1)
    assert (joint[disc] == 0).all() and (joint[ground] == 1).all()


def test_pooling_by_a_matrix_product_equals_pooling_by_addition():
    torch.manual_seed(0)
    logits, regions = torch.randn(2, 64, 5).log_softmax(2), torch.randint(9, (2, 64))
    torch.testing.assert_close(_pool_regions_by_product(logits, regions, 10), _pool_regions(logits, regions, 10))


def test_training_the_mlp():
    torch.manual_seed(0)
    features, ab, _ = clouds()
    config = PaletteClassifierConfig(palette_size=3, discriminant_axes=2, hidden_dim=32, learning_rate=1e-2)
    classifier = PaletteClassifier(CHANNELS, config)
    classifier.train_mlp(classifier.fit(features, ab), ab, steps=300, batch=256)
    new, true, _ = clouds(400, seed=1)
    logits = classifier.mlp((new - classifier.mean) @ classifier.projection)
    assert (classifier.palette[logits.argmax(1)] - true).norm(dim=1).lt(1).float().mean() > 0.95


def test_combining_selects_a_color_instead_of_a_pale_mean():
    """With equal logits, a generator color between red and cream, slightly nearer to red, becomes red. Clear logits
    decide, and logits for one class do not override a generator color that is far from it."""
    classifier = classifier_with(RED, CREAM, TEAL, generator_sigma=15.0)
    between = torch.tensor(CREAM) + 0.6 * (torch.tensor(RED) - torch.tensor(CREAM))
    ab = (between / AB_SCALE).view(1, 2, 1, 1).expand(1, 2, 16, 16).clone()
    equal = torch.tensor([0.0, 0.0, -9.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    color = AB_SCALE * classifier.combine(ab, equal)[0][0, :, 8, 8]
    assert (color - torch.tensor(RED)).norm() < 5 < 15 < (between - torch.tensor(RED)).norm()
    cream = torch.tensor([0.0, 5.0, -9.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert (AB_SCALE * classifier.combine(ab, cream)[0][0, :, 8, 8] - torch.tensor(CREAM)).norm() < 3
    teal = (torch.tensor(TEAL) / AB_SCALE).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    cream = torch.tensor([0.0, 5.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert (AB_SCALE * classifier.combine(teal, cream)[0][0, :, 8, 8] - torch.tensor(TEAL)).norm() < 3


def test_combined_probabilities_equal_a_direct_computation():
    classifier = classifier_with(RED, CREAM, generator_sigma=20.0, temperature=0.5)
    ab = torch.tensor([30.0, 30.0])
    odds = 1.5 + (-(30**2 + 15**2) + 25**2 + 10**2) / (2 * 20**2)  # log odds of red against cream
    share = 1 / (1 + np.exp(-odds / 0.5))
    expected = share * torch.tensor(RED) + (1 - share) * torch.tensor(CREAM)
    joined, logits = classifier.combine((ab / AB_SCALE).view(1, 2, 1, 1), torch.tensor([1.5, 0.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(AB_SCALE * joined.flatten(), expected.float(), atol=1e-3, rtol=0)
    assert logits.flatten().tolist() == pytest.approx([share, 1 - share], abs=1e-4)


def test_shifting_cell_means_keeps_finer_detail():
    ab = torch.rand(2, 2, 32, 32)
    hint = torch.rand(2, 2, 4, 4)
    assert torch.equal(shift_cell_means(ab, hint, torch.zeros(2, 1, 4, 4)), ab)
    change = shift_cell_means(ab, hint) - ab
    smooth = torch.nn.functional.interpolate(hint - torch.nn.functional.adaptive_avg_pool2d(ab, 4), (32, 32),
                                             mode="bilinear", align_corners=False)
    torch.testing.assert_close(change, smooth)


def test_group_dropout_shares_a_mask_within_a_group():
    torch.manual_seed(0)
    dropout, x = GroupDropout(0.25), torch.ones(4 * GroupDropout.GROUPS, 50)
    dropped = dropout(x).view(GroupDropout.GROUPS, 4, 50)
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 4, -1))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert 0.7 < (dropped > 0).float().mean() < 0.8 and not torch.equal(dropped[0], dropped[1])
    assert dropout.eval()(x) is x


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    config = ModelConfig(img_size=128, width=4, mem_size=2, spatial_size=2, top_k=2, use_palette_classifier=True,
                         palette_classifier=PaletteClassifierConfig(input_size=512))
    colorizer = Colorizer(config, None).eval()
    colorizer.memory.used[:] = True
    colorizer.memory.keys[:] = torch.eye(2, 512)
    colorizer.palette_classifier.palette.normal_(0, 40)
    colorizer.palette_classifier.projection.normal_()
    return Predictor(colorizer, torch.device("cpu"), "fp32")


def test_only_keyframes_are_classified(predictor, monkeypatch):
    """All repetitions of a held frame get the colors of a single frame."""
    L = rgb_to_lab(draw_picture(1, (512, 512)))[..., 0]
    counts, classify = [], FeatureExtractor.classify
    monkeypatch.setattr(FeatureExtractor, "classify", lambda self, lightness, *args: (
        counts.append(len(lightness)), classify(self, lightness, *args))[1])
    palette = Palette(feature(3)[None], [], [], torch.zeros(0), 1.0)
    together, _ = predictor.predict(np.stack([L] * 12), palette)
    alone, _ = predictor.predict(L[None], palette)
    assert counts == [2, 1]
    np.testing.assert_allclose(together, np.repeat(alone, 12, 0), atol=0.5)


def test_the_classifier_is_only_used_with_the_memory(predictor):
    """A given palette must not be overridden by the colors of the series."""
    lab = rgb_to_lab(draw_picture(1, (128, 128)))
    own = Predictor(predictor.colorizer, torch.device("cpu"), "fp32", source="ground_truth")
    palette = predictor.colorizer.palette_classifier.palette.clone()
    before = own.predict_ab([lab])[0]
    predictor.colorizer.palette_classifier.palette.neg_()
    after, changed = own.predict_ab([lab])[0], predictor.predict_ab([lab])[0]
    predictor.colorizer.palette_classifier.palette.copy_(palette)
    assert np.array_equal(before, after) and np.abs(changed - predictor.predict_ab([lab])[0]).max() > 5


def test_a_trained_classifier_recognizes_new_frames_of_its_series(tmp_path):
    """It is trained on pictures of red discs and blue squares and tested on a new one."""
    for number in range(9):
        write_image(tmp_path / f"drawn_{number}.png", draw_picture(number))
    data = ColorizationDataset(sorted(tmp_path.iterdir()), 128)
    training_data = ColorizationDataset(sorted(tmp_path.iterdir())[:8], 128)
    torch.manual_seed(0)
    classifier = PaletteClassifierConfig(input_size=256, training_views=16, training_steps=150)
    config = TrainConfig(width=4, img_size=128, palette_classifier=classifier)
    colorizer = Colorizer(build_model_config(config, 8), None)
    train_palette_classifier(training_data, colorizer, nullcontext, TrainConfig())
    logits = classify_pictures(data, [8], colorizer, nullcontext).float()
    assert logits.shape == (1, 48, 64, 64)
    colors = colorizer.palette_classifier.palette[logits[0].argmax(0)]
    ground_truth = cv2.resize(rgb_to_lab(draw_picture(8)), (64, 64), interpolation=cv2.INTER_AREA)
    ground_truth = torch.from_numpy(ground_truth[..., 1:])
    assert ((colors - ground_truth).norm(dim=2) < 15).float().mean() > 0.9
    square = ground_truth[..., 1] < -40
    assert square.sum() > 20 and ((colors - ground_truth).norm(dim=2)[square] < 30).float().mean() > 0.7


@pytest.mark.parametrize("settings, message", [
    ({"palette_classifier": PaletteClassifierConfig(input_size=500)}, "input_size 500"),
    ({"palette_classifier": PaletteClassifierConfig(input_size=2**20)}, "input_size 1048576"),
    ({"use_spatial_memory": False}, "palette classifier needs")])
def test_invalid_configurations_are_errors(settings, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Colorizer(ModelConfig(use_palette_classifier=True, **settings))
