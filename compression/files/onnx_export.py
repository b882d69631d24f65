"""A network as an ONNX file (opset 21), with the very numbers that its model file holds.

Codes stay codes, behind a DequantizeLinear with the scale of every channel: those of 4 and 8 bits as (U)INT4
and (U)INT8, those of 2, 3, 5, 6 and 7 bits, for which ONNX has no type, as bit planes. An affine grid (low +
code * step) has an Add behind that, since its low is no multiple of its step. float16 numbers stay float16
behind a Cast, so nothing is rounded a second time.

Bit plane k holds bit k of all codes, eight to a byte. BitShift and BitwiseAnd unpack the bits. MatMulInteger
multiplies them by their place values (1, 2, 4, ...; in signed codes the highest one is negative) and adds
them. All inputs are constants, so onnxruntime does this once, at loading (unless its graph optimisations
are switched off).

The metadata tells, as JSON and under the names that onnx.py reads, `class_names` and the preprocessing:
`size`, `resize`, `detail` where there is one, and `mean` and `std` where the caller has to normalise.
"""

import json
import operator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from compression.command_line import UserError

OPSET, IR_VERSION = 21, 10  # the first with 4-bit tensors, and the oldest file version that goes with it
INPUTS = {
    "float": "images",  # float32 (N, C, size, size), normalised with the metadata's mean and std
    "uint8": "photos",  # uint8 (N, size, size, C) as a decoder gives them; normalised within the graph
}


