"""Tests of training: configuration, losses, training step, augmentation, loop, output files and resuming."""

import json
import shutil
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import draw_dataset, draw_picture
from torch.utils.tensorboard import SummaryWriter

import train
from colorizer.colorizer import Colorizer
from config import GeneratorConfig, ModelConfig, PredictorConfig, TrainConfig, TrainingConstants, restore
from dataset import ColorizationDataset, decode_lab8
from fileio.checkpoints import load_checkpoint
from fileio.images import read_image, write_image
from train import main
from training.augmentation import TrainingViews, ViewSampler
from training.learner import Learner, color_loss, discriminator_loss, generator_loss, integrator_loss
from training.preparation import FRAME_FIELDS, build_model_config
from utils import UserError, read_flags

MODES = {  # the three modes of the paper, and the default with the spatial memory
    "gan": {"use_memory": False, "use_feat_integrator": False, "gen_norm": "batch", "dis_norm": "None"},
    "memory": {"use_spatial_memory": False},
    "integrator": {"use_feat_integrator": True, "use_spatial_memory": False},
    "spatial": {},
}


def flags(**settings):
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("data"))


def run(data_path, save_path, **settings):
    """Train small networks and return the records of the log."""
    main(flags(data_path=data_path, save_path=save_path, **{"width": 4, "batch_size": 3, "end_epoch": 2, **settings}))
    return [json.loads(line) for line in (save_path / "log.jsonl").read_text().splitlines()]


def state_of(path):
    """Return {path in the dict: tensor} of all tensors of a checkpoint."""
    tensors = {}

    def walk(name, value):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}/{key}", inner)
        elif isinstance(value, list):
            for key, inner in enumerate(value):
                walk(f"{name}/{key}", inner)

    walk("", load_checkpoint(path))
    return tensors


# ---------------------------------------------------------------------------------------------------------------------
# Configuration


def test_flags_set_the_fields_of_the_configuration():
    given = {**MODES["gan"], "alpha": 0.3, "max_minutes": 2, "mem_size": 7}
    config = TrainConfig(**read_flags(TrainConfig, flags(**given), "train"))
    assert (config.use_memory, config.gen_norm, config.dis_norm, config.alpha, config.max_minutes, config.mem_size) == (
        False, "batch", "None", 0.3, 2.0, 7)
    assert read_flags(TrainConfig, [], "train") == {}
    assert {f.name for f in fields(ModelConfig)} - {*FRAME_FIELDS} <= {f.name for f in fields(TrainConfig)}


