"""What the benchmarks share: ways timed in turns, random networks and photos, command line and record."""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from compression.command_line import parser, pick_device
from compression.data.classes import FOOD11_CLASSES
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.files.records import provenance, write_record
from compression.training.loop import pick_precision
from compression.training.losses import Batch
from compression.training.recipe import Settings
from compression.training.run_folder import Run
from dataset import PhotoSet
from models import build

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def timed(function):
    """(seconds, result) of a call."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def own_process():
    """A process, as an executor, that does not inherit what makes this one faster (`keep_freed_memory`)."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def in_turns(ways, rounds, device=CPU, times=1):
    """Seconds of a call, as a DataFrame with a row per round and a column per way; ways: name -> function.

    Each is called so many times in every round, so that a machine that slows down slows all; a round
    beforehand warms up.
    """

    def calls(way):
        for _ in range(times):
            way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found = []
    for _ in range(rounds + 1):
        found.append({name: timed(lambda: calls(way))[0] / times for name, way in ways.items()})
    return pd.DataFrame(found[1:])


def random_photos(count, size):
    """A PhotoSet of random pixels and labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, len(FOOD11_CLASSES), (count,), generator=generator)
    return PhotoSet(pixels, torch.arange(count), labels, FOOD11_CLASSES, "random")


def random_batch(count, size, device):
    """A Batch of random inputs and labels."""
    images = torch.randn(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, len(FOOD11_CLASSES), (count,), device=device)
    return Batch(images, labels, torch.arange(count), None)


def random_run(architecture, arguments, size, device, **recipe):
    """A Run of a new network, the same at every call, in the precision that is fastest there.

    recipe: what else differs from the default Settings.
    """
    torch.manual_seed(0)
    arguments = {"in_channels": 3, **arguments}
    description = Description.of(architecture, arguments, FOOD11_CLASSES, Preprocessing(size))
    settings = Settings(**{"precision": pick_precision("auto", device), **recipe})
    network = build(architecture, **description.arguments).train()
    return Run(network, description, settings, 1_000_000, device)


def shipped_network():
    """(architecture, arguments, size in pixels of its training views) of model.bin, as it is trained."""
    shipped = load_model(ROOT / "model.bin").description
    arguments = {name: value for name, value in shipped.arguments.items() if name != "folded"}
    return shipped.architecture, arguments, shipped.training["view_size"]


def benchmark(doc, measure, arguments=None, device="cpu"):
    """The `main` of a benchmark: it prints what `measure(device, **paths)` returns, and records it.

    doc: for --help. arguments: name -> help of the paths that the command line takes.
    """

    def main(argv=None):
        options = parser(doc)
        for name, text in (arguments or {}).items():
            options.add_argument(name, type=Path, help=text)
        options.add_argument("--record", type=Path, help="write a JSON record there")
        paths = vars(options.parse_args(argv))
        record, on = paths.pop("record"), pick_device(device)
        torch.manual_seed(0)
        result = measure(on, **paths)
        print(json.dumps(result, indent=1))
        if record:
            write_record(record, provenance(on, 0) | result)
        return 0

    return main
