"""quantization.py and storage.py: every grid within half a step, the least squared error, sizes, bits of
layers.
"""

import itertools

import numpy as np
import pytest
import torch

from compression.command_line import UserError
from compression.files.coding import pack, packed_size, unpack
from compression.files.storage import layout_of, restore_tensor, storage_of, store_tensor
from compression.quantization.grids import (
    Scheme,
    affine_grid,
    code_range,
    dequantize_affine,
    dequantize_symmetric,
    mse_scale,
    quantize_affine,
    quantize_symmetric,
)

BITS = range(2, 9)
SHAPES = [(), (1,), (5,), (1, 1), (6, 4, 3, 3), (7, 1, 3, 3), (1, 30)]


def weights(shape, kind="normal"):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(shape, generator=generator)
    return {
        "normal": normal,
        "constant": torch.full(shape, -0.3),
        "zero": torch.zeros(shape),
        "shifted": normal + 5,
        "tiny": normal * 1e-4,
        "large": normal * 1e3,
    }[kind]


def through_file(tensor, bits, scheme, scale=None):
    """(storage, tensor) after store_tensor, packing and back."""
    storage, arrays = store_tensor("w", tensor, bits, scheme, scale)
    layout = layout_of(storage, tuple(tensor.shape))
    assert [len(array.reshape(-1)) for array in arrays] == [count for _, count in layout]
    decoded = unpack(*pack([(kind, array) for (kind, _), array in zip(layout, arrays)]), layout)
    return storage, arrays, restore_tensor(storage, decoded, tuple(tensor.shape))


