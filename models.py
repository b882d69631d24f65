"""Every network of this collection, built by name, and the planner for what fits in a file.

    python models.py                                  # table: parameters, MACs, file bytes at 32/16/8 bits
    python models.py --only student --set widths=16,32,64,96,192,192,192,256
    python models.py --max-bytes 500000               # which networks fit another limit

`build(name, **arguments)` returns a freshly initialised network. A model file stores `name` and
`arguments`, so whatever is built here can be rebuilt from the file alone. The recipes and parameter
counts are those of NTU "Machine Learning 2020" homework 7 and of its students' reports; `residual6` is this project's own.
"""

import ast
import inspect
from dataclasses import dataclass, field
from typing import Callable

import torch
from torch import nn

from command_line import UserError, number, parser, run
from files import read_torch


def flat(*modules):
    """`nn.Sequential` of what is given, leaving out None."""
    return nn.Sequential(*(module for module in modules if module is not None))


def norm_act(channels, activation):
    return [nn.BatchNorm2d(channels), activation]


class Classifier(nn.Module):
    """A convolutional part `cnn`, flattened, and a classifier `fc` behind it: (N, C, H, W) -> logits (N, num_classes)."""

    def forward(self, images):
        return self.fc(self.cnn(images).flatten(1))


class DepthwiseNet(Classifier):
    """The course's StudentNet and its relatives: a 3x3 stem, then depthwise-pointwise blocks.

    A block is Conv 3x3 depthwise -> BN -> activation -> Conv 1x1, with nothing after the pointwise;
    max pooling closes the first four stages and global average pooling the last.

    widths: output channels of the stem and of every block (the family's only shape parameter).
    hidden: width of the two hidden layers of the classifier; 0 = one linear layer, as in the course.
    swish_from: first stage that uses swish in place of ReLU6 (None: ReLU6 everywhere).
    Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(self, widths, hidden=0, swish_from=None, num_classes=11, in_channels=3):
        super().__init__()

        def activation(stage):
            return nn.ReLU6() if swish_from is None or stage < swish_from else nn.SiLU()

        stages = [nn.Sequential(nn.Conv2d(in_channels, widths[0], 3, 1, 1), *norm_act(widths[0], activation(0)), nn.MaxPool2d(2))]
        for stage, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
            stages.append(flat(
                nn.Conv2d(before, before, 3, 1, 1, groups=before), *norm_act(before, activation(stage)),
                nn.Conv2d(before, after, 1), nn.MaxPool2d(2) if stage < 4 else None))
        self.cnn = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1))
        if hidden:
            self.fc = nn.Sequential(
                nn.Linear(widths[-1], hidden), nn.BatchNorm1d(hidden), nn.ReLU6(), nn.Dropout(0.4),
                nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.SiLU(), nn.Linear(hidden, num_classes))
        else:
            self.fc = nn.Sequential(nn.Linear(widths[-1], num_classes))


class PlainNet(Classifier):
    """The course's stages with ordinary 3x3 convolutions: what StudentNet would be uncompressed.

    widths: output channels of the stages (Conv -> BN -> ReLU6, the first four closed by max pooling).
    hidden: width of the classifier's hidden layer.
    Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(self, widths, hidden, num_classes=11, in_channels=3):
        super().__init__()
        stages = []
        for stage, (before, after) in enumerate(zip([in_channels, *widths], widths)):
            stages.append(flat(nn.Conv2d(before, after, 3, 1, 1), *norm_act(after, nn.ReLU6()),
                               nn.MaxPool2d(2) if stage < 4 else None))
        self.cnn = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Linear(widths[-1], hidden), nn.ReLU6(), nn.Linear(hidden, num_classes))


