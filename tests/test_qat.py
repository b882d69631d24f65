"""Quantization-aware training: closed forms of the gradients, folding into the scales, resumed runs, and
quantize.py --qat-epochs.
"""

import json
import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import quantize
from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.loading import load_model
from compression.files.model_file import Description
from compression.quantization.folding import foldable_pairs
from compression.quantization.grids import Scheme, dequantize_symmetric, mse_scale, quantize_symmetric
from compression.training.loop import evaluate, fit
from compression.training.losses import CrossEntropy
from compression.training.qat import (
    FakeQuantize,
    LearnedStep,
    fake_quantize,
    finish,
    fold_into_scales,
    quantized_state,
    reestimate_bn,
    stored_scale,
)
from compression.training.recipe import Settings, parameter_groups
from compression.training.run_folder import Run, write_checkpoint
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
    values = torch.tensor([[0.6, -0.2, 0.5, 9.0, -9.0, 1.5, -2.0, 0.9]], requires_grad=True)
    log_scale = torch.tensor([math.log(0.5)], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    rounded = FakeQuantize.apply(values, log_scale, 3)
    assert torch.equal(rounded, torch.tensor([[0.5, 0.0, 0.5, 1.5, -2.0, 1.5, -2.0, 1.0]]))
    rounded.backward(upstream)
    assert torch.equal(values.grad, upstream * torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1]]))
    slopes = torch.tensor([[1 - 1.2, 0 + 0.4, 0, 3, -4, 3, -4, 2 - 1.8]])
    assert log_scale.grad.item() == pytest.approx(
        0.5 * (upstream * slopes).sum().item() / math.sqrt(8 * 3), rel=1e-5
    )


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_scales_gradient_is_lsqs_for_every_group(granularity):
    values = weight(5, 4, 3, 3)
    step = LearnedStep(values, 4, granularity)
    upstream = weight(5, 4, 3, 3, seed=1)
    (step(values) * upstream).sum().backward()
    scale = stored_scale(step.log_scale)
    for group in range(len(scale)):
        own, gradient = (
            tensor[group] if granularity == "channel" else tensor for tensor in (values, upstream)
        )
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
    assert torch.equal(stored_scale(step.log_scale), scale)
    assert torch.equal(step(values), dequantize_symmetric(quantize_symmetric(values, scale, bits), scale))


def test_scales_are_float16_and_above_zero_whatever_is_learned():
    scale = stored_scale(torch.tensor([-1e4, -20.0, -3.21, 0.0, 5.0, 1e4]))
    assert torch.equal(scale, scale.half().float()) and (scale > 0).all() and torch.isfinite(scale).all()


def test_a_weight_that_is_not_finite_is_not_hidden():
    assert FakeQuantize.apply(torch.tensor([[1.0, math.nan]]), torch.zeros(1), 4).isnan().any()


def test_scales_are_learned_without_weight_decay():
    network = fake_quantize(build("residual6", **NARROW), Scheme(4, "channel", "mse"))
    decayed, spared = (group["params"] for group in parameter_groups(network, 0.1))
    scales = {id(parameter) for name, parameter in network.named_parameters() if name.endswith("log_scale")}
    assert (
        scales
        and scales <= {id(parameter) for parameter in spared}
        and not scales & {id(parameter) for parameter in decayed}
    )


def test_the_scheme_says_how_many_bits_each_weight_gets():
    network = build("residual6", **NARROW)
    scheme = Scheme(4, "channel", "mse", overrides={"blocks.0.depthwise.0": 6, "blocks.1.expand.0": 16})
    wanted = {
        name: bits
        for name, bits in scheme.bits_of(network.state_dict()).items()
        if network.state_dict()[name].ndim >= 2 and bits <= 8
    }
    got = {
        name: bits for name, (bits, _) in quantized_state(fake_quantize(network, scheme))["scales"].items()
    }
    assert got == wanted and set(got.values()) == {4, 6, 8} and "blocks.1.expand.0.weight" not in got


