"""ONNX teachers: a classifier drawn by hand against its closed form, what its metadata tells, and files that
are no teacher.
"""

import json
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import STUDENT, generator

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.onnx import is_onnx, read_onnx
from compression.training.teachers import SeenBy, read_teacher
from dataset import FOOD11_CLASSES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx2torch")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CPU = torch.device("cpu")
COLOURS = ("red", "green", "blue")
UNUSABLE = "has metadata that cannot be used; export it again with class_names, size, mean and std"
WEIGHT = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4]], np.float32)


def save(path, metadata=None, shape=("N", 3, "H", "W"), weight=WEIGHT, outputs=("logits",)):
    """An ONNX file: global average pooling, then logits = weight @ mean colour; the metadata's values are
    JSON unless they are text.
    """
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        *(helper.make_node("Gemm", ["flat", "weight"], [name], transB=1) for name in outputs),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    logits = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", len(weight))) for name in outputs]
    graph = helper.make_graph(nodes, "colours", [images], logits, [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    told = {key: one if isinstance(one, str) else json.dumps(one) for key, one in (metadata or {}).items()}
    helper.set_model_props(model, told)
    onnx.save(model, path)
    return path


def test_logits_are_those_of_the_graph(tmp_path):
    network, told = read_onnx(save(tmp_path / "t.onnx"))
    images = torch.rand(5, 3, 12, 12, generator=generator(0))
    assert torch.allclose(network(images), 4 * images.mean((2, 3)), atol=1e-5)
    assert told == {"channels": 3}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize(
    "casts", [False, True]
)  # only the weights in this precision, or inputs and outputs too
def test_other_precisions_become_float32(tmp_path, dtype, casts):
    model = onnx.load(save(tmp_path / "t.onnx", weight=WEIGHT.astype(dtype)))
    graph, number = model.graph, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if casts:
        graph.node[0].input[0], graph.node[-1].output[0] = "narrow", "narrow logits"
        graph.node.insert(0, helper.make_node("Cast", ["images"], ["narrow"], to=number))
        graph.node.append(helper.make_node("Cast", ["narrow logits"], ["logits"], to=TensorProto.FLOAT))
    else:
        for value in (graph.input[0], graph.output[0]):
            value.type.tensor_type.elem_type = number
    onnx.save(model, tmp_path / "t.onnx")
    images = torch.rand(5, 3, 12, 12, generator=generator(0))
    logits = read_onnx(tmp_path / "t.onnx")[0](images)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, 4 * images.mean((2, 3)), atol=1e-5)


def test_the_metadata_tells_names_size_and_normalisation(tmp_path):
    told = {"class_names": list(COLOURS), "size": 20, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1]}
    teacher = read_teacher(save(tmp_path / "t.onnx", told), COLOURS, CPU)
    student = Preprocessing(32)
    assert teacher.preprocessing == Preprocessing(20, mean=(0.5,) * 3, std=(0.25, 0.5, 1))
    assert teacher.states_size
    photos = torch.full((1, 32, 32, 3), 128, dtype=torch.uint8)
    expected = [4 * (128 / 255 - 0.5) / std for std in (0.25, 0.5, 1)]
    logits = SeenBy(teacher, student)(student.normalise(photos))
    assert logits[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_options_override_the_metadata_and_what_nobody_tells_is_assumed(tmp_path):
    path = save(tmp_path / "t.onnx", {"size": 20})
    assert read_teacher(path, COLOURS, CPU, size=24).preprocessing.size == 24
    assumed = read_teacher(save(tmp_path / "bare.onnx"), COLOURS, CPU, unknown_size=40)
    assert (
        assumed.preprocessing == Preprocessing(40, mean=(0, 0, 0), std=(1, 1, 1)) and not assumed.states_size
    )


def test_a_fixed_input_shape_tells_the_size(tmp_path):
    assert read_onnx(save(tmp_path / "t.onnx", shape=("N", 3, 48, 48)))[1]["size"] == 48
    with pytest.raises(UserError, match="says size 32 but takes photos of 48 px only"):
        read_onnx(save(tmp_path / "t.onnx", {"size": 32}, shape=("N", 3, 48, 48)))


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"class_names": "red, green, blue"}, UNUSABLE),
        ({"class_names": [1, 2, 3]}, UNUSABLE),
        ({"size": "[96]"}, UNUSABLE),
        ({"mean": "half"}, UNUSABLE),
        ({"mean": "0.5", "std": "0.5"}, UNUSABLE),
        ({"mean": "[" * 10_000}, UNUSABLE),
        ({"size": "true"}, UNUSABLE),
        ({"size": 7}, UNUSABLE),
        ({"mean": [0, 0, 0]}, UNUSABLE),
        ({"mean": [0, 0, 0], "std": [0, 0, 0]}, UNUSABLE),
        ({"class_names": ["a", "b"]}, "names 2 classes"),
    ],
)
def test_metadata_that_means_nothing_is_refused(tmp_path, metadata, message):
    with pytest.raises(UserError, match=message):
        read_teacher(save(tmp_path / "t.onnx", metadata), COLOURS, CPU)


