"""Building blocks shared by the network families."""

from torch import nn

from compression.command_line import UserError


def conv_norm(before, after, kernel, stride=1, activation=None, groups=1, bias=False):
    """[convolution, BN, the activation if any]; odd kernels at stride 1 keep the size of their input."""
    conv = nn.Conv2d(before, after, kernel, stride, (kernel - 1) // 2, groups=groups, bias=bias)
    return [conv, nn.BatchNorm2d(after), *([activation] if activation else [])]


def outputs(layer):
    """Output channels of a layer, or of its two factors."""
    return len((layer[-1] if isinstance(layer, nn.Sequential) else layer).weight)


def check_lengths(**lists):
    """Raise UserError where these lists, with an entry for every block, differ in length; None is no list."""
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} in {name}" for name, count in lengths.items())
        raise UserError(f"the lists must have an entry for every block, but there are {counts}; change one")


def check_residual(before, after, reduces):
    """Raise UserError for a block whose output cannot be added to its input."""
    if reduces or before != after:
        raise UserError(
            f"a residual block cannot reduce the resolution or go from {before} to {after} channels; change "
            "residual, widths, pools or strides"
        )


class Classifier(nn.Module):
    """Convolutions `cnn`, flattening, and a classifier `fc`: (N, C, H, W) -> logits (N, num_classes)."""

    def forward(self, images):
        return self.fc(self.cnn(images).flatten(1))


class Architecture:
    """An entry of the network table: its class, usual input size in pixels and arguments."""

    def __init__(self, network, size, **arguments):
        self.network, self.size, self.arguments = network, size, arguments
