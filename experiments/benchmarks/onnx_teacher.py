"""Which runner for ONNX teachers: onnxruntime, or onnx2torch's torch modules in fp32 and bf16. Photos per
second, and how far logits differ.

    python -m experiments.benchmarks.onnx_teacher teacher.onnx --record results/onnx_teacher.json

Each torch variant alternates with onnxruntime in short rounds on the same random photos; medians count. bf16
is what train_kd.py uses where the processor computes in it.
"""

import statistics
from pathlib import Path

import torch

from compression.command_line import UserError, number, parser, pick_device, run
from compression.files.onnx import read_onnx
from compression.files.records import provenance, write_record
from compression.training.run_folder import AUTOCAST
from experiments.benchmarks.alternating import alternate


def measure(path, network, size, batch_size, rounds, steps):
    """{runner: {"photos_per_second", "largest_difference"}} at `size` pixels on the CPU; differences are
    those from onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "this benchmark compares with onnxruntime, which is not installed; pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    photos = torch.rand(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    array, photos, name = (
        photos.numpy(),
        photos.contiguous(memory_format=torch.channels_last),
        session.get_inputs()[0].name,
    )
    expected = torch.from_numpy(session.run(None, {name: array})[0])

    def torch_logits(precision):
        with torch.inference_mode(), torch.autocast("cpu", AUTOCAST[precision], enabled=precision != "fp32"):
            return network(photos).float()

    results, in_onnxruntime = {}, []
    for precision in ("fp32", "bf16"):
        theirs, ours = alternate(
            lambda _: session.run(None, {name: array}),
            lambda _, p=precision: torch_logits(p),
            rounds,
            steps,
            torch.device("cpu"),
        )
        in_onnxruntime += theirs
        results[f"onnx2torch, {precision}"] = {
            "photos_per_second": batch_size / statistics.median(ours),
            "largest_difference": (torch_logits(precision) - expected).abs().max().item(),
        }
    return {
        "onnxruntime, fp32": {"photos_per_second": batch_size / statistics.median(in_onnxruntime)},
        **results,
    }


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("teacher", type=Path, help="the .onnx file")
    options.add_argument(
        "--sizes", type=number(int, 16, 4096), nargs="+", default=[72, 96], help="pixels of the photos"
    )
    options.add_argument("--batch-size", type=number(int, 2), default=128, help="photos per step")
    options.add_argument("--rounds", type=number(int, 1), default=9, help="alternating rounds")
    options.add_argument("--steps", type=number(int, 1), default=2, help="steps per round")
    options.add_argument("--record", type=Path, help="write a JSON record there")
    options = options.parse_args(argv)
    device = pick_device("cpu")
    network = read_onnx(options.teacher)[0].to(memory_format=torch.channels_last)
    results = {}
    for size in options.sizes:
        results[f"{size} px"] = measure(
            options.teacher, network, size, options.batch_size, options.rounds, options.steps
        )
        for runner, values in results[f"{size} px"].items():
            differs = (
                f", logits differ by at most {values['largest_difference']:.2g}"
                if "largest_difference" in values
                else ""
            )
            print(f"{size} px, {runner}: {values['photos_per_second']:,.0f} photos/s{differs}")
    if options.record:
        write_record(
            options.record,
            {
                **provenance(device, 0),
                "teacher": options.teacher.name,
                "batch_size": options.batch_size,
                "results": results,
            },
        )
    return 0


if __name__ == "__main__":
    run(main)
