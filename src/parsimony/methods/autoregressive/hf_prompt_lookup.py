"""Prompt lookup decoding as ``transformers`` runs it, on the same weights and dtype: the peer of `prompt_lookup`."""

from __future__ import annotations

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.hf_generate import HfGenerator
from parsimony.models.language import Language


class HfPromptLookup:
    """``generate(prompt_lookup_num_tokens=..., max_matching_ngram_size=...)`` of ``transformers``.

    Parameters
    ----------
    draft_tokens : int
        Longest draft.
    max_ngram : int
        Longest n-gram that is looked up.
    """

    def __init__(self, draft_tokens: int = 10, max_ngram: int = 2):
        self.draft_tokens, self.max_ngram = draft_tokens, max_ngram

    def build(self, model: Language, inputs: Inputs) -> HfGenerator:
        """The generator of ``transformers`` with an n-gram drafter."""
        return HfGenerator(model, prompt_lookup_num_tokens=self.draft_tokens, max_matching_ngram_size=self.max_ngram)
