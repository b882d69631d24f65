"""The course's StudentNet and its students' variants."""

from torch import nn

from compression.networks.layers import Architecture, Classifier, norm_act, sequential


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

        stages = [
            nn.Sequential(
                nn.Conv2d(in_channels, widths[0], 3, 1, 1),
                *norm_act(widths[0], activation(0)),
                nn.MaxPool2d(2),
            )
        ]
        for stage, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
            stages.append(
                sequential(
                    nn.Conv2d(before, before, 3, 1, 1, groups=before),
                    *norm_act(before, activation(stage)),
                    nn.Conv2d(before, after, 1),
                    nn.MaxPool2d(2) if stage < 4 else None,
                )
            )
        self.cnn = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1))
        if hidden:
            first, second = hidden if isinstance(hidden, (list, tuple)) else (hidden, hidden)
            self.fc = nn.Sequential(
                nn.Linear(widths[-1], first),
                nn.BatchNorm1d(first),
                nn.ReLU6(),
                nn.Dropout(0.4),
                nn.Linear(first, second),
                nn.BatchNorm1d(second),
                nn.SiLU(),
                nn.Linear(second, num_classes),
            )
        else:
            self.fc = nn.Sequential(nn.Linear(widths[-1], num_classes))


ARCHITECTURES = {
    "student": Architecture(DepthwiseNet, 256, "course", {"widths": (16, 32, 64, 128, 256, 256, 256, 256)}),
    "deep13": Architecture(
        DepthwiseNet,
        192,
        "student report",
        {"widths": (16, 32, 32, 64, 64, 64, 64, *[128] * 7), "hidden": 160, "swish_from": 5},
    ),
    "wide8": Architecture(
        DepthwiseNet,
        192,
        "student report",
        {"widths": (24, 48, 96, 96, 192, 192, 192, 192), "hidden": 128, "swish_from": 5},
    ),
    "slim9": Architecture(
        DepthwiseNet,
        192,
        "student report",
        {"widths": (19, 38, 76, 76, 76, 152, 152, 152, 152), "hidden": 128, "swish_from": 5},
    ),
}
