"""--init: weights of a file in a new training, with BN put back and the head by class names; class weights
and balanced accuracy.
"""

import json
import re
import shlex
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
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
SMALL = "--network student --set widths=4,4,4,4,4,4,4,4 --size 32 --cache none".split()


@pytest.fixture
def folded(small_network):
    """(Model with BN folded, the network it came from)."""
    description, network = small_network
    copy = build(description.architecture, **description.arguments)
    copy.load_state_dict(network.state_dict())
    state = fold(copy.eval()).state_dict()
    description = replace(description, arguments={**description.arguments, "folded": True})
    return Model(description, state, 32, "small.bin"), network


def photo_set(class_names, photos=8, size=32, labels=None):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (photos, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(photos) % len(class_names) if labels is None else labels
    return PhotoSet(pixels, torch.arange(photos), labels, tuple(class_names), "x")


# ---------------------------------------------------------------- weights


def test_a_folded_file_gives_a_network_with_bn_that_computes_the_same(folded):
    model, original = folded
    network = build("student", **{**model.description.arguments, "folded": False})
    training = photo_set(FOOD11_CLASSES)
    take_weights(network, model, training, model.description.preprocessing)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), original(images), atol=1e-3)
    assert not torch.equal(network.cnn[0][1].running_var, torch.ones(len(network.cnn[0][1].running_var)))


