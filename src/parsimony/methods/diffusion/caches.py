"""Passes of a masked diffusion model over a partly masked sequence: exact, or with the stale caches of Fast-dLLM.

At the beginning of a block `refresh` runs the whole sequence.  Until its end `step` gives logits of its rows: from the
whole sequence again (`Exact`), from the block and all behind it over the keys and values of what stands before
(`Prefix`), or from the block alone over those of everything else (`Dual`).  Fast-dLLM (Wu et al., arXiv 2505.22618).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from parsimony.models.masked import Masked


class Exact:
    """Every pass runs the whole sequence.

    Attributes
    ----------
    full, partial : int
        Passes so far over the whole sequence and over a part.
    rows : int
        Rows run in all passes so far.
    """

    stale = False

    def __init__(self, model: Masked):
        self.model, self.decoder, self.device = model, model.decoder, model.decoder.device
        self.full = self.partial = self.rows = 0
        self.cache = self.decoder.cache(256)

    def refresh(self, x: Tensor, begin: int) -> Tensor:
        """Logits [T - begin, V] of the rows of ``x`` ([T] int64) from ``begin`` on; the cache holds all of ``x``."""
        self.cache.clear()
        self.full, self.rows = self.full + 1, self.rows + len(x)
        logits = self.decoder.forward(x[None], self.cache)[0]
        if self.model.shifted:  # the output at i - 1 predicts token i
            logits = torch.cat((logits[:1], logits[:-1]))
        return logits[begin:]

    def enter(self, begin: int, stop: int) -> None:
        """The block is rows ``begin`` to ``stop``; called behind `refresh`."""

    def step(self, x: Tensor, begin: int, stop: int) -> Tensor:
        """Logits [stop - begin, V] of the block's rows."""
        return self.refresh(x, begin)[: stop - begin]

    def steps(self, states: Tensor, begin: int, stop: int) -> Tensor:
        """Logits [d, stop - begin, V] of the block's rows of several ``states`` ([d, T] int64) in one pass."""
        d, T = states.shape
        self.full, self.rows = self.full + 1, self.rows + d * T
        logits = self.decoder.forward(states, self.decoder.cache(T, d))
        if self.model.shifted:
            logits = torch.cat((logits[:, :1], logits[:, :-1]), 1)
        return logits[:, begin:stop]

    def nbytes(self) -> int:
        """Bytes of keys and values that a pass reads from earlier ones."""
        return 0

    def _partial(self, x: Tensor, first: int, last: int, keep: int) -> Tensor:
        """Logits of rows ``first`` to ``last`` over the ``keep`` cached entries, which stay; the rows' own do not."""
        positions = torch.arange(first, last)[None]
        self.partial, self.rows = self.partial + 1, self.rows + last - first
        logits = self.decoder.forward(x[None, first:last], self.cache, positions=positions)[0]
        self.cache.truncate(keep)
        if self.model.shifted:  # the block's first row was committed by the refresh
            logits = torch.cat((logits[:1], logits[:-1]))
        return logits


class Prefix(Exact):
    """Keys and values of what stands before the block are kept until its end."""

    stale = True
    layout = "batch"
    """How several states run over the cache: each over a copy of it, or as branches of one row (a tree)."""

    def enter(self, begin: int, stop: int) -> None:
        self.cache.truncate(begin)

    def step(self, x: Tensor, begin: int, stop: int) -> Tensor:
        return self._partial(x, begin, len(x), begin)[: stop - begin]

    def steps(self, states: Tensor, begin: int, stop: int) -> Tensor:
        return self._branches(states, begin, states.shape[1])[:, : stop - begin]

    def _branches(self, states: Tensor, first: int, last: int) -> Tensor:
        """Logits of rows ``first`` to ``last`` of each state over the cached entries and the state's own."""
        d, size = len(states), last - first
        self.partial, self.rows = self.partial + 1, self.rows + d * size
        if self.layout == "tree":
            kept, branch = len(self.cache), torch.arange(d).repeat_interleave(size)
            ids, positions = states[:, first:last].reshape(1, -1), torch.arange(first, last).repeat(d)[None]
            logits = self.decoder.forward(ids, self.cache, positions=positions, tree=branch[:, None] == branch)
            self.cache.truncate(kept)
            return logits.view(d, size, -1)
        copies = copy.copy(self.cache)
        copies.lengths = list(self.cache.lengths)
        copies.select(torch.zeros(d, dtype=torch.int64))
        positions = torch.arange(first, last).expand(d, -1)
        return self.decoder.forward(states[:, first:last], copies, positions=positions)

    def nbytes(self) -> int:
        return self.cache.nbytes()


class Dual(Prefix):
    """Keys and values of all rows outside of the block are kept until its end, those of masks behind it too."""

    def enter(self, begin: int, stop: int) -> None:
        rows = torch.arange(len(self.cache))
        self.cache.keep(rows[(rows < begin) | (rows >= stop)])

    def step(self, x: Tensor, begin: int, stop: int) -> Tensor:
        return self._partial(x, begin, stop, len(x) - (stop - begin))

    def steps(self, states: Tensor, begin: int, stop: int) -> Tensor:
        return self._branches(states, begin, stop)


PASSES = {"none": Exact, "prefix": Prefix, "dual": Dual}
