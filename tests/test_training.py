"""The training loop: resuming, signals, EMA, schedule, records; through fit() and the real command line."""

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compression import distributed
from compression.command_line import UserError
from compression.data.augmentation import AUGMENTATIONS
from compression.data.preprocessing import Preprocessing, photos_at_once
from compression.files.description import Description
from compression.files.loading import load_model
from compression.training.cuda_graph import WARM_UP_STEPS
from compression.training.evaluation import Evaluation, evaluate
from compression.training.loop import StopRequest, draw_batch, fit, pick_precision
from compression.training.losses import Batch, CrossEntropy, mix
from compression.training.recipe import (
    MovingAverage,
    Settings,
    build_optimizer,
    optimise,
    parameter_groups,
    warmup_cosine,
)
from compression.training.run_folder import Run
from dataset import PhotoSet
from models import build

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SIZE = 32
NARROW = {"stem": (8, 8), "widths": (8, 8), "hidden": (16, 16), "pools": (1, 0), "head": 16, "dropout": 0.2}


def photo_set(count, seed):
    """Photos whose class is their brightness: two classes that any network can learn."""
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 2
    photos = torch.randint(0, 100, (count, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    photos += labels.view(-1, 1, 1, 1).to(torch.uint8) * 100
    return PhotoSet(photos, torch.arange(count), labels, ("dark", "bright"), f"fingerprint {seed}")


TRAINING, VALIDATION = photo_set(36, 1), photo_set(20, 2)


def new_network(seed=0, **changes):
    """(a small network in train mode, its Description); changes: of its arguments."""
    torch.manual_seed(seed)
    arguments = {**NARROW, **changes}
    description = Description.of("residual6", arguments, TRAINING.class_names, Preprocessing(size=SIZE))
    return build("residual6", **description.arguments).train(), description


def start(out, settings, device=CPU, training=TRAINING, validation=VALIDATION, **options):
    """fit() on the small photos with a network initialised from the settings' seed."""
    network = new_network(settings.seed)
    return fit(*network, training, validation, settings, out, device, **options)


def small(**changes):
    return Settings(**{"epochs": 3, "batch_size": 8, "lr": 0.01, "ema": 0.9, **changes})


def first_run(settings, device=CPU, steps=5, **options):
    """The Run of a small network that has not made a step yet; steps: of an epoch."""
    return Run(*new_network(settings.seed), settings, steps, device, **options)


def some_batch(device=CPU):
    images, labels = torch.randn(4, 3, SIZE, SIZE), torch.tensor([0, 1, 0, 1])
    return Batch(images.to(device), labels.to(device), torch.arange(4), None)


def same_tensors(before, after):
    assert before.keys() == after.keys()
    return all(torch.equal(before[name], after[name]) for name in before)


def run_state(out):
    return torch.load(out / "last.pt", weights_only=True, map_location="cpu")


class KillAfter(CrossEntropy):
    """A loss that raises, or sends a signal to this process, at its n-th batch."""

    def __init__(self, calls, number=None):
        super().__init__(label_smoothing=0.1)
        self.calls, self.number = calls, number

    def prepare(self, batch):
        self.calls -= 1
        if self.calls == 0:
            if self.number is None:
                raise RuntimeError("killed")
            os.kill(os.getpid(), self.number)
        return batch


@pytest.mark.parametrize(
    "settings",
    [
        small(),
        small(optimizer="sgd", ema=0, augment="none"),
        small(precision="bf16", augment="strong"),
        small(mixup=0.5),
        small(views=2),
        small(view_size=24, augment="blurred"),
        small(schedule="constant", augment="course"),
    ],
    ids=["adamw-ema", "sgd", "bf16", "mixup", "fixed views", "small views", "constant"],
)
@pytest.mark.parametrize(
    "stops",
    [[(7, None)], [(2, None)], [(3, signal.SIGTERM), (4, signal.SIGTERM)], [(1, signal.SIGINT)]],
    ids=["killed", "killed before the first checkpoint", "SIGTERM twice", "SIGINT in the first step"],
)
def test_a_resumed_run_ends_with_bitwise_the_weights_of_an_uninterrupted_one(tmp_path, settings, stops):
    whole = start(tmp_path / "whole", settings)
    for calls, number in stops:
        with pytest.raises(SystemExit if number else RuntimeError) as stopped:
            start(tmp_path / "parts", settings, loss=KillAfter(calls, number), resume=True)
        assert number is None or stopped.value.code == 128 + number
    torch.rand(5)  # whatever happens in between must not matter
    parts = start(tmp_path / "parts", settings, resume=True)

    first, second = run_state(tmp_path / "whole"), run_state(tmp_path / "parts")
    assert same_tensors(first["run"]["network"], second["run"]["network"])
    assert same_tensors(first["state_dict"], second["state_dict"])
    assert same_tensors(*(load_model(tmp_path / name / "best.pt").state_dict for name in ("whole", "parts")))
    without_time = [[{**row, "seconds": 0} for row in record["history"]] for record in (whole, parts)]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_device_and_precision_trains_and_resumes(tmp_path, device, precision):
    """On the CPU bitwise; on a GPU, whose sums vary, from bitwise the state that was saved. Checkpoints open
    where there is no GPU.
    """
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("fp16 needs a GPU")
    settings = small(precision=precision, augment="blurred", mixup=0.3, epochs=2)
    whole = start(tmp_path / "whole", settings, device)
    with pytest.raises(SystemExit):
        start(tmp_path / "parts", settings, device, loss=KillAfter(6, signal.SIGTERM))
    saved = run_state(tmp_path / "parts")["run"]
    again = first_run(settings, device, steps=len(TRAINING) // settings.batch_size)
    again.load_state_dict(saved)
    for part in ("network", "ema"):
        loaded = {name: tensor.cpu() for name, tensor in again.state_dict()[part].items()}
        assert same_tensors(saved[part], loaded)
    parts = start(tmp_path / "parts", settings, device, resume=True)
    states = [run_state(tmp_path / name)["state_dict"] for name in ("whole", "parts")]
    assert {tensor.device for tensor in states[0].values()} == {CPU}
    assert device != CPU or same_tensors(*states)
    losses = [row["train_loss"] for record in (whole, parts) for row in record["history"]]
    assert len(losses) == 4 and all(map(math.isfinite, losses))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_step_does_not_wait_for_the_gpu():
    device, augmentation = torch.device("cuda"), AUGMENTATIONS["blurred"]
    run = first_run(small(), device, steps=10)

    def step():
        images, labels = TRAINING.batch(torch.arange(16), device)
        views = augmentation(images, run.description.preprocessing, run.views)
        run.train_step(Batch(*mix(views, labels, 2, 0.3, run.views), torch.arange(16), None))

    for _ in range(WARM_UP_STEPS + 1):  # which copy constants, choose convolutions, and record a CUDA graph
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize(
    "settings",
    [small(), small(optimizer="sgd", ema=0), small(precision="fp16"), small(gamma_l1=1e-4, warmup=0.5)],
    ids=["adamw", "sgd", "fp16", "penalty"],
)
def test_a_step_that_is_replayed_as_a_cuda_graph_trains_as_one_that_is_not(settings, monkeypatch):
    """Each of 12 batches differs, so does the learning rate; the first steps are replayed on neither side."""
    device, results = torch.device("cuda"), []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for as_graph in (False, True):
        run = Run(*new_network(dropout=0.0), settings, 6, device)  # its random numbers would differ
        run.graph = run.graph if as_graph else None
        for step in range(12):
            batch = run.beside(lambda: draw_batch(run, TRAINING, torch.arange(16) + step, None, None))
            run.train_step(batch)
        results.append((run.loss_sum.item(), run.correct.item(), run.evaluated.state_dict()))
    (loss, correct, weights), (other_loss, other_correct, other_weights) = results
    half = settings.precision == "fp16"
    assert other_loss == pytest.approx(loss, rel=0.05 if half else 1e-3)
    assert abs(correct - other_correct) <= (20 if half else 2)
    for name, values in weights.items():
        assert torch.allclose(values, other_weights[name], rtol=0.2 if half else 0.01, atol=0.05), name


def test_a_signal_in_the_last_evaluation_leaves_a_complete_run_and_starts_nothing_more(tmp_path, monkeypatch):
    evaluations = []

    def interrupted(*arguments, **options):
        evaluations.append(1)
        if len(evaluations) == 2:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments, **options)

    monkeypatch.setattr("compression.training.loop.evaluate", interrupted)
    with pytest.raises(SystemExit) as stopped:
        start(tmp_path, small(epochs=2))
    assert stopped.value.code == 128 + signal.SIGTERM
    history = json.loads((tmp_path / "record.json").read_text())["history"]
    assert len(history) == run_state(tmp_path)["run"]["epoch"] == 2


@pytest.mark.parametrize(
    "signals, agreed", [([None, 15], 15), ([15, None], 15), ([2, 15], 15), ([None], None), ([2], 2)]
)
def test_a_process_with_a_signal_asks_the_others_too_which_wait_for_it(monkeypatch, signals, agreed):
    asked = []
    monkeypatch.setattr(distributed, "gather", lambda value: asked.append(value) or signals)
    with StopRequest() as stop:
        stop.signal = signals[0]
        assert stop.agreed() == agreed and asked == signals[:1]


def test_the_seed_decides_the_outcome(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        start(tmp_path / name, small(epochs=1, seed=seed))
    a, b, c = (run_state(tmp_path / name)["state_dict"] for name in "abc")
    assert same_tensors(a, b) and not same_tensors(a, c)


class OneWeight(nn.Module):
    """logits = (-w, w) * (brightness - 0.39): right for every photo of `photo_set` where w > 0, and for none
    where w < 0.
    """

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, images):
        brightness = images.mean((1, 2, 3)).unsqueeze(1)
        return torch.cat([-self.weight * brightness, self.weight * brightness], 1)


ABOVE_039 = Preprocessing(SIZE, mean=(0.39,) * 3, std=(1,) * 3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_learns(tmp_path, optimizer):
    """The loss of every photo falls as the one weight rises, so every step of every batch must raise it.

    |brightness - 0.39| is nearly 0.2 for all photos, so gradients lie between 0.19 and 0.24 while w goes from
    -1 to 0. A step of Adam is then 0.07 to 0.13: w is below 0 after an epoch (4 steps) and above it after
    six. So it is with Nesterov momentum, which moves w by at most 0.3 in 4 steps and by at least 3 in 24.
    """
    description = Description.of("residual6", NARROW, TRAINING.class_names, ABOVE_039)
    plain = {"schedule": "constant", "augment": "none", "label_smoothing": 0.0, "ema": 0}
    settings = small(optimizer=optimizer, lr=0.1, epochs=6, batch_size=9, **plain)
    record = fit(OneWeight(-1.0), description, TRAINING, VALIDATION, settings, tmp_path, CPU)
    losses = [row["train_loss"] for row in record["history"]]
    accuracies = [row["validation_accuracy"] for row in record["history"]]
    assert losses == sorted(set(losses), reverse=True) and len(losses) == 6
    assert accuracies[0] == 0 and accuracies[-1] == 1 == record["best"]["validation_accuracy"]


def test_a_run_records_what_it_did(tmp_path):
    record = start(tmp_path, small(epochs=3))
    assert json.loads((tmp_path / "record.json").read_text()) == json.loads(json.dumps(record))
    assert record["data"] == {"training": "fingerprint 1", "validation": "fingerprint 2"}
    assert {"command", "commit", "seed", "device", "versions", "date"} <= record.keys()
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert float(rows[-1]["validation_accuracy"]) == record["history"][-1]["validation_accuracy"]


def test_best_is_the_earliest_epoch_with_the_highest_validation_accuracy(tmp_path, monkeypatch):
    accuracies, evaluated = [0.25, 0.75, 0.75, 0.5], []

    def measured(network, *arguments, **options):
        evaluated.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return Evaluation(1.0, accuracies[len(evaluated) - 1], 0.0)

    monkeypatch.setattr("compression.training.loop.evaluate", measured)
    record = start(tmp_path, small(epochs=4))
    assert record["best"] == record["history"][1] and record["best"]["epoch"] == 2
    assert same_tensors(load_model(tmp_path / "best.pt").state_dict, evaluated[1])


def test_evaluation_draws_no_random_number_and_leaves_the_mode(tmp_path):
    network = build("residual6", **NARROW, num_classes=2).train()
    before = torch.get_rng_state()
    evaluate(network, VALIDATION, Preprocessing(size=SIZE), CPU)
    assert torch.equal(before, torch.get_rng_state()) and network.training


def test_evaluation_counts_every_photo_once_whatever_the_batch_size(device):
    """A quarter of the labels are wrong; cross-entropy of two classes is log(1 + exp(wrong logit - right
    logit)).
    """
    labels = torch.where(torch.arange(20) % 4 == 0, 1 - VALIDATION.labels, VALIDATION.labels)
    brightness = VALIDATION.photos.double().mean((1, 2, 3)) / 255 - 0.39
    right = ((brightness > 0) == (labels == 1)).double()
    expected = torch.log1p(torch.exp(-2 * 3.0 * brightness * (2 * labels - 1))).mean().item()
    network, photos = OneWeight(3.0).to(device), replace(VALIDATION, labels=labels)
    for size in (1, 7, 20, 64):
        loss, accuracy, balanced = evaluate(network, photos, ABOVE_039, device, batch_size=size)
        assert balanced == pytest.approx((right[labels == 0].mean() + right[labels == 1].mean()).item() / 2)
        assert loss == pytest.approx(expected, rel=1e-3) and accuracy == 0.75


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    class Broken(CrossEntropy):
        calls = iter(range(100))

        def __call__(self, logits, batch):
            return logits.sum() * (math.nan if next(self.calls) == 6 else 1e-6)

    told = "no longer finite in epoch 2, step 3, .* again with --recipe lr=0.0025 and another --out"
    with pytest.raises(UserError, match=told):
        start(tmp_path, small(), loss=Broken())
    state = run_state(tmp_path)
    assert state["run"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in state["run"]["network"].values())


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    start(tmp_path, small(epochs=1))
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        start(tmp_path, small(epochs=1))
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_run_killed_between_its_two_checkpoints_goes_on(tmp_path, monkeypatch):
    save = Run.save

    def dies(run, path, complete):
        if path.name == "best.pt":
            raise RuntimeError("killed")
        save(run, path, complete)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Run, "save", dies)
        start(tmp_path / "killed", small(epochs=1))
    for name, resume in (("killed", True), ("whole", False)):
        start(tmp_path / name, small(epochs=1), resume=resume)
    killed, whole = ((tmp_path / name / "best.pt").read_bytes() for name in ("killed", "whole"))
    assert killed == whole


def test_what_is_left_of_a_run_is_not_overwritten_either(tmp_path):
    start(tmp_path, small(epochs=1))
    best, last = ((tmp_path / name).read_bytes() for name in ("best.pt", "last.pt"))
    (tmp_path / "best.pt").unlink()
    with pytest.raises(UserError, match="no best.pt any more; put it back"):
        start(tmp_path, small(epochs=1), resume=True)
    (tmp_path / "best.pt").write_bytes(best)
    (tmp_path / "last.pt").write_bytes(last[:1000])
    with pytest.raises(UserError, match=r"last.pt is damaged .*; choose another --out$"):
        start(tmp_path, small(epochs=1), resume=True)
    (tmp_path / "last.pt").unlink()
    with pytest.raises(UserError, match="holds best.pt and no last.pt to continue"):
        start(tmp_path, small(epochs=1), resume=True)
    assert (tmp_path / "best.pt").read_bytes() == best


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"seed": 3}, {"augment": "light"}])
def test_resuming_with_other_settings_names_the_setting(tmp_path, change):
    start(tmp_path, small(epochs=1))
    with pytest.raises(UserError, match=f"^{min(change)} was "):
        start(tmp_path, small(**{"epochs": 1, **change}), resume=True)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_resuming_from_a_damaged_checkpoint_is_a_user_error(tmp_path, content):
    start(tmp_path, small(epochs=1))
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match="last.pt"):
        start(tmp_path, small(epochs=1), resume=True)


