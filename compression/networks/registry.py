"""Every network by name: `build`, and what follows from a network's shapes: parameters, MACs, input sizes.

A family is one module of this package: its class, and ARCHITECTURES with the names, input sizes and arguments
of its networks. Every class takes `num_classes` and `in_channels` and maps images (N, in_channels, H, W) to
logits (N, num_classes). The origins "course", "teacher" and "student report" refer to NTU "Machine Learning
2020" homework 7.
"""

import ast
import copy
import importlib
import inspect
import pkgutil

import torch
from torch import nn

from compression import networks
from compression.command_line import UserError
from compression.networks.lowrank import factorise
from compression.quantization.folding import fold

MOST_LAYERS = 100  # in a list of widths: refusing a file with very long lists would take seconds
_MODULES = [
    importlib.import_module(f"{networks.__name__}.{module.name}")
    for module in pkgutil.iter_modules(networks.__path__)
    if module.name != "registry"
]
ARCHITECTURES = {
    name: architecture
    for module in _MODULES
    for name, architecture in getattr(module, "ARCHITECTURES", {}).items()
}


def full_arguments(name, /, **arguments):
    """All arguments that decide the shape of a network: the class's defaults, overridden by the table's and
    those by the given ones.

    A file stores them, so that it does not depend on the table. Raises UserError for an unknown network.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"there is no network {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    parameters = inspect.signature(ARCHITECTURES[name].network).parameters.items()
    defaults = {
        key: parameter.default
        for key, parameter in parameters
        if parameter.default is not inspect.Parameter.empty
    }
    return {**defaults, **ARCHITECTURES[name].arguments, **arguments}


def build(name, /, **arguments):
    """A newly initialised network of the table; the given arguments override the table's.

    Every network takes `num_classes` and `in_channels`, and the shape arguments of its class. Every network
    also takes `ranks`, layer name -> rank: these layers are built in two factors (see lowrank.py); and
    `folded`: without the BNs that `folding.fold` removes. Raises UserError for an unknown name or argument
    and for a shape that cannot be built.
    """
    defaults, make, folded = full_arguments(name), ARCHITECTURES[name].network, arguments.pop("folded", False)
    if not isinstance(folded, bool):
        raise UserError(f"{name} cannot be built with folded={str(folded)[:50]}: it must be True or False")
    known = inspect.signature(make).parameters
    ranks = arguments.pop("ranks", None)
    for argument, value in arguments.items():
        if argument not in known:
            raise UserError(f"{name} has no argument {argument!r}; it takes {', '.join(known)}")
        if argument in ("num_classes", "in_channels") and (type(value) is not int or value < 1):
            raise UserError(
                f"{name} cannot be built with {argument}={str(value)[:50]}: it must be a whole number above 0"
            )
        values = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(defaults.get(argument), tuple) and not isinstance(value, (list, tuple)):
            raise UserError(
                f"{name} takes a list for {argument}; write e.g. {argument}=16,32,64, and a single number "
                "with a comma after it: 16,"
            )
        if len(values) > MOST_LAYERS or not all(
            isinstance(one, (int, float, type(None))) and 0 <= (one or 0) <= 100_000 for one in values
        ):
            raise UserError(
                f"{name} cannot be built with this {argument}: "
                f"it must be a number or list of at most {MOST_LAYERS} numbers from 0 to 100,000"
            )
    try:
        network = make(**{**defaults, **arguments})
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError) as error:
        raise UserError(f"{name} cannot be built with {arguments} ({error}); change the arguments") from None
    if ranks:
        factorise(network, ranks)
    if not all(parameter.numel() for parameter in network.parameters()):
        raise UserError(
            f"{name} cannot be built with {arguments}: a layer would be empty; change the arguments"
        )
    return fold(network) if folded else network


def count_parameters(network):
    """Number of trainable parameters: weights, biases, BN gamma and beta, without BN statistics."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def pass_empty_photo(network, size):
    """Pass one empty photo of `size` pixels through a network and leave it in eval mode; on the meta device
    this needs no memory and no arithmetic.

    Raises UserError where the photo becomes too small for a layer.
    """
    channels = next(module for module in network.modules() if isinstance(module, nn.Conv2d)).in_channels
    try:
        network.eval()(torch.zeros(1, channels, size, size, device=next(network.parameters()).device))
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        reason = str(error).partition("\n")[0][:150]
        raise UserError(
            f"the network cannot take photos of {size} px ({reason}); "
            "use larger photos, or a network with less downsampling"
        ) from None


def check_size(network, size):
    """Raise UserError where photos of `size` pixels become too small for a layer of the network; leaves it in
    eval mode.

    A network that accepts 64 px accepts larger photos too. Otherwise it is tested on the meta device, which
    needs two seconds to start.
    """
    try:
        pass_empty_photo(network, min(size, 64))
    except UserError:
        if size <= 64:
            raise
        pass_empty_photo(copy.deepcopy(network).to("meta"), size)


def count_macs(name, size=None, **arguments):
    """Multiply-accumulates of one forward pass at `size` pixels (the table's size by default), batch 1."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = build(name, **arguments)
    with FlopCounterMode(display=False) as counter:
        pass_empty_photo(network, size or ARCHITECTURES[name].size)
    return counter.get_total_flops() // 2


def parse_arguments(settings):
    """`--set` options as keyword arguments of `build`: ["widths=16,32,64"] -> {"widths": (16, 32, 64)}."""
    arguments = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            arguments[key] = ast.literal_eval(value)
        # every exception of literal_eval
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise UserError(
                f"--set {setting} is not ARG=VALUE with a number or a list of numbers; "
                "write e.g. --set widths=16,32,64"
            ) from None
    return arguments
