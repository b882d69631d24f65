"""A small MobileNetV2, from a student's model file."""

from torch import nn

from compression.networks.layers import (
    Architecture,
    Classifier,
    check_lengths,
    check_residual,
    conv_norm,
    outputs,
)


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
        check_lengths(widths=widths, expansions=expansions, strides=strides, hidden=hidden, residual=residual)
        layers, before = conv_norm(in_channels, stem, 3, 2, nn.ReLU6()), stem
        for index, (width, expansion, stride) in enumerate(zip(widths, expansions, strides)):
            between = hidden[index] if hidden and expansion != 1 else expansion * before
            shortcut = residual[index] if residual else stride == 1 and before == width
            layers.append(StridedInvertedResidual(before, between, width, stride, expansion != 1, shortcut))
            before = width
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(before, num_classes))

    def shape(self, arguments):
        blocks = self.cnn[3:-1]
        return {
            "stem": outputs(self.cnn[0]),
            "widths": [outputs(block.conv[-2]) for block in blocks],
            "hidden": [outputs(block.conv[-5]) for block in blocks],
            "residual": [int(block.residual) for block in blocks],
        }


class StridedInvertedResidual(nn.Module):
    """[Expand 1x1 ->] depthwise 3x3 with the stride -> project 1x1, with ReLU6, as in MobileNetV2."""

    def __init__(self, before, hidden, after, stride, expand, residual):
        super().__init__()
        if residual:
            check_residual(before, after, stride != 1)
        self.residual = bool(residual)
        layers = conv_norm(before, hidden, 1, activation=nn.ReLU6()) if expand else []
        layers += conv_norm(hidden, hidden, 3, stride, nn.ReLU6(), groups=hidden)
        self.conv = nn.Sequential(*layers, *conv_norm(hidden, after, 1))

    def forward(self, features):
        return features + self.conv(features) if self.residual else self.conv(features)


# A file does not store the strides: with these, the BN statistics in the student's file match those measured
# on photos best.
_STRIDES = (2, 2, 1, 2, 1, 1)
ARCHITECTURES = {
    "mobilenet_v2": Architecture(
        MobileNetV2, 256, widths=(16, 32, 32, 64, 64, 128), expansions=(1, 6, 6, 6, 6, 4), strides=_STRIDES
    )
}
