"""A depth-bounded suffix tree with counts over many growing sequences, and drafts from it.

The tree holds every substring of at most D tokens and how often it occurs (SuffixDecoding, arXiv 2411.04975; the
order of equally frequent children follows the official code).  It is path-compressed: a node stands for a run of
tokens that no count separates, and refers to one place in the text for them.  A suffix that may still grow always
ends with a node's run, because the count falls there.  A token costs O(D) time and at most two nodes.  Text of
removed sequences stays, for nodes may refer to it, until most of the text is dead; then what lives is moved together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from parsimony.errors import UserError
from parsimony.methods.autoregressive import suffix_nodes
from parsimony.methods.autoregressive.suffix_nodes import GROUP, NODE, Store


class Speculation(NamedTuple):
    """Draft of a suffix tree.

    Attributes
    ----------
    tokens, parents : ndarray [n] int32
        ``parents[i] < i`` is the index of the token before, -1 at the end of the context.
    probs : ndarray [n] float32
        Share of the occurrences of the matched text that go on like this.
    score : float
        Sum of ``probs``: the tokens one may expect to be accepted.
    match : int
        Length of the match that the draft continues.
    """

    tokens: np.ndarray
    parents: np.ndarray
    probs: np.ndarray
    score: float
    match: int


class SuffixTree:
    """Counts of all substrings of at most ``depth`` tokens of a set of sequences, each under a key of one's choice.

    Parameters
    ----------
    depth : int
        D of the paper; a match is shorter than this.
    """

    def __init__(self, depth: int = 64):
        if depth < 1:
            raise UserError(f"a suffix tree needs a depth of 1 or more, not {depth}")
        self.depth = depth
        self.live = 0
        """Tokens of all sequences together."""
        self._places: dict[int, tuple[int, int, int]] = {}  # key -> begin in the text, length, room
        self._used = 0  # text in use, dead or alive
        self._open = None  # the sequence that grew last
        self._ends = np.zeros(depth, np.int32)  # node at which its suffix from p ends, at p modulo D
        self._store = Store(np.zeros(1, NODE), np.zeros(1, GROUP), *np.zeros((3, 2), np.int32))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        """Keys of the sequences, the earliest first."""
        return iter(self._places)

    def __getitem__(self, key: int) -> np.ndarray:
        """Tokens [T] int32 of a sequence."""
        begin, length, _ = self._places[key]
        return self._store.text[begin : begin + length].copy()

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, spare room included."""
        return sum(array.nbytes for array in self._store) + self._ends.nbytes

    def extend(self, key: int, tokens) -> None:
        """Append tokens ([n] int) to a sequence, which need not exist yet."""
        tokens = np.asarray(tokens, np.int32)
        begin, length, _ = self._make_room(key, len(tokens))
        if key != self._open:
            suffix_nodes.find_ends(self._store, self._ends, begin, length)
            self._open = key
        suffix_nodes.extend(self._store, self._ends, begin, length, tokens)
        self._places[key] = begin, length + len(tokens), self._places[key][2]
        self.live += len(tokens)

    def remove(self, key: int) -> None:
        """Forget a sequence: afterwards all counts are as if it had never been there."""
        begin, length, _ = self._places.pop(key)
        suffix_nodes.remove(self._store, begin, length)
        self.live -= length
        if key == self._open:
            self._open = None
        if self._used > 4 * self.live + 4096:
            self._compact()

    def count(self, tokens) -> int:
        """Occurrences of a substring of 1 to ``depth`` tokens ([n] int)."""
        node, _ = suffix_nodes.match(self._store, np.asarray(tokens, np.int32), 0)
        return 0 if node == 0 else int(self._store.nodes[node]["count"])

    def speculate(
        self, context, limit: int, alpha: float = 1.0, offset: float = 0.0, min_prob: float = 0.1, tree: bool = False
    ) -> Speculation:
        """Draft behind ``context``: of all matches of its last m tokens, what promises the most accepted tokens.

        For m = 1, 2, ... shorter than the context (of which the last D tokens count), as long as the last m tokens
        occur: a budget of min(limit, floor(alpha m + offset)) tokens behind them, either the most frequent
        continuation or the most probable tree; equal scores go to the longer match.

        Parameters
        ----------
        context : array [T] int
        limit : int
            Longest draft.
        alpha, offset : float
            Budget a matched token, and beside that.
        min_prob : float
            Less probable tokens are not drafted.
        tree : bool
            Draft a tree instead of a line.
        """
        context = np.asarray(context, np.int32)[-self.depth :]
        f32 = np.float32
        tokens, parents, probs, score, match = suffix_nodes.speculate(
            self._store, context, max(limit, 0), f32(alpha), f32(offset), f32(min_prob), tree
        )
        return Speculation(tokens, parents, probs, float(score), match)

    def _make_room(self, key: int, more: int) -> tuple[int, int, int]:
        """Place of a sequence with room for ``more`` tokens; a sequence that outgrows its place moves to the end.

        Every suffix ends at one node and every other node branches, so two nodes a token are enough.
        """
        begin, length, room = self._places.get(key, (self._used, 0, 0))
        if length + more > room:
            old = begin
            if begin + room == self._used:
                room = length + more
            else:
                begin, room = self._used, 2 * (length + more)
            self._grow(text=begin + room)
            if begin != old:
                self._store.text[begin : begin + length] = self._store.text[old : old + length]
            self._used = begin + room
        self._grow(nodes=2 * (self.live + more) + 2)
        self._places[key] = begin, length, room
        return self._places[key]

    def _grow(self, text: int = 0, nodes: int = 0) -> None:
        """Arrays of at least these sizes; they double."""
        store = self._store
        if text > len(store.text):
            store = store._replace(text=_longer(store.text, text))
        if nodes > len(store.nodes):
            known, table = len(store.nodes), store.table
            store = store._replace(nodes=_longer(store.nodes, nodes), groups=_longer(store.groups, nodes))
            for n, chain in enumerate((store.nodes["next"], store.groups["head"])):
                chain[known:] = np.arange(known + 1, len(chain) + 1)
                chain[-1] = store.free[n]
                store.free[n] = known
            store = store._replace(table=np.zeros(1 << (2 * len(store.nodes) - 1).bit_length(), np.int32))
            suffix_nodes.fill_table(store, table)
        self._store = store

    def _compact(self) -> None:
        """Move the living text together and let the nodes refer to it."""
        text, self._used = np.zeros(max(2 * self.live, 2), np.int32), 0
        for key, (_, length, _) in self._places.items():
            text[self._used : self._used + length] = self[key]
            self._places[key] = self._used, length, length
            self._used += length
        self._store = self._store._replace(text=text)
        for begin, length, _ in self._places.values():
            suffix_nodes.refer(self._store, begin, length)


def _longer(array: np.ndarray, least: int) -> np.ndarray:
    return np.concatenate((array, np.zeros(max(least, 2 * len(array)) - len(array), array.dtype)))
