"""Storing a network: the encodings that are tried, and their errors."""

import copy
import math
from dataclasses import dataclass, replace

import torch

from compression.command_line import UserError, tell
from compression.files.atomic import write_bytes
from compression.files.foreign import EXPORTS, export, export_warnings, read_tensors
from compression.files.model_file import decode, encode, predicted_data_bytes, to_bytes
from compression.options import validation_photos
from compression.quantization.folding import foldable_pairs
from compression.quantization.grids import Scheme
from compression.training.evaluation import evaluate
from compression.training.qat import fold_into_scales

SEARCHED_BITS = (16, 8, 7, 6, 5, 4, 3, 2)
HOPELESS = 8  # an encoding whose packed weights alone exceed the limit so many times is not tried


@dataclass(frozen=True)
class Attempt:
    """A model encoded by a scheme: the file's content and bytes, the decoded weights, and their errors.

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


def folded(model):
    """The model with BN folded into the layers before it, and into the scales of rounded weights."""
    network = copy.deepcopy(model.build())  # build() shares its tensors with the model
    if not foldable_pairs(network):
        return model
    scales = fold_into_scales(network, model.scales)
    description = replace(model.description, arguments={**model.description.arguments, "folded": True})
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return replace(model, description=description, state_dict=state, scales=scales, stored=None)


def take_trained_scheme(model, options):
    """Set --bits, --granularity, --scale and --override to those of the quantization-aware training.

    Raises UserError where the command line gives other values.
    """
    try:
        trained = model.description.training["qat"]
        overrides = trained.get("overrides", {})
        scheme = Scheme(trained["bits"], trained["granularity"], "mse", overrides=overrides)
    except (KeyError, TypeError):
        raise UserError(f"{model.path} has scales but does not state their bits; train it again") from None
    if options.bits not in (None, scheme.bits):
        raise UserError(
            f"{model.path} was trained with --qat-bits {scheme.bits}, so --bits {options.bits} cannot be "
            "used; leave it out"
        )
    for name in ("granularity", "scale", "override"):
        if name in options.given:
            raise UserError(f"{model.path} was trained with --qat-bits, which fixes --{name}; leave it out")
    options.bits, options.granularity, options.scale = scheme.bits, scheme.granularity, scheme.scale
    options.override = list(scheme.overrides.items())


def differences(before, after):
    """Of two state_dicts: ((largest absolute difference, name of its tensor), root mean square of all)."""
    pairs = {name: before[name].double() - after[name].double() for name in before if before[name].numel()}
    errors = {name: difference.abs().max().item() for name, difference in pairs.items()}
    name = max(errors, key=errors.get)
    squares = sum(difference.square().sum().item() for difference in pairs.values())
    return (errors[name], name), math.sqrt(squares / sum(difference.numel() for difference in pairs.values()))


def encode_and_measure(model, scheme, accuracy_of=None):
    """Encode a model by a scheme; returns an Attempt."""
    content = encode(model.description, model.state_dict, scheme, model.scales)
    weights = decode(content)
    worst, rms = differences(model.state_dict, weights)
    accuracy = accuracy_of(weights) if accuracy_of else None
    return Attempt(scheme, content, to_bytes(content), weights, worst, rms, accuracy)


def search(model, options, accuracy_of=None):
    """(best Attempt that fits or None, all Attempts).

    The best has the most bits that fit, and then the scale with the smallest rms error.
    """
    tried = []
    for bits in SEARCHED_BITS:
        scales = (options.scale,) if options.scale else ("mse",) if bits > 8 else ("mse", "minmax")
        schemes = [scheme_of(options, bits, scale) for scale in scales]
        hopeless = predicted_data_bytes(model.description, schemes[0]) > HOPELESS * options.max_bytes
        if hopeless and bits > SEARCHED_BITS[-1]:
            continue
        attempts = [encode_and_measure(model, scheme, accuracy_of) for scheme in schemes]
        tried += attempts
        fitting = [one for one in attempts if len(one.file) <= options.max_bytes]
        if fitting:
            return min(fitting, key=lambda one: one.rms), tried
    return None, tried


def scheme_of(options, bits, scale=None):
    """The Scheme of the options with these bits."""
    scale, overrides = scale or options.scale or "mse", dict(options.override)
    return Scheme(bits, options.granularity, scale, options.vectors, overrides)


def table(tried, max_bytes):
    """The table of all Attempts, one line each."""
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


def size_advice(best, tried, max_bytes):
    """Advice for a model that is too large, from a search: what fits, or how small the network must be."""
    if best:
        scale = f" --scale {best.scheme.scale}" if best.scheme.bits <= 8 else ""
        return f"--bits {best.scheme.bits}{scale} would fit with {len(best.file):,} bytes"
    smallest = min(len(one.file) for one in tried)
    share, advice = 100 * max_bytes // smallest, "raise --max-bytes"
    if share:
        advice = f"use a network with about {share} % of the parameters (`python models.py` lists sizes)"
    return f"even {SEARCHED_BITS[-1]} bits need {smallest:,}, so {advice}"


def encode_within_limit(model, options, accuracy_of):
    """The Attempt that the options ask for; UserError with advice if it does not fit."""
    limit = options.max_bytes
    if options.bits is None:
        best, tried = search(model, options, accuracy_of)
        print(table(tried, limit))
        if best:
            return best
        size, advice = min(len(one.file) for one in tried), size_advice(best, tried, limit)
    else:
        wanted = encode_and_measure(model, scheme_of(options, options.bits), accuracy_of)
        size = len(wanted.file)
        if size <= limit:
            return wanted
        narrow = len(encode_and_measure(model, replace(wanted.scheme, vectors=8)).file)
        if narrow <= limit and options.bits <= 8:
            advice = f"--vectors 8 would fit with {narrow:,} bytes"
        elif model.scales:  # fixed by the training, as are the bits
            advice = (
                "train with fewer --qat-bits, for more epochs (the weights then compress better), or train a "
                "smaller network"
            )
        else:
            advice = size_advice(*search(model, options), limit)
    raise UserError(
        f"{options.output} would have {size:,} bytes and at most {limit:,} are allowed, so nothing was "
        f"written; {advice}"
    )


def validation(model, options, device):
    """(function from weights to validation accuracy, photos)."""
    photos, whose = validation_photos(options, model)
    preprocessing, photos = model.description.preprocessing, photos.to(device)

    def accuracy_of(weights, description=model.description):
        network = description.build(weights, model.path).to(device, memory_format=torch.channels_last)
        return evaluate(network, photos, preprocessing, device, whose=whose).accuracy

    return accuracy_of, photos


def tensor_bytes(state_dict):
    """Bytes of all tensors of a state_dict in memory."""
    return sum(value.numel() * value.element_size() for value in state_dict.values())


def write_export(model, output, kind, max_bytes):
    """Write a model in the course's format, with warnings about what the format cannot store.

    Raises UserError if it is too large.
    """
    bits = EXPORTS[kind]
    packed = export(model.state_dict, bits)
    if len(packed) > max_bytes:
        smaller = bits > 8 and len(export(model.state_dict, 8)) <= max_bytes
        raise UserError(
            f"{output} would have {len(packed):,} bytes and at most {max_bytes:,} are allowed, so nothing "
            f"was written; {'use --export course8, ' * smaller}use a smaller network or raise --max-bytes"
        )
    for sentence in export_warnings(model.description):
        tell(f"warning: {sentence}")
    weights = read_tensors(packed, output)[0]
    (error, tensor), _ = differences(model.state_dict, weights)
    name, raw, decoded = model.description.architecture, tensor_bytes(model.state_dict), tensor_bytes(weights)
    print(f"{name}: raw {raw:,} B -> file {len(packed):,} B in the course's {bits}-bit format", end="")
    print(f"; decoded {decoded:,} B")
    print(f"worst error {error:.3g} in {tensor}")
    write_bytes(output, packed)
    print(f"wrote {output}")
