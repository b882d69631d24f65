"""Several processes by torchrun: the gradients of one, a run that survives a killed process, one output."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from compression import distributed

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--network student --set widths=8,8,8,8,8,8,8,8 --size 32 --cache none --device cpu".split()


def start(processes, script, *arguments, restarts=0, cwd=None):
    """Run a script in so many processes by torchrun, or without it for 1; returns the CompletedProcess."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    launcher += ["--max-restarts", restarts]
    command = [sys.executable, *(launcher if processes > 1 else []), script, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


EPOCH = """
import sys
import torch
from torch import nn
from compression import distributed
from compression.command_line import pick_device
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.training.distillation import Distillation
from compression.training.teachers import Teacher
from compression.training.loop import StopRequest, train_epoch
from compression.training.losses import CrossEntropy, balanced_weights
from compression.training.recipe import Settings
from compression.training.run_folder import Run
from dataset import list_labelled, load_photos

class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8),
            nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 11))
        self.double()

    def forward(self, images):
        return self.layers(images.double())

    def train(self, mode=True):
        return super().train(False)  # BN statistics differ with the share of a process

device, preprocessing = pick_device("cpu"), Preprocessing(32)
listings = [list_labelled(sys.argv[1], split) for split in ("training", "validation")]
photos, others = (load_photos(listing, preprocessing, False, print) for listing in listings)
description = Description.of("student", {}, photos.class_names, preprocessing)
states = {}
cases = {"plain": {}, "weights": {}, "mixup": {"mixup": 0.4}, "views": {"views": 1}}
cases["odd"] = {"batch_size": 13}
for name, changes in cases.items():
    torch.manual_seed(0)
    network, teacher = Double(), Double().requires_grad_(False).eval()
    plain = {"epochs": 1, "batch_size": 22, "optimizer": "sgd", "lr": 1.0, "ema": 0, "warmup": 0.0}
    settings = Settings(**{**plain, **changes})
    weights = balanced_weights(photos.labels[:33], 11).clamp(min=0.1).double()
    loss = CrossEntropy(0.1, weights if name == "weights" else None)
    if name in ("views", "plain"):
        teachers, views = [Teacher(teacher, preprocessing, "teacher")], range(settings.views)
        unknown = [torch.full((len(photos), 11), torch.nan) for _ in views]
        loss = Distillation(teachers, preprocessing, 0.7, 2.0, "fp32", unknown)
    run = Run(network, description, settings, len(photos) // settings.batch_size, device, loss)
    with StopRequest() as stop:
        row = train_epoch(run, photos, others, stop)
    logged = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    states[name] = (network.state_dict(), {key: row[key] for key in logged})
if distributed.RANK == 0:
    torch.save(states, sys.argv[2])
distributed.disconnect()
"""


def test_an_epoch_ends_with_the_weights_and_the_log_of_one_process(toy, tmp_path):
    (tmp_path / "epoch.py").write_text(EPOCH)
    for processes in (1, 2):
        done = start(processes, tmp_path / "epoch.py", toy, tmp_path / f"{processes}.pt")
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{processes}.pt", weights_only=True) for processes in (1, 2))
    for name, (weights, row) in one.items():
        for key, value in weights.items():
            assert torch.allclose(value, two[name][0][key], rtol=1e-4, atol=1e-6), (name, key)
        assert row == pytest.approx(two[name][1], rel=1e-5), name


KILLED = """
import os, signal, sys, time
from compression import distributed
from compression.command_line import run
from compression.training.run_folder import Run
import train_student

step, calls = Run.train_step, iter(range(1000))
moment, number, target = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)

def stepped(self, batch, *rest):
    step(self, batch, *rest)
    if next(calls) == int(moment) and distributed.RANK == 1 and not distributed.RESTARTS:
        handler = signal.getsignal(number)
        os.kill(os.getpid() if target == "worker" else os.getppid(), number)
        for _ in range(6000):  # torchrun takes its time to pass a signal on
            if signal.getsignal(number) != handler:
                break
            time.sleep(0.01)

Run.train_step = stepped
run(train_student.main)
"""


def train(out, toy, moment, number, target, *more, processes=2, **options):
    (out.parent / "killed.py").write_text(KILLED)
    killed = (out.parent / "killed.py", moment, int(number), target)
    recipe = ("--epochs", 3, "--out", out, "--recipe", "batch_size=11")
    return start(processes, *killed, toy, *SMALL, *recipe, *more, **options)


def test_a_run_goes_on_after_a_process_was_killed(toy, tmp_path):
    done = train(
        tmp_path / "run", toy, 6, signal.SIGKILL, "worker", "--resume", restarts=2
    )  # epochs have four steps
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert record["processes"] == 2 and len(record["history"]) == 3 and len(record["resumed"]) == 1
    assert done.stdout.count("epoch   3/3") == 1  # rank 0 alone prints
    files = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert files == {"best.pt", "last.pt", "log.csv", "record.json"}


def test_restarts_need_resume(toy, refused, tmp_path, monkeypatch):
    """Or a restarted command would be refused for the folder that it has begun itself."""
    monkeypatch.setattr(distributed, "MAY_RESTART", True)
    assert "add --resume after" in refused("train_student.py", toy, "--out", tmp_path / "run")


def test_a_signal_stops_all_with_the_run_saved_and_any_number_goes_on(toy, tmp_path):
    done = train(tmp_path / "run", toy, 5, signal.SIGTERM, "torchrun")
    assert done.returncode != 0 and "continue with --resume" in done.stdout, done.stderr
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)["run"]
    assert (state["epoch"], state["step"]) == (1, 3)  # they agree before a step
    done = train(tmp_path / "run", toy, 999, 0, "nobody", "--resume", processes=1)
    assert done.returncode == 0 and "saved by 2 process(es) and goes on with 1" in done.stdout, done.stderr
    assert len(json.loads((tmp_path / "run/record.json").read_text())["history"]) == 3


