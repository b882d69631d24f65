"""coding.py: what is packed comes back, in as many bytes as predicted; a damaged blob is an error."""

import lzma
import math
import random

import numpy as np
import pytest

from compression.files.coding import (
    CODINGS,
    FILTERS,
    entropy,
    pack,
    pack_aligned,
    pack_bits,
    packed_size,
    theoretical_size,
    unpack,
    unpack_aligned,
    unpack_bits,
)

WIDTHS = range(2, 9)


def codes_of(bits, count, seed=0):
    """Codes with the histogram of a trained layer: normal around the middle."""
    values = np.random.default_rng(seed).normal(2 ** (bits - 1), 2**bits / 6, count)
    return np.clip(values, 0, 2**bits - 1).astype(np.uint8)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7, 8, 9, 1000])
def test_codes_come_back_from_as_many_bytes_as_predicted(bits, count):
    codes = np.random.default_rng(1).integers(0, 2**bits, count, dtype=np.uint8)
    tight, aligned = pack_bits(codes, bits), pack_aligned(codes, bits)
    assert len(tight) == packed_size(bits, count) == math.ceil(count * bits / 8)
    assert len(aligned) == packed_size(bits, count, "lzma") == math.ceil(count / (8 // bits))
    assert np.array_equal(unpack_bits(tight, bits, count), codes)
    assert np.array_equal(unpack_aligned(aligned, bits, count), codes)


def test_packed_bits_by_hand():
    tight = pack_bits(np.array([1, 2, 3, 4, 5, 6, 7, 0], np.uint8), 3)
    assert tight == bytes([0b00101001, 0b11001011, 0b10111000])
    assert pack_aligned(np.array([1, 2, 3, 4, 5], np.uint8), 3) == bytes([1 | 2 << 3, 3 | 4 << 3, 5])


def mixture(count):
    """Arrays of every kind, some twice and some empty."""
    generator = np.random.default_rng(2)
    arrays = [(bits, codes_of(bits, count + bits, bits)) for bits in WIDTHS]
    arrays += [
        ("f2", generator.normal(size=count).astype("<f2")),
        (4, codes_of(4, 3)),
        ("i8", np.array([-(2**63), 2**63 - 1])),
        (5, np.zeros(0, np.uint8)),
        ("f4", generator.normal(size=2).astype("<f4")),
        ("f2", np.zeros(0, "<f2")),
        ("f2", np.float16([1.5])),
    ]
    return arrays


@pytest.mark.parametrize(("count", "coding"), [(0, "bits"), (1, "bits"), (3000, "lzma")])
def test_a_mixture_comes_back_in_its_order(count, coding):
    arrays = mixture(count)
    chosen, data = pack(arrays)
    assert chosen == coding
    decoded = unpack(chosen, data, [(kind, len(array)) for kind, array in arrays])
    for (_, before), after in zip(arrays, decoded, strict=True):
        assert before.dtype == after.dtype and np.array_equal(before, after)


@pytest.mark.parametrize("bits", WIDTHS)
def test_coded_codes_are_near_their_entropy(bits):
    codes = codes_of(bits, 100_000)
    coding, data = pack([(bits, codes)])
    ideal = theoretical_size([(bits, codes)])
    assert coding == "lzma" and 0.999 * ideal < len(data) < 1.04 * ideal
    assert len(data) < packed_size(bits, len(codes))


def test_entropy_of_known_histograms():
    assert entropy(np.array([0, 1, 2, 3] * 8, np.uint8)) == 8  # 32 values of 2 bits
    assert entropy(np.full(9, 7, np.uint8)) == entropy(np.zeros(0, np.uint8)) == 0


def test_codes_without_redundancy_are_not_blown_up():
    codes = np.random.default_rng(0).integers(0, 32, 50_000, dtype=np.uint8)
    assert pack([(5, codes)]) == ("bits", pack_bits(codes, 5))


@pytest.mark.parametrize("count", [10**5, 10**6])
def test_what_would_expand_too_much_stays_uncompressed_and_readable(count):
    arrays = [(8, np.zeros(count, np.uint8))]
    coding, data = pack(arrays)
    assert coding == "bits" and len(data) == count and not unpack(coding, data, [(8, count)])[0].any()


def test_a_blob_of_more_values_than_memory_can_be_had_for_is_not_decoded():
    """Two-bit codes take four values to a byte before LZMA, and a float32 each behind it."""
    assert pack([(2, np.zeros(10**6, np.uint8))])[0] == "bits"
    chance = np.random.default_rng(0)
    # 8 million values in 40 kB
    aligned = chance.integers(0, 256, 40_000, dtype=np.uint8).tobytes() + bytes(2_000_000)
    data = lzma.compress(aligned, format=lzma.FORMAT_RAW, filters=FILTERS)
    assert len(aligned) < 64 * len(data)
    with pytest.raises(ValueError, match="too short"):
        unpack("lzma", data, [(2, 4 * len(aligned))])


LENGTHS = [[(8, 10**15)], [("i8", 10**15)], [(2, 10**12), (4, 10**30)], [(4, 0)], [(4, 2002)], [(5, 2000)]]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("layout", LENGTHS)
def test_lengths_that_the_blob_does_not_hold_are_an_error(coding, layout):
    codes = codes_of(4, 2000)
    data = pack_bits(codes, 4) if coding == "bits" else pack([(4, codes)])[1]
    unpack(coding, data, [(4, 2000)])
    with pytest.raises(ValueError):
        unpack(coding, data, layout)


def test_damaged_blobs_are_errors_or_codes_in_their_range():
    """Without the file's checksum, which comes first, damage to a blob is no crash and no more memory."""
    arrays, chance = mixture(500), random.Random(0)
    _, whole = pack(arrays)
    layout = [(kind, len(array)) for kind, array in arrays]
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        try:
            decoded = unpack("lzma", bytes(damaged), layout)
        except ValueError:
            continue
        assert all(
            len(array) == count and (kind not in WIDTHS or not array.size or array.max() < 2**kind)
            for (kind, count), array in zip(layout, decoded)
        )


@pytest.mark.parametrize("coding", [None, "", "zip", 5])
def test_an_unknown_coding_is_an_error(coding):
    with pytest.raises(ValueError):
        unpack(coding, b"", [])


@pytest.mark.parametrize("bits", (2, 4, 8))
def test_codes_that_nearly_all_agree_come_back(bits):
    for share in np.geomspace(1e-4, 0.3, 40):
        codes = (np.random.default_rng(0).random(20_000) < share).astype(np.uint8)
        coding, data = pack([(bits, codes)])
        assert np.array_equal(unpack(coding, data, [(bits, len(codes))])[0], codes), share
