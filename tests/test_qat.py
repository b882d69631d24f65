"""Quantization-aware training: closed forms of the gradients, folding into the scales, resumed runs, and
--qat-bits of the training scripts with quantize.py behind it.
"""

import json
import math
import os
import re
import signal
from dataclasses import replace

import pytest
import torch

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.quantization.folding import foldable_pairs
from compression.quantization.grids import Scheme, dequantize_symmetric, mse_scale, quantize_symmetric
from compression.stages.quantizing import folded
from compression.training.evaluation import evaluate
from compression.training.loop import fit
from compression.training.losses import CrossEntropy
from compression.training.qat import LearnedStep, fake_quantize, finish, fold_into_scales, reestimate_bn
from compression.training.recipe import Settings, parameter_groups
from compression.training.run_folder import Run, evaluated_state, write_checkpoint
from dataset import PhotoSet, list_labelled, load_photos
from models import ARCHITECTURES, Architecture, build

CPU = torch.device("cpu")
SIZE = 32
NARROW = {"stem": (8, 8), "widths": (8, 8), "hidden": (16, 16), "pools": (1, 0), "head": 16, "dropout": 0.2}


def weight(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- rounding


def test_both_gradients_by_hand():
    """Three bits, codes -4 to 3, scale 1/2: weights between codes, on a code, at and beyond both ends."""
    values = torch.tensor([[0.6, -0.2, 0.5, 9.0, -9.0, 1.4, -1.9, 0.9]], requires_grad=True)
    step = LearnedStep(values, 3, "tensor")
    step.log_scale.data.fill_(math.log(0.5))
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    rounded = step(values)
    assert torch.equal(rounded, torch.tensor([[0.5, 0.0, 0.5, 1.5, -2.0, 1.5, -2.0, 1.0]]))
    rounded.backward(upstream)
    assert torch.allclose(values.grad, upstream * torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1]]))
    slopes = torch.tensor([[1 - 1.2, 0 + 0.4, 0, 3, -4, 3 - 2.8, -4 + 3.8, 2 - 1.8]])
    expected = 0.5 * (upstream * slopes).sum().item() / math.sqrt(8 * 3)
    assert step.log_scale.grad.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_scales_gradient_is_lsqs_for_every_group(granularity):
    values = weight(5, 4, 3, 3)
    step = LearnedStep(values, 4, granularity)
    upstream = weight(5, 4, 3, 3, seed=1)
    (step(values) * upstream).sum().backward()
    scale = step.scale()
    groups = zip(values, upstream) if granularity == "channel" else [(values, upstream)]
    for group, (own, gradient) in enumerate(groups):
        expected = 0.0
        for value, slope in zip(own.flatten().tolist(), gradient.flatten().tolist()):
            ratio = value / scale[group].item()
            expected += slope * (-8 if ratio <= -8 else 7 if ratio >= 7 else round(ratio) - ratio)
        expected *= scale[group].item() / math.sqrt(own.numel() * 7)
        assert step.log_scale.grad[group].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_rounding_starts_from_the_least_squares_grid_and_is_the_files(bits, granularity):
    values = weight(6, 3, 3, 3)
    step = LearnedStep(values, bits, granularity)
    scale = mse_scale(values, bits, granularity)
    assert torch.equal(step.scale(), scale)
    assert torch.equal(step(values), dequantize_symmetric(quantize_symmetric(values, scale, bits), scale))


def test_scales_are_float16_and_above_zero_whatever_is_learned():
    step = LearnedStep(weight(6, 4), 4, "channel")
    step.log_scale.data.copy_(torch.tensor([-1e4, -20.0, -3.21, 0.0, 5.0, 1e4]))
    scale = step.scale()
    assert torch.equal(scale, scale.half().float()) and (scale > 0).all() and torch.isfinite(scale).all()


def test_a_weight_that_is_not_finite_is_not_hidden():
    step = LearnedStep(weight(1, 2), 4, "tensor")
    assert step(torch.tensor([[1.0, math.nan]])).isnan().any()


