"""benchmarks/: what is told before anything is timed, and under which settings the timing is done."""

import json
import sys
from pathlib import Path

import pytest
import torch

from compression.command_line import UserError
from experiments.benchmarks import hw7_test, onnx_export


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
