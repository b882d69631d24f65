"""The page of inference.py --html: photos with their most probable classes, filtered by class and confidence.

The page links the photos where they lie and shows 120 at a time, so that the browser never holds more: with
30,000 photos it opens in less than a second (docs/pages.md has the measurement).
"""

import os
from pathlib import Path
from urllib.parse import quote

from compression.data.faces import FaceListing
from compression.data.preprocessing import Preprocessing, decode_photo, without_path
from compression.pages.rendering import embedded, photo_name, readable, render

SHOWN = 3  # classes of each photo
BROWSER_FORMATS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp"}
THUMBNAIL = Preprocessing(96)  # of a photo that browsers cannot show


def source(listing, row, page, truncated=()):
    """The `src` of a photo on a page in the file `page`: a relative link, or the picture itself where there
    is no file that a browser shows.

    truncated: rows that cannot be decoded as a whole, and are linked whatever their format.
    """
    if isinstance(listing, FaceListing):
        return embedded(listing.faces[row])
    path = listing.paths[row]
    if path.suffix.lower() not in BROWSER_FORMATS and row not in truncated:
        return embedded(decode_photo(path, THUMBNAIL))
    try:
        return quote(os.fsencode(Path(os.path.relpath(path, Path(page).parent)).as_posix()))
    except ValueError:  # on Windows, where the page is on another drive
        return path.resolve().as_uri()


def gallery_page(listing, class_names, probabilities, report, page, title):
    """HTML text of the gallery.

    probabilities: float32 (N, classes) of the N photos of a listing; rows that `report`, a DecodeReport,
    calls unreadable are listed apart. page: the file that the text will be written to.
    """
    photos = []
    for row in range(len(listing)):
        if row not in report.unreadable:
            values, labels = probabilities[row].topk(min(SHOWN, len(class_names)))
            photos.append(
                [
                    photo_name(listing, row),
                    source(listing, row, page, report.truncated),
                    labels.tolist(),
                    [round(value, 4) for value in values.tolist()],
                ]
            )
    return render(
        "gallery.html",
        title=title,
        data={"classes": [readable(name) for name in class_names], "photos": photos},
        truncated=[photo_name(listing, row) for row in sorted(report.truncated)],
        unreadable=[
            (photo_name(listing, row), readable(without_path(reason, listing.paths[row])))
            for row, reason in sorted(report.unreadable.items())
        ],
    )
