"""booktabs LaTeX, Markdown and CSV tables, and ``numbers.tex``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from parsimony.quantities import QUANTITIES
from parsimony.report import rate_distortion
from parsimony.report.style import words
from parsimony.stats import ENOUGH, KEYS, by_model, tie_group, wide_by_system

BY_CATEGORY = (
    "mean_accepted_tokens", "speedup", "speedup_alone", "equal_answers", "realign_share", "grouping_rate",
    "task_score", "ideal_gap", "bits_per_dimension",
)  # fmt: skip
LEVELS = (0.9, 0.8, 0.7, 0.6)
"""Scores at which ParallelBench states the parallelism that a strategy affords (PB90 to PB60)."""
ESCAPES = {letter: "\\" + letter for letter in "&%_#${}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def write_tables(summary: pd.DataFrame, records: pd.DataFrame, out: Path, context: dict) -> list[Path]:
    """Write every table for which there is data as ``.tex``, ``.md`` and ``.csv``; returns the ``.tex`` paths.

    Parameters
    ----------
    context : dict
        ``titles``, ``columns`` and ``conditions`` (the sentence on device, seed and suite) of each benchmark's table.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = []
    if (paying := where_it_pays(summary))[1]:
        made.append(
            _write(out / "where_it_pays", *paying, [], f"Where speculation pays. {context['conditions']['all']}")
        )
    for end, part, measured in by_model(summary, records):
        for benchmark, mine in part.groupby("benchmark"):
            name, model = f"{benchmark}{end}", mine["model"].iloc[0]
            about = f"{context['titles'].get(benchmark, benchmark)}. {model}; {context['conditions'][benchmark]}"
            systems = wide_by_system(measured, benchmark)
            if (afforded := parallelism(mine))[1]:
                title = "The most tokens a step among points with at least this mean score (PB90 to PB60)."
                made.append(_write(out / f"{name}_parallelism", *afforded, [], f"{title} {about}"))
            if (differences := rate_distortion.table(mine))[1]:
                made.append(_write(out / f"{name}_bd_rate", *differences, [rate_distortion.NOTE], about))
            head, rows, notes = _overview(mine, systems, context["columns"].get(benchmark))
            if len(head) > 2:
                made.append(_write(out / name, head, rows, notes, f"{about} {_interval_note(mine)}"))
            for quantity in BY_CATEGORY:
                head, rows, notes = _by_category(mine, quantity)
                if rows:
                    title = QUANTITIES[quantity].title
                    made.append(_write(out / f"{name}_{quantity}", head, rows, notes, f"{title} by category. {about}"))
    return made


def write_correlations(related: pd.DataFrame, out: Path, context: dict) -> None:
    """Write how scores go with measures of likeness (`correlations.correlations`), a row a measure, if any do."""
    if related.empty:
        return
    wide = related.set_index(["benchmark", "category", "point", "quantity"])
    head = ["benchmark", "score", "measure", "Pearson", "Spearman", "operating points"]
    rows = []
    for benchmark, score, measure in wide.index.droplevel("quantity").drop_duplicates():
        both = [wide.loc[(benchmark, score, measure, name)] for name in ("linear_correlation", "rank_correlation")]
        values = [_value(row.name[-1], row) for row in both]
        rows.append([words(benchmark), words(score), words(measure), *values, str(both[0]["n"])])
    title = "Correlation of scores with measures of likeness over the operating points of several codecs."
    _write(out / "correlations", head, rows, [], f"{title} Brackets: 95 % interval, bootstrap over items. "
           f"{context['conditions']['all']}")  # fmt: skip


