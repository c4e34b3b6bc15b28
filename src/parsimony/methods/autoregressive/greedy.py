"""Greedy autoregressive decoding: the reference of every lossless method."""

from __future__ import annotations

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.models.language import Language


class Greedy:
    """One token per forward pass, always the most probable one (the first index among equals).

    It is the shared verify loop without a drafter, so that the methods compared with it differ in their drafts alone.
    """

    def build(self, model: Language, inputs: Inputs) -> VerifyLoop:
        """The loop that proposes nothing."""
        return VerifyLoop(model)
