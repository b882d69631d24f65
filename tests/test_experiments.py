"""Experiments, records, and that README.md and model.bin agree with the records."""

import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from compression.command_line import UserError
from compression.files.loading import load_model
from compression.files.records import provenance, write_record
from experiments import __main__ as experiments
from experiments import comparisons
from models import build, parse_arguments

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MISSING = "there is no (folder|model file|teacher file)"  # as far as scripts get with arguments that fit
TINY = comparisons.Experiment(
    "does it run",
    {
        "four": "train_student.py {data} --size 16 --epochs 1 --cache none --network student "
        f"--set widths=4,4,4,4,4,4,4,4 --recipe batch_size=11 {comparisons.RUN}",
        "measured": "evaluate.py {four@0}/best.pt {data} --cache none --record {out}/record.json",
    },
    seeds=(0,),
)


@pytest.fixture
def tiny(monkeypatch, tmp_path, toy):
    """Variants of an experiment that may be changed, and the arguments that run it."""
    variants = dict(TINY.variants)
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny", replace(TINY, variants=variants))
    monkeypatch.chdir(tmp_path)
    return variants, ("experiments/__main__.py", "tiny", toy, "--results", "results")


@pytest.fixture
def pretended(monkeypatch):
    """Runs are noted in a list and end at once, with a record of what their variant says; one whose name is
    in the set fails.
    """
    begun, failing = [], set()

    def start(targets, file, workers, further):
        for job in experiments.with_needs(targets):
            record = job.out / "record.json"
            if record.exists() or any(not (need.out / "record.json").exists() for need in job.needs):
                continue
            begun.append(job.out.name)
            if job.out.name not in failing:
                named = experiments.settings_in(job.template)
                settings = {key: value.split(",") if "," in value else value for key, value in named.items()}
                model = {"preprocessing": {}, "arguments": {}, "training": {}}
                model["architecture"] = named.get("network", "student")
                date = f"2026-01-01T00:00:{len(begun):02}"
                write_record(record, {"settings": settings, "model": model, "data": {}, "date": date})

    monkeypatch.setattr(experiments, "start", start)
    return begun, failing


def test_snakemake_runs_an_experiment_once_and_names_what_failed(tiny, call, tmp_path):
    pytest.importorskip("snakemake")
    variants, command = tiny
    variants["broken"] = variants["four"].replace("widths=4,", "widths=0,")
    first = call(*command, "--workers", 2)
    assert first.returncode == 2 and "1 of 3 runs failed: runs/tiny/broken-0;" in first.stderr
    assert "widths" in Path("runs/tiny/broken-0/output.txt").read_text()
    files = sorted(Path("results/tiny").iterdir())
    assert [path.name for path in files] == ["four-seed0.json", "measured-seed0.json"]
    four, measured = (json.loads(path.read_text()) for path in files)
    assert four["model"]["arguments"]["widths"] == [4] * 8 and four["settings"]["batch_size"] == 11
    assert measured["model"]["training"]["seed"] == 0 and str(tmp_path) not in str(measured["versions"])
    before = [path.read_bytes() for path in files]
    del variants["broken"]
    again = call(*command)
    assert again.returncode == 0 and "0 of 2 runs to do" in again.stdout
    assert [path.read_bytes() for path in files] == before


def test_a_changed_setting_is_run_again_with_what_builds_on_it(tiny, pretended, call):
    variants, command = tiny
    begun, failing = pretended
    assert call(*command).returncode == 0 and begun == ["four-0", "measured-0"]
    variants["four"] += " --recipe lr=0.01"
    assert "2 of 2 runs to do" in call(*command, "--dry-run").stdout and len(begun) == 2
    failing.add("four-0")
    result = call(*command)
    assert result.returncode == 2 and "runs/tiny/four-0" in result.stderr
    assert "lr" not in experiments.read(Path("results/tiny/four-seed0.json"))["settings"], "the old one stays"
    failing.clear(), failing.add("measured-0")
    assert call(*command).returncode == 2 and begun[2:] == ["four-0", "four-0", "measured-0"]
    assert [path.name for path in Path("results/tiny").iterdir()] == ["four-seed0.json"]
    failing.clear()
    assert call(*command).returncode == 0 and begun[5:] == ["measured-0"]
    assert call(*command).returncode == 0 and len(begun) == 6
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == [
        "four-0",
        "four-0.20260101000001",
        "measured-0",
        "measured-0.20260101000002",
    ]


