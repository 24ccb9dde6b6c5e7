"""Tests of the quality benchmark: protocols, untrained methods computed by hand, and a run of all methods."""

import csv
import json
import math
from dataclasses import replace

import av
import numpy as np
import pytest
from drawn import draw_picture
from skimage.color import deltaE_ciede2000

import train

from benchmarks import quality, search
from benchmarks.quality import (
    COLUMNS, ROWS, film_frames, main, make_methods, measure, print_table, split_frames, summarize)

from colorizer.metrics import ciede2000, color_differences
from config import SpatialConfig
from dataset import rgb_to_lab
from fileio.images import read_image, write_image
from utils import UserError


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three shots of 21 equal frames: of a disc, of a square, and of a disc again."""
    path = tmp_path_factory.mktemp("film") / "three.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shot in range(3):
            for _ in range(21):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(draw_picture(shot), format="rgb24")))
        output.mux(stream.encode(None))
    return path


@pytest.fixture
def small_networks(monkeypatch):
    for module in (quality, search):
        monkeypatch.setattr(module, "train", lambda config: train.train(replace(config, width=4)))


@pytest.mark.parametrize("shape", [(0, 3), (1, 1, 3), (70, 60, 3), (40000, 3)])
def test_color_differences_in_parts_equal_those_of_the_whole(shape):
    lab, truth = (np.random.default_rng(seed).uniform((0, -80, -80), (100, 80, 80), shape).astype(np.float32)
                  for seed in (1, 2))
    np.testing.assert_array_equal(color_differences(lab, truth), deltaE_ciede2000(truth, lab, channel_axis=-1))


def test_the_frames_of_each_shot_are_evenly_spaced(film, tmp_path):
    shots = film_frames(film, tmp_path / "frames")
    with open(tmp_path / "frames" / "frames.csv", newline="") as file:
        frame_of = {row["file"]: int(row["frame"]) for row in csv.DictReader(file)}
    frames = [[frame_of[str(path.relative_to(tmp_path / "frames"))] for path in shot] for shot in shots]
    assert frames == [[start, start + 5, start + 10, start + 15, start + 20] for start in (0, 21, 42)]


def test_known_shots_are_trained_on_their_first_middle_and_last_frames():
    trained, tested = split_frames([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], "known", seed=3)
    assert trained == [0, 2, 4, 5, 7, 9] and tested == [1, 3, 6, 8]


def test_unseen_shots_are_held_out_and_drawn_by_the_seed():
    shots = [list(range(5 * i, 5 * i + 5)) for i in range(10)]
    held_out = []
    for seed in range(4):
        trained, tested = split_frames(shots, "unseen", seed)
        assert split_frames(shots, "unseen", seed) == (trained, tested)
        shots_trained, shots_tested = ({frame // 5 for frame in frames} for frames in (trained, tested))
        assert len(shots_trained) == 7 and len(shots_tested) == 3 and not shots_trained & shots_tested
        assert {frame % 5 for frame in trained} == {0, 2, 4} and {frame % 5 for frame in tested} == {1, 3}
        held_out.append(tuple(sorted(shots_tested)))
    assert len(set(held_out)) > 1
    with pytest.raises(UserError, match="one shot"):
        split_frames(shots[:1], "unseen", 0)


def test_rows_without_training_have_the_scores_computed_by_hand(tmp_path):
    """The training set has two pictures of one color each; the test picture is the second one."""
    colors = (200, 60, 40), (60, 90, 210)
    paths = [tmp_path / f"flat_{i}.png" for i in range(2)]
    for path, color in zip(paths, colors, strict=True):
        write_image(path, np.full((48, 64, 3), color, np.uint8))
    red, blue = (rgb_to_lab(np.uint8([[color]]))[0, 0] for color in colors)
    methods, seconds = make_methods(["gray", "mean", "nearest"], paths, tmp_path / "work", 1, 128, 0)
    assert seconds == {"gray": 0, "mean": 0, "nearest": 0}

    labs = [rgb_to_lab(read_image(paths[1]))]
    gray, mean, nearest = (methods[name](labs)[0, 7, 7] for name in ("gray", "mean", "nearest"))
    assert gray.tolist() == [0, 0]
    assert mean == pytest.approx((red[1:] + blue[1:]) / 2, abs=1e-3)
    assert nearest == pytest.approx(blue[1:], abs=1e-3)

    rows = measure(methods, paths[1:], 128)
    assert rows["gray"]["psnr_ab"] == pytest.approx(10 * math.log10(220**2 / (blue[1:] ** 2).mean()), abs=0.2)
    plain = np.array([[[blue[0], 0, 0]]], np.float32)
    assert rows["gray"]["ciede2000"] == pytest.approx(ciede2000(plain, blue[None, None]), abs=1e-3)
    assert rows["gray"]["intersection"] == 0  # blue and gray share no bin
    assert rows["nearest"]["ciede2000"] == 0 and rows["nearest"]["psnr_ab"] == math.inf
    assert rows["nearest"]["intersection"] == pytest.approx(1, abs=1e-5) and rows["nearest"]["colorfulness"] == 0
    assert rows["nearest"]["ssim"] == 1 and rows["gray"]["colorfulness"] > 30
    assert all(row["lpips"] is None for row in rows.values())  # no weights were given


def test_mean_and_standard_deviation_over_the_seeds(capsys):
    seeds = [{"gray": {**dict.fromkeys(COLUMNS, value), "lpips": None}} for value in (1.0, 2.0, 3.0)]
    summary = summarize(seeds)
    assert summary["gray"]["ssim"] == {"mean": 2, "spread": 1, "seeds": [1, 2, 3]} and summary["gray"]["lpips"] is None
    print_table(summary)
    printed = capsys.readouterr().out
    assert "2.00 ± 1.00" in printed and "no weights" in printed
    print_table(summarize(seeds[:1]))
    assert "±" not in capsys.readouterr().out  # one run has no standard deviation


def test_a_run_of_every_row(film, tmp_path, capsys, small_networks):
    argv = [str(film), "--minutes", "0.001", "--seeds", "1", "--protocol", "unseen", "--output", str(tmp_path)]
    main(argv)
    report = json.loads((tmp_path / "three" / "quality.json").read_text())["protocols"]["unseen"]
    assert report["training_frames"] == 6 and report["test_frames"] == 2 and list(report["rows"]) == list(ROWS)
    values = {name: {column: cell and cell["mean"] for column, cell in row.items()}
              for name, row in report["rows"].items()}
    for row in values.values():
        assert all(math.isfinite(value) for column, value in row.items() if column != "lpips")
    assert values["memory"]["train_seconds"] == values["ground_truth"]["train_seconds"] > 0
    assert values["gray"]["train_seconds"] == 0 != values["gan"]["train_seconds"] != values["full"]["train_seconds"]
    printed = capsys.readouterr().out
    assert all(title in printed for title, _ in ROWS.values()) and "unseen shots" in printed
    assert "epoch" not in printed  # the output of the training runs is on stderr
    with pytest.raises(UserError, match="exists already"):
        main(argv)


@pytest.mark.parametrize("extra, message", [
    (["--minutes", "0"], "set them above 0"), (["--img_size", "100"], "not a multiple of 128"),
    (["missing.mp4"], "no film missing.mp4"), (["--rows", "best"], "invalid choice"),
])
def test_bad_input_is_an_error_before_any_training(film, tmp_path, extra, message):
    with pytest.raises(UserError, match=message):
        main([str(film), *extra, "--output", str(tmp_path)])


# ---------------------------------------------------------------------------------------------------------------------
# The search for defaults


@pytest.mark.parametrize("text, message", [
    ("nonsense=1", "is neither a constant"), ("photometric_weight=much", "values of type float"),
    ("photometric_weight", "values of type float"), ("dis_every=1.5", "values of type int"),
    ("use_memory=maybe", "values of type bool")])
def test_settings_that_cannot_be_varied_are_errors(text, message):
    with pytest.raises(UserError, match=message):
        search.parse(text)


def test_values_have_the_type_of_the_default():
    assert search.parse("feature_weight=1,2.5") == ("feature_weight", [1.0, 2.5])
    assert search.parse("precision=fp32,bf16") == ("precision", ["fp32", "bf16"])
    assert search.parse("use_memory=True,False") == ("use_memory", [True, False])


@pytest.mark.slow
def test_the_search_scores_each_value_on_other_test_frames(film, capsys, monkeypatch, small_networks):
    """Constants of the spatial memory and of the combination have an effect and are restored afterwards."""
    tested, default = [], SpatialConfig().feature_weight
    measure = search.measure
    monkeypatch.setattr(search, "measure", lambda *args: (tested.append(args[1]), measure(*args))[1])
    search.main([str(film), "--vary", "feature_weight=1000.0", "generator_sigma=1.0", "lambda_l1=1",
                 "--minutes", "0.01"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["", "three, known shots", "three, unseen shots", "mean"]
    assert [row[0] for row in rows[2:]] == ["default", "feature_weight 1000", "generator_sigma 1", "lambda_l1 1"]
    scores = [[float(cell) for cell in row[1:]] for row in rows[2:]]
    assert all(math.isclose(sum(row[:2]) / 2, row[2], abs_tol=0.02) for row in scores)
    assert scores[1][0] > scores[0][0]  # no colors are warped
    assert default == SpatialConfig().feature_weight
    assert scores[2] != scores[0]
    assert len(tested) == 8 and [len(paths) for paths in tested[:2]] == [8, 4]  # four of each shot
