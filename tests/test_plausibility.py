"""Numbers from outside: logits that are not finite, normalisations that no file tells, and wrapped or renamed
state_dicts.
"""

import argparse
from dataclasses import replace

import pytest
import torch
from torch import nn

from compression.command_line import UserError
from compression.data.plausibility import choose_normalisation, normalised, settle_normalisation
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.foreign import COURSE_PREPROCESSING, is_state_dict, unwrapped, without_prefixes
from compression.files.loading import load_model
from compression.files.model_file import CHECKPOINT_FORMAT, VERSION
from compression.training.run_folder import write_checkpoint
from compression.training.teachers import check_teachers, read_teachers
from dataset import FOOD11_CLASSES, list_labelled, load_photos
from models import build

CPU = torch.device("cpu")
STUDENT = {"widths": (4,) * 8, "in_channels": 3}
DESCRIPTION = Description.of("student", STUDENT, FOOD11_CLASSES, Preprocessing(32))
WHOSE = ("the model m", "--normalisation ")


def state(seed=0):
    torch.manual_seed(seed)
    return build("student", **STUDENT).state_dict()


# ---------------------------------------------------------------- logits that are not finite


@pytest.fixture
def overflowing(tmp_path):
    """A checkpoint whose values are finite and whose logits are not."""
    weights = state()
    weights["cnn.7.3.bias"].fill_(5e37)
    weights["fc.0.weight"].fill_(2)
    path = tmp_path / "overflowing.pt"
    write_checkpoint(path, DESCRIPTION, weights)
    return path


def test_no_script_turns_such_logits_into_classes(overflowing, toy, refused, tmp_path):
    for command in (
        ("inference.py", toy, tmp_path / "out.csv", "--model", overflowing),
        ("inference.py", toy, tmp_path / "out.csv", "--model", overflowing, "--tta"),
        ("evaluate.py", overflowing, toy, "--cache", "none", "--record", tmp_path / "out.json"),
        ("quantize.py", overflowing, tmp_path / "out.bin", "--bits", 32, "--data", toy, "--cache", "none"),
    ):
        sentence = refused(*command)
        assert "not finite, so nothing can be predicted; use an undamaged file" in sentence
    assert not list(tmp_path.glob("out.*"))


def test_a_pruning_and_a_teacher_with_such_logits_are_refused(overflowing, toy, refused, tmp_path):
    for command in (
        ("prune.py", overflowing, toy, "--rate 0.5 --mode none"),
        ("train_kd.py", toy, f"--teacher {overflowing} --network student --size 32"),
    ):
        assert "not finite" in refused(*command, f"--cache none --out {tmp_path}/run", late=True)


def test_own_checkpoints_with_negative_variances_are_refused(toy, refused, tmp_path):
    weights = state()
    weights["cnn.1.1.running_var"][0] = -1
    output, path = tmp_path / "out.csv", tmp_path / "bad.pt"
    write_checkpoint(path, DESCRIPTION, weights)
    assert "cnn.1.1.running_var" in refused("inference.py", toy, output, "--model", path)
    torch.save(weights, path)
    assert "has negative variances" in refused("inference.py", toy, output, "--model", path)
    assert not output.exists()


# ---------------------------------------------------------------- normalisation


def test_the_normalisation_that_is_better_on_validation_photos_is_taken_and_told(capsys):
    bare = COURSE_PREPROCESSING
    for better in ("unit", "imagenet"):
        wanted = normalised(bare, better)
        accuracies = {wanted: 0.9}
        found = choose_normalisation(bare, "auto", *WHOSE, lambda one: accuracies.get(one, 0.1))
        told = capsys.readouterr().err
        assert found == (wanted, better) and "0.9000" in told and "0.1000" in told
        assert f"{better} is used" in told
    _, name = choose_normalisation(bare, "unit", *WHOSE, pytest.fail)
    assert name == "unit", "an explicit option is not questioned"
    assert choose_normalisation(bare, "auto", *WHOSE)[1] == "unit"
    assert "values in [0, 1] are assumed" in capsys.readouterr().err


