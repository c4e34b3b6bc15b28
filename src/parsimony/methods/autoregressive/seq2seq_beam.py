"""Beam search for encoder-decoders: the baseline against which the published speed-ups are quoted."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Cost, Generation, Inputs
from parsimony.models.seq2seq import Seq2Seq


class Seq2SeqBeam:
    """Beam search as fairseq does it: scores are divided by the length, ``beam`` finished outputs end the search.

    Parameters
    ----------
    beam : int
        Hypotheses kept.
    length_penalty : float
        A score is divided by the length to this power.
    """

    def __init__(self, beam: int = 5, length_penalty: float = 1.0):
        if beam < 1:
            raise UserError(f"seq2seq_beam: beam must be at least 1, not {beam}")
        self.beam, self.length_penalty = beam, length_penalty

    def build(self, model: Seq2Seq, inputs: Inputs) -> BeamSearch:
        """A text generator."""
        return BeamSearch(model, self.beam, self.length_penalty)


class BeamSearch:
    """Keeps the ``beam`` likeliest beginnings of the output; one batched pass extends them all by a token."""

    def __init__(self, model: Seq2Seq, beam: int, length_penalty: float):
        self.model, self.beam, self.length_penalty = model, beam, length_penalty
        self._cache = None

    @torch.inference_mode()
    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """The best output for source ``prompt_ids`` ([S] int64) of at most ``limit`` tokens.

        `Cost.accepted_per_pass` is 1 for as many passes as the output has tokens, and 0 for those that searched on.
        """
        network, stop, cost = self.model.decoder, torch.tensor(sorted(self.model.stop_ids)), Cost()
        if limit < 1:
            return Generation(torch.empty(0, dtype=torch.int64), cost)
        began = perf_counter()
        if self._cache is None:
            self._cache = network.cache(limit + 1)
        cache = self._cache
        cache.clear()
        network.prefill(prompt_ids[None], cache)
        cost.prefill_seconds = perf_counter() - began

        began = perf_counter()
        y = torch.full((1, 1), network.begin)  # [b, t + 1]
        scores = torch.zeros(1)
        finished: list[tuple[float, Tensor]] = []
        for t in range(1, limit + 1):
            logits = network.forward(y[:, -1:], cache)[:, -1].cpu()
            V = logits.shape[-1]
            total = (scores[:, None] + logits.float().log_softmax(-1)).flatten()  # [b V]
            best, flat = total.topk(min(2 * self.beam, len(total)))
            parents, tokens = flat // V, flat % V
            cost.passes += 1
            cost.rows += len(y)
            ends = torch.isin(tokens, stop)
            for n in ends[: self.beam].nonzero()[:, 0].tolist():
                ended = torch.cat((y[parents[n], 1:], tokens[n : n + 1]))
                finished.append((float(best[n]) / t**self.length_penalty, ended))
            on = (~ends).nonzero()[: self.beam, 0]
            scores, parents = best[on], parents[on]
            y = torch.cat((y[parents], tokens[on, None]), 1)
            if len(finished) >= self.beam or not len(on):
                break
            cache.spread(parents)
        if not finished:  # cut at the limit
            finished.append((0.0, y[0, 1:]))
        tokens = max(finished, key=lambda each: each[0])[1]
        cost.accepted_per_pass = [1] * len(tokens) + [0] * (cost.passes - len(tokens))
        cost.cache_bytes, cost.verify_seconds = cache.nbytes(), perf_counter() - began
        return Generation(tokens, cost)