def test_scales_are_learned_without_weight_decay():
    network = fake_quantize(build("residual6", **NARROW), Scheme(4, "channel", "mse"))
    decayed, spared = (group["params"] for group in parameter_groups(network, 0.1))
    scales = {id(parameter) for name, parameter in network.named_parameters() if name.endswith("log_scale")}
    assert scales and scales <= set(map(id, spared)) and not scales & set(map(id, decayed))


def test_the_scheme_says_how_many_bits_each_weight_gets():
    network = build("residual6", **NARROW)
    scheme = Scheme(4, "channel", "mse", overrides={"blocks.0.depthwise.0": 6, "blocks.1.expand.0": 16})
    state = network.state_dict()
    bits_of = scheme.bits_of(state).items()
    wanted = {name: bits for name, bits in bits_of if state[name].ndim >= 2 and bits <= 8}
    scales = evaluated_state(fake_quantize(network, scheme))["scales"]
    got = {name: bits for name, (bits, _) in scales.items()}
    assert got == wanted and set(got.values()) == {4, 6, 8} and "blocks.1.expand.0.weight" not in got


def test_the_exported_state_is_the_plain_networks_and_gives_the_same_logits():
    torch.manual_seed(0)
    network = fake_quantize(build("residual6", **NARROW), Scheme(3, "channel", "mse")).eval()
    plain = build("residual6", **NARROW)
    exported = evaluated_state(network)
    plain.load_state_dict(exported["weights"])
    images = weight(4, 3, SIZE, SIZE)
    assert torch.equal(plain.eval()(images), network(images))
    for name, (bits, scale) in exported["scales"].items():
        tensor = exported["weights"][name]
        assert torch.equal(dequantize_symmetric(quantize_symmetric(tensor, scale, bits), scale), tensor)
        assert len(tensor.unique()) > 1


# ---------------------------------------------------------------- after the last epoch


def trained_bn(network, seed=0):
    """BN with statistics and parameters that matter, some gammas below zero and one at zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.weight.data.uniform_(-1.0, 1.5, generator=generator)
            module.bias.data.uniform_(-1, 1, generator=generator)
            module.running_mean.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.2, 3, generator=generator)
            module.weight.data[0] = 0
    return network


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("residual6", NARROW),
        ("student", {"widths": (8,) * 8, "hidden": 16}),
        ("fer_mobilenet", {"in_channels": 3}),
    ],
)
def test_bn_goes_into_the_scales_and_no_code_changes(name, arguments):
    torch.manual_seed(0)
    network = trained_bn(build(name, **arguments))
    plain = build(name, **arguments).eval()
    exported = evaluated_state(fake_quantize(network, Scheme(4, "channel", "mse")))
    plain.load_state_dict(exported["weights"])
    images = weight(4, 3, SIZE, SIZE)
    before, pairs = plain(images), foldable_pairs(plain)
    scales = fold_into_scales(plain, exported["scales"])
    assert torch.allclose(plain(images), before, rtol=0.01, atol=0.01 * before.abs().max().item())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
    folded = {f"{layer}.weight" for layer, _ in pairs}
    for weight_name, (bits, scale) in scales.items():
        old_scale, tensor = exported["scales"][weight_name][1], plain.get_parameter(weight_name)
        codes = quantize_symmetric(exported["weights"][weight_name], old_scale, bits)
        assert torch.equal(scale, scale.half().float())
        assert torch.equal(dequantize_symmetric(codes, scale), tensor)
        assert (weight_name in folded) == (not torch.equal(scale, old_scale))
    new = torch.cat([scale for _, scale in scales.values()])
    assert (new < 0).any() and (new != 0).all()


def test_the_folded_bias_belongs_to_the_rounded_scale():
    """Where the input is what BN's running mean says, BN gives exactly beta; so must the folded layer,
    however coarse its scale.
    """
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.BatchNorm2d(1)).eval()
    values = {"0.weight": 3 * 0.25, "1.running_mean": 3000.0, "1.running_var": 1.7}
    for name, value in {**values, "1.weight": 0.37, "1.bias": 0.5}.items():
        network.state_dict()[name].fill_(value)
    fold_into_scales(network, {"0.weight": (4, torch.tensor([0.25]))})
    assert network(torch.full((1, 1, 1, 1), 4000.0)).item() == pytest.approx(0.5, abs=1e-3)


# ---------------------------------------------------------------- runs


def photo_set(count, seed):
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 4
    photos = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return PhotoSet(photos, torch.arange(count), labels, ("a", "b", "c", "d"), f"fingerprint {seed}")


TRAINING, VALIDATION = photo_set(96, 1), photo_set(60, 2)
DESCRIPTION = Description.of("residual6", NARROW, TRAINING.class_names, Preprocessing(size=SIZE))
TWO_BITS = Scheme(2, "channel", "mse", overrides={"stem.0": 2, "fc.1": 2})


def reestimated(network, batch_size):
    return reestimate_bn(network, TRAINING, DESCRIPTION.preprocessing, settings(batch_size=batch_size), CPU)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A checkpoint of a network in floats whose BN statistics are those of the photos."""
    torch.manual_seed(0)
    network = reestimated(build("residual6", **DESCRIPTION.arguments), 96)
    path = tmp_path_factory.mktemp("floats") / "best.pt"
    write_checkpoint(path, DESCRIPTION, network.state_dict())
    return path


