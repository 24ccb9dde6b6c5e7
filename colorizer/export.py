"""How does another program color by a checkpoint? The networks as ONNX, what they remember as arrays of numpy.

    python -m colorizer.export --checkpoint checkpoints/best.pt --output exported

The folder that is written is all that a filter needs: a graph for each network, memory.npz, export.json, which states
every tensor and constant, README.md, which says how they are put together, and color.py, which does so without torch.
"""

import json
import shutil
import tempfile
import warnings
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
from config import ExportConfig
from dataset import AB_BINS, AB_SCALE, GRAY_SIZE, L_SCALE, N_BINS, backbone_input
from networks import Conditioning, FeatureIntegrator
from utils import UserError, read_flags, run_cli

FORMAT, OPSET = 1, 18
SAMPLE = Path(__file__).resolve().parents[1] / "resources" / "color_by_onnx.py"
PACKAGES = "pip install onnx==1.23.2 onnxscript==0.7.2"
TENSORS = {  # name of an input or output: what it holds
    "L": "lightness of CIE Lab / 100, in [0, 1], of pictures squeezed to a square of this size",
    "features": "what the backbone sees of the whole picture",
    "places": "what it sees of each place, in [-1, 1]",
    "query": "by which color features are recalled, of unit length",
    "color_features": "of the best slots of the memory, best first",
    "scores": "their cosine similarities",
    "color_feature": "soft histogram over ab_bins of memory.npz, >= 0, of sum 1",
    "score": "cosine similarity that it was recalled with, in [-1, 1]; 1 for a palette that is surely right",
    "guess": "the colors painted so far, ab / 110 of CIE Lab, in about [-1, 1]",
    "regions": "number of the region that each place belongs to, from 0 to the number of places - 1; all different "
               "where nothing is known of regions",
    "keys": "place_keys of F known frames",
    "colors": "place_ab of them",
    "preferred": "1 for a known frame of the user's that comes before all others, else 0",
    "ab": "colors, ab / 110 of CIE Lab, in about [-1, 1]",
    "confidence": "how surely a place is known, in [0, 1]",
}

ARRAYS = {  # name in memory.npz: what it holds
    "slot_keys": "keys of the memory's slots, which queries are compared with, of unit length",
    "slot_color_features": "the color feature of each slot",
    "slot_pinned": "whether the user added it",
    "ab_bins": "(a, b) of the bins of a color feature, in CIE Lab",
    "frame_features": "what the backbone sees of each known frame, of unit length",
    "frame_pinned": "whether the user added it",
    "place_keys": "keys of the places of each known frame, line by line",
    "place_ab": "their colors, ab / 110",
}
CHOICE = ("attended_frames", "candidate_frames", "mmr_diversity", "reference_margin")  # of SpatialConfig, by which known frames are chosen
README = """# Networks that color, as ONNX

Exported with opset {opset} in {precision}; N, the number of pictures, is any from 1 on. `color.py` colors a picture by
this folder with numpy, OpenCV and onnxruntime alone (`python color.py GRAY COLORED`) and shows how all goes together;
`export.json` states the same as this page for programs.

1. `backbone` looks at the gray picture.
2. The slot of `memory.npz` with the greatest dot product of its key and the query gives color feature and score; a
   pinned one counts {slot_preference} more.
3. `generator` paints.
4. `palette_classifier`, if there is one, moves each place to a color of the show. Its `guess` is the `ab` of the graph before it.
5. `spatial`, if there is one, lays over it what is known of places that look alike, in up to {frames} frames of
   `memory.npz` that look like the picture but not like each other (`nearest` in `color.py`).
6. `ab` is enlarged to the picture's size, along its lightness (`upsample_colors` in `color.py`), and joined to its own L.

A picture is squeezed to the square that each graph wants: by area average to shrink, bilinearly to enlarge. L is that
of CIE Lab (D65, from sRGB) divided by {L_scale:g}, and ab is divided by {ab_scale:g}. No other normalization is needed;
that of ImageNet is in the graphs.

## Graphs

{graphs}
## memory.npz

Arrays of numpy, without pickle.

{memory}
## What the program does beside, which is not here

Colors carried from known frames along the optical flow, one palette for a whole shot, colors that are steady from frame
to frame, votes for the regions of a picture (`regions` is where to hand them in), the look through the curve of a faded
film, and fades and dissolves.
"""


class Graph(NamedTuple):
    """A network to be written as ONNX."""

    network: nn.Module
    inputs: dict[str, torch.Tensor]  # examples; the first dimension is the batch
    outputs: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------
# The graphs


