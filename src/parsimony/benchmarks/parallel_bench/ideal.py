"""The exact model of a query: the marginals of its equally likely right answers, given what is unmasked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Ideal:
    """Stands in for the passes of a network (`parsimony.methods.diffusion.caches.Exact`).

    Parameters
    ----------
    answers : Tensor [m, L] int64
        Every right answer, filled up to the length of the masks.
    prompt : int
        Tokens in front of the masks.
    vocabulary : int
    """

    stale, device = False, torch.device("cpu")

    def __init__(self, answers: Tensor, prompt: int, vocabulary: int, mask: int):
        self.answers, self.prompt, self.vocabulary, self.mask = answers, prompt, vocabulary, mask
        self.rows = self.full = self.partial = 0

    def refresh(self, x: Tensor, begin: int) -> Tensor:
        """Log-probabilities [T - begin, V] of every position from ``begin`` on.

        Where no right answer agrees with what is unmasked, those that agree most decide.
        """
        self.full, self.rows = self.full + 1, self.rows + len(x)
        known = x[self.prompt :]
        agree = ((self.answers == known) & (known != self.mask)).sum(1)
        rest = self.answers[agree == agree.max()]
        return F.one_hot(rest, self.vocabulary).double().mean(0).log()[begin - self.prompt :]

    def enter(self, begin: int, stop: int) -> None:
        """Nothing is cached."""

    def step(self, x: Tensor, begin: int, stop: int) -> Tensor:
        """Log-probabilities [stop - begin, V] of the block."""
        return self.refresh(x, begin)[: stop - begin]

    def steps(self, states: Tensor, begin: int, stop: int) -> Tensor:
        """Log-probabilities [d, stop - begin, V] of the block in each of ``states`` [d, T]."""
        return torch.stack([self.step(x, begin, stop) for x in states])

    def nbytes(self) -> int:
        """Nothing is cached."""
        return 0
