"""benchmarks/decoupled_distillation.py: its loss against the divergence that it takes apart, and its command
line.
"""

import pytest
import torch
import torch.nn.functional as F

from compression.files.loading import load_model
from compression.training import distillation
from experiments.benchmarks.decoupled_distillation import decoupled_divergence

LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def logits(seed):
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_weighted_by_the_teachers_doubt_it_is_the_divergence(temperature):
    teacher = (logits(2) / temperature).softmax(1)
    whole = F.kl_div((logits(1) / temperature).log_softmax(1), teacher, reduction="batchmean")
    assert decoupled_divergence(logits(1), teacher, LABELS, temperature, None).item() == pytest.approx(
        whole.item(), rel=1e-9
    )


def test_its_parts_by_hand():
    """Teacher (1/2, 1/4, 1/4), student (1/3, 1/3, 1/3), label 0: TCKD = 1/2 ln(3/2) + 1/2 ln(3/4); the others
    agree, so NCKD = 0.
    """
    teacher, student = (
        torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64),
        torch.zeros(1, 3, dtype=torch.float64),
    )
    target = 0.5 * torch.tensor(1.5).log() + 0.5 * torch.tensor(0.75).log()
    assert decoupled_divergence(student, teacher, torch.tensor([0]), 1, 8).item() == pytest.approx(
        target.item(), rel=1e-6
    )
    # label 1 of a teacher (1/2, 1/4, 1/4): the others are (2/3, 1/3) against (1/2, 1/2)
    others = 2 / 3 * torch.tensor(4 / 3).log() + 1 / 3 * torch.tensor(2 / 3).log()
    parts = [decoupled_divergence(student, teacher, torch.tensor([1]), 1, beta).item() for beta in (0, 8)]
    assert parts[1] - parts[0] == pytest.approx(8 * others.item(), rel=1e-6)


def test_equal_logits_diverge_by_nothing_even_where_the_teacher_is_sure():
    sure = torch.tensor([[1000.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    loss = decoupled_divergence(sure, sure.detach().softmax(1), torch.tensor([0]), 1, 2)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(sure.grad).all()


def test_it_trains_and_leaves_the_loss_of_train_kd_alone(toy, small_model, call, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "compression.training.teachers.check_teacher", lambda *arguments, **more: 0.5
    )  # a network of random weights
    before, command = (
        distillation.distillation_loss,
        [
            toy,
            "--teacher",
            small_model,
            "--network",
            "student",
            "--size",
            32,
            "--cache",
            "none",
            "--dry-run",
            "--beta",
        ],
    )
    losses = []
    for beta in (0, 50):
        done = call("experiments/benchmarks/decoupled_distillation.py", *command, beta)
        assert done.returncode == 0, done.stderr
        losses.append(float(done.stdout.split("loss ")[1].split(",")[0]))
    assert losses[0] < losses[1] and distillation.distillation_loss is before
    done = call("experiments/benchmarks/decoupled_distillation.py", *command, 2, "--recipe", "mixup=0.3")
    assert done.returncode == 2 and "leave mixup" in done.stderr and distillation.distillation_loss is before


def test_beta_is_listed_recorded_and_compared_on_resume(toy, small_model, call, tmp_path, monkeypatch):
    monkeypatch.setattr("compression.training.teachers.check_teacher", lambda *arguments, **more: 0.5)
    shown = call("experiments/benchmarks/decoupled_distillation.py", "--help").stdout
    assert "--beta BETA" in shown and "NCKD" in shown and "--recipe" in shown
    command = [
        toy,
        "--teacher",
        small_model,
        "--network",
        "student",
        "--set",
        "widths=4,4,4,4,4,4,4,4",
        "--size",
        32,
        "--cache",
        "none",
        "--epochs",
        1,
        "--recipe",
        "batch_size=22",
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
        "--beta",
    ]
    assert call("experiments/benchmarks/decoupled_distillation.py", *command, 3).returncode == 0
    origin = load_model(tmp_path / "run" / "best.pt").description.training
    assert origin["script"] == "train_kd.py" and origin["loss"] == "decoupled" and origin["beta"] == 3
    other = call("experiments/benchmarks/decoupled_distillation.py", *command, 50, "--resume")
    assert other.returncode == 2 and "training.beta was 3.0 in the saved run" in other.stderr
    assert call("experiments/benchmarks/decoupled_distillation.py", *command, 3, "--resume").returncode == 0