@pytest.mark.parametrize("settings, message", [
    ({"use_memory": False}, "set gen_norm batch or use_memory True"),
    ({"gen_norm": "batch"}, "set gen_norm adain or use_memory False"),
    ({"use_memory": False, "gen_norm": "batch", "use_feat_integrator": True}, "set use_memory True or use_feat_int"),
    ({"use_memory": False, "gen_norm": "batch"}, "set dis_norm None or gen_norm adain"),
    ({"img_size": 100}, "set img_size to 128"),
    ({"img_size": 300}, "set img_size to 256"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"gen_lr": -1}, "gen_lr is -1"),
    ({"gen_lr": "nan"}, "gen_lr is nan"),
    ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ({"resume": True, "start_epoch": 3}, "use one of them"),
    ({"resume": True, "overwrite": True}, "use one of them"),
    ({"top_k": 9, "mem_size": 8}, "top_k is 9 and the memory has 8 slots"),
])
def test_invalid_settings_raise_an_error_that_names_the_setting(data_path, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run(data_path, tmp_path / "run", **settings)
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("config", [
    TrainConfig(backbone="vgg"), TrainConfig(device="tpu"), GeneratorConfig(detector="eyes"), PredictorConfig(rank=4)])
def test_settings_from_python_are_checked_against_the_choices(config):
    with pytest.raises(UserError, match="choose from"):
        config.check()


def test_training_ends_when_the_validation_exceeds_the_time_limit(data_path, tmp_path, monkeypatch):
    validate = train.validate
    monkeypatch.setattr(train, "validate", lambda *args: (time.sleep(1.5), validate(*args))[1])
    assert len(run(data_path, tmp_path, end_epoch=50, max_minutes=0.02, **MODES["gan"])) <= 2


def test_the_memory_may_have_fewer_slots_than_the_integrator_reads(tmp_path):
    write_image(tmp_path / "data" / "train" / "hero.png", draw_picture(1))
    assert len(run(tmp_path / "data", tmp_path / "run", end_epoch=1, **MODES["integrator"])) == 1


@pytest.mark.parametrize("words, message", [
    (["--use_memory", "yes"], "expected True or False"),
    (["--gen_norm", "layer"], "invalid choice"),
    (["--use_mem", "True"], "unrecognized"),
])
def test_invalid_flags_raise_a_user_error(words, message):
    with pytest.raises(UserError, match=message):
        read_flags(TrainConfig, words, "train")


def test_the_model_config_fits_the_number_of_pictures():
    assert build_model_config(TrainConfig(), 10).mem_size == 12
    assert build_model_config(TrainConfig(), 1000).top_k == 256
    assert build_model_config(TrainConfig(mem_size=5, top_k=3), 1000) == ModelConfig(
        img_size=128, mem_size=5, top_k=3, width=TrainConfig.width, spatial_size=0, use_palette_classifier=True)
    assert build_model_config(TrainConfig(use_spatial_memory=False), 10).use_palette_classifier is False
    assert build_model_config(TrainConfig(**MODES["gan"]), 10).use_spatial_memory is False


# ---------------------------------------------------------------------------------------------------------------------
# Losses and training step


def test_losses_have_known_values():
    zero = torch.zeros(2, 1, 3, 3)
    l1 = color_loss(torch.full((2, 2, 4, 4), 0.3), torch.full((2, 2, 4, 4), 0.1), chroma_weight=2.0)
    loss, parts = generator_loss(zero, l1, lambda_l1=100)
    assert parts["gen_l1"].item() == pytest.approx(0.2) and parts["gen_adv"].item() == pytest.approx(np.log(2))
    assert loss.item() == pytest.approx(np.log(2) + 20, rel=1e-5)
    # One-sided label smoothing: at the optimum, sigmoid(real) = 0.9, the loss on real patches is the entropy of 0.9.
    best = torch.full_like(zero, float(np.log(9)))
    assert discriminator_loss(best, zero - 50, 0.9).item() == pytest.approx(
        -(0.9 * np.log(0.9) + 0.1 * np.log(0.1)) / 2, rel=1e-4)
    same = torch.rand(3, 313)
    same /= same.sum(1, keepdim=True)
    assert integrator_loss(same, same).item() == pytest.approx(0, abs=1e-6)
    one, other = torch.eye(313)[:1], torch.eye(313)[1:2]
    assert 1 < integrator_loss(one, other).item() < 20  # finite with empty bins


def make_learner(data, **settings):
    config = TrainConfig(width=4, batch_size=3, **settings)
    return Learner(config, build_model_config(config, len(data)), torch.device("cpu"))


def make_batch(data, indices=(0, 1, 2)):
    views = TrainingViews(data, TrainingConstants(), 0.5)
    items = [views[index, index] for index in indices]
    return {name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in items[0]}


def no_autocast():
    return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_trains_all_networks_of_the_mode_and_no_others(data_path, mode):
    data = ColorizationDataset(data_path / "train", 128)
    learner = make_learner(data, **MODES[mode])
    parts = {name: [p for group in o.param_groups for p in group["params"]] for name, o in learner.optimizers.items()}
    assert set(parts) == {"gen", "dis"} | ({"mem"} if mode != "gan" else set()) | (
        {"int"} if mode == "integrator" else set())
    before = {name: [p.detach().clone() for p in part] for name, part in parts.items()}
    features = torch.rand(3, 1280)
    losses = {}
    for _ in range(2):  # the first step fills the memory
        losses = learner.step(make_batch(data), features, no_autocast)
    for name in ("gen", "dis") + (("int",) if mode == "integrator" else ()):
        moved = [not torch.equal(a, b) for a, b in zip(before[name], parts[name], strict=True)]
        assert sum(moved) > len(moved) / 2, name
    assert all(torch.isfinite(loss) for loss in losses.values())
    if mode != "gan":
        assert learner.colorizer.memory.used.sum() == 3  # in the second step, each query finds its own slot


def test_a_step_updates_the_networks_in_the_order_of_the_paper(data_path, monkeypatch):
    data = ColorizationDataset(data_path / "train", 128)
    learner = make_learner(data, **MODES["integrator"])
    order = []
    for name, optimizer in learner.optimizers.items():
        monkeypatch.setattr(optimizer, "step", lambda name=name: order.append(name))
    update = learner.colorizer.memory.update
    monkeypatch.setattr(learner.colorizer.memory, "update", lambda *a: (order.append("update"), update(*a)))
    learner.step(make_batch(data), torch.rand(3, 1280), no_autocast)
    assert order == ["mem", "update", "int", "gen", "dis"]


def test_generator_and_discriminator_get_no_gradient_of_the_other_loss(data_path):
    data = ColorizationDataset(data_path / "train", 128)
    learner = make_learner(data, **MODES["gan"])
    grads = {}
    for name, other in (("dis", learner.generator), ("gen", learner.discriminator)):
        def record(name=name, other=other, step=learner.optimizers[name].step):
            grads[name] = [None if p.grad is None else p.grad.clone() for p in other.parameters()]
            step()
        learner.optimizers[name].step = record
    learner.step(make_batch(data), None, no_autocast)
    assert all(grad is None for grad in grads["gen"])  # before the first step of the discriminator
    after_gen = [p.grad for p in learner.generator.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(grads["dis"], after_gen, strict=True))


def test_learning_rates_decay_after_lr_decay_start():
    config = TrainConfig(width=4, gen_lr=1e-3, lr_decay_start=0.5)
    learner = Learner(config, build_model_config(config, 4), torch.device("cpu"))
    rates = []
    for progress in (0, 0.5, 0.75, 1, 1.2):
        learner.set_progress(progress)
        rates.append(learner.optimizers["gen"].param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 0, 0])