def test_a_bare_teacher_gets_the_normalisation_it_was_trained_with(toy, small_network, tmp_path, monkeypatch):
    """Photos whose labels a network of one normalisation gives, and a file that does not say which."""
    torch.save(small_network[1].state_dict(), tmp_path / "teacher.bin")
    preprocessing = Preprocessing(32)
    validation = load_photos(list_labelled(toy, "validation"), preprocessing, cache=False)
    options = argparse.Namespace(
        teacher=[tmp_path / "teacher.bin"], teacher_size=32, teacher_normalisation="auto", dry_run=False
    )
    monkeypatch.setattr("compression.training.teachers.check_teacher", lambda *arguments, **more: 0.5)
    for name in ("imagenet", "unit"):
        (teacher,) = read_teachers(options, validation.class_names, 3, CPU)
        answers = {}
        for one in ("unit", "imagenet"):
            inputs = normalised(teacher.preprocessing, one).normalise(validation.photos)
            answers[one] = teacher.network(inputs).argmax(1)
        assert not torch.equal(answers["unit"], answers["imagenet"])
        own, relabelled = normalised(teacher.preprocessing, name), replace(validation, labels=answers[name])
        found, _ = check_teachers([teacher], options, relabelled, preprocessing, CPU)
        assert found[0].preprocessing.mean == own.mean and found[0].preprocessing.std == own.std


def test_a_file_that_says_its_normalisation_cannot_be_given_another(small_model, toy, refused, tmp_path):
    for command in (
        ("inference.py", toy, tmp_path / "out.csv", "--model", small_model),
        ("evaluate.py", small_model, toy),
        ("quantize.py", small_model, tmp_path / "out.bin"),
    ):
        assert "states how photos are normalised" in refused(*command, "--normalisation", "imagenet")


def test_what_is_chosen_travels_with_the_file_and_what_is_assumed_does_not(toy, ok, tmp_path):
    bare, output = tmp_path / "bare.pt", tmp_path / "8.bin"
    expected = normalised(COURSE_PREPROCESSING, "imagenet")
    torch.save(state(), bare)
    assert "values in [0, 1] are assumed" in ok("quantize.py", bare, output, "--bits 8").stderr
    assert load_model(output).description.assumes_normalisation
    assert "assumed" not in ok("quantize.py", bare, output, "--bits 8 --normalisation imagenet").stderr
    model = load_model(output)
    assert model.description.preprocessing == expected and not model.description.assumes_normalisation
    assert settle_normalisation(model, "auto").description.preprocessing == expected


def test_normalisations_that_mean_nothing_are_refused(toy, small_model, refused, capsys):
    command = ("evaluate.py", small_model, toy, "--teacher-normalisation unit")
    assert "needs --teacher" in refused(*command)
    assert "says how photos are normalised" in refused(*command, "--teacher", small_model)
    with pytest.raises(UserError, match="grey photos"):
        choose_normalisation(Preprocessing(48, mean=(0,), std=(1,)), "imagenet", *WHOSE)


def test_wrappers_in_plain_pickles_are_taken_off_too(tmp_path):
    import pickle

    plain = {name: value.numpy() for name, value in state().items()}
    (tmp_path / "theirs.pkl").write_bytes(pickle.dumps({"state_dict": plain}, protocol=3))
    assert load_model(tmp_path / "theirs.pkl").state_dict.keys() == plain.keys()


# ---------------------------------------------------------------- wrapped and renamed state_dicts


@pytest.mark.parametrize("prefix", "_orig_mod. module. model. net. module._orig_mod. model.net.".split())
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"state_dict": x, "epoch": 3},
        lambda x: {"model": x, "optimizer": {"lr": 0.1}},
        lambda x: {"model_state_dict": x},
        lambda x: {"state_dict": {"model": x}},
    ],
    ids=["bare", "state_dict", "model", "model_state_dict", "nested"],
)
def test_state_dicts_are_found_in_every_wrapper_under_every_prefix(tmp_path, prefix, wrap):
    plain = state()
    torch.save(wrap({prefix + name: value for name, value in plain.items()}), tmp_path / "theirs.pt")
    found = load_model(tmp_path / "theirs.pt").state_dict
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)


