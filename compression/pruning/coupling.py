"""Which channels of a network must be removed together, and what becomes of their constants.

    coupling = Coupling(network)
    coupling.sets                     # Channels, in the order of the layers

The coupling is read from the traced graph (torch.fx). The output channels of a convolution or linear layer
remain one set through normalisation, activations, pooling and depthwise convolutions, until another layer
mixes them; additions join two sets. A grouped convolution couples the channels of a group: they are removed
as a unit.

A removed channel is one whose BN has gamma = 0: its output is the constant act(beta). Where every layer that
reads the set can absorb a constant exactly (no zero padding), the constant is added to the next bias, or to
the running mean of the BN after a layer without one. Elsewhere beta is set to 0 too: the constant is dropped.
"""

import copy
import math
import operator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# these leave a constant unchanged
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish)
UNSUPPORTED = "which pruning does not support"
OPERATIONS = {operator.add: 2, torch.flatten: 1, "flatten": 1}  # outside of modules: their numbers of inputs


@dataclass(eq=False)
class Channels:
    """Channels that must be removed from all these layers together, `unit` neighbours at a time.

    count: in the traced network. stays: why none can be removed. dropped: why the constant of a removed
    channel is dropped (else it is absorbed exactly).
    """

    count: int | None
    unit: int = 1
    producers: list = field(default_factory=list)  # names of the layers whose outputs they are,
    through: list = field(default_factory=list)  # of their depthwise and grouped convolutions,
    norms: list = field(default_factory=list)  # of their BNs,
    consumers: list = field(default_factory=list)  # and of the layers that read them
    stays: str = ""
    dropped: str = ""

    @property
    def name(self):
        """The first layer whose outputs they are."""
        return self.producers[0]

    @property
    def layers(self):
        """Their layers by role, as lists of names."""
        return self.producers, self.through, self.norms, self.consumers


