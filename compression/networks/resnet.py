"""The course's teacher."""

from torch import nn

from compression.command_line import UserError
from compression.networks.layers import Architecture, outputs


def resnet18(
    widths=(64, 128, 256, 512), hidden=(64, 64, 128, 128, 256, 256, 512, 512), num_classes=11, in_channels=3
):
    """torchvision's ResNet-18 without pre-trained weights (He et al. 2015): the course's teacher.

    widths: channels of the four residual stages; the stem has those of the first. hidden: channels between
    the two convolutions of every block. With the defaults it is identical to torchvision's.
    """
    # imported here: it would double the start-up time of inference
    from torchvision.models import resnet18 as torchvision_resnet18

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
    blocks = [*network.layer1, *network.layer2, *network.layer3, *network.layer4]
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


def _shape(network, arguments):
    blocks = [*network.layer1, *network.layer2, *network.layer3, *network.layer4]
    return {
        "widths": [outputs(block.conv2) for block in blocks[1::2]],
        "hidden": [outputs(block.conv1) for block in blocks],
    }


resnet18.shape = _shape  # a method in the other families; this class is torchvision's
ARCHITECTURES = {"resnet18": Architecture(resnet18, 224)}
