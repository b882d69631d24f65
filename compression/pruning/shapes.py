"""A network's arguments after pruning, read from its layers, family by family."""

from torch import nn


def _out(layer):
    """Output channels of a layer, or of its two factors."""
    return len((layer[-1] if isinstance(layer, nn.Sequential) else layer).weight)


def _depthwise_net(network, arguments):
    stages, hidden = network.cnn[:-1], arguments["hidden"]
    if hidden:
        first, second = _out(network.fc[0]), _out(network.fc[4])
        hidden = first if first == second else [first, second]
    return {"widths": [_out(stages[0][0]), *(_out(stage[3]) for stage in stages[1:])], "hidden": hidden}


def _small_cnn(network, arguments):
    ordinary = len(arguments["convs"])
    return {
        "convs": [_out(layer[0]) for layer in network.cnn[:ordinary]],
        "separable": [_out(layer[3]) for layer in network.cnn[ordinary:-1]],
    }


def _resnet(network, arguments):
    blocks = [*network.layer1, *network.layer2, *network.layer3, *network.layer4]
    return {
        "widths": [_out(block.conv2) for block in blocks[1::2]],
        "hidden": [_out(block.conv1) for block in blocks],
    }


_WIDTHS = {
    "DepthwiseNet": _depthwise_net,
    "PlainNet": lambda network, arguments: {"widths": [_out(stage[0]) for stage in network.cnn[:-1]]},
    "SmallCNN": _small_cnn,
    "FaceCNN": lambda network, arguments: {
        "widths": [_out(layer) for layer in network.cnn[3:-1:8]],
        "inner": [_out(layer) for layer in network.cnn[:-1:8]],
        "hidden": [_out(layer) for layer in network.fc[:-1:4]],
    },
    "FaceMobileNet": lambda network, arguments: {
        "widths": [_out(network.cnn[0]), *(_out(block[3]) for block in network.cnn[4:-1])]
    },
    "ResidualNet": lambda network, arguments: {
        "stem": [_out(layer) for layer in network.stem[::3]],
        "widths": [_out(block.project[0]) for block in network.blocks],
        "hidden": [_out(block.expand[0]) for block in network.blocks],
        "residual": [int(block.residual) for block in network.blocks],
        "head": _out(network.head[0]),
    },
    "MobileNetV2": lambda network, arguments: {
        "stem": _out(network.cnn[0]),
        "widths": [_out(block.conv[-2]) for block in network.cnn[3:-1]],
        "hidden": [_out(block.conv[-5]) for block in network.cnn[3:-1]],
        "residual": [int(block.residual) for block in network.cnn[3:-1]],
    },
    "ResNet": _resnet,
}


def widths(network, arguments):
    """The arguments of `build` that give these layers' widths."""
    return _WIDTHS[type(network).__name__](network, arguments)