def test_a_dry_run_is_two_batches_without_a_folder():
    assert math.isfinite(start(None, small())["validation_loss"])
    with pytest.raises(SystemExit) as stopped:
        start(None, small(), loss=KillAfter(1, signal.SIGTERM))
    assert stopped.value.code == 128 + signal.SIGTERM


def test_a_single_photo_cannot_be_trained_on(tmp_path):
    with pytest.raises(UserError, match="two photos"):
        start(tmp_path, small(), training=photo_set(1, 0))


def test_the_schedule_rises_linearly_and_falls_as_a_cosine():
    factors = [warmup_cosine(step, 10, 110) for step in range(111)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1 and factors[60] == pytest.approx(0.5) and factors[110] == pytest.approx(0)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_training_follows_the_schedule(tmp_path):
    settings, steps = small(warmup=0.25), 36 // 8
    rates = [row["lr"] for row in start(tmp_path, settings)["history"]]
    expected = [settings.lr * warmup_cosine(steps * epoch, 3, 3 * steps) for epoch in (1, 2, 3)]
    assert rates == pytest.approx(expected)
    # 4 = 0.25 of 15 steps, rounded
    assert first_run(settings).optimizer.param_groups[0]["lr"] == pytest.approx(settings.lr / 4)


def test_label_smoothing_is_its_formula():
    """(1 - s) * -log p(label) + s * the mean of -log p over all classes (Szegedy et al. 2016), and a run
    takes s from its settings.
    """
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    surprise = -logits.log_softmax(1)
    batch = Batch(None, labels, None, None)
    for share, loss in (
        (0.0, CrossEntropy()),
        (0.1, CrossEntropy(0.1)),
        (0.3, first_run(small(label_smoothing=0.3)).loss),
    ):
        expected = (1 - share) * surprise[torch.arange(6), labels].mean() + share * surprise.mean()
        assert loss(logits, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_sgd_steps_with_nesterov_momentum():
    """Under a gradient of 1 the velocity is 1, then 1.9; a step is lr * (gradient + 0.9 * velocity)
    (Sutskever et al. 2013).
    """
    layer = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(layer, Settings(optimizer="sgd", lr=0.1, weight_decay=0.0))
    for velocity in (1.9, 2.71):
        before, layer.weight.grad = layer.weight.item(), torch.ones(1, 1)
        optimizer.step()
        assert before - layer.weight.item() == pytest.approx(0.1 * velocity, abs=1e-6)


class Watching(CrossEntropy):
    """A loss that keeps the batches it was called with."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def __call__(self, logits, batch):
        self.batches.append(batch)
        return super().__call__(logits, batch)


def test_every_epoch_sees_every_photo_once_in_another_order(tmp_path):
    loss = Watching()
    start(tmp_path, small(batch_size=9, epochs=2), loss=loss)
    first, second = torch.cat([batch.positions for batch in loss.batches]).view(2, 36).tolist()
    ordered = list(range(36))
    assert sorted(first) == sorted(second) == ordered and ordered != first != second != ordered
    assert all(torch.equal(batch.labels, TRAINING.labels[batch.positions]) for batch in loss.batches)


def test_mixup_reaches_the_loss(tmp_path):
    loss = Watching()
    start(tmp_path, small(epochs=1, mixup=0.4), loss=loss)
    shares = torch.cat([batch.labels for batch in loss.batches])
    assert shares.shape == (32, 2) and torch.allclose(shares.sum(1), torch.ones(32))
    assert shares.min() < 0.1 < 0.2 < shares.min(1).values.max() <= 0.4


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_network_computes_in_the_precision_of_the_settings(device, precision, dtype):
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("fp16 needs a GPU")
    run, seen = first_run(small(precision=precision), device), []
    run.network.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    run.train_step(some_batch(device))
    assert seen == [dtype] and torch.isfinite(run.loss_sum)
    assert {parameter.dtype for parameter in run.network.parameters()} == {torch.float32}


def test_a_large_gradient_is_clipped_and_a_small_one_is_left():
    class Scaled(CrossEntropy):
        scale = 1.0

        def __call__(self, logits, batch):
            return self.scale * super().__call__(logits, batch)

    norms = []
    for Scaled.scale in (1e-3, 1e3):
        run = first_run(small(clip=0.1), loss=Scaled())
        run.train_step(some_batch())
        gradients = [parameter.grad.norm() for parameter in run.network.parameters()]
        norms.append(torch.stack(gradients).norm().item())
    assert 0 < norms[0] < 0.09 and norms[1] == pytest.approx(0.1, rel=1e-3)


class SaysBright(nn.Module):
    """A network that calls every photo bright (class 1)."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 9.0]))

    def forward(self, images):
        return self.logits.expand(len(images), 2)


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([1, -1, 0, -1]), torch.tensor([[0.1, 0.9], [0.0, 0.3], [0.8, 0.2], [0.0, 0.0]])],
    ids=["labels", "mixed labels"],
)
def test_training_accuracy_counts_the_labelled_photos_alone(labels):
    class Free(CrossEntropy):
        def __call__(self, logits, batch):
            return logits.square().mean()

    run = Run(SaysBright(), new_network()[1], small(ema=0), 5, CPU, Free())
    run.train_step(Batch(torch.randn(4, 3, SIZE, SIZE), labels, torch.arange(4), None))
    assert (run.correct, run.labelled) == (1, 2)
    run.end_epoch({})
    assert (run.correct, run.labelled) == (0, 0)


