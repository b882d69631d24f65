"""`model.bin`: one small file that `torch.load(weights_only=True)` opens and that describes itself.

The file is a dict of plain values and one uint8 tensor:

    format, version      "food11-model", 2
    architecture         name in models.py, and `arguments`, what `build` needs to rebuild the network
    class_names          label i is class_names[i]
    preprocessing        size in pixels, resize rule, mean and std of the normalisation
    training             where the weights come from (free-form plain values)
    bits                 2 to 8, 16 or 32: what was asked of the encoder for most weights
    storage              how each tensor of the network's state_dict is stored, in its order, separated by
                         blanks (see `storage.py`)
    layout               CRC-32 of names and shapes of these tensors, so that another network's are noticed
    coding, data         all arrays in one blob, and how it was packed (see `coding.py`)
    crc32                checksum of all of the above (see `checksum`)
"""

import collections
import io
import itertools
import json
import math
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from compression.command_line import UserError
from compression.files import coding
from compression.files.description import Description
from compression.files.storage import layout_of, restore_tensor, storage_of, store_tensor
from compression.quantization.grids import Scheme

MODEL_FORMAT, MODEL_VERSION = "food11-model", 2
CHECKPOINT_FORMAT, VERSION = "food11-checkpoint", 1
VERSIONS = {MODEL_FORMAT: MODEL_VERSION, CHECKPOINT_FORMAT: VERSION}
Sizes = collections.namedtuple("Sizes", "packed coded entropy")  # bytes of all tensors, by `sizes`


def store(state_dict, scheme, scales=None):
    """{name: (storage, arrays, shape)} of all tensors, as `storage.py` lays them out; see `encode`."""
    bits, scales = scheme.bits_of(state_dict), scales or {}
    if unknown := scales.keys() - bits.keys():
        raise UserError(f"a scale was given for {min(unknown)}, which is no tensor of weights")
    stored = {}
    for name, tensor in state_dict.items():
        own_bits, scale = scales.get(name, (bits.get(name), None))
        stored[name] = *store_tensor(name, tensor, own_bits, scheme, scale), tuple(tensor.shape)
    return stored


def labelled(stored):
    """[(kind, array)] for `coding` of what `store` gave."""
    return [
        (kind, array)
        for storage, arrays, shape in stored.values()
        for (kind, _), array in zip(layout_of(storage, shape), arrays)
    ]


def packed(stored):
    """The fields of a model file that hold what `store` gave."""
    chosen, data = coding.pack(labelled(stored))
    return {
        "storage": " ".join(storage for storage, _, _ in stored.values()),
        "layout": layout_checksum({name: shape for name, (_, _, shape) in stored.items()}),
        "coding": chosen,
        "data": torch.frombuffer(bytearray(data), dtype=torch.uint8),
    }


def unpacked(content, shapes):
    """What `packed` was given, for {tensor name: shape}; ValueError unless the blob holds exactly these."""
    storage = content["storage"].split(" ")
    if len(storage) != len(shapes):
        raise ValueError("the storage of another number of tensors")
    layouts = [layout_of(one, shape) for one, shape in zip(storage, shapes.values())]
    data = content["data"].numpy().tobytes()
    arrays = iter(coding.unpack(content["coding"], data, list(itertools.chain(*layouts))))
    return {
        name: (one, [next(arrays) for _ in layout], shape)
        for (name, shape), one, layout in zip(shapes.items(), storage, layouts)
    }


def restored(stored):
    """The float32 `state_dict` of what `store` gave."""
    return {name: restore_tensor(*one) for name, one in stored.items()}


