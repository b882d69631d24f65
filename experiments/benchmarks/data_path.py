"""What the data path costs: an epoch over the photo cache against the same steps on one batch in memory.

    python -m experiments.benchmarks.data_path --record results/data_path.json

Both sides train for real; the difference is reading the memory-mapped cache, augmenting and normalising.
They alternate in short rounds and the median ratio counts, so that a machine that slows down slows both.
"""

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from compression.command_line import run
from compression.training.loop import draw_batch
from experiments.benchmarks.measuring import benchmark, in_turns, random_photos, random_run


def measure(device, size=128, batch_size=64, count=9866, rounds=15, steps=8):
    """For each network, the ratio and the seconds per step of both sides."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        photos, path = random_photos(count, size), Path(folder) / "photos.npy"
        np.save(path, photos.photos.numpy())
        photos = replace(photos, photos=torch.from_numpy(np.load(path, mmap_mode="c"))).to(device)
        for name in ("student", "residual6"):
            training = random_run(name, {}, size, device, batch_size=batch_size)
            *order, rest = torch.randperm(count).split(batch_size)  # the last batch may be smaller
            order = itertools.cycle(order)

            def draw():
                return draw_batch(training, photos, next(order), None, None)

            batch = draw()
            memory, cache = lambda: training.train_step(batch), lambda: training.train_step(draw())
            found = in_turns({"memory": memory, "cache": cache}, rounds, device, steps)
            results[name] = {
                "ratio": (found["cache"] / found["memory"]).median(),
                "seconds_per_step_in_memory": found["memory"].median(),
                "seconds_per_step_from_cache": found["cache"].median(),
            }
    return {"size": size, "batch_size": batch_size, "photos": count, "results": results}


main = benchmark(__doc__, measure, device="auto")

if __name__ == "__main__":
    run(main)
