"""Curves of rate and quality compared: Bjontegaard rate differences against an anchor, and over which qualities."""

from __future__ import annotations

import numpy as np
import pandas as pd

from parsimony.errors import UserError

ANCHOR = "jpeg"
RATE = "bits_per_pixel"
ENOUGH = 4
"""Points that a curve needs."""


def curves(summary: pd.DataFrame, quality: str) -> dict[tuple[str, str, str], pd.DataFrame]:
    """By model, benchmark and method: means over items of `RATE` and ``quality``, a row a point, by rising rate."""
    pooled = summary[(summary["category"] == "all") & summary["quantity"].isin([RATE, quality])]
    keys = ["model", "benchmark", "method"]
    wide = pooled.pivot_table(index=[*keys, "point"], columns="quantity", values="value").dropna()
    if not {RATE, quality} <= set(wide.columns):
        return {}
    return {key: part.sort_values(RATE) for key, part in wide.groupby(level=keys)}


def compared(summary: pd.DataFrame, quality: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """By model, benchmark and method: ``bd_rate`` in percent against the anchor, and ``low`` and ``high`` quality.

    Curves are averaged over items before they are compared.  One that has no rate at equal quality, as it shares none
    with the anchor or gets worse as it spends more, has the ``reason`` alone; one of too few points is left out.
    """
    found, all_curves = {}, curves(summary, quality)
    for (model, benchmark, method), curve in all_curves.items():
        anchor = all_curves.get((model, benchmark, ANCHOR))
        if anchor is None or method == ANCHOR or min(len(anchor), len(curve)) < ENOUGH:
            continue
        try:
            value = bd_rate(anchor[RATE], anchor[quality], curve[RATE], curve[quality])
        except UserError as error:
            found[model, benchmark, method] = {"reason": str(error)}
            continue
        low = max(anchor[quality].min(), curve[quality].min())
        high = min(anchor[quality].max(), curve[quality].max())
        found[model, benchmark, method] = {"bd_rate": value, "low": low, "high": high}
    return found


def bd_rates(summary: pd.DataFrame, qualities: dict[str, str]) -> list[pd.DataFrame]:
    """Rows of a summary for quantities that compare curves (quantity -> quality), at the point "curve"."""
    rows = []
    for quantity, quality in qualities.items():
        for (model, benchmark, method), found in compared(summary, quality).items():
            mine = summary[(summary["benchmark"] == benchmark) & (summary["method"] == method)]
            row = {"model": model, "benchmark": benchmark, "method": method, "point": "curve", "category": "all"}
            row |= {"quantity": quantity, "value": found.get("bd_rate", np.nan), "low": np.nan, "high": np.nan}
            rows.append(row | {"n": mine["n"].max(), "unit": "%", "status": "ok", "reason": found.get("reason", "")})
    return [pd.DataFrame(rows)] if rows else []


def bd_rate(rate: np.ndarray, quality: np.ndarray, other_rate: np.ndarray, other_quality: np.ndarray) -> float:
    """Bjontegaard rate difference in percent of the second curve against the first (PCHIP).

    Raises
    ------
    UserError
        With fewer than four points on a curve, qualities that do not rise with the rate, or none in common.
    """
    import bjontegaard

    if min(len(rate), len(other_rate)) < ENOUGH:
        raise UserError(f"a BD-rate needs at least {ENOUGH} points on each curve; measure more operating points")
    if max(min(quality), min(other_quality)) >= min(max(quality), max(other_quality)):
        raise UserError("a BD-rate needs curves whose qualities overlap; choose operating points of like quality")
    rising = []
    for rates, qualities in ((rate, quality), (other_rate, other_quality)):
        order = np.argsort(rates)
        rising += [np.asarray(rates)[order], np.asarray(qualities)[order]]
        if (np.diff(rising[-1]) <= 0).any():
            raise UserError("a BD-rate needs curves whose quality rises with the rate; leave out points that do worse")
    # How far the curves overlap is said beside the number.
    return float(bjontegaard.bd_rate(*rising, method="pchip", require_matching_points=False, min_overlap=0))
