"""How does a program without torch color a picture? By exported networks, with numpy, OpenCV and onnxruntime alone.

    python color.py GRAY COLORED

``python -m colorizer.export`` puts this file as color.py into the folder that it writes. It is a sample, to be changed
into a filter of any program: README.md beside it states every tensor. Only the lightness of GRAY is used, and kept.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def resize(picture, height, width):
    """A picture (h, w) or (h, w, C) as (height, width, ...): area average to shrink, bilinear to enlarge."""
    shrink = height <= picture.shape[0] and width <= picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def upsample_colors(ab, L, window, regularization, max_slope):
    """Colors ab (h, w, 2), enlarged to the size of lightness L (H, W) and along it: within ``window`` x ``window``
    pixels they are taken as linear in L, whose variance is ``regularization`` more, with slopes of at most ``max_slope``."""
    def mean(plane):
        return cv2.blur(plane, (window, window))

    small = resize(L, *ab.shape[:2])
    light, planes = mean(small), cv2.split(ab)
    spread = mean(small * small) - light * light + np.float32(regularization)
    slope = cv2.merge([(mean(small * color) - light * mean(color)) / spread for color in planes])
    slope = slope.clip(-max_slope, max_slope)
    return resize(slope, *L.shape) * L[..., None] + resize(ab - slope * small[..., None], *L.shape)


class Exported:
    """The networks of a folder, and what they remember. N is the number of pictures of a call, any from 1 on."""

    def __init__(self, folder, providers=("CPUExecutionProvider",)):
        """``providers`` are onnxruntime's, such as CUDAExecutionProvider, the preferred one first."""
        self.stated = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.graphs = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=providers)
                       for name in self.stated["graphs"]}
        self.memory = dict(np.load(folder / "memory.npz"))
        if "spatial" in self.graphs:
            self.known = self.memory["frame_features"].astype(np.float64)

    def color(self, pictures):
        """Pictures of any sizes, RGB uint8 (H, W, 3) each, in color."""
        labs = [cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) for picture in pictures]
        for lab, ab in zip(labs, self.predict([lab[..., 0] for lab in labs]), strict=True):
            ab = np.ascontiguousarray(ab.transpose(1, 2, 0)) * self.stated["ab_scale"]
            lab[..., 1:] = upsample_colors(ab, lab[..., 0], **self.stated["upsampling"])
        return [cv2.convertScaleAbs(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), alpha=255) for lab in labs]

    def predict(self, lightness):
        """L (H, W) in [0, 100] of each picture -> ab / 110 (N, 2, S, S)."""
        features, places, query = self.run("backbone", lightness)
        color_feature, score = self.recall(query)
        seen = {"places": places} if "spatial" in self.graphs else {}
        ab, = self.run("generator", lightness, color_feature=color_feature, score=score, **seen)
        if "palette_classifier" in self.graphs:
            ab, = self.run("palette_classifier", lightness, guess=ab, regions=self.regions(lightness))
        if "spatial" in self.graphs:
            frames, preferred = self.nearest(features)
            keys, colors = (self.memory[name][frames].astype(np.float32) for name in ("place_keys", "place_ab"))
            ab, _ = self.run("spatial", lightness, guess=ab, keys=keys, colors=colors, preferred=preferred, **seen)
        return ab

    def run(self, name, lightness, **inputs):
        """The outputs of a graph for pictures of the given L, which are squeezed to the size that it wants."""
        side = self.stated["graphs"][name]["inputs"]["L"]["shape"][-1]
        L = np.stack([resize(plane, side, side) for plane in lightness])[:, None] / np.float32(self.stated["L_scale"])
        return self.graphs[name].run(None, {"L": L, **inputs})

    def recall(self, query):
        """The color feature (N, 313) for each query, and the cosine similarity (N,) that it was recalled with. A slot
        of the user's is preferred to one that is hardly more alike."""
        similarity = query @ self.memory["slot_keys"].T
        wanted = similarity + np.float32(self.stated["slot_preference"]) * self.memory["slot_pinned"]
        slots = np.argsort(-wanted, axis=1, kind="stable")[:, :3]
        values, scores = self.memory["slot_color_features"][slots], np.take_along_axis(similarity, slots, 1)
        if "integrator" not in self.graphs:
            return values[:, 0], scores[:, 0]
        missing = 3 - slots.shape[1]
        padded = {"color_features": np.pad(values, ((0, 0), (0, missing), (0, 0))),
                  "scores": np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)}
        return self.graphs["integrator"].run(None, padded)[0], scores[:, 0]

    def regions(self, lightness):
        """The regions of each picture, int64 (N, G, G): every place is one of its own. Who cuts the pictures into
        regions that have one color each gets colors that are more even within them."""
        side = self.stated["graphs"]["palette_classifier"]["inputs"]["regions"]["shape"][-1]
        return np.tile(np.arange(side * side).reshape(1, side, side), (len(lightness), 1, 1))

    def nearest(self, features):
        """The known frames to read (N, F) for what the backbone sees of pictures, and which of them are the user's and
        come first, float32 (N, F): frames that look like the picture but not like each other (maximal marginal
        relevance, Carbonell and Goldstein 1998)."""
        spatial, pinned = self.stated["spatial"], self.memory["frame_pinned"]
        features = features.astype(np.float64)
        looks = np.rint(256 * features / np.linalg.norm(features, axis=1, keepdims=True)) / 256
        similarity = looks @ self.known.T
        preferred = pinned & (similarity >= similarity.max(1, keepdims=True) - spatial["reference_margin"])
        chosen = []
        for row in similarity + spatial["reference_margin"] * preferred:
            candidates = np.argsort(-row, kind="stable")[:spatial["candidate_frames"]]
            score, penalty, frames = row[candidates], np.zeros(len(candidates)), []
            for _ in range(min(spatial["attended_frames"], len(candidates))):
                best = np.argmax(score - spatial["mmr_diversity"] * penalty)
                frames.append(candidates[best])
                penalty = np.maximum(penalty, self.known[candidates] @ self.known[candidates[best]])
                score[best] = -np.inf
            chosen.append(frames)
        return np.array(chosen), np.take_along_axis(preferred, np.array(chosen), 1).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("gray", type=Path, help="a picture")
    parser.add_argument("colored", type=Path, help="the picture to write")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent, help="the exported networks")
    args = parser.parse_args()
    if args.colored.exists():
        sys.exit(f"error: {args.colored} exists already; name another file")
    picture = cv2.imread(str(args.gray))
    if picture is None:
        sys.exit(f"error: {args.gray} cannot be read as a picture; name another one")
    colored, = Exported(args.folder).color([cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)])
    if not cv2.imwrite(str(args.colored), cv2.cvtColor(colored, cv2.COLOR_RGB2BGR)):
        sys.exit(f"error: {args.colored} cannot be written; choose a folder that exists")


if __name__ == "__main__":
    main()
