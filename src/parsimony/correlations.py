"""How a score goes with measures of likeness over the operating points of several methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from parsimony.config import Correlation
from parsimony.quantities import QUANTITIES
from parsimony.stats import ENOUGH, KEYS, LEVEL, measurable, resampled_values, wide_by_system

ALL = "every_codec"
"""What stands for the method in rows that are of several."""
RESAMPLES = 1000
FEWEST = 4
"""Operating points of which a correlation is told."""


def correlations(records: pd.DataFrame, wanted: list[Correlation], seed: int = 0) -> pd.DataFrame:
    """Rows like those of a summary: method `ALL`, the measure as point and the score as category.

    Signs are those of quantities that are better when higher: 1 says that what is measured as more alike scores better.
    ``low`` and ``high`` bound the 95 % interval of a bootstrap over items, the same for all points, and are NaN below
    30 items; ``n`` counts operating points.
    """
    rows = []
    for each in wanted:
        systems = wide_by_system(records, each.benchmark)
        for model in sorted({model for model, *_ in systems}):
            mine = {
                key[1:]: wide.dropna()  # items that a codec failed on
                for key, wide in systems.items()
                if key[0] == model and key[1] in each.methods
            }
            items = sorted(set.intersection(*(set(wide.index) for wide in mine.values()))) if mine else []
            if len(mine) < FEWEST or not items:
                continue
            shared = [wide.loc[items] for _, wide in sorted(mine.items())]
            if not all(measurable(QUANTITIES[each.score], wide) for wide in shared):
                continue
            score = _over_points(each.score, shared, seed)
            for measure in each.measures:
                if not all(measurable(QUANTITIES[measure], wide) for wide in shared):
                    continue
                found = _over_points(measure, shared, seed)
                for name, ranked in (("linear_correlation", False), ("rank_correlation", True)):
                    value, *many = _correlation(score, found, ranked)
                    low, high = _interval(many, len(items))
                    row = {"model": model, "benchmark": each.benchmark, "method": ALL, "point": measure}
                    row |= {"category": each.score, "quantity": name, "value": value, "low": low, "high": high}
                    rows.append(row | {"n": len(mine), "unit": "", "status": "ok", "reason": ""})
    columns = [*KEYS, "category", "quantity", "value", "low", "high", "n", "unit", "status", "reason"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(("value", "low", "high"), float))


def _over_points(name: str, shared: list[pd.DataFrame], seed: int) -> np.ndarray:
    """A quantity of each point [1 + resamples, points], the first row of all items; more is better."""
    quantity = QUANTITIES[name]
    values = np.stack([resampled_values(quantity, wide, seed, RESAMPLES) for wide in shared], 1)
    return -values if quantity.better == "lower" else values


def _correlation(x: np.ndarray, y: np.ndarray, ranked: bool) -> np.ndarray:
    """Correlation of each row of x with that of y, both [resamples, points]; NaN where one does not vary."""
    if ranked:
        x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = (each - each.mean(1, keepdims=True) for each in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def _interval(values: list[float], items: int) -> tuple[float, float]:
    if items < ENOUGH or not np.isfinite(values).any():
        return np.nan, np.nan
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
