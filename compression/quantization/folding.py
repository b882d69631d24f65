"""Batch normalisation folded into the layer before it: the same function in eval mode, with fewer parameters.

A convolution or linear layer and the BN after it become one layer with a bias (Jacob et al. 2018, section
3.2): w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta. No other layer may
read the convolution's output.
"""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

LAYERS, NORMS = (nn.Conv2d, nn.Linear), (nn.BatchNorm1d, nn.BatchNorm2d)


def foldable_pairs(network):
    """[(name of a layer, name of the BN after it)], in the network's order.

    Every network here registers its modules in the order in which they are called, so the BN after a layer is
    the next module without children. (torch.fx would find the same pairs in the graph, as the tests do, but
    importing it takes longer than the rest of the start-up of inference.)
    """
    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    return [
        (name, behind)
        for (name, layer), (behind, norm) in zip(leaves, leaves[1:])
        if isinstance(layer, LAYERS) and isinstance(norm, NORMS) and norm.num_features == len(layer.weight)
    ]


@torch.no_grad()
def fold(network):
    """Fold every BN that follows a convolution or linear layer, in place and in float64; return the network.

    The BN is replaced by an `nn.Identity`, so that all other names are unchanged. Also works on the meta
    device, for shapes only.
    """
    for name, behind in foldable_pairs(network):
        layer, norm = network.get_submodule(name), network.get_submodule(behind)
        network.set_submodule(behind, nn.Identity())
        if layer.weight.is_meta:  # arithmetic there imports a second's worth of torch
            layer.bias = nn.Parameter(layer.weight.new_empty(len(layer.weight)))
            continue
        fuse = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
        weight, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()
        statistics = norm.running_mean.double(), norm.running_var.double(), norm.eps
        weight, bias = fuse(weight, bias, *statistics, norm.weight.double(), norm.bias.double())
        # new parameters: a network can share its weights with a state_dict
        layer.weight, layer.bias = (nn.Parameter(value.to(layer.weight.dtype)) for value in (weight, bias))
    return network
