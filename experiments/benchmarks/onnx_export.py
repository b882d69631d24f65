"""What export.py makes of a model file: bytes, agreement with torch on photos, and time in onnxruntime.

    python -m experiments.benchmarks.onnx_export model.bin food-11 --record results/onnx_export.json

The ONNX file answers for every photo of testing/, from float and from uint8 input. Then one photo and a batch
of 64 are timed in turns in torch, as inference.py runs the network, and in onnxruntime: as it comes, when it
decodes the weights for every call, and with them decoded once at loading (`session.disable_quant_qdq`).
"""

import torch

from compression.command_line import UserError, run
from compression.files.loading import load_model
from compression.files.onnx_export import to_onnx
from dataset import list_testing, load_photos
from experiments.benchmarks.measuring import benchmark, in_turns

WEIGHTS = {"weights decoded in every call": "0", "weights decoded at loading": "1"}


def open_session(content, threads=1, decode_at_loading="0"):
    """An onnxruntime session on the CPU for a .onnx file or its bytes; UserError without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("this benchmark runs onnxruntime; pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", decode_at_loading)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def logits_of(session, inputs):
    """Logits (N, classes) of a session for a tensor of inputs."""
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


@torch.inference_mode()
def agreement(model, photos):
    """How the float and the uint8 export answer for photos, uint8 (N, size, size, C), as torch does.

    {input: {"same_class": photos, "largest_difference": of a logit}}, and the largest logit there is.
    """
    network = model.build().to(memory_format=torch.channels_last)
    inputs = [(model.description.preprocessing.normalise(part), part) for part in photos.split(64)]
    expected = torch.cat([network(normalised) for normalised, _ in inputs])
    result = {}
    for index, kind in enumerate(("float", "uint8")):
        session = open_session(to_onnx(model, kind))
        found = torch.cat([logits_of(session, one[index].contiguous()) for one in inputs])
        result[kind] = {
            "same_class": (found.argmax(1) == expected.argmax(1)).sum().item(),
            "largest_difference": (found - expected).abs().max().item(),
        }
    return result, expected.abs().max().item()


@torch.inference_mode()
def latency(model, threads, batch_size, rounds, steps):
    """{way: {"torch": seconds, "onnxruntime": seconds, "ratio"}} for a batch on so many threads; medians."""
    torch.set_num_threads(threads)
    preprocessing, result = model.description.preprocessing, {}
    network = model.build().to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, preprocessing.channels, preprocessing.size, preprocessing.size)
    theirs = images.contiguous(memory_format=torch.channels_last)
    for way, decode_at_loading in WEIGHTS.items():
        session = open_session(to_onnx(model), threads, decode_at_loading)
        ways = {"torch": lambda: network(theirs), "onnxruntime": lambda: logits_of(session, images)}
        found = in_turns(ways, rounds, times=steps)
        result[way] = {**found.median(), "ratio": (found["onnxruntime"] / found["torch"]).median()}
    return result


def measure(device, model, data, threads=(1, 2), batch_sizes=(1, 64), rounds=9, count=256):
    """Bytes, agreement, and times, of so many photos in a round."""
    loaded = load_model(model)
    photos = load_photos(list_testing(data), loaded.description.preprocessing, cache=False)
    same, largest = agreement(loaded, photos.photos[photos.rows])
    exported = {kind: len(to_onnx(loaded, kind)) for kind in ("float", "uint8")}
    return {
        "data": {"testing": photos.fingerprint},
        "model": model.name,
        "bits": loaded.bits,
        "bytes": {"model_file": model.stat().st_size, **exported},
        "photos": len(photos),
        "agreement": same,
        "largest_logit": largest,
        "seconds": {
            f"{number} threads, {size} photos": latency(loaded, number, size, rounds, count // size)
            for number in threads
            for size in batch_sizes
        },
    }


main = benchmark(__doc__, measure, {"model": "model file", "data": "root that holds testing/"})

if __name__ == "__main__":
    run(main)
