"""Turn a checkpoint into a small, self-describing model file.

    python quantize.py runs/student/best.pt runs/student/model.bin
    python quantize.py runs/student/best.pt runs/student/model.bin --size 112 --data food-11
    python quantize.py runs/wide/best.pt runs/wide/model.bin --bits 4 --override head.0=6
    python quantize.py runs/student/best.pt model.pkl --export course8

BN is folded into the layers before it. Without --bits, the largest number of bits that fits --max-bytes is
searched; a table shows what was tried. Prints all sizes and the largest error of a weight; with --data also
the validation accuracies. A file over --max-bytes is not written. A checkpoint of quantization-aware training
(`--qat-bits` of the training scripts) stores its bits and scales, and its weights do not change. --export
writes a file for the course's own script; the checkpoint may be a file in its formats too (see
docs/other_files.md).
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.plausibility import add_normalisation, settle_normalisation
from compression.files.atomic import check_distinct, check_output, write_bytes
from compression.files.foreign import EXPORTS
from compression.files.loading import load_model
from compression.files.model_file import sizes
from compression.files.records import provenance, write_record
from compression.options import add_cache, validation_accuracy
from compression.stages.quantizing import (
    encode_within_limit,
    folded,
    scheme_of,
    take_trained_scheme,
    tensor_bytes,
    validation,
    write_export,
)
from compression.training.qat import layer_bits
from compression.training.recipe import PIXELS

NOT_EXPORTED = ("bits", "granularity", "scale", "override", "vectors", "size", "data", "record")


def read_options(argv):
    """The parsed command line, checked for contradictions; `given` is the set of options that it changes."""
    command = parser(__doc__)
    command.add_argument("checkpoint", type=Path, help="best.pt of a training script, or a model file")
    command.add_argument("output", type=Path, help="the model file to write")
    group = command.add_argument_group("encoding")
    group.add_argument(
        "--bits",
        type=int,
        choices=(32, 16, *range(8, 1, -1)),
        help="bits per weight: 32 or 16 (floats), 2 to 8 (codes); below 6, the first and the last layer use "
        "8, and depthwise convolutions 2 more (default: the most that fit, up to 16)",
    )
    group.add_argument(
        "--granularity", choices=("tensor", "channel"), default="channel", help="a grid per layer or channel"
    )
    group.add_argument(
        "--scale",
        choices=("minmax", "mse"),
        help="minmax: a grid from minimum to maximum (with 8 bits per tensor: the course's); mse: the "
        "symmetric grid of least squared error (default: mse; without --bits, the one with less error)",
    )
    group.add_argument(
        "--override",
        type=layer_bits,
        metavar="LAYER=BITS",
        action="append",
        default=[],
        help="other bits for one layer, e.g. fc.1=8",
    )
    group.add_argument(
        "--vectors", type=int, choices=(16, 8), default=16, help="bits of biases and other vectors"
    )
    group.add_argument(
        "--size",
        type=PIXELS,
        help="store another input size in pixels than the training's: after training on random crops a "
        "slightly larger one is often best (Touvron et al. 2019)",
    )
    group.add_argument("--max-bytes", type=number(int, 1), default=300_000, help="refuse a larger file")
    group.add_argument("--export", choices=tuple(EXPORTS), help="write the course's own 8- or 16-bit pickle")
    group = command.add_argument_group("measuring")
    group.add_argument(
        "--data", type=Path, help="measure the accuracy before and after on validation/ or train.csv there"
    )
    add_cache(group)
    add_normalisation(group)
    group.add_argument("--record", type=Path, help="also write a JSON record there")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = command.parse_args(argv)
    options.given = {name for name, value in vars(options).items() if value != command.get_default(name)}

    layers = [layer.removesuffix(".weight") for layer, _ in options.override]
    if len(set(layers)) < len(layers):
        raise UserError("--override names a layer twice; leave one of them out")
    refused = {}
    if options.bits in (16, 32):
        stores = f"--bits {options.bits}, which stores floats"
        refused["vectors"] = stores
        if min(dict(options.override).values(), default=32) > 8:
            refused |= {"granularity": stores, "scale": stores}
    if options.export:
        fixed = f"--export {options.export}, whose format is fixed"
        refused |= dict.fromkeys(NOT_EXPORTED, fixed)
    for name, other in refused.items():
        if name in options.given:
            raise UserError(f"--{name} cannot be combined with {other}; leave one of them out")
    return options


def main(argv=None):
    options = read_options(argv)
    check_distinct(options.checkpoint, options.output, options.record, options.data)
    device = pick_device(options.device)
    model = load_model(options.checkpoint)
    accuracy_of = validation_accuracy(options, device) if options.data else None
    model = settle_normalisation(model, options.normalisation, accuracy_of)
    raw = tensor_bytes(model.state_dict)
    model.build()  # refuses weights that do not fit their architecture
    if options.export:
        check_output(options.output)
        write_export(model, options.output, options.export, options.max_bytes)
        return 0
    preprocessing = model.description.preprocessing
    preprocessing = replace(preprocessing, size=options.size or preprocessing.size)
    floats = model = replace(model, description=replace(model.description, preprocessing=preprocessing))
    if model.scales:
        take_trained_scheme(model, options)
    if not model.scales or options.granularity == "channel":  # with one scale per layer BN cannot be folded
        model = folded(model)
    scheme_of(options, options.bits or 8).bits_of(model.state_dict)  # refuses overrides of unknown layers
    for output in filter(None, (options.output, options.record)):
        check_output(output)
    accuracy_of, photos = validation(model, options, device) if options.data else (None, None)
    before = accuracy_of(floats.state_dict, floats.description) if options.data else None
    result = encode_within_limit(model, options, accuracy_of)
    for name in model.scales:
        same = torch.equal(result.weights[name], model.state_dict[name])
        assert same, "the stored weights differ from the trained ones"
    size, decoded = sizes(result.content), tensor_bytes(result.weights)
    error, tensor = result.worst
    summary = {
        "model": model.description.to_dict(),
        "architecture": model.description.architecture,
        **asdict(result.scheme),
        "raw_bytes": raw,
        "decoded_bytes": decoded,
        "bit_packed_bytes": size.packed,
        "coded_bytes": size.coded,
        "entropy_bytes": size.entropy,
        "file_bytes": len(result.file),
        "worst_error": error,
        "worst_tensor": tensor,
    }
    print(
        f"{summary['architecture']}: raw {raw:,} B -> packed {size.packed:,} B -> coded {size.coded:,} B "
        f"(entropy {size.entropy:,} B) -> file {len(result.file):,} B; decoded {decoded:,} B"
    )
    print(f"worst error {error:.3g} in {tensor}")
    fingerprints = {}
    if photos is not None:
        fingerprints["validation"] = photos.fingerprint
        summary["validation_accuracy_before"] = before
        summary["validation_accuracy_after"] = result.accuracy
        summary["validation_photos"] = len(photos)
        print(f"validation accuracy {before:.4f} -> {result.accuracy:.4f} on {len(photos):,} photos")
    write_bytes(options.output, result.file)
    if options.record:
        write_record(options.record, {**provenance(device, data=fingerprints), **summary})
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    run(main)
