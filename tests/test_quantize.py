"""quantize.py on its command line: sizes, limits, advice, accuracies, records and refusals."""

import hashlib
import json
import os
import re
import shlex
import shutil
from types import SimpleNamespace

import numpy
import pytest
import torch
from conftest import read_json

from compression.data.decoding import decode_photo
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.quantization.folding import fold
from compression.stages import quantizing
from compression.training.run_folder import write_checkpoint
from dataset import FOOD11_CLASSES, list_labelled
from models import build, count_parameters


@pytest.fixture(scope="module")
def checkpoint(small_network, tmp_path_factory):
    """A checkpoint as the training scripts write it."""
    return saved(tmp_path_factory.mktemp("run") / "best.pt", *small_network)


def saved(path, description, network, **weights):
    write_checkpoint(path, description, {**network.state_dict(), **weights})
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "model.bin"


def numbers(text):
    return [int(match.replace(",", "")) for match in re.findall(r"\d[\d,]*", text)]


def test_the_courses_student_fits_the_courses_limit(run_script, tmp_path):
    network = build("student")
    description = Description.of("student", {}, FOOD11_CLASSES, Preprocessing(256))
    checkpoint = saved(tmp_path / "best.pt", description, network)
    done = run_script("quantize.py", checkpoint, "model.bin", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    raw = sum(tensor.nbytes for tensor in network.state_dict().values())
    size = (tmp_path / "model.bin").stat().st_size
    assert size <= 300_000
    assert f"raw {raw:,} B -> packed " in done.stdout and f"-> file {size:,} B" in done.stdout
    model = load_model(tmp_path / "model.bin", max_bytes=300_000)
    assert model.bits == 8 and model.description.arguments["folded"]
    # without gamma and beta
    assert count_parameters(model.build()) == 256_779 - 2 * 1024


@pytest.mark.parametrize(
    "flags, bits",
    [
        ("--vectors 16", 16),
        ("--bits 8 --vectors 8", 8),
        ("--bits 16", 16),
        ("--bits 32", 32),
        ("--bits 4", 4),
        ("--bits 3 --granularity tensor --scale minmax --override fc.0=2", 3),
    ],
)
def test_the_printed_sizes_and_error_are_the_files(ok, checkpoint, tmp_path, flags, bits):
    output, twice = tmp_path / "new folder/model.bin", tmp_path / "twice.bin"
    done = ok("quantize", checkpoint, output, flags)
    assert not done.stderr
    before = fold(load_model(checkpoint).build()).state_dict()
    after = load_model(output)
    line = next(line for line in done.stdout.splitlines() if line.startswith("student:"))
    raw, packed, coded, entropy, size, decoded = numbers(line.split("student:")[1])
    assert size == output.stat().st_size and coded == len(torch.load(output, weights_only=True)["data"])
    assert entropy <= packed and coded <= packed < raw
    assert decoded == 4 * sum(tensor.numel() for tensor in before.values())
    error = max((before[name].double() - after.state_dict[name].double()).abs().max() for name in before)
    assert f"worst error {error:.3g} in " in done.stdout and f"wrote {output}" in done.stdout
    assert after.bits == bits and os.listdir(output.parent) == ["model.bin"]
    if bits in (16, 32) or "minmax" in flags:  # quantizing twice changes nothing more
        ok("quantize", output, twice, flags)
        again = load_model(twice).state_dict
        assert all(torch.allclose(again[name], after.state_dict[name], rtol=1e-6, atol=0) for name in again)


@pytest.mark.parametrize(
    "fitting, wanted, advice",
    [("--bits 5 --scale mse", "--bits 16", "--bits"), ("--bits 16", "--bits 32", "--bits 16 would")],
)
def test_too_large_writes_nothing_and_its_advice_fits(
    refused, ok, checkpoint, output, tmp_path, fitting, wanted, advice
):
    ok("quantize", checkpoint, output, fitting)
    limit = f"--max-bytes {output.stat().st_size}"
    output.unlink()
    sentence = refused("quantize", checkpoint, output, wanted, limit)
    assert not list(tmp_path.iterdir()) and f"; {advice}" in sentence
    options, size = re.search(r"; (--bits.*) would fit with ([\d,]+) bytes", sentence).groups()
    ok("quantize", checkpoint, output, options, limit)
    assert numbers(size) == [output.stat().st_size] and output.stat().st_size <= int(limit.split()[1])


def test_without_bits_the_most_that_fit_are_found_and_shown(ok, checkpoint, output):
    sizes = {}
    for bits, more in ((16, ""), (8, "--scale mse"), (6, "--scale mse")):
        ok("quantize", checkpoint, output, f"--bits {bits} {more}")
        sizes[bits] = output.stat().st_size
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for bits, size in sizes.items():
        done = ok("quantize", checkpoint, output, f"--scale mse --max-bytes {size}")
        assert load_model(output).bits >= bits and output.stat().st_size <= size
        lines = done.stdout.splitlines()
        rows = [line.split() for line in lines if re.match(r" +\d+  (float|channel)", line)]
        assert int(rows[0][0]) == 16
        assert [row for row in rows if any(cell.endswith("*") for cell in row)] == rows[-1:]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("flags", ["--granularity tensor", "--scale minmax", "--scale mse"])
def test_floats_have_no_grid_unless_a_layer_is_overridden(refused, ok, checkpoint, tmp_path, bits, flags):
    command = ("quantize", checkpoint, tmp_path / "model.bin", f"--bits {bits} {flags}")
    sentence = refused(*command)
    assert flags.split()[0] in sentence and "stores floats" in sentence
    refused(*command, "--override fc.0=16")
    assert not list(tmp_path.iterdir())
    ok(*command, "--override fc.0=4")


def test_too_large_in_8_bits_says_by_how_much_to_shrink_and_keeps_the_old_file(
    refused, checkpoint, output, tmp_path
):
    output.write_text("precious")
    record = ("--max-bytes 3000 --record", tmp_path / "record.json")
    sentence = refused("quantize", checkpoint, output, *record)
    assert "nothing was written" in sentence and re.search(r"about [1-9]\d? % of the parameters", sentence)
    assert output.read_text() == "precious" and list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_nan_in_a_checkpoint_names_the_tensor(refused, small_network, tmp_path, bits):
    broken = {"cnn.0.1.running_var": torch.full((8,), float("nan"))}
    path = saved(tmp_path / "best.pt", *small_network, **broken)
    assert "cnn.0.1.running_var" in refused("quantize", path, tmp_path / "model.bin", f"--bits {bits}")
    assert list(tmp_path.iterdir()) == [path]


def test_data_prints_both_accuracies_and_record_says_where_they_come_from(
    run_script, checkpoint, toy, tmp_path
):
    more = "--cache none --device cpu --record notes/record.json --data"
    done = run_script("quantize.py", checkpoint, "model.bin", more, toy, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listing = list_labelled(toy, "validation")
    output = tmp_path / "model.bin"
    expected = [validation_accuracy(load_model(path), listing) for path in (checkpoint, output)]
    assert f"validation accuracy {expected[0]:.4f} -> {expected[1]:.4f} on 22 photos" in done.stdout

    record = json.loads((tmp_path / "notes/record.json").read_text(), parse_constant=pytest.fail)
    found = [record[f"validation_accuracy_{when}"] for when in ("before", "after")]
    assert found == pytest.approx(expected) and record["validation_photos"] == 22
    assert record["file_bytes"] == output.stat().st_size
    command = shlex.split(record["command"])
    assert command[:3] == ["quantize.py", str(checkpoint), "model.bin"] and "--data" in command
    assert record["commit"] and record["device"] and record["date"]
    assert record["versions"].items() >= {"torch": torch.__version__, "numpy": numpy.__version__}.items()
    files = sorted((toy / "validation").iterdir(), key=lambda path: tuple(map(int, path.stem.split("_"))))
    digest = hashlib.sha256("".join(f"{path.name} {path.stat().st_size}\n" for path in files).encode())
    assert record["data"] == {"validation": digest.hexdigest()[:16]}
    assert record["model"]["architecture"] == "student"
    assert (record["bits"], record["vectors"], record["overrides"]) == (16, 16, {})


def validation_accuracy(model, listing):
    network, preprocessing = model.build(), model.description.preprocessing
    photos = (torch.from_numpy(decode_photo(path, preprocessing).copy())[None] for path in listing.paths)
    answers = [network(preprocessing.normalise(photo)).argmax().item() for photo in photos]
    return sum(answer == label for answer, label in zip(answers, listing.labels, strict=True)) / len(answers)


def test_without_a_record_none_is_written(ok, checkpoint, tmp_path):
    ok("quantize", checkpoint, tmp_path / "model.bin")
    assert os.listdir(tmp_path) == ["model.bin"]


# ---------------------------------------------------------------- refusals


def test_a_missing_checkpoint_is_refused_by_the_real_program(run_script, tmp_path):
    done = run_script("quantize.py", "absent.pt", "model.bin", cwd=tmp_path)
    told = "quantize.py: error: there is no model file at absent.pt; check the path\n"
    assert (done.returncode, done.stderr) == (2, told) and not os.listdir(tmp_path)


def test_an_output_that_cannot_be_written_is_refused(refused, checkpoint, output, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for path in (tmp_path, file / "model.bin"):
        assert str(path) in refused("quantize", checkpoint, path)
    assert "file" in refused("quantize", checkpoint, output, "--record", file / "record.json")
    refused("quantize", checkpoint, output, "--record", output)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "flags",
    [
        *("--bits 1", "--bits 9", "--bits many", "--granularity row", "--scale max", "--vectors 32"),
        *("--override fc.0", "--override fc.0=many", "--override =4"),
        "--override fc.0=8 --override fc.0.weight=2",
        *("--max-bytes 0", "--max-bytes 3e5", "--unknown"),
    ],
)
def test_wrong_flags_are_refused(refused, checkpoint, tmp_path, flags):
    assert flags.split()[0] in refused("quantize", checkpoint, tmp_path / "model.bin", flags)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("flags", ["--data absent", "--data empty", "--device gpu", "--device gpu --data"])
def test_a_wrong_way_to_measure_is_told_before_anything_is_written(
    refused, checkpoint, toy, tmp_path, monkeypatch, flags
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty/validation").mkdir(parents=True)
    data = [toy] if flags.endswith("--data") else []
    refused("quantize", checkpoint, "model.bin", "--cache none --record record.json", flags, *data)
    assert os.listdir(tmp_path) == ["empty"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A checkpoint of a network that needs photos of 32 px."""
    arguments = {"stem": (8, 8), "widths": (8, 8, 8), "hidden": (8, 8, 8), "pools": (1, 1, 1), "head": 8}
    network = build("residual6", num_classes=11, **arguments)
    description = Description.of("residual6", arguments, FOOD11_CLASSES, Preprocessing(32))
    return saved(tmp_path_factory.mktemp("deep") / "best.pt", description, network)


def test_an_input_size_that_the_network_cannot_take_is_refused(refused, ok, deep, output, toy, tmp_path):
    for command in (
        ("quantize.py", deep, output, "--size 16"),
        ("train_student.py", toy, "--recipe view_size=16 --init", deep, "--out", tmp_path / "x"),
        ("prune.py", deep, toy, "--rate 0.5 --dry-run --size 16"),
        ("prune.py", deep, toy, "--rate 0.5 --dry-run --recipe view_size=16"),
    ):
        assert "cannot take photos of 16 px" in refused(*command)
    assert not os.listdir(tmp_path)
    ok("quantize.py", deep, output)
    content = torch.load(deep)
    small = tmp_path / "small.pt"
    content["preprocessing"]["size"] = 16
    torch.save(content, small)
    told = refused("inference.py", toy, tmp_path / "prediction.csv", "--model", small)
    assert "small.pt: the network cannot take" in told


def test_an_override_of_no_layer_names_one_that_there_is(refused, ok, checkpoint, output):
    sentence = refused("quantize", checkpoint, output, "--override stem=4")
    layer = re.search(r"e\.g\. (\S+)\n", sentence)[1]
    ok("quantize", checkpoint, output, f"--override {layer}=4")


def test_weights_that_do_not_fit_their_description_are_refused(refused, small_network, tmp_path):
    """Otherwise a file is written that inference refuses."""
    path = saved(tmp_path / "best.pt", *small_network, **{"cnn.0.0.weight": torch.zeros(9, 3, 3, 3)})
    refused("quantize", path, tmp_path / "model.bin")
    assert list(tmp_path.iterdir()) == [path]


def test_validation_photos_must_have_the_models_classes(refused, checkpoint, output, toy, tmp_path):
    validation = shutil.copytree(toy / "validation", tmp_path / "data/validation")
    shutil.copy(next((toy / "validation").iterdir()), validation / "11_0.jpg")
    sentence = refused("quantize", checkpoint, output, "--cache none --data", tmp_path / "data")
    assert "a class number that is not 0 to 10" in sentence and not output.exists()


def test_another_input_size_is_stored_and_used(small_model, toy, ok, output, tmp_path):
    record = tmp_path / "record.json"
    ok("quantize.py", small_model, output, "--size 48 --cache none --data", toy, "--record", record)
    before, after = load_model(small_model).description, load_model(output).description
    assert after.preprocessing.size == 48 and after.arguments == {**before.arguments, "folded": True}
    assert read_json(record)["model"]["preprocessing"]["size"] == 48


def test_of_two_grids_that_fit_the_one_of_the_smaller_error_is_taken(monkeypatch):
    def attempt(model, scheme, accuracy_of):
        return SimpleNamespace(scheme=scheme, file=b"1", rms={"mse": 2.0, "minmax": 1.0}[scheme.scale])

    monkeypatch.setattr(quantizing, "encode_and_measure", attempt)
    monkeypatch.setattr(quantizing, "predicted_data_bytes", lambda *arguments: 1)
    monkeypatch.setattr(quantizing, "SEARCHED_BITS", (8,))
    options = SimpleNamespace(scale=None, max_bytes=9, override=[], granularity="tensor", vectors=16)
    best, _ = quantizing.search(SimpleNamespace(description=None), options)
    assert best.scheme.scale == "minmax"


def test_the_errors_are_the_largest_and_the_root_mean_square_of_all_weights():
    before = {"a": torch.zeros(3), "b": torch.zeros(1), "empty": torch.zeros(0)}
    after = {"a": torch.tensor([0.0, -3, 1]), "b": torch.tensor([2.0]), "empty": torch.zeros(0)}
    assert quantizing.differences(before, after) == ((3.0, "a"), pytest.approx((14 / 4) ** 0.5))
