"""Turn a checkpoint into a small, self-describing model file.

    python quantize.py runs/student/best.pt runs/student/model.bin
    python quantize.py runs/student/best.pt runs/student/model.bin --size 112 --data food-11 --record
    runs/student/model.json python quantize.py runs/wide/best.pt runs/wide/model.bin --bits 4 --override
    head.0=6 python quantize.py runs/wide/best.pt runs/wide/model.bin --bits 3 --qat-epochs 20 --data food-11
    --teacher runs/teacher/best.pt python quantize.py runs/student/best.pt model.pkl --export course8

BN is folded into the layers before it. Without --bits, the most bits that fit --max-bytes are searched: the
table shows what was tried. Prints all sizes and the worst error of a weight; with --data also the validation
accuracies. A file over --max-bytes is refused: nothing is written. --qat-epochs fine-tunes the rounded
weights before they are stored; such a run is kept in --out and resumed like a training. With --export the
file is one for the course's own script; checkpoints may be files in its formats too (see foreign_files.py).
"""

import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.plausibility import add_normalisation, settle_normalisation
from compression.files.atomic import check_distinct, check_output, write_bytes
from compression.files.foreign import EXPORTS, export, export_warnings, read_tensors
from compression.files.loading import load_model
from compression.files.model_file import decode, encode, predicted_data_bytes, sizes, to_bytes
from compression.files.records import provenance, write_record
from compression.options import add_cache, cache_folder, class_names_of, validation_accuracy
from compression.quantization.folding import fold, foldable_pairs
from compression.quantization.grids import Scheme
from compression.training import qat
from compression.training.distillation import read_teachers
from compression.training.loop import evaluate
from dataset import list_labelled, load_photos

SEARCHED_BITS = (16, 8, 7, 6, 5, 4, 3, 2)
NOT_EXPORTED = ("bits", "granularity", "scale", "override", "vectors", "size", "data", "record", "qat_epochs")
HOPELESS = 8  # a file whose packed weights alone are so many times too large is not even tried


@dataclass(frozen=True)
class Attempt:
    """What a scheme makes of a model: the file's content and bytes, its weights, and how far they are from
    the model's.

    worst: (largest absolute difference, name of its tensor). rms: root of the mean squared difference of all
    weights.
    """

    scheme: Scheme
    content: dict
    file: bytes
    weights: dict
    worst: tuple
    rms: float
    accuracy: float | None


def resized(model, size):
    """The model for another input size in pixels, or itself where size is None."""
    if size is None:
        return model
    preprocessing = replace(model.description.preprocessing, size=size)
    return replace(model, description=replace(model.description, preprocessing=preprocessing))


def folded(model):
    """The model with BN folded into the layers before it; itself where there is none."""
    network = model.build()
    if not foldable_pairs(network):
        return model
    description = replace(model.description, arguments={**model.description.arguments, "folded": True})
    return replace(model, description=description, state_dict=fold(network).state_dict())


def differences(before, after):
    """((largest absolute difference of a value, name of its tensor), root mean square of all) between two
    state_dicts.
    """
    pairs = {name: before[name].double() - after[name].double() for name in before if before[name].numel()}
    errors = {name: difference.abs().max().item() for name, difference in pairs.items()}
    name = max(errors, key=errors.get)
    squares = sum(difference.square().sum().item() for difference in pairs.values())
    return (errors[name], name), math.sqrt(squares / sum(difference.numel() for difference in pairs.values()))


def encode_and_measure(model, scheme, accuracy_of=None, scales=None):
    """The Attempt of storing a model by a scheme. scales: see `encode`."""
    content = encode(model.description, model.state_dict, scheme, scales)
    weights = decode(content)
    return Attempt(
        scheme,
        content,
        to_bytes(content),
        weights,
        *differences(model.state_dict, weights),
        accuracy_of(weights) if accuracy_of else None,
    )


