"""Baseline: an adaptive coder of order 1, which learns each value's frequencies behind the value before."""

from __future__ import annotations

from math import prod

import numpy as np

from parsimony.models import rans
from parsimony.models.container import KINDS, kind, pack, unpack
from parsimony.models.rans import TOTAL, compiled

VALUES = 256


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
        channels = 3 if kind(x, "order_1", *KINDS) == "colour" else 1
        lows, highs = np.zeros(x.size, np.int64), np.zeros(x.size, np.int64)
        _intervals(x.ravel(), channels, self.gain, lows, highs)
        return pack(x, rans.encode(lows[None], highs[None])[0])

    def decode(self, data: bytes) -> np.ndarray:
        shape, payload = unpack(data)
        streams, x = rans.Streams([payload]), np.zeros(prod(shape), np.uint8)
        _decode(streams.states, streams.counts, streams.words[0], 3 if len(shape) == 3 else 1, self.gain, x)
        streams.finish("order_1")
        return x.reshape(shape)


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