def test_what_a_missing_run_needs_is_run_too_also_of_another_experiment(tiny, pretended, call, monkeypatch):
    variants, command = tiny
    begun, _ = pretended
    later = comparisons.Experiment("?", {"one": variants["measured"].replace("four", "tiny/four")}, (3,))
    monkeypatch.setitem(experiments.EXPERIMENTS, "later", later)
    assert call(command[0], "later", *command[2:]).returncode == 0 and begun == ["four-0", "one-3"]
    assert Path("results/tiny/four-seed0.json").exists() and Path("results/later/one-seed3.json").exists()


def test_a_record_is_kept_whole_or_not_at_all(tiny, pretended, call, monkeypatch):
    """Where it cannot be written, an older one stays."""
    variants, command = tiny
    call(*command)
    before = Path("results/tiny/four-seed0.json").read_text()
    variants["four"] += " --recipe lr=0.01"

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        write = experiments.write_record

        def fails(path, record):
            if "results" in path.parts:
                patch.setattr("compression.files.atomic.os.replace", full_disk)
            write(path, record)

        patch.setattr(experiments, "write_record", fails)
        assert "nothing was changed" in call(*command).stderr
    assert Path("results/tiny/four-seed0.json").read_text() == before
    assert call(*command).returncode == 0 and Path("results/tiny/four-seed0.json").read_text() != before


def job_of(template, folder=Path("run"), experiment="scratch"):
    return experiments.Job(experiment, template, (), folder, folder / "record.json", ())


RECORD = {
    "settings": {"epochs": 3, "lr": 0.002, "augment": "light"},
    "model": {
        "architecture": "residual6",
        "arguments": {"hidden": [96, 160], "head": 384, "pools": None},
        "preprocessing": {"size": 64, "detail": 48},
        "training": {"alpha": 0.8, "view_size": 48},
    },
    "teachers": [{"sha256": "abc"}],
    "data": {"training": "1+2", "validation": "3"},
}
VARIANT = "train_kd.py {data} --teacher {strong}"


@pytest.mark.parametrize(
    "options, matches",
    [
        ("", True),
        ("--out elsewhere --max-bytes 7 --device cpu --data {data} --resume", True),
        ("--size 64 --epochs 3 --network residual6", True),
        ("--recipe lr=2e-3 augment=light alpha=0.80 detail=48 --recipe view_size=48", True),
        ("--set hidden=96,160 --set head=384", True),
        ("--size 96", False),
        ("--recipe augment=light lr=0.005", False),
        ("--recipe alpha=1", False),
        ("--recipe temperature=4", False),
        ("--network student", False),
        ("--set hidden=96,161", False),
        ("--set hidden=96", False),
        ("--set pools=1,0", False),
        ("--unlabeled {data}/testing", False),
    ],
)
def test_a_record_matches_a_variant_by_its_settings_and_network(options, matches):
    assert job_of(f"{VARIANT} {options}").matches(RECORD, {}) == matches


def test_a_record_matches_with_its_own_photos_and_teacher_only():
    job = job_of(VARIANT)
    assert job.matches(RECORD, {"training": "1", "validation": "3", "strong": "abc"})
    assert not job.matches(RECORD, {"training": "1", "validation": "4"})
    tuned = {key: value for key, value in RECORD.items() if key != "teachers"}
    tuned["fine_tuning"] = {"teachers": RECORD["teachers"]}  # of QAT, before the network was stored
    assert job.matches(tuned, {"strong": "abc"}) and not job.matches(tuned, {"strong": "abd"})
    assert not job.matches({**tuned, "fine_tuning": {}}, {})
    assert not job.matches(RECORD, {"strong": "abd"}) and not job_of("train_kd.py").matches(RECORD, {})
    subset = job_of(VARIANT, experiment="own_classes")
    assert subset.matches(RECORD, {"validation": "4"}), "a part of the photos has another fingerprint"


