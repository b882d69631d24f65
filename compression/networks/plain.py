"""Ordinary 3x3 convolutions, and the networks of the "1 MB" question."""

from torch import nn

from compression.networks.layers import Architecture, Classifier, conv_norm, outputs


class PlainNet(Classifier):
    """The course's stages with ordinary 3x3 convolutions instead of depthwise-pointwise blocks.

    widths: output channels of the stages (Conv -> BN -> ReLU6; the first four end with max pooling).
    hidden: width of the classifier's hidden layer.
    Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(self, widths, hidden, num_classes=11, in_channels=3):
        super().__init__()
        stages = []
        for stage, (before, after) in enumerate(zip([in_channels, *widths], widths)):
            pool = [nn.MaxPool2d(2)] if stage < 4 else []
            stages.append(
                nn.Sequential(*conv_norm(before, after, 3, activation=nn.ReLU6(), bias=True), *pool)
            )
        self.cnn = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Linear(widths[-1], hidden), nn.ReLU6(), nn.Linear(hidden, num_classes))

    def shape(self, arguments):
        return {"widths": [outputs(stage[0]) for stage in self.cnn[:-1]]}


class SmallCNN(Classifier):
    """The 64-pixel networks of the "1 MB" question: ordinary convolutions, then separable blocks.

    convs: output channels of the ordinary Conv 3x3 -> BN -> ReLU layers.
    separable: output channels of the Conv 3x3 grouped -> BN -> ReLU -> Conv 1x1 blocks that follow.
    pool_after: indices, counted over both lists, of the layers that end with 2x2 max pooling.
    group_width: input channels per group in the separable blocks (1 = depthwise; 0 = a single group).
    hidden: width of the "1 MB head" with its two dropouts; 0 = one linear layer.
    The classifier reads 4x4 positions; at 64 px that is the feature map itself, at other sizes it is
    averaged to 4x4. Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(
        self,
        convs,
        separable=(),
        pool_after=(1, 3, 5, 6),
        group_width=1,
        hidden=128,
        num_classes=11,
        in_channels=3,
    ):
        super().__init__()
        stages, before = [], in_channels
        widths = [*convs, *separable]
        for index, width in enumerate(widths):
            if index < len(convs):
                layers = conv_norm(before, width, 3, activation=nn.ReLU(), bias=True)
            else:
                groups = before // group_width if group_width else 1
                layers = conv_norm(before, before, 3, activation=nn.ReLU(), groups=groups, bias=True)
                layers.append(nn.Conv2d(before, width, 1))
            if index in pool_after:
                layers.append(nn.MaxPool2d(2))
            stages.append(nn.Sequential(*layers))
            before = width
        self.cnn = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(4))
        layers, before = [], 16 * widths[-1]
        if hidden:
            layers = [nn.Dropout(0.5), nn.Linear(before, hidden), nn.ReLU(), nn.Dropout(0.5)]
            before = hidden
        self.fc = nn.Sequential(*layers, nn.Linear(before, num_classes))

    def shape(self, arguments):
        ordinary, stages = len(arguments["convs"]), self.cnn[:-1]
        return {
            "convs": [outputs(stage[0]) for stage in stages[:ordinary]],
            "separable": [outputs(stage[3]) for stage in stages[ordinary:]],
        }


# all from students' reports
_CONVS, _BLOCKS = (16, 16, 32, 32), (64, 64, 64)
ARCHITECTURES = {
    "plain_student": Architecture(PlainNet, 256, widths=(16, 32, 64, 128, 256, 256, 256, 256), hidden=256),
    "cnn120k": Architecture(SmallCNN, 64, convs=(*_CONVS, *_BLOCKS), hidden=0),
    "cnn1mb": Architecture(SmallCNN, 64, convs=(*_CONVS, *_BLOCKS)),
    "dw1mb_3": Architecture(SmallCNN, 64, convs=_CONVS, separable=_BLOCKS),
    "dw1mb_4": Architecture(SmallCNN, 64, convs=_CONVS, separable=(64, 64, 96, 96), pool_after=(1, 3, 5, 7)),
    "group1mb_3": Architecture(SmallCNN, 64, convs=_CONVS, separable=_BLOCKS, group_width=2),
    "group1mb_4": Architecture(
        SmallCNN, 64, convs=_CONVS, separable=(64, 64, 88, 88), group_width=8, pool_after=(1, 3, 5, 7)
    ),
}
