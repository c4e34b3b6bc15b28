"""Coding with a hidden Chow-Liu tree, compiled: each sample by the same scalar code, in the same order.

Sums run over states in a fixed order, without fused or reordered operations, and vectors are rescaled by powers of two
only, so that a conditional depends neither on batch nor on threads nor on the machine.  A marginalised unit is exactly
1: rows of A and of f are multiples of 2^-24 that sum to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from parsimony.models.rans import START, TOTAL, compiled, pop, slot

TINY, BACK, UNIT = 2.0**-256, 2.0**256, 2.0**-24


class Circuit(NamedTuple):
    """The circuit as arrays; see `models.vtree` for the numbers of nodes.

    Attributes
    ----------
    first, second, above, sibling, order : ndarray
        Of the variable tree.
    down, down_at, up, up_at : ndarray
        Of the schedule.
    A, transposed : ndarray [D, M, M] float64
        Transitions of hidden variable c as A[c, parent state, state], and the other way round; c = 0 is not used.
    F : ndarray [D, K + 1, M] int32
        Cumulative tables of the inputs, from 0 to 2^24.
    top : ndarray [3D - 2, M] float64
        Vectors going down while nothing is known: w.
    """

    first: np.ndarray
    second: np.ndarray
    above: np.ndarray
    sibling: np.ndarray
    order: np.ndarray
    down: np.ndarray
    down_at: np.ndarray
    up: np.ndarray
    up_at: np.ndarray
    A: np.ndarray
    transposed: np.ndarray
    F: np.ndarray
    top: np.ndarray


@compiled
def _rescale(v):
    most = 0.0
    for s in range(len(v)):
        most = max(most, v[s])
    if most < TINY:
        for s in range(len(v)):
            v[s] *= BACK


@compiled
def _multiply(rows, u, out):
    """out = sum_t rows[t] u[t], t in order."""
    for s in range(len(out)):
        out[s] = 0.0
    for t in range(len(u)):
        for s in range(len(out)):
            out[s] += rows[t, s] * u[t]


@compiled
def go_down(n, c, U, G):
    """Vector going down to node ``n`` from the node above it."""
    D = len(c.order)
    p = c.above[n]
    if p < 2 * D - 1:
        _multiply(c.A[p - D + 1], G[p], G[n])
    else:
        other = c.sibling[n]
        for s in range(G.shape[1]):
            G[n, s] = G[p, s] * U[other, s]
    _rescale(G[n])


@compiled
def go_up(n, c, x, known, U):
    """Vector of node ``n`` from those below it, or from its value ``x[n]`` if that is ``known``."""
    D = len(c.order)
    if n < D:
        for s in range(U.shape[1]):
            U[n, s] = (c.F[n, x[n] + 1, s] - c.F[n, x[n], s]) * UNIT if known[n] else 1.0
    elif n < 2 * D - 1:
        _multiply(c.transposed[n - D + 1], U[c.first[n]], U[n])
    else:
        a, b = c.first[n], c.second[n]
        for s in range(U.shape[1]):
            U[n, s] = U[a, s] * U[b, s]
        _rescale(U[n])


@compiled
def _below(g, F):
    """sum_s g[s] F[s]: up to a factor, the probability of values below those whose column of the table ``F`` is.

    Each step is monotone in F, so the sum is, rounding or not.
    """
    a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
    whole = len(g) // 4 * 4
    for s in range(0, whole, 4):
        a0 += g[s] * F[s]
        a1 += g[s + 1] * F[s + 1]
        a2 += g[s + 2] * F[s + 2]
        a3 += g[s + 3] * F[s + 3]
    for s in range(whole, len(g)):
        a0 += g[s] * F[s]
    return (a0 + a1) + (a2 + a3)


@compiled
def _bound(g, table, x, scale):
    """Lower end of the interval of value ``x``; K gives the end of the last one."""
    if x == len(table) - 1:
        return TOTAL
    return int(_below(g, table[x]) * scale) + x


@compiled
def _scale(g, table):
    K = len(table) - 1
    return (TOTAL - K) / _below(g, table[K])


@compiled
def _start(c):
    shape = c.top.shape
    return np.ones(shape), c.top.copy(), np.zeros(shape[0], np.bool_)


@compiled
def intervals(c, xs, lows, highs, bits):
    """Fill ``lows``, ``highs`` [B, D] with the interval of each value, in coding order, and ``bits`` [B] with
    -log2 p(x), of ``xs`` ([B, D], a column a node)."""
    U, G, known = _start(c)
    for b in range(len(xs)):
        U[:] = 1.0
        known[:] = False
        for k in range(len(c.order)):
            for n in c.down[c.down_at[k] : c.down_at[k + 1]]:
                go_down(n, c, U, G)
            i = c.order[k]
            x, g, table = int(xs[b, i]), G[i], c.F[i]
            scale = _scale(g, table)
            lows[b, k], highs[b, k] = _bound(g, table, x, scale), _bound(g, table, x + 1, scale)
            share = (_below(g, table[x + 1]) - _below(g, table[x])) / _below(g, table[len(table) - 1])
            bits[b] -= np.log2(share)
            known[i] = True
            for n in c.up[c.up_at[k] : c.up_at[k + 1]]:
                go_up(n, c, xs[b], known, U)


@compiled
def decode(c, first, words, states, counts, xs):
    """Fill ``xs`` ([B, D]) with the samples of streams; ``states`` and ``counts`` [S] are what is left of each.

    A stream that is wrong is left as soon as that shows.
    """
    U, G, known = _start(c)
    K = c.F.shape[1] - 1
    for s in range(len(first) - 1):
        state, count = states[s], counts[s]
        for b in range(first[s], first[s + 1]):
            U[:] = 1.0
            known[:] = False
            for k in range(len(c.order)):
                if state < START:
                    break
                for n in c.down[c.down_at[k] : c.down_at[k + 1]]:
                    go_down(n, c, U, G)
                i = c.order[k]
                g, table, wanted = G[i], c.F[i], slot(state)
                scale = _scale(g, table)
                x, above = 0, K
                low, high = 0, TOTAL
                probe = 1  # the lowest value is the most frequent one; then by halves
                while above - x > 1:
                    bound = _bound(g, table, probe, scale)
                    if bound <= wanted:
                        x, low = probe, bound
                    else:
                        above, high = probe, bound
                    probe = (x + above) // 2
                state, count = pop(state, low, high, words[s], count)
                xs[b, i] = x
                known[i] = True
                for n in c.up[c.up_at[k] : c.up_at[k + 1]]:
                    go_up(n, c, xs[b], known, U)
        states[s], counts[s] = state, count
