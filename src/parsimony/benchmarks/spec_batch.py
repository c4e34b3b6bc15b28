"""Continuing many prompts at once: what a batched decoder keeps, what it saves, and what raggedness costs it."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from parsimony.benchmarks import prompts
from parsimony.benchmarks.continuation import TIE, first_difference
from parsimony.interfaces import Batch, BatchGenerator, Item, Outcome, Workbench

CATEGORIES = ("maths", "code", "summarisation", "question_answering", "multi_turn", "free_writing")
"""Of `spec_mix`, those whose assets are there on every machine, so that batches are the same everywhere."""


class SpecBatch:
    """Pools of chat prompts of unequal length, continued greedily in batches of several sizes (the categories).

    Every answer is compared with that of the reference for the prompt alone, batch 1: exact match, and partial match,
    the share of the reference's tokens before the first difference.  Untimed, a method that declares losslessness
    fails where an answer differs and the reference's two best logits are not closer than 1e-4 (a tie).  Timed, the
    points, the reference in the same batches, and the reference alone take turns on every item.

    Parameters
    ----------
    dtype : str
    timed : bool
    batches : list of int
        Batch sizes; an item is a pool at one of them.
    pools : int
    prompts : int
        Prompts of a pool.
    limit : int
        New tokens a prompt.
    characters : int
        Longer documents are cut at the last sentence that fits.
    """

    def __init__(
        self, dtype: str, timed: bool, batches: list[int], pools: int, prompts: int, limit: int, characters: int
    ):
        self.dtype, self.timed, self.batches, self.pools, self.prompts = dtype, timed, batches, pools, prompts
        self.limit, self.characters = limit, characters
        self._alone: dict[tuple[str, ...], Run] = {}

    def items(self, paths, seed: int) -> list[Item]:
        each = -(-self.pools * self.prompts // len(CATEGORIES))
        counts = dict.fromkeys(CATEGORIES, each)
        texts = [item.turns[0] for item in prompts.spec_mix(paths, counts, seed, self.characters)]
        n = self.prompts
        pools = [tuple(texts[i * n : (i + 1) * n]) for i in range(self.pools)]
        return [
            Item(
                f"batch_{size}_pool_{i}", f"batch_{size}", pool, f"spec_mix prompts {i * n} to {i * n + len(pool) - 1}"
            )
            for i, pool in enumerate(pools)
            for size in self.batches
            if pool
        ]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        pool = [model.chat([{"role": "user", "content": text}]) for text in item.turns]
        size, reference = int(item.category.removeprefix("batch_")), bench.reference(self.dtype)
        turns = {point: (bench.system(point, self.dtype), size) for point in bench.points}
        if self.timed:
            if isinstance(reference, BatchGenerator):
                turns["reference"] = reference, size
            turns["alone"] = reference, 1
        names, runs = list(turns), {}
        shift = int(bench.rng(item.id).integers(len(names))) if self.timed else 0
        for name in names[shift:] + names[:shift]:
            runs[name] = Run.of(*turns[name], pool, self.limit, bench.rng(item.id))
        alone = runs.get("alone") or self._alone.get(item.turns)
        if alone is None:  # computed once for all batch sizes
            alone = Run.of(reference, 1, pool, self.limit, bench.rng(item.id))
            self._alone = {item.turns: alone}
        for point in bench.points:
            runs[point].count(outcome, point, self.timed)
            self._compare(outcome, point, pool, runs[point].answers, alone.answers, bench)
            if self.timed:
                for name in turns.keys() - set(bench.points):
                    outcome.numbers.append((point, f"{name}_seconds", runs[name].seconds, "s"))
                    outcome.numbers.append((point, f"{name}_tokens", runs[name].tokens, "tokens"))
        return outcome

    def _compare(self, outcome: Outcome, point: str, pool, answers, expected, bench: Workbench) -> None:
        exact = ties = partial = 0
        causes = []
        for n, (prompt, ours, theirs) in enumerate(zip(pool, answers, expected, strict=True)):
            at = first_difference([ours], [theirs])
            partial += 1.0 if at is None else at / len(theirs)
            exact += at is None
            if at is not None and not self.timed:
                first, second = bench.model(self.dtype).next_logits(prompt, theirs[:at]).float().topk(2).values
                ties += float(first - second) < TIE
                if float(first - second) >= TIE:
                    causes.append(f"answer {n} differs from the reference at token {at}, no tie ({first - second:.3g})")
        for name, value in (("sequences", len(pool)), ("exact", exact), ("tied", ties), ("partial", partial)):
            outcome.numbers.append((point, name, float(value), "sequences"))
        if causes and bench.lossless and not self.timed:
            outcome.failures[point, "exact"] = causes[0]


@dataclass
class Run:
    """One run of a system over a pool."""

    batch: Batch
    seconds: float

    @classmethod
    def of(cls, system, size: int, pool: list[Tensor], limit: int, rng) -> Run:
        """In batches of ``size``; a system that takes one prompt at a time gets them so."""
        began = perf_counter()
        if isinstance(system, BatchGenerator):
            batch = system.generate_batch(pool, limit, rng, together=size)
        else:
            batch = Batch([system.generate(prompt, limit, rng) for prompt in pool], None)
        return cls(batch, perf_counter() - began)

    @property
    def answers(self) -> list[Tensor]:
        return [generation.tokens for generation in self.batch.generations]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))

    def count(self, outcome: Outcome, point: str, timed: bool) -> None:
        """Write what the run cost into ``outcome``: passes of single sequences, and passes of the batch."""
        each = [generation.cost for generation in self.batch.generations]
        cost = self.batch.cost
        outcome.outputs[point, "tokens"] = torch.cat(self.answers).double().tolist()
        outcome.outputs[point, "answer_tokens"] = [float(len(answer)) for answer in self.answers]
        numbers = {
            "tokens": (self.tokens, "tokens"),
            "step_tokens": (sum(cost.accepted_per_pass), "tokens"),
            "passes": (sum(c.passes for c in each), "passes"),
            "batch_passes": (cost.passes, "passes"),
            "grouped": (self.batch.grouped, "passes"),
            "rows": (cost.rows, "tokens"),
            "drafted": (cost.drafted, "tokens"),
            "accepted": (cost.accepted, "tokens"),
            "cache_bytes": (cost.cache_bytes, "bytes"),
        }
        if timed:
            numbers |= {"seconds": (self.seconds, "s"), "realign_seconds": (self.batch.realign_seconds, "s")}
            for name in ("prefill_seconds", "draft_seconds", "verify_seconds"):
                numbers[name] = getattr(cost, name), "s"
        outcome.numbers += [(point, name, float(value), unit) for name, (value, unit) in numbers.items()]
