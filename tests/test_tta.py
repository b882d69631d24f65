"""Test-time augmentation: the views, their mean by hand, and the scripts that take --tta."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import read_json, write_model
from PIL import Image
from torch import nn

from compression.data import decoding as module
from compression.data.decoding import decode_inputs, decode_photo
from compression.data.preprocessing import GREY, Preprocessing
from compression.data.tta import inputs_of, mean_probabilities
from compression.files.loading import load_model
from dataset import FOOD11_CLASSES, list_labelled
from experiments.toy_food11 import draw_picture


@pytest.fixture(scope="module")
def model64(small_network, tmp_path_factory):
    """The small network as a model file for 64 px, whose other size is 72."""
    description, network = small_network
    description = replace(description, preprocessing=Preprocessing(64))
    return write_model(tmp_path_factory.mktemp("tta") / "model.bin", description, network)


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
        views = [network(normalise(torch.from_numpy(pixels)[None])).softmax(1)[0] for pixels in inputs]
        rows.append(torch.stack(views).mean(0))
    return torch.stack(rows)


def predicted(ok, data, model, folder, *flags):
    """(the CSV's text, probabilities (N, classes) of its --top-k file) of inference.py."""
    options = f"--model {model} --device cpu --top-k 11 {folder}/top.csv --batch-size 4"
    ok("inference.py", *flags, data, folder / "out.csv", options)
    probabilities = []
    with open(folder / "top.csv", newline="") as file:
        for _, *cells in list(csv.reader(file))[1:]:
            by_class = dict(zip(cells[::2], map(float, cells[1::2])))
            probabilities.append([by_class[name] for name in FOOD11_CLASSES])
    return (folder / "out.csv").read_text(), torch.tensor(probabilities)


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
def test_a_photo_is_decoded_once_per_scale_for_several_sizes(tmp_path, monkeypatch, resize, exif):
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
    sizes = [each.size for each in inputs_of(preprocessing, tta=True)]
    inputs = [torch.full((2, size, size, 3), 77, dtype=torch.uint8) for size in sizes]
    assert len(inputs) == 2
    several = mean_probabilities(network, inputs, preprocessing, tta=True)
    one = mean_probabilities(network, inputs[1:2], preprocessing, tta=False)
    torch.testing.assert_close(several, one, atol=1e-4, rtol=0)


def test_a_symmetric_picture_is_its_mirror_image_and_another_is_not(small_network):
    _, network = small_network
    left = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 16, 3), np.uint8))
    for picture, same in ((torch.cat([left, left.flip(2)], 2), True), (torch.cat([left, left], 2), False)):
        once = mean_probabilities(network, [picture], Preprocessing(32), tta=False)
        twice = mean_probabilities(network, [picture], Preprocessing(32), tta=True)
        assert torch.allclose(once, twice, atol=1e-4) == same


# ---------------------------------------------------------------- the scripts


def test_inference_gives_the_mean_over_the_views(ok, photos, model64, tmp_path):
    expected = by_hand(model64, sorted(photos.iterdir()))
    file, probabilities = predicted(ok, photos, model64, tmp_path, "--tta")
    torch.testing.assert_close(probabilities, expected, atol=1e-4, rtol=0)
    rows = [f"{row},{label}\n" for row, label in enumerate(expected.argmax(1).tolist())]
    assert file == "Id,label\n" + "".join(rows)


def test_no_tta_is_what_inference_does_unless_asked(ok, photos, model64, tmp_path):
    plain = predicted(ok, photos, model64, tmp_path)
    off = predicted(ok, photos, model64, tmp_path, "--tta", "--no-tta")  # as through hw7_test.sh
    assert plain[0] == off[0] and torch.equal(plain[1], off[1])
    assert not torch.allclose(plain[1], predicted(ok, photos, model64, tmp_path, "--tta")[1], atol=1e-3)


def test_a_model_of_the_course_rule_is_mirrored_at_its_own_size(ok, photos, small_network, tmp_path):
    description, network = small_network
    description = replace(description, preprocessing=Preprocessing(64, "course"))
    model = write_model(tmp_path / "course.bin", description, network)
    _, probabilities = predicted(ok, photos, model, tmp_path, "--tta")
    expected = by_hand(model, sorted(photos.iterdir()), (64,), "course")
    torch.testing.assert_close(probabilities, expected, atol=1e-4, rtol=0)


def test_bad_photos_are_refused_and_truncated_ones_told_as_without(ok, refused, photos, model64, tmp_path):
    whole = (photos / "0004.jpg").read_bytes()
    (photos / "0004.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    told = ok("inference.py", photos, tmp_path / "out.csv", "--model", model64, "--tta").stderr
    assert "1 of 15 photos" in told and "0004.jpg" in told and told.count("\n") == 1
    (photos / "0007.jpg").write_bytes(b"no photo")
    sentence = refused("inference.py", photos, tmp_path / "new.csv", "--model", model64, "--tta")
    assert "1 of 15" in sentence and "0007.jpg" in sentence and not (tmp_path / "new.csv").exists()


def test_evaluate_measures_the_mean_over_the_views(ok, toy, model64, tmp_path):
    listing = list_labelled(toy, "validation")
    expected, labels = by_hand(model64, listing.paths), torch.tensor(listing.labels)
    loss = nn.functional.nll_loss(expected.log(), labels).item()
    accuracy = (expected.argmax(1) == labels).double().mean().item()
    for flag in ("--tta", "--no-tta"):
        record = tmp_path / f"{flag}.json"
        ok("evaluate.py", model64, toy, flag, f"--reduce 60 --cache none --device cpu --record {record}")
        record = read_json(record)
        assert record["tta"] is (flag == "--tta") and record["photos"] == 22 and record["reduced_to"] == 60
        assert (record["cross_entropy"] == pytest.approx(loss, abs=1e-4)) == record["tta"]
        assert not record["tta"] or record["accuracy"] == pytest.approx(accuracy)


def test_evaluate_tells_of_bad_photos_once(ok, toy, model64, tmp_path):
    shutil.copytree(toy / "validation", tmp_path / "data/validation")
    next((tmp_path / "data/validation").glob("7_*")).write_bytes(b"no photo")
    done = ok("evaluate.py", model64, tmp_path / "data", "--tta --reduce 20 --cache none --device cpu")
    assert done.stderr.count("undecodable") == 1 and "21 photos: accuracy" in done.stdout