def test_an_older_run_whose_classes_are_spelled_otherwise_is_resumed_and_one_of_another_order_is_not(
    tmp_path,
):
    whole = start(tmp_path / "whole", small(epochs=2))
    with pytest.raises(SystemExit):
        start(tmp_path / "parts", small(epochs=2), loss=KillAfter(6, signal.SIGTERM))
    older = run_state(tmp_path / "parts")
    names = older["class_names"]
    torch.save({**older, "class_names": names[::-1]}, tmp_path / "parts/last.pt")
    with pytest.raises(UserError, match="class_names was"):
        start(tmp_path / "parts", small(epochs=2), resume=True)
    torch.save({**older, "class_names": [f" {name}" for name in names]}, tmp_path / "parts/last.pt")
    parts = start(tmp_path / "parts", small(epochs=2), resume=True)
    accuracies = [[row["train_accuracy"] for row in record["history"]] for record in (whole, parts)]
    assert accuracies[0] == accuracies[1]


def test_a_constant_schedule_stays_at_the_learning_rate(tmp_path):
    record = start(tmp_path, small(schedule="constant"))
    assert {row["lr"] for row in record["history"]} == {small().lr}
    assert record["settings"]["schedule"] == "constant"
    with pytest.raises(UserError, match="schedule was constant"):
        start(tmp_path, small(), resume=True)


