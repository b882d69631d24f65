"""The page of inference.py --html: photos with their most probable classes, filtered by class and confidence.

The page links the photos where they lie, holds the answers as JSON and shows 120 photos at a time. With
30,000 photos Chromium opens it in 0.5 to 0.8 s, filters in 0.3 s and takes 230 MB. All of them in one page,
each loaded when it is scrolled to, took 8 to 12 s, 2 s and 1.2 GB; with `content-visibility: auto` besides,
15 to 21 s, 3 minutes and 0.5 GB (2 cores, other work beside it).
"""

import os
from pathlib import Path
from urllib.parse import quote

from compression.data.decoding import decode_photo, without_path
from compression.data.faces import FaceListing
from compression.data.preprocessing import Preprocessing
from compression.pages.rendering import embedded, photo_name, readable, render

SHOWN = 3  # classes of each photo
BROWSER_FORMATS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp"}
THUMBNAIL = Preprocessing(96)  # of a photo that browsers cannot show


def source(listing, row, page, truncated=()):
    """The `src` of a photo in the file `page`: a relative link, or the picture where browsers show no file.

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
    photos, unreadable = [], []
    for row in range(len(listing)):
        name = photo_name(listing, row)
        if row in report.unreadable:
            reason = without_path(report.unreadable[row], listing.paths[row])
            unreadable.append((name, readable(reason)))
        else:
            values, labels = probabilities[row].topk(min(SHOWN, len(class_names)))
            shares = [round(value, 4) for value in values.tolist()]
            photos.append([name, source(listing, row, page, report.truncated), labels.tolist(), shares])
    data = {"classes": [readable(name) for name in class_names], "photos": photos}
    truncated = [photo_name(listing, row) for row in sorted(report.truncated)]
    return render("gallery.html", title=title, data=data, truncated=truncated, unreadable=unreadable)
