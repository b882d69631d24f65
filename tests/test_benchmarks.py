"""benchmarks/: ways take turns, records keep their keys, and what cannot be measured is told beforehand."""

import importlib
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.loading import load_model
from compression.files.onnx_export import to_onnx
from dataset import list_labelled, load_photos
from experiments.benchmarks import (
    course_loop,
    hw7_test,
    measuring,
    onnx_export,
    onnx_teacher,
    processes,
    speed_gpu,
    speed_inference,
    speed_step,
    speed_training,
)
from experiments.benchmarks.measuring import CPU
from models import build


def test_hw7_test_refuses_a_root_without_photos_before_it_runs_anything(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: pytest.fail("it ran something"))
    assert str(tmp_path / "nowhere") in refused("experiments/benchmarks/hw7_test.py", tmp_path / "nowhere")


def test_hw7_test_is_timed_with_the_python_that_times_it(monkeypatch):
    """With none named, it may set one up meanwhile."""
    used = []
    monkeypatch.setattr("subprocess.run", lambda command, env, **options: used.append(env["PYTHON"]))
    hw7_test.predict("data", "out.csv")
    assert used == [sys.executable]


@pytest.mark.parametrize(
    "name", ["course_loop.py nowhere out.csv", "speed_training.py toy", "speed_inference.py toy"]
)
def test_data_that_cannot_be_measured_is_refused(refused, toy, name):
    script, *arguments = (toy if word == "toy" else word for word in name.split())
    told = refused(f"experiments/benchmarks/{script}", *arguments)
    assert re.search("no photos nowhere/testing|fewer than", told)


def test_ways_take_turns_after_a_round_that_warms_up(monkeypatch):
    calls, clock = [], [0]

    def way(name, seconds):
        def call():
            calls.append(name)
            clock[0] += seconds[calls.count(name) - 1]

        return call

    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    ways = {"slow": way("slow", (90, 90, 8, 8, 4, 8, 6, 6)), "fast": way("fast", (90, 90, 1, 1, 2, 2, 3, 3))}
    found = measuring.in_turns(ways, rounds=3, times=2)
    assert calls == 4 * ["slow", "slow", "fast", "fast"]
    assert found.to_dict("list") == {"slow": [8, 6, 6], "fast": [1, 2, 3]}


def test_a_benchmark_prepares_the_device_first_and_records_what_it_prints(tmp_path, monkeypatch, capsys):
    picked = []
    monkeypatch.setattr(measuring, "pick_device", lambda name: picked.append(name) or CPU)

    def measure(device, data):
        assert picked == ["cpu"] and device == CPU, "not with the allocator of inference.py"
        return {"data": {"testing": str(data)}, "drawn": torch.rand(1).item()}

    main, path = measuring.benchmark("doc", measure, {"data": "a folder"}), tmp_path / "record.json"
    torch.manual_seed(0)
    wanted = {"data": {"testing": "photos"}, "drawn": torch.rand(1).item()}
    assert main(["photos", "--record", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == wanted
    record = json.loads(path.read_text())
    assert record.items() >= {**wanted, "seed": 0}.items() and record.keys() > {"command", "device"}


def keys(values):
    """The keys of nested dicts, without the operators of a profile."""
    if not isinstance(values, dict):
        return None
    return {name: None if name == "profile" else keys(value) for name, value in values.items()}


def published(name):
    """The keys of the published record, without those that say where it comes from."""
    record = json.loads((measuring.ROOT / f"results/{name}.json").read_text())
    origin = measuring.provenance(CPU).keys() - {"data"}
    return {name: keys(record[name]) for name in record if name not in origin}


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("data_path", {"size": 32, "batch_size": 2, "count": 6, "rounds": 1, "steps": 1}),
        ("fixed_views", {"size": 32, "batch_size": 2, "rounds": 1, "steps": 1}),
    ],
)
def test_records_have_the_keys_of_the_published_ones(name, sizes):
    found = importlib.import_module(f"experiments.benchmarks.{name}").measure(CPU, **sizes)
    assert {"data": {}, **keys(found)} == published(name)
    assert all(value > 0 for one in found["results"].values() for value in one.values())


def test_so_has_that_of_the_training_step(monkeypatch):
    kept = {name: change for name, change in speed_step.CHANGES.items() if "compile" not in name}
    monkeypatch.setattr(speed_step, "CHANGES", kept)
    found = speed_step.measure(CPU, side=64, student_size=32, photos=128, rounds=1)
    wanted = published("speed_step")
    for one in wanted["results"].values():
        one["speed_ratio_of_changes"] = dict.fromkeys(kept)
    assert {"data": {}, **keys(found)} == wanted
    for one in found["results"].values():
        assert sum(one["profile"].values()) == pytest.approx(1)


