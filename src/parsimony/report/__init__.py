"""From records to tables, figures, the ledger and the page; runs no model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd

from parsimony import claims, records
from parsimony.correlations import correlations
from parsimony.errors import UserError
from parsimony.plan import Plan, find_root, make_plan, read_papers
from parsimony.quantities import QUANTITIES
from parsimony.stats import summarise

PUBLISHED = Path("results", "published")


def evaluate(overrides) -> tuple[Plan, list[dict], list[dict]]:
    """Plan, ledger and coverage of a suite, from whatever it has measured so far."""
    plan = make_plan(overrides)
    *_, rows, papers = _derive(plan, plan.root / "results" / plan.name / "cells")
    return plan, rows, papers


def write_report(plan: Plan, cells: Path, out: Path) -> Path:
    """Write everything derived from the records in ``cells`` to ``out``; returns the page.

    Raises
    ------
    UserError
        When there are no records, or a file of them is damaged.
    """
    from parsimony.report import figures, site, tables
    from parsimony.report import ledger as text

    if not _files(plan, cells):
        raise UserError(f"no records in {cells}; run `parsimony run suite={plan.name}` first")
    frame, provenance, summary, related, rows, papers = _derive(plan, cells)
    context = {
        "methods": {
            key: [other for other, config in plan.methods.items() if config.family == method.family]
            for key, method in plan.methods.items()
        },
        "references": {m.reference for m in plan.methods.values() if m.reference},
        "titles": {key: benchmark.title for key, benchmark in plan.benchmarks.items()},
        "columns": {key: benchmark.columns for key, benchmark in plan.benchmarks.items()},
        "conditions": _conditions(plan, provenance),
        "title": plan.suite.title,
        "suite": plan.name,
        "papers": plan.papers,
    }
    out.mkdir(parents=True, exist_ok=True)
    tables.write_tables(summary, frame, out / "tables", context)
    tables.write_correlations(related, out / "tables", context)
    figures.write_figures(summary, frame, out / "figures", context)
    (out / "numbers.tex").write_text(tables.numbers_tex(pd.concat([summary, related], ignore_index=True)))
    for name, data in (("ledger", rows), ("coverage", papers)):
        (out / f"{name}.json").write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
        (out / f"{name}.md").write_text(getattr(text, f"{name}_markdown")(data))
        (out / f"{name}.tex").write_text(getattr(text, f"{name}_latex")(data))
    page = out / "index.html"
    with records.atomic(page) as partial:
        partial.write_text(site.page(summary, frame, rows, papers, provenance, out / "figures", context))
    return page


def publish(plan: Plan, cells: Path) -> Path:
    """Copy the records of a suite to ``results/published`` and rebuild what is derived from them.

    Cells that were not measured this time, or skipped, stay as they were published; together they must be the suite.

    Raises
    ------
    UserError
        When cells are missing, a file is damaged, or it is a rehearsal.
    """
    if plan.suite.scale == "rehearsal":
        raise UserError("a rehearsal measures nothing: its records are not published")
    target = plan.root / PUBLISHED / "records"
    fresh = [file for file in _files(plan, cells) if not (_skipped(file) and (target / file.name).exists())]
    kept = {file.name for file in _files(plan, target)} - {file.name for file in fresh}
    missing = set(plan.cells) - {Path(name).stem for name in kept} - {file.stem for file in fresh}
    if missing:
        raise UserError(
            f"cell {min(missing)!r} is neither measured nor published; run `parsimony run suite={plan.name}` before "
            "publishing"
        )
    target.mkdir(parents=True, exist_ok=True)
    for file in target.iterdir():
        if file.name not in kept:
            file.unlink()
    for file in fresh:
        shutil.copyfile(file, target / file.name)
    (target / "suite.json").write_text(json.dumps({"suite": plan.name}) + "\n")
    return rebuild_published(plan.root)


def _skipped(file: Path) -> bool:
    """Whether nothing was measured, since a module or all data were missing."""
    return bool((records.read(file)[0]["status"] == "skipped").all())


def rebuild_published(root: Path | None = None) -> Path:
    """Tables, figures and page of ``results/published`` from the committed records, byte for byte."""
    root = root or find_root()
    folder = root / PUBLISHED / "records"
    try:
        suite = json.loads((folder / "suite.json").read_text())["suite"]
    except FileNotFoundError:
        raise UserError(f"no published records in {folder}; run `snakemake publish --config suite=local`") from None
    return write_report(make_plan([f"suite={suite}"], root), folder, root / PUBLISHED)


def _derive(plan: Plan, cells: Path):
    frame, provenance = records.read_all(_files(plan, cells))
    summary = summarise(frame, plan.suite.seed)
    mixed = [key for key, devices in _devices(plan, provenance).items() if len(devices) > 1]
    clocked = [key for key, quantity in QUANTITIES.items() if quantity.clocked]
    summary = summary[~(summary["benchmark"].isin(mixed) & summary["quantity"].isin(clocked))]
    papers = read_papers(plan.root)
    wanted = [each for paper in papers.values() for each in paper.correlations]
    related = correlations(frame, wanted, plan.suite.seed)
    rows = claims.ledger(papers, pd.concat([summary, related], ignore_index=True))
    _, published = records.read_all(sorted((plan.root / PUBLISHED / "records").glob("*.parquet")))
    versions = {
        "published": {cell: facts["code_version"] for cell, facts in published.items()},
        "today": {key: cell.code for key, cell in plan.cells.items()},
    }
    planned = [{"id": key, "papers": cell.papers} for key, cell in plan.cells.items()]
    return frame, provenance, summary, related, rows, claims.coverage(papers, planned, rows, versions)


def _conditions(plan: Plan, provenance: dict[str, dict]) -> dict[str, str]:
    """The sentence on device, seed and suite for each benchmark, and for "all" of them."""
    sentences = {}
    for key, devices in _devices(plan, provenance).items():
        names = " and ".join(f"{name}, {count} cores" for name, count in sorted(devices.items()))
        sentences[key] = f"{names}; seed {plan.suite.seed}; suite {plan.name}."
        if key != "all" and len(devices) > 1:
            sentences[key] += " Times and rates are left out, since rows come from different devices."
    return sentences


def _devices(plan: Plan, provenance: dict[str, dict]) -> dict[str, dict[str, int]]:
    """Devices, and the cores used of each, by benchmark and for "all" of them."""
    found: dict[str, dict[str, int]] = {}
    for cell, facts in provenance.items():
        for key in (plan.cells[cell].benchmark, "all"):
            devices = found.setdefault(key, {})
            # A cell that is not timed runs on one of the cores that a timed one takes.
            devices[facts["device"]] = max(devices.get(facts["device"], 0), facts["cores"])
    return found


def _files(plan: Plan, cells: Path) -> list[Path]:
    return [cells / f"{key}.parquet" for key in sorted(plan.cells) if (cells / f"{key}.parquet").exists()]
