"""inference.py and hw7_test.sh: the CSV, where photos and outputs may lie, bad photos, bad models, and the
shell around it.
"""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, words, write_model
from PIL import Image

from compression.data.decoding import decode_photo
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.quantization.grids import Scheme
from compression.training.run_folder import write_checkpoint
from dataset import FOOD11_CLASSES
from models import build


@pytest.fixture
def photos(toy, tmp_path):
    """A copy of testing/ that a test may change."""
    return Path(shutil.copytree(toy / "testing", tmp_path / "photos"))


@pytest.fixture
def predict(ok, small_model):
    """predict(data, output, *flags) runs inference.py with the small model."""
    more = ("--device cpu --model", small_model)
    return lambda data, output, *flags: ok("inference", data, output, *more, *flags)


@pytest.fixture
def refuse(refused, small_model):
    """refuse(data, output, *flags) asserts that inference.py refuses, and returns its sentence."""
    more = ("--device cpu --model", small_model)
    return lambda data, output, *flags: refused("inference", data, output, *more, *flags)


@pytest.fixture
def probabilities(small_model):
    """probabilities(paths): class probabilities of every photo, decoded and predicted alone."""
    model = load_model(small_model)
    network, preprocessing = model.build(), model.description.preprocessing

    def one_by_one(paths):
        photos = (torch.from_numpy(decode_photo(path, preprocessing).copy())[None] for path in paths)
        return torch.cat([network(preprocessing.normalise(photo)).softmax(1) for photo in photos])

    return one_by_one


@pytest.fixture
def labels(probabilities):
    """labels(paths): the most probable class of every photo, as the CSV has it."""
    return lambda paths: [str(label) for label in probabilities(paths).argmax(1).tolist()]


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


# ---------------------------------------------------------------- the CSV


def test_the_csv_is_what_kaggle_takes(run_script, small_model, labels, toy, tmp_path):
    done = run_script("inference.py", toy, tmp_path / "prediction.csv", "--model", small_model)
    assert done.returncode == 0 and not done.stderr, done.stderr
    expected = labels(sorted((toy / "testing").iterdir()))
    assert len(set(expected)) >= 3  # or this test would say little
    text = "Id,label\n" + "".join(f"{row},{label}\n" for row, label in enumerate(expected))
    assert (tmp_path / "prediction.csv").read_bytes() == text.encode()
    assert os.listdir(tmp_path) == ["prediction.csv"]


def test_every_device_predicts_the_same(predict, labels, toy, tmp_path, device):
    """`testing` itself, where the other tests predict its root."""
    done = predict(toy / "testing", tmp_path / "out.csv", "--device", device)
    assert f", {device}, " in done.stdout
    expected = labels(sorted((toy / "testing").iterdir()))
    assert [label for _, label in table(tmp_path / "out.csv")[1:]] == expected


def test_ids_ascend_as_numbers_in_plain_digits_and_hidden_files_are_passed_over(
    predict, labels, tmp_path, toy
):
    folder = tmp_path / "photos"
    pictures = sorted((toy / "testing").iterdir())
    folder.mkdir()
    names = ("00002.jpeg", "9.jpg", "10.jpg", "0100.JPG", "123456789012345678901.jpg")
    for name, picture in zip(names, pictures):
        shutil.copy(picture, folder / name)
    for name in (".DS_Store", "._0001.jpg", "Thumbs.db"):
        (folder / name).write_bytes(b"litter")
    predict(folder, tmp_path / "out.csv")
    numbers = ("2", "9", "10", "100", "123456789012345678901")
    expected = [[number, label] for number, label in zip(numbers, labels(pictures[:5]))]
    assert table(tmp_path / "out.csv") == [["Id", "label"], *expected]


def test_batch_size_and_repetition_change_nothing(predict, toy, tmp_path):
    outputs = set()
    for flags in ("--batch-size 1", "--batch-size 4", "--batch-size 15", "--batch-size 1000", "", ""):
        predict(toy, tmp_path / "out.csv", *flags.split())
        outputs.add((tmp_path / "out.csv").read_bytes())
    assert len(outputs) == 1 and outputs.pop().count(b"\n") == 16