def test_weight_decay_spares_biases_and_bn():
    network = build("student")
    decayed, spared = (group["params"] for group in parameter_groups(network, 0.1))
    assert len(decayed) + len(spared) == len(list(network.parameters()))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed)
    bn = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert bn <= {names[id(parameter)] for parameter in spared}


def test_weight_decay_acts_on_weights_alone():
    network = nn.Linear(3, 2)
    optimizer = build_optimizer(network, Settings(lr=0.1, weight_decay=0.5))
    weight, bias = network.weight.detach().clone(), network.bias.detach().clone()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(network.weight, weight * (1 - 0.1 * 0.5)) and torch.equal(network.bias, bias)


def test_the_averaged_weights_follow_the_closed_form(device):
    state = first_run(small(ema=0.5), device)
    name, expected = "fc.1.weight", None
    for step in range(4):
        state.train_step(some_batch(device))
        current = state.network.state_dict()[name].double()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = current if step == 0 else decay * expected + (1 - decay) * current
    assert torch.allclose(state.evaluated.state_dict()[name].double(), expected, atol=1e-6)


def test_the_averaged_weights_are_bitwise_those_of_torch():
    """Floats and whole numbers (BN's counter), the first step and later ones."""
    network = first_run(small()).network
    ours = MovingAverage(network)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    for step in range(4):
        network(torch.rand(8, 3, SIZE, SIZE))  # moves BN's statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update(0.7)
        theirs.update_parameters(network)
        assert same_tensors(ours.state_dict(), theirs.state_dict()), step
    assert ours.n_averaged == 4


