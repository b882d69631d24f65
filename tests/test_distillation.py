"""The distillation loss against closed forms, teachers, and train_kd.py end to end."""

import math
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import bright_or_dark, generator, learn_by_heart, read_json, same_tensors

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.training.distillation import Distillation, build_distillation
from compression.training.evaluation import evaluate
from compression.training.loop import fit
from compression.training.losses import Batch, CrossEntropy, distillation_loss, mix, soft_targets
from compression.training.recipe import Settings
from compression.training.run_folder import write_checkpoint
from compression.training.teachers import SeenBy, Teacher, check_teacher, read_teacher
from dataset import FOOD11_CLASSES, list_labelled, load_photos
from experiments.toy_food11 import draw_picture
from models import build
from train_kd import list_extra

CPU = torch.device("cpu")
SIZE = 32
NORMALISED = Preprocessing(SIZE, mean=(0.3,) * 3, std=(0.2,) * 3)
CLASSES = ("dark", "bright")


def logits(seed):
    return torch.randn(6, 5, generator=generator(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_its_formula(alpha, temperature):
    student, teacher = logits(1), logits(2)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    hard = -student.log_softmax(1)[torch.arange(6), LABELS].mean()
    expected = alpha * temperature**2 * divergence + (1 - alpha) * hard
    loss = distillation_loss(student, p, LABELS, alpha, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    in_float32 = distillation_loss(student.float(), p.float(), LABELS, alpha, temperature)
    assert in_float32.item() == pytest.approx(expected.item(), rel=1e-5)


def test_two_classes_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    student = torch.zeros(1, 2, dtype=torch.float64)
    soft = soft_targets([torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)], 1)
    for alpha, expected in ((1, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)), (0, math.log(2))):
        loss = distillation_loss(student, soft, torch.tensor([0]), alpha, 1)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_alpha_0_is_cross_entropy_and_asks_no_teacher():
    cross_entropy = F.cross_entropy(logits(1), LABELS)
    assert torch.equal(distillation_loss(logits(1), None, LABELS, 0, 4), cross_entropy)
    batch = Batch(torch.zeros(6, 3, SIZE, SIZE), LABELS, torch.arange(6), None)
    labels_alone = loss_of(mute(), alpha=0.0)
    assert torch.equal(labels_alone(logits(1), labels_alone.prepare(batch)), cross_entropy)
    with pytest.raises(AssertionError, match="was asked"):
        loss_of(mute(), alpha=0.5).prepare(batch)


@pytest.mark.parametrize("temperature", [1, 4, 20])
def test_equal_logits_diverge_by_nothing_and_pull_nowhere(temperature):
    student = logits(1).requires_grad_()
    loss = distillation_loss(student, soft_targets([logits(1)], temperature).double(), LABELS, 1, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4) and student.grad.abs().max() < 1e-5


def test_the_scale_of_the_gradient_does_not_depend_on_the_temperature():
    """For large T the gradient tends to (student - teacher) / C for centred logits (Hinton et al. 2015,
    section 2.1).
    """
    student, teacher = (values - values.mean(1, keepdim=True) for values in (logits(1), logits(2)))
    student.requires_grad_()
    distillation_loss(student, (teacher / 1000).softmax(1), LABELS, 1, 1000).backward()
    expected = (student.detach() - teacher) / 5 / len(student)
    assert torch.allclose(student.grad, expected, atol=1e-3 / len(student))


def test_unlabelled_photos_take_part_in_the_divergence_alone():
    """Labels may be numbers or probabilities, where an unlabelled photo has zeros."""
    unlabelled = torch.tensor([0, 1, -1, -1, 4, 0])
    soft = logits(2).softmax(1)

    def loss(labels, alpha):
        return distillation_loss(logits(1), soft, labels, alpha, 1)

    labelled = unlabelled >= 0
    assert torch.equal(loss(unlabelled, 1), loss(LABELS, 1))
    expected = F.cross_entropy(logits(1)[labelled], unlabelled[labelled]) * labelled.double().mean()
    assert torch.allclose(loss(unlabelled, 0), expected)
    one_hot = F.one_hot(LABELS, 5).double()
    assert torch.allclose(loss(LABELS, 0.5), loss(one_hot, 0.5))
    assert torch.allclose(loss(unlabelled, 0.5), loss(one_hot * labelled.unsqueeze(1), 0.5))


def test_several_teachers_are_averaged_as_probabilities():
    expected = ((logits(1) / 2).softmax(1) + (logits(2) / 2).softmax(1)) / 2
    assert torch.allclose(soft_targets([logits(1), logits(2)], 2).double(), expected, atol=1e-6)


def test_mixup_mixes_photos_and_labels_alike():
    """Photo i is filled with i and has label i, so what was mixed can be read off the pixels."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    mixed, labels = mix(images, torch.tensor([0, 1, 2, 3]), 4, 0.5, generator(0))
    assert torch.allclose(labels.sum(1), torch.ones(4)) and (labels.diagonal() >= 0.5).all()
    assert torch.allclose(mixed[:, 0, 0, 0], labels @ torch.arange(4.0))
    _, labels = mix(images, torch.tensor([0, -1, 2, -1]), 4, 0.5, generator(0))
    assert labels[:, [1, 3]].abs().max() == 0 and labels.sum(1).max() <= 1


# ---------------------------------------------------------------- teachers


def save_model(path, class_names=CLASSES, size=SIZE, widths=(4,) * 8):
    """A narrow random network as a checkpoint file; returns it."""
    torch.manual_seed(0)
    preprocessing = replace(NORMALISED, size=size)
    description = Description.of("student", {"widths": widths, "in_channels": 3}, class_names, preprocessing)
    network = build("student", **description.arguments)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            # under PyTorch's own initialisation all photos give the same logits
            torch.nn.init.kaiming_normal_(parameter)
    write_checkpoint(path, description, network.state_dict())
    return network.eval()


TRAINING, VALIDATION = bright_or_dark(36, 1), bright_or_dark(20, 2)


def test_a_teacher_sees_the_students_view_in_its_own_normalisation(tmp_path):
    network = save_model(tmp_path / "teacher.pt")
    teacher = read_teacher(tmp_path / "teacher.pt", CLASSES, CPU)
    photos, own, seen = TRAINING.photos[:5], Preprocessing(SIZE), []
    expected = NORMALISED.normalise(photos)
    teacher.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits = teacher.logits(own.normalise(photos), own)
    assert torch.allclose(seen[0], expected, atol=1e-4)
    assert torch.allclose(logits, network(expected), rtol=1e-3, atol=1e-3)


def test_a_teacher_of_another_size_sees_the_view_at_its_size(tmp_path):
    save_model(tmp_path / "teacher.pt", size=64)
    teacher, seen = read_teacher(tmp_path / "teacher.pt", CLASSES, CPU), []
    teacher.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    teacher.logits(Preprocessing(SIZE).normalise(TRAINING.photos[:2]), Preprocessing(SIZE))
    assert seen == [(2, 3, 64, 64)]


def test_a_resnet18_state_dict_is_fed_values_from_0_to_1(tmp_path):
    torch.manual_seed(0)
    network = build("resnet18", num_classes=2)
    photos = TRAINING.photos[:3]
    own = Preprocessing(SIZE)
    torch.save(network.state_dict(), tmp_path / "teacher.bin")
    teacher = read_teacher(tmp_path / "teacher.bin", CLASSES, CPU, size=SIZE)
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    expected = network.eval()(photos.permute(0, 3, 1, 2) / 255)
    assert torch.allclose(teacher.logits(own.normalise(photos), own), expected, atol=5e-3)
    # or this test would say little
    assert not torch.allclose(network(own.normalise(photos)), expected, atol=0.05)


def loss_of(teacher, views=0, kind=None, alpha=1.0):
    return (kind or Distillation)([teacher], Preprocessing(SIZE), alpha, 2.0, "fp32", len(TRAINING), 2, views)


@pytest.mark.parametrize("names", [("dark", "bright", "other"), ("bright", "Dark")])
def test_a_teacher_of_other_classes_is_refused(tmp_path, names):
    save_model(tmp_path / "teacher.pt", class_names=names)
    with pytest.raises(UserError, match="use a teacher of the same classes"):
        read_teacher(tmp_path / "teacher.pt", CLASSES, CPU)


def test_a_teacher_that_guesses_is_refused(tmp_path):
    save_model(tmp_path / "teacher.pt")
    teacher = read_teacher(tmp_path / "teacher.pt", CLASSES, CPU)
    with torch.no_grad():
        teacher.network.fc[0].weight.zero_(), teacher.network.fc[0].bias.copy_(torch.tensor([1.0, 0.0]))
    with pytest.raises(UserError, match="most frequent class"):
        check_teacher(teacher, VALIDATION, Preprocessing(SIZE), CPU)


def oracle():
    """A teacher that knows the classes of these photos: bright or dark."""

    class Brightness(torch.nn.Module):
        def forward(self, images):
            brightness = images.mean((1, 2, 3)) - 0.39
            return torch.stack([-brightness, brightness], 1) * 40

    return Teacher(Brightness().eval(), Preprocessing(SIZE, mean=(0,) * 3, std=(1,) * 3), None)


def mute():
    """A teacher that must not be asked."""

    class Mute(torch.nn.Module):
        def forward(self, images):
            raise AssertionError("the teacher was asked")

    return Teacher(Mute(), Preprocessing(SIZE), None)


def distil(out, settings, loss=None, **options):
    torch.manual_seed(settings.seed)
    arguments = {"widths": [8] * 8, "in_channels": 3}
    description = Description.of("student", arguments, CLASSES, Preprocessing(SIZE))
    network = build("student", **description.arguments)
    loss = loss or loss_of(oracle(), settings.views)
    return fit(network, description, TRAINING, VALIDATION, settings, out, CPU, loss, **options)


def small(**changes):
    fixed = {"epochs": 4, "batch_size": 8, "lr": 0.01, "ema": 0.9, "label_smoothing": 0.0, "augment": "light"}
    return Settings(**{**fixed, **changes})


class OneWeight(torch.nn.Module):
    """The oracle's network with a weight of its own in place of 40, at first below zero: wrong for every
    photo.
    """

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([-0.05]))

    def forward(self, images):
        brightness = images.mean((1, 2, 3)).unsqueeze(1) - 0.39
        return torch.cat([-self.weight * brightness, self.weight * brightness], 1)


def test_a_student_learns_from_the_teacher_alone(tmp_path):
    """No photo has a label. Below the oracle's 40 the divergence of every view falls as the weight rises, so
    every step raises it.
    """
    own = Preprocessing(SIZE, mean=(0,) * 3, std=(1,) * 3)
    assert evaluate(SeenBy(oracle(), own), VALIDATION, own, CPU).accuracy == 1
    assert evaluate(OneWeight(), VALIDATION, own, CPU).accuracy == 0
    unlabelled = replace(TRAINING, labels=torch.full((36,), -1))
    description = Description.of("student", {"in_channels": 3}, CLASSES, own)
    settings = small(ema=0, schedule="constant", epochs=6)
    loss = Distillation([oracle()], own, 1.0, 2.0, "fp32")
    record = fit(OneWeight(), description, unlabelled, VALIDATION, settings, tmp_path, CPU, loss)
    losses = [row["validation_loss"] for row in record["history"]]  # falls with the weight too, till there
    assert record["best"]["validation_accuracy"] == 1 and losses == sorted(set(losses), reverse=True)
    # without labels nothing is right or wrong
    assert {row["train_accuracy"] for row in record["history"]} == {None}


class Stopped(Distillation):
    """Sends SIGTERM to this process when it is called for the n-th time."""

    left = 10

    def __call__(self, logits, batch):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return super().__call__(logits, batch)


@pytest.mark.parametrize(
    "settings", [small(), small(mixup=0.5), small(views=2)], ids=["plain", "mixup", "fixed views"]
)
def test_a_killed_distillation_resumes_bitwise(tmp_path, settings):
    distil(tmp_path / "whole", settings)
    with pytest.raises(SystemExit) as stopped:
        distil(tmp_path / "parts", settings, loss_of(oracle(), settings.views, Stopped))
    assert stopped.value.code == 128 + signal.SIGTERM
    distil(tmp_path / "parts", settings, resume=True)
    paths = (tmp_path / "whole/last.pt", tmp_path / "parts/last.pt")
    whole, parts = (torch.load(path, weights_only=True)["run"] for path in paths)
    assert same_tensors(whole["network"], parts["network"])


def test_a_resumed_run_keeps_the_teachers_outputs(tmp_path):
    """Every photo is seen in the first epoch, and in the second one the run is stopped: from there on the
    teacher is not needed.
    """
    settings = small(views=1, batch_size=9)
    stopped, resumed = loss_of(oracle(), 1, Stopped), loss_of(mute(), 1)
    stopped.left = 5
    with pytest.raises(SystemExit):
        distil(tmp_path, settings, stopped)
    assert len(distil(tmp_path, settings, resumed, resume=True)["history"]) == 4
    assert all(map(torch.equal, resumed.cached_targets, stopped.cached_targets))


def test_fixed_views_ask_the_teacher_once_for_the_same_outputs(tmp_path):
    """Views repeat every second epoch: kept or computed again, the teacher's probabilities of a view are the
    same.
    """

    class Counting(Distillation):
        asked, seen = 0, None

        def teacher_probabilities(self, images):
            self.asked += len(images)
            return super().teacher_probabilities(images)

        def targets(self, batch):
            found = super().targets(batch)
            for position, probabilities in zip(batch.positions.tolist(), found):
                self.seen.setdefault((batch.view, position), []).append(probabilities)
            return found

    kept, again = (loss_of(oracle(), views, Counting, alpha=0.5) for views in (2, 0))
    for name, loss in (("kept", kept), ("again", again)):
        loss.seen = {}
        distil(tmp_path / name, small(views=2, epochs=6), loss)
    assert kept.asked == len(kept.seen) <= 2 * len(TRAINING) and again.asked == 6 * 32
    assert kept.seen.keys() == again.seen.keys() and {view for view, _ in kept.seen} == {0, 1}
    for key, found in kept.seen.items():
        assert all(torch.equal(one, found[0]) for one in found)
        assert all(torch.allclose(one, found[0], atol=1e-3) for one in again.seen[key])


def built_loss(teacher, cache, seed=0):
    options = SimpleNamespace(alpha=1.0, temperature=2.0, dry_run=False)
    settings = small(views=2, seed=seed)
    teachers = ([teacher], [{"sha256": "a"}])
    return build_distillation(options, *teachers, Preprocessing(SIZE), settings, TRAINING, cache)


def test_cached_teacher_outputs_are_found_by_another_student_and_by_nobody_else(tmp_path):
    """In the cache folder they are kept by data, views and teachers: the second loss asks nobody, and one of
    another seed asks.
    """
    images = Preprocessing(SIZE).normalise(TRAINING.photos[:4])
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4), 1)
    first = built_loss(oracle(), tmp_path)
    expected = first.targets(batch)
    assert torch.equal(expected, first.teacher_probabilities(images)) and first.state_dict() == {"said": None}
    silent = replace(mute(), preprocessing=oracle().preprocessing)
    assert torch.equal(built_loss(silent, tmp_path).targets(batch), expected)
    for other in (
        built_loss(silent, tmp_path, seed=1),
        built_loss(silent, False),
        built_loss(silent, tmp_path / "elsewhere"),
        built_loss(replace(silent, order=(1, 0)), tmp_path),
    ):
        with pytest.raises(AssertionError, match="was asked"):
            other.targets(batch)
    backwards = built_loss(replace(oracle(), order=(1, 0)), tmp_path)
    assert torch.allclose(backwards.targets(batch), expected.flip(1))
    for file in tmp_path.glob("teacher-*.npy"):
        file.write_bytes(b"damaged")
    assert torch.equal(built_loss(oracle(), tmp_path).targets(batch), expected)


def test_a_cache_that_cannot_be_written_keeps_teacher_outputs_in_memory(tmp_path, capsys):
    (tmp_path / "file").touch()
    loss = built_loss(oracle(), tmp_path / "file")
    assert not loss.in_files and len(loss.cached_targets) == 2
    assert "kept in memory" in capsys.readouterr().err


def test_alpha_0_trains_as_without_a_teacher(tmp_path):
    for name, loss in (("kd", loss_of(mute(), alpha=0.0)), ("plain", CrossEntropy())):
        # a step of SGD enlarges no rounding, as Adam's does
        distil(tmp_path / name, small(optimizer="sgd", lr=0.1, epochs=1), loss)
    torch.manual_seed(0)
    before = build("student", widths=[8] * 8, in_channels=3, num_classes=2).state_dict()
    kd, plain = (load_model(tmp_path / name / "best.pt").state_dict for name in ("kd", "plain"))
    assert all(torch.allclose(kd[name], plain[name], rtol=1e-3, atol=1e-3) for name in plain)
    # or this test would say little
    assert not torch.allclose(before["fc.0.bias"], plain["fc.0.bias"], atol=0.01)


class Listening(torch.nn.Module):
    """A teacher's network that notes what it is asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return torch.zeros(len(images), 2)


def test_the_teacher_is_asked_about_the_very_batch():
    network = Listening()
    images = torch.randn(3, 3, SIZE, SIZE)
    loss = loss_of(Teacher(network, Preprocessing(SIZE), None))
    loss.prepare(Batch(images, torch.tensor([0, 1, 0]), torch.arange(3), None))
    assert torch.allclose(network.seen[0], images, atol=1e-3)


def test_teacher_sees_views_at_the_size_it_was_trained_on_and_photos_at_its_input_size():
    network = Listening()
    own = Preprocessing(SIZE)
    images = torch.randn(3, 3, 24, 24)
    for teacher in (Teacher(network, own, None, 20), Teacher(network, own, None)):
        loss_of(teacher).teacher_probabilities(images)
        teacher.logits(images, own)
    assert [seen.shape[-1] for seen in network.seen] == [20, SIZE, SIZE, SIZE]


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def teacher_file(toy, tmp_path_factory):
    """A teacher that knows the validation photos by heart, and so is better than guessing."""
    path = tmp_path_factory.mktemp("teacher") / "best.pt"
    network = save_model(path, FOOD11_CLASSES, widths=[16, 16, 16, 32, 32, 32, 32, 64])
    photos = load_photos(list_labelled(toy, "validation"), NORMALISED, cache=False)
    learn_by_heart(network, NORMALISED, photos)
    write_checkpoint(path, load_model(path).description, network.state_dict())
    return path


def arguments(toy, teacher, out, *more):
    shape = "--network student --set widths=4,4,4,4,4,4,4,4 --size 32 --epochs 2 --recipe batch_size=11"
    return ["train_kd.py", toy, "--teacher", teacher, shape, "--cache none --out", out, *more]


@pytest.fixture
def resnet(tmp_path, monkeypatch):
    """A teacher file of a ResNet-18 with random weights, which is taken without being tried."""
    monkeypatch.setattr("compression.training.teachers.check_teacher", lambda *arguments, **options: 0.5)
    torch.save(build("resnet18").state_dict(), tmp_path / "teacher.bin")
    return tmp_path / "teacher.bin"


@pytest.fixture
def others(tmp_path):
    """A folder of five photos that are nowhere in the toy data."""
    random = np.random.default_rng(1)
    (tmp_path / "others").mkdir()
    for index in range(5):
        # named as those of testing/
        draw_picture(index, random).save(tmp_path / "others" / f"{index:04}.jpg")
    return tmp_path / "others"


def test_command_line_distils_and_records_the_teachers(toy, teacher_file, others, ok, tmp_path):
    more = ("--teacher", teacher_file, "--unlabeled", others)
    result = ok(*arguments(toy, teacher_file, tmp_path / "run", *more))
    assert result.stdout.count("validation accuracy") >= 2
    record = read_json(tmp_path / "run/record.json")
    assert len(record["teachers"]) == 2 and record["teachers"][0]["validation_accuracy"] > 1 / 11
    training = load_model(tmp_path / "run/best.pt").description.training
    assert training["unlabelled_photos"] == 5 and record["photos"]["training"] == 49
    assert "transductive" not in training
    assert "teacher_size" not in training  # the file tells its own size


def test_training_on_the_testing_photos_is_written_into_the_model(toy, teacher_file, ok, tmp_path):
    more = ("--epochs 1 --unlabeled", toy / "testing")
    assert "transductive" in ok(*arguments(toy, teacher_file, tmp_path / "run", *more)).stderr
    assert load_model(tmp_path / "run/best.pt").description.training["transductive"] is True
    assert read_json(tmp_path / "run/record.json")["transductive"] is True


def test_a_single_testing_photo_among_the_unlabelled_is_noticed(toy, others, capsys):
    options = SimpleNamespace(unlabeled=others, data=toy, validation_share=0.0)
    assert list_extra(options)[1] is False
    shutil.copy(toy / "testing/0003.jpg", others / "0001.jpg")  # whatever its name
    extra, transductive = list_extra(options)
    assert len(extra) == 5 and transductive is True and "transductive" in capsys.readouterr().err


def test_a_validation_photo_among_the_unlabelled_is_refused(toy, teacher_file, others, refused, tmp_path):
    for index, path in enumerate(sorted((toy / "validation").iterdir())[:2]):
        shutil.copy(path, others / f"copied {index}.jpg")
    command = arguments(toy, teacher_file, tmp_path / "run", "--unlabeled", others)
    assert "contains 2 of the validation photos" in refused(*command)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["nothing", "a note"])
