"""Export of a checkpoint for programs without torch: networks as ONNX graphs, memories as NumPy arrays.

    python -m colorizer.export --checkpoint checkpoints/best.pt --output exported

The output folder holds a graph for each network, memory.npz, export.json (descriptions of all tensors and constants),
README.md (how to combine the graphs), and color.py (an example without torch).
"""

import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from colorizer.colorizer import Colorizer
from colorizer.memory.attention import attend
from colorizer.palette_classifier import CELL_SIZE, shift_cell_means
from colorizer.predictor import load_colorizer
from colorizer.warping import upsampling
from dataset import AB_BINS, AB_SCALE, GRAY_SIZE, L_SCALE, N_BINS, backbone_input
from networks import Conditioning, FeatureIntegrator, slot_ranks
from utils import UserError, read_flags, run_cli, warn, setting

FORMAT, OPSET = 1, 18
EXAMPLE = Path(__file__).resolve().parents[1] / "resources" / "color_by_onnx.py"
PACKAGES = "pip install onnxscript==0.7.2"
TENSORS = {  # {name of an input or output: description}
    "L": "lightness of CIE Lab / 100, in [0, 1], of pictures resized to a square of this size",
    "embedding": "frame embedding: backbone features of the whole picture",
    "cells": "backbone features of each grid cell, in [-1, 1]",
    "query": "query for the color memory, of unit length",
    "color_features": "color features of the best slots of the memory, best first",
    "scores": "cosine similarities of these slots",
    "color_feature": "soft histogram over ab_bins of memory.npz, >= 0, sum 1",
    "score": "cosine similarity of the slot of color_feature; 1 if it comes from elsewhere",
    "predicted_ab": "output `ab` of the previous graph in the list",
    "regions": "region index of each grid cell, below the number of cells; without segmentation, all different",
    "keys": "cell_keys of F remembered frames",
    "colors": "cell_ab of these frames",
    "preferred": "1 for a reference of the user that takes precedence over other frames, else 0",
    "ab": "ab of CIE Lab / 110, in about [-1, 1]",
    "confidence": "confidence of the recalled color of each grid cell, in [0, 1]",
}

ARRAYS = {  # {name in memory.npz: description}
    "slot_keys": "keys of the slots of the color memory, of unit length",
    "slot_color_features": "color feature of each slot",
    "slot_pinned": "whether the slot holds a reference of the user",
    "ab_bins": "(a, b) of the bins of a color feature, in CIE Lab",
    "frame_embeddings": "embedding of each remembered frame, of unit length",
    "frame_pinned": "whether the frame is a reference of the user",
    "cell_keys": "keys of the grid cells of each remembered frame, row by row",
    "cell_ab": "colors of these cells, ab of CIE Lab / 110",
}
RETRIEVAL = ("attended_frames", "candidate_frames", "mmr_diversity", "reference_margin")  # of SpatialConfig
README = """# Colorization networks as ONNX

Opset {opset}, {precision}. N is the number of pictures. `color.py` is an example that needs only NumPy, OpenCV and
onnxruntime: `python color.py GRAY COLORED`. `export.json` holds the same information for programs.

1. `backbone` computes features of the grayscale picture.
2. The slot of `memory.npz` whose key has the largest dot product with the query gives color feature and score; in this
   comparison, pinned slots get {pinned_slot_bonus} more. With an `integrator`, the best three slots are combined.
3. `generator` predicts ab.
4. `palette_classifier`, if present, moves the color of each grid cell to a color of the series.
5. `spatial`, if present, replaces colors with those of similar cells in up to {frames} remembered frames, in
   proportion to the confidence. `nearest` in `color.py` selects the frames.
6. ab is upsampled to the size of the picture, guided by lightness (`upsample_colors` in `color.py`), and joined to L.

Pictures are resized to the square input of each graph, by area if it is smaller, else bilinearly. L of CIE Lab (D65,
from sRGB) is divided by {L_scale:g}, ab by {ab_scale:g}. The graphs include the ImageNet normalization.

## Graphs

{graphs}
## memory.npz

NumPy arrays, without pickle.

{memory}
## Not included

Colors warped from remembered frames along the optical flow, shared color features per shot, temporal filtering,
segmentation into regions (input `regions`), the film response, fades and dissolves.
"""


@dataclass
class ExportConfig:
    """Settings of ``python -m colorizer.export``."""

    checkpoint: Path = setting(Path("checkpoints/best.pt"), "checkpoint of train.py", group="files")
    output: Path = setting(Path("exported"), "new folder for the ONNX networks and the files they need")


class Graph(NamedTuple):
    """A network to export as ONNX."""

    network: nn.Module
    inputs: dict[str, torch.Tensor]  # {name: example with the batch as first dimension}
    outputs: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------
# The graphs


