"""`model.bin`: one small file that `torch.load(weights_only=True)` opens and that describes itself.

The file is a dict of plain values and two uint8 tensors:

    format, version      "food11-model", 1
    architecture         name in models.py, and `arguments`, what `build` needs to rebuild the network
    class_names          label i is class_names[i]
    preprocessing        size in pixels, resize rule, mean and std of the normalisation
    training             where the weights come from (free-form plain values)
    bits                 32, 16 or 8: what was asked of the encoder
    index                zlib-compressed JSON: [[tensor name, shape, storage], ...] in the order of `data`
    data                 the tensors' bytes one after another, little-endian
    crc32                checksum of all of the above (see `checksum`)

Storage of a tensor: "f4" and "f2" are IEEE floats, "i8" 64-bit integers, and "u1" is the course's
8-bit scheme: minimum and maximum as two f4, then one code per element (see `quantize_minmax`).
"""

import io
import json
import math
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from command_line import UserError
from files import read_torch
from models import build, full_arguments
from preprocessing import Preprocessing
from torch_stream import is_torch_stream

MODEL_FORMAT, CHECKPOINT_FORMAT, VERSION = "food11-model", "food11-checkpoint", 1


@dataclass(frozen=True)
class Description:
    """All that is needed to use a network's weights: how to build it, feed it and name its answers."""

    architecture: str
    arguments: dict
    class_names: tuple
    preprocessing: Preprocessing
    training: dict = field(default_factory=dict)

    @classmethod
    def of(cls, architecture, arguments, class_names, preprocessing, training=None):
        """A description with all of the network's arguments, of which `num_classes` follows from the class names."""
        arguments = full_arguments(architecture, **{**arguments, "num_classes": len(class_names)})
        return cls(architecture, arguments, tuple(class_names), preprocessing, training or {})

    def to_dict(self):
        """Plain values only, as they are stored in files."""
        plain = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return {**plain, "preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def from_dict(cls, values, path):
        """The inverse of `to_dict`; raises UserError naming `path` if something is missing or of the wrong kind."""
        try:
            values = json.loads(json.dumps({key: values[key] for key in ("architecture", "arguments", "class_names", "preprocessing", "training")}))
            description = cls(values["architecture"], dict(values["arguments"]), tuple(values["class_names"]),
                              Preprocessing(**values["preprocessing"]), dict(values["training"]))
            if not all(isinstance(name, str) for name in (description.architecture, *description.class_names)):
                raise TypeError("names must be text")
        except (KeyError, TypeError, ValueError, RecursionError) as error:  # json: TypeError for what is not a plain value
            raise UserError(f"{path} does not describe its network ({type(error).__name__}: {str(error)[:150]}); make the file anew") from None
        if description.arguments.get("num_classes") != len(description.class_names):
            raise UserError(f"{path} names {len(description.class_names)} classes, which is not what its network has; make the file anew")
        return description

    def build(self, state_dict, path="the model"):
        """The network in eval mode with these weights; UserError if they do not fit the architecture exactly."""
        try:
            with torch.device("meta"):  # no memory and no initialisation before the shapes are known to agree
                network = build(self.architecture, **self.arguments)
        except UserError as error:
            raise UserError(f"{path} describes no network that can be built: {error}") from None
        self.check_channels(network)
        kinds = {name: tensor.dtype for name, tensor in network.state_dict().items()}
        try:
            network.load_state_dict(state_dict, assign=True)
        except RuntimeError as error:
            detail = " ".join(str(error).split("\n\t")[1:2]).strip()[:150]
            raise UserError(f"the weights in {path} do not fit {self.architecture} ({detail}); make the file anew") from None
        for name, tensor in network.state_dict().items():
            if tensor.dtype != kinds[name] or not torch.isfinite(tensor).all():
                raise UserError(f"tensor {name} in {path} is not {kinds[name]} or not finite; make the file anew")
        return network.eval().requires_grad_(False)

    def check_channels(self, network):
        """UserError if the network does not take the channels that the preprocessing makes."""
        channels = next(module.in_channels for module in network.modules() if isinstance(module, torch.nn.Conv2d))
        if channels != len(self.preprocessing.mean):
            raise UserError(f"{self.architecture} with {channels} input channel(s) cannot read RGB photos; build it with in_channels={len(self.preprocessing.mean)}")


def quantize_minmax(values):
    """The course's 8-bit scheme: q = round((w - min) / (max - min) * 255), in float64; a constant tensor gets code 0.

    Returns (min, max, uint8 codes of the same shape). Raises ValueError for an empty array or NaN/inf.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("only finite, non-empty tensors can be quantized")
    low, high = values.min(), values.max()
    if low == high:
        return low, high, np.zeros(values.shape, np.uint8)
    return low, high, np.round((values - low) / (high - low) * 255).astype(np.uint8)


def dequantize_minmax(low, high, codes):
    """The inverse: min + q / 255 * (max - min) as float32; off by at most half a step, (max - min) / 510."""
    return (low + codes.astype(np.float64) / 255 * (high - low)).astype(np.float32)


def _store(name, tensor, bits, vectors):
    """One tensor as (storage, bytes)."""
    array = tensor.detach().cpu().numpy()
    if not tensor.is_floating_point():
        return "i8", array.astype("<i8").tobytes()
    if not np.isfinite(array).all():
        raise UserError(f"tensor {name} holds NaN or infinity, so it cannot be encoded; train again or use an earlier checkpoint")
    wanted = vectors if tensor.ndim < 2 and bits == 8 else bits
    if wanted == 8 and array.size:
        low, high, codes = quantize_minmax(array)
        return "u1", np.array([low, high], "<f4").tobytes() + codes.tobytes()
    if wanted == 16 and (not array.size or np.abs(array).max() <= np.finfo(np.float16).max):
        return "f2", array.astype("<f2").tobytes()
    return "f4", array.astype("<f4").tobytes()


def encode(description, state_dict, bits=8, vectors=8):
    """A `state_dict` as the content of a model file.

    bits: 32, 16 or 8 per value. vectors: with 8 bits, the bits of tensors with fewer than two
    dimensions (biases, BN): 8 as in the course, or 16. A tensor that float16 cannot hold stays float32.
    Raises UserError for NaN or infinity, naming the tensor.
    """
    if bits not in (32, 16, 8) or vectors not in (16, 8):
        raise UserError(f"there is no encoding with bits={bits}, vectors={vectors}; use 32, 16 or 8 bits and 16 or 8 for vectors")
    index, data = [], bytearray()
    for name, tensor in state_dict.items():
        storage, stored = _store(name, tensor, bits, vectors)
        index.append([name, list(tensor.shape), storage])
        data += stored
    index = bytearray(zlib.compress(json.dumps(index, separators=(",", ":")).encode(), 9))
    if not data:
        raise UserError(f"there are no weights to encode for {description.architecture}; use a checkpoint of a training script")
    content = {"format": MODEL_FORMAT, "version": VERSION, **description.to_dict(), "bits": bits,
               "index": torch.frombuffer(index, dtype=torch.uint8), "data": torch.frombuffer(data, dtype=torch.uint8)}
    return {**content, "crc32": checksum(content)}


def checksum(content):
    """CRC-32 over everything in a model file but the checksum itself."""
    plain = {key: value for key, value in content.items() if key not in ("index", "data", "crc32")}
    checksum = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
    return zlib.crc32(content["data"].numpy(), zlib.crc32(content["index"].numpy(), checksum))


def to_bytes(content):
    """The bytes of the file that holds `content`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def decode(content, path="the model"):
    """The float32 `state_dict` in the content of a model file; UserError naming `path` if it is damaged."""
    damaged = UserError(f"{path} is damaged: its checksum or layout does not hold; copy or make it again")
    try:
        if any(content[key].dtype != torch.uint8 or content[key].ndim != 1 or not content[key].is_contiguous() for key in ("index", "data")):
            raise damaged  # not contiguous: a stride of 0 can claim any length
        if checksum(content) != content["crc32"]:
            raise damaged
        index, data = (content[key].numpy().tobytes() for key in ("index", "data"))
        index = json.loads(zlib.decompressobj().decompress(index, 1 << 24))  # 16 MB: far above any real index
        state, offset = {}, 0
        for name, shape, storage in index:
            count = math.prod(shape)
            if not isinstance(name, str) or storage not in ("u1", "f2", "f4", "i8") or not 0 <= count <= len(data):
                raise damaged
            if storage == "u1":
                low, high = np.frombuffer(data, "<f4", 2, offset).astype(np.float64)
                values = dequantize_minmax(low, high, np.frombuffer(data, np.uint8, count, offset + 8))
                offset += 8 + count
            else:
                values = np.frombuffer(data, "<" + storage, count, offset)
                offset += values.nbytes
                values = values.astype(np.int64 if storage == "i8" else np.float32)
            state[name] = torch.from_numpy(values.reshape(shape))
        if offset != len(data):
            raise damaged
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, RecursionError, zlib.error) as error:
        raise (error if error is damaged else damaged) from None
    return state


