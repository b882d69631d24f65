"""export.py: ONNX files answer as the network does, in onnxruntime and as teachers, and keep its codes."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import STUDENT, generator, learn_by_heart

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.model_file import Model, encode, predicted_file_bytes, to_bytes
from compression.files.onnx import read_onnx
from compression.files.onnx_export import to_onnx
from compression.networks.registry import full_arguments
from compression.quantization.grids import Scheme
from compression.training.qat import scheme_of
from compression.training.recipe import Settings
from compression.training.run_folder import write_checkpoint
from compression.training.teachers import SeenBy, read_teacher
from dataset import FOOD11_CLASSES, list_labelled, list_testing, load_photos
from experiments.benchmarks import measuring
from models import ARCHITECTURES, build, widest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CPU = torch.device("cpu")


def run_onnx(content, images, decoded_once="0"):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", decoded_once)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {session.get_inputs()[0].name: images.numpy()})[0])


def types_of(content):
    """{tensor name: ONNX type} of the initialisers."""
    graph = onnx.load_from_string(content).graph
    return {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}


def float_model(name, size, **arguments):
    """A Model of random weights whose BN has the statistics of random photos, as after a training."""
    channels = {**full_arguments(name), **arguments}["in_channels"]
    preprocessing = Preprocessing(size, mean=(0.4,) * channels, std=(0.2,) * channels)
    description = Description.of(name, arguments, FOOD11_CLASSES, preprocessing)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build(name, **description.arguments)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)
        for module in network.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                module.momentum = None  # statistics of the whole batch
                module.weight.uniform_(0.5, 1.5), module.bias.normal_(0, 0.1)
        network.train()(torch.randn(16, channels, size, size))
    return Model(description, network.state_dict(), 32, Path("best.pt"))


@pytest.fixture
def stored(tmp_path):
    """stored(description, state_dict, scheme) is the Model that a model file of these holds."""

    def store(description, state, scheme):
        (tmp_path / "model.bin").write_bytes(to_bytes(encode(description, state, scheme)))
        return load_model(tmp_path / "model.bin")

    return store


def images(model, count=3):
    preprocessing = model.description.preprocessing
    shape = (count, preprocessing.channels, preprocessing.size, preprocessing.size)
    return torch.randn(shape, generator=generator(0))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_answers_the_same_in_onnxruntime_and_as_a_teacher(name, tmp_path):
    model = float_model(name, 50)  # 50: no side is a multiple of what adaptive pooling makes of it
    content = to_onnx(model)
    expected = model.build()(images(model))
    scale = expected.abs().max()
    assert expected.std(0).max() > 1e-3 * scale  # the photos are told apart
    for count in (1, 3):
        assert (run_onnx(content, images(model)[:count]) - expected[:count]).abs().max() < 1e-4 * scale
    (tmp_path / "t.onnx").write_bytes(content)
    network, told = read_onnx(tmp_path / "t.onnx")
    assert told["channels"] == model.description.preprocessing.channels
    assert (network(images(model)) - expected).abs().max() < 1e-4 * scale


def test_layers_in_two_factors_are_exported():
    model = float_model("residual6", 32, ranks={"head.0": 5, "fc.1": 3})
    expected = model.build()(images(model))
    assert (run_onnx(to_onnx(model), images(model)) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "scheme, kind",
    [
        (Scheme(32), "FLOAT"),
        (Scheme(16), "FLOAT16"),
        (Scheme(8), "UINT8"),  # the course's, with biases in 16 bits
        (Scheme(8, vectors=8), "UINT8"),
        (Scheme(8, "channel", "mse"), "INT8"),
        (Scheme(7, "channel", "minmax"), "planes"),
        (Scheme(6, "channel", "mse"), "planes"),
        (Scheme(5, "tensor", "mse"), "planes"),
        (Scheme(4, "channel", "mse"), "INT4"),
        (Scheme(4, "tensor", "minmax"), "UINT4"),
        (Scheme(3, "tensor", "mse"), "planes"),
        (Scheme(3, "channel", "minmax"), "planes"),
        (Scheme(2, "channel", "mse"), "planes"),
        (Scheme(2, "tensor", "minmax"), "planes"),
    ],
    ids=str,
)
def test_weights_stay_the_codes_of_the_model_file(small_network, stored, scheme, kind, tmp_path):
    description, network = small_network
    model = stored(description, network.state_dict(), scheme)
    content = to_onnx(model)
    assert types_of(content).get("cnn.2.3.weight", "planes") == kind
    expected = model.build()(images(model))
    for decoded_once in ("0", "1"):
        found = run_onnx(content, images(model), decoded_once)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    (tmp_path / "t.onnx").write_bytes(content)
    read = list(read_onnx(tmp_path / "t.onnx")[0].state_dict().values())
    # of the course's grid, on which the steps are no float16 numbers
    rounding = 1e-6 if (scheme.granularity, scheme.scale) == ("tensor", "minmax") else 0
    for tensor in (one for one in model.state_dict.values() if one.ndim == 4):
        same = [one for one in read if one.shape == tensor.shape]
        assert min((one - tensor).abs().max() for one in same) <= rounding


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_codes_without_an_onnx_type_take_no_more_bits_than_they_have(stored, bits):
    floats = float_model("student", 32, widths=(7, *[8] * 7))
    overrides = {name: bits for name, one in floats.state_dict.items() if one.ndim > 1}
    model = stored(floats.description, floats.state_dict, Scheme(bits, "channel", "mse", overrides=overrides))
    count = sum(floats.state_dict[name].numel() for name in overrides)
    assert count % 8  # the last byte of a plane is not full
    graph = onnx.load_from_string(to_onnx(model)).graph
    (planes,) = [one for one in graph.initializer if len(one.raw_data) > count // 8]
    assert len(planes.raw_data) == bits * -(-count // 8)


def test_an_odd_number_of_4_bit_codes_fills_its_last_byte_with_0(stored):
    floats = float_model("student", 32, widths=(7, *[8] * 7))
    assert floats.state_dict["cnn.0.0.weight"].numel() == 189
    scheme = Scheme(4, "channel", "mse", overrides={"cnn.0.0": 4})
    content = to_onnx(stored(floats.description, floats.state_dict, scheme))
    tensors = {one.name: one for one in onnx.load_from_string(content).graph.initializer}
    packed = tensors["cnn.0.0.weight"].raw_data
    assert len(packed) == 95 and packed[-1] >> 4 == 0


@pytest.mark.parametrize("name", ["student", "residual6", "mobilenet_v2"])
def test_a_4_bit_network_takes_hardly_more_than_its_codes(name, stored):
    floats, scheme = float_model(name, 32, folded=True), Scheme(4, "channel", "mse")
    content = to_onnx(stored(floats.description, floats.state_dict, scheme))
    assert len(content) < 1.1 * predicted_file_bytes(floats.description, scheme)


def test_the_documented_limit_gives_an_onnx_file_of_at_most_300_000_bytes(stored):
    document = (measuring.ROOT / "docs/onnx.md").read_text()
    limit, size = re.search(r"--max-bytes=?\s*(\d+)` .*?\(([\d,]+) bytes\)", document, re.DOTALL).groups()
    floats = float_model("residual6", 32, **widest(int(limit), FOOD11_CLASSES), folded=True)
    content = to_onnx(stored(floats.description, floats.state_dict, scheme_of(Settings(qat_bits=3))))
    assert len(content) <= 300_000
    assert abs(len(content) - int(size.replace(",", ""))) < 1000  # metadata and names differ a little


@pytest.mark.parametrize("channels", [3, 1])
def test_uint8_photos_are_normalised_in_the_graph(toy, channels):
    model = float_model("student", 32, widths=(8,) * 8, in_channels=channels)
    mean, std = ((0.1, 0.5, 0.3), (0.2, 0.3, 0.4)) if channels == 3 else ((0.4,), (0.3,))
    preprocessing = Preprocessing(32, mean=mean, std=std)
    model = replace(model, description=replace(model.description, preprocessing=preprocessing))
    photos = load_photos(list_testing(toy), preprocessing, cache=False).photos
    content = to_onnx(model, "uint8")
    expected = model.build()(preprocessing.normalise(photos))
    assert (run_onnx(content, photos) - expected).abs().max() < 1e-5 * expected.abs().max()
    keys = {entry.key for entry in onnx.load_from_string(content).metadata_props}
    assert keys == {"class_names", "size", "resize"}  # the caller has nothing to normalise


def test_the_metadata_tells_classes_and_preprocessing(small_network):
    description, network = small_network
    description = replace(description, preprocessing=Preprocessing(32, "squash", detail=24))
    content = to_onnx(Model(description, network.state_dict(), 32, Path("best.pt")))
    loaded = onnx.load_from_string(content)
    told = {entry.key: json.loads(entry.value) for entry in loaded.metadata_props}
    assert tuple(told.pop("class_names")) == FOOD11_CLASSES
    assert Preprocessing(**told) == description.preprocessing
    assert loaded.opset_import[0].version >= 21
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_an_exported_teacher_is_the_model_files(small_model, ok, tmp_path):
    ok("export.py", small_model, tmp_path / "t.onnx")
    names = FOOD11_CLASSES[::-1]  # another order: classes are found by name
    theirs, ours = (read_teacher(path, names, CPU) for path in (tmp_path / "t.onnx", small_model))
    assert theirs.preprocessing == ours.preprocessing and theirs.order == ours.order
    student = Preprocessing(40)
    photos = student.normalise(torch.randint(0, 256, (4, 40, 40, 3), dtype=torch.uint8))
    expected = SeenBy(ours, student)(photos)
    assert (SeenBy(theirs, student)(photos) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_train_kd_distils_from_an_exported_checkpoint(toy, ok, tmp_path):
    model = float_model("student", 32, widths=(*[8] * 6, 64, 64))
    output = tmp_path / "t.onnx"
    network, preprocessing = model.build(), model.description.preprocessing
    photos = load_photos(list_labelled(toy, "validation"), preprocessing, cache=False)
    learn_by_heart(network, preprocessing, photos)
    write_checkpoint(tmp_path / "best.pt", model.description, network.state_dict())
    done = ok("export.py", tmp_path / "best.pt", output)
    assert f"{output.stat().st_size:,} bytes" in done.stdout
    done = ok("train_kd.py", toy, STUDENT, "--dry-run --teacher", output, "--out", tmp_path / "run")
    assert "t.onnx: validation accuracy 1.0000" in done.stdout


def test_weights_that_are_inputs_too_are_read(small_model, tmp_path):
    """As in files of IR version 3."""
    model = load_model(small_model)
    graph = onnx.load_from_string(to_onnx(model))
    for one in graph.graph.initializer:
        graph.graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    onnx.save(graph, tmp_path / "t.onnx")
    expected = model.build()(images(model))
    found = read_onnx(tmp_path / "t.onnx")[0](images(model))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_uint8_export_is_refused_as_a_teacher(small_model, ok, tmp_path):
    ok("export.py", small_model, tmp_path / "t.onnx", "--input uint8")
    with pytest.raises(UserError, match="one float input"):
        read_onnx(tmp_path / "t.onnx")


def test_what_cannot_be_exported_is_one_sentence_and_nothing_is_written(small_model, refused, tmp_path):
    output, model = tmp_path / "out.onnx", tmp_path / "model.onnx"
    assert "there is no model file at" in refused("export.py", tmp_path / "none.bin", output)
    assert "ends in .onnx" in refused("export.py", small_model, tmp_path / "out.bin")
    shutil.copy(small_model, model)
    assert "named twice" in refused("export.py", model, model)
    assert "leave it out" in refused("export.py", small_model, output, "--normalisation unit")
    assert list(tmp_path.iterdir()) == [model]


def test_without_onnx_one_sentence_says_what_to_install(small_model, refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install onnx" in refused("export.py", small_model, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())
