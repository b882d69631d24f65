"""What the data path costs: an epoch over the photo cache against the same steps on one batch in memory.

    python -m experiments.benchmarks.data_path --record results/data_path.json

Both sides train for real; the difference is reading the memory-mapped cache, augmenting and normalising.
They alternate in short rounds and the median ratio counts, so that a machine that slows down slows both.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.augmentation import AUGMENTATIONS
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.records import provenance, write_record
from compression.training.loop import pick_precision
from compression.training.losses import Batch
from compression.training.recipe import Settings
from compression.training.run_folder import Run
from dataset import PhotoSet
from experiments.benchmarks.alternating import alternate
from models import build


def measure(name, photos, device, rounds, steps, size, batch_size):
    """Seconds per step (in memory, over the cache) of every round, as two lists."""
    settings = Settings(precision=pick_precision("auto", device), batch_size=batch_size, epochs=1)
    preprocessing = Preprocessing(size=size)
    description = Description.of(name, {"in_channels": 3}, [str(label) for label in range(11)], preprocessing)
    run_state = Run(build(name, **description.arguments).train(), description, settings, 1_000_000, device)
    augmentation = AUGMENTATIONS["standard"]
    order = torch.randperm(len(photos)).split(batch_size)
    images, labels = photos.batch(order[0], device)
    fixed = augmentation(images, preprocessing, run_state.views)

    def from_memory(index):
        run_state.train_step(Batch(fixed, labels, order[0], None))

    def from_cache(index):
        batch, batch_labels = photos.batch(order[index % (len(order) - 1)], device)
        run_state.train_step(
            Batch(augmentation(batch, preprocessing, run_state.views), batch_labels, order[0], None)
        )

    return alternate(from_memory, from_cache, rounds, steps, device)


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--size", type=number(int, 16), default=128, help="pixels")
    options.add_argument("--batch-size", type=number(int, 2), default=64, help="photos per step")
    options.add_argument("--photos", type=number(int, 128), default=9866, help="photos in the cache")
    options.add_argument("--rounds", type=number(int, 1), default=15, help="alternating rounds")
    options.add_argument("--steps", type=number(int, 1), default=8, help="steps per round")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options = options.parse_args(argv)
    if options.photos <= options.batch_size:
        raise UserError(
            f"{options.photos} photos make no two batches of {options.batch_size}; raise --photos or lower "
            "--batch-size"
        )
    device = pick_device(options.device)
    torch.manual_seed(0)

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        shape = (options.photos, options.size, options.size, 3)
        np.save(Path(folder) / "photos.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        photos = torch.from_numpy(np.load(Path(folder) / "photos.npy", mmap_mode="c"))
        photos = PhotoSet(
            photos, torch.arange(options.photos), torch.randint(0, 11, (options.photos,)), (), ""
        ).to(device)
        for name in ("student", "residual6"):
            memory, cache = measure(
                name, photos, device, options.rounds, options.steps, options.size, options.batch_size
            )
            ratio = statistics.median(with_cache / without for without, with_cache in zip(memory, cache))
            in_memory, from_cache = statistics.median(memory), statistics.median(cache)
            results[name] = {
                "ratio": ratio,
                "seconds_per_step_in_memory": in_memory,
                "seconds_per_step_from_cache": from_cache,
            }
            print(
                f"{name}: {ratio:.3f} times the steps on one batch "
                f"({1000 * in_memory:.0f} ms -> {1000 * from_cache:.0f} ms a step of {options.batch_size})"
            )
    if options.record:
        write_record(
            options.record,
            {
                **provenance(device, 0),
                "size": options.size,
                "batch_size": options.batch_size,
                "photos": options.photos,
                "results": results,
            },
        )
    return 0


if __name__ == "__main__":
    run(main)
