"""Photo files as arrays of pixels: decoding, turning upright, resizing, and what could not be decoded."""

import collections
import errno
import itertools
import logging
import math
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from compression.command_line import UserError, available_cores

DECODER_VERSION = 4  # increase it when decode_photo changes, so that no stale cache is used
MAX_PIXELS = 178_956_970  # Pillow's own limit, here for a JPEG after its reduced decoding
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1")  # bytes 4 to 12 of such a file
Image.MAX_IMAGE_PIXELS = None  # Pillow would refuse a large JPEG even if it is decoded at 1/8 scale
# about palettes and EXIF tags; photos that cannot be decoded are reported anyway
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # the same messages, logged to stderr
TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2)))  # EXIF orientation -> Image.Transpose that undoes it
try:  # with this package Pillow reads HEIC, under whatever name
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pass


def _to_rgb(image):
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: convert it to JPEG or PNG")
    if image.mode.startswith("I"):  # 16-bit grey: convert("RGB") would clip it to white
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image):
    """The image turned by its EXIF orientation.

    Unlike `ImageOps.exif_transpose`, it does not write the tags again, which fails if any tag is invalid.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises almost any exception for damaged tags; the pixels can still be used
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def decode_photo(path, preprocessing):
    """One photo as uint8 (size, size, channels): upright by its EXIF orientation, resized by the rule.

    Raises Pillow's exception for a file that cannot be decoded completely.
    """
    return decode_inputs(path, [preprocessing])[0]


def decode_inputs(path, preprocessings):
    """[`decode_photo` for each of the Preprocessings]; the photo is decoded only once per scale."""
    decoded, inputs = {}, []
    for preprocessing in preprocessings:
        with Image.open(path) as image:  # reads no more than the header
            whole = image.size
            if preprocessing.resize != "course":
                # decodes a JPEG at a reduced scale, at least twice the size: 3 times faster at 512 px
                image.draft(None, (2 * (preprocessing.detail or preprocessing.size),) * 2)
            scale = image.size
            # a progressive JPEG needs memory for its full size
            if math.prod(scale) > MAX_PIXELS or math.prod(whole) > 3 * MAX_PIXELS:
                megapixels = round(math.prod(whole) / 1e6)
                most = f"at most {MAX_PIXELS // 10**6} are allowed"
                raise ValueError(f"{megapixels} megapixels, {most}: make it smaller or convert it to JPEG")
            if scale not in decoded:
                image.load()
                decoded[scale] = _to_rgb(_upright(image))
        inputs.append(resize_image(decoded[scale], preprocessing))
    return inputs


def resize_image(image, preprocessing):
    """An RGB or grey Pillow image as uint8 (size, size, channels)."""
    image, size = image.convert("RGB" if preprocessing.channels == 3 else "L"), preprocessing.size
    scale = (preprocessing.detail or math.inf) / min(image.size)
    if scale < 1:
        sides = (max(preprocessing.detail, round(side * scale)) for side in image.size)
        image = image.resize(tuple(sides), Image.LANCZOS)
    if preprocessing.resize == "crop":
        image = ImageOps.fit(image, (size, size), Image.BICUBIC)
    elif preprocessing.resize == "squash":
        image = image.resize((size, size), Image.BICUBIC)
    else:  # torchvision's CenterCrop: rounds half to even; beyond the photo, Pillow's crop is black
        margins = (side - size for side in image.size)
        left, top = (round(margin / 2) if margin > 0 else -(-margin // 2) for margin in margins)
        image = image.crop((left, top, left + size, top + size))
    return np.array(image).reshape(preprocessing.shape)


@dataclass
class DecodeReport:
    """Problems while decoding: row -> reason."""

    truncated: dict = field(default_factory=dict)
    unreadable: dict = field(default_factory=dict)

    @staticmethod
    def name(listing, rows, most=5):
        """Files of a Listing with their reasons (rows: row -> reason), of more than `most` all in a file."""
        named = []
        for row, reason in sorted(rows.items()):
            path = listing.paths[row]
            named.append(f"{path.relative_to(listing.folder)} ({without_path(reason, path)})")
        if len(named) <= most:
            return ", ".join(named)
        text = f"{', '.join(named[:most])} and {len(named) - most} more"
        try:
            with tempfile.NamedTemporaryFile(prefix="photos-", suffix=".txt", delete=False) as file:
                file.write(os.fsencode("\n".join(named) + "\n"))
        except OSError:  # a full or read-only disk
            return text
        return f"{text}, all listed in {file.name}"


def without_path(reason, path):
    """The reason why a photo cannot be decoded, without the path that Pillow's messages repeat."""
    return reason.replace(f" {str(path)!r}", "")


def _correctable(path, error):
    """What the user can do about an error in decoding; None for a damaged photo, which the cache may note."""
    if getattr(error, "errno", None) not in (None, 0, errno.EINVAL):  # no permission, a failing disk
        return f"{path} cannot be read: {error.strerror}; fix that or remove the file"
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return f"not enough memory to decode {path}; close other programs or make the photo smaller"
    if isinstance(error, UnidentifiedImageError) and path.read_bytes()[4:12] in HEIC:
        return f"{path} is a HEIC photo; pip install pillow-heif, or convert such photos to JPEG"


def decode_stream(paths, preprocessings, report, batch_size=64, label="decoding"):
    """Decode photos on all cores: yield (rows, uint8 (n, size, size, channels) for each Preprocessing).

    Photos that fail come last and are noted in `report`: they are decoded again, now accepting truncated
    files. Pillow's switch for this is global, so it is only changed when no other thread decodes.
    """
    from tqdm import tqdm

    def attempt(row):
        try:
            return row, decode_inputs(paths[row], preprocessings), None
        except Exception as error:  # Pillow raises almost any exception for a damaged file
            if message := _correctable(paths[row], error):
                raise UserError(message) from None
            return row, None, str(error).splitlines()[0] if str(error) else type(error).__name__

    failed = []
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(total=len(paths), desc=label, unit="photo", disable=None, leave=False) as bar,
    ):
        futures = (pool.submit(attempt, row) for row in range(len(paths)))  # each submitted when it is drawn
        waiting = collections.deque(itertools.islice(futures, 5 * batch_size))
        while waiting:
            results = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
            waiting.extend(itertools.islice(futures, batch_size))
            bar.update(len(results))
            failed += [(row, reason) for row, inputs, reason in results if inputs is None]
            decoded = [(row, *inputs) for row, inputs, _ in results if inputs is not None]
            if decoded:
                rows, *inputs = zip(*decoded)
                yield list(rows), *map(np.stack, inputs)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        for row, reason in failed:
            _, inputs, _ = attempt(row)
            if inputs is None:
                report.unreadable[row] = reason
            else:
                report.truncated[row] = reason
                yield [row], *(photo[None] for photo in inputs)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
