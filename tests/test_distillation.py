"""The distillation loss against closed forms, teachers, and train_kd.py end to end."""

import json
import math
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import learn_by_heart

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
from dataset import FOOD11_CLASSES, PhotoSet, list_labelled, list_testing, load_photos
from experiments.toy_food11 import draw_picture
from models import build
from train_kd import list_extra

CPU = torch.device("cpu")
SIZE = 32
CLASSES = ("dark", "bright")


def logits(seed, rows=6, classes=5, dtype=torch.float64):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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
    float32 = distillation_loss(student.float(), p.float(), LABELS, alpha, temperature)
    assert float32.item() == pytest.approx(expected.item(), rel=1e-4)


def test_two_classes_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    student, teacher = torch.zeros(1, 2), soft_targets([torch.tensor([[math.log(3), 0.0]])], 1)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    for alpha, expected in ((1, divergence), (0, math.log(2))):
        loss = distillation_loss(student, teacher, torch.tensor([0]), alpha, 1)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_alpha_0_is_cross_entropy_and_asks_no_teacher():
    assert torch.equal(distillation_loss(logits(1), None, LABELS, 0, 4), F.cross_entropy(logits(1), LABELS))
    batch = Batch(torch.zeros(6, 3, SIZE, SIZE), LABELS, torch.arange(6), None)
    with pytest.raises(AssertionError, match="was asked"):
        asking(mute(), alpha=0.5).prepare(batch)
    loss = asking(mute(), alpha=0.0)
    assert torch.equal(loss(logits(1), loss.prepare(batch)), F.cross_entropy(logits(1), LABELS))


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


def test_labels_as_probabilities_are_the_same_as_labels():
    one_hot, soft = F.one_hot(LABELS, 5).double(), logits(2).softmax(1)
    losses = [distillation_loss(logits(1), soft, labels, 0.5, 1) for labels in (LABELS, one_hot)]
    assert torch.allclose(*losses)


def test_unlabelled_photos_take_part_in_the_divergence_alone():
    unlabelled, soft = torch.tensor([0, 1, -1, -1, 4, 0]), logits(2).softmax(1)
    labelled = unlabelled >= 0
    zeros = F.one_hot(unlabelled.clamp(min=0), 5).double() * labelled.unsqueeze(1)
    hard = F.cross_entropy(logits(1)[labelled], unlabelled[labelled]) * labelled.double().mean()
    for labels in (unlabelled, zeros):
        whole, soft_part, hard_part = (
            distillation_loss(logits(1), soft, labels, alpha, 1) for alpha in (0.5, 1, 0)
        )
        assert torch.equal(soft_part, distillation_loss(logits(1), soft, LABELS, 1, 1))
        assert torch.allclose(hard_part, hard) and torch.allclose(whole, (soft_part + hard_part) / 2)


def test_several_teachers_are_averaged_as_probabilities():
    expected = ((logits(1) / 2).softmax(1) + (logits(2) / 2).softmax(1)) / 2
    assert torch.allclose(soft_targets([logits(1), logits(2)], 2).double(), expected, atol=1e-6)


