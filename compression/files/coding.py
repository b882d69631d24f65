"""Arrays of codes and floats as one blob of bytes, packed to the bit and then entropy-coded, and back.

A blob holds arrays of a few kinds: codes of 2 to 8 bits (uint8 here), "f2", "f4" and "i8" (little-endian
numbers). All arrays of a kind are joined into one stream, and numbers of several bytes are split into a
stream for every byte, so that exponents stand beside exponents. Whoever decodes must know kinds and lengths;
nothing is read from the blob that could ask for memory. Two codings, of which `pack` takes the shorter one:

    bits   the codes bit after bit without gaps
    lzma   as many whole codes to a byte as fit, through the standard library's LZMA without contexts

Coded that way, codes of 2 to 8 bits of a trained `residual6` take 1.0 to 2.8 % more than their entropy (of
the tight bits LZMA makes up to 14 % more, as 3, 5, 6 and 7 do not divide 8), so a range coder of our own has
at most that to gain.
"""

import io
import lzma

import numpy as np

KINDS = (2, 3, 4, 5, 6, 7, 8, "f2", "f4", "i8")
CODINGS = ("bits", "lzma")
# bytes and values from a byte of LZMA: they bound the memory that a blob can ask for, which is some 11 bytes
# for a value; `pack` keeps to both
MOST_EXPANSION, MOST_VALUES = 64, 16
FILTERS = [dict(id=lzma.FILTER_LZMA1, preset=9 | lzma.PRESET_EXTREME, lc=0, lp=0, pb=0, dict_size=1 << 16)]


def packed_size(kind, count, coding="bits"):
    """Bytes of `count` elements of a kind: packed for a coding, but before LZMA."""
    if not isinstance(kind, int):
        return count * np.dtype(kind).itemsize
    return -(-count * kind // 8) if coding == "bits" else -(-count // (8 // kind))


def pack_bits(codes, bits):
    """uint8 codes below 2 ** bits as bytes, the highest bit first, without gaps."""
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :]).tobytes()


def unpack_bits(data, bits, count):
    """The inverse of `pack_bits`."""
    grouped = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return np.packbits(np.pad(grouped, ((0, 0), (8 - bits, 0))), axis=1).reshape(count)


def pack_aligned(codes, bits):
    """uint8 codes below 2 ** bits as bytes of 8 // bits codes each, the first in the lowest bits."""
    shifts = bits * np.arange(8 // bits, dtype=np.uint8)
    columns = np.pad(codes, (0, -len(codes) % len(shifts))).reshape(-1, len(shifts))
    return (columns << shifts).sum(1, dtype=np.uint8).tobytes()


def unpack_aligned(data, bits, count):
    """The inverse of `pack_aligned`."""
    columns = np.frombuffer(data, np.uint8)[:, None] >> (bits * np.arange(8 // bits, dtype=np.uint8))
    return (columns & (2**bits - 1)).astype(np.uint8).reshape(-1)[:count]


def streams(arrays):
    """{kind: all arrays of that kind as one, flat} of [(kind, array)]; the kinds in the order of KINDS."""
    flat = {kind: [array.reshape(-1) for one, array in arrays if one == kind] for kind in KINDS}
    return {kind: np.concatenate(parts) for kind, parts in flat.items() if parts}


def byte_planes(stream):
    """uint8 (bytes of an element, elements): the lowest bytes of all elements, then the next ones."""
    return stream.view(np.uint8).reshape(len(stream), stream.itemsize).T


def pack(arrays):
    """[(kind, array)] as (coding, bytes)."""
    tight, aligned, values = b"", b"", 0
    for kind, stream in streams(arrays).items():
        codes = isinstance(kind, int)
        tight += pack_bits(stream, kind) if codes else byte_planes(stream).tobytes()
        aligned += pack_aligned(stream, kind) if codes else byte_planes(stream).tobytes()
        values += len(stream)
    coded = lzma.compress(aligned, format=lzma.FORMAT_RAW, filters=FILTERS)
    bearable = len(aligned) <= MOST_EXPANSION * len(coded) and values <= MOST_VALUES * len(coded)
    return ("lzma", coded) if len(coded) < len(tight) and bearable else ("bits", tight)


def unpack(coding, data, layout):
    """The arrays of a blob, flat, for layout = [(kind, length)] as they were packed.

    Raises ValueError unless the blob holds exactly these; allocates no more than MOST_EXPANSION and
    MOST_VALUES allow for its bytes.
    """
    if coding not in CODINGS:
        raise ValueError("unknown coding")
    totals = {kind: sum(count for one, count in layout if one == kind) for kind in KINDS}
    sizes = {kind: packed_size(kind, total, coding) for kind, total in totals.items()}
    if sum(totals.values()) > MOST_VALUES * len(data):
        raise ValueError("the blob is too short for its contents")
    if coding == "lzma":
        data = _decompress(data, sum(sizes.values()))
    if len(data) != sum(sizes.values()):
        raise ValueError("the blob has another length than its contents")
    blob, joined = io.BytesIO(data), {}
    for kind, total in totals.items():
        part = blob.read(sizes[kind])
        if isinstance(kind, int):
            joined[kind] = (unpack_bits if coding == "bits" else unpack_aligned)(part, kind, total)
        else:
            planes = np.frombuffer(part, np.uint8).reshape(np.dtype(kind).itemsize, total)
            joined[kind] = np.ascontiguousarray(planes.T).view("<" + kind).reshape(-1)
    arrays = []
    for kind, count in layout:
        arrays.append(joined[kind][:count])
        joined[kind] = joined[kind][count:]
    return arrays


def _decompress(data, size):
    """`size` bytes of LZMA; ValueError if it does not hold exactly these."""
    if size > MOST_EXPANSION * len(data):
        raise ValueError("the blob is too short for its contents")
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
    try:
        plain = decompressor.decompress(data, max_length=size + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"the blob does not decompress ({error})") from None
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the blob has another length than its contents")
    return plain


def entropy(values):
    """Shannon entropy of an array's histogram, in bytes for all of it: what an ideal coder needs."""
    counts = np.bincount(values.reshape(-1))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8) if len(counts) else 0.0


def theoretical_size(arrays):
    """Bytes by entropy: of every array of codes alone, and of every byte plane of the joined numbers."""
    codes = [array for kind, array in arrays if isinstance(kind, int)]
    numbers = streams([(kind, array) for kind, array in arrays if not isinstance(kind, int)]).values()
    return sum(map(entropy, [*codes, *(plane for stream in numbers for plane in byte_planes(stream))]))
