"""Every network of this collection, built by name, and the planner for what fits in a file.

    python models.py                                  # table: parameters, MACs, file bytes at 16/8/6/4 bits
    python models.py --only student --set widths=16,32,64,96,192,192,192,256
    python models.py --max-bytes 500000               # which networks fit another limit

`build(name, **arguments)` returns a freshly initialised network. A model file stores `name` and
`arguments`, so whatever is built here can be rebuilt from the file alone. The recipes and parameter
counts are those of NTU "Machine Learning 2020" homework 7 and of its students' reports; `residual6` is this project's own.
"""

import ast
import copy
import inspect
from dataclasses import dataclass, field, replace
from typing import Callable

import torch
from torch import nn

from command_line import UserError, number, parser, run
from folding import fold
from lowrank import factorise
from networks import DepthwiseNet, FaceCNN, FaceMobileNet, MobileNetV2, PlainNet, ResidualNet, SmallCNN, resnet18


@dataclass(frozen=True)
class Architecture:
    """A row of the table: what builds the network, with which arguments, for which input size in pixels."""

    network: Callable
    size: int
    origin: str
    arguments: dict = field(default_factory=dict)


MOST_LAYERS = 100  # of a list of widths: a file that asks for more would take seconds to refuse
_SMALL_CONVS = (16, 16, 32, 32)
ARCHITECTURES = {
    "student": Architecture(DepthwiseNet, 256, "course", {"widths": (16, 32, 64, 128, 256, 256, 256, 256)}),
    "deep13": Architecture(DepthwiseNet, 192, "student report", {
        "widths": (16, 32, 32, 64, 64, 64, 64, *[128] * 7), "hidden": 160, "swish_from": 5}),
    "wide8": Architecture(DepthwiseNet, 192, "student report", {
        "widths": (24, 48, 96, 96, 192, 192, 192, 192), "hidden": 128, "swish_from": 5}),
    "slim9": Architecture(DepthwiseNet, 192, "student report", {
        "widths": (19, 38, 76, 76, 76, 152, 152, 152, 152), "hidden": 128, "swish_from": 5}),
    "resnet18": Architecture(resnet18, 224, "teacher"),
    "plain_student": Architecture(PlainNet, 256, "student report", {"widths": (16, 32, 64, 128, 256, 256, 256, 256), "hidden": 256}),
    "cnn120k": Architecture(SmallCNN, 64, "student report", {"convs": (*_SMALL_CONVS, 64, 64, 64), "hidden": 0}),
    "cnn1mb": Architecture(SmallCNN, 64, "student report", {"convs": (*_SMALL_CONVS, 64, 64, 64)}),
    "dw1mb_3": Architecture(SmallCNN, 64, "student report", {"convs": _SMALL_CONVS, "separable": (64, 64, 64)}),
    "dw1mb_4": Architecture(SmallCNN, 64, "student report", {
        "convs": _SMALL_CONVS, "separable": (64, 64, 96, 96), "pool_after": (1, 3, 5, 7)}),
    "group1mb_3": Architecture(SmallCNN, 64, "student report", {"convs": _SMALL_CONVS, "separable": (64, 64, 64), "group_width": 2}),
    "group1mb_4": Architecture(SmallCNN, 64, "student report", {
        "convs": _SMALL_CONVS, "separable": (64, 64, 88, 88), "group_width": 8, "pool_after": (1, 3, 5, 7)}),
    "fer_cnn": Architecture(FaceCNN, 48, "2019 homework"),
    "fer_mobilenet": Architecture(FaceMobileNet, 48, "2019 homework"),
    # No file tells its strides: under these, the BN statistics that the peer's file stores agree best with those of photos.
    "mobilenet_v2": Architecture(MobileNetV2, 256, "peer's file", {
        "widths": (16, 32, 32, 64, 64, 128), "expansions": (1, 6, 6, 6, 6, 4), "strides": (2, 2, 1, 2, 1, 1)}),
    "residual6": Architecture(ResidualNet, 128, "ours", {
        "stem": (16, 32), "widths": (64, 64, 64, 104, 104, 104), "hidden": (96, 160, 160, 256, 304, 304),
        "pools": (1, 0, 0, 1, 0, 0), "head": 256}),
}


