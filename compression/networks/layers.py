"""What the families have in common."""

from dataclasses import dataclass, field
from typing import Callable

from torch import nn


def sequential(*modules):
    """`nn.Sequential` of what is given, leaving out None."""
    return nn.Sequential(*(module for module in modules if module is not None))


def norm_act(channels, activation):
    """What follows a convolution: [BN, activation]."""
    return [nn.BatchNorm2d(channels), activation]


class Classifier(nn.Module):
    """A convolutional part `cnn`, flattened, and a classifier `fc` behind it: (N, C, H, W) -> logits (N,
    num_classes).
    """

    def forward(self, images):
        return self.fc(self.cnn(images).flatten(1))


@dataclass(frozen=True)
class Architecture:
    """A network by name: what builds it, with which arguments, for which input size in pixels."""

    network: Callable
    size: int
    origin: str
    arguments: dict = field(default_factory=dict)