def test_a_run_of_very_many_epochs_is_resumed(tmp_path):
    """Beyer et al. 2022 distil for 10,000; its log is in the checkpoint."""
    run = first_run(small())
    row = {"train_loss": 0.123456789, "train_accuracy": 0.5, "validation_loss": 1e-9}
    row |= {"validation_accuracy": 0.5, "seconds": 1.5}
    run.history = [{"epoch": epoch, **row} for epoch in range(1, 20_001)]
    run.save(tmp_path / "last.pt", complete=True)
    again = first_run(small())
    again.resume(tmp_path / "last.pt")
    assert again.history == run.history


def test_larger_photos_are_evaluated_in_smaller_batches():
    assert [photos_at_once(size) for size in (16, 128, 256, 512, 4096)] == [256, 256, 64, 16, 1]


@pytest.mark.parametrize("name, precision", [("cuda:0", "bf16"), ("cuda:1", "fp16")])
def test_precision_is_that_of_the_gpu_that_is_named(monkeypatch, name, precision):
    """An Ampere and a Turing card in one machine: torch tells what the current one computes in."""
    current = []

    @contextlib.contextmanager
    def as_current(device):
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", as_current)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: (current or [0])[-1] == 0)
    assert pick_precision("auto", torch.device(name)) == precision


