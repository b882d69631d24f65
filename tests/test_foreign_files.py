"""Other programs' model files: every format of the field is read, the course's are written, and hostile ones
are refused unharmed.
"""

import collections
import copy
import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, generator, same_tensors

from compression.command_line import UserError
from compression.data.decoding import decode_photo
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.foreign import COURSE_PREPROCESSING, export, read_tensors
from compression.files.loading import load_model
from compression.files.restricted_pickle import read_pickle
from compression.training.run_folder import write_checkpoint
from dataset import FOOD11_CLASSES, list_testing
from models import ARCHITECTURES, build

PEERS = ROOT.parent / "shared" / "peer_models"
WIDTHS = (8, 8, 12, 8, 16, 8, 8, 24)
BITS = {"f": 32, "1": 16, "8": 8, "n": 16}  # by the first letter of a format's name
COURSE_KEYS = ["cnn.0.0.weight", "cnn.1.3.bias", "cnn.7.1.running_var", "fc.0.weight"]


# ---------------------------------------------------------------- the formats, as the field writes them


def reference_8bit(state):
    """The course's encoder: min-max codes of every tensor, 0-d counters as they are."""
    content = collections.OrderedDict()
    for name, tensor in state.items():
        values = np.float64(tensor.numpy())
        if values.ndim:
            low, high = np.min(values), np.max(values)
            with np.errstate(invalid="ignore"):  # a constant tensor divides by zero
                values = (low, high, np.round((values - low) / (high - low) * 255).astype(np.uint8))
        content[name] = values
    return content


def reference_16bit(state):
    return {
        name: np.float16(tensor.numpy()) if tensor.ndim else np.float64(tensor.numpy())
        for name, tensor in state.items()
    }


def torch_bytes(content, zipped=True):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def npz_bytes(content):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, weights=np.array(content, dtype=object))
    return buffer.getvalue()


def prefixed(content):
    return {f"module.{name}": value for name, value in content.items()}


def of_numpy_1(data):
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def pickled(reference, protocol):
    return lambda state: pickle.dumps(reference(state), protocol)


FORMATS = {
    "fp32 zip": torch_bytes,
    "fp32 legacy": lambda state: torch_bytes(state, zipped=False),
    "8-bit of numpy 1": lambda state: of_numpy_1(pickle.dumps(reference_8bit(state), 3)),
    "npz": lambda state: npz_bytes(prefixed(reference_16bit(state))),
    **{f"8-bit protocol {protocol}": pickled(reference_8bit, protocol) for protocol in range(2, 6)},
    **{f"16-bit protocol {protocol}": pickled(reference_16bit, protocol) for protocol in range(2, 6)},
}


