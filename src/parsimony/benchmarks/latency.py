"""The latency curve of this machine: seconds of one forward pass against dtype and rows verified."""

from __future__ import annotations

from statistics import median

import pandas as pd

from parsimony.interfaces import Item, Outcome, Workbench


class Latency:
    """Times forward passes over ``rows`` tokens behind ``context`` cached ones, head and argmax included.

    Parameters
    ----------
    dtypes : list of str
    rows : list of int
    context : int
    repeats : int
        Passes a size; the median is recorded, after one that warms up.
    """

    timed = True

    def __init__(self, dtypes: list[str], rows: list[int], context: int, repeats: int):
        self.context, self.repeats = context, repeats
        self.sizes = {Item(f"{dtype}_{count}", dtype): count for dtype in dtypes for count in rows}

    def items(self, paths, seed: int) -> list[Item]:
        return list(self.sizes)

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, rows = Outcome(), self.sizes[item]
        for point in bench.points:
            system = bench.system(point, item.category)
            seconds = median(system.forward_seconds(rows, self.context, self.repeats))
            outcome.numbers += [(point, "rows", rows, "tokens"), (point, "seconds", seconds, "s")]
        return outcome


def fastest_dtype(records: pd.DataFrame) -> str:
    """The dtype in which one row takes the least time, from the records of this benchmark."""
    curve = records[records["status"] == "ok"].pivot(index=["category", "item"], columns="metric", values="value")
    one = curve[curve["rows"] == curve["rows"].min()]["seconds"]
    return one.idxmin()[0]
