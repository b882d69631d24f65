"""`residual6`, our own network: inverted residuals."""

from torch import nn

from compression.networks.layers import Architecture, check_lengths, check_residual, conv_norm, outputs


class InvertedResidual(nn.Module):
    """[Pool 2x2 ->] expand 1x1 -> depthwise 3x3 -> project 1x1, BN after each, optionally residual.

    Sandler et al. 2018, "MobileNetV2", with one change: where the resolution halves, the block starts with
    average pooling instead of using a strided depthwise convolution, so that the expanded channels are never
    computed at the higher resolution. `hidden` is the number of expanded channels.
    """

    def __init__(self, before, hidden, after, pool, residual):
        super().__init__()
        if residual:
            check_residual(before, after, pool)
        self.residual = residual
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()
        self.expand = nn.Sequential(*conv_norm(before, hidden, 1, activation=nn.Hardswish()))
        self.depthwise = nn.Sequential(
            *conv_norm(hidden, hidden, 3, activation=nn.Hardswish(), groups=hidden)
        )
        self.project = nn.Sequential(*conv_norm(hidden, after, 1))

    def forward(self, features):
        projected = self.project(self.depthwise(self.expand(self.pool(features))))
        return features + projected if self.residual else projected


class ResidualNet(nn.Module):
    """Our own network for the 300,000-byte limit: a strided stem, then inverted residuals.

    Unlike the course's StudentNet it has BN after every convolution, an activation after all but a block's
    last 1x1, residual connections and early downsampling: StudentNet computes its first stage at full
    resolution.

    stem: channels of the 3x3 stride-2 convolutions. widths, hidden, pools: output channels, expanded
    channels and whether the resolution halves, for every block. residual: whether a block adds its input
    to its output (None: wherever the shape allows; explicit in a pruned network, whose widths can be equal
    by chance). head: channels before the global average pooling.
    Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(
        self, stem, widths, hidden, pools, head, residual=None, dropout=0.1, num_classes=11, in_channels=3
    ):
        super().__init__()
        check_lengths(widths=widths, hidden=hidden, pools=pools, residual=residual)
        layers, before = [], in_channels
        for width in stem:
            layers += conv_norm(before, width, 3, 2, nn.Hardswish())
            before = width
        self.stem = nn.Sequential(*layers)
        blocks = []
        for index, (width, expanded, pool) in enumerate(zip(widths, hidden, pools)):
            adds = not pool and before == width if residual is None else bool(residual[index])
            blocks.append(InvertedResidual(before, expanded, width, pool, adds))
            before = width
        self.blocks = nn.Sequential(*blocks)
        last = conv_norm(before, head, 1, activation=nn.Hardswish())
        self.head = nn.Sequential(*last, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))

    def forward(self, images):
        return self.fc(self.head(self.blocks(self.stem(images))).flatten(1))

    def shape(self, arguments):
        return {
            "stem": [outputs(layer) for layer in self.stem[::3]],
            "widths": [outputs(block.project[0]) for block in self.blocks],
            "hidden": [outputs(block.expand[0]) for block in self.blocks],
            "residual": [int(block.residual) for block in self.blocks],
            "head": outputs(self.head[0]),
        }


ARCHITECTURES = {
    "residual6": Architecture(
        ResidualNet,
        128,
        stem=(16, 32),
        widths=(64, 64, 64, 104, 104, 104),
        hidden=(96, 160, 160, 256, 304, 304),
        pools=(1, 0, 0, 1, 0, 0),
        head=256,
    )
}
