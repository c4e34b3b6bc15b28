"""Translation of real sentences into a made-up language: lexicon substitution and local reordering."""

from __future__ import annotations

import numpy as np

from parsimony.benchmarks.continuation import Continuation
from parsimony.benchmarks.correction import against
from parsimony.benchmarks.sentences import Lexicon, sentences
from parsimony.interfaces import Item


class ToyTranslation(Continuation):
    """Held-out sentences by length; the target language is synthetic (`Lexicon`), so no score compares with others.

    Parameters
    ----------
    lexicon, lexicon_seed : int
        Of the `Lexicon`, as in the recipe of the model.
    """

    lengths = {"words_05_12": range(5, 13), "words_13_18": range(13, 19), "words_19_24": range(19, 25)}
    categories = {name: ("wiki_summaries",) for name in lengths}

    def __init__(self, dtype: str, timed: bool, items: int, limit: int, lexicon: int, lexicon_seed: int):
        super().__init__(dtype, timed, items, limit)
        self.lexicon, self.lexicon_seed = lexicon, lexicon_seed

    def items(self, paths, seed: int) -> list[Item]:
        if "wiki_summaries" not in paths:
            return []
        learnt, pool = sentences(paths["wiki_summaries"])
        lexicon = Lexicon(learnt, self.lexicon, self.lexicon_seed)
        order = np.random.default_rng([seed, 3]).permutation(len(pool))
        chosen = []
        for name, lengths in self.lengths.items():
            these = [at for at in order if len(pool[at].split()) in lengths][: self.count]
            place = "wiki_summaries held-out sentence {}"
            chosen.append([Item(f"{name}_{at:05d}", name, (pool[at],), place.format(at)) for at in these])
        items = [item for row in zip(*chosen, strict=False) for item in row]
        self.wanted = {item.id: lexicon.translate(item.turns[0]) for item in items}
        return items

    def score(self, item: Item, text: str) -> list[tuple[str, float, str]]:
        return against(self.wanted[item.id], text, item.turns[0])
