"""Quantization-aware training: fine-tune a trained network through weights that are rounded in every step.

Every weight that the scheme stores as codes becomes code * scale on the symmetric grid of quantization.py,
where the scales are learned (Esser et al. 2020, "Learned Step Size Quantization") and are float16 values
whenever they are used, as in the file. BN stays in the network and its statistics are taken anew at the end:
depthwise weights of few bits jump between two codes and leave the running averages wrong (Nagel et al. 2022,
"Overcoming Oscillations in Quantization-Aware Training"). Then, with a scale per channel, BN is folded into
the scales and the biases; no code changes. The checkpoints of such a run hold rounded weights under the usual
names, before that last step, and beside them `scales`.
"""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization
from torch.optim.swa_utils import update_bn

from compression.command_line import UserError, number
from compression.data.augmentation import AUGMENTATIONS
from compression.files.atomic import read_torch
from compression.files.loading import load_model
from compression.files.model_file import Model
from compression.networks.registry import build, count_parameters
from compression.options import add_run, add_views, cache_folder, load_splits, view_size_of
from compression.quantization.folding import fold, foldable_pairs
from compression.quantization.grids import (
    LARGEST,
    SMALLEST,
    code_range,
    dequantize_symmetric,
    mse_scale,
    quantize_symmetric,
)
from compression.training.distillation import (
    add_distillation,
    add_fixed_views,
    build_distillation,
    check_distillation,
    check_fixed_views,
    check_teachers,
    origin_of_distillation,
)
from compression.training.loop import fit, pick_precision
from compression.training.run_folder import Settings

LEARNING_RATE = 5e-4
FILES = ("last.pt", "best.pt", "log.csv", "record.json")  # of a run, in --out
ONLY_HERE = (
    "lr",
    "batch_size",
    "augment",
    "view_size",
    "mixup",
    "views",
    "teacher",
    "teacher_size",
    "teacher_normalisation",
    "alpha",
    "temperature",
    "out",
    "seed",
    "precision",
    "resume",
    "dry_run",
)


# ---------------------------------------------------------------- rounding that can be trained through


class FakeQuantize(torch.autograd.Function):
    """(weight, log_scale, bits) -> code * scale, with the gradients of Esser et al. 2020, equations 2, 3 and
    5.

    log_scale: (1,) or (out_channels,). The weight's gradient passes where the code is not clamped. With r =
    weight / scale, the scale's is the sum of round(r) - r, or of the clamped code, times the gradient, over
    sqrt(count * highest code).
    """

    @staticmethod
    def forward(ctx, weight, log_scale, bits):
        scale = stored_scale(log_scale)
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits
        along = scale.view(-1, *[1] * (weight.ndim - 1))
        return (
            torch.round(weight / along).clamp(*code_range(bits)) * along
        )  # quantize_symmetric, but NaN stays NaN and is noticed

    @staticmethod
    def backward(ctx, gradient):
        weight, scale = ctx.saved_tensors
        low, high = code_range(ctx.bits)
        ratio = weight / scale.view(-1, *[1] * (weight.ndim - 1))
        inside = (ratio > low) & (ratio < high)
        slope = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
        of_scale = (gradient * slope).reshape(len(scale), -1).sum(1) / math.sqrt(
            weight.numel() / len(scale) * high
        )
        return gradient * inside, of_scale * scale, None


def stored_scale(log_scale):
    """exp(log_scale) as float32 values that float16 holds exactly: what a file stores."""
    return log_scale.detach().exp().clamp(SMALLEST, LARGEST).half().float()


class LearnedStep(nn.Module):
    """Parametrization of a weight: rounded to `bits`, its scales starting where the squared error is least.

    Learned is the logarithm of the scale: a step of Adam has the same size whatever the gradient's, so it
    changes every scale by the same fraction and cannot turn its sign (Jain et al. 2020, "Trained Quantization
    Thresholds").
    """

    def __init__(self, weight, bits, granularity):
        super().__init__()
        self.bits = bits
        self.log_scale = nn.Parameter(mse_scale(weight, bits, granularity).log())

    def forward(self, weight):
        return FakeQuantize.apply(weight, self.log_scale, self.bits)


