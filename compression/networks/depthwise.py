"""The course's StudentNet and its students' variants."""

from torch import nn

from compression.networks.layers import Architecture, Classifier, conv_norm, outputs


class DepthwiseNet(Classifier):
    """The course's StudentNet and its variants: a 3x3 stem, then depthwise-pointwise blocks.

    A block is Conv 3x3 depthwise -> BN -> activation -> Conv 1x1, without BN or activation at its end. The
    first four stages end with max pooling, the last with global average pooling.

    widths: output channels of the stem and of every block (the family's only shape parameter).
    hidden: width of the two hidden layers of the classifier, or a pair of widths; 0 = one linear layer, as in
    the course. swish_from: first stage that uses swish instead of ReLU6 (None: ReLU6 everywhere). Input (N,
    in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(self, widths, hidden=0, swish_from=None, num_classes=11, in_channels=3):
        super().__init__()

        def activation(stage):
            return nn.ReLU6() if swish_from is None or stage < swish_from else nn.SiLU()

        stem = conv_norm(in_channels, widths[0], 3, activation=activation(0), bias=True)
        stages = [nn.Sequential(*stem, nn.MaxPool2d(2))]
        for stage, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
            depthwise = conv_norm(before, before, 3, activation=activation(stage), groups=before, bias=True)
            pool = [nn.MaxPool2d(2)] if stage < 4 else []
            stages.append(nn.Sequential(*depthwise, nn.Conv2d(before, after, 1), *pool))
        self.cnn = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1))
        layers, before = [], widths[-1]
        if hidden:
            first, second = hidden if isinstance(hidden, (list, tuple)) else (hidden, hidden)
            layers += [nn.Linear(before, first), nn.BatchNorm1d(first), nn.ReLU6(), nn.Dropout(0.4)]
            layers += [nn.Linear(first, second), nn.BatchNorm1d(second), nn.SiLU()]
            before = second
        self.fc = nn.Sequential(*layers, nn.Linear(before, num_classes))

    def shape(self, arguments):
        widths = [outputs(self.cnn[0][0]), *(outputs(stage[3]) for stage in self.cnn[1:-1])]
        if not arguments["hidden"]:
            return {"widths": widths}
        first, second = outputs(self.fc[0]), outputs(self.fc[4])
        return {"widths": widths, "hidden": first if first == second else [first, second]}


SWISH = {"hidden": 128, "swish_from": 5}
ARCHITECTURES = {
    "student": Architecture(DepthwiseNet, 256, widths=(16, 32, 64, 128, 256, 256, 256, 256)),
    # from students' reports
    "deep13": Architecture(
        DepthwiseNet, 192, widths=(16, 32, 32, *[64] * 4, *[128] * 7), hidden=160, swish_from=5
    ),
    "wide8": Architecture(DepthwiseNet, 192, widths=(24, 48, 96, 96, 192, 192, 192, 192), **SWISH),
    "slim9": Architecture(DepthwiseNet, 192, widths=(19, 38, 76, 76, 76, 152, 152, 152, 152), **SWISH),
}
