"""Data extraction into JSON under a schema, by masked diffusion models (arXiv 2508.10111)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from parsimony.benchmarks.hub_media import rows
from parsimony.benchmarks.unmasked import Unmasked
from parsimony.interfaces import Item, Workbench

ASSET = "json_mode_eval"
FENCE = "```"


@dataclass(frozen=True)
class Request:
    """A text, the schema of what to say about it, and the object that is wanted."""

    prompt: str
    schema: dict
    wanted: object

    def read(self, text: str) -> tuple[bool, object]:
        """Whether an answer follows the schema, and what it says."""
        from jsonschema import ValidationError, validate

        try:
            found = json.loads(text.partition(FENCE)[0])
            validate(found, self.schema)
        except (ValueError, ValidationError):
            return False, None
        return True, found


class JsonMode(Unmasked):
    """Rows of JSON-mode-eval-extended; the answer begins inside a block of code, which is opened for it.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
    limit : int
        Tokens of an answer, all of which are unmasked.
    """

    def __init__(self, dtype: str, timed: bool, items: int, limit: int):
        self.dtype, self.timed, self.count, self.limit = dtype, timed, items, limit

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.asked, found = {}, []
        table = list(rows(paths[ASSET] / "test.parquet", ["input", "output", "schema"])) if ASSET in paths else []
        for n in np.random.default_rng(seed).permutation(len(table))[: self.count]:
            row, key = table[n], f"row_{n:03d}"
            told = f"Answer in JSON that follows this schema:\n<schema>\n{row['schema']}\n</schema>\n\n{row['input']}"
            self.asked[key] = Request(told, json.loads(row["schema"]), json.loads(row["output"]))
            found.append(Item(key, "json", (told,), f"{ASSET} row {n}"))
        return found

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {"json": missing[ASSET]} if ASSET in missing else {}

    def encoded(self, asked: Request, model) -> Tensor:
        said = model.tokenizer.chat([{"role": "user", "content": asked.prompt}])
        return model.encode(f"{said}{FENCE}json\n")

    def length(self, asked: Request, model) -> int:
        return self.limit

    def grade(self, asked: Request, text: str) -> dict[str, float]:
        follows, found = asked.read(text)
        return {"score": float(follows and found == asked.wanted), "parses": float(follows)}

    def beside(self, asked: Request, system, model, bench: Workbench, item: str) -> dict[str, float]:
        return {"resamples": system.resamples, "check_seconds": system.check_seconds}
