"""A table of trigram weights in flat arrays, and the two searches for likely continuations in it.

M[(u, v)][w] is the weight of token w behind tokens u, v.  The successors of a bigram form a linked list in the order
in which they came in.  Searches return a tree of prefixes: row 0 is the empty one, row n adds ``token[n]`` to row
``parent[n] < n``.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

compiled = numba.njit(cache=True)


class Trigrams(NamedTuple):
    """The table; see `make`.

    Attributes
    ----------
    slots : ndarray [C] int64
        Hash table of bigrams (u * 2^32 + v; -1 where free); C is a power of two, never more than half full.
    first : ndarray [C] int32
        First trigram of the slot's bigram.
    bigram : ndarray [E] int64
    token : ndarray [E] int32
    weight : ndarray [E] float32
        Of each trigram, in the order in which they came in.
    after : ndarray [E] int32
        Next trigram of the same bigram; -1 behind the last.
    size : ndarray [1] int64
        Trigrams in use.
    """

    slots: np.ndarray
    first: np.ndarray
    bigram: np.ndarray
    token: np.ndarray
    weight: np.ndarray
    after: np.ndarray
    size: np.ndarray


def make(bigram: np.ndarray, token: np.ndarray, weight: np.ndarray, room: int = 0) -> Trigrams:
    """The table of the given trigrams ([E] each, in order, none twice), with room for as many more, or for ``room``."""
    E = max(2 * len(token), len(token) + room, 1024)
    C = 1 << (2 * E - 1).bit_length()
    edges = (np.zeros(E, np.int64), np.zeros(E, np.int32), np.zeros(E, np.float32), np.full(E, -1, np.int32))
    table = Trigrams(np.full(C, -1, np.int64), np.full(C, -1, np.int32), *edges, np.zeros(1, np.int64))
    _fill(table, bigram, token, weight)
    return table


def contents(table: Trigrams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``bigram``, ``token`` and ``weight`` [E] of the trigrams in use; `make` takes them."""
    n = int(table.size[0])
    return table.bigram[:n], table.token[:n], table.weight[:n]


def counted(texts: list[np.ndarray], best: int) -> Trigrams:
    """The table of some texts (1-D token ids): relative frequencies behind each bigram, the ``best`` of each only.

    Successors stand in order of falling frequency; among equals the smaller id comes first.
    """
    windows = [np.lib.stride_tricks.sliding_window_view(text, 3) for text in texts if len(text) > 2]
    found, counts = np.unique(np.concatenate([np.empty((0, 3), np.int64), *windows]), axis=0, return_counts=True)
    bigram, token = (found[:, 0] << 32) | found[:, 1], found[:, 2]
    order = np.lexsort((token, -counts, bigram))
    bigram, token, counts = bigram[order], token[order], counts[order]
    _, begin, place, total = np.unique(bigram, return_index=True, return_inverse=True, return_counts=True)
    sums = np.bincount(place, counts, len(total))
    kept = np.arange(len(token)) - begin[place] < best
    return make(bigram[kept], token[kept], (counts / sums[place])[kept])


def raised(table: Trigrams, text: np.ndarray, amount: float, most: float) -> Trigrams:
    """The table after ``amount`` was added, up to ``most``, to every trigram of a text (in place if there is room)."""
    if table.size[0] + len(text) > len(table.token):
        table = make(*contents(table), room=len(text))
    _raise(table, text, amount, most)
    return table


