"""The only place where numbers are derived from records: ratios of totals, paired bootstrap, ties, Pareto, BD-rates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pandas as pd

from parsimony import rate_distortion
from parsimony.quantities import QUANTITIES, Quantity

RESAMPLES = 2000
LEVEL = 0.95
ENOUGH = 30
"""Intervals are claimed on this many items or more."""
KEYS = ["model", "benchmark", "method", "point"]


def summarise(records: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Every quantity that the records allow, per model, benchmark, method, point and category ("all" pools).

    Returns
    -------
    DataFrame
        Columns model, benchmark, method, point, category, quantity, value, low, high, n, unit, status, reason.
        ``low`` and ``high`` bound the 95 % interval of a bootstrap over items, and are NaN below 30 items.
    """
    rows = []
    for key, group in records.groupby(KEYS, sort=True):
        common = dict(zip(KEYS, key, strict=True))
        sound = group[group["status"] != "skipped"]
        wide = sound.pivot_table(index="item", columns="metric", values="value", aggfunc="first", sort=True)
        category = sound.groupby("item")["category"].first().reindex(wide.index).to_numpy()
        kinds = {"all": np.ones(len(wide), bool)} | {kind: category == kind for kind in sorted(set(category))}
        values, places = wide.to_numpy(), {metric: n for n, metric in enumerate(wide.columns)}
        for name, quantity in QUANTITIES.items():
            if not measurable(quantity, wide):
                continue
            totals = values[:, [places[column] for column in _columns(quantity)]]
            whole = ~np.isnan(totals).any(1)
            for kind, mine in kinds.items():
                value, low, high, n = _estimate(quantity, totals[whole & mine], seed)
                rows.append(common | {"category": kind, "quantity": name, "value": value, "low": low, "high": high}
                            | {"n": n, "unit": quantity.unit, "status": "ok", "reason": ""})  # fmt: skip
        skipped = group[group["status"] == "skipped"].drop_duplicates("category")
        for kind, reason in zip(skipped["category"], skipped["reason"], strict=True):
            empty = {"quantity": "", "value": np.nan, "low": np.nan, "high": np.nan, "n": 0, "unit": ""}
            rows.append(common | {"category": kind, "status": "skipped", "reason": reason} | empty)
    columns = [*KEYS, "category", "quantity", "value", "low", "high", "n", "unit", "status", "reason"]
    summary = pd.DataFrame(rows, columns=columns)
    curves = {name: quantity.curve for name, quantity in QUANTITIES.items() if quantity.curve}
    return pd.concat([summary, *rate_distortion.bd_rates(summary, curves)], ignore_index=True)


def estimate(quantity: Quantity, wide: pd.DataFrame, seed: int = 0) -> tuple[float, float, float, int]:
    """Value, interval bounds and number of items of a quantity from one row an item, one column a metric."""
    return _estimate(quantity, wide[_columns(quantity)].dropna().to_numpy(), seed)


