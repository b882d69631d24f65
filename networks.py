"""The networks' building plans: one class per family, widths as parameters. models.py gives them names.

Every class takes `num_classes` and `in_channels`, maps images (N, in_channels, H, W) to logits
(N, num_classes), and uses BN wherever a recipe says so. "course" and "student reports" in the text are
those of NTU "Machine Learning 2020" homework 7.
"""

from torch import nn

from command_line import UserError


def sequential(*modules):
    """`nn.Sequential` of what is given, leaving out None."""
    return nn.Sequential(*(module for module in modules if module is not None))


def norm_act(channels, activation):
    """What follows a convolution: [BN, activation]."""
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
    hidden: width of the two hidden layers of the classifier, or a pair of widths; 0 = one linear layer, as in the course.
    swish_from: first stage that uses swish in place of ReLU6 (None: ReLU6 everywhere).
    Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(self, widths, hidden=0, swish_from=None, num_classes=11, in_channels=3):
        super().__init__()

        def activation(stage):
            return nn.ReLU6() if swish_from is None or stage < swish_from else nn.SiLU()

        stages = [nn.Sequential(nn.Conv2d(in_channels, widths[0], 3, 1, 1), *norm_act(widths[0], activation(0)), nn.MaxPool2d(2))]
        for stage, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
            stages.append(sequential(
                nn.Conv2d(before, before, 3, 1, 1, groups=before), *norm_act(before, activation(stage)),
                nn.Conv2d(before, after, 1), nn.MaxPool2d(2) if stage < 4 else None))
        self.cnn = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1))
        if hidden:
            first, second = hidden if isinstance(hidden, (list, tuple)) else (hidden, hidden)
            self.fc = nn.Sequential(
                nn.Linear(widths[-1], first), nn.BatchNorm1d(first), nn.ReLU6(), nn.Dropout(0.4),
                nn.Linear(first, second), nn.BatchNorm1d(second), nn.SiLU(), nn.Linear(second, num_classes))
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
            stages.append(sequential(nn.Conv2d(before, after, 3, 1, 1), *norm_act(after, nn.ReLU6()),
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
            layers.append(sequential(*layer, nn.MaxPool2d(2) if index in pool_after else None))
            before = after
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4))
        if hidden:
            self.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(16 * before, hidden), nn.ReLU(),
                                    nn.Dropout(0.5), nn.Linear(hidden, num_classes))
        else:
            self.fc = nn.Sequential(nn.Linear(16 * before, num_classes))


class FaceCNN(Classifier):
    """`fer_cnn`, the large network of the 2019 facial-expression homework (48x48 grey input).

    widths: channels of the three double-convolution stages. inner: channels between the two convolutions
    of every stage (None: as widths). hidden: widths of the two hidden layers.
    Input (N, in_channels, 48, 48); output logits (N, num_classes).
    """

    def __init__(self, widths=(64, 128, 256), hidden=(1024, 512), inner=None, num_classes=7, in_channels=1):
        super().__init__()
        if inner is not None and len(inner) != len(widths):
            raise UserError(f"inner and widths must be equally long, not {len(inner)} and {len(widths)}")
        layers, before = [], in_channels
        for stage, (between, width) in enumerate(zip(inner or widths, widths)):
            first = nn.Conv2d(before, between, 4, 2, 1) if stage == 0 else nn.Conv2d(before, between, 3, 1, 1)
            layers += [first, *norm_act(between, nn.LeakyReLU(0.2)),
                       nn.Conv2d(between, width, 3, 1, 1), *norm_act(width, nn.LeakyReLU(0.2)), nn.MaxPool2d(2), nn.Dropout2d(0.25)]
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
            raise UserError("widths and dropouts must be equally long and strides one shorter, "
                            f"not {len(widths)}, {len(dropouts)} and {len(strides)}")
        layers = [nn.Conv2d(in_channels, widths[0], 3, 2, 1, bias=False), *norm_act(widths[0], nn.ReLU()), nn.Dropout(dropouts[0])]
        for before, after, stride, dropout in zip(widths, widths[1:], strides, dropouts[1:]):
            layers.append(sequential(
                nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), *norm_act(before, nn.ReLU()),
                nn.Conv2d(before, after, 1, bias=False), *norm_act(after, nn.ReLU()),
                nn.Dropout(dropout) if dropout else None))
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(widths[-1], num_classes)


