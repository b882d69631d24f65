"""How one tensor is stored: as numbers, or as codes on a grid of quantization/grids.py.

The storage of a tensor is a short name, which model files hold; with the tensor's shape it says which arrays
there are ("channel" is axis 0):

    f4, f2, i8           itself, as IEEE floats or 64-bit integers
    m8                   the course's 8-bit scheme: f4 (minimum, maximum), 8-bit codes
    a2 ... a8            f2 low, f2 step, codes: low + code * step; A2 ... A8: low and step for every channel
    s2 ... s8            f2 scale, codes: (code - 2 ** (bits - 1)) * scale; S2 ... S8: scale for every channel
"""

import math
import re

import numpy as np
import torch

from compression.command_line import UserError
from compression.quantization.grids import (
    LARGEST,
    affine_grid,
    code_range,
    dequantize_affine,
    dequantize_minmax,
    dequantize_symmetric,
    group_count,
    mse_scale,
    quantize_affine,
    quantize_minmax,
    quantize_symmetric,
)

# beyond that, float16 numbers or grid parameters do not reach, and f4 takes over
FLOAT16 = {"f": LARGEST, "s": LARGEST, "a": LARGEST / 2}


def storage_of(tensor, bits, scheme):
    """How a tensor of this shape and type is stored if its values allow it; a name of the table above."""
    if not tensor.is_floating_point():
        return "i8"
    if bits > 8 or not tensor.numel():
        return "f4" if bits == 32 else "f2"
    if bits == 8 and (tensor.ndim < 2 or (scheme.granularity, scheme.scale) == ("tensor", "minmax")):
        return "m8"
    grid = "a" if scheme.scale == "minmax" else "s"
    # a grid for every value of a vector would be larger than the values
    per_channel = scheme.granularity == "channel" and tensor.ndim > 1
    return f"{grid.upper() if per_channel else grid}{bits}"


def layout_of(storage, shape):
    """[(kind, length)] of a tensor's arrays, as `coding.unpack` wants them; ValueError if unknown."""
    if not re.fullmatch("f4|f2|i8|m8|[aAsS][2-8]", storage):
        raise ValueError(f"unknown storage {storage[:20]}")
    if storage in ("f4", "f2", "i8"):
        return [(storage, math.prod(shape))]
    grids = group_count(shape, "channel" if storage[0] in "AS" else "tensor")
    parameters = {"m": [("f4", 2)], "a": [("f2", grids)] * 2, "s": [("f2", grids)]}
    return [*parameters[storage[0].lower()], (int(storage[1]), math.prod(shape))]


def store_tensor(name, tensor, bits, scheme, scale=None):
    """A tensor as (storage, its arrays). scale: of the symmetric grid that the values are on already."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise UserError(f"tensor {name} holds NaN or infinity; train again or use an earlier checkpoint")
    array = tensor.contiguous().numpy()
    if scale is None:
        storage = storage_of(tensor, bits, scheme)
        if array.size and np.abs(array).max() > FLOAT16.get(storage[0].lower(), np.inf):
            storage = "f4"
    else:
        storage = f"{'S' if len(scale) > 1 else 's'}{bits}"
        exact = torch.equal(dequantize_symmetric(quantize_symmetric(tensor, scale, bits), scale), tensor)
        if not exact or not torch.equal(scale.half().float(), scale):
            raise UserError(f"tensor {name} is not on its {bits}-bit grid; use an undamaged checkpoint")
    granularity = "channel" if storage[0].isupper() else "tensor"
    if storage == "m8":
        low, high, codes = quantize_minmax(array)
        return storage, [np.array([low, high], "<f4"), codes]
    if storage[0] in "aA":
        grid = affine_grid(array, bits, granularity)
        return storage, [*(column.astype("<f2") for column in grid), quantize_affine(array, *grid, bits)]
    if storage[0] in "sS":
        grid = mse_scale(tensor, bits, granularity) if scale is None else scale
        codes = quantize_symmetric(tensor, grid, bits).short() - code_range(bits)[0]
        return storage, [grid.numpy().astype("<f2"), codes.byte().numpy()]
    return storage, [array.astype("<" + storage)]


def restore_tensor(storage, arrays, shape):
    """The tensor, float32 or int64, of what `store_tensor` gave."""
    *parameters, values = arrays
    values = values.reshape(shape)
    with np.errstate(all="ignore"):  # hostile values: what is not finite is refused when the network is built
        if storage == "m8":
            return torch.from_numpy(np.asarray(dequantize_minmax(*parameters[0].astype(np.float64), values)))
        if storage[0] in "aA":
            return torch.from_numpy(np.asarray(dequantize_affine(values, *parameters)))
        if storage[0] in "sS":
            codes = torch.from_numpy(values).short() + code_range(int(storage[1]))[0]
            return dequantize_symmetric(codes, torch.from_numpy(parameters[0].astype(np.float32)))
    return torch.from_numpy(values.astype(np.int64 if storage == "i8" else np.float32))
