"""quantize.py on its command line: sizes, limits, advice, accuracies, records and refusals."""

import hashlib
import json
import re
import shlex
import shutil

import numpy
import pytest
import torch

from compression.data.decoding import decode_photo
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.quantization.folding import fold
from dataset import FOOD11_CLASSES, list_labelled
from models import build


@pytest.fixture(scope="module")
def checkpoint(small_network, tmp_path_factory):
    """A checkpoint as the training scripts write it."""
    return save(tmp_path_factory.mktemp("run") / "best.pt", *small_network)


def save(path, description, network, **weights):
    state = {**network.state_dict(), **weights}
    torch.save(
        {"format": "food11-checkpoint", "version": 1, **description.to_dict(), "state_dict": state}, path
    )
    return path


def numbers(text):
    return [int(match.replace(",", "")) for match in re.findall(r"\d[\d,]*", text)]


def test_the_courses_student_fits_the_courses_limit(run_script, tmp_path):
    network = build("student", num_classes=11)
    description = Description.of("student", {}, FOOD11_CLASSES, Preprocessing(256))
    done = run_script(
        "quantize.py", save(tmp_path / "best.pt", description, network), "model.bin", cwd=tmp_path
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    size = (tmp_path / "model.bin").stat().st_size
    assert size <= 300_000
    raw = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    assert f"raw {raw:,} B -> packed " in done.stdout and f"-> file {size:,} B" in done.stdout
    model = load_model(tmp_path / "model.bin", max_bytes=300_000)
    assert model.bits == 8 and model.description.arguments["folded"]
    # without gamma and beta
    assert sum(parameter.numel() for parameter in model.build().parameters()) == 256_779 - 2 * 1024


def folded_weights(path):
    return fold(load_model(path).build()).state_dict()


@pytest.mark.parametrize(
    ("flags", "bits"),
    [
        ([], 16),
        (["--bits", "8", "--vectors", "8"], 8),
        (["--bits", "16"], 16),
        (["--bits", "32"], 32),
        (["--bits", "4"], 4),
        (["--bits", "3", "--granularity", "tensor", "--scale", "minmax", "--override", "fc.0=2"], 3),
    ],
)
def test_the_printed_sizes_and_error_are_the_files(call, checkpoint, tmp_path, flags, bits):
    output = tmp_path / "new folder" / "model.bin"
    done = call("quantize", checkpoint, output, *flags)
    assert done.returncode == 0 and not done.stderr
    before, after = folded_weights(checkpoint), load_model(output)
    raw, packed, coded, entropy, size, decoded = numbers(
        next(line for line in done.stdout.splitlines() if line.startswith("student:")).split("student:")[1]
    )
    assert size == output.stat().st_size and coded == len(torch.load(output, weights_only=True)["data"])
    assert entropy <= packed and coded <= packed < raw
    assert decoded == 4 * sum(tensor.numel() for tensor in before.values())
    error = max((before[name].double() - after.state_dict[name].double()).abs().max() for name in before)
    assert after.bits == bits
    assert f"worst error {error:.3g} in " in done.stdout and f"wrote {output}" in done.stdout
    assert [file.name for file in output.parent.iterdir()] == ["model.bin"]


@pytest.mark.parametrize(
    "flags", [["--bits", 16], ["--bits", 8, "--granularity", "tensor", "--scale", "minmax"]]
)
def test_quantizing_twice_changes_nothing_more(call, checkpoint, tmp_path, flags):
    call("quantize", checkpoint, tmp_path / "once.bin", *flags)
    call("quantize", tmp_path / "once.bin", tmp_path / "twice.bin", *flags)
    once, twice = (load_model(tmp_path / name).state_dict for name in ("once.bin", "twice.bin"))
    assert all(torch.allclose(once[name], twice[name], rtol=1e-6, atol=0) for name in once)


def test_too_large_writes_nothing_and_its_advice_fits(refused, call, checkpoint, tmp_path):
    output = tmp_path / "model.bin"
    call("quantize", checkpoint, tmp_path / "size.bin", "--bits", 5, "--scale", "mse")
    limit = (tmp_path / "size.bin").stat().st_size
    (tmp_path / "size.bin").unlink()
    sentence = refused("quantize", checkpoint, output, "--bits", 16, "--max-bytes", limit)
    assert not list(tmp_path.iterdir())
    advice = re.search(r"; (--bits.*) would fit with ([\d,]+) bytes", sentence)
    assert call("quantize", checkpoint, output, *advice[1].split(), "--max-bytes", limit).returncode == 0
    assert numbers(advice[2]) == [output.stat().st_size] and output.stat().st_size <= limit


def test_without_bits_the_most_that_fit_are_found_and_shown(call, checkpoint, tmp_path):
    sizes = {}
    for bits in (16, 8, 6):
        scale = ["--scale", "mse"] if bits <= 8 else []
        call("quantize", checkpoint, tmp_path / "size.bin", "--bits", bits, *scale)
        sizes[bits] = (tmp_path / "size.bin").stat().st_size
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for bits, size in sizes.items():
        done = call("quantize", checkpoint, tmp_path / "model.bin", "--scale", "mse", "--max-bytes", size)
        assert done.returncode == 0 and (tmp_path / "model.bin").stat().st_size <= size
        assert load_model(tmp_path / "model.bin").bits >= bits
        rows = [line for line in done.stdout.splitlines() if re.match(r" +\d+  (float|channel)", line)]
        assert rows[0].split()[0] == "16" and [row for row in rows if "*" in row] == rows[-1:]


def test_advice_to_take_floats_names_no_scale(refused, call, checkpoint, tmp_path):
    assert call("quantize", checkpoint, tmp_path / "model.bin", "--bits", 16).returncode == 0
    limit = (tmp_path / "model.bin").stat().st_size
    sentence = refused("quantize", checkpoint, tmp_path / "model.bin", "--bits", 32, "--max-bytes", limit)
    assert f"; --bits 16 would fit with {limit:,} bytes" in sentence


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("flags", [["--granularity", "tensor"], ["--scale", "minmax"], ["--scale", "mse"]])
def test_floats_have_no_grid_unless_a_layer_is_overridden(refused, call, checkpoint, tmp_path, bits, flags):
    command = ("quantize", checkpoint, tmp_path / "model.bin", "--bits", bits, *flags)
    told = refused(*command)
    assert f"{flags[0]} cannot be combined with --bits {bits}, which stores floats" in told
    refused(*command, "--override", "fc.0=16")
    assert not list(tmp_path.iterdir())
    assert call(*command, "--override", "fc.0=4").returncode == 0


def test_too_large_in_8_bits_says_by_how_much_to_shrink_and_keeps_the_old_file(refused, checkpoint, tmp_path):
    output = tmp_path / "model.bin"
    output.write_text("precious")
    record = ("--record", tmp_path / "record.json")
    sentence = refused("quantize", checkpoint, output, "--max-bytes", 3000, *record)
    assert "nothing was written" in sentence and re.search(r"about [1-9]\d? % of the parameters", sentence)
    assert output.read_text() == "precious" and list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_nan_in_a_checkpoint_names_the_tensor(refused, small_network, tmp_path, bits):
    broken = {"cnn.0.1.running_var": torch.full((8,), float("nan"))}
    path = save(tmp_path / "best.pt", *small_network, **broken)
    assert "cnn.0.1.running_var" in refused("quantize", path, tmp_path / "model.bin", "--bits", bits)
    assert list(tmp_path.iterdir()) == [path]


def test_data_prints_both_accuracies_and_record_says_where_they_come_from(
    run_script, checkpoint, toy, tmp_path
):
    flags = ("--data", toy, *"--cache none --device cpu --record notes/record.json".split())
    done = run_script("quantize.py", checkpoint, "model.bin", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listing, output = list_labelled(toy, "validation"), tmp_path / "model.bin"
    expected = [validation_accuracy(load_model(path), listing) for path in (checkpoint, output)]
    assert f"validation accuracy {expected[0]:.4f} -> {expected[1]:.4f} on 22 photos" in done.stdout

    record = json.loads((tmp_path / "notes/record.json").read_text(), parse_constant=pytest.fail)
    told = [record[f"validation_accuracy_{when}"] for when in ("before", "after")]
    assert told == pytest.approx(expected) and record["validation_photos"] == 22
    assert record["file_bytes"] == output.stat().st_size
    command = shlex.split(record["command"])
    assert command[:3] == ["quantize.py", str(checkpoint), "model.bin"] and "--data" in command
    assert record["commit"] and record["device"] and record["date"]
    versions = record["versions"]
    assert versions["torch"] == torch.__version__ and versions["numpy"] == numpy.__version__
    files = sorted((toy / "validation").iterdir(), key=lambda path: tuple(map(int, path.stem.split("_"))))
    digest = hashlib.sha256("".join(f"{path.name} {path.stat().st_size}\n" for path in files).encode())
    assert record["data"] == {"validation": digest.hexdigest()[:16]}
    assert record["model"]["architecture"] == "student"
    assert record["bits"] == record["vectors"] == 16 and record["overrides"] == {}


def validation_accuracy(model, listing):
    network, preprocessing = model.build(), model.description.preprocessing
    photos = (torch.from_numpy(decode_photo(path, preprocessing).copy())[None] for path in listing.paths)
    answers = [network(preprocessing.normalise(photo)).argmax().item() for photo in photos]
    return sum(answer == label for answer, label in zip(answers, listing.labels, strict=True)) / len(answers)


def test_without_a_record_none_is_written(call, checkpoint, tmp_path):
    assert call("quantize", checkpoint, tmp_path / "model.bin").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


# ---------------------------------------------------------------- refusals


def test_a_missing_checkpoint_is_refused_by_the_real_program(run_script, tmp_path):
    done = run_script("quantize.py", "absent.pt", "model.bin", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "quantize.py: error: there is no model file at absent.pt; check the path\n"
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused(refused, checkpoint, tmp_path):
    (tmp_path / "file").write_text("x")
    for output in (tmp_path, tmp_path / "file" / "model.bin"):
        assert str(output) in refused("quantize", checkpoint, output)
    record = tmp_path / "file/record.json"
    assert "file" in refused("quantize", checkpoint, tmp_path / "model.bin", "--record", record)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "flags",
    [
        *(["--bits", bits] for bits in (1, 9, "many")),
        ["--granularity", "row"],
        ["--scale", "max"],
        *(["--override", text] for text in ("fc.0", "fc.0=many", "=4")),
        ["--override", "fc.0=8", "--override", "fc.0.weight=2"],
        ["--vectors", 32],
        *(["--max-bytes", limit] for limit in ("0", "3e5")),
        ["--unknown"],
    ],
)
def test_wrong_flags_are_refused(refused, checkpoint, tmp_path, flags):
    assert flags[0] in refused("quantize", checkpoint, tmp_path / "model.bin", *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--data", "absent"], ["--data", "empty"], ["--device", "gpu"]])
def test_a_wrong_way_to_measure_is_told_before_anything_is_written(
    refused, checkpoint, toy, tmp_path, monkeypatch, flags
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "validation").mkdir(parents=True)
    data = [] if "--data" in flags else ["--data", toy]
    refused("quantize", checkpoint, "model.bin", "--cache", "none", "--record", "record.json", *data, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_wrong_device_for_the_record_is_told_before_anything_is_written(refused, checkpoint, tmp_path):
    record = tmp_path / "record.json"
    refused("quantize", checkpoint, tmp_path / "model.bin", "--device", "gpu", "--record", record)
    assert not list(tmp_path.iterdir())


def test_record_and_output_may_not_be_the_same_file(refused, checkpoint, tmp_path):
    refused("quantize", checkpoint, tmp_path / "model.bin", "--record", tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A checkpoint of a network that needs photos of 32 px."""
    arguments = {"stem": (8, 8), "widths": (8, 8, 8), "hidden": (8, 8, 8), "pools": (1, 1, 1), "head": 8}
    network = build("residual6", num_classes=11, **arguments)
    description = Description.of("residual6", arguments, FOOD11_CLASSES, Preprocessing(32))
    return save(tmp_path_factory.mktemp("deep") / "best.pt", description, network)


def test_an_input_size_that_the_network_cannot_take_is_refused(refused, call, deep, toy, tmp_path):
    output = tmp_path / "model.bin"
    told = [
        refused("quantize.py", deep, output, "--size", 16),
        refused("train_student.py", toy, "--init", deep, "--recipe", "view_size=16", "--out", tmp_path / "x"),
        refused("prune.py", deep, toy, "--rate", 0.5, "--dry-run", "--size", 16),
        refused("prune.py", deep, toy, "--rate", 0.5, "--dry-run", "--recipe", "view_size=16"),
    ]
    assert ["cannot take photos of 16 px" in sentence for sentence in told] == [True] * 4, told
    assert not list(tmp_path.iterdir())
    assert call("quantize.py", deep, output).returncode == 0
    content = torch.load(deep)
    content["preprocessing"]["size"] = 16
    torch.save(content, tmp_path / "small.pt")
    told = refused("inference.py", toy, tmp_path / "prediction.csv", "--model", tmp_path / "small.pt")
    assert "small.pt: the network cannot take" in told


def test_an_override_of_no_layer_names_one_that_there_is(refused, call, checkpoint, tmp_path):
    sentence = refused("quantize", checkpoint, tmp_path / "model.bin", "--override", "stem=4")
    layer = re.search(r"there is e.g. (\S+)\n", sentence)[1]
    assert call("quantize", checkpoint, tmp_path / "model.bin", "--override", f"{layer}=4").returncode == 0


def test_weights_that_do_not_fit_their_description_are_refused(refused, small_network, tmp_path):
    """Otherwise a file is written that inference refuses."""
    path = save(tmp_path / "best.pt", *small_network, **{"cnn.0.0.weight": torch.zeros(9, 3, 3, 3)})
    refused("quantize", path, tmp_path / "model.bin")
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_without_weights_is_refused(refused, small_network, tmp_path):
    torch.save(
        {"format": "food11-checkpoint", "version": 1, **small_network[0].to_dict(), "state_dict": {}},
        tmp_path / "best.pt",
    )
    refused("quantize", tmp_path / "best.pt", tmp_path / "model.bin")


def test_validation_photos_must_have_the_models_classes(refused, checkpoint, toy, tmp_path):
    shutil.copytree(toy / "validation", tmp_path / "data" / "validation")
    shutil.copy(next((toy / "validation").iterdir()), tmp_path / "data" / "validation" / "11_0.jpg")
    assert "a class number that is not 0 to 10" in refused(
        "quantize", checkpoint, tmp_path / "model.bin", "--data", tmp_path / "data", "--cache", "none"
    )
    assert not (tmp_path / "model.bin").exists()


def test_another_input_size_is_stored_and_used(small_model, toy, call, tmp_path):
    measure = ("--data", toy, "--cache", "none", "--record", tmp_path / "record.json")
    result = call("quantize.py", small_model, tmp_path / "out.bin", "--size", 48, *measure)
    assert result.returncode == 0, result.stderr
    before, after = load_model(small_model), load_model(tmp_path / "out.bin")
    assert after.description.preprocessing.size == 48
    assert {**before.description.arguments, "folded": True} == after.description.arguments
    assert json.loads((tmp_path / "record.json").read_text())["model"]["preprocessing"]["size"] == 48
