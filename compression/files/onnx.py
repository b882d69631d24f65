"""Networks in ONNX files, from any framework or from onnx_export.py, as teachers.

    network, metadata = read_onnx("teacher.onnx")       # a torch module in eval mode, and a dict

`onnx2torch` turns the graph into torch modules, which brings bf16 and GPUs; nothing in the file is executed
as code. The metadata may hold `class_names`, `size` (input pixels), `mean` and `std` (of the normalisation,
for values in [0, 1]), each as JSON.

`onnx2torch` knows neither quantized weights nor the newest operators. So weights behind DequantizeLinear are
computed beforehand, and the graph is brought to an opset that it knows, OPSET.
"""

import json
import logging
import math
import operator
import warnings
from pathlib import Path

import numpy as np
import torch

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.atomic import reading

MAX_BYTES = 1 << 30
MAX_EXPANSION = 64  # bytes computed while weights are decoded, for every byte of the file
OPSET = 17
# what stands between a quantized weight and its layer, in files of onnx_export.py too
DECODING = "DequantizeLinear Cast Add BitShift BitwiseAnd Reshape MatMulInteger Split".split()


def is_onnx(path):
    """Whether a file is named as an ONNX model."""
    return Path(path).suffix.lower() == ".onnx"


def read_onnx(path):
    """(network in eval mode, dict) of an ONNX classifier: one input (N, C, H, W), one output (N, classes).

    The dict has `class_names`, `size`, `mean`, `std` as far as the file tells them (a fixed input shape tells
    the size), and `channels`. Half or double precision becomes float32. Raises UserError if a package is
    missing or the file is no such classifier.
    """
    try:
        import onnx
        import onnx2torch
    except ImportError as error:
        raise UserError(
            f"an ONNX teacher needs more packages ({error}); pip install onnx onnx2torch"
        ) from None
    path = Path(path)
    advice = f"export it again, with one float input (N, 3, H, W) and opset {OPSET}"
    with reading(path, "ONNX classifier that onnx2torch can read", advice), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes; use a smaller teacher")
        model = onnx.load(path, load_external_data=False)
        tensors = [*model.graph.initializer, *(one.t for node in model.graph.node for one in node.attribute)]
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            raise UserError(f"the weights of {path} lie in other files; save it as a single .onnx file")
        onnx.checker.check_model(model)
        channels, size = _input_shape(model.graph)
        network = onnx2torch.convert(_with_plain_weights(model)).eval().float()
        for cast in network.modules():
            if getattr(cast, "torch_dtype", torch.int64).is_floating_point:
                cast.torch_dtype = torch.float32
    metadata = _metadata(path, {entry.key: entry.value for entry in model.metadata_props}, channels)
    if size and metadata.get("size", size) != size:
        given = f"{path} says size {metadata['size']} but takes photos of {size} px only"
        raise UserError(f"{given}; export it again with one of them")
    return network, metadata | {"channels": channels} | ({"size": size} if size else {})


