"""Negative log-likelihood of encyclopaedia text: what a change to model or cache does to the predictions."""

from __future__ import annotations

from parsimony.benchmarks import prompts
from parsimony.interfaces import Item, Outcome, Workbench


class WikiNll:
    """Per-token likelihoods of encyclopaedia extracts.

    The sum over tokens, their number and the bytes of text they stand for are recorded, so that bits per byte and
    perplexity are ratios of totals.  The first token of a text has no context and is not scored.

    Parameters
    ----------
    dtype : str
    timed : bool
        Whether it needs the machine for itself.
    items : int
    min_characters : int
        Shorter extracts are left out.
    max_tokens : int
        Longer extracts are cut.
    """

    def __init__(self, dtype: str, timed: bool, items: int, min_characters: int, max_tokens: int):
        self.dtype, self.timed, self.count = dtype, timed, items
        self.min_characters, self.max_tokens = min_characters, max_tokens

    def items(self, paths, seed: int) -> list[Item]:
        if "wiki_summaries" not in paths:
            return []
        return prompts.wiki_texts(paths["wiki_summaries"], self.count, self.min_characters, seed)

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {"encyclopaedia": missing["wiki_summaries"]} if "wiki_summaries" in missing else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        ids = model.encode(item.turns[0])[: self.max_tokens]
        scored = len(model.decode(ids[1:]).encode())
        for point in bench.points:
            nll = bench.system(point, self.dtype).nll(ids)
            outcome.outputs[point, "nll"] = nll.tolist()
            outcome.numbers.append((point, "nll", float(nll.sum()), "nats"))
            outcome.numbers += [(point, "tokens", len(nll), "tokens"), (point, "bytes", scored, "bytes")]
        return outcome
