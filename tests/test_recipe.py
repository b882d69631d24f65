"""recipe.py: --recipe KEY=VALUE, its table, and the defaults of the scripts."""

import dataclasses
import json

import pytest

from compression.command_line import UserError
from compression.training.distillation import Teaching
from compression.training.recipe import DEFAULTS, Settings, defaults_of, parse_recipe, recipe_fields

FIELDS = recipe_fields(Settings, Teaching)
SMALL = "--network student --set widths=4,4,4,4,4,4,4,4 --size 32 --cache none --device cpu".split()


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
        ("view_size=15", "at least 16"),
    ],
)
def test_what_is_no_setting_is_one_sentence(text, message):
    with pytest.raises(UserError) as error:
        parse_recipe([text], FIELDS)
    assert message in str(error.value)


@pytest.mark.parametrize("script", ["train_student.py", "train_kd.py", "prune.py"])
def test_the_table_lists_every_key_with_a_default_that_can_be_given(call, script):
    done = call(script, "--recipe", "help")
    assert done.returncode == 0 and not done.stderr
    told = dict(line.split()[0].split("=") for line in done.stdout.splitlines()[1:] if line[2] != " ")
    fields = recipe_fields(Settings, Teaching)
    for key in {key for key, value in told.items() if value} & fields.keys():
        default = defaults_of(script).get(key, fields[key].default)
        assert fields[key].metadata["check"](told[key]) == default, key
    assert {"lr", "batch_size", "precision"} <= told.keys()
    assert ("alpha" in told) == (script != "train_student.py") and ("floor" in told) == (script == "prune.py")
    assert ("label_smoothing" in told) == (script != "train_kd.py")


def test_help_with_an_equals_sign_and_options_of_their_own(call, refused, toy):
    assert call("train_kd.py", "--recipe=help").returncode == 0
    for key, value, flag in (("epochs", 3, "--epochs 3"), ("qat_bits", 4, "--qat-bits 4")):
        assert f"write {flag}" in refused("train_student.py", toy, "--recipe", f"{key}={value}")


@pytest.mark.parametrize("words", [("--weight-decay", "0.1"), ("--weight-decay=0.1",)])
def test_a_flag_for_a_setting_is_answered_by_how_it_is_given(refused, toy, words):
    assert "write --recipe weight_decay=VALUE" in refused("train_student.py", toy, *words)


def test_defaults_are_settings():
    names = {field.name for field in dataclasses.fields(Settings)}
    assert all(values.keys() <= names for values in DEFAULTS.values())


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "label_smoothing": 0.1}),
        ("--recipe optimizer=sgd", {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "batch_size": 64}),
        ("--recipe optimizer=sgd lr=0.3 --recipe weight_decay=0", {"lr": 0.3, "weight_decay": 0}),
        ("--qat-bits 4 --recipe label_smoothing=0.25", {"lr": 5e-4, "qat_bits": 4, "label_smoothing": 0.25}),
        ("--qat-bits 4 --recipe lr=0.01 --recipe ema=0", {"lr": 0.01, "ema": 0}),
    ],
)
def test_the_record_tells_the_settings_of_the_command_line(call, toy, tmp_path, flags, expected):
    done = call("train_student.py", toy, *SMALL, "--epochs", 1, "--out", tmp_path / "run", *flags.split())
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "run/record.json").read_text())["settings"]
    assert {key: settings[key] for key in expected} == expected and settings["epochs"] == 1


def test_preprocessing_of_the_recipe_is_kept_in_the_file_and_taken_over_by_init(call, toy, tmp_path):
    recipe = ("--recipe", "detail=24", "resize=squash", "view_size=24")
    done = call("train_student.py", toy, *SMALL, "--epochs", 1, *recipe, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    more = ("--init", tmp_path / "a/best.pt", "--epochs", 1, "--cache", "none", "--device", "cpu")
    assert call("train_student.py", toy, *more, "--out", tmp_path / "b").returncode == 0
    for name in "ab":
        record = json.loads((tmp_path / name / "record.json").read_text())
        preprocessing = record["model"]["preprocessing"]
        assert (preprocessing["detail"], preprocessing["resize"], preprocessing["size"]) == (24, "squash", 32)
        assert record["settings"]["view_size"] == 24