@dataclass(frozen=True)
class Model:
    """What a model file or checkpoint holds: the description, the float `state_dict`, and the bits it was stored with."""

    description: Description
    state_dict: dict
    bits: int
    path: Path

    def build(self):
        """The network in eval mode."""
        return self.description.build(self.state_dict, self.path)


def load_model(path, max_bytes=None):
    """Read a `model.bin`, a checkpoint of the training scripts (its evaluated weights), or another program's file (see foreign_files.py).

    max_bytes: refuse a larger file. Raises UserError if the file is missing, too large, damaged, hostile or of an unknown network.
    """
    import foreign_files  # which needs this module

    path = Path(path)
    if max_bytes is not None and path.is_file() and path.stat().st_size > max_bytes:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes and at most {max_bytes:,} are allowed; quantize it further or raise --max-bytes")
    if path.is_file() and not is_torch_stream(path):
        return foreign_files.load_foreign(path)
    content = read_torch(path, "model file")
    kind = content.get("format") if isinstance(content, dict) else None
    if foreign_files.is_state_dict(content):
        return foreign_files.recognise(path, content)
    if not isinstance(kind, str) or kind not in (MODEL_FORMAT, CHECKPOINT_FORMAT):
        raise UserError(f"{path} was not written by this project (no model or checkpoint header); use model.bin or a checkpoint of the training scripts")
    if repr(content.get("version")) != repr(VERSION):
        raise UserError(f"{path} has format version {str(content.get('version'))[:20]} and this program reads version {VERSION}; use the matching release")
    description = Description.from_dict(content, path)
    if kind == MODEL_FORMAT:
        return Model(description, decode(content, path), content.get("bits"), path)
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in weights.items()):
        raise UserError(f"{path} is a checkpoint without a state_dict; use best.pt of a training script")
    return Model(description, {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}, 32, path)
