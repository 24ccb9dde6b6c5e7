"""The memory of a whole series: the archive, retrieval from many frames, deduplication, and merged checkpoints."""

import copy
import shutil
from dataclasses import asdict, replace

import drawn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import draw_dataset, draw_picture

import train
from colorizer.colorizer import Colorizer
from colorizer.memory.deduplication import Deduplicator
from colorizer.memory.frame_archive import FrameArchive
from colorizer.memory.frame_index import EMBEDDING_SCALE, FrameIndex
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.predictor import Predictor
from config import SpatialConfig, TrainConfig
from dataset import REFERENCE_ID, ColorizationDataset, rgb_to_lab
from editing.project import Project
from fileio.checkpoints import CHECKPOINT_FORMAT, load_checkpoint, save_checkpoint
from fileio.images import write_image
from training.preparation import build_model_config, fill_spatial_memory, frame_embeddings
from utils import UserError

SPATIAL = SpatialConfig(attended_frames=2)


def cast():
    return torch.autocast("cpu", enabled=False)


def make_checkpoint(folder, numbers, max_inline_frames, seed=0, **settings):
    """Write a checkpoint of untrained networks with drawn pictures in memory, and return its path."""
    torch.manual_seed(seed)
    paths = [folder / "pictures" / f"drawn_{number}.png" for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        write_image(path, draw_picture(number))
    data = ColorizationDataset(paths, 128)
    config = TrainConfig(width=4, img_size=128, use_palette_classifier=False,
                         spatial=replace(SPATIAL, max_inline_frames=max_inline_frames), **settings)
    colorizer = Colorizer(build_model_config(config, len(data)), None).eval()
    memory, content = colorizer.memory, {"frames": dict(zip(data.ids, (path.name for path in paths), strict=True))}
    with torch.no_grad():
        if config.use_spatial_memory:
            fill_spatial_memory(data, colorizer, cast, folder)
            if archive := colorizer.spatial.archive:
                content["archive"] = archive.state()
        memory.update(memory.query(frame_embeddings(data, colorizer, cast)), data.color_features,
                      torch.tensor(data.ids))
    save_checkpoint(folder / "best.pt", {**content, "colorizer": colorizer.state_dict(),
                                         "model_config": asdict(colorizer.config)})
    return folder / "best.pt"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two checkpoints of the same pictures: small/ contains the frames, large/ has an archive."""
    home = tmp_path_factory.mktemp("home")
    for name, max_inline_frames in (("small", 6), ("large", 5)):
        make_checkpoint(home / name, range(6), max_inline_frames)
    return home


@pytest.fixture
def large(home, tmp_path):
    """A copy of large/ and the path of its archive."""
    shutil.copytree(home / "large", tmp_path / "large")
    [frames] = (tmp_path / "large").glob("frames_*.npy")
    return tmp_path / "large", frames


PICTURES = [draw_picture(3), draw_picture(20)]

# ---------------------------------------------------------------------------------------------------------------------
# Archive


def test_an_archive_gives_the_same_colors_as_frames_in_the_checkpoint(home, monkeypatch):
    """Only the retrieved frames are read from the file."""
    small, large = (Predictor.load(home / name / "best.pt") for name in ("small", "large"))
    assert (small.config.archived_frames, large.config.archived_frames, large.config.spatial_size) == (0, 6, 6)
    assert not list((home / "small").glob("*.npy"))
    sizes = [(home / name / "best.pt").stat().st_size for name in ("small", "large")]
    assert sizes[0] - sizes[1] > 6 * 250_000 - 700_000  # the axes of the index
    assert small.colorizer.spatial.digests() == large.colorizer.spatial.digests()
    for name in ("keys", "ab", "pictures"):
        assert torch.equal(*(each.colorizer.spatial.rows(name, [4, 0]) for each in (small, large)))
    read, plain = set(), FrameArchive.read
    monkeypatch.setattr(FrameArchive, "read", lambda self, name, slot: read.add(slot) or plain(self, name, slot))
    for one, other in zip(small.colorize(PICTURES[:1]), large.colorize(PICTURES[:1]), strict=True):
        assert np.array_equal(one, other)
    assert len(read) == 2  # frames


def test_saving_references_copies_the_archive(large, tmp_path):
    path, frames = large
    predictor = Predictor.load(path / "best.pt")
    predictor.add_references([draw_picture(41)], match_references=False)
    assert copy.deepcopy(predictor.colorizer).spatial.archive is predictor.colorizer.spatial.archive
    predictor.save(tmp_path / "other" / "better.pt")
    assert (tmp_path / "other" / frames.name).read_bytes() == frames.read_bytes()
    again = Predictor.load(tmp_path / "other" / "better.pt")
    assert again.colorizer.spatial.ids.tolist()[6:] == [REFERENCE_ID] and again.identity != predictor.identity
    assert all(map(np.array_equal, again.colorize(PICTURES), predictor.colorize(PICTURES)))
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    project.add_checkpoint(path / "best.pt")
    assert Predictor.load(project.checkpoint).colorizer.spatial.digests()[:3] == again.colorizer.spatial.digests()[:3]


def test_a_training_run_with_an_archive_resumes(tmp_path):
    draw_dataset(tmp_path / "data", train=4, val=1)
    config = TrainConfig(data_path=str(tmp_path / "data"), save_path=str(tmp_path / "run"), width=4, batch_size=2,
                         end_epoch=1, use_palette_classifier=False, spatial=replace(SPATIAL, max_inline_frames=3))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "frames_0123456789ab.npy").touch()  # of a run that was killed before it saved anything
    train.train(config)
    [frames] = (tmp_path / "run").glob("frames_*.npy")
    train.train(replace(config, resume=True, end_epoch=2), load_checkpoint(tmp_path / "run" / "last.pt"))
    assert [*(tmp_path / "run").glob("frames_*.npy")] == [frames]
    for name in ("best.pt", "last.pt", "epoch_0001.pt", "epoch_0002.pt"):
        assert load_checkpoint(tmp_path / "run" / name)["archive"]["file"] == frames.name
    assert len(Predictor.load(tmp_path / "run" / "last.pt").colorizer.spatial.archive) == 4


def damage(kind, frames):
    data = bytearray(frames.read_bytes())
    if kind == "missing":
        return frames.unlink()
    if kind == "shape":
        data = data.replace(b"(6,)", b"(5,)", 1)
    elif kind == "cells":
        data = data.replace(b"(1024, 69)", b"(1024, 68)", 1)
    elif kind == "other":
        data[-1] ^= 1
    elif kind == "pickle":
        data = data.replace(b"'<f2'", b"'|O8'", 1)
    frames.write_bytes({"cut": data[:-1], "empty": b"", "grown": data + b"0"}.get(kind, data))


@pytest.mark.parametrize("kind, message", [
    ("missing", "keep a checkpoint and its frames_.* in the same folder"), ("cut", "its size is wrong"),
    ("grown", "its size is wrong"), ("empty", "does not hold the frames"),
    ("shape", r"it holds \(5,\) records"), ("cells", "it holds"), ("pickle", "does not hold the frames"),
    ("other", "of a different checkpoint, or is damaged")])
def test_an_archive_that_does_not_belong_to_the_checkpoint_is_an_error(large, kind, message):
    path, frames = large
    damage(kind, frames)
    with pytest.raises(UserError, match=message) as caught:
        Predictor.load(path / "best.pt")
    assert "\n" not in str(caught.value) and str(frames) in str(caught.value)


def test_truncating_the_archive_in_use_is_an_error(large):
    path, frames = large
    predictor = Predictor.load(path / "best.pt")
    with open(frames, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match="was truncated while in use"):
        predictor.colorize(PICTURES)


@pytest.mark.parametrize("change", [{"archive": None}, {"archive": {"file": "../frames_0123456789ab.npy"}},
                                    {"archive": {"file": "frames_0123456789ab.npy", "digests": torch.zeros(6, 32)}}])
def test_a_checkpoint_with_an_invalid_archive_entry_is_an_error(large, change):
    path, _ = large
    content = torch.load(path / "best.pt", weights_only=True)
    torch.save({**content, **change}, path / "best.pt")
    with pytest.raises(UserError, match="is incomplete|complete colorizer"):
        Predictor.load(path / "best.pt")


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval


def find_nearest_slowly(net, embeddings):
    """Implement the definition of find_nearest_frames with all similarities in float64."""
    features, config = net.embeddings.double(), net.config
    similarity = (embeddings.double() / EMBEDDING_SCALE) @ features.T
    preferred = net.pinned & (similarity >= similarity.amax(1, keepdim=True) - config.reference_margin)
    similarity, slots = (similarity + config.reference_margin * preferred).sort(dim=1, descending=True, stable=True)
    found = []
    for scores, order in zip(similarity[:, :config.candidate_frames], slots[:, :config.candidate_frames], strict=True):
        candidates, chosen = features[order], []
        for _ in range(min(config.attended_frames, len(features))):
            penalty = (candidates @ candidates[chosen].T).amax(1).clamp(min=0) if chosen else torch.zeros(len(order))
            score = scores - config.mmr_diversity * penalty
            score[chosen] = -torch.inf
            chosen.append(int(score.argmax()))
        found.append(order[chosen].tolist())
    return found, preferred


def embeddings_of_shots(count, dim=96, like=0.15):
    """Embeddings of unit length that are similar within shots of 10 frames."""
    middles = torch.rand(-(-count // 10), dim).repeat_interleave(10, 0)[:count]
    return F.normalize(middles + like * torch.rand(count, dim), dim=1)


@pytest.mark.parametrize("kind", ["few", "many", "equal", "pinned"])
def test_retrieval_with_an_index_equals_the_definition(kind):
    """Also with pinned or equal frames, and for single pictures as for a batch."""
    torch.manual_seed(0)
    features = embeddings_of_shots(20 if kind == "few" else 700, like=0.0 if kind == "equal" else 0.15)
    features = features[:1].expand(700, -1) if kind == "equal" else features
    net = SpatialMemory(96, 1, 0, SpatialConfig(grid=1, picture_size=2, candidate_frames=16))
    net.allocate(len(features), archived_frames=len(features) - 10)
    net.embeddings.copy_(features)
    net.index = FrameIndex.build(net.embeddings[:net.archived_frames], 24)  # a quarter of all axes
    net.pinned[-10:] = kind == "pinned"
    embeddings = quantize_embeddings(features[5::90][:8] + 0.03 * torch.rand(len(features[5::90][:8]), 96))
    expected, preferred = find_nearest_slowly(net, embeddings)
    nearest = find_nearest_frames(net, embeddings)
    assert nearest.slots.tolist() == expected
    assert torch.equal(nearest.preferred > 0, preferred.gather(1, nearest.slots))
    assert torch.cat([find_nearest_frames(net, one[None]).slots for one in embeddings]).tolist() == expected


# ---------------------------------------------------------------------------------------------------------------------
# Deduplication


def test_duplicates_are_dropped():
    is_new, picture = Deduplicator(SpatialConfig()), draw_picture(1, (192, 192))
    noisy = picture + np.random.default_rng(0).integers(-3, 4, picture.shape)
    moved, recolored = np.roll(picture, 3, 1), picture.copy()
    recolored[96:, 96:, 1] += 8
    sequence = [picture, picture, noisy.clip(0, 255).astype(np.uint8), moved, recolored, moved]
    assert [is_new(each) for each in sequence] == [True, False, False, True, True, False]


def test_a_held_frame_is_trained_on_but_stored_once(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "draw_picture", lambda number: drawn.draw_picture(number // 2))
    predictor = Predictor.load(make_checkpoint(tmp_path, range(7), 10))
    assert len(predictor.frame_names) == 7 + 1 and predictor.colorizer.spatial.ids.tolist() == [0, 2, 4, 6]


# ---------------------------------------------------------------------------------------------------------------------
# Merging


@pytest.fixture(scope="module")
def merged(home, tmp_path_factory):
    """A checkpoint merged from large/ and other.pt, which shares a picture and adds two and a reference."""
    folder = tmp_path_factory.mktemp("merged")
    other = Predictor.load(make_checkpoint(folder / "other", (0, 50, 51), 10, seed=1))
    other.add_references([draw_picture(60)], match_references=False)
    other.save(folder / "other.pt")
    paths = [str(home / "large" / "best.pt"), str(folder / "other.pt")]
    train.main(["--merge", *paths, "--save_path", str(folder / "all")])
    return folder


def test_a_merged_checkpoint_has_the_frames_of_all(home, merged):
    first, other, both = (Predictor.load(path) for path in (home / "large" / "best.pt", merged / "other.pt",
                                                         merged / "all" / "best.pt"))
    spatial, names = both.colorizer.spatial, both.frame_names
    assert spatial.archived_frames == 8 and spatial.pinned.tolist() == [False] * 8 + [True]
    ids = spatial.ids.tolist()
    assert [names[i] for i in ids[:6]] == [first.frame_names[i] for i in first.colorizer.spatial.ids.tolist()]
    assert [names[i] for i in ids[6:]] == ["drawn_50.png", "drawn_51.png", "a reference"]
    assert names[52] == f"drawn_0.png of {merged / 'other.pt'}"
    assert both.config.mem_size == len(both.colorizer.memory.keys) == first.config.mem_size + 3
    for name, x in first.colorizer.generator.state_dict().items():
        assert torch.equal(x, both.colorizer.generator.state_dict()[name])
    assert torch.equal(spatial.rows("pictures", [6, 8]), other.colorizer.spatial.rows("pictures", [1, 3]))
    # The converted keys equal those of the first projection, except for components that the second one does not keep.
    picture = draw_picture(50)
    features, L, ab, _ = first.extractor.encode_reference(rgb_to_lab(picture))
    true, mapped = first.colorizer.spatial.make_keys(features.cells, L, ab), spatial.rows("keys", [6]).float()
    assert (true - mapped).square().sum(2).mean() < 0.05 * true.var(1).sum()


def test_a_merged_checkpoint_recalls_frames_of_the_second(merged):
    predictor = Predictor.load(merged / "all" / "best.pt")
    _, confidence = predictor.colorize_with_confidence([draw_picture(50)])
    assert confidence.recalled.mean() > 0.9
    assert predictor.colorize([draw_picture(50)])[0].shape == (64, 96, 3)


@pytest.mark.parametrize("flags, message", [
    (["--merge", "a.pt"], "takes two checkpoints or more"),
    (["--merge", "a.pt", "b.pt", "--width", "8"], "takes no --width"),
    (["--merge", "all/a.pt", "b.pt", "--save_path", "all"], "contains one of the checkpoints")])
def test_invalid_merges_are_errors(flags, message):
    with pytest.raises(UserError, match=message):
        train.main(flags)


def test_merged_checkpoints_must_be_compatible(home, merged, tmp_path):
    plain = make_checkpoint(tmp_path / "plain", range(2), 10, use_spatial_memory=False)
    first = str(home / "large" / "best.pt")
    with pytest.raises(UserError, match="has no spatial memory"):
        train.main(["--merge", first, str(plain), "--save_path", str(tmp_path / "all")])
    content = load_checkpoint(merged / "other.pt")
    content["colorizer"]["backbone.net._conv_stem.weight"] += 1
    torch.save({"format": CHECKPOINT_FORMAT, **content}, tmp_path / "backbone.pt")
    with pytest.raises(UserError, match="different backbone"):
        train.main(["--merge", first, str(tmp_path / "backbone.pt"), "--save_path", str(tmp_path / "all")])
    assert not (tmp_path / "all" / "best.pt").exists()
    with pytest.raises(UserError, match="contains another run"):
        train.main(["--merge", first, str(home / "small" / "best.pt"), "--save_path", str(merged / "all")])