def test_the_exported_state_is_the_plain_networks_and_gives_the_same_logits():
    torch.manual_seed(0)
    network = fake_quantize(build("residual6", **NARROW), Scheme(3, "channel", "mse")).eval()
    plain = build("residual6", **NARROW)
    exported = quantized_state(network)
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
            for tensor, low, high in (
                (module.weight.data, -1.0, 1.5),
                (module.bias.data, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.2, 3),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
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
    exported = quantized_state(fake_quantize(network, Scheme(4, "channel", "mse")))
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
        assert torch.equal(scale, scale.half().float()) and torch.equal(
            dequantize_symmetric(codes, scale), tensor
        )
        assert (weight_name in folded) == (not torch.equal(scale, old_scale))
    assert any((scale < 0).any() for _, scale in scales.values()) and all(
        (scale != 0).all() for _, scale in scales.values()
    )


def test_the_folded_bias_belongs_to_the_rounded_scale():
    """Where the input is what BN's running mean says, BN gives exactly beta; so must the folded layer,
    however coarse its scale.
    """
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.BatchNorm2d(1)).eval()
    with torch.no_grad():
        network[0].weight.fill_(3 * 0.25)
        (
            network[1].running_mean.fill_(3000.0),
            network[1].running_var.fill_(1.7),
            network[1].weight.fill_(0.37),
            network[1].bias.fill_(0.5),
        )
    fold_into_scales(network, {"0.weight": (4, torch.tensor([0.25]))})
    assert network(torch.full((1, 1, 1, 1), 4000.0)).item() == pytest.approx(0.5, abs=1e-3)


# ---------------------------------------------------------------- runs


def photo_set(count, seed):
    generator = torch.Generator().manual_seed(seed)
    photos = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return PhotoSet(
        photos, torch.arange(count), torch.arange(count) % 4, ("a", "b", "c", "d"), f"fingerprint {seed}"
    )


TRAINING, VALIDATION = photo_set(96, 1), photo_set(60, 2)
DESCRIPTION = Description.of("residual6", NARROW, TRAINING.class_names, Preprocessing(size=SIZE))


