"""From photo files to inputs: every kind as upright RGB, resize rules, damaged files, normalisation."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, features
from torchvision.transforms import v2

from compression.command_line import UserError
from compression.data.decoding import DecodeReport, decode_photo, decode_stream, resize_image
from compression.data.preprocessing import Preprocessing
from dataset import list_testing
from experiments.toy_food11 import draw_picture

ROOT = Path(__file__).resolve().parents[1]
SQUASH16 = Preprocessing(size=16, resize="squash")  # leaves a 16x16 photo as it is


def noise(width, height, channels=3, dtype=np.uint8, seed=0):
    rng, high = np.random.default_rng(seed), np.iinfo(dtype).max + 1
    return rng.integers(0, high, (height, width, channels), dtype).squeeze()


def saved(folder, image, name="photo.png", **options):
    image.save(folder / name, **options)
    return folder / name


# ---------------------------------------------------------------- modes


def test_rgb_photo_of_the_right_size_is_delivered_as_it_is(tmp_path):
    pixels = noise(16, 16)
    decoded = decode_photo(saved(tmp_path, Image.fromarray(pixels)), SQUASH16)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels)


def test_grey_photo_gets_three_equal_channels(tmp_path):
    pixels = noise(16, 16, 1)
    decoded = decode_photo(saved(tmp_path, Image.fromarray(pixels)), SQUASH16)
    assert np.array_equal(decoded, np.stack([pixels] * 3, 2))


def test_black_and_white_photo(tmp_path):
    pixels = noise(16, 16, 1) > 127
    decoded = decode_photo(saved(tmp_path, Image.fromarray(pixels)), SQUASH16)
    assert np.array_equal(decoded[..., 1], pixels * np.uint8(255))


@pytest.mark.parametrize("name", ["photo.png", "photo.tif"])
def test_16_bit_grey_keeps_its_tones(tmp_path, name):
    pixels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    decoded = decode_photo(saved(tmp_path, Image.fromarray(pixels), name), SQUASH16)
    assert np.abs(decoded[..., 0].reshape(-1) - np.arange(256.0)).max() <= 1
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_palette_photo_gets_its_colours(tmp_path):
    image = Image.new("P", (16, 16))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (8, 0, 16, 16))
    decoded = decode_photo(saved(tmp_path, image), SQUASH16)
    assert (decoded[:, :8] == (255, 0, 0)).all() and (decoded[:, 8:] == (0, 0, 255)).all()


def test_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (16, 16))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (8, 0, 16, 16))
    decoded = decode_photo(saved(tmp_path, image, transparency=0), SQUASH16)
    assert (decoded[:, :8] == 255).all() and (decoded[:, 8:] == (0, 0, 255)).all()


def test_transparent_colour_of_an_rgb_photo_becomes_white(tmp_path):
    image = Image.new("RGB", (16, 16), (10, 20, 30))
    image.paste((0, 0, 255), (8, 0, 16, 16))
    decoded = decode_photo(saved(tmp_path, image, transparency=(10, 20, 30)), SQUASH16)
    assert (decoded[:, :8] == 255).all() and (decoded[:, 8:] == (0, 0, 255)).all()


@pytest.mark.parametrize(
    "mode, colour, alpha",
    [("LA", (100,) * 3, 128), ("RGBA", (200, 100, 0), 64), ("RGBA", (1, 2, 3), 0), ("RGBA", (1, 2, 3), 255)],
)
def test_transparency_is_composited_on_white(tmp_path, mode, colour, alpha):
    stored = (colour[0], alpha) if mode == "LA" else (*colour, alpha)
    decoded = decode_photo(saved(tmp_path, Image.new(mode, (16, 16), stored)), SQUASH16)
    expected = np.array(colour) * alpha / 255 + 255 * (1 - alpha / 255)
    assert np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize(
    "ink, colour",
    [((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 255, 0), (255, 255, 0)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpeg(tmp_path, ink, colour):
    path = saved(tmp_path, Image.new("CMYK", (16, 16), ink), "photo.jpg", quality=100)
    decoded = decode_photo(path, SQUASH16)
    assert np.abs(decoded - np.array(colour)).max() <= 4


# ---------------------------------------------------------------- EXIF

STORED = {  # TIFF 6.0, tag 274: what the stored rows and columns of an upright picture are
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright[:, ::-1].transpose(1, 0, 2),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: upright[::-1].transpose(1, 0, 2),
}


def orientation(value):
    exif = Image.Exif()
    exif[274] = value
    return exif


@pytest.mark.parametrize("value", STORED)
@pytest.mark.parametrize("resize", ["crop", "course"])
def test_photo_of_every_exif_orientation_is_turned_upright(tmp_path, value, resize):
    upright, preprocessing = noise(30, 20), Preprocessing(size=24, resize=resize)
    expected = decode_photo(saved(tmp_path, Image.fromarray(upright), "upright.png"), preprocessing)
    stored = Image.fromarray(np.ascontiguousarray(STORED[value](upright)))
    decoded = decode_photo(saved(tmp_path, stored, exif=orientation(value)), preprocessing)
    assert np.array_equal(decoded, expected)


def test_a_tag_of_the_wrong_type_does_not_keep_a_photo_from_being_turned(tmp_path):
    """Pillow's exif_transpose writes all tags anew and raises for this one: a width in a single byte."""
    entries = b"\x00\x01\x01\0\x01\0\0\0\x10\0\0\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    exif, upright = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + b"\0" * 4, noise(30, 20)
    expected = decode_photo(saved(tmp_path, Image.fromarray(upright), "upright.png"), SQUASH16)
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](upright)))
    assert np.array_equal(decode_photo(saved(tmp_path, stored, exif=exif), SQUASH16), expected)