# ---------------------------------------------------------------------------------------------------------------------
# Augmentation


def test_a_view_depends_only_on_its_picture_and_seed(data_path):
    data = ColorizationDataset(data_path / "train", 128)
    views = TrainingViews(data, TrainingConstants(), 0.5)
    one, same, other = views[0, 5], views[0, 5], views[0, 6]
    assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(same[name])) for name in one)
    assert not torch.equal(one["L"], other["L"])
    assert one["L"].shape == (1, 128, 128) and one["ab"].shape == (2, 128, 128)
    assert one["view_feature"].sum().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(one["color_feature"], data[0]["color_feature"])


def test_zoom_mirroring_and_fades_transform_lightness_and_colors_alike(data_path):
    """In a view of a picture of two flat areas, each pixel has one of the two colors, darkened by one factor."""
    data = ColorizationDataset(data_path / "train", 128)
    data.codes[0] = torch.tensor([200, 160, 90], dtype=torch.uint8)[:, None, None]
    data.codes[0, :, :, 64:] = torch.tensor([100, 110, 140], dtype=torch.uint8)[:, None, None]
    L, ab = decode_lab8(data.codes[0].float())
    sides, darkened = set(), 0
    for seed in range(60):
        view = TrainingViews(data, TrainingConstants(paste_probability=0.0))[0, seed]
        left = (view["L"] - view["L"].max()).abs() < 1e-3
        if left.sum() < 3 * 128:  # one or two columns at the border of the areas mix both colors
            continue
        s = view["ab"][0][left[0]].mean() / ab[0, 0, 0]
        side = 0 if (s - 1).abs() < 1e-3 or s > 0 else 64
        s = view["ab"][0][left[0]].mean() / ab[0, 0, side]
        assert torch.allclose(view["L"].max(), (L[0, 0, side] + 0.16) * s - 0.16, atol=0.02) and 0.28 <= s <= 1.001
        assert torch.allclose(view["ab"][1][left[0]].mean(), ab[1, 0, side] * s, atol=0.02)
        darkened += bool(s < 0.999)
        sides.add((side, bool(left[0, 0, 0])))
    assert len(sides) > 1 and 2 < darkened < 20


