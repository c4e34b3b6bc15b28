"""Prompt lookup decoding: the draft is what followed the newest n-gram where it first occurred."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.budget import Budget, RunningOdds
from parsimony.methods.autoregressive.verify import Draft, VerifyLoop
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
    tree_budget : {"all", "auto"}
        "auto" verifies as much of a draft as pays on this machine, given how often drafts behind n-grams of that
        length have been right so far (our addition; the counts persist from prompt to prompt).
    """

    def __init__(self, draft_tokens: int = 10, max_ngram: int = 2, tree_budget: str = "all"):
        self.draft_tokens, self.max_ngram, self.tree_budget = draft_tokens, max_ngram, tree_budget

    def build(self, model: Language, inputs: Inputs) -> VerifyLoop:
        """The shared loop with an n-gram drafter."""
        auto = self.tree_budget == "auto"
        drafter = NgramDrafter(self.draft_tokens, self.max_ngram, model.stop_ids, auto)
        return VerifyLoop(model, drafter, Budget.measured(inputs, model) if auto else None)


class NgramDrafter:
    """Looks the newest n-gram up in the tokens of the sequence so far."""

    reads_prompt = False

    def __init__(self, draft_tokens: int, max_ngram: int, stop: frozenset[int], learns: bool = False):
        self.draft_tokens, self.max_ngram = draft_tokens, max_ngram
        self.stop = torch.tensor(sorted(stop))
        self.context = torch.empty(0, dtype=torch.int64)
        self.running = RunningOdds(max_ngram + 1, draft_tokens) if learns else None

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        self.context = torch.cat((prompt, torch.tensor([token])))
        if self.running:
            self.running.start()

    def propose(self, room: int) -> Draft:
        n, draft = self._continuation()
        draft = draft[: max(room, 0)]
        if self.running is None or not len(draft):
            return Draft.line(draft)
        self.running.propose(n, draft)
        return Draft.line(draft, self.running.odds(n, len(draft)))

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        self.context = torch.cat((self.context, gained))
        if self.running:
            self.running.observe(gained.tolist())

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.running.counts.clone()} if self.running else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        if self.running:
            counts = self.running.counts
            self.running.counts = state["counts"].clone() if state else torch.zeros_like(counts)

    def _continuation(self) -> tuple[int, Tensor]:
        """Length of the n-gram that was found (0 if none) and what followed it."""
        x = self.context
        for n in range(min(self.max_ngram, len(x) - 1), 0, -1):
            # The last window is the n-gram itself; nothing follows it.
            (matches,) = (x[:-1].unfold(0, n, 1) == x[-n:]).all(1).nonzero(as_tuple=True)
            if len(matches):
                begin = int(matches[0]) + n
                draft = x[begin : begin + self.draft_tokens]
                ends = torch.isin(draft, self.stop).nonzero()
                return n, draft[: int(ends[0])] if len(ends) else draft
        return 0, x[:0]
