"""A small MobileNetV2, from a student's model file."""

from torch import nn

from compression.command_line import UserError
from compression.networks.layers import Architecture, Classifier, norm_act


class MobileNetV2(Classifier):
    """torchvision's MobileNetV2 (Sandler et al. 2018) without its last 1x1 convolution and with fewer
    channels, as one student made it.

    stem: channels of the 3x3 stride-2 convolution. widths, expansions, strides: of every block, its output
    channels, expanded channels per input channel (1: no expansion) and stride. For pruned networks, hidden:
    the number of expanded channels; residual: which blocks are residual (default: every one whose shape
    allows it). Input (N, in_channels, H, W); output logits (N, num_classes).
    """

    def __init__(
        self, widths, expansions, strides, stem=32, hidden=None, residual=None, num_classes=11, in_channels=3
    ):
        super().__init__()
        if (
            not len(widths)
            == len(expansions)
            == len(strides)
            == len(hidden or widths)
            == len(residual or widths)
        ):
            raise UserError(
                f"widths, expansions, strides, hidden and residual need the same length, not {len(widths)}, "
                f"{len(expansions)}, {len(strides)}, {len(hidden or widths)} and {len(residual or widths)}"
            )
        layers, before = (
            [nn.Conv2d(in_channels, stem, 3, 2, 1, bias=False), *norm_act(stem, nn.ReLU6())],
            stem,
        )
        for index, (width, expansion, stride) in enumerate(zip(widths, expansions, strides)):
            between = before if expansion == 1 else hidden[index] if hidden else expansion * before
            shortcut = residual[index] if residual else stride == 1 and before == width
            layers.append(
                StridedInvertedResidual(
                    before, between, width, stride, expand=expansion != 1, residual=shortcut
                )
            )
            before = width
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(before, num_classes))


class StridedInvertedResidual(nn.Module):
    """[Expand 1x1 ->] depthwise 3x3 -> project 1x1 as in MobileNetV2: ReLU6, and stride in the depthwise
    convolution.
    """

    def __init__(self, before, hidden, after, stride, expand, residual):
        super().__init__()
        if residual and (before != after or stride != 1):
            raise UserError(
                f"a block from {before} to {after} channels with stride {stride} cannot be residual; change "
                "residual, strides or widths"
            )
        self.residual = bool(residual)
        self.conv = nn.Sequential(
            *([nn.Conv2d(before, hidden, 1, bias=False), *norm_act(hidden, nn.ReLU6())] if expand else []),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            *norm_act(hidden, nn.ReLU6()),
            nn.Conv2d(hidden, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, features):
        return features + self.conv(features) if self.residual else self.conv(features)


ARCHITECTURES = {
    # A file does not store the strides: with these, the BN statistics in the student's file match those
    # measured on photos best.
    "mobilenet_v2": Architecture(
        MobileNetV2,
        256,
        "peer's file",
        {
            "widths": (16, 32, 32, 64, 64, 128),
            "expansions": (1, 6, 6, 6, 6, 4),
            "strides": (2, 2, 1, 2, 1, 1),
        },
    )
}
