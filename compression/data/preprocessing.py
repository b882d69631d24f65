"""A photo file becomes the network's input here, the same way in training, validation and inference."""

import collections
import contextlib
import errno
import logging
import math
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from compression.command_line import UserError, available_cores
from compression.data.transfer import constant

RESIZE_RULES = ("crop", "squash", "course")
GREY = {"mean": (0.5,), "std": (0.25,)}  # the normalisation of grey photos: about that of FER-2013's faces
DECODER_VERSION = 3  # raise it when decode_photo changes, so that no stale cache is used
MAX_PIXELS = 178_956_970  # Pillow's own limit, but of what is left of a JPEG after its reduction
OPTIONAL_DECODERS = {
    b"avif": "avif",
    b"avis": "avif",
    b"WEBP": "webp",
    b"jp2 ": "jpg_2000",  # bytes 8 to 12, or 20 to 24 of JPEG 2000
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1"), "HEIC"),
}
Image.MAX_IMAGE_PIXELS = None  # Pillow would refuse a large JPEG that is read at an eighth of its scale
warnings.filterwarnings(
    "ignore", category=UserWarning, module=r"PIL\."
)  # of palettes and EXIF tags; what is lost is reported
logging.getLogger("PIL").addHandler(logging.NullHandler())  # the same, which would go to stderr
warnings.filterwarnings(
    "ignore", message="Unknown feature"
)  # of `features.check`, for a decoder that this Pillow is too old to know


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the network's input.

    size: pixels per side. resize: "crop" scales the shorter side to `size` and takes the centre,
    "squash" scales both sides, "course" takes the centre at the photo's own scale, padded with black
    (the course's CenterCrop). mean, std: of the normalisation, for values in [0, 1]: three of each for
    RGB, one for grey, and that decides the channels of every photo. detail: a photo whose shorter side is
    longer is first reduced to this many pixels, so that a network trained on small photos sees large ones
    as blurred as those (None: photos keep their detail).
    """

    size: int = 128
    resize: str = "crop"
    mean: tuple = (0.485, 0.456, 0.406)  # ImageNet's, the field's convention for RGB photos
    std: tuple = (0.229, 0.224, 0.225)
    detail: int | None = None

    def __post_init__(self):
        try:
            for name in ("mean", "std"):
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                "mean and std need three numbers each, or one each for grey; correct the preprocessing"
            ) from None
        if type(self.size) is not int or not 16 <= self.size <= 4096:
            raise UserError(f"an input size of {self.size} pixels cannot be used; choose 16 to 4096")
        if self.resize not in RESIZE_RULES:
            raise UserError(
                f"there is no resize rule {self.resize!r}; choose one of {', '.join(RESIZE_RULES)}"
            )
        if self.detail is not None and (type(self.detail) is not int or not 16 <= self.detail <= 4096):
            raise UserError(f"a detail of {self.detail} pixels cannot be used; choose 16 to 4096, or none")
        if self.detail and self.resize == "course":
            raise UserError(
                "a detail does not go with the resize rule course, which cuts photos at their own scale; "
                "leave one of them out"
            )
        if (
            len(self.mean) not in (1, 3)
            or len(self.std) != len(self.mean)
            or not all(map(math.isfinite, self.mean + self.std))
            or min(self.std) <= 0
        ):
            raise UserError(
                "mean and std need three finite values each, or one each for grey, std above 0; correct the "
                "preprocessing"
            )

    @property
    def channels(self):
        """3 for RGB, 1 for grey."""
        return len(self.mean)

    @property
    def shape(self):
        """Of one photo: (size, size, channels)."""
        return self.size, self.size, self.channels

    def to_dict(self):
        """Plain values, as they are stored in files; `detail` only where there is one, as in older files."""
        plain = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return plain if self.detail else {key: value for key, value in plain.items() if key != "detail"}

    def normalise(self, photos):
        """uint8 (N, H, W, C) -> float32 (N, C, H, W), channels last in memory."""
        mean, std = (constant(values, photos.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (photos.permute(0, 3, 1, 2).float() / 255 - mean) / std


_TURNS = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)  # EXIF orientation -> what turns it upright


def _to_rgb(image):
    if (
        image.mode.startswith("I;16") or image.mode == "I"
    ):  # 16-bit grey: convert("RGB") would clip it to white
        grey = np.asarray(image).clip(0, 65535)
        # cameras of 8 to 14 bits use the lower part of the range
        highest = next(
            highest for highest in (255, 1023, 4095, 16383, 65535) if grey.max(initial=0) <= highest
        )
        image = Image.fromarray((grey / (highest / 255)).astype(np.uint8))
    elif (
        image.mode == "F"
    ):  # values in [0, 1], with some above where light is too strong; or in [0, 255], or more
        grey = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
        highest = grey.max(initial=0)
        image = Image.fromarray(
            (grey * (255 / (1 if highest <= 16 else max(255, highest)))).clip(0, 255).astype(np.uint8)
        )
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _brightened(image):
    """An RGB image of 16 bits a channel, of which Pillow keeps the upper 8, so that data of fewer bits does
    not stay black.
    """
    highest = max(high for _, high in image.getextrema())
    return image.point(
        [
            min(255, round(value * 255 / next(most for most in (3, 15, 63, 255) if highest <= most)))
            for value in range(256)
        ]
        * 3
    )


def photos_at_once(size):
    """Photos in a batch that is only looked at: 256 of up to 128 px, and of larger ones as many as take no
    more memory.
    """
    return max(1, min(256, 256 * 128**2 // size**2))


def missing_decoder(path, error):
    """Which decoder the photo at `path` needs that this Pillow lacks, by the file's first bytes and the
    error; None if it is none.
    """
    with open(path, "rb") as file:
        start = file.read(24)
    kind = OPTIONAL_DECODERS.get(start[8:12]) or OPTIONAL_DECODERS.get(start[20:24])
    unknown = isinstance(error, UnidentifiedImageError) or "not available" in str(error)
    return kind if unknown and kind and (kind == "HEIC" or not features.check(kind)) else None


def _upright(image):
    """The image turned by its EXIF orientation.

    As `ImageOps.exif_transpose`, which writes the tags anew and so fails where any of them, even one that is
    not needed, is odd.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises almost anything for damaged tags, and the pixels are sound
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def decode_photo(path, preprocessing):
    """One photo as uint8 (size, size, channels): upright by its EXIF orientation, resized by the rule.

    Raises whatever Pillow raises for a file that it cannot decode entirely.
    """
    return decode_inputs(path, [preprocessing])[0]


def decode_inputs(path, preprocessings):
    """One photo by several Preprocessings, each exactly as by `decode_photo`, but decoded once for all that
    need it at the same scale.
    """
    decoded, inputs = {}, []
    for preprocessing in preprocessings:
        with Image.open(path) as image:  # reads no more than the header
            whole = image.size
            if preprocessing.resize != "course":
                # JPEG decodes straight to >= twice the size: 3 times faster on 512 px photos
                image.draft(None, (2 * (preprocessing.detail or preprocessing.size),) * 2)
            scale = image.size
            if (
                math.prod(scale) > MAX_PIXELS or math.prod(whole) > 3 * MAX_PIXELS
            ):  # a progressive JPEG needs memory for all of it
                raise ValueError(
                    f"{math.prod(whole) / 1e6:.0f} megapixels, at most {MAX_PIXELS / 1e6:.0f} are read: "
                    "make it smaller, or a JPEG"
                )
            if scale not in decoded:
                sixteen_bits = image.mode == "RGB" and any("16" in str(tile[3]) for tile in image.tile)
                image.load()
                decoded[scale] = _to_rgb(_brightened(_upright(image)) if sixteen_bits else _upright(image))
        inputs.append(resize_image(decoded[scale], preprocessing))
    return inputs


def resize_image(image, preprocessing):
    """An RGB or grey Pillow image as uint8 (size, size, channels)."""
    image, size = image.convert("RGB" if preprocessing.channels == 3 else "L"), preprocessing.size
    width, height = image.size
    if preprocessing.detail and preprocessing.detail < min(width, height):
        scale = preprocessing.detail / min(width, height)
        width, height = (max(preprocessing.detail, round(side * scale)) for side in (width, height))
        image = image.resize((width, height), Image.LANCZOS)
    if preprocessing.resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        image = image.resize((size, size), Image.BICUBIC, box=(left, top, left + side, top + side))
    elif preprocessing.resize == "squash":
        image = image.resize((size, size), Image.BICUBIC)
    else:  # torchvision's CenterCrop: pads with black, rounds half to even
        left, top = max(size - width, 0) // 2, max(size - height, 0) // 2
        padded = Image.new(image.mode, (max(size, width), max(size, height)))
        padded.paste(image, (left, top))
        left, top = round((padded.width - size) / 2), round((padded.height - size) / 2)
        image = padded.crop((left, top, left + size, top + size))
    return np.array(image).reshape(preprocessing.shape)


@dataclass
class DecodeReport:
    """What went wrong while decoding: row -> reason."""

    truncated: dict = field(default_factory=dict)
    unreadable: dict = field(default_factory=dict)

    @staticmethod
    def name(listing, rows, most=5):
        """The files of a Listing in `rows` (row -> reason) with their reasons, as text; of more than `most`
        the rest in a file.
        """
        named = [
            f"{listing.paths[row].relative_to(listing.folder)} ({without_path(reason, listing.paths[row])})"
            for row, reason in sorted(rows.items())
        ]
        if len(named) <= most:
            return ", ".join(named)
        text = f"{', '.join(named[:most])} and {len(named) - most} more"
        try:
            with tempfile.NamedTemporaryFile(
                "w", prefix="photos-", suffix=".txt", delete=False, encoding="utf-8", errors="surrogateescape"
            ) as file:
                file.write("\n".join(named) + "\n")
        except OSError:  # a full or read-only disk
            return text
        return f"{text}, all listed in {file.name}"


def without_path(reason, path):
    """Why a photo cannot be decoded, without the path that Pillow's messages repeat."""
    return reason.replace(f" {str(path)!r}", "")


@contextlib.contextmanager
def _accept_truncated():
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def decode_stream(paths, preprocessings, report, batch_size=64, label="decoding"):
    """Decode photos on all cores; yields (rows, uint8 (n, size, size, channels) for each of the
    Preprocessings) and fills `report`.

    Photos that fail come last and are tried once more, decoded as far as they go: Pillow's switch for
    that is global, so it is only thrown when no other thread decodes.
    """
    from tqdm import tqdm

    def attempt(row):
        try:
            return row, decode_inputs(paths[row], preprocessings), None
        except Exception as error:  # a hostile file can raise nearly anything inside Pillow
            if getattr(error, "errno", None) not in (
                None,
                0,
                errno.EINVAL,
            ):  # the system's: no permission, a dangling link, a failing disk
                raise UserError(
                    f"{paths[row]} cannot be read: {error.strerror}; fix that or remove the file"
                ) from None
            if isinstance(error, MemoryError) or "out of memory" in str(error):
                raise UserError(
                    f"there is not enough memory to decode {paths[row]}; close other programs or make the "
                    "photo smaller"
                ) from None
            if kind := missing_decoder(paths[row], error):
                raise UserError(
                    f"{paths[row]} cannot be read because Pillow {PIL.__version__} is installed here "
                    f"without its {kind} decoder; "
                    f"pip install {'pillow-heif' if kind == 'HEIC' else '--upgrade pillow'}, or convert "
                    "such photos to JPEG"
                ) from None
            return row, None, str(error).splitlines()[0] if str(error) else type(error).__name__

    failed = []
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(total=len(paths), desc=label, unit="photo", disable=None, leave=False) as bar,
    ):
        waiting = collections.deque()
        for start in [*range(0, len(paths), batch_size), *[None] * 4]:  # four batches ahead of the consumer
            if start is not None:
                waiting.append(
                    [pool.submit(attempt, row) for row in range(start, min(start + batch_size, len(paths)))]
                )
            if waiting and (len(waiting) > 4 or start is None):
                results = [future.result() for future in waiting.popleft()]
                bar.update(len(results))
                failed += [(row, reason) for row, inputs, reason in results if inputs is None]
                decoded = [(row, *inputs) for row, inputs, _ in results if inputs is not None]
                if decoded:
                    rows, *inputs = zip(*decoded)
                    yield list(rows), *map(np.stack, inputs)
    with _accept_truncated():
        for row, reason in failed:
            _, inputs, _ = attempt(row)
            if inputs is None:
                report.unreadable[row] = reason
            else:
                report.truncated[row] = reason
                yield [row], *(photo[None] for photo in inputs)