TWO_BITS = Scheme(2, "channel", "mse", overrides={"stem.0": 2, "fc.1": 2})


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A checkpoint of a network in floats whose BN statistics are those of the photos."""
    torch.manual_seed(0)
    network = reestimate_bn(
        build("residual6", **DESCRIPTION.arguments),
        TRAINING,
        DESCRIPTION.preprocessing,
        settings(batch_size=96),
        CPU,
    )
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
    return fit(
        rounded(path, scheme),
        DESCRIPTION,
        TRAINING,
        VALIDATION,
        settings(**(changes or {})),
        out,
        CPU,
        export=quantized_state,
        **options,
    )


class RedOrNot(torch.nn.Module):
    """A single 1x1 convolution and the mean over all pixels: logits (2,) of photos."""

    def __init__(self, num_classes=2, in_channels=3):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, num_classes, 1, bias=False)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_training_through_the_rounding_regains_what_rounding_lost(tmp_path, monkeypatch, granularity):
    """The weights that matter, -0.4 and 0.4, are rounded to 0 by the scale of 1 that the large ones ask for,
    which see only zeros.

    Until both weights are rounded otherwise the logits are 0, so their gradients are exactly 0.5 and -0.5 and
    the scale's positive: two steps of Nesterov momentum, lr * 0.5 * (1.9 + 2.71) = 0.115, make 0.4 more than
    half a scale. Behind that the gradients keep their sign. A rounding without the gradient of Esser et al.
    leaves the weights where they are.
    """
    monkeypatch.setitem(ARCHITECTURES, "red_or_not", Architecture(RedOrNot, SIZE, "test"))
    preprocessing = Preprocessing(SIZE, mean=(0.5, 0, 0), std=(0.3, 1, 1))
    description = Description.of("red_or_not", {"num_classes": 2}, ("grey", "red"), preprocessing)
    labels = torch.arange(8) % 2
    photos = torch.zeros(8, SIZE, SIZE, 3, dtype=torch.uint8)
    photos[..., 0] = torch.where(labels == 1, 204, 51).view(
        -1, 1, 1
    )  # 1 and -1 for the network; green and blue are 0
    photos = PhotoSet(photos, torch.arange(8), labels, description.class_names, "red")
    write_checkpoint(
        tmp_path / "floats.pt",
        description,
        {"conv.weight": torch.tensor([[-0.4, 7, 0], [0.4, 7, 0]]).view(2, 3, 1, 1)},
    )
    scheme = Scheme(4, granularity, "mse", overrides={"conv": 4})

    def measured(network):
        return evaluate(network, photos, preprocessing, CPU)

    assert measured(load_model(tmp_path / "floats.pt").build())[1] == 1
    network = rounded(tmp_path / "floats.pt", scheme)
    assert measured(network)[:2] == (pytest.approx(math.log(2)), 0.5)
    learning = settings(
        optimizer="sgd", lr=0.05, weight_decay=0.0, schedule="constant", label_smoothing=0.0, ema=0, epochs=6
    )
    record = fit(
        network, description, photos, photos, learning, tmp_path / "run", CPU, export=quantized_state
    )
    assert [row["validation_accuracy"] for row in record["history"]] == [0.5, 1, 1, 1, 1, 1]
    model, _ = finish(tmp_path / "run/best.pt", photos, scheme, learning, CPU)
    loss, accuracy, _ = measured(model.build())
    assert accuracy == 1 and loss < 0.2  # log(1 + exp(-2 * scale)), with a scale near 1


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_scale_per_channel_takes_bn_in_and_one_per_tensor_leaves_it(floats, tmp_path, granularity):
    scheme = replace(TWO_BITS, granularity=granularity)
    tune(floats, tmp_path, scheme, changes={"epochs": 1})
    model, scales = finish(tmp_path / "best.pt", TRAINING, scheme, settings(), CPU)
    assert all(
        len(scale) == (len(model.state_dict[name]) if granularity == "channel" else 1)
        for name, (_, scale) in scales.items()
    )
    assert bool(foldable_pairs(model.build())) == (
        granularity == "tensor"
    ) and model.description.arguments.get("folded", False) == (granularity == "channel")


def test_the_best_checkpoint_is_an_ordinary_one_of_rounded_weights(floats, tmp_path):
    record = tune(floats, tmp_path)
    model = load_model(tmp_path / "best.pt")
    loss = evaluate(model.build(), VALIDATION, DESCRIPTION.preprocessing, CPU)[0]
    assert loss == pytest.approx(record["best"]["validation_loss"], rel=1e-3)
    assert all(
        len(model.state_dict[name][channel].unique()) <= 4
        for name in ("stem.0.weight", "blocks.0.project.0.weight", "fc.1.weight")
        for channel in range(4)
    )


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


@pytest.mark.parametrize(
    "stop, error",
    [(Stop(13), RuntimeError), (Stop(12, signal.SIGTERM), SystemExit)],
    ids=["killed", "SIGTERM"],
)
def test_a_resumed_run_ends_with_bitwise_the_same_weights_and_scales(floats, tmp_path, stop, error):
    tune(floats, tmp_path / "whole", changes={"augment": "standard"})
    with pytest.raises(error):
        tune(floats, tmp_path / "parts", changes={"augment": "standard"}, loss_function=stop)
    torch.rand(5)
    tune(floats, tmp_path / "parts", changes={"augment": "standard"}, resume=True)
    states = [
        torch.load(tmp_path / name / "last.pt", weights_only=True)["run"] for name in ("whole", "parts")
    ]
    for part in ("network", "ema"):
        assert states[0][part].keys() == states[1][part].keys() and all(
            torch.equal(states[0][part][name], states[1][part][name]) for name in states[0][part]
        )
    (whole, scales), (parts, same) = (
        finish(tmp_path / name / "best.pt", TRAINING, TWO_BITS, settings(augment="standard"), CPU)
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole.state_dict[name], parts.state_dict[name]) for name in whole.state_dict)
    assert all(torch.equal(scales[name][1], same[name][1]) for name in scales)


def test_a_run_of_other_bits_is_not_continued(floats, tmp_path):
    tune(floats, tmp_path, changes={"epochs": 1})
    with pytest.raises(UserError, match="cannot be continued"):
        tune(floats, tmp_path, Scheme(4, "tensor", "mse"), changes={"epochs": 1}, resume=True)


def test_a_checkpoint_without_scales_is_not_finished(floats):
    with pytest.raises(UserError, match="holds no scales"):
        finish(floats, TRAINING, TWO_BITS, settings(), CPU)


def test_bn_is_reestimated_over_the_photos_of_the_training(floats):
    network = load_model(floats).build()
    reestimate_bn(network, TRAINING, DESCRIPTION.preprocessing, settings(batch_size=128), CPU)
    outputs = network.stem[0](DESCRIPTION.preprocessing.normalise(TRAINING.photos))
    norm = network.stem[1]
    assert torch.allclose(
        norm.running_mean, outputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-4
    ) and torch.allclose(norm.running_var, outputs.var((0, 2, 3)), rtol=1e-3)
    assert not network.training and norm.momentum == 0.1
    again = reestimate_bn(
        load_model(floats).build(), TRAINING, DESCRIPTION.preprocessing, settings(batch_size=128), CPU
    )
    assert all(
        torch.equal(network.state_dict()[name], again.state_dict()[name]) for name in network.state_dict()
    )


def test_training_in_bf16_learns_scales_in_fp32(floats, tmp_path):
    tune(floats, tmp_path, changes={"epochs": 1, "precision": "bf16"})
    states = [
        state
        for state in torch.load(tmp_path / "last.pt", weights_only=True)["run"]["network"].items()
        if state[0].endswith("log_scale")
    ]
    assert states and all(
        tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for _, tensor in states
    )


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def checkpoint(small_network, tmp_path_factory):
    """A checkpoint as the training scripts write it, of a network for the toy photos."""
    description, network = small_network
    path = tmp_path_factory.mktemp("run") / "best.pt"
    torch.save(
        {
            "format": "food11-checkpoint",
            "version": 1,
            **description.to_dict(),
            "state_dict": network.state_dict(),
        },
        path,
    )
    return path


def command(checkpoint, output, toy, *more):
    return [
        "quantize.py",
        checkpoint,
        output,
        "--bits",
        3,
        "--qat-epochs",
        2,
        "--data",
        toy,
        "--cache",
        "none",
        "--recipe",
        "batch_size=11",
        "--device",
        "cpu",
        "--out",
        output.parent / "run",
        *more,
    ]


def photos_of(toy, description):
    return load_photos(
        list_labelled(toy, "validation", description.class_names), description.preprocessing, cache=False
    )


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_file_holds_bitwise_what_was_evaluated_last(
    call, checkpoint, toy, tmp_path, monkeypatch, granularity
):
    evaluated = []

    def noting(network, *rest, **options):
        evaluated.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return evaluate(network, *rest, **options)

    monkeypatch.setattr("quantize.evaluate", noting)
    done = call(
        *command(
            checkpoint,
            tmp_path / "model.bin",
            toy,
            "--granularity",
            granularity,
            "--record",
            tmp_path / "record.json",
        )
    )
    assert done.returncode == 0, done.stderr
    model, record = load_model(tmp_path / "model.bin"), json.loads((tmp_path / "record.json").read_text())
    weights = evaluated[-1]
    assert weights.keys() == model.state_dict.keys() and all(
        torch.equal(weights[name], model.state_dict[name]) for name in weights
    )
    network, photos = model.build().to(memory_format=torch.channels_last), photos_of(toy, model.description)
    accuracy = evaluate(network, photos, model.description.preprocessing, CPU)[1]
    assert (
        record["validation_accuracy_after"] == accuracy and f"-> {accuracy:.4f} on 22 photos" in done.stdout
    )
    images = model.description.preprocessing.normalise(photos.photos)
    assert torch.equal(model.build()(images), model.description.build(weights)(images))

    prepared, scales = finish(
        tmp_path / "run/best.pt",
        load_photos(list_labelled(toy, "training"), model.description.preprocessing, cache=False),
        Scheme(3, granularity, "mse"),
        Settings(batch_size=11),
        CPU,
    )
    assert all(torch.equal(model.state_dict[name], prepared.state_dict[name]) for name in scales)
    assert (
        record["fine_tuning"]["settings"]["epochs"] == 2
        and record["fine_tuning"]["commit"]
        and record["fine_tuning"]["resumed"] == []
        and record["bits"] == 3
        and model.description.training["script"] == "quantize.py"
    )


def test_the_same_command_resumes_a_killed_run_to_the_same_file(call, checkpoint, toy, tmp_path, monkeypatch):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert call(*command(checkpoint, tmp_path / "whole/model.bin", toy)).returncode == 0
    steps, train_step = iter(range(100)), Run.train_step

    def killed(self, batch):
        if next(steps) == 5:
            raise KeyboardInterrupt
        train_step(self, batch)

    monkeypatch.setattr(Run, "train_step", killed)
    assert (
        call(*command(checkpoint, tmp_path / "parts/model.bin", toy)).returncode == 130
        and not (tmp_path / "parts/model.bin").exists()
    )
    monkeypatch.undo()
    for _ in range(2):  # once more: a finished run is only finished again
        done = call(*command(checkpoint, tmp_path / "parts/model.bin", toy, "--resume"))
        assert (
            done.returncode == 0
            and (tmp_path / "whole/model.bin").read_bytes() == (tmp_path / "parts/model.bin").read_bytes()
        ), done
    assert "is finished already" in done.stdout


def test_a_teacher_and_another_size_are_recorded(call, checkpoint, toy, tmp_path):
    done = call(
        *command(
            checkpoint,
            tmp_path / "model.bin",
            toy,
            "--teacher",
            checkpoint,
            "--teacher",
            checkpoint,
            "--recipe",
            "alpha=1",
            "--size",
            48,
            "--qat-epochs",
            1,
            "--record",
            tmp_path / "record.json",
        )
    )
    assert done.returncode == 0, done.stderr
    training = load_model(tmp_path / "model.bin").description.training
    assert len(training["teachers"]) == 2 and training["alpha"] == 1 and len(training["started_from"]) == 16
    assert (
        load_model(tmp_path / "model.bin").description.preprocessing.size == 48
        and load_model(tmp_path / "run/best.pt").description.preprocessing.size == 32
    )
    assert (
        json.loads((tmp_path / "record.json").read_text())["fine_tuning"]["teachers"][0]["file"] == "best.pt"
    )


def test_what_a_teacher_learned_from_the_testing_photos_is_told_of_its_student(
    call, small_network, checkpoint, toy, tmp_path
):
    description, network = small_network
    told = replace(description, training={"transductive": True}).to_dict()
    torch.save(
        {"format": "food11-checkpoint", "version": 1, **told, "state_dict": network.state_dict()},
        tmp_path / "teacher.pt",
    )
    done = call(
        *command(
            checkpoint, tmp_path / "model.bin", toy, "--teacher", tmp_path / "teacher.pt", "--qat-epochs", 1
        )
    )
    assert (
        done.returncode == 0
        and load_model(tmp_path / "model.bin").description.training["transductive"] is True
    ), done


def test_a_teacher_is_not_overwritten(refused, checkpoint, toy, tmp_path):
    (tmp_path / "teacher.pt").write_bytes(checkpoint.read_bytes())
    for output, more in (("teacher.pt", []), ("model.bin", ["--record", tmp_path / "teacher.pt"])):
        assert "teacher.pt is named twice" in refused(
            *command(checkpoint, tmp_path / output, toy, "--teacher", tmp_path / "teacher.pt", *more)
        )
    assert (tmp_path / "teacher.pt").read_bytes() == checkpoint.read_bytes()


def test_a_file_that_is_too_large_by_its_bn_is_told_before_the_training(
    call, refused, checkpoint, toy, tmp_path
):
    assert (
        call(
            "quantize.py", checkpoint, tmp_path / "folded.bin", "--bits", 3, "--granularity", "tensor"
        ).returncode
        == 0
    )
    size = (tmp_path / "folded.bin").stat().st_size
    assert "nothing was written" in refused(
        *command(
            checkpoint, tmp_path / "model.bin", toy, "--granularity", "tensor", "--max-bytes", size + 100
        )
    )
    assert [path.name for path in tmp_path.iterdir()] == ["folded.bin"]


@pytest.mark.parametrize(("epochs", "scales"), [(None, {"mse", "minmax"}), (2, {"mse"})])
def test_advice_on_a_file_that_is_too_large_names_no_grid_that_cannot_be_trained(checkpoint, epochs, scales):
    options = SimpleNamespace(
        scale=None, qat_epochs=epochs, granularity="channel", vectors=16, override=[], max_bytes=4500
    )
    best, tried = quantize.search(quantize.folded(load_model(checkpoint)), options)
    assert (
        len(best.file) <= 4500
        and best.scheme.bits <= 8
        and {one.scheme.scale for one in tried if one.scheme.bits <= 8} == scales
    )


def test_a_training_whose_file_is_too_large_is_kept_and_can_be_stored(
    call, checkpoint, toy, tmp_path, monkeypatch
):
    encode_within_limit = quantize.encode_within_limit
    monkeypatch.setattr(
        "quantize.encode_within_limit",
        lambda model, options, accuracy_of, scales=None: (
            encode_within_limit(model, options, accuracy_of, scales) if scales else None
        ),
    )
    again = command(checkpoint, tmp_path / "model.bin", toy, "--qat-epochs", 1)
    sentence = error(call(*again, "--max-bytes", 2000))
    assert (
        f"kept in {tmp_path / 'run'}" in sentence
        and "--resume" in sentence
        and "--bits" not in sentence
        and not (tmp_path / "model.bin").exists()
    )
    assert call(*again, "--resume", "--vectors", 8).returncode == 0 and (tmp_path / "model.bin").exists()


def test_a_dry_run_writes_nothing(call, checkpoint, toy, tmp_path):
    done = call(
        *command(
            checkpoint,
            tmp_path / "new/models/model.bin",
            toy,
            "--record",
            tmp_path / "records/new.json",
            "--dry-run",
        )
    )
    assert done.returncode == 0 and "dry run" in done.stdout and not list(tmp_path.iterdir()), done


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--bits", "16"], "stores floats"),
        (["--bits", "32"], "stores floats"),
        (["--scale", "minmax"], "--scale minmax"),
        (["--qat-epochs", "0"], "out of range"),
        (["--max-bytes", "2000"], "nothing was written"),
        (["--override", "fc.9=3"], "fc.9"),
        (["--recipe", "precision=fp16"], "needs a GPU"),
        (["--recipe", "view_size=64", "--recipe", "augment=none"], "--view-size is the size of random views"),
    ],
)
def test_what_cannot_be_is_told_before_any_training(refused, checkpoint, toy, tmp_path, flags, message):
    assert message in refused(*command(checkpoint, tmp_path / "model.bin", toy, *flags))
    assert not list(tmp_path.iterdir())


def test_an_override_of_what_only_folding_makes_is_refused_before_photos_are_read(refused, call, tmp_path):
    """Stored without training the layer has such a bias; in training it is BN's still."""
    torch.save(
        {
            "format": "food11-checkpoint",
            "version": 1,
            **DESCRIPTION.to_dict(),
            "state_dict": build("residual6", **DESCRIPTION.arguments).state_dict(),
        },
        tmp_path / "best.pt",
    )
    flags = ["--override", "stem.0.bias=8"]
    assert "no layer stem.0.bias" in refused(
        *command(tmp_path / "best.pt", tmp_path / "model.bin", tmp_path / "no photos", *flags)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert call("quantize.py", tmp_path / "best.pt", tmp_path / "model.bin", *flags).returncode == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--bits", 4, "--qat-epochs", 1], "--data"),
        (["--qat-epochs", 1, "--data", "."], "no --bits"),
        (["--teacher", "best.pt"], "--teacher goes with --qat-epochs"),
        (["--recipe", "batch_size=32"], "--batch-size goes with --qat-epochs"),
        (["--resume"], "--resume goes with"),
    ],
)
def test_options_of_fine_tuning_stand_or_fall_together(refused, checkpoint, tmp_path, flags, message):
    assert message in refused("quantize.py", checkpoint, tmp_path / "model.bin", *flags) and not list(
        tmp_path.iterdir()
    )


