"""augmentation.py: each part of a random view against a plain computation, and how views are drawn."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tv

from compression.data.augmentation import AUGMENTATIONS, BLURS, LUMA, Augmentation, _grid, _hue_matrix
from compression.data.preprocessing import Preprocessing

NOTHING = dict.fromkeys(("flip", "degrees", "brightness", "contrast", "saturation", "hue"), 0.0)
PLAIN = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))  # views in [0, 1]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(count=4, size=24, low=0, high=256):
    return torch.randint(low, high, (count, size, size, 3), generator=seeded(7), dtype=torch.uint8)


def same(views, expected, atol=1e-4):
    torch.testing.assert_close(views, expected, rtol=0, atol=atol)


def only(**ranges):
    """An augmentation that does nothing but what is given."""
    return Augmentation(**{"scale": (1.0, 1.0), "ratio": 1.0, **NOTHING, **ranges})


class Turned(Augmentation):
    """An augmentation that turns by quarter turns, which no drawing gives exactly."""

    def draw(self, count, generator):
        _, *others = only().draw(count, generator)
        return torch.tensor([[0.0, 1, 0], [-1, 0, 0]]).expand(count, 2, 3), *others


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("preprocessing", [Preprocessing(), PLAIN])
def test_view_without_any_change_is_the_normalised_photo(preprocessing):
    batch = photos()
    same(only()(batch, preprocessing, seeded()), preprocessing.normalise(batch))


def test_views_are_normalised_channels_last_float32():
    views = Augmentation()(photos(), Preprocessing(), seeded())
    assert views.shape == (4, 3, 24, 24) and views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_flip_alone_is_the_mirror_image():
    batch = photos()
    same(only(flip=1.0)(batch, PLAIN, seeded()), PLAIN.normalise(batch).flip(3))


def test_flip_is_drawn_for_every_photo():
    batch, plain = photos(200, 8), PLAIN.normalise(photos(200, 8))
    views = only(flip=0.25)(batch, PLAIN, seeded())
    mirrored = (views - plain.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    untouched = (views - plain).abs().amax((1, 2, 3)) < 1e-4
    assert (mirrored ^ untouched).all()
    assert 30 <= mirrored.sum() <= 70  # 50 expected, with a standard deviation of 6


def test_quarter_turn_is_rot90():
    batch = photos()
    same(Turned()(batch, PLAIN, seeded()), torch.rot90(PLAIN.normalise(batch), -1, (2, 3)))


def test_rotation_stays_within_its_range_and_keeps_lengths():
    affine, *_ = only(degrees=20.0).draw(500, seeded())
    linear = affine[:, :, :2]
    torch.testing.assert_close(linear @ linear.transpose(1, 2), torch.eye(2).expand(500, 2, 2))
    torch.testing.assert_close(torch.linalg.det(linear), torch.ones(500))
    angle = torch.rad2deg(torch.atan2(affine[:, 1, 0], affine[:, 0, 0]))
    assert -20 <= angle.min() < -17 and 17 < angle.max() <= 20


@pytest.mark.parametrize("name", ["light", "standard", "strong"])
def test_unrotated_crops_stay_inside_the_photo(name):
    ranges = AUGMENTATIONS[name]
    affine, *_ = Augmentation(scale=ranges.scale, ratio=ranges.ratio, degrees=0.0).draw(2000, seeded())
    corners = affine @ torch.tensor([[-1.0, -1, 1, 1], [-1, 1, -1, 1], [1, 1, 1, 1]])
    assert corners.abs().max() <= 1 + 1e-5
    # and they reach every border
    assert corners.amin((0, 2)).max() < -0.99 and corners.amax((0, 2)).min() > 0.99


def test_crop_area_and_ratio_stay_within_their_ranges():
    affine, *_ = Augmentation(scale=(0.3, 0.6), ratio=1.5, degrees=0.0).draw(2000, seeded())
    width, height = affine[:, 0, 0].abs(), affine[:, 1, 1]
    area, ratio = width * height, width / height
    assert 0.3 - 1e-4 <= area.min() < 0.32 and 0.58 < area.max() <= 0.6 + 1e-4
    assert 1 / 1.5 - 1e-4 <= ratio.min() < 0.7 and 1.43 < ratio.max() <= 1.5 + 1e-4


def test_crop_samples_the_part_of_the_photo_its_affine_names():
    # value = 7 * column
    ramp = torch.arange(32, dtype=torch.uint8).mul(7).view(1, 1, 32, 1).expand(6, 32, 32, 3)
    zoomed = only(scale=(0.25, 0.25))
    affine, *_ = zoomed.draw(6, seeded())
    # column in the photo
    position = (affine[:, 0, :1] * ((torch.arange(32) + 0.5) / 16 - 1) + affine[:, 0, 2:] + 1) * 16 - 0.5
    position = position[:, None, None, :].expand(6, 3, 32, 32)
    inside = (position >= 0) & (position <= 31)
    same(zoomed(ramp, PLAIN, seeded())[inside] * 255, 7 * position[inside], atol=1e-2)
    torch.testing.assert_close(affine[:, 0, 0], torch.full((6,), 0.5))


@pytest.mark.parametrize("height, width", [(16, 16), (5, 8), (1, 3)])
def test_grid_is_the_affine_grid_of_torch(height, width):
    affine = torch.randn(3, 2, 3, generator=seeded())
    expected = F.affine_grid(affine, (3, 1, height, width), align_corners=False)
    torch.testing.assert_close(_grid(affine, height, width), expected)


# ---------------------------------------------------------------- colour
# Photos of middle tones, so that nothing is clamped; the factors are read from what the same seed draws.


def expect(augmentation, change):
    batch = photos(low=90, high=150)
    plain = PLAIN.normalise(batch).contiguous()
    views = augmentation(batch, PLAIN, seeded(3))
    # torchvision rounds LUMA to 0.2989
    same(views, torch.stack([change(photo, row) for row, photo in enumerate(plain)]), atol=1e-3)
    assert (views - PLAIN.normalise(batch)).abs().max() > 0.01  # something did happen


def test_brightness_is_that_of_torchvision():
    augmentation = only(brightness=0.5)
    factors = augmentation.draw(4, seeded(3))[1][:, 0, 0]
    expect(augmentation, lambda photo, row: tv.adjust_brightness(photo, factors[row].item()))


def test_contrast_is_that_of_torchvision():
    augmentation = only(contrast=0.5)
    factors = augmentation.draw(4, seeded(3))[2]
    expect(augmentation, lambda photo, row: tv.adjust_contrast(photo, factors[row].item()))


def test_saturation_is_that_of_torchvision():
    augmentation = only(saturation=0.8)
    factors = (augmentation.draw(4, seeded(3))[1][:, 0, 0] - LUMA[0]) / (1 - LUMA[0])
    expect(augmentation, lambda photo, row: tv.adjust_saturation(photo, factors[row].item()))


def test_saturation_brightness_and_contrast_together_are_those_of_torchvision_in_turn():
    augmentation = only(saturation=0.5, brightness=0.3, contrast=0.3)
    _, colour, contrast, _ = augmentation.draw(4, seeded(3))
    brightness = colour.sum(2)[:, 0] / contrast  # rows of the saturation matrix sum to 1
    saturation = (colour[:, 0, 0] - colour[:, 1, 0]) / (brightness * contrast)

    def change(photo, row):
        photo = tv.adjust_saturation(photo, saturation[row].item())
        photo = tv.adjust_brightness(photo, brightness[row].item())
        return tv.adjust_contrast(photo, contrast[row].item())

    expect(augmentation, change)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_factors_fill_their_range(name):
    _, colour, contrast, _ = only(**{name: 0.4}).draw(2000, seeded())
    factors = {
        "brightness": colour[:, 0, 0],
        "contrast": contrast,
        "saturation": (colour[:, 0, 0] - LUMA[0]) / (1 - LUMA[0]),
    }[name]
    assert 0.6 - 1e-5 <= factors.min() < 0.62 and 1.38 < factors.max() <= 1.4 + 1e-5


@pytest.mark.parametrize("turns", [0.0, 1.0, -1.0])
def test_hue_of_no_or_a_full_turn_is_the_identity(turns):
    same(_hue_matrix(torch.tensor([turns]))[0], torch.eye(3), atol=1e-5)


def test_hue_turns_add_up():
    one, two, three = _hue_matrix(torch.tensor([0.1, 0.2, 0.3]))
    same(one @ two, three, atol=1e-5)


def test_hue_keeps_grey_and_brightness():
    matrices = _hue_matrix(torch.linspace(-0.5, 0.5, 11))
    same(matrices @ torch.ones(3), torch.ones(11, 3), atol=1e-5)
    same(torch.tensor(LUMA) @ matrices, torch.tensor(LUMA).expand(11, 3), atol=1e-5)


def test_grey_photo_stays_grey_under_hue_and_saturation():
    grey = photos()[..., :1].expand(4, 24, 24, 3)
    same(only(hue=0.5, saturation=0.9)(grey, PLAIN, seeded()), PLAIN.normalise(grey))


def test_hue_changes_a_colour():
    red = torch.tensor([200, 60, 60], dtype=torch.uint8).expand(8, 16, 16, 3)
    views = only(hue=0.1)(red, PLAIN, seeded())
    assert (views - PLAIN.normalise(red)).abs().amax((1, 2, 3)).max() > 0.05


def test_colours_are_clamped_to_those_a_photo_can_have():
    preprocessing = Preprocessing()
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    views = only(brightness=0.9, contrast=0.9, saturation=0.9)(photos(32), preprocessing, seeded())
    values = views.permute(0, 2, 3, 1) * std + mean
    assert -1e-5 <= values.min() < 1e-5 and 1 - 1e-5 < values.max() <= 1 + 1e-5


# ---------------------------------------------------------------- resolution


def test_smaller_views_show_the_same_part_of_the_photo():
    batch = photos(size=48)
    views = only()(batch, PLAIN, seeded(), size=24)
    assert views.shape == (4, 3, 24, 24) and views.is_contiguous(memory_format=torch.channels_last)
    same(views, F.avg_pool2d(PLAIN.normalise(batch), 2))  # bilinear at half the size is the mean of four


def test_view_size_changes_neither_crop_nor_colours():
    batch = torch.full((6, 32, 32, 3), 90, dtype=torch.uint8)
    batch[:, :, 16:] = 200
    small, large = (Augmentation()(batch, PLAIN, seeded(), size=size) for size in (32, 64))
    assert (small - F.avg_pool2d(large, 2)).abs().mean() < 0.01


def test_blurred_photo_is_the_photo_scaled_down_and_up_again():
    batch, augmentation = photos(64), only(blur=1.0)
    levels = augmentation.draw(64, seeded())[3]
    assert set(levels.tolist()) == {1, 2, 3}
    views, plain = augmentation(batch, PLAIN, seeded()), PLAIN.normalise(batch)
    for view, photo, level in zip(views, plain, levels.tolist()):
        small = tv.resize(photo, [round(24 * BLURS[level])] * 2, antialias=True)
        same(view, F.interpolate(small[None], size=(24, 24), mode="bicubic").clamp(0, 1)[0], atol=0.02)


def test_blur_is_drawn_for_the_given_share_and_none_by_default():
    assert not Augmentation().draw(100, seeded())[3].any()
    share = (Augmentation(blur=0.3).draw(4000, seeded())[3] > 0).float().mean().item()
    assert abs(share - 0.3) < 0.03


def test_blur_leaves_a_constant_photo_as_it_is():
    batch = torch.full((8, 24, 24, 3), 77, dtype=torch.uint8)
    same(only(blur=1.0)(batch, PLAIN, seeded()), PLAIN.normalise(batch))


# ---------------------------------------------------------------- drawing


def test_parameters_differ_between_the_photos_of_a_batch():
    *continuous, blur = Augmentation(blur=0.5).draw(16, seeded())
    for values in continuous:
        assert len({tuple(value.flatten().tolist()) for value in values}) == 16
    assert len(set(blur.tolist())) > 1
    same = photos(1).expand(16, -1, -1, -1)
    assert len({tuple(view.flatten().tolist()) for view in Augmentation()(same, PLAIN, seeded())}) == 16


def test_same_seed_gives_the_same_views_and_another_seed_others():
    batch, augmentation = photos(), Augmentation()
    first = augmentation(batch, PLAIN, seeded(1))
    assert torch.equal(first, augmentation(batch, PLAIN, seeded(1)))
    assert not torch.equal(first, augmentation(batch, PLAIN, seeded(2)))


def test_consecutive_batches_of_one_generator_differ():
    batch, generator = photos(), seeded()
    assert not torch.equal(Augmentation()(batch, PLAIN, generator), Augmentation()(batch, PLAIN, generator))


def test_global_random_state_and_the_photos_are_left_alone():
    batch, before = photos(), torch.get_rng_state()
    Augmentation()(batch, PLAIN, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(batch, photos())


def test_the_course_crops_mirrors_and_rotates_and_leaves_colours_alone():
    affine, colour, contrast, blur = AUGMENTATIONS["course"].draw(500, seeded())
    assert torch.allclose(colour, torch.eye(3).expand(500, 3, 3), atol=1e-6) and (contrast == 1).all()
    assert not blur.any()
    sides = affine[:, :, :2].norm(dim=1)  # of the crop, in halves of the photo
    assert torch.allclose(sides[:, 0], sides[:, 1], atol=1e-6) and 0.6 <= (sides[:, 0] ** 2).min() + 1e-6
    assert (sides[:, 0] ** 2).max() <= 1 + 1e-6
    angles = torch.asin(affine[:, 1, 0].abs() / sides[:, 0]) * 180 / torch.pi
    assert 14 < angles.max() <= 15.001
    assert 0.4 < (torch.linalg.det(affine[:, :, :2]) < 0).double().mean() < 0.6


def test_named_augmentations_grow_stronger():
    assert AUGMENTATIONS["none"] is None
    light, standard, strong = (AUGMENTATIONS[name] for name in ("light", "standard", "strong"))
    for part in ("degrees", "brightness", "contrast", "saturation", "hue"):
        assert getattr(light, part) <= getattr(standard, part) <= getattr(strong, part)
    assert light.scale[0] > standard.scale[0] > strong.scale[0]


def test_corners_beyond_the_photo_are_reflected_and_not_black():
    grey = torch.full((8, 16, 16, 3), 120, dtype=torch.uint8)
    same(only(degrees=45.0)(grey, PLAIN, seeded()), PLAIN.normalise(grey))


def test_hue_is_shifted_either_way():
    _, colour, _, _ = only(hue=0.1).draw(2000, seeded())
    shifts = colour[:, 0, 1] - colour[:, 0, 2]  # odd about no shift but for a constant
    least, most = (matrix[0, 1] - matrix[0, 2] for matrix in _hue_matrix(torch.tensor([-0.1, 0.1])))
    low, high = sorted((least.item(), most.item()))
    assert low - 1e-4 < shifts.min() < low + 0.02 and high - 0.02 < shifts.max() < high + 1e-4