@pytest.mark.parametrize("scale", ["minmax", "mse"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", BITS)
def test_every_round_trip_is_within_half_a_step(bits, granularity, scale):
    for shape in SHAPES:
        for kind in ("normal", "constant", "zero", "shifted", "tiny", "large"):
            tensor = weights(shape, kind)
            storage, arrays, decoded = through_file(tensor, bits, Scheme(bits, granularity, scale))
            assert decoded.shape == tensor.shape and decoded.dtype == torch.float32
            clipped = torch.zeros(shape, dtype=torch.bool)
            if storage == "m8":
                half = (float(arrays[0][1]) - float(arrays[0][0])) / 510
            else:
                step = torch.from_numpy(arrays[-2].astype(np.float64))
                step = step.reshape(-1, *[1] * (len(shape) - 1)) if shape else step[0]
                half = step / 2
                if scale == "mse":  # a clipped value becomes the end of the grid
                    low, high = code_range(bits)
                    clipped = (tensor < (low - 0.5) * step) | (tensor > (high + 0.5) * step)
                    ends = (decoded == high * step.float()) | (decoded == low * step.float())
                    assert ends[clipped].all(), (shape, kind)
            rounding = tensor.abs().double() * 2**-22  # of float32
            close = (decoded.double() - tensor.double()).abs() <= half + rounding
            assert (close | clipped).all(), (shape, kind)


@pytest.mark.parametrize(
    "storage, shape, size",
    [
        ("f4", (3, 2), 24),
        ("f2", (), 2),
        ("i8", (), 8),
        ("m8", (5,), 13),
        ("a3", (6, 4), 4 + 9),
        ("A3", (6, 4), 24 + 9),
        ("s5", (2, 3), 2 + 4),
        ("S5", (2, 3), 4 + 4),
        ("S2", (4, 1, 3, 3), 8 + 9),
        ("f2", (0, 3), 0),
    ],
)
def test_sizes_are_those_of_the_table(storage, shape, size):
    assert sum(packed_size(kind, count) for kind, count in layout_of(storage, shape)) == size


@pytest.mark.parametrize(
    "scheme",
    [Scheme(*grid) for grid in itertools.product((16, 8, 3), ("tensor", "channel"), ("minmax", "mse"))],
)
def test_empty_tensors_come_back_and_nan_does_not_go_in(scheme):
    assert through_file(torch.empty(0, 3), scheme.bits, scheme)[2].shape == (0, 3)
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(UserError, match="tensor w "):
            store_tensor("w", torch.tensor([[1.0, bad]]), scheme.bits, scheme)


@pytest.mark.parametrize("scheme", [Scheme(16), Scheme(4, "channel", "minmax"), Scheme(4, "tensor", "mse")])
def test_what_float16_cannot_hold_stays_float32(scheme):
    tensor = torch.tensor([[1e20, 0.1], [65504.0, -3.0]])
    assert torch.equal(through_file(tensor, scheme.bits, scheme)[2], tensor)


def test_8_bits_minmax_per_tensor_is_the_courses_formula():
    tensor = weights((6, 4, 3, 3))
    storage, arrays, _ = through_file(tensor, 8, Scheme())
    wide = tensor.double()
    codes = torch.round((wide - wide.min()) / (wide.max() - wide.min()) * 255)
    assert storage == "m8" and np.array_equal(arrays[1], codes.numpy())


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", BITS)
def test_the_mse_scale_is_the_best_of_a_fine_search(bits, granularity):
    weight = weights((3, 1000))
    scale = mse_scale(weight, bits, granularity)
    assert scale.shape == ((3,) if granularity == "channel" else (1,))
    assert torch.equal(scale.half().float(), scale)

    def squared_error(scale):
        return (dequantize_symmetric(quantize_symmetric(weight, scale, bits), scale) - weight).square().sum(1)

    def total(errors):
        return errors if granularity == "channel" else errors.sum(0, keepdim=True)

    factors = torch.linspace(0.5, 2, 300).tolist()
    fine = torch.stack([total(squared_error(scale * factor)) for factor in factors]).amin(0)
    assert (total(squared_error(scale)) <= 1.05 * fine).all()


@pytest.mark.parametrize("bits", BITS)
def test_affine_grids_cover_every_value(bits):
    for kind in ("normal", "shifted", "tiny", "large", "constant"):
        values = weights((4, 9), kind).numpy()
        low, step = affine_grid(values, bits, "channel")
        assert low.dtype == step.dtype == np.float16
        assert (low.astype(float) <= values.min(1)).all()
        assert (low.astype(float) + step.astype(float) * (2**bits - 1) >= values.max(1)).all()
        codes = quantize_affine(values, low, step, bits)
        decoded = dequantize_affine(codes, low, step)
        assert np.array_equal(quantize_affine(decoded, low, step, bits), codes)


def test_symmetric_codes_by_hand():
    weight = torch.tensor([[0.25, 0.75, -0.75, 9.0], [1.0, -2.0, 3.0, 0.0]])
    codes = quantize_symmetric(weight, torch.tensor([0.5, -1.0]), 3)
    assert codes.tolist() == [[0, 2, -2, 3], [-1, 2, -3, 0]]  # 0.5, 1.5 and -1.5 go to the even code
    decoded = dequantize_symmetric(codes, torch.tensor([0.5, -1.0]))
    assert decoded.tolist() == [[0.0, 1.0, -1.0, 1.5], [1.0, -2.0, 3.0, 0.0]]


def test_weights_on_a_given_grid_are_stored_without_loss_and_others_refused():
    scale = torch.tensor([0.125, -0.0302734375, 0.0])
    codes = torch.randint(-8, 8, (3, 20), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    weight = dequantize_symmetric(codes, scale)
    storage, arrays, decoded = through_file(weight, 4, Scheme(2), scale)
    assert storage == "S4" and torch.equal(decoded, weight)
    assert np.array_equal(arrays[1][:2], (codes[:2] + 8).numpy())
    for other, grid in ((weight + 1e-3, scale), (weight, scale * 1.0001), (weight, scale / 2)):
        with pytest.raises(UserError, match="tensor w is not on its 4-bit grid"):
            store_tensor("w", other, 4, Scheme(2), grid)


# ---------------------------------------------------------------- which tensor gets how many bits


STATE = {
    "stem.weight": torch.empty(8, 3, 3, 3),
    "stem.bias": torch.empty(8),
    "depthwise.weight": torch.empty(8, 1, 3, 3),
    "point.weight": torch.empty(9, 8, 1, 1),
    "point.count": torch.tensor(3),
    "fc.weight": torch.empty(5, 9),
}


@pytest.mark.parametrize(
    "scheme, expected",
    [
        (Scheme(8), [8, 16, 8, 8, 8]),
        (Scheme(6), [6, 16, 6, 6, 6]),
        (Scheme(5), [8, 16, 7, 5, 8]),
        (Scheme(4, vectors=8), [8, 8, 6, 4, 8]),
        (Scheme(16), [16] * 5),
        (Scheme(4, overrides={"stem": 4, "point.weight": 2, "fc": 16, "stem.bias": 8}), [4, 8, 6, 2, 16]),
    ],
)
def test_bits_of_layers(scheme, expected):
    assert list(scheme.bits_of(STATE).values()) == expected and "point.count" not in scheme.bits_of(STATE)


def test_an_override_of_no_layer_and_wrong_schemes_are_refused():
    with pytest.raises(UserError, match="no layer head"):
        Scheme(4, overrides={"head": 8}).bits_of(STATE)
    wrong = {"granularity": "row", "scale": "max", "vectors": 4, "overrides": {"fc": 1}}
    for name, value in [("bits", 1), ("bits", 9), *wrong.items()]:
        with pytest.raises(UserError, match="no encoding"):
            Scheme(**{name: value})


def test_storage_names():
    weight, vector = torch.empty(3, 2), torch.empty(3)
    for expected, bits, *grid in (
        ("m8", 8, "tensor", "minmax"),
        ("A8", 8, "channel", "minmax"),
        ("a4", 4, "tensor", "minmax"),
        ("s8", 8, "tensor", "mse"),
        ("S3", 3, "channel", "mse"),
        ("f4", 32),
        ("f2", 16),
    ):
        assert storage_of(weight, bits, Scheme(bits, *grid)) == expected
    # not a scale for every value
    assert [storage_of(vector, 3, Scheme(4, "channel", scale)) for scale in ("mse", "minmax")] == ["s3", "a3"]
    assert storage_of(vector, 8, Scheme(4, "channel", "mse", 8)) == "m8"
    assert storage_of(torch.tensor(3), None, Scheme()) == "i8"
    for wrong in ("", "f8", "u1", "s9", "s1", "m4", "s4 ", "S", "f4,f4"):
        with pytest.raises(ValueError):
            layout_of(wrong, (2,))
