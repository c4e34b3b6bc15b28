"""How many draft tokens pay on this machine: acceptance against the measured latency curve."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.models.language import Language


class Budget:
    """The latency curve of one network on this machine, and the draft size that makes the most of it.

    Parameters
    ----------
    rows, seconds : ndarray
        Rows verified in one pass, ascending, and the seconds it takes; between measured sizes it is linear.
    """

    def __init__(self, rows: np.ndarray, seconds: np.ndarray):
        sizes = np.arange(1, int(rows[-1]) + 1)
        self.cost = np.interp(sizes, rows, seconds)
        """Seconds of a pass over 1, 2, ... rows."""

    @classmethod
    def measured(cls, inputs: Inputs, model: Language) -> Budget:
        """From the records of benchmark ``latency`` (the method's config must say that it `uses` them).

        Raises
        ------
        UserError
            When the curve was not measured for the model's dtype.
        """
        dtype = str(model.decoder.dtype).removeprefix("torch.")
        records = inputs.records["latency"]
        mine = records[(records["category"] == dtype) & (records["status"] == "ok")]
        curve = mine.pivot(index="item", columns="metric", values="value")
        if curve.empty:
            found = ", ".join(sorted(records["category"].unique())) or "none"
            raise UserError(
                f"the latency curve has no {dtype} entries (measured: {found}); add it to benchmark 'latency'"
            )
        curve = curve.sort_values("rows")
        return cls(curve["rows"].to_numpy(), curve["seconds"].to_numpy())

    def with_drafting(self, share: float) -> Budget:
        """The same when each row but the first must be drafted before, at ``share`` of the seconds of one row."""
        sizes = np.arange(1, len(self.cost) + 1)
        return Budget(sizes, self.cost + (sizes - 1) * share * self.cost[0])

    def size(self, odds: np.ndarray) -> int:
        """Draft size n that maximises expected tokens per second, (1 + sum of the first n odds) / t(n + 1).

        Parameters
        ----------
        odds : ndarray [N]
            Probability that each draft node is accepted, in the order in which nodes are added.

        Returns
        -------
        int
            0 is plain decoding; never more rows than the curve was measured for.
        """
        tokens = 1 + np.concatenate(([0.0], np.cumsum(odds)))[: len(self.cost)]
        return int(np.argmax(tokens / self.cost[: len(tokens)]))


class RunningOdds:
    """Odds of the tokens of a chain, learnt from what earlier chains of the same kind came to.

    Kind and position have a count of chains that were right up to there and of those that were right there as well.
    A chain is judged by the text that follows, verified or not, so cutting drafts short hides nothing.

    Parameters
    ----------
    kinds : int
        Classes of chains that are counted apart, such as the length of the n-gram that was found.
    length : int
        Longest chain.
    """

    def __init__(self, kinds: int, length: int):
        self.counts = torch.zeros(kinds, length, 2, dtype=torch.float64)  # tried, right
        self._open: deque[tuple[int, int, list[int]]] = deque()  # kind, tokens judged so far, tokens

    def odds(self, kind: int, n: int) -> Tensor:
        """Probability [n] that each of the first n tokens is accepted; one half a step before anything was counted."""
        tried, right = self.counts[kind, :n].unbind(-1)
        return ((right + 1) / (tried + 2)).cumprod(0)

    def start(self) -> None:
        """A new sequence begins; chains of the last one are judged no further."""
        self._open.clear()

    def propose(self, kind: int, tokens: Tensor) -> None:
        """A chain was drafted behind the newest token."""
        self._open.append((kind, 0, tokens.tolist()))

    def observe(self, gained: list[int]) -> None:
        """The text went on by these tokens."""
        for _ in range(len(self._open)):
            kind, begin, tokens = self._open.popleft()
            for token in gained[: len(tokens) - begin]:
                right = tokens[begin] == token
                self.counts[kind, begin] += torch.tensor([1.0, right])
                begin += 1
                if not right:
                    break
            else:
                if begin < len(tokens):
                    self._open.append((kind, begin, tokens))
