"""The claims ledger and the coverage of all papers, for people."""

from __future__ import annotations

from parsimony.report.tables import latex, markdown

LEDGER = ["paper", "claim", "published", "measured", "verdict", "note"]
COVERAGE = ["paper", "family", "built", "cells", "claims", "measured", "verdicts", "older than the code"]


def ledger_markdown(rows: list[dict]) -> str:
    """All claims, one line each."""
    return markdown(LEDGER, _ledger_rows(rows), [])


def ledger_latex(rows: list[dict]) -> str:
    """All claims as a booktabs table."""
    return latex(LEDGER, _ledger_rows(rows), [], "Published claims and what was measured here.")


def coverage_markdown(rows: list[dict]) -> str:
    """All papers, one line each."""
    return markdown(COVERAGE, _coverage_rows(rows), [])


def coverage_latex(rows: list[dict]) -> str:
    """All papers as a booktabs table."""
    return latex(COVERAGE, _coverage_rows(rows), [], "Papers: what is built and measured.")


def measured(row: dict) -> str:
    """A measured value with its interval, or a dash."""
    if row["ours"] is None:
        return "\u2014"
    text = f"{row['ours']:.4g}"
    return text if row["low"] is None else f"{text} [{row['low']:.4g}, {row['high']:.4g}]"


def _ledger_rows(rows):
    return [[r["paper"], r["claim"], r["published"], measured(r), r["verdict"], r["note"]] for r in rows]


def _coverage_rows(rows):
    return [
        [
            row["paper"],
            row["family"],
            "yes" if row["implemented"] else "not yet",
            str(row["cells"]),
            str(row["claims"]),
            str(row["claims_measured"]),
            ", ".join(f"{count} {verdict}" for verdict, count in row["verdicts"].items()),
            str(len(row["stale"])),
        ]
        for row in rows
    ]