def test_mixup_mixes_photos_and_labels_alike():
    """Photo i is filled with i and has label i, so what was mixed can be read off the pixels."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    mixed, labels = mix(images, torch.tensor([0, 1, 2, 3]), 4, 0.5, torch.Generator().manual_seed(0))
    assert torch.allclose(labels.sum(1), torch.ones(4)) and (labels.diagonal() >= 0.5).all()
    assert torch.allclose(mixed[:, 0, 0, 0], labels @ torch.arange(4.0))
    _, labels = mix(images, torch.tensor([0, -1, 2, -1]), 4, 0.5, torch.Generator().manual_seed(0))
    assert labels[:, [1, 3]].abs().max() == 0 and labels.sum(1).max() <= 1


# ---------------------------------------------------------------- teachers


def save_model(path, seed=0, class_names=CLASSES, size=SIZE, widths=(4,) * 8):
    """A narrow random network as a checkpoint file; returns it."""
    torch.manual_seed(seed)
    preprocessing = Preprocessing(size, mean=(0.3,) * 3, std=(0.2,) * 3)
    arguments = {"widths": widths, "in_channels": 3}
    description = Description.of("student", arguments, class_names, preprocessing)
    network = build("student", **description.arguments)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            # under PyTorch's own initialisation all photos give the same logits
            torch.nn.init.kaiming_normal_(parameter)
    write_checkpoint(path, description, network.state_dict())
    return network.eval()


def photo_set(count, seed):
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 2
    photos = torch.randint(0, 100, (count, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    photos += labels.view(-1, 1, 1, 1).to(torch.uint8) * 100
    return PhotoSet(photos, torch.arange(count), labels, CLASSES, f"fingerprint {seed}")


TRAINING, VALIDATION = photo_set(36, 1), photo_set(20, 2)


def test_a_teacher_sees_the_students_view_in_its_own_normalisation(tmp_path):
    network = save_model(tmp_path / "teacher.pt")
    teacher = read_teacher(tmp_path / "teacher.pt", CLASSES, CPU)
    photos, own, seen = TRAINING.photos[:5], Preprocessing(SIZE), []
    expected = Preprocessing(SIZE, mean=(0.3,) * 3, std=(0.2,) * 3).normalise(photos)
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
    torch.save(network.state_dict(), tmp_path / "teacher.bin")
    teacher, own = read_teacher(tmp_path / "teacher.bin", CLASSES, CPU, size=SIZE), Preprocessing(SIZE)
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    images = own.normalise(TRAINING.photos[:3])
    expected = network.eval()(TRAINING.photos[:3].permute(0, 3, 1, 2) / 255)
    assert torch.allclose(teacher.logits(images, own), expected, atol=5e-3)
    assert not torch.allclose(network(images), expected, atol=0.05), "or this test would say little"


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


class Told(torch.nn.Module):
    """A network that computes a function of the images."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def oracle():
    """A teacher that knows the classes of these photos: bright or dark."""

    def answers(images):
        brightness = images.mean((1, 2, 3)) - 0.39
        return torch.stack([-brightness, brightness], 1) * 40

    return Teacher(Told(answers).eval(), Preprocessing(SIZE, mean=(0,) * 3, std=(1,) * 3), None)


def mute():
    """A teacher that must not be asked."""

    def fail(images):
        raise AssertionError("the teacher was asked")

    return Teacher(Told(fail), Preprocessing(SIZE), None)


def asking(teacher, views=0, alpha=1.0, kind=Distillation):
    """The loss of a student of this teacher, with so many fixed views of the photos of TRAINING."""
    unknown = [torch.full((len(TRAINING), 2), torch.nan) for _ in range(views)]
    return kind([teacher], Preprocessing(SIZE), alpha, 2.0, "fp32", unknown)


def distil(out, settings, loss, **options):
    torch.manual_seed(settings.seed)
    arguments = {"widths": [8] * 8, "in_channels": 3}
    description = Description.of("student", arguments, CLASSES, Preprocessing(SIZE))
    network = build("student", **description.arguments)
    return fit(network, description, TRAINING, VALIDATION, settings, out, CPU, loss, **options)


def small(**changes):
    plain = {"epochs": 4, "batch_size": 8, "lr": 0.01, "ema": 0.9, "label_smoothing": 0.0}
    return Settings(**{**plain, "augment": "light", **changes})


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
    settings, loss = small(ema=0, schedule="constant", epochs=6), replace(asking(oracle()), preprocessing=own)
    record = fit(OneWeight(), description, unlabelled, VALIDATION, settings, tmp_path, CPU, loss)
    losses = [row["validation_loss"] for row in record["history"]]  # falls with the weight too, till there
    assert record["best"]["validation_accuracy"] == 1 and losses == sorted(set(losses), reverse=True)
    # without labels nothing is right or wrong
    assert {row["train_accuracy"] for row in record["history"]} == {None}


