"""Training's photos per second: the loop of the course's notebook against this project's, for `student`.

    python -m experiments.benchmarks.speed_training food-11 --record results/speed_training.json

Ours reads the photo cache, augments whole batches and trains as train_student.py does by default, once at the
course's input size and once at its own. All see the same photos in turns, and the median ratio counts. The
course's loop runs in a process of its own, as it would in a notebook, and once more in this process, which
does not return freed memory to the system (`keep_freed_memory`). The photos are decoded into the cache
beforehand; that is timed apart, since it is done once, not in every epoch.
"""

import tempfile

import torch
from PIL import Image

from compression.command_line import UserError, run
from compression.data.preprocessing import Preprocessing
from compression.training.loop import draw_batch
from dataset import list_labelled, load_photos
from experiments.benchmarks import course_loop
from experiments.benchmarks.measuring import benchmark, in_turns, own_process, random_run, timed


def trainer(photos, size, device):
    """A function that trains a new `student` for one epoch and returns how many photos it has seen."""
    training = random_run("student", {}, size, device)

    def epoch():
        order = torch.randperm(len(photos))
        for positions in order.split(training.settings.batch_size):
            training.train_step(draw_batch(training, photos, positions, None, None))
        return len(order)

    return epoch


def decode_all(paths):
    """Decode photos with Pillow one after another, as the course's loop does."""
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB")


def measure(device, data, count=192, sizes=(256, 128), rounds=5):
    """Photos per second of both, for each of our input sizes in pixels."""
    listing, results = list_labelled(data, "training"), {}
    if len(listing) < count:
        raise UserError(f"{listing.folder} holds fewer than {count} photos; choose other data")
    listing = listing.part(sorted(torch.randperm(len(listing))[:count].tolist()))
    for size in sizes:
        with tempfile.TemporaryDirectory() as cache, own_process() as process:
            decoding, photos = timed(lambda: load_photos(listing, Preprocessing(size), cache))
            course = course_loop.train, listing.paths, listing.labels
            ways = {
                "course": lambda: process.submit(*course).result(),
                "course, freed memory kept": lambda: course[0](*course[1:]),
                "ours": trainer(photos, size, device),
            }
            found = in_turns(ways, rounds)
        seconds = found["course"].median()
        results[f"{size} px"] = {
            "course_photos_per_second": count / seconds,
            "photos_per_second": count / found["ours"].median(),
            "ratio": (found["course"] / found["ours"]).median(),
            "ratio_of_keeping_freed_memory": (found["course"] / found["course, freed memory kept"]).median(),
            "course_share_of_decoding": timed(lambda: decode_all(listing.paths))[0] / seconds,
            "photos_per_second_of_decoding_into_the_cache": count / decoding,
        }
    return {"data": {"training": listing.fingerprint()}, "photos": count, "results": results}


main = benchmark(__doc__, measure, {"data": "root that holds training/"})

if __name__ == "__main__":
    run(main)
