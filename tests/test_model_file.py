"""model.bin: the 8-bit scheme, round trips, and files that are damaged, foreign or hostile."""

import io
import json
import pickle
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, generator, same_tensors, write_model

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.model_file import (
    CHECKPOINT_FORMAT,
    VERSION,
    checksum,
    decode,
    encode,
    layout_checksum,
    packed,
    restored,
    shapes_of,
    store,
    stored_state,
    to_bytes,
    unpacked,
)
from compression.quantization.grids import Scheme, dequantize_minmax, quantize_minmax
from dataset import FOOD11_CLASSES
from models import ARCHITECTURES, build


def round_trip(state, bits, vectors=8):
    stored = store(state, Scheme(bits, vectors=vectors))
    return restored(unpacked(packed(stored), shapes_of(state)))


@pytest.fixture
def content(small_model):
    return torch.load(small_model, weights_only=True)


@pytest.fixture
def refused_file(tmp_path):
    """refused_file(content, match=None) asserts that loading a file with this content and building its
    network is a UserError that names the file.
    """

    def check(content, match=None):
        path = tmp_path / "hostile.bin"
        path.write_bytes(content if isinstance(content, bytes) else to_bytes(content))
        with pytest.raises(UserError, match=match) as refusal:
            load_model(path).build()
        assert "hostile.bin" in str(refusal.value)

    return check


def signed(content):
    """`content` with its checksum made right, as an attacker would; as it is where it has none."""
    try:
        return {**content, "crc32": checksum(content)}
    except (TypeError, AttributeError):
        return content


# ---------------------------------------------------------------- the 8-bit scheme


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quantize_is_the_courses_formula_bit_for_bit(dtype):
    random = np.random.default_rng(0)
    for scale in (1e-30, 1e-3, 1, 1e30):
        values = (random.standard_normal((7, 5, 3, 3)) * scale).astype(dtype)
        low, high, codes = quantize_minmax(values)
        wide = values.astype(np.float64)
        expected = np.round((wide - wide.min()) / (wide.max() - wide.min()) * 255).astype(np.uint8)
        assert (low, high) == (wide.min(), wide.max())
        assert codes.dtype == np.uint8 and np.array_equal(codes, expected)
        assert codes.min() == 0 and codes.max() == 255


def test_quantize_known_codes():
    low, high, codes = quantize_minmax(np.array([-1.0, 0.0, 0.5, 4.1]))
    assert (low, high, codes.tolist()) == (-1.0, 4.1, [0, 50, 75, 255])
    assert dequantize_minmax(low, high, codes) == pytest.approx([-1, 0, 0.5, 4.1], abs=1e-6)


def test_decoded_values_are_within_half_a_step():
    values = np.random.default_rng(1).uniform(-3, 5, 10_000)
    low, high, codes = quantize_minmax(values)
    decoded = dequantize_minmax(low, high, codes)
    assert decoded.dtype == np.float32
    assert np.abs(decoded - values).max() <= (high - low) / 510 + 1e-6  # 1e-6: float32 of a value near 5


@pytest.mark.parametrize("value", [0.0, -0.1, 1e-38, 3e38])
@pytest.mark.parametrize("shape", [(1,), (6,), (2, 3), ()])
def test_a_constant_tensor_is_exact(value, shape):
    values = np.full(shape, value, np.float32)
    assert np.array_equal(dequantize_minmax(*quantize_minmax(values)), values)


# ---------------------------------------------------------------- round trips


@pytest.fixture
def state():
    random = generator(0)
    return {
        "conv.weight": torch.randn(6, 4, 3, 3, generator=random),
        "bn.weight": torch.rand(6, generator=random),
        "bn.num_batches_tracked": torch.tensor(2**53 + 1),
        "scalar": torch.tensor(0.1),
        "one": torch.tensor([[-0.7]]),
        "empty": torch.empty(0, 3),
        "same": torch.full((3, 2), 0.3),
        "fc.bias": torch.randn(5, generator=random),
    }


def half(tensor):
    return tensor.half().float() if tensor.is_floating_point() else tensor


def test_32_bits_are_exact(state):
    assert same_tensors(state, round_trip(state, 32))


def test_16_bits_equal_half(state):
    assert same_tensors({name: half(value) for name, value in state.items()}, round_trip(state, 16))