def test_precision_fp16_is_refused_on_the_cpu():
    with pytest.raises(UserError, match="needs a GPU"):
        pick_precision("fp16", CPU)


# ---------------------------------------------------------------- the command line


def arguments(data, out, *more):
    words = "--network student --set widths=4,4,4,4,4,4,4,4 --epochs 2 --recipe batch_size=11 --cache none"
    return ["train_student.py", data, *words.split(), "--size", SIZE, "--device", "cpu", "--out", out, *more]


def test_command_line_trains_and_its_checkpoint_describes_itself(toy, run_script, tmp_path):
    result = run_script(*arguments(toy, tmp_path / "my run"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    model = load_model(tmp_path / "my run/best.pt")
    assert model.description.architecture == "student" and model.description.arguments["widths"] == [4] * 8
    assert model.description.preprocessing.size == SIZE and len(model.description.class_names) == 11
    record = json.loads((tmp_path / "my run/record.json").read_text())
    assert record["command"].startswith("train_student.py") and record["model"]["architecture"] == "student"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_line_stopped_by_a_signal_saves_and_resumes(toy, call, tmp_path, number):
    script, *more = map(str, arguments(toy, tmp_path / "run", "--epochs", 100_000))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, ROOT / script, *more], **pipes)
    while not (tmp_path / "run/log.csv").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate()
    assert process.returncode == 128 + number and "continue with --resume" in output, errors
    assert "Traceback" not in errors
    assert run_state(tmp_path / "run")["run"]["epoch"] >= 1
    # without --resume
    assert "already holds a run" in call(*arguments(toy, tmp_path / "run", "--epochs", 100_000)).stderr


