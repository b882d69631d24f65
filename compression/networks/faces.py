"""The networks of the 2019 homework on facial expressions: 48x48 grey input."""

from torch import nn

from compression.command_line import UserError
from compression.networks.layers import Architecture, Classifier, check_lengths, conv_norm, outputs


class FaceCNN(Classifier):
    """`fer_cnn`, the large network of the 2019 facial-expression homework (48x48 grey input).

    widths: channels of the three double-convolution stages. inner: channels between the two convolutions
    of every stage (None: as widths). hidden: widths of the two hidden layers.
    Input (N, in_channels, 48, 48); output logits (N, num_classes).
    """

    def __init__(self, widths=(64, 128, 256), hidden=(1024, 512), inner=None, num_classes=7, in_channels=1):
        super().__init__()
        check_lengths(inner=inner, widths=widths)
        layers, before, kernel, stride = [], in_channels, 4, 2
        for between, width in zip(inner or widths, widths):
            layers += conv_norm(before, between, kernel, stride, nn.LeakyReLU(0.2), bias=True)
            layers += conv_norm(between, width, 3, activation=nn.LeakyReLU(0.2), bias=True)
            layers += [nn.MaxPool2d(2), nn.Dropout2d(0.25)]
            before, kernel, stride = width, 3, 1
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3))
        layers, before = [], 9 * widths[-1]
        for width in hidden:
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2), nn.Dropout(0.5)]
            before = width
        self.fc = nn.Sequential(*layers, nn.Linear(before, num_classes))

    def shape(self, arguments):
        return {
            "widths": [outputs(layer) for layer in self.cnn[3:-1:8]],
            "inner": [outputs(layer) for layer in self.cnn[:-1:8]],
            "hidden": [outputs(layer) for layer in self.fc[:-1:4]],
        }


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
                "widths and dropouts need one entry more than strides, for the stem, not "
                f"{len(widths)} and {len(dropouts)} with {len(strides)} strides; change one"
            )
        layers = conv_norm(in_channels, widths[0], 3, 2, nn.ReLU()) + [nn.Dropout(dropouts[0])]
        for before, after, stride, dropout in zip(widths, widths[1:], strides, dropouts[1:]):
            block = conv_norm(before, before, 3, stride, nn.ReLU(), groups=before)
            block += conv_norm(before, after, 1, activation=nn.ReLU())
            layers.append(nn.Sequential(*block, *([nn.Dropout(dropout)] if dropout else [])))
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(widths[-1], num_classes)

    def shape(self, arguments):
        return {"widths": [outputs(self.cnn[0]), *(outputs(block[3]) for block in self.cnn[4:-1])]}


ARCHITECTURES = {"fer_cnn": Architecture(FaceCNN, 48), "fer_mobilenet": Architecture(FaceMobileNet, 48)}
