"""Test-time augmentation: the six inputs, their mean by hand, and the scripts that take --tta."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compression.data import decoding as module
from compression.data.decoding import decode_inputs, decode_photo
from compression.data.preprocessing import GREY, Preprocessing
from compression.data.tta import inputs_of, mean_probabilities
from compression.files.loading import load_model
from compression.files.model_file import encode, to_bytes
from dataset import FOOD11_CLASSES, list_labelled
from experiments.toy_food11 import draw_picture


@pytest.fixture(scope="module")
def model64(small_network, tmp_path_factory):
    """The small network as a model file for 64 px, whose other size is 72."""
    description, network = small_network
    path = tmp_path_factory.mktemp("tta") / "model.bin"
    path.write_bytes(
        to_bytes(encode(replace(description, preprocessing=Preprocessing(64)), network.state_dict()))
    )
    return path


@pytest.fixture
def photos(toy, tmp_path):
    """Testing photos, one of them a JPEG that is decoded at half its scale for 64 px and whole for 72."""
    folder = shutil.copytree(toy / "testing", tmp_path / "photos")
    draw_picture(3, np.random.default_rng(0), (300, 260)).save(folder / "0003.jpg")
    return folder


def by_hand(model, paths, sizes=(64, 72), resize="crop"):
    """Mean probabilities (N, classes) of photos that are decoded, mirrored and predicted one by one."""
    network, normalise = load_model(model).build(), Preprocessing().normalise
    rows = []
    for path in paths:
        inputs = [decode_photo(path, Preprocessing(size, resize)) for size in sizes]
        inputs += [np.ascontiguousarray(pixels[:, ::-1]) for pixels in inputs]
        rows.append(
            sum(network(normalise(torch.from_numpy(pixels)[None])).softmax(1)[0] for pixels in inputs)
            / len(inputs)
        )
    return torch.stack(rows)


def predicted(call, data, model, folder, *flags):
    """(the CSV's bytes, probabilities (N, classes) of its --top-k file) of inference.py."""
    done = call(
        "inference.py",
        *flags,
        data,
        folder / "out.csv",
        "--model",
        model,
        "--device",
        "cpu",
        "--top-k",
        11,
        folder / "top.csv",
        "--batch-size",
        4,
    )
    assert done.returncode == 0, done.stderr
    with open(folder / "top.csv", newline="") as file:
        rows = [
            {row[f"class_{rank}"]: float(row[f"probability_{rank}"]) for rank in range(1, 12)}
            for row in csv.DictReader(file)
        ]
    return (folder / "out.csv").read_bytes(), torch.tensor(
        [[row[name] for name in FOOD11_CLASSES] for row in rows]
    )


# ---------------------------------------------------------------- the inputs


@pytest.mark.parametrize(
    "size, sizes",
    [(128, [128, 152]), (64, [64, 72]), (88, [88, 104]), (100, [100, 120]), (16, [16]), (4096, [4096])],
)
def test_the_second_size_is_seven_sixths_rounded_and_possible(size, sizes):
    preprocessing = Preprocessing(size, "squash", std=(1, 2, 3))
    assert inputs_of(preprocessing, tta=True) == [replace(preprocessing, size=each) for each in sizes]
    assert inputs_of(preprocessing, tta=False) == [preprocessing]


@pytest.mark.parametrize("preprocessing", [Preprocessing(256, "course"), Preprocessing(48, **GREY)])
def test_where_other_sizes_make_no_sense_only_the_mirror_image_is_added(preprocessing):
    assert inputs_of(preprocessing, tta=True) == [preprocessing]


@pytest.mark.parametrize("exif", [1, 6])
@pytest.mark.parametrize("resize", ["crop", "squash", "course"])
def test_a_photo_at_several_sizes_is_what_each_size_alone_gives_and_decoded_no_more_than_needed(
    tmp_path, monkeypatch, resize, exif
):
    orientation = Image.Exif()
    orientation[0x0112] = exif
    draw_picture(2, np.random.default_rng(0), (300, 260)).save(tmp_path / "photo.jpg", exif=orientation)
    wanted = [Preprocessing(size, resize) for size in (56, 64, 72, 130)]
    alone = [decode_photo(tmp_path / "photo.jpg", preprocessing) for preprocessing in wanted]
    decoded = []
    to_rgb = module._to_rgb
    monkeypatch.setattr(module, "_to_rgb", lambda image: decoded.append(image.size) or to_rgb(image))
    together = decode_inputs(tmp_path / "photo.jpg", wanted)
    assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))
    # at half its scale for 112 and 128 px, whole for 144 and 260
    assert len(decoded) == (1 if resize == "course" else 2)


# ---------------------------------------------------------------- the mean


