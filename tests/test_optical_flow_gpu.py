"""Tests of the code paths for GPUs: they give the results of those for CPUs, and do not synchronize with the GPU."""

from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
from drawn import feature
from torch.utils._python_dispatch import TorchDispatchMode

from colorizer import palette_classifier as votes
from colorizer.colorizer import Colorizer
from colorizer.memory.spatial_memory import SpatialMemory
from colorizer.predictor import Palette, Predictor
from colorizer.warping import optical_flow as flow, optical_flow_gpu as motion
from config import ModelConfig, PaletteClassifierConfig, SpatialConfig

SIDE = 96


def drawing(shift):
    """Return smooth noise, float32 (SIDE, SIDE) in [0, 255], moved right and down by ``shift`` pixels."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((SIDE + 40, SIDE + 40), np.float32), (0, 0), 3)
    noise = 255 * (noise - noise.min()) / np.ptp(noise)
    return torch.from_numpy(np.ascontiguousarray(noise[20 - shift:20 - shift + SIDE, 20 - shift:20 - shift + SIDE]))


@pytest.fixture
def maps_and_flows():
    """Return two maps (2, 3, SIDE, SIDE) and flows (2, SIDE, SIDE, 2). Some vectors point outside the picture."""
    torch.manual_seed(0)
    return torch.rand(2, 3, SIDE, SIDE), 20 * torch.randn(2, SIDE, SIDE, 2)


@pytest.mark.parametrize("shift", [0, 1, 6])
def test_the_flow_of_a_translation_is_found(shift):
    found = motion.flows(drawing(0)[None], drawing(shift)[None])[0]
    assert (found[16:-16, 16:-16] - shift).abs().max() < 0.3


def test_the_flow_of_a_pair_does_not_depend_on_its_batch():
    pairs = torch.stack([drawing(shift) for shift in range(5)]), torch.stack([drawing(2)] * 5)
    together, alone = motion.flows(*pairs), [motion.flows(*(x[i:i + 1] for x in pairs)) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))


def test_uniform_pictures_have_zero_flow():
    assert motion.flows(torch.full((1, 64, 64), 90.0), torch.full((1, 64, 64), 120.0)).abs().max() < 1e-3


def test_fetching_along_a_flow_equals_opencv(maps_and_flows):
    maps, way = maps_and_flows
    expected = [flow.fetch(m.permute(1, 2, 0).numpy(), w.numpy()) for m, w in zip(maps, way, strict=True)]
    found = motion.fetch(maps, way).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, np.stack(expected), atol=1 / 16)  # OpenCV rounds positions to 1/32 of a pixel


def test_relighting_equals_the_cpu_version(maps_and_flows):
    maps, _ = maps_and_flows
    ab, known, L = maps[:, :2], maps[:, 2:], maps[:, :1]
    colors = ab.permute(0, 2, 3, 1).contiguous().numpy()
    expected = [flow.relit(*one) for one in zip(colors, known[:, 0].numpy(), L[:, 0].numpy(), strict=True)]
    np.testing.assert_allclose(motion.relit(ab, known, L).permute(0, 2, 3, 1), np.stack(expected), atol=1e-4)


@pytest.mark.parametrize("side", [24, 144])
def test_flow_vectors_scale_with_the_picture_size(side):
    found = motion.scaled(torch.full((1, 48, 48, 2), 4.0), side)
    torch.testing.assert_close(found, torch.full((1, side, side, 2), 4.0 * side / 48))


@pytest.fixture
def memory():
    """Return a spatial memory of three shifted frames, and (nearest frames, keys, L) of two other shifted frames."""
    torch.manual_seed(0)
    config = SpatialConfig(picture_size=SIDE, grid=16, key_dim=8)
    memory = SpatialMemory(4, 8, 3, config)
    L = torch.stack([drawing(shift) for shift in (0, 3, 6, 1, 5)])[:, None] / 255
    memory.pictures[:, ..., 0] = (255 * L[:3, 0]).byte()
    memory.pictures[:, ..., 1:] = torch.stack([140 + 60 * L[:3, 0], 150 - 60 * L[:3, 0]], -1).byte()
    memory.keys.copy_(0.3 * torch.randn(memory.keys.shape))
    memory.ab.copy_(0.3 * torch.randn(memory.ab.shape))
    keys = memory.keys[:2].float() + torch.linspace(0, 0.9, 256)[:, None] * torch.randn(2, 256, 13)
    near = memory.nearest(torch.tensor([[3000, 200, 0, 0], [0, 3000, 100, 0]], dtype=torch.int16))
    return memory, near, keys, L[3:]


@pytest.mark.parametrize("preferred", [(False, False), (False, True)])
def test_batched_warping_equals_sequential_warping(memory, preferred):
    memory, near, keys, L = memory
    near = near._replace(preferred=torch.tensor([[False, False, False], [*preferred, False]]))
    expected = memory.carry(near, keys, L)
    found = memory.carry_at_once(type(near)(*(x[:, :2] for x in near)), keys, L)
    inside = (found - expected)[..., 12:-12, 12:-12].abs()
    assert inside.mean() < 0.005 and inside.amax() < 0.1
    assert 0.2 < expected[:, 2].mean() < 0.95  # matches in a part of the picture


def test_attention_in_one_kernel_equals_the_plain_version(memory):
    memory, near, keys, _ = memory
    near = near._replace(preferred=near.slots == 1)
    expected = memory.read(near, keys)
    known, ab = (memory._known(name, near.slots) for name in ("keys", "ab"))
    found = memory.attend_at_once(keys, known, ab, near.preferred.float().repeat_interleave(256, 1)[..., None])
    torch.testing.assert_close(found, expected.flatten(2), atol=1e-5, rtol=1e-4)
    assert 0.05 < expected[:, 2].mean() < 0.95


def test_pooling_logits_with_a_matrix_product_equals_addition():
    torch.manual_seed(0)
    logits, regions = torch.randn(2, 64, 5).log_softmax(2), torch.randint(9, (2, 64))
    torch.testing.assert_close(votes._pooled_by_product(logits, regions, 10), votes._pooled(logits, regions, 10))


class CopyRecorder(TorchDispatchMode):
    """Record for each copy between devices whether it is blocking."""

    def __init__(self):
        super().__init__()
        self.blocking = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        answer = operator(*args, **kwargs or {})
        devices = {x.device for x in (*args[:2], answer) if isinstance(x, torch.Tensor)}
        if len(devices) > 1 and operator.overloadpacket in (torch.ops.aten.to, torch.ops.aten.copy_):
            self.blocking.append(not (kwargs.get("non_blocking") or any(x is True for x in args)))
        return answer


def test_a_batch_synchronizes_with_the_gpu_only_for_required_results(monkeypatch):
    """The networks run on the device "meta", which has no data, so that reading a value raises an error.

    Required are the lightness whose regions the CPU finds, the frames to warp, and finally colors, confidence and
    embeddings.
    """
    torch.manual_seed(0)
    config = ModelConfig(img_size=128, width=4, mem_size=2, spatial_size=70, top_k=2, use_palette_classifier=True,
                         palette_classifier=PaletteClassifierConfig(input_size=256))
    colorizer = Colorizer(config).eval()
    copied = []

    def copy(tensor):
        copied.append(tuple(tensor.shape))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: nullcontext())  # it does not support this device
    monkeypatch.setattr(torch.Tensor, "cpu", copy)
    L = np.random.default_rng(0).random((6, 224, 224), np.float32)
    with CopyRecorder() as copies:
        predictor = Predictor(colorizer.to("meta"), torch.device("meta"), "fp32")
        copies.blocking.clear()
        ab, _, looks = predictor.predict_with_embeddings(L, Palette(feature(3)[None], [], [], torch.zeros(0)))
    assert ab.shape == (6, 192, 192, 2) and looks.shape == (6, 1280)
    # The slots of the warped frames, and their pictures unless they are cached; that of the second frame is.
    which = [(4,), (192, 192, 3), (1, 192, 192, 3)]
    assert copied == [(2, 64, 64)] + which + 3 * [(2, 32, 32)] + [(2, 192, 192, 2), (2, 1280)]  # two keyframes
    assert len(copies.blocking) > 5 and not any(copies.blocking)