class Look(nn.Module):
    """What the backbone sees of a gray picture, and the query to the memory."""

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.backbone, self.memory = colorizer.backbone, colorizer.memory

    def forward(self, L: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features, places, _ = self.backbone(backbone_input(L))
        return features, places, self.memory.query(features)


class Paint(nn.Module):
    """The generator, by a color feature."""

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.generator = colorizer.generator

    def forward(self, L: torch.Tensor, color_feature: torch.Tensor, score: torch.Tensor,
                places: torch.Tensor | None = None) -> torch.Tensor:
        return self.generator(L, Conditioning(color_feature, score), places)


class Vote(nn.Module):
    """What the voter and the generator agree on."""

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.backbone, self.palette_classifier = colorizer.backbone, colorizer.palette_classifier

    def forward(self, L: torch.Tensor, guess: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        votes = self.palette_classifier(self.backbone.maps(backbone_input(L)), L, regions.flatten(1))
        return self.palette_classifier.combine(guess, votes)[0]


class Remember(nn.Module):
    """The colors of known places that look alike, laid over what was painted."""

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.spatial, self.grid = colorizer.spatial, colorizer.config.spatial.grid

    def forward(self, L: torch.Tensor, guess: torch.Tensor, places: torch.Tensor, keys: torch.Tensor,
                colors: torch.Tensor, preferred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pulled = preferred[..., None].expand(-1, -1, self.grid**2).flatten(1)[..., None]
        own = self.spatial.make_keys(places, L, guess)
        hint = attend(own, keys.flatten(1, 2), colors.flatten(1, 2), pulled, self.spatial.config)
        color, confidence = hint.unflatten(2, (self.grid, self.grid)).split([2, 1], 1)
        return shift_cell_means(guess, color, confidence), confidence[:, 0]


def graphs_of(colorizer: Colorizer) -> dict[str, Graph]:
    """The graphs of a Colorizer with a memory, by name, in the order in which they color a picture."""
    config, n = colorizer.config, 2  # a batch of 1 would be taken for a constant
    dims, grid, size = colorizer.backbone.dims, config.spatial.grid, config.img_size
    L, guess = torch.zeros(n, 1, size, size), torch.zeros(n, 2, size, size)
    places = torch.zeros(n, sum(dims.maps[-3:]), grid, grid)
    advice = {"color_feature": torch.full((n, N_BINS), 1 / N_BINS), "score": torch.ones(n)}
    graphs = {"backbone": Graph(Look(colorizer), {"L": torch.zeros(n, 1, GRAY_SIZE, GRAY_SIZE)},
                                ("features", "places", "query"))}
    if config.use_feat_integrator:
        top = FeatureIntegrator.TOP
        graphs["integrator"] = Graph(colorizer.integrator, {"color_features": torch.zeros(n, top, N_BINS),
                                                            "scores": torch.zeros(n, top)}, ("color_feature",))
    seen = {"places": places} if config.use_spatial_memory else {}
    graphs["generator"] = Graph(Paint(colorizer), {"L": L, **advice, **seen}, ("ab",))
    if config.use_palette_classifier:
        look, votes = config.palette_classifier.input_size, config.palette_classifier.input_size // CELL_SIZE
        graphs["palette_classifier"] = Graph(Vote(colorizer), {"L": torch.zeros(n, 1, look, look), "guess": guess, "regions":
                                                  torch.zeros(n, votes, votes, dtype=torch.int64)}, ("ab",))
    if config.use_spatial_memory:
        known = {"keys": torch.zeros(n, 2, grid**2, config.spatial.key_dim + 5), "colors": torch.zeros(n, 2, grid**2, 2),
                 "preferred": torch.zeros(n, 2)}
        graphs["spatial"] = Graph(Remember(colorizer), {"L": L, "guess": guess, **seen, **known}, ("ab", "confidence"))
    return graphs


def memory_of(colorizer: Colorizer) -> dict[str, np.ndarray]:
    """What a Colorizer remembers, as the arrays of memory.npz."""
    memory = colorizer.memory
    used = memory.used
    arrays = {"slot_keys": memory.keys[used], "slot_color_features": memory.values[used],
              "slot_pinned": memory.pinned[used], "ab_bins": torch.from_numpy(AB_BINS)}
    if colorizer.config.use_spatial_memory:
        spatial = colorizer.spatial
        arrays |= {"frame_features": spatial.embeddings, "frame_pinned": spatial.pinned, "place_keys": spatial.keys,
                   "place_ab": spatial.ab}
    return {name: tensor.numpy() for name, tensor in arrays.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def write_graph(path: Path, graph: Graph) -> dict[str, Any]:
    """Write a graph as ONNX; returns what is stated of it. Raises UserError when torch cannot make one of it."""
    for module in graph.network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False  # in place, they take torch's exporter twice as long
    shapes = tuple({0: "N", 1: "F"} if name in ("keys", "colors", "preferred") else {0: "N"} for name in graph.inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter, about itself
            program: Any = torch.onnx.export(
                graph.network.eval(), tuple(graph.inputs.values()), input_names=list(graph.inputs),
                output_names=graph.outputs, dynamic_shapes=shapes, opset_version=OPSET, verbose=False)
            program.save(path, external_data=False)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"torch cannot write {path.stem} as ONNX ({str(error).strip().splitlines()[0]}); train with "
                        "--backbone efficientnet_lite0") from error
    return {kind: {value.name: _stated(value) for value in values}
            for kind, values in (("inputs", program.model.graph.inputs), ("outputs", program.model.graph.outputs))}


def _stated(value):
    """What is stated of an input or output of a graph."""
    return {"type": str(value.dtype).lower(), "shape": [size if isinstance(size, int) else str(size.value)
                                                        for size in value.shape], "is": TENSORS[value.name]}


def export(config: ExportConfig) -> None:
    """Write the folder ``config.output``, whole or not at all. Raises UserError when it exists, when the checkpoint
    cannot be read, is a plain GAN or has its frames in a file beside it, or when packages are missing."""
    try:
        import onnxscript  # noqa: F401  # by which torch writes ONNX
    except ImportError as error:
        raise UserError(f"exporting needs the packages onnx and onnxscript ({error}); install them by: "
                        f"{PACKAGES}") from error
    output = config.output
    if output.exists():
        raise UserError(f"{output} exists already; name a new folder by --output")
    colorizer, _ = load_colorizer(config.checkpoint, torch.device("cpu"))
    if not colorizer.config.use_memory:
        raise UserError(f"{config.checkpoint} is a plain GAN, which remembers nothing to color by; train with "
                        "use_memory True")
    if colorizer.config.archived_frames:
        raise UserError(f"the {colorizer.config.archived_frames:,} frames of {config.checkpoint} are in a file of their own, "
                        "too many for memory.npz; export a checkpoint of at most "
                        f"{colorizer.config.spatial.max_inline_frames:,}")
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
    """Write all that colors by ``colorizer`` into an empty ``folder``."""
    graphs = {name: write_graph(folder / f"{name}.onnx", graph) for name, graph in graphs_of(colorizer).items()}
    memory = memory_of(colorizer)
    np.savez(folder / "memory.npz", allow_pickle=False, **memory)
    stated = {
        "format": FORMAT, "opset": OPSET, "precision": "fp32", "L_scale": L_SCALE, "ab_scale": AB_SCALE,
        "slot_preference": colorizer.memory.PREFERENCE,
        "upsampling": {"window": upsampling.WINDOW, "regularization": upsampling.REGULARIZATION,
                       "max_slope": upsampling.MAX_SLOPE},
        "spatial": {name: getattr(colorizer.config.spatial, name) for name in CHOICE},
        "graphs": graphs, "memory": {name: {"type": str(array.dtype), "shape": array.shape, "is": ARRAYS[name]}
                                     for name, array in memory.items()}}
    (folder / "export.json").write_text(json.dumps(stated, indent=1), encoding="utf-8")
    (folder / "README.md").write_text(readme(stated), encoding="utf-8")
    shutil.copy(SAMPLE, folder / "color.py")


def readme(stated: dict[str, Any]) -> str:
    """README.md of what is ``stated`` in export.json."""
    graphs = "".join(f"### {name}.onnx\n\n{_table(graph['inputs'], 'input')}\n{_table(graph['outputs'], 'output')}\n"
                     for name, graph in stated["graphs"].items())
    return README.format(**{**stated, "graphs": graphs, "memory": _table(stated["memory"], "array"),
                            "frames": stated["spatial"]["attended_frames"]})


def _table(tensors, kind):
    """A table of Markdown of tensors as they are stated."""
    rows = [f"| `{name}` | {tensor['type']} | {' x '.join(map(str, tensor['shape']))} | {tensor['is']} |"
            for name, tensor in tensors.items()]
    return "\n".join([f"| {kind} | type | shape | what |", "|---|---|---|---|", *rows, ""])


def main(argv: list[str]) -> None:
    config = ExportConfig(**read_flags(ExportConfig, argv, __doc__ or ""))
    export(config)
    print(f"networks as ONNX and what they remember: {config.output}")


if __name__ == "__main__":
    run_cli(main)
