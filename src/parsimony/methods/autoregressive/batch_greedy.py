"""Greedy decoding of several prompts at once."""

from __future__ import annotations

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.batch_verify import BatchLoop
from parsimony.models.language import Language


class BatchGreedy:
    """One token a row and forward pass; rows of unequal length are padded on the left.

    It is the shared batched loop without a draft network, so that batched speculation differs in its drafts alone.
    """

    def build(self, model: Language, inputs: Inputs) -> BatchLoop:
        """The loop that proposes nothing."""
        return BatchLoop(model, None, 0)
