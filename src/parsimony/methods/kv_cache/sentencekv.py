"""SentenceKV (Zhu et al., COLM 2025, arXiv 2504.00970): sentences are fetched by the mean of their keys.

A prompt is pruned as SnapKV does, to a multiple of the budget, and what is left is pooled in sentences.  At every step
attention sees the sentences that suit the queries of the current output sentence best.

This follows the paper where the released code differs: what is pooled really leaves for a host store (the code masks
dense attention), heads are not repeated (a key-value head chooses for its group of query heads; the code chooses for
each), the first entry behind the sinks is not lost, and output tokens are seen until their sentence closes (in the
code only the newest are).  As in the code, the first step of an output sentence sees all that pruning left.  Those
entries pass through attention a layer at a time and none of them stays, so they are counted as moved, not as held.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.eviction import with_window
from parsimony.methods.kv_cache.held import Holder, Prefilled
from parsimony.methods.kv_cache.retrieval import Retrieving, limit, means
from parsimony.methods.kv_cache.scores import pooled, received
from parsimony.models.language import Language
from parsimony.models.tokenizer import Tokenizer

MARKS = (".", "!", "?", "...", "。", "！", "？", "…", "\n\n", "\n\n\n")
"""What ends a sentence, where the tokenizer has a token for it, with and without a space on either side."""

WINDOW, KERNEL, ENDS = 32, 7, 32
"""Queries that pruning watches, width of its pooling, and entries at either end that are always seen."""


class SentenceKV:
    """Prunes a prompt, then fetches sentences of what is left.

    Parameters
    ----------
    budget : float
        tau, entries that a step attends to; an eighth of it, at most 32, are for the first entries and as many for
        the newest.
    unit : {"tokens", "ratio", "bytes"}
    factor : float
        s: pruning leaves s * tau entries.
    units : {"sentences", "chunks"}
        Chunks are all as long as the prompt's sentences on average.
    query : {"mean", "last"}
        Over the current output sentence, or that of the step alone.
    first : {"all", "query"}
        What the first step of an output sentence sees: all that pruning left, or what its own query chooses.
    """

    def __init__(
        self, budget: float = 1024, factor: float = 3, units: str = "sentences", query: str = "mean",
        first: str = "all", unit: str = "tokens",
    ):  # fmt: skip
        known = units in ("sentences", "chunks") and query in ("mean", "last") and first in ("all", "query")
        if budget <= 0 or factor < 1 or not known:
            raise UserError(
                f"sentencekv: budget {budget} is not above 0, factor {factor} below 1, or {units!r}, {query!r}, "
                f"{first!r} are not sentences or chunks, mean or last, all or query; mend its params"
            )
        self.budget, self.unit, self.factor = budget, unit, factor
        self.units, self.query, self.first = units, query, first

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        ends = sentence_ends(model.tokenizer)
        return Holder(model, lambda prefilled: self.hold(prefilled, ends))

    def hold(self, prefilled: Prefilled, ends: Tensor) -> list[Sentences]:
        """One `Sentences` a layer; ``ends`` ([m] int64) are the tokens that end a sentence."""
        T = len(prefilled)
        sentence, chunk = sentences(prefilled.ids, ends), 0
        if self.units == "chunks":
            chunk = max(round(T / (int(sentence[-1]) + 1)), 1)
            sentence = torch.arange(T) // chunk
        tau, count = limit(self.budget, self.unit, prefilled), int(sentence[-1]) + 1
        return [
            Sentences(*self.pruned(prefilled, layer, sentence, tau), count, tau, ends, chunk, self)
            for layer in range(len(prefilled.keys))
        ]

    def pruned(self, prefilled: Prefilled, layer: int, sentence: Tensor, tau: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [H, s tau, d] of the entries that stay, and the sentence [H, s tau] of each."""
        K, V, T = prefilled.keys[layer], prefilled.values[layer], len(prefilled)
        C = min(int(self.factor * tau), T)
        w = min(WINDOW, C)
        kept = torch.arange(T, device=K.device).expand(K.shape[0], -1)
        if C < T:
            kept = with_window(pooled(received(prefilled, layer, T - w)[:, : T - w], KERNEL, "max"), C - w, w)
        wide = kept[:, :, None].expand(-1, -1, K.shape[2])
        return K.gather(1, wide), V.gather(1, wide), sentence.to(K.device)[kept]


class Sentences(Retrieving):
    """One layer."""

    def __init__(
        self, keys: Tensor, values: Tensor, labels: Tensor, count: int, tau: int, ends: Tensor, chunk: int,
        settings: SentenceKV,
    ):  # fmt: skip
        H, C, d = keys.shape
        always = min(ENDS, tau // 8)
        first = min(always, C)
        tail = max(C - always, first)
        super().__init__(keys, values, labels[:, first:tail], [means(keys, labels, count)], first, tau - 2 * always)
        self.closed = [labels[0, tail:]]  # inside the window, so the same for all heads
        self.tau, self.always, self.ends, self.chunk, self.settings = tau, always, ends, chunk, settings
        self.whole = tau >= C
        self.sum, self.queries, self.ending = keys.new_zeros(H, d, dtype=torch.float32), 0, False

    def read(self, token: int) -> None:
        self.ending = bool((self.ends == token).any())

    def seen(self, q: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
        s, n = self.settings, self.labels.shape[1]
        mine = q.float().mean(1)  # [H, d]; a sum of dot products over a group is that with the sum
        self.sum, self.queries = self.sum + mine, self.queries + 1
        if self.queries == 1 and s.first == "all":
            return self.beside(self.fetch(torch.arange(n, device=q.device).expand(len(q), -1)))
        query = self.sum / self.queries if s.query == "mean" else mine
        scores = (self.index[0].float() @ query[:, :, None])[:, :, 0]
        room = max(self.tau - self.sinks.shape[2] - self.count, 0)
        self.fetched = self.fetch(self.choose(scores, room))
        return self.beside(self.fetched)

    def watch(self, q: Tensor, weights: Tensor) -> None:
        """Close the output sentence behind its last token."""
        if self.open == self.chunk if self.chunk else self.ending:
            sentence = self.keys[:, -self.open :]
            one = torch.zeros(sentence.shape[:2], dtype=torch.int64, device=sentence.device)
            self.close(one[0], [means(sentence, one, 1)])
            self.sum, self.queries = torch.zeros_like(self.sum), 0
        self.leave(self.always)

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        yield self.sum


def sentence_ends(tokenizer: Tokenizer) -> Tensor:
    """Ids ([m] int64) of all single tokens that are one of `MARKS`, spaces aside."""
    written = [form for mark in MARKS for form in (mark, mark + " ", " " + mark)]
    tokens = map(tokenizer.encode, written)
    return torch.tensor(sorted({ids[0] for ids in tokens if len(ids) == 1}), dtype=torch.int64)


def sentences(ids: Tensor, ends: Tensor) -> Tensor:
    """Sentence ([T] int64, from 0 on) of each token ([T] int64); a sentence ends with the token that ends it."""
    end = torch.isin(ids, ends).long()
    return end.cumsum(0) - end
