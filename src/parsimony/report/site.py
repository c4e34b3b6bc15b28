"""One self-contained HTML page: leaderboards, plots, claims, coverage and provenance, offline and on a phone."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from parsimony.claims import VERDICTS
from parsimony.quantities import QUANTITIES
from parsimony.report.ledger import measured
from parsimony.report.style import look, words
from parsimony.report.tables import headline, where_it_pays


def page(summary: pd.DataFrame, records: pd.DataFrame, rows, papers, provenance, figures: Path, context: dict) -> str:
    """The page as text; everything it shows is inside it.

    Parameters
    ----------
    summary, records : DataFrame
        What `stats.summarise` made of the records, and the records.
    rows, papers : list of dict
        Ledger and coverage.
    provenance : dict
        Facts of each cell.
    figures : Path
        Folder whose PNG figures are embedded.
    """
    environment = Environment(loader=PackageLoader("parsimony.report"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"words": words, "measured": measured}
    return environment.get_template("page.html").render(
        context=context,
        boards=[_board(summary, benchmark, context) for benchmark in sorted(summary["benchmark"].unique())],
        pays=where_it_pays(summary),
        verdicts=[(verdict, Counter(row["verdict"] for row in rows)[verdict]) for verdict in VERDICTS],
        ledger=sorted(rows, key=lambda row: VERDICTS.index(row["verdict"])),  # what was measured comes first
        coverage=papers,
        provenance=provenance,
        figures=[
            (words(file.stem), base64.b64encode(file.read_bytes()).decode()) for file in sorted(figures.glob("*.png"))
        ],
        plots=json.dumps(_plots(summary, records, context)).replace("</", "<\\/"),
    )


def _board(summary: pd.DataFrame, benchmark: str, context: dict) -> dict:
    """One leaderboard: a row a method and point, a cell a quantity with its number for sorting and its text."""
    mine = summary[summary["benchmark"] == benchmark]
    pooled = mine[(mine["category"] == "all") & mine["value"].notna()]
    wanted = headline(pooled, context["columns"].get(benchmark))
    pooled, rows = pooled[pooled["quantity"].isin(wanted)], []
    for (model, method, point), part in pooled.groupby(["model", "method", "point"]):
        at = part.set_index("quantity")
        cells = [_cell(quantity, at.loc[quantity]) if quantity in at.index else None for quantity in wanted]
        rows.append({"model": model, "method": method, "point": point, "cells": cells})
    skipped = mine[mine["status"] == "skipped"].drop_duplicates(["category", "reason"])
    return {
        "key": benchmark,
        "title": context["titles"].get(benchmark, benchmark),
        "heads": [QUANTITIES[quantity] for quantity in wanted],
        "rows": rows,
        "n": int(mine["n"].max()),
        "skipped": [f"{words(row.category)}: {row.reason}" for row in skipped.itertuples()],
    }


def _cell(quantity: str, row) -> dict:
    scale = 1e-6 if QUANTITIES[quantity].unit == "bytes" else 1
    span = f"{row['low'] * scale:.3g} to {row['high'] * scale:.3g}" if pd.notna(row["low"]) else ""
    return {"value": row["value"], "text": f"{row['value'] * scale:.4g}", "span": span, "mega": scale != 1}


PLOTS = (
    (
        "mean_accepted_tokens",
        "speedup",
        "Speed-up against accepted tokens",
        {"x": "mean accepted tokens per pass", "y": "speed-up over the reference", "rule": 1},
    ),
    (
        "tokens_per_step",
        "task_score",
        "Score against tokens a step",
        {"x": "tokens a step", "y": "score", "rule": None},
    ),
    (
        "bits_per_pixel",
        "psnr",
        "PSNR against bits per pixel",
        {"x": "bits per pixel", "y": "PSNR of RGB (dB)", "rule": None},
    ),
)
"""Two quantities, a title, and the axes of a plot of a benchmark's operating points."""


def _plots(summary: pd.DataFrame, records: pd.DataFrame, context: dict) -> list[dict]:
    """Data of the zoomable plots: speed-up against accepted tokens, score against tokens a step, PSNR against bits,
    the latency curve."""
    plots = []
    for benchmark in sorted(summary["benchmark"].unique()):
        pooled = summary[(summary["benchmark"] == benchmark) & (summary["category"] == "all")]
        table = pooled.pivot_table(index=["method", "point"], columns="quantity", values="value")
        for x, y, title, axes in PLOTS:
            if not {x, y} <= set(table.columns):
                continue
            dots = [
                {"x": row[x], "y": row[y], "label": f"{words(m)}, {words(p)}"}
                | {"colour": look(m, context["methods"][m], context["references"])["color"]}
                for (m, p), row in table[table[x].notna() & table[y].notna()].iterrows()
            ]
            plots.append({"title": f"{title}: {words(benchmark)}", "lines": [], "dots": dots} | axes)
    curve = records[(records["benchmark"] == "latency") & (records["status"] == "ok")]
    if not curve.empty:
        table = curve.pivot_table(index=["category", "item"], columns="metric", values="value").reset_index()
        dtypes, lines = sorted(table["category"].unique()), []
        for dtype in dtypes:
            part = table[table["category"] == dtype].sort_values("rows")
            points = [[rows, 1e3 * seconds] for rows, seconds in zip(part["rows"], part["seconds"], strict=True)]
            lines.append({"label": dtype, "colour": look(dtype, dtypes, set())["color"], "points": points})
        axes = {"x": "rows verified in one pass", "y": "milliseconds", "rule": None}
        plots.append({"title": "Latency against rows verified", "lines": lines, "dots": []} | axes)
    return plots
