"""How long `hw7_test.sh` takes and where the time goes: start-up, decoding, network.

    python -m experiments.benchmarks.hw7_test food-11 --record results/hw7_test.json

The whole is timed as a grader runs it, with its test-time augmentation, the parts in this process one after
another (in the whole, decoding and the network overlap). Also checks that two runs write the same bytes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from compression.command_line import UserError, run
from compression.data.decoding import DecodeReport, decode_stream
from compression.data.tta import inputs_of, mean_probabilities
from compression.files.loading import load_model
from dataset import list_testing
from experiments.benchmarks.measuring import ROOT, benchmark, timed


def start_up(imports):
    """Seconds until Python has started and imported these modules: the least of three."""
    command = [sys.executable, "-c", f"import {imports}"]
    return min(timed(lambda: subprocess.run(command, cwd=ROOT, check=True))[0] for _ in range(3))


def predict(data, output, *options):
    """Run hw7_test.sh, with the Python that runs this: it would set up another where it finds none."""
    command = ["bash", ROOT / "hw7_test.sh", data, output, "--device", "cpu", *options]
    subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, check=True, capture_output=True)


@torch.inference_mode()
def parts(paths, tta):
    """{part: seconds} of predicting photos as inference.py does, one part after another."""
    load, model = timed(lambda: load_model(ROOT / "model.bin"))
    preprocessing = model.description.preprocessing
    network = model.build().to(memory_format=torch.channels_last)
    stream = decode_stream(paths, inputs_of(preprocessing, tta), DecodeReport())
    decode, batches = timed(lambda: [list(map(torch.from_numpy, inputs)) for _, *inputs in stream])
    forward, _ = timed(lambda: [mean_probabilities(network, one, preprocessing, tta) for one in batches])
    return {
        "start-up: Python and imports": start_up("inference"),
        "reading and decoding model.bin": load,
        "decoding the photos": decode,
        "the network": forward,
    }


def measure(device, data):
    """Seconds of the whole and of its parts."""
    listing, wholes, written = list_testing(data), [], set()
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "prediction.csv"
            wholes.append(timed(lambda: predict(data, output))[0])
            written.add(output.read_bytes())
    if len(written) > 1:
        raise UserError("two runs of hw7_test.sh wrote different files; find out why")
    seconds = {"in all (the slower of two runs)": max(wholes), **parts(listing.paths, tta=True)}
    data = {"testing": listing.fingerprint()}
    return {"data": data, "photos": len(listing), "tta": True, "seconds": seconds}


main = benchmark(__doc__, measure, {"data": "root that holds testing/"})

if __name__ == "__main__":
    run(main)
