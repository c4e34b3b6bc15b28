"""Draft trees of Parallel Prompt Decoding: which guesses to verify, and which nodes carry how many prompt tokens.

Symbols: ``acc[i, r]`` is the probability that the guess of rank r of prompt i is right (both from 0); state s is the
number of prompt tokens under the last accepted node, hence of levels that can be guessed; e vectors a prompt token.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.methods.autoregressive.verify import Tree

FIRST = 10
"""Candidates of state 1 in the official code, as many as prompt tokens have ranks."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """A root and N guessed nodes under it, breadth-first.

    Attributes
    ----------
    paths : list of tuple of int
        Ranks of the guesses from the root's child to the node; the root's is empty.
    score : ndarray [N + 1]
        Probability that a node is accepted, the root's being 1; the sum is f, the expected tokens of a pass.
    last : ndarray [N + 1]
        Probability that it is the last accepted one: its score minus those of its children.
    """

    paths: list[tuple[int, ...]]
    score: np.ndarray
    last: np.ndarray

    @property
    def parents(self) -> list[int]:
        """Row of the parent of each guessed node."""
        at = {path: row for row, path in enumerate(self.paths)}
        return [at[path[:-1]] for path in self.paths[1:]]


@dataclass(frozen=True, eq=False)
class PromptTree:
    """A draft as it stands in a pass: root, candidates, prompt rows.

    Attributes
    ----------
    tree : Tree
        A prompt row hangs under the earlier one of the same node and ensemble member, the first ones under the node,
        so that its position is the node's plus its number, and it sees the node, its ancestors and those prompts.
    slots : Tensor [N] int64
        Place of each candidate in the guesses [s, R], flattened.
    vectors : Tensor [rows] int64
        Which vector of [m, e], flattened, each prompt row holds.
    prompts : list of Tensor [n, e] int64
        Prompt rows under each node, root first.
    """

    tree: Tree
    slots: Tensor
    vectors: Tensor
    prompts: list[Tensor]

    @classmethod
    def of(cls, candidates: Candidates, counts: np.ndarray, ranks: int, e: int) -> PromptTree:
        """Hang ``counts[k]`` prompt tokens of e vectors under node k."""
        parents, vectors, prompts = candidates.parents, [], []
        for node, count in enumerate(counts):
            rows, above = [], [node] * e
            for i in range(count):
                rows.append(range(len(parents) + 1, len(parents) + 1 + e))
                parents += above
                vectors += range(i * e, (i + 1) * e)
                above = list(rows[-1])
            prompts.append(torch.tensor([list(row) for row in rows]))
        slots = [(len(path) - 1) * ranks + path[-1] for path in candidates.paths[1:]]
        return cls(
            Tree.of(parents), torch.tensor(slots, dtype=torch.int64), torch.tensor(vectors, dtype=torch.int64), prompts
        )


@dataclass(frozen=True, eq=False)
class Forest:
    """One tree a state, and what they lead to.

    Attributes
    ----------
    trees : dict of int to PromptTree
    transitions : ndarray [m, m]
        E[s' | s] in row s - 1, column s' - 1.
    stationary : ndarray [m]
        Share of passes in each state.
    expected : float
        Tokens a pass, bonus included: sum over s of ``stationary[s] * f(s)``.
    """

    trees: dict[int, PromptTree]
    transitions: np.ndarray
    stationary: np.ndarray
    expected: float


def candidates(acc: np.ndarray, depth: int, nodes: int) -> Candidates:
    """The ``nodes`` likeliest guesses of at most ``depth`` levels, each with all of its ancestors.

    A path's score is the product of the ``acc`` along it (all levels are taken as independent), so no child has more
    than its parent; among equals the shorter path comes first, so the set is closed under prefixes.
    """
    paths, scores, level = [()], [np.ones(1)], np.ones(1)
    for i in range(depth):
        level = (level[:, None] * acc[i]).ravel()
        paths += itertools.product(range(acc.shape[1]), repeat=i + 1)
        scores.append(level)
    scores = np.concatenate(scores)
    kept = np.sort(np.argsort(-scores, kind="stable")[: nodes + 1])
    chosen, score = [paths[k] for k in kept], scores[kept]
    last, at = score.copy(), {path: row for row, path in enumerate(chosen)}
    for row, path in enumerate(chosen[1:], 1):
        last[at[path[:-1]]] -= score[row]
    return Candidates(chosen, score, last)


def allot(last: np.ndarray, f: np.ndarray, prompts: int) -> np.ndarray:
    """Prompt tokens under each node when at most ``prompts`` are affordable: all m, less those that cost the least.

    One by one, the node with the smallest ``last * (f(n) - f(n - 1))`` loses its n-th prompt token; one always stays.

    Parameters
    ----------
    last : ndarray [N + 1]
    f : ndarray [m]
        ``f[n - 1]`` is the expected number of tokens of a pass in state n.
    """
    nodes, m = len(last), len(f)
    loss = last[:, None] * (f[:0:-1] - f[-2::-1])  # [N + 1, m - 1]: of the m-th, then the one before it, ...
    # Whatever follows a dearer one at the same node goes right behind it.
    order = np.maximum.accumulate(loss, 1).ravel().argsort(kind="stable")
    removed = order[: max(nodes * m - prompts, 0)] // max(m - 1, 1)
    return m - np.bincount(removed, minlength=nodes)


def stationary(E: np.ndarray) -> np.ndarray:
    """Long-run share of each state of a chain that begins in the last one (the first pass carries all m prompts)."""
    pi = np.linalg.matrix_power((E + np.eye(len(E))) / 2, 1 << 20)[-1]  # half the steps stand still: no cycles
    return pi / pi.sum()


@functools.lru_cache(maxsize=64)
def dynamic(acc: tuple[tuple[float, ...], ...], limit: int, e: int = 1) -> Forest:
    """The best trees with at most ``limit`` rows behind the root (section "dynamic sparse tree" of the paper).

    All sizes between "every node has all prompt tokens" and "every node has one" are tried in each state and weighed
    by the stationary distribution.  State 1 has 10 candidates, as in the official code, where the limit leaves all of
    them their prompts; published limits (from 50) do, smaller ones are searched there as well.  The root is a node
    like any other: the official code gives it all m prompts beyond the limit, and counts "only the root was accepted"
    as one more state, in which a pass gains nothing.

    Raises
    ------
    UserError
        When not even one candidate fits.
    """
    table = np.array(acc)
    m, ranks = table.shape
    fewest, most = _full(m, limit, e), (limit - e) // (1 + e)
    if most < 1:
        raise UserError(f"a prompt tree needs a limit of at least {1 + 2 * e} rows behind the root, not {limit}")
    sizes = [range(max(fewest, 1), most + 1)] * m
    sizes[0] = [FIRST] if fewest >= FIRST else range(max(min(fewest, FIRST), 1), min(most, FIRST) + 1)
    made = {(s, n): candidates(table, s + 1, n) for s in range(m) for n in sizes[s]}
    best = None
    for chosen in itertools.product(*sizes):
        states = [made[s, n] for s, n in enumerate(chosen)]
        f = np.array([state.score.sum() for state in states])
        counts = [allot(state.last, f, (limit - len(state.paths) + 1) // e) for state in states]
        E = np.stack([np.bincount(n, c.last, m + 1)[1:] for n, c in zip(counts, states, strict=True)])
        pi = stationary(E)
        if best is None or pi @ f > best[0]:
            best = pi @ f, states, counts, E, pi
    expected, states, counts, E, pi = best
    trees = {s + 1: PromptTree.of(states[s], counts[s], ranks, e) for s in range(m)}
    return Forest(trees, E, pi, float(expected))


def static(acc: tuple[tuple[float, ...], ...], limit: int, e: int = 1) -> Forest:
    """One tree whose nodes all carry m prompt tokens, so that state m is never left.

    Raises
    ------
    UserError
        When not even one candidate fits.
    """
    table = np.array(acc)
    m, ranks = table.shape
    nodes = _full(m, limit, e)
    if nodes < 1:
        raise UserError(f"a static prompt tree needs a limit of at least {2 * m * e + 1} rows, not {limit}")
    only = candidates(table, m, nodes)
    E = np.zeros((m, m))
    E[:, -1] = 1
    tree = PromptTree.of(only, np.full(len(only.paths), m), ranks, e)
    return Forest({m: tree}, E, E[-1], float(only.score.sum()))


def bare(m: int, ranks: int, e: int) -> PromptTree:
    """The root with all prompt tokens and no guess: the first pass."""
    return PromptTree.of(Candidates([()], np.ones(1), np.ones(1)), np.array([m]), ranks, e)


def behind(cuts: Tensor, m: int, e: int, T: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt rows behind K prefixes of one sequence of T tokens, as rows T, T + 1, ... of one pass.

    All vectors of prompt i (from 1) behind a prefix of length L stand at position L + i - 1; vector j of it sees the
    prefix and vector j of prompts 1..i ("ensemble" attention), so that nothing depends on the other cut points.

    Returns
    -------
    tuple of Tensor
        Which of the m * e vectors each of the K * m * e rows holds (K-major), their positions, and what they see
        ([K * m * e, T + K * m * e] bool).
    """
    grid = torch.meshgrid(torch.arange(len(cuts)), torch.arange(m), torch.arange(e), indexing="ij")
    k, i, j = (x.reshape(-1) for x in grid)
    chain = (k[:, None] == k) & (j[:, None] == j) & (i[:, None] >= i)
    return i * e + j, cuts[k] + i, torch.cat((torch.arange(T) < cuts[k][:, None], chain), 1)


def _full(m: int, limit: int, e: int) -> int:
    """Candidates that leave room for m prompt tokens under each of them and the root."""
    return (limit - m * e) // (1 + m * e)
