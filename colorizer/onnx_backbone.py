"""EfficientNet-Lite0 in ONNX Runtime, which takes 0.55 to 0.67 of torch's time on a CPU (``benchmarks/trials.md``)."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

OPSET, IR_VERSION = 18, 10  # supported by all pinned versions of ONNX Runtime
INPUT = "gray"

# {network: inference session}; not attributes of the networks, since sessions cannot be copied
_sessions: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_lock = threading.Lock()


def onnx_model(net: EfficientNet) -> bytes:
    """Return the network as an ONNX model. Its batch norms must be folded, and its padding built in.

    The input INPUT is (N, 3, H, W); the outputs are the last map of each size, from fine to coarse, and the last map of
    the network.
    """
    from onnx import TensorProto, helper, numpy_helper  # imported here since it takes a quarter of a second

    nodes: list[Any] = []
    weights: list[Any] = []

    def constant(value):
        weights.append(numpy_helper.from_array(value, f"weight_{len(weights)}"))
        return weights[-1].name

    def add(operator, *inputs, **attributes):
        nodes.append(helper.make_node(operator, inputs, [f"map_{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    bounds = constant(np.float32(0)), constant(np.float32(6))  # of ReLU6

    def convolution(x, conv, activation=True):
        x = add("Conv", x, constant(conv.weight.numpy()), constant(conv.bias.numpy()), kernel_shape=conv.kernel_size,
                strides=conv.stride, pads=[*conv.padding, *conv.padding], group=conv.groups)
        return add("Clip", x, *bounds) if activation else x

    x, maps, scale = convolution(INPUT, net._conv_stem), {}, 1
    for block in net._blocks:
        args, stride = block._block_args, block._depthwise_conv.stride[0]
        y = x if args.expand_ratio == 1 else convolution(x, block._expand_conv)
        y = convolution(convolution(y, block._depthwise_conv), block._project_conv, activation=False)
        x = add("Add", y, x) if stride == 1 and args.input_filters == args.output_filters else y
        scale *= stride
        maps[scale] = x  # keeps the last map of each size

    def describe(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None, f"{name}_H", f"{name}_W"])

    outputs = [*maps.values(), convolution(x, net._conv_head)]
    graph = helper.make_graph(nodes, "backbone", [describe(INPUT)], list(map(describe, outputs)), weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                             ir_version=IR_VERSION).SerializeToString()


def run(net: EfficientNet, gray: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs of ``onnx_model`` for gray (N, 3, H, W) on the CPU, with as many threads as torch uses.

    Each thread computes one picture at a time. The outputs equal those of torch within 1e-4, for maps with values up to
    80. They depend neither on N nor on the number of threads.
    """
    session, threads = _session(net), min(len(gray), torch.get_num_threads())
    pictures = [{INPUT: picture[None]} for picture in gray.numpy()]

    def compute(picture):
        return session.run(None, picture)

    if threads == 1:
        outputs = list(map(compute, pictures))
    else:
        with ThreadPoolExecutor(threads) as pool:
            outputs = list(pool.map(compute, pictures))
    return [torch.from_numpy(np.concatenate(parts) if len(parts) > 1 else parts[0])
            for parts in zip(*outputs, strict=True)]


def _session(net):
    """Return the inference session of a network, which is created by the first call."""
    import onnxruntime

    with _lock:
        if net not in _sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            _sessions[net] = onnxruntime.InferenceSession(onnx_model(net), options, ["CPUExecutionProvider"])
        return _sessions[net]


def forget(net: EfficientNet, *_: Any) -> None:
    """Discard the session of a network: a hook for when its weights have been loaded."""
    _sessions.pop(net, None)
