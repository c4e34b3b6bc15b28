"""Tables and figures: whole, marked only where a test separates, and the same bytes for the same records."""

import re

import pandas as pd
import pytest
from synthetic import write_report_of

from parsimony.plan import make_plan, read_papers
from parsimony.quantities import QUANTITIES
from parsimony.report.tables import where_it_pays


@pytest.fixture(scope="module")
def report(tmp_path_factory, root):
    return write_report_of(tmp_path_factory.mktemp("a"), root).parent


def test_the_same_records_give_the_same_bytes(report, tmp_path, root):
    again = write_report_of(tmp_path, root).parent
    files = sorted(p.relative_to(report) for p in report.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for name in files:
        assert (report / name).read_bytes() == (again / name).read_bytes(), name


def test_latex_tables_are_whole(report):
    tables = list(report.glob("tables/*.tex"))
    assert len(tables) >= 5
    for path in tables:
        text = path.read_text()
        assert re.findall(r"\\(toprule|midrule|bottomrule)", text) == ["toprule", "midrule", "bottomrule"]
        columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text).group(1))
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body.splitlines() if line.endswith(r"\\")} == {
            columns
        }
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}")


def test_the_best_is_bold_only_where_it_is_separated(report):
    speed = (report / "tables" / "spec_mix_speed.md").read_text()
    bold = [line for line in speed.splitlines() if "**" in line]
    assert bold and all("tree 80" not in line for line in bold)  # auto is made to be the fastest


def test_times_of_different_devices_never_stand_in_one_table(report, tmp_path, root):
    mixed = write_report_of(tmp_path, root, elsewhere="token_recycling").parent
    alone, together = ((folder / "tables" / "spec_mix_speed.md").read_text() for folder in (report, mixed))
    assert "Share of time spent drafting" in alone and "Share of time spent drafting" not in together
    assert "Speed-up" in together  # paired in one process
    assert "left out" in together and "left out" not in alone


def test_fonts_are_embedded_as_type_42(report):
    figures = list(report.glob("figures/*.pdf"))
    assert len(figures) >= 4
    for path in figures:
        data = path.read_bytes()
        assert b"/Type3" not in data and b"/FontFile2" in data or b"/ObjStm" in data, path
        assert b"CreationDate" not in data
        assert path.with_suffix(".png").exists() and path.with_suffix(".csv").exists()


def test_numbers_are_named(report):
    text = (report / "numbers.tex").read_text()
    assert r"\newcommand{\parsimony}[1]" in text
    assert "parsimony@spec_mix_speed/smollm2_135m_instruct/token_recycling/auto/speedup\\endcsname{" in text


def test_53_papers_in_ledger_and_coverage(report):
    import json

    assert len(json.loads((report / "coverage.json").read_text())) == 53
    assert len({row["paper"] for row in json.loads((report / "ledger.json").read_text())}) == 53


def test_it_says_where_a_method_pays_and_where_it_loses():
    columns = ["benchmark", "model", "method", "point", "category", "quantity", "value", "low", "high"]
    rows = [
        ("b", "m", "quick", "a", "all", "speedup", 1.5, 1.4, 1.6),
        ("b", "m", "quick", "a", "code", "speedup", 2.0, None, None),
        ("b", "m", "quick", "a", "maths", "speedup", 0.9, None, None),
        ("b", "m", "quick", "z", "all", "speedup", 0.5, 0.4, 0.6),
        ("b", "m", "slow", "a", "all", "speedup", 0.8, 0.7, 0.9),
        ("b", "m", "slow", "a", "code", "speedup", 1.0, None, None),
        ("b", "m", "unsure", "a", "all", "speedup", 1.1, 0.9, 1.2),
    ]
    _, found = where_it_pays(pd.DataFrame(rows, columns=columns))
    assert [row[1:3] + row[4:] for row in found] == [
        ["quick", "a", "faster", "code", "maths"],
        ["unsure", "a", "no difference shown", "nowhere", "nowhere"],
        ["slow", "a", "slower", "nowhere", "nowhere"],
    ]


def test_every_quantity_that_a_config_names_is_derived(root):
    """In tables, figures and claims; a misspelt one would be left out in silence."""
    papers = read_papers(root).values()
    named = {name for benchmark in make_plan([], root).benchmarks.values() for name in benchmark.columns}
    figures = [figure for paper in papers for figure in paper.figures]
    named |= {figure.quantity for figure in figures}
    named |= {figure.against.partition(":")[2] for figure in figures if figure.against.startswith("quantity:")}
    checks = [claim.check for paper in papers for claim in paper.claims if claim.check]
    sides = [side for check in checks for side in (check.left, check.right) if not isinstance(side, float)]
    named |= {side.quantity for side in sides}
    related = [each for paper in papers for each in paper.correlations]
    named |= {name for each in related for name in (each.score, *each.measures)}
    assert len(sides) > 40 and named <= set(QUANTITIES)