def test_a_prefix_that_only_some_names_have_is_part_of_the_names():
    assert without_prefixes({"model.a": 1, "b": 2}) == {"model.a": 1, "b": 2}
    assert without_prefixes({}) == {}
    assert list(without_prefixes({"net." * 100_000: 1}))[0].startswith("net.net.")  # and at once
    loop = {}
    loop["model"] = loop
    assert not any(is_state_dict(unwrapped(content)) for content in (loop, [1], {"state_dict": 3}))


def test_a_pickled_model_or_namespace_is_refused_with_what_to_save(toy, refused, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    torch.save({"state_dict": state(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "namespace.pt")
    for name in ("model", "namespace"):
        path = tmp_path / f"{name}.pt"
        for command in (
            ("inference.py", toy, tmp_path / "out.csv", "--max-bytes", 10**9, "--model", path),
            ("train_kd.py", toy, "--teacher", path, "--out", tmp_path / "kd"),
            ("quantize.py", path, tmp_path / "out.bin"),
        ):
            assert "nothing was run: if you made it, save model.state_dict() alone" in refused(*command)
    torch.save(state(), tmp_path / "alone.pt")
    assert load_model(tmp_path / "alone.pt")


def test_training_from_a_bare_file_chooses_its_normalisation_where_the_classes_agree(toy, call, tmp_path):
    torch.save(state(), tmp_path / "bare.pt")
    more = ("--init", tmp_path / "bare.pt", "--size", 32, "--cache", "none", "--device", "cpu", "--dry-run")
    done = call("train_student.py", toy, *more)
    assert done.returncode == 0 and "--normalisation" in done.stderr and "validation" in done.stderr, done
    for split in ("training", "validation"):
        for name in ("my tea", "my rice"):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for photo in sorted((toy / split).iterdir())[:3]:
                (tmp_path / "own" / split / name / f"{name} {photo.name}").write_bytes(photo.read_bytes())
    done = call("train_student.py", tmp_path / "own", *more)
    assert done.returncode == 0 and "are assumed for" in done.stderr, done


def test_teachers_are_read_before_photos_are_decoded(toy, small_model, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("compression.options.load_photos", None)
    monkeypatch.setattr("compression.stages.evaluating.load_photos", None)
    (tmp_path / "bad.bin").write_bytes(b"no teacher")
    torch.save({"format": CHECKPOINT_FORMAT, "version": VERSION}, tmp_path / "empty.pt")
    torch.save(state(), tmp_path / "bare.pt")  # whose normalisation would be chosen on photos
    bare = tmp_path / "bare.pt"
    for teacher in (tmp_path / "bad.bin", tmp_path / "empty.pt"):
        for command in (
            ("train_kd.py", toy, "--out", tmp_path / "kd"),
            ("prune.py", bare, toy, "--rate", 0.5, "--out", tmp_path / "p"),
            ("train_kd.py", toy, "--init", bare, "--qat-bits", 4, "--out", tmp_path / "q"),
            ("evaluate.py", bare, toy),
            ("prune.py", small_model, toy, "--rate", 0.5, "--out", tmp_path / "p"),
            ("train_kd.py", toy, "--init", small_model, "--qat-bits", 4, "--out", tmp_path / "q"),
            ("evaluate.py", small_model, toy),
        ):
            assert teacher.name in refused(*command, "--teacher", teacher), command


def test_what_validation_photos_choose_travels_with_the_file(toy, ok, tmp_path):
    torch.save(state(), tmp_path / "bare.pt")
    measured = ok(
        "quantize.py", tmp_path / "bare.pt", tmp_path / "8.bin", "--bits 8 --cache none --data", toy
    )
    assert "by validation accuracy" in measured.stderr
    assert not load_model(tmp_path / "8.bin").description.assumes_normalisation