def reference_8_bits(tensor):
    if not tensor.is_floating_point() or not tensor.numel() or tensor.min() == tensor.max():
        return tensor
    wide = tensor.double()
    low, high = wide.min(), wide.max()
    return (low + torch.round((wide - low) / (high - low) * 255) / 255 * (high - low)).float()


@pytest.mark.parametrize("vectors, of_vector", [(8, reference_8_bits), (16, half)])
def test_8_bits_equal_the_reference_and_vectors_may_have_16(state, vectors, of_vector):
    expected = {
        name: of_vector(value) if value.ndim < 2 else reference_8_bits(value) for name, value in state.items()
    }
    assert same_tensors(expected, round_trip(state, 8, vectors))


@pytest.mark.parametrize("encoding", [(32,), (16,), (8,), (8, 16)])
def test_counters_are_exact_and_stay_integers(encoding):
    state = {"count": torch.tensor(2**62 + 3), "counts": torch.tensor([-(2**63), 2**63 - 1, 0])}
    assert same_tensors(state, round_trip(state, *encoding))


@pytest.mark.parametrize("encoding", [(16,), (8, 16)])
def test_a_value_that_float16_cannot_hold_keeps_its_tensor_float32(encoding):
    state = {
        "variance": torch.tensor([1e20, 0.1, 65504.0]),
        "largest": torch.tensor([65504.0, -65504.0]),
        "above": torch.tensor([65505.0]),
    }
    assert same_tensors(state, round_trip(state, *encoding))


def test_transposed_and_half_precision_tensors_are_stored_by_value():
    matrix = torch.randn(4, 3, generator=generator(0))
    channels_last = matrix.view(1, 3, 2, 2).to(memory_format=torch.channels_last)
    state = {"transposed": matrix.t(), "half": matrix.half(), "channels_last": channels_last}
    assert same_tensors({name: value.float() for name, value in state.items()}, round_trip(state, 32))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [32, 16, 8])
def test_encode_refuses_values_that_are_not_finite_and_names_the_tensor(bad, bits):
    with pytest.raises(UserError, match=r"fc\.bias"):
        store({"fc.weight": torch.ones(2, 2), "fc.bias": torch.tensor([1.0, bad])}, Scheme(bits))


@pytest.mark.parametrize("encoding", [(1, 8), (9, 8), (8, 32), (64, 16), (None, 8)])
def test_encode_refuses_unknown_encodings(encoding):
    with pytest.raises(UserError, match="no encoding"):
        round_trip({}, *encoding)


def test_the_header_describes_the_network_in_plain_values(content, small_model, small_network):
    description, network = small_network
    header = {key: value for key, value in content.items() if key != "data"}
    assert header == json.loads(json.dumps(header))
    assert (header["format"], header["version"], header["bits"]) == ("food11-model", 2, 8)
    assert header["architecture"] == "student" and header["arguments"]["num_classes"] == 11
    assert header["class_names"] == list(FOOD11_CLASSES)
    assert header["preprocessing"] == description.preprocessing.to_dict()
    assert content["data"].dtype == torch.uint8
    assert len(header["storage"].split(" ")) == len(network.state_dict())
    assert load_model(small_model).description.to_dict() == description.to_dict()


def test_a_model_file_has_little_overhead(small_network):
    """A torch.save of the same tensors needs about 280 bytes for each; the file keeps a single blob."""
    description, network = small_network
    content = encode(description, network.state_dict())
    assert len(to_bytes(content)) - len(content["data"]) < 3000


@pytest.mark.parametrize(
    "encoding, tolerance", [((32, 8), 0), ((16, 8), 0.05), ((8, 16), 0.5), ((8, 8), 0.5)]
)
def test_the_decoded_network_answers_like_the_float_network(small_network, tmp_path, encoding, tolerance):
    bits, vectors = encoding
    path = write_model(tmp_path / "model.bin", *small_network, Scheme(bits, vectors=vectors))
    images = torch.randn(64, 3, 32, 32, generator=generator(0))
    decoded = load_model(path).build()
    expected = small_network[1](images)
    assert not decoded.training
    assert (decoded(images) - expected).square().mean().sqrt() <= tolerance * expected.std()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_builds_from_its_file(name, tmp_path):
    if name == "resnet18":
        pytest.importorskip("torchvision")
    network = build(name, num_classes=5, in_channels=3)
    description = Description.of(name, {"in_channels": 3}, "abcde", Preprocessing(64))
    path = write_model(tmp_path / "model.bin", description, network, Scheme(32))
    assert same_tensors(network.state_dict(), load_model(path).build().state_dict())


