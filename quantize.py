"""Turn a checkpoint into a small, self-describing model file.

    python quantize.py runs/student/best.pt model.bin
    python quantize.py runs/student/best.pt model.bin --vectors 16 --size 112 --data food-11 --record results/model.json
    python quantize.py runs/student/best.pt model.pkl --export course8

Prints raw and packed sizes and the worst error of a weight; with --data also the validation accuracy
before and after. A file over --max-bytes is refused: nothing is written. With --export the file is one for the course's own
script; checkpoints may be files in its formats too (see foreign_files.py).
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from command_line import UserError, number, parser, pick_device, run
from dataset import list_labelled, load_photos
from files import check_distinct, check_output, write_bytes
from foreign_files import EXPORTS, export, read_tensors, strangers
from model_file import decode, encode, load_model, to_bytes
from options import add_cache, cache_folder
from records import provenance, write_record
from training import evaluate

ENCODINGS = {(32, 8): "--bits 32", (16, 8): "--bits 16", (8, 16): "--bits 8 --vectors 16", (8, 8): "--bits 8"}


def worst_error(before, after):
    """(largest absolute difference of a value, name of its tensor) between two state_dicts."""
    errors = {name: (before[name].double() - after[name].double()).abs().max().item() for name in before if before[name].numel()}
    name = max(errors, key=errors.get)
    return errors[name], name


def what_fits(model, max_bytes):
    """Advice for a model that is too large: the most precise encoding that fits, or by how much to shrink the network."""
    sizes = {flags: len(to_bytes(encode(model.description, model.state_dict, *encoding))) for encoding, flags in ENCODINGS.items()}
    for flags, size in sizes.items():
        if size <= max_bytes:
            return f"{flags} makes {size:,} bytes and would fit"
    smallest = min(sizes.values())
    return f"even 8 bits make {smallest:,}, so take a network with about {math.floor(100 * max_bytes / smallest)} % of the parameters (`python models.py` lists sizes)"


def accuracies(model, decoded, options, device):
    """Validation accuracy of the float weights and of the decoded file: (before, after, photos, fingerprint)."""
    preprocessing, names = model.description.preprocessing, model.description.class_names
    photos = load_photos(list_labelled(options.data, "validation", names), preprocessing, cache_folder(options)).to(device)
    results = []
    for weights in (model.state_dict, decoded):
        network = model.description.build(weights, model.path).to(device, memory_format=torch.channels_last)
        results.append(evaluate(network, photos, preprocessing, device)[1])
    return *results, len(photos), photos.fingerprint


def write_export(model, output, kind, max_bytes):
    """Write the course's own file of a model, and say what its script cannot know; UserError if it is too large."""
    packed = export(model.state_dict, EXPORTS[kind])
    if len(packed) > max_bytes:
        raise UserError(f"{output} would have {len(packed):,} bytes and at most {max_bytes:,} are allowed, so nothing was written; take a smaller network or raise --max-bytes")
    for sentence in strangers(model.description):
        print(f"warning: {sentence}", file=sys.stderr)
    error, tensor = worst_error(model.state_dict, read_tensors(packed, output)[0])
    write_bytes(output, packed)
    print(f"{model.description.architecture}: {len(packed):,} bytes in the course's {EXPORTS[kind]}-bit format, worst error {error:.3g} in {tensor}")
    print(f"wrote {output}")


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("checkpoint", type=Path, help="best.pt of a training script, or a model file")
    options.add_argument("output", type=Path, help="the model file to write")
    options.add_argument("--bits", type=int, choices=(32, 16, 8), default=8, help="32: float32, 16: float16, 8: min-max uint8 per tensor")
    options.add_argument("--vectors", type=int, choices=(16, 8), default=8, help="bits of biases and BN tensors when --bits is 8")
    options.add_argument("--size", type=number(int, 16, 4096), metavar="PIXELS", help="store another input size than the training's: a network trained on "
                         "random crops often does best at a somewhat larger one (Touvron et al. 2019), and it costs no bytes")
    options.add_argument("--max-bytes", type=number(int, 1), default=300_000, help="refuse a larger file")
    options.add_argument("--data", type=Path, help="root that holds validation/: measure the accuracy before and after")
    options.add_argument("--export", choices=tuple(EXPORTS), help="write the course's own 8- or 16-bit pickle in place of a model file of this project")
    add_cache(options)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N, for --data")
    options.add_argument("--record", type=Path, help="also write a JSON record there")
    options = options.parse_args(argv)

    if options.vectors != 8 and options.bits != 8:
        raise UserError(f"--vectors {options.vectors} goes with --bits 8 and not with --bits {options.bits}; leave one of them out")
    for flag, given in {"--bits": options.bits != 8, "--vectors": options.vectors != 8, "--size": options.size, "--data": options.data, "--record": options.record}.items():
        if options.export and given:
            raise UserError(f"{flag} does not go with --export {options.export}, whose format leaves no choice and no room for it; leave one of them out")
    check_distinct(options.checkpoint, options.output, options.record)
    device = pick_device(options.device)
    model = load_model(options.checkpoint)
    if options.size:
        model = replace(model, description=replace(model.description, preprocessing=replace(model.description.preprocessing, size=options.size)))
    model.build()  # weights that do not fit their architecture are told now
    for output in filter(None, (options.output, options.record)):
        check_output(output)
    if options.export:
        write_export(model, options.output, options.export, options.max_bytes)
        return 0
    content = encode(model.description, model.state_dict, options.bits, options.vectors)
    packed = to_bytes(content)
    if len(packed) > options.max_bytes:
        raise UserError(f"{options.output} would have {len(packed):,} bytes and at most {options.max_bytes:,} are allowed, so nothing was written; {what_fits(model, options.max_bytes)}")
    decoded = decode(content)
    error, tensor = worst_error(model.state_dict, decoded)
    raw = sum(value.numel() * value.element_size() for value in model.state_dict.values())
    summary = {"architecture": model.description.architecture, "bits": options.bits, "vectors": options.vectors, "raw_bytes": raw,
               "packed_bytes": len(packed), "data_bytes": len(content["data"]), "worst_error": error, "worst_tensor": tensor}
    print(f"{summary['architecture']}: {raw:,} bytes raw -> {len(packed):,} packed ({len(packed) - len(content['data']):,} of them header and index)")
    print(f"worst error {error:.3g} in {tensor}")
    fingerprints = {}
    if options.data:
        before, after, photos, fingerprints["validation"] = accuracies(model, decoded, options, device)
        summary |= {"validation_accuracy_before": before, "validation_accuracy_after": after, "validation_photos": photos}
        print(f"validation accuracy {before:.4f} -> {after:.4f} on {photos:,} photos")
    write_bytes(options.output, packed)
    if options.record:
        write_record(options.record, {**provenance(device, data=fingerprints), "model": model.description.to_dict(), **summary})
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    run(main)
