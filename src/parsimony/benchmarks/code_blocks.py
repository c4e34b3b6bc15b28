"""Answers inside a block of code, by masked diffusion models: data sets of constrained decoding (arXiv 2508.10111)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

from parsimony.benchmarks.hub_media import rows
from parsimony.benchmarks.unmasked import Unmasked
from parsimony.interfaces import Item, Workbench
from parsimony.methods.diffusion.cfg_constrained import FENCE, Language
from parsimony.methods.diffusion.partial import Partial
from parsimony.models.token_bytes import as_bytes


@dataclass(frozen=True)
class Request:
    """A question, and what its answer has to be.

    Attributes
    ----------
    prompt : str
    wanted : object
        A right answer, or how to know one.
    begun : str
        What the block of code holds already.
    """

    prompt: str
    wanted: object
    begun: str = ""

    def block(self, text: str) -> str:
        """All that stands in the block of an answer."""
        return self.begun + text.partition(FENCE)[0]


@cache
def _language(name: str) -> Language:
    return Language.named(name)


class CodeBlocks(Unmasked):
    """Rows of a data set of the hub; the answer begins inside a block of code, which is opened for it.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
    limit : int
        Tokens of an answer, all of which are unmasked.
    """

    ASSET: str
    FILE: str
    NAME: str
    """Of the block of code."""

    def __init__(self, dtype: str, timed: bool, items: int, limit: int):
        self.dtype, self.timed, self.count, self.limit = dtype, timed, items, limit

    @abstractmethod
    def request(self, row: dict) -> Request:
        """What a row of the data set asks for."""

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.asked, found = {}, []
        table = list(rows(paths[self.ASSET] / self.FILE)) if self.ASSET in paths else []
        for n in np.random.default_rng(seed).permutation(len(table))[: self.count]:
            key = f"row_{n:03d}"
            self.asked[key] = self.request(table[n])
            found.append(Item(key, self.NAME, (self.asked[key].prompt,), f"{self.ASSET} row {n}"))
        return found

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {self.NAME: missing[self.ASSET]} if self.ASSET in missing else {}

    def encoded(self, asked: Request, model) -> Tensor:
        said = model.tokenizer.chat([{"role": "user", "content": asked.prompt}])
        return model.encode(f"{said}{FENCE}{self.NAME}\n{asked.begun}")

    def is_sentence(self, text: str) -> bool:
        """Whether a text belongs to the grammar that the block is named after."""
        return _language(self.NAME).possible(Partial.of([as_bytes(text)], ended=True))

    def length(self, asked: Request, model) -> int:
        return self.limit

    def beside(self, asked: Request, system, model, bench: Workbench, item: str) -> dict[str, float]:
        return {"resamples": system.resamples, "check_seconds": system.check_seconds}