def test_calibrated_statistics_are_those_of_the_photos():
    """Then training mode, which normalises by the batch, computes what eval mode does for these photos."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    layers += [nn.Flatten(), nn.Linear(5 * 16, 6), nn.BatchNorm1d(6)]
    network = nn.Sequential(*layers).double()
    for module in layers:
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
    backwards = FOOD11_CLASSES[::-1]
    same, other = (
        build("student", **{**model.description.arguments, "folded": False, "num_classes": count})
        for count in (11, 3)
    )
    take_weights(same, model, photo_set(backwards), model.description.preprocessing)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(same.eval()(images), original(images).flip(1), atol=1e-3)
    assert "replaced" not in capsys.readouterr().err
    fresh = other.fc[-1].weight.clone()
    take_weights(other, model, photo_set(("tea", "milk", "wine")), model.description.preprocessing)
    told = (
        "the last layer, for 11 classes (Bread, Dairy product, Dessert, ...), is replaced by a new one for 3"
    )
    assert told in capsys.readouterr().err
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


def test_own_classes_are_trained_from_a_model_file_at_its_size(own_photos, small_model, call, tmp_path):
    words = ("--epochs", 1, "--recipe", "batch_size=4", "--cache", "none", "--out", tmp_path / "run")
    done = call("train_student.py", own_photos, "--init", small_model, *words)
    assert done.returncode == 0 and "is replaced by a new one for 3" in done.stderr, done.stderr
    description = load_model(tmp_path / "run/best.pt").description
    assert description.preprocessing.size == 32 and description.class_names == ("milk", "tea", "wine")
    assert description.arguments["widths"] == [8] * 8 and "init" in description.training


def test_a_finished_run_is_continued_as_its_message_says(toy, call, tmp_path):
    command = ["train_student.py", toy, *SMALL]
    assert call(*command, "--epochs", 1, "--out", tmp_path / "a run").returncode == 0
    more = call(*command, "--epochs", 2, "--out", tmp_path / "a run", "--resume")
    assert more.returncode == 2
    advice = re.search(r"(--init .+ --epochs 2) --out NEW", more.stderr)[1]
    more = ("--cache", "none", *shlex.split(advice), "--out", tmp_path / "more")
    done = call("train_student.py", toy, *more)
    assert done.returncode == 0 and "replaced" not in done.stderr, done.stderr
    # any teacher will do for a dry run
    kd = call("train_kd.py", toy, *more, "--dry-run", "--teacher", tmp_path / "a run/best.pt")
    assert kd.returncode == 0 and "tensors copied from" in kd.stderr, kd.stderr


@pytest.mark.parametrize(
    "more, message",
    [
        (["--network", "wide8"], "--network wide8 cannot be combined with --init"),
        (["--set", "widths=4,4,4,4,4,4,4,4"], "--set cannot be combined with --init"),
    ],
)
def test_contradictions_of_init_are_refused(toy, small_model, refused, tmp_path, more, message):
    command = ("train_student.py", toy, "--out", tmp_path / "run", "--init")
    assert message in refused(*command, small_model, *more)
    assert "there is no model file" in refused(*command, tmp_path / "none.pt")


@pytest.mark.parametrize("more, small", [((), 32), (("--recipe", "view_size=64"), 32)])
def test_a_size_that_is_too_small_for_the_network_is_told_before_photos_are_read(
    toy, refused, tmp_path, monkeypatch, more, small
):
    monkeypatch.setattr("compression.options.load_photos", None)
    shape = {"hidden": (4,) * 8, "widths": (4,) * 8, "pools": (1,) * 4 + (0,) * 4, "stem": (4, 4)}
    description = Description.of("residual6", shape, FOOD11_CLASSES, Preprocessing(64))
    network = build("residual6", **description.arguments)
    write_checkpoint(tmp_path / "best.pt", description, network.state_dict())
    command = ("train_student.py", toy, "--init", tmp_path / "best.pt", "--out", tmp_path / "run")
    assert f"cannot take photos of {small} px" in refused(*command, "--size", small, *more)


def test_a_model_of_a_validation_share_starts_a_training_with_validation_photos_and_passes_the_share_on(
    small_network, toy, call, tmp_path
):
    description, network = small_network
    path, alone = tmp_path / "best.pt", tmp_path / "alone"
    told = replace(description, training={"validation_share": 0.25})
    write_checkpoint(path, told, network.state_dict())
    shutil.copytree(toy / "training", alone / "training")
    for data, share in ((toy, None), (alone, 0.25)):
        command = ("train_student.py", data, "--init", path, "--epochs", 1, "--cache", "none")
        done = call(*command, "--recipe", "batch_size=4", "--out", tmp_path / f"run {share}")
        assert done.returncode == 0, done.stderr
        training = load_model(tmp_path / f"run {share}" / "best.pt").description.training
        assert training.get("validation_share") == share
        assert call("evaluate.py", path, data, "--cache", "none").returncode == 0


# ---------------------------------------------------------------- imbalanced classes


def test_balanced_weights_are_scikit_learns_formula():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] + [-1] * 5)
    assert balanced_weights(labels, 3).tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert balanced_weights(labels, 3)[labels[:10]].mean().item() == pytest.approx(1)


def test_class_weights_are_those_of_the_cross_entropy():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, weights = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0.5, 1.0, 2.0])
    each = -logits.log_softmax(1)[torch.arange(6), labels] * weights[labels]
    batch = Batch(torch.zeros(6, 3, 4, 4), labels, torch.arange(6), None)
    loss = CrossEntropy(0.0, weights)(logits, batch)
    assert loss.item() == pytest.approx((each.sum() / weights[labels].sum()).item())
    loss = distillation_loss(logits, None, labels, 0, 1, weights.double())
    assert loss.item() == pytest.approx(each.mean().item())
    assert torch.equal(CrossEntropy()(logits, batch), F.cross_entropy(logits, labels))


class Always(nn.Module):
    """Names class 0 whatever it sees."""

    def forward(self, images):
        return torch.eye(3)[torch.zeros(len(images), dtype=torch.int64)] * 4.0


def test_balanced_accuracy_is_the_mean_over_classes_with_photos():
    photos = photo_set(("a", "b", "c"), 10, labels=torch.tensor([0] * 8 + [1] * 2))
    measured = evaluate(Always(), photos, Preprocessing(32), CPU)
    assert measured.accuracy == pytest.approx(0.8) and measured.balanced_accuracy == pytest.approx(0.5)


def test_balanced_accuracy_picks_the_best_epoch_with_balanced_weights(toy, call, tmp_path, monkeypatch):
    scripted = iter([Evaluation(1.0, 0.9, 0.2), Evaluation(1.0, 0.1, 0.8)] * 2)
    monkeypatch.setattr("compression.training.loop.evaluate", lambda *arguments, **options: next(scripted))
    command = ["train_student.py", toy, *SMALL, "--epochs", 2]
    for more, best in (((), 1), (("--recipe", "class_weights=balanced"), 2)):
        done = call(*command, *more, "--out", tmp_path / str(best))
        record = json.loads((tmp_path / str(best) / "record.json").read_text())
        assert done.returncode == 0 and record["best"]["epoch"] == best and "balanced 0.8000" in done.stdout
        assert "validation_balanced_accuracy" in (tmp_path / str(best) / "log.csv").read_text()


def test_evaluate_tells_balanced_accuracy(toy, small_model, call, tmp_path):
    done = call("evaluate.py", small_model, toy, "--cache", "none", "--record", tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    shares = [share for share in record["class_accuracy"].values() if share is not None]
    assert record["balanced_accuracy"] == pytest.approx(sum(shares) / len(shares))
    assert "balanced accuracy" in done.stdout


def test_a_run_of_before_class_weights_resumes(toy, call, tmp_path):
    command = ["train_student.py", toy, *SMALL, "--epochs", 2, "--out", tmp_path / "run"]
    assert call(*command).returncode == 0
    last = torch.load(tmp_path / "run/last.pt", weights_only=True)
    history = json.loads(last["run"]["history"])[:1]
    del history[0]["validation_balanced_accuracy"], last["run"]["settings"]["class_weights"]
    last["run"] |= {"history": json.dumps(history), "epoch": 1}
    torch.save(last, tmp_path / "run/last.pt")
    (tmp_path / "run/record.json").unlink()
    done = call(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "run/record.json").read_text())["history"]) == 2


def test_the_detail_of_the_file_is_kept(call, small_network, toy, tmp_path):
    description, network = small_network
    description = replace(description, preprocessing=replace(description.preprocessing, detail=24))
    write_checkpoint(tmp_path / "start.pt", description, network.state_dict())
    more = ("--epochs 1 --cache none --device cpu --out", tmp_path / "run")
    done = call("train_student.py", toy, "--init", tmp_path / "start.pt", *more)
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "run/best.pt").description.preprocessing.detail == 24
