"""Superposed Decoding (E. Shen et al., NeurIPS 2024, arXiv 2405.18400): k drafts from one forward pass a step."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Cost, Drafts, Inputs
from parsimony.methods.autoregressive.drafts import Beam, largest
from parsimony.methods.autoregressive.ngrams import NgramTables
from parsimony.models.language import Language

MIXINGS = ("geometric", "none", "ngram")


class SuperposedDecoding:
    """k drafts that share every forward pass: the network reads the weighted mean of their newest tokens.

    A step, with s_i the cumulative log-score of draft i and Emb the embedding:

        gamma = softmax(s),   x = sum_i gamma_i Emb(last token of draft i)       one input, one KV entry for all drafts
        p     = softmax(logits(x) / tau), cut to the ``kept`` best tokens and normalised
        q_i   = sum_n lambda_n c(last n-1 tokens of draft i, w) / c(last n-1 tokens of draft i)            n = 2 ... 6
        f_i   = (1 - alpha) log p + alpha log q_i,   or   (1 - alpha) log p - penalty   where q_i is 0 for all kept w

    and the k best of all drafts' extensions survive (`Beam`).  The lambdas are not normalised and an unseen history
    contributes 0; histories reach into the prompt.  Where paper and official code differ: the first step takes the k
    best tokens of the network alone as the paper says (``mix_first`` mixes there as well, as the code does); the
    code's bigram look-up of ``ngram`` mode never finds anything, ours does; and the code always runs to the limit,
    where we stop once no unfinished draft can enter the finished list any more (tensor2tensor's rule).

    Parameters
    ----------
    drafts : int
        k.
    tau, alpha : float
        The official settings: tau 0.06 and alpha 0.54 for 3 drafts behind 15 tokens, alpha 0.34-0.62 elsewhere.
    kept : int or None
        Tokens of p that are kept (n_token_sample); None is three a draft, as all official settings have it.
    mixing : {"geometric", "none", "ngram"}
        As above; the network alone; or the n-grams alone: log f = log q over the whole vocabulary, no forward pass, and
        behind a token that was never seen the tokens' frequencies, with the penalty.
    weights : list of float
        lambda_n for n = 2, 3, ...
    mix_first : bool
    penalty : float
        The paper's delta.
    reset : int or None
        For long texts: after every so many tokens the best draft's own tokens replace the superposed entries of the
        cache, and k new drafts start behind it.
    """

    def __init__(
        self,
        drafts: int = 3,
        tau: float = 0.06,
        alpha: float = 0.54,
        kept: int | None = None,
        mixing: str = "geometric",
        weights: tuple[float, ...] = (0.01, 0.04, 0.15, 0.18, 0.12),
        mix_first: bool = False,
        penalty: float = 200.0,
        reset: int | None = None,
    ):
        if mixing not in MIXINGS:
            raise UserError(f"mixing {mixing!r} is not one of {', '.join(MIXINGS)}")
        kept = 3 * drafts if kept is None else kept
        if kept < 2 * drafts:
            raise UserError(f"kept = {kept} tokens are too few for {drafts} drafts; keep at least {2 * drafts}")
        self.drafts, self.tau, self.alpha, self.kept, self.mixing = drafts, tau, alpha, kept, mixing
        self.weights, self.mix_first, self.penalty, self.reset = tuple(weights), mix_first, penalty, reset

    def build(self, model: Language, inputs: Inputs) -> SuperposedDecoder:
        """The decoder with the tables of asset ``ngrams`` (none are needed without n-grams)."""
        tables = None
        if self.mixing != "none":
            tables = NgramTables.load(inputs.assets["ngrams"] / "ngrams.safetensors")
        return SuperposedDecoder(model, self, tables)


class SuperposedDecoder:
    """A `MultiGenerator`; holds nothing from prompt to prompt."""

    def __init__(self, model: Language, settings: SuperposedDecoding, tables: NgramTables | None):
        self.model, self.settings, self.tables = model, settings, tables

    def generate_many(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Drafts:
        """The k drafts of lowest perplexity (of f), best first; ``rng`` is not drawn.

        ``scores`` are the mean log f of a token.  `Cost.passes` counts what follows the prefill: with it, there are as
        many passes as tokens in the longest draft, whatever k is; `Cost.draft_seconds` is spent on n-grams and ranking.
        """
        beam, cost = Beam(self.settings.drafts, self.model.stop_ids), Cost()
        if limit < 1:
            return Drafts([], [], cost)
        decoder, V, began = self.model.decoder, self.model.decoder.config.vocabulary, perf_counter()
        run = self.settings.mixing != "ngram"
        cache, logits, fresh = decoder.cache(len(prompt_ids) + limit), None, True
        if run:
            logits = decoder.prefill(prompt_ids[None], cache)[0, -1].cpu()
        cost.prefill_seconds = perf_counter() - began
        while True:
            began = perf_counter()
            beam.grow(*self._candidates(prompt_ids, beam, logits, fresh))
            drafted = perf_counter()
            cost.draft_seconds += drafted - began
            length = beam.tokens.shape[1]
            if beam.done or length == limit:
                break
            fresh = bool(self.settings.reset) and length % self.settings.reset == 0
            if not run:
                continue
            if fresh:
                beam.keep_best()
                cache.truncate(len(prompt_ids) + length - self.settings.reset)
                rows = beam.tokens[:, -self.settings.reset :]
                logits = decoder.forward(rows, cache, want="last")[0, -1].cpu()
            else:
                x, rows = superpose(beam.tokens[:, -1], beam.scores, decoder.embedding), torch.tensor([[V]])
                logits = decoder.forward(rows, cache, vectors=x[None], want="last")[0, -1].cpu()
            cost.passes += 1
            cost.rows += rows.shape[1]
            cost.verify_seconds += perf_counter() - drafted
        cost.cache_bytes = cache.nbytes()
        return Drafts(*beam.ranking(), cost)

    def _candidates(self, prompt: Tensor, beam: Beam, logits: Tensor | None, fresh: bool) -> tuple[Tensor, Tensor]:
        """Next tokens [m, n] of each draft and log f [m, n] of each."""
        s, m = self.settings, len(beam.tokens)
        longest = len(s.weights)
        tail = prompt[max(len(prompt) - longest, 0) :].expand(m, -1)
        history = torch.cat((tail, beam.tokens), 1)[:, -longest:].numpy()
        if s.mixing == "ngram":
            q = torch.from_numpy(self.tables.distribution(history, s.weights))  # [m, V]
            unseen = (q == 0).all(1, keepdim=True)
            q = torch.where(unseen, torch.from_numpy(self.tables.unigrams()), q)
            tokens = largest(q, s.kept)
            return tokens, q.gather(1, tokens).log() - s.penalty * unseen
        kept = largest(logits, s.kept)
        log_p = (logits[kept].double() / s.tau).log_softmax(-1).expand(m, -1)  # softmax over a part = renormalised
        tokens = kept.expand(m, -1)
        if self.tables is None or fresh and not s.mix_first:
            return tokens, log_p
        q = torch.from_numpy(self.tables.mixture(history, kept.numpy(), s.weights))  # [m, n]
        log_f = torch.where(q > 0, (1 - s.alpha) * log_p + s.alpha * q.log(), -torch.inf)
        unseen = (q == 0).all(1, keepdim=True)
        return tokens, torch.where(unseen, (1 - s.alpha) * log_p - s.penalty, log_f)


def superpose(tokens: Tensor, scores: Tensor, embedding: Tensor) -> Tensor:
    """The input vector [D] of drafts with newest ``tokens`` [m] and log-scores [m]; equal tokens add up first.

    Where all drafts agree it is that token's embedding to the last bit.
    """
    gamma = scores.double().softmax(0)
    kinds, place = tokens.unique(return_inverse=True)
    weight = torch.zeros(len(kinds), dtype=torch.float64).index_add(0, place, gamma)
    weight, kinds = (weight / weight.sum()).to(embedding.device), kinds.to(embedding.device)
    return (weight[:, None] * embedding[kinds].double()).sum(0).to(embedding.dtype)