class Coupling:
    """The channel sets of a network in the order of its layers, and the constants of removed channels."""

    def __init__(self, network):
        self.modules = dict(network.named_modules())
        self.nodes = list(fx.Tracer().trace(network).nodes)
        self.of = {}  # node -> the channels of its output
        uses = {}  # module -> its nodes and those that they read
        for node in self.nodes:
            inputs = [self.of[one] for one in node.all_input_nodes]
            if node.op == "call_module":
                self.of[node] = self._module(node, inputs[0])
                nodes = uses.setdefault(node.target, [])
                nodes += [*node.all_input_nodes, node]
                if len(nodes) > 2 and list(self.modules[node.target].parameters()):
                    self._stop([self.of[one] for one in nodes], f"{node.target} is used twice")
            elif inputs and OPERATIONS.get(node.target) == len(inputs):
                self.of[node] = self._join(*inputs)
            elif node.op in ("placeholder", "output"):
                what = "input" if node.op == "placeholder" else "output"
                self.of[node] = self._stop(inputs, f"the network's {what}")
            else:
                self.of[node] = self._stop(inputs, f"passes through {node.name}, {UNSUPPORTED}")
        self.sets = [channels for channels in dict.fromkeys(self.of.values()) if channels.producers]
        order = list(self.modules)
        for channels in self.sets:
            for names in channels.layers:
                names.sort(key=order.index)
            if not channels.norms:
                channels.stays = channels.stays or "no BN to rank them"
        self._decide()

    def carried_to(self, network):
        """The same coupling for a copy of the network or a pruned one. That cannot be traced again: with one
        channel or group left, the graph does not show that a convolution was depthwise.
        """
        carried = copy.copy(self)
        carried.modules = dict(network.named_modules())
        return carried

    @staticmethod
    def _stop(sets, reason):
        """Mark these sets as not prunable; returns the output channels of the node that stops them."""
        for channels in sets:
            channels.stays = reason
        return Channels(None, stays=reason)

    def _module(self, node, before):
        """The output channels of a module that reads the channels `before`."""
        module, name = self.modules[node.target], node.target
        if _mixes(module):
            before.consumers.append(name)
            return Channels(len(module.weight), producers=[name])
        if isinstance(module, nn.Conv2d) and module.in_channels == module.out_channels == before.count:
            before.through.append(name)
            before.unit = math.lcm(before.unit, module.in_channels // module.groups)
            return before
        if isinstance(module, NORMS) and module.affine and module.num_features == before.count:
            before.norms.append(name)
            return before
        if isinstance(module, POOLS + ACTIVATIONS):
            return before
        return self._stop([before], f"passes through {name} ({type(module).__name__}), {UNSUPPORTED}")

    def _join(self, first, *others):
        """Join the sets that an addition combines."""
        for other in others:
            if other is not first:
                for names, more in zip(first.layers, other.layers):
                    names += more
                first.unit, first.stays = math.lcm(first.unit, other.unit), first.stays or other.stays
                self.of |= {node: first for node, channels in self.of.items() if channels is other}
        return first

    def _decide(self):
        """Decide which sets can be pruned and whether their constants can be absorbed (probe: beta = 1)."""
        for attempt in ("dropped", "stays"):
            values = self.constants(self._betas(torch.ones_like))
            for node, channels in self.readers():
                problem = self._problem(node, values[node.all_input_nodes[0]])
                if problem and not channels.stays:
                    setattr(channels, attempt, getattr(channels, attempt) or problem)

    def _betas(self, of_bias):
        """BN name -> its beta in a removed channel: of_bias(beta), or zeros where constants are dropped."""
        dropped = {name for channels in self.sets if channels.dropped for name in channels.norms}
        return {
            name: torch.zeros_like(module.bias) if name in dropped else of_bias(module.bias.detach())
            for name, module in self.modules.items()
            if isinstance(module, NORMS) and module.affine
        }

    def readers(self):
        """(node, channels that it reads) of every layer that mixes channels."""
        modules = [node for node in self.nodes if node.op == "call_module"]
        # not by `_mixes`: a pruned depthwise convolution can have one channel
        readers = [node for node in modules if node.target in self.of[node].producers]
        return [(node, self.of[node.all_input_nodes[0]]) for node in readers]

    def _problem(self, node, constant):
        """Why a layer cannot absorb a constant exactly; "" if it can."""
        if constant is None:
            return f"not constant at the input of {node.target}"
        if not constant.any():
            return ""
        if _padded(self.modules[node.target]):
            return f"zero padding of {node.target}"
        return "" if self._bias(node) else f"no bias after {node.target}"

    def _bias(self, node):
        """The nodes from a layer to the one that can absorb a constant in bias or running mean, or None."""
        module, users = self.modules[node.target], list(node.users)
        if isinstance(module, NORMS) or module.bias is not None:
            return [node]
        if len(users) != 1 or users[0].op != "call_module":
            return None
        behind = self.modules[users[0].target]
        follows = isinstance(behind, NORMS) or (_mixes(behind) and not _padded(behind))
        rest = self._bias(users[0]) if follows else None
        return rest and [node, *rest]

    def constants(self, betas):
        """The outputs where gamma = 0: node -> one value per channel, or None where they are not constant.

        betas: BN name -> its beta, one value per channel.
        """
        values = {}
        for node in self.nodes:
            inputs = [values[one] for one in node.all_input_nodes]
            if node.op == "call_module":
                values[node] = self._constant(self.modules[node.target], node.target, inputs[0], betas)
            elif OPERATIONS.get(node.target) != len(inputs) or any(value is None for value in inputs):
                values[node] = None
            else:
                values[node] = sum(inputs)
        return values

    @staticmethod
    def _constant(module, name, value, betas):
        """`constants` for one module, given its input's constant."""
        if isinstance(module, NORMS):
            return betas.get(name)
        if value is None or isinstance(module, nn.Linear):
            return None
        # with depthwise convolution and no zero padding, the output is constant too
        if isinstance(module, nn.Conv2d):
            if module.groups == 1 or (value.any() and (_padded(module) or module.groups != len(value))):
                return None
            constant = value if not value.any() else value * module.weight.detach().flatten(1).sum(1)
            return constant if module.bias is None else constant + module.bias.detach()
        return module(value.clone()) if isinstance(module, ACTIVATIONS) else value

    @torch.no_grad()
    def absorb(self, kept):
        """Add the constants of channels that `kept`, {set: indices}, removes to biases and running means."""
        values = self.constants(self._betas(torch.clone))
        for node, channels in self.readers():
            if channels not in kept:
                continue
            gone = values[node.all_input_nodes[0]].index_fill(0, kept[channels], 0)
            if gone.any():
                *path, last = self._bias(node)
                for step in path:
                    gone = _matrix(self.modules[step.target], len(gone)) @ gone
                target = self.modules[last.target]
                if isinstance(target, NORMS):
                    target.running_mean -= gone
                else:
                    target.bias += _matrix(target, len(gone)) @ gone


def _mixes(module):
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _padded(module):
    return isinstance(module, nn.Conv2d) and any(module.padding)


def _matrix(layer, channels):
    """(outputs, channels): the layer as a matrix, for an input that is constant in every channel."""
    return layer.weight.reshape(len(layer.weight), channels, -1).sum(2)
