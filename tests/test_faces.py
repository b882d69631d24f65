"""The 2019 homework's CSV of grey faces: how it is read and split, grey views, and the whole pipeline on a
drawn one.
"""

import csv
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import generator, learn_by_heart, read_json, words, write_model
from PIL import Image

from compression.command_line import UserError
from compression.data.augmentation import AUGMENTATIONS
from compression.data.decoding import decode_photo, resize_image
from compression.data.faces import FACE_CLASSES
from compression.data.inventory import check_photos
from compression.data.preprocessing import GREY, Preprocessing
from compression.files.description import Description
from compression.files.loading import load_model
from compression.training.run_folder import write_checkpoint
from dataset import join, list_labelled, list_testing, list_testing_beside, load_photos, photo_channels
from models import build
from train_kd import list_extra

PLAIN = Preprocessing(48, mean=(0,), std=(1,))  # values in [0, 1]
FER = "--size 48 --recipe batch_size=16 augment=none precision=fp32 ema=0.9 lr=0.01 --epochs 2 --device cpu"
CNN = "--network fer_cnn --set widths=8,8,8 --set hidden=32,64"
MOBILENET = "--network fer_mobilenet --set widths=8,8,16,16 --set strides=2,1,2 --set dropouts=0,0,0,0"


def draw(count, seed):
    """Faces that are no faces: (uint8 (count, 48, 48), labels). A class is a level of grey, the classes take
    turns.
    """
    labels = np.arange(count) % 7
    noise = np.random.default_rng(seed).normal(0, 8, (count, 48, 48))
    return (20 + 35 * labels[:, None, None] + noise).clip(0, 255).astype(np.uint8), labels


def write(path, header, keys, pictures):
    rows = (f"{key},{' '.join(map(str, picture.ravel()))}\n" for key, picture in zip(keys, pictures))
    path.write_text(header + "\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folder with a train.csv of 210 faces and a test.csv of 21 with the ids 100, 101, ..."""
    root = tmp_path_factory.mktemp("faces")
    pictures, labels = draw(210, 0)
    write(root / "train.csv", "label,feature", labels, pictures)
    write(root / "test.csv", "id,feature", range(100, 121), draw(21, 1)[0])
    return root


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """best.pt of a narrow fer_cnn after a short training, and made to know the validation faces: a teacher
    better than guessing.
    """
    import train_student

    out = tmp_path_factory.mktemp("runs") / "fer_cnn"
    assert train_student.main([*words([drawn / "train.csv", CNN, FER, f"--out {out}"])]) == 0
    model = load_model(out / "best.pt")
    network, preprocessing = model.build(), model.description.preprocessing
    learn_by_heart(network, preprocessing, load_photos(list_labelled(drawn, "validation"), preprocessing))
    write_checkpoint(out / "best.pt", model.description, network.state_dict())
    return out / "best.pt"


# ---------------------------------------------------------------- reading


def test_pixels_are_read_row_by_row_from_the_top_left(tmp_path):
    picture = (np.arange(48 * 48) % 251).reshape(1, 48, 48)
    path = write(tmp_path / "test.csv", "id,feature", [3], picture)
    photos = load_photos(list_testing(path), PLAIN).photos
    assert photos.shape == (1, 48, 48, 1) and photos.dtype == torch.uint8
    assert photos[0, 0, 1, 0] == 1 and photos[0, 1, 0, 0] == 48
    assert torch.equal(photos[0, :, :, 0], torch.from_numpy(picture[0].astype(np.uint8)))


def test_labels_and_their_names(drawn):
    training = load_photos(list_labelled(drawn / "train.csv", "training"), PLAIN)
    assert training.class_names == ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
    assert torch.equal(training.labels, ((training.photos.float().mean((1, 2, 3)) - 20) / 35).round().long())


def test_testing_faces_come_in_ascending_order_of_their_ids(tmp_path):
    pictures, _ = draw(3, 0)
    listing = list_testing(write(tmp_path / "any.csv", "id,feature", [10, 9, 0], pictures))
    assert listing.ids == (0, 9, 10) and np.array_equal(listing.faces, pictures[::-1])
    assert list_testing(tmp_path / "any.csv", by_name=True).ids == ("0", "10", "9")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\n\n") + "\n",
        lambda text: text.rstrip("\n"),
        lambda text: re.sub("[^,\n]+", r'"\g<0>"', text),
    ],
)
def test_line_ends_blank_lines_byte_order_marks_and_quotes_change_nothing(drawn, tmp_path, change):
    text = (drawn / "test.csv").read_text()
    (tmp_path / "test.csv").write_bytes(change(text).encode())
    same, listing = list_testing(drawn / "test.csv"), list_testing(tmp_path / "test.csv")
    assert np.array_equal(listing.faces, same.faces) and listing.ids == same.ids
    assert listing.fingerprint() == same.fingerprint()