@pytest.fixture(scope="module")
def student():
    """A StudentNet with narrow layers and BN statistics of its own, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build("student", widths=WIDTHS)
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.3)
            elif name.endswith("num_batches_tracked"):
                value.fill_(12_510)
            elif value.ndim > 1:
                torch.nn.init.kaiming_normal_(value)
    return network.eval().requires_grad_(False)


@pytest.fixture
def written(tmp_path):
    """written(content) is the path of a file with these bytes."""

    def write(content, name="theirs.bin"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def refused_file(written):
    """refused_file(content, match=None) asserts that these bytes end in a UserError, and returns its one
    sentence.
    """

    def check(content, match=None):
        with pytest.raises(UserError, match=match) as refusal:
            load_model(written(content)).build()
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    return check


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_network_within_its_quantization_error(student, written, kind):
    bits = BITS[kind[0]]
    state = student.state_dict()
    model = load_model(written(FORMATS[kind](state)))
    assert model.bits == bits and list(model.state_dict) == list(state)
    for name, value in state.items():
        decoded = model.state_dict[name]
        assert decoded.dtype == value.dtype and decoded.shape == value.shape
        if not value.ndim or bits == 32:
            assert torch.equal(decoded, value)
        elif bits == 16:
            assert torch.equal(decoded, value.half().float())
        else:
            assert (decoded - value).abs().max() <= (value.max() - value.min()) / 510 * 1.001
    images = torch.rand(4, 3, 64, 64, generator=generator(0))
    logits, expected = model.build()(images), student(images)
    assert (logits - expected).abs().max() <= {32: 0, 16: 0.05, 8: 0.5}[bits] * expected.std()


def test_a_file_without_preprocessing_is_run_with_the_courses(student, written):
    description = load_model(written(FORMATS["8-bit protocol 4"](student.state_dict()))).description
    assert description.architecture == "student" and description.class_names == tuple(FOOD11_CLASSES)
    assert description.preprocessing == COURSE_PREPROCESSING
    assert COURSE_PREPROCESSING == Preprocessing(256, "course", (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("kind", ["fp32 zip", "8-bit protocol 3", "16-bit protocol 4"])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("cnn", "convolution").replace("fc", "linear"),
        lambda name: f"module.{name}",
        lambda name: f"module.{name.replace('cnn', 'convolution')}",
        lambda name: name.replace("cnn.", "stages_").replace("fc.0", "output"),
    ],
)
def test_renamed_keys_are_recognised_by_shape_and_order(student, written, kind, rename):
    state = student.state_dict()
    write = FORMATS[kind]
    expected = load_model(written(write(state), "same.bin")).state_dict
    renamed = {rename(name): value for name, value in state.items()}
    assert same_tensors(load_model(written(write(renamed))).state_dict, expected)


def test_the_courses_keys_in_another_order_go_by_name(written):
    """Blocks 5 and 6 have the same shapes: by order they would be taken for each other."""
    state = build("student").state_dict()
    names = sorted(state, key=lambda name: name[:5].replace("cnn.5", "cnn.6 and a half"))
    model = load_model(written(torch_bytes({name: state[name] for name in names})))
    assert names != list(state) and same_tensors(model.state_dict, state)


def test_renamed_keys_in_another_order_are_refused(student, refused_file):
    """Weight and bias of a BN have the same shape: by order alone they would be taken for each other."""
    state = student.state_dict()
    names = list(state)
    here, there = names.index("cnn.2.1.weight"), names.index("cnn.2.1.bias")
    names[here], names[there] = names[there], names[here]
    renamed = {name.replace("cnn", "convolution"): state[name] for name in names}
    refused_file(torch_bytes(renamed), "those of")


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("student", {}),
        ("student", {"num_classes": 5}),
        ("student", {"widths": (16, 32, 64, 121, 243, 243, 243, 256)}),
        ("wide8", {}),
        ("slim9", {}),
        ("wide8", {"widths": (24, 48, 96, 81, 163, 163, 163, 192), "num_classes": 3}),
        ("wide8", {"hidden": (95, 86)}),  # cut with --ranking global
        ("cnn1mb", {}),
        ("dw1mb_4", {}),
        ("group1mb_3", {}),
        ("residual6", {}),
    ],
)
def test_networks_of_the_table_are_recognised_by_their_shapes(written, name, arguments):
    network = build(name, **arguments).eval()
    classes = arguments.get("num_classes", 11)
    renamed = {key.replace("fc", "head_"): value for key, value in network.state_dict().items()}
    model = load_model(written(torch_bytes(renamed)))
    images = torch.rand(2, 3, 64, 64)
    assert model.description.architecture == name and torch.equal(model.build()(images), network(images))
    names = FOOD11_CLASSES if classes == 11 else [f"class {label}" for label in range(classes)]
    assert model.description.class_names == tuple(names)


@pytest.mark.parametrize("name", ["fer_cnn", "student"])
def test_a_network_of_grey_photos_is_fed_grey_ones_of_its_size(written, name):
    network = build(name, num_classes=7, in_channels=1).eval()
    model = load_model(written(torch_bytes(network.state_dict())))
    size = ARCHITECTURES[name].size
    assert model.description.preprocessing == Preprocessing(size, "crop", (0,), (1,))
    photos = torch.randint(0, 256, (2, size, size, 1), dtype=torch.uint8)
    images = model.description.preprocessing.normalise(photos)
    assert torch.equal(model.build()(images), network(photos.permute(0, 3, 1, 2).float() / 255))


def test_tensors_of_no_network_are_refused(student, refused_file):
    state = student.state_dict()
    for other in (
        {**state, "cnn.3.3.weight": torch.zeros(8, 8, 3, 3)},
        {**state, "extra": torch.zeros(3)},
        dict(list(state.items())[:-1]),
        {"a.weight": torch.zeros(3)},
        {"weight": torch.tensor(0.5)},
        {"conv.weight": torch.zeros(0, 3, 3, 3), "fc.weight": torch.zeros(11, 0)},
    ):
        refused_file(torch_bytes(other), "not written by this project")
        refused_file(pickle.dumps(reference_16bit(other)), "not written by this project")


def test_a_constant_tensor_decodes_to_its_value(student, written):
    constants = {"fc.0.bias": torch.full((11,), 0.25), "cnn.4.0.bias": torch.zeros(8)}
    content = reference_8bit({**student.state_dict(), **constants})
    decoded = load_model(written(pickle.dumps(content))).state_dict
    assert all(torch.equal(decoded[name], value) for name, value in constants.items())


@pytest.mark.parametrize("kind", ["fp32 zip", "16-bit protocol 3"])
@pytest.mark.parametrize(
    "name, value, match",
    [
        ("fc.0.weight", math.nan, "finite"),
        ("cnn.1.0.bias", math.inf, "finite"),
        ("cnn.2.1.running_var", -1.0, "negative variances"),
    ],
)
def test_values_that_no_training_makes_are_refused(student, refused_file, kind, name, value, match):
    state = student.state_dict()
    refused_file(FORMATS[kind]({**state, name: torch.full_like(state[name], value)}), match)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "name, value",
    [
        *(("fc.0.bias", value) for value in (None, "text", [], {}, (), (1, 2), b"x", math.nan, 1 << 2000)),
        *(("fc.0.bias", np.zeros(11, code)) for code in ("u1", "S1", "c16", "?", "f4,f4", "O")),
        *(("fc.0.bias", (0.0, 1.0, np.zeros(11, code))) for code in ("i8", "f2")),
        *(("fc.0.bias", (low, 1.0, np.zeros(11, "u1"))) for low in (math.nan, -math.inf, 2.0, "0", None, [])),
        *(("fc.0.bias", (-1e300, high, np.zeros(11, "u1"))) for high in (1e300, 1 << 2000)),
        *(("cnn.0.1.num_batches_tracked", np.float64(value)) for value in (0.5, math.nan, 1e300)),
        ("cnn.0.1.num_batches_tracked", np.zeros(1)),
    ],
)
def test_what_is_no_array_of_weights_is_refused(student, refused_file, name, value, protocol):
    """Bounds of codes that decode to nothing, and counters that count nothing, too."""
    reference = reference_8bit if isinstance(value, tuple) else reference_16bit
    refused_file(pickle.dumps({**reference(student.state_dict()), name: value}, protocol))


@pytest.mark.parametrize(
    "name",
    [
        *("fp32_zip.bin", "fp32_legacy.bin", "16bit_protocol3.pkl", "8bit_protocol3_renamed_keys.pkl"),
        *("8bit_protocol4.pkl", "16bit_dict.npz"),
    ],
)
def test_a_published_file_loads(name):
    if not (PEERS / name).is_file():
        pytest.skip(f"there is no {PEERS / name}")
    model = load_model(PEERS / name)
    logits = model.build()(torch.rand(2, 3, 128, 128, generator=generator(0)))
    assert logits.shape == (2, 11) and logits.isfinite().all() and not torch.equal(logits[0], logits[1])
    assert model.bits == BITS[name[0]]
    assert name.endswith("npz") or set(COURSE_KEYS) <= set(model.state_dict)


# ---------------------------------------------------------------- on the command line


def test_inference_predicts_with_a_peers_file(ok, refused, student, written, toy, tmp_path):
    path = written(FORMATS["8-bit protocol 3"](prefixed(student.state_dict())))
    command = ("inference", toy, tmp_path / "out.csv", "--model", path)
    ok(*command, "--top-k 11", tmp_path / "top.csv")
    photos = np.stack([decode_photo(photo, COURSE_PREPROCESSING) for photo in list_testing(toy).paths])
    images = torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255
    rows = [line.split(",") for line in (tmp_path / "top.csv").read_text().splitlines()[1:]]
    found = torch.tensor([[float(row[row.index(name) + 1]) for name in FOOD11_CLASSES] for row in rows])
    assert torch.allclose(found, load_model(path).build()(images).softmax(1), atol=1e-4)
    labels = [line.split(",")[1] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    assert labels == [str(FOOD11_CLASSES.index(row[1])) for row in rows]
    assert "at most 100 are allowed" in refused(*command, "--max-bytes 100")


@pytest.mark.parametrize("kind", ["fp32 legacy", "16-bit protocol 2", "8-bit protocol 4", "npz"])
def test_quantize_makes_a_model_file_of_a_peers(ok, student, written, tmp_path, kind):
    path = written(FORMATS[kind](student.state_dict()))
    ok("quantize", path, tmp_path / "model.bin", "--bits 32")
    theirs, ours = load_model(path), load_model(tmp_path / "model.bin")
    for key in ("architecture", "class_names", "preprocessing", "training"):
        assert getattr(ours.description, key) == getattr(theirs.description, key)
    images = torch.rand(2, 3, 64, 64, generator=generator(0))
    assert torch.allclose(ours.build()(images), theirs.build()(images), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the course's own formats


@pytest.fixture(scope="module")
def full_student():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = build("student").eval()
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 2, generator=generator(len(name)))
    return network


@pytest.fixture
def exporting(tmp_path):
    """exporting(network, kind, **arguments) is the command that exports a student to model.pkl."""

    def command(network, kind, **arguments):
        description = Description.of("student", arguments, FOOD11_CLASSES, COURSE_PREPROCESSING)
        write_checkpoint(tmp_path / "best.pt", description, network.state_dict())
        return "quantize", tmp_path / "best.pt", tmp_path / "model.pkl", f"--export {kind}"

    return command


def test_export_8_writes_the_courses_codes_bit_for_bit(ok, full_student, exporting, tmp_path):
    path = tmp_path / "model.pkl"
    state = full_student.state_dict()
    done = ok(*exporting(full_student, "course8"))
    assert not done.stderr and f"wrote {path}" in done.stdout
    raw = sum(value.nbytes for value in state.values())
    size = path.stat().st_size
    sizes = f"student: raw {raw:,} B -> file {size:,} B in the course's 8-bit format; decoded {raw:,} B\n"
    assert sizes + "worst error " in done.stdout
    ours = pickle.loads(path.read_bytes())
    reference = reference_8bit(state)
    assert list(ours) == list(reference) and set(COURSE_KEYS) <= set(ours) and len(ours) == 72
    # BN's gamma and beta of an untrained network: there the reference divides by zero
    constant = [name for name, value in state.items() if value.ndim and value.min() == value.max()]
    assert constant
    for name, value in reference.items():
        if isinstance(value, tuple):
            *bounds, codes = ours[name]
            assert bounds == [*value[:2]] and {type(bound) for bound in bounds} == {np.float64}
            assert codes.dtype == np.uint8
            assert np.array_equal(codes, np.zeros_like(value[2]) if name in constant else value[2])
        else:
            assert type(ours[name]) is np.float64 and ours[name] == value


def test_export_16_writes_float16(ok, full_student, exporting, tmp_path):
    ok(*exporting(full_student, "course16"), "--max-bytes 600000")
    ours = pickle.loads((tmp_path / "model.pkl").read_bytes())
    reference = reference_16bit(full_student.state_dict())
    assert list(ours) == list(reference)
    for name, value in reference.items():
        assert type(ours[name]) is type(value) and ours[name].dtype == value.dtype
        assert np.array_equal(ours[name], value)


@pytest.mark.parametrize("bits", [8, 16])
def test_an_export_read_and_exported_again_is_the_same_file(student, written, bits):
    once = export(student.state_dict(), bits)
    assert export(load_model(written(once)).state_dict, bits) == once
    assert b"numpy.core.multiarray" in once and b"numpy._core" not in once  # names that every numpy has


@pytest.mark.parametrize(
    "flag", ["--bits 16", "--vectors 8", "--size 64", "--data .", "--record record.json"]
)
def test_export_and_what_it_has_no_room_for_contradict_each_other(
    refused, student, exporting, tmp_path, flag
):
    assert flag.split()[0] in refused(*exporting(student, "course8", widths=WIDTHS), flag)
    assert os.listdir(tmp_path) == ["best.pt"]


def test_an_export_over_the_limit_is_not_written_and_one_of_8_bits_is(
    ok, refused, full_student, exporting, tmp_path
):
    sentence = refused(*exporting(full_student, "course16"))
    assert "at most 300,000 are allowed" in sentence and "use --export course8" in sentence
    assert os.listdir(tmp_path) == ["best.pt"]
    ok(*exporting(full_student, "course8"))


def test_export_says_what_the_courses_script_would_not_know(ok, student, small_model, exporting, tmp_path):
    told = ok(*exporting(student, "course8", widths=WIDTHS)).stderr
    assert told.count("warning") == 1 and "builds its own StudentNet" in told
    told = ok("quantize", small_model, tmp_path / "model.pkl", "--export course8").stderr
    assert "feeds 256 px crops" in told


@pytest.mark.parametrize("kind, value", [("course8", math.nan), ("course16", 1e6)])
def test_values_that_the_format_cannot_hold_are_refused_by_name(
    refused, student, exporting, tmp_path, kind, value
):
    network = copy.deepcopy(student)
    network.cnn[2][3].bias[1] = value
    assert "cnn.2.3.bias" in refused(*exporting(network, kind, widths=WIDTHS))
    assert os.listdir(tmp_path) == ["best.pt"]


# ---------------------------------------------------------------- hostile files


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    """The opcodes of a number, or of what is given as opcodes already."""
    if isinstance(value, bytes):
        return value
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def hostile_pickles(target):
    """name -> (a pickle that creates the file `target` when unpickled as usual, the name it asks for)."""
    command = f"touch '{target}'"
    native = "(posix|nt).system"
    system = Call(os.system, command)
    evaluated = Call(eval, f"open({str(target)!r}, 'w')")
    in_memory = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93" + text(command) + b"\x85R."
    return {
        **{f"os.system in protocol {n}": (pickle.dumps({"a": system}, n), native) for n in range(2, 6)},
        "eval": (pickle.dumps([1, evaluated], 4), "builtins.eval"),
        "as a key": (pickle.dumps({("a", 1): 2, evaluated: 1}, 4), None),
        "protocol 0": (f"cos\nsystem\n(V{command}\ntR.".encode(), "os.system"),
        "INST": (b"(" + text(command) + b"ios\nsystem\n.", "os.system"),
        "a name in memory": (in_memory, "os.system"),
        "a name in a name": (b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.", "numpy.ndarray.__new__"),
        "behind a container": (
            b"\x80\x03}" + text("a") + b"cos\nsystem\n" + text(command) + b"\x85Rs.",
            "os.system",
        ),
        "after an array": (pickle.dumps([np.zeros(3), system], 4), native),
    }


def in_npz(data, header=b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
    return buffer.getvalue()


def in_torch_zip(data, storage=None, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        if storage is not None:
            archive.writestr("archive/data/0", storage)
    return buffer.getvalue()


def in_legacy(data, keys=(), end=b""):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    start = (pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system))
    return b"".join(start) + data + pickle.dumps(list(keys), 2) + end


@pytest.mark.parametrize("kind", hostile_pickles("x"))
@pytest.mark.parametrize("wrap", [bytes, in_npz, in_torch_zip, in_legacy])
def test_a_file_that_asks_for_code_is_refused_by_name_and_nothing_runs(tmp_path, refused_file, kind, wrap):
    target = tmp_path / "was-run"
    data, name = hostile_pickles(target)[kind]
    if kind == "after an array" and wrap in (in_torch_zip, in_legacy):
        name = "numpy"  # a stream of torch.save holds none
    refused_file(wrap(data), name and rf"asks for {name}\S*, which no file of weights needs")
    assert not target.exists()
    if wrap is bytes and kind not in ("a name in a name", "as a key"):
        pickle.loads(data)  # the test's own check: unpickled the usual way it does run
        assert target.exists()


def tensor_of(count, shape, stride, kind="Float"):
    """A torch pickle of one tensor over the storage "0"."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text("0") + text("cpu")
    storage += integer(count) + b"tQ"
    shape, stride = (b"(" + b"".join(map(integer, values)) + b"t" for values in (shape, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(0) + shape + stride + b"\x89}tR"


def dict_of(*tensors):
    """A torch pickle of a dict of `tensor_of` values."""
    return b"}(" + b"".join(text(f"{index}.weight") + value for index, value in enumerate(tensors)) + b"u."


def array_of(shape, code="f2", data=b"\0" * 8):
    """A pickle of one array that says it has this shape, and has these bytes."""
    array = pickle.dumps({"fc.0.weight": np.zeros(4, np.float16)}, 3)
    numbers = b"(" + b"".join(pickle.dumps(length, 2)[2:-1] for length in shape) + b"t"
    for old, new in (
        (b"K\x04\x85", numbers),
        (b"f2", code.encode()),
        (b"C\x08" + bytes(8), b"B" + struct.pack("<I", len(data)) + data),
    ):
        assert array.count(old) == 1
        array = array.replace(old, new)
    return array


def laughs(levels, brackets=(b"(", b"t")):
    """The opcodes of `levels` values, of which each holds the one below twice: the last has 2 ** levels
    parts.
    """
    body = brackets[0] + b"K\x01K\x02" + brackets[1] + b"q\x00"
    for _ in range(levels):
        body += brackets[0] + b"h\x00h\x00" + brackets[1] + b"q\x00"
    return body


def resource_bombs():
    """name -> a small file that asks for more memory, time or stack than there is."""
    deep, key, nested = b")" + b"\x85" * 150_000, b"K\x01s.", (b"](", b"e")
    many, size = b"(" + laughs(60) + b"t", struct.pack("<Q", 1 << 62)
    encoded = text("x" * 10**6) + b"q\x01" + text("latin1") + b"q\x02(" + b"h\x00h\x01h\x02\x86R" * 300
    ten_gigabytes = b"cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R."
    weights, words = np.zeros(1 << 17, np.float16), "architecture arguments class_names preprocessing"
    header = {"format": "food11-model", "version": 2, **dict.fromkeys(words.split(), {})}
    laughing = pickle.dumps(header, 2)[:-1] + text("training") + b"(" + laughs(60, nested) + b"ts."
    attributes = b"ccollections\nOrderedDict\n)R}" + text("items") + b"K\x01sb."
    more = in_torch_zip(b"}." + bytes(1 << 27), compression=zipfile.ZIP_DEFLATED)
    keys = (integer(index * ((1 << 61) - 1)) + b"N" for index in range(1, 10_000))
    plain = {
        "nested lists": b"]" * 60_000 + b"a" * 59_999 + b".",
        "nested tuples": deep + b".",
        "nested tuples as a key": b"}" + deep + key,
        "nested dicts": b"}K\x01" * 50_000 + b"}" + b"s" * 50_000 + b".",
        "marks": b"(" * 10**6 + b".",
        "a million opcodes": b"(" + b"N" * 10**6 + b"t.",
        "a million lists": b"(" + b"]" * 10**6 + b"t.",
        "laughing tuples": many + b".",
        "laughing tuples as a key": b"}" + laughs(60) + key,
        "laughing tuples as a dtype": b"(" + laughs(60) + b"cnumpy\ndtype\nh\x00\x85Rt.",
        "laughing lists": b"(" + laughs(60, nested) + b"t.",
        "a list in itself": b"]q\x00h\x00a.",
        "laughing text": b"(" + text("x" * 10**6) + b"q\x00" + b"h\x00" * 50_000 + b"t.",
        "laughing bytes": b"c_codecs\nencode\nq\x00" + encoded + b"t.",
        "a large memo": b"}r\xff\xff\xff\x7f.",
        "the largest memo": b"}r\xff\xff\xff\xff.",
        "unknown memo": b"h\x05.",
        "a long integer": b"\x8b\xff\xff\xff\x7f" + bytes(100),
        "a longer integer": b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b".",
        "a decimal integer": b"L" + b"9" * 10**6 + b"L\n.",
        "long bytes": b"\x8e" + size + b"x",
        "long text": b"X\xff\xff\xff\x7fx",
        "longer text": b"\x8d" + size + b"x",
        "a long frame": b"\x95" + size + b"}.",
        "bytearray": b"\x96" + struct.pack("<Q", 1 << 40) + b".",
        "ten gigabytes by name": ten_gigabytes,
        "a persistent id": b"K\x01Q.",
        "an extension": b"\x82\x01.",
        "a state for a dict": b"}}" + text("items") + b"K\x01sb.",
        "keys of one hash": b"}(" + b"".join(keys) + b"u.",
    }
    arrays = {
        "8 GB": ((1 << 16, 1 << 16),),
        "2 ** 100": ((1 << 50, 1 << 50),),
        "less than nothing": ((-2, -2),),
        "a thousand dimensions of 2 ** 2000": (((1 << 2000),) * 3000,),
        "nothing times 2 ** 64": ((0, 1 << 64), "f2", b""),
        "100 dimensions": ((1,) * 100, "f2", b"\0\0"),
        "half a number": ((4,), "f2", b"\0" * 7),
        "pointers": ((1,), "O8"),
        "a million records": ((1,), "V9"),
    }
    contents = {
        "one array, many names": {f"tensor {index}.weight": weights for index in range(10_000)},
        "an array of objects": {"fc.0.weight": np.array([[1], None], dtype=object)},
    }
    huge, half = tensor_of(1 << 40, (1 << 40,), (1,)), tensor_of(1 << 18, (1 << 18,), (1,), "Half")
    long_text, two = tensor_of(2, (text("x" * 10**5), 1 << 15), (1, 1)), tensor_of(2, (2,), (1,))
    large, shared = tensor_of(1 << 28, (1 << 28,), (1,)), dict_of(*[half] * 2000)
    torch_files = {
        "a storage of 4 TB": in_torch_zip(dict_of(huge), bytes(8)),
        "a storage that is absent": in_torch_zip(dict_of(huge)),
        "one value, 10 ** 13 times": in_torch_zip(dict_of(tensor_of(2, (10**13,), (0,), "Half")), bytes(4)),
        "one storage, many tensors": in_torch_zip(shared, bytes(1 << 19)),
        "a text as a shape": in_torch_zip(dict_of(long_text), bytes(8)),  # times a number: a longer text
        "a state for a tensor": in_torch_zip(two + b"}b.", bytes(8)),
        "items for a tensor": in_torch_zip(two + b"K\x00G" + bytes(8) + b"s.", bytes(8)),
        "a state for a function": in_torch_zip(b"ctorch._utils\n_rebuild_tensor_v2\n}b."),
        "a legacy storage of 4 TB": in_legacy(dict_of(huge), ["0"], struct.pack("<Q", 1 << 40) + bytes(8)),
        "a legacy storage that is not listed": in_legacy(dict_of(two), [], bytes(100)),
        "a legacy string of 2 GB": in_legacy(b"X\xff\xff\xff\x7fabc"),
        "ten gigabytes in a torch file": in_torch_zip(ten_gigabytes),
        "a compressed torch file": in_torch_zip(dict_of(large), bytes(1 << 26), zipfile.ZIP_DEFLATED),
        "nested tuples as a key in a torch file": in_torch_zip(b"}" + deep + key),
        "laughing tuples as a key in a torch file": in_torch_zip(b"}" + laughs(60) + key),
        "a legacy file with nested tuples as a key": in_legacy(b"}" + deep + key),
        "laughing header": in_torch_zip(laughing),
        "a header with attributes": in_torch_zip(attributes),
        "many entries": many_entries(60_000),
        "more in an entry than it says": more.replace(struct.pack("<L", (1 << 27) + 2), struct.pack("<L", 2)),
    }
    return {
        **{name: b"\x80\x04" + body for name, body in plain.items()},
        **{f"an array of {name}": array_of(*arguments) for name, arguments in arrays.items()},
        **{name: pickle.dumps(content, 4) for name, content in contents.items()},
        **torch_files,
        "a bomb in an npz": in_npz(pickle.dumps({"a.weight": np.zeros(1 << 24, np.float16)}, 4)),
        "a header of brackets": in_npz(b"", b"(" * 3000),
    }


def many_entries(count):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(count):
            archive.filelist.append(entry := zipfile.ZipInfo(f"a/data/{index}"))
            entry.header_offset = entry.CRC = 0
        archive._didModify = True
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    return buffer.getvalue()


LOADER = '''
import json, random, re, resource, signal, sys, warnings
from pathlib import Path
from compression.command_line import UserError
from compression.files.loading import load_model

def outcome(path):
    """"refused" or "loaded"; 20 s of processor time, a crash, a warning or another error ends the process."""
    signal.setitimer(signal.ITIMER_VIRTUAL, 20)
    try:
        load_model(path).build()
        return "loaded"
    except UserError as error:
        assert len(str(error)) < 1000 and "\\n" not in str(error), str(error)[:2000]
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

def peak():
    if Path("/proc/self/status").exists():  # getrusage counts what the parent had too
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)

warnings.simplefilter("error")
folder, mutations = Path(sys.argv[1]), int(sys.argv[2])
files = sorted(folder.iterdir())
outcome(files[0])  # whatever is imported only once
before, results = peak(), {}
for path in files:
    if not mutations:
        results[path.name] = outcome(path), peak() - before, path.stat().st_size // 1024
        before = peak()
        continue
    whole, chance, counts = path.read_bytes(), random.Random(path.name), {"refused": 0, "loaded": 0}
    for number in range(mutations):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8, 64))):
            place = chance.randrange(len(data))
            if chance.random() < 0.5:  # where the structure is: at the ends
                place = chance.choice((place % 400, len(data) - 1 - place % 400)) % len(data)
            flipped = data[place] ^ 1 << chance.randrange(8)
            data[place] = chance.choice((flipped, chance.randrange(256), 0, 255))
        if number % 4 == 1:
            del data[chance.randrange(len(data)):]
        elif number % 4 == 2:
            place = chance.randrange(len(data))
            data[place:place] = chance.randbytes(chance.randrange(1, 40))
        elif number % 4 == 3:
            place = chance.randrange(len(data))
            del data[place:place + chance.randrange(1, 40)]
        copy = folder.parent / "mutated.bin"
        copy.write_bytes(data)
        counts[outcome(copy)] += 1
    results[path.name] = counts, peak() - before, len(whole) // 1024
print(json.dumps(results))
'''


def load_all(folder, mutations=0):
    """name -> (outcome, KB of memory it took, KB of the file) of loading every file of a folder in a process
    of its own.
    """
    command = [sys.executable, "-c", LOADER, folder, str(mutations)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "key, fine",
    [((1 << 60) - 1, True), (-5, True), (1 << 60, False), ((1 << 61) - 1, False), (-1 << 61, False)],
)
def test_integers_that_could_share_a_hash_are_no_keys(key, fine):
    stream = io.BytesIO(b"\x80\x02}" + integer(key) + b"Ns.")
    if fine:
        assert read_pickle(stream, "it", {}) == {key: None}
    else:
        with pytest.raises(ValueError, match="with keys"):
            read_pickle(stream, "it", {})


def test_bombs_are_refused_and_take_less_than_64_mb(tmp_path):
    for name, content in resource_bombs().items():
        (tmp_path / name).write_bytes(content)
    results = load_all(tmp_path)
    assert len(results) == len(resource_bombs())
    assert [name for name, (outcome, _, _) in results.items() if outcome != "refused"] == []
    assert {name: grown for name, (_, grown, size) in results.items() if grown > 64 * 1024 + size} == {}


def test_thousands_of_random_mutations_are_refused_or_harmless(student, small_model, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    pickles = ("8-bit protocol 3", "8-bit protocol 4", *(f"16-bit protocol {n}" for n in (2, 3, 4)))
    for kind in ("fp32 zip", "fp32 legacy", "npz", *pickles):
        (folder / kind).write_bytes(FORMATS[kind](student.state_dict()))
    shutil.copy(small_model, folder / "ours")
    results = load_all(folder, mutations=240)
    assert sum(counts["refused"] + counts["loaded"] for counts, _, _ in results.values()) == 240 * 9 >= 2000
    assert all(counts["refused"] > 100 for counts, _, _ in results.values()), results
    assert max(grown for _, grown, _ in results.values()) <= 64 * 1024, results


@pytest.mark.parametrize("protocol", range(2, 6))
def test_an_array_in_fortran_order_keeps_its_places(protocol):
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    found, _ = read_tensors(pickle.dumps({"w": array}, protocol), "it")
    assert torch.equal(found["w"], torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("protocol", range(2, 5))
def test_numbers_in_another_byte_order_are_refused(protocol):
    with pytest.raises(ValueError, match="order of bytes"):
        read_tensors(pickle.dumps({"w": np.ones(3, ">f4")}, protocol), "it")


def test_the_bits_of_a_dict_are_those_of_its_smallest_numbers():
    codes = (np.float64(-1), np.float64(1), np.zeros((2, 3), np.uint8))
    content = {"fc.weight": codes, "fc.bias": np.zeros(2, np.float16), "fc.count": np.float64(3)}
    assert read_tensors(pickle.dumps(content, protocol=3), Path("x.pkl"))[1] == 8
