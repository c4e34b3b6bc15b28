"""ParallelBench (Kang et al., ICLR 2026, arXiv 2510.04767): quality against tokens a step, task by task."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from parsimony.benchmarks.parallel_bench import lists
from parsimony.benchmarks.parallel_bench.ideal import Ideal
from parsimony.benchmarks.parallel_bench.tasks import GROUPS, LENGTH, Example, examples, grade
from parsimony.benchmarks.parallel_bench.writing import Request
from parsimony.errors import UserError
from parsimony.interfaces import Item, Outcome, Workbench


class ParallelBench:
    """Requests of the 17 tasks; each operating point answers all of them.

    An answer has 32 tokens to unmask, what follows its end included (as published: short answers look faster than
    they are); with ``symbols`` items of lists are single letters, and an answer has as many tokens as its list.  Where
    all right answers can be enumerated and the system unmasks, the exact model decodes the same request by the same
    strategy beside it (`Ideal`): ``ideal_score``.

    Parameters
    ----------
    dtype : str
    timed : bool
        Whether the reference is timed beside every point, in turns.
    tasks : list of str or None
        All if None; of symbol lists the ten list tasks.
    items : int
        A task; equally many of each list length.
    symbols : bool
    """

    def __init__(self, dtype: str, timed: bool, tasks: list | None, items: int, symbols: bool):
        known = lists.SEEDS if symbols else GROUPS
        for task in tasks or ():
            if task not in known:
                raise UserError(f"parallel_bench has no task {task!r}; valid: {', '.join(known)}")
        self.dtype, self.timed, self.count, self.symbols = dtype, timed, items, symbols
        self.tasks = list(tasks or known)

    def items(self, paths, seed: int) -> list[Item]:
        self.examples: dict[str, Example] = {}
        for task in self.tasks:
            for n, one in enumerate(examples(task, self.count, self.symbols)):
                self.examples[f"{task}_{n:03d}"] = one
        order = [f"{task}_{n:03d}" for n in range(self.count) for task in self.tasks]
        return [Item(key, key.rpartition("_")[0], (self.examples[key].prompt,), "generated") for key in order]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, shown, model = Outcome(), self.examples[item.id], bench.model(self.dtype)
        prompt = model.encode(item.turns[0])
        limit = len(model.encode(shown.answer)) if self.symbols else LENGTH
        turns = {point: bench.system(point, self.dtype) for point in bench.points}
        if self.timed and (reference := bench.reference(self.dtype)) is not None:
            turns["reference"] = reference
        names, runs = list(turns), {}
        shift = int(bench.rng(item.id).integers(len(names))) if self.timed else 0
        for name in names[shift:] + names[:shift]:
            began = perf_counter()
            runs[name] = turns[name].generate(prompt, limit, bench.rng(item.id)), perf_counter() - began
        for point in bench.points:
            generation, seconds = runs[point]
            text, cost = model.decode(generation.tokens), generation.cost
            numbers = {"score": grade(shown, text), "strict_score": grade(shown, text, strict=True)}
            if isinstance(shown.request, Request):
                numbers["words_included"] = shown.request.included(text)
            numbers |= {"forward_passes": cost.passes, "unmasked": limit, "rows": cost.rows}
            numbers |= {"tokens": len(generation.tokens)}
            if hasattr(turns[point], "unmask") and isinstance(shown.request, lists.Query):
                ideal = Ideal(self._answers(model, shown, limit), len(prompt), len(model.tokenizer), model.mask_id)
                best = turns[point].unmask(ideal, prompt, limit, bench.rng(item.id))
                numbers["ideal_score"] = grade(shown, model.decode(best.tokens))
                numbers["ideal_passes"] = best.cost.passes
            if self.timed:
                numbers["seconds"] = seconds
                if "reference" in runs:
                    other, took = runs["reference"]
                    numbers |= {"reference_seconds": took, "reference_tokens": len(other.tokens)}
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
            outcome.outputs[point, "tokens"] = generation.tokens.double().tolist()
            outcome.outputs[point, "committed"] = [float(n) for n in cost.accepted_per_pass]
        return outcome

    def _answers(self, model, shown: Example, limit: int) -> Tensor:
        """Token ids [m, limit] of every right answer, filled up with the end token."""
        end = min(model.stop_ids)
        texts = [lists.shown(answer, self.symbols) for answer in shown.request.answers()]
        rows = [model.encode(text).tolist() for text in texts]
        return torch.tensor([row + [end] * (limit - len(row)) for row in rows])