@compiled
def slot_of(t: Trigrams, u: int, v: int) -> int:
    """Where bigram (u, v) is in the hash table, or the free slot where it belongs."""
    bigram, mask = (np.int64(u) << 32) | np.int64(v), len(t.slots) - 1
    mixed = (np.uint64(bigram) ^ (np.uint64(bigram) >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    at = np.int64(mixed >> np.uint64(32)) & mask
    while t.slots[at] != bigram and t.slots[at] != -1:
        at = (at + 1) & mask
    return at


@compiled
def find(t: Trigrams, u: int, v: int, w: int) -> int:
    """The trigram (u, v, w), or -1."""
    edge = t.first[slot_of(t, u, v)]
    while edge >= 0 and t.token[edge] != w:
        edge = t.after[edge]
    return edge


@compiled
def likeliest(t: Trigrams, u: int, v: int) -> int:
    """The successor of (u, v) with the largest weight (the first among equals), or -1."""
    edge, best, token = t.first[slot_of(t, u, v)], 0.0, -1
    while edge >= 0:
        if t.weight[edge] > best:
            best, token = t.weight[edge], t.token[edge]
        edge = t.after[edge]
    return token


@compiled
def share(t: Trigrams, u: int, v: int, w: int) -> float:
    """Weight of (u, v, w) as a share of the weights behind (u, v)."""
    edge, whole, part = t.first[slot_of(t, u, v)], 0.0, 0.0
    while edge >= 0:
        whole += t.weight[edge]
        if t.token[edge] == w:
            part = t.weight[edge]
        edge = t.after[edge]
    return part / whole if whole > 0 else 0.0


@compiled
def _append(t, u, v, w, weight):
    edge, at = np.int32(t.size[0]), slot_of(t, u, v)
    t.bigram[edge], t.token[edge], t.weight[edge], t.after[edge] = (np.int64(u) << 32) | np.int64(v), w, weight, -1
    if t.slots[at] == -1:
        t.slots[at], t.first[at] = t.bigram[edge], edge
    else:
        last = t.first[at]
        while t.after[last] >= 0:
            last = t.after[last]
        t.after[last] = edge
    t.size[0] += 1


@compiled
def _fill(t, bigram, token, weight):
    for n in range(len(token)):
        _append(t, bigram[n] >> 32, bigram[n] & 0xFFFFFFFF, token[n], weight[n])


@compiled
def _raise(t, text, amount, most):
    for n in range(len(text) - 2):
        u, v, w = text[n], text[n + 1], text[n + 2]
        edge = find(t, u, v, w)
        if edge >= 0:
            t.weight[edge] = min(t.weight[edge] + amount, most)
        else:
            _append(t, u, v, w, min(amount, most))


@compiled
def monte_carlo(t: Trigrams, u: int, v: int, uniforms: np.ndarray, published_value: bool):
    """Monte-Carlo tree search with a PUCT rule behind bigram (u, v).

    A state is a bigram; edges are trigrams.  Each iteration selects the child with the largest
    ``Q / n + (32 + ln((N + 9) / 8)) * p * sqrt(N) / (1 + n)`` (p the weight of its edge; an unvisited one at once)
    down to a leaf, gives that all its successors as children, goes on with one of them (the official code takes the
    last of a hash map, which is any; here it is drawn), draws successors in proportion to their weights down to the
    last level, and adds ``value = 1 + sum_i M[state_i][w_(i+1)]`` to all nodes on the way.

    Parameters
    ----------
    uniforms : ndarray [iterations, depth]
        Random numbers in [0, 1); ``depth`` counts states, the root's included.
    published_value : bool
        As the official code computes the value: it looks M[state_i] up at the first token of the next state, which is
        the second of state_i itself, so that the value is 1 unless a token repeats.

    Returns
    -------
    tuple of ndarray [n]
        ``parent``, ``token`` and the visits of each prefix.
    """
    depth = uniforms.shape[1]
    parent, edges, visits, total = [-1], [-1], [0], [0.0]
    begin, end = [0], [0]  # children of each node
    for draw in uniforms:
        node, x, y, level, value = 0, np.int64(u), np.int64(v), 1, 1.0
        expanded = False
        while level < depth:
            if expanded:  # roll out: no nodes are made
                edge = t.first[slot_of(t, x, y)]
                rest, each = 0.0, edge
                while each >= 0:
                    rest += t.weight[each]
                    each = t.after[each]
                rest *= draw[level]
                while edge >= 0 and t.after[edge] >= 0 and rest >= t.weight[edge]:
                    rest -= t.weight[edge]
                    edge = t.after[edge]
            elif begin[node] < end[node]:  # select
                explore = (32 + np.log((visits[node] + 9) / 8)) * np.sqrt(visits[node])
                best, chosen = -1.0, begin[node]
                for child in range(begin[node], end[node]):
                    if visits[child] == 0:
                        chosen = child
                        break
                    score = total[child] / visits[child] + explore * t.weight[edges[child]] / (1 + visits[child])
                    if score > best:
                        best, chosen = score, child
                node, edge = chosen, edges[chosen]
            else:  # expand
                edge, begin[node] = t.first[slot_of(t, x, y)], len(parent)
                while edge >= 0:
                    parent.append(node)
                    edges.append(edge)
                    visits.append(0)
                    total.append(0.0)
                    begin.append(0)
                    end.append(0)
                    edge = t.after[edge]
                end[node] = len(parent)
                if end[node] > begin[node]:
                    node = begin[node] + int(draw[0] * (end[node] - begin[node]))
                    edge = edges[node]
                expanded = True
            if edge < 0:
                break
            if published_value:
                looked_up = find(t, x, y, y)
                value += t.weight[looked_up] if looked_up >= 0 else 0.0
            else:
                value += t.weight[edge]
            x, y, level = y, np.int64(t.token[edge]), level + 1
        while node >= 0:
            visits[node] += 1
            total[node] += value
            node = parent[node]
    return np.array(parent), np.array([-1 if e < 0 else t.token[e] for e in edges]), np.array(visits).astype(np.float64)


@compiled
def beam(t: Trigrams, u: int, v: int, width: int, depth: int):
    """Beam search by the product of weights behind bigram (u, v): the ``width`` best of each of ``depth - 1`` levels.

    Returns
    -------
    tuple of ndarray [n]
        ``parent``, ``token`` and the product of each prefix.
    """
    parent, token, product = [-1], [np.int32(-1)], [1.0]
    pairs = [(np.int64(u), np.int64(v))]
    level = [0]
    for _ in range(depth - 1):
        begin = len(parent)
        for node in level:
            x, y = pairs[node]
            edge = t.first[slot_of(t, x, y)]
            while edge >= 0:
                parent.append(node)
                token.append(t.token[edge])
                product.append(product[node] * t.weight[edge])
                pairs.append((y, np.int64(t.token[edge])))
                edge = t.after[edge]
        order = np.argsort(-np.array(product[begin:]), kind="mergesort")[:width]
        level = [begin + n for n in order]
        if len(level) == 0:
            break
    return np.array(parent), np.array(token), np.array(product)