def search(model, options, accuracy_of=None):
    """(best Attempt that fits or None, all that were tried): the most bits first, and of the scales that fit
    the least rms error.
    """
    grids = (
        ("mse",) if options.qat_epochs else ("mse", "minmax")
    )  # fine-tuning learns scales of the symmetric grid only
    tried = []
    for bits in SEARCHED_BITS:
        scales = (options.scale,) if options.scale else ("mse",) if bits > 8 else grids
        schemes = [scheme_of(options, bits, scale) for scale in scales]
        if (
            predicted_data_bytes(model.description, schemes[0]) > HOPELESS * options.max_bytes
            and bits > SEARCHED_BITS[-1]
        ):
            continue
        attempts = [encode_and_measure(model, scheme, accuracy_of) for scheme in schemes]
        tried += attempts
        fitting = [one for one in attempts if len(one.file) <= options.max_bytes]
        if fitting:
            return min(fitting, key=lambda one: one.rms), tried
    return None, tried


def scheme_of(options, bits, scale=None):
    """The Scheme of the options at these bits."""
    return Scheme(
        bits,
        options.granularity,
        scale or options.scale or "mse",
        options.vectors,
        parse_overrides(options.override),
    )


def parse_overrides(settings):
    """`--override` options: ["fc.1=8"] -> {"fc.1": 8}."""
    overrides = {}
    for setting in settings:
        layer, _, bits = setting.rpartition("=")
        if not layer or not bits.isascii() or not bits.isdecimal():
            raise UserError(f"--override {setting} is not LAYER=BITS; write e.g. --override fc.1=8")
        if layer.removesuffix(".weight") in {other.removesuffix(".weight") for other in overrides}:
            raise UserError(f"--override gives {layer} bits twice; leave one of them out")
        overrides[layer] = int(bits[:4])
    return overrides


def table(tried, max_bytes):
    """What was tried, a line each."""
    lines = [
        f"{'bits':>4}  {'granularity':12}{'scale':8}{'bytes':>12}{'worst error':>13}{'rms error':>12}"
        f"{'validation accuracy':>21}   * = fits in {max_bytes:,}"
    ]
    for one in tried:
        grid = f"{one.scheme.granularity:12}{one.scheme.scale:8}" if one.scheme.bits <= 8 else f"{'float':20}"
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.4f}"
        lines.append(
            f"{one.scheme.bits:>4}  {grid}{len(one.file):>12,}{'*' if len(one.file) <= max_bytes else ' '}"
            f"{one.worst[0]:>12.3g}{one.rms:>12.3g}{accuracy:>21}".rstrip()
        )
    return "\n".join(lines)


def size_advice(model, options):
    """What to do about a model that is too large: the most precise encoding that fits, or by how much to
    shrink the network.
    """
    best, tried = search(model, options)
    if best:
        scale = f" --scale {best.scheme.scale}" if best.scheme.bits <= 8 else ""
        return f"--bits {best.scheme.bits}{scale} makes {len(best.file):,} bytes and would fit"
    smallest = min(len(one.file) for one in tried)
    share = math.floor(100 * options.max_bytes / smallest)
    return (
        f"even {SEARCHED_BITS[-1]} bits make {smallest:,}, so take a network with about {share} % of the "
        "parameters "
        "(`python models.py` lists sizes)"
    )


def size_advice_after_training(model, options, scales):
    """What to do about a fine-tuned model that is too large, so that its training is not lost."""
    least = encode_and_measure(model, replace(scheme_of(options, options.bits), vectors=8), None, scales)
    vectors = f"--vectors 8 ({len(least.file):,} bytes) or " if len(least.file) <= options.max_bytes else ""
    return (
        f"the training is kept in {options.out}, and the same command with --resume and {vectors}a "
        "larger --max-bytes stores it"
    )


def encode_within_limit(model, options, accuracy_of, scales=None):
    """The Attempt that the options ask for; UserError with advice if it does not fit."""
    if options.bits is None:
        best, tried = search(model, options, accuracy_of)
        print(table(tried, options.max_bytes))
        if best:
            return best
        smallest = min(tried, key=lambda one: len(one.file))
    else:
        smallest = encode_and_measure(model, scheme_of(options, options.bits), accuracy_of, scales)
        if len(smallest.file) <= options.max_bytes:
            return smallest
    advice = size_advice_after_training(model, options, scales) if scales else size_advice(model, options)
    raise UserError(
        f"{options.output} would have {len(smallest.file):,} bytes and at most {options.max_bytes:,} are "
        "allowed, "
        f"so nothing was written; {advice}"
    )


