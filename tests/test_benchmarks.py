"""benchmarks/: what is told before anything is timed, and under which settings the timing is done."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from dataset import list_labelled, load_photos
from experiments.benchmarks import (
    course_loop,
    hw7_test,
    onnx_export,
    speed_inference,
    speed_step,
    speed_training,
)
from models import build


def test_hw7_test_refuses_a_root_without_photos_before_it_runs_anything(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: pytest.fail("it ran something"))
    assert str(tmp_path / "nowhere") in refused("experiments/benchmarks/hw7_test.py", tmp_path / "nowhere")


def test_hw7_test_times_its_parts_with_inferences_allocator(toy, monkeypatch):
    calls = []

    def run(command, **options):
        if command[0] == "bash":
            Path(command[3]).write_text("Id,label\n")

    def load(path):
        calls.append("load_model")
        raise UserError("enough")

    monkeypatch.setattr(hw7_test.subprocess, "run", run)
    monkeypatch.setattr(
        hw7_test, "pick_device", lambda name: calls.append(f"pick_device {name}") or torch.device(name)
    )
    monkeypatch.setattr(hw7_test, "load_model", load)
    with pytest.raises(UserError, match="enough"):
        hw7_test.main([str(toy)])
    assert calls == ["pick_device cpu", "load_model"]


@pytest.mark.parametrize("batch_size", [128, 200])
def test_data_path_needs_two_batches(refused, batch_size):
    assert "raise --photos" in refused(
        "experiments/benchmarks/data_path.py", "--photos", 128, "--batch-size", batch_size, "--device", "cpu"
    )


def test_onnx_export_compares_every_photo_and_records_the_ratios(toy, small_model, call, tmp_path):
    pytest.importorskip("onnxruntime")
    record, threads = tmp_path / "record.json", torch.get_num_threads()
    rest = ["--threads", 1, "--batch-sizes", 1, 5, "--rounds", 1, "--photos", 5, "--record", record]
    done = call("experiments/benchmarks/onnx_export.py", small_model, toy, *rest)
    torch.set_num_threads(threads)
    assert done.returncode == 0, done
    read = json.loads(record.read_text())
    assert read["photos"] == 15 and {one["same_class"] for one in read["agreement"].values()} == {15}
    assert list(read["seconds"]) == ["1 threads, 1 photos", "1 threads, 5 photos"]


def test_onnx_export_without_onnxruntime_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        onnx_export.open_session(b"")


@pytest.mark.parametrize(
    "command, reason",
    [
        ("course_loop.py nowhere out.csv", "no photos nowhere/testing/*.jpg"),
        ("speed_training.py toy --photos 96", "choose a multiple"),
        ("speed_training.py toy --photos 64", "fewer than 64; lower --photos"),
        ("speed_inference.py toy --photos 5", "lower --photos"),
        ("speed_step.py --photos 192", "choose a multiple of 128"),
    ],
)
def test_speed_refuses_before_it_times_anything(refused, toy, command, reason):
    script, *arguments = command.split()
    arguments = [toy if argument == "toy" else argument for argument in arguments]
    assert reason in refused(f"experiments/benchmarks/{script}", *arguments)


def test_the_courses_loop_and_ours_see_the_same_photos(toy):
    listing = list_labelled(toy, "training").part([*range(44), *range(20)])
    photos = load_photos(listing, Preprocessing(32), cache=False)
    course = course_loop.trainer(listing.paths, listing.labels)
    assert course() == speed_training.trainer(photos, 32, torch.device("cpu"))() == 64


def test_the_courses_loop_predicts_every_testing_photo(toy, call, tmp_path):
    assert call("experiments/benchmarks/course_loop.py", toy, tmp_path / "out.csv").returncode == 0
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "Id,label" and [row.split(",")[0] for row in rows[1:]] == [
        path.stem for path in sorted((toy / "testing").glob("*.jpg"))
    ]


def test_depthwise_convolutions_alone_compute_in_fp32():
    found = {}

    def remember(name):
        return lambda module, inputs, output: found.update({name: output.dtype})

    network = build("student", widths=(8,) * 8, hidden=16)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(remember(name))
    speed_step.depthwise_in_fp32(SimpleNamespace(network=network))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 3, 32, 32))
    for name, dtype in found.items():
        wanted = torch.float32 if network.get_submodule(name).groups > 1 else torch.bfloat16
        assert dtype == wanted, name
    assert len(set(found.values())) == 2


def test_the_limit_counts_one_multiply_accumulate_for_each_product(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(speed_step, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert speed_step.matrix_product(torch.float32, 8) == 8**3


def test_photos_are_enlarged_for_the_decoders(toy, tmp_path):
    paths = [path for path in sorted((toy / "testing").glob("*.jpg"))][:2]
    for path in speed_inference.write_photos(paths, tmp_path / "data", 512):
        with Image.open(path) as image:
            assert min(image.size) == 512


def test_fixed_views_compares_both_ways(call, tmp_path):
    sizes = ("--size", 32, "--batch-size", 2, "--rounds", 1, "--steps", 1)
    record = tmp_path / "record.json"
    done = call("experiments/benchmarks/fixed_views.py", *sizes, "--device", "cpu", "--record", record)
    assert done.returncode == 0, done.stderr
    assert all(one["ratio"] > 0 for one in json.loads(record.read_text())["results"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_speed_gpu_without_a_gpu_names_the_benchmark_for_a_cpu(refused):
    assert "on a CPU, use speed_step" in refused("experiments/benchmarks/speed_gpu.py")
