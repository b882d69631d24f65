"""Training from the weights of a file (`--init`): its network, with BN restored where it was folded, and a
new last layer for other classes.
"""

import contextlib
import os

import torch
from torch import nn

from compression.command_line import UserError, tell
from compression.data.classes import listed, match
from compression.files.loading import load_model
from compression.files.records import file_hash
from compression.quantization.folding import NORMS, foldable_pairs

CALIBRATION = 256  # photos to measure BN statistics on, where a file has none


def read_init(options):
    """The Model of `--init`, or None; sets --network, --size, resize and detail where they were not given,
    and --validation-share where the data has no validation photos of its own either.

    Raises UserError for a file that cannot be read, and for another --network or any --set.
    """
    if not options.init:
        options.network, options.size = options.network or "residual6", options.size or 128
        options.resize = options.resize or "crop"
        return None
    model = load_model(options.init)
    model.build()  # refuses weights that do not fit their architecture
    description = model.description
    if options.set or options.network not in (None, description.architecture):
        given = "--set" if options.set else f"--network {options.network}"
        fixed = f"--init {options.init}, which defines the network ({description.architecture})"
        raise UserError(f"{given} cannot be combined with {fixed}; leave it out")
    own = description.preprocessing
    options.network, options.size = description.architecture, options.size or own.size
    options.resize, options.detail = options.resize or own.resize, options.detail or own.detail
    if not os.path.exists(options.data / "validation"):
        options.validation_share = options.validation_share or description.validation_share
    return model


def arguments_of(model):
    """The arguments of a Model's network for other photos: without folded BN and without num_classes."""
    arguments = dict(model.description.arguments)
    for name in ("num_classes", "folded"):
        arguments.pop(name, None)
    return arguments


def origin_of_init(options, model):
    """The entries of a model file about `--init`."""
    if model is None:
        return {}
    before = model.description.training
    transductive = {"transductive": True} if before.get("transductive") else {}
    return {"init": file_hash(options.init), "before": before, **transductive}


@torch.no_grad()
def take_weights(network, model, training, preprocessing):
    """Copy the weights of a Model into a network of its architecture for the classes of the PhotoSet
    `training`.

    The rows of the last layer are reordered by class name; if the classes differ, that layer keeps its random
    initialisation. Folded BN is restored without changing the network's outputs in eval mode. Prints the
    number of copied tensors.
    """
    weights, taken, note = dict(model.state_dict), len(model.state_dict), ""
    names, theirs = training.class_names, model.description.class_names
    head = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    last_layer, order = (f"{head}.weight", f"{head}.bias"), None
    with contextlib.suppress(UserError):  # other classes
        if len(names) == len(theirs):
            order = list(match(names, "the photos", theirs, f"the file {model.path}", ""))
    if order:
        weights |= {name: weights[name][order] for name in last_layer}
    else:
        weights |= {name: network.state_dict()[name] for name in last_layer}
        taken -= len(last_layer)
        before = f"{len(theirs)} classes ({listed(theirs, 3)})"
        note = f"; the last layer, for {before}, is replaced by a new one for {len(names)}"
    folded = model.description.arguments.get("folded")
    network.load_state_dict(unfolded(weights, network) if folded else weights)
    if folded:
        sample = training.sample(CALIBRATION)
        photos, _ = sample.batch(torch.arange(len(sample)), torch.device("cpu"))
        calibrate(network, preprocessing.normalise(photos))
    tell(f"{taken} tensors copied from {model.path}{note}")


def unfolded(weights, network):
    """The `state_dict` of `network` for the same function as the folded weights: BN only adds the bias.

    gamma = sqrt(1 + eps) undoes the division by sqrt(running_var + eps) = sqrt(1 + eps).
    """
    weights = dict(weights)
    for layer, behind in foldable_pairs(network):
        bias = weights.pop(f"{layer}.bias")
        if network.get_submodule(layer).bias is not None:
            weights[f"{layer}.bias"] = torch.zeros_like(bias)
        gamma = (1 + network.get_submodule(behind).eps) ** 0.5
        weights |= {
            f"{behind}.weight": torch.full_like(bias, gamma),
            f"{behind}.bias": bias,
            f"{behind}.running_mean": torch.zeros_like(bias),
            f"{behind}.running_var": torch.ones_like(bias),
            f"{behind}.num_batches_tracked": torch.tensor(0),
        }
    return weights


@torch.no_grad()
def calibrate(network, images):
    """Set every BN's statistics to those of its input for `images`, and gamma and beta so that the outputs in
    eval mode do not change; in training mode BN then normalises by about the same statistics.
    """
    network.eval()

    def measure(norm, inputs):
        values = inputs[0].transpose(0, 1).flatten(1).double()
        mean, variance = values.mean(1), values.var(1, unbiased=False)
        gain = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        norm.bias += ((mean - norm.running_mean.double()) * gain).to(norm.bias.dtype)
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    network(images)
    for hook in hooks:
        hook.remove()