class InvertedResidual(nn.Module):
    """[Pool 2x2 ->] expand 1x1 -> depthwise 3x3 -> project 1x1, BN after each, residual if asked for.

    Sandler et al. 2018, "MobileNetV2", with one change: where the resolution halves, average pooling
    comes first in place of a strided depthwise convolution, so that the expanded channels never exist
    at the higher resolution. `hidden` is the number of expanded channels.
    """

    def __init__(self, before, hidden, after, pool, residual):
        super().__init__()
        if residual and (pool or before != after):
            raise UserError(f"a residual block cannot pool or go from {before} to {after} channels; change residual, pools or widths")
        self.residual = residual
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()
        self.expand = nn.Sequential(nn.Conv2d(before, hidden, 1, bias=False), *norm_act(hidden, nn.Hardswish()))
        self.depthwise = nn.Sequential(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), *norm_act(hidden, nn.Hardswish()))
        self.project = nn.Sequential(nn.Conv2d(hidden, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, features):
        projected = self.project(self.depthwise(self.expand(self.pool(features))))
        return features + projected if self.residual else projected


class ResidualNet(nn.Module):
    """Our own network for the 300,000-byte budget: inverted residuals behind a strided stem.

    What the course's StudentNet lacks, by the students' own reports and ours: BN wherever channels are
    mixed and an activation after all but a block's last 1x1, residual connections, and an early stride:
    StudentNet spends its first stage at full resolution.

    stem: channels of the 3x3 stride-2 convolutions. widths, hidden, pools: output channels, expanded
    channels and whether the resolution halves, for every block. residual: whether a block adds its input
    to its output (None: wherever the shape allows; explicit in a pruned network, whose widths may
    agree by accident). head: channels before the global average pooling.
    Input (N, in_channels, H, W) with H, W >= 16; output logits (N, num_classes).
    """

    def __init__(self, stem, widths, hidden, pools, head, residual=None, dropout=0.1, num_classes=11, in_channels=3):
        super().__init__()
        if not len(widths) == len(hidden) == len(pools) == len(pools if residual is None else residual):
            raise UserError(f"widths, hidden, pools and residual must be equally long, not {len(widths)}, {len(hidden)}, {len(pools)} and "
                            f"{'none' if residual is None else len(residual)}")
        layers, before = [], in_channels
        for width in stem:
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), *norm_act(width, nn.Hardswish())]
            before = width
        self.stem = nn.Sequential(*layers)
        blocks = []
        for index, (width, expanded, pool) in enumerate(zip(widths, hidden, pools)):
            adds = not pool and before == width if residual is None else bool(residual[index])
            blocks.append(InvertedResidual(before, expanded, width, pool, adds))
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(before, head, 1, bias=False), *norm_act(head, nn.Hardswish()), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))

    def forward(self, images):
        return self.fc(self.head(self.blocks(self.stem(images))).flatten(1))


class MobileNetV2(Classifier):
    """MobileNetV2 (Sandler et al. 2018) without its last 1x1 convolution, as one student shrank torchvision's.

    stem: channels of the 3x3 stride-2 convolution. widths, expansions, strides: of every block, its output channels,
    expanded channels per input channel (1: no expansion) and stride. What pruning changes: hidden, the expanded
    channels themselves, and residual, which blocks are; by default every one whose shape allows it.
    Input (N, in_channels, H, W); output logits (N, num_classes).
    """

    def __init__(self, widths, expansions, strides, stem=32, hidden=None, residual=None, num_classes=11, in_channels=3):
        super().__init__()
        if not len(widths) == len(expansions) == len(strides) == len(hidden or widths) == len(residual or widths):
            raise UserError(f"widths, expansions, strides, hidden and residual must be equally long, not {len(widths)}, "
                            f"{len(expansions)}, {len(strides)}, {len(hidden or widths)} and {len(residual or widths)}")
        layers, before = [nn.Conv2d(in_channels, stem, 3, 2, 1, bias=False), *norm_act(stem, nn.ReLU6())], stem
        for index, (width, expansion, stride) in enumerate(zip(widths, expansions, strides)):
            between = before if expansion == 1 else hidden[index] if hidden else expansion * before
            shortcut = residual[index] if residual else stride == 1 and before == width
            layers.append(StridedInvertedResidual(before, between, width, stride, expand=expansion != 1, residual=shortcut))
            before = width
        self.cnn = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(before, num_classes))


class StridedInvertedResidual(nn.Module):
    """[Expand 1x1 ->] depthwise 3x3 -> project 1x1 as MobileNetV2 has it: ReLU6, and a strided depthwise convolution."""

    def __init__(self, before, hidden, after, stride, expand, residual):
        super().__init__()
        if residual and (before != after or stride != 1):
            raise UserError(f"a block from {before} to {after} channels with stride {stride} cannot be residual; change residual, strides or widths")
        self.residual = bool(residual)
        self.conv = nn.Sequential(
            *([nn.Conv2d(before, hidden, 1, bias=False), *norm_act(hidden, nn.ReLU6())] if expand else []),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), *norm_act(hidden, nn.ReLU6()),
            nn.Conv2d(hidden, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, features):
        return features + self.conv(features) if self.residual else self.conv(features)


def resnet18(widths=(64, 128, 256, 512), hidden=(64, 64, 128, 128, 256, 256, 512, 512), num_classes=11, in_channels=3):
    """torchvision's ResNet-18 without pre-trained weights (He et al. 2015): the course's teacher.

    widths: channels of the four residual streams, of which the stem shares the first. hidden: channels
    between the two convolutions of every block. With the defaults it is torchvision's to the last value.
    """
    from torchvision.models import resnet18 as torchvision_resnet18  # imported here: it would double the start-up time of inference

    if len(widths) != 4 or len(hidden) != 8:
        raise UserError(f"resnet18 has 4 widths and 8 hidden, not {len(widths)} and {len(hidden)}")
    network = torchvision_resnet18(num_classes=num_classes)

    def reshape(module, convolution, norm, before, after):
        old = getattr(module, convolution)
        if (old.in_channels, old.out_channels) == (before, after):
            return
        new = nn.Conv2d(before, after, old.kernel_size, old.stride, old.padding, bias=False)
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        setattr(module, convolution, new)
        setattr(module, norm, nn.BatchNorm2d(after))

    reshape(network, "conv1", "bn1", in_channels, widths[0])
    before = widths[0]
    blocks = [block for stage in (network.layer1, network.layer2, network.layer3, network.layer4) for block in stage]
    for index, (block, between) in enumerate(zip(blocks, hidden)):
        after = widths[index // 2]
        reshape(block, "conv1", "bn1", before, between)
        reshape(block, "conv2", "bn2", between, after)
        if block.downsample:
            reshape(block.downsample, "0", "1", before, after)
        before = after
    if before != 512:
        network.fc = nn.Linear(before, num_classes)
    return network
