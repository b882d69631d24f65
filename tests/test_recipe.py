"""recipe.py: --recipe KEY=VALUE, its table, and the defaults of the scripts."""

import dataclasses

import pytest
from conftest import STUDENT, read_json

from compression.command_line import UserError
from compression.training.distillation import Teaching
from compression.training.recipe import DEFAULTS, Settings, defaults_of, parse_recipe, recipe_fields

FIELDS = recipe_fields(Settings, Teaching)


def test_values_are_converted_and_the_last_one_counts():
    chosen = parse_recipe(["lr=1e-3", "augment=medium", "views=4", "lr=0.5"], FIELDS)
    assert chosen == {"lr": 0.5, "augment": "medium", "views": 4}
    assert parse_recipe([], FIELDS) == {}


@pytest.mark.parametrize(
    "text, message",
    [
        ("weight_decy=1", "there is no weight_decy in --recipe; write weight_decay=VALUE"),
        ("zzz=1", "there is no zzz in --recipe; --recipe help lists the keys"),
        ("lr", "--recipe lr is not KEY=VALUE; write lr=VALUE"),
        ("lr=", "'' is not a number above 0"),
        ("lr=nan", "is not a"),
        ("lr=0", "above 0"),
        ("batch_size=1", "at least 2"),
        ("batch_size=2.5", "is not a whole number"),
        ("augment=loud", "'loud' is none of none, course"),
        ("epochs=3", "there is no epochs"),
        ("seed=3", "there is no seed"),
        ("alpha=1.5", "at most 1"),
    ],
)
def test_what_is_no_setting_is_one_sentence(text, message):
    with pytest.raises(UserError) as error:
        parse_recipe([text], FIELDS)
    assert message in str(error.value)


@pytest.mark.parametrize("script", ["train_student.py", "train_kd.py", "prune.py"])
def test_the_table_lists_every_key_with_a_default_that_can_be_given(ok, script):
    done = ok(script, "--recipe help")
    assert not done.stderr
    told = dict(line.split()[0].split("=") for line in done.stdout.splitlines()[1:] if line[2] != " ")
    fields, defaults = recipe_fields(Settings, Teaching), defaults_of(script)
    for key, value in told.items():
        if value and key in fields:
            assert fields[key].metadata["check"](value) == defaults.get(key, fields[key].default), key
    assert {"lr", "batch_size", "precision"} <= told.keys()
    assert ("alpha" in told) == (script != "train_student.py") and ("floor" in told) == (script == "prune.py")
    assert ("label_smoothing" in told) == (script != "train_kd.py")


@pytest.mark.parametrize("words", ["--weight-decay 0.1", "--weight-decay=0.1"])
def test_a_flag_for_a_setting_is_answered_by_how_it_is_given(refused, toy, words):
    assert "write --recipe weight_decay=VALUE" in refused("train_student.py", toy, words)


def test_defaults_are_settings():
    names = {field.name for field in dataclasses.fields(Settings)}
    assert all(values.keys() <= names for values in DEFAULTS.values())


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", {"lr": 2e-3, "weight_decay": 0.05, "label_smoothing": 0.1, "batch_size": 64}),
        ("--recipe optimizer=sgd", {"lr": 0.1, "weight_decay": 5e-4}),
        ("--recipe optimizer=sgd lr=0.3", {"lr": 0.3, "weight_decay": 5e-4}),
        ("--qat-bits 4", {"lr": 5e-4, "qat_bits": 4}),
        ("--qat-bits 4 --recipe lr=0.01 --recipe ema=0", {"lr": 0.01, "ema": 0}),
    ],
)
def test_the_record_tells_the_settings_of_the_command_line(ok, toy, tmp_path, flags, expected):
    ok("train_student.py", toy, f"{STUDENT} --epochs 1 {flags} --out", tmp_path / "run")
    settings = read_json(tmp_path / "run/record.json")["settings"]
    assert {key: settings[key] for key in expected} == expected and settings["epochs"] == 1


def test_preprocessing_of_the_recipe_is_kept_in_the_file_and_taken_over_by_init(ok, toy, tmp_path):
    recipe = "--epochs 1 --recipe detail=24 resize=squash view_size=24 --out"
    ok("train_student.py", toy, STUDENT, recipe, tmp_path / "a")
    more = ("--init", tmp_path / "a/best.pt", "--epochs 1 --cache none --device cpu --out")
    ok("train_student.py", toy, *more, tmp_path / "b")
    for name in "ab":
        record = read_json(tmp_path / name / "record.json")
        preprocessing = record["model"]["preprocessing"]
        assert (preprocessing["detail"], preprocessing["resize"], preprocessing["size"]) == (24, "squash", 32)
        assert record["settings"]["view_size"] == 24
