"""Continuing prompts: what a lossless decoder keeps, what it accepts, and what it saves."""

from __future__ import annotations

from time import perf_counter

import torch

from parsimony.benchmarks.latency import fastest_dtype
from parsimony.interfaces import Cost, Item, Outcome, Stateful, Workbench

TIE = 1e-4
"""Two logits closer than this are a tie that another order of summation may turn (float32)."""


class Continuation:
    """Prompts by category, continued greedily; a benchmark derives from it and says which (`categories`, `items`).

    Untimed, every point's tokens are compared with the stored ones of the reference: those of a lossless method must
    be equal, or differ first where the reference's two best logits are closer than 1e-4 (counted as a tie).  Timed,
    reference, peer and points take turns on every item in the same process, in an order that rotates from item to
    item, and the first divergence and its logit gap are recorded instead (bfloat16 may round near-ties either way).

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        Items a category.
    limit : int
        New tokens a turn.
    characters : int
        Longer documents are cut at the last sentence that fits.
    """

    def __init__(self, dtype: str, timed: bool, items: int, limit: int, characters: int = 2500):
        self.dtype, self.timed, self.count, self.limit, self.characters = dtype, timed, items, limit, characters

    categories: dict[str, tuple[str, ...]]
    """Reported categories and the assets that each needs."""

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {
            category: missing[asset]
            for category, assets in self.categories.items()
            for asset in assets
            if asset in missing
        }

    def score(self, item: Item, text: str) -> list[tuple[str, float, str]]:
        """Quality of the last answer as (metric, value, unit), from a benchmark that knows what is right."""
        return []

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, runs = Outcome(), {}
        turns = {point: (bench.system(point, self.dtype), self.dtype) for point in bench.points}
        reference = bench.reference(self.dtype)
        if self.timed and reference is not None:
            turns["reference"] = reference, self.dtype
            fastest = fastest_dtype(bench.records["latency"]) if "latency" in bench.records else self.dtype
            if fastest != self.dtype:
                turns["fastest"] = bench.reference(fastest), fastest
            peers = {point: bench.peer(point, self.dtype) for point in bench.points}
            turns |= {peer: (peer, self.dtype) for peer in peers.values() if peer is not None}
        names = list(turns)
        shift = int(bench.rng(item.id).integers(len(names))) if self.timed else 0
        for name in names[shift:] + names[:shift]:
            system, dtype = turns[name]
            runs[name] = Conversation(bench.model(dtype), system, item, self.limit, bench.rng(item.id))

        for point in bench.points:
            run = runs[point]
            run.count(outcome, point, self.timed)
            text = bench.model(self.dtype).decode(run.answers[-1])
            outcome.numbers += [(point, *number) for number in self.score(item, text)]
            learnt = turns[point][0].state() if isinstance(turns[point][0], Stateful) else {}
            outcome.numbers.append((point, "state_bytes", sum(tensor.nbytes for tensor in learnt.values()), "bytes"))
            if reference is None:
                continue
            if self.timed:
                others = {"reference": runs["reference"], "fastest": runs.get("fastest", runs["reference"])}
                if peers[point] is not None:
                    others["peer"] = runs[peers[point]]
                for name, other in others.items():
                    outcome.numbers.append((point, f"{name}_seconds", other.seconds, "s"))
                    outcome.numbers.append((point, f"{name}_tokens", other.total("tokens"), "tokens"))
                decoding = runs["reference"].decode_seconds
                outcome.numbers.append((point, "reference_decode_seconds", decoding, "s"))
                self._diverge(outcome, point, item, bench, run, runs["reference"].answers)
            else:
                tokens = torch.tensor(bench.stored(item.id, "tokens"), dtype=torch.int64)
                lengths = [int(n) for n in bench.stored(item.id, "turn_tokens")]
                self._compare(outcome, point, item, bench, run, tokens.split(lengths))
        return outcome

    def _compare(self, outcome, point, item, bench, run, expected) -> None:
        at = first_difference(run.answers, expected)
        gap = None if at is None else self._gap(item, bench, expected, at)
        tie = gap is not None and gap < TIE
        outcome.numbers += [(point, "equal", float(at is None), ""), (point, "tie", float(tie), "")]
        if at is not None and not tie and bench.lossless:
            outcome.failures[point, "equal"] = (
                f"output differs from the reference at token {at}, where its two best logits are {gap:.3g} apart"
            )

    def _diverge(self, outcome, point, item, bench, run, expected) -> None:
        at = first_difference(run.answers, expected)
        outcome.numbers.append((point, "diverged", float(at is not None), ""))
        if at is not None:
            outcome.numbers.append((point, "first_divergence", at, "tokens"))
            outcome.numbers.append((point, "logit_gap", self._gap(item, bench, expected, at), ""))

    def _gap(self, item: Item, bench: Workbench, answers, at: int) -> float:
        """Distance of the reference's two best logits where token ``at`` of its ``answers`` was chosen."""
        model, history = bench.model(self.dtype), []
        for text, answer in zip(item.turns, answers, strict=True):
            history.append({"role": "user", "content": text})
            if at < len(answer):
                break
            at -= len(answer)
            history.append({"role": "assistant", "content": model.decode(answer)})
        logits = model.next_logits(model.chat(history), answer[:at])
        first, second = logits.float().topk(2).values.tolist()
        return first - second


