"""Building blocks shared by the network families."""

from dataclasses import dataclass, field
from typing import Callable

from torch import nn


def sequential(*modules):
    """`nn.Sequential` of the given modules, without None."""
    return nn.Sequential(*(module for module in modules if module is not None))


def norm_act(channels, activation):
    """The modules after a convolution: [BN, activation]."""
    return [nn.BatchNorm2d(channels), activation]


class Classifier(nn.Module):
    """Convolutions `cnn`, flattening, and a classifier `fc`: (N, C, H, W) -> logits (N, num_classes)."""

    def forward(self, images):
        return self.fc(self.cnn(images).flatten(1))


@dataclass(frozen=True)
class Architecture:
    """An entry of the network table: its class, usual input size in pixels, origin and arguments."""

    network: Callable
    size: int
    origin: str
    arguments: dict = field(default_factory=dict)