class Stopped(Distillation):
    """A loss that stops the training at its fifth batch."""

    left = 5

    def __call__(self, logits, batch):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return super().__call__(logits, batch)


@pytest.mark.parametrize(
    "settings", [small(), small(mixup=0.5), small(views=2)], ids=["plain", "mixup", "fixed views"]
)
def test_a_killed_distillation_resumes_bitwise(tmp_path, settings):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    distil(whole, settings, asking(oracle(), settings.views))
    with pytest.raises(SystemExit) as stopped:
        distil(parts, settings, asking(oracle(), settings.views, kind=Stopped))
    assert stopped.value.code == 128 + signal.SIGTERM
    distil(parts, settings, asking(oracle(), settings.views), resume=True)
    first, second = (
        torch.load(out / "last.pt", weights_only=True)["run"]["network"] for out in (whole, parts)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_keeps_the_teachers_outputs(tmp_path):
    """Every photo is seen in the first epoch, and in the second one the run is stopped: from there on the
    teacher is not needed.
    """
    settings, stopped = small(views=1, batch_size=9), asking(oracle(), 1, kind=Stopped)
    resumed = asking(mute(), 1)
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

    kept, again = (asking(oracle(), views, 0.5, Counting) for views in (2, 0))
    for name, loss in (("kept", kept), ("again", again)):
        loss.seen = {}
        distil(tmp_path / name, small(views=2, epochs=6), loss)
    assert kept.asked == len(kept.seen) <= 2 * len(TRAINING) and again.asked == 6 * 32
    assert kept.seen.keys() == again.seen.keys() and {view for view, _ in kept.seen} == {0, 1}
    for key, found in kept.seen.items():
        assert all(torch.equal(one, found[0]) for one in found)
        assert all(torch.allclose(one, found[0], atol=1e-3) for one in again.seen[key])


def test_cached_teacher_outputs_are_found_by_another_student_and_by_nobody_else(tmp_path):
    """In the cache folder they are kept by data, views and teachers: the second loss asks nobody, and one of
    another seed asks.
    """
    options = SimpleNamespace(alpha=1.0, temperature=2.0, dry_run=False)
    preprocessing, images = Preprocessing(SIZE), Preprocessing(SIZE).normalise(TRAINING.photos[:4])
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4), 1)

    def loss(teacher, cache=tmp_path, seed=0):
        return build_distillation(
            options, [teacher], [{"sha256": "a"}], preprocessing, small(views=2, seed=seed), TRAINING, cache
        )

    first = loss(oracle())
    expected = first.targets(batch)
    assert torch.equal(expected, first.teacher_probabilities(images)) and first.state_dict() == {"said": None}
    silent = replace(mute(), preprocessing=oracle().preprocessing)
    assert torch.equal(loss(silent).targets(batch), expected)
    for other in ({"seed": 1}, {"cache": False}, {"cache": tmp_path / "elsewhere"}):
        with pytest.raises(AssertionError, match="was asked"):
            loss(silent, **other).targets(batch)
    with pytest.raises(AssertionError, match="was asked"):
        loss(replace(silent, order=(1, 0))).targets(batch)
    assert torch.allclose(loss(replace(oracle(), order=(1, 0))).targets(batch), expected.flip(1))
    for file in tmp_path.glob("teacher-*.npy"):
        file.write_bytes(b"damaged")
    assert torch.equal(loss(oracle()).targets(batch), expected)


