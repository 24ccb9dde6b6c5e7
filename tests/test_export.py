"""ONNX export: graphs equal torch's at any batch size, and the example without torch colors like the program."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from drawn import draw_picture

from colorizer.backbone import extract_features
from colorizer.colorizer import Colorizer
from colorizer.export import graphs_of, main
from colorizer.memory.frame_retrieval import find_nearest_frames, quantize_embeddings
from colorizer.palette_classifier import PaletteClassifier
from colorizer.predictor import Predictor
from config import ModelConfig, PaletteClassifierConfig, SpatialConfig
from dataset import color_feature, lab_to_tensors, resize, rgb_to_lab
from fileio.checkpoints import save_checkpoint
from fileio.images import read_image, write_image
from utils import UserError

SIZE, FRAMES, PINNED = 128, 12, 4  # pixels, remembered frames, and the index of the one that is pinned
EXCLUDED = ("torch", "torchvision", "scipy", "skimage", "sklearn", "av", "PIL", "onnx")  # not needed by the example


def untrained(**settings):
    """Return an untrained Colorizer of small networks with frames in its memories."""
    torch.manual_seed(0)
    config = ModelConfig(img_size=SIZE, width=4, mem_size=FRAMES, spatial_size=FRAMES,
                         spatial=SpatialConfig(picture_size=SIZE), palette_classifier=PaletteClassifierConfig(
                             input_size=128, palette_size=6, discriminant_axes=5), **settings)
    colorizer = Colorizer(config, None if config.use_memory else False).eval()
    labs = [rgb_to_lab(draw_picture(seed)) for seed in range(FRAMES)]
    if config.use_memory:
        memory, config.reference_scopes = colorizer.memory, [""]
        features = extract_features(colorizer.backbone, [lab[..., 0] for lab in labs], torch.device("cpu"), "fp32")
        memory.keys[:], memory.used[:], memory.pinned[PINNED] = memory.query(features.embedding), True, True
        memory.values[:] = torch.from_numpy(np.stack([color_feature(lab[..., 1:]) for lab in labs]))
    if config.use_spatial_memory:
        spatial = colorizer.spatial
        spatial.projection.normal_(0, 0.1)
        spatial.pinned[PINNED] = True
        L, ab = (torch.cat(x) for x in zip(*(lab_to_tensors(resize(lab, SIZE, SIZE)) for lab in labs), strict=True))
        spatial.write(torch.arange(FRAMES), features, L, ab, torch.arange(FRAMES), 0.2 * ab)
    if config.use_palette_classifier:
        colorizer.palette_classifier.projection.normal_()
        colorizer.palette_classifier.palette.uniform_(-60, 60)
    return colorizer


def save(path, colorizer):
    """Write a Colorizer as a checkpoint; return the path."""
    save_checkpoint(path, {"colorizer": colorizer.state_dict(), "model_config": asdict(colorizer.config), "frames": {}})
    return path


def export(checkpoint, folder):
    main(["--checkpoint", str(checkpoint), "--output", str(folder)])
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Exported folders, which need ONNX


@pytest.fixture(scope="module")
def colorizer():
    return untrained(use_palette_classifier=True, use_feat_integrator=True)


@pytest.fixture(scope="module")
def folder(colorizer, tmp_path_factory):
    """The folder with the exported colorizer."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} of requirements-dev.txt is not installed")
    home = tmp_path_factory.mktemp("home")
    return export(save(home / "best.pt", colorizer), home / "exported")


@pytest.fixture(scope="module")
def example(folder):
    """The namespace of color.py in the folder."""
    space = {"__name__": "color"}
    exec(compile((folder / "color.py").read_text(encoding="utf-8"), "color.py", "exec"), space)
    return space


def random_input(name, shape, rng):
    """Return random values in the range of an input."""
    if name == "regions":
        return rng.integers(0, np.prod(shape[1:]), shape)
    values = rng.random(shape, np.float32)
    if name == "color_feature":
        return values / values.sum(1, keepdims=True)
    return {"predicted_ab": 2 * values - 1, "preferred": (values > 0.5).astype(np.float32)}.get(name, values)


@pytest.mark.parametrize("count, frames", [(1, 1), (2, 8), (5, 3)])
def test_graphs_equal_torch_networks(colorizer, folder, example, count, frames):
    rng = np.random.default_rng(count)
    graphs, found = graphs_of(colorizer), example["Exported"](folder).graphs
    assert list(found) == list(graphs) == ["backbone", "integrator", "generator", "palette_classifier", "spatial"]
    for name, graph in graphs.items():
        sizes = {"N": count, "F": frames}
        inputs = {x.name: random_input(x.name, [sizes.get(size, size) for size in x.shape], rng)
                  for x in found[name].get_inputs()}
        assert list(inputs) == list(graph.inputs)
        if name == "spatial":  # cells similar to those of the pictures
            queries = colorizer.spatial.make_keys(
                *(torch.from_numpy(inputs[key]) for key in ("cells", "L", "predicted_ab"))).numpy()
            inputs["keys"] = queries[:, None] + 0.2 * inputs["keys"]
            inputs["colors"] *= 0.2
        with torch.no_grad():
            expected = graph.network(*map(torch.from_numpy, inputs.values()))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for output, x, y in zip(graph.outputs, expected, found[name].run(graph.outputs, inputs), strict=True):
            assert x.std() > 1e-4, f"{name}: {output} is the same everywhere"
            np.testing.assert_allclose(y, x.numpy(), rtol=0, atol=1e-3, err_msg=f"{name}: {output}")


