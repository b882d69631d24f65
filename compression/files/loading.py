"""Reading a network from any file: a model file, a checkpoint, or what another program wrote."""

from pathlib import Path

import torch

from compression.command_line import UserError
from compression.files.atomic import read_torch
from compression.files.description import Description
from compression.files.foreign import is_state_dict, load_foreign, recognise, unwrapped
from compression.files.model_file import MODEL_FORMAT, VERSIONS, Model, restored, stored_state
from compression.files.onnx import is_onnx
from compression.files.torch_stream import is_torch_stream


def load_model(path, max_bytes=None, what="model file"):
    """The Model in a `model.bin`, a checkpoint (its evaluated weights), or another program's file.

    max_bytes: refuse a larger file. what: how an error message calls the file. Raises UserError if the file
    is missing, too large, damaged, hostile or of an unknown network.
    """
    path = Path(path)
    if is_onnx(path) and path.is_file():
        advice = "use a model file or checkpoint here"
        raise UserError(f"{path} is an ONNX file, which can only be a --teacher; {advice}")
    if max_bytes is not None and path.is_file() and path.stat().st_size > max_bytes:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and at most {max_bytes:,} are allowed; "
            "make a smaller one with quantize.py or raise --max-bytes"
        )
    if path.is_file() and not is_torch_stream(path):
        return load_foreign(path, what)
    content = read_torch(path, what)
    kind = content.get("format") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in VERSIONS:
        if is_state_dict(content := unwrapped(content)):
            return recognise(path, content)
        raise UserError(
            f"{path} was not written by this project (no model or checkpoint header); "
            "use model.bin or a checkpoint of the training scripts"
        )
    if repr(content.get("version")) != repr(VERSIONS[kind]):
        raise UserError(
            f"{path} has format version {str(content.get('version'))[:20]} and this program reads "
            f"version {VERSIONS[kind]}; use the version of this project that wrote it"
        )
    description = Description.from_dict(content, path)
    if kind == MODEL_FORMAT:
        stored = stored_state(content, path)
        return Model(description, restored(stored), content.get("bits"), path, stored=stored)
    weights, scales = content.get("state_dict"), content.get("scales")
    scales = {} if scales is None else scales
    if not is_state_dict(weights):
        raise UserError(f"{path} is a checkpoint without a state_dict; use best.pt of a training script")
    if not isinstance(scales, dict) or not all(_is_scale(*item, weights) for item in scales.items()):
        raise UserError(f"{path} has scales that are damaged; use an undamaged file")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    return Model(description, weights, 32, path, scales)


def _is_scale(name, value, weights):
    """Whether it is (bits, float32 scales) of a weight that quantization-aware training has rounded."""
    try:
        (bits, scale), channels = value, weights[name].shape[:1]
        usable = type(bits) is int and 2 <= bits <= 8 and scale.dtype == torch.float32
        return usable and scale.shape in ((1,), channels)
    except (TypeError, ValueError, AttributeError, KeyError):
        return False