def test_a_cache_that_cannot_be_written_keeps_teacher_outputs_in_memory(tmp_path, capsys):
    (tmp_path / "file").touch()
    options, teachers = SimpleNamespace(alpha=1.0, temperature=2.0, dry_run=False), [oracle()]
    chosen = (Preprocessing(SIZE), small(views=2), TRAINING, tmp_path / "file")
    loss = build_distillation(options, teachers, [{"sha256": "a"}], *chosen)
    assert not loss.in_files and len(loss.cached_targets) == 2
    assert "kept in memory" in capsys.readouterr().err


def test_alpha_0_trains_as_without_a_teacher(tmp_path):
    for name, loss in (("kd", asking(mute(), alpha=0.0)), ("plain", CrossEntropy())):
        # a step of SGD enlarges no rounding, as Adam's does
        distil(tmp_path / name, small(optimizer="sgd", lr=0.1, epochs=1), loss)
    torch.manual_seed(0)
    before = build("student", widths=[8] * 8, in_channels=3, num_classes=2).state_dict()
    kd, plain = (load_model(tmp_path / name / "best.pt").state_dict for name in ("kd", "plain"))
    assert all(torch.allclose(kd[name].float(), plain[name].float(), rtol=1e-3, atol=1e-3) for name in plain)
    # or this test would say little
    assert not torch.allclose(before["fc.0.bias"], plain["fc.0.bias"], atol=0.01)


def test_the_teacher_is_asked_about_the_very_batch_and_sees_views_at_the_size_it_was_trained_on():
    own, images, seen = Preprocessing(SIZE), torch.randn(3, 3, SIZE, SIZE), []
    network = Told(lambda images: seen.append(images) or torch.zeros(len(images), 2))
    asking(Teacher(network, own, None)).prepare(Batch(images, torch.tensor([0, 1, 0]), torch.arange(3), None))
    assert torch.allclose(seen.pop(), images, atol=1e-3)
    for view_size in (20, None):
        teacher = Teacher(network, own, None, view_size)
        asking(teacher).teacher_probabilities(images[..., :24, :24])
        teacher.logits(images[..., :24, :24], own)  # as a photo of another input size
    assert [each.shape[-1] for each in seen] == [20, SIZE, SIZE, SIZE]


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def teacher_file(toy, tmp_path_factory):
    """A teacher that knows the validation photos by heart, and so is better than guessing."""
    path = tmp_path_factory.mktemp("teacher") / "best.pt"
    network = save_model(path, class_names=FOOD11_CLASSES, widths=[16, 16, 16, 32, 32, 32, 32, 64])
    content = torch.load(path, weights_only=True)
    preprocessing = Preprocessing(**content["preprocessing"])
    learn_by_heart(
        network, preprocessing, load_photos(list_labelled(toy, "validation"), preprocessing, cache=False)
    )
    torch.save({**content, "state_dict": network.state_dict()}, path)
    return path


def arguments(toy, teacher, out, *more):
    words = "--network student --set widths=4,4,4,4,4,4,4,4 --epochs 2 --recipe batch_size=11 --cache none"
    return ["train_kd.py", toy, "--teacher", teacher, *words.split(), "--size", SIZE, "--out", out, *more]


@pytest.fixture
def others(tmp_path):
    """A folder of five photos that are nowhere in the toy data."""
    random = np.random.default_rng(1)
    (tmp_path / "others").mkdir()
    for index in range(5):
        # named as those of testing/
        draw_picture(index, random).save(tmp_path / "others" / f"{index:04}.jpg")
    return tmp_path / "others"


def test_command_line_distils_and_records_the_teachers(toy, teacher_file, others, call, tmp_path):
    more = ("--teacher", teacher_file, "--unlabeled", others)
    result = call(*arguments(toy, teacher_file, tmp_path / "run", *more))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("validation accuracy") >= 2
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert len(record["teachers"]) == 2 and record["teachers"][0]["validation_accuracy"] > 1 / 11
    training = load_model(tmp_path / "run/best.pt").description.training
    assert training["unlabelled_photos"] == 5 and record["photos"]["training"] == 49
    assert "transductive" not in training
    assert "teacher_size" not in training, "the file tells its own size"


