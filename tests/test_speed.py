"""The reference of the speed benchmark computes the same function as the fast parts, and the benchmark runs."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from drawn import draw_dataset, draw_picture, draw_shots


from benchmarks import large_set, precision, reference, speed

from colorizer.backbone import Backbone
from config import PaletteClassifierConfig, TrainConfig
from dataset import ColorizationDataset, color_feature, rgb_to_lab
from fileio.images import read_image, write_image
from networks import ColorConv
from training.learner import Learner
from training.preparation import build_model_config
from utils import autocast


@pytest.mark.parametrize("picture", [draw_picture(0), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)])
def test_color_feature(picture):
    ab = rgb_to_lab(picture)[..., 1:]
    assert np.abs(reference.color_feature(ab) - color_feature(ab)).sum() < 1e-3


def test_first_layer_forward_and_backward():
    torch.manual_seed(0)
    ours, color = ColorConv(3, 8), torch.rand(2, 313).softmax(1)
    plain, results = reference.first_layer(ours), []
    picture, weight = torch.rand(2, 3, 16, 20), torch.rand(2, 8, 8, 10)
    for layer, arguments in ((ours, (color,)), (plain, ())):
        x = picture.clone().requires_grad_()
        out = layer(x if arguments else reference.lay_out(x, color), *arguments)
        (out * weight).sum().backward()
        results.append((out, x.grad))
    for mine, its in zip(*results, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([ours.picture.weight.grad, ours.color.grad], 1), plain.weight.grad,
                               atol=1e-4, rtol=1e-5)


def test_backbone_and_batch(tmp_path):
    for number in range(2):
        write_image(tmp_path / f"frame_{number}.png", draw_picture(number, (768, 512)))
    data = ColorizationDataset(tmp_path, 128)
    batch = reference.read_batch(data.paths[:2], data.ids[:2], 128)
    for i in range(2):
        item = data[i]
        assert set(item) == {*batch, "index"} and item["image_id"] == batch["image_id"][i]
        for name, tolerance in (("L", 0.003), ("ab", 0.005), ("gray", 0.02)):  # ours are of 8 bits
            torch.testing.assert_close(item[name], batch[name][i], atol=tolerance, rtol=0)
        assert (item["color_feature"] - batch["color_feature"][i]).abs().sum() < 1e-3
    ours = Backbone()(batch["gray"])[0]
    torch.testing.assert_close(reference.Backbone()(batch["gray"]), ours, atol=1e-4, rtol=1e-3)


def test_training_steps(tmp_path):
    """Two steps from the same weights: the losses of both, and the weights that they leave."""
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
    for chosen in ([0, 1, 2], [3, 4, 1]):  # only a filled memory has a triplet
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


def test_a_film_of_one_drawing(tmp_path):
    """Its frames and its one shot have the same palette, so both ways of coloring give the same colors."""
    film = draw_shots(tmp_path / "film.mp4", [(120, 8)], hold=8)
    folder = draw_dataset(tmp_path / "data", val=0, test=0) / "train"
    predictor = speed.make_predictor(ColorizationDataset(folder, 128), TrainConfig(width=4), torch.device("cpu"), "fp32")
    reference.color_film(predictor, film, tmp_path / "reference.mp4", 4)
    speed.color_film(predictor, speed.VideoFile(film), tmp_path / "ours.mp4", speed.FilmConfig(response="none"))
    pictures = []
    for name in ("reference", "ours"):
        found = speed.film_pictures(tmp_path / f"{name}.mp4", tmp_path / name, 4)
        pictures.append(read_image(found[0]).astype(int))
    assert pictures[0].std() > 5 and np.abs(pictures[0] - pictures[1]).mean() < 3


def test_the_whole_benchmark(tmp_path, monkeypatch, capsys):
    for name, value in {"WIDTH": 4, "BATCH": 2, "SIZES": (128,), "STYLE_HIDDEN": 32, "PICTURES": 4, "MATRIX": 64,
                        "SET_SIZES": (8, 16), "CLIP_SECONDS": 1, "REFERENCE_FRAMES": 2,
                        "TrainConfig": partial(TrainConfig, width=4, palette_classifier=PaletteClassifierConfig(input_size=128))}.items():
        monkeypatch.setattr(speed, name, value)
    # Processes would take most of the time, to import.
    monkeypatch.setattr(speed, "ProcessPoolExecutor", lambda count, context: ThreadPoolExecutor(count))
    film = draw_shots(tmp_path / "film.mp4", [(60, 16), (200, 16)])
    speed.main(["--film", str(film), "--quick", "--output", str(tmp_path / "speed.json")])
    report = json.loads((tmp_path / "speed.json").read_text())
    printed = capsys.readouterr().out
    assert report["film"] == "film.mp4" and report["machine"]["threads"] >= 1
    assert len(report["rows"]) == 8 + 2 * len(report["machine"]["precisions"])
    for row in report["rows"]:
        assert row["figure"] in printed and min(row["reference"], row["ours"], row["ratio"]) > 0


def test_rows_by_hand():
    row = speed.row("step", [4.0, 8.0, 100.0], [2.0, 1.0, 3.0], "pictures/s", 8, ">= 3")
    assert (row["reference"], row["ours"], row["ratio"]) == (1, 4, 4)
    row = speed.row("feature", [0.3], [0.1], count=10)
    assert (row["reference"], row["ours"], row["ratio"]) == pytest.approx((30, 10, 3))
    calls = []
    seconds = speed.in_turn(2, a=lambda: calls.append("a"), b=lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3 and len(seconds["a"]) == len(seconds["b"]) == 2


def has_bfloat16():
    with autocast(torch.device("cpu"), "auto"):
        return torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(not has_bfloat16(), reason="a processor without bfloat16 takes minutes for it")
def test_precisions_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "TrainConfig", partial(TrainConfig, width=4, epoch_steps=1))
    film = draw_shots(tmp_path / "film.mp4", [(60, 30), (200, 30), (120, 30)])
    precision.main(["--film", str(film), "--epochs", "1", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    fp32, bf16 = (float(line.split(": ")[1]) for line in lines[:2])
    assert lines[0].startswith("seed 0, fp32") and lines[1].startswith("seed 0, bf16") and fp32 > 0
    assert float(lines[2].split()[-1]) == pytest.approx(bf16 / fp32, abs=2e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_own_memory_is_what_a_process_takes_for_itself():
    child = "import sys; taken = bytearray(b'1') * 10**8; print('ready', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", child], **pipes) as process:
        assert process.stdout.readline() == b"ready\n"
        assert 1e8 < large_set.own_memory(process) < 2e8
