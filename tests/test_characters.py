"""Character sheets: cutting out, recognition in scenes, errors, incremental rendering and checkpoints."""

from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from test_train import flags

import train

from resources.draw_episodes import background, draw_frame, draw_sheet

from colorizer.character_classifier import fit_characters
from colorizer.characters import CutOutConfig, cut_out, read_character, read_characters
from colorizer.palette_classifier import identify_objects
from colorizer.predictor import Predictor
from colorizer.series_colors import learned_colors
from config import PaletteClassifierConfig, TrainConfig, TrainingConstants
from dataset import ColorizationDataset, rgb_to_lab
from fileio.checkpoints import load_checkpoint
from fileio.images import write_image
from fileio.palettes import write_palette
from film.io.video import VideoFile
from film.render.incremental import find_changed_shots
from test import main
from training.augmentation import TrainingViews
from utils import UserError

FRAMES = 4  # of a shot


def draw_figure(ground, body=(200, 60, 60), line=(20, 20, 20)):
    """Return a drawing, RGB uint8 (100, 120, 3), of a body with a thin outline and an arm that encloses a pocket, and
    the masks of body and pocket."""
    picture = np.full((100, 120, 3), ground, np.uint8)
    masks = [np.zeros((100, 120), np.uint8) for _ in range(2)]
    cv2.ellipse(picture, (45, 50), (25, 40), 0, 0, 360, body, -1, cv2.LINE_AA)
    cv2.ellipse(picture, (45, 50), (25, 40), 0, 0, 360, line, 2, cv2.LINE_AA)
    cv2.ellipse(picture, (75, 50), (18, 20), 0, -150, 150, line, 5, cv2.LINE_AA)
    cv2.ellipse(masks[0], (45, 50), (22, 37), 0, 0, 360, 1, -1)
    cv2.ellipse(masks[1], (79, 50), (8, 12), 0, 0, 360, 1, -1)
    return picture, *(mask > 0 for mask in masks)


# ---------------------------------------------------------------------------------------------------------------------
# Cutting out


@pytest.mark.parametrize("ground, body, suffix", [
    ((255, 255, 255), (200, 60, 60), ".png"), ((255, 255, 255), (200, 60, 60), ".jpg"),
    ((30, 160, 60), (200, 60, 60), ".jpg"), ((0, 0, 0), (60, 60, 200), ".webp")])
def test_the_background_and_pockets_of_it_are_cut_away(tmp_path, ground, body, suffix):
    picture, inside, pocket = draw_figure(ground, body, (90, 30, 90))
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(picture).save(path, quality=90, lossless=False)
    mask = cut_out(np.array(Image.open(path).convert("RGB")), CutOutConfig(min_pocket=0.02))
    assert mask[inside].mean() > 0.99 and mask[pocket].mean() < 0.05 and not mask[:5].any() and not mask[:, :15].any()


def test_a_character_of_the_background_color_is_kept():
    picture, inside, _ = draw_figure((255, 255, 255), (255, 255, 255))
    picture[48:50, 15:24] = 255  # a gap of 2 pixels in the outline
    assert cut_out(picture, CutOutConfig())[inside].mean() > 0.95


def test_a_character_may_touch_the_border_and_separate_the_background():
    picture = np.full((60, 80, 3), 255, np.uint8)
    cv2.line(picture, (30, -5), (50, 65), (200, 60, 60), 20, cv2.LINE_AA)
    mask = cut_out(picture, CutOutConfig())
    assert mask[30, 32:48].all() and not mask[:, :15].any() and not mask[:, -15:].any()


def test_transparency_takes_precedence_and_characters_are_cropped(tmp_path):
    picture, inside, _ = draw_figure((0, 255, 0))
    (tmp_path / "ruby").mkdir()
    Image.fromarray(np.dstack([picture, inside * np.uint8(255)])).save(tmp_path / "ruby" / "a.png")
    (character,) = read_characters(tmp_path)
    rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    assert character.name == "ruby" and character.mask.shape == (np.ptp(rows) + 1, np.ptp(columns) + 1)
    assert (np.abs(character.rgb.astype(int) - (200, 60, 60)).max(-1) < 200).all()  # no green around it


def gray(picture):
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