def test_training_on_the_testing_photos_is_written_into_the_model(toy, teacher_file, call, tmp_path):
    more = ("--unlabeled", toy / "testing", "--epochs", 1)
    result = call(*arguments(toy, teacher_file, tmp_path / "run", *more))
    assert result.returncode == 0 and "transductive" in result.stderr, result.stderr
    assert load_model(tmp_path / "run/best.pt").description.training["transductive"] is True
    assert json.loads((tmp_path / "run/record.json").read_text())["transductive"] is True


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
    shutil.copytree(toy, tmp_path / "data", ignore=shutil.ignore_patterns("[0-9][0-9][0-9][0-9].jpg"))
    assert (tmp_path / "data/testing").is_dir()
    if content == "a note":
        (tmp_path / "data/testing/notes.txt").write_text("soon")
    options = SimpleNamespace(unlabeled=others, data=tmp_path / "data", validation_share=0.0)
    assert list_extra(options)[1] is False


@pytest.fixture
def resnet18(tmp_path, monkeypatch):
    """The state_dict of a ResNet-18 with random weights, which `check_teacher` lets pass."""
    monkeypatch.setattr("compression.training.teachers.check_teacher", lambda *arguments, **options: 0.5)
    torch.save(build("resnet18").state_dict(), tmp_path / "teacher.bin")
    return tmp_path / "teacher.bin"


def test_the_student_starts_from_the_seed_whatever_the_teachers_file(
    toy, teacher_file, resnet18, call, tmp_path, monkeypatch
):
    started = []
    monkeypatch.setattr(
        "compression.stages.training.fit", lambda network, *given: started.append(network.state_dict())
    )
    for teacher in (teacher_file, resnet18):  # building the second one draws random numbers
        assert call(*arguments(toy, teacher, tmp_path / "run", "--seed", 3)).returncode == 0
    torch.manual_seed(3)
    expected = build("student", widths=[4] * 8, in_channels=3).state_dict()
    assert len(started) == 2
    assert all(torch.equal(state[name], expected[name]) for state in started for name in expected)


def test_resuming_with_another_size_of_a_resnet18_is_refused(toy, resnet18, call, tmp_path):
    command = arguments(toy, resnet18, tmp_path / "run", "--epochs", 1, "--recipe")
    assert call(*command, "teacher_size=32").returncode == 0
    assert load_model(tmp_path / "run/best.pt").description.training["teacher_size"] == 32
    other = call(*command, "teacher_size=48", "--resume")
    assert other.returncode == 2 and "teacher_size was 32 in the saved run" in other.stderr
    scratch = call("train_student.py", toy, *command[4:-1], "--resume")
    assert scratch.returncode == 2 and "training.script was train_kd.py in the saved run" in scratch.stderr