def test_a_view_may_contain_a_part_of_another_picture(data_path):
    """The pasted part is a rectangle of grid cells, the same in lightness, colors and the input of the backbone."""
    data = ColorizationDataset(data_path / "train", 128)
    for index in range(len(data)):
        data.codes[index] = 40 + 30 * index
    pasted = 0
    for seed in range(60):
        view = TrainingViews(data, TrainingConstants(fade_probability=0.0))[0, seed]
        other = (view["L"][0] * 255).round() != 40
        if not other.any():
            continue
        pasted += 1
        rows, columns = other.any(1).nonzero()[:, 0], other.any(0).nonzero()[:, 0]
        top, left, bottom, right = rows[0].item(), columns[0].item(), rows[-1].item() + 1, columns[-1].item() + 1
        assert other[top:bottom, left:right].all() and other.sum() == (bottom - top) * (right - left)
        assert all(edge % 4 == 0 for edge in (top, left, bottom, right))
        assert 32 <= bottom - top <= 96 and 32 <= right - left <= 96
        assert torch.equal(other, (view["ab"][0] * 110 + 128).round() != 40)
        big = F.interpolate(other[None, None].float(), scale_factor=2)[0, 0].bool()
        assert torch.equal(big, view["gray"][0] != view["gray"][0, 0, 0] if not other[0, 0] else big)
    assert 15 < pasted < 45


def test_conditioning_is_dropped_with_the_given_probability(data_path):
    data = ColorizationDataset(data_path / "train", 128)
    half, none = (TrainingViews(data, TrainingConstants(), probability) for probability in (0.5, 0.0))
    assert 5 < sum(half[0, seed]["drop_conditioning"] for seed in range(40)) < 35
    assert not any(none[0, seed]["drop_conditioning"] for seed in range(10))


def test_the_sampler_visits_all_pictures_in_an_order_that_depends_on_the_epoch(data_path):
    data = ColorizationDataset(data_path / "train", 128)
    sampler = ViewSampler(data, passes=2, seed=1)
    first, same = list(sampler), list(sampler)
    sampler.epoch = 1
    second = list(sampler)
    assert first == same != second and len(first) == len(sampler) == 12
    assert sorted(index for index, _ in first[:6]) == sorted(index for index, _ in first[6:]) == list(range(6))
    assert len({seed for _, seed in first}) == 12


# ---------------------------------------------------------------------------------------------------------------------
# Loop and output files


@pytest.mark.parametrize("mode", MODES)
def test_training_writes_all_files(data_path, tmp_path, mode, capsys):
    records = run(data_path, tmp_path, save_freq=1, **MODES[mode])
    assert [r["epoch"] for r in records] == [1, 2] and records[1]["step"] == 2 * records[0]["step"]
    names = {"epoch", "step", "seconds", "images_per_second", "skipped_steps", "gen_adv", "gen_l1", "dis_bce"}
    names |= {"val_ciede2000", "val_psnr_ab"}
    if mode != "gan":
        names |= {"mem_triplet", "val_feature_intersection"}
    if mode == "integrator":
        names.add("int_kl")
    assert set(records[0]) == names and all(np.isfinite(list(r.values())).all() for r in records)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"epoch_0001.pt", "epoch_0002.pt", "last.pt", "best.pt", "log.jsonl", "samples", "tensorboard"}
    rows, columns = 2, 3 if mode == "gan" else 6
    grid = read_image(tmp_path / "samples" / "epoch_0002.png")
    assert grid.shape == (rows * 132 - 4, columns * 132 - 4, 3)
    assert any(path.stat().st_size > 1000 for path in (tmp_path / "tensorboard").iterdir())
    printed = capsys.readouterr()
    assert "val_ciede2000" in printed.out + printed.err and "images/s" in printed.out + printed.err
    content = load_checkpoint(tmp_path / "best.pt")
    colorizer = Colorizer(restore(ModelConfig, content["model_config"]))
    colorizer.load_state_dict(content["colorizer"])  # strict: fails for missing and unexpected entries
    assert content["frames"][0] == "raw_image_drawn_0.png"


def test_validation_runs_in_eval_mode(data_path, tmp_path, monkeypatch):
    modes = []
    forward = Colorizer.forward
    monkeypatch.setattr(Colorizer, "forward", lambda self, *a: (modes.append(self.training), forward(self, *a))[1])
    run(data_path, tmp_path, **MODES["gan"])
    assert modes and not any(modes)  # the colorizer is only used in validation


