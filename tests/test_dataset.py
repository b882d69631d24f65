"""dataset.py: which files are which photos with which labels, and the cache of decoded photos."""

import hashlib
import io
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
from conftest import ROOT, read_json
from PIL import Image

from compression.command_line import UserError
from compression.data.preprocessing import Preprocessing
from compression.files.photo_cache import PhotoSet, join
from dataset import (
    FOOD11_CLASSES,
    Listing,
    default_cache,
    list_labelled,
    list_testing,
    load_photos,
    split_off,
)
from experiments.toy_food11 import draw_data

SMALL = Preprocessing(size=16)
SHADES = [10, 60, 110, 160]
PIXELS = (16, 16, 3)


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


def test_hidden_files_and_litter_are_passed_over(tmp_path):
    touch(tmp_path / "training", "0_0.jpg", ".DS_Store", "._0_0.jpg", "Thumbs.db", "desktop.ini")
    (tmp_path / "training" / ".thumbnails").mkdir()
    assert names(list_labelled(tmp_path, "training")) == ["0_0.jpg"]
    touch(tmp_path / "testing", "1.jpg", "THUMBS.DB", ".hidden.jpg")
    assert names(list_testing(tmp_path)) == ["1.jpg"]


WRONG_NAMES = {
    "rename": [
        *("bread.jpg", "0-1.jpg", "_1.jpg", "0_.jpg", "-1_3.jpg", "0_1_2.jpg", "0_+1.jpg", "0 _1.jpg"),
        *("0_1e3.jpg", "٣_1.jpg", "²_1.jpg", "0_1.5.jpg"),
    ],
    "without the ending of a photo": ["0_1.txt", "0_1", "labels.csv", "0_1.jpg.part"],
    "with a class number that is not 0 to 10": ["11_0.jpg", "99_0.jpg", f"{10**20}_0.jpg"],
}


@pytest.mark.parametrize(
    "match, name", [(match, name) for match, wrong in WRONG_NAMES.items() for name in wrong]
)
def test_a_file_with_another_name_is_refused(tmp_path, match, name):
    touch(tmp_path / "training", "0_0.jpg", name)
    with pytest.raises(UserError, match=match) as refusal:
        list_labelled(tmp_path, "training")
    assert f"1 file ({name})" in str(refusal.value)


def test_photos_of_one_class_and_index_are_ordered_by_name(tmp_path):
    touch(tmp_path / "training", "0_1.png", "0_01.jpg", "0_1.jpg", "0_0.jpg")
    assert names(list_labelled(tmp_path, "training")) == ["0_0.jpg", "0_01.jpg", "0_1.jpg", "0_1.png"]


@pytest.mark.parametrize(
    "listed", [lambda root: list_labelled(root, "training"), lambda root: list_testing(root / "training")]
)
def test_missing_or_empty_folder_or_a_file_is_refused(tmp_path, listed):
    folder = tmp_path / "training"
    with pytest.raises(UserError, match="no folder|is empty"):
        listed(tmp_path)
    touch(folder, ".hidden")
    with pytest.raises(UserError, match="empty"):
        listed(tmp_path)
    shutil.rmtree(folder)
    folder.touch()
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
    touch(tmp_path / "training", "soup/b.jpg", "soup/a.png", "bread/z.jpeg", "rice/1.webp", ".hidden/a.jpg")
    listing = list_labelled(tmp_path, "training")
    assert listing.class_names == ("bread", "rice", "soup")
    assert names(listing) == ["z.jpeg", "1.webp", "a.png", "b.jpg"] and listing.labels == (0, 1, 2, 2)
    touch(tmp_path / "validation", "soup/a.jpg")
    validation = list_labelled(tmp_path, "validation", listing.class_names)
    assert validation.labels == (2,) and validation.class_names == listing.class_names
    touch(tmp_path / "validation", "tea/a.jpg")
    with pytest.raises(UserError, match="tea"):
        list_labelled(tmp_path, "validation", listing.class_names)


@pytest.mark.parametrize(
    "files, match",
    [
        (["soup/a.jpg"], "single class"),
        (["soup/a.jpg", "tea/a.jpg", "0_1.jpg"], "folders"),
        (["soup/a.jpg", "tea/readme.txt"], "without the ending of a photo"),
        (["soup/a.jpg", "tea/.hidden"], "tea is empty"),
    ],
)
def test_unclear_tree_of_folders_is_refused(tmp_path, files, match):
    touch(tmp_path / "training", *files)
    with pytest.raises(UserError, match=match):
        list_labelled(tmp_path, "training")