def test_cheap_mistakes_are_told_before_photos_are_decoded(
    toy, teacher_file, others, refused, tmp_path, monkeypatch
):
    monkeypatch.setattr("compression.options.load_photos", None)
    (others / "notes.txt").write_text("no photo")
    for name in ("used", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "used/last.pt").touch()
    (tmp_path / "bad.bin").write_bytes(b"not a teacher")
    save_model(tmp_path / "two classes.pt")
    for teacher, out, more, message in (
        (tmp_path / "missing.bin", "run", [], "there is no teacher file"),
        (tmp_path / "bad.bin", "run", [], "damaged or no teacher file"),
        (tmp_path / "two classes.pt", "run", [], "same classes"),
        (teacher_file, "used", [], "already holds a run"),
        (teacher_file, "run", ["--unlabeled", others], "(notes.txt) without the ending of a photo"),
        (teacher_file, "run", ["--unlabeled", tmp_path / "nowhere"], "there is no folder"),
        (teacher_file, "run", ["--unlabeled", tmp_path / "empty"], "is empty"),
    ):
        assert message in refused(*arguments(toy, teacher, tmp_path / out, *more))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_distils_two_batches_and_writes_nothing(toy, teacher_file, call, tmp_path):
    assert "dry run" in call(*arguments(toy, teacher_file, tmp_path / "run", "--dry-run")).stdout
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_teacher_is_refused(toy, teacher_file, call, tmp_path):
    assert call(*arguments(toy, teacher_file, tmp_path / "run", "--epochs", 1)).returncode == 0
    changed = torch.load(teacher_file, weights_only=True)
    changed["state_dict"]["fc.0.bias"] += 0.01
    torch.save(changed, tmp_path / "other.pt")
    more = ("--epochs", 1, "--resume")
    assert "teachers was " in call(*arguments(toy, tmp_path / "other.pt", tmp_path / "run", *more)).stderr


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--recipe", "alpha=1.5"], "is not a"),
        (["--recipe", "alpha=nan"], "is not a"),
        (["--recipe", "temperature=0"], "is not a"),
        (["--recipe", "views=2", "--recipe", "mixup=0.2"], "leave one of them out"),
        (["--recipe", "label_smoothing=0.1"], "there is no label_smoothing"),
        (["--recipe", "views=2", "--recipe", "augment=none"], "needs random views"),
    ],
)
def test_wrong_options_are_one_sentence_and_status_2(toy, teacher_file, refused, tmp_path, wrong, message):
    assert message in refused(*arguments(toy, teacher_file, tmp_path / "run", *wrong))
    assert not (tmp_path / "run").exists()


def test_unlabelled_photos_may_have_any_name(toy, tmp_path):
    (tmp_path / "any name.jpg").write_bytes(next((toy / "testing").iterdir()).read_bytes())
    photos = load_photos(list_testing(tmp_path, by_name=True), Preprocessing(SIZE), cache=False)
    assert photos.labels.tolist() == [-1]


@pytest.mark.parametrize("changes", [{"temperature": 3.0}, {"view_size": 24}, {"augment": "strong"}], ids=str)
def test_other_views_or_temperatures_find_no_cached_outputs(tmp_path, changes):
    preprocessing, labels = Preprocessing(SIZE), torch.zeros(4, dtype=torch.int64)
    batch = Batch(preprocessing.normalise(TRAINING.photos[:4]), labels, torch.arange(4), 1)

    def loss(teacher, temperature=2.0, **changes):
        options = SimpleNamespace(alpha=1.0, temperature=temperature, dry_run=False)
        records, tuned = [{"sha256": "a"}], small(views=2, **changes)
        return build_distillation(options, [teacher], records, preprocessing, tuned, TRAINING, tmp_path)

    loss(oracle()).targets(batch)
    with pytest.raises(AssertionError, match="was asked"):
        loss(replace(mute(), preprocessing=oracle().preprocessing), **changes).targets(batch)


def test_a_smaller_teacher_sees_every_pixel():
    seen, own = [], Preprocessing(32, mean=(0.0,) * 3, std=(1.0,) * 3)
    teacher = Teacher(lambda images: seen.append(images) or torch.zeros(len(images), 2), own, None)
    stripes = torch.zeros(1, 3, 96, 96)
    stripes[..., 1::3] = 1  # all that bilinear interpolation without antialiasing would read
    teacher.logits(stripes, own)
    assert seen[0][..., 4:-4].max() < 0.5


def test_a_size_given_for_a_teacher_replaces_its_view_size(tmp_path):
    save_model(tmp_path / "teacher.pt")
    content = torch.load(tmp_path / "teacher.pt", weights_only=True)
    torch.save({**content, "training": {"view_size": 24}}, tmp_path / "teacher.pt")
    assert read_teacher(tmp_path / "teacher.pt", CLASSES, CPU).view_size == 24
    assert read_teacher(tmp_path / "teacher.pt", CLASSES, CPU, size=48).view_size is None
