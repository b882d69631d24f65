"""Prediction's speed: hw7_test.sh against the loop of the course's notebook, decoders, and bf16 against fp32.

    python -m experiments.benchmarks.speed_inference food-11 --record results/speed_inference.json

The whole programs predict the same photos in turns: hw7_test.sh with and without its test-time augmentation,
and course_loop.py, which has the course's network at the course's input size. Photos are testing photos of
144 px, and the same enlarged to 512 px: what counts here is how long they take to decode. All decoders use
the same threads and read from files. bf16 is asked about every testing
photo.
"""

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms.functional import center_crop, resize

from compression.command_line import UserError, available_cores, run
from compression.data.decoding import DecodeReport, decode_stream
from compression.files.loading import load_model
from dataset import list_testing, load_photos
from experiments.benchmarks import course_loop
from experiments.benchmarks.hw7_test import parts, predict, start_up
from experiments.benchmarks.measuring import ROOT, benchmark, in_turns, own_process, timed

COURSE = "the course's loop"
SMALL, LARGE = 144, 512


def pick_photos(paths, count):
    """So many photos whose shorter side is SMALL; UserError if there are fewer."""
    chosen = []
    for path in paths:
        with Image.open(path) as image:
            if min(image.size) == SMALL and image.format == "JPEG":
                chosen.append(path)
        if len(chosen) == count:
            return chosen
    found = f"{len(chosen)} testing photos are JPEGs of {SMALL} px (shorter side)"
    raise UserError(f"{found}, fewer than {count}; choose other data")


def write_photos(paths, root, side):
    """The photos as root/testing/0000.jpg and on, enlarged to this shorter side; returns their new paths."""
    (root / "testing").mkdir(parents=True)
    written = [root / f"testing/{index:04}.jpg" for index in range(len(paths))]
    for path, copy in zip(paths, written):
        if side == SMALL:
            shutil.copyfile(path, copy)
        else:
            with Image.open(path) as image:
                size = [round(length * side / min(image.size)) for length in image.size]
                image.convert("RGB").resize(size, Image.LANCZOS).save(copy, quality=90)
    return written


def whole_programs(root, rounds):
    """{program: {"seconds", "ratio" to the course's loop}}."""
    output = root / "prediction.csv"
    course = [sys.executable, "-m", "experiments.benchmarks.course_loop", root, output]
    ways = {
        COURSE: lambda: subprocess.run(course, cwd=ROOT, check=True, capture_output=True),
        "`hw7_test.sh`": lambda: predict(root, output),
        "`hw7_test.sh --no-tta`": lambda: predict(root, output, "--no-tta"),
    }
    found = in_turns(ways, rounds)
    return {
        name: {"seconds": seconds.median(), "ratio": (found[COURSE] / seconds).median()}
        for name, seconds in found.items()
    }


def course_parts(paths):
    """{part: seconds} of the course's loop, one part after another."""
    network = course_loop.build("student").eval()
    decode, batches = timed(lambda: list(course_loop.testing_batches(paths)))
    forward, _ = timed(lambda: course_loop.predict(network, batches))
    return {
        "start-up: Python and imports": start_up("experiments.benchmarks.course_loop"),
        "decoding the photos": decode,
        "the network": forward,
    }


def decoders(paths, preprocessing, rounds):
    """{decoder: photos per second}."""

    def draft(path):
        with Image.open(path) as image:
            image.draft("RGB", (2 * (preprocessing.detail or preprocessing.size),) * 2)
            image.load()

    def whole(path):
        return decode_jpeg(read_file(str(path)))

    def resized(photo):
        for side in filter(None, (preprocessing.detail, preprocessing.size)):
            photo = resize(photo, side)
        return center_crop(photo, preprocessing.size)

    def in_threads(decode):
        with ThreadPoolExecutor(available_cores()) as pool:
            for _ in pool.map(decode, paths):
                pass

    ways = {
        "ours, resized": lambda: [None for _ in decode_stream(paths, [preprocessing], DecodeReport())],
        "Pillow at a reduced scale": lambda: in_threads(draft),
        "`torchvision.io.decode_jpeg`": lambda: in_threads(whole),
        "`torchvision.io.decode_jpeg`, resized": lambda: in_threads(lambda path: resized(whole(path))),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of `resize` in each of the threads
    found = in_turns(ways, rounds)
    torch.set_num_threads(threads)
    return (len(paths) / found.median()).to_dict()


@torch.inference_mode()
def in_bf16(model, photos, rounds):
    """How many of photos, uint8 (N, size, size, C), get the same class in bf16 as in fp32, and its speed."""
    network = model.build().to(memory_format=torch.channels_last)
    batches = [model.description.preprocessing.normalise(part) for part in photos.split(64)]

    def classes(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return torch.cat([network(batch).argmax(1) for batch in batches])

    same = (classes(False) == classes(True)).sum().item()
    found = in_turns({"fp32": lambda: classes(False), "bf16": lambda: classes(True)}, rounds)
    speed = (found["fp32"] / found["bf16"]).median()
    return {"photos": len(photos), "same_class": same, "share": same / len(photos), "speed_ratio": speed}


def measure(device, data, count=600, rounds=3):
    """Programs, their parts and decoders for both sizes of photos; bf16."""
    listing, model, results = list_testing(data), load_model(ROOT / "model.bin"), {}
    chosen, preprocessing = pick_photos(listing.paths, count), model.description.preprocessing
    for side in (SMALL, LARGE):
        with tempfile.TemporaryDirectory() as folder, own_process() as process:
            paths = write_photos(chosen, Path(folder), side)
            results[f"{side} px"] = {
                "programs": whole_programs(Path(folder), rounds),
                "parts": {
                    COURSE: process.submit(course_parts, paths).result(),
                    "`hw7_test.sh`": parts(paths, tta=True),
                    "`hw7_test.sh --no-tta`": parts(paths, tta=False),
                },
                "decoders": decoders(paths, preprocessing, rounds),
            }
    photos = load_photos(listing, preprocessing, cache=False)
    half = in_bf16(model, photos.photos[photos.rows], rounds)
    found = {"testing": listing.fingerprint()}
    return {"data": found, "photos": count, "results": results, "bf16": half}


main = benchmark(__doc__, measure, {"data": "root that holds testing/"})

if __name__ == "__main__":
    run(main)