# ---------------------------------------------------------------- damage


def outcome(path):
    """What loading and building gives: the (description, weights), or None for a UserError; any other
    exception comes out.
    """
    try:
        model = load_model(path)
        return model.description.to_dict(), model.build().state_dict()
    except UserError:
        return None


def test_a_truncated_file_is_refused_wherever_it_ends(small_model, tmp_path):
    whole, path = small_model.read_bytes(), tmp_path / "model.bin"
    for end in sorted({*range(0, len(whole), len(whole) // 60), 1, 2, 4, len(whole) - 22, len(whole) - 1}):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"model\.bin is damaged or no model file"):
            load_model(path).build()


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_refused_or_harmless(small_model, tmp_path, seed):
    whole, path, chance = small_model.read_bytes(), tmp_path / "model.bin", random.Random(seed)
    _, weights = outcome(small_model)
    for _ in range(500):
        damaged = bytearray(whole)
        place = chance.randrange(len(whole))
        kind = chance.choice(("bit", "byte", "zeros", "delete", "insert", "swap"))
        if kind == "bit":
            damaged[place] ^= 1 << chance.randrange(8)
        elif kind == "byte":
            damaged[place] = chance.randrange(256)
        elif kind == "zeros":
            damaged[place : place + 32] = bytes(len(damaged[place : place + 32]))
        elif kind == "delete":
            del damaged[place : place + chance.randrange(1, 100)]
        elif kind == "insert":
            damaged[place:place] = chance.randbytes(chance.randrange(1, 100))
        else:
            here, there = (slice(start, start + 16) for start in (place, chance.randrange(len(whole))))
            damaged[here], damaged[there] = damaged[there], damaged[here]
        path.write_bytes(damaged)
        result = outcome(path)
        assert result is None or same_tensors(result[1], weights), (seed, kind, place)


def test_damaged_codes_under_a_right_checksum_are_refused_or_finite(small_network, tmp_path):
    """What an attacker can do: a file is refused in one sentence or builds a network of finite weights."""
    description, network = small_network
    content = encode(description, network.state_dict(), Scheme(4, "channel", "mse"))
    chance = random.Random(0)
    path = tmp_path / "model.bin"
    for _ in range(100):
        data = content["data"].clone()
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        data = data[: len(data) - chance.choice((0, 0, 1))].clone()
        path.write_bytes(to_bytes(signed({**content, "data": data})))
        outcome(path)


def test_damage_to_the_header_is_noticed(small_model, tmp_path):
    """One bit of a mean, a class name or an argument is as harmful as one of a weight."""
    whole, path = small_model.read_bytes(), tmp_path / "model.bin"
    start = whole.index(b"food11-model")
    description, _ = outcome(small_model)
    for place in range(start, whole.index(b"crc32", start), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        result = outcome(path)
        assert result is None or result[0] == description, f"bit 0 of byte {place}"


def test_damage_to_any_byte_of_the_data_is_noticed(content):
    for place in range(0, len(content["data"]), 37):
        damaged = {**content, "data": content["data"].clone()}
        damaged["data"][place] ^= 1
        with pytest.raises(UserError, match="damaged"):
            decode(damaged)


# ---------------------------------------------------------------- foreign and hostile files


def test_a_file_of_another_kind_is_refused(refused_file):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("weights.npy", b"x" * 1000)
    for foreign in (
        b"",
        b"P",
        b"not a model at all\n" * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x05\x06" + bytes(18),
        b"\x80\x02}q\x00.",
        pickle.dumps([1, 2], 4),
        buffer.getvalue(),
    ):
        refused_file(foreign)


@pytest.mark.parametrize(
    "other",
    [
        *({}, [1, 2], None, "food11-model", torch.zeros(3), {"conv.weight": torch.zeros(2)}),
        {"format": "food12-model", "version": 1},
        *({"format": value} for value in (None, ["food11-model"], torch.zeros(2))),
    ],
)
def test_another_torch_file_is_refused(refused_file, other):
    refused_file(other, "not written by this project")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.bin", tmp_path):
        with pytest.raises(UserError, match="there is no model file"):
            load_model(path)


@pytest.mark.parametrize("version", [0, 1, 3, "2", 2.0, True, None, torch.tensor([1, 2])])
def test_another_version_is_refused(content, refused_file, version):
    refused_file({**content, "version": version}, "version")


def test_a_missing_header_field_is_refused(content, refused_file):
    for key in content:
        refused_file({name: value for name, value in content.items() if name != key})


WRONG = {
    "class_names": [None, 11, ["a", "b"], []],
    "arguments": [None, [1], {}, {"num_classes": torch.zeros(3)}],
    "preprocessing": [
        *[None, {1: 2}, {"colour": "BGR"}, {"resize": "stretch"}, {"resize": ["crop"]}],
        *({"size": size} for size in (10**9, -1, 64.5, True, "64")),
        *({"mean": mean} for mean in ([0, 0], [float("nan")] * 3, [10**400] * 3, "abc")),
        *({"std": std} for std in ([1, 1, 0], [float("nan")] * 3, [float("inf")] * 3)),
    ],
    "training": [None, 5],
    "architecture": [None, "resnet1000", "__init__"],
    "storage": [None, "", "m8", ["m8"], "m8 " * 10**6],
    "layout": [None, 0],
    "coding": [None, "zip", ["lzma"], "bits"],
    "data": [None, b"abc"],
    "crc32": [None, torch.zeros(2), "0"],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in WRONG.items() for value in values])
def test_a_header_field_of_the_wrong_kind_is_refused(content, refused_file, key, value):
    refused_file(signed({**content, key: value}) if key != "crc32" else {**content, key: value})


@pytest.mark.parametrize(
    "change",
    [
        *({"widths": (width,) * 8} for width in (10**9, 10**30, -8, 0, 8.5, [8])),
        *({"widths": widths} for widths in ("8" * 8, None, {}, (), (8,) * 9, 5)),
        *({"hidden": 10**9}, {"hidden": "x"}, {"swish_from": "x"}),
        *({"in_channels": 10**9}, {"in_channels": 1}),
        *({"unknown": 1}, {5: 1}, {"self": 1}),
    ],
)
def test_hostile_arguments_are_refused(content, refused_file, change):
    refused_file(signed({**content, "arguments": {**content["arguments"], **change}}))


def test_very_long_arguments_are_refused_without_much_memory(content, tmp_path):
    """A million layers would take 50 GB and half an hour, so they are tried in a process with 16 GB and a
    minute of processor time.
    """
    arguments = {**content["arguments"], "widths": [8] * 10**6}
    torch.save(signed({**content, "arguments": arguments}), tmp_path / "long.bin")
    program = """
import resource, sys
from compression.command_line import UserError
from compression.files.loading import load_model
resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    load_model(sys.argv[1]).build()
except UserError as error:
    print("UserError", len(str(error)))
"""
    command = [sys.executable, "-c", program, tmp_path / "long.bin"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("UserError"), (done.returncode, done.stderr[-300:])
    assert int(done.stdout.split()[1]) < 2000  # one sentence, not a million numbers


@pytest.mark.parametrize(
    "storage", ["f8", "i4", "m2", "a1", "s9", "S16", "F2", "u1", "O", "f4,f4", "s4\0", "s\u0664", "-4", " "]
)
def test_an_unknown_storage_of_one_tensor_is_refused(content, refused_file, storage):
    refused_file(signed({**content, "storage": content["storage"].replace("f2", storage, 1)}), "damaged")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {"storage": content["storage"] + " f2"},
        lambda content: {"storage": content["storage"].rpartition(" ")[0]},
        lambda content: {"storage": content["storage"].replace("f2", "i8", 1)},  # whole numbers
        lambda content: {"data": torch.cat([content["data"], torch.zeros(1, dtype=torch.uint8)])},
        lambda content: {"data": content["data"][:-1]},
    ],
)
def test_missing_and_surplus_tensors_and_bytes_are_refused(content, refused_file, change):
    refused_file(signed({**content, **change(content)}), "damaged")


def test_a_tensor_that_claims_to_be_huge_is_refused(content, refused_file):
    """One stored byte, repeated 10 ** 13 times by a stride of 0."""
    refused_file({**content, "data": torch.zeros(1, dtype=torch.uint8).expand(10**13)}, "damaged")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_stored_values_that_are_not_finite_are_refused(content, refused_file, value):
    stored = stored_state(content)
    _, arrays, _ = stored["cnn.0.0.weight"]
    arrays[0] = np.array([value, arrays[0][1]], "<f4")
    refused_file(signed({**content, **packed(stored)}), "not finite")


def test_a_file_over_the_limit_is_refused_and_one_at_the_limit_is_not(small_model):
    size = small_model.stat().st_size
    assert load_model(small_model, max_bytes=size).bits == 8
    with pytest.raises(UserError, match=f"{size:,} bytes and at most {size - 1:,}"):
        load_model(small_model, max_bytes=size - 1)


# ---------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoint(small_network):
    description, network = small_network
    header = {"format": CHECKPOINT_FORMAT, "version": VERSION, **description.to_dict()}
    return {**header, "state_dict": dict(network.state_dict())}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_loads_with_its_weights(checkpoint, tmp_path, zipped):
    torch.save(checkpoint, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
    model = load_model(tmp_path / "best.pt")
    assert model.bits == 32 and same_tensors(checkpoint["state_dict"], model.build().state_dict())


def test_a_checkpoint_with_other_weights_is_refused(checkpoint, refused_file):
    one = next(iter(checkpoint["state_dict"]))
    for weights in (
        *(None, 5, [], {}, {"cnn.0.0.weight": torch.zeros(1)}, {5: torch.zeros(1)}, torch.zeros(3)),
        {**checkpoint["state_dict"], one: 0.5},
    ):
        refused_file({**checkpoint, "state_dict": weights})
    del checkpoint["state_dict"]
    refused_file(checkpoint)


def test_a_checkpoint_may_say_that_it_has_no_scales(checkpoint, tmp_path):
    torch.save({**checkpoint, "scales": None}, tmp_path / "best.pt")
    assert load_model(tmp_path / "best.pt").scales == {}


@pytest.mark.parametrize(
    "scale",
    [
        *(torch.ones(2), 3, "4f", (9, torch.ones(1)), (3, torch.ones(1).half())),
        (torch.ones(2), torch.ones(1)),
        *((3, torch.ones(size)) for size in ((), (2, 2), 5)),
    ],
)
def test_scales_that_fit_no_weight_are_refused(checkpoint, refused_file, scale):
    for scales in ({"fc.0.weight": scale}, {"no.weight": (3, torch.ones(1))}, scale):
        refused_file({**checkpoint, "scales": scales}, "scales that are damaged")


def test_a_half_precision_checkpoint_predicts(checkpoint, tmp_path):
    """`state_dict` of a Model is float32, whatever the file held."""
    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in checkpoint["state_dict"].items()
    }
    torch.save({**checkpoint, "state_dict": weights}, tmp_path / "half.pt")
    model = load_model(tmp_path / "half.pt")
    assert same_tensors(model.state_dict, {name: half(value) for name, value in weights.items()})
    assert model.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 11)


def test_a_description_holds_every_argument_of_the_network():
    """So that a file can be rebuilt even if the table's widths change one day."""
    description = Description.of("residual6", {"in_channels": 3}, ("a", "b"), Preprocessing(32))
    arguments = description.to_dict()["arguments"]
    assert arguments["hidden"] == list(ARCHITECTURES["residual6"].arguments["hidden"])
    assert arguments["dropout"] == 0.1
    assert Description.of("fer_cnn", {}, ("a", "b"), Preprocessing(48)).arguments["widths"] == (64, 128, 256)
    narrow = Description.of("student", {"widths": (8,) * 8}, ("a", "b"), Preprocessing(32))
    assert narrow.arguments["widths"] == (8,) * 8


def test_the_layout_checksum_tells_shapes_names_and_orders_apart():
    layouts = (
        {"a": (2, 3), "b": (4,)},
        {"a": (3, 2), "b": (4,)},
        {"b": (4,), "a": (2, 3)},
        {"a": (2, 3), "c": (4,)},
    )
    assert len({layout_checksum(layout) for layout in layouts}) == len(layouts)
