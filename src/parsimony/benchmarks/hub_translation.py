"""Translation of a public test set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from parsimony.benchmarks.continuation import Continuation
from parsimony.benchmarks.correction import against
from parsimony.benchmarks.hub_media import rows
from parsimony.interfaces import Item


class HubTranslation(Continuation):
    """Sentences of a test set by length, in words of the source.

    Parameters
    ----------
    data : str
        The asset, whose ``test.parquet`` has a column ``translation``.
    source, target : str
        Languages.
    """

    lengths = {"words_01_15": range(1, 16), "words_16_25": range(16, 26), "words_26_80": range(26, 81)}

    def __init__(self, dtype: str, timed: bool, items: int, limit: int, data: str, source: str, target: str):
        super().__init__(dtype, timed, items, limit)
        self.data, self.source, self.target = data, source, target
        self.categories = {name: (data,) for name in self.lengths}

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if self.data not in paths:
            return []
        pool = list(pairs_of(paths[self.data], ["test.parquet"]))
        order, chosen = np.random.default_rng([seed, 3]).permutation(len(pool)), []
        for name, lengths in self.lengths.items():
            these = [at for at in order if len(pool[at][self.source].split()) in lengths][: self.count]
            place = f"{self.data} test row {{}}"
            chosen.append([Item(f"{name}_{at:05d}", name, (pool[at][self.source],), place.format(at)) for at in these])
        items = [item for row in zip_longest(*chosen) for item in row if item]
        self.wanted = {item.id: pool[int(item.id[-5:])][self.target] for item in items}
        return items

    def score(self, item: Item, text: str) -> list[tuple[str, float, str]]:
        return against(self.wanted[item.id], text, item.turns[0])


def pairs_of(folder: Path, files: list[str]) -> Iterator[dict[str, str]]:
    """Sentences by language, from the column ``translation`` of Parquet files."""
    for name in files:
        for row in rows(folder / name, ["translation"]):
            yield row["translation"]
