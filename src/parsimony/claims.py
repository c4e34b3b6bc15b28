"""Published claims as predicates over records: the ledger and the coverage of all papers."""

from __future__ import annotations

import math
import operator
from collections import Counter

import pandas as pd

from parsimony.config import Check, Paper, Quantity
from parsimony.quantities import QUANTITIES

RELATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
VERDICTS = ("reproduced", "not reproduced", "needs hardware", "not implemented")


def ledger(papers: dict[str, Paper], summary: pd.DataFrame) -> list[dict]:
    """One row a claim: as published, as measured, and the verdict.

    A claim without a check needs hardware that this suite does not have (or its study is not built: not implemented);
    so does a check whose records the suite has not measured.  What was measured but has no value, as a curve without a
    rate at equal quality, is not reproduced, for the reason in the note.  The point estimate decides; the note says
    where the interval crosses the threshold, and where the scale differs.
    """
    rows = []
    for key, paper in papers.items():
        for claim in paper.claims:
            row = {"paper": key, "claim": claim.id, "statement": claim.statement, "published": claim.published}
            row |= {"unit": claim.unit, "conditions": claim.conditions, "source": claim.source}
            rows.append(row | _judge(paper, claim.check, summary))
    return rows


def coverage(papers: dict[str, Paper], cells: list[dict], rows: list[dict], versions: dict) -> list[dict]:
    """One object a paper: what is built, planned, measured, and which published cells are older than today's code.

    Parameters
    ----------
    cells : list of dict
        ``id`` and ``papers`` of every cell of the plan.
    rows : list of dict
        The ledger.
    versions : dict
        ``{"published": {cell: code version}, "today": {cell: code version}}``.
    """
    out = []
    for key, paper in papers.items():
        mine = [row for row in rows if row["paper"] == key]
        ids = [cell["id"] for cell in cells if key in cell["papers"]]
        measured = sum(row["verdict"] in ("reproduced", "not reproduced") for row in mine)
        published, today = versions["published"], versions["today"]
        out.append(
            {
                "paper": key,
                "family": paper.family,
                "implemented": bool(paper.study),
                "cells": len(ids),
                "claims": len(mine),
                "claims_measured": measured,
                "verdicts": dict(sorted(Counter(row["verdict"] for row in mine).items())),
                "stale": [i for i in ids if i in published and published[i] != today.get(i)],
            }
        )
    return out


def _judge(paper: Paper, check: Check | None, summary: pd.DataFrame) -> dict:
    nothing = {"ours": None, "low": None, "high": None, "n": 0}
    if not paper.study:
        return nothing | {"verdict": "not implemented", "note": paper.pending}
    if check is None:
        return nothing | {
            "verdict": "needs hardware",
            "note": "its conditions cannot be met at the scale of this suite",
        }
    left = find(check.left, summary)
    right = find(check.right, summary) if isinstance(check.right, Quantity) else {"value": check.right}
    if left is None or right is None:
        if reason := undefined(check, summary):
            return nothing | {"verdict": "not reproduced", "note": f"{reason}. {check.scale}".strip()}
        return nothing | {"verdict": "needs hardware", "note": "not measured in this suite"}
    threshold = right["value"] * check.factor
    holds = RELATIONS[check.relation](left["value"], threshold)
    ours = {name: None if math.isnan(left[name]) else left[name] for name in ("value", "low", "high")}
    notes = [
        f"{left['method']} at {left['point']}: {check.left.quantity} {check.relation} {threshold:.4g}.",
        check.scale,
    ]
    if ours["low"] is not None and ours["low"] <= threshold <= ours["high"]:
        notes.append("The interval includes the threshold.")
    found = {"ours": ours["value"], "low": ours["low"], "high": ours["high"], "n": int(left["n"])}
    verdict = "reproduced" if holds else "not reproduced"
    return found | {"verdict": verdict, "note": " ".join(filter(None, notes))}


def undefined(check: Check, summary: pd.DataFrame) -> str:
    """Why a quantity of the check has no value though its cells were measured; empty where that is not so."""
    for wanted in filter(lambda side: isinstance(side, Quantity), (check.left, check.right)):
        reasons = [reason for reason in _named(wanted, summary)["reason"] if reason]
        if reasons and find(wanted, summary) is None:
            return f"{wanted.method} has no {wanted.quantity}: {reasons[0]}"
    return ""


def find(wanted: Quantity, summary: pd.DataFrame) -> dict | None:
    """The row of the summary that a `Quantity` names, or None; point "best" is the best by the quantity's direction."""
    rows = _named(wanted, summary)
    rows = rows[rows["value"].notna()]
    if rows.empty:
        return None
    lower = QUANTITIES[wanted.quantity].better == "lower"
    return rows.loc[rows["value"].idxmin() if lower else rows["value"].idxmax()].to_dict()


def _named(wanted: Quantity, summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of all points that a `Quantity` may mean, with a value or without."""
    rows = summary[
        (summary["quantity"] == wanted.quantity)
        & (summary["method"] == wanted.method)
        & (summary["benchmark"] == wanted.benchmark)
        & (summary["category"] == (wanted.category or "all"))
    ]
    return rows if wanted.point in (None, "best") else rows[rows["point"] == wanted.point]
