"""How much faster a GPU trains when a step is one CUDA graph and the next batch is made beside it, against
launching every kernel by itself.

    python -m experiments.benchmarks.speed_gpu --teacher teacher.onnx --record results/speed_gpu.json

The photos are random and on the GPU; augmentation and the teacher are included. Both ways alternate. Their
losses in fp32 are compared too. --teacher: without it, distillation is not measured.
"""

import itertools

import torch

from compression.command_line import UserError, run
from compression.data.classes import FOOD11_CLASSES
from compression.training.distillation import Distillation
from compression.training.loop import draw_batch, pick_precision
from compression.training.teachers import read_teacher
from experiments.benchmarks.measuring import benchmark, in_turns, random_photos, random_run, shipped_network

SIZE, VIEW = 96, 72  # pixels


def training(network, teacher, data, device, as_graph, **recipe):
    """(Run, a function that trains it on the next batch), from the same weights every time."""
    state = random_run(*network, SIZE, device, view_size=VIEW, augment="medium", **recipe)
    if teacher:
        preprocessing, precision = state.description.preprocessing, state.settings.precision
        state.loss = Distillation([teacher], preprocessing, 0.5, 2.0, precision)
    if not as_graph:
        state.graph = state.stream = None
    order = itertools.cycle(torch.arange(len(data)).split(state.settings.batch_size))

    def step():
        positions = next(order)
        state.train_step(state.beside(lambda: draw_batch(state, data, positions, None, None)))

    return state, step


def difference(*arguments, batch_size, steps=12):
    """The largest relative difference of the losses of a few steps in fp32, as a graph and without."""
    recipe = {"precision": "fp32", "schedule": "constant", "lr": 1e-3, "warmup": 0.0}
    losses = []
    for as_graph in (False, True):
        state, step = training(*arguments, as_graph, batch_size=batch_size, **recipe)
        sums = [0.0]
        for _ in range(steps):
            step()
            sums.append(state.loss_sum.item())
        losses.append([after - before for before, after in itertools.pairwise(sums)])
    return max(abs(one - other) / one for one, other in zip(*losses))


def measure(device, teacher=None, rounds=3, steps=40):
    """For each network, without a teacher and with it: the speed as a graph, and the ratio."""
    if device.type != "cuda":
        raise UserError("this measures a GPU, and torch finds none here; on a CPU, use speed_step")
    torch.backends.cudnn.benchmark = True
    shipped = shipped_network()[:2]
    networks = (("`student`", ("student", {}), 64), ("the network of `model.bin`", shipped, 128))
    teachers, data, results = {"": None}, random_photos(4096, SIZE).to(device), {}
    if teacher:
        teachers[f", teacher {teacher.name}"] = read_teacher(teacher, FOOD11_CLASSES, device)
    for (text, network, batch_size), (suffix, loaded_teacher) in itertools.product(
        networks, teachers.items()
    ):
        chosen = (network, loaded_teacher, data, device)
        ways = {
            name: training(*chosen, as_graph, batch_size=batch_size, lr=1e-4)[1]
            for name, as_graph in (("kernels", False), ("graph", True))
        }
        found = in_turns(ways, rounds, device, steps)
        seconds = found["graph"].median()
        results[text + suffix] = {
            "batch_size": batch_size,
            "view_size": VIEW,
            "milliseconds_of_a_step": 1000 * seconds,
            "views_per_second": batch_size / seconds,
            "speed_ratio": (found["kernels"] / found["graph"]).median(),
            "largest_relative_difference_of_losses_fp32": difference(*chosen, batch_size=batch_size),
        }
    return {"precision": pick_precision("auto", device), "results": results}


main = benchmark(__doc__, measure, {"--teacher": "an ONNX file of Food-11's classes"}, device="auto")

if __name__ == "__main__":
    run(main)