class BackboneGraph(nn.Module):
    """Compute backbone features of a grayscale picture and the query for the color memory."""

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.backbone, self.memory = colorizer.backbone, colorizer.memory

    def forward(self, L: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        embedding, cells, _ = self.backbone(backbone_input(L))
        return embedding, cells, self.memory.query(embedding)


class GeneratorGraph(nn.Module):
    """The generator, with its conditioning as two separate inputs."""

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.generator = colorizer.generator

    def forward(self, L: torch.Tensor, color_feature: torch.Tensor, score: torch.Tensor,
                cells: torch.Tensor | None = None) -> torch.Tensor:
        return self.generator(L, Conditioning(color_feature, score), cells)


class ClassifierGraph(nn.Module):
    """Combine the palette classifier with the output of the generator."""

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.backbone, self.palette_classifier = colorizer.backbone, colorizer.palette_classifier

    def forward(self, L: torch.Tensor, predicted_ab: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        logits = self.palette_classifier(self.backbone.maps(backbone_input(L)), L, regions.flatten(1))
        return self.palette_classifier.combine(predicted_ab, logits)[0]


class SpatialMemoryGraph(nn.Module):
    """Recall colors by attention to the cells of remembered frames."""

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.spatial, self.grid = colorizer.spatial, colorizer.config.spatial.grid

    def forward(self, L: torch.Tensor, predicted_ab: torch.Tensor, cells: torch.Tensor, keys: torch.Tensor,
                colors: torch.Tensor, preferred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        is_preferred = preferred[..., None].expand(-1, -1, self.grid**2).flatten(1)[..., None]
        queries = self.spatial.make_keys(cells, L, predicted_ab)
        recalled = attend(queries, keys.flatten(1, 2), colors.flatten(1, 2), is_preferred, self.spatial.config)
        color, confidence = recalled.unflatten(2, (self.grid, self.grid)).split([2, 1], 1)
        return shift_cell_means(predicted_ab, color, confidence), confidence[:, 0]


def graphs_of(colorizer: Colorizer) -> dict[str, Graph]:
    """Return {name: graph} of a Colorizer with a memory, in execution order."""
    config, n = colorizer.config, 2  # torch would export a batch size of 1 as a constant
    grid, size, top = config.spatial.grid, config.img_size, FeatureIntegrator.TOP
    L, predicted_ab = torch.zeros(n, 1, size, size), torch.zeros(n, 2, size, size)
    conditioning = {"color_feature": torch.full((n, N_BINS), 1 / N_BINS), "score": torch.ones(n)}
    graphs = {"backbone": Graph(BackboneGraph(colorizer), {"L": torch.zeros(n, 1, GRAY_SIZE, GRAY_SIZE)},
                                ("embedding", "cells", "query"))}
    if config.use_feat_integrator:
        inputs = {"color_features": torch.zeros(n, top, N_BINS), "scores": torch.zeros(n, top)}
        graphs["integrator"] = Graph(colorizer.integrator, inputs, ("color_feature",))
    cells = {"cells": torch.zeros(n, colorizer.backbone.dims.cell, grid, grid)} if config.use_spatial_memory else {}
    graphs["generator"] = Graph(GeneratorGraph(colorizer), {"L": L, **conditioning, **cells}, ("ab",))
    if config.use_palette_classifier:
        side = config.palette_classifier.input_size
        regions = torch.zeros(n, side // CELL_SIZE, side // CELL_SIZE, dtype=torch.int64)
        inputs = {"L": torch.zeros(n, 1, side, side), "predicted_ab": predicted_ab, "regions": regions}
        graphs["palette_classifier"] = Graph(ClassifierGraph(colorizer), inputs, ("ab",))
    if config.use_spatial_memory:
        frames = {"keys": torch.zeros(n, 2, grid**2, config.spatial.key_dim + 5),
                  "colors": torch.zeros(n, 2, grid**2, 2), "preferred": torch.zeros(n, 2)}
        inputs = {"L": L, "predicted_ab": predicted_ab, **cells, **frames}
        graphs["spatial"] = Graph(SpatialMemoryGraph(colorizer), inputs, ("ab", "confidence"))
    return graphs


def memory_of(colorizer: Colorizer) -> dict[str, np.ndarray]:
    """Return the memories of a Colorizer as the arrays of memory.npz."""
    memory, ranks = colorizer.memory, colorizer.unscoped_ranks  # references with a scope are left out
    used = memory.used & (slot_ranks(memory.pinned, ranks) >= 0)
    arrays = {"slot_keys": memory.keys[used], "slot_color_features": memory.values[used],
              "slot_pinned": memory.pinned[used], "ab_bins": torch.from_numpy(AB_BINS)}
    if colorizer.config.use_spatial_memory:
        spatial = colorizer.spatial
        kept = slot_ranks(spatial.pinned, ranks) >= 0
        arrays |= {"frame_embeddings": spatial.embeddings[kept], "frame_pinned": spatial.pinned[kept],
                   "cell_keys": spatial.keys[kept], "cell_ab": spatial.ab[kept]}
    return {name: tensor.numpy() for name, tensor in arrays.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_graph(path: Path, graph: Graph) -> dict[str, Any]:
    """Write a graph as ONNX. Return descriptions of its inputs and outputs. Raises UserError if torch cannot export it.
    """
    for module in graph.network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False  # in-place operations double the time of torch's exporter
    shapes = tuple({0: "N", 1: "F"} if name in ("keys", "colors", "preferred") else {0: "N"} for name in graph.inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
            program: Any = torch.onnx.export(
                graph.network.eval(), tuple(graph.inputs.values()), input_names=list(graph.inputs),
                output_names=graph.outputs, dynamic_shapes=shapes, opset_version=OPSET, verbose=False)
            program.save(path, external_data=False)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"torch cannot write {path.stem} as ONNX ({str(error).strip().splitlines()[0]}); train with "
                        "--backbone efficientnet_lite0") from error
    return {kind: {value.name: _description(value) for value in values}
            for kind, values in (("inputs", program.model.graph.inputs), ("outputs", program.model.graph.outputs))}


def _description(value):
    shape = [size if isinstance(size, int) else str(size.value) for size in value.shape]
    return {"type": str(value.dtype).lower(), "shape": shape, "description": TENSORS[value.name]}


def export(config: ExportConfig) -> None:
    """Export a checkpoint to the new folder ``config.output``, which appears only when it is complete.

    Raises UserError if the folder exists or cannot be written, if the checkpoint cannot be read, is a plain GAN or has
    a frame archive, or if packages are missing.
    """
    try:
        import onnxscript  # noqa: F401  # required by torch.onnx.export
    except ImportError as error:
        raise UserError(f"exporting needs the package onnxscript ({error}); install it with: {PACKAGES}") from error
    output = config.output
    if output.exists():
        raise UserError(f"{output} exists already; pass a new folder to --output")
    colorizer, _ = load_colorizer(config.checkpoint, torch.device("cpu"))
    if not colorizer.config.use_memory:
        raise UserError(f"{config.checkpoint} is a plain GAN without a memory; train with "
                        "use_memory True")
    if colorizer.config.archived_frames:
        raise UserError(f"{config.checkpoint} keeps {colorizer.config.archived_frames:,} frames in an archive, which "
                        f"is not exported; use one with at most {colorizer.config.spatial.max_inline_frames:,} frames")
    if colorizer.config.character_colors:
        warn("the classifier of character sheets is not exported")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
            folder = Path(temporary) / output.name
            folder.mkdir()
            write_folder(folder, colorizer)
            folder.rename(output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error


def write_folder(folder: Path, colorizer: Colorizer) -> None:
    """Write all exported files of ``colorizer`` into an empty ``folder``."""
    graphs = {name: write_graph(folder / f"{name}.onnx", graph) for name, graph in graphs_of(colorizer).items()}
    memory = memory_of(colorizer)
    np.savez(folder / "memory.npz", allow_pickle=False, **memory)
    manifest = {
        "format": FORMAT, "opset": OPSET, "precision": "fp32", "L_scale": L_SCALE, "ab_scale": AB_SCALE,
        "pinned_slot_bonus": colorizer.memory.PREFERENCE,
        "upsampling": {"window": upsampling.WINDOW, "regularization": upsampling.REGULARIZATION,
                       "max_slope": upsampling.MAX_SLOPE},
        "retrieval": {name: getattr(colorizer.config.spatial, name) for name in RETRIEVAL},
        "graphs": graphs,
        "memory": {name: {"type": str(array.dtype), "shape": array.shape, "description": ARRAYS[name]}
                   for name, array in memory.items()}}
    (folder / "export.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    (folder / "README.md").write_text(readme(manifest), encoding="utf-8")
    shutil.copy(EXAMPLE, folder / "color.py")


def readme(manifest: dict[str, Any]) -> str:
    """Return the text of README.md, given the content of export.json."""
    graphs = "".join(f"### {name}.onnx\n\n{_table(graph['inputs'], 'input')}\n{_table(graph['outputs'], 'output')}\n"
                     for name, graph in manifest["graphs"].items())
    return README.format(**{**manifest, "graphs": graphs, "memory": _table(manifest["memory"], "array"),
                            "frames": manifest["retrieval"]["attended_frames"]})


def _table(tensors, kind):
    """Return a Markdown table of tensor descriptions."""
    rows = [f"| `{name}` | {tensor['type']} | {' x '.join(map(str, tensor['shape']))} | {tensor['description']} |"
            for name, tensor in tensors.items()]
    return "\n".join([f"| {kind} | type | shape | description |", "|---|---|---|---|", *rows, ""])


def main(argv: list[str]) -> None:
    config = ExportConfig(**read_flags(ExportConfig, argv, __doc__ or ""))
    export(config)
    print(f"exported networks and memories to {config.output}")


if __name__ == "__main__":
    run_cli(main)
