"""Training's photos per second: the loop of the course's notebook against this project's, for `student`.

    python -m experiments.benchmarks.speed_training food-11 --record results/speed_training.json

Ours reads the photo cache, augments whole batches and trains as train_student.py does by default, once at the
course's input size and once at its own. Both see the same photos in turns, and the median ratio counts. The
photos are decoded into the cache beforehand; that is timed apart, since it is done once, not in every epoch.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.records import provenance, write_record
from compression.training.loop import draw_batch, pick_precision
from compression.training.recipe import Settings
from compression.training.run_folder import Run
from dataset import list_labelled, load_photos
from experiments.benchmarks import course_loop
from experiments.benchmarks.alternating import alternate
from models import build


def trainer(photos, size, device):
    """A function that trains a new `student` for one epoch and returns how many photos it has seen."""
    settings = Settings(precision=pick_precision("auto", device))
    description = Description.of("student", {"in_channels": 3}, photos.class_names, Preprocessing(size))
    network = build("student", **description.arguments).train()
    steps = len(photos) // settings.batch_size
    training = Run(network, description, settings, steps, device)

    def epoch():
        order = torch.randperm(len(photos))[: steps * settings.batch_size]
        for positions in order.split(settings.batch_size):
            training.train_step(draw_batch(training, photos, positions, None, None))
        training.step = 0
        return len(order)

    return epoch


def decode_all(paths):
    """Seconds that Pillow takes to decode photos one after another, as the course's loop does."""
    began = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB")
    return time.perf_counter() - began


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("data", type=Path, help="root that holds training/")
    options.add_argument("--photos", type=number(int, 64), default=192, help="photos, a multiple of 64")
    options.add_argument(
        "--sizes", type=number(int, 16, 4096), nargs="+", default=[256, 128], help="our input sizes, pixels"
    )
    options.add_argument("--rounds", type=number(int, 1), default=5, help="alternating rounds")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options = options.parse_args(argv)
    if options.photos % Settings.batch_size:
        raise UserError(
            f"{options.photos} photos make no whole batches of {Settings.batch_size}; choose a multiple"
        )
    device, listing = pick_device("cpu"), list_labelled(options.data, "training")
    if len(listing) < options.photos:
        raise UserError(
            f"{listing.folder} holds {len(listing)} photos, fewer than {options.photos}; lower --photos"
        )
    torch.manual_seed(0)
    listing = listing.part(sorted(torch.randperm(len(listing))[: options.photos].tolist()))
    results = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as cache:
            began = time.perf_counter()
            photos = load_photos(listing, Preprocessing(size), cache)
            decoding = time.perf_counter() - began
            epochs = course_loop.trainer(listing.paths, listing.labels), trainer(photos, size, device)
            seen = [set(), set()]
            course, ours = alternate(
                lambda _: seen[0].add(epochs[0]()),
                lambda _: seen[1].add(epochs[1]()),
                options.rounds,
                1,
                device,
            )
        assert seen[0] == seen[1] == {options.photos}
        results[f"{size} px"] = values = {
            "course_photos_per_second": options.photos / statistics.median(course),
            "photos_per_second": options.photos / statistics.median(ours),
            "ratio": statistics.median(theirs / own for theirs, own in zip(course, ours)),
            "course_share_of_decoding": decode_all(listing.paths) / statistics.median(course),
            "photos_per_second_of_decoding_into_the_cache": options.photos / decoding,
        }
        print(f"{size} px: " + ", ".join(f"{name} {value:,.2f}" for name, value in values.items()))
    if options.record:
        write_record(
            options.record,
            {
                **provenance(device, 0, {"training": listing.fingerprint()}),
                "photos": options.photos,
                "results": results,
            },
        )
    return 0


if __name__ == "__main__":
    run(main)
