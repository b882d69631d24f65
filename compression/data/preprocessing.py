"""How a photo becomes the network's input, identical in training, validation and inference."""

import math
from dataclasses import asdict, dataclass

from compression.command_line import UserError
from compression.data.transfer import constant

RESIZE_RULES = ("crop", "squash", "course")
GREY = {"mean": (0.5,), "std": (0.25,)}  # normalisation of grey photos, about that of FER-2013's faces


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the network's input.

    size: pixels per side. resize: "crop" scales the shorter side to `size` and takes the centre crop,
    "squash" scales both sides, "course" takes the centre crop without scaling, padded with black (the
    course's CenterCrop). mean, std: of the normalisation, for values in [0, 1]: three each for RGB, one each
    for grey; this decides the number of channels. detail: larger photos are first reduced to this shorter
    side in pixels, so that a network trained on small photos gets large ones equally blurred (None: no
    reduction).
    """

    size: int = 128
    resize: str = "crop"
    mean: tuple = (0.485, 0.456, 0.406)  # ImageNet's, the convention for RGB photos
    std: tuple = (0.229, 0.224, 0.225)
    detail: int | None = None

    def __post_init__(self):
        if type(self.size) is not int or not 16 <= self.size <= 4096:
            raise UserError(f"an input size of {self.size} pixels cannot be used; choose 16 to 4096")
        if self.resize not in RESIZE_RULES:
            raise UserError(f"there is no resize rule {self.resize!r}; choose {', '.join(RESIZE_RULES)}")
        if self.detail is not None and (type(self.detail) is not int or not 16 <= self.detail <= 4096):
            raise UserError(f"a detail of {self.detail} pixels cannot be used; choose 16 to 4096, or none")
        if self.detail and self.resize == "course":
            raise UserError("the resize rule course does not scale photos; leave it or detail out")
        try:
            mean, std = (tuple(map(float, values)) for values in (self.mean, self.std))
            usable = len(mean) == len(std) in (1, 3) and all(map(math.isfinite, mean + std)) and min(std) > 0
        except (TypeError, ValueError, OverflowError):
            usable = False
        if not usable:
            raise UserError("mean and std must be 3 numbers each (1 for grey), std above 0; correct them")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    @property
    def channels(self):
        """3 for RGB, 1 for grey."""
        return len(self.mean)

    @property
    def shape(self):
        """Of one photo: (size, size, channels)."""
        return self.size, self.size, self.channels

    def to_dict(self):
        """Plain values, as stored in files; without `detail` if it is None, as in older files."""
        plain = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        if not self.detail:
            del plain["detail"]
        return plain

    def normalise(self, photos):
        """uint8 (N, H, W, C) -> float32 (N, C, H, W), channels last in memory."""
        mean, std = (constant(values, photos.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (photos.permute(0, 3, 1, 2).float() / 255 - mean) / std


def photos_at_once(size):
    """Photos per inference batch: 256 for up to 128 px, fewer for larger photos to limit memory."""
    return max(1, min(256, 256 * 128**2 // size**2))
