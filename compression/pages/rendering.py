"""What every page needs: its template filled in with escaped text, and photos inside the page."""

import base64
import io
from pathlib import Path

from PIL import Image

from compression.data.faces import FaceListing


def render(template, **values):
    """A template of this folder as HTML text; every value is escaped, so that a name cannot be markup."""
    import jinja2  # here, so that a prediction without a page does not wait for it

    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
    return environment.get_template(template).render(values)


def embedded(photo):
    """A photo uint8 (height, width, channels) as the `src` of an <img>: a JPEG inside the page."""
    file = io.BytesIO()
    Image.fromarray(photo.squeeze(-1) if photo.shape[-1] == 1 else photo).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def readable(name):
    """A name or path as text that UTF-8 can write: what is no UTF-8 becomes a question mark."""
    return str(name).encode("utf-8", "replace").decode()


def photo_name(listing, row):
    """What a page calls a photo: its file's name, or the id or number of a face."""
    return readable(listing.ids[row] if isinstance(listing, FaceListing) else listing.paths[row].name)
