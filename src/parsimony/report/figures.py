"""Vector figures at venue widths, each with its data beside it; unchanged data gives unchanged bytes."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from parsimony.report.style import RC, WIDTHS, look, words
from parsimony.stats import pareto

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PER_CATEGORY = ("mean_accepted_tokens", "speedup")


def write_figures(summary: pd.DataFrame, records: pd.DataFrame, out: Path, context: dict) -> list[Path]:
    """Draw every figure for which there is data, as PDF, PNG and CSV; returns the paths of the PDFs.

    Parameters
    ----------
    context : dict
        ``methods`` (all keys of the project, which fixes the colours) and ``references``.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with matplotlib.rc_context(RC):
        for benchmark in sorted(summary["benchmark"].unique()):
            mine = summary[summary["benchmark"] == benchmark]
            for quantity in PER_CATEGORY:
                made += _categories(mine, benchmark, quantity, out, context)
            made += _pareto(mine, benchmark, out, context)
            made += _learning(records[records["benchmark"] == benchmark], benchmark, out, context)
        made += _latency(records[records["benchmark"] == "latency"], out)
    return made


def _categories(summary, benchmark, quantity, out, context) -> list[Path]:
    """A quantity by category: the best point of each method, with intervals where they may be claimed."""
    data = summary[(summary["quantity"] == quantity) & summary["value"].notna()]
    data = data[~data["method"].isin(context["references"])]
    if data.empty:
        return []
    best = data[data["category"] == "all"].sort_values("value").groupby("method")["point"].last()
    data = data[data["point"] == data["method"].map(best)]
    categories = ["all", *sorted(set(data["category"]) - {"all"})]
    figure, axes = plt.subplots(figsize=(WIDTHS["neurips"], 0.34 * len(categories) + 0.75), layout="constrained")
    methods = sorted(best.index)
    for n, method in enumerate(methods):
        part = data[data["method"] == method].set_index("category").reindex(categories)
        y = np.arange(len(categories)) + (n - (len(methods) - 1) / 2) * 0.22
        style = look(method, context["methods"], context["references"])
        axes.plot(part["value"], y, linestyle="none", color=style["color"], marker=style["marker"],
                  label=f"{words(method)} ({words(best[method])})")  # fmt: skip
        axes.hlines(y, part["low"], part["high"], color=style["color"], linewidth=1)
    axes.axvline(1.0, color="#333333", linewidth=0.8, linestyle=(0, (2, 2)))
    axes.annotate("greedy", (1.0, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)
    axes.set_yticks(range(len(categories)), [words(c) for c in categories])
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.3, color="#cccccc")
    axes.set_xlabel(
        {"speedup": "speed-up over greedy", "mean_accepted_tokens": "mean accepted tokens per pass"}[quantity]
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return [_save(figure, data, out / f"{benchmark}_{quantity}")]


def _pareto(summary, benchmark, out, context) -> list[Path]:
    """Speed-up against mean accepted tokens, all operating points, with the front."""
    pooled = summary[(summary["category"] == "all") & summary["quantity"].isin(PER_CATEGORY)]
    data = pooled.pivot_table(index=["method", "point"], columns="quantity", values=["value", "low", "high"])
    if data.empty or not {("value", "speedup"), ("value", "mean_accepted_tokens")} <= set(data.columns):
        return []
    x, y = data["value", "mean_accepted_tokens"].to_numpy(), data["value", "speedup"].to_numpy()
    front = pareto(np.stack((x, y), 1), (True, True))
    figure, axes = plt.subplots(figsize=(WIDTHS["neurips"], 3.0), layout="constrained")
    axes.axhline(1.0, color="#333333", linewidth=0.8, linestyle=(0, (2, 2)))
    order = np.argsort(x[front])
    axes.step(x[front][order], y[front][order], where="pre", color="#999999", linewidth=0.8, zorder=1)
    axes.plot(
        1.0,
        1.0,
        **{"linestyle": "none"} | {k: v for k, v in look("greedy", [], {"greedy"}).items() if k != "linestyle"},
    )
    axes.annotate("greedy", (1.0, 1.0), xytext=(-5, 3), textcoords="offset points", fontsize=7, ha="right")
    for n, (method, _) in enumerate(data.index):
        style = look(method, context["methods"], context["references"])
        faint = 1.0 if front[n] else 0.45
        axes.plot(x[n], y[n], linestyle="none", color=style["color"], marker=style["marker"], alpha=faint)
        for name, at, bound in (("mean_accepted_tokens", y[n], "h"), ("speedup", x[n], "v")):
            if ("low", name) in data.columns:
                span = data["low", name].iloc[n], data["high", name].iloc[n]
                (axes.hlines if bound == "h" else axes.vlines)(
                    at, *span, color=style["color"], linewidth=0.7, alpha=faint
                )
    _spread_labels(axes, x, y, [words(point) for _, point in data.index])
    handles = {m: look(m, context["methods"], context["references"]) for m in sorted(data.index.unique("method"))}
    for method, style in handles.items():
        axes.plot([], [], linestyle="none", color=style["color"], marker=style["marker"], label=words(method))
    axes.legend(frameon=False, loc="best")
    axes.set_xlabel("mean accepted tokens per pass")
    axes.set_ylabel("speed-up over greedy")
    flat = data.copy()
    flat.columns = [f"{quantity}_{bound}" for bound, quantity in flat.columns]
    return [_save(figure, flat.reset_index(), out / f"{benchmark}_pareto")]


def _spread_labels(axes, x, y, labels) -> None:
    """Write each label right of its point, pushed down where two would overlap."""
    axes.margins(x=0.14, y=0.14)
    axes.figure.canvas.draw()
    taken: list[tuple[float, float]] = []
    for n in np.argsort(-y):
        px, py = axes.transData.transform((x[n], y[n]))
        dy = 2.0
        while any(abs(px - tx) < 110 and abs(py + dy * 2.8 - ty) < 20 for tx, ty in taken):
            dy -= 2.0
        taken.append((px, py + dy * 2.8))
        axes.annotate(labels[n], (x[n], y[n]), xytext=(5, dy), textcoords="offset points", fontsize=6.5)


def _latency(records, out) -> list[Path]:
    """Seconds of one pass against rows verified, and the cost relative to one row, by dtype."""
    sound = records[records["status"] == "ok"]
    if sound.empty:
        return []
    data = sound.pivot_table(index=["category", "item"], columns="metric", values="value").reset_index()
    data = data.sort_values(["category", "rows"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTHS["neurips"], 2.3), layout="constrained")
    dtypes = sorted(data["category"].unique())
    for dtype in dtypes:
        part, style = data[data["category"] == dtype], look(dtype, dtypes, set())
        left.plot(part["rows"], 1e3 * part["seconds"], label=dtype, **style)
        right.plot(part["rows"], part["seconds"] / part["seconds"].iloc[0], label=dtype, **style)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("rows verified in one pass")
        axes.grid(linewidth=0.3, color="#cccccc")
    left.set_ylabel("milliseconds")
    right.set_ylabel("cost relative to one row")
    left.legend(frameon=False)
    return [_save(figure, data[["category", "rows", "seconds"]], out / "latency")]


def _learning(records, benchmark, out, context) -> list[Path]:
    """Mean accepted tokens so far against items seen, for methods with points that keep ("hot") or lose their state."""
    hot = records["params"].str.contains('"hot": ')
    mine = records[hot & records["metric"].isin(["step_tokens", "passes"]) & (records["status"] == "ok")]
    if mine.empty or mine["params"].str.contains('"hot": false').sum() == 0:
        return []
    figure, axes = plt.subplots(figsize=(WIDTHS["icml_column"], 2.3), layout="constrained")
    frames = []
    for point, part in mine.groupby("point"):
        order = part["item"].drop_duplicates()
        wide = part.pivot(index="item", columns="metric", values="value").loc[order].cumsum()
        curve = wide["step_tokens"] / wide["passes"]
        seen = np.arange(1, len(curve) + 1)
        if '"nodes": 80' not in part["params"].iloc[0]:
            continue
        style = look(point, sorted(mine["point"].unique()), set()) | {"marker": ""}
        axes.plot(seen, curve, label=words(point), **style)
        frames.append(pd.DataFrame({"point": point, "items": seen, "mean_accepted_tokens": curve.to_numpy()}))
    axes.set_xlabel("items seen")
    axes.set_ylabel("mean accepted tokens so far")
    axes.legend(frameon=False)
    return [_save(figure, pd.concat(frames), out / f"{benchmark}_learning")]


def _save(figure, data: pd.DataFrame, stem: Path) -> Path:
    data.to_csv(stem.with_suffix(".csv"), index=False, float_format="%.10g")
    figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None, "Creator": None, "Producer": None})
    figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
    plt.close(figure)
    return stem.with_suffix(".pdf")
