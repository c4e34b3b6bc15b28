"""Completing the beginnings of real texts by several drafts: coverage, perplexity, coherence, passes, time."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.benchmarks.wiki_split import extracts
from parsimony.interfaces import Drafts, Item, Outcome, Workbench
from parsimony.methods.autoregressive.superposed_decoding import superpose
from parsimony.models.language import Language
from parsimony.models.sentence_encoder import SentenceEncoder

AHEAD = 3
"""True next tokens that coverage asks for: 1 up to so many, within the first 1 up to so many drafts (if there are)."""


class PrefixCompletion:
    """Prefixes of encyclopaedia extracts that no n-gram table has counted, continued by several drafts.

    Untimed, in one dtype: coverage (``hit_m_at_j``: one of the first j drafts begins with the true next m tokens),
    likelihood of every draft under the *same* network run on it exactly - which favours what maximises likelihood, so
    greedy decoding and beams are judged by their own standard -, coherence by a sentence encoder, distinct bigrams,
    and how far the network is from linear on the method's own drafts.  Timed: the points and the reference take turns
    on every prefix, in an order that rotates.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
    prefix, limit : int
        Tokens of the prefix and of a draft.
    part : {"evaluation", "development"}
        Which articles; settings are tuned on those for development.
    """

    def __init__(self, dtype: str, timed: bool, items: int, prefix: int, limit: int, part: str = "evaluation"):
        self.dtype, self.timed, self.count = dtype, timed, items
        self.prefix, self.limit, self.part = prefix, limit, part
        self._folder: Path | None = None
        self._encoder: SentenceEncoder | None = None

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if not all(key in paths for key in self._needed()):
            return []
        self._folder = paths.get("all_minilm_l6_v2")
        pool = [(n, text) for n, text in extracts(paths["wiki_summaries"], self.part) if len(text) >= 300]
        order = np.random.default_rng([seed, 2]).permutation(len(pool))[: self.count]
        rows = (pool[at] for at in order)
        return [Item(f"wiki_{n:05d}", "encyclopaedia", (text,), f"wiki_summaries row {n}") for n, text in rows]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        reasons = [missing[key] for key in self._needed() if key in missing]
        return {"encyclopaedia": reasons[0]} if reasons else {}

    def _needed(self) -> tuple[str, ...]:
        return ("wiki_summaries",) if self.timed else ("wiki_summaries", "all_minilm_l6_v2")

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        ids = model.encode(item.turns[0])
        prefix, truth = ids[: self.prefix], ids[self.prefix : self.prefix + self.limit]
        systems = {point: bench.system(point, self.dtype) for point in bench.points}
        if self.timed and (reference := bench.reference(self.dtype)) is not None:
            systems["reference"] = reference
        names, runs = list(systems), {}
        shift = int(bench.rng(item.id).integers(len(names))) if self.timed else 0
        for name in names[shift:] + names[:shift]:
            rng, began = bench.rng(item.id), perf_counter()
            drafts = systems[name].generate_many(prefix, self.limit, rng)
            runs[name] = drafts, perf_counter() - began
        for point in bench.points:
            drafts, seconds = runs[point]
            numbers = counted(drafts)
            if self.timed:
                numbers |= {"seconds": (seconds, "s"), "draft_seconds": (drafts.cost.draft_seconds, "s")}
                if "reference" in runs:
                    other, took = runs["reference"]
                    numbers |= {"reference_seconds": (took, "s"), "reference_tokens": counted(other)["tokens"]}
            else:
                outcome.outputs |= {
                    (point, f"draft_{n}"): tokens.double().tolist() for n, tokens in enumerate(drafts.tokens, 1)
                }
                numbers |= covered(drafts.tokens, truth) | self._meaning(model, prefix, truth, drafts.tokens)
                judged, cosines = judge(model, prefix, drafts.tokens)
                numbers |= judged
                outcome.outputs[point, "linearity"] = cosines
            outcome.numbers += [(point, metric, value, unit) for metric, (value, unit) in numbers.items()]
        return outcome

    def _meaning(self, model: Language, prefix: Tensor, truth: Tensor, drafts: list[Tensor]) -> dict:
        """Cosines of sentence vectors: drafts with the prefix, and with the true continuation."""
        self._encoder = self._encoder or SentenceEncoder(self._folder)
        start, true, *ours = self._encoder.encode([model.decode(ids) for ids in (prefix, truth, *drafts)])
        ours = torch.stack(ours)
        near, like = ours @ start, ours @ true
        return {
            "coherence": (float(near.mean()), ""),
            "similarity": (float(like.mean()), ""),
            "similarity_first": (float(like[0]), ""),
            "similarity_best": (float(like.max()), ""),
            "true_coherence": (float(start @ true), ""),
        }


def counted(drafts: Drafts) -> dict[str, tuple[float, str]]:
    """What the drafts cost; a pass that reads the prompt counts where the network ran at all."""
    cost = drafts.cost
    prefill = int(cost.cache_bytes > 0)
    return {
        "tokens": (sum(map(len, drafts.tokens)), "tokens"),
        "prompts": (1, ""),
        "forward_passes": (cost.passes + prefill, "passes"),
        "rows": (cost.rows + prefill, "tokens"),
        "cache_bytes": (cost.cache_bytes, "bytes"),
    }


def covered(drafts: list[Tensor], truth: Tensor) -> dict[str, tuple[float, str]]:
    """Whether the true next tokens stand at the beginning of a draft, and how distinct the drafts are.

    ``agreement`` is the longest beginning of ``truth`` that any draft has.  Bigrams are counted inside each draft.
    """
    agree = [agreement(draft, truth) for draft in drafts]
    hits = {
        f"hit_{m}_at_{j}": (float(max(agree[:j]) >= m), "") for m in range(1, AHEAD + 1) for j in range(1, AHEAD + 1)
    }
    found = [pair for draft in drafts for pair in zip(draft.tolist(), draft[1:].tolist(), strict=False)]
    numbers = hits | {"agreement": (float(max(agree)), "tokens"), "covered": (float(max(agree) >= 1), "")}
    if len(drafts) > 1 and found:
        numbers |= {"bigrams": (len(found), ""), "distinct_bigrams": (len(set(found)), "")}
    return numbers


def agreement(draft: Tensor, truth: Tensor) -> int:
    """Tokens in which ``draft`` and ``truth`` agree before they first differ."""
    common = min(len(draft), len(truth))
    return int((draft[:common] == truth[:common]).long().cumprod(0).sum())


@torch.inference_mode()
def judge(model: Language, prefix: Tensor, drafts: list[Tensor]) -> tuple[dict[str, tuple[float, str]], list[float]]:
    """Likelihood of the drafts under the network run on each exactly, and how linear the network is on them.

    Linearity at step t: the cosine between the final hidden state [D] behind t superposed inputs and the mixture of
    those of the separate drafts, both weighted by gamma = softmax of the drafts' exact log-likelihoods up to t.

    Returns
    -------
    dict
        Totals over all drafts, of each of the first ones, and of the best (the lowest perplexity).
    list of float
        Linearity at each step for which all drafts have a token; empty for a single draft.
    """
    decoder, V, L = model.decoder, model.decoder.config.vocabulary, len(prefix)
    k, lengths = len(drafts), [len(draft) for draft in drafts]
    ids = torch.nn.utils.rnn.pad_sequence(drafts, batch_first=True)  # [k, T]; nothing looks back from the padding
    cache = decoder.cache(L + ids.shape[1])
    first = decoder.prefill(prefix[None], cache, want="hidden")[:, -1:]  # [1, 1, D]
    cache.select(torch.zeros(k, dtype=torch.int64))
    hidden = decoder.forward(ids, cache, want="hidden")  # [k, T, D]
    logits = decoder.logits(torch.cat((first.expand(k, -1, -1), hidden[:, :-1]), 1)).double().cpu()
    log_p = logits.gather(-1, ids[:, :, None])[:, :, 0] - logits.logsumexp(-1)  # [k, T]
    nll = [-float(log_p[n, :length].sum()) for n, length in enumerate(lengths)]
    best = min(range(k), key=lambda n: nll[n] / lengths[n])
    numbers = {"nll": (sum(nll), "nats"), "best_nll": (nll[best], "nats"), "best_tokens": (lengths[best], "tokens")}
    for n in range(min(k, AHEAD)):
        numbers |= {f"draft_{n + 1}_nll": (nll[n], "nats"), f"draft_{n + 1}_tokens": (lengths[n], "tokens")}
    if k == 1:
        return numbers, []
    T, scores = min(lengths), log_p.cumsum(1)
    x = torch.stack([superpose(ids[:, t], scores[:, t], decoder.embedding) for t in range(T)])
    cache.select(torch.zeros(1, dtype=torch.int64))
    cache.truncate(L)
    mixed = decoder.forward(torch.arange(V, V + T)[None], cache, vectors=x, want="hidden")[0].float().cpu()  # [T, D]
    gamma = scores[:, :T].softmax(0).float()  # [k, T]
    apart = (gamma[:, :, None] * hidden[:, :T].float().cpu()).sum(0)
    cosines = torch.cosine_similarity(mixed, apart, -1).tolist()
    numbers |= {"linearity_sum": (sum(cosines), ""), "linearity_steps": (T, ""), "linearity_first": (cosines[0], "")}
    return numbers | {"linearity_last": (cosines[-1], ""), "linearity_least": (min(cosines), "")}, cosines