def test_relative_paths_spaces_and_non_ascii_from_another_folder(run_script, small_model, toy, tmp_path):
    work = tmp_path / "a folder with spaces"
    shutil.copytree(toy / "testing", work / "données 食物" / "testing")
    shutil.copy(small_model, work / "mein modell.bin")
    output = "new/folder é/pré diction.csv"
    model = "mein modell.bin"
    done = run_script("inference.py", "données 食物", output, "--model", model, cwd=work)
    assert done.returncode == 0, done.stderr
    assert len(table(work / output)) == 16


def test_ids_by_name_take_any_name(predict, labels, photos, tmp_path):
    (photos / "0003.jpg").rename(photos / 'my lunch, "the best" é.jpg')
    predict(photos, tmp_path / "out.csv", "--ids names")
    names = sorted(os.listdir(photos))
    expected = [[name, label] for name, label in zip(names, labels([photos / name for name in names]))]
    assert table(tmp_path / "out.csv") == [["Id", "label"], *expected]


def test_a_file_name_that_is_no_unicode_ends_in_no_traceback(call, small_model, photos, tmp_path):
    os.rename(photos / "0003.jpg", os.fsencode(photos) + b"/caf\xe9.jpg")
    done = call("inference", photos, tmp_path / "out.csv", "--model", small_model, "--ids names")
    assert done.returncode in (0, 2) and (done.returncode == 0) == (tmp_path / "out.csv").exists()


# ---------------------------------------------------------------- --top-k


@pytest.mark.parametrize("k", [1, 3, 11, 50])
def test_top_k_lists_the_most_probable_classes(predict, probabilities, toy, tmp_path, k):
    predict(toy, tmp_path / "out.csv", f"--top-k {k}", tmp_path / "new/top.csv")
    header, *rows = table(tmp_path / "new/top.csv")
    shown = min(k, 11)
    columns = [f"{part}_{rank}" for rank in range(1, shown + 1) for part in ("class", "probability")]
    assert header == ["Id", *columns]
    answers = table(tmp_path / "out.csv")[1:]
    expected = probabilities(sorted((toy / "testing").iterdir()))
    for (identity, label), row, classes in zip(answers, rows, expected, strict=True):
        names, values = row[1::2], list(map(float, row[2::2]))
        assert row[0] == identity and names[0] == FOOD11_CLASSES[int(label)]
        assert len(set(names)) == len(values) == shown
        assert values == sorted(values, reverse=True)
        found = [classes[FOOD11_CLASSES.index(name)].item() for name in names]
        assert values == pytest.approx(found, abs=1e-4)
        assert shown < 11 or sum(values) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("k", ["0", "three", "1.5", "", "²", "9" * 5000])
def test_top_k_without_a_number_is_refused(refuse, toy, tmp_path, k):
    assert "--top-k" in refuse(toy, tmp_path / "out.csv", "--top-k", k, tmp_path / "top.csv")
    assert not os.listdir(tmp_path)


