"""Range asymmetric numeral systems on one 64-bit integer (Duda, arXiv 1311.2540), compiled, with tables by the caller.

A symbol with interval [low, high) of a total of 2^24 turns the state x into (x div w) 2^24 + low + x mod w, where
w = high - low; decoding undoes that, last symbol first.  A state that would not fit loses its low 32 bits to the stream
first.  Everything is integer arithmetic, so an interval of at least 1 is all that exactness needs.

A stream is the final state, as few bytes as it has (five or more if words follow), and the words, newest first.  The
state begins at 2^24, which costs three bytes, keeps every symbol at its price, and must be there again at the end.
"""

from __future__ import annotations

import numba
import numpy as np

from parsimony.errors import UserError

BITS = 24
TOTAL = 1 << BITS
START = np.uint64(TOTAL)
FULL = np.uint64(1 << 32)
SHIFT, WORD, MASK = np.uint64(BITS), np.uint64(32), np.uint64(TOTAL - 1)
LIMIT = np.uint64(64 - BITS)

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def push(state, low, high, words, count):
    """State and count of words [.] uint32 after one more symbol."""
    width = np.uint64(high - low)
    if state >= width << LIMIT:
        words[count] = np.uint32(state & np.uint64(0xFFFFFFFF))
        count += 1
        state >>= WORD
    return (state // width << SHIFT) + np.uint64(low) + state % width, count


@compiled
def slot(state):
    """Where in [0, 2^24) the next symbol's interval lies."""
    return np.int64(state & MASK)


@compiled
def pop(state, low, high, words, count):
    """State and count of words left after the symbol with this interval, which holds `slot`, was taken off."""
    state = np.uint64(high - low) * (state >> SHIFT) + (state & MASK) - np.uint64(low)
    if state < FULL and count > 0:
        count -= 1
        state = state << WORD | np.uint64(words[count])
    return state, count


@compiled
def push_all(lows, highs, words):
    """State and count of words after symbols [n], the last one first, so that they are decoded in order."""
    state, count = START, 0
    for n in range(len(lows) - 1, -1, -1):
        state, count = push(state, lows[n], highs[n], words, count)
    return state, count


def cumulative(weights: np.ndarray, axis: int = -1) -> np.ndarray:
    """Tables from 0 to 2^24, strictly increasing along ``axis``, of whole weights (int64) that sum to below 2^39 there.

    Entry i is floor((2^24 - A) (weight below i) / (weight of all)) + i: the added i leaves every symbol codable.
    """
    below = np.cumsum(np.moveaxis(weights, axis, -1), -1)
    A = below.shape[-1]
    tables = np.zeros((*below.shape[:-1], A + 1), np.int64)
    tables[..., 1:] = (TOTAL - A) * below // below[..., -1:]
    return np.ascontiguousarray(np.moveaxis(tables + np.arange(A + 1), -1, axis))


def pack(state: int, words: np.ndarray) -> bytes:
    """The stream of a final state and its words [n] uint32, oldest first."""
    state = int(state)
    return state.to_bytes((state.bit_length() + 7) // 8, "little") + words[::-1].astype("<u4").tobytes()


def unpack(data: bytes) -> tuple[int, np.ndarray]:
    """State and words of a stream, oldest first.

    Raises
    ------
    UserError
        If it is none.
    """
    head = len(data) if len(data) <= 8 else 5 + (len(data) - 5) % 4
    state = int.from_bytes(data[:head], "little")
    if state < TOTAL or (head < len(data) and state < 1 << 32):
        raise UserError(f"{len(data)} bytes are no stream of symbols; decode what was encoded, whole")
    return state, np.frombuffer(data[head:], "<u4")[::-1].astype(np.uint32)


class Streams:
    """Streams that are decoded side by side, one symbol of each at a time.

    Raises
    ------
    UserError
        If one of ``data`` is no stream.
    """

    def __init__(self, data: list[bytes]):
        streams = [unpack(each) for each in data]
        self.states = np.array([state for state, _ in streams], np.uint64)
        self.counts = np.array([len(words) for _, words in streams], np.int64)
        self.words = np.zeros((len(data), max(self.counts, default=0)), np.uint32)
        for row, (_, words) in zip(self.words, streams, strict=True):
            row[: len(words)] = words

    def take(self, tables: np.ndarray) -> np.ndarray:
        """The next symbol [S] of each stream by its cumulative table ([S, A + 1] int64 from 0 to 2^24)."""
        symbols = np.zeros(len(self.states), np.int64)
        _take(tables, self.states, self.counts, self.words, symbols)
        return symbols

    def finish(self, who: str) -> None:
        """Raise `UserError` in the name of the codec ``who`` unless all streams have been decoded, and rightly."""
        if not ((self.states == START) & (self.counts == 0)).all():
            raise UserError(f"{who}: a stream was not made with these tables or is not whole; encode it again")


@compiled
def _take(tables, states, counts, words, symbols):
    for s in range(len(states)):
        wanted = slot(states[s])
        x = np.searchsorted(tables[s], wanted, side="right") - 1
        symbols[s] = x
        states[s], counts[s] = pop(states[s], tables[s, x], tables[s, x + 1], words[s], counts[s])


def encode(lows, highs) -> list[bytes]:
    """A stream of each sequence of intervals ([n] int64 each, of any lengths)."""
    streams = []
    for low, high in zip(lows, highs, strict=True):
        words = np.zeros(len(low) * BITS // 32 + 1, np.uint32)
        state, count = push_all(low, high, words)
        streams.append(pack(state, words[:count]))
    return streams