def settings(**changes):
    return Settings(**{"epochs": 3, "batch_size": 16, "lr": 0.005, "ema": 0.9, "augment": "none", **changes})


def rounded(path, scheme):
    """The network of a checkpoint with its weights rounded, as post-training quantization would."""
    model = load_model(path)
    network = build(model.description.architecture, **model.description.arguments)
    network.load_state_dict(model.state_dict)
    return fake_quantize(network, scheme)


def tune(path, out, scheme=TWO_BITS, changes=None, **options):
    """Three epochs of fine-tuning; changes: of the settings."""
    torch.manual_seed(0)
    network, tuned = rounded(path, scheme), settings(**(changes or {}))
    return fit(network, DESCRIPTION, TRAINING, VALIDATION, tuned, out, CPU, **options)


class RedOrNot(torch.nn.Module):
    """A single 1x1 convolution and the mean over all pixels: logits (2,) of photos."""

    def __init__(self, num_classes=2, in_channels=3):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, num_classes, 1, bias=False)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_qat_regains_what_rounding_lost(tmp_path, monkeypatch, granularity):
    """The weights that matter, -0.4 and 0.4, are rounded to 0 by the scale of 1 that the large ones ask for,
    which see only zeros.

    Until both weights are rounded otherwise the logits are 0, so their gradients are exactly 0.5 and -0.5 and
    the scale's positive: two steps of Nesterov momentum, lr * 0.5 * (1.9 + 2.71) = 0.115, make 0.4 more than
    half a scale. Behind that the gradients keep their sign. A rounding without the gradient of Esser et al.
    leaves the weights where they are.
    """
    monkeypatch.setitem(ARCHITECTURES, "red_or_not", Architecture(RedOrNot, SIZE))
    preprocessing = Preprocessing(SIZE, mean=(0.5, 0, 0), std=(0.3, 1, 1))
    description = Description.of("red_or_not", {"num_classes": 2}, ("grey", "red"), preprocessing)
    labels = torch.arange(8) % 2
    photos = torch.zeros(8, SIZE, SIZE, 3, dtype=torch.uint8)
    # 1 and -1 for the network; green and blue are 0
    photos[..., 0] = torch.where(labels == 1, 204, 51).view(-1, 1, 1)
    photos = PhotoSet(photos, torch.arange(8), labels, description.class_names, "red")
    weights = {"conv.weight": torch.tensor([[-0.4, 7, 0], [0.4, 7, 0]]).view(2, 3, 1, 1)}
    write_checkpoint(tmp_path / "floats.pt", description, weights)
    scheme = Scheme(4, granularity, "mse", overrides={"conv": 4})

    def measured(network):
        return evaluate(network, photos, preprocessing, CPU)

    assert measured(load_model(tmp_path / "floats.pt").build())[1] == 1
    network = rounded(tmp_path / "floats.pt", scheme)
    assert measured(network)[:2] == (pytest.approx(math.log(2)), 0.5)
    plain = {"weight_decay": 0.0, "schedule": "constant", "label_smoothing": 0.0, "ema": 0}
    learning = settings(optimizer="sgd", lr=0.05, epochs=6, **plain)
    record = fit(network, description, photos, photos, learning, tmp_path / "run", CPU)
    assert [row["validation_accuracy"] for row in record["history"]] == [0.5, 1, 1, 1, 1, 1]
    finish(tmp_path / "run", photos, photos, learning, CPU)
    loss, accuracy, _ = measured(load_model(tmp_path / "run/best.pt").build())
    assert accuracy == 1 and loss < 0.2  # log(1 + exp(-2 * scale)), with a scale near 1


