"""Contexts that come over a link: when could the first token be predicted, and what of?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from parsimony.benchmarks.cache_continuation import CacheContinuation
from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.methods.kv_cache.held import Prefilled
from parsimony.methods.kv_cache.streaming import Arriving, arrival, trace
from parsimony.models.clock import now


class ContextLoading(CacheContinuation):
    """Contexts of `CacheContinuation`, sent in chunks over simulated links; each category is a range of bandwidths.

    Nothing is sent and nobody waits: bytes, decoding and computing are real and measured here, the link is a seeded
    trace, uniform in the range.  A method that chooses what it sends tells ``first_token_seconds`` itself; what any
    other holds is sent in equal parts and decoded in the time that it tells, or none.  Recorded are totals over the
    links; the predictions are those over what came over the first.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        Texts of each source, each with every range.
    context, scored : int
        Tokens of the context and of what is scored behind it.
    chunk : int
        Tokens sent at once, of which the context is a multiple.
    low, high : list of int
        Ends of each range in Mb/s.
    links : int
        Traces an item.
    slo : float
        Seconds until the first token is due.
    """

    def __init__(self, dtype: str, timed: bool, items: int, context: int, scored: int, chunk: int, low: list[int],
                 high: list[int], links: int, slo: float):  # fmt: skip
        super().__init__(dtype, timed, items, context, scored)
        self.chunk, self.links, self.slo = chunk, links, slo
        self.ranges = {f"mbps_{a}_{b}": (a / 1000, b / 1000) for a, b in zip(low, high, strict=True)}

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        texts = super().items(paths, seed)
        return [replace(text, id=f"{name}_{text.id}", category=name) for text in texts for name in self.ranges]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        reasons = list(super().skipped(missing).values())
        return dict.fromkeys(self.ranges, reasons[0]) if len(reasons) == 3 else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        model, rng = bench.model(self.dtype), bench.rng(item.id)
        ids = model.encode(item.turns[0])[: self.context]
        cache, parts = model.decoder.cache(len(ids)), ids[None].split(self.chunk, 1)
        model.decoder.prefill(parts[0], model.decoder.cache(len(ids)))  # warms up
        began = now(model.decoder.device)
        with torch.inference_mode():
            for part in parts:
                model.decoder.prefill(part, cache)
        N = len(parts)
        self.way = {
            "chunk": self.chunk,
            "links": np.stack([trace(N, rng, *self.ranges[item.category]) for _ in range(self.links)]),
            "slo": self.slo,
            "recompute": (now(model.decoder.device) - began) / N,
            "text_bytes": len(model.decode(ids).encode()) / N,
        }
        return super().measure(item, bench)

    def arrived(self, prefilled: Prefilled) -> Arriving:
        return Arriving(**vars(prefilled), **self.way)

    def further(self, numbers: dict[str, float], system, prefilled: Arriving, item) -> dict[str, float]:
        told = {"recompute_seconds": prefilled.recompute}
        if "first_token_seconds" not in numbers:
            n, N = prefilled.links.shape
            size, decode = numbers["compressed_bytes"] / N, numbers.get("decode_seconds", 0.0) / N
            ends = [arrival(["held"] * N, {"held": [size] * N}, link, None, {"held": decode}, 0.0)[1]
                    for link in prefilled.links]  # fmt: skip
            late = sum(end > self.slo for end in ends)
            told |= {"deliveries": n, "first_token_seconds": sum(ends), "late": late}
            told |= {"text_chunks": 0, "chunks": n * N}
        return told