def full_arguments(name, /, **arguments):
    """All arguments that decide the shape of a network: the class's defaults, the table's, and those given, in this order.

    A file that stores them needs no table to be rebuilt. Raises UserError for an unknown network.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"there is no network {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    parameters = inspect.signature(ARCHITECTURES[name].network).parameters.items()
    defaults = {key: parameter.default for key, parameter in parameters if parameter.default is not inspect.Parameter.empty}
    return {**defaults, **ARCHITECTURES[name].arguments, **arguments}


def build(name, /, **arguments):
    """A freshly initialised network of the table, its arguments overridden by those given.

    Every network takes `num_classes` and `in_channels`; a family takes its widths too (see its class).
    Every network also takes `ranks`, layer name -> rank: these layers are built in two factors (see lowrank.py);
    and `folded`: it comes without the BNs that `folding.fold` removes.
    Raises UserError for an unknown name or argument and for a shape that cannot be built.
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
            raise UserError(f"{name} cannot be built with {argument}={str(value)[:50]}: it must be a whole number above 0")
        values = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(defaults.get(argument), tuple) and not isinstance(value, (list, tuple)):
            raise UserError(f"{name} takes a list for {argument}; write e.g. {argument}=16,32,64, and a single number with a comma after it: 16,")
        if len(values) > MOST_LAYERS or not all(isinstance(one, (int, float, type(None))) and 0 <= (one or 0) <= 100_000 for one in values):
            raise UserError(f"{name} cannot be built with this {argument}: "
                            f"it must be a number or list of at most {MOST_LAYERS} numbers from 0 to 100,000")
    try:
        network = make(**{**defaults, **arguments})
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError) as error:
        raise UserError(f"{name} cannot be built with {arguments} ({error}); change the arguments") from None
    if ranks:
        factorise(network, ranks)
    if not all(parameter.numel() for parameter in network.parameters()):
        raise UserError(f"{name} cannot be built with {arguments}: a layer would be empty; change the arguments")
    return fold(network) if folded else network


def count_parameters(network):
    """Trainable parameters: weights, biases, BN gamma and beta, but no BN statistics."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def pass_empty_photo(network, size):
    """One photo of `size` pixels through a network, in eval mode from here on; on the meta device that takes no memory and no arithmetic.

    Raises UserError where the photo becomes too small for a layer.
    """
    channels = next(module for module in network.modules() if isinstance(module, nn.Conv2d)).in_channels
    try:
        network.eval()(torch.zeros(1, channels, size, size, device=next(network.parameters()).device))
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        reason = str(error).partition("\n")[0][:150]
        raise UserError(f"the network cannot take photos of {size} px ({reason}); "
                        "use larger photos, or a network that halves their size less often") from None


def check_size(network, size):
    """Raise UserError where photos of `size` pixels become too small for a layer of the network, which is in eval mode from here on.

    A network that takes a photo of 64 px takes larger ones too. Only else the meta device is asked, which needs two seconds to start.
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


def plan(name, **arguments):
    """One row of the planner: name, input size, parameters, MACs and model file bytes by bits per weight.

    The bytes are those of a grid per channel, BN folded, packed to the bit; what entropy coding takes off a trained
    network (5 to 15 %) is not in them, since it depends on the weights.
    """
    from folding import foldable_pairs
    from model_file import Description, predicted_file_bytes
    from preprocessing import Preprocessing
    from quantization import Scheme

    with torch.device("meta"):
        network = build(name, **arguments)
    size = ARCHITECTURES[name].size
    classes = inspect.signature(ARCHITECTURES[name].network).parameters["num_classes"].default
    description = Description.of(name, arguments, [f"class {i}" for i in range(arguments.get("num_classes", classes))], Preprocessing(size))
    folded = replace(description, arguments={**description.arguments, **({"folded": True} if foldable_pairs(network) else {})})
    return {"name": name, "input": size, "parameters": count_parameters(network), "macs": count_macs(name, **arguments),
            "bytes": {bits: predicted_file_bytes(folded, Scheme(bits, "channel", "mse")) for bits in (16, 8, 6, 4)}}


def parse_arguments(settings):
    """`--set` options as keyword arguments of `build`: ["widths=16,32,64"] -> {"widths": (16, 32, 64)}."""
    arguments = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that literal_eval may raise
            raise UserError(f"--set {setting} is not ARG=VALUE with a number or a list of numbers; "
                            "write e.g. --set widths=16,32,64") from None
    return arguments


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--only", metavar="NAME", help="show this network alone")
    options.add_argument("--set", metavar="ARG=VALUE", action="append", default=[],
                         help="an argument of the network, e.g. widths=16,32,64 or num_classes=5")
    options.add_argument("--max-bytes", type=number(int, 1), default=300_000, metavar="N", help="mark what fits in a file of N bytes")
    options = options.parse_args(argv)
    arguments = parse_arguments(options.set)
    if arguments and not options.only:
        raise UserError("--set changes one network; name it with --only")

    rows = [plan(name, **arguments) for name in ([options.only] if options.only else ARCHITECTURES)]
    print(f"{'network':15}{'input':>6}{'parameters':>13}{'MACs':>16}"
          f"{'bytes, 16 bits':>16}{'8 bits':>13}{'6 bits':>13}{'4 bits':>13}   * = fits in {options.max_bytes:,}")
    for row in rows:
        sizes = "".join(f"{size:>{width},}{'*' if size <= options.max_bytes else ' '}"
                        for size, width in zip(row["bytes"].values(), (15, 12, 12, 12)))
        print(f"{row['name']:15}{row['input']:>6}{row['parameters']:>13,}{row['macs']:>16,}{sizes}")
    return 0


if __name__ == "__main__":
    run(main)
