"""LPIPS compared with a slow implementation of its formula, and the safe loading of its weights."""

import pickle

import numpy as np
import pytest
from scipy.signal import correlate2d

from benchmarks.score import LPIPS

CHANNELS, SIZES, STRIDES, PADS = (3, 4, 5, 6, 4, 3), (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)


@pytest.fixture
def weights(tmp_path):
    """Return random weights of a narrow network as a dict, and their file."""
    rng = np.random.default_rng(0)
    content = {"AlexNet_0": {
        f"Conv_{i}": {"kernel": rng.normal(0, 0.2, (size, size, CHANNELS[i], CHANNELS[i + 1])).astype(np.float32),
                      "bias": rng.normal(0, 0.1, CHANNELS[i + 1]).astype(np.float32)} for i, size in enumerate(SIZES)}}
    for i in range(5):
        content[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": rng.random((1, 1, CHANNELS[i + 1], 1)).astype(np.float32)}}
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps(content))
    return content, path


def pooled(maps):
    """Return the maxima of windows of 3 x 3 with stride 2."""
    rows = [[maps[y:y + 3, x:x + 3].max((0, 1)) for x in range(0, maps.shape[1] - 2, 2)]
            for y in range(0, maps.shape[0] - 2, 2)]
    return np.array(rows)


def slow(content, rgb, ground_truth):
    """Compute formula (2) of arXiv 1801.03924 channel by channel."""
    total, pair = 0.0, [np.float64(x) / 127.5 - 1 for x in (rgb, ground_truth)]
    pair = [(x - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450] for x in pair]
    for i, (stride, pad) in enumerate(zip(STRIDES, PADS, strict=True)):
        kernel, bias = content["AlexNet_0"][f"Conv_{i}"].values()
        pair = [pooled(x) if i in (1, 2) else x for x in pair]
        padded = [np.pad(x, ((pad, pad), (pad, pad), (0, 0))) for x in pair]
        pair = [np.maximum(0, np.stack([
            bias[o] + sum(correlate2d(x[..., c], kernel[..., c, o], "valid") for c in range(x.shape[2]))
            for o in range(kernel.shape[3])], 2)[::stride, ::stride]) for x in padded]
        one, other = (x / (np.linalg.norm(x, axis=2, keepdims=True) + 1e-10) for x in pair)
        linear = content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel()
        total += ((one - other)**2 @ linear).mean()
    return total


def test_lpips_equals_the_published_formula(weights):
    content, path = weights
    rgb, ground_truth = np.random.default_rng(1).integers(0, 256, (2, 47, 61, 3), np.uint8)
    measure = LPIPS(path)
    assert measure(rgb, ground_truth) == pytest.approx(slow(content, rgb, ground_truth), rel=1e-4)
    assert measure(rgb, rgb) == 0 and measure(rgb, ground_truth) == pytest.approx(measure(ground_truth, rgb))


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_weights_cannot_run_code(tmp_path, capsys):
    (tmp_path / "evil").write_bytes(pickle.dumps({"AlexNet_0": Evil()}))
    with pytest.raises(pickle.UnpicklingError, match="print is not an array"):
        LPIPS(tmp_path / "evil")
    assert "ran" not in capsys.readouterr().out
