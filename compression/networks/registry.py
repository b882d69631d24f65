"""Every network by name: `build`, and what follows from a network's shapes: parameters, MACs, input sizes.

A family is one module of this package: its class, and ARCHITECTURES with the names, input sizes and arguments
of its networks. Every class takes `num_classes` and `in_channels` and maps images (N, in_channels, H, W) to
logits (N, num_classes). Its method `shape(arguments)` reads the widths of a pruned network: it returns the
arguments of `build` that pruning has changed; arguments: those before pruning.
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
ARCHITECTURES = {}
for _module in pkgutil.iter_modules(networks.__path__):
    if _module.name != "registry":
        _family = importlib.import_module(f"{networks.__name__}.{_module.name}")
        ARCHITECTURES |= getattr(_family, "ARCHITECTURES", {})


def full_arguments(name, /, **arguments):
    """All arguments that decide a network's shape: the given ones, the table's and the class's defaults.

    A file stores them, so that it does not depend on the table. Raises UserError for an unknown network.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"there is no network {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    known = inspect.signature(ARCHITECTURES[name].network).parameters.values()
    defaults = {one.name: one.default for one in known if one.default is not one.empty}
    return {**defaults, **ARCHITECTURES[name].arguments, **arguments}


def build(name, /, **arguments):
    """A newly initialised network of the table; the given arguments override the table's.

    Besides `num_classes`, `in_channels` and the shape arguments of its class, every network takes `ranks`,
    layer name -> rank: these layers are built in two factors (see lowrank.py); and `folded`: without the BNs
    that `folding.fold` removes. Raises UserError for an unknown name or argument and for a shape that cannot
    be built.
    """
    defaults, make = full_arguments(name), ARCHITECTURES[name].network
    ranks, folded = arguments.pop("ranks", None), arguments.pop("folded", False)
    refused = f"{name} cannot be built with"
    if not isinstance(folded, bool):
        raise UserError(f"{refused} folded={str(folded)[:50]}: it must be True or False")
    known = inspect.signature(make).parameters
    for argument, value in arguments.items():
        if argument not in known:
            raise UserError(f"{name} has no argument {argument!r}; it takes {', '.join(known)}")
        if argument in ("num_classes", "in_channels") and (type(value) is not int or value < 1):
            raise UserError(f"{refused} {argument}={str(value)[:50]}: it must be a whole number above 0")
        is_list = isinstance(value, (list, tuple))
        if isinstance(defaults.get(argument), tuple) and not is_list:
            raise UserError(
                f"{argument} is a list: write {argument}=16,32,64; a single number needs a comma behind it: "
                f"'{argument}=16,'"
            )
        values = value if is_list else [value]
        numbers = all(isinstance(one, (int, float, type(None))) and 0 <= (one or 0) <= 1e5 for one in values)
        if len(values) > MOST_LAYERS or not numbers:
            raise UserError(
                f"{refused} this {argument}: give at most {MOST_LAYERS} numbers from 0 to 100,000"
            )
    try:
        network = make(**{**defaults, **arguments})
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError) as error:
        raise UserError(f"{refused} {arguments} ({error}); change the arguments") from None
    if ranks:
        factorise(network, ranks)
    if not all(parameter.numel() for parameter in network.parameters()):
        raise UserError(f"{refused} {arguments}: a layer would be empty; change the arguments")
    return fold(network) if folded else network


def count_parameters(network):
    """Number of trainable parameters: weights, biases, BN gamma and beta, without BN statistics."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def pass_empty_photo(network, size):
    """Pass one empty photo of `size` pixels through a network and leave it in eval mode.

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
    """Raise UserError where photos of `size` pixels are too small for the network; leaves it in eval mode.

    A network that accepts 64 px accepts larger photos too. Otherwise it is tested on the meta device, which
    needs no memory and no arithmetic but two seconds to start.
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
            raise UserError(f"--set {setting} is not ARG=VALUE; write e.g. --set widths=16,32,64") from None
    return arguments
