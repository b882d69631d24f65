"""Two processes of one thread each, started by torchrun, against one process of two threads.

    python -m experiments.benchmarks.processes --record results/processes.json

Both train the same network on the same batches of random photos; the two take turns, and the median ratio
counts. The share of communication is what a step of the two processes takes longer than one whose gradients
are not averaged. Also says what a training on 1.3 million photos would cost at this speed.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from compression import distributed
from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.records import provenance, write_record
from compression.networks.registry import ARCHITECTURES, count_parameters
from compression.training.loop import draw_batch, pick_precision
from compression.training.recipe import Settings
from compression.training.run_folder import Run
from dataset import PhotoSet
from models import build

IMAGENET = 1_281_167  # photos
CACHED, VIEW = 96, 72  # pixels


def measure(options):
    """{"step": seconds of a step, "silent": the same without averaged gradients} of this process."""
    device = pick_device("cpu")
    torch.manual_seed(0)
    count, names = 4 * options.batch_size, [str(label) for label in range(11)]
    photos = torch.randint(0, 256, (count, CACHED, CACHED, 3), dtype=torch.uint8)
    photos = PhotoSet(photos, torch.arange(count), torch.arange(count) % 11, tuple(names), "random")
    precision = pick_precision("auto", device)
    settings = Settings(batch_size=options.batch_size, view_size=VIEW, precision=precision)
    description = Description.of(options.network, {"in_channels": 3}, names, Preprocessing(CACHED))
    network = build(options.network, **description.arguments)
    training = Run(network.train(), description, settings, 1_000_000, device)

    def steps(number, silent=False):
        began = time.perf_counter()
        for _ in range(number):
            positions = torch.randperm(count, generator=training.views)[: options.batch_size]
            batch = draw_batch(training, photos, positions, None, None)
            with training.parallel.no_sync() if silent else contextlib.nullcontext():
                training.train_step(batch, 1 / distributed.SIZE)
        return (time.perf_counter() - began) / number

    steps(3)
    distributed.wait()
    seconds = {"step": steps(options.steps)}
    seconds["silent"] = steps(options.steps, silent=True) if distributed.SIZE > 1 else seconds["step"]
    return {**seconds, "precision": precision, "parameters": count_parameters(network)}


def start(processes, threads, options):
    """What `measure` gives, of rank 0 of so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", "experiments.benchmarks.processes", "--worker"]
    for name in ("network", "batch_size", "steps"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{processes} processes could not be measured: {done.stderr.strip().splitlines()[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--network", choices=ARCHITECTURES, metavar="NAME", default="residual6")
    options.add_argument("--batch-size", type=number(int, 4), default=128, help="photos of all processes")
    options.add_argument("--rounds", type=number(int, 1), default=3, help="alternating rounds")
    options.add_argument("--steps", type=number(int, 1), default=12, help="steps per round")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options.parse_args(argv)
    if options.worker:
        print(json.dumps(measure(options)))
        return 0
    pairs = [(start(1, 2, options), start(2, 1, options)) for _ in range(options.rounds)]
    (one, two), parameters = zip(*pairs), pairs[0][0]["parameters"]
    second = {
        name: statistics.median(each["step"] for each in side) for name, side in (("1x2", one), ("2x1", two))
    }
    result = {
        "network": options.network,
        "parameters": parameters,
        "precision": pairs[0][0]["precision"],
        "batch_size": options.batch_size,
        "view_size": VIEW,
        "seconds_per_step": second,
        "views_per_second": {name: options.batch_size / seconds for name, seconds in second.items()},
        "speed_of_two_processes": statistics.median(a["step"] / b["step"] for a, b in pairs),
        "communication_share": statistics.median(1 - each["silent"] / each["step"] for each in two),
        "gradient_bytes_per_step": 4 * parameters,
        "cache_bytes_1300k_photos": IMAGENET * CACHED * CACHED * 3,
        "hours_per_epoch_1300k_photos": IMAGENET / options.batch_size * min(second.values()) / 3600,
    }
    print(
        f"speed of two processes of one thread / one process of two threads: "
        f"{result['speed_of_two_processes']:.2f} ({result['views_per_second']['1x2']:.0f} views/s); "
        f"communication: {result['communication_share']:.0%} of a step; 1.3 million photos: "
        f"{result['hours_per_epoch_1300k_photos']:.1f} hours an epoch, a cache of "
        f"{result['cache_bytes_1300k_photos'] / 1e9:.0f} GB"
    )
    if options.record:
        write_record(options.record, {**provenance(pick_device("cpu")), **result})
    return 0


if __name__ == "__main__":
    run(main)
