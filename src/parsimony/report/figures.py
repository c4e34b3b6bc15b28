"""Vector figures at venue widths, each with its data beside it; unchanged data gives unchanged bytes."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd

from parsimony.quantities import QUANTITIES
from parsimony.rate_distortion import RATE
from parsimony.report import channels, rate_distortion
from parsimony.report.style import DASHES, MARKERS, RC, WIDTHS, look, words
from parsimony.stats import by_model, pareto

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PER_CATEGORY = ("mean_accepted_tokens", "speedup")
ONE = {
    "speedup": "reference",
    "speedup_decoding": "reference",
    "mean_accepted_tokens": "one by one",
    "speedup_peer": "peer",
}
"""Quantities with a line at 1, and what stands there."""
RATES = (RATE, "payload_per_pixel", "bits_per_sample")
"""Quantities along which the points of a method are one curve."""
FEW = 8
"""Up to so many operating points all carry their names; beyond, those on the front."""


def write_figures(summary: pd.DataFrame, records: pd.DataFrame, out: Path, context: dict) -> list[Path]:
    """Draw every figure for which there is data, as PDF, PNG and CSV; returns the paths of the PDFs.

    Parameters
    ----------
    context : dict
        ``methods`` (all keys of each method's family, which fixes its colour), ``references`` and ``papers`` (their
        configs).
    """
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with matplotlib.rc_context(RC):
        for end, part, measured in by_model(summary, records):
            for benchmark, mine in part.groupby("benchmark"):
                stem = out / f"{benchmark}{end}"
                for quantity in PER_CATEGORY:
                    made += _categories(mine, quantity, stem, context)
                made += _pareto(mine, benchmark, stem, context)
                if (drawn := rate_distortion.draw(mine, context)) is not None:
                    made.append(_save(*drawn, _with(stem, "rate_distortion")))
                made += _learning(measured[measured["benchmark"] == benchmark], stem)
                if (drawn := channels.draw(mine)) is not None:
                    made.append(_save(*drawn, _with(stem, "orders")))
            made += _of_papers(part, measured, out, end, context)
        made += _latency(records[records["benchmark"] == "latency"], out)
    return made


def _with(stem: Path, what: str) -> Path:
    return stem.with_name(f"{stem.name}_{what}")


def _categories(summary, quantity, stem, context) -> list[Path]:
    """A quantity by category: the best point of each method, with intervals where they may be claimed."""
    data = _best_points(summary[summary["quantity"] == quantity], context)
    if data.empty:
        return []
    categories = ["all", *sorted(set(data["category"]) - {"all"})]
    return [_bands(data, "category", categories, quantity, _with(stem, quantity), context)]


def _best_points(data, context) -> pd.DataFrame:
    """The rows of each method's best point by its pooled value; references are the line at 1."""
    data = data[data["value"].notna() & ~data["method"].isin(context["references"])]
    pooled = data[data["category"] == "all"].groupby(["benchmark", "method", "point"])["value"].mean().reset_index()
    if pooled.empty:
        return data.iloc[:0]
    best = pooled.sort_values("value").groupby(["benchmark", "method"])["point"].last()
    return data[data["point"] == pd.MultiIndex.from_frame(data[["benchmark", "method"]]).map(best)]


