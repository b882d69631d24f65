"""How long `hw7_test.sh` takes and where the time goes: start-up, decoding, network.

    python -m experiments.benchmarks.hw7_test food-11 --record results/hw7_test.json

The whole is timed as a grader runs it, with its test-time augmentation, the parts in this process one after
another (in the whole, decoding and the network overlap). Also checks that two runs write the same bytes.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from compression.command_line import UserError, parser, pick_device, run
from compression.data.decoding import DecodeReport, decode_stream
from compression.data.tta import inputs_of, mean_probabilities
from compression.files.loading import load_model
from compression.files.records import provenance, write_record
from dataset import list_testing

ROOT = Path(__file__).resolve().parents[2]


def timed(function):
    """(seconds, result) of a call."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def start_up(imports):
    """Seconds until Python has started and imported these modules: the least of three."""
    command = [sys.executable, "-c", f"import {imports}"]
    return min(timed(lambda: subprocess.run(command, cwd=ROOT, check=True))[0] for _ in range(3))


def parts(paths, tta):
    """{part: seconds} of predicting photos as inference.py does, one part after another."""
    starting = start_up("inference")
    load, model = timed(lambda: load_model(ROOT / "model.bin"))
    preprocessing, network = (
        model.description.preprocessing,
        model.build().to(memory_format=torch.channels_last),
    )
    stream = decode_stream(paths, inputs_of(preprocessing, tta), DecodeReport())
    decode, batches = timed(lambda: [inputs for _, *inputs in stream])
    with torch.inference_mode():

        def answers(inputs):
            return mean_probabilities(
                network, [torch.from_numpy(photos) for photos in inputs], preprocessing, tta
            )

        forward, _ = timed(lambda: [answers(inputs) for inputs in batches])
    return {
        "start-up: Python and imports": starting,
        "reading and decoding model.bin": load,
        "decoding the photos": decode,
        "the network": forward,
    }


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("data", type=Path, help="root that holds testing/")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options = options.parse_args(argv)
    listing = list_testing(options.data)

    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / "first.csv", Path(folder) / "second.csv"]
        commands = [
            ["bash", ROOT / "hw7_test.sh", options.data, output, "--device", "cpu"] for output in outputs
        ]
        wholes = [
            timed(lambda command=command: subprocess.run(command, check=True))[0] for command in commands
        ]
        if outputs[0].read_bytes() != outputs[1].read_bytes():
            raise UserError(
                "two runs of hw7_test.sh wrote different files; find out why before publishing a time"
            )
    device = pick_device("cpu")  # keeps freed memory, as in inference.py
    seconds = {"in all (the slower of two runs)": max(wholes), **parts(listing.paths, tta=True)}
    for name, value in seconds.items():
        print(f"{value:6.2f} s  {name}")
    if options.record:
        write_record(
            options.record,
            {
                **provenance(device, data={"testing": listing.fingerprint()}),
                "photos": len(listing.paths),
                "tta": True,
                "seconds": seconds,
            },
        )
    return 0


if __name__ == "__main__":
    run(main)
