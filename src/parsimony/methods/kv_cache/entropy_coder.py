"""Range coding of many rows of symbols, each row with a table of its own; and what needs no tables, to compare.

The tables are integers and follow from counts by integer arithmetic alone, so that whoever has the counts has exactly
the coder's model, on any machine.  The coder itself is that of constriction (Bamler, arXiv 2201.01741).
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from math import prod

import numpy as np
from constriction import stream as constriction

from parsimony.errors import UserError

TOTAL = 2**16
"""What a table ends with: probabilities have 16 bits, as in the official code of CacheGen (arXiv 2310.07240)."""


def cumulative(counts: np.ndarray) -> np.ndarray:
    """Tables [..., A + 1] int64 of counts [..., A]: strictly increasing from 0 to `TOTAL`.

    Entry i is floor((TOTAL - A) * (count below i) / (count of all)) + i: the added i leaves every symbol codable,
    counted or not.

    Raises
    ------
    UserError
        For an empty alphabet, one of `TOTAL` symbols or more, and counts that are negative or sum to 2^47 or more.
    """
    A = counts.shape[-1]
    if not 1 <= A < TOTAL or counts.min(initial=0) < 0 or counts.sum(-1, dtype=np.float64).max(initial=0) >= 2**47:
        raise UserError(f"entropy coder: {A} counts, negative ones, or ones too large make no table; mend the counts")
    below = np.cumsum(counts, -1, dtype=np.int64)
    tables = np.zeros((*counts.shape[:-1], A + 1), np.int64)
    tables[..., 1:] = (TOTAL - A) * below // np.maximum(below[..., -1:], 1)
    tables += np.arange(A + 1)
    tables[..., -1] = TOTAL
    return tables


def pack(counts: np.ndarray) -> bytes:
    """Counts as deflated 32-bit numbers, all lowest bytes first, since the others are mostly zeros."""
    return zlib.compress(counts.astype("<u4").reshape(-1, 1).view(np.uint8).T.tobytes())


def unpack(packed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Counts uint32 of a shape from their bytes; raises ValueError or zlib.error if these are not they."""
    data = zlib.decompressobj().decompress(packed, 4 * prod(shape) + 1)
    return np.frombuffer(data, np.uint8).reshape(4, -1).T.copy().view("<u4").reshape(shape)


def models(tables: np.ndarray) -> Iterator[constriction.model.Categorical]:
    """The coder's model of each table.

    It widens 16 to 24 bits as floor(entry * (2^24 - A) / 2^16) + i, which is exact in float64.
    """
    for weights in np.diff(tables).astype(np.float64):
        yield constriction.model.Categorical(weights, perfect=False, lazy=False)


def encode(symbols: np.ndarray, tables: np.ndarray) -> bytes:
    """One stream of all symbols, row after row.

    Parameters
    ----------
    symbols : ndarray [S, n] of integers from 0 to A - 1
    tables : ndarray [K, A + 1]
        As `cumulative` makes them, each for the next S / K rows.

    Raises
    ------
    UserError
        For symbols outside of the alphabet.
    """
    A = tables.shape[-1] - 1
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < A:
        raise UserError(f"entropy coder: symbols from {symbols.min()} to {symbols.max()} are not all of 0 to {A - 1}; "
                        "code them with the tables of their own alphabet")  # fmt: skip
    if A == 1:  # nothing to tell
        return b""
    coder = constriction.queue.RangeEncoder()
    for row, model in zip(symbols.astype(np.int32).reshape(len(tables), -1), models(tables), strict=True):
        coder.encode(row, model)
    return coder.get_compressed().astype("<u4").tobytes()


def decode(stream: bytes, tables: np.ndarray, count: int) -> np.ndarray:
    """Symbols [K, count] uint16 of a stream, ``count`` for each of the tables [K, A + 1].

    Raises
    ------
    UserError
        For a stream that these tables cannot have made, as far as that shows.
    """
    symbols = np.zeros((len(tables), count), np.uint16)
    if tables.shape[-1] == 2:
        whole = not stream
    elif whole := len(stream) % 4 == 0:
        decoder = constriction.queue.RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))
        try:
            for row, model in zip(symbols, models(tables), strict=True):
                row[:] = decoder.decode(model, count)
            whole = decoder.maybe_exhausted()
        except AssertionError:
            whole = False
    if not whole:
        raise UserError("entropy coder: a stream does not fit its tables or is not whole; encode it again")
    return symbols


def plain(symbols: np.ndarray, coding: str) -> bytes:
    """Symbols [2 L, n] without tables: "fixed" in as many whole bits as their layer needs, or LZMA."""
    if coding == "lzma":  # a byte a symbol, which it compresses better than packed bits
        data = symbols.astype(np.int8).tobytes()
        return lzma.compress(data)
    half = np.abs(symbols).max(1, initial=0)
    bits = [int(2 * most).bit_length() for most in half]
    layers = [
        np.packbits(np.unpackbits((row + most).astype(np.uint8)[:, None], axis=1, count=b, bitorder="little"))
        for row, most, b in zip(symbols, half, bits, strict=True)
    ]
    return half.astype(np.uint8).tobytes() + b"".join(layer.tobytes() for layer in layers)


def from_plain(data: bytes, coding: str, rows: int, n: int) -> np.ndarray:
    """Symbols [rows, n] int16 of `plain`; raises ValueError, EOFError or LZMAError if the bytes are not they."""
    if coding == "lzma":
        tool = lzma.LZMADecompressor()
        symbols = tool.decompress(data, rows * n + 1)
        if not tool.eof or tool.unused_data:
            raise ValueError("compressed symbols of another number")
        return np.frombuffer(symbols, np.int8).astype(np.int16).reshape(rows, n)
    half, at = np.frombuffer(data, np.uint8, rows), rows
    symbols = np.empty((rows, n), np.int16)
    for row, most in zip(symbols, half.astype(int), strict=True):
        b = int(2 * most).bit_length()
        packed = np.frombuffer(data, np.uint8, -(-n * b // 8), at)
        at += len(packed)
        row[:] = np.unpackbits(packed, count=n * b).reshape(n, b) @ (1 << np.arange(b)) - most
    if at != len(data):
        raise ValueError(f"{len(data)} bytes of symbols instead of {at}")
    return symbols
