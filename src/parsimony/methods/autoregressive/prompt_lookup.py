"""Prompt lookup decoding: the draft is what followed the newest n-gram where it first occurred."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.verify import Tree, VerifyLoop
from parsimony.models.language import Language


class PromptLookup:
    """Prompt lookup as ``transformers`` 5 defines it (`PromptLookupCandidateGenerator`).

    Among the n-grams that end the context, the longest one (at most ``max_ngram``) that occurred before is looked up;
    the draft is the up to ``draft_tokens`` tokens behind its **leftmost** occurrence, cut in front of the first token
    that ends a turn.  The original (A. Saxena, 2023) uses n-grams of 3 and wants a full continuation; ``transformers``
    uses 2 and takes a shorter one as well.

    Parameters
    ----------
    draft_tokens : int
        Longest draft.
    max_ngram : int
        Longest n-gram that is looked up.
    """

    def __init__(self, draft_tokens: int = 10, max_ngram: int = 2):
        self.draft_tokens, self.max_ngram = draft_tokens, max_ngram

    def build(self, model: Language, inputs: Inputs) -> VerifyLoop:
        """The shared loop with an n-gram drafter."""
        return VerifyLoop(model, NgramDrafter(self.draft_tokens, self.max_ngram, model.stop_ids))


class NgramDrafter:
    """Looks the newest n-gram up in the tokens of the sequence so far."""

    reads_prompt = False

    def __init__(self, draft_tokens: int, max_ngram: int, stop: frozenset[int]):
        self.draft_tokens, self.max_ngram = draft_tokens, max_ngram
        self.stop = torch.tensor(sorted(stop))
        self.context = torch.empty(0, dtype=torch.int64)

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        self.context = torch.cat((prompt, torch.tensor([token])))

    def propose(self, room: int) -> tuple[Tensor, Tree]:
        draft = self._continuation()[: max(room, 0)]
        return draft, Tree.line(len(draft))

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        self.context = torch.cat((self.context, gained))

    def _continuation(self) -> Tensor:
        x = self.context
        for n in range(min(self.max_ngram, len(x) - 1), 0, -1):
            # The last window is the n-gram itself; nothing follows it.
            (matches,) = (x[:-1].unfold(0, n, 1) == x[-n:]).all(1).nonzero(as_tuple=True)
            if len(matches):
                begin = int(matches[0]) + n
                draft = x[begin : begin + self.draft_tokens]
                ends = torch.isin(draft, self.stop).nonzero()
                return draft[: int(ends[0])] if len(ends) else draft
        return x[:0]
