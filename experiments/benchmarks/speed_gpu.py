"""How much faster a GPU trains when a step is one CUDA graph and the next batch is made beside it, against
launching every kernel by itself.

    python -m experiments.benchmarks.speed_gpu --teacher teacher.onnx --record results/speed_gpu.json

The photos are random and on the GPU; augmentation and the teacher are included. Both ways alternate. Their
losses in fp32 are compared too.
"""

import statistics
from dataclasses import replace
from pathlib import Path

import torch

from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.classes import FOOD11_CLASSES
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.records import provenance, write_record
from compression.training.distillation import Distillation
from compression.training.loop import draw_batch, pick_precision
from compression.training.recipe import Settings
from compression.training.run_folder import Run
from compression.training.teachers import read_teacher
from dataset import PhotoSet
from experiments.benchmarks.alternating import alternate
from models import build

ROOT = Path(__file__).resolve().parents[2]
SIZE, VIEW = 96, 72  # pixels


def photos(count, device):
    """Random photos with labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, len(FOOD11_CLASSES), (count,), generator=generator)
    return PhotoSet(pixels, torch.arange(count), labels, FOOD11_CLASSES, "random").to(device)


def training(name, arguments, settings, teacher, data, device, as_graph):
    """(Run, a function that trains it on the batch of a number), from the same weights every time."""
    torch.manual_seed(0)
    description = Description.of(name, arguments, FOOD11_CLASSES, Preprocessing(SIZE))
    network, loss = build(name, **description.arguments).train(), None
    if teacher:
        loss = Distillation([teacher], description.preprocessing, 0.5, 2.0, settings.precision)
    state = Run(network, description, settings, 1_000_000, device, loss)
    if not as_graph:
        state.graph = state.stream = None
    order, size = torch.arange(len(data)), settings.batch_size

    def step(index):
        positions = order.roll(-index * size)[:size]
        state.train_step(state.beside(lambda: draw_batch(state, data, positions, None, None)))

    return state, step


def difference(*arguments, steps=12):
    """The largest relative difference of the losses of a few steps in fp32, as a graph and without."""
    name, network, settings, *rest = arguments
    settings, losses = replace(settings, precision="fp32", schedule="constant", lr=1e-3, warmup=0.0), []
    for as_graph in (False, True):
        state, step = training(name, network, settings, *rest, as_graph)
        before, found = 0.0, []
        for index in range(steps):
            step(index)
            found.append(state.loss_sum.item() - before)
            before = state.loss_sum.item()
        losses.append(found)
    return max(abs(one - other) / one for one, other in zip(*losses))


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--teacher", type=Path, help="an ONNX file of Food-11's classes, to distil from too")
    options.add_argument("--rounds", type=number(int, 1), default=3, help="alternating rounds")
    options.add_argument("--steps", type=number(int, 10), default=50, help="steps of each round")
    options.add_argument("--device", default="auto", help="a GPU such as cuda:0")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options = options.parse_args(argv)
    device = pick_device(options.device)
    if device.type != "cuda":
        raise UserError("this measures a GPU, and torch finds none here; on a CPU, use speed_step")
    torch.backends.cudnn.benchmark = True
    shipped = load_model(ROOT / "model.bin").description
    networks = {
        "`student`": ("student", {}, 64),
        "the network of `model.bin`": (
            shipped.architecture,
            {key: value for key, value in shipped.arguments.items() if key != "folded"},
            128,
        ),
    }
    data, results, precision = photos(4096, device), {}, pick_precision("auto", device)
    teachers = {"": None}
    if options.teacher:
        teachers[f", teacher {options.teacher.name}"] = read_teacher(options.teacher, FOOD11_CLASSES, device)
    for text, (name, arguments, batch_size) in networks.items():
        for suffix, teacher in teachers.items():
            settings = Settings(
                batch_size=batch_size, view_size=VIEW, augment="medium", precision=precision, lr=1e-4
            )
            chosen = (name, arguments, settings, teacher, data, device)
            plain, graph = (training(*chosen, as_graph)[1] for as_graph in (False, True))
            before, after = alternate(plain, graph, options.rounds, options.steps, device)
            results[text + suffix] = values = {
                "batch_size": batch_size,
                "view_size": VIEW,
                "milliseconds_of_a_step": 1000 * statistics.median(after),
                "views_per_second": batch_size / statistics.median(after),
                "speed_ratio": statistics.median(old / new for old, new in zip(before, after)),
                "largest_relative_difference_of_losses_fp32": difference(*chosen),
            }
            print(f"{text}{suffix}: {values}", flush=True)
    if options.record:
        write_record(options.record, {**provenance(device, 0), "precision": precision, "results": results})
    return 0


if __name__ == "__main__":
    run(main)
