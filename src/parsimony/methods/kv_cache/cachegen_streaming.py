"""CacheGen's streaming (Liu et al., SIGCOMM 2024, arXiv 2310.07240): a form for each chunk, chosen while it is sent.

A simulation: chunks are really encoded and decoded, the link is a trace of bandwidths (`streaming.Arriving`).
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.cachegen import CacheGen
from parsimony.methods.kv_cache.cachegen_container import decode
from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
from parsimony.methods.kv_cache.streaming import RULES, TEXT, Arriving, arrival, deliver
from parsimony.models.language import Language


class CacheGenStreaming:
    """Sends each chunk at one of several levels, or as text whose cache is computed again.

    What is held is what came over the first of the links.  Its first layer's ``numbers`` are totals over all of them:
    ``deliveries``, ``first_token_seconds``, ``late`` ones, and chunks that were ``text_chunks``.  Seconds are those of
    `streaming.arrival` for both rules, with the decoding time of each level as measured, so that rules are compared by
    one clock.  Chunks of text are computed exactly, as if what came before them had not been compressed.

    Parameters
    ----------
    levels : list of {1, 2, 3, "70b", "int8", "int4"}
        Of `CacheGen`, the best first; none to send text alone.
    text : bool
        Whether chunks may be sent as text.
    rule : {"slots", "budget"}
        The official code's or the paper's, see `streaming.deliver`.
    coding : str
        Of `CacheGen`.

    Raises
    ------
    UserError
        For a rule that there is not, nothing to send, and what `CacheGen` refuses.
    """

    def __init__(self, levels: list[int | str], text: bool = True, rule: str = "budget", coding: str = "channel"):
        if rule not in RULES or not levels and not text:
            raise UserError(f"cachegen_streaming: rule {rule!r} is not one of {', '.join(RULES)}, or neither levels "
                            "nor text are sent; mend its params")  # fmt: skip
        self.levels, self.text, self.rule, self.coding = levels, text, rule, coding
        for level in levels:
            CacheGen(level, coding=coding)

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        return Holder(model, self.hold)

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """What came over the first link, one `Held` a layer; `UserError` for a context that is not `Arriving`."""
        if not isinstance(prefilled, Arriving):
            raise UserError("cachegen_streaming: this benchmark's contexts come over no link; use context_loading")
        keys, values = (x.float().cpu().numpy() for x in (prefilled.keys, prefilled.values))
        chunks, sizes, seconds = {}, {}, {}
        for level in self.levels:
            name = str(level)
            chunks[name] = CacheGen(level, coding=self.coding, chunk=prefilled.chunk).chunks(keys, values)
            sizes[name] = [len(chunk) for chunk in chunks[name]]
            began = perf_counter()
            decode(b"".join(chunks[name]))
            seconds[name] = (perf_counter() - began) / len(chunks[name])
        recompute = prefilled.recompute if self.text else None
        costs = recompute, seconds, prefilled.text_bytes
        sent = [
            deliver(sizes, bandwidths, prefilled.slo, recompute, self.rule, *costs[1:]).levels
            for bandwidths in prefilled.links
        ]
        ends = [arrival(forms, sizes, link, *costs)[1] for forms, link in zip(sent, prefilled.links, strict=True)]
        texts = sum(forms.count(TEXT) for forms in sent)
        in_levels = sum(sizes[form][n] for forms in sent for n, form in enumerate(forms) if form != TEXT)
        layers = self.arrived(prefilled, chunks, sent[0], keys, values)
        layers[0].numbers = {
            "transport_bytes": (in_levels + texts * prefilled.text_bytes) / len(sent),
            "deliveries": len(sent),
            "first_token_seconds": sum(ends),
            "late": sum(end > prefilled.slo for end in ends),
            "text_chunks": texts,
            "chunks": prefilled.links.size,
        }
        return layers

    def arrived(self, prefilled: Arriving, chunks: dict, forms: tuple[str, ...], keys, values) -> list[Held]:
        """One `Held` a layer, of chunks in these forms."""
        whole = np.stack((keys, values)).astype(np.float16)  # [2, L, H, T, d]
        if chunks:
            best = next(iter(chunks))  # in the place of text, which is put in below
            parts = [chunks[best if form == TEXT else form][n] for n, form in enumerate(forms)]
            exact, whole = whole, np.stack(decode(b"".join(parts)))
            for n, form in enumerate(forms):
                if form == TEXT:
                    of_chunk = slice(n * prefilled.chunk, (n + 1) * prefilled.chunk)
                    whole[:, :, :, of_chunk] = exact[:, :, :, of_chunk]
        return [Held(*layer) for layer in zip(*torch.from_numpy(whole).to(prefilled.keys.device), strict=True)]