def _estimate(quantity: Quantity, totals: np.ndarray, seed: int) -> tuple[float, float, float, int]:
    """The same from what every item adds to the totals, [n, k]."""
    n = len(totals)
    if n == 0 or not totals.shape[1]:
        return np.nan, np.nan, np.nan, 0
    value = float(_ratio(quantity, totals.sum(0, keepdims=True), np.array([n]))[0])
    if n < ENOUGH:
        return value, np.nan, np.nan, n
    low, high = np.nanquantile(_ratio(quantity, *_resampled(totals, seed)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high), n


def paired_difference(quantity: Quantity, first: pd.DataFrame, second: pd.DataFrame, seed: int = 0):
    """Difference of a quantity between two systems on their common items, with its 95 % interval (paired bootstrap).

    Returns
    -------
    tuple of float
        (difference, low, high); the bounds are NaN below 30 common items.
    """
    columns = _columns(quantity)
    other = second[columns].dropna().add_suffix("_second")
    both = first[columns].dropna().join(other, how="inner").to_numpy()
    n, k = len(both), len(columns)
    if n == 0:
        return np.nan, np.nan, np.nan

    def difference(totals, count):
        return _ratio(quantity, totals[:, :k], count) - _ratio(quantity, totals[:, k:], count)

    value = float(difference(both.sum(0, keepdims=True), np.array([n]))[0])
    if n < ENOUGH:
        return value, np.nan, np.nan
    low, high = np.nanquantile(difference(*_resampled(both, seed)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)


def tie_group(quantity: Quantity, systems: dict[str, pd.DataFrame], seed: int = 0) -> list[str]:
    """Names of the best system and of all that the paired bootstrap cannot separate from it; empty below 30 items."""
    values = {name: estimate(quantity, wide, seed) for name, wide in systems.items() if measurable(quantity, wide)}
    values = {name: v for name, v in values.items() if v[3] >= ENOUGH and np.isfinite(v[0])}
    if not values or not quantity.better:
        return []
    sign = 1 if quantity.better == "higher" else -1
    best = max(values, key=lambda name: sign * values[name][0])
    group = [best]
    for name in values:
        if name != best:
            _, low, high = paired_difference(quantity, systems[best], systems[name], seed)
            if low <= 0 <= high:
                group.append(name)
    return group


def resampled_values(quantity: Quantity, wide: pd.DataFrame, seed: int, resamples: int) -> np.ndarray:
    """A quantity [1 + resamples] of all items and of items drawn with replacement, the same draws for any ``wide``."""
    totals = wide[_columns(quantity)].to_numpy()
    drawn, count = _resampled(totals, seed, resamples)
    everything = totals.sum(0, keepdims=True)
    return _ratio(quantity, np.concatenate((everything, drawn)), np.concatenate(([len(totals)], count)))


def wide_by_system(records: pd.DataFrame, benchmark: str) -> dict[tuple[str, str, str], pd.DataFrame]:
    """One row an item and one column a metric, for each (model, method, point) of a benchmark."""
    mine = records[(records["benchmark"] == benchmark) & (records["status"] != "skipped")]
    return {
        key: group.pivot_table(index="item", columns="metric", values="value", aggfunc="first")
        for key, group in mine.groupby(["model", "method", "point"])
    }


def by_model(summary: pd.DataFrame, records: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Summary and records in parts in which each benchmark has one model; with what tells the names of a part apart.

    All benchmarks of one model come first and need no name; of the others ("_model") each model is a part.
    """
    counts = summary.groupby("benchmark")["model"].nunique()
    several = set(counts[counts > 1].index)
    frames = summary, records
    yield "", *(frame[~frame["benchmark"].isin(several)] for frame in frames)
    for model in sorted(summary[summary["benchmark"].isin(several)]["model"].unique()):
        yield f"_{model}", *(frame[frame["benchmark"].isin(several) & (frame["model"] == model)] for frame in frames)


def pareto(points: np.ndarray, higher: tuple[bool, ...]) -> np.ndarray:
    """Mask [n] of the points ([n, k]) that no other point beats; ``higher`` says which way each axis is better."""
    x = np.asarray(points, float) * np.where(higher, 1, -1)
    as_good = (x[:, None] >= x[None]).all(-1)
    better = (x[:, None] > x[None]).any(-1)
    return ~(as_good & better).any(0)


def _columns(quantity: Quantity) -> list[str]:
    names = [*quantity.over, *((quantity.under,) if quantity.under else ()), *(quantity.against or ())]
    return list(dict.fromkeys(names))


def measurable(quantity: Quantity, wide: pd.DataFrame) -> bool:
    """Whether a table of one row an item has all that a quantity is derived from."""
    columns = _columns(quantity)
    if not columns or not set(columns) <= set(wide.columns):
        return False
    return not quantity.under or bool((wide[quantity.under] != 0).any())


def _resampled(totals: np.ndarray, seed: int, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Column totals [resamples, k] of items drawn with replacement, and how many were drawn."""
    n = len(totals)
    return _draws(n, seed, resamples) @ totals, np.full(resamples, n)


@lru_cache(maxsize=8)
def _draws(n: int, seed: int, resamples: int) -> np.ndarray:
    """How often each of n items is drawn, [resamples, n] float64: the same for all that has so many items."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _ratio(quantity: Quantity, totals: np.ndarray, count: np.ndarray) -> np.ndarray:
    at = {name: totals[:, n] for n, name in enumerate(_columns(quantity))}
    with np.errstate(divide="ignore", invalid="ignore"):
        value = sum(at[name] for name in quantity.over) / (at[quantity.under] if quantity.under else count)
        if quantity.against:
            over, under = quantity.against
            value = value / (at[over] / at[under])
    return value if quantity.scale is None else quantity.scale(value)
