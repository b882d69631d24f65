"""When it pays to cache teacher outputs of fixed views (`train_kd.py --recipe views=N`): a step with cached
outputs against one that computes them.

    python -m experiments.benchmarks.fixed_views --record results/fixed_views.json

The ratio is what every epoch takes after the first ones, in which the teacher is asked about each view.
Both sides train for real, alternate in short rounds, and the median ratio counts.
"""

import statistics
from pathlib import Path

import torch

from compression.command_line import number, parser, pick_device, run
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.records import provenance, write_record
from compression.training.distillation import Distillation
from compression.training.loop import pick_precision
from compression.training.losses import Batch
from compression.training.recipe import Settings
from compression.training.run_folder import Run
from compression.training.teachers import Teacher
from experiments.benchmarks.alternating import alternate
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


def measure(architecture, arguments, device, size, batch_size, rounds, steps):
    """Seconds per step of a `student` (asking the teacher, from memory) of every round, as two lists."""
    settings = Settings(precision=pick_precision("auto", device), batch_size=batch_size, epochs=1)
    preprocessing = Preprocessing(size=size)
    teacher = build(architecture, num_classes=11, in_channels=3, **arguments).eval().requires_grad_(False)
    teacher = Teacher(
        teacher.to(device, memory_format=torch.channels_last), preprocessing, Path(architecture)
    )
    loss = Distillation([teacher], preprocessing, 0.8, 4.0, settings.precision, batch_size, 11, views=1)
    description = Description.of(
        "student", {"in_channels": 3}, [str(label) for label in range(11)], preprocessing
    )
    training = Run(
        build("student", **description.arguments).train(), description, settings, 1_000_000, device, loss
    )
    images = torch.randn(batch_size, 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    batch = Batch(images, torch.randint(0, 11, (batch_size,), device=device), torch.arange(batch_size), 0)
    memory = loss.cached_targets

    def step_with(targets):
        loss.cached_targets = targets
        training.train_step(loss.prepare(batch))

    # the warm-up fills the memory
    return alternate(lambda _: step_with([]), lambda _: step_with(memory), rounds, steps, device)


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--size", type=number(int, 32), default=96, help="pixels, of student and teacher")
    options.add_argument("--batch-size", type=number(int, 2), default=64, help="photos per step")
    options.add_argument("--rounds", type=number(int, 1), default=9, help="alternating rounds")
    options.add_argument("--steps", type=number(int, 1), default=4, help="steps per round")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options = options.parse_args(argv)
    device = pick_device(options.device)
    torch.manual_seed(0)

    results = {}
    for text, (architecture, arguments) in TEACHERS.items():
        asking, kept = measure(
            architecture, arguments, device, options.size, options.batch_size, options.rounds, options.steps
        )
        ratio = statistics.median(remembered / asked for asked, remembered in zip(asking, kept))
        seconds = statistics.median(asking), statistics.median(kept)
        results[text] = {
            "ratio": ratio,
            "seconds_per_step_asking": seconds[0],
            "seconds_per_step_from_memory": seconds[1],
        }
        print(
            f"{text}: {ratio:.3f} times the steps that ask it ({1000 * seconds[0]:.0f} ms -> "
            f"{1000 * seconds[1]:.0f} ms "
            f"a step of {options.batch_size})"
        )
    if options.record:
        write_record(
            options.record,
            {
                **provenance(device, 0),
                "size": options.size,
                "batch_size": options.batch_size,
                "results": results,
            },
        )
    return 0


if __name__ == "__main__":
    run(main)
