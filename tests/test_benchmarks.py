"""benchmarks/: what is told before anything is timed, and under which settings the timing is done."""

from pathlib import Path

import pytest
import torch

from compression.command_line import UserError
from experiments.benchmarks import hw7_test


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