def test_a_folder_with_the_csvs_is_the_same_as_their_names(drawn, toy):
    for split in ("training", "validation"):
        listings = [list_labelled(root, split) for root in (drawn, drawn / "train.csv")]
        assert listings[0].fingerprint() == listings[1].fingerprint()
    assert list_testing(drawn).ids == tuple(range(100, 121))
    assert [photo_channels(root) for root in (drawn, drawn / "train.csv", toy)] == [1, 1, 3]


def test_csvs_in_a_root_of_photos_are_passed_over(toy, drawn, tmp_path):
    shutil.copytree(toy, tmp_path / "both")
    for name in ("train.csv", "test.csv"):
        shutil.copy(drawn / name, tmp_path / "both" / name)
    assert photo_channels(tmp_path / "both") == 3 and len(list_labelled(tmp_path / "both", "training")) == 44
    assert len(list_testing(tmp_path / "both")) == 15


# ---------------------------------------------------------------- the split


def test_every_tenth_row_of_a_class_is_validation(tmp_path):
    labels = [0] * 25 + [1] * 9 + [0] * 5 + [2] * 10
    pictures = np.zeros((len(labels), 48, 48), int)
    pictures[:, 0, 0] = np.arange(len(labels))  # the number of the row
    path = write(tmp_path / "train.csv", "label,feature", labels, pictures)
    listings = [list_labelled(path, split) for split in ("training", "validation")]
    training, validation = ([int(face[0, 0]) for face in listing.faces] for listing in listings)
    assert validation == [9, 19, 38, 48]  # the 30th of class 0 is row 38, class 1 has no 10th
    assert training == [row for row in range(len(labels)) if row not in validation]
    assert [labels[row] for row in training] == list(listings[0].labels)
    assert listings[1].labels == (0, 0, 0, 2)


def test_the_split_is_stratified_and_the_same_every_time(drawn):
    training, validation = (list_labelled(drawn, split) for split in ("training", "validation"))
    assert np.bincount(training.labels).tolist() == [27] * 7
    assert np.bincount(validation.labels).tolist() == [3] * 7
    again = list_labelled(drawn, "validation").fingerprint()
    assert training.fingerprint() != validation.fingerprint() == again


def test_a_validation_csv_beside_the_training_csv_is_the_validation_part(drawn, tmp_path):
    shutil.copy(drawn / "train.csv", tmp_path / "train.csv")
    pictures, labels = draw(5, 2)
    write(tmp_path / "validation.csv", "label,feature", labels, pictures)
    assert len(list_labelled(tmp_path / "train.csv", "training")) == 210
    assert np.array_equal(list_labelled(tmp_path / "train.csv", "validation", FACE_CLASSES).faces, pictures)


def test_a_changed_pixel_or_label_is_another_fingerprint(drawn, tmp_path):
    pictures, labels = draw(70, 0)
    fingerprints = set()
    for row, change in ((0, 0), (0, 1), (1, 1)):
        pictures[row, 47, 47] ^= change
        for first in (0, 1):
            write(tmp_path / "train.csv", "label,feature", [first, *labels[1:]], pictures)
            fingerprints.add(list_labelled(tmp_path, "training").fingerprint())
    assert len(fingerprints) == 6


def test_copies_of_faces_and_missing_classes_are_told_with_their_places_in_the_file(tmp_path):
    pictures, labels = draw(70, 0)
    pictures[63], pictures[64] = pictures[7], pictures[1]  # of class 0, for validation; of class 1, as well

    def told():
        write(tmp_path / "train.csv", "label,feature", labels, pictures)
        lines, listings = [], [list_labelled(tmp_path, split) for split in ("training", "validation")]
        training, validation = (load_photos(listing, PLAIN) for listing in listings)
        check_photos(listings[0], training, listings[1], validation, lines.append)
        return lines[-1]

    assert "2 of 7 validation photos are copies" in told()
    assert "train.csv, face 64, a copy of train.csv, face 8" in told()
    labels[labels == 6] = 5
    with pytest.raises(UserError, match=r"train.csv has no readable photo of 1 of 7 classes \(Neutral\)"):
        told()


def test_the_testing_faces_are_recognised_among_the_unlabelled(drawn, toy):
    unlabelled = list_testing(drawn / "test.csv", by_name=True)
    assert set(unlabelled.labels) == {-1} and len(unlabelled) == 21
    for root in (drawn, drawn / "train.csv"):
        assert list_testing_beside(root).fingerprint() == unlabelled.fingerprint()
    assert len(list_testing_beside(toy)) == 15 and list_testing_beside(toy / "training") is None
    options = SimpleNamespace(unlabeled=drawn / "test.csv", data=drawn, validation_share=0.0)
    assert list_extra(options)[1] is True


def test_validation_faces_among_the_unlabelled_are_told(drawn, capsys, tmp_path):
    faces = [list_labelled(drawn, "validation").faces[3], np.zeros((48, 48), np.uint8)]
    more = write(tmp_path / "more.csv", "id,feature", [5, 6], faces)
    assert len(list_extra(SimpleNamespace(unlabeled=more, data=drawn, validation_share=0.0))[0]) == 2
    assert "1 faces of" in capsys.readouterr().err


# ---------------------------------------------------------------- pixels to input


def test_a_face_keeps_its_pixels_at_48_and_is_resized_elsewhere(drawn):
    listing = list_labelled(drawn, "validation")
    for resize in ("crop", "squash", "course"):
        preprocessing = Preprocessing(48, resize, (0,), (1,))
        same = load_photos(listing, preprocessing)
        face = resize_image(Image.fromarray(listing.faces[2]), preprocessing)
        assert np.array_equal(same.photos[2], face)
    assert np.array_equal(same.photos[..., 0], listing.faces) and same.rows.tolist() == list(range(21))
    larger = load_photos(listing, Preprocessing(96, mean=(0,), std=(1,)))
    face = Image.fromarray(listing.faces[3]).resize((96, 96), Image.BICUBIC)
    assert np.array_equal(larger.photos[3, ..., 0], np.asarray(face))
    padded = load_photos(listing, Preprocessing(64, "course", (0,), (1,))).photos
    assert np.array_equal(padded[:, 8:56, 8:56, 0], listing.faces) and padded[:, :8].max() == 0


def test_a_face_is_reduced_to_the_detail_at_any_size(drawn):
    listing = list_labelled(drawn, "validation")
    small = Image.fromarray(listing.faces[0]).resize((24, 24), Image.LANCZOS)
    for size in (48, 96):
        seen = load_photos(listing, Preprocessing(size, mean=(0,), std=(1,), detail=24)).photos
        assert np.array_equal(seen[0, ..., 0], np.asarray(small.resize((size, size), Image.BICUBIC)))


def test_a_face_is_grey_for_an_rgb_network_and_a_photo_for_a_grey_one(drawn, toy, tmp_path):
    listing = list_labelled(drawn, "validation")
    rgb = np.repeat(listing.faces[..., None], 3, 3)
    assert np.array_equal(load_photos(listing, Preprocessing(48)).photos, rgb)
    photo = next((toy / "testing").iterdir())
    expected = np.asarray(Image.fromarray(decode_photo(photo, Preprocessing(64, "course"))).convert("L"))
    assert np.array_equal(decode_photo(photo, Preprocessing(64, "course", **GREY))[..., 0], expected)
    photos = list_labelled(toy, "validation")
    # one cache does not stand for the other
    for preprocessing in (Preprocessing(32, **GREY), Preprocessing(32)) * 2:
        assert load_photos(photos, preprocessing, tmp_path).photos.shape == (22, *preprocessing.shape)
    assert len(list(tmp_path.iterdir())) == 2
    both = join(load_photos(photos, PLAIN, False), load_photos(listing, PLAIN))
    assert both.photos.shape == (43, 48, 48, 1)


def test_a_face_needs_no_cache(drawn, tmp_path):
    load_photos(list_labelled(drawn, "validation"), PLAIN, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_normalisation_of_grey():
    photos = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3, 1)
    normalised = Preprocessing(48, mean=(0.2,), std=(0.5,)).normalise(photos)
    torch.testing.assert_close(normalised, torch.tensor([-0.4, 0.0, 1.6]).view(1, 1, 1, 3))


@pytest.mark.parametrize("name", ["light", "standard", "strong"])
def test_a_grey_view_is_the_view_of_the_same_photo_in_rgb(name):
    """Saturation and hue leave R = G = B as they are, so one channel is all of the RGB view."""
    photos = torch.randint(0, 256, (16, 48, 48, 1), dtype=torch.uint8, generator=generator(0))

    def views(channels):
        preprocessing = Preprocessing(48, mean=(0.4,) * channels, std=(0.3,) * channels)
        return AUGMENTATIONS[name](photos.expand(-1, -1, -1, channels), preprocessing, generator(1))

    grey, rgb = views(1), views(3)
    assert grey.shape == (16, 1, 48, 48)
    for channel in range(3):
        torch.testing.assert_close(grey[:, 0], rgb[:, channel], rtol=0, atol=1e-3)
    assert grey.min() >= -0.4 / 0.3 - 1e-6 and grey.max() <= 0.6 / 0.3 + 1e-6


# ---------------------------------------------------------------- the command lines


def test_from_the_csv_to_the_prediction(drawn, trained, ok, tmp_path):
    """Teacher, distilled student, model file, CSV: the commands of the README."""
    record = read_json(trained.with_name("record.json"))
    assert record["photos"] == {"training": 189, "validation": 21}
    assert record["model"]["arguments"]["in_channels"] == 1
    assert record["model"]["preprocessing"]["mean"] == [0.5]

    train, test, student = drawn / "train.csv", drawn / "test.csv", tmp_path / "kd/best.pt"
    files = f"--teacher {trained} --unlabeled {test} --out {tmp_path}/kd"
    done = ok("train_kd.py", train, files, MOBILENET, FER, "--recipe temperature=2.5")
    assert "transductive" in done.stderr
    training = load_model(student).description.training
    assert training["temperature"] == 2.5 and training["unlabelled_photos"] == 21
    assert training["transductive"] is True
    assert read_json(tmp_path / "kd/record.json")["teachers"][0]["validation_accuracy"] == 1

    done = ok("quantize.py", student, tmp_path / "fer.bin", f"--data {train} --device cpu")
    assert re.search(r"validation accuracy [\d.]+ -> [\d.]+ on 21 photos", done.stdout)

    files = f"--model {tmp_path}/fer.bin --top-k 2 {tmp_path}/top.csv"
    assert "21 photos" in ok("inference.py", test, tmp_path / "prediction.csv", files).stdout
    rows = [line.split(",") for line in (tmp_path / "prediction.csv").read_text().splitlines()]
    assert rows[0] == ["id", "label"] and [int(identity) for identity, _ in rows[1:]] == list(range(100, 121))
    labels = [int(label) for _, label in rows[1:]]
    assert labels == logits_of(load_model(tmp_path / "fer.bin"), drawn).argmax(1).tolist()
    top = list(csv.DictReader(open(tmp_path / "top.csv")))
    assert [FACE_CLASSES[label] for label in labels] == [row["class_1"] for row in top]
    assert top[0]["id"] == "100"


def logits_of(model, root):
    """A model's logits for the testing faces, by hand."""
    preprocessing = model.description.preprocessing
    return model.build()(preprocessing.normalise(load_photos(list_testing(root), preprocessing).photos))


def test_faces_predict_like_the_network_that_was_stored(drawn, trained, ok, tmp_path):
    ok("inference.py", drawn, tmp_path / "out.csv", f"--model {trained} --batch-size 4 --device cpu")
    labels = logits_of(load_model(trained), drawn).argmax(1).tolist()
    rows = [f"{100 + row},{label}\n" for row, label in enumerate(labels)]
    assert (tmp_path / "out.csv").read_text() == "id,label\n" + "".join(rows)


def test_a_network_of_grey_faces_predicts_photos_too(toy, trained, ok, tmp_path):
    ok("inference.py", toy, tmp_path / "out.csv", f"--model {trained} --device cpu")
    assert (tmp_path / "out.csv").read_text().startswith("Id,label\n0,")


def test_any_network_trains_on_faces_and_the_2019_networks_on_photos(drawn, toy, ok, tmp_path):
    for data, network in (
        (drawn, "--network student --set widths=8,8,8,8,8,8 --size 32"),
        (toy, f"{MOBILENET} --size 48"),
    ):
        common = f"--cache none --dry-run --device cpu --out {tmp_path}/run"
        assert "dry run of two steps is fine" in ok("train_student.py", data, network, common).stdout


def test_a_teacher_of_other_channels_than_the_photos_is_refused(drawn, toy, call, tmp_path):
    common = f"--size 48 --device cpu --recipe precision=fp32 --cache none --out {tmp_path}/run --teacher"
    for data, network, message in (
        (drawn, build("resnet18", num_classes=7), "t.bin takes 3 channel(s) and the photos have 1"),
        (toy, build("resnet18", in_channels=1), "t.bin takes 1 channel(s) and the photos have 3"),
    ):
        torch.save(network.state_dict(), tmp_path / "t.bin")
        done = call("train_kd.py", data, common, tmp_path / "t.bin")
        assert done.returncode == 2 and message in done.stderr


def test_a_resnet18_of_grey_faces_sees_values_from_0_to_1(tmp_path):
    from compression.training.teachers import read_teacher

    network, seen = build("resnet18", num_classes=7, in_channels=1).eval(), Preprocessing(48, **GREY)
    torch.save(network.state_dict(), tmp_path / "teacher.bin")
    teacher = read_teacher(tmp_path / "teacher.bin", FACE_CLASSES, torch.device("cpu"), channels=1, size=48)
    photos = torch.randint(0, 256, (2, 48, 48, 1), dtype=torch.uint8)
    logits, expected = teacher.logits(seen.normalise(photos), seen), network(PLAIN.normalise(photos))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("argument", ["in_channels=3", "num_classes=7"])
def test_what_follows_from_the_faces_cannot_be_set(drawn, refused, tmp_path, argument):
    options = f"--network fer_cnn --set {argument} --out {tmp_path}/run"
    assert "follow from the photos" in refused("train_student.py", drawn, options)


def test_a_file_whose_network_and_preprocessing_disagree_is_refused(drawn, refused, tmp_path):
    description = Description.of("fer_mobilenet", {"in_channels": 3}, FACE_CLASSES, PLAIN)
    model = write_model(tmp_path / "model.bin", description, build("fer_mobilenet", in_channels=3))
    text = refused("inference.py", drawn, tmp_path / "out.csv", f"--model {model}")
    assert "cannot read grey photos" in text


# ---------------------------------------------------------------- bad input


