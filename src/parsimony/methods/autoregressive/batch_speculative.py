"""Batch speculative decoding: EQSPEC and EXSPEC (Zhang et al. 2025, arXiv 2510.22876)."""

from __future__ import annotations

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.batch_verify import BatchLoop, PooledLoop
from parsimony.methods.autoregressive.draft_model import DraftNetwork
from parsimony.models.language import Language


class BatchSpeculative:
    """Draft-model speculation on a batch whose rows accept unequally many tokens.

    EQSPEC realigns tokens, positions and KV cache of all rows after every round; EXSPEC batches sequences of a pool
    whose stored lengths agree, and realigns only where too few do.  Output is greedy decoding's for any batch.

    Parameters
    ----------
    scheduler : {"eqspec", "exspec"}
    network, layers, draft_tokens
        Draft network and K, as in `DraftModel`.
    bonus : bool
        K + 1 tokens for a row whose drafts are all right (textbook), or at most K (the paper's code).
    window : int
        EXSPEC: how many unfinished sequences it chooses from.
    sort : bool
        EXSPEC: whether it takes prompts shortest first.
    """

    def __init__(
        self,
        scheduler: str = "eqspec",
        network: str = "distilled",
        layers: int = 6,
        draft_tokens: int = 5,
        bonus: bool = True,
        window: int = 32,
        sort: bool = False,
    ):
        self.scheduler, self.network, self.layers, self.draft_tokens = scheduler, network, layers, draft_tokens
        self.bonus, self.window, self.sort = bonus, window, sort

    def build(self, model: Language, inputs: Inputs) -> BatchLoop:
        """The batched loop with one of the two schedulers."""
        network = DraftNetwork.of(model, inputs, self.network, self.layers)
        if self.scheduler == "eqspec":
            return BatchLoop(model, network, self.draft_tokens, self.bonus)
        return PooledLoop(model, network, self.draft_tokens, self.bonus, self.window, self.sort)