def validation(model, options, device):
    """(function from weights to validation accuracy, photos)."""
    preprocessing = model.description.preprocessing
    names, share = model.description.class_names, model.description.validation_share
    listing = list_labelled(options.data, "validation", names, share, f"the model {model.path}")
    photos = load_photos(listing, preprocessing, cache_folder(options)).to(device)

    def accuracy_of(weights, description=model.description):
        network = description.build(weights, model.path).to(device, memory_format=torch.channels_last)
        return evaluate(network, photos, preprocessing, device, whose=f"the model {model.path}")[1]

    return accuracy_of, photos


def tensor_bytes(state_dict):
    """Bytes of all its tensors in memory."""
    return sum(value.numel() * value.element_size() for value in state_dict.values())


def write_export(model, output, kind, max_bytes):
    """Write the course's own file of a model, and say what its script cannot know; UserError if it is too
    large.
    """
    packed = export(model.state_dict, EXPORTS[kind])
    if len(packed) > max_bytes:
        fewer_bits = "" if EXPORTS[kind] == 8 else "use --export course8, "
        raise UserError(
            f"{output} would have {len(packed):,} bytes and at most {max_bytes:,} are allowed, "
            f"so nothing was written; {fewer_bits}use a smaller network or raise --max-bytes"
        )
    for sentence in export_warnings(model.description):
        print(f"warning: {sentence}", file=sys.stderr)
    weights = read_tensors(packed, output)[0]
    (error, tensor), _ = differences(model.state_dict, weights)
    print(
        f"{model.description.architecture}: raw {tensor_bytes(model.state_dict):,} B -> file "
        f"{len(packed):,} B "
        f"in the course's {EXPORTS[kind]}-bit format; decoded {tensor_bytes(weights):,} B"
    )
    print(f"worst error {error:.3g} in {tensor}")
    write_bytes(output, packed)
    print(f"wrote {output}")


