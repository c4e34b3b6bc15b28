"""Benchmarks whose answers are a fixed number of masked tokens: every operating point answers, the answer is graded."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from time import perf_counter

import torch
from torch import Tensor

from parsimony.interfaces import Item, Outcome, Workbench

PIECES = r""" ?[A-Z][a-z]+| ?[a-z_]+|[A-Z]|[0-9]|", "|\["|"\]|\n| |."""
"""What one token of this project's small models is: a word (with the blank in front), a letter, a digit, a mark."""


def filled(prompt: str, width: int) -> str:
    """``prompt`` with bars behind it up to ``width`` pieces: all answers of a kind begin at the same place.

    Models of a million parameters learn to look things up by place in minutes only if the places are fixed.
    """
    return prompt + "|" * (width - len(re.findall(PIECES, prompt)))


class Unmasked(ABC):
    """What they share; a benchmark says what is asked, how long an answer is, and what it is worth.

    A lossless method is compared token for token with its reference at the operating point of the same name (or at
    its first), on every item.  With ``timed`` every method is timed against it, in turns.  Beside each point's own
    numbers stand those of the best point of the method on the same item (the best score, then the fewest passes): an
    oracle that chooses for each sample.
    """

    dtype: str
    timed: bool
    chat = False
    """Whether a request is put as a user's turn, for models that were trained on conversations."""

    asked: dict[str, object]
    """The request (with a ``prompt``) of each item."""

    @abstractmethod
    def items(self, paths, seed: int) -> list[Item]:
        """The items; fills ``asked``."""

    @abstractmethod
    def length(self, asked, model) -> int:
        """Tokens of its answer."""

    def encoded(self, asked, model) -> Tensor:
        """Token ids [T] of its prompt."""
        said = [{"role": "user", "content": asked.prompt}]
        return model.encode(model.tokenizer.chat(said) if self.chat else asked.prompt)

    @abstractmethod
    def grade(self, asked, text: str) -> dict[str, float]:
        """``score`` and whatever else an answer is worth."""

    def beside(self, asked, system, model, bench: Workbench, item: str) -> dict[str, float]:
        """Further numbers of a system on an item."""
        return {}

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, asked, model = Outcome(), self.asked[item.id], bench.model(self.dtype)
        prompt, limit = self.encoded(asked, model), self.length(asked, model)
        systems = {point: bench.system(point, self.dtype) for point in bench.points}
        others = {}
        if bench.lossless or self.timed:
            others = {point: bench.reference(self.dtype, point) for point in bench.points}
        runs, turns = {}, [*systems.values(), *dict.fromkeys(other for other in others.values() if other is not None)]
        shift = int(bench.rng(item.id).integers(len(turns))) if self.timed else 0
        for system in turns[shift:] + turns[:shift]:
            began = perf_counter()
            runs[system] = system.generate(prompt, limit, bench.rng(item.id)), perf_counter() - began
        found = {}
        for point, system in systems.items():
            generation, seconds = runs[system]
            numbers = self.grade(asked, model.decode(generation.tokens))
            numbers |= {"forward_passes": generation.cost.passes, "rows": generation.cost.rows, "unmasked": limit}
            numbers |= {"tokens": len(generation.tokens), "cache_bytes": generation.cost.cache_bytes}
            numbers |= {"seconds": seconds} if self.timed else {}
            numbers |= self.beside(asked, system, model, bench, item.id)
            if "ideal_score" in numbers:
                numbers["gap"] = numbers["score"] - numbers["ideal_score"]
            if (other := others.get(point)) is not None:
                theirs, took = runs[other]
                numbers |= {"reference_passes": theirs.cost.passes}
                numbers |= {"reference_seconds": took, "reference_tokens": len(theirs.tokens)} if self.timed else {}
                if bench.lossless:
                    numbers["equal"] = float(torch.equal(generation.tokens, theirs.tokens))
                    numbers["tie"] = 0.0
                    if not numbers["equal"]:
                        outcome.failures[point, "equal"] = f"output differs from the reference's: {item.id}"
            found[point] = numbers
            outcome.outputs[point, "tokens"] = generation.tokens.double().tolist()
            outcome.outputs[point, "committed"] = [float(n) for n in generation.cost.accepted_per_pass]
        best = min(found.values(), key=lambda numbers: (-numbers["score"], numbers["forward_passes"]))
        for point, numbers in found.items():
            numbers |= {"oracle_score": best["score"], "oracle_passes": best["forward_passes"]}
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
        return outcome


class Drawn(Unmasked):
    """Benchmarks that draw their requests instead of reading them from files."""

    @abstractmethod
    def requests(self) -> Iterator[tuple[str, object]]:
        """Category and request of every item; those of a category follow one another."""

    def items(self, paths, seed: int) -> list[Item]:
        counts: Counter[str] = Counter()
        self.asked, order = {}, []
        for category, request in self.requests():
            key = f"{category}_{counts[category]:03d}"
            counts[category] += 1
            self.asked[key] = request
            order.append(Item(key, category, (request.prompt,), "generated"))
        return sorted(order, key=lambda item: item.id.rpartition("_")[2])  # so that every category is soon under way


class Forms(Drawn):
    """Benchmarks whose requests come in a few forms, all answered in a window of one length.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        A form.
    """

    FORMS: tuple[str, ...]
    LENGTH: int

    def __init__(self, dtype: str, timed: bool, items: int):
        self.dtype, self.timed, self.count = dtype, timed, items

    def drawn(self, form: str, count: int) -> list:
        """``count`` test requests of a form, the same on every machine."""

    def requests(self):
        for form in self.FORMS:
            yield from ((form, one) for one in self.drawn(form, self.count))

    def length(self, asked, model) -> int:
        return self.LENGTH