class SmallCNN(Classifier):
    """The 64-pixel networks of the "1 MB" question: ordinary convolutions, then separable blocks.

    convs: output channels of the ordinary Conv 3x3 -> BN -> ReLU layers.
    separable: output channels of the Conv 3x3 grouped -> BN -> ReLU -> Conv 1x1 blocks that follow.
    pool_after: indices, counted over both lists, of the layers closed by 2x2 max pooling.
    group_width: input channels per group in the separable blocks (1 = depthwise; 0 = a single group).
    hidden: width of the "1 MB head" with its two dropouts; 0 = one linear layer.
    The classifier sees 4x4 positions; at 64 px that is the feature map itself, at other sizes it is
    averaged to 4x4. Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(self, convs, separable=(), pool_after=(1, 3, 5, 6), group_width=1, hidden=128, num_classes=11, in_channels=3):
        super().__init__()
        layers, before = [], in_channels
        for index, after in enumerate([*convs, *separable]):
            if index < len(convs):
                layer = [nn.Conv2d(before, after, 3, 1, 1), *norm_act(after, nn.ReLU())]
            else:
                groups = before // group_width if group_width else 1
                layer = [nn.Conv2d(before, before, 3, 1, 1, groups=groups), *norm_act(before, nn.ReLU()), nn.Conv2d(before, after, 1)]
            layers.append(flat(*layer, nn.MaxPool2d(2) if index in pool_after else None))
            before = after
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4))
        if hidden:
            self.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(16 * before, hidden), nn.ReLU(),
                                    nn.Dropout(0.5), nn.Linear(hidden, num_classes))
        else:
            self.fc = nn.Sequential(nn.Linear(16 * before, num_classes))


class FaceCNN(Classifier):
    """`fer_cnn`, the large network of the 2019 facial-expression homework (48x48 grey input).

    widths: channels of the three double-convolution stages. hidden: widths of the two hidden layers.
    Input (N, in_channels, 48, 48); output logits (N, num_classes).
    """

    def __init__(self, widths=(64, 128, 256), hidden=(1024, 512), num_classes=7, in_channels=1):
        super().__init__()
        layers, before = [], in_channels
        for stage, width in enumerate(widths):
            first = nn.Conv2d(before, width, 4, 2, 1) if stage == 0 else nn.Conv2d(before, width, 3, 1, 1)
            layers += [first, *norm_act(width, nn.LeakyReLU(0.2)),
                       nn.Conv2d(width, width, 3, 1, 1), *norm_act(width, nn.LeakyReLU(0.2)), nn.MaxPool2d(2), nn.Dropout2d(0.25)]
            before = width
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3))
        layers, before = [], 9 * before
        for width in hidden:
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2), nn.Dropout(0.5)]
            before = width
        self.fc = nn.Sequential(*layers, nn.Linear(before, num_classes))


class FaceMobileNet(Classifier):
    """`fer_mobilenet`, MobileNet v1 (Howard et al. 2017) at 48x48 grey input; no convolution has a bias.

    widths: channels of the stem and of every depthwise-separable block. strides: the blocks' strides.
    dropouts: dropout after the stem and after every block.
    Input (N, in_channels, H, W); output logits (N, num_classes).
    """

    def __init__(self, widths=(32, 32, 64, 64, 100, 120, 480), strides=(1, 1, 1, 2, 2, 2),
                 dropouts=(0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.0), num_classes=7, in_channels=1):
        super().__init__()
        if not len(widths) == len(dropouts) == len(strides) + 1:
            raise UserError(f"widths and dropouts must be equally long and strides one shorter, not {len(widths)}, {len(dropouts)} and {len(strides)}")
        layers = [nn.Conv2d(in_channels, widths[0], 3, 2, 1, bias=False), *norm_act(widths[0], nn.ReLU()), nn.Dropout(dropouts[0])]
        for before, after, stride, dropout in zip(widths, widths[1:], strides, dropouts[1:]):
            layers.append(flat(
                nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), *norm_act(before, nn.ReLU()),
                nn.Conv2d(before, after, 1, bias=False), *norm_act(after, nn.ReLU()),
                nn.Dropout(dropout) if dropout else None))
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(widths[-1], num_classes)


class InvertedResidual(nn.Module):
    """[Pool 2x2 ->] expand 1x1 -> depthwise 3x3 -> project 1x1, BN after each, residual when the shape allows.

    Sandler et al. 2018, "MobileNetV2", with one change: where the resolution halves, average pooling
    comes first in place of a strided depthwise convolution, so that the expanded channels never exist
    at the higher resolution. `hidden` is the number of expanded channels.
    """

    def __init__(self, before, hidden, after, pool):
        super().__init__()
        self.residual = not pool and before == after
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()
        self.expand = nn.Sequential(nn.Conv2d(before, hidden, 1, bias=False), *norm_act(hidden, nn.Hardswish()))
        self.depthwise = nn.Sequential(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), *norm_act(hidden, nn.Hardswish()))
        self.project = nn.Sequential(nn.Conv2d(hidden, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, features):
        projected = self.project(self.depthwise(self.expand(self.pool(features))))
        return features + projected if self.residual else projected


class ResidualNet(nn.Module):
    """Our own network for the 300,000-byte budget: inverted residuals behind a strided stem.

    What the course's StudentNet lacks, by the students' own reports and ours: BN and an activation
    wherever channels are mixed, residual connections, and an early stride: StudentNet spends its first
    stage at full resolution.

    stem: channels of the 3x3 stride-2 convolutions. widths, hidden, pools: output channels, expanded
    channels and whether the resolution halves, for every block. head: channels before the global
    average pooling.
    Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(self, stem, widths, hidden, pools, head, dropout=0.1, num_classes=11, in_channels=3):
        super().__init__()
        if not len(widths) == len(hidden) == len(pools):
            raise UserError(f"widths, hidden and pools must be equally long, not {len(widths)}, {len(hidden)} and {len(pools)}")
        layers, before = [], in_channels
        for width in stem:
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), *norm_act(width, nn.Hardswish())]
            before = width
        self.stem = nn.Sequential(*layers)
        blocks = []
        for width, expanded, pool in zip(widths, hidden, pools):
            blocks.append(InvertedResidual(before, expanded, width, pool))
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(before, head, 1, bias=False), *norm_act(head, nn.Hardswish()), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))

    def forward(self, images):
        return self.fc(self.head(self.blocks(self.stem(images))).flatten(1))