def fake_quantize(network, scheme):
    """Put a `LearnedStep` on every weight that the scheme stores as codes, in place; return the network."""
    weights = {name: weight for name, weight in network.named_parameters() if weight.ndim >= 2}
    for name, bits in scheme.bits_of(network.state_dict()).items():
        if name in weights and bits <= 8:
            layer, _, tensor = name.rpartition(".")
            register_parametrization(
                network.get_submodule(layer), tensor, LearnedStep(weights[name], bits, scheme.granularity)
            )
    return network


@torch.no_grad()
def quantized_state(network):
    """{"weights": state_dict, "scales": {tensor name: (bits, scale)}} of a fake-quantized network, under the
    plain network's names.
    """
    weights = {
        name: value for name, value in network.state_dict().items() if ".parametrizations." not in f".{name}"
    }
    scales = {}
    for layer, module in network.named_modules():
        if is_parametrized(module):
            for tensor, (step,) in module.parametrizations.items():
                weights[f"{layer}.{tensor}"] = getattr(module, tensor)
                scales[f"{layer}.{tensor}"] = (step.bits, stored_scale(step.log_scale))
    return {"weights": weights, "scales": scales}


# ---------------------------------------------------------------- after the last epoch


def reestimate_bn(network, photos, preprocessing, settings, device):
    """BN statistics of one pass over the training photos, as views of the kind that the training saw."""
    torch.manual_seed(settings.seed)  # dropout is active, as in training
    views, augmentation = torch.Generator().manual_seed(settings.seed), AUGMENTATIONS[settings.augment]
    size = min(settings.batch_size, len(photos))

    def batches():
        for positions in torch.randperm(len(photos), generator=views)[: len(photos) // size * size].split(
            size
        ):
            images, _ = photos.batch(positions, device)
            yield (
                augmentation(images, preprocessing, views, settings.view_size)
                if augmentation
                else preprocessing.normalise(images)
            )

    update_bn(batches(), network)
    return network.eval()


@torch.no_grad()
def fold_into_scales(network, scales):
    """Fold BN in place where it follows a weight on a grid per channel; returns the scales after that.

    scale' = float16(scale * gamma / sqrt(var + eps)), which may be negative; the codes stay, and the bias is
    that of the gain which the rounded scale' stands for. `network` is a plain one with rounded weights.
    """
    scales = dict(scales)
    codes = {
        name: quantize_symmetric(network.get_parameter(name), scale, bits)
        for name, (bits, scale) in scales.items()
    }
    for layer, behind in foldable_pairs(network):
        name, norm = f"{layer}.weight", network.get_submodule(behind)
        if name in scales:
            bits, scale = scales[name]
            deviation = (norm.running_var.double() + norm.eps).sqrt()
            folded = (
                (scale.double() * norm.weight.double() / deviation).clamp(-LARGEST, LARGEST).half().float()
            )
            folded = torch.where(
                folded == 0, SMALLEST, folded
            )  # so that the codes can be read off the weights
            norm.weight.copy_(folded.double() / scale.double() * deviation)
            scales[name] = bits, folded
    fold(network)
    for name, (_, scale) in scales.items():
        network.get_parameter(name).copy_(dequantize_symmetric(codes[name], scale))
    return scales


def finish(path, training, scheme, settings, device):
    """(Model, scales) from the best epoch's checkpoint: BN re-estimated, and folded when there is a scale per
    channel.

    Every weight with a scale is code * scale exactly, so that `encode` stores it without loss.
    """
    model, scales = load_model(path), read_torch(path, "checkpoint").get("scales")
    if not scales:
        raise UserError(f"{path} holds no scales of a quantization-aware training; choose another --out")
    network = model.build().to(device, memory_format=torch.channels_last)
    network = reestimate_bn(network, training, model.description.preprocessing, settings, device).cpu()
    description = model.description
    if scheme.granularity == "channel":
        scales = fold_into_scales(network, scales)
        description = replace(description, arguments={**description.arguments, "folded": True})
    return Model(
        description,
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
        32,
        Path(path),
    ), scales


# ---------------------------------------------------------------- the stage as a whole