@pytest.mark.parametrize("source", ["memory", "integrator"])
def test_the_example_colors_like_the_program(colorizer, folder, example, source, monkeypatch):
    """Without warped colors and regions, which the example does not have."""
    exported = example["Exported"](folder)
    if source == "memory":
        del exported.graphs["integrator"]
    monkeypatch.setattr("colorizer.colorizer.warp_colors",
                        lambda memory, nearest, keys, L, _: L.expand(-1, 3, -1, -1) * 0)
    monkeypatch.setattr(PaletteClassifier, "find_regions", lambda self, lightness: torch.arange(
        lightness[0].numel()).expand(len(lightness), -1))
    pictures = [draw_picture(seed, size) for seed, size in ((PINNED, (96, 64)), (20, (300, 180)), (21, (150, 150)))]
    expected = Predictor(colorizer, torch.device("cpu"), "fp32", source).colorize(pictures)
    for picture, x, y in zip(pictures, expected, exported.color(pictures), strict=True):
        assert x.shape == y.shape == picture.shape and np.ptp(x.astype(int) - picture, (0, 1)).min() > 5
        assert np.abs(x.astype(int) - y).max() <= 1


def test_the_example_selects_the_same_frames_as_the_program(colorizer, folder, example):
    exported, features = example["Exported"](folder), np.random.default_rng(0).random((6, 1280), np.float32)
    features[1] = colorizer.spatial.embeddings[PINNED]
    expected = find_nearest_frames(colorizer.spatial, quantize_embeddings(torch.from_numpy(features)))
    frames, preferred = exported.nearest(features)
    assert frames.tolist() == expected.slots.tolist() and preferred.astype(bool).tolist() == expected.preferred.tolist()
    assert preferred.any() and not preferred.all()


def test_the_example_runs_without_torch(folder, example, tmp_path):
    """It reports unreadable pictures and existing output files."""
    run = (f"import runpy, sys; sys.modules.update(dict.fromkeys({EXCLUDED})); "
           "runpy.run_path('color.py', None, '__main__')")

    def color(*arguments):
        return subprocess.run([sys.executable, "-c", run, *map(str, arguments)], cwd=folder, capture_output=True,
                              text=True, timeout=120)

    picture = draw_picture(30)
    write_image(tmp_path / "gray.png", picture)
    assert (done := color(tmp_path / "gray.png", tmp_path / "colored.png")).returncode == 0, done.stderr
    expected, = example["Exported"](folder).color([picture])
    assert np.array_equal(read_image(tmp_path / "colored.png"), expected)
    assert "exists already" in color(tmp_path / "gray.png", tmp_path / "colored.png").stderr
    assert "cannot be read" in color(folder / "export.json", tmp_path / "other.png").stderr


def test_the_folder_describes_its_content(colorizer, folder, example):
    manifest, readme = json.loads((folder / "export.json").read_text()), (folder / "README.md").read_text()
    graphs = example["Exported"](folder).graphs
    for name, graph in graphs.items():
        for kind, values in (("inputs", graph.get_inputs()), ("outputs", graph.get_outputs())):
            assert {key: value["shape"] for key, value in manifest["graphs"][name][kind].items()} == {
                value.name: value.shape for value in values}
            assert all(f"| `{value.name}` |" in readme for value in values)
    import onnx
    assert manifest["opset"] == 18 == onnx.load(folder / "spatial.onnx").opset_import[0].version
    memory = np.load(folder / "memory.npz", allow_pickle=False)
    assert {key: value["shape"] for key, value in manifest["memory"].items()} == {
        key: list(memory[key].shape) for key in memory}
    assert np.array_equal(memory["cell_keys"], colorizer.spatial.keys.numpy())
    assert memory["slot_pinned"].tolist() == memory["frame_pinned"].tolist() == [i == PINNED for i in range(FRAMES)]
    assert (memory["slot_color_features"] @ memory["ab_bins"]).shape == (FRAMES, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Errors and other checkpoints, without ONNX


def test_existing_folders_are_not_overwritten(colorizer, tmp_path):
    checkpoint = save(tmp_path / "best.pt", colorizer)
    (tmp_path / "exported").mkdir()
    with pytest.raises(UserError, match="exists already; pass a new folder"):
        export(checkpoint, tmp_path / "exported")


def test_a_plain_gan_is_refused(tmp_path):
    gan = untrained(use_memory=False, use_spatial_memory=False, gen_norm="batch")
    with pytest.raises(UserError, match="plain GAN"):
        export(save(tmp_path / "gan.pt", gan), tmp_path / "exported")


def test_without_onnxscript_the_error_names_the_package_and_no_files_remain(colorizer, tmp_path, monkeypatch):
    checkpoint = save(tmp_path / "best.pt", colorizer)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="pip install onnxscript=="):
        export(checkpoint, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_checkpoints_without_a_spatial_memory_have_fewer_graphs():
    graphs = graphs_of(untrained(use_spatial_memory=False))
    assert list(graphs) == ["backbone", "generator"] and "cells" not in graphs["generator"].inputs
    assert graphs["generator"].network(*graphs["generator"].inputs.values()).shape == (2, 2, SIZE, SIZE)