def _bands(data, column, labels, quantity, stem, context, named=()) -> Path:
    """One band a label, in it a mark with its interval a method, or an operating point of the ``named`` methods."""
    points = data["point"].where(data["method"].isin(list(named)), "")
    series = list(data.groupby([data["method"], points]))
    step = min(0.22, 0.8 / len(series))
    height = len(labels) * max(0.34, 0.11 * len(series)) + 0.6 + 0.14 * (len(series) // 2 + 1)
    figure, axes = plt.subplots(figsize=(WIDTHS["neurips"], height), layout="constrained")
    for n, ((method, point), part) in enumerate(series):
        part = part.drop_duplicates(column).set_index(column).reindex(labels)
        y = np.arange(len(labels)) + (n - (len(series) - 1) / 2) * step
        style, points = look(method, context["methods"][method], context["references"]), part["point"].dropna().unique()
        if point:
            style["marker"] = MARKERS[list(named[method]).index(point) % len(MARKERS)]
        axes.plot(part["value"], y, linestyle="none", color=style["color"], marker=style["marker"],
                  label=f"{words(method)} ({words(points[0])})" if len(points) == 1 else words(method))  # fmt: skip
        axes.hlines(y, part["low"], part["high"], color=style["color"], linewidth=1)
    if quantity in ONE:
        axes.axvline(1.0, color="#333333", linewidth=0.8, linestyle=(0, (2, 2)))
        axes.annotate(
            ONE[quantity], (1.0, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7
        )
    for edge in np.arange(len(labels) - 1) + 0.5:
        axes.axhline(edge, color="#eeeeee", linewidth=0.6, zorder=0)
    axes.set_yticks(range(len(labels)), [words(label) for label in labels])
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.3, color="#cccccc")
    axes.set_xlabel(_axis(quantity))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return _save(figure, data, stem)


def _axis(quantity: str) -> str:
    """Title of a quantity's axis with its unit."""
    if quantity == "speedup":
        return "speed-up over the reference"
    q = QUANTITIES[quantity]
    acronym = q.title[:2].isupper()
    title = q.title if acronym else q.title[0].lower() + q.title[1:]
    return f"{title} ({q.unit})" if q.unit and q.unit not in ("x", title) else title


def _of_papers(summary, records, out, end, context) -> list[Path]:
    """The figures that the papers' configs ask for."""
    made = []
    for paper, config in context["papers"].items():
        for wanted in config.figures:
            kind, _, name = wanted.against.partition(":")
            data = _asked(summary, wanted, kind, context)
            stem = out / f"{paper}_{wanted.id}{end}"
            if data.empty:
                continue
            if wanted.panels:
                made.append(_panels(data, summary, wanted, name, stem, context))
            elif kind in ("category", "benchmark"):
                order = wanted.benchmarks if kind == "benchmark" else sorted(data["category"].unique())
                labels = [label for label in order if label in set(data[kind])]
                made.append(_bands(data, kind, labels, wanted.quantity, stem, context, wanted.points))
            else:
                made += _curve(data, summary, records, wanted, kind, name, stem, context)
    return made


def _asked(summary, wanted, kind, context) -> pd.DataFrame:
    """Rows of a figure: of each method the named points, else the best one (in a curve all of them)."""
    data = summary[(summary["quantity"] == wanted.quantity) & summary["benchmark"].isin(wanted.benchmarks)]
    data = data[data["value"].notna()]
    if wanted.methods:
        data = data[data["method"].isin(wanted.methods)]
    named = data["method"].isin(wanted.points)
    asked = [point in wanted.points.get(m, ()) for m, point in zip(data["method"], data["point"], strict=True)]
    others = data[~named] if kind in ("param", "quantity") else _best_points(data[~named], context)
    data = pd.concat([data[asked], others])
    return data if kind == "category" or wanted.panels else data[data["category"] == "all"]


def _panels(data, summary, wanted, name, stem, context) -> Path:
    """Small multiples: in the panel of each category a quantity against another, a line a method."""
    keys = ["benchmark", "method", "point", "category"]
    for column, quantity in (("x", name), ("beside", wanted.beside)):
        other = summary[summary["quantity"] == quantity].set_index(keys)["value"]
        data = data.assign(**{column: list(pd.MultiIndex.from_frame(data[keys]).map(other))})
    data = data.dropna(subset=["x"])
    first, labels = wanted.benchmarks[0], ["all", *sorted(set(data["category"]) - {"all"})]
    across = min(4, len(labels))
    down = -(-len(labels) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(WIDTHS["icml"], 1.25 * down + 0.9), sharex=True, sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for n, axes in enumerate(grid.flat):
        if n >= len(labels):
            axes.set_axis_off()
            continue
        mine = data[data["category"] == labels[n]]
        for method, part in mine[mine["benchmark"] == first].groupby("method"):
            part, style = part.sort_values("x"), look(method, context["methods"][method], context["references"])
            axes.plot(part["x"], part["value"], label=words(method) if n == 0 else None, **style | {"markersize": 3})
            if part["beside"].notna().any():
                axes.plot(part["x"], part["beside"], color=style["color"], alpha=0.35, linewidth=2.2, zorder=1)
        for benchmark, part in mine[mine["benchmark"] != first].groupby("benchmark"):
            dash = DASHES[1 + wanted.benchmarks[1:].index(benchmark) % (len(DASHES) - 1)]
            label = words(benchmark) if n == 0 else None
            axes.axhline(part["value"].max(), color="#777777", linewidth=0.9, linestyle=dash, label=label, zorder=0)
        axes.set_title(words(labels[n]), fontsize=7, pad=2)
        axes.grid(linewidth=0.3, color="#cccccc")
    figure.supxlabel(_axis(name), fontsize=8)
    figure.supylabel(_axis(wanted.quantity), fontsize=8)
    if wanted.beside:
        title = QUANTITIES[wanted.beside].title.lower()
        grid.flat[0].plot([], [], color="#333333", alpha=0.35, linewidth=2.2, label=f"{title} (of that colour)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return _save(figure, data.drop(columns=["status", "reason"]), stem)


def _curve(data, summary, records, wanted, kind, name, stem, context) -> list[Path]:
    """A quantity against a parameter or another quantity, a line a method (and benchmark, where there are several)."""
    keys = ["benchmark", "method", "point"]
    if kind == "param":
        settings = records.drop_duplicates(keys).set_index(keys)["params"].map(json.loads)
        x = pd.MultiIndex.from_frame(data[keys]).map(settings.map(lambda params: params.get(name)))
    else:
        other = summary[(summary["quantity"] == name) & (summary["category"] == "all")]
        x = pd.MultiIndex.from_frame(data[keys]).map(other.set_index(keys)["value"])
    data = data.assign(x=pd.to_numeric(pd.Series(list(x), index=data.index), errors="coerce")).dropna(subset=["x"])
    if data.empty:
        return []
    figure, axes = plt.subplots(figsize=(WIDTHS["neurips"], 2.6), layout="constrained")
    several = data["benchmark"].nunique() > 1
    for (benchmark, method), part in data.groupby(["benchmark", "method"]):
        part, style = part.sort_values("x"), look(method, context["methods"][method], context["references"])
        label = f"{words(method)}, {words(benchmark)}" if several else words(method)
        dash = DASHES[sorted(data["benchmark"].unique()).index(benchmark) % len(DASHES)]
        line = {"linestyle": dash if kind == "param" or name in RATES else "none", "linewidth": 1}
        axes.plot(part["x"], part["value"], label=label, **style | line)
        axes.vlines(part["x"], part["low"], part["high"], color=style["color"], linewidth=0.7)
    if wanted.quantity in ONE:
        axes.axhline(1.0, color="#333333", linewidth=0.8, linestyle=(0, (2, 2)))
    if name in RATES:  # from a tenth of a bit to what lossless codecs need
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(words(name) if kind == "param" else _axis(name))
    axes.set_ylabel(fill(_axis(wanted.quantity), 28))
    axes.grid(linewidth=0.3, color="#cccccc")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return [_save(figure, data.drop(columns=["status", "reason"]), stem)]


def _trade(summary, benchmark, context) -> tuple[str, str]:
    """The two quantities between which methods choose on a benchmark, the cost or effort first."""
    measured, columns = set(summary["quantity"]), context["columns"].get(benchmark) or [""]
    if set(PER_CATEGORY) <= measured:
        return PER_CATEGORY
    return ("cache_share", columns[0]) if "cache_share" in columns else ("", "")


def _pareto(summary, benchmark, stem, context) -> list[Path]:
    """Speed-up against accepted tokens, or quality against bytes: all operating points, names along the front."""
    across, up = _trade(summary, benchmark, context)
    pooled = summary[(summary["category"] == "all") & summary["quantity"].isin([across, up])]
    data = pooled.pivot_table(index=["method", "point"], columns="quantity", values=["value", "low", "high"])
    if data.empty or not {("value", across), ("value", up)} <= set(data.columns):
        return []
    data = data[data["value", up].notna() & data["value", across].notna()]
    x, y = data["value", across].to_numpy(), data["value", up].to_numpy()
    front = pareto(np.stack((x, y), 1), tuple(QUANTITIES[q].better == "higher" for q in (across, up)))
    figure, axes = plt.subplots(figsize=(WIDTHS["neurips"], 3.4), layout="constrained")
    order = np.argsort(x[front])
    where = "pre" if QUANTITIES[across].better == "higher" else "post"
    axes.step(x[front][order], y[front][order], where=where, color="#999999", linewidth=0.8, zorder=1)
    if up in ONE:
        axes.axhline(1.0, color="#333333", linewidth=0.8, linestyle=(0, (2, 2)))
        axes.plot(1.0, 1.0, **look("greedy", [], {"greedy"}) | {"linestyle": "none"})
        axes.annotate("greedy", (1.0, 1.0), xytext=(-5, 3), textcoords="offset points", fontsize=7, ha="right")
    else:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    if up == "kl_divergence":
        axes.set_yscale("symlog", linthresh=0.01)  # that of the full cache is nothing, the worst above one nat
    for n, (method, _) in enumerate(data.index):
        style = look(method, context["methods"][method], context["references"])
        faint = 1.0 if front[n] else 0.45
        axes.plot(x[n], y[n], linestyle="none", color=style["color"], marker=style["marker"], alpha=faint)
        for name, at, lines in ((across, y[n], axes.hlines), (up, x[n], axes.vlines)):
            if ("low", name) in data.columns:
                span = data["low", name].iloc[n], data["high", name].iloc[n]
                lines(at, *span, color=style["color"], linewidth=0.7, alpha=faint)
    named = front if len(data) > FEW else np.ones(len(data), bool)
    _spread_labels(axes, x[named], y[named], [words(point) for _, point in data.index[named]])
    methods = sorted(data.index.unique("method"))
    for method in methods:
        style = look(method, context["methods"][method], context["references"]) | {"linestyle": "none"}
        axes.plot([], [], label=words(method), **style)
    figure.legend(loc="outside lower center", ncols=min(len(methods), 4), frameon=False)
    axes.set_xlabel("mean accepted tokens per pass" if across == PER_CATEGORY[0] else _axis(across))
    axes.set_ylabel(_axis(up))
    flat = data.copy()
    flat.columns = [f"{quantity}_{bound}" for bound, quantity in flat.columns]
    return [_save(figure, flat.reset_index(), _with(stem, "pareto"))]


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


def _learning(records, stem) -> list[Path]:
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
    return [_save(figure, pd.concat(frames), _with(stem, "learning"))]


def _save(figure, data: pd.DataFrame, stem: Path) -> Path:
    data.to_csv(stem.with_suffix(".csv"), index=False, float_format="%.10g")
    figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None, "Creator": None, "Producer": None})
    figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
    plt.close(figure)
    return stem.with_suffix(".pdf")