def resnet18(num_classes=11, in_channels=3):
    """torchvision's ResNet-18 without pre-trained weights (He et al. 2015): the course's teacher."""
    from torchvision.models import resnet18 as torchvision_resnet18  # imported here: it would double the start-up time of inference

    network = torchvision_resnet18(num_classes=num_classes)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    return network


@dataclass(frozen=True)
class Architecture:
    """A row of the table: what builds the network, with which arguments, for which input size in pixels."""

    network: Callable
    size: int
    origin: str
    arguments: dict = field(default_factory=dict)


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
    "residual6": Architecture(ResidualNet, 128, "ours", {
        "stem": (16, 32), "widths": (64, 64, 64, 104, 104, 104), "hidden": (96, 160, 160, 256, 304, 304),
        "pools": (1, 0, 0, 1, 0, 0), "head": 256}),
}


def build(name, **arguments):
    """A freshly initialised network of the table, its arguments overridden by those given.

    Every network takes `num_classes` and `in_channels`; a family takes its widths too (see its class).
    Raises UserError for an unknown name or argument and for a shape that cannot be built.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"there is no network {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    known = inspect.signature(architecture.network).parameters
    for argument, value in arguments.items():
        if argument not in known:
            raise UserError(f"{name} has no argument {argument!r}; it takes {', '.join(known)}")
        if argument in ("num_classes", "in_channels") and (type(value) is not int or value < 1):
            raise UserError(f"{name} cannot be built with {argument}={str(value)[:50]}: it must be a whole number above 0")
        values = value if isinstance(value, (list, tuple)) else [value]
        if len(values) > 1000 or not all(isinstance(one, (int, float, type(None))) and 0 <= (one or 0) <= 100_000 for one in values):
            raise UserError(f"{name} cannot be built with this {argument}: it must be a number or list of at most 1000 numbers from 0 to 100,000")
    try:
        network = architecture.network(**{**architecture.arguments, **arguments})
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError) as error:
        raise UserError(f"{name} cannot be built with {arguments} ({error}); mend the arguments") from None
    if not all(parameter.numel() for parameter in network.parameters()):
        raise UserError(f"{name} cannot be built with {arguments}: a layer would be empty; mend the arguments")
    return network


def count_parameters(network):
    """Trainable parameters: weights, biases, BN gamma and beta, but no BN statistics."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(name, size=None, **arguments):
    """Multiply-accumulates of one forward pass at `size` pixels (the table's size by default), batch 1."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):  # shapes only: no memory, no arithmetic
        network = build(name, **arguments).eval()
        channels = next(module for module in network.modules() if isinstance(module, nn.Conv2d)).in_channels
        images = torch.empty(1, channels, *[size or ARCHITECTURES[name].size] * 2)
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


def load_teacher(path):
    """A ResNet-18 in eval mode from a `state_dict` file, as the course provides its teachers.

    Takes legacy and zip streams of torch.save, fp16 or fp32, with or without a `module.` prefix; the
    number of classes and input channels is read from the tensors. Its input is RGB in [0, 1] without
    normalisation. Raises UserError if the file is anything else.
    """
    state = read_torch(path, "teacher file")
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise UserError(f"{path} holds no plain state_dict; a teacher is the state_dict of torchvision's ResNet-18")
    state = {key.removeprefix("module."): value.float() if value.is_floating_point() else value for key, value in state.items()}
    if any(name not in state or state[name].ndim != dimensions or 0 in state[name].shape for name, dimensions in (("conv1.weight", 4), ("fc.weight", 2))):
        raise UserError(f"{path} is not a ResNet-18: it has no conv1.weight and fc.weight; a teacher is the state_dict of torchvision's ResNet-18")
    teacher = build("resnet18", num_classes=len(state["fc.weight"]), in_channels=state["conv1.weight"].shape[1])
    try:
        teacher.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n\t")[1:2]).strip()[:150]
        raise UserError(f"{path} is not a ResNet-18 ({detail}); a teacher is the state_dict of torchvision's ResNet-18") from None
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise UserError(f"{path} holds values that are not finite; use an undamaged teacher file")
    return teacher.eval()


def plan(name, **arguments):
    """One row of the planner: name, input size, parameters, MACs and model file bytes by bits per value."""
    from model_file import Description, encode, to_bytes
    from preprocessing import Preprocessing

    network = build(name, **arguments)
    size = ARCHITECTURES[name].size
    classes = inspect.signature(ARCHITECTURES[name].network).parameters["num_classes"].default
    description = Description.of(name, arguments, [f"class {i}" for i in range(arguments.get("num_classes", classes))], Preprocessing(size))
    return {"name": name, "input": size, "parameters": count_parameters(network), "macs": count_macs(name, **arguments),
            "bytes": {bits: len(to_bytes(encode(description, network.state_dict(), bits))) for bits in (32, 16, 8)}}


def parse_arguments(settings):
    """`--set` options as keyword arguments of `build`: ["widths=16,32,64"] -> {"widths": (16, 32, 64)}."""
    arguments = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise UserError(f"--set {setting} is not ARG=VALUE with a number or a list of numbers; write e.g. --set widths=16,32,64") from None
    return arguments


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--only", metavar="NAME", help="show this network alone")
    options.add_argument("--set", metavar="ARG=VALUE", action="append", default=[], help="an argument of the network, e.g. widths=16,32,64 or num_classes=5")
    options.add_argument("--max-bytes", type=number(int, 1), default=300_000, metavar="N", help="mark what fits in a file of N bytes")
    options = options.parse_args(argv)
    arguments = parse_arguments(options.set)
    if arguments and not options.only:
        raise UserError("--set changes one network; name it with --only")

    rows = [plan(name, **arguments) for name in ([options.only] if options.only else ARCHITECTURES)]
    print(f"{'network':15}{'input':>6}{'parameters':>13}{'MACs':>16}{'bytes, 32 bits':>16}{'16 bits':>13}{'8 bits':>13}   * = fits in {options.max_bytes:,}")
    for row in rows:
        sizes = "".join(f"{size:>{width},}{'*' if size <= options.max_bytes else ' '}" for size, width in zip(row["bytes"].values(), (15, 12, 12)))
        print(f"{row['name']:15}{row['input']:>6}{row['parameters']:>13,}{row['macs']:>16,}{sizes}")
    return 0


if __name__ == "__main__":
    run(main)
