"""Two processes of one thread each, started by torchrun, against one process of two threads.

    python -m experiments.benchmarks.processes --record results/processes.json

Both train the same network on the same batches of random photos; the two take turns, and the median ratio
counts. The share of communication is what a step of the two processes takes longer than one whose gradients
are not averaged. Also says what a training on 1.3 million photos would cost at this speed.
"""

import contextlib
import json
import os
import subprocess
import sys

import pandas as pd
import torch

from compression import distributed
from compression.command_line import UserError, pick_device, run
from compression.networks.registry import count_parameters
from compression.training.loop import draw_batch
from experiments.benchmarks.measuring import benchmark, random_photos, random_run, timed

IMAGENET = 1_281_167  # photos
CACHED, VIEW = 96, 72  # pixels
NETWORK, BATCH_SIZE, STEPS = "residual6", 128, 12  # photos of all processes; steps of a round


def worker():
    """Print {"step": seconds of a step, "silent": the same without averaged gradients} of this process."""
    device, photos = pick_device("cpu"), random_photos(4 * BATCH_SIZE, CACHED)
    training = random_run(NETWORK, {}, CACHED, device, batch_size=BATCH_SIZE, view_size=VIEW)

    def steps(number, silent=False):
        for _ in range(number):
            positions = torch.randperm(len(photos), generator=training.views)[:BATCH_SIZE]
            batch = draw_batch(training, photos, positions, None, None)
            with training.parallel.no_sync() if silent else contextlib.nullcontext():
                training.train_step(batch, 1 / distributed.SIZE)

    steps(3)
    distributed.wait()
    result = {"precision": training.settings.precision, "parameters": count_parameters(training.network)}
    for name, silent in (("step", False), ("silent", distributed.SIZE > 1)):
        result[name] = timed(lambda: steps(STEPS, silent))[0] / STEPS
    print(json.dumps(result))


def start(processes, threads):
    """What `worker` prints, of rank 0 of so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", "experiments.benchmarks.processes", "--worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        raise UserError(f"{processes} processes could not be measured: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(device, rounds=3):
    """Speed of both, communication, and what more photos would cost."""
    pairs = [(start(1, 2), start(2, 1)) for _ in range(rounds)]
    one, two = (pd.DataFrame(side) for side in zip(*pairs))
    result, seconds = pairs[0][0], pd.Series({"1x2": one["step"].median(), "2x1": two["step"].median()})
    return {
        "network": NETWORK,
        "parameters": result["parameters"],
        "precision": result["precision"],
        "batch_size": BATCH_SIZE,
        "view_size": VIEW,
        "seconds_per_step": seconds.to_dict(),
        "views_per_second": (BATCH_SIZE / seconds).to_dict(),
        "speed_of_two_processes": (one["step"] / two["step"]).median(),
        "communication_share": (1 - two["silent"] / two["step"]).median(),
        "gradient_bytes_per_step": 4 * result["parameters"],
        "cache_bytes_1300k_photos": IMAGENET * CACHED * CACHED * 3,
        "hours_per_epoch_1300k_photos": IMAGENET / BATCH_SIZE * seconds.min() / 3600,
    }


main = benchmark(__doc__, measure)

if __name__ == "__main__":
    run(worker if sys.argv[1:] == ["--worker"] else main)
