"""Arrays of codes and floats as one blob of bytes, packed to the bit and then entropy-coded, and back.

A blob holds arrays of a few kinds: codes of 2 to 8 bits (uint8 here), "f2", "f4" and "i8" (little-endian
numbers). All arrays of a kind are joined into one stream, and numbers of several bytes are split into a
stream for every byte, so that exponents stand beside exponents. Whoever decodes must know kinds and lengths
beforehand;
nothing is read from the blob that could ask for memory. Two codings, of which `pack` takes the shorter one:

    bits   the codes bit after bit without gaps
    lzma   as many whole codes to a byte as fit, through the standard library's LZMA without contexts

Coded that way, codes of 2 to 8 bits of a trained `residual6` take 1.0 to 2.8 % more than their entropy (of
the tight bits LZMA makes up to 14 % more, as 3, 5, 6 and 7 do not divide 8), so a range coder of our own has
at most that to gain.
"""

import lzma

import numpy as np

KINDS = (2, 3, 4, 5, 6, 7, 8, "f2", "f4", "i8")
CODINGS = ("bits", "lzma")
MOST_EXPANSION = 64  # bytes from a byte of LZMA,
# and values: they bound the memory that a blob can ask for, which is some 11 bytes for a value; `pack` keeps
# to both
MOST_VALUES = 16
FILTERS = [
    {
        "id": lzma.FILTER_LZMA1,
        "preset": 9 | lzma.PRESET_EXTREME,
        "lc": 0,
        "lp": 0,
        "pb": 0,
        "dict_size": 1 << 16,
    }
]


def item_size(kind):
    """Bytes of an element before the codes are packed."""
    return 1 if isinstance(kind, int) else int(kind[1])


def packed_size(kind, count):
    """Bytes of `count` elements of a kind in the coding "bits"."""
    return -(-count * kind // 8) if isinstance(kind, int) else count * item_size(kind)


def aligned_size(kind, count):
    """Bytes of `count` elements of a kind before LZMA."""
    return -(-count // (8 // kind)) if isinstance(kind, int) else count * item_size(kind)


def pack_bits(codes, bits):
    """uint8 codes below 2 ** bits as bytes, the highest bit first, without gaps."""
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :]).tobytes()


def unpack_bits(data, bits, count):
    """The inverse of `pack_bits`."""
    grouped = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return np.packbits(np.pad(grouped, ((0, 0), (8 - bits, 0))), axis=1).reshape(count)


def pack_aligned(codes, bits):
    """uint8 codes below 2 ** bits as bytes of 8 // bits codes each, the first in the lowest bits."""
    each = 8 // bits
    columns = np.pad(codes, (0, -len(codes) % each)).reshape(-1, each)
    return np.bitwise_or.reduce(
        columns << (bits * np.arange(each, dtype=np.uint8)), axis=1, dtype=np.uint8
    ).tobytes()


def unpack_aligned(data, bits, count):
    """The inverse of `pack_aligned`."""
    columns = np.frombuffer(data, np.uint8)[:, None] >> (bits * np.arange(8 // bits, dtype=np.uint8))
    return (columns & (2**bits - 1)).astype(np.uint8).reshape(-1)[:count]


def streams(arrays):
    """{kind: all arrays of that kind as one, flat} of [(kind, array)]; the kinds in the order of KINDS."""
    return {
        kind: np.concatenate([array.reshape(-1) for one, array in arrays if one == kind])
        for kind in KINDS
        if any(one == kind for one, _ in arrays)
    }


def byte_planes(stream):
    """uint8 (bytes of an element, elements): the lowest bytes of all elements, then the next ones."""
    return stream.view(np.uint8).reshape(len(stream), stream.itemsize).T


def pack(arrays):
    """[(kind, array)] as (coding, bytes)."""
    joined = streams(arrays)
    tight, aligned = (
        b"".join(
            pack_codes(stream, kind) if isinstance(kind, int) else byte_planes(stream).tobytes()
            for kind, stream in joined.items()
        )
        for pack_codes in (pack_bits, pack_aligned)
    )
    coded = lzma.compress(aligned, format=lzma.FORMAT_RAW, filters=FILTERS)
    bearable = len(aligned) <= MOST_EXPANSION * len(coded) and sum(
        map(len, joined.values())
    ) <= MOST_VALUES * len(coded)
    return ("lzma", coded) if len(coded) < len(tight) and bearable else ("bits", tight)


def unpack(coding, data, layout):
    """The arrays of a blob, flat, for layout = [(kind, length)] as they were packed.

    Raises ValueError unless the blob holds exactly these; allocates no more than MOST_EXPANSION and
    MOST_VALUES allow for its bytes.
    """
    totals = {
        kind: sum(count for one, count in layout if one == kind)
        for kind in KINDS
        if any(one == kind for one, _ in layout)
    }
    if coding not in CODINGS:
        raise ValueError("unknown coding")
    size_of = packed_size if coding == "bits" else aligned_size
    sizes = {kind: size_of(kind, total) for kind, total in totals.items()}
    if sum(totals.values()) > MOST_VALUES * len(data):
        raise ValueError("the blob is too short for its contents")
    if coding == "lzma":
        data = _decompress(data, sum(sizes.values()))
    if len(data) != sum(sizes.values()):
        raise ValueError("the blob has another length than its contents")
    joined, offset, unpack_codes = {}, 0, unpack_bits if coding == "bits" else unpack_aligned
    for kind, size in sizes.items():
        part = data[offset : offset + size]
        if isinstance(kind, int):
            joined[kind] = unpack_codes(part, kind, totals[kind])
        else:
            planes = np.frombuffer(part, np.uint8).reshape(item_size(kind), totals[kind])
            joined[kind] = np.ascontiguousarray(planes.T).view("<" + kind).reshape(-1)
        offset += size
    arrays, places = [], dict.fromkeys(joined, 0)
    for kind, count in layout:
        arrays.append(joined[kind][places[kind] : places[kind] + count])
        places[kind] += count
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
    """Shannon entropy of an array's own histogram, in bytes for the whole array: what an ideal coder of
    single values needs.
    """
    counts = np.bincount(values.reshape(-1))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8) if len(counts) else 0.0


def theoretical_size(arrays):
    """Bytes by entropy: every array of codes by its own histogram, the numbers by those of their byte
    streams.
    """
    codes = sum(entropy(array) for kind, array in arrays if isinstance(kind, int))
    return codes + sum(
        entropy(plane)
        for kind, stream in streams(arrays).items()
        if not isinstance(kind, int)
        for plane in byte_planes(stream)
    )
