"""Counts of token n-grams as sorted arrays: exact look-ups of whole batches without a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


class NgramTables:
    """Conditional frequencies c(history, w) / c(history) of n-grams with n = 2 ... N.

    A trie in arrays.  The node of a single token is the token itself; the node of an n-gram is its place among the
    sorted keys ``node(first n-1 tokens) * V + last token`` of its order.  So a key fits 64 bits whatever n is, nothing
    is hashed, and the continuations of a history lie side by side.

    Parameters
    ----------
    keys : sequence of [number of n-grams] int64
        Sorted; the first array is of bigrams.
    counts : sequence of [number of n-grams] int64
        How often each n-gram occurs.
    vocabulary : int
        V.
    """

    def __init__(self, keys: Sequence[np.ndarray], counts: Sequence[np.ndarray], vocabulary: int):
        self.keys, self.counts, self.vocabulary = list(keys), list(counts), vocabulary
        self._before = [np.concatenate(([0], np.cumsum(c, dtype=np.int64))) for c in counts]

    @property
    def orders(self) -> range:
        """The n for which there are counts."""
        return range(2, len(self.keys) + 2)

    @classmethod
    def count(cls, documents: Iterable[np.ndarray], vocabulary: int, longest: int = 6) -> NgramTables:
        """Count the n-grams of token id arrays; none reaches from one document into the next."""
        documents = [np.asarray(document, dtype=np.int64) for document in documents if len(document)]
        tokens = np.concatenate(documents) if documents else np.empty(0, np.int64)
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        room = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))  # tokens from here to the document's end
        begins, nodes = np.arange(len(tokens)), tokens
        keys, counts = [], []
        for n in range(2, longest + 1):
            whole = room[begins] >= n
            begins, nodes = begins[whole], nodes[whole]
            found = np.unique(nodes * vocabulary + tokens[begins + n - 1], return_inverse=True, return_counts=True)
            keys.append(found[0])
            nodes = found[1].astype(np.int64)
            counts.append(found[2].astype(np.int64))
        return cls(keys, counts, vocabulary)

    def save(self, file: Path) -> None:
        """Write ``keys_n`` (int64) and ``counts_n`` (int32) of each order and ``vocabulary`` [1] as safetensors."""
        tensors = {"vocabulary": np.array([self.vocabulary])}
        for n, keys, counts in zip(self.orders, self.keys, self.counts, strict=True):
            tensors |= {f"keys_{n}": keys, f"counts_{n}": counts.astype(np.int32)}
        save_file(tensors, file)

    @classmethod
    def load(cls, file: Path) -> NgramTables:
        """Read what `save` wrote."""
        tensors = load_file(file)
        orders = sorted(int(name.removeprefix("keys_")) for name in tensors if name.startswith("keys_"))
        keys, counts = ([tensors[f"{kind}_{n}"] for n in orders] for kind in ("keys", "counts"))
        return cls(keys, counts, int(tensors["vocabulary"][0]))

    def probabilities(self, histories: np.ndarray, tokens: np.ndarray, n: int) -> np.ndarray:
        """Share of each token among what followed the last n-1 tokens; 0 where they never occurred.

        Parameters
        ----------
        histories : [m, at least n-1] int64
        tokens : [w] int64

        Returns
        -------
        [m, w] float64
        """
        level = n - 2
        nodes = self._nodes(histories[:, histories.shape[1] - (n - 1) :])
        at, found = self._find(level, nodes[:, None], tokens[None])
        low, high = self._children(level, nodes)
        total = self._before[level][high] - self._before[level][low]
        count = np.where(found, self.counts[level][at], 0) if len(self.counts[level]) else np.zeros(at.shape)
        return count / np.maximum(total, 1)[:, None]

    def mixture(self, histories: np.ndarray, tokens: np.ndarray, weights: Sequence[float]) -> np.ndarray:
        """Weighted sum over n = 2, 3, ... of `probabilities` ([m, w] float64); the weights are taken as they are.

        Orders longer than the histories contribute nothing.
        """
        q = np.zeros((len(histories), len(tokens)))
        for n, weight in zip(self.orders, weights, strict=False):
            if n - 1 <= histories.shape[1]:
                q += weight * self.probabilities(histories, tokens, n)
        return q

    def unigrams(self) -> np.ndarray:
        """Share of each token among those that something followed ([V] float64)."""
        counts = np.bincount(self.keys[0] // self.vocabulary, self.counts[0], self.vocabulary)
        return counts / max(counts.sum(), 1)

    def distribution(self, histories: np.ndarray, weights: Sequence[float]) -> np.ndarray:
        """`mixture` over the whole vocabulary ([m, V] float64)."""
        q = np.zeros((len(histories), self.vocabulary))
        for n, weight in zip(self.orders, weights, strict=False):
            if n - 1 > histories.shape[1]:
                continue
            nodes = self._nodes(histories[:, histories.shape[1] - (n - 1) :])
            for row, low, high in zip(q, *self._children(n - 2, nodes), strict=True):
                counts = self.counts[n - 2][low:high]
                row[self.keys[n - 2][low:high] % self.vocabulary] += weight * counts / max(counts.sum(), 1)
        return q

    def _nodes(self, grams: np.ndarray) -> np.ndarray:
        """Nodes [m] of n-grams [m, n]; -1 for those that never occurred."""
        nodes = grams[:, 0]
        for level in range(grams.shape[1] - 1):
            at, found = self._find(level, nodes, grams[:, level + 1])
            nodes = np.where(found, at, -1)
        return nodes

    def _find(self, level: int, nodes: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of children in the arrays of a level, and whether they are there."""
        keys = self.keys[level]
        wanted = nodes * self.vocabulary + tokens
        at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        found = (nodes >= 0) & (keys[at] == wanted) if len(keys) else np.zeros(wanted.shape, bool)
        return at, found

    def _children(self, level: int, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the continuations of nodes begin and end; an empty range for node -1."""
        ends = np.searchsorted(self.keys[level], np.stack((nodes, nodes + 1)) * self.vocabulary)
        return ends[0], np.where(nodes < 0, ends[0], ends[1])