def _input_shape(graph):
    """(channels, fixed size in pixels or None) of the graph's only input that is no weight."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError(f"{len(inputs)} inputs and {len(graph.output)} outputs in place of one each")
    dimensions = inputs[0].type.tensor_type.shape.dim
    if len(dimensions) != 4 or dimensions[1].dim_value not in (1, 3):
        raise ValueError("the input is not (N, 3, H, W) or (N, 1, H, W), as of export.py --input float")
    height, width = (dimension.dim_value for dimension in dimensions[2:])
    if height != width:
        raise ValueError("the input is not square")
    return dimensions[1].dim_value, height or None


def _with_plain_weights(model):
    """The model with float weights in place of quantized ones, in opset OPSET if it has a newer one."""
    from onnx import numpy_helper, version_converter
    from onnx.reference import ReferenceEvaluator

    graph, opsets = model.graph, {entry.domain: entry.version for entry in model.opset_import}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes, allowed = [], MAX_EXPANSION * model.ByteSize()
    for node in graph.node:
        if node.op_type in DECODING and all(name in constants for name in node.input):
            arrays = {name: constants[name] for name in node.input}
            allowed -= _bytes_computed(node, list(arrays.values()))
            if allowed < 0:
                raise ValueError(f"its decoded weights are more than {MAX_EXPANSION} times as large")
            constants |= zip(node.output, ReferenceEvaluator(node, opsets).run(None, arrays))
        else:
            nodes.append(node)
    if len(nodes) < len(graph.node):
        used = {name for node in nodes for name in node.input}
        weights = [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used]
        inputs = [one for one in graph.input if one.name not in constants or one.name in used]
        del graph.node[:], graph.initializer[:], graph.input[:]
        graph.node.extend(nodes), graph.initializer.extend(weights), graph.input.extend(inputs)
    return version_converter.convert_version(model, OPSET) if opsets.get("", OPSET) > OPSET else model


def _bytes_computed(node, arrays):
    """Upper bound of the bytes that a node of DECODING computes, known before it runs."""
    (first, *others), attributes = arrays, {one.name: one.i for one in node.attribute}
    wide = max(4, *(array.itemsize for array in arrays))  # bytes of a number, where it may be of another type
    if node.op_type == "MatMulInteger":
        if [array.ndim for array in arrays] != [2, 2]:
            raise ValueError("a product of weights that are no two matrices")
        return 4 * first.shape[0] * others[0].shape[1]
    if node.op_type in ("Add", "BitShift", "BitwiseAnd"):
        return first.itemsize * math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    if node.op_type == "DequantizeLinear":
        channels = first.shape[attributes.get("axis", 1) :][:1]
        for one in others:  # scales and zero points
            within = one.ndim == first.ndim and all(map(operator.le, one.shape, first.shape))
            if one.size > 1 and one.shape != channels and not within:
                raise ValueError("scales for another number of channels than its weight has")
        return wide * max(first.size, *(one.size * attributes.get("block_size", 0) for one in others))
    if node.op_type == "Split":
        if attributes.get("num_outputs", len(node.output)) != len(node.output):
            raise ValueError("a weight is split into other parts than are named")
        return 0  # views
    if node.op_type == "Reshape":
        return 0 if first.flags.c_contiguous else first.nbytes
    from onnx.helper import tensor_dtype_to_np_dtype

    return first.size * tensor_dtype_to_np_dtype(attributes["to"]).itemsize  # Cast


def _metadata(path, texts, channels):
    """The values of `class_names`, `size`, `mean` and `std` that the metadata has, checked."""
    plain = {"size": 128, "mean": (0,) * channels, "std": (1,) * channels}
    try:
        metadata = {key: json.loads(texts[key]) for key in ("class_names", *plain) if key in texts}
        seen = Preprocessing(**plain | {key: metadata[key] for key in plain.keys() & metadata})
        names = metadata.get("class_names", [])
        usable = isinstance(names, list) and all(isinstance(name, str) for name in names)
        usable &= seen.channels == channels and ("mean" in metadata) == ("std" in metadata)
    except (ValueError, RecursionError):  # of JSON or the preprocessing
        usable = False
    if not usable:
        raise UserError(
            f"{path} has metadata that cannot be used; export it again with class_names, size, mean and std "
            f'as JSON such as ["a", "b"], 96, {[0] * channels} and {[1] * channels}, mean and std both or '
            "neither"
        )
    return metadata


def count_outputs(network, channels, size, path):
    """Classes of a converted network, from two empty photos of `size` pixels; UserError if it cannot."""
    warnings.filterwarnings("ignore", module=r"onnx2torch\.")  # of the converter about torch's future
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    try:
        with torch.inference_mode():
            logits = network(torch.zeros(2, channels, size, size))
    except Exception as error:  # whatever the converted graph meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        raise UserError(
            f"the teacher {path} cannot take two photos of {size} px ({reason}); "
            "give another --recipe teacher_size=N, or export it with a dynamic batch"
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2:
        raise UserError(f"the teacher {path} gives no logits (N, classes); export it as a classifier")
    return logits.shape[1]