def test_the_best_checkpoint_is_an_ordinary_one_of_rounded_weights(floats, tmp_path):
    record = tune(floats, tmp_path)
    model = load_model(tmp_path / "best.pt")
    loss = evaluate(model.build(), VALIDATION, DESCRIPTION.preprocessing, CPU)[0]
    assert loss == pytest.approx(record["best"]["validation_loss"], rel=1e-3)
    for name in ("stem.0.weight", "blocks.0.project.0.weight", "fc.1.weight"):
        assert all(len(channel.unique()) <= 4 for channel in model.state_dict[name]), name


class Stop(CrossEntropy):
    """A loss that raises, or sends a signal to this process, at its n-th call."""

    def __init__(self, calls, number=None):
        super().__init__(label_smoothing=0.1)
        self.calls, self.number = calls, number

    def __call__(self, logits, batch):
        self.calls -= 1
        if self.calls == 0 and self.number is None:
            raise RuntimeError("killed")
        if self.calls == 0:
            os.kill(os.getpid(), self.number)
        return super().__call__(logits, batch)


@pytest.mark.parametrize("calls, number", [(13, None), (12, signal.SIGTERM)], ids=["killed", "SIGTERM"])
def test_a_resumed_run_ends_with_bitwise_the_same_weights_and_scales(floats, tmp_path, calls, number):
    changes = {"augment": "standard"}
    tune(floats, tmp_path / "whole", changes=changes)
    with pytest.raises(SystemExit if number else RuntimeError):
        tune(floats, tmp_path / "parts", changes=changes, loss=Stop(calls, number))
    torch.rand(5)
    tune(floats, tmp_path / "parts", changes=changes, resume=True)
    first, second = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["run"] for name in ("whole", "parts")
    )
    for part in ("network", "ema"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
    for name in ("whole", "parts"):
        finish(tmp_path / name, TRAINING, VALIDATION, settings(**changes), CPU)
    whole, parts = (load_model(tmp_path / name / "best.pt") for name in ("whole", "parts"))
    assert all(torch.equal(whole.state_dict[name], parts.state_dict[name]) for name in whole.state_dict)
    assert all(torch.equal(whole.scales[name][1], parts.scales[name][1]) for name in whole.scales)


def test_a_run_of_other_bits_is_not_continued(floats, tmp_path):
    tune(floats, tmp_path, changes={"epochs": 1})
    with pytest.raises(UserError, match="cannot be continued"):
        tune(floats, tmp_path, Scheme(4, "tensor", "mse"), changes={"epochs": 1}, resume=True)


@pytest.mark.parametrize("spoiled", ["best", "last"])
def test_after_qat_the_better_of_best_and_last_epoch_stays_and_once_more_changes_nothing(
    floats, tmp_path, capsys, spoiled
):
    """Of one the bias of the last layer makes every answer the first class, which is right, of the other the
    second.
    """
    tune(floats, tmp_path, changes={"epochs": 2})
    biases = {}
    for name in ("best", "last"):
        model = load_model(tmp_path / f"{name}.pt")
        biases[name] = torch.zeros_like(model.state_dict["fc.1.bias"])
        biases[name][1 if name == spoiled else 0] = 100
        weights = {**model.state_dict, "fc.1.bias": biases[name]}
        write_checkpoint(tmp_path / f"{name}.pt", model.description, weights, scales=model.scales)
    first = replace(VALIDATION, labels=torch.zeros_like(VALIDATION.labels))
    better = "last" if spoiled == "best" else "best"
    for _ in range(2):
        told = finish(tmp_path, TRAINING, first, settings(), CPU)
        assert told == {"accuracies": {spoiled: 0.0, better: 1.0}, "chosen": better}
        assert torch.equal(load_model(tmp_path / "best.pt").state_dict["fc.1.bias"], biases[better])
    assert "with re-estimated BN statistics" in capsys.readouterr().out


def test_a_last_epoch_that_is_the_best_is_not_finished_twice(floats, tmp_path):
    tune(floats, tmp_path, changes={"epochs": 1})
    assert finish(tmp_path, TRAINING, VALIDATION, settings(), CPU)["accuracies"].keys() == {"best"}


def test_folding_leaves_the_trained_model_as_it_was(floats, tmp_path):
    tune(floats, tmp_path, Scheme(3, "channel", "mse"), changes={"epochs": 1})
    model = load_model(tmp_path / "best.pt")
    before = {name: value.clone() for name, value in model.state_dict.items()}
    assert folded(model).description.arguments["folded"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict.items())


def test_bn_is_reestimated_over_the_photos_of_the_training(floats):
    network, again = (reestimated(load_model(floats).build(), 128) for _ in range(2))
    outputs = network.stem[0](DESCRIPTION.preprocessing.normalise(TRAINING.photos))
    norm = network.stem[1]
    assert torch.allclose(norm.running_mean, outputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert torch.allclose(norm.running_var, outputs.var((0, 2, 3)), rtol=1e-3)
    assert not network.training and norm.momentum == 0.1
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))


