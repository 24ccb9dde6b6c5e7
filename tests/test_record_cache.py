"""The record cache and its use by the dataset: reuse, validation and fallback."""

import os
import resource
import shutil

import numpy as np
import pytest
import torch
from drawn import draw_dataset, draw_picture

import dataset
from config import TrainConfig, TrainingConstants
from dataset import ColorizationDataset
from fileio import record_cache
from fileio.images import write_image
from fileio.record_cache import load_or_make_records, record_key
from train import main
from training.augmentation import TrainingViews
from training.learner import Learner
from training.preparation import build_model_config, fill_spatial_memory, frame_embeddings

FIELDS = [("number", "i8", ()), ("line", "u1", (3,))]


class Maker:
    """Makes records of the numbers 10, 20, 30, ... and lists the requested indices; those in ``without`` give None."""

    def __init__(self, without=()):
        self.asked, self.without = [], without

    def __call__(self, indices):
        for index in indices:
            self.asked.append(index)
            yield None if index in self.without else (10 * (index + 1), [index, index, 255])


def numbers(path, keys, budget=1e9, without=()):
    """Return the numbers of the records, the indices that were made, and whether the file is memory-mapped."""
    maker = Maker(without)
    records, places = load_or_make_records(path, FIELDS, keys, maker, budget)
    assert [row.tolist() for row in records["line"]] == [[(n // 10 - 1) % 256] * 2 + [255] for n in records["number"]]
    assert len(records) == len(places)
    return records["number"].tolist(), maker.asked, isinstance(records, np.memmap)


@pytest.fixture
def keys():
    return [record_key("key", i) for i in range(4)]


@pytest.mark.parametrize("budget", [0, 1e9])
def test_records_are_made_once(tmp_path, keys, budget):
    path = tmp_path / "new" / "records"
    assert numbers(path, keys, budget) == ([10, 20, 30, 40], [0, 1, 2, 3], budget == 0)
    written = path.stat().st_mtime_ns
    assert numbers(path, keys, budget) == ([10, 20, 30, 40], [], budget == 0)
    assert path.stat().st_mtime_ns == written and list(path.parent.iterdir()) == [path]


def test_changed_records_are_made_again_and_unused_ones_dropped(tmp_path, keys):
    path = tmp_path / "records"
    numbers(path, keys)
    size = path.stat().st_size
    assert numbers(path, [keys[0], record_key("another"), keys[2], keys[3]]) == ([10, 20, 30, 40], [1], False)
    assert numbers(path, keys[2:] + keys[:2])[1] == [3]  # in another order, and the key before the change
    assert numbers(path, [keys[2]]) == ([30], [], False)
    assert path.stat().st_size == size // 4


def test_records_that_cannot_be_made_are_left_out_and_tried_again(tmp_path, keys):
    path = tmp_path / "records"
    assert numbers(path, keys, without=[0, 2]) == ([20, 40], [0, 1, 2, 3], False)
    written = path.stat().st_mtime_ns
    assert numbers(path, keys, without=[0, 2]) == ([20, 40], [0, 2], False)
    assert path.stat().st_mtime_ns == written
    assert numbers(path, keys, without=[0]) == ([20, 30, 40], [0, 2], False)
    assert numbers(tmp_path / "none", keys, without=range(4))[0] == []


@pytest.mark.parametrize("budget", [0, 1e9])
def test_damaged_records_are_made_again(tmp_path, keys, budget):
    path = tmp_path / "records"
    numbers(path, keys)
    whole = path.read_bytes()
    size = len(whole) // 4
    damages = {"cut": (whole[:-1], [3]), "empty": (b"", [0, 1, 2, 3]),
               "no cache": (b"something else" * 40, [0, 1, 2, 3])}
    checksum, key = record_cache._CHECKSUM, record_cache._KEY
    for place in (0, checksum, size - 1, 2 * size + checksum + key):  # positions of a changed bit
        data = bytearray(whole)
        data[place] ^= 1
        damages[f"bit at {place}"] = (bytes(data), [place // size])
    for name, (data, made) in damages.items():
        path.write_bytes(data)
        assert numbers(path, keys, budget) == ([10, 20, 30, 40], made, budget == 0), name
        assert path.read_bytes() == whole


def test_changes_are_not_written_to_the_file(tmp_path, keys):
    for budget in (0, 1e9):
        records, _ = load_or_make_records(tmp_path / "records", FIELDS, keys, Maker(), budget)
        records["number"][0] = 99
        assert records["number"][0] == 99
    assert numbers(tmp_path / "records", keys)[0] == [10, 20, 30, 40]


def test_unwritable_folder_falls_back_to_memory(tmp_path, keys, capsys):
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        assert numbers(tmp_path / "file" / "records", keys)[0] == [10, 20, 30, 40]
        assert "cannot write the cache in" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files")
def test_full_disk_falls_back_to_memory(tmp_path, keys, capsys):
    """A limit on the file size stands in for a full disk; the old file stays."""
    path = tmp_path / "records"
    numbers(path, keys[:2])
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1, limits[1]))
    try:
        assert numbers(path, keys) == ([10, 20, 30, 40], [2, 3, 2, 3], False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write the cache" in capsys.readouterr().err
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------------------------------
# Images and features


@pytest.fixture
def folder(tmp_path):
    return draw_dataset(tmp_path, train=5, val=0, test=0) / "train"


@pytest.fixture
def decoded(monkeypatch):
    """Return a list that collects the names of decoded images."""
    names, read = [], dataset.read_image
    monkeypatch.setattr(dataset, "read_image", lambda path: (names.append(path.name), read(path))[1])
    return names


def same(one, other):
    return torch.equal(one.codes, other.codes) and torch.equal(one.color_features, other.color_features) and (
        one.ids == other.ids)


def test_images_are_prepared_once(folder, decoded, monkeypatch):
    kinds = []

    def record_kind(*args):
        kinds.append(load_or_make_records(*args))
        return kinds[-1]

    monkeypatch.setattr(dataset, "load_or_make_records", record_kind)
    first = ColorizationDataset(folder, 128)
    assert len(decoded) == 5
    again, mapped = ColorizationDataset(folder, 128), ColorizationDataset(folder, 128, cache_gb=900e3 / 1e9)
    assert len(decoded) == 5 and same(first, again) and same(first, mapped)
    assert [isinstance(records, np.memmap) for records, _ in kinds] == [False, False, True]  # 990 kB exceed the budget
    views = [TrainingViews(data, TrainingConstants())[2, 7] for data in (first, mapped)]
    assert all(torch.equal(torch.as_tensor(views[0][name]), torch.as_tensor(views[1][name])) for name in views[0])
    assert same(first, ColorizationDataset(first.paths, 128)) and len(decoded) == 10  # no cache file


def test_changed_images_and_settings_are_prepared_again(folder, decoded, monkeypatch):
    first = ColorizationDataset(folder, 128)
    decoded.clear()
    changed = first.paths[1]
    picture = draw_picture(9)
    write_image(changed, picture)
    os.utime(changed, ns=(0, 10**18))
    second = ColorizationDataset(folder, 128)
    assert decoded == [changed.name] and not same(first, second)
    assert torch.equal(second.codes[1], ColorizationDataset([changed], 128).codes[0])
    decoded.clear()
    changed.rename(changed.with_name("raw_image_drawn_77.png"))
    assert sorted(ColorizationDataset(folder, 128).ids) == [0, 2, 3, 4, 77] and len(decoded) == 1
    decoded.clear()
    assert ColorizationDataset(folder, 256).codes.shape[-1] == 256 and len(decoded) == 5
    ColorizationDataset(folder, 128)
    assert len(decoded) == 5  # each size has a file of its own
    monkeypatch.setattr(dataset, "PREPARATION_VERSION", dataset.PREPARATION_VERSION + 1)
    ColorizationDataset(folder, 128)
    assert len(decoded) == 10


def test_features_are_computed_once_per_network(tmp_path):
    folder = draw_dataset(tmp_path, train=2, val=0, test=0) / "train"
    config = TrainConfig(width=4, use_spatial_memory=False)
    data, device = ColorizationDataset(folder, 128), torch.device("cpu")
    learner = Learner(config, build_model_config(config, len(data)), device)
    calls, backbone = [], learner.colorizer.backbone
    backbone.register_forward_hook(lambda *_: calls.append(1))

    def casts(enabled):
        return lambda: torch.autocast("cpu", torch.bfloat16, enabled=enabled)

    features = frame_embeddings(data, learner.colorizer, casts(False))
    assert features.shape == (2, 1280) and len(calls) == 1
    exact = backbone(data.tensors(range(2), 128)[2])[0]
    torch.testing.assert_close(features, exact.half().float())
    calls.clear()
    assert torch.equal(frame_embeddings(ColorizationDataset(folder, 256), learner.colorizer, casts(False)), features)
    assert not calls
    frame_embeddings(data, learner.colorizer, casts(True))
    assert len(calls) == 1  # another precision
    next(backbone.parameters()).data *= 1.5
    assert not torch.equal(frame_embeddings(data, learner.colorizer, casts(True)), features) and len(calls) == 2


def test_the_backbone_runs_once_per_frame_for_all_memories(folder):
    config = TrainConfig(width=4)
    data, device = ColorizationDataset(folder, 128), torch.device("cpu")
    learner = Learner(config, build_model_config(config, len(data)), device)

    def cast():
        return torch.autocast("cpu", enabled=False)

    known, calls = fill_spatial_memory(data, learner.colorizer, cast), []
    learner.colorizer.backbone.register_forward_hook(lambda *_: calls.append(1))
    features = frame_embeddings(data, learner.colorizer, cast, known)
    assert not calls and torch.equal(features, known.half().float())
    config.spatial.max_frames = 3
    learner = Learner(config, build_model_config(config, len(data)), device)
    assert fill_spatial_memory(data, learner.colorizer, cast) is None  # nothing was computed
    assert learner.colorizer.spatial.ids.tolist() == [data.ids[i] for i in (0, 2, 4)]


def test_training_from_a_memory_mapped_cache_is_the_same(tmp_path):
    """Every image is read from the cache on demand, in worker processes."""
    draw_dataset(tmp_path / "data")
    states = []
    for name, extra in (("memory", []), ("disk", ["--cache_gb", "0", "--num_workers", "1"])):
        main(["--data_path", str(tmp_path / "data"), "--save_path", str(tmp_path / name), "--width", "4", "--end_epoch",
              "1", "--batch_size", "1", "--use_spatial_memory", "False", *extra])
        states.append(torch.load(tmp_path / name / "last.pt", weights_only=True)["generator"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    shutil.rmtree(tmp_path / "data" / "train" / ".cache")  # it may be deleted at any time