def main(argv=None):
    command = parser(__doc__)
    command.add_argument("checkpoint", type=Path, help="best.pt of a training script, or a model file")
    command.add_argument("output", type=Path, help="the model file to write")
    group = command.add_argument_group("encoding")
    group.add_argument(
        "--bits",
        type=int,
        choices=(32, 16, *range(8, 1, -1)),
        help="per weight: floats of 32 or 16, codes of 2 to 8; below 6, the first and the last layer keep 8 "
        "and depthwise convolutions get 2 more (default: the most that fit)",
    )
    group.add_argument(
        "--granularity",
        choices=("tensor", "channel"),
        default="channel",
        help="one grid for a layer, or one for each of its output channels",
    )
    group.add_argument(
        "--scale",
        choices=("minmax", "mse"),
        help="a grid from minimum to maximum (at 8 bits per tensor the course's), or the symmetric one of "
        "least squared error (default: mse; without --bits, whichever is nearer to the weights)",
    )
    group.add_argument(
        "--override",
        metavar="LAYER=BITS",
        action="append",
        default=[],
        help="other bits for a layer, e.g. fc.1=8",
    )
    group.add_argument(
        "--vectors",
        type=int,
        choices=(16, 8),
        default=16,
        help="bits of biases and other vectors beside codes",
    )
    group.add_argument(
        "--size",
        type=number(int, 16, 4096),
        metavar="PIXELS",
        help="store another input size than the training's: a network trained on random crops often does "
        "best at a somewhat larger one (Touvron et al. 2019), and it costs no bytes",
    )
    group.add_argument("--max-bytes", type=number(int, 1), default=300_000, help="refuse a larger file")
    group.add_argument(
        "--export",
        choices=tuple(EXPORTS),
        help="write the course's own 8- or 16-bit pickle in place of a model file of this project",
    )
    group = command.add_argument_group("measuring")
    group.add_argument(
        "--data",
        type=Path,
        help="root that holds validation/ (and training/ for --qat-epochs), or train.csv of faces: "
        "measure the accuracy before and after",
    )
    add_cache(group)
    add_normalisation(group)
    group.add_argument("--record", type=Path, help="also write a JSON record there")
    qat.add_options(command)
    options = command.parse_args(argv)

    if options.vectors != 16 and options.bits in (16, 32):
        raise UserError(
            f"--vectors {options.vectors} goes with 2 to 8 bits and not with --bits {options.bits}; leave "
            "one of them out"
        )
    grids = options.bits is None or min(options.bits, *parse_overrides(options.override).values(), 32) <= 8
    for name in () if grids else ("granularity", "scale"):
        if getattr(options, name) != command.get_default(name):
            raise UserError(
                f"--{name} {getattr(options, name)} is about grids of 2 to 8 bits, and --bits {options.bits} "
                "stores floats; leave one of them out"
            )
    for name in NOT_EXPORTED if options.export else ():
        if getattr(options, name) != command.get_default(name):
            raise UserError(
                f"--{name.replace('_', '-')} does not go with --export {options.export}, whose format leaves "
                "no choice and no room for it; leave one of them out"
            )
    qat.check_options(command, options)
    check_distinct(
        options.checkpoint,
        options.output,
        options.record,
        options.data,
        *(options.out / name for name in qat.FILES if options.qat_epochs),
    )
    for teacher in options.teacher:
        check_distinct(teacher, options.output, options.record, *(options.out / name for name in qat.FILES))
    device = pick_device(options.device)
    model, teachers = load_model(options.checkpoint), []
    if options.teacher and options.qat_epochs:
        teachers = read_teachers(
            options, class_names_of(options, model), model.description.preprocessing.channels, device
        )
    model = trained = settle_normalisation(
        model, options.normalisation, validation_accuracy(options, device) if options.data else None
    )
    raw = tensor_bytes(model.state_dict)
    if options.export:
        model.build()  # weights that do not fit their architecture are refused now
        check_output(options.output)
        write_export(model, options.output, options.export, options.max_bytes)
        return 0
    model = resized(model, options.size)
    model.build()  # weights that do not fit their architecture are refused now
    if (
        not options.qat_epochs or options.granularity == "channel"
    ):  # else fine-tuning leaves BN where it is, see qat.finish
        model = folded(model)
    for state_dict in (
        (model.state_dict, trained.state_dict) if options.qat_epochs else (model.state_dict,)
    ):  # stored; trained
        scheme_of(options, options.bits or 8).bits_of(state_dict)  # and overrides of no layer
    for output in filter(None, (options.output, options.record)):
        check_output(output, keep_folder=not options.dry_run)
    floats, scales, summary = model, None, {}
    if options.qat_epochs:
        encode_within_limit(model, options, None)  # what does not fit is refused before the training
        tuned = qat.fine_tune(trained, scheme_of(options, options.bits), options, device, teachers)
        if tuned is None:
            return 0
        model, scales, record = tuned
        model = resized(model, options.size)
        told = ("commit", "date", "resumed", "settings", "data", "photos", "best", "seconds", "teachers")
        summary["fine_tuning"] = {key: record[key] for key in told if key in record}
    accuracy_of, photos = validation(model, options, device) if options.data else (None, None)
    before = accuracy_of(floats.state_dict, floats.description) if options.data else None
    result = encode_within_limit(model, options, accuracy_of, scales)
    for name in scales or ():
        assert torch.equal(result.weights[name], model.state_dict[name]), (
            "what was trained is not what was stored"
        )
    size, decoded = sizes(result.content), tensor_bytes(result.weights)
    summary |= {
        "architecture": model.description.architecture,
        **asdict(result.scheme),
        "raw_bytes": raw,
        "decoded_bytes": decoded,
        "bit_packed_bytes": size.packed,
        "coded_bytes": size.coded,
        "entropy_bytes": size.entropy,
        "file_bytes": len(result.file),
        "worst_error": result.worst[0],
        "worst_tensor": result.worst[1],
    }
    print(
        f"{summary['architecture']}: raw {raw:,} B -> packed {size.packed:,} B -> coded {size.coded:,} B "
        f"(entropy {size.entropy:,} B) "
        f"-> file {len(result.file):,} B; decoded {decoded:,} B"
    )
    print(f"worst error {result.worst[0]:.3g} in {result.worst[1]}")
    if photos is not None:
        summary |= {
            "validation_accuracy_before": before,
            "validation_accuracy_after": result.accuracy,
            "validation_photos": len(photos),
        }
        print(f"validation accuracy {before:.4f} -> {result.accuracy:.4f} on {len(photos):,} photos")
    write_bytes(options.output, result.file)
    if options.record:
        fingerprints = {"validation": photos.fingerprint} if photos is not None else {}
        seed = options.seed if options.qat_epochs else None
        write_record(
            options.record,
            {**provenance(device, seed, fingerprints), "model": model.description.to_dict(), **summary},
        )
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    run(main)
