"""Write a model file or checkpoint as an ONNX file, for onnxruntime and other programs.

    python export.py model.bin model.onnx
    python export.py runs/kd/best.pt best.onnx --input uint8

The ONNX file holds the weights of a model file in as many bits, but without entropy coding, and those of a
checkpoint in 32 bits. It takes any number of photos at once, in the network's input size, and returns logits.
Class names and preprocessing are in its metadata, so that `train_kd.py --teacher model.onnx` can read it
(float input only). Needs `pip install onnx`.
"""

from pathlib import Path

from compression.command_line import UserError, parser, run
from compression.data.plausibility import add_normalisation, settle_normalisation
from compression.files.atomic import check_distinct, check_output, write_bytes
from compression.files.loading import load_model
from compression.files.onnx import is_onnx
from compression.files.onnx_export import INPUTS, to_onnx


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("model", type=Path, help="model file or checkpoint")
    options.add_argument("output", type=Path, help="the .onnx file to write")
    text = (
        "float: float32 (N, channels, size, size), normalised with the metadata's mean and std; uint8: "
        "photos (N, size, size, channels) as decoded, normalised in the graph"
    )
    options.add_argument("--input", choices=INPUTS, default="float", help=text)
    add_normalisation(options)
    options = options.parse_args(argv)

    check_distinct(options.model, options.output)
    if not is_onnx(options.output):
        raise UserError(f"{options.output} is to be an ONNX file; give it a name that ends in .onnx")
    model = settle_normalisation(load_model(options.model), options.normalisation)
    check_output(options.output)
    content = to_onnx(model, options.input)
    write_bytes(options.output, content)
    print(
        f"wrote {options.output}: {model.description.architecture}, {len(content):,} bytes "
        f"({options.model} has {options.model.stat().st_size:,})"
    )
    return 0


if __name__ == "__main__":
    run(main)