@pytest.mark.parametrize("picture, message", [
    (draw_frame(1, 20), "is a scene, since its border is not flat"),
    (np.pad(draw_frame(1, 20), ((40, 40), (40, 40), (0, 0))), "is a scene with a flat border"),
    (gray(draw_sheet("ruby", "stand")), "is grayscale; color it"), (np.full((50, 50, 3), 255, np.uint8), "is blank")])
def test_errors_name_the_picture(tmp_path, picture, message):
    write_image(tmp_path / "a.png", picture)
    with pytest.raises(UserError, match=f"a.png {message}"):
        read_character(tmp_path / "a.png")


def test_errors_of_folders(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        read_characters(tmp_path / "none")
    write_image(tmp_path / "a.png", draw_sheet("ruby", "stand"))
    with pytest.raises(UserError, match="has no subfolders; put the pictures of each character"):
        read_characters(tmp_path)
    (tmp_path / "ruby").mkdir()
    with pytest.raises(UserError, match="there is no picture in"):
        read_characters(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Coloring


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the checkpoint of a small network, trained on scenes without characters, sheets of ruby, and a
    grayscale film of a scene with ruby and one without."""
    home = tmp_path_factory.mktemp("home")
    for number in range(12):
        scene = background(("meadow", "room", "beach", "street", "forest")[number % 5])
        x, y = 90 * number, 30 * number
        picture = cv2.resize(scene[y:y + 720, x:x + 1280], (320, 180), interpolation=cv2.INTER_AREA)
        write_image(home / ("val" if number < 2 else "train") / f"{number}.png", picture)
    train.train(TrainConfig(data_path=str(home), save_path=str(home / "run"), width=4, batch_size=2, end_epoch=1,
                            palette_classifier=PaletteClassifierConfig(character_threshold=0.45)))
    for number, act in enumerate(("stand", "wave")):
        write_image(home / "sheets" / "ruby" / f"{number}.png", draw_sheet("ruby", act))
    street = cv2.resize(background("street"), (320, 180), interpolation=cv2.INTER_AREA)
    ruby = cv2.resize(draw_frame(2, 160), (320, 180), interpolation=cv2.INTER_AREA)
    with av.open(str(home / "film.mkv"), "w") as film:
        stream = film.add_stream("libx264", rate=12, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for picture in [ruby] * FRAMES + [street] * FRAMES:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(gray(picture), format="rgb24")))
        film.mux(stream.encode(None))
    return home


def load(home, **settings):
    return Predictor.load(home / "run" / "best.pt", **settings)


def changed_frames(*films):
    """Return the indices of the frames that differ between two films."""
    before, after = ([planes.cb for _, _, planes in VideoFile(path).read()] for path in films)
    return [index for index in range(len(before)) if not np.array_equal(before[index], after[index])]


def color(home, output, **settings):
    main(flags(checkpoint=home / "run" / "best.pt", input=home / "film.mkv", output=output, suggest=0, **settings))


def test_characters_are_recognized_in_scenes_without_training(home):
    predictor, rgb, mask = load(home), draw_frame(2, 160), draw_frame(2, 160, mask_of="ruby")
    before = predictor.colorize([rgb])[0]
    constants = replace(predictor.config.palette_classifier, training_views=32, training_steps=150)
    predictor.colorizer.config = replace(predictor.config, palette_classifier=constants)
    fit_characters(predictor.extractor, read_characters(home / "sheets"))
    after = predictor.colorize([rgb])[0]
    error = [np.abs(rgb_to_lab(picture) - rgb_to_lab(rgb))[mask].mean() for picture in (before, after)]
    assert error[1] < 0.7 * error[0], error
    far = cv2.dilate(mask.astype(np.uint8), np.ones((121, 121))) == 0
    assert np.abs(after.astype(int) - before)[far].mean() < 1


def test_only_shots_with_characters_are_colored_again(home, tmp_path):
    """Also when characters are removed, and with a checkpoint that has learned them."""
    updated, whole = tmp_path / "updated.mkv", tmp_path / "whole.mkv"
    color(home, updated)
    plain = updated.read_bytes()
    sheets = home / "sheets"
    assert find_changed_shots(load(home, characters=sheets), VideoFile(home / "film.mkv"), updated) == [0]
    color(home, updated, characters=sheets)
    color(home, whole, characters=sheets, save_checkpoint=tmp_path / "better.pt")
    assert updated.read_bytes() == whole.read_bytes()
    color(home, updated)
    assert updated.read_bytes() == plain
    assert changed_frames(whole, updated) == list(range(FRAMES))
    content = load_checkpoint(tmp_path / "better.pt")
    assert list(content["characters"]) == ["ruby"] and content["characters"]["ruby"].dtype == torch.uint8
    better, again = Predictor.load(tmp_path / "better.pt"), load(home, characters=sheets)
    assert [each.name for each in better.characters] == ["ruby", "ruby"]
    assert np.array_equal(better.colorize([draw_frame(2, 160)])[0], again.colorize([draw_frame(2, 160)])[0])
    known = Predictor.load(tmp_path / "better.pt", characters=sheets)
    assert len(known.characters) == 2 and known.identity == better.identity, "known pictures are left out"


def test_sheets_come_before_palette_and_references(home, tmp_path, capsys):
    """Their colors are known to the palette, and references do not change how they are recognized."""
    predictor = load(home, characters=home / "sheets")
    color, *_ = learned_colors(predictor.colorizer, {}, predictor.characters)
    write_palette(tmp_path / "show.ini", [color._replace(locked=True)])
    write_image(tmp_path / "references" / "a.png", draw_frame(2, 160))
    everything = load(home, characters=home / "sheets", palette=tmp_path / "show.ini",
                      references=tmp_path / "references")
    assert "knows no color" not in capsys.readouterr().err
    for one, other in zip(predictor.colorizer.character_classifier.state_dict().values(),
                          everything.colorizer.character_classifier.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    without = load(home, palette=tmp_path / "show.ini")
    assert color.color in everything.named_colors.learned and color.color not in without.named_colors.learned


def test_characters_need_a_palette_classifier(home):
    predictor = load(home)
    predictor.colorizer.config = replace(predictor.config, use_palette_classifier=False)
    with pytest.raises(UserError, match="--characters needs a checkpoint with a palette classifier"):
        predictor.add_characters(read_characters(home / "sheets"))


def test_sheets_are_enough_to_train(home, tmp_path):
    run = tmp_path / "run"
    train.main(flags(characters=home / "sheets", data_path=tmp_path / "none", save_path=run, width=4, end_epoch=1))
    content = load_checkpoint(run / "best.pt")
    assert content["model_config"]["only_characters"] and list(content["characters"]) == ["ruby"]
    assert content["model_config"]["spatial_size"] == len(content["frames"]) == 10
    train.main(flags(save_path=run, resume=True, end_epoch=2))
    assert [each.name for each in Predictor.load(run / "best.pt").characters] == ["ruby", "ruby"]


def test_characters_are_pasted_into_training_views(home):
    data = ColorizationDataset(home / "train", 128)
    views = [TrainingViews(data, TrainingConstants(character_probability=1.0), characters=characters)
             for characters in ([], read_characters(home / "sheets"))]
    plain, pasted = ([view[0, seed] for seed in range(6)] for view in views)
    changed = [(one["L"] != other["L"]).float().mean().item() for one, other in zip(plain, pasted, strict=True)]
    assert all(0.005 < share < 0.9 for share in changed), changed


def test_an_object_is_one_character():
    """Cells that look like both characters get the character of their object; objects do not influence each other, and
    a certain part of an object keeps its own."""
    probability, weight = np.full((2, 64, 64), 0.5, np.float32), np.zeros((64, 64), np.float32)
    weight[4:20, 4:20] = weight[30:60, 4:60] = 1
    probability[:, 4:8, 4:20] = [[[0.7]], [[0.3]]]  # the upper quarter of the first object
    probability[:, 30:60, 4:50] = [[[0.4]], [[0.6]]]
    probability[:, 30:60, 50:60] = [[[0.99]], [[0.01]]]  # another character next to the second object
    share = identify_objects(probability, weight, PaletteClassifierConfig())
    np.testing.assert_allclose(share.sum(0), 1, atol=1e-5)
    assert share[0, 4:20, 4:20].min() > 0.7
    assert share[1, 30:60, 4:40].min() > 0.9
    assert share[0, 30:60, 56:60].min() > 0.9