def to_onnx(model, inputs="float"):
    """The bytes of a .onnx file for a Model, which answers with float32 `logits` (N, classes) for any N.

    inputs: a name of INPUTS. Raises UserError if the package onnx is missing.
    """
    try:
        import onnx
    except ImportError:
        raise UserError("to write ONNX files one more package is needed; pip install onnx") from None
    from torch.fx import symbolic_trace
    from torch.fx.passes.shape_prop import ShapeProp

    preprocessing, graph = model.description.preprocessing, _Graph(model, onnx)
    size, channels = preprocessing.size, preprocessing.channels
    traced, values = symbolic_trace(model.build()), {}
    ShapeProp(traced).propagate(torch.zeros(1, channels, size, size))
    for node in traced.graph.nodes:
        before = [values[one] for one in node.all_input_nodes]
        if node.op == "placeholder":
            values[node] = graph.normalised(preprocessing) if inputs == "uint8" else INPUTS[inputs]
        elif node.op == "call_module":
            shape = node.all_input_nodes[0].meta["tensor_meta"].shape
            values[node] = graph.layer(traced.get_submodule(node.target), node.target, *before, shape)
        elif node.op == "output":
            graph.nodes[-1].output[0] = "logits"
        else:
            kind = "Add" if node.target in (operator.add, torch.add) else "Flatten"
            values[node] = graph.node(kind, *before)
    helper, types = onnx.helper, onnx.TensorProto
    metadata = {"class_names": model.description.class_names, **preprocessing.to_dict()}
    kind, shape = types.FLOAT, ["N", channels, size, size]
    if inputs == "uint8":
        kind, shape = types.UINT8, ["N", size, size, channels]
        del metadata["mean"], metadata["std"]
    taken = helper.make_tensor_value_info(INPUTS[inputs], kind, shape)
    given = helper.make_tensor_value_info("logits", types.FLOAT, ["N", len(metadata["class_names"])])
    drawn = helper.make_graph(graph.nodes, model.description.architecture, [taken], [given], graph.tensors)
    opsets = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(drawn, opset_imports=opsets, ir_version=IR_VERSION)
    helper.set_model_props(made, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


class _Graph:
    """The nodes and tensors of a graph that grows; everything that is added returns its name in the graph."""

    def __init__(self, model, onnx):
        self.onnx, self.nodes, self.tensors = onnx, [], []
        self.stored = model.stored or {
            name: ("f4", [tensor.numpy()], tuple(tensor.shape)) for name, tensor in model.state_dict.items()
        }
        grouped = {}
        for name, (storage, (*parameters, codes), shape) in self.stored.items():
            if parameters:  # else numbers
                kind = int(storage[1]), storage[0] in "sS"
                grouped.setdefault(kind, {})[name] = codes.reshape(shape)
        for (bits, signed), codes in grouped.items():
            (self.whole_codes if bits in (4, 8) else self.bit_planes)(codes, bits, signed)

    def node(self, kind, *inputs, outputs=None, **attributes):
        """Of one output, which gets a number as its name (names take bytes), or of these outputs."""
        outputs = outputs or [str(len(self.nodes))]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def tensor(self, array, name=None):
        """A constant, in the type of its array."""
        name = name or f"c{len(self.tensors)}"
        self.tensors.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def whole_codes(self, codes, bits, signed):
        """Constants {name: uint8 codes} of 4 or 8 bits; of 4 bits two in a byte, the first in the lower half.

        signed: whether a code stands for code - 2 ** (bits - 1).
        """
        kind = self.onnx.TensorProto.DataType.Value(f"{'' if signed else 'U'}INT{bits}")
        for name, values in codes.items():
            data = values.ravel() ^ (1 << bits - 1 if signed else 0)  # two's complement
            if bits == 4:
                data = np.pad(data, (0, data.size % 2))
                data = data[::2] | data[1::2] << 4
            packed = self.onnx.helper.make_tensor(name, kind, values.shape, data.tobytes(), raw=True)
            self.tensors.append(packed)

    def bit_planes(self, codes, bits, signed):
        """Constants {name: uint8 codes} of any number of bits, as bit planes, and the nodes that compute the
        tensors of these names from them. signed: as for `whole_codes`.
        """
        types, kind = self.onnx.TensorProto, np.int8 if signed else np.uint8
        joined = np.concatenate([values.ravel() for values in codes.values()])
        gap = -joined.size % 8
        joined = np.pad(joined, (0, gap)) ^ (1 << bits - 1 if signed else 0)
        planes = joined >> np.arange(bits, dtype=np.uint8)[:, None] & 1
        planes = np.packbits(planes, axis=1, bitorder="little")[..., None]
        places = 1 << np.arange(bits)
        places[-1] *= -1 if signed else 1
        shifts = self.tensor(np.arange(8, dtype=np.uint8))
        result = self.node("BitShift", self.tensor(planes), shifts, direction="RIGHT")
        result = self.node("BitwiseAnd", result, self.tensor(np.uint8([1])))
        result = self.node("Reshape", result, self.tensor(np.int64([bits, -1])))
        result = self.node("MatMulInteger", self.tensor(kind(places)[None]), result)
        result = self.node("Cast", result, to=types.INT8 if signed else types.UINT8)
        sizes = [*(values.size for values in codes.values()), *([gap] if gap else [])]
        parts = [f"{result}.{index}" for index in range(len(sizes))]
        self.node("Split", result, self.tensor(np.int64(sizes)), outputs=parts, axis=1)
        for part, (name, values) in zip(parts, codes.items()):
            self.node("Reshape", part, self.tensor(np.int64(values.shape)), outputs=[name])

    def float32(self, array, name=None):
        """A constant as float32, from as few bytes as it is stored in."""
        constant = self.tensor(array, name)
        return self.node("Cast", constant, to=1) if array.dtype == np.float16 else constant  # 1: float32

    def weight(self, name):
        """A tensor of the state_dict as float32, as `storage.restore_tensor` makes it."""
        storage, (*parameters, values), shape = self.stored[name]
        if not parameters:
            return self.float32(values.reshape(shape), name)
        if storage == "m8":
            low, high = parameters[0].astype(np.float64)
            low, step = (np.array([value], np.float32) for value in (low, (high - low) / 255))
        elif storage[0] in "aA":
            low, step = parameters
        else:
            low, step = None, parameters[0]
        if len(step) > 1:
            weight = self.node("DequantizeLinear", name, self.float32(step), axis=0)
        else:
            weight = self.node("DequantizeLinear", name, self.float32(step.reshape(())))
        if low is None:
            return weight
        return self.node("Add", weight, self.float32(low.reshape(-1, *[1] * (len(shape) - 1))))

    def normalised(self, preprocessing):
        """The network's input from uint8 photos (N, size, size, C), as `Preprocessing.normalise` makes it."""
        image = self.node("Cast", self.node("Transpose", INPUTS["uint8"], perm=[0, 3, 1, 2]), to=1)
        image = self.node("Div", image, self.tensor(np.float32(255)))
        for kind, values in (("Sub", preprocessing.mean), ("Div", preprocessing.std)):
            image = self.node(kind, image, self.tensor(np.array(values, np.float32).reshape(-1, 1, 1)))
        return image

    def layer(self, layer, name, images, shape):
        """What one module without children makes of `images`, which have this shape."""
        if isinstance(layer, (nn.Identity, nn.Dropout, nn.Dropout2d)):
            return images
        parameters = [self.weight(f"{name}.{one}") for one, _ in layer.named_parameters(recurse=False)]
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            statistics = (self.weight(f"{name}.{one}") for one in ("running_mean", "running_var"))
            return self.node("BatchNormalization", images, *parameters, *statistics, epsilon=layer.eps)
        if isinstance(layer, nn.Linear):
            return self.node("Gemm", images, *parameters, transB=1)
        if isinstance(layer, nn.Conv2d):
            rest = {"dilations": _pair(layer.dilation), "group": layer.groups, **_window(layer)}
            return self.node("Conv", images, *parameters, **rest)
        if isinstance(layer, nn.MaxPool2d):
            return self.node("MaxPool", images, **_window(layer))
        if isinstance(layer, nn.AvgPool2d):
            return self.node("AveragePool", images, **_window(layer))
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            return self._adaptive_pool(images, shape, *_pair(layer.output_size))
        if isinstance(layer, nn.ReLU6):
            return self.node("Clip", images, *(self.tensor(np.float32(limit)) for limit in (0, 6)))
        if isinstance(layer, nn.SiLU):
            return self.node("Mul", images, self.node("Sigmoid", images))
        if isinstance(layer, nn.LeakyReLU):
            return self.node("LeakyRelu", images, alpha=layer.negative_slope)
        return self.node({nn.ReLU: "Relu", nn.Hardswish: "HardSwish"}[type(layer)], images)

    def _adaptive_pool(self, images, shape, rows, columns):
        """ONNX has no adaptive pooling: means of uneven windows are a matrix product along either side."""
        if rows == columns == 1:
            return self.node("GlobalAveragePool", images)
        down, across = (
            F.adaptive_avg_pool1d(torch.eye(before)[None], after)[0].numpy()
            for before, after in zip(shape[2:], (rows, columns))
        )
        return self.node("MatMul", self.tensor(down.T), self.node("MatMul", images, self.tensor(across)))


def _pair(value):
    return [value] * 2 if isinstance(value, int) else list(value)


def _window(layer):
    """Kernel, stride and padding of a layer, as ONNX names them."""
    pads = _pair(layer.padding) * 2
    return {"kernel_shape": _pair(layer.kernel_size), "strides": _pair(layer.stride), "pads": pads}