class Conversation:
    """One run of a system through the turns of an item; each turn sees the system's own earlier answers.

    Attributes
    ----------
    answers : list of Tensor
        Generated tokens of each turn.
    seconds : float
        Wall-clock time of the generation: prefill included, chat template not.
    """

    def __init__(self, model, system, item: Item, limit: int, rng):
        self.answers: list[torch.Tensor] = []
        self.costs: list[Cost] = []
        self.seconds = 0.0
        history: list[dict] = []
        for text in item.turns:
            history.append({"role": "user", "content": text})
            prompt = model.chat(history)
            began = perf_counter()
            generation = system.generate(prompt, limit, rng)
            self.seconds += perf_counter() - began
            self.answers.append(generation.tokens)
            self.costs.append(generation.cost)
            history.append({"role": "assistant", "content": model.decode(generation.tokens)})

    def total(self, name: str) -> float:
        """Sum over the turns of a field of `Cost`, or of the generated ``tokens``."""
        return sum(map(len, self.answers)) if name == "tokens" else sum(getattr(cost, name) for cost in self.costs)

    @property
    def decode_seconds(self) -> float:
        """Wall-clock time of the generation without the prefill."""
        return self.seconds - self.total("prefill_seconds")

    def count(self, outcome: Outcome, point: str, timed: bool) -> None:
        """Write what the run cost into ``outcome``."""
        gained = [float(n) for cost in self.costs for n in cost.accepted_per_pass]
        outcome.outputs[point, "tokens"] = torch.cat(self.answers).double().tolist()
        outcome.outputs[point, "turn_tokens"] = [float(len(answer)) for answer in self.answers]
        outcome.outputs[point, "accepted_per_pass"] = gained
        outcome.numbers.append((point, "tokens", self.total("tokens"), "tokens"))
        outcome.numbers.append((point, "step_tokens", sum(gained), "tokens"))
        for name in ("passes", "rows", "drafted", "accepted"):
            outcome.numbers.append((point, name, self.total(name), "tokens" if name != "passes" else "passes"))
        outcome.numbers.append((point, "cache_bytes", max(cost.cache_bytes for cost in self.costs), "bytes"))
        if timed:
            outcome.numbers.append((point, "seconds", self.seconds, "s"))
            outcome.numbers.append((point, "decode_seconds", self.decode_seconds, "s"))
            for name in ("prefill_seconds", "draft_seconds", "verify_seconds"):
                outcome.numbers.append((point, name, self.total(name), "s"))


def first_difference(ours, expected) -> int | None:
    """Index of the first token in which two lists of answers differ, counted over all turns; None if they are equal."""
    before = 0
    for mine, theirs in zip(ours, expected, strict=True):
        if not torch.equal(mine, theirs):
            common = min(len(mine), len(theirs))
            unequal = (mine[:common] != theirs[:common]).nonzero()
            return before + (int(unequal[0]) if len(unequal) else common - 1)
        before += len(theirs)
    return None
