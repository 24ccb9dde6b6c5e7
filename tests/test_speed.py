"""Tests of the speed benchmark: its reference gives the same results as the program, and the benchmark runs."""

import json
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch
from drawn import draw_dataset, draw_picture, draw_shots


from benchmarks import common, speed, speed_reference as reference, stages

from colorizer.backbone import Backbone
from config import PaletteClassifierConfig, TrainConfig
from dataset import ColorizationDataset, color_feature, rgb_to_lab
from fileio.images import read_image, write_image
from training.learner import Learner
from training.preparation import build_model_config


@pytest.mark.parametrize("picture", [draw_picture(0), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)])
def test_the_color_features_are_equal(picture):
    ab = rgb_to_lab(picture)[..., 1:]
    assert np.abs(reference.color_feature(ab) - color_feature(ab)).sum() < 1e-3


def test_the_embeddings_and_batches_are_equal(tmp_path):
    for number in range(2):
        write_image(tmp_path / f"frame_{number}.png", draw_picture(number, (768, 512)))
    data = ColorizationDataset(tmp_path, 128)
    batch = reference.read_batch(data.paths[:2], data.ids[:2], 128)
    for i in range(2):
        item = data[i]
        assert set(item) == {*batch, "index"} and item["image_id"] == batch["image_id"][i]
        for name, tolerance in (("L", 0.003), ("ab", 0.005), ("gray", 0.02)):  # ours have 8 bits
            torch.testing.assert_close(item[name], batch[name][i], atol=tolerance, rtol=0)
        assert (item["color_feature"] - batch["color_feature"][i]).abs().sum() < 1e-3
    ours = Backbone()(batch["gray"])[0]
    torch.testing.assert_close(reference.Backbone()(batch["gray"]), ours, atol=1e-4, rtol=1e-3)


def test_the_training_steps_are_equal(tmp_path):
    """Two steps from the same weights have the same losses and lead to the same weights."""
    folder = draw_dataset(tmp_path, train=6, val=0, test=0) / "train"
    config = TrainConfig(width=4, use_spatial_memory=False, dis_every=1, gen_lr=1e-4, alpha=2.0)
    ours = Learner(config, build_model_config(config, 6), torch.device("cpu"))
    plain = reference.Learner(config, 8, torch.device("cpu"), ours.generator.style.mlp[0].out_features)
    plain.generator.load_state_dict(ours.generator.state_dict())
    weights = ours.discriminator.state_dict()
    first = {name: weights.pop(f"first.{name}") for name in ("picture.weight", "picture.bias", "color")}
    plain.discriminator.load_state_dict({**weights, "first.bias": first["picture.bias"], "first.weight": torch.cat(
        [first["picture.weight"], first["color"]], 1)})
    plain.memory.load_state_dict(ours.colorizer.memory.state_dict())

    paths = sorted(folder.iterdir())
    for chosen in ([0, 1, 2], [3, 4, 1]):  # the triplet loss needs a filled memory
        batch = reference.read_batch([paths[i] for i in chosen], chosen, 128)
        features = ours.colorizer.backbone(batch["gray"])[0]
        its = plain.step(batch)
        views = {**batch, "view_feature": batch["color_feature"], "drop_conditioning": torch.zeros(3, dtype=torch.bool)}
        mine = ours.step(views, features, lambda: torch.autocast("cpu", enabled=False))
        assert set(mine) == {*its, "skipped_steps"} and mine["skipped_steps"] == 0
        for name in its:
            assert mine[name].item() == pytest.approx(its[name].item(), rel=1e-3, abs=1e-5), name
    assert its["mem_triplet"] > 0
    torch.testing.assert_close(ours.colorizer.memory.keys, plain.memory.keys, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.generator.output.weight, plain.generator.output.weight, atol=1e-4, rtol=0)


def test_the_colors_of_a_film_of_one_picture_are_equal(tmp_path):
    """Each frame and the shot have the same palette, so that both give the same colors."""
    film = draw_shots(tmp_path / "film.mp4", [(120, 8)], hold=8)
    folder = draw_dataset(tmp_path / "data", val=0, test=0) / "train"
    predictor = common.untrained_predictor(ColorizationDataset(folder, 128), TrainConfig(width=4), torch.device("cpu"),
                                           "fp32")
    reference.color_film(predictor, film, tmp_path / "reference.mp4", 4)
    speed.color_film(predictor, speed.VideoFile(film), tmp_path / "ours.mp4", speed.FilmConfig(response="none"))
    pictures = []
    for name in ("reference", "ours"):
        paths = common.write_film_frames(tmp_path / f"{name}.mp4", tmp_path / name, 4)
        pictures.append(read_image(paths[0]).astype(int))
    assert pictures[0].std() > 5 and np.abs(pictures[0] - pictures[1]).mean() < 3


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    for name, value in {"WIDTH": 4, "BATCH": 2, "SIZES": (128,), "STYLE_HIDDEN": 32, "PICTURES": 4,
                        "SET_SIZES": (8, 16), "CLIP_SECONDS": 1, "REFERENCE_FRAMES": 2,
                        "TrainConfig": partial(TrainConfig, width=4, palette_classifier=PaletteClassifierConfig(
                            input_size=128))}.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "run_in_process", lambda function, *arguments: function(*arguments))
    film = draw_shots(tmp_path / "film.mp4", [(60, 16), (200, 16)])
    speed.main(["--film", str(film), "--quick", "--output", str(tmp_path / "speed.json")])
    report = json.loads((tmp_path / "speed.json").read_text())
    printed = capsys.readouterr().out
    assert report["film"] == "film.mp4" and report["machine"]["threads"] >= 1
    assert len(report["rows"]) == 7 + len(report["machine"]["precisions"])
    for row in report["rows"]:
        assert row["figure"] in printed and min(row["reference"], row["ours"], row["ratio"]) > 0


def test_rows_computed_by_hand():
    row = speed.row("step", [4.0, 8.0, 100.0], [2.0, 1.0, 3.0], "pictures/s", 8, ">= 3")
    assert (row["reference"], row["ours"], row["ratio"]) == (1, 4, 4)
    row = speed.row("feature", [0.3], [0.1], count=10)
    assert (row["reference"], row["ours"], row["ratio"]) == pytest.approx((30, 10, 3))
    calls = []
    seconds = common.time_in_turn(2, a=lambda: calls.append("a"), b=lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3 and len(seconds["a"]) == len(seconds["b"]) == 2


def test_stages_time_functions_without_the_stages_within_them(monkeypatch):
    for owner, name in stages.STAGES.values():
        assert callable(getattr(owner, name))
    clock, times = stages.Clock(torch.device("cpu")), iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr(stages.Clock, "seconds", defaultdict(float))
    monkeypatch.setattr(clock, "now", lambda: next(times))
    clock.around("outer", clock.around("inner", lambda: None))()
    assert dict(clock.seconds) == {"inner": 3, "outer": 7}
