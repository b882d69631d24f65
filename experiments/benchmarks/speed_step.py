"""How near a training step comes to the processor's limit, where its time goes, and what was tried.

    python -m experiments.benchmarks.speed_step --record results/speed_step.json

The limit is what torch reaches in a large matrix product. A step counts as three forward passes of
multiply-accumulates (MACs): forward, gradients of the inputs, gradients of the weights. `student` is trained
at its default size, the network of model.bin at the size of its training views; the batches are random, in
memory. The changes and the step as it is take turns.
"""

import itertools

import torch
from torch import nn

from compression.command_line import run
from compression.training.loop import pick_precision
from experiments.benchmarks.measuring import benchmark, in_turns, random_batch, random_run, shipped_network
from models import count_macs

PASSES = 3  # forward, gradients of the inputs, gradients of the weights


def limits(side):
    """{data type: MACs per second of a product of two square matrices}."""
    squares = {name: torch.randn(side, side).to(getattr(torch, name)) for name in ("bfloat16", "float32")}
    found = in_turns({name: lambda one=one: one @ one for name, one in squares.items()}, 5)
    return (side**3 / found.median()).to_dict()


def training(name, arguments, size, device, photos, batch_size=64, change=lambda state: None):
    """A function that trains a new network on so many photos; change: what is done to the Run before."""
    state = random_run(name, arguments, size, device)
    change(state)
    batch = random_batch(batch_size, size, device)
    return lambda: [state.train_step(batch) for _ in range(photos // batch_size)]


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
    torch.compiler.reset()  # torch compiles one function for few shapes only, of all networks together
    for block in state.network.modules():
        for norm, activation in itertools.pairwise(block) if isinstance(block, nn.Sequential) else ():
            if isinstance(norm, nn.BatchNorm2d) and isinstance(activation, nn.ReLU6 | nn.Hardswish):
                both = norm.forward, activation.forward
                norm.forward = torch.compile(lambda inputs, both=both: both[1](both[0](inputs)))
                activation.forward = lambda inputs: inputs  # a module would not take a method's place


CHANGES = {
    "depthwise convolutions in fp32": {"change": depthwise_in_fp32},
    "`torch.compile`": {"change": compiled},
    "BN and activation fused by `torch.compile`": {"change": fused_activations},
    "batches of 128, not 64": {"batch_size": 128},
}


def profile(step, most=6):
    """{operator: its own share of the time of a step}, the largest first, and the rest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    found = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in found)
    shares = {event.key: event.self_cpu_time_total / whole for event in found[:most]}
    return {**shares, "all others": 1 - sum(shares.values())}


def measure(device, side=4096, student_size=128, photos=384, rounds=5):
    """The limits; what a step of each network reaches, where its time goes, and the ratio of each change."""
    reached, results = limits(side), {}
    networks = {"`student`": ("student", {}, student_size), "the network of `model.bin`": shipped_network()}
    for text, (name, arguments, size) in networks.items():
        ways = {
            change: training(name, arguments, size, device, photos, **options)
            for change, options in {"none": {}, **CHANGES}.items()
        }
        found = in_turns(ways, rounds, device)
        views = photos / found["none"].median()
        ratios = {change: (found["none"] / found[change]).median() for change in CHANGES}
        results[text] = {
            "size": size,
            "views_per_second": views,
            "macs_per_second": views * PASSES * count_macs(name, size, **arguments),
            "speed_ratio_of_changes": ratios,
            "profile": profile(ways["none"]),
        }
    return {"precision": pick_precision("auto", device), "limits": reached, "results": results}


main = benchmark(__doc__, measure)

if __name__ == "__main__":
    run(main)
