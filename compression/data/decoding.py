"""Photo files as arrays of pixels: decoding, turning upright, resizing, and what could not be decoded."""

import collections
import contextlib
import errno
import logging
import math
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from compression.command_line import UserError, available_cores

DECODER_VERSION = 3  # increase it when decode_photo changes, so that no stale cache is used
MAX_PIXELS = 178_956_970  # Pillow's own limit, here for a JPEG after its reduced decoding
OPTIONAL_DECODERS = {
    b"avif": "avif",
    b"avis": "avif",
    b"WEBP": "webp",
    b"jp2 ": "jpg_2000",  # bytes 8 to 12, or 20 to 24 of JPEG 2000
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1"), "HEIC"),
}
Image.MAX_IMAGE_PIXELS = None  # Pillow would refuse a large JPEG even if it is decoded at 1/8 scale
warnings.filterwarnings(
    "ignore", category=UserWarning, module=r"PIL\."
)  # about palettes and EXIF tags; photos that cannot be decoded are reported anyway
logging.getLogger("PIL").addHandler(logging.NullHandler())  # the same messages, logged to stderr
warnings.filterwarnings(
    "ignore", message="Unknown feature"
)  # from `features.check`, for a decoder that an old Pillow does not know


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
)  # EXIF orientation -> the operation that turns the photo upright


def _to_rgb(image):
    if (
        image.mode.startswith("I;16") or image.mode == "I"
    ):  # 16-bit grey: convert("RGB") would clip it to white
        grey = np.asarray(image).clip(0, 65535)
        # photos of 8 to 14 bits use only the lower part of the range
        highest = next(
            highest for highest in (255, 1023, 4095, 16383, 65535) if grey.max(initial=0) <= highest
        )
        image = Image.fromarray((grey / (highest / 255)).astype(np.uint8))
    elif (
        image.mode == "F"
    ):  # values in [0, 1], with higher ones in overexposed parts; or in [0, 255], or more
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
    """An RGB image with 16 bits per channel, of which Pillow keeps the upper 8; data of fewer bits is
    brightened, since it would be almost black.
    """
    highest = max(high for _, high in image.getextrema())
    return image.point(
        [
            min(255, round(value * 255 / next(most for most in (3, 15, 63, 255) if highest <= most)))
            for value in range(256)
        ]
        * 3
    )


def missing_decoder(path, error):
    """The decoder that the photo at `path` needs and this Pillow lacks, by the file's first bytes and the
    error; None if no decoder is missing.
    """
    with open(path, "rb") as file:
        start = file.read(24)
    kind = OPTIONAL_DECODERS.get(start[8:12]) or OPTIONAL_DECODERS.get(start[20:24])
    unknown = isinstance(error, UnidentifiedImageError) or "not available" in str(error)
    return kind if unknown and kind and (kind == "HEIC" or not features.check(kind)) else None


def _upright(image):
    """The image turned by its EXIF orientation.

    Unlike `ImageOps.exif_transpose`, it does not write the tags again, which fails if any tag is invalid.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises almost any exception for damaged tags; the pixels can still be used
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def decode_photo(path, preprocessing):
    """One photo as uint8 (size, size, channels): upright by its EXIF orientation, resized by the rule.

    Raises Pillow's exception for a file that cannot be decoded completely.
    """
    return decode_inputs(path, [preprocessing])[0]


def decode_inputs(path, preprocessings):
    """One photo for several Preprocessings, identical to `decode_photo` for each, but decoded only once per
    scale.
    """
    decoded, inputs = {}, []
    for preprocessing in preprocessings:
        with Image.open(path) as image:  # reads no more than the header
            whole = image.size
            if preprocessing.resize != "course":
                # decodes a JPEG at a reduced scale, at least twice the size: 3 times faster at 512 px
                image.draft(None, (2 * (preprocessing.detail or preprocessing.size),) * 2)
            scale = image.size
            if (
                math.prod(scale) > MAX_PIXELS or math.prod(whole) > 3 * MAX_PIXELS
            ):  # a progressive JPEG needs memory for its full size
                raise ValueError(
                    f"{math.prod(whole) / 1e6:.0f} megapixels, at most {MAX_PIXELS / 1e6:.0f} are allowed: "
                    "make it smaller, or convert it to JPEG"
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
    """Problems while decoding: row -> reason."""

    truncated: dict = field(default_factory=dict)
    unreadable: dict = field(default_factory=dict)

    @staticmethod
    def name(listing, rows, most=5):
        """The files of a Listing in `rows` (row -> reason) with their reasons, as text; with more than
        `most`, the full list is written to a temporary file.
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
    """The reason why a photo cannot be decoded, without the path that Pillow's messages repeat."""
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

    Photos that fail come last: they are decoded again, now accepting truncated files. Pillow's switch for
    this is global, so it is only changed when no other thread decodes.
    """
    from tqdm import tqdm

    def attempt(row):
        try:
            return row, decode_inputs(paths[row], preprocessings), None
        except Exception as error:  # Pillow raises almost any exception for a damaged file
            if getattr(error, "errno", None) not in (
                None,
                0,
                errno.EINVAL,
            ):  # an error of the system: no permission, a broken link, a failing disk
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
                    f"without its {kind} decoder; pip install "
                    f"{'pillow-heif' if kind == 'HEIC' else '--upgrade pillow'}, or convert such photos to "
                    "JPEG"
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
