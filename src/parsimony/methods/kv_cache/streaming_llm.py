"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): attention sinks and a sliding window."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.budget import entries
from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
from parsimony.models.decoder import Decoder
from parsimony.models.language import Language


class StreamingLLM:
    """Keeps the first tokens and the last ones, also while decoding.

    Parameters
    ----------
    budget : float
    unit : {"tokens", "ratio", "bytes"}
    sinks : int
    positions : {"cache", "text"}
        Keys stand at their place in the cache, as published, or stay where they stood in the text, as other
        libraries have it.
    """

    def __init__(self, budget: float, unit: str = "ratio", sinks: int = 4, positions: str = "cache"):
        self.budget, self.unit, self.sinks, self.positions = budget, unit, sinks, positions

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        decoder = model.decoder if self.positions == "cache" else None
        return Holder(model, lambda prefilled: self.hold(prefilled, decoder))

    def hold(self, prefilled: Prefilled, decoder: Decoder | None = None) -> list[Held]:
        """Every layer with the same budget."""
        C = entries(self.budget, self.unit, prefilled)
        return [
            Sliding(keys, values, C, min(self.sinks, C), decoder)
            for keys, values in zip(prefilled.keys, prefilled.values, strict=True)
        ]


class Sliding(Held):
    """The first ``sinks`` and the last entries, ``most`` in all."""

    def __init__(self, keys: Tensor, values: Tensor, most: int, sinks: int, decoder: Decoder | None):
        if decoder is not None:  # unrotated, so that each step can put them where they stand then
            keys = decoder.rope(keys[None], -torch.arange(keys.shape[1], device=keys.device)[None])[0]
        super().__init__(keys, values)
        self.most, self.sinks, self.decoder, self.next = most, sinks, decoder, keys.shape[1]
        self.slide()

    def slide(self) -> None:
        """Drop what stands between the sinks and the last entries."""
        if self.count > self.most:
            last = torch.arange(self.count - (self.most - self.sinks), self.count)
            kept = torch.cat((torch.arange(self.sinks), last)).to(self.buffer.device)
            self.keep(kept.expand(self.buffer.shape[1], -1))

    def append(self, key: Tensor, value: Tensor) -> None:
        if self.decoder is not None:
            key = self.decoder.rope(key[None, :, None], torch.tensor([[-self.next]], device=key.device))[0, :, 0]
            self.next += 1
        super().append(key, value)
        self.slide()

    def seen(self, q: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.decoder is None:
            return self.keys, self.values, None
        entries = torch.arange(self.count, device=q.device)
        places = position - self.count + 1 + entries  # the newest is where the query is
        return self.decoder.rope(self.keys.to(q.dtype)[None], places[None])[0], self.values, None
