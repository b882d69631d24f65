"""folding.py: the folded network is the same function, has no BN left, is built by its arguments alone."""

import pytest
import torch
from torch import fx, nn

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.quantization.folding import fold, foldable_pairs
from dataset import FOOD11_CLASSES
from models import ARCHITECTURES, build

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def trained(name, **arguments):
    """A float64 network whose BNs have parameters and statistics of all signs and sizes."""
    network = build(name, in_channels=3, **arguments).double().eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, NORMS):
            for tensor, low, high in (
                (module.weight, -2, 2),
                (module.bias, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.01, 3),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return network


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folded_network_gives_the_same_logits_without_bn(name):
    network = trained(name)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network(images)
        after = fold(network)(images)
    assert (before - after).abs().max() <= 1e-5 and before.std() > 0
    assert not any(isinstance(module, NORMS) for module in network.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_pairs_are_those_of_the_graph(name):
    """torch.fx knows who reads whose output; the quick rule must find exactly these."""
    network = build(name)
    modules, expected = dict(network.named_modules()), []
    for node in fx.Tracer().trace(network).nodes:
        if node.op == "call_module" and isinstance(modules[node.target], NORMS):
            source = node.args[0]
            if (
                source.op == "call_module"
                and isinstance(modules[source.target], (nn.Conv2d, nn.Linear))
                and len(source.users) == 1
            ):
                expected.append((source.target, node.target))
    assert expected and sorted(foldable_pairs(network)) == sorted(expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_arguments_alone_rebuild_the_folded_network(name):
    weights = fold(trained(name, num_classes=11)).float().state_dict()
    description = Description.of(name, {"in_channels": 3, "folded": True}, FOOD11_CLASSES, Preprocessing(64))
    rebuilt = description.build(weights)
    shapes = {key: value.shape for key, value in weights.items()}
    assert {key: value.shape for key, value in rebuilt.state_dict().items()} == shapes


def test_folding_leaves_the_given_weights_alone_and_happens_once():
    network = build("residual6")
    state = {name: value.clone() for name, value in network.state_dict().items()}
    shared = dict(network.state_dict())
    folded = {name: value.clone() for name, value in fold(network).state_dict().items()}
    assert all(torch.equal(state[name], value) for name, value in shared.items())
    assert all(torch.equal(folded[name], value) for name, value in fold(network).state_dict().items())


def test_a_norm_that_does_not_follow_a_layer_stays():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    names = list(network.state_dict())
    assert list(fold(network).state_dict()) == names


@pytest.mark.parametrize("folded", [1, "yes", None, [True]])
def test_folded_must_be_true_or_false(folded):
    with pytest.raises(UserError, match="folded"):
        build("student", folded=folded)


def test_a_folded_network_can_be_trained():
    network = build("residual6", folded=True).train()
    loss = network(torch.rand(2, 3, 32, 32)).square().mean()
    loss.backward()
    for parameter in network.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
