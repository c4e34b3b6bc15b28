"""Lossy coding of the pictures of a public data set, each as a whole."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from parsimony.benchmarks.hub_media import picture, rows
from parsimony.benchmarks.photographs import Photographs
from parsimony.interfaces import Item


class HubPhotographs(Photographs):
    """The first pictures of a Parquet file.

    Parameters
    ----------
    dtype : str
        Of the samples.
    timed : bool
    data, file, column : str
        The asset, its file and the column of pictures.
    items : int
    side : int
        Of the smallest picture, in pixels.
    """

    def __init__(self, dtype: str, timed: bool, data: str, file: str, column: str, items: int, side: int):
        super().__init__(dtype, timed, items, side)
        self.data, self.file, self.column = data, file, column

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        table = rows(paths[self.data] / self.file, [self.column]) if self.data in paths else ()
        found = enumerate(islice(table, self.count))
        self.squares = {f"row_{n:05d}": picture(row[self.column]) for n, row in found}
        return [Item(key, self.data, (), self.data) for key in self.squares]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {self.data: missing[self.data]} if self.data in missing else {}
