"""Quantization-aware training (QAT): the weights are rounded in every step, and their scales are learned.

Every weight that the scheme stores as codes becomes code * scale on the symmetric grid of grids.py. The
scales are learned (Esser et al. 2020, "Learned Step Size Quantization") and rounded to float16 in every step,
as in the file. BN is not folded during training, and its statistics are re-estimated at the end: depthwise
weights of few bits oscillate between two codes, which makes the running averages wrong (Nagel et al. 2022,
"Overcoming Oscillations in Quantization-Aware Training"). A checkpoint stores the rounded weights under the
usual names, and `scales`; quantize.py stores these codes and scales unchanged.
"""

from argparse import ArgumentTypeError

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import update_bn

from compression import distributed
from compression.data.augmentation import AUGMENTATIONS
from compression.files.atomic import read_torch
from compression.files.loading import load_model
from compression.quantization.folding import fold, foldable_pairs
from compression.quantization.grids import (
    LARGEST,
    SMALLEST,
    Scheme,
    code_range,
    dequantize_symmetric,
    mse_scale,
    quantize_symmetric,
)
from compression.training.evaluation import evaluate
from compression.training.run_folder import write_checkpoint


def layer_bits(text):
    """An argparse type: "fc.1=8" -> ("fc.1", 8)."""
    layer, _, bits = text.rpartition("=")
    if not layer or bits not in map(str, (32, 16, *range(2, 9))):
        raise ArgumentTypeError(
            f"{text!r} is not LAYER=BITS, such as fc.1=8, with 2 to 8 bits (or 16 or 32 in quantize.py)"
        )
    return layer, int(bits)


def parse_bits(text):
    """An argparse type: "4,fc.1=8" -> (4, {"fc.1": 8}), the bits of most weights and of single layers."""
    first, *others = text.split(",")
    overrides = dict(map(layer_bits, others))
    if not {first, *map(str, overrides.values())} <= set("2345678") or len(overrides) < len(others):
        raise ArgumentTypeError(f"{text!r} is not BITS or BITS,LAYER=BITS with 2 to 8 bits, e.g. 3,fc.1=8")
    return int(first), overrides


def scheme_of(settings):
    """The Scheme that the weights are rounded by in training."""
    return Scheme(settings.qat_bits, settings.qat_granularity, "mse", overrides=settings.qat_overrides)


class LearnedStep(nn.Module):
    """Parametrization of a weight: rounded to `bits`, with scales that start at the least squared error.

    The logarithm of the scale is learned: an Adam step does not depend on the gradient's size, so it changes
    every scale by the same factor and cannot change its sign (Jain et al. 2020, "Trained Quantization
    Thresholds"). Rounding uses the straight-through estimator, and clamped weights get no gradient, so the
    gradients are those of Esser et al. 2020, equations 3 and 5, with their factor
    1 / sqrt(count * highest code).
    """

    def __init__(self, weight, bits, granularity):
        super().__init__()
        self.bits = bits
        self.log_scale = nn.Parameter(mse_scale(weight, bits, granularity).log())

    def scale(self):
        """The scales (1,) or (out_channels,) as float32 values that float16 represents exactly, as stored."""
        return self.log_scale.detach().exp().clamp(SMALLEST, LARGEST).half().float()

    def forward(self, weight):
        low, high = code_range(self.bits)
        free, factor = self.log_scale.exp(), (weight.numel() / len(self.log_scale) * high) ** -0.5
        scale = self.scale() + factor * (free - free.detach())
        scale = scale.view(-1, *[1] * (weight.ndim - 1))
        ratio = (weight / scale).clamp(low, high)
        return (ratio.round() + (ratio - ratio.detach())) * scale  # adds 0, with the gradient of `ratio`


def fake_quantize(network, scheme):
    """Put a `LearnedStep` on every weight that the scheme stores as codes, in place; return the network."""
    weights = {name: weight for name, weight in network.named_parameters() if weight.ndim >= 2}
    for name, bits in scheme.bits_of(network.state_dict()).items():
        if name in weights and bits <= 8:
            layer, _, tensor = name.rpartition(".")
            step = LearnedStep(weights[name], bits, scheme.granularity)
            register_parametrization(network.get_submodule(layer), tensor, step)
    return network


