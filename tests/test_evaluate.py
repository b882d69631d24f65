"""evaluate.py: its figures against counts by hand, and its command line."""

import copy
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import read_json, write_model
from PIL import Image

import evaluate
from compression.files.loading import load_model
from compression.stages.evaluating import calibration, confusion, shorter_sides
from dataset import list_testing


def test_confusion_counts_labels_in_rows_and_predictions_in_columns():
    predicted, labels = torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 2, 1, 2])
    assert confusion(predicted, labels, 3).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 2]]


def test_calibration_error_of_a_sure_and_half_wrong_classifier_is_one_half():
    sure = torch.tensor([[1.0, 0.0]] * 8)
    error, rows = calibration(sure, torch.tensor([0, 1] * 4))
    assert error == 0.5 and rows[-1] == [8, 1.0, 0.5] and all(row == [0, 0.0, 0.0] for row in rows[:-1])


def test_calibration_error_weighs_the_bins_by_their_photos():
    answers = torch.tensor([[0.75, 0.25]] * 4 + [[0.05, 0.95]] * 12, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1] + [1] * 12)
    error, rows = calibration(answers, labels)
    assert math.isclose(error, 4 / 16 * 0 + 12 / 16 * 0.05)
    assert [row[0] for row in rows] == [0] * 7 + [4, 0, 12]


def test_record_agrees_with_itself_and_with_quantize(toy, small_model, ok, tmp_path):
    done = ok("evaluate.py", small_model, toy, "--cache none --reduce 16 --record", tmp_path / "record.json")
    record = read_json(tmp_path / "record.json")
    table = torch.tensor(record["confusion"])
    assert table.sum() == record["photos"] == 22
    assert math.isclose(table.diag().sum() / 22, record["accuracy"], rel_tol=1e-6)
    assert list(record["class_accuracy"].values()) == pytest.approx((table.diag() / table.sum(1)).tolist())
    small, count = record["accuracy_of_small"] or 0, record["small_photos"]
    right = small * count + (record["accuracy_of_larger"] or 0) * (record["photos"] - count)
    assert math.isclose(right, 22 * record["accuracy"], rel_tol=1e-6)
    assert record["data"]["validation"] and record["reduced_to"] == 16
    assert 0 <= record["accuracy_reduced"] <= 1
    options = f"--data {toy} --cache none --record {tmp_path}/quantized.json"
    ok("quantize.py", small_model, tmp_path / "again.bin", options)
    before = read_json(tmp_path / "quantized.json")["validation_accuracy_before"]
    assert before == pytest.approx(record["accuracy"])
    assert f"accuracy {record['accuracy']:.4f}" in done.stdout and "Bread" in done.stdout


def test_a_model_agrees_with_itself_and_less_with_another(toy, small_model, small_network, ok, tmp_path):
    description, network = small_network
    network = copy.deepcopy(network)
    network.fc[-1].bias.copy_(network.fc[-1].bias.roll(1))
    other = write_model(tmp_path / "other.bin", description, network)
    shutil.copytree(toy / "validation", tmp_path / "data/validation")

    def agreement(data, teacher):
        options = f"--cache none --teacher {teacher} --record {tmp_path}/record.json"
        told = ok("evaluate.py", small_model, data, options).stdout
        assert ("on 15 testing photos" in told) == (data == toy)
        return read_json(tmp_path / "record.json")["agreement"]

    assert agreement(toy, small_model) == {"validation": 1.0, "testing": 1.0}
    assert max(agreement(toy, other).values()) < 1
    assert agreement(tmp_path / "data", small_model) == {"validation": 1.0}, "there are no testing photos"


def test_photos_are_small_by_their_shorter_side(tmp_path):
    for name, size in (("a.png", (20, 90)), ("b.png", (90, 31)), ("c.png", (50, 40))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "d.png").write_text("no picture")
    assert shorter_sides(list_testing(tmp_path, by_name=True)).tolist() == [20, 31, 40, 0]


@pytest.mark.parametrize("pixels, message", [("32", "does not reduce"), ("x", "is not a whole number")])
def test_wrong_arguments_are_one_sentence(toy, small_model, refused, pixels, message):
    assert message in refused("evaluate.py", small_model, toy, "--reduce", pixels)


def test_record_is_not_written_over_the_model_or_the_teacher(toy, small_model, refused, tmp_path):
    assert "named twice" in refused("evaluate.py", small_model, toy, "--record", small_model)
    teacher = shutil.copy(small_model, tmp_path / "teacher.bin")
    options = f"--teacher {teacher} --record {teacher}"
    assert "named twice" in refused("evaluate.py", small_model, toy, options)
    assert teacher.read_bytes() == small_model.read_bytes()


def test_a_class_without_photos_has_no_accuracy(toy, small_model, ok, tmp_path):
    shutil.copytree(toy / "validation", tmp_path / "data/validation")
    for path in (tmp_path / "data/validation").glob("7_*"):
        path.unlink()
    options = f"--cache none --record {tmp_path}/record.json"
    told = ok("evaluate.py", small_model, tmp_path / "data", options).stdout
    assert "none    Rice (0 photos)" in told
    assert read_json(tmp_path / "record.json")["class_accuracy"]["Rice"] is None


def test_sizes_are_those_of_the_photos_that_were_read(toy, small_model, ok, tmp_path):
    shutil.copytree(toy / "validation", tmp_path / "data/validation")
    size = load_model(small_model).description.preprocessing.size
    paths = sorted(
        (tmp_path / "data/validation").iterdir(), key=lambda path: [*map(int, path.stem.split("_"))]
    )
    paths[0].write_bytes(b"no photo")
    for path, pixels in zip(paths[1:], (size, size - 1)):
        Image.new("RGB", (pixels, pixels)).save(path)
    sides = []
    for path in paths[1:]:
        with Image.open(path) as image:
            sides.append(min(image.size))
    ok("evaluate.py", small_model, tmp_path / "data", f"--cache none --record {tmp_path}/record.json")
    assert read_json(tmp_path / "record.json")["small_photos"] == sum(side < size for side in sides)


def test_the_class_most_often_taken_for_another_is_never_itself(capsys):

    result = {
        "photos": 9,
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "cross_entropy": 1.0,
        "calibration_error": 0.1,
        "small_photos": 0,
        "class_accuracy": {"a": 0.5, "b": 1.0, "c": None},
        "confusion": [[5, 1, 2], [0, 1, 0], [0, 0, 0]],
    }
    description = SimpleNamespace(preprocessing=SimpleNamespace(size=32), architecture="student")
    evaluate.print_result(description, result, SimpleNamespace(reduce=None))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].endswith("a (8 photos; most often predicted as c, 2 times)")
    assert lines[1].endswith("b (1 photos)") and lines[2].endswith("none    c (0 photos)")
