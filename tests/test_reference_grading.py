"""Grading of references: pictures from a different source are graded, and corrections of the user are not."""

from dataclasses import asdict, dataclass

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from resources.draw_episodes import PALETTE, draw_frame

from colorizer.adaptation.film_response import FilmResponse
from colorizer.adaptation.reference_grading import Grade, GradeConfig, fit_grade
from colorizer.backbone import extract_features
from colorizer.colorizer import Colorizer
from colorizer.metrics import color_differences
from colorizer.predictor import Predictor
from config import ColorConfig, ModelConfig
from dataset import color_feature, decode_lab8, lab_to_rgb, lab_to_tensors, resize, rgb_to_lab, tensors_to_lab
from fileio.checkpoints import save_checkpoint
from fileio.images import write_image
from test import coloring_facts

REMEMBERED = (8, 76, 216, 330)  # remembered frames of the drawn episode 1, from four shots


def crop(picture):
    """Crop RGB uint8 (H, W, 3) by 4 % at each side. Return (360, 480, 3)."""
    height, width, _ = picture.shape
    y, x = round(0.04 * height), round(0.04 * width)
    return resize(picture[y:-y, x:-x], 360, 480)


@dataclass
class Source:
    """A different source of the series: cropped, with other colors and luma, a logo, and JPEG compression."""

    grade: Grade
    gamma: float = 1.0

    def __call__(self, picture):
        codes = cv2.cvtColor(crop(picture), cv2.COLOR_RGB2YCrCb)
        codes[..., 0] = (255 * (codes[..., 0] / 255) ** self.gamma).round()
        graded = self.grade(cv2.cvtColor(codes, cv2.COLOR_YCrCb2RGB))
        cv2.putText(graded, "TV", (410, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 5, cv2.LINE_AA)
        encoded = cv2.imencode(".jpg", graded[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]


VIVID = Source(Grade(1.3, 6, (0, 0)))
FADED = Source(Grade(0.5, 0, (0, 0)), gamma=1.3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained checkpoint with the frames REMEMBERED in its memories."""
    count = len(REMEMBERED)
    colorizer = Colorizer(ModelConfig(img_size=128, width=4, mem_size=count, spatial_size=count), None).eval()
    labs = [rgb_to_lab(draw_frame(1, frame)) for frame in REMEMBERED]
    ids, cpu = torch.arange(count), torch.device("cpu")
    with torch.no_grad():
        features = extract_features(colorizer.backbone, [lab[..., 0] for lab in labs], cpu, "fp32")
        L, ab = map(torch.cat, zip(*(lab_to_tensors(resize(lab, 192, 192)) for lab in labs), strict=True))
        colorizer.spatial.fit_projection(features.cells)
        colorizer.spatial.write(ids, features, L, ab, ids)
        color_features = torch.stack([torch.from_numpy(color_feature(lab[::8, ::8, 1:])) for lab in labs])
        colorizer.memory.update(colorizer.memory.query(features.embedding), color_features, ids)
    path = tmp_path_factory.mktemp("series") / "best.pt"
    save_checkpoint(path, {"colorizer": colorizer.state_dict(), "model_config": asdict(colorizer.config),
                           "frames": {frame: str(frame) for frame in ids.tolist()}})
    return path


@pytest.fixture(scope="module")
def others():
    """Another frame of each shot of REMEMBERED."""
    return [draw_frame(1, frame + 6) for frame in REMEMBERED]


@pytest.fixture(scope="module")
def find(checkpoint):
    """``fit_grade`` with the memory and backbone of the checkpoint."""
    predictor = Predictor.load(checkpoint, precision="fp32")

    @torch.inference_mode()
    def find(pictures):
        return fit_grade(predictor.extractor.embed, predictor.colorizer.spatial, pictures, GradeConfig())

    return find


def test_a_grade_matches_hand_computed_values():
    """Cb and Cr (BT.601) of a pixel are rotated by 90 degrees, halved and shifted; luma and gray stay unchanged."""
    codes = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    pixel = np.array([120, 130, 100], np.uint8)
    y, cb, cr = codes @ pixel
    turned = codes @ Grade(0.5, 90, (10, 0))(pixel[None, None])[0, 0]
    assert turned == pytest.approx([y, 10 - cr / 2, cb / 2], abs=1)
    gray = np.full((2, 2, 3), 77, np.uint8)
    assert np.array_equal(Grade(2, 20, (0, 0))(gray), gray)


def test_a_grade_is_restored_from_its_matrix():
    grade = Grade(1.3, -6, (2, 5))
    again = Grade.from_matrix(grade.matrix)
    assert (again.gain, again.hue_rotation, *again.shift) == pytest.approx((1.3, -6, 2, 5))


@pytest.mark.parametrize("count", [1, 2])
def test_the_grade_of_a_different_source_is_found(find, others, count):
    """Saturation and hue are fitted from one or two pictures, and the graded pictures have the colors of the series."""
    grade = find([VIVID(picture) for picture in others[:count]])
    assert 1 / grade.gain == pytest.approx(1.3, rel=0.06) and grade.hue_rotation == pytest.approx(-6, abs=2.5)
    assert np.hypot(*grade.shift) < 3
    lab = rgb_to_lab(others[0])
    before, after = (distance(change(others[0]), lab) for change in (VIVID.grade, lambda p: grade(VIVID.grade(p))))
    assert after < before / 3


def distance(picture, lab):
    return color_differences(rgb_to_lab(picture), lab).mean()


def test_the_tone_curve_of_a_different_source_is_found(find, others):
    """The lightness of a faded source also gets nearer to that of the series."""
    faded = [FADED(picture) for picture in others[:2]]
    grade = find(faded)
    assert 1 / grade.gain == pytest.approx(0.5, abs=0.08) and "contrast" in str(grade)
    ground_truth = rgb_to_lab(crop(others[0]))[..., 0]
    before, after = (np.abs(rgb_to_lab(picture)[..., 0] - ground_truth).mean()
                     for picture in (faded[0], grade(faded[0])))
    assert after < before / 2


def repainted(monkeypatch, gray=None):
    """Return frames like ``others`` with the red cat in teal, and the lightness mapped by a FilmResponse."""
    monkeypatch.setitem(PALETTE, "ruby", PALETTE["tilo"])
    labs = [rgb_to_lab(draw_frame(1, frame + 6)) for frame in REMEMBERED]
    for lab in labs if gray else []:
        lab[..., 0] = gray(lab[..., 0])
    return [lab_to_rgb(lab) for lab in labs]


@pytest.mark.parametrize("gray", [None, FilmResponse(np.array([0, 100.0]), np.array([20, 80.0]))], ids=["own", "faded"])
def test_corrections_keep_their_colors(find, monkeypatch, gray):
    corrected = repainted(monkeypatch, gray)
    assert find(corrected) is None and find(corrected[2:3]) is None


@pytest.mark.parametrize("change", [
    lambda picture: picture, Grade(0.2, 0, (0, 0)), Grade(1, 120, (0, 0)), lambda picture: data.coffee(),
], ids=["the series", "nearly gray", "other hues", "a photo"])
def test_frames_of_the_series_strong_changes_and_unrelated_pictures_get_no_grade(find, others, change):
    assert find([change(picture) for picture in others[:2]]) is None


def test_graded_references_are_stored_in_the_memory(checkpoint, others, tmp_path, capsys):
    """One warning is printed, and the checkpoint keeps the graded colors; without matching, the identity differs."""
    vivid = [VIVID(picture) for picture in others[:2]]
    for index, picture in enumerate(vivid):
        write_image(tmp_path / "references" / f"{index}.png", picture)
    settings = {"references": tmp_path / "references", "precision": "fp32"}
    plain = Predictor.load(checkpoint, match_references=False, **settings)
    assert plain.grade is None and capsys.readouterr().err == ""
    matched = Predictor.load(checkpoint, save_checkpoint=tmp_path / "kept.pt", **settings)
    line, = capsys.readouterr().err.splitlines()
    assert f"the references differ from the series ({matched.grade})" in line and "--match_references False" in line
    assert plain.identity != matched.identity
    assert "references" not in coloring_facts(plain, ColorConfig())
    assert coloring_facts(matched, ColorConfig())["references"].startswith(str(matched.grade))
    restored = Predictor.load(tmp_path / "kept.pt")
    graded = matched.grade(vivid[1])
    for predictor, expected in ((plain, vivid[1]), (matched, graded), (restored, graded)):
        codes = predictor.colorizer.spatial.pictures[-1].float().permute(2, 0, 1)[None]
        found = tensors_to_lab(*decode_lab8(codes))[0]
        assert np.abs(found - resize(rgb_to_lab(expected), *found.shape[:2])).mean() < 0.5
