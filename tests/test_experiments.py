"""Experiments, records, and that README.md and model.bin agree with the records."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from compression.command_line import UserError
from compression.files.loading import load_model
from compression.files.records import provenance
from experiments import __main__ as experiments
from experiments import comparisons
from models import build

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = "{data} --size 16 --epochs 1 --batch-size 11 --cache none --network student"
TINY = comparisons.Experiment(
    "does it run",
    {
        "four": f"train_student.py {OPTIONS} --set widths=4,4,4,4,4,4,4,4 {comparisons.RUN}",
        "measured": "evaluate.py {four@0}/best.pt {data} --cache none --record {out}/record.json",
    },
    seeds=(0, 1),
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny", TINY)


def test_an_experiment_records_every_run_once(tiny, toy, call, tmp_path):
    command = [
        "experiments/__main__.py",
        "tiny",
        toy,
        "--runs",
        tmp_path / "runs",
        "--results",
        tmp_path / "results",
    ]
    first = call(*command)
    assert first.returncode == 0, first.stderr
    files = sorted((tmp_path / "results/tiny").iterdir())
    assert [path.name for path in files] == [
        "four-seed0.json",
        "four-seed1.json",
        "measured-seed0.json",
        "measured-seed1.json",
    ]
    record = json.loads(files[0].read_text())
    assert record["model"]["arguments"]["widths"] == [4] * 8 and record["seed"] == 0
    seeds = [json.loads(path.read_text())["model"]["training"]["seed"] for path in files[2:]]
    assert seeds == [0, 0], "both were to measure the run of seed 0"
    before = [path.read_bytes() for path in files]
    assert call(*command).stdout.count("already recorded") == 4
    assert [path.read_bytes() for path in files] == before


def test_a_changed_command_is_run_again_and_one_that_is_needed_too(tiny, toy, call, tmp_path, monkeypatch):
    command = ["experiments/__main__.py", "tiny", toy, "--results", tmp_path / "results", "--runs"]
    assert call(*command, tmp_path / "runs").returncode == 0
    monkeypatch.setitem(TINY.variants, "measured", TINY.variants["measured"] + " --device cpu")
    again = call(*command, tmp_path / "other machine")
    assert again.returncode == 0, again.stderr
    assert (
        again.stdout.count("done") == 3 and again.stdout.count("already recorded") == 1
    )  # both measurements, and the run of seed 0
    assert json.loads((tmp_path / "results/tiny/measured-seed1.json").read_text())["command"].endswith(
        "--device cpu"
    )


@pytest.mark.parametrize(
    ("option", "recorded"),
    [("--lr 0.002", True), ("--lr 0.005", False), ("--batch-size 64", False), ("--out elsewhere", False)],
)
def test_an_option_left_to_its_default_counts_as_named_with_the_value_of_the_record(
    tmp_path, option, recorded
):
    record = {
        "command": "train_student.py /photos --epochs 3 --seed 1",
        "seed": 1,
        "settings": {"epochs": 3, "lr": 0.002, "batch_size": 32},
        "data": {"training": "abc"},
    }
    (tmp_path / "record.json").write_text(json.dumps(record))
    template = f"train_student.py {{data}} {option} --epochs 3 --seed {{seed}}"
    assert (
        experiments.Job(template, (), tmp_path, tmp_path / "record.json", ()).recorded({"training": "abc"})
        == recorded
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"command": "train_stu',
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"command": "train_student.py data", "seed": 0}',
        b'{"command": "train_student.py data", "seed": 0, "data": 3}',
    ],
)
def test_a_damaged_record_is_none(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    assert not experiments.Job(
        "train_student.py {data}", (), tmp_path, tmp_path / "record.json", ()
    ).recorded({})


@pytest.mark.parametrize("folder", [".", "tests"])
def test_the_shipped_model_is_the_teacher_wherever_the_experiment_is_started(tmp_path, monkeypatch, folder):
    """Named from there, as a record keeps the command and has no use for the folder the project lies in."""
    monkeypatch.chdir(ROOT / folder)
    (job,) = (
        job
        for job in experiments.plan("choices", Path("data"), Path("runs"), tmp_path, [0])
        if job.out.name == "no_ema-0"
    )
    teacher = Path(job.command[job.command.index("--teacher") + 1])
    assert teacher.samefile(ROOT / "model.bin") and not teacher.is_absolute()


def test_a_record_is_copied_whole_or_not_at_all(tmp_path, monkeypatch):
    """Where it cannot be written, an older one stays."""

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    job = experiments.Job("x", ("no_such_script.py",), tmp_path / "run", tmp_path / "results/x.json", ())
    job.out.mkdir(), job.result.parent.mkdir()
    (job.out / "record.json").write_text("new")
    job.result.write_text("old")
    monkeypatch.setattr(
        experiments.subprocess, "run", lambda *arguments, **more: SimpleNamespace(returncode=0)
    )
    with monkeypatch.context() as patch:
        patch.setattr("compression.files.atomic.os.replace", full_disk)
        with pytest.raises(UserError, match="nothing was changed"):
            experiments.perform(job, 1)
    assert (
        job.result.read_text() == "old"
        and experiments.perform(job, 1) == (True, "x.json: done")
        and job.result.read_text() == "new"
    )


def test_what_builds_on_a_changed_run_is_run_again_and_not_where_that_fails(tmp_path, monkeypatch):
    base, cut = (
        experiments.Job(name, (name,), tmp_path / name, tmp_path / f"{name}.json", needs)
        for name, needs in (("base", ()), ("cut", (tmp_path / "base",)))
    )
    begun = []
    monkeypatch.setattr(
        experiments.Job, "recorded", lambda job, fingerprints: job.template == "cut"
    )  # the command of base has changed
    for well in (True, False):
        monkeypatch.setattr(
            experiments,
            "perform",
            lambda job, threads, well=well: (begun.append(job.template), (well, job.template))[1],
        )
        assert [ended for ended, _ in experiments.schedule([base, cut], {}, 1)] == [well, well]
    assert begun == ["base", "cut", "base"]


def test_a_run_of_another_experiment_is_named_when_it_is_missing(toy, call, tmp_path, monkeypatch):
    monkeypatch.setitem(
        experiments.EXPERIMENTS,
        "later",
        comparisons.Experiment(
            "?", {"one": "evaluate.py {tiny/four}/best.pt {data} --record {out}/record.json"}, (0,)
        ),
    )
    result = call(
        "experiments/__main__.py",
        "later",
        toy,
        "--runs",
        tmp_path / "runs",
        "--results",
        tmp_path / "results",
    )
    assert result.returncode == 2 and "run the experiment tiny first" in result.stdout


def test_the_published_records_are_those_of_the_experiments():
    for name in experiments.EXPERIMENTS:
        for job in experiments.plan(name, Path("data"), Path("runs"), ROOT / "results"):
            if job.result.exists():
                assert job.recorded({}), (
                    f"{job.result} holds another command than the experiment's: {job.template}"
                )


def test_a_failed_run_is_told_and_the_others_are_kept(tiny, toy, call, tmp_path, monkeypatch):
    monkeypatch.setitem(
        TINY.variants, "broken", f"train_student.py {OPTIONS} --set widths=0,4 {comparisons.RUN}"
    )
    result = call(
        "experiments/__main__.py", "tiny", toy, "--runs", tmp_path / "runs", "--results", tmp_path / "results"
    )
    assert result.returncode == 2 and "2 runs failed" in result.stderr and "broken" in result.stdout
    assert len(list((tmp_path / "results/tiny").iterdir())) == 4


@pytest.mark.parametrize("arguments", [[], ["scratch"], ["no such experiment", "data"]])
def test_an_unknown_experiment_is_a_user_error(refused, arguments):
    assert "name an experiment" in refused("experiments/__main__.py", *arguments)


def test_provenance_names_what_a_number_depends_on():
    import torch

    found = provenance(torch.device("cpu"), 3, {"training": "abc"})
    assert (
        found["seed"] == 3
        and found["data"] == {"training": "abc"}
        and found["versions"]["torch"] == torch.__version__
    )
    assert found["command"] and found["commit"] and found["device"]


# ---------------------------------------------------------------- what is published


def test_the_tables_of_the_readme_are_those_of_the_records():
    result = subprocess.run(
        [sys.executable, ROOT / "results/fill_readme.py", "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def fill_readme(monkeypatch):
    """The module results/fill_readme.py."""
    monkeypatch.syspath_prepend(ROOT / "results")
    return importlib.import_module("fill_readme")


def test_a_changed_record_changes_the_readme(tmp_path, fill_readme):
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in fill_readme.PAGES}
    results = shutil.copytree(ROOT / "results", tmp_path / "results")
    for path in sorted((results / "recipes").glob("ours-*.json")):
        record = json.loads(path.read_text())
        record["best"]["validation_accuracy"] = 0.123456
        path.write_text(json.dumps(record))
    filled = fill_readme.fill(pages, fill_readme.summarise(results))
    assert "12.35 ± 0.00" in filled["docs/findings.md"] and "12.35" not in pages["docs/findings.md"]
    assert filled["README.md"] == pages["README.md"]


@pytest.mark.parametrize("edit", [("<!-- end model -->", ""), ("begin model", "begin nonsense")])
def test_a_table_without_its_marks_is_named(fill_readme, edit):
    pages = {page: (ROOT / page).read_text(encoding="utf-8").replace(*edit) for page in fill_readme.PAGES}
    with pytest.raises(UserError, match="need exactly one table model"):
        fill_readme.fill(pages, fill_readme.summarise())


def test_every_file_and_script_that_the_readme_names_exists():
    text = "".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    )
    named = set(re.findall(r"`([a-z0-9_]+\.(?:py|sh|txt|bin))`", text)) | set(
        re.findall(r"python ([a-z0-9_/]+\.py)", text)
    )
    assert {"train_student.py", "quantize.py", "inference.py", "model.bin"} <= named
    assert not [
        name for name in named - {"teacher_resnet18.bin"} if not (ROOT / name).is_file()
    ]  # the course's file


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_every_link_between_the_pages_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).is_file()]


def test_the_shipped_model_is_the_recorded_one():
    record, training = (
        json.loads((ROOT / f"results/{name}.json").read_text()) for name in ("model", "model_training")
    )
    model = load_model(ROOT / "model.bin")
    assert (ROOT / "model.bin").stat().st_size == record["file_bytes"] <= 300_000
    assert model.description.to_dict() == record["model"] and model.bits == record["bits"]
    unfolded = build(model.description.architecture, **{**model.description.arguments, "folded": False})
    assert sum(parameter.numel() for parameter in unfolded.parameters()) == training["parameters"]
    assert abs(record["validation_accuracy_before"] - record["validation_accuracy_after"]) < 0.05
    assert not model.description.training.get("transductive")


def test_the_experiment_with_own_classes_trains_the_shipped_network():
    from experiments.comparisons import SHIPPED
    from models import parse_arguments

    shipped, given = (
        load_model(ROOT / "model.bin").description.arguments,
        parse_arguments(SHIPPED.split()[1::2]),
    )
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()} == {
        key: shipped[key] for key in given
    }


def test_the_shipped_model_predicts_through_hw7_test(toy, tmp_path):
    result = subprocess.run(
        ["bash", ROOT / "hw7_test.sh", toy, tmp_path / "out.csv"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert result.returncode == 0, result.stderr
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "Id,label" and [row.split(",")[0] for row in rows[1:]] == [
        str(index) for index in range(15)
    ]


def test_the_shipped_model_reaches_its_recorded_accuracy(food11):
    """Where the stand-in is at hand: the accuracy after quantization, again."""
    import torch

    from compression.training.loop import evaluate
    from dataset import list_labelled, load_photos

    record, model = json.loads((ROOT / "results/model.json").read_text()), load_model(ROOT / "model.bin")
    listing = list_labelled(food11, "validation", model.description.class_names)
    if listing.fingerprint() != record["data"]["validation"]:
        pytest.skip(f"{food11} holds other photos than the record's")
    preprocessing = model.description.preprocessing
    photos = load_photos(listing, preprocessing, cache=False)
    accuracy = evaluate(model.build(), photos, preprocessing, torch.device("cpu"))[1]
    assert accuracy == pytest.approx(record["validation_accuracy_after"], abs=0.002)


def hw7_train(folder, *options):
    """The commands that hw7_train.sh starts for `folder`/food, noted by a stand-in for Python."""
    python, noted = folder / "python", folder / "noted.txt"
    python.write_text(f'#!/bin/sh\necho "$@" >> "{noted}"\n')
    python.chmod(0o755)
    command = [
        "bash",
        ROOT / "hw7_train.sh",
        folder / "food",
        folder / "out.bin",
        "--runs",
        folder / "runs",
        *options,
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in noted.read_text().splitlines()]


def value(command, flag):
    """What a command gives behind the last of these flags."""
    return command[len(command) - command[::-1].index(flag)]


def test_hw7_train_goes_from_the_given_teachers_with_the_given_options(tmp_path):
    (tmp_path / "food/training").mkdir(parents=True)
    for index in range(50):
        (tmp_path / f"food/training/0_{index}.jpg").touch()
    options = ("--teacher", "a.onnx", "--recipe", "detail=64", "--teacher", "b.pt", "--size", "96")
    student, tuning, stored = hw7_train(tmp_path, *options)
    for command in (student, tuning):
        assert [command[index + 1] for index, part in enumerate(command) if part == "--teacher"] == [
            "a.onnx",
            "b.pt",
        ]
        assert "views=1000" in command, "no more than train_kd.py takes"
    assert "detail=64" in student and value(student, "--size") == "96"
    assert value(student, "--epochs") == "63200" and value(tuning, "--epochs") == "21067", (
        "3.16 million views, and a third more"
    )
    assert value(tuning, "--init") == stored[1].replace("rounded", "student")


@pytest.mark.parametrize(
    "options, scripts",
    [
        ([], ["train_student.py", "train_kd.py", "train_kd.py", "quantize.py"]),
        (
            ["--teacher", "none.pt", "--epochs", "7", "--recipe", "detail=64"],
            ["train_kd.py", "train_kd.py", "quantize.py"],
        ),
    ],
)
def test_the_options_that_hw7_train_gives_exist(call, tmp_path, options, scripts):
    """The scripts must get as far as missing data or files."""
    commands = hw7_train(tmp_path, *options)
    assert [Path(command[0]).name for command in commands] == scripts
    assert commands[-1][2] == str(tmp_path / "out.bin")
    assert all("--resume" in command for command in commands[:-1])
    for command in commands:
        result = call(Path(command[0]).name, *command[1:])
        assert result.returncode == 2 and re.search(
            "there is no (folder|model file|teacher file)", result.stderr
        ), result.stderr


@pytest.mark.parametrize(
    "wrong", [[], ["model.bin", "--epochs"], ["model.bin", "--epochs", "few"], ["model.bin", "--teacher"]]
)
def test_hw7_train_with_wrong_arguments_tells_its_usage(wrong):
    done = subprocess.run(["bash", ROOT / "hw7_train.sh", "data", *wrong], capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr
