"""dataset.py: which files are which photos with which labels, and the cache of decoded photos."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from dataset import FOOD11_CLASSES, default_cache, list_labelled, list_testing, load_photos
from experiments.toy_food11 import draw_data

ROOT = Path(__file__).resolve().parents[1]
SMALL = Preprocessing(size=16)


def touch(folder, *names):
    """Empty files: listing does not look inside."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def names(listing):
    return [path.name for path in listing.paths]


# ---------------------------------------------------------------- listing labelled photos


def test_label_comes_from_the_file_name_and_not_from_the_path(tmp_path):
    touch(tmp_path / "3_7" / "training", "10_0.jpg", "0_12.jpg", "0_3.JPG")
    listing = list_labelled(tmp_path / "3_7", "training")
    assert list(zip(names(listing), listing.labels)) == [("0_3.JPG", 0), ("0_12.jpg", 0), ("10_0.jpg", 10)]
    assert listing.class_names == FOOD11_CLASSES and len(FOOD11_CLASSES) == 11


@pytest.mark.parametrize("stem", "bread,0-1,_1,0_,-1_3,0_1_2,0_+1,0 _1,0_1e3,٣_1,²_1,0_1.5".split(","))
def test_photo_with_another_name_is_refused(tmp_path, stem):
    touch(tmp_path / "training", "0_0.jpg", f"{stem}.jpg")
    with pytest.raises(UserError, match="rename") as caught:
        list_labelled(tmp_path, "training")
    assert f"{stem}.jpg" in str(caught.value)


@pytest.mark.parametrize("name", ["0_1.txt", "0_1", "labels.csv", "0_1.jpg.part"])
def test_file_that_is_no_photo_is_refused(tmp_path, name):
    touch(tmp_path / "training", "0_0.jpg", name)
    with pytest.raises(UserError, match="without the ending of a photo"):
        list_labelled(tmp_path, "training")


@pytest.mark.parametrize("label", [11, 99, 10**20])
def test_label_outside_the_classes_is_refused(tmp_path, label):
    touch(tmp_path / "training", "0_0.jpg", f"{label}_0.jpg")
    with pytest.raises(UserError, match=rf"1 file \({label}_0.jpg\) with a class number that is not 0 to 10"):
        list_labelled(tmp_path, "training")


def test_photos_of_one_class_and_index_are_ordered_by_name(tmp_path):
    touch(tmp_path / "training", "0_1.png", "0_01.jpg", "0_1.jpg", "0_0.jpg")
    assert names(list_labelled(tmp_path, "training")) == ["0_0.jpg", "0_01.jpg", "0_1.jpg", "0_1.png"]


@pytest.mark.parametrize(
    "listed", [lambda root: list_labelled(root, "training"), lambda root: list_testing(root / "training")]
)
def test_missing_or_empty_folder_or_a_file_is_refused(tmp_path, listed):
    with pytest.raises(UserError, match="no folder|is empty"):
        listed(tmp_path)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / ".hidden").touch()
    with pytest.raises(UserError, match="empty"):
        listed(tmp_path)
    shutil.rmtree(tmp_path / "training")
    (tmp_path / "training").touch()
    with pytest.raises(UserError, match="is a file"):
        listed(tmp_path)


def test_validation_gets_the_classes_of_training(tmp_path):
    touch(tmp_path / "validation", "0_0.jpg", "1_0.jpg")
    listing = list_labelled(tmp_path, "validation", ("1", "0", "2"))
    assert listing.class_names == ("1", "0", "2") and listing.labels == (1, 0)
    with pytest.raises(UserError, match="a class number that is not 0 to 0"):
        list_labelled(tmp_path, "validation", ("0",))
    with pytest.raises(UserError, match="class Bread .* is none of the classes of the training photos"):
        list_labelled(tmp_path, "validation", ("tea", "coffee", "milk"))


# ---------------------------------------------------------------- one folder per class


def test_folders_name_the_classes(tmp_path):
    touch(tmp_path / "training", "soup/b.jpg", "soup/a.png", "bread/z.jpeg", "rice/1.webp")
    listing = list_labelled(tmp_path, "training")
    assert listing.class_names == ("bread", "rice", "soup")
    assert names(listing) == ["z.jpeg", "1.webp", "a.png", "b.jpg"] and listing.labels == (0, 1, 2, 2)


def test_validation_with_fewer_classes_keeps_the_labels_of_training(tmp_path):
    touch(tmp_path / "validation", "soup/a.jpg")
    classes = ("bread", "rice", "soup")
    listing = list_labelled(tmp_path, "validation", classes)
    assert listing.labels == (2,) and listing.class_names == classes
    touch(tmp_path / "validation", "tea/a.jpg")
    with pytest.raises(UserError, match="class tea of .* is none of the classes of the training photos"):
        list_labelled(tmp_path, "validation", classes)


@pytest.mark.parametrize(
    "files, match",
    [
        (["soup/a.jpg"], "single class"),
        (["soup/a.jpg", "tea/a.jpg", "0_1.jpg"], "2 folders .* beside photos"),
        (["soup/a.jpg", "tea/readme.txt"], "without the ending of a photo"),
    ],
)
def test_unclear_tree_of_folders_is_refused(tmp_path, files, match):
    touch(tmp_path / "training", *files)
    with pytest.raises(UserError, match=match):
        list_labelled(tmp_path, "training")


def test_folder_inside_a_class_folder_and_empty_class_folder_are_refused(tmp_path):
    touch(tmp_path / "training", "soup/a.jpg", "tea/a.jpg")
    (tmp_path / "training" / "tea" / "green").mkdir()
    with pytest.raises(UserError, match=r"tea holds 1 folder \(green\) where only photos belong"):
        list_labelled(tmp_path, "training")
    shutil.rmtree(tmp_path / "training" / "tea")
    (tmp_path / "training" / "tea").mkdir()
    with pytest.raises(UserError, match="tea is empty"):
        list_labelled(tmp_path, "training")


# ---------------------------------------------------------------- listing photos to predict


@pytest.mark.parametrize("below", ["", "testing"])
def test_ids_are_whole_numbers_in_ascending_order(tmp_path, below):
    touch(tmp_path / below, "9.jpg", "10.jpg", "0100.jpg", "0002.png")
    listing = list_testing(tmp_path)
    assert listing.ids == (2, 9, 10, 100)
    assert names(listing) == ["0002.png", "9.jpg", "10.jpg", "0100.jpg"]
    assert listing.labels == (-1,) * 4


@pytest.mark.parametrize("first, second", [("1.jpg", "0001.jpg"), ("7.jpg", "7.png")])
def test_two_photos_with_one_id_are_refused(tmp_path, first, second):
    touch(tmp_path, first, second)
    with pytest.raises(UserError, match="same id") as caught:
        list_testing(tmp_path)
    assert first in str(caught.value) and second in str(caught.value)
    assert list_testing(tmp_path, by_name=True).ids == tuple(sorted((first, second)))


@pytest.mark.parametrize("name", ["soup.jpg", "-1.jpg", "1.5.jpg", "0_1.jpg", "1e3.jpg", "٣.jpg"])
def test_photo_without_a_whole_number_is_refused_unless_ids_are_names(tmp_path, name):
    touch(tmp_path, "1.jpg", name)
    with pytest.raises(UserError, match="whole number as id"):
        list_testing(tmp_path)
    assert list_testing(tmp_path, by_name=True).ids == tuple(sorted(("1.jpg", name)))


def test_testing_folder_that_holds_only_folders_is_refused(tmp_path):
    touch(tmp_path, "training/0_0.jpg")
    with pytest.raises(UserError, match=r"holds 1 folder \(training\) and no photos"):
        list_testing(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
@pytest.mark.parametrize("listed", [lambda root: list_labelled(root, "training"), list_testing])
def test_a_folder_without_permission_is_told(tmp_path, listed):
    (tmp_path / "data" / "training").mkdir(parents=True)
    (tmp_path / "data").chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be read: Permission denied; check its permissions"):
            listed(tmp_path / "data")
    finally:
        (tmp_path / "data").chmod(0o755)


# ---------------------------------------------------------------- fingerprint


def test_fingerprint_is_that_of_every_copy_and_of_no_other_data(tmp_path):
    draw_data(tmp_path / "here", training=12, validation=11, testing=1)
    # with new times
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "copy", copy_function=shutil.copyfile)

    def fingerprint(root):
        return list_labelled(tmp_path / root, "training").fingerprint()

    found = {fingerprint("here"), fingerprint("there/copy")}
    assert len(found) == 1
    for content in (b"12345", b"123456"):
        (tmp_path / "there/copy/training/0_999.jpg").write_bytes(content)
        found.add(fingerprint("there/copy"))
    assert len(found) == 3


def test_name_that_is_not_utf_8_is_fingerprinted_and_loaded(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        save(tmp_path / "photos" / name, 50)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    listing = list_testing(tmp_path / "photos", by_name=True)
    assert len(listing.fingerprint()) == 16
    assert shades(load_photos(listing, SMALL, tmp_path / "cache")) == [50]


# ---------------------------------------------------------------- decoded photos and their cache


def save(path, shade):
    """A photo of one shade, which says after decoding which photo it was; two differ in time too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (shade,) * 3).save(path)
    os.utime(path, ns=(shade * 10**9,) * 2)


def shades(photo_set):
    """The shade of every usable photo."""
    photos, _ = photo_set.batch(torch.arange(len(photo_set)), torch.device("cpu"))
    assert all(photo.unique().numel() == 1 for photo in photos)
    return photos[:, 0, 0, 0].tolist()


@pytest.fixture
def data(tmp_path):
    """Root of four training photos of the shades 10, 60, 110 and 160 and the labels 0, 2, 5 and 10."""
    for shade, name in zip((10, 60, 110, 160), ("0_0", "2_0", "5_1", "10_0")):
        save(tmp_path / "data" / "training" / f"{name}.png", shade)
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(data, cache):
    """load(preprocessing, cache) lists and loads the training photos and leaves what was logged in
    `load.log`.
    """

    def start(preprocessing=SMALL, cache=cache):
        start.log = []
        return load_photos(list_labelled(data, "training"), preprocessing, cache, start.log.append)

    return start


def overwrite_keeping_the_times(path):
    """Zeros under the same name, size and time: only who reads the file can tell."""
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns


def test_batch_delivers_the_photos_and_labels_asked_for(load):
    photo_set = load()
    assert len(photo_set) == 4 and photo_set.photos.shape == (4, 16, 16, 3)
    assert photo_set.photos.dtype == torch.uint8
    photos, labels = photo_set.batch(torch.tensor([3, 0, 0]), torch.device("cpu"))
    assert photos[:, 5, 7, 1].tolist() == [160, 10, 10] and labels.tolist() == [10, 0, 0]
    assert photo_set.class_names == FOOD11_CLASSES and labels.dtype == torch.int64


def test_second_load_reads_no_photo(load, data):
    load()
    for path in (data / "training").iterdir():
        overwrite_keeping_the_times(path)
    assert shades(load()) == [10, 60, 110, 160] and load.log == []


def test_cache_and_memory_hold_the_same(load, cache):
    cached, again, memory = load(), load(), load(cache=False)
    assert torch.equal(cached.photos, memory.photos) and torch.equal(again.photos, memory.photos)
    assert torch.equal(cached.labels, memory.labels) and cached.fingerprint == memory.fingerprint


def test_changed_photo_is_decoded_anew_and_the_stale_cache_is_removed(load, data, cache):
    load()
    stale = os.listdir(cache)
    save(data / "training" / "2_0.png", 61)
    assert shades(load()) == [10, 61, 110, 160]
    assert len(os.listdir(cache)) == 1 and os.listdir(cache) != stale


def test_changed_time_alone_makes_the_cache_stale(load, data, cache):
    load()
    path = data / "training" / "2_0.png"
    size = path.stat().st_size
    save(path, 61)
    assert path.stat().st_size == size
    os.utime(path, ns=(0, 12345))
    assert shades(load()) == [10, 61, 110, 160]
    assert len(os.listdir(cache)) == 1


def test_added_and_removed_photos_make_the_cache_stale(load, data, cache):
    load()
    save(data / "training" / "1_0.png", 33)
    assert shades(load()) == [10, 33, 60, 110, 160]
    (data / "training" / "0_0.png").unlink()
    photo_set = load()
    assert shades(photo_set) == [33, 60, 110, 160] and photo_set.labels.tolist() == [1, 2, 5, 10]
    assert len(os.listdir(cache)) == 1


def test_stale_cache_of_a_folder_with_brackets_in_its_name_is_removed_too(tmp_path, cache):
    for shade in (10, 20):
        save(tmp_path / "photos [1]" / "1.png", shade)
        assert shades(load_photos(list_testing(tmp_path / "photos [1]"), SMALL, cache)) == [shade]
    assert len(os.listdir(cache)) == 1


def test_every_size_rule_and_folder_has_a_cache_of_its_own(load, data, cache):
    kinds = [SMALL, Preprocessing(24), Preprocessing(16, "squash"), Preprocessing(16, "course")]
    for preprocessing in kinds:
        assert load(preprocessing).photos.shape[1] == preprocessing.size
    shutil.copytree(data, data.parent / "copy")
    load_photos(list_labelled(data.parent / "copy", "training"), SMALL, cache)
    assert len(os.listdir(cache)) == 5
    for path in (data / "training").iterdir():
        overwrite_keeping_the_times(path)
    for preprocessing in kinds:
        assert shades(load(preprocessing)) == [10, 60, 110, 160]


def test_the_two_pieces_of_a_share_each_keep_their_cache_and_another_share_replaces_them(data, cache):
    for shade, name in ((35, "0_1"), (85, "2_1"), (45, "0_2"), (95, "2_2")):
        save(data / "training" / f"{name}.png", shade)

    def load_both(share):
        splits = ("training", "validation")
        listings = [list_labelled(data, split, validation_share=share) for split in splits]
        return [shades(load_photos(listing, SMALL, cache)) for listing in listings]

    before, caches = load_both(0.3), sorted(os.listdir(cache))
    for path in (data / "training").iterdir():
        overwrite_keeping_the_times(path)
    assert load_both(0.3) == before and sorted(os.listdir(cache)) == caches and len(caches) == 2
    for shade, path in enumerate(sorted((data / "training").iterdir())):
        save(path, 20 * shade)
    assert len(load_both(0.6)[1]) > len(before[1]) and len(os.listdir(cache)) == 2


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_a_cache_can_be_read_by_whom_the_umask_allows(load, cache, mask, mode):
    before = os.umask(mask)
    try:
        load()
    finally:
        os.umask(before)
    (place,) = cache.iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == mode


def test_other_normalisation_shares_the_cache(load, cache):
    load()
    load(Preprocessing(size=16, mean=(0, 0, 0), std=(1, 1, 1)))
    assert len(os.listdir(cache)) == 1


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "cut photos": lambda place: cut(place / "photos.npy"),
    "empty photos": lambda place: (place / "photos.npy").write_bytes(b""),
    "rubbish photos": lambda place: (place / "photos.npy").write_bytes(b"rubbish" * 1000),
    "fewer photos": lambda place: np.save(place / "photos.npy", np.zeros((3, 16, 16, 3), np.uint8)),
    "float photos": lambda place: np.save(place / "photos.npy", np.zeros((4, 16, 16, 3), np.float32)),
    "pickled photos": lambda place: np.save(place / "photos.npy", np.array([{}, 1]), allow_pickle=True),
    "no photos": lambda place: (place / "photos.npy").unlink(),
    "no notes": lambda place: (place / "notes.json").unlink(),
    "empty notes": lambda place: (place / "notes.json").write_bytes(b""),
    "zeroed notes": lambda place: (place / "notes.json").write_bytes(b"\0" * 40),
    "notes in no text": lambda place: (place / "notes.json").write_bytes(b"\xff\xfe"),
    "notes without entries": lambda place: (place / "notes.json").write_text("{}"),
    "null notes": lambda place: (place / "notes.json").write_text("null"),
    "empty folder": lambda place: shutil.rmtree(place) or place.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_built_anew(load, data, cache, damage):
    load()
    (place,) = cache.iterdir()
    damage(place)
    assert shades(load()) == [10, 60, 110, 160] and load.log == []
    for path in (data / "training").iterdir():
        overwrite_keeping_the_times(path)
    assert shades(load()) == [10, 60, 110, 160]  # from the new cache
    assert list(cache.iterdir()) == [place]


def test_cache_that_cannot_be_written_is_passed_over_with_a_warning(load, tmp_path):
    (tmp_path / "file").touch()
    assert shades(load(cache=tmp_path / "file" / "cache")) == [10, 60, 110, 160]
    assert len(load.log) == 1 and "cannot be written" in load.log[0]


def test_file_in_place_of_the_cached_folder_is_passed_over_with_a_warning(load, cache):
    load()
    (place,) = cache.iterdir()
    shutil.rmtree(place)
    place.touch()
    assert shades(load()) == [10, 60, 110, 160]
    assert len(load.log) == 1 and list(cache.iterdir()) == [place]


def test_no_cache_writes_nothing(load, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = sorted(tmp_path.rglob("*"))
    assert shades(load(cache=False)) == [10, 60, 110, 160]
    assert sorted(tmp_path.rglob("*")) == before


def test_default_cache_follows_the_environment(load, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    load(cache=None)
    assert default_cache() == tmp_path / "home" / "food11-photos"
    assert len(list(default_cache().iterdir())) == 1


def test_without_a_home_photos_are_decoded_into_memory_with_a_warning(load, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert shades(load(cache=None)) == [10, 60, 110, 160]
    assert "cannot be written (Could not determine home directory.)" in load.log[0]


def test_loaded_photos_can_be_changed_without_changing_the_cache(load):
    load().photos.zero_()
    assert shades(load()) == [10, 60, 110, 160]


def test_leftovers_of_killed_runs_are_swept_and_those_of_running_ones_are_not(load, cache):
    for name, age in (("killed", 48 * 3600), ("running", 5 * 3600)):
        (cache / f".building-{name}").mkdir(parents=True)
        os.utime(cache / f".building-{name}", (time.time() - age,) * 2)
    load()
    assert sorted(name for name in os.listdir(cache) if name.startswith(".")) == [".building-running"]


BUILD_TOGETHER = """
import hashlib, os, sys, time
from dataset import list_labelled, load_photos
from compression.data.preprocessing import Preprocessing
root, cache, mine, other = sys.argv[1:]
listing = list_labelled(root, "training")
open(mine, "w").close()
while not os.path.exists(other):  # start together
    time.sleep(0.001)
photos = load_photos(listing, Preprocessing(size=32), cache)
print(hashlib.sha256(photos.photos.numpy().tobytes()).hexdigest(), photos.labels.tolist())
"""


def test_two_processes_that_build_the_cache_at_once_both_get_the_photos(tmp_path, cache):
    draw_data(tmp_path / "data", training=300, validation=1, testing=1)
    command = [sys.executable, "-c", BUILD_TOGETHER, tmp_path / "data", cache]
    pipes = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    flags = [tmp_path / "first", tmp_path / "second"]
    processes = [subprocess.Popen(command + order, **pipes) for order in (flags, flags[::-1])]
    listing = list_labelled(tmp_path / "data", "training")
    alone = load_photos(listing, Preprocessing(size=32), cache=False)
    expected = f"{hashlib.sha256(alone.photos.numpy().tobytes()).hexdigest()} {list(listing.labels)}\n"
    try:
        for process in processes:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            assert out == expected and "warning" not in err
    finally:
        for process in processes:
            process.kill()
    (place,) = cache.iterdir()  # one cache and no leftovers
    assert sorted(os.listdir(place)) == ["notes.json", "photos.npy"]
    assert json.loads((place / "notes.json").read_text()) == {"truncated": {}, "unreadable": {}}


# ---------------------------------------------------------------- damaged photos


@pytest.mark.parametrize("cached", [True, False])
def test_undecodable_photo_is_left_out_and_counted(load, data, cache, cached):
    (data / "training" / "2_0.png").write_bytes(b"no photo")
    for _ in range(2):  # the second time from the cache
        photo_set = load(cache=cache if cached else False)
        assert photo_set.rows.tolist() == [0, 2, 3] and photo_set.labels.tolist() == [0, 5, 10]
        assert len(photo_set) == 3 and shades(photo_set) == [10, 110, 160]
        assert len(load.log) == 1 and "1 of 4 photos" in load.log[0] and "2_0.png" in load.log[0]
        assert "left out" in load.log[0]


def test_truncated_photo_is_kept_and_counted(load, data):
    path = data / "training" / "3_0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    cut(path)
    for _ in range(2):
        photo_set = load()
        assert len(photo_set) == 5 and photo_set.labels.tolist() == [0, 2, 3, 5, 10]
        assert photo_set.batch(torch.tensor([2]), torch.device("cpu"))[0].float().std() > 10
        assert len(load.log) == 1 and "1 of 5 photos" in load.log[0] and "truncated" in load.log[0]
        assert "3_0.jpg" in load.log[0]


@pytest.mark.parametrize("cached", [True, False])
def test_folder_without_any_decodable_photo_is_refused(load, data, cache, cached):
    for path in (data / "training").iterdir():
        path.write_bytes(b"no photo")
    for _ in range(2):
        with pytest.raises(UserError, match="none of the 4 files"):
            load(cache=cache if cached else False)


@pytest.mark.parametrize("cached", [True, False])
def test_link_that_leads_nowhere_is_named(load, data, cache, cached):
    (data / "training" / "3_0.jpg").symlink_to(data / "gone.jpg")
    with pytest.raises(UserError, match="3_0.jpg cannot be read: No such file or directory; fix that"):
        load(cache=cache if cached else False)


def test_warnings_go_to_stderr_by_default(load, data, capsys):
    (data / "training" / "2_0.png").write_bytes(b"no photo")
    load_photos(list_labelled(data, "training"), SMALL, cache=False)
    shown = capsys.readouterr()
    assert shown.out == "" and "warning: 1 of 4 photos" in shown.err


# ---------------------------------------------------------------- the real data


def test_food_11_is_listed_whole_and_its_photos_decode(food11):
    training, validation = list_labelled(food11, "training"), list_labelled(food11, "validation")
    testing = list_testing(food11)
    assert [len(listing.paths) for listing in (training, validation, testing)] == [9866, 3430, 3347]
    assert set(training.labels) == set(validation.labels) == set(range(11))
    assert testing.ids == tuple(range(3347))
    assert all(path.name.startswith(f"{label}_") for path, label in zip(training.paths, training.labels))
    few = type(training)(training.folder, training.paths[::400], training.labels[::400], training.class_names)
    photo_set = load_photos(few, Preprocessing(size=64), cache=False)
    assert len(photo_set) == len(few.paths)
    assert photo_set.photos.float().std((1, 2, 3)).min() > 5  # pictures, not blanks


def test_another_version_of_pillow_decodes_again(load, cache, monkeypatch):
    """It may read what this one could not, and resize otherwise."""
    load()
    before = {path.name for path in cache.iterdir()}
    monkeypatch.setattr("compression.files.photo_cache.PIL.__version__", "99.0")
    load()
    assert {path.name for path in cache.iterdir()} - before
