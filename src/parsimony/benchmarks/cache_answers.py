"""Question sets of the hub, answered over a compressed prompt: long documents, and long chains of thought."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from parsimony.benchmarks.cached_context import CachedContext
from parsimony.benchmarks.hub_tasks import TASKS, HubTasks
from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.methods.kv_cache.held import Context


class CacheAnswers(HubTasks, CachedContext):
    """Rows of public question sets (the categories), each answered greedily by every point.

    The whole request is compressed, question included, as LongBench's users do it.  A prompt of more tokens than
    ``context`` loses those in its middle.  ``score`` is what the answer is worth by the measure of its task, and
    ``answer_seconds`` the time of its ``tokens``, each decoded by itself.

    Parameters
    ----------
    dtype : str
    timed : bool
    tasks : list of str
        Of `hub_tasks.TASKS`.
    items : int
        A task.
    context : int
    limit : int or None
        Tokens of an answer; None: as many as its task says.
    """

    def __init__(
        self, dtype: str, timed: bool, tasks: list[str], items: int, context: int, limit: int | None = None
    ):  # fmt: skip
        HubTasks.__init__(self, tasks, items)
        self.dtype, self.timed, self.context, self.limit = dtype, timed, context, limit

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, self.model = Outcome(), bench.model(self.dtype)
        ids = self.model.chat([{"role": "user", "content": item.turns[0]}])
        self.measure_all(outcome, bench, cut(ids, self.context), item)
        return outcome

    def follow(self, contexts: list[Context], item) -> list[dict[str, float]]:
        asked, numbers = self.asked[item.id], []
        limit = self.limit or TASKS[asked.task].limit
        for context in contexts:
            began = perf_counter()
            tokens = context.greedy(limit, self.model.stop_ids.__contains__)
            seconds = perf_counter() - began
            score = asked.score(self.model.decode(torch.tensor(tokens)))
            numbers.append({"score": score, "answer_tokens": len(tokens), "answer_seconds": seconds})
        return numbers


def cut(ids: Tensor, most: int) -> Tensor:
    """Token ids without those in the middle, if there are more than ``most``."""
    return ids if len(ids) <= most else torch.cat((ids[: most // 2], ids[len(ids) - (most - most // 2) :]))