# ---------------------------------------------------------------- after the last epoch


def reestimate_bn(network, photos, preprocessing, settings, device):
    """Re-estimate BN statistics in one pass over the training photos, augmented as in training; returns the
    network in eval mode.
    """
    torch.manual_seed(settings.seed)  # dropout is active, as in training
    views, augmentation = torch.Generator().manual_seed(settings.seed), AUGMENTATIONS[settings.augment]
    size = min(settings.batch_size, len(photos))
    order = torch.randperm(len(photos), generator=views)[: len(photos) // size * size]

    def batches():
        for positions in order.split(size):
            images, _ = photos.batch(positions, device)
            if augmentation:
                yield augmentation(images, preprocessing, views, settings.view_size)
            else:
                yield preprocessing.normalise(images)

    update_bn(batches(), network)
    return network.eval()


def finish(out, training, validation, settings, device):
    """Re-estimate the BN statistics of the best and of the last epoch in the run's folder `out`, and write
    the more accurate of these networks to best.pt: {"accuracies": {"best": a, "last": b}, "chosen": name},
    without "last" where that is the best epoch.

    With few bits the running averages are wrong, so an epoch's validation accuracy says little. best.pt
    stores what is returned, and is not finished again.
    """
    result = read_torch(out / "best.pt", "checkpoint").get("reestimated")
    if result:
        return result
    accuracies, finished = {}, {}
    models = {name: load_model(out / f"{name}.pt") for name in ("best", "last")}
    weights = [model.state_dict for model in models.values()]
    if all(torch.equal(one, weights[1][name]) for name, one in weights[0].items()):
        del models["last"]
    for name, model in models.items():
        preprocessing = model.description.preprocessing
        network = model.build().to(device, memory_format=torch.channels_last)
        network = reestimate_bn(network, training, preprocessing, settings, device)
        distributed.spread(network.buffers())
        measured = evaluate(network, validation, preprocessing, device)
        accuracies[name] = getattr(measured, settings.measure)
        finished[name] = model.description, network.state_dict(), model.scales
    chosen = max(accuracies, key=accuracies.get)  # the best epoch among equals
    shown = ", ".join(f"{accuracy:.4f} of the {name} epoch" for name, accuracy in accuracies.items())
    measure = settings.measure.replace("_", " ")
    stored = f"; best.pt is the {chosen} epoch" * (len(models) > 1)
    print(f"validation {measure} with re-estimated BN statistics: {shown}{stored}")
    distributed.wait()  # until all have read it
    description, weights, scales = finished[chosen]
    result = {"accuracies": accuracies, "chosen": chosen}
    write_checkpoint(out / "best.pt", description, weights, scales=scales, reestimated=result)
    return result


@torch.no_grad()
def fold_into_scales(network, scales):
    """Fold BN in place where it follows a weight with one scale per channel; returns the new scales.

    scale' = float16(scale * gamma / sqrt(var + eps)), which can be negative. The codes do not change, and the
    bias is computed with the gain of the rounded scale'. `network` is a plain network with rounded weights.
    """
    scales, codes = dict(scales), {}
    for name, (bits, scale) in scales.items():
        codes[name] = quantize_symmetric(network.get_parameter(name), scale, bits)
    for layer, behind in foldable_pairs(network):
        name, norm = f"{layer}.weight", network.get_submodule(behind)
        if name in scales:
            bits, scale = scales[name]
            deviation = (norm.running_var.double() + norm.eps).sqrt()
            gain = scale.double() * norm.weight.double() / deviation
            folded = gain.clamp(-LARGEST, LARGEST).half().float()
            folded = torch.where(folded == 0, SMALLEST, folded)  # or the codes could not be found again
            norm.weight.copy_(folded.double() / scale.double() * deviation)
            scales[name] = bits, folded
    fold(network)
    for name, (_, scale) in scales.items():
        network.get_parameter(name).copy_(dequantize_symmetric(codes[name], scale))
    return scales