def test_training_in_bf16_learns_scales_in_fp32(floats, tmp_path):
    tune(floats, tmp_path, changes={"epochs": 1, "precision": "bf16"})
    state = torch.load(tmp_path / "last.pt", weights_only=True)["run"]["network"]
    scales = [values for name, values in state.items() if name.endswith("log_scale")]
    assert scales and all(one.dtype == torch.float32 and torch.isfinite(one).all() for one in scales)


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def checkpoint(small_network, tmp_path_factory):
    """A checkpoint as the training scripts write it, of a network for the toy photos."""
    description, network = small_network
    path = tmp_path_factory.mktemp("run") / "best.pt"
    write_checkpoint(path, description, network.state_dict())
    return path


def command(checkpoint, out, toy, *more, bits="3", script="train_student.py"):
    words = "--epochs 2 --recipe batch_size=11 ema=0.9 --cache none --device cpu".split()
    return [script, toy, "--init", checkpoint, "--qat-bits", bits, *words, "--out", out, *more]


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_quantize_stores_what_was_trained_without_loss(call, checkpoint, toy, tmp_path, granularity):
    """Codes and scales are those of the training, and the network is the one of its checkpoint."""
    done = call(*command(checkpoint, tmp_path / "run", toy, "--recipe", f"qat_granularity={granularity}"))
    assert done.returncode == 0 and "the model file at these bits" in done.stdout, done.stderr
    trained = load_model(tmp_path / "run/best.pt")
    store = ["quantize.py", tmp_path / "run/best.pt", tmp_path / "model.bin", "--data", toy]
    more = ("--cache", "none", "--device", "cpu", "--record", tmp_path / "record.json")
    done = call(*store, *more)
    assert done.returncode == 0, done.stderr
    stored, record = load_model(tmp_path / "model.bin"), json.loads((tmp_path / "record.json").read_text())
    assert (record["bits"], record["granularity"], record["scale"]) == (3, granularity, "mse")
    assert record["model"]["training"]["qat"]["bits"] == 3
    assert bool(foldable_pairs(stored.build())) == (granularity == "tensor")
    scales = trained.scales
    if granularity == "channel":
        scales = fold_into_scales(network := trained.build(), scales)
        assert stored.state_dict.keys() == network.state_dict().keys()
    for name, (bits, scale) in scales.items():
        codes = quantize_symmetric(trained.state_dict[name], trained.scales[name][1], bits)
        assert torch.equal(stored.state_dict[name], dequantize_symmetric(codes, scale)), name
    photos = load_photos(list_labelled(toy, "validation"), trained.description.preprocessing, cache=False)
    images = trained.description.preprocessing.normalise(photos.photos)
    before, after = trained.build()(images), stored.build()(images)  # biases are rounded to float16
    assert (before - after).abs().max() < 0.05 * before.abs().max()


