"""When it pays to cache teacher outputs of fixed views (`train_kd.py --recipe views=N`): a step with cached
outputs against one that computes them.

    python -m experiments.benchmarks.fixed_views --record results/fixed_views.json

The ratio is what every epoch takes after the first ones, in which the teacher is asked about each view.
Both sides train for real, alternate in short rounds, and the median ratio counts.
"""

from dataclasses import replace
from pathlib import Path

import torch

from compression.command_line import run
from compression.training.distillation import Distillation
from compression.training.teachers import Teacher
from experiments.benchmarks.measuring import benchmark, in_turns, random_batch, random_run
from models import build

WIDE = {
    "widths": (64, 64, 64, 128, 128, 128, 128),
    "hidden": (96, 192, 192, 320, 448, 448, 448),
    "pools": (1, 0, 0, 1, 0, 0, 0),
    "head": 320,
}
TEACHERS = {
    "`residual6` with 543,419 parameters as teacher": ("residual6", WIDE),
    "ResNet-18": ("resnet18", {}),
}


def measure(device, size=96, batch_size=64, rounds=9, steps=2):
    """For each teacher, the ratio and the seconds per step of a `student` that asks it, or remembers."""
    results = {}
    for text, (architecture, arguments) in TEACHERS.items():
        training = random_run("student", {}, size, device, batch_size=batch_size)
        preprocessing, precision = training.description.preprocessing, training.settings.precision
        teacher = build(architecture, num_classes=11, in_channels=3, **arguments).eval().requires_grad_(False)
        teacher = teacher.to(device, memory_format=torch.channels_last)
        teacher = Teacher(teacher, preprocessing, Path(architecture))
        memory = [torch.full((batch_size, 11), torch.nan)]
        training.loss = loss = Distillation([teacher], preprocessing, 0.8, 4.0, precision, memory)
        batch = replace(random_batch(batch_size, size, device), view=0)

        def step_with(targets):
            loss.cached_targets = targets
            training.train_step(loss.prepare(batch))

        # the warm-up fills the memory
        ways = {"asking": lambda: step_with([]), "from memory": lambda: step_with(memory)}
        found = in_turns(ways, rounds, device, steps)
        results[text] = {
            "ratio": (found["from memory"] / found["asking"]).median(),
            "seconds_per_step_asking": found["asking"].median(),
            "seconds_per_step_from_memory": found["from memory"].median(),
        }
    return {"size": size, "batch_size": batch_size, "results": results}


main = benchmark(__doc__, measure, device="auto")

if __name__ == "__main__":
    run(main)
