"""Which runner for ONNX teachers: onnxruntime, or onnx2torch's torch modules in fp32 and bf16. Photos per
second, and how far logits differ.

    python -m experiments.benchmarks.onnx_teacher teacher.onnx --record results/onnx_teacher.json

All take turns on the same random photos; medians count. bf16 is what train_kd.py uses where the processor
computes in it.
"""

import torch

from compression.command_line import run
from compression.files.onnx import read_onnx
from compression.training.recipe import autocast
from experiments.benchmarks.measuring import CPU, benchmark, in_turns
from experiments.benchmarks.onnx_export import logits_of, open_session


def measure(device, teacher, sizes=(72, 96), batch_size=128, rounds=9, steps=2):
    """For each size in pixels, photos per second, and the largest difference from onnxruntime's logits."""
    network = read_onnx(teacher)[0].to(memory_format=torch.channels_last)
    session, results = open_session(teacher, torch.get_num_threads()), {}

    def torch_logits(photos, precision):
        with torch.inference_mode(), autocast(precision, CPU):
            return network(photos).float()

    for size in sizes:
        plain = torch.rand(batch_size, 3, size, size)
        photos = plain.contiguous(memory_format=torch.channels_last)
        ways = {
            "onnxruntime, fp32": lambda: logits_of(session, plain),
            "onnx2torch, fp32": lambda: torch_logits(photos, "fp32"),
            "onnx2torch, bf16": lambda: torch_logits(photos, "bf16"),
        }
        expected = logits_of(session, plain)
        results[f"{size} px"] = {
            runner: {
                "photos_per_second": batch_size / seconds,
                "largest_difference": (ways[runner]() - expected).abs().max().item(),
            }
            for runner, seconds in in_turns(ways, rounds, times=steps).median().items()
        }
        del results[f"{size} px"]["onnxruntime, fp32"]["largest_difference"]
    return {"teacher": teacher.name, "batch_size": batch_size, "results": results}


main = benchmark(__doc__, measure, {"teacher": "the .onnx file"})

if __name__ == "__main__":
    run(main)
