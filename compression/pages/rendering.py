"""What every page needs: its template filled in with escaped text, and photos inside the page."""

import base64
import io
import os
from pathlib import Path

from PIL import Image

from compression.data.faces import FaceListing


def render(template, **values):
    """A template of this folder as HTML text; every value is escaped, so that a name cannot be markup."""
    import jinja2  # here, so that a prediction without a page does not wait for it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return environment.get_template(template).render(values)


def embedded(photo):
    """A photo uint8 (height, width, channels) as the `src` of an <img>: a JPEG inside the page."""
    file = io.BytesIO()
    Image.fromarray(photo.squeeze(-1) if photo.shape[-1] == 1 else photo).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def readable(name):
    """A file's name as text that UTF-8 can write; bytes that are no UTF-8 are shown as a question mark in a
    diamond.
    """
    return os.fsencode(name).decode("utf-8", "replace")


def photo_name(listing, row):
    """What a page calls a photo: its file's name, or the id or row of a face."""
    if isinstance(listing, FaceListing):
        return str(listing.ids[row]) if listing.ids else f"row {row}"
    return readable(listing.paths[row].name)
