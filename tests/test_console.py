"""What scripts print reaches every console, and advice that they give works."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.fixture(scope="module")
def chinese(toy, tmp_path_factory):
    """Folders of two classes with Chinese names, and a folder to be predicted."""
    root = tmp_path_factory.mktemp("chinese") / "照片"
    for split in ("training", "validation"):
        for label, name in enumerate(("麵包", "湯")):
            (root / split / name).mkdir(parents=True)
            for path in (toy / split).glob(f"{label}_*.jpg"):
                shutil.copy(path, root / split / name / f"圖{path.name}")
    shutil.copytree(toy / "testing", root / "testing")
    return root


def run(encoding, *command):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, env=environment, cwd=ROOT, check=False)


@pytest.mark.parametrize("encoding", ["cp1252", "cp950", "ascii"])
def test_names_that_a_console_cannot_print_do_not_end_a_script(chinese, encoding, tmp_path):
    trained = run(encoding, "train_student.py", chinese, "--network", "student", "--set", "widths=4,4,4,4,4,4,4,4", "--size", 32, "--epochs", 1,
                  "--batch-size", 4, "--cache", "none", "--out", tmp_path / "跑")
    measured = run(encoding, "evaluate.py", tmp_path / "跑/best.pt", chinese, "--cache", "none")
    predicted = run(encoding, "inference.py", chinese, tmp_path / "答案.csv", "--model", tmp_path / "跑/best.pt", "--max-bytes", 10**8)
    wrong = run(encoding, "inference.py", chinese / "沒有", tmp_path / "x.csv")
    for done in (trained, measured, predicted):
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "答案.csv").is_file()
    assert wrong.returncode == 2 and b"Traceback" not in wrong.stderr
    name = "麵包".encode(encoding, "backslashreplace")
    assert name in measured.stdout and name in trained.stderr


def test_the_advice_after_a_loss_that_is_not_finite_works(toy, call, tmp_path, monkeypatch):
    """A learning rate that overflows in the first steps on every processor; then what the message says: lower, and another --out."""
    command = ["train_student.py", toy, "--network", "student", "--set", "widths=4,4,4,4,4,4,4,4", "--size", 32, "--epochs", 2,
               "--batch-size", 11, "--cache", "none", "--precision", "fp32", "--optimizer", "sgd", "--weight-decay", 0]
    broken = call(*command, "--lr", 1e38, "--out", tmp_path / "run")
    assert broken.returncode == 2 and "start again with a lower --lr" in broken.stderr and "a new --out" in broken.stderr, broken.stderr
    again = call(*command, "--lr", 0.01, "--out", tmp_path / "new")
    assert again.returncode == 0, again.stderr


def test_the_command_at_the_end_of_a_training_works_and_leaves_the_shipped_model_alone(toy, call, tmp_path, monkeypatch):
    import shlex

    before = (ROOT / "model.bin").read_bytes()
    monkeypatch.chdir(ROOT)
    done = call("train_student.py", toy, "--network", "student", "--set", "widths=4,4,4,4,4,4,4,4", "--size", 32, "--epochs", 1,
                "--cache", "none", "--out", tmp_path / "a run")
    python, script, *rest = shlex.split(done.stdout.rpartition("next: ")[2])
    assert (python, script) == ("python", "quantize.py") and call(script, *rest).returncode == 0
    assert (tmp_path / "a run/model.bin").is_file() and (ROOT / "model.bin").read_bytes() == before