def where_it_pays(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table that says of each method's best point whether it is faster than the reference.

    The pooled verdict is that of the interval, where there is one; categories go by their point estimates, and those
    within 5 % of the reference are left out.
    """
    speed = summary[(summary["quantity"] == "speedup") & summary["value"].notna()]
    pooled, rows = speed[speed["category"] == "all"], []
    best = pooled.loc[pooled.groupby(["benchmark", "model", "method"])["value"].idxmax()]
    for row in best.sort_values(["benchmark", "value"], ascending=[True, False]).itertuples():
        key = {name: getattr(row, name) for name in KEYS}
        mine = speed[(speed[list(key)] == list(key.values())).all(axis=1)]
        parts = mine[mine["category"] != "all"]
        faster, slower = parts[parts["value"] > 1.05], parts[parts["value"] < 0.95]
        low, high = (row.value if pd.isna(bound) else bound for bound in (row.low, row.high))
        verdict = "faster" if low > 1 else "slower" if high < 1 else "no difference shown"
        where = [", ".join(map(words, part["category"])) or "nowhere" for part in (faster, slower)]
        value = _value("speedup", {"value": row.value, "low": row.low, "high": row.high})
        rows.append([words(row.benchmark), words(row.method), words(row.point), value, verdict, *where])
    return ["benchmark", "method", "best point", "speed-up", "verdict", "faster in", "slower in"], rows


def parallelism(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows of ParallelBench's PBx: by method, and for the oracle that chooses a method's point for each item.

    x of PBx is a mean score over the tasks; a method that reaches it at no point gets a dash.
    """
    pooled = summary[(summary["category"] == "all") & summary["value"].notna()]
    wide = pooled.pivot_table(index=["method", "point"], columns="quantity", values="value")
    if not {"task_score", "tokens_per_step"} <= set(wide.columns):
        return [], []
    rows = []
    for score, speed, chosen in (
        ("task_score", "tokens_per_step", "best point for all"),
        ("oracle_score", "oracle_tokens_per_step", "best point for each item"),
    ):
        for method, part in wide.groupby("method"):
            row = [words(method), chosen]
            for level in LEVELS:
                enough = part[part[score] >= level]
                row.append(_number(speed, enough[speed].max()) if len(enough) else "\u2014 (not reached)")
            rows.append(row)
    return ["method", "chosen", *(f"PB{round(100 * level)}" for level in LEVELS)], rows


def numbers_tex(summary: pd.DataFrame) -> str:
    """Every pooled value as ``\\parsimony{benchmark/method/point/quantity}``; an unknown name is an error in TeX."""
    lines = [
        r"\newcommand{\parsimony}[1]{\ifcsname parsimony@#1\endcsname\csname parsimony@#1\endcsname\else"
        r"\PackageError{parsimony}{no number called #1}{}\fi}"
    ]
    for row in summary[summary["value"].notna()].itertuples():
        place = "" if row.category == "all" else f"/{row.category}"
        name = f"{row.benchmark}/{row.model}/{row.method}/{row.point}/{row.quantity}{place}"
        lines.append(rf"\expandafter\def\csname parsimony@{name}\endcsname{{{_number(row.quantity, row.value)}}}")
    return "\n".join(lines) + "\n"


def latex(head: list[str], rows: list[list[str]], notes: list[str], caption: str) -> str:
    """A booktabs table; cells starting with ``**`` are set bold."""

    def cell(text: str) -> str:
        bold = text.startswith("**")
        plain = "".join(ESCAPES.get(letter, letter) for letter in text.strip("*")).replace("\u2014", "---")
        return rf"\textbf{{{plain}}}" if bold else plain

    body = [" & ".join(map(cell, row)) + r" \\" for row in rows]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{cell(caption)}}}"]
    lines += [rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", r"\toprule", " & ".join(map(cell, head)) + r" \\"]
    lines += [r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {cell(note)}" for note in notes] + [r"\end{table}", ""]
    return "\n".join(lines)


def markdown(head: list[str], rows: list[list[str]], notes: list[str], caption: str = "") -> str:
    """A Markdown table with its notes."""
    safe = [[text.replace("|", "\\|") for text in row] for row in [head, *rows]]
    lines = [caption, ""] if caption else []
    lines += ["| " + " | ".join(row) + " |" for row in safe]
    lines.insert(len(lines) - len(rows), "|" + "---|" * len(head))
    return "\n".join([*lines, "", *notes]) + "\n"


def headline(pooled: pd.DataFrame, columns: list[str] | None) -> list[str]:
    """The quantities that a benchmark's table shows: those of ``columns`` that were measured, or all."""
    measured = set(pooled["quantity"])
    return [quantity for quantity in columns or QUANTITIES if quantity in measured]


def _overview(summary, systems, columns):
    """One row a method and point, one column a quantity; the best and its ties are bold where a test separates them."""
    pooled = summary[(summary["category"] == "all") & summary["value"].notna()]
    wanted = headline(pooled, columns)
    pooled = pooled[pooled["quantity"].isin(wanted)]
    best = {q: tie_group(QUANTITIES[q], systems) if len(systems) > 1 else [] for q in wanted}
    head = ["method", "point", *(QUANTITIES[q].title for q in wanted)]
    rows = []
    for (model, method, point), part in pooled.groupby(["model", "method", "point"]):
        at = part.set_index("quantity")
        row = [words(method), words(point)]
        for quantity in wanted:
            text = "\u2014 (does not apply)" if quantity not in at.index else _value(quantity, at.loc[quantity])
            group = best[quantity]
            separated = 0 < len(group) < len(systems)
            row.append(f"**{text}**" if separated and (model, method, point) in group else text)
        rows.append(row)
    return head, rows, _reasons(summary)


def _by_category(summary, quantity):
    data = summary[(summary["quantity"] == quantity) & summary["value"].notna()]
    kinds = ["all", *sorted(set(summary["category"]) - {"all"})]
    rows = []
    for (method, point), part in data.groupby(["method", "point"]):
        at = part.set_index("category")
        skipped = set(summary[summary["status"] == "skipped"]["category"])
        cells = [
            _value(quantity, at.loc[k]) if k in at.index else "skipped*" if k in skipped else "not run" for k in kinds
        ]
        rows.append([words(method), words(point), *cells])
    return ["method", "point", *map(words, kinds)], rows, _reasons(summary)


def _reasons(summary) -> list[str]:
    skipped = summary[summary["status"] == "skipped"].drop_duplicates(["category", "reason"])
    return [f"* {words(row.category)} skipped: {row.reason}." for row in skipped.itertuples()]


def _interval_note(summary) -> str:
    if summary["low"].notna().any():
        return f"Brackets: 95 % interval, bootstrap over items. n = {summary['n'].max()} items."
    return f"No intervals: n = {summary['n'].max()} items, and they are claimed from {ENOUGH} on."


def _value(quantity: str, row) -> str:
    text = _number(quantity, row["value"])
    if pd.notna(row["low"]):
        text += f" [{_number(quantity, row['low'])}, {_number(quantity, row['high'])}]"
    return text


def _number(quantity: str, value: float) -> str:
    if QUANTITIES[quantity].unit == "bytes":
        return f"{value / 1e6:.2f} MB"
    if QUANTITIES[quantity].unit.startswith("s/"):
        return f"{1e3 * value:.3g} ms"
    return f"{value:.1f}" if abs(value) >= 20 else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _write(stem: Path, head, rows, notes, caption) -> Path:
    stem.with_suffix(".tex").write_text(latex(head, rows, notes, caption))
    stem.with_suffix(".md").write_text(markdown(head, rows, notes, caption))
    pd.DataFrame([[text.strip("*") for text in row] for row in rows], columns=head).to_csv(
        stem.with_suffix(".csv"), index=False
    )
    return stem.with_suffix(".tex")
