"""Long answers over a compressed prompt: what compression does step by step while decoding goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from parsimony.benchmarks import prompts
from parsimony.benchmarks.cached_context import CachedContext
from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.methods.kv_cache.held import Abreast, Context, Prefilled

CODE = "parsimony.methods.autoregressive.verify.VerifyLoop"

KINDS = ("summarisation", "question_answering", "free_writing")
"""Reported categories: requests that are answered at length."""


class CacheGeneration(CachedContext):
    """Chat requests whose greedy answer under the full cache is run again, token by token, over the compressed one.

    Both predict the same token at ``same_top`` of ``scored`` places.  Greedy decoding over the compressed cache writes
    the same text up to the first place where they differ, since all that came before is equal, so ``agreed`` is what a
    free run agrees on; what it writes behind that place is not measured.  ``peak_bytes`` and ``final_bytes`` are live
    tensors while the answer grows and at its end, ``final_whole_bytes`` the full cache in half precision there.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        A category.
    characters : int
        Longer documents end at a sentence within so many.
    limit : int
        Tokens of an answer.
    """

    def __init__(self, dtype: str, timed: bool, items: int, characters: int, limit: int):
        self.dtype, self.timed, self.count, self.characters, self.limit = dtype, timed, items, characters, limit

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        return prompts.spec_mix(paths, dict.fromkeys(KINDS, self.count), seed, self.characters)

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        assets = {kind: prompts.CATEGORIES[kind][0] for kind in KINDS}
        return {kind: missing[asset] for kind, asset in assets.items() if asset in missing}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        ids = model.chat([{"role": "user", "content": item.turns[0]}])
        kept = bench.kept(
            CODE,
            [self.dtype, self.limit, ids.tolist()],
            lambda: {"answer": VerifyLoop(model).generate(ids, self.limit, np.random.default_rng(0)).tokens},
        )
        self.true = kept["answer"]
        self.measure_all(outcome, bench, ids, item)
        return outcome

    def follow(self, contexts: list[Context], item) -> list[dict[str, float]]:
        abreast, B = Abreast(contexts), len(contexts)
        rows, peaks = (
            [torch.stack([context.logits for context in contexts])],
            [context.nbytes() for context in contexts],
        )
        for token in self.true[:-1]:
            rows.append(abreast.extend(token[None])[:, 0])
            peaks = [max(peak, context.nbytes()) for peak, context in zip(peaks, contexts, strict=True)]
        found = torch.stack(rows, 1).float().log_softmax(-1).cpu()  # [B, n, V]
        same = found.argmax(-1) == self.true
        nll = -found.gather(2, self.true.expand(B, -1)[..., None]).sum((1, 2))
        return [
            {
                "scored": len(self.true),
                "same_top": float(same[b].sum()),
                "agreed": float(same[b].cumprod(0).sum()),
                "nll": float(nll[b]),
                "peak_bytes": peaks[b],
                "final_bytes": contexts[b].nbytes(),
            }
            for b in range(B)
        ]

    def further(self, numbers: dict[str, float], system, prefilled: Prefilled, item) -> dict[str, float]:
        grown = 1 + numbers["steps"] / len(prefilled)
        return {"final_whole_bytes": prefilled.nbytes * grown}