def test_folder_inside_a_class_folder_is_refused(tmp_path):
    touch(tmp_path / "training", "soup/a.jpg", "tea/a.jpg")
    (tmp_path / "training/tea/green").mkdir()
    with pytest.raises(UserError, match=r"tea holds 1 folder \(green\)"):
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
    with pytest.raises(UserError, match="1 folder"):
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
    here, there = tmp_path / "here", tmp_path / "there/copy"
    draw_data(here, training=12, validation=11, testing=1)
    shutil.copytree(here, there, copy_function=shutil.copyfile)  # with new times
    found = [list_labelled(root, "training").fingerprint() for root in (here, there)]
    assert found[0] == found[1]
    for content in (b"12345", b"123456"):
        (there / "training/0_999.jpg").write_bytes(content)
        found.append(list_labelled(there, "training").fingerprint())
    assert len(set(found)) == 3


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
    """Root of four training photos of these shades and the labels 0, 2, 5 and 10."""
    for shade, name in zip(SHADES, ("0_0", "2_0", "5_1", "10_0")):
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


def overwrite_keeping_the_times(data):
    """Zeros under the same names, sizes and times: only who reads the training photos can tell."""
    for path in (data / "training").iterdir():
        status = path.stat()
        path.write_bytes(b"\0" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns


def test_batch_delivers_the_photos_and_labels_asked_for(load):
    photo_set = load()
    assert photo_set.photos.shape == (len(photo_set), *PIXELS) == (4, *PIXELS)
    assert photo_set.photos.dtype == torch.uint8 and photo_set.class_names == FOOD11_CLASSES
    photos, labels = photo_set.batch(torch.tensor([3, 0, 0]), torch.device("cpu"))
    assert photos[:, 5, 7, 1].tolist() == [160, 10, 10]
    assert labels.tolist() == [10, 0, 0] and labels.dtype == torch.int64


def test_second_load_reads_no_photo(load, data):
    memory, first = load(cache=False), load()
    overwrite_keeping_the_times(data)
    again = load()
    assert shades(memory) == SHADES and load.log == []
    for photo_set in (first, again):
        assert torch.equal(photo_set.photos, memory.photos) and torch.equal(photo_set.labels, memory.labels)
        assert photo_set.fingerprint == memory.fingerprint


@pytest.mark.parametrize("time", [61 * 10**9, 12345])
def test_changed_photo_is_decoded_anew_and_the_stale_cache_is_removed(load, data, cache, time):
    """Its size is the same."""
    load()
    stale = os.listdir(cache)
    path = data / "training/2_0.png"
    size = path.stat().st_size
    save(path, 61)
    os.utime(path, ns=(time, time))
    assert path.stat().st_size == size and shades(load()) == [10, 61, 110, 160]
    assert len(os.listdir(cache)) == 1 and os.listdir(cache) != stale


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
    overwrite_keeping_the_times(data)
    for preprocessing in kinds:
        assert shades(load(preprocessing)) == SHADES


def test_the_two_pieces_of_a_share_each_keep_their_cache_and_another_share_replaces_them(data, cache):
    for shade, name in ((35, "0_1"), (85, "2_1"), (45, "0_2"), (95, "2_2")):
        save(data / "training" / f"{name}.png", shade)

    def load_both(share):
        splits = (list_labelled(data, split, validation_share=share) for split in ("training", "validation"))
        return [shades(load_photos(listing, SMALL, cache)) for listing in splits]

    before, caches = load_both(0.3), sorted(os.listdir(cache))
    overwrite_keeping_the_times(data)
    assert load_both(0.3) == before and sorted(os.listdir(cache)) == caches and len(caches) == 2
    for shade, path in enumerate(sorted((data / "training").iterdir())):
        save(path, 20 * shade)
    assert len(load_both(0.6)[1]) > len(before[1]) and len(os.listdir(cache)) == 2


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


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


@pytest.mark.parametrize(
    "name, content",
    [
        ("photos.npy", None),
        ("photos.npy", saved(np.zeros((4, *PIXELS), np.uint8))[:-100]),
        ("photos.npy", saved(np.zeros((3, *PIXELS), np.uint8))),
        ("photos.npy", saved(np.zeros((4, *PIXELS), np.float32))),
        ("photos.npy", saved(np.array([{}, 1]))),
        ("notes.json", None),
        *(("photos.npy", content) for content in (b"", b"rubbish" * 1000)),
        *(("notes.json", content) for content in (b"", b"\0" * 40, b"\xff\xfe", b"{}", b"null")),
    ],
)
def test_damaged_cache_is_built_anew(load, data, cache, name, content):
    load()
    (place,) = cache.iterdir()
    (place / name).unlink()
    if content is not None:
        (place / name).write_bytes(content)
    assert shades(load()) == SHADES and load.log == []
    overwrite_keeping_the_times(data)
    assert shades(load()) == SHADES  # from the new cache
    assert list(cache.iterdir()) == [place]


def test_cache_that_cannot_be_written_is_passed_over_with_a_warning(load, tmp_path):
    (tmp_path / "file").touch()
    assert shades(load(cache=tmp_path / "file" / "cache")) == SHADES
    assert len(load.log) == 1 and "cannot be written" in load.log[0]


def test_file_in_place_of_the_cached_folder_is_passed_over_with_a_warning(load, cache):
    load()
    (place,) = cache.iterdir()
    shutil.rmtree(place)
    place.touch()
    assert shades(load()) == SHADES
    assert len(load.log) == 1 and list(cache.iterdir()) == [place]


def test_no_cache_writes_nothing(load, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = sorted(tmp_path.rglob("*"))
    assert shades(load(cache=False)) == SHADES
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
    assert shades(load(cache=None)) == SHADES
    assert "cannot be written (Could not determine home directory.)" in load.log[0]


def test_loaded_photos_can_be_changed_without_changing_the_cache(load):
    load().photos.zero_()
    assert shades(load()) == SHADES


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
from compression.files.photo_cache import PhotoSet, join
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
    flags = ["first", "second"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [
        subprocess.Popen([*command, *(tmp_path / name for name in order)], **pipes)
        for order in (flags, flags[::-1])
    ]
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
    assert read_json(place / "notes.json") == {"truncated": {}, "unreadable": {}}


@pytest.mark.parametrize("cached", [True, False])
def test_damaged_photos_are_left_out_or_kept_and_counted(load, data, cache, cached, capsys):
    (data / "training/2_0.png").write_bytes(b"no photo")
    truncated = data / "training/3_0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:-100])
    for _ in range(2):  # the second time from the cache
        photo_set = load(cache=cached and cache)
        assert photo_set.rows.tolist() == [0, 2, 3, 4] and photo_set.labels.tolist() == [0, 3, 5, 10]
        photos, _ = photo_set.batch(torch.arange(len(photo_set)), torch.device("cpu"))
        assert photos[[0, 2, 3], 0, 0, 0].tolist() == [10, 110, 160] and photos[1].float().std() > 10
        left_out, kept = sorted(load.log, key=lambda line: "truncated" in line)
        assert "1 of 5 photos" in left_out and "2_0.png" in left_out and "left out" in left_out
        assert "1 of 5 photos" in kept and "3_0.jpg" in kept
    load_photos(list_labelled(data, "training"), SMALL, cache=False)
    assert "warning: 1 of 5 photos" in capsys.readouterr().err  # without a log


# ---------------------------------------------------------------- damaged photos


@pytest.mark.parametrize("cached", [True, False])
def test_folder_without_any_decodable_photo_is_refused(load, data, cache, cached):
    overwrite_keeping_the_times(data)
    for _ in range(2):
        with pytest.raises(UserError, match="none of the 4 files"):
            load(cache=cached and cache)


@pytest.mark.parametrize("cached", [True, False])
def test_link_that_leads_nowhere_is_named(load, data, cache, cached):
    (data / "training" / "3_0.jpg").symlink_to(data / "gone.jpg")
    with pytest.raises(UserError, match="3_0.jpg cannot be read: No such file or directory"):
        load(cache=cached and cache)


# ---------------------------------------------------------------- the real data


def test_food_11_is_listed_whole_and_its_photos_decode(food11):
    training, validation = (list_labelled(food11, split) for split in ("training", "validation"))
    testing = list_testing(food11)
    assert (len(training.paths), len(validation.paths), len(testing.paths)) == (9866, 3430, 3347)
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


def test_every_detail_has_a_cache_of_its_own(tmp_path):
    (tmp_path / "training").mkdir()
    for label in range(2):
        Image.effect_noise((64, 64), 90).save(tmp_path / f"training/{label}_0.png")
    listing, cache = list_labelled(tmp_path, "training"), tmp_path / "cache"
    whole, reduced = (
        load_photos(listing, Preprocessing(32, detail=detail), cache).photos.clone() for detail in (None, 16)
    )
    assert not torch.equal(whole, reduced)


def test_joined_photos_are_found_where_some_are_left_out():
    def photos(*shades, rows):
        values = torch.tensor(shades, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
        labels = torch.zeros(len(rows), dtype=torch.int64)
        return PhotoSet(values, torch.tensor(rows), labels, ("a", "b"), "fingerprint")

    both = join(photos(1, 2, 3, rows=[0, 2]), photos(4, 5, rows=[1]))
    found, _ = both.batch(torch.arange(3), torch.device("cpu"))
    assert found[:, 0, 0, 0].tolist() == [1, 3, 5]


def test_a_sample_is_the_same_each_time_and_keeps_labels_and_random_numbers():
    rows = torch.arange(0, 60, 2)
    photos = PhotoSet(
        torch.zeros(60, 2, 2, 3, dtype=torch.uint8), rows, rows % 7, tuple("abcdefg"), "fingerprint"
    )
    before = torch.get_rng_state()
    one, two = photos.sample(10), photos.sample(10)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(one.rows, two.rows) and len(one) == 10
    assert torch.equal(one.labels, one.rows % 7) and one.rows.tolist() != rows[:10].tolist()


def test_a_share_takes_its_photos_from_the_training_and_leaves_every_class_some():
    paths = tuple(Path(f"{row}.jpg") for row in range(12))
    parts = split_off(Listing(Path(), paths, (0,) * 10 + (1,) * 2, ("a", "b")), 0.8)
    training, validation = parts["training"], parts["validation"]
    assert not set(training.paths) & set(validation.paths) and {*training.paths, *validation.paths} == {
        *paths
    }
    assert set(training.labels) == set(validation.labels) == {0, 1}
