"""Reading a network from any file: a model file, a checkpoint, or what another program wrote."""

from pathlib import Path

import torch

from compression.command_line import UserError
from compression.files.atomic import read_torch
from compression.files.description import Description
from compression.files.foreign import bare_state_dict, load_foreign, recognise
from compression.files.model_file import (
    CHECKPOINT_FORMAT,
    MODEL_FORMAT,
    MODEL_VERSION,
    VERSION,
    Model,
    restored,
    stored_state,
)
from compression.files.torch_stream import is_torch_stream


def load_model(path, max_bytes=None, what="model file"):
    """Read a `model.bin`, a checkpoint of the training scripts (its evaluated weights), or another program's
    file (see foreign.py).

    max_bytes: refuse a larger file. what: how an error message calls the file. Raises UserError if the file
    is missing, too large, damaged, hostile or of an unknown network.
    """
    path = Path(path)
    if max_bytes is not None and path.is_file() and path.stat().st_size > max_bytes:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and at most {max_bytes:,} are allowed; "
            "make a smaller one with quantize.py or raise --max-bytes"
        )
    if path.is_file() and not is_torch_stream(path):
        return load_foreign(path, what)
    content = read_torch(path, what)
    kind = content.get("format") if isinstance(content, dict) else None
    state = None if kind in (MODEL_FORMAT, CHECKPOINT_FORMAT) else bare_state_dict(content)
    if state:
        return recognise(path, state)
    if not isinstance(kind, str) or kind not in (MODEL_FORMAT, CHECKPOINT_FORMAT):
        raise UserError(
            f"{path} was not written by this project (no model or checkpoint header); "
            "use model.bin or a checkpoint of the training scripts"
        )
    version = MODEL_VERSION if kind == MODEL_FORMAT else VERSION
    if repr(content.get("version")) != repr(version):
        raise UserError(
            f"{path} has format version {str(content.get('version'))[:20]} and this program reads "
            f"version {version}; use the version of this project that wrote it"
        )
    description = Description.from_dict(content, path)
    if kind == MODEL_FORMAT:
        stored = stored_state(content, path)
        return Model(description, restored(stored), content.get("bits"), path, stored=stored)
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in weights.items()
    ):
        raise UserError(f"{path} is a checkpoint without a state_dict; use best.pt of a training script")
    weights = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    scales = content.get("scales") or {}
    if (
        not isinstance(scales, dict)
        or not all(map(_is_scale, scales.values()))
        or scales.keys() - weights.keys()
    ):
        raise UserError(f"{path} has scales that are damaged; use an undamaged file")
    return Model(description, weights, 32, path, scales)


def _is_scale(value):
    """Whether it is (bits, float32 scales), of a weight that quantization-aware training has rounded."""
    bits, scale = value if isinstance(value, (tuple, list)) and len(value) == 2 else (None, None)
    return bits in range(2, 9) and isinstance(scale, torch.Tensor) and scale.dtype == torch.float32