def test_a_testing_folder_that_cannot_be_predicted_is_no_hindrance(toy, others, tmp_path, content):
    data = tmp_path / "data"
    shutil.copytree(toy, data, ignore=shutil.ignore_patterns("[0-9][0-9][0-9][0-9].jpg"))
    assert (data / "testing").is_dir()
    if content == "a note":
        (data / "testing/notes.txt").write_text("soon")
    options = SimpleNamespace(unlabeled=others, data=data, validation_share=0.0)
    assert list_extra(options)[1] is False


def test_the_student_starts_from_the_seed_whatever_the_teachers_file(
    toy, teacher_file, ok, tmp_path, monkeypatch, resnet
):
    started = []

    def noted(network, *arguments, **options):
        started.append(network.state_dict())

    monkeypatch.setattr("compression.stages.training.fit", noted)
    for teacher in (teacher_file, resnet):  # building a ResNet draws random numbers
        ok(*arguments(toy, teacher, tmp_path / "run", "--seed 3"))
    torch.manual_seed(3)
    expected = build("student", widths=[4] * 8, in_channels=3).state_dict()
    assert len(started) == 2 and all(same_tensors(state, expected) for state in started)


def test_cheap_mistakes_are_told_before_photos_are_decoded(
    toy, teacher_file, others, refused, tmp_path, monkeypatch
):
    monkeypatch.setattr("compression.options.load_photos", None)
    (others / "notes.txt").write_text("no photo")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/last.pt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.bin").write_bytes(b"not a teacher")
    save_model(tmp_path / "two classes.pt")
    for teacher, out, unlabeled, message in (
        (tmp_path / "missing.bin", "run", None, "there is no teacher file"),
        (tmp_path / "bad.bin", "run", None, "damaged or no teacher file"),
        (tmp_path / "two classes.pt", "run", None, "same classes"),
        (teacher_file, "used", None, "already holds a run"),
        (teacher_file, "run", others, "(notes.txt) without the ending of a photo"),
        (teacher_file, "run", tmp_path / "nowhere", "there is no folder"),
        (teacher_file, "run", tmp_path / "empty", "is empty"),
    ):
        more = ("--unlabeled", unlabeled) if unlabeled else ()
        assert message in refused(*arguments(toy, teacher, tmp_path / out, *more))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_distils_two_batches_and_writes_nothing(toy, teacher_file, call, tmp_path):
    assert "dry run" in call(*arguments(toy, teacher_file, tmp_path / "run", "--dry-run")).stdout
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_teacher_is_refused(toy, teacher_file, ok, refused, tmp_path, resnet):
    ok(*arguments(toy, teacher_file, tmp_path / "run", "--epochs 1"))
    changed = torch.load(teacher_file, weights_only=True)
    changed["state_dict"]["fc.0.bias"] += 0.01
    torch.save(changed, tmp_path / "other.pt")
    other = arguments(toy, tmp_path / "other.pt", tmp_path / "run", "--epochs 1 --resume")
    assert "teachers was " in refused(*other, late=True)
    command = arguments(toy, resnet, tmp_path / "resnet", "--epochs 1 --recipe")
    ok(*command, "teacher_size=32")
    assert load_model(tmp_path / "resnet/best.pt").description.training["teacher_size"] == 32
    sentence = refused(*command, "teacher_size=48", "--resume", late=True)
    assert "teacher_size was 32 in the saved run" in sentence


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("alpha=1.5", "is not a"),
        ("alpha=nan", "is not a"),
        ("temperature=0", "is not a"),
        ("views=2 mixup=0.2", "leave one of them out"),
        ("label_smoothing=0.1", "there is no label_smoothing"),
        ("views=2 augment=none", "needs random views"),
    ],
)
def test_wrong_options_are_one_sentence_and_status_2(toy, teacher_file, refused, tmp_path, wrong, message):
    assert message in refused(*arguments(toy, teacher_file, tmp_path / "run", f"--recipe {wrong}"))
    assert not (tmp_path / "run").exists()
