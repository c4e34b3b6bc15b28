"""Workloads whose answers repeat their prompts, and how much they do."""

from __future__ import annotations

import torch

from parsimony.benchmarks.continuation import Continuation
from parsimony.interfaces import Item, Outcome, Workbench

RUN = 4
"""Tokens in a row that must stand in the conversation so far to count as copied."""


class CopyingContinuation(Continuation):
    """Records, besides what every continuation does, ``copied_tokens``: what a perfect copier could have drafted."""

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = super().measure(item, bench), bench.model(self.dtype)
        for point in bench.points:
            tokens = torch.tensor(outcome.outputs[point, "tokens"], dtype=torch.int64)
            answers = tokens.split([int(n) for n in outcome.outputs[point, "turn_tokens"]])
            copied, history = 0, []
            for text, answer in zip(item.turns, answers, strict=True):
                history.append({"role": "user", "content": text})
                copied += copied_tokens(model.chat(history).tolist(), answer.tolist())
                history.append({"role": "assistant", "content": model.decode(answer)})
            outcome.numbers.append((point, "copied_tokens", copied, "tokens"))
        return outcome


def copied_tokens(prompt: list[int], answer: list[int], run: int = RUN) -> int:
    """How many tokens of ``answer`` lie in a run of at least ``run`` tokens that stands in ``prompt``."""
    known = {tuple(prompt[n : n + run]) for n in range(len(prompt) - run + 1)}
    inside = set()
    for n in range(len(answer) - run + 1):
        if tuple(answer[n : n + run]) in known:
            inside.update(range(n, n + run))
    return len(inside)
