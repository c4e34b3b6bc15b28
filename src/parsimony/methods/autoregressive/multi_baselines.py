"""What superposed drafts are compared with: nucleus samples, one by one or in a batch, and batched beam search."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.interfaces import Cost, Drafts, Inputs
from parsimony.methods.autoregressive.drafts import Beam, largest
from parsimony.models.language import Language


class Nucleus:
    """Independent samples from the smallest set of tokens that holds probability ``p`` (Holtzman et al. 2020).

    The logits are divided by the temperature first, as in the experiments of Superposed Decoding (p = 0.9, T = 0.6).
    The prompt is run once, whether its samples are drawn one after the other or in one batch; every sample has its own
    stream of random numbers, so that both ways draw the same texts (up to rounding).

    Parameters
    ----------
    drafts : int
    p, temperature : float
    batched : bool
    """

    def __init__(self, drafts: int = 3, p: float = 0.9, temperature: float = 0.6, batched: bool = False):
        self.drafts, self.p, self.temperature, self.batched = drafts, p, temperature, batched

    def build(self, model: Language, inputs: Inputs) -> NucleusSampler:
        return NucleusSampler(model, self)


class NucleusSampler:
    """A `MultiGenerator`; its drafts come in the order of their streams, and no score ranks one before another."""

    def __init__(self, model: Language, settings: Nucleus):
        self.model, self.settings = model, settings

    def generate_many(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Drafts:
        """``drafts`` samples; `Cost.passes` counts what follows the one prefill."""
        cost, k, began = Cost(), self.settings.drafts, perf_counter()
        if limit < 1:
            return Drafts([], [], cost)
        decoder, prompt = self.model.decoder, len(prompt_ids)
        cache = decoder.cache(prompt + limit)
        logits = decoder.prefill(prompt_ids[None], cache)[:, -1]
        cost.prefill_seconds, began = perf_counter() - began, perf_counter()
        streams = rng.spawn(k)
        tokens: list[list[int]] = [[] for _ in range(k)]
        for rows in [list(range(k))] if self.settings.batched else [[row] for row in range(k)]:
            cache.truncate(prompt)
            cache.select(torch.zeros(len(rows), dtype=torch.int64))
            now = logits.expand(len(rows), -1)
            while True:
                for row, token in zip(rows, self._draw(now, [streams[row] for row in rows]), strict=True):
                    tokens[row].append(token)
                alive = [n for n, row in enumerate(rows) if tokens[row][-1] not in self.model.stop_ids]
                if not alive or len(tokens[rows[0]]) == limit:
                    break
                if len(alive) < len(rows):
                    cache.select(torch.tensor(alive))
                    rows = [rows[n] for n in alive]
                newest = torch.tensor([[tokens[row][-1]] for row in rows])
                now = decoder.forward(newest, cache, want="last")[:, -1]
                cost.passes += 1
                cost.rows += len(rows)
            cost.cache_bytes = max(cost.cache_bytes, cache.nbytes())
        cost.verify_seconds = perf_counter() - began
        return Drafts([torch.tensor(row) for row in tokens], [0.0] * k, cost)

    def _draw(self, logits: Tensor, streams: list[np.random.Generator]) -> list[int]:
        """One token for each row of ``logits`` [m, V]."""
        p = (logits.double() / self.settings.temperature).softmax(-1).cpu()
        p, order = p.sort(dim=-1, descending=True, stable=True)
        total = p.cumsum(-1)
        size = (total < self.settings.p).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)  # last token of the nucleus
        mark = torch.tensor([[stream.random()] for stream in streams]) * total.gather(-1, size)
        at = torch.minimum((total <= mark).sum(-1, keepdim=True), size)
        return order.gather(-1, at)[:, 0].tolist()


class BeamSearch:
    """Beam search with all beams in one batch; with one beam it is greedy decoding.

    Parameters
    ----------
    beams : int
    """

    def __init__(self, beams: int = 3):
        self.beams = beams

    def build(self, model: Language, inputs: Inputs) -> BeamDecoder:
        return BeamDecoder(model, self.beams)


class BeamDecoder:
    """A `MultiGenerator`; the drafts are the beams of lowest perplexity, finished or not."""

    def __init__(self, model: Language, beams: int):
        self.model, self.beams = model, beams

    def generate_many(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Drafts:
        """``beams`` drafts, best first; ``scores`` are mean log-probabilities of a token, ``rng`` is not drawn."""
        beam, cost, began = Beam(self.beams, self.model.stop_ids), Cost(), perf_counter()
        if limit < 1:
            return Drafts([], [], cost)
        decoder = self.model.decoder
        cache = decoder.cache(len(prompt_ids) + limit)
        logits = decoder.prefill(prompt_ids[None], cache)[:, -1]  # [m, V]
        cost.prefill_seconds, began = perf_counter() - began, perf_counter()
        while True:
            tokens = largest(logits, 2 * self.beams)
            logits = logits.double()
            gains = logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
            parents = beam.grow(tokens.cpu(), gains.cpu())
            if beam.done or beam.tokens.shape[1] == limit:
                break
            cache.select(parents)
            logits = decoder.forward(beam.tokens[:, -1:], cache, want="last")[:, -1]
            cost.passes += 1
            cost.rows += len(parents)
        cost.cache_bytes, cost.verify_seconds = cache.nbytes(), perf_counter() - began
        return Drafts(*beam.ranking(), cost)