def test_a_grey_network_with_the_normalisation_of_rgb_is_refused(tmp_path):
    rgb = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    path = save(tmp_path / "t.onnx", rgb, shape=("N", 1, "H", "W"), weight=WEIGHT[:, :1])
    with pytest.raises(UserError, match=UNUSABLE) as caught:
        read_onnx(path)
    assert "96, [0] and [1]," in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(range(256)) * 9])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    (tmp_path / "t.onnx").write_bytes(content)
    with pytest.raises(UserError, match="damaged or no ONNX classifier"):
        read_onnx(tmp_path / "t.onnx")


def test_graphs_that_are_no_classifier_of_photos_are_refused(tmp_path):
    for shape in (("N", 7, "H", "W"), ("N", 3), ("N", 3, 32, 48)):
        with pytest.raises(UserError, match="the input is not"):
            read_onnx(save(tmp_path / "t.onnx", shape=shape))
    with pytest.raises(UserError, match="1 inputs and 2 outputs"):
        read_onnx(save(tmp_path / "t.onnx", outputs=("logits", "features")))


def test_weights_in_other_files_are_not_followed(tmp_path):
    path = save(tmp_path / "t.onnx")
    external = {"save_as_external_data": True, "location": "elsewhere.bin", "size_threshold": 0}
    onnx.save(onnx.load(path), path, **external)
    with pytest.raises(UserError, match="lie in other files"):
        read_onnx(path)


def test_a_constant_in_another_file_is_not_followed_either(tmp_path, monkeypatch):
    """Even where that file exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    model = onnx.load(save(tmp_path / "t.onnx"))
    outside = numpy_helper.from_array(WEIGHT, "weight")
    onnx.external_data_helper.set_external_data(outside, "secret.bin")
    outside.ClearField("raw_data")
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=outside))
    onnx.save(model, tmp_path / "t.onnx")
    with pytest.raises(UserError, match="lie in other files"):
        read_onnx(tmp_path / "t.onnx")


HUGE = {  # 0.4 GB and more from two short inputs: (operator, their types, their shapes, attributes)
    "an outer sum": ("Add", np.float32, np.float32, (20_000, 1), (1, 20_000), {}),
    "an outer shift": ("BitShift", np.uint8, np.uint8, (20_000, 1), (1, 20_000), {"direction": "RIGHT"}),
    "an outer product": ("MatMulInteger", np.uint8, np.uint8, (20_000, 1), (1, 20_000), {}),
    "outer scales": ("DequantizeLinear", np.int8, np.float32, (20_000, 1), (20_000,), {"axis": 1}),
    "scales for rows": ("DequantizeLinear", np.int8, np.float32, (20_000, 1), (1, 20_000), {"axis": 0}),
    "scales of blocks": (
        *("DequantizeLinear", np.int8, np.float32, (20_000, 8), (20_000, 1)),
        {"axis": 1, "block_size": 1 << 30},
    ),
}


@pytest.mark.parametrize("hostile", ["a chain of sums", "millions of parts", *HUGE])
def test_decoding_weights_takes_no_more_memory_than_the_file_explains(tmp_path, hostile):
    model = onnx.load(save(tmp_path / "t.onnx"))
    model.ir_version, model.opset_import[0].version = 10, 21
    if hostile in HUGE:
        kind, *types, first, second, attributes = HUGE[hostile]
        arrays = {"a": np.ones(first, types[0]), "b": np.ones(second, types[1])}
        nodes = [helper.make_node(kind, ["a", "b"], ["c"], **attributes)]
    elif hostile == "millions of parts":
        arrays = {"c": np.ones((6, 3), np.float32)}
        nodes = [helper.make_node("Split", ["c"], ["d", "e"], axis=0, num_outputs=10**7)]
    else:  # 2 GB
        arrays = {"c0": np.ones(100_000, np.float32)}
        nodes = [helper.make_node("Add", [f"c{step}", "c0"], [f"c{step + 1}"]) for step in range(5_000)]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, tmp_path / "t.onnx")
    tracemalloc.start()
    with pytest.raises(UserError, match="another number of channels|times as large|other parts"):
        read_onnx(tmp_path / "t.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


def test_without_the_packages_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(UserError, match="pip install onnx onnx2torch"):
        read_onnx(save(tmp_path / "t.onnx"))


def test_the_ending_decides_in_any_case():
    assert is_onnx("a/T.ONNX") and not is_onnx("a/onnx.bin")


def test_train_kd_distils_from_an_onnx_file(toy, ok, refused, tmp_path):
    weight = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    save(tmp_path / "t.onnx", {"class_names": list(FOOD11_CLASSES), "size": 32}, weight=weight)
    command = ("train_kd.py", toy, STUDENT, "--recipe views=1 precision=fp32 --out", tmp_path / "run")
    assert "t.onnx: validation accuracy" in ok(*command, "--dry-run --teacher", tmp_path / "t.onnx").stdout
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    assert "damaged or no ONNX classifier" in refused(*command, "--teacher", tmp_path / "bad.onnx")
