"""--init: weights of a file in a new training, with BN put back and the head by class names; class weights
and balanced accuracy.
"""

import copy
import json
import re
import shlex
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import STUDENT, generator, read_json
from torch import nn

from compression.data.classes import FOOD11_CLASSES
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.model_file import Model
from compression.quantization.folding import fold
from compression.training.evaluation import Evaluation, evaluate
from compression.training.initialisation import calibrate, take_weights
from compression.training.losses import Batch, CrossEntropy, balanced_weights, distillation_loss
from compression.training.run_folder import write_checkpoint
from dataset import PhotoSet
from models import build

CPU = torch.device("cpu")


@pytest.fixture
def folded(small_network):
    """(Model with BN folded, the network it came from)."""
    description, network = small_network
    state = fold(copy.deepcopy(network)).state_dict()
    description = replace(description, arguments={**description.arguments, "folded": True})
    return Model(description, state, 32, "small.bin"), network


def photo_set(class_names, photos=8, labels=None):
    pixels = torch.randint(0, 256, (photos, 32, 32, 3), dtype=torch.uint8, generator=generator(0))
    labels = torch.arange(photos) % len(class_names) if labels is None else labels
    return PhotoSet(pixels, torch.arange(photos), labels, tuple(class_names), "x")


# ---------------------------------------------------------------- weights


def test_a_folded_file_gives_a_network_with_bn_that_computes_the_same(folded):
    model, original = folded
    network = build("student", **{**model.description.arguments, "folded": False})
    take_weights(network, model, photo_set(FOOD11_CLASSES), model.description.preprocessing)
    images = torch.randn(4, 3, 32, 32, generator=generator(1))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), original(images), atol=1e-3)


def test_calibrated_statistics_are_those_of_the_photos():
    """Then training mode, which normalises by the batch, computes what eval mode does for these photos."""
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    network = nn.Sequential(*first, nn.Flatten(), nn.Linear(5 * 16, 6), nn.BatchNorm1d(6)).double()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.uniform_(module.bias)
            nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.randn(9, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = network.eval()(images)
        calibrate(network, images)
        assert torch.allclose(network.eval()(images), before, atol=1e-9)
        assert torch.allclose(network.train()(images), before, atol=1e-9)


def test_the_head_follows_the_class_names_or_is_replaced(folded, capsys):
    model, original = folded
    preprocessing = model.description.preprocessing
    plain = {**model.description.arguments, "folded": False}
    same, other = (build("student", **{**plain, "num_classes": count}) for count in (11, 3))
    take_weights(same, model, photo_set(FOOD11_CLASSES[::-1]), preprocessing)
    images = torch.randn(4, 3, 32, 32, generator=generator(1))
    with torch.no_grad():
        assert torch.allclose(same.eval()(images), original(images).flip(1), atol=1e-3)
    assert "replaced" not in capsys.readouterr().err
    fresh = other.fc[-1].weight.clone()
    take_weights(other, model, photo_set(("tea", "milk", "wine")), preprocessing)
    told = "for 11 classes (Bread, Dairy product, Dessert, ...), is replaced by a new one for 3"
    assert f"the last layer, {told}" in capsys.readouterr().err
    assert torch.equal(other.fc[-1].weight, fresh)
    assert torch.equal(other.fc[0].weight.detach(), model.state_dict["fc.0.weight"])


# ---------------------------------------------------------------- the scripts


@pytest.fixture
def own_photos(toy, tmp_path):
    for split in ("training", "validation"):
        for label, name in ((0, "tea"), (1, "milk"), (2, "wine")):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for path in (toy / split).glob(f"{label}_*.jpg"):
                shutil.copy(path, tmp_path / "own" / split / name)
    return tmp_path / "own"


def test_own_classes_are_trained_from_a_model_file_at_its_size(own_photos, small_model, ok, tmp_path):
    more = ("--epochs 1 --recipe batch_size=4 --cache none --out", tmp_path / "run")
    done = ok("train_student.py", own_photos, "--init", small_model, *more)
    assert "is replaced by a new one for 3" in done.stderr
    description = load_model(tmp_path / "run/best.pt").description
    assert description.preprocessing.size == 32 and description.class_names == ("milk", "tea", "wine")
    assert description.arguments["widths"] == [8] * 8 and "init" in description.training


def test_a_finished_run_is_continued_as_its_message_says(toy, ok, refused, tmp_path):
    run = tmp_path / "a run"
    ok("train_student.py", toy, STUDENT, "--epochs 1 --out", run)
    sentence = refused("train_student.py", toy, STUDENT, "--epochs 2 --resume --out", run, late=True)
    advice = re.search(r"(--init .+ --epochs 2) --out NEW", sentence)[1]
    more = ("--cache none", *shlex.split(advice), "--out")
    assert "replaced" not in ok("train_student.py", toy, *more, tmp_path / "more").stderr
    # any teacher will do
    done = ok("train_kd.py", toy, *more, tmp_path / "kd", "--dry-run --teacher", run / "best.pt")
    assert "tensors copied from" in done.stderr


def test_contradictions_of_init_are_refused(toy, small_model, refused, tmp_path):
    def sentence(path, *more):
        return refused("train_student.py", toy, "--init", path, "--out", tmp_path / "run", *more)

    assert "--network wide8 cannot be combined" in sentence(small_model, "--network wide8")
    assert "--set cannot be combined" in sentence(small_model, "--set widths=4,4,4,4,4,4,4,4")
    assert "there is no model file" in sentence(tmp_path / "none.pt")


@pytest.mark.parametrize("more", ["--size 32", "--size 32 --recipe view_size=64"])
def test_a_size_that_is_too_small_for_the_network_is_told_before_photos_are_read(
    toy, refused, tmp_path, monkeypatch, more
):
    monkeypatch.setattr("compression.options.load_photos", None)
    shape = {"hidden": (4,) * 8, "widths": (4,) * 8, "pools": (1,) * 4 + (0,) * 4, "stem": (4, 4)}
    description = Description.of("residual6", shape, FOOD11_CLASSES, Preprocessing(64))
    network = build("residual6", **description.arguments)
    write_checkpoint(tmp_path / "best.pt", description, network.state_dict())
    command = ("train_student.py", toy, "--init", tmp_path / "best.pt", "--out", tmp_path / "run")
    assert "cannot take photos of 32 px" in refused(*command, more)


def test_a_model_of_a_validation_share_starts_a_training_with_validation_photos_and_passes_the_share_on(
    small_network, toy, ok, tmp_path
):
    description, network = small_network
    path, alone = tmp_path / "best.pt", tmp_path / "alone"
    told = replace(description, training={"validation_share": 0.25})
    write_checkpoint(path, told, network.state_dict())
    shutil.copytree(toy / "training", alone / "training")
    for data, share in ((toy, None), (alone, 0.25)):
        run = tmp_path / f"run {share}"
        more = ("--epochs 1 --cache none --recipe batch_size=4 --out", run)
        ok("train_student.py", data, "--init", path, *more)
        assert load_model(run / "best.pt").description.training.get("validation_share") == share
        ok("evaluate.py", path, data, "--cache none")


# ---------------------------------------------------------------- imbalanced classes


def test_balanced_weights_are_scikit_learns_formula():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] + [-1] * 5)
    assert balanced_weights(labels, 3).tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert balanced_weights(labels, 3)[labels[:10]].mean().item() == pytest.approx(1)