def test_command_line_trains_on_a_folder_per_class(call, tmp_path):
    import numpy as np

    from experiments.toy_food11 import draw_picture

    random = np.random.default_rng(0)
    for split, count in (("training", 8), ("validation", 4)):
        for label, name in enumerate(["round things", "方"]):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                draw_picture(label, random).save(tmp_path / split / name / f"photo {index}.png")
    result = call(*arguments(tmp_path, tmp_path / "run", "--recipe", "batch_size=4"))
    assert result.returncode == 0, result.stderr
    assert load_model(tmp_path / "run/best.pt").description.class_names == ("round things", "方")


# halves photos twice, and wherever it pools
DEEP = ["--network", "residual6", "--set", "hidden=4,4,4,4,4,4,4,4", "--set"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--epochs", "0"], "is not a"),
        (["--recipe", "lr=nan"], "is not a"),
        (["--size", "8"], "is not a"),
        (["--network", "vgg"], "invalid choice"),
        (["--set", "widths"], "is not ARG=VALUE"),
        (["--set", "depth=3"], "has no argument"),
        (["--set", "widths=0,4"], "cannot be built"),
        (DEEP + ["pools=1,1,1,1,0,0,0,0"], "cannot take photos of 32 px"),
        (DEEP + ["pools=1,1,1,0,0,0,0,0", "--recipe", "view_size=16"], "cannot take photos of 16 px"),
        (["--device", "cuda:99"], "--device"),
        (["--device", "tpu"], "--device tpu cannot be used"),
        (["--recipe", "label_smoothing=2"], "is not a"),
        (["--epoch", "3"], "unrecognized"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_status_2(toy, refused, tmp_path, wrong, message):
    assert message in refused(*arguments(toy, tmp_path / "run", *wrong))
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_told_before_photos_are_decoded(toy, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("compression.options.load_photos", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best.pt").touch()
    assert "already holds a run (best.pt)" in refused(*arguments(toy, tmp_path / "run"))
    (tmp_path / "run/best.pt").rename(tmp_path / "run/record.json")
    assert "no last.pt" in refused(*arguments(toy, tmp_path / "run", "--resume"))


def test_missing_data_is_one_sentence_and_status_2(refused, tmp_path):
    assert "nowhere" in refused(*arguments(tmp_path / "nowhere", tmp_path / "run"))


def test_an_output_that_cannot_be_written_is_told_before_training(toy, call, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = call(*arguments(toy, tmp_path / "file" / "run"))
    assert result.returncode == 2 and "cannot write" in result.stderr and "epoch" not in result.stdout


KILLED = """
import os, signal, sys
import train_student
from compression.files import atomic as files
from compression.command_line import run
from compression.training.run_folder import Run

moment, sys.argv = sys.argv[1], sys.argv[2:]
replace, train_step, calls = os.replace, Run.train_step, iter(range(100))

def replaced(source, target):
    if moment == "checkpoint" and str(target).endswith("last.pt") and next(calls) == 1:  # the second one
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

def stepped(run, batch, *rest):
    train_step(run, batch, *rest)
    if moment == "step" and next(calls) == 5:  # epochs have four
        os.kill(os.getpid(), signal.SIGKILL)

files.os.replace, Run.train_step = replaced, stepped
run(train_student.main)
"""


def test_a_killed_process_resumes_to_bitwise_the_same_weights(toy, run_script, tmp_path):
    """kill -9 in the middle of an epoch, then before a checkpoint is in its place; the uninterrupted run is
    another process too.
    """
    whole, parts = (
        arguments(toy, tmp_path / name, "--epochs", 5, "--set", "widths=8,8,8,8,8,8,8,8")
        for name in ("whole", "parts")
    )
    for moment, more in (("step", []), ("checkpoint", ["--resume"])):
        command = [sys.executable, "-c", KILLED, moment, *map(str, parts), *more]
        killed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    for command in (whole, [*parts, "--resume"]):
        result = run_script(*command)
        assert result.returncode == 0, result.stderr
    states = [run_state(tmp_path / name)["run"] for name in ("whole", "parts")]
    assert states[0]["epoch"] == states[1]["epoch"] == 5
    assert all(same_tensors(states[0][part], states[1][part]) for part in ("network", "ema"))
    record = json.loads((tmp_path / "parts/record.json").read_text())
    assert len(record["resumed"]) == 2


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    record = start(tmp_path, small(epochs=1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "record.json").write_bytes(b"damaged")  # it is written again
    assert start(tmp_path, small(epochs=1), resume=True) == record
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_views_have_the_view_size_and_evaluation_the_input_size(tmp_path):
    loss = Watching()
    start(tmp_path, small(epochs=1, view_size=24), loss=loss)
    assert {batch.images.shape[-1] for batch in loss.batches} == {24}
    assert load_model(tmp_path / "best.pt").description.preprocessing.size == SIZE


def test_two_runs_in_one_folder_are_refused(tmp_path):
    class Meanwhile(CrossEntropy):
        def __call__(self, logits, batch):
            with pytest.raises(UserError, match="another process"):
                start(tmp_path, small(), resume=True)
            return super().__call__(logits, batch)

    start(tmp_path, small(epochs=1), loss=Meanwhile())


def test_resuming_with_changed_photos_is_refused(tmp_path):
    start(tmp_path, small(epochs=1))
    told = "data.validation was fingerprint 2 in the saved run .* but is fingerprint 3 now"
    with pytest.raises(UserError, match=told):
        start(tmp_path, small(epochs=1), validation=photo_set(20, 3), resume=True)


def test_stop_epoch_ends_a_run_within_its_schedule(toy, call, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call(*arguments(toy, whole, "--epochs", 3)).returncode == 0
    command = arguments(toy, stopped, "--epochs", 3, "--recipe", "stop_epoch=2")
    assert call(*command).returncode == 0
    first, second = (json.loads((out / "record.json").read_text()) for out in (whole, stopped))
    rates = [[row["lr"] for row in record["history"]] for record in (first, second)]
    assert rates[1] == rates[0][:2] and rates[1][-1] > 0
    assert second["history"][-1]["train_loss"] == first["history"][1]["train_loss"]
    assert load_model(stopped / "best.pt").description.training["epochs"] == 2
    assert "is finished already" in call(*command, "--resume").stdout
    done = call(*command, "stop_epoch=4", "--resume")
    assert done.returncode == 2 and "stop_epoch=4 is after the last epoch, 3" in done.stderr
    done = call(*command, "keep_epoch=3", "--resume")
    assert done.returncode == 2 and "keep_epoch=3 is after the last epoch, 2" in done.stderr
    done = call(*command, "qat_granularity=tensor", "--resume")
    assert done.returncode == 2 and "qat_granularity goes with --qat-bits" in done.stderr


def test_gradients_are_clipped_at_their_own_scale():
    network, scaler = nn.Linear(1, 1, bias=False), torch.amp.GradScaler("cpu", 2.0**10)
    optimizer, before = torch.optim.SGD(network.parameters(), lr=0.1), network.weight.item()
    optimise(network(torch.ones(1, 1)).sum(), network, optimizer, scaler, Settings(clip=5.0))
    assert before - network.weight.item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("views", [0, 2])
def test_every_epoch_and_every_view_shows_other_crops(tmp_path, views):
    same = replace(TRAINING, photos=TRAINING.photos[:1].expand_as(TRAINING.photos).clone())
    loss, shown = Watching(), []
    start(tmp_path, small(epochs=2, views=views), training=same, loss=loss)
    half = len(loss.batches) // 2
    for part in (loss.batches[:half], loss.batches[half:]):
        positions = torch.cat([batch.positions for batch in part]).tolist()
        shown.append(dict(zip(positions, torch.cat([batch.images for batch in part]))))
    both = sorted(shown[0].keys() & shown[1].keys())  # an epoch leaves out what is less than a batch
    first, second = (torch.stack([images[position] for position in both]) for images in shown)
    assert not torch.allclose(first, second)


def test_all_processes_evaluate_with_rank_0s_bn_statistics(monkeypatch):
    run, given = first_run(small()), []
    monkeypatch.setattr(distributed, "SIZE", 2)
    monkeypatch.setattr(distributed, "total", torch.tensor)
    monkeypatch.setattr(distributed, "spread", given.extend)
    run.end_steps()
    assert given and all(map(torch.equal, given, run.evaluated.buffers()))


def test_the_ema_warms_up_once_and_not_in_every_epoch(monkeypatch):
    run, decays = first_run(small(ema=0.9), steps=5), []
    monkeypatch.setattr(run.ema, "update", decays.append)
    run.epoch = 3
    run.train_step(some_batch())
    assert decays == [16 / 25]
