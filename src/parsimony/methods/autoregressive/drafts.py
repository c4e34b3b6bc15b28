"""The beam that keeps the k best drafts of one prompt: candidates, finished drafts, ranking (tensor2tensor's rules)."""

from __future__ import annotations

import torch
from torch import Tensor


class Beam:
    """Up to k unfinished drafts, best first, and up to k finished ones.

    Attributes
    ----------
    tokens : Tensor [m, t] int64
        The m <= k unfinished drafts; m is 1 before the first step.
    scores : Tensor [m] float64
        Their cumulative log-scores, falling.
    finished : list of (float, Tensor)
        Score and tokens (end token included) of drafts that have ended, best first.
    """

    def __init__(self, k: int, stop: frozenset[int]):
        self.k, self.stop = k, torch.tensor(sorted(stop), dtype=torch.int64)
        self.tokens = torch.empty(1, 0, dtype=torch.int64)
        self.scores = torch.zeros(1, dtype=torch.float64)
        self.finished: list[tuple[float, Tensor]] = []

    def grow(self, candidates: Tensor, gains: Tensor) -> Tensor:
        """Extend every draft by its candidates and keep the k best; returns the parents [m] of the survivors.

        Of the 2k best extensions those that end the text move to the finished list, if they are among the k best
        (as in the beam search of transformers; tensor2tensor and the official code take them from all 2k, so that a
        single draft could end where greedy decoding goes on), and the k best others survive.  Extensions of score
        minus infinity do not.

        Parameters
        ----------
        candidates : Tensor [m, n] int64
            Next tokens of each draft.
        gains : Tensor [m, n] float64
            Log-score that each adds, not above 0.
        """
        totals = (self.scores[:, None] + gains).flatten()
        best = totals.sort(dim=0, descending=True, stable=True).indices[: 2 * self.k]
        best = best[totals[best] > -torch.inf]
        parents, scores = best // gains.shape[1], totals[best]
        grown = torch.cat((self.tokens[parents], candidates.flatten()[best, None]), 1)
        ends = torch.isin(grown[:, -1], self.stop)
        ended = ends[: self.k].nonzero()[:, 0].tolist()
        self.finished += [(float(scores[j]), grown[j]) for j in ended]
        self.finished = sorted(self.finished, key=lambda draft: -draft[0])[: self.k]
        alive = (~ends).nonzero()[: self.k, 0]
        self.tokens, self.scores = grown[alive], scores[alive]
        return parents[alive]

    @property
    def done(self) -> bool:
        """Whether no unfinished draft is left, or none can still enter the full finished list (scores never rise)."""
        full = len(self.finished) == self.k
        return not len(self.tokens) or full and self.finished[-1][0] >= float(self.scores[0])

    def keep_best(self) -> None:
        """Forget all unfinished drafts but the best."""
        self.tokens, self.scores = self.tokens[:1], self.scores[:1]

    def ranking(self) -> tuple[list[Tensor], list[float]]:
        """The k drafts of lowest perplexity, finished or not, and the mean log-score of a token of each (falling)."""
        pool = [*self.finished, *zip(self.scores.tolist(), self.tokens, strict=True)]
        means = [(score / len(tokens), tokens) for score, tokens in pool if len(tokens)]
        means = sorted(means, key=lambda draft: -draft[0])[: self.k]
        return [tokens for _, tokens in means], [mean for mean, _ in means]


def largest(logits: Tensor, n: int) -> Tensor:
    """Indices of the n largest of each row ([..., V] -> [..., n]), largest first, the lower first among equals."""
    kept = logits.topk(min(n, logits.shape[-1]), -1).indices.sort(-1).values
    order = logits.gather(-1, kept).sort(dim=-1, descending=True, stable=True).indices
    return kept.gather(-1, order)
