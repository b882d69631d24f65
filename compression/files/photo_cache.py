"""Decoded photos, and the cache on disk, so that every photo is decoded once.

The cache is a folder for every listing, size and rule of decoding: photos.npy, which is memory-mapped, and
notes.json, which names the photos that could not be decoded, or only in part.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch

from compression import distributed
from compression.command_line import UserError, tell
from compression.data.decoding import DECODER_VERSION, DecodeReport, decode_stream
from compression.data.faces import FaceListing, face_stream
from compression.data.transfer import send


def size_and_time(path):
    """Bytes and modification time in ns; a dangling link has neither, and decoding will report it."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def photo_stream(listing, preprocessings, report, batch_size=64):
    """Yield (rows, uint8 (n, size, size, channels) for each of the Preprocessings) for a whole listing.

    report: see `decode_stream`.
    """
    if isinstance(listing, FaceListing):
        return face_stream(listing, preprocessings, batch_size)
    label = f"decoding {listing.folder.name}"
    return decode_stream(listing.paths, preprocessings, report, batch_size, label)


@dataclass(frozen=True)
class PhotoSet:
    """Decoded photos uint8 (M, size, size, channels), of which `rows` (N,) are usable, with `labels` (N,)."""

    photos: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    class_names: tuple
    fingerprint: str
    truncated: tuple = ()  # those of the M that were decoded as far as they go

    def __len__(self):
        return len(self.rows)

    def sample(self, count):
        """So many of the photos (or all), chosen with a fixed seed."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        chosen = order[:count].to(self.rows.device)
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])

    def to(self, device):
        """On a GPU with room for them, the photos live there; otherwise batches travel one by one."""
        if device.type != "cuda" or self.photos.nbytes >= 0.5 * torch.cuda.mem_get_info(device)[0]:
            return self
        photos, rows, labels = (tensor.to(device) for tensor in (self.photos, self.rows, self.labels))
        return replace(self, photos=photos, rows=rows, labels=labels)

    def batch(self, positions, device):
        """The photos and labels at `positions` (int64 tensor on the CPU), on `device`."""
        positions = send(positions, self.rows.device)
        return send(self.photos[self.rows[positions]], device), send(self.labels[positions], device)


def join(photos, extra):
    """Two PhotoSets of one size as one, copied into memory; the classes are those of the first."""
    return PhotoSet(
        torch.cat([photos.photos, extra.photos]),
        torch.cat([photos.rows, extra.rows + len(photos.photos)]),
        torch.cat([photos.labels, extra.labels]),
        photos.class_names,
        f"{photos.fingerprint}+{extra.fingerprint}",
    )


def default_cache():
    """Where decoded photos are kept by default; OSError for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "food11-photos"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from None


def _cache_name(listing, preprocessing):
    """Of the folder in the cache: other or changed photos and other rules of decoding have other names."""
    rule = f"{DECODER_VERSION} {preprocessing.shape} {preprocessing.resize} {preprocessing.detail}"
    digest = hashlib.sha256(f"{rule} {PIL.__version__}".encode())
    for path in listing.paths:
        digest.update(os.fsencode(f"{path.relative_to(listing.folder)} {size_and_time(path)}\n"))
    place = f"{listing.folder.resolve()} {listing.piece}"
    source = hashlib.sha256(os.fsencode(f"{place} {rule}")).hexdigest()[:12]
    return f"{listing.folder.name}-{preprocessing.size}-{source}-{digest.hexdigest()[:16]}"


def _open_cache(place, count, preprocessing):
    """The memory-mapped photos and the DecodeReport, or None if the cache is missing or damaged."""
    try:
        notes = json.loads((place / "notes.json").read_text())
        photos = np.load(place / "photos.npy", mmap_mode="c", allow_pickle=False)
        reasons = (notes[kind].items() for kind in ("truncated", "unreadable"))
        report = DecodeReport(*({int(row): reason for row, reason in rows} for rows in reasons))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    fits = photos.shape == (count, *preprocessing.shape) and photos.dtype == np.uint8
    return (photos, report) if fits else None


def _build_cache(cache, place, listing, preprocessing):
    """Decode into a folder beside `place`, rename and open it: the first one wins, nobody sees half."""
    cache.mkdir(parents=True, exist_ok=True)
    for leftover in cache.glob(".building-*"):  # of runs that were killed
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - leftover.stat().st_mtime > 24 * 3600:
                shutil.rmtree(leftover, ignore_errors=True)
    building = cache / f".building-{secrets.token_hex(8)}"
    building.mkdir()
    try:
        report, count = DecodeReport(), len(listing)
        # plain writes: a full disk is an OSError, in a memory map it kills
        with open(building / "photos.npy", "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *preprocessing.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            start, step = file.tell(), math.prod(preprocessing.shape)
            for rows, photos in photo_stream(listing, [preprocessing], report):
                for row, photo in zip(rows, photos):
                    file.seek(start + row * step)
                    file.write(photo.tobytes())
            file.truncate(start + count * step)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave black photos behind a valid header
        (building / "notes.json").write_text(json.dumps(asdict(report)))
        with contextlib.suppress(OSError):
            os.rename(building, place)
        if _open_cache(place, count, preprocessing) is None:  # a damaged one stands there
            shutil.rmtree(place, ignore_errors=True)
            os.rename(building, place)
        for stale in cache.glob(glob.escape(place.name.rsplit("-", 1)[0]) + "-*"):
            if stale != place:
                shutil.rmtree(stale, ignore_errors=True)
        return _open_cache(place, count, preprocessing)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load_photos(listing, preprocessing, cache=None, log=tell):
    """Decoded photos of a listing, from the cache or decoded now.

    cache: folder of the cache (None: the default one), or False to decode into memory. A cache that
    cannot be written is passed over with a warning. A truncated photo counts as it is decoded, an
    undecodable one is left out; both are reported through `log` (stderr by default). Faces need no cache.
    Raises UserError if no photo can be decoded.
    """
    cached = None
    if cache is not False and not isinstance(listing, FaceListing):
        try:
            cache = Path(cache) if cache else default_cache()
            place = cache / _cache_name(listing, preprocessing)
            with distributed.first_on_node():
                cached = _open_cache(place, len(listing), preprocessing)
                cached = cached or _build_cache(cache, place, listing, preprocessing)
        except OSError as error:
            reason = f"the photo cache {cache or ''} cannot be written ({error.strerror or error})"
            log(f"warning: {reason}; decoding into memory")
    if cached:
        photos, report = cached
    else:
        photos, report = np.zeros((len(listing), *preprocessing.shape), np.uint8), DecodeReport()
        for rows, decoded in photo_stream(listing, [preprocessing], report):
            photos[rows] = decoded
    kinds = "truncated: decoded as far as they go", "undecodable: left out"
    for kind, rows in zip(kinds, (report.truncated, report.unreadable)):
        if rows:
            affected = f"{len(rows)} of {len(photos)} photos in {listing.folder}"
            log(f"warning: {affected} are {kind}: {report.name(listing, rows)}")
    readable = [row for row in range(len(photos)) if row not in report.unreadable]
    if not readable:
        raise UserError(f"none of the {len(photos)} files in {listing.folder} can be decoded; check the data")
    rows = torch.tensor(readable)
    labels = torch.tensor(listing.labels)[rows]
    about = listing.class_names, listing.fingerprint(), tuple(report.truncated)
    return PhotoSet(torch.from_numpy(photos), rows, labels, *about)