def add_options(parser):
    """What quantize.py needs to know for it, `--device` among it."""
    default = Settings()
    group = parser.add_argument_group("quantization-aware training")
    group.add_argument(
        "--qat-epochs",
        type=number(int, 1),
        metavar="E",
        help="fine-tune the rounded weights for so many epochs on --data; "
        "what follows is for this alone, but for --device",
    )
    group.add_argument(
        "--lr",
        type=number(float, 0, open_low=True),
        default=LEARNING_RATE,
        help="peak learning rate of AdamW",
    )
    group.add_argument(
        "--batch-size", type=number(int, 2), default=default.batch_size, help="photos per step"
    )
    add_views(group)
    add_fixed_views(add_distillation(parser, required=False))
    add_run(parser, out="runs/qat")


def check_options(parser, options):
    """UserError for options of quantize.py that contradict each other."""
    check_distillation(parser, options)
    check_fixed_views(options)
    if options.qat_epochs is None:
        for name in ONLY_HERE:
            if getattr(options, name) != parser.get_default(name):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{flag} goes with --qat-epochs, which is not given; add it or leave {flag} out"
                )
    elif not options.data:
        raise UserError(
            "--qat-epochs fine-tunes on photos; name the root that holds training/ and validation/ with "
            "--data"
        )
    elif options.bits is None or options.bits > 8:
        given = "no --bits is given" if options.bits is None else f"--bits {options.bits} stores floats"
        raise UserError(
            f"--qat-epochs trains weights that are stored as codes, and {given}; choose --bits 2 to 8"
        )
    elif options.scale == "minmax":
        raise UserError(
            "--qat-epochs learns the scales of symmetric grids, and --scale minmax asks for other ones; "
            "leave it out"
        )


def fine_tune(model, scheme, options, device, teachers):
    """Fine-tune a Model as the options say, with the Teachers if there are any; returns (Model, scales,
    record), see `finish` and `fit`, or None after a dry run.

    It sees photos at the size that the model was trained at. The run is kept in `--out` and is resumed like
    any other; a finished one is only finished again.
    """
    settings = Settings(
        epochs=options.qat_epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        label_smoothing=0.0 if options.teacher else Settings().label_smoothing,
        augment=options.augment,
        mixup=options.mixup,
        view_size=view_size_of(options, model.description),
        views=options.views,
        precision=pick_precision(options.precision, device),
        seed=options.seed,
    )
    description, preprocessing = model.description, model.description.preprocessing
    training, validation = load_splits(options, preprocessing, f"{settings.precision} on {device}", model)
    origin = {
        "script": "quantize.py",
        "epochs": settings.epochs,
        "seed": settings.seed,
        "data": training.fingerprint,
        "view_size": settings.view_size or preprocessing.size,
        "bits": scheme.bits,
        "granularity": scheme.granularity,
        "overrides": scheme.overrides,
        **({"validation_share": description.validation_share} if description.validation_share else {}),
        "started_from": hashlib.sha256(model.path.read_bytes()).hexdigest()[:16],
        "before": description.training,
    }
    loss, details = None, {}
    if teachers:
        teachers, details["teachers"] = check_teachers(teachers, options, validation, preprocessing, device)
        origin |= origin_of_distillation(options, teachers, details["teachers"])
        loss = build_distillation(
            options, teachers, details["teachers"], preprocessing, settings, training, cache_folder(options)
        )

    if any(one.get("transductive") for one in (description.training, *details.get("teachers", ()))):
        origin["transductive"] = True

    torch.manual_seed(settings.seed)
    network = build(description.architecture, **description.arguments)
    network.load_state_dict(model.state_dict)
    details["parameters"] = count_parameters(network)  # without the scales
    fake_quantize(network, scheme)
    record = fit(
        network,
        replace(description, training=origin),
        training,
        validation,
        settings,
        options.out,
        device,
        loss,
        resume=options.resume,
        dry_run=options.dry_run,
        details=details,
        export=quantized_state,
    )
    return (
        None
        if options.dry_run
        else (*finish(options.out / "best.pt", training, scheme, settings, device), record)
    )