# orientation "up!"
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0no TIFF header",
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0up!\0\0\0\0\0",
    ],
)
def test_damaged_exif_does_not_lose_the_photo(tmp_path, exif):
    path = saved(tmp_path, Image.new("RGB", (16, 16), (9, 90, 200)), "photo.jpg", exif=exif, quality=100)
    report = DecodeReport()
    ((rows, photos),) = decode_stream([path], [SQUASH16], report)
    assert rows == [0] and not report.unreadable
    assert np.abs(photos[0] - np.array((9.0, 90, 200))).max() <= 4


# ---------------------------------------------------------------- resize rules


def test_crop_without_scaling_is_the_exact_centre(tmp_path):
    pixels = noise(64, 32)
    decoded = decode_photo(saved(tmp_path, Image.fromarray(pixels)), Preprocessing(size=32))
    assert np.array_equal(decoded, pixels[:, 16:48])


@pytest.mark.parametrize("width, height", [(64, 32), (32, 64)])
def test_crop_is_the_centre_of_the_photo_scaled_to_its_shorter_side(tmp_path, width, height):
    image = Image.fromarray(noise(width, height))
    decoded = decode_photo(saved(tmp_path, image), Preprocessing(size=16))
    scaled = image.resize((width // 2, height // 2), Image.BICUBIC)
    left, top = (scaled.width - 16) // 2, (scaled.height - 16) // 2
    expected = np.asarray(scaled.crop((left, top, left + 16, top + 16)))
    # Pillow may take rows or columns first, and rounds between
    assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_crop_enlarges_a_small_photo(tmp_path):
    image = Image.fromarray(noise(9, 9))
    decoded = decode_photo(saved(tmp_path, image), Preprocessing(size=20))
    assert np.array_equal(decoded, np.asarray(image.resize((20, 20), Image.BICUBIC)))


@pytest.mark.parametrize("width, height", [(1, 1), (1, 500), (700, 2), (17, 16)])
@pytest.mark.parametrize("resize", ["crop", "squash", "course"])
def test_photo_of_any_shape_has_the_size_asked_for(tmp_path, width, height, resize):
    path = saved(tmp_path, Image.new("RGB", (width, height), "white"))
    decoded = decode_photo(path, Preprocessing(size=16, resize=resize))
    assert decoded.shape == (16, 16, 3) and decoded.max() == 255


def test_squash_keeps_what_crop_cuts_off(tmp_path):
    image = Image.new("RGB", (64, 16), "black")
    image.paste("white", (0, 0, 16, 16))
    path = saved(tmp_path, image)
    squashed = decode_photo(path, SQUASH16)
    assert np.array_equal(squashed, np.asarray(image.resize((16, 16), Image.BICUBIC)))
    assert squashed[8, 0, 0] > 250 and squashed[8, 8, 0] == 0
    assert decode_photo(path, Preprocessing(size=16)).max() == 0


@pytest.mark.parametrize(
    "width, height",
    [(64, 64), (80, 70), (81, 71), (83, 64), (50, 40), (51, 41), (63, 65), (64, 33), (20, 99), (101, 19)],
)
@pytest.mark.parametrize("size", [64, 33])
def test_course_is_the_centre_crop_of_torchvision(tmp_path, width, height, size):
    image = Image.fromarray(noise(width, height))
    decoded = decode_photo(saved(tmp_path, image), Preprocessing(size=size, resize="course"))
    assert np.array_equal(decoded, np.asarray(v2.CenterCrop(size)(image)))


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("value", [1, 6])
def test_large_jpeg_decoded_at_a_fraction_is_close_to_its_full_decode(tmp_path, resize, value):
    picture = draw_picture(2, np.random.default_rng(0), (900, 700))
    jpeg = saved(tmp_path, picture, "photo.jpg", quality=95, exif=orientation(value))
    with Image.open(jpeg) as image:
        full = saved(tmp_path, image.convert("RGB"), "full.png", exif=orientation(value))
    preprocessing = Preprocessing(size=64, resize=resize)
    difference = np.abs(decode_photo(jpeg, preprocessing).astype(float) - decode_photo(full, preprocessing))
    assert difference.mean() < 1.5
    assert np.quantile(difference, 0.99) < 12


def test_course_takes_a_large_jpeg_at_its_own_scale(tmp_path):
    path = saved(tmp_path, draw_picture(2, np.random.default_rng(0), (900, 700)), "photo.jpg")
    with Image.open(path) as image:
        expected = np.asarray(v2.CenterCrop(64)(image.convert("RGB")))
    assert np.array_equal(decode_photo(path, Preprocessing(size=64, resize="course")), expected)


# ---------------------------------------------------------------- damaged files and the stream


def test_truncated_jpeg_is_reported_and_its_top_is_intact(tmp_path):
    path = saved(tmp_path, draw_picture(9, np.random.default_rng(0), (128, 128)), "photo.jpg", quality=95)
    preprocessing, report = Preprocessing(size=128), DecodeReport()
    whole = decode_photo(path, preprocessing)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(OSError):
        decode_photo(path, preprocessing)
    ((rows, photos),) = decode_stream([path], [preprocessing], report)
    assert rows == [0] and list(report.truncated) == [0] and not report.unreadable
    assert np.array_equal(photos[0, :48], whole[:48])
    assert not np.array_equal(photos[0, 112:], whole[112:])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # Pillow's switch is back


def test_report_says_why_a_photo_is_damaged(tmp_path):
    cut, rubbish = saved(tmp_path, Image.fromarray(noise(64, 64)), "cut.jpg"), tmp_path / "rubbish.jpg"
    cut.write_bytes(cut.read_bytes()[:-800])
    rubbish.write_bytes(b"no photo")
    report = DecodeReport()
    list(decode_stream([cut, rubbish], [SQUASH16], report))
    assert isinstance(report.unreadable[1], str) and report.unreadable[1]
    assert isinstance(report.truncated[0], str) and "truncated" in report.truncated[0]


@pytest.mark.parametrize(
    "content", [b"", b"no photo", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a\xff\xff\xff\xff"]
)
def test_undecodable_file_is_reported_and_not_delivered(tmp_path, content):
    (tmp_path / "photo.jpg").write_bytes(content)
    report = DecodeReport()
    assert list(decode_stream([tmp_path / "photo.jpg"], [SQUASH16], report)) == []
    assert list(report.unreadable) == [0] and not report.truncated


def test_the_report_names_at_most_five_files_with_their_reasons(tmp_path):
    paths = [tmp_path / f"{row}.jpg" for row in range(7)]
    for path in paths:
        path.write_bytes(b"no photo")
    report = DecodeReport()
    list(decode_stream(paths, [SQUASH16], report))
    text = report.name(SimpleNamespace(folder=tmp_path.parent, paths=paths), report.unreadable)
    folder, file = tmp_path.name, Path(text.rpartition(" ")[2])
    assert text.startswith(f"{folder}/0.jpg (cannot identify image file), {folder}/1.jpg (")
    assert f"{folder}/4.jpg (cannot" in text
    assert "and 2 more, all listed in" in text and len(file.read_text().splitlines()) == 7
    file.unlink()
    assert report.name(SimpleNamespace(folder=tmp_path, paths=paths), {0: "why"}) == "0.jpg (why)"


def test_a_jpeg_beyond_pillows_limit_is_read_at_reduced_scale_and_others_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("compression.data.decoding.MAX_PIXELS", 200 * 200)
    large, report = Image.new("RGB", (400, 300), (200, 0, 0)), DecodeReport()
    paths = [saved(tmp_path, large, name) for name in ("large.jpg", "large.png")]
    ((rows, photos),) = decode_stream(paths, [SQUASH16], report)
    assert rows == [0] and abs(int(photos[0, 8, 8, 0]) - 200) < 5
    assert "megapixels" in report.unreadable[1] and "make it smaller" in report.unreadable[1]


def test_a_tiff_of_floats_is_not_read_as_black(tmp_path):
    Image.new("F", (20, 20), 0.7).save(path := tmp_path / "photo.tiff")
    report = DecodeReport()
    assert not list(decode_stream([path], [SQUASH16], report))
    assert "convert it to JPEG or PNG" in report.unreadable[0]


def test_pillow_neither_warns_nor_refuses_a_photo_of_90_megapixels(tmp_path, recwarn):
    path = saved(tmp_path, Image.new("L", (9500, 9500), 77), "panorama.jpg")
    assert abs(int(decode_photo(path, SQUASH16)[8, 8, 0]) - 77) <= 1
    assert not [one for one in recwarn if issubclass(one.category, Image.DecompressionBombWarning)]


def test_momentary_failures_are_errors_and_not_remembered_as_bad_photos(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("RGB", (16, 16)), "photo.webp", lossless=True)
    for error in (MemoryError(), OSError("codec: out of memory")):
        monkeypatch.setattr("compression.data.decoding.decode_inputs", Mock(side_effect=error))
        with pytest.raises(UserError, match="not enough memory"):
            list(decode_stream([path], [SQUASH16], DecodeReport()))


def test_an_offset_that_no_file_has_is_the_files_own_fault(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("RGB", (16, 16)))
    error = OSError(22, "Invalid argument")
    monkeypatch.setattr("compression.data.decoding.decode_inputs", Mock(side_effect=error))
    report = DecodeReport()
    assert list(decode_stream([path], [SQUASH16], report)) == [] and list(report.unreadable) == [0]


def test_a_jpeg_whose_whole_would_not_fit_into_memory_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("compression.data.decoding.MAX_PIXELS", 30 * 1000)
    path = saved(tmp_path, Image.new("RGB", (400, 300)), "large.jpg", progressive=True)
    report = DecodeReport()
    assert list(decode_stream([path], [SQUASH16], report)) == [] and "megapixels" in report.unreadable[0]


KINDS = {"jfif": "JPEG", "jpe": "JPEG", "mpo": "MPO", "ppm": "PPM", "avif": "AVIF", "jp2": "JPEG2000"}


@pytest.mark.parametrize("suffix, kind", KINDS.items())
def test_photos_of_rarer_kinds_are_listed_and_read(tmp_path, suffix, kind):
    needed = {"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind)
    if needed and (kind == "AVIF" and needed not in features.modules or not features.check(needed)):
        pytest.skip(f"this Pillow has no {kind} decoder")
    (tmp_path / "testing").mkdir()
    saved(tmp_path / "testing", Image.new("RGB", (16, 16), (200, 100, 50)), f"a.{suffix}", format=kind)
    listing = list_testing(tmp_path, by_name=True)
    assert np.abs(decode_photo(listing.paths[0], SQUASH16).astype(int) - (200, 100, 50)).max() < 6


@pytest.mark.parametrize("name", ["photo.HEIC", "photo.jpg"])
def test_a_heic_photo_is_known_by_its_bytes_and_told_how_to_be_read(tmp_path, name):
    """Damaged behind its first bytes, so that it cannot be read with pillow-heif either."""
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    listing, report = list_testing(tmp_path, by_name=True), DecodeReport()
    if "HEIF" in Image.registered_extensions().values():
        assert list(decode_stream(listing.paths, [SQUASH16], report)) == [] and report.unreadable
        return
    with pytest.raises(UserError, match=f"{name} is a HEIC photo; pip install pillow-heif, or convert"):
        list(decode_stream(listing.paths, [SQUASH16], report))


def test_with_pillow_heif_photos_are_read_whatever_their_names(tmp_path):
    """A stand-in for the package: its photos begin with "ftyp" and are 16 px of one shade."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, ImageFile\n"
        "class Photo(ImageFile.ImageFile):\n"
        "    def _open(self):\n"
        "        self._size, self._mode = (16, 16), 'L'\n"
        "        self.tile = [('raw', (0, 0, 16, 16), 24, ('L', 0, 1))]\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Photo, lambda start: start[4:8] == b'ftyp')\n"
    )
    (tmp_path / "1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\x55" * 256)
    program = (
        "import sys; from compression.data.decoding import decode_photo\n"
        "from compression.data.preprocessing import Preprocessing\n"
        "print(decode_photo(sys.argv[1], Preprocessing(16)).mean())"
    )
    command = [sys.executable, "-c", program, tmp_path / "1.jpg"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "85.0\n", done.stderr


def test_what_the_system_refuses_to_read_is_no_bad_photo_but_an_error(tmp_path):
    """Left out, or cached as undecodable, it would be missing long after the cause was gone."""
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            list(decode_stream([tmp_path / name], [SQUASH16], DecodeReport()))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 23, 24, 64])
def test_every_row_is_delivered_once_whatever_the_batch_size(tmp_path, batch_size):
    paths = [saved(tmp_path, Image.new("RGB", (16, 16), (10 * row, 0, 0)), f"{row}.png") for row in range(23)]
    for row in (0, 11, 22):
        paths[row].write_bytes(b"no photo")
    whole = saved(tmp_path, Image.fromarray(noise(64, 64)), "whole.jpg").read_bytes()
    paths[5].write_bytes(whole[:-500])
    report, delivered = DecodeReport(), []
    for rows, photos in decode_stream(paths, [SQUASH16], report, batch_size=batch_size):
        assert photos.shape == (len(rows), 16, 16, 3) and photos.dtype == np.uint8
        delivered += rows
        assert all((photo == (10 * row, 0, 0)).all() for row, photo in zip(rows, photos) if row != 5)
    assert sorted(delivered) == sorted({*range(23)} - {0, 11, 22})
    assert sorted(report.unreadable) == [0, 11, 22] and sorted(report.truncated) == [5]


def test_stream_without_photos_is_empty():
    assert list(decode_stream([], [SQUASH16], DecodeReport())) == []


# ---------------------------------------------------------------- the description and the normalisation


UNUSABLE = {
    "size": (15, 4097, 0, -64, 64.0, "64", True, None),
    "resize": ("stretch", None, ""),
    "detail": (15, 64.0, True),
    "std": ((0.2, 0, 0.2), (0.2, -1, 0.2), (0.2, 0.2), (0.2, float("nan"), 0.2)),
    "mean": ((0.5,) * 4, (0.5, float("nan"), 0.5), (0.5, float("inf"), 0.5)),
}


@pytest.mark.parametrize("name, value", [(name, value) for name in UNUSABLE for value in UNUSABLE[name]])
def test_unusable_preprocessing_is_a_user_error(name, value):
    with pytest.raises(UserError):
        Preprocessing(**{name: value})


def test_a_detail_of_photos_that_are_not_scaled_is_a_user_error():
    with pytest.raises(UserError, match="does not scale photos"):
        Preprocessing(detail=64, resize="course")


def test_preprocessing_survives_the_round_trip_through_plain_values():
    original = Preprocessing(size=200, resize="course", mean=(0, 0.25, 1), std=[1, 2, 0.5])
    plain = original.to_dict()
    assert plain == {"size": 200, "resize": "course", "mean": [0.0, 0.25, 1.0], "std": [1.0, 2.0, 0.5]}
    assert Preprocessing(**plain) == original


def test_detail_is_what_a_photo_saved_at_that_size_would_show(tmp_path):
    """For every rule the input is that of the photo first reduced to `detail`, whatever its shape; small
    photos stay as they are.
    """
    for width, height in ((300, 200), (90, 180), (64, 64), (40, 50)):
        photo = Image.fromarray(noise(width, height))
        scale = min(1, 64 / min(width, height))
        small = photo.resize((round(width * scale), round(height * scale)), Image.LANCZOS)
        path = saved(tmp_path, small if scale < 1 else photo, "small.png")
        for resize in ("crop", "squash"):
            seen = decode_photo(saved(tmp_path, photo), Preprocessing(96, resize, detail=64))
            assert np.array_equal(seen, decode_photo(path, Preprocessing(96, resize)))


def test_a_large_jpeg_is_decoded_near_its_detail(tmp_path):
    photo = Image.fromarray(noise(1024, 1024)).resize((1024, 1024))
    path = saved(tmp_path, photo, "photo.jpg")
    with Image.open(path) as image:
        image.draft(None, (128, 128))
        assert image.size == (128, 128)
        expected = resize_image(image.convert("RGB"), Preprocessing(96, detail=64))
    assert np.array_equal(decode_photo(path, Preprocessing(96, detail=64)), expected)


def test_detail_is_part_of_the_plain_values_and_older_files_have_none():
    plain = Preprocessing(96, detail=64).to_dict()
    assert Preprocessing(**plain).detail == 64
    del plain["detail"]
    assert Preprocessing(**plain).detail is None


def test_normalise_is_scale_minus_mean_over_std():
    preprocessing = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    photos = torch.tensor([[[[0, 255, 51]], [[255, 0, 102]]]], dtype=torch.uint8)  # 2 high, 1 wide
    expected = torch.tensor([[[[-1.0], [1.0]], [[3.0], [-1.0]], [[0.1], [0.2]]]])
    torch.testing.assert_close(preprocessing.normalise(photos), expected)


def test_normalised_photos_are_channels_last_float32():
    images = Preprocessing().normalise(torch.from_numpy(noise(10, 8, 3)).expand(2, 8, 10, 3).contiguous())
    assert images.shape == (2, 3, 8, 10) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
