"""The grids that weights are rounded to, and the number of bits of every tensor.

Three kinds of grid, each for a whole tensor or per output channel (axis 0):

    the course's  8 bits from minimum to maximum of the tensor (`quantize_minmax`)
    affine        low + code * step with unsigned codes; covers every value (`affine_grid`)
    symmetric     code * scale with signed codes; the scale of the least squared error, so rare large
                  values are clipped (`mse_scale`)

The parameters of the last two are rounded to float16 before the codes are computed, so that encoder, decoder
and quantization-aware training agree bit for bit. All values must be finite, which is checked where they are
read and where they are stored.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from compression.command_line import UserError

SMALLEST, LARGEST = 2.0**-24, 65504.0  # of float16
CANDIDATES = 80  # clipping ratios that `mse_scale` tries


@dataclass(frozen=True)
class Scheme:
    """How tensors are stored.

    bits: 32 or 16 (floats), or 2 to 8 (codes). granularity: one grid per "tensor" or per "channel".
    scale: "minmax" or "mse". vectors: with codes, the bits of tensors with fewer than two dimensions, 16 or
    8. overrides: layer or tensor name -> bits. Raises UserError for any other value.
    """

    bits: int = 8
    granularity: str = "tensor"
    scale: str = "minmax"
    vectors: int = 16
    overrides: dict = field(default_factory=dict)

    def __post_init__(self):
        for bits in (self.bits, *self.overrides.values()):
            if bits not in (32, 16, *range(2, 9)):
                raise UserError(f"there is no encoding with {bits} bits; use 32, 16 or 2 to 8")
        grid = self.granularity in ("tensor", "channel") and self.scale in ("minmax", "mse")
        if not grid or self.vectors not in (16, 8):
            raise UserError(
                f"there is no encoding with granularity={self.granularity}, scale={self.scale}, "
                f"vectors={self.vectors}; use tensor or channel, minmax or mse, and 16 or 8 for vectors"
            )

    def bits_of(self, state_dict):
        """Tensor name -> bits, for all float tensors (only their names and shapes are used).

        Below 6 bits, unless overridden, the first and the last matrix (the stem and the classifier) use 8
        bits and depthwise convolutions 2 more than the rest: in a trained `residual6` at 4 bits these two
        rules cost 2 % of the bytes and gain 2.7 points. Raises UserError for an override of an unknown layer.
        """
        floats = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
        matrices = [name for name, tensor in floats.items() if tensor.ndim >= 2]
        bits = {name: self.bits if self.bits > 8 or name in matrices else self.vectors for name in floats}
        if self.bits < 6 and matrices:
            for name in matrices:
                if floats[name].ndim == 4 and floats[name].shape[1] == 1:
                    bits[name] = self.bits + 2
            bits[matrices[0]] = bits[matrices[-1]] = 8
        for layer, wanted in self.overrides.items():
            name = layer if layer in floats else f"{layer}.weight"
            if name not in floats:
                first = matrices[0].removesuffix(".weight") if matrices else "missing"
                advice = f"name one of the network, e.g. {first}"
                raise UserError(f"there is no layer {layer} to store in {wanted} bits; {advice}")
            bits[name] = wanted
        return bits


def quantize_minmax(values):
    """The course's 8-bit scheme: (min, max, uint8 codes of the same shape), from float64.

    q = round((w - min) / (max - min) * 255); a constant tensor gets code 0.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = values.min(), values.max()
    if low == high:
        return low, high, np.zeros(values.shape, np.uint8)
    return low, high, np.round((values - low) / (high - low) * 255).astype(np.uint8)


def dequantize_minmax(low, high, codes):
    """The inverse: min + q / 255 * (max - min) as float32; error at most half a step, (max - min) / 510."""
    return (low + codes.astype(np.float64) / 255 * (high - low)).astype(np.float32)


def affine_grid(values, bits, granularity):
    """(low, step) as float16 arrays, one entry or one per channel, for codes 0 .. 2 ** bits - 1.

    low is rounded down and step up, so that every value is covered; no value may be above LARGEST / 2.
    """
    values = np.asarray(values, np.float64)
    groups = values.reshape(group_count(values.shape, granularity), -1)
    exact, high = groups.min(1), groups.max(1)
    low = exact.astype(np.float16)
    low = np.where(low > exact, np.nextafter(low, np.float16(-np.inf)), low)
    exact = (high - low) / (2**bits - 1)
    step = exact.astype(np.float16)
    return low, np.where(step < exact, np.nextafter(step, np.float16(np.inf)), step)


def quantize_affine(values, low, step, bits):
    """Codes 0 .. 2 ** bits - 1 (uint8): round((w - low) / step) in float64; 0 where step is 0."""
    values = np.asarray(values, np.float64)
    offsets, step = values.reshape(len(low), -1) - low[:, None], step[:, None]
    codes = np.divide(offsets, step, out=np.zeros_like(offsets), where=step > 0)
    return np.clip(np.round(codes), 0, 2**bits - 1).astype(np.uint8).reshape(values.shape)


def dequantize_affine(codes, low, step):
    """low + code * step, computed in float64, as float32; the error is at most half a step, plus rounding."""
    groups = codes.reshape(len(low), -1).astype(np.float64)
    return (low[:, None] + groups * step[:, None]).astype(np.float32).reshape(codes.shape)


def group_count(shape, granularity):
    """Number of grids of a tensor of this shape."""
    return shape[0] if granularity == "channel" and len(shape) else 1


def code_range(bits):
    """(lowest, highest) signed code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


@torch.no_grad()
def mse_scale(weight, bits, granularity):
    """The scales of least squared error, (1,) or (out_channels,): float32 values that float16 represents.

    Searches CANDIDATES fractions of the scale that clips nothing.
    """
    groups = weight.detach().float().reshape(group_count(weight.shape, granularity), -1)
    low, high = code_range(bits)
    whole = torch.maximum(groups.amax(1) / high, groups.amin(1) / low)
    best, least = torch.ones_like(whole), torch.full_like(whole, math.inf)
    for ratio in torch.linspace(1, 1 / CANDIDATES, CANDIDATES).tolist():
        scale = (whole * ratio).clamp(SMALLEST, LARGEST).half().float()
        codes = torch.round(groups / scale[:, None]).clamp_(low, high)
        error = codes.mul_(scale[:, None]).sub_(groups).square_().sum(1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def quantize_symmetric(weight, scale, bits):
    """Signed codes (int8): w / scale rounded half to even and clamped to `code_range`; 0 / 0 gives 0."""
    low, high = code_range(bits)
    ratio = (weight.float() / _along_channels(scale, weight)).nan_to_num(0.0, math.inf, -math.inf)
    return torch.round(ratio).clamp(low, high).to(torch.int8)


def dequantize_symmetric(codes, scale):
    """codes * scale as float32; exact, since 8-bit codes times float16 scales need 19 of 24 bits."""
    return codes.float() * _along_channels(scale, codes)


def _along_channels(scale, tensor):
    return scale.reshape(-1, *[1] * (tensor.ndim - 1)) if tensor.ndim else scale.reshape(())
