"""What scripts print reaches every console, and advice that they give works."""

import io
import math
import os
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from compression import command_line
from compression.command_line import parser
from compression.training.losses import CrossEntropy


def train(data, out, *more):
    words = "--network student --set widths=4,4,4,4,4,4,4,4 --size 32 --epochs 2 --recipe batch_size=11"
    return ["train_student.py", data, *words.split(), "--cache", "none", "--out", out, *more]


# ---------------------------------------------------------------- every console


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp950"])
def test_what_a_console_cannot_write_is_printed_as_an_escape(monkeypatch, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    with pytest.raises(SystemExit) as ended:
        command_line.run(lambda: print("🍜 and caf\udce9") or 0)  # the second is a file name that is no UTF-8
    assert ended.value.code == 0
    assert console.buffer.getvalue() == rb"\U0001f35c and caf\udce9" + os.linesep.encode()


def test_a_stream_without_an_encoding_is_left_alone(monkeypatch):
    """As a notebook's is, where a script is started with %run."""
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=len, flush=lambda: None))
    with pytest.raises(SystemExit) as ended:
        command_line.run(lambda: print("麵") or 0)
    assert ended.value.code == 0


def test_chinese_names_on_a_console_that_cannot_write_them_end_no_script(toy, tmp_path):
    root, out = tmp_path / "照片", tmp_path / "跑"
    for split in ("training", "validation"):
        for label, name in enumerate(("麵包", "湯")):
            (root / split / name).mkdir(parents=True)
            for path in (toy / split).glob(f"{label}_*.jpg"):
                shutil.copy(path, root / split / name / f"圖{path.name}")
    shutil.copytree(toy / "testing", root / "testing")
    environment, best = {**os.environ, "PYTHONIOENCODING": "cp1252"}, out / "best.pt"
    predict = ["inference.py", root, out / "答案.csv", "--model", best]
    for command, told in (
        (train(root, out, "--recipe", "batch_size=4", "--epochs", 1), r"quantize.py '{}/\u8dd1/best.pt'"),
        (["evaluate.py", best, root, "--cache", "none"], r"\u9eb5\u5305"),
        (predict, r"15 photos -> {}/\u8dd1/\u7b54\u6848.csv"),
    ):
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, env=environment)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        assert told.format(tmp_path).encode() in done.stdout, done.stdout
    assert (out / "答案.csv").is_file()


# ---------------------------------------------------------------- advice


def test_the_advice_after_a_loss_that_is_not_finite_works(toy, call, tmp_path, monkeypatch):
    cross_entropy, calls = CrossEntropy.__call__, iter(range(100))

    def broken(*given):  # in the second step of the second epoch
        return cross_entropy(*given) * (math.nan if next(calls) == 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(CrossEntropy, "__call__", broken)
        failed = call(*train(toy, tmp_path / "run", "--recipe", "lr=0.02", "precision=bf16"))
    advice = "start again with --recipe lr=0.005 or precision=fp32 and another --out"
    assert failed.returncode == 2 and advice in failed.stderr, failed.stderr
    for change in (("lr=0.01", "precision=bf16"), ("lr=0.02", "precision=fp32")):
        done = call(*train(toy, tmp_path / change[0], "--recipe", *change))
        assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["run"]["epoch"] == 1


def test_after_the_training_of_a_teacher_comes_its_student(toy, call, tmp_path):
    network = "--network student --set widths=512,512,512,512,512,512,512,512 --size 16 --epochs 1"
    done = call("train_student.py", toy, network, "--device cpu --cache none --out", tmp_path / "a teacher")
    assert f"next: train_kd.py with --teacher '{tmp_path}/a teacher/best.pt'" in done.stdout


def test_distilling_without_a_teacher_says_where_to_get_one(toy, refused, tmp_path):
    assert "train_student.py with --network resnet18" in refused(
        "train_kd.py", toy, "--out", tmp_path / "run"
    )


def test_the_command_at_the_end_of_a_training_works_and_leaves_the_shipped_model_alone(
    toy, call, tmp_path, monkeypatch
):
    before = (ROOT / "model.bin").read_bytes()
    monkeypatch.chdir(ROOT)
    done = call(*train(toy, tmp_path / "a run", "--epochs", 1))
    python, script, *rest = shlex.split(done.stdout.rpartition("next: ")[2])
    assert (python, script) == ("python", "quantize.py") and call(script, *rest).returncode == 0
    assert (tmp_path / "a run/model.bin").is_file() and (ROOT / "model.bin").read_bytes() == before


@pytest.mark.parametrize("name", ["best.pt", "record.json"])
def test_a_folder_that_cannot_be_continued_is_not_to_be_resumed(toy, refused, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    sentence = refused(*train(toy, tmp_path / "run"))
    assert f"already holds a run ({name}); choose another --out" in sentence and "--resume" not in sentence


def test_flags_cannot_be_abbreviated():
    options = parser("")
    options.add_argument("--epochs")
    with pytest.raises(SystemExit):
        options.parse_args(["--epo", "3"])