def test_a_mistake_is_one_sentence_a_process(tmp_path):
    done = start(2, ROOT / "train_student.py", tmp_path / "nowhere", "--out", tmp_path / "run")
    told = [line for line in done.stderr.splitlines() if "there is no folder" in line]
    assert done.returncode != 0 and 1 <= len(told) <= 2 and not (tmp_path / "run").exists()


def test_predictions_and_evaluations_are_those_of_one_process(toy, small_model, tmp_path):
    for processes in (1, 2):
        labels, top, record = (tmp_path / f"{name}{processes}" for name in ("labels", "top", "record"))
        more = ("--device", "cpu", "--batch-size", 4, "--tta", "--top-k", 3, top)
        done = start(processes, ROOT / "inference.py", toy, labels, "--model", small_model, *more)
        assert done.returncode == 0, done.stderr
        more = ("--cache", "none", "--device", "cpu", "--record", record)
        assert start(processes, ROOT / "evaluate.py", small_model, toy, *more).returncode == 0
    assert (tmp_path / "labels1").read_bytes() == (tmp_path / "labels2").read_bytes()
    one, two = (pd.read_csv(tmp_path / f"top{processes}") for processes in (1, 2))
    pd.testing.assert_frame_equal(one, two, atol=1e-5)
    one, two = (json.loads((tmp_path / f"record{processes}").read_text()) for processes in (1, 2))
    assert two["processes"] == 2 and all(one[key] == two[key] for key in ("accuracy", "confusion"))


@pytest.mark.parametrize("count", range(6))
def test_shares_come_back_in_their_order(monkeypatch, count):
    whole, shares = list(range(count)), []
    monkeypatch.setattr(distributed, "SIZE", 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "RANK", rank)
        shares.append(distributed.share(whole))
    monkeypatch.setattr(distributed, "gather", lambda own: shares)
    assert distributed.unshare(shares[0]) == whole