def error(done):
    """What a script that had read its photos was ended by."""
    *_, photos, sentence = done.stderr.splitlines()  # before them: the table of photos per class
    assert done.returncode == 2 and photos.startswith("44 training"), done
    return sentence


def test_a_teacher_that_is_missing_or_of_other_classes_is_refused(refused, checkpoint, toy, tmp_path):
    other = Description.of("student", {"widths": (4,) * 8, "in_channels": 3}, ("a", "b"), Preprocessing(32))
    torch.save(
        {
            "format": "food11-checkpoint",
            "version": 1,
            **other.to_dict(),
            "state_dict": build("student", **other.arguments).state_dict(),
        },
        tmp_path / "teacher.pt",
    )
    for teacher, message in (("teacher.pt", "has 2 classes"), ("absent.pt", "there is no teacher file")):
        assert message in refused(
            *command(checkpoint, tmp_path / "out/model.bin", toy, "--teacher", tmp_path / teacher)
        )
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_overwritten_nor_continued_with_other_bits(call, checkpoint, toy, tmp_path):
    assert call(*command(checkpoint, tmp_path / "model.bin", toy, "--qat-epochs", 1)).returncode == 0
    assert "already holds a run" in error(
        call(*command(checkpoint, tmp_path / "other.bin", toy, "--qat-epochs", 1))
    )
    assert "training.bits = 3 and this command means 4" in error(
        call(*command(checkpoint, tmp_path / "other.bin", toy, "--qat-epochs", 1, "--bits", 4, "--resume"))
    )
    assert not (tmp_path / "other.bin").exists()
