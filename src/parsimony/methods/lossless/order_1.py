"""Baseline: an adaptive coder of order 1, which learns each value's frequencies behind the value before."""

from __future__ import annotations

import numpy as np

from parsimony.errors import UserError
from parsimony.models import rans
from parsimony.models.rans import TOTAL, compiled

VALUES = 256
LARGEST = 1 << 24
"""Values of the largest item: frequencies stay below 2^39."""


class Order1:
    """Codes any samples; the value before one in colour is that of its own channel.

    Parameters
    ----------
    gain : int
        What a value's frequency grows by when it is seen; it begins at 1.
    """

    model_bytes = 0

    def __init__(self, gain: int = 16):
        self.gain = gain

    def build(self, model, inputs) -> Order1:
        return self

    def encode(self, x: np.ndarray) -> bytes:
        colours = x.ndim == 3 and x.shape[2] == 3
        if x.dtype != np.uint8 or not (x.ndim in (1, 2) or colours) or not 0 < x.size <= LARGEST:
            raise UserError(f"order_1: {x.dtype} {list(x.shape)} is neither bytes nor an image of at most 2^24 values")
        lows, highs = np.zeros(x.size, np.int64), np.zeros(x.size, np.int64)
        _intervals(x.ravel(), 3 if colours else 1, self.gain, lows, highs)
        return bytes([x.ndim]) + b"".join(map(_number, x.shape[:2])) + rans.encode(lows[None], highs[None])[0]

    def decode(self, data: bytes) -> np.ndarray:
        kind, shape, at = data[0] if data else 0, [], 1
        for _ in range(min(kind, 2)):
            size, at = _read(data, at)
            shape.append(size)
        shape += [3] * (kind == 3)
        if kind not in (1, 2, 3) or not 0 < np.prod(shape, dtype=object) <= LARGEST:
            raise UserError(f"order_1: {len(data)} bytes begin with no shape; decode what was encoded, whole")
        streams, x = rans.Streams([data[at:]]), np.zeros(np.prod(shape), np.uint8)
        _decode(streams.states, streams.counts, streams.words[0], 3 if kind == 3 else 1, self.gain, x)
        streams.finish("order_1")
        return x.reshape(shape)


def _number(n: int) -> bytes:
    """Seven bits a byte, lowest first; the last byte is below 128."""
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + _number(n // 128)


def _read(data: bytes, at: int) -> tuple[int, int]:
    """A number of at most four bytes, and where it ends."""
    n = 0
    for place, byte in enumerate(data[at : at + 4]):
        n += byte % 128 << 7 * place
        if byte < 128:
            return n, at + place + 1
    raise UserError(f"order_1: {len(data)} bytes begin with no shape; decode what was encoded, whole")


@compiled
def _interval(frequencies, x):
    below = 0
    for value in range(x):
        below += frequencies[value]
    total = below
    for value in range(x, VALUES):
        total += frequencies[value]
    return (TOTAL - VALUES) * below // total + x, (TOTAL - VALUES) * (below + frequencies[x]) // total + x + 1


@compiled
def _intervals(x, channels, gain, lows, highs):
    frequencies = np.ones((VALUES, VALUES), np.int64)
    for n in range(len(x)):
        before = x[n - channels] if n >= channels else 0
        lows[n], highs[n] = _interval(frequencies[before], x[n])
        frequencies[before, x[n]] += gain


@compiled
def _decode(states, counts, words, channels, gain, x):
    frequencies = np.ones((VALUES, VALUES), np.int64)
    for n in range(len(x)):
        if states[0] < rans.START:
            break
        before = x[n - channels] if n >= channels else 0
        row, wanted = frequencies[before], rans.slot(states[0])
        total, below, value = row.sum(), 0, 0
        while value < VALUES - 1 and (TOTAL - VALUES) * (below + row[value]) // total + value + 1 <= wanted:
            below += row[value]
            value += 1
        low = (TOTAL - VALUES) * below // total + value
        high = (TOTAL - VALUES) * (below + row[value]) // total + value + 1
        states[0], counts[0] = rans.pop(states[0], low, high, words, counts[0])
        x[n] = value
        row[value] += gain