def test_class_weights_are_those_of_the_cross_entropy():
    logits = torch.randn(6, 3, generator=generator(0), dtype=torch.float64)
    labels, weights = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0.5, 1.0, 2.0])
    each = -logits.log_softmax(1)[torch.arange(6), labels] * weights[labels]
    batch = Batch(torch.zeros(6, 3, 4, 4), labels, torch.arange(6), None)
    weighted = CrossEntropy(0.0, weights)(logits, batch).item()
    assert weighted == pytest.approx((each.sum() / weights[labels].sum()).item())
    distilled = distillation_loss(logits, None, labels, 0, 1, weights.double()).item()
    assert distilled == pytest.approx(each.mean().item())
    assert torch.equal(CrossEntropy()(logits, batch), F.cross_entropy(logits, labels))


class Always(nn.Module):
    """Names class 0 whatever it sees."""

    def forward(self, images):
        return torch.eye(3)[torch.zeros(len(images), dtype=torch.int64)] * 4.0


def test_balanced_accuracy_is_the_mean_over_classes_with_photos():
    photos = photo_set(("a", "b", "c"), 10, labels=torch.tensor([0] * 8 + [1] * 2))
    measured = evaluate(Always(), photos, Preprocessing(32), CPU)
    assert measured.accuracy == pytest.approx(0.8) and measured.balanced_accuracy == pytest.approx(0.5)


def test_balanced_accuracy_picks_the_best_epoch_with_balanced_weights(toy, ok, tmp_path, monkeypatch):
    scripted = iter([Evaluation(1.0, 0.9, 0.2), Evaluation(1.0, 0.1, 0.8)] * 2)
    monkeypatch.setattr("compression.training.loop.evaluate", lambda *arguments, **options: next(scripted))
    for weights, best in (("none", 1), ("balanced", 2)):
        out = tmp_path / weights
        options = f"--epochs 2 --recipe class_weights={weights} --out"
        assert "balanced 0.8000" in ok("train_student.py", toy, STUDENT, options, out).stdout
        assert read_json(out / "record.json")["best"]["epoch"] == best
        assert "validation_balanced_accuracy" in (out / "log.csv").read_text()


def test_evaluate_tells_balanced_accuracy(toy, small_model, ok, tmp_path):
    done = ok("evaluate.py", small_model, toy, "--cache none --record", tmp_path / "record.json")
    record = read_json(tmp_path / "record.json")
    shares = [share for share in record["class_accuracy"].values() if share is not None]
    assert record["balanced_accuracy"] == pytest.approx(sum(shares) / len(shares))
    assert "balanced accuracy" in done.stdout


def test_a_run_of_before_class_weights_resumes(toy, ok, tmp_path):
    run = tmp_path / "run"
    command = ("train_student.py", toy, STUDENT, "--epochs 2 --out", run)
    ok(*command)
    last = torch.load(run / "last.pt", weights_only=True)
    history = json.loads(last["run"]["history"])[:1]
    del history[0]["validation_balanced_accuracy"], last["run"]["settings"]["class_weights"]
    last["run"] |= {"history": json.dumps(history), "epoch": 1}
    torch.save(last, run / "last.pt")
    (run / "record.json").unlink()
    ok(*command, "--resume")
    assert len(read_json(run / "record.json")["history"]) == 2