def test_top_k_into_the_same_file_is_refused(refuse, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = (("out.csv", "out.csv"), ("out.csv", tmp_path / "out.csv"), ("sub/../out.csv", "./out.csv"))
    for output, other in names:
        assert "named twice" in refuse(toy, output, "--top-k 3", other)
    assert not os.listdir(tmp_path)


def test_top_k_that_cannot_be_written_leaves_no_prediction_either(refuse, toy, tmp_path):
    refuse(toy, tmp_path / "out.csv", "--top-k 3", tmp_path)
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------- photos


def test_an_undecodable_photo_is_named_and_nothing_is_written(refuse, photos, tmp_path):
    (photos / "0007.jpg").write_bytes(b"no photo")
    (photos / "0009.jpg").write_bytes(b"")
    (tmp_path / "old.csv").write_text("precious")
    for output in ("old.csv", "new.csv"):
        sentence = refuse(photos, tmp_path / output, "--batch-size 4 --top-k 2", tmp_path / "top.csv")
        assert "2 of 15" in sentence and "0007.jpg" in sentence
    assert (tmp_path / "old.csv").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["old.csv", "photos"]
    for path in photos.iterdir():
        path.write_bytes(b"no photo")
    assert "15 of 15" in refuse(photos, tmp_path / "new.csv")


def test_truncated_photos_are_counted_and_still_predicted(run_script, small_model, photos, tmp_path):
    for name in ("0004.jpg", "0011.jpg"):
        whole = (photos / name).read_bytes()
        (photos / name).write_bytes(whole[: len(whole) * 2 // 3])
    done = run_script("inference.py", photos, tmp_path / "out.csv", "--batch-size 4 --model", small_model)
    assert done.returncode == 0 and "2 of 15" in done.stderr and "0004.jpg" in done.stderr
    assert done.stderr.startswith("warning: ") and done.stderr.count("\n") == 1, done.stderr
    ids, labels = zip(*table(tmp_path / "out.csv")[1:])
    assert list(ids) == list(map(str, range(15))) and all(0 <= int(label) <= 10 for label in labels)


def test_grey_transparent_palette_and_tiny_photos_are_predicted(predict, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for index, mode in enumerate(("L", "RGBA", "P", "1", "CMYK", "LA")):
        Image.fromarray(pixels).convert(mode).save(folder / f"{index}.{'tif' if mode == 'CMYK' else 'png'}")
    Image.fromarray(pixels[:1, :1]).save(folder / "6.png")
    Image.fromarray(pixels[:1]).save(folder / "7.jpg")
    assert not predict(folder, tmp_path / "out.csv").stderr and len(table(tmp_path / "out.csv")) == 9


@pytest.mark.parametrize(
    "name, told", [("lunch.jpg", "--ids names"), ("notes.txt", "without the ending"), ("1.jpg", "same id 1")]
)
def test_wrong_names_and_equal_ids_are_refused(refuse, photos, tmp_path, name, told):
    shutil.copy(photos / "0000.jpg", photos / name)
    sentence = refuse(photos, tmp_path / "out.csv")
    assert told in sentence and name in sentence and not (tmp_path / "out.csv").exists()


def test_empty_and_missing_folders_are_refused(refuse, tmp_path, small_model):
    for folder in ("empty", "root/testing", "other/images"):
        (tmp_path / folder).mkdir(parents=True)
    for folder, told in (
        ("empty", "is empty"),
        ("root", "is empty"),
        ("absent", "there is no folder"),
        ("other", "no photos"),
    ):
        sentence = refuse(tmp_path / folder, tmp_path / "out.csv")
        assert told in sentence and str(tmp_path / folder) in sentence
    assert "not a folder" in refuse(small_model, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


# ---------------------------------------------------------------- model, device, outputs


def test_bad_models_are_refused(refuse, toy, tmp_path, small_model):
    damaged = bytearray(small_model.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "damaged.bin").write_bytes(damaged)
    (tmp_path / "text.bin").write_text("hello")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "plain.bin")
    (tmp_path / "model.onnx").write_bytes(bytes(400_000))
    for name in ("damaged.bin", "text.bin", "plain.bin", "absent.bin", "model.onnx"):
        assert name in refuse(toy, tmp_path / "out.csv", "--model", tmp_path / name)
    assert "there is no" in refuse(toy, tmp_path / "out.csv", "--model", tmp_path / "absent.onnx")
    assert "can only be a --teacher" in refuse(toy, tmp_path / "out.csv", "--model", tmp_path / "model.onnx")
    assert not (tmp_path / "out.csv").exists()


def test_a_model_over_the_limit_needs_max_bytes(ok, refused, toy, tmp_path):
    description = Description.of("student", {}, FOOD11_CLASSES, Preprocessing(32))
    path = write_model(tmp_path / "large.bin", description, build("student"), Scheme(16))
    size = path.stat().st_size
    command = ("inference", toy, tmp_path / "out.csv", "--model")
    assert size > 300_000
    sentence = refused(*command, path)
    assert f"{size:,}" in sentence and "300,000" in sentence and "--max-bytes" in sentence
    refused(*command, path, f"--max-bytes {size - 1}")
    assert not (tmp_path / "out.csv").exists()
    ok(*command, path, f"--max-bytes {size}")
    ok("quantize", path, tmp_path / "small.bin")  # as the message says
    ok(*command, tmp_path / "small.bin")


def test_a_checkpoint_predicts_like_its_32_bit_file(predict, small_network, toy, tmp_path):
    description, network = small_network
    write_checkpoint(tmp_path / "best.pt", description, network.state_dict())
    write_model(tmp_path / "32.bin", description, network, Scheme(32))
    for name in ("best.pt", "32.bin"):
        predict(toy, tmp_path / f"{name}.csv", "--model", tmp_path / name)
    assert (tmp_path / "best.pt.csv").read_bytes() == (tmp_path / "32.bin.csv").read_bytes()


def test_a_network_for_grey_photos_is_refused(refuse, toy, tmp_path):
    """The 2019 networks take one channel; a photo file gives three."""
    description = Description.of("fer_mobilenet", {}, FOOD11_CLASSES, Preprocessing(48))
    path = write_model(tmp_path / "grey.bin", description, build("fer_mobilenet", num_classes=11))
    sentence = refuse(toy, tmp_path / "out.csv", "--model", path)
    assert "fer_mobilenet with 1 input channel(s) cannot read RGB photos" in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused(refuse, toy, tmp_path):
    assert "torch finds 0 GPU(s); use auto, cpu" in refuse(toy, tmp_path / "out.csv", "--device cuda")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "flags",
    ["--unknown", "--batch 4", "--batch-size 0", "--ids both", "--max-bytes -1", "surplus", "--top-k 3"],
)
def test_wrong_flags_are_refused(refuse, toy, tmp_path, flags):
    assert flags.split()[0] in refuse(toy, tmp_path / "out.csv", flags) and not os.listdir(tmp_path)


def test_an_output_that_cannot_be_written_is_told(refuse, toy, tmp_path):
    (tmp_path / "file").write_text("x")
    for output in (tmp_path, tmp_path / "file" / "out.csv", tmp_path / ("x" * 300)):
        assert str(output) in refuse(toy, output)


def test_the_model_is_not_overwritten_by_the_prediction(refused, toy, tmp_path, small_model):
    model = shutil.copy(small_model, tmp_path / "model.bin")
    refused("inference", toy, model, "--model", model)
    refused("inference", toy, tmp_path / "out.csv", "--top-k 2", model, "--model", model)
    assert model.read_bytes() == small_model.read_bytes()


def test_no_photo_is_overwritten_by_the_prediction(refuse, photos, tmp_path):
    photo = photos / "0000.jpg"
    before = photo.read_bytes()
    (tmp_path / "link.csv").symlink_to(photo)
    for output in (photo, tmp_path / "link.csv"):
        assert "one of the photos" in refuse(photos, output)
    assert "one of the photos" in refuse(photos, tmp_path / "out.csv", "--top-k 2", photo)
    assert photo.read_bytes() == before and not (tmp_path / "out.csv").exists()


def test_two_inferences_into_one_file_leave_a_complete_csv(predict, small_model, toy, tmp_path):
    command = [sys.executable, ROOT / "inference.py", toy, tmp_path / "out.csv", "--model", small_model]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        assert process.communicate()[1] == b"" and process.returncode == 0
    assert os.listdir(tmp_path) == ["out.csv"]
    predict(toy, tmp_path / "alone.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_inference_imports_neither_torchvision_nor_pandas_nor_training():
    unwanted = {"torchvision", "pandas", "scipy", "matplotlib", "training", "augmentation", "options"}
    program = f"import sys, inference; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_real_photos_are_predicted_in_order(predict, food11, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = sorted(os.listdir(food11 / "testing"))[:20]
    for name in names:
        shutil.copy(food11 / "testing" / name, folder / name)
    predict(folder, tmp_path / "out.csv")
    ids = [identity for identity, _ in table(tmp_path / "out.csv")[1:]]
    assert ids == [str(int(Path(name).stem)) for name in names]


# ---------------------------------------------------------------- hw7_test.sh


def shell(*args, cwd=None, script=ROOT / "hw7_test.sh", **environment):
    command = ["bash", script, *words(args)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("args", [[], ["only-one"]])
def test_the_shell_script_without_its_arguments_shows_the_usage(tmp_path, args):
    done = shell(*args, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout and not os.listdir(tmp_path)
    assert done.stderr.startswith("usage: bash hw7_test.sh <data directory> <prediction csv>")


@pytest.fixture
def wrapper(tmp_path):
    """A Python that logs its arguments to `log` and then does what it is asked."""
    (tmp_path / "tools").mkdir()
    python = tmp_path / "tools" / "my python"
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/tools/log"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def test_the_shell_script_works_from_another_folder_with_the_python_it_is_given(
    small_model, toy, tmp_path, wrapper
):
    work = tmp_path / "a folder"
    shutil.copytree(toy / "testing", work / "my data" / "testing")
    flags = ("--batch-size 4 --model", small_model)
    done = shell("my data", "out put/pre diction.csv", *flags, cwd=work, PYTHON=str(wrapper))
    assert done.returncode == 0, done.stderr
    assert len(table(work / "out put" / "pre diction.csv")) == 16
    asked = (wrapper.parent / "log").read_text()
    assert f"{ROOT}/inference.py --tta my data out put/pre diction.csv" in asked


FAKE_PYTHON = r"""#!/bin/sh
echo "$0 $*" >> "$LOG"
case "$1 $2" in "-c "*version_info\ \<*) exit "${TOO_OLD:-0}";; -c*) exit 1;; esac
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture
def copied(tmp_path):
    """The scripts in a folder without .venv, and a PATH whose only Python is a fake without torch that logs
    what it is asked.
    """
    folder, tools = tmp_path / "copied scripts", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    for name in ("hw7_test.sh", "inference.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    for tool in ("bash", "sh", "dirname", "mkdir", "cp", "cat"):
        (tools / tool).symlink_to(shutil.which(tool))
    (tools / "python3").write_text(FAKE_PYTHON)
    (tools / "python3").chmod(0o755)
    return folder, {"PATH": str(tools), "LOG": str(tmp_path / "log"), "PYTHON": ""}


def test_the_shell_script_announces_the_set_up_where_no_python_has_torch(copied, tmp_path):
    folder, environment = copied
    args = ("data", "out.csv", "--top-k 3", "top k.csv")
    script = folder / "hw7_test.sh"
    done = shell(*args, script=script, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "no Python with torch was found" in done.stderr and f"{folder}/.venv" in done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    asked = [line for line in lines if "venv" in line and " -c " not in line]
    python = f"{folder}/.venv/bin/python"
    assert asked.pop(0).endswith(f"tools/python3 -m venv {folder}/.venv")
    assert asked == [
        f"{python} -m pip install --quiet --requirement {folder}/requirements.txt",
        f"{python} {folder}/inference.py --tta data out.csv --top-k 3 top k.csv",
    ]


def test_the_shell_script_refuses_to_set_up_with_an_old_python(copied, tmp_path):
    folder, environment = copied
    done = shell("data", "out.csv", script=folder / "hw7_test.sh", cwd=tmp_path, **environment, TOO_OLD="1")
    assert done.returncode == 2 and "Python 3.10 or newer is needed" in done.stderr
    assert not (folder / ".venv").exists()


@pytest.fixture
def beside(copied):
    """The copied scripts with an environment beside them, whose Python echoes its arguments and ends with
    status 7.
    """
    folder, environment = copied
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nif [ "$1" != -c ]; then echo "mine: $*"; exit 7; fi\n')
    python.chmod(0o755)
    return folder, environment


@pytest.mark.parametrize("cdpath", [False, True])
def test_the_shell_script_prefers_the_environment_beside_it_and_passes_its_status_on(
    beside, tmp_path, cdpath
):
    """With CDPATH set, `cd folder` prints where it went, which must not end up in the path of the scripts."""
    folder, environment = beside
    script = folder / "hw7_test.sh"
    if cdpath:
        script = f"{folder.name}/hw7_test.sh"
        environment["CDPATH"] = str(tmp_path)
    done = shell("data", "out.csv", script=script, cwd=tmp_path, **environment)
    told = f"mine: {folder}/inference.py --tta data out.csv\n"
    assert (done.returncode, done.stdout, done.stderr) == (7, told, "")
