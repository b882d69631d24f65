"""Decoupled distillation (Zhao et al. 2022) for comparison: train_kd.py with another loss in place of the
divergence.

    python -m experiments.benchmarks.decoupled_distillation food-11 --teacher model.bin --network student
    --beta 2

KL(teacher || student) is the sum of what both say about the label's class against all others (TCKD) and of
what they say about the others among themselves (NCKD), the latter weighted by the teacher's doubt 1 -
p(label). Decoupled, that weight is the constant --beta. Options and output are train_kd.py's otherwise.
"""

from unittest import mock

import torch
import torch.nn.functional as F

import train_kd
from compression.command_line import UserError, number, run
from compression.training import distillation


def decoupled_divergence(student_logits, teacher_probabilities, labels, temperature, beta):
    """TCKD + beta * NCKD, averaged over the batch: (N, C) logits, the teacher's (N, C) softmax at the
    temperature, int64 labels (N,).

    beta = None takes the teacher's doubt, photo by photo, which gives KL(teacher || student).
    """
    student = F.softmax(student_logits / temperature, dim=1)
    label = F.one_hot(labels, student.shape[1]).bool()
    doubt = 1 - (teacher_probabilities * label).sum(1)

    def divergence(teacher, student):
        return (torch.special.xlogy(teacher, teacher) - teacher * student.clamp(min=1e-12).log()).sum(1)

    def against_others(probabilities):
        own = (probabilities * label).sum(1)
        return torch.stack([own, 1 - own], 1)

    def among_others(probabilities):
        others = probabilities.masked_fill(label, 0)
        return others / others.sum(1, keepdim=True).clamp(min=1e-12)

    target = divergence(against_others(teacher_probabilities), against_others(student))
    others = divergence(among_others(teacher_probabilities), among_others(student))
    return (target + (doubt if beta is None else beta) * others).mean()


def main(argv=None):
    options = {}

    def add_teachers(group, required):
        distillation.add_teachers(group, required)
        group.add_argument(
            "--beta",
            type=number(float, 0),
            default=2.0,
            help="weight of what both say about the other classes",
        )

    def origin_of_distillation(parsed, teachers, records):
        if parsed.mixup or parsed.unlabeled:
            raise UserError("the decoupled loss needs one label a photo; leave mixup and --unlabeled out")
        options["beta"] = parsed.beta
        origin = distillation.origin_of_distillation(parsed, teachers, records)
        return {**origin, "loss": "decoupled", **options}

    def loss(student_logits, teacher_probabilities, labels, alpha, temperature, class_weights=None):
        soft = 0
        if alpha:
            apart = decoupled_divergence(
                student_logits, teacher_probabilities, labels, temperature, options["beta"]
            )
            soft = temperature**2 * apart
        return alpha * soft + (1 - alpha) * F.cross_entropy(student_logits, labels, class_weights)

    with (
        mock.patch.object(distillation, "distillation_loss", loss),
        mock.patch.multiple(
            train_kd,
            __doc__=__doc__,
            add_teachers=add_teachers,
            origin_of_distillation=origin_of_distillation,
        ),
    ):
        return train_kd.main(argv)


if __name__ == "__main__":
    run(main)