def test_so_has_that_of_the_onnx_export_and_all_classes_agree(toy, small_model, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    found = onnx_export.measure(CPU, small_model, toy, rounds=1, count=64)
    assert keys(found) == published("onnx_export") | {"data": {"testing": None}}
    assert {one["same_class"] for one in found["agreement"].values()} == {found["photos"]} == {15}
    assert found["bytes"]["model_file"] == small_model.stat().st_size


def test_so_has_that_of_the_onnx_teacher(small_model, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = load_model(small_model)
    session = onnx_export.open_session(to_onnx(model))
    monkeypatch.setattr(onnx_teacher, "read_onnx", lambda path: (model.build(), {}))
    monkeypatch.setattr(onnx_teacher, "open_session", lambda path, threads: session)
    found = onnx_teacher.measure(CPU, small_model, sizes=(32,), batch_size=2, rounds=1, steps=1)
    wanted = published("onnx_teacher")
    assert keys(found["results"]["32 px"]) == wanted["results"]["72 px"]
    assert {"data": {}, **found}.keys() == wanted.keys()
    fp32 = found["results"]["32 px"]["onnx2torch, fp32"]
    assert fp32["largest_difference"] < 1e-4 and fp32["photos_per_second"] > 0


def test_two_processes_are_compared_round_by_round(monkeypatch):
    told = {"precision": "fp32", "parameters": 10}
    steps = [(4, 4), (2, 1), (6, 6), (2, 1.5), (8, 8), (8, 2)]  # of 1x2 and 2x1 in turns
    outputs = ({"step": step, "silent": silent, **told} for step, silent in steps)
    monkeypatch.setattr(processes, "start", lambda count, threads: next(outputs))
    found = processes.measure(CPU)
    assert {"data": {}, **keys(found)} == published("processes")
    assert found["seconds_per_step"] == {"1x2": 6, "2x1": 2} and found["speed_of_two_processes"] == 2
    assert found["communication_share"] == 0.5 and found["gradient_bytes_per_step"] == 40


def test_a_process_tells_seconds_of_its_steps(monkeypatch, capsys):
    monkeypatch.setattr(processes, "BATCH_SIZE", 2), monkeypatch.setattr(processes, "STEPS", 1)
    processes.worker()
    told = json.loads(capsys.readouterr().out)
    assert min(told["step"], told["silent"]) > 0
    wanted = json.loads((measuring.ROOT / "results/processes.json").read_text())
    assert told["parameters"] == wanted["parameters"]


def test_onnx_export_without_onnxruntime_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        onnx_export.open_session(b"")


def test_the_courses_loop_and_ours_see_the_same_photos(toy):
    listing = list_labelled(toy, "training").part([*range(44), *range(20)])
    photos = load_photos(listing, Preprocessing(32), cache=False)
    with measuring.own_process() as process:
        seen = process.submit(course_loop.train, listing.paths, listing.labels).result()
    assert seen == speed_training.trainer(photos, 32, CPU)() == 64


def test_the_courses_loop_predicts_every_testing_photo(toy, call, tmp_path):
    assert call("experiments/benchmarks/course_loop.py", toy, tmp_path / "out.csv").returncode == 0
    table = pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert list(table) == ["Id", "label"]
    assert list(table["Id"]) == sorted(path.stem for path in (toy / "testing").glob("*.jpg"))


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
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert speed_step.limits(8) == {"bfloat16": 8**3, "float32": 8**3}


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_steps_with_fused_activations_reach_the_same_loss():
    losses, two = [], (8, 8)
    arguments = {"stem": two, "widths": two, "hidden": two, "pools": (0, 0), "head": 8, "dropout": 0.0}
    for change in (lambda state: None, speed_step.fused_activations):
        run = measuring.random_run("residual6", arguments, 32, CPU, precision="fp32")
        change(run)
        batch = measuring.random_batch(4, 32, CPU)
        for _ in range(3):
            run.train_step(batch)
        losses.append(run.loss_sum.item())
    changed = [module for module in run.network.modules() if "forward" in vars(module)]
    assert len(changed) == 2 * 7, "BN and activation: stem 2, blocks 2 each, head 1"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_photos_are_enlarged_for_the_decoders(toy, tmp_path):
    paths = sorted((toy / "testing").glob("*.jpg"))[:2]
    for path in speed_inference.write_photos(paths, tmp_path / "data", 512):
        with Image.open(path) as image:
            assert min(image.size) == 512


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_so_has_that_of_the_gpu():
    found, wanted = speed_gpu.measure(torch.device("cuda"), rounds=1, steps=5), published("speed_gpu")
    wanted["results"] = {name: one for name, one in wanted["results"].items() if "teacher" not in name}
    assert {"data": {}, **keys(found)} == wanted
    for one in found["results"].values():
        assert one["largest_relative_difference_of_losses_fp32"] < 1e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_speed_gpu_without_a_gpu_names_the_benchmark_for_a_cpu(refused):
    assert "on a CPU, use speed_step" in refused("experiments/benchmarks/speed_gpu.py")
