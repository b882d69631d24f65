"""Augmentation of whole uint8 batches on the training device, with random parameters for every photo.

The geometry (crop, flip, rotation, view size) is one affine sampling. The colours (brightness, contrast,
saturation, hue) and the normalisation are one 3x3 matrix and offset per photo. These two passes over the
pixels take, with reading, about a tenth of a training step (results/data_path.json).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from compression.data.transfer import constant, send

BLURS = (1.0, 0.75, 0.625, 0.5)  # remaining resolution by blur level; level 0 is not blurred
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's and torchvision's grey conversion


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random parameters.

    scale: area of the crop as a fraction of the photo, uniform. ratio: aspect ratio of the crop
    (log-uniform in [1/ratio, ratio]). flip: probability of a mirror image. degrees: rotation, uniform
    in +-degrees; corners beyond the photo are reflected. brightness, contrast, saturation: factors,
    uniform in [1 - x, 1 + x]. hue: shift in turns, uniform in +-hue. blur: share of the photos that are
    first scaled down to one of BLURS and up again, for a network that is to know small photos too.
    """

    scale: tuple = (0.35, 1.0)
    ratio: float = 4 / 3
    flip: float = 0.5
    degrees: float = 15.0
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.03
    blur: float = 0.0

    def draw(self, count, generator):
        """Parameters of N = `count` views: affine (N, 2, 3), colour (N, 3, 3), contrast (N,), blur (N,).

        Drawn on the CPU from `generator`, so that a GPU run sees the same views. The affine maps output to
        input coordinates, both in [-1, 1] as in torch's affine_grid.
        """

        def uniform(low, high):
            return low + (high - low) * torch.rand(count, generator=generator)

        area, log_ratio = uniform(*self.scale), uniform(-math.log(self.ratio), math.log(self.ratio))
        # half the crop's extent in [-1, 1] coordinates
        width = (area.sqrt() * (log_ratio / 2).exp()).clamp(max=1)
        height = (area.sqrt() * (-log_ratio / 2).exp()).clamp(max=1)
        x, y = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
        mirror = 1 - 2 * (torch.rand(count, generator=generator) < self.flip).float()
        angle = uniform(-self.degrees, self.degrees) * math.pi / 180
        cos, sin = angle.cos(), angle.sin()
        affine = [cos * width * mirror, -sin * height, x, sin * width * mirror, cos * height, y]
        affine = torch.stack(affine, 1).view(count, 2, 3)

        spreads = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (uniform(1 - spread, 1 + spread) for spread in spreads)
        share = saturation.view(-1, 1, 1)  # of the colours; the rest is grey
        colour = share * _hue_matrix(uniform(-self.hue, self.hue)) + (1 - share) * torch.tensor(LUMA)
        blur = torch.zeros(count, dtype=torch.int64)  # index in BLURS
        if self.blur:
            blur = (uniform(0, 1) < self.blur) * torch.randint(1, len(BLURS), (count,), generator=generator)
        return affine, colour * (brightness * contrast).view(-1, 1, 1), contrast, blur

    def __call__(self, photos, preprocessing, generator, size=None):
        """Random views: uint8 (N, H, W, C) -> normalised float32 (N, C, size, size), channels last in memory.
        The size is that of the photos by default.
        """
        return self.apply(photos, preprocessing, self.draw(len(photos), generator), size)

    @staticmethod
    def apply(photos, preprocessing, parameters, size=None):
        """The views of `__call__`, with given `parameters` (from `draw`)."""
        *parameters, blur = parameters
        affine, colour, contrast = (send(values, photos.device) for values in parameters)
        images = _blurred(photos.permute(0, 3, 1, 2).float(), blur)
        grid = _grid(affine, size or images.shape[2], size or images.shape[3])
        views = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

        # contrast blends with the view's mean grey after brightness and saturation
        constants = (LUMA, preprocessing.mean, preprocessing.std)
        luma, mean, std = (constant(values, photos.device) for values in constants)
        if preprocessing.channels == 1:  # a grey pixel is R = G = B: saturation and hue do not change it
            luma, colour = luma.sum(0, keepdim=True), colour[:, :1].sum(2, keepdim=True)
        grey = (colour @ views.mean((2, 3)).unsqueeze(2)).squeeze(2) @ luma / contrast
        offset = (grey * (1 - contrast)).view(-1, 1, 1) / (255 * std.view(-1, 1)) - (mean / std).view(-1, 1)
        views = torch.baddbmm(offset, colour / (255 * std.view(-1, 1)), views.flatten(2))
        for channel, (centre, spread) in enumerate(zip(preprocessing.mean, preprocessing.std)):
            # clamps to [0, 1] in units before normalisation; faster than with tensors as bounds
            views[:, channel].clamp_(-centre / spread, (1 - centre) / spread)
        return views.unflatten(2, grid.shape[1:3]).contiguous(memory_format=torch.channels_last)


def _blurred(images, blur):
    """Images (N, C, H, W), of which those with blur > 0 were scaled to BLURS[blur] and up again, in place.

    blur: int64 (N,) on the CPU, so that reading it does not wait for the GPU.
    """
    for level in blur.unique().tolist():
        if level:
            chosen = send((blur == level).nonzero().squeeze(1), images.device)
            size = [max(1, round(BLURS[level] * side)) for side in images.shape[2:]]
            small = F.interpolate(images[chosen], size, mode="bilinear", antialias=True)
            images[chosen] = F.interpolate(small, images.shape[2:], mode="bicubic").clamp_(0, 255)
    return images


def _grid(affine, height, width):
    """torch's affine_grid(align_corners=False), but faster: x and y are separate planes, not pairs."""
    x = (torch.arange(width, device=affine.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=affine.device) * 2 + 1) / height - 1
    rows = affine[:, :, 1, None] * y + affine[:, :, 2, None]
    return torch.addcmul(rows[..., None], affine[:, :, 0, None, None], x).permute(0, 2, 3, 1)


def _hue_matrix(turns):
    """(N, 3, 3) rotations of RGB about the grey axis in YIQ space by `turns` (N,) of a full circle."""
    to_yiq = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    angle = 2 * math.pi * turns
    rotation = torch.zeros(len(turns), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ rotation @ to_yiq


def _colours(spread, hue=0.0):
    return {"brightness": spread, "contrast": spread, "saturation": spread, "hue": hue}


AUGMENTATIONS = {
    "none": None,
    "course": Augmentation((0.6, 1.0), ratio=1.0, **_colours(0.0)),  # crop, mirror image, rotation
    "light": Augmentation((0.6, 1.0), degrees=0.0, **_colours(0.1)),
    "medium": Augmentation((0.5, 1.0), degrees=10.0, **_colours(0.2, hue=0.02)),
    "standard": Augmentation(),
    "blurred": Augmentation(blur=0.5),
    "strong": Augmentation((0.2, 1.0), degrees=20.0, **_colours(0.4, hue=0.05)),
}
