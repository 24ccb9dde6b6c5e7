"""Color a picture with exported networks. This example needs only NumPy, OpenCV and onnxruntime.

    python color.py GRAY COLORED

``python -m colorizer.export`` copies this example as color.py into the folder that it writes; README.md there describes
every tensor. Only the lightness of GRAY is used, and the result keeps it.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def resize(picture, height, width):
    """Resize (h, w) or (h, w, C) to (height, width, ...) by area average if smaller, else bilinearly."""
    shrink = height <= picture.shape[0] and width <= picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def upsample_colors(ab, L, window, regularization, max_slope):
    """Upsample ab (h, w, 2) to the size of L (H, W) by a guided filter (He et al. 2013) of side ``window``.

    ``regularization`` is added to the variance of L; the slopes of ab over L are clipped to [-max_slope, max_slope].
    """
    def mean(plane):
        return cv2.blur(plane, (window, window))

    small = resize(L, *ab.shape[:2])
    mean_L, planes = mean(small), cv2.split(ab)
    variance = mean(small * small) - mean_L * mean_L + np.float32(regularization)
    slope = cv2.merge([(mean(small * color) - mean_L * mean(color)) / variance for color in planes])
    slope = slope.clip(-max_slope, max_slope)
    return resize(slope, *L.shape) * L[..., None] + resize(ab - slope * small[..., None], *L.shape)


class Exported:
    """Networks and memories of an exported folder. A call takes N pictures, N >= 1; S is the side of the result."""

    def __init__(self, folder, providers=("CPUExecutionProvider",)):
        """``providers`` are execution providers of onnxruntime, such as CUDAExecutionProvider, best first."""
        self.manifest = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.graphs = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=providers)
                       for name in self.manifest["graphs"]}
        self.memory = dict(np.load(folder / "memory.npz"))
        if "spatial" in self.graphs:
            self.frame_embeddings = self.memory["frame_embeddings"].astype(np.float64)

    def color(self, pictures):
        """Color a list of pictures of any sizes, each RGB uint8 (H, W, 3). Returns a list of the same kind."""
        labs = [cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) for picture in pictures]
        for lab, ab in zip(labs, self.predict([lab[..., 0] for lab in labs]), strict=True):
            ab = np.ascontiguousarray(ab.transpose(1, 2, 0)) * self.manifest["ab_scale"]
            lab[..., 1:] = upsample_colors(ab, lab[..., 0], **self.manifest["upsampling"])
        return [cv2.convertScaleAbs(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), alpha=255) for lab in labs]

    def predict(self, lightness):
        """Predict ab / 110 (N, 2, S, S) from a list with the L (H, W) in [0, 100] of each picture."""
        embedding, cells, query = self.run("backbone", lightness)
        color_feature, score = self.recall(query)
        cells = {"cells": cells} if "spatial" in self.graphs else {}
        ab, = self.run("generator", lightness, color_feature=color_feature, score=score, **cells)
        if "palette_classifier" in self.graphs:
            ab, = self.run("palette_classifier", lightness, predicted_ab=ab, regions=self.regions(lightness))
        if "spatial" in self.graphs:
            frames, preferred = self.nearest(embedding)
            keys, colors = (self.memory[name][frames].astype(np.float32) for name in ("cell_keys", "cell_ab"))
            ab, _ = self.run("spatial", lightness, predicted_ab=ab, keys=keys, colors=colors, preferred=preferred,
                             **cells)
        return ab

    def run(self, name, lightness, **inputs):
        """Return the outputs of a graph for pictures of the given L, resized to its input size."""
        side = self.manifest["graphs"][name]["inputs"]["L"]["shape"][-1]
        L = np.stack([resize(plane, side, side) for plane in lightness])[:, None] / np.float32(self.manifest["L_scale"])
        return self.graphs[name].run(None, {"L": L, **inputs})

    def recall(self, query):
        """Return color features (N, 313) and cosine similarities (N,) for queries. Pinned slots get a ranking bonus."""
        similarity = query @ self.memory["slot_keys"].T
        ranked = similarity + np.float32(self.manifest["pinned_slot_bonus"]) * self.memory["slot_pinned"]
        slots = np.argsort(-ranked, axis=1, kind="stable")[:, :3]
        values, scores = self.memory["slot_color_features"][slots], np.take_along_axis(similarity, slots, 1)
        if "integrator" not in self.graphs:
            return values[:, 0], scores[:, 0]
        missing = 3 - slots.shape[1]
        padded = {"color_features": np.pad(values, ((0, 0), (0, missing), (0, 0))),
                  "scores": np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)}
        return self.graphs["integrator"].run(None, padded)[0], scores[:, 0]

    def regions(self, lightness):
        """Return the index of the region of each grid cell, int64 (N, G, G). Here each cell is a region of its own; a
        segmentation into regions of one color gives more uniform colors."""
        side = self.manifest["graphs"]["palette_classifier"]["inputs"]["regions"]["shape"][-1]
        return np.tile(np.arange(side * side).reshape(1, side, side), (len(lightness), 1, 1))

    def nearest(self, embedding):
        """Select F remembered frames for each embedding (N, D) by maximal marginal relevance (Carbonell and Goldstein
        1998). Returns their indices (N, F), and 1 for preferred references and 0 for others, float32 (N, F)."""
        config, pinned = self.manifest["retrieval"], self.memory["frame_pinned"]
        embedding = embedding.astype(np.float64)
        embedding = np.rint(256 * embedding / np.linalg.norm(embedding, axis=1, keepdims=True)) / 256
        similarity = embedding @ self.frame_embeddings.T
        preferred = pinned & (similarity >= similarity.max(1, keepdims=True) - config["reference_margin"])
        chosen = []
        for row in similarity + config["reference_margin"] * preferred:
            candidates = np.argsort(-row, kind="stable")[:config["candidate_frames"]]
            score, penalty, frames = row[candidates], np.zeros(len(candidates)), []
            for _ in range(min(config["attended_frames"], len(candidates))):
                best = np.argmax(score - config["mmr_diversity"] * penalty)
                frames.append(candidates[best])
                penalty = np.maximum(penalty, self.frame_embeddings[candidates]
                                     @ self.frame_embeddings[candidates[best]])
                score[best] = -np.inf
            chosen.append(frames)
        return np.array(chosen), np.take_along_axis(preferred, np.array(chosen), 1).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("gray", type=Path, help="a grayscale or color picture")
    parser.add_argument("colored", type=Path, help="file for the colored picture")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent, help="the exported networks")
    args = parser.parse_args()
    if args.colored.exists():
        sys.exit(f"error: {args.colored} exists already; pass another file")
    picture = cv2.imread(str(args.gray))
    if picture is None:
        sys.exit(f"error: {args.gray} cannot be read as a picture; pass another one")
    colored, = Exported(args.folder).color([cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)])
    if not cv2.imwrite(str(args.colored), cv2.cvtColor(colored, cv2.COLOR_RGB2BGR)):
        sys.exit(f"error: {args.colored} cannot be written; choose a folder that exists")


if __name__ == "__main__":
    main()
