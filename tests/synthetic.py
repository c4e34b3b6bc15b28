"""Records in the form in which cells write them, with made-up numbers, for tests of what is derived from them."""

import json
from pathlib import Path

import numpy as np

from parsimony import records
from parsimony.plan import make_plan
from parsimony.report import write_report

CATEGORIES = ("maths", "code", "summarisation")
POINTS = {"prompt_lookup": ["ngram_2", "auto"], "token_recycling": ["tree_80", "auto"]}


def rows(plan, cell, n=36, seed=0):
    """Records of one cell; speed and acceptance differ by method."""
    rng = np.random.default_rng([seed, len(cell.id)])
    out = []
    base = {"suite": plan.name, "cell": cell.id, "model": cell.model, "benchmark": cell.benchmark}
    base |= {"method": cell.method, "seed": 0, "status": "ok", "reason": "", "unit": ""}

    def add(point, item, category, **values):
        params = json.dumps(plan.methods[cell.method].params | plan.methods[cell.method].points[point])
        for metric, value in values.items():
            here = {"point": point, "params": params, "item": item, "category": category}
            out.append(base | here | {"metric": metric, "value": float(value)})

    for rank, point in enumerate(cell.points):
        if cell.benchmark == "latency":
            for dtype, per_row in (("float32", 2.0), ("bfloat16", 0.6)):
                for count in (1, 4, 16, 64):
                    add(point, f"{dtype}_{count}", dtype, rows=count, seconds=0.01 * per_row + 0.0005 * count)
            continue
        for n_item in range(n):
            item, category = f"item_{n_item:03d}", CATEGORIES[n_item % len(CATEGORIES)]
            if cell.benchmark == "wiki_nll":
                add(point, item, "encyclopaedia", nll=rng.normal(900, 30), tokens=300, bytes=1300)
                continue
            passes = rng.integers(15, 25)
            gained = passes * (1.0 if cell.method == "greedy" else 1.4 + 0.3 * rank)
            shared = {"tokens": gained + 1, "step_tokens": gained, "passes": passes, "drafted": passes * 9}
            shared |= {"accepted": gained - passes, "cache_bytes": 1e7, "state_bytes": 1.5e6}
            if cell.benchmark == "spec_mix_speed":
                took = shared["tokens"] * 0.01 / (1.1 + 0.1 * rank) * rng.lognormal(0, 0.05)
                shared |= {"seconds": took, "draft_seconds": took / 20, "reference_tokens": shared["tokens"]}
                shared |= {"reference_seconds": shared["tokens"] * 0.01, "diverged": n_item % 9 == 0}
            elif cell.method != "greedy":
                shared |= {"equal": 1, "tie": 0}
            add(point, item, category, **shared)
        skip = {"point": point, "params": "{}", "item": "", "category": "translation", "metric": "items"}
        out.append(base | skip | {"value": float("nan"), "status": "skipped", "reason": "no handbook here"})
    return out


def write_report_of(folder: Path, root: Path, elsewhere: str = "") -> Path:
    """A whole report on synthetic records, those of method ``elsewhere`` from another device; returns its page."""
    plan = make_plan([], root)
    facts = {"code_version": "c", "commit": "abc", "device": "a processor", "cores": 2, "dtype": "float32"}
    facts |= {"determinism": "seeded", "libraries": {"torch": "1"}, "python": "3.11"}
    for cell in plan.cells.values():
        facts["device"] = "another processor" if cell.method == elsewhere else "a processor"
        records.publish(records.table_of(rows(plan, cell)), folder / "cells" / f"{cell.id}.parquet", facts)
    return write_report(plan, folder / "cells", folder / "report")
