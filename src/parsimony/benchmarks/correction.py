"""Correction of sentences with a controlled rate of synthetic errors."""

from __future__ import annotations

import numpy as np

from parsimony.benchmarks.continuation import Continuation
from parsimony.benchmarks.sentences import corrupt, sentences, word_edits
from parsimony.interfaces import Item


class Correction(Continuation):
    """Held-out sentences, corrupted at five error rates (the categories), to be corrected.

    Quality is counted against the clean sentence: ``word_edits`` left in the output out of ``source_edits`` in the
    input and ``reference_words`` in all, and whether the output is right as a whole (``exact_match``).  The errors are
    synthetic, so none of this compares with scores of grammar-correction tests.
    """

    rates = {"errors_00": 0.0, "errors_02": 0.02, "errors_05": 0.05, "errors_10": 0.1, "errors_20": 0.2}
    categories = {name: ("wiki_summaries",) for name in rates}

    def items(self, paths, seed: int) -> list[Item]:
        if "wiki_summaries" not in paths:
            return []
        _, pool = sentences(paths["wiki_summaries"])
        chosen = np.random.default_rng([seed, 2]).permutation(len(pool))[: self.count]
        self.wanted, items = {}, []
        for at in chosen:
            for name, rate in self.rates.items():
                item = Item(
                    f"{name}_{at:05d}",
                    name,
                    (corrupt(pool[at], rate, np.random.default_rng([seed, int(at)])),),
                    f"wiki_summaries held-out sentence {at}",
                )
                self.wanted[item.id] = pool[at]
                items.append(item)
        return items

    def score(self, item: Item, text: str) -> list[tuple[str, float, str]]:
        return against(self.wanted[item.id], text, item.turns[0])


def against(wanted: str, text: str, source: str) -> list[tuple[str, float, str]]:
    """Quality numbers of an output against the one that was wanted; `source` is what copying would have given."""
    return [
        ("exact_match", float(text == wanted), ""),
        ("word_edits", word_edits(text, wanted), "words"),
        ("source_edits", word_edits(source, wanted), "words"),
        ("reference_words", len(wanted.split()), "words"),
    ]
