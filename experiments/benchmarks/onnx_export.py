"""What export.py makes of a model file: bytes, agreement with torch on photos, and time in onnxruntime.

    python -m experiments.benchmarks.onnx_export model.bin food-11 --record results/onnx_export.json

The ONNX file answers for every photo of testing/, from float and from uint8 input. Then one photo and a batch
of 64 are timed in turns in torch, as inference.py runs the network, and in onnxruntime: as it comes, when it
decodes the weights for every call, and with them decoded once at loading (`session.disable_quant_qdq`).
"""

import statistics
from pathlib import Path

import torch

from compression.command_line import UserError, number, parser, pick_device, run
from compression.files.loading import load_model
from compression.files.onnx_export import to_onnx
from compression.files.records import provenance, write_record
from dataset import list_testing, load_photos
from experiments.benchmarks.alternating import alternate

WEIGHTS = {"weights decoded in every call": "0", "weights decoded at loading": "1"}


def open_session(content, threads=1, decode_at_loading="0"):
    """An onnxruntime session on the CPU for the bytes of a .onnx file; UserError without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("this benchmark runs onnxruntime; pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", decode_at_loading)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def answers(session, inputs):
    """Logits (N, classes) of a session for a tensor of inputs."""
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


@torch.inference_mode()
def agreement(model, photos, batch_size=64):
    """How the float and the uint8 export answer for photos, uint8 (N, size, size, C), as torch does.

    {input: {"same_class": photos, "largest_difference": of a logit}}, and the largest logit there is.
    """
    network, preprocessing = (
        model.build().to(memory_format=torch.channels_last),
        model.description.preprocessing,
    )
    sessions = {kind: open_session(to_onnx(model, kind)) for kind in ("float", "uint8")}
    result = {kind: {"same_class": 0, "largest_difference": 0.0} for kind in sessions}
    largest = 0.0
    for part in photos.split(batch_size):
        normalised = preprocessing.normalise(part)
        expected = network(normalised)
        largest = max(largest, expected.abs().max().item())
        for kind, inputs in (("float", normalised.contiguous()), ("uint8", part)):
            found, counted = answers(sessions[kind], inputs), result[kind]
            counted["same_class"] += (found.argmax(1) == expected.argmax(1)).sum().item()
            difference = (found - expected).abs().max().item()
            counted["largest_difference"] = max(counted["largest_difference"], difference)
    return result, largest


@torch.inference_mode()
def latency(model, threads, batch_size, rounds, steps):
    """{way: {"torch": seconds, "onnxruntime": seconds, "ratio"}} for a batch on so many threads; medians."""
    torch.set_num_threads(threads)
    preprocessing = model.description.preprocessing
    network = model.build().to(memory_format=torch.channels_last)
    shape = (batch_size, preprocessing.channels, preprocessing.size, preprocessing.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs, result = images.contiguous(memory_format=torch.channels_last), {}
    for way, decode_at_loading in WEIGHTS.items():
        session = open_session(to_onnx(model), threads, decode_at_loading)
        ours, in_onnxruntime = map(
            statistics.median,
            alternate(
                lambda _: network(theirs),
                lambda _, session=session: answers(session, images),
                rounds,
                steps,
                torch.device("cpu"),
            ),
        )
        result[way] = {"torch": ours, "onnxruntime": in_onnxruntime, "ratio": in_onnxruntime / ours}
    return result


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("model", type=Path, help="model file")
    options.add_argument("data", type=Path, help="root that holds testing/")
    options.add_argument(
        "--threads", type=number(int, 1), nargs="+", default=[1, 2], help="threads to be timed with"
    )
    options.add_argument(
        "--batch-sizes", type=number(int, 1), nargs="+", default=[1, 64], help="photos at once"
    )
    options.add_argument("--rounds", type=number(int, 1), default=9, help="alternating rounds")
    options.add_argument("--photos", type=number(int, 1), default=256, help="photos to time in a round")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options = options.parse_args(argv)
    device, model = pick_device("cpu"), load_model(options.model)
    photos = load_photos(list_testing(options.data), model.description.preprocessing, cache=False)
    sizes = {
        "model_file": options.model.stat().st_size,
        **{kind: len(to_onnx(model, kind)) for kind in ("float", "uint8")},
    }
    print(", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()))
    same, largest = agreement(model, photos.photos[photos.rows])
    for kind, values in same.items():
        print(
            f"{kind} input: the same class for {values['same_class']:,} of {len(photos):,} photos, "
            f"logits differ by at most {values['largest_difference']:.2g} (the largest is {largest:.1f})"
        )
    seconds = {}
    for threads in options.threads:
        for batch_size in options.batch_sizes:
            steps = max(1, options.photos // batch_size)
            timed = latency(model, threads, batch_size, options.rounds, steps)
            seconds[f"{threads} threads, {batch_size} photos"] = timed
            for way, values in timed.items():
                print(
                    f"threads {threads}, photos {batch_size}, {way}: torch {1000 * values['torch']:.2f} ms, "
                    f"onnxruntime {1000 * values['onnxruntime']:.2f} ms, ratio {values['ratio']:.2f}"
                )
    if options.record:
        write_record(
            options.record,
            {
                **provenance(device, 0, {"testing": photos.fingerprint}),
                "model": options.model.name,
                "bits": model.bits,
                "bytes": sizes,
                "photos": len(photos),
                "agreement": same,
                "largest_logit": largest,
                "seconds": seconds,
            },
        )
    return 0


if __name__ == "__main__":
    run(main)