def shapes_of(state_dict):
    """{tensor name: shape}."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def layout_checksum(shapes):
    """CRC-32 of names and shapes, in their order."""
    return zlib.crc32(json.dumps([[name, list(shape)] for name, shape in shapes.items()]).encode())


def predicted_data_bytes(description, scheme, coded=1.0):
    """Bytes of all tensors by their shapes alone.

    coded: bytes of the codes after entropy coding / packed to the bit; 1 without entropy coding.
    """
    tensors, counts = description.skeleton().state_dict(), collections.Counter()
    bits = scheme.bits_of(tensors)
    for name, tensor in tensors.items():
        for kind, count in layout_of(storage_of(tensor, bits.get(name), scheme), tuple(tensor.shape)):
            counts[kind] += count
    sizes = {kind: coding.packed_size(kind, count) for kind, count in counts.items()}
    return sum(math.ceil(coded * size) if isinstance(kind, int) else size for kind, size in sizes.items())


def predicted_file_bytes(description, scheme, coded=1.0):
    """Bytes of a model file with BN folded, by the shapes alone; coded: see `predicted_data_bytes`."""
    description = replace(description, arguments={**description.arguments, "folded": True})
    shapes = shapes_of(description.skeleton().state_dict())
    blob = {"storage": "f2 " * len(shapes), "layout": layout_checksum(shapes), "coding": "bits"}
    content = {**_header(description, scheme), **blob, "data": torch.zeros(1, dtype=torch.uint8)}
    return len(to_bytes({**content, "crc32": 1 << 31})) + predicted_data_bytes(description, scheme, coded)


def _header(description, scheme):
    """The fields of a model file before the tensors."""
    about = {"format": MODEL_FORMAT, "version": MODEL_VERSION, **description.to_dict()}
    return {**about, "bits": scheme.bits}


def encode(description, state_dict, scheme=Scheme(), scales=None):
    """The content of a model file for a `state_dict` and a `grids.Scheme`.

    scales: {tensor name: (bits, scales)} for weights that are on a symmetric grid already, which is then kept
    exactly. A tensor that float16 cannot hold stays float32. Raises UserError for NaN or infinity, for
    weights that do not fit the description and for weights off the grid given for them, naming the tensor.
    """
    shapes = shapes_of(description.skeleton().state_dict())
    if shapes_of(state_dict) != shapes:
        raise UserError(f"the weights do not fit {description.architecture}; use a checkpoint of a training")
    stored = store({name: state_dict[name] for name in shapes}, scheme, scales)
    content = {**_header(description, scheme), **packed(stored)}
    return {**content, "crc32": checksum(content)}


def sizes(content):
    """The Sizes of what `encode` made: packed to the bit, as coded in the file, by the codes' entropy."""
    arrays = labelled(stored_state(content))
    bits = sum(coding.packed_size(kind, len(stream)) for kind, stream in coding.streams(arrays).items())
    return Sizes(bits, len(content["data"]), round(coding.theoretical_size(arrays)))


def checksum(content):
    """CRC-32 over everything in a model file but the checksum itself."""
    plain = {key: value for key, value in content.items() if key not in ("data", "crc32")}
    return zlib.crc32(content["data"].numpy(), zlib.crc32(json.dumps(plain, sort_keys=True).encode()))


def to_bytes(content):
    """The bytes of the file that holds `content`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def stored_state(content, path="the model"):
    """The tensors in the content of a model file as `store` gave them; UserError if it is damaged."""
    damaged = UserError(f"{path} is damaged: its checksum or layout is wrong; copy it or create it again")
    try:
        data = content["data"]
        flat = data.dtype == torch.uint8 and data.ndim == 1 and data.is_contiguous()
        if not flat or checksum(content) != content["crc32"]:  # a stride of 0 can claim any length
            raise damaged
        description = Description.from_dict(content, path)
        shapes = shapes_of(description.skeleton(path).state_dict())
        if content["layout"] != layout_checksum(shapes):
            raise UserError(
                f"the weights in {path} do not fit {description.architecture} as this program builds it; "
                "use the version of this project that wrote it"
            )
        return unpacked(content, shapes)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, RecursionError):
        raise damaged from None


def decode(content):
    """The float32 `state_dict` in the content of a model file; UserError if it is damaged."""
    return restored(stored_state(content))


@dataclass(frozen=True)
class Model:
    """What a model file or checkpoint holds: description, float `state_dict`, the bits it was stored with.

    scales: of a checkpoint of quantization-aware training, {tensor name: (bits, scales)} of its rounded
    weights, else empty. stored: of a model file, how each tensor is stored (see `store`), else None.
    """

    description: Description
    state_dict: dict
    bits: int
    path: Path
    scales: dict = field(default_factory=dict)
    stored: dict | None = None

    def build(self):
        """The network in eval mode."""
        return self.description.build(self.state_dict, self.path)