def test_a_constant_picture_is_the_same_in_every_view():
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))  # blind to the size
    preprocessing = Preprocessing(64)
    inputs = [
        torch.full((2, each.size, each.size, 3), 77, dtype=torch.uint8)
        for each in inputs_of(preprocessing, tta=True)
    ]
    assert len(inputs) == 2
    torch.testing.assert_close(
        mean_probabilities(network, inputs, preprocessing, tta=True),
        mean_probabilities(network, inputs[1:2], preprocessing, tta=False),
        atol=1e-4,
        rtol=0,
    )


def test_a_symmetric_picture_is_its_mirror_image_and_another_is_not(small_network):
    _, network = small_network
    left = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 16, 3), np.uint8))
    for picture, same in ((torch.cat([left, left.flip(2)], 2), True), (torch.cat([left, left], 2), False)):
        once, twice = (
            mean_probabilities(network, [picture], Preprocessing(32), tta) for tta in (False, True)
        )
        assert torch.allclose(once, twice, atol=1e-4) == same


# ---------------------------------------------------------------- the scripts


def test_inference_gives_the_mean_over_six_inputs(call, photos, model64, tmp_path):
    expected = by_hand(model64, sorted(photos.iterdir()))
    file, probabilities = predicted(call, photos, model64, tmp_path, "--tta")
    torch.testing.assert_close(probabilities, expected, atol=1e-4, rtol=0)
    assert file.decode() == "Id,label\n" + "".join(
        f"{row},{label}\n" for row, label in enumerate(expected.argmax(1).tolist())
    )


def test_no_tta_is_what_inference_does_unless_asked(call, photos, model64, tmp_path):
    plain = predicted(call, photos, model64, tmp_path)
    off = predicted(call, photos, model64, tmp_path, "--tta", "--no-tta")  # as through hw7_test.sh
    assert plain[0] == off[0] and torch.equal(plain[1], off[1])
    assert not torch.allclose(plain[1], predicted(call, photos, model64, tmp_path, "--tta")[1], atol=1e-3)


def test_a_model_of_the_course_rule_is_mirrored_at_its_own_size(call, photos, small_network, tmp_path):
    description, network = small_network
    model = tmp_path / "course.bin"
    model.write_bytes(
        to_bytes(
            encode(replace(description, preprocessing=Preprocessing(64, "course")), network.state_dict())
        )
    )
    expected = by_hand(model, sorted(photos.iterdir()), (64,), "course")
    torch.testing.assert_close(
        predicted(call, photos, model, tmp_path, "--tta")[1], expected, atol=1e-4, rtol=0
    )


def test_bad_photos_are_refused_and_truncated_ones_told_as_without(call, refused, photos, model64, tmp_path):
    whole = (photos / "0004.jpg").read_bytes()
    (photos / "0004.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    done = call("inference.py", photos, tmp_path / "out.csv", "--model", model64, "--tta")
    assert done.returncode == 0 and "1 of 15 photos" in done.stderr and "0004.jpg" in done.stderr
    assert done.stderr.count("\n") == 1
    (photos / "0007.jpg").write_bytes(b"no photo")
    sentence = refused("inference.py", photos, tmp_path / "new.csv", "--model", model64, "--tta")
    assert "1 of 15" in sentence and "0007.jpg" in sentence and not (tmp_path / "new.csv").exists()


def test_evaluate_measures_the_mean_over_six_inputs(call, toy, model64, tmp_path):
    listing = list_labelled(toy, "validation")
    expected, labels = by_hand(model64, listing.paths), torch.tensor(listing.labels)
    for tta in (True, False):
        done = call(
            "evaluate.py",
            model64,
            toy,
            *(["--tta"] if tta else []),
            "--reduce",
            60,
            "--cache",
            "none",
            "--device",
            "cpu",
            "--record",
            tmp_path / "record.json",
        )
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / "record.json").read_text())
        assert record["tta"] is tta and record["photos"] == 22 and record["reduced_to"] == 60
        same = record["cross_entropy"] == pytest.approx(
            nn.functional.nll_loss(expected.log(), labels).item(), abs=1e-4
        )
        assert same == tta
        assert not tta or record["accuracy"] == pytest.approx(
            (expected.argmax(1) == labels).double().mean().item()
        )


def test_evaluate_tells_of_bad_photos_once(call, toy, model64, tmp_path):
    shutil.copytree(toy / "validation", tmp_path / "data/validation")
    next((tmp_path / "data/validation").glob("7_*")).write_bytes(b"no photo")
    done = call(
        "evaluate.py",
        model64,
        tmp_path / "data",
        "--tta",
        "--reduce",
        20,
        "--cache",
        "none",
        "--device",
        "cpu",
    )
    assert done.returncode == 0 and done.stderr.count("undecodable") == 1
    assert "21 photos: accuracy" in done.stdout