FACE = " ".join(["7"] * 2304)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is no CSV of label,feature"),
        (b"label,feature\n", "has no rows"),
        (f"id,feature\n0,{FACE}\n".encode(), "the header id,feature, not label,feature"),
        (f"0,{FACE}\n1,{FACE}\n".encode(), "not label,feature"),
        (f"label,feature\n0,{FACE}\n".encode(), "no class with ten faces"),
        (f"label,feature\n0,{FACE}\n1,{FACE} 7\n".encode(), "face 2 of"),
        (f"label,feature\n\n0,{FACE[:-2]}\n".encode(), "face 1 of"),
        (b"label,feature\n0,\n", "is not 48 x 48 whole numbers from 0 to 255"),
        (f"label,feature\n0,256{FACE[1:]}\n".encode(), "is not 48 x 48 whole numbers"),
        (f"label,feature\n0,-1{FACE[1:]}\n".encode(), "is not 48 x 48 whole numbers"),
        (f"label,feature\n0,{2**64 + 7}{FACE[1:]}\n".encode(), "is not 48 x 48 whole numbers"),
        (f"label,feature\n0,7.5{FACE[1:]}\n".encode(), "is not 48 x 48 whole numbers"),
        (f"label,feature\n0,{FACE[:-1]}x\n".encode(), "is not 48 x 48 whole numbers"),
        (f"label,feature\n{FACE}\n".encode(), "is not 48 x 48 whole numbers"),
        (f"label,feature\n0,{FACE},Training\n".encode(), "is no CSV of label,feature"),
        (f"label,feature\n0,{FACE}\n7,{FACE}\n".encode(), "has the label '7', which is not 0 to 6"),
        (f"label,feature\n-1,{FACE}\n".encode(), "has the label '-1'"),
        (f"label,feature\n,{FACE}\n".encode(), "has the label ''"),
        (f"label,feature\n{'9' * 5000},{FACE}\n".encode(), "has the label '999"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is no CSV of label,feature"),
        ("label,feature\n0,7 7".encode("utf-16"), "is no CSV of label,feature"),
    ],
)
def test_a_bad_training_csv_is_refused(refused, tmp_path, content, message):
    (tmp_path / "train.csv").write_bytes(content)
    options = f"--network fer_mobilenet --size 48 --device cpu --out {tmp_path}/run"
    text = refused("train_student.py", tmp_path / "train.csv", options)
    assert message in text and str(tmp_path / "train.csv") in text and len(text) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content, flags, message",
    [
        (f"label,feature\n0,{FACE}\n", [], "the header label,feature, not id,feature"),
        (f"id,feature\n4,{FACE}\n5,{FACE}\n4,{FACE}\n", [], "the id '4', which is no whole number or the id"),
        (f"id,feature\n04,{FACE}\n4,{FACE}\n", [], "of an earlier face too; correct it, or predict with"),
        (f"id,feature\na,{FACE}\n", [], "has the id 'a', which is no whole number"),
        (f"id,feature\n,{FACE}\n", ["--ids", "names"], "the id '', which is empty"),
        (f"id,feature\n0,{FACE} 1\n", [], "is not 48 x 48 whole numbers"),
    ],
)
def test_a_bad_testing_csv_is_refused(refused, trained, tmp_path, content, flags, message):
    (tmp_path / "test.csv").write_text(content)
    options = f"--model {trained} --device cpu"
    text = refused("inference.py", tmp_path / "test.csv", tmp_path / "out.csv", options, *flags)
    assert message in text and str(tmp_path / "test.csv") in text and not (tmp_path / "out.csv").exists()


def test_ids_of_any_text_are_predicted_with_ids_names(trained, ok, tmp_path):
    """As the message about an id that is no whole number says."""
    (tmp_path / "test.csv").write_text(f"id,feature\na,{FACE}\n")
    ok("inference.py", tmp_path / "test.csv", tmp_path / "out.csv", f"--model {trained} --ids names")


def test_a_missing_csv_is_told(refused, trained, tmp_path):
    for command in (
        ("train_student.py", tmp_path / "train.csv", "--out", tmp_path / "run"),
        ("inference.py", tmp_path / "test.csv", tmp_path / "out.csv", "--model", trained),
    ):
        assert "cannot be read (No such file or directory)" in refused(*command)


def test_a_network_of_other_classes_is_not_measured_on_faces(drawn, refused, small_model, tmp_path):
    train, output = drawn / "train.csv", tmp_path / "out.bin"
    text = refused("quantize.py", small_model, output, f"--data {train} --device cpu")
    assert f"class Angry of the faces in {train}" in text
    assert f"of the model {small_model} (Bread, " in text
    assert not output.exists()


def test_labels_are_those_of_a_network_whose_classes_have_another_order(drawn):
    told, own = [], list_labelled(drawn, "validation")
    backwards = list_labelled(drawn, "validation", FACE_CLASSES[::-1])
    assert backwards.labels == tuple(6 - label for label in own.labels)
    assert backwards.class_names == FACE_CLASSES[::-1]
    unnamed = list_labelled(drawn, "validation", [f"class {label}" for label in range(7)], log=told.append)
    assert unnamed.labels == own.labels and unnamed.class_names == FACE_CLASSES and len(told) == 1


def test_the_prediction_does_not_overwrite_the_faces(drawn, refused, trained, tmp_path):
    shutil.copy(drawn / "test.csv", tmp_path / "test.csv")
    for data in (tmp_path, tmp_path / "test.csv"):
        assert "named twice" in refused("inference.py", data, tmp_path / "test.csv", "--model", trained)
    options = f"--data {tmp_path}/test.csv"
    assert "named twice" in refused("quantize.py", trained, tmp_path / "test.csv", options)
    assert (tmp_path / "test.csv").read_bytes() == (drawn / "test.csv").read_bytes()
