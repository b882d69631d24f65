"""The networks of the 2019 homework on facial expressions: 48x48 grey input."""

from torch import nn

from compression.command_line import UserError
from compression.networks.layers import Architecture, Classifier, norm_act, sequential


class FaceCNN(Classifier):
    """`fer_cnn`, the large network of the 2019 facial-expression homework (48x48 grey input).

    widths: channels of the three double-convolution stages. inner: channels between the two convolutions
    of every stage (None: as widths). hidden: widths of the two hidden layers.
    Input (N, in_channels, 48, 48); output logits (N, num_classes).
    """

    def __init__(self, widths=(64, 128, 256), hidden=(1024, 512), inner=None, num_classes=7, in_channels=1):
        super().__init__()
        if inner is not None and len(inner) != len(widths):
            raise UserError(f"inner and widths need the same length, not {len(inner)} and {len(widths)}")
        layers, before = [], in_channels
        for stage, (between, width) in enumerate(zip(inner or widths, widths)):
            first = nn.Conv2d(before, between, 4, 2, 1) if stage == 0 else nn.Conv2d(before, between, 3, 1, 1)
            layers += [
                first,
                *norm_act(between, nn.LeakyReLU(0.2)),
                nn.Conv2d(between, width, 3, 1, 1),
                *norm_act(width, nn.LeakyReLU(0.2)),
                nn.MaxPool2d(2),
                nn.Dropout2d(0.25),
            ]
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

    def __init__(
        self,
        widths=(32, 32, 64, 64, 100, 120, 480),
        strides=(1, 1, 1, 2, 2, 2),
        dropouts=(0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.0),
        num_classes=7,
        in_channels=1,
    ):
        super().__init__()
        if not len(widths) == len(dropouts) == len(strides) + 1:
            raise UserError(
                "widths and dropouts need the same length, and strides one entry less, "
                f"not {len(widths)}, {len(dropouts)} and {len(strides)}"
            )
        layers = [
            nn.Conv2d(in_channels, widths[0], 3, 2, 1, bias=False),
            *norm_act(widths[0], nn.ReLU()),
            nn.Dropout(dropouts[0]),
        ]
        for before, after, stride, dropout in zip(widths, widths[1:], strides, dropouts[1:]):
            layers.append(
                sequential(
                    nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False),
                    *norm_act(before, nn.ReLU()),
                    nn.Conv2d(before, after, 1, bias=False),
                    *norm_act(after, nn.ReLU()),
                    nn.Dropout(dropout) if dropout else None,
                )
            )
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(widths[-1], num_classes)


ARCHITECTURES = {
    "fer_cnn": Architecture(FaceCNN, 48, "2019 homework"),
    "fer_mobilenet": Architecture(FaceMobileNet, 48, "2019 homework"),
}