def test_a_killed_run_resumes_to_the_same_file(call, checkpoint, toy, tmp_path, monkeypatch):
    assert call(*command(checkpoint, tmp_path / "whole", toy)).returncode == 0
    steps, train_step = iter(range(100)), Run.train_step

    def killed(self, batch, *rest):
        if next(steps) == 5:
            raise KeyboardInterrupt
        train_step(self, batch, *rest)

    monkeypatch.setattr(Run, "train_step", killed)
    assert call(*command(checkpoint, tmp_path / "parts", toy)).returncode == 130
    monkeypatch.undo()
    for _ in range(2):  # once more: a finished run is only finished again
        done = call(*command(checkpoint, tmp_path / "parts", toy, "--resume"))
        files = [tmp_path / name / "model.bin" for name in ("whole", "parts")]
        for file in files:
            assert call("quantize.py", file.parent / "best.pt", file).returncode == 0
        assert files[0].read_bytes() == files[1].read_bytes()
        whole, parts = (json.loads(file.with_name("record.json").read_text()) for file in files)
        assert whole["reestimated"] == parts["reestimated"] and len(parts["history"]) == 2
        assert whole["reestimated"]["chosen"] in whole["reestimated"]["accuracies"].keys() <= {"best", "last"}
    assert "is finished already" in done.stdout
    other = call(*command(checkpoint, tmp_path / "parts", toy, "--resume", bits="4"))
    assert other.returncode == 2 and "qat_bits was 3 in the saved run" in other.stderr


def test_qat_distils_and_the_file_says_from_what(call, small_network, checkpoint, toy, tmp_path, monkeypatch):
    # a network that was hardly trained may be no better than chance
    monkeypatch.setattr("compression.training.teachers.check_teacher", lambda *given: 0.5)
    description, network = small_network
    told = replace(description, training={"transductive": True})
    write_checkpoint(tmp_path / "teacher.pt", told, network.state_dict())
    more = ("--teacher", tmp_path / "teacher.pt", "--teacher", checkpoint, "--recipe", "alpha=1")
    done = call(*command(checkpoint, tmp_path / "run", toy, *more, script="train_kd.py"))
    assert done.returncode == 0, done.stderr
    assert call("quantize.py", tmp_path / "run/best.pt", tmp_path / "model.bin", "--size", 48).returncode == 0
    stored = load_model(tmp_path / "model.bin").description
    assert len(stored.training["teachers"]) == 2 and stored.training["alpha"] == 1
    assert len(stored.training["init"]) == 16 and stored.training["transductive"] is True
    assert stored.preprocessing.size == 48 and stored.training["qat"] == {"bits": 3, "granularity": "channel"}


def test_single_layers_get_other_bits_and_keep_them(call, checkpoint, toy, tmp_path):
    assert call(*command(checkpoint, tmp_path / "run", toy, bits="3,fc.0=7")).returncode == 0
    assert load_model(tmp_path / "run/best.pt").scales["fc.0.weight"][0] == 7
    assert call("quantize.py", tmp_path / "run/best.pt", tmp_path / "model.bin").returncode == 0
    assert "S7" in torch.load(tmp_path / "model.bin", weights_only=True)["storage"]


def trained_at_3_bits(checkpoint, path):
    """Write a checkpoint of quantization-aware training, without the training."""
    model = load_model(checkpoint)
    network = model.description.build({key: value.clone() for key, value in model.state_dict.items()})
    state = evaluated_state(fake_quantize(network, Scheme(3, "channel", "mse")))
    qat = {"qat": {"bits": 3, "granularity": "channel"}}
    write_checkpoint(path, replace(model.description, training=qat), **state)


