"""How near a training step comes to the processor's limit, where its time goes, and what was tried.

    python -m experiments.benchmarks.speed_step --record results/speed_step.json

The limit is what torch reaches in a large matrix product. A step counts as three forward passes of
multiply-accumulates (MACs): forward, gradients of the inputs, gradients of the weights. `student` is trained
at its default size, the network of model.bin at the size of its training views; the batches are random, in
memory. Each change alternates with the step as it is.
"""

import itertools
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.records import provenance, write_record
from compression.training.loop import pick_precision
from compression.training.losses import Batch
from compression.training.recipe import Settings
from compression.training.run_folder import Run
from experiments.benchmarks.alternating import alternate
from models import build, count_macs

ROOT = Path(__file__).resolve().parents[2]
PASSES = 3  # forward, gradients of the inputs, gradients of the weights


def matrix_product(dtype, side, times=5):
    """MACs per second of a product of two square matrices."""
    one = torch.randn(side, side).to(dtype)
    seconds = []
    for _ in range(times + 1):  # the first warms up
        began = time.perf_counter()
        one @ one
        seconds.append(time.perf_counter() - began)
    return side**3 / statistics.median(seconds[1:])


def training(name, arguments, size, device, batch_size=64, change=lambda state: None):
    """A function that trains a new network on so many photos; change: what is done to the Run before."""
    precision = pick_precision("auto", device)
    description = Description.of(name, arguments, [str(label) for label in range(11)], Preprocessing(size))
    torch.manual_seed(0)
    network = build(name, **description.arguments).train()
    state = Run(network, description, Settings(precision=precision), 1_000_000, device)
    change(state)
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(0, 11, (batch_size,)), torch.arange(batch_size), None)
    return lambda photos: [state.train_step(batch) for _ in range(photos // batch_size)]


def compiled(state):
    """torch.compile of the forward and the backward pass."""
    state.parallel = torch.compile(state.parallel)


def depthwise_in_fp32(state):
    """Depthwise convolutions compute in fp32, all else as before."""

    def convolve(module, inputs):
        with torch.autocast("cpu", enabled=False):
            return nn.Conv2d.forward(module, inputs.float())

    for module in state.network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = lambda inputs, module=module: convolve(module, inputs)


def fused_activations(state):
    """torch.compile of each BN together with the activation behind it, and of nothing else."""
    for block in state.network.modules():
        for norm, activation in itertools.pairwise(block) if isinstance(block, nn.Sequential) else ():
            if isinstance(norm, nn.BatchNorm2d) and isinstance(activation, nn.ReLU6 | nn.Hardswish):
                both = norm.forward, activation.forward
                norm.forward = torch.compile(lambda inputs, both=both: both[1](both[0](inputs)))
                activation.forward = nn.Identity()


CHANGES = {
    "depthwise convolutions in fp32": {"change": depthwise_in_fp32},
    "`torch.compile`": {"change": compiled},
    "BN and activation fused by `torch.compile`": {"change": fused_activations},
    "batches of 128, not 64": {"batch_size": 128},
}


def profile(step, photos, most=6):
    """{operator: its own share of the time of a step}, the largest first, and the rest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step(photos)
    found = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in found)
    shares = {event.key: event.self_cpu_time_total / whole for event in found[:most]}
    return {**shares, "all others": 1 - sum(shares.values())}


def measure(name, arguments, size, device, rounds, photos):
    """What one step reaches, where its time goes, and the ratio of each change."""
    plain = training(name, arguments, size, device)
    changes, seconds = {}, []
    for text, change in CHANGES.items():
        changed = training(name, arguments, size, device, **change)
        before, after = alternate(lambda _: plain(photos), lambda _, c=changed: c(photos), rounds, 1, device)
        changes[text] = statistics.median(old / new for old, new in zip(before, after))
        seconds += before
    views = photos / statistics.median(seconds)
    return {
        "size": size,
        "views_per_second": views,
        "macs_per_second": views * PASSES * count_macs(name, size, **arguments),
        "speed_ratio_of_changes": changes,
        "profile": profile(plain, photos),
    }


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--student-size", type=number(int, 16), default=128, help="pixels")
    options.add_argument("--rounds", type=number(int, 1), default=5, help="alternating rounds")
    options.add_argument("--photos", type=number(int, 128), default=384, help="photos of each round")
    options.add_argument("--matrix", type=number(int, 1), default=4096, help="rows of the matrix product")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options = options.parse_args(argv)
    if options.photos % 128:
        raise UserError(
            f"{options.photos} photos make no whole batches of 64 and 128; choose a multiple of 128"
        )
    device, shipped = pick_device("cpu"), load_model(ROOT / "model.bin").description
    arguments = {key: value for key, value in shipped.arguments.items() if key != "folded"}
    limits = {name: matrix_product(getattr(torch, name), options.matrix) for name in ("bfloat16", "float32")}
    for name, limit in limits.items():
        print(f"{name}: {limit / 1e9:,.0f} GMAC/s in a matrix product")
    results = {}
    for text, (name, given, size) in {
        "`student`": ("student", {"in_channels": 3}, options.student_size),
        "the network of `model.bin`": (shipped.architecture, arguments, shipped.training["view_size"]),
    }.items():
        results[text] = values = measure(name, given, size, device, options.rounds, options.photos)
        print(f"{text}: {values}")
    if options.record:
        write_record(
            options.record,
            {
                **provenance(device, 0),
                "precision": pick_precision("auto", device),
                "limits": limits,
                "results": results,
            },
        )
    return 0


if __name__ == "__main__":
    run(main)
