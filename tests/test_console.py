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
from conftest import ROOT, STUDENT, words

from compression import command_line
from compression.training.losses import CrossEntropy


def train(data, out, *more):
    return ["train_student.py", data, STUDENT, "--epochs 2 --recipe batch_size=11 --out", out, *more]


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
    answers, model = out / "答案.csv", out / "best.pt"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    for command, told in (
        (train(root, out, "--recipe batch_size=4 --epochs 1"), r"quantize.py '{}/\u8dd1/best.pt'"),
        (["evaluate.py", model, root, "--cache none"], r"\u9eb5\u5305"),
        (["inference.py", root, answers, "--model", model], r"15 photos -> {}/\u8dd1/\u7b54\u6848.csv"),
    ):
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
        done = subprocess.run(
            [sys.executable, *words(command)], capture_output=True, cwd=ROOT, env=environment
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        assert told.format(tmp_path).encode() in done.stdout, done.stdout
    assert answers.is_file()


# ---------------------------------------------------------------- advice


def test_the_advice_after_a_loss_that_is_not_finite_works(toy, call, ok, tmp_path, monkeypatch):
    cross_entropy, calls = CrossEntropy.__call__, iter(range(100))

    def broken(*given):  # in the second step of the second epoch
        return cross_entropy(*given) * (math.nan if next(calls) == 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(CrossEntropy, "__call__", broken)
        failed = call(*train(toy, tmp_path / "run", "--recipe lr=0.02 precision=bf16"))
    advice = "start again with --recipe lr=0.005 or precision=fp32, and with a new --out: the old one keeps"
    assert failed.returncode == 2 and advice in failed.stderr, failed.stderr
    ok(*train(toy, tmp_path / "lower", "--recipe lr=0.01 precision=bf16"))
    ok(*train(toy, tmp_path / "precise", "--recipe lr=0.02 precision=fp32"))
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["run"]["epoch"] == 1


def test_the_command_at_the_end_of_a_training_works_and_leaves_the_shipped_model_alone(
    toy, ok, tmp_path, monkeypatch
):
    before = (ROOT / "model.bin").read_bytes()
    monkeypatch.chdir(ROOT)
    done = ok(*train(toy, tmp_path / "a run", "--epochs 1"))
    python, script, *rest = shlex.split(done.stdout.rpartition("next: ")[2])
    assert (python, script) == ("python", "quantize.py")
    ok(script, *rest)
    assert (tmp_path / "a run/model.bin").is_file() and (ROOT / "model.bin").read_bytes() == before


@pytest.mark.parametrize("name", ["best.pt", "record.json"])
def test_a_folder_that_cannot_be_continued_is_not_to_be_resumed(toy, refused, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    sentence = refused(*train(toy, tmp_path / "run"))
    assert f"already holds a run ({name}); choose another --out" in sentence and "--resume" not in sentence