def test_what_is_advised_for_a_file_that_is_too_large_fits(refused, call, checkpoint, tmp_path):
    small = load_model(checkpoint).description
    description = replace(small, arguments={**small.arguments, "widths": (64,) * 8})
    network = build("student", **description.arguments)
    write_checkpoint(tmp_path / "wide.pt", description, network.state_dict())
    trained_at_3_bits(tmp_path / "wide.pt", tmp_path / "best.pt")
    for name in ("wide.pt", "best.pt"):
        store = ("quantize.py", tmp_path / name, tmp_path / "model.bin", "--bits", 3)
        assert call(*store).returncode == 0
        limit = (tmp_path / "model.bin").stat().st_size - 1
        assert "--vectors 8 would fit with" in refused(*store, "--max-bytes", limit)
        assert call(*store, "--max-bytes", limit, "--vectors", 8).returncode == 0
    assert "fewer --qat-bits" in refused(*store, "--max-bytes", 1000)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--bits", 4), "so --bits 4 cannot be used; leave it out"),
        (("--granularity", "tensor"), "fixes --granularity"),
        (("--scale", "minmax"), "fixes --scale"),
        (("--override", "fc.0=8"), "fixes --override"),
        (("--max-bytes", 2000), "nothing was written"),
    ],
)
def test_what_contradicts_the_training_is_refused(refused, checkpoint, tmp_path, more, message):
    trained_at_3_bits(checkpoint, tmp_path / "best.pt")
    assert message in refused("quantize.py", tmp_path / "best.pt", tmp_path / "model.bin", *more)
    assert not (tmp_path / "model.bin").exists()


@pytest.mark.parametrize(
    "bits", ["1", "9", "x", "4,", "4,fc.0", "4,fc.0=9", "4,fc.0=16", "4,fc.0=8,fc.0=4", "4,=8"]
)
def test_bits_that_cannot_be_are_refused(refused, checkpoint, toy, tmp_path, bits):
    told = "LAYER=BITS(, such as fc.1=8,)? with 2 to 8 bits"
    assert re.search(told, refused(*command(checkpoint, tmp_path / "run", toy, bits=bits)))


def test_an_override_of_no_layer_is_refused_before_photos_are_read(
    refused, checkpoint, toy, tmp_path, monkeypatch
):
    monkeypatch.setattr("compression.options.load_photos", None)
    assert "no layer fc.9" in refused(*command(checkpoint, tmp_path / "run", toy, bits="4,fc.9=8"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "scales",
    [{"no.weight": (3, torch.ones(1))}, {"fc.0.weight": (9, torch.ones(1))}, [1], {"fc.0.weight": 3}],
)
def test_damaged_scales_are_refused(refused, checkpoint, tmp_path, scales):
    model = load_model(checkpoint)
    write_checkpoint(tmp_path / "best.pt", model.description, model.state_dict, scales=scales)
    assert "scales that are damaged" in refused("quantize.py", tmp_path / "best.pt", tmp_path / "model.bin")


def test_a_dry_run_writes_nothing(call, checkpoint, toy, tmp_path):
    done = call(*command(checkpoint, tmp_path / "run", toy, "--dry-run"))
    assert done.returncode == 0 and "dry run" in done.stdout and not list(tmp_path.iterdir()), done


@pytest.mark.parametrize("augment, size", [("light", 24), ("none", 0)])
def test_bn_is_reestimated_over_full_batches_of_views_as_in_training(floats, augment, size):
    network, shapes, batch = load_model(floats).build(), [], len(TRAINING) - 1
    network.stem[0].register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    tuned = settings(batch_size=batch, augment=augment, view_size=size)
    reestimate_bn(network, TRAINING, DESCRIPTION.preprocessing, tuned, CPU)
    side = size or DESCRIPTION.preprocessing.size
    assert shapes == [(batch, 3, side, side)]