@pytest.mark.parametrize("content", [b"", b'{"model": {"arch', b"\xff\xfe", b"[]", b"null", b"{}"])
def test_a_damaged_record_is_none(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    assert not job_of("train_student.py {data}", tmp_path).recorded({})


@pytest.mark.parametrize("damage", [{"data": 3}, {"model": []}, {"teachers": [3]}, {"pruning": {"kept": 1}}])
def test_a_record_with_wrong_types_is_none(damage):
    assert not job_of(VARIANT).matches({**RECORD, **damage}, {"strong": "abc"})


@pytest.mark.parametrize("folder", [".", "tests"])
def test_the_shipped_model_is_the_teacher_wherever_the_experiment_is_started(tmp_path, monkeypatch, folder):
    """Named from there, as a record keeps the command and has no use for the folder the project lies in."""
    monkeypatch.chdir(ROOT / folder)
    jobs = experiments.plan("testing", Path("data"), Path("runs"), tmp_path, [0])
    (job,) = (job for job in jobs if job.out.name == "unlabelled-0")
    teacher = Path(job.command[job.command.index("--teacher") + 1])
    assert teacher.samefile(ROOT / "model.bin") and not teacher.is_absolute()


def test_the_published_records_are_those_of_the_experiments():
    for name in experiments.EXPERIMENTS:
        for job in experiments.plan(name, Path("data"), Path("runs"), ROOT / "results"):
            if job.result.exists():
                assert job.recorded({}), f"{job.result} is not of the variant: {job.template}"


def test_the_commands_of_all_experiments_are_understood(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in experiments.EXPERIMENTS:
        for job in experiments.plan(name, Path("data"), Path("runs"), tmp_path, [0], strong="strong.onnx"):
            for script, *words in (part.split() for part in " ".join(job.command).split(" && ")):
                assert re.search(MISSING, refused(script, *words)), job.command


def test_errors_name_the_package_that_python_runs():
    command = [sys.executable, "-m", "experiments", "none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("experiments: error: name an experiment")


@pytest.mark.parametrize("arguments", [[], ["scratch"], ["no such experiment", "data"]])
def test_an_unknown_experiment_is_a_user_error(refused, arguments):
    assert "name an experiment" in refused("experiments/__main__.py", *arguments)


def test_the_strong_teacher_must_be_named_and_exist(refused, toy, tmp_path, monkeypatch):
    strong = comparisons.Experiment("?", {"one": "train_kd.py {data} --teacher {strong}"})
    monkeypatch.setitem(experiments.EXPERIMENTS, "strong", strong)
    assert "--strong FILE" in refused("experiments/__main__.py", "strong", toy)
    missing = ("strong", toy, "--strong", tmp_path / "none.onnx")
    assert "there is no file" in refused("experiments/__main__.py", *missing)


def test_snakemake_is_optional(refused, toy, monkeypatch):
    monkeypatch.setattr(experiments.importlib.util, "find_spec", lambda name: None)
    assert "pip install -r experiments/requirements.txt" in refused("experiments/__main__.py", "scratch", toy)


def test_the_training_before_storing_is_in_the_record(tmp_path):
    """As it is in those records whose QAT was one command with the storing."""
    job = job_of("quantize.py", tmp_path)
    assert job.record() == {}
    write_record(tmp_path / "run/record.json", {"settings": {"epochs": 2}, "history": [1], "model": {}})
    write_record(tmp_path / "record.json", {"bits": 4})
    assert job.record() == {"bits": 4, "fine_tuning": {"settings": {"epochs": 2}}}


def test_provenance_names_what_a_number_depends_on():
    import torch

    found = provenance(torch.device("cpu"), 3, {"training": "abc"})
    assert found["seed"] == 3 and found["data"] == {"training": "abc"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["command"] and found["commit"] and found["device"]


# ---------------------------------------------------------------- what is published


def test_the_tables_of_the_readme_are_those_of_the_records():
    command = [sys.executable, ROOT / "results/fill_readme.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def fill_readme(monkeypatch):
    """The module results/fill_readme.py."""
    monkeypatch.syspath_prepend(ROOT / "results")
    return importlib.import_module("fill_readme")


def test_a_changed_record_changes_the_readme(tmp_path, fill_readme):
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in fill_readme.PAGES}
    results = shutil.copytree(ROOT / "results", tmp_path / "results")
    for path in sorted((results / "distillation").glob("student_course-*.json")):
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
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`([a-z0-9_]+\.(?:py|sh|txt|bin))`", text))
    named |= set(re.findall(r"python ([a-z0-9_/]+\.py)", text))
    assert {"train_student.py", "quantize.py", "inference.py", "model.bin"} <= named
    # the course's
    known = {path.name for path in ROOT.glob("compression/**/*.py")} | {"teacher_resnet18.bin"}
    assert not [name for name in named - known if not (ROOT / name).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_the_pages_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).is_file()]


def test_the_shipped_model_is_the_recorded_one():
    names = ("model", "model_training", "model_qat")
    record, training, tuning = (json.loads((ROOT / f"results/{name}.json").read_text()) for name in names)
    model = load_model(ROOT / "model.bin")
    assert (ROOT / "model.bin").stat().st_size == record["file_bytes"] <= 300_000
    assert model.description.to_dict() == record["model"] and model.bits == record["bits"]
    unfolded = build(model.description.architecture, **{**model.description.arguments, "folded": False})
    assert sum(parameter.numel() for parameter in unfolded.parameters()) == training["parameters"]
    assert training["parameters"] == tuning["parameters"] and tuning["settings"]["qat_bits"] == model.bits
    assert abs(record["validation_accuracy_before"] - record["validation_accuracy_after"]) < 0.05
    assert not model.description.training.get("transductive")


def test_the_experiment_with_own_classes_trains_the_shipped_network():
    shipped = load_model(ROOT / "model.bin").description.arguments
    given = json.loads(json.dumps(parse_arguments(comparisons.SHIPPED.split()[1::2])))  # tuples as lists
    assert given == {key: shipped[key] for key in given}


def bash(script, *arguments, python):
    """Run a script of the project with this Python; the CompletedProcess."""
    environment = {**os.environ, "PYTHON": str(python)}
    return subprocess.run(
        ["bash", ROOT / script, *arguments], env=environment, capture_output=True, text=True
    )


def test_the_shipped_model_predicts_through_hw7_test(toy, tmp_path):
    done = bash("hw7_test.sh", toy, tmp_path / "out.csv", python=sys.executable)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table) == ["Id", "label"] and list(table["Id"]) == list(range(15))


def test_the_shipped_model_reaches_its_recorded_accuracy(food11):
    """Where the stand-in is at hand."""
    import torch

    from compression.training.evaluation import evaluate
    from dataset import list_labelled, load_photos

    record = json.loads((ROOT / "results/evaluation_food11.json").read_text())
    model = load_model(ROOT / "model.bin")
    listing = list_labelled(food11, "validation", model.description.class_names)
    if listing.fingerprint() != record["data"]["validation"]:
        pytest.skip(f"{food11} holds other photos than the record's")
    preprocessing = model.description.preprocessing
    photos = load_photos(listing, preprocessing, cache=False)
    accuracy = evaluate(model.build(), photos, preprocessing, torch.device("cpu"))[1]
    assert accuracy == pytest.approx(record["accuracy"], abs=0.002)


def hw7_train(folder, *options):
    """The commands that hw7_train.sh starts for `folder`/food, noted by a stand-in for Python that answers to
    models.py with a width.
    """
    python, noted = folder / "python", folder / "noted.txt"
    answer = 'case $1 in */models.py) echo "--set head=96" ;; esac'
    python.write_text(f'#!/bin/sh\necho "$@" >> "{noted}"\n{answer}\n')
    python.chmod(0o755)
    arguments = (folder / "food", folder / "out.bin", "--runs", folder / "runs", *options)
    done = bash("hw7_train.sh", *arguments, python=python)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in noted.read_text().splitlines()]


def values(command, flag):
    """What a command gives behind each of these flags."""
    return [value for one, value in itertools.pairwise(command) if one == flag]


def test_hw7_train_goes_from_the_given_teachers_with_the_given_options(tmp_path):
    (tmp_path / "food/training").mkdir(parents=True)
    for index in range(50):
        (tmp_path / f"food/training/0_{index}.jpg").touch()
    options = ("--teacher", "a.onnx", "--recipe", "teacher_size=64", "--teacher", "b.pt", "--size", "96")
    options += ("--set=head=320", "--recipe", "lr=0.01", "--seed", "3", "--device=cpu")
    widest, student, tuning, stored = hw7_train(tmp_path, *options)
    assert values(widest, "--max-bytes") == values(stored, "--max-bytes") == ["300000"]
    assert values(widest, "--widest") == [str(tmp_path / "food")]
    for command in (student, tuning):
        assert values(command, "--teacher") == ["a.onnx", "b.pt"]
        assert "views=1000" in command, "no more than train_kd.py takes"
        assert "teacher_size=64" in command and values(command, "--size")[-1] == "96"
        assert values(command, "--seed") == ["3"]
    assert values(stored, "--device") == ["cpu"] and "--seed" not in stored
    rates = [[part for part in one if part.startswith("lr=")][-1] for one in (student, tuning)]
    assert rates == ["lr=0.01", "lr=0.001"]
    assert values(student, "--set") == ["head=96", "head=320"] and "--set" not in tuning, (
        "which --init does not take"
    )
    assert values(student, "--epochs") == ["126000"], "a schedule of 6.3 million views"
    assert values(tuning, "--epochs") == ["42000"], "a third of it"
    assert "stop_epoch=84001" in student and "stop_epoch=0" in tuning
    assert values(tuning, "--init") == [stored[1].replace("rounded", "student")]


@pytest.mark.parametrize(
    "options, scripts",
    [
        ("", "models.py train_student.py train_kd.py train_kd.py quantize.py"),
        (
            "--teacher none.pt --epochs 7 --recipe detail=64 --max-bytes 90000",
            "models.py train_kd.py train_kd.py quantize.py",
        ),
    ],
)
def test_the_options_that_hw7_train_gives_exist(refused, tmp_path, options, scripts):
    commands = hw7_train(tmp_path, *options.split())
    assert [Path(command[0]).name for command in commands] == scripts.split()
    assert commands[-1][2] == str(tmp_path / "out.bin")
    assert all("--resume" in command for command in commands[1:-1])
    for command in commands:
        assert re.search(MISSING, refused(Path(command[0]).name, *command[1:]))


def test_hw7_train_without_a_teacher_trains_one_on_the_same_photos_and_takes_any_network(tmp_path):
    options = ("--validation-share=0.2", "--network", "student", "--epochs=7")
    teacher, student, tuning, stored = hw7_train(tmp_path, *options)
    assert all(values(command, "--validation-share") == ["0.2"] for command in (teacher, student, tuning))
    assert values(student, "--network")[-1] == "student"
    assert "--set" not in student and "--network" not in tuning
    assert values(student, "--epochs")[-1] == "7" and "--validation-share" not in stored


@pytest.mark.parametrize("option", ["--qat-bits", "--init=model.bin", "--out"])
def test_hw7_train_refuses_what_it_sets_itself(option):
    done = bash("hw7_train.sh", "data", "model.bin", option, "4", python=sys.executable)
    assert done.returncode == 2 and f"{option.partition('=')[0]} is set by this script" in done.stderr


@pytest.mark.parametrize("script", ["hw7_train.sh", "hw7_test.sh"])
def test_shell_scripts_show_their_help(script):
    done = bash(script, "--help", python=sys.executable)
    assert done.returncode == 0 and done.stderr == ""
    assert f"bash {script} <data directory>" in done.stdout and "set -e" not in done.stdout


def test_hw7_train_refuses_a_folder_in_place_of_the_model_file_before_it_trains(tmp_path):
    done = bash("hw7_train.sh", "data", tmp_path, python=sys.executable)
    assert done.returncode == 2 and "name a file" in done.stderr


@pytest.mark.parametrize("option", ["--techer=x", "--dry-run", "-x", "lr"])
def test_hw7_train_refuses_other_options_before_it_trains(option):
    done = bash("hw7_train.sh", "data", "model.bin", option, python=sys.executable)
    assert done.returncode == 2 and f"there is no option {option.partition('=')[0]} here" in done.stderr


@pytest.mark.parametrize(
    "failing, advice", [("train_kd.py", "another --runs"), ("quantize.py", "--max-bytes 285000 --widest")]
)
def test_hw7_train_says_what_to_do_when_a_script_refuses(tmp_path, failing, advice):
    (tmp_path / "python").write_text(f"#!/bin/sh\ncase $1 in */{failing}) exit 2 ;; esac\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "runs/student").mkdir(parents=True)
    (tmp_path / "runs/student/last.pt").touch()
    options = ("food", "out.bin", "--teacher", "a.pt", "--runs", tmp_path / "runs")
    done = bash("hw7_train.sh", *options, python=tmp_path / "python")
    assert done.returncode == 2 and advice in done.stderr


WRONG = ("--epochs", "--epochs few", "--store-size big", "--teacher", "--max-bytes 90kB --network student")


@pytest.mark.parametrize("wrong", [[], *(["model.bin", *words.split()] for words in WRONG)], ids=str)
def test_hw7_train_with_wrong_arguments_tells_its_usage(wrong):
    done = bash("hw7_train.sh", "data", *wrong, python=sys.executable)
    assert done.returncode == 2 and re.search("usage|is not a whole number above 0", done.stderr)
    done = bash("hw7_train.sh", "--epochs", "3", "data", *wrong, python=sys.executable)
    assert done.returncode == 2 and "usage" in done.stderr


def test_parameters_are_met_within_5_percent_and_never_exceeded():
    assert [experiments.same("parameters", "1000", value) for value in (940, 950, 1000, 1001)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_run_older_than_what_it_builds_on_is_not_finished(tmp_path):
    need = replace(job_of(VARIANT), out=tmp_path / "need")
    job = replace(job_of(VARIANT), out=tmp_path / "job", needs=(need,))
    for one, date in ((need, "2026-01-02"), (job, "2026-01-03")):
        one.out.mkdir()
        (one.out / "record.json").write_text(json.dumps({**RECORD, "date": date}))
    assert job.finished({})
    (job.out / "record.json").write_text(json.dumps({**RECORD, "date": "2026-01-01"}))
    assert not job.finished({})