def script_errors(monkeypatch, errors):
    """Make the validation return these errors, CIEDE2000, one after the other."""
    scripted_errors, validate = iter(errors), train.validate

    def scripted(*args):
        metrics, samples = validate(*args)
        return {**metrics, "val_ciede2000": next(scripted_errors)}, samples

    monkeypatch.setattr(train, "validate", scripted)


@pytest.mark.parametrize("errors, best", [((5.0, 3.0, 4.0), 2), ((5.0, 3.0, 3.2), 3), ((3.0, 3.2, 3.4), 2),
                                          ((3.2, 3.0, 2.8), 3)])
def test_the_best_checkpoint_is_the_last_within_tolerance(data_path, tmp_path, monkeypatch, errors, best):
    script_errors(monkeypatch, errors)
    run(data_path, tmp_path, end_epoch=3, **MODES["gan"])
    content = load_checkpoint(tmp_path / "best.pt")
    assert content["epoch"] == best and content["best_ciede2000"] == min(errors[:best])


@pytest.mark.parametrize("errors, patience, epochs", [
    ((5.0, 4.0, 3.0, 2.0), 1, 4), ((5.0, 5.0, 3.0, 2.0), 1, 2), ((5.0, 4.0, 3.98, 3.97), 2, 4),
    ((5.0, 4.0, 3.98, 3.95), 2, 4), ((5.0, 4.97, 4.94, 4.91), 3, 4), ((5.0, 6.0, 6.0, 2.0), 2, 3),
    ((5.0, 6.0, 6.0, 6.0), 0, 4)])
def test_training_ends_without_improvement(data_path, tmp_path, monkeypatch, capsys, errors, patience, epochs):
    """An improvement is a decrease by at least 1 % in all, also over several epochs."""
    script_errors(monkeypatch, errors)
    log = run(data_path, tmp_path, end_epoch=4, patience=patience, **MODES["gan"])
    assert len(log) == epochs == load_checkpoint(tmp_path / "last.pt")["epoch"]
    stalled = load_checkpoint(tmp_path / "last.pt")["stalled_epochs"]
    assert ("had not decreased for" in capsys.readouterr().out) == (0 < patience <= stalled)


def test_a_run_that_ended_without_improvement_resumes_with_more_patience(data_path, tmp_path, monkeypatch):
    script_errors(monkeypatch, (5.0, 5.0, 5.0))
    run(data_path, tmp_path, end_epoch=3, patience=1, **MODES["gan"])
    with pytest.raises(UserError, match="not decreased for 1 epochs and patience is 1; raise patience"):
        train.main(flags(save_path=tmp_path, resume=True))
    train.main(flags(save_path=tmp_path, resume=True, patience=2))
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 3


def test_samples_are_colored_before_the_first_step(data_path, tmp_path, monkeypatch):
    """The classifier colors them without the generator, which is not trained."""
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(data_path, tmp_path)
    grid = read_image(tmp_path / "samples" / "last.png")
    colored = grid[:, 128:256].astype(int)  # the second column
    assert np.ptp(colored, 2).mean() > 5


@pytest.mark.parametrize("settings", [MODES["gan"], {"use_feat_integrator": True}], ids=["gan", "all networks"])
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(data_path, tmp_path, settings):
    whole = run(data_path, tmp_path / "whole", end_epoch=3, save_freq=1, **settings)
    # The files that are left when the run is killed after epoch 1.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("epoch_0002.pt", "epoch_0003.pt", "last.pt"):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "cut" / "last.pt").write_bytes((tmp_path / "cut" / "epoch_0001.pt").read_bytes())
    resumed = run(data_path, tmp_path / "cut", end_epoch=3, save_freq=1, resume=True, **settings)
    timeless = [[{k: v for k, v in r.items() if "second" not in k} for r in log] for log in (whole, resumed)]
    assert timeless[0] == timeless[1]
    one, other = state_of(tmp_path / "whole" / "last.pt"), state_of(tmp_path / "cut" / "last.pt")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    records = run(data_path, tmp_path / "cut", end_epoch=3, save_freq=1, start_epoch=2, **settings)
    assert [r["epoch"] for r in records] == [1, 2, 3]  # epoch 3 once, from the state of epoch 2
    other = state_of(tmp_path / "cut" / "last.pt")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_max_minutes_limits_training_and_schedule(data_path, tmp_path, monkeypatch):
    records = run(data_path, tmp_path, end_epoch=10_000, max_minutes=0.05, patience=0, **MODES["gan"])
    assert 0 < records[-1]["epoch"] < 10_000
    content = load_checkpoint(tmp_path / "last.pt")
    assert content["epoch"] == records[-1]["epoch"]
    rate = content["optimizers"]["gen"]["param_groups"][0]["lr"]
    assert rate < 0.5 * TrainConfig.gen_lr  # the learning rate reaches its end with the time


def test_another_run_is_only_overwritten_on_request(data_path, tmp_path):
    settings = {"end_epoch": 1, **MODES["gan"]}
    run(data_path, tmp_path, **settings)
    (tmp_path / "mine.txt").write_text("of the user")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(UserError, match="contains another run"):
        run(data_path, tmp_path, **settings)
    assert (tmp_path / "last.pt").read_bytes() == before
    records = run(data_path, tmp_path, overwrite=True, seed=1, **settings)
    assert len(records) == 1 and (tmp_path / "mine.txt").exists()
    assert (tmp_path / "last.pt").read_bytes() != before


def test_resuming_keeps_the_saved_settings(data_path, tmp_path):
    run(data_path, tmp_path, end_epoch=1, alpha=0.2, **MODES["integrator"])
    main(flags(save_path=tmp_path, resume=True, end_epoch=2))
    content = load_checkpoint(tmp_path / "last.pt")
    assert content["epoch"] == 2 and content["train_config"]["alpha"] == 0.2
    assert content["train_config"]["data_path"] == str(data_path) and content["model_config"]["use_feat_integrator"]


def test_resuming_with_changed_fixed_settings_raises_an_error(data_path, tmp_path):
    run(data_path, tmp_path, end_epoch=1, **MODES["memory"])
    with pytest.raises(UserError, match="trained with use_feat_integrator False"):
        run(data_path, tmp_path, end_epoch=2, resume=True, **MODES["integrator"])
    with pytest.raises(UserError, match="trained with alpha 0.1"):
        run(data_path, tmp_path, end_epoch=2, resume=True, alpha=0.2)
    with pytest.raises(UserError, match="raise end_epoch"):
        run(data_path, tmp_path, end_epoch=1, resume=True)
    with pytest.raises(UserError, match="there is no checkpoint .*epoch_0007"):
        run(data_path, tmp_path, start_epoch=7, end_epoch=9)


def test_missing_data_and_bad_paths_raise_an_error(tmp_path):
    with pytest.raises(UserError, match="no folder .*missing"):
        run(tmp_path / "missing", tmp_path / "run")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="no readable picture in .*empty"):
        run(tmp_path / "empty", tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()
    (tmp_path / "file").write_text("")
    draw_dataset(tmp_path / "data")
    with pytest.raises(UserError, match="save_path .*file is a file"):
        run(tmp_path / "data", tmp_path / "file")
    with pytest.raises(UserError, match="--backbone_weights"):
        run(tmp_path / "data", tmp_path / "run", backbone="resnet18", backbone_weights=tmp_path / "missing.pth")


def test_training_works_with_a_single_picture(tmp_path, capsys):
    write_image(tmp_path / "data" / "train" / "hero.png", draw_picture(1))
    records = run(tmp_path / "data", tmp_path / "run", end_epoch=1)
    assert len(records) == 1
    assert "validation uses the training pictures" in capsys.readouterr().err


def test_tensorboard_receives_scalars_and_samples(data_path, tmp_path, monkeypatch):
    scalars, images = [], []
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, name, value, epoch: scalars.append((name, epoch)))
    monkeypatch.setattr(SummaryWriter, "add_image", lambda self, name, image, epoch, dataformats: images.append(epoch))
    run(data_path, tmp_path, **MODES["gan"])
    assert images == [1, 2] and {("gen_l1", 1), ("val_ciede2000", 2)} <= set(scalars)
