"""Rate and distortion in print: curves of quality against bits per pixel, and the table of BD-rates."""

from __future__ import annotations

import pandas as pd

from parsimony.quantities import QUANTITIES
from parsimony.rate_distortion import ANCHOR, RATE, compared, curves
from parsimony.report.style import WIDTHS, look, words

CURVES = [quantity.curve for quantity in QUANTITIES.values() if quantity.curve]
NOTE = (
    "BD-rate: mean difference in rate at equal quality over the qualities in brackets (PCHIP of log rate; curves are "
    f"means over items; anchor {ANCHOR})."
)


def draw(summary: pd.DataFrame, context: dict):
    """A panel a quality, in it a line a codec through its operating points; the figure and its data, or None."""
    from matplotlib import pyplot as plt  # tables need no figures

    found = {quality: lines for quality in CURVES if (lines := curves(summary, quality))}
    if not found:
        return None
    figure, panels = plt.subplots(1, len(found), figsize=(WIDTHS["icml"], 2.9), layout="constrained", squeeze=False)
    frames, labelled = [], set()
    for axes, (quality, lines) in zip(panels.flat, found.items(), strict=True):
        for (_, _, method), line in lines.items():
            label = words(method) if method not in labelled else None
            labelled.add(method)
            axes.plot(line[RATE], line[quality], label=label, **look(method, context["methods"][method], {ANCHOR}))
            frames.append(line.reset_index().melt([*line.index.names, RATE], quality, "quality", "value"))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("bits per pixel")
        axes.set_ylabel(f"{QUANTITIES[quality].title} ({QUANTITIES[quality].unit})")
        axes.grid(linewidth=0.3, color="#cccccc")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure, pd.concat(frames)


def table(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a method a row, its BD-rates and the qualities that each is over."""
    found = {quality: compared(summary, quality) for quality in CURVES if curves(summary, quality)}
    rows = []
    for model, benchmark, method in sorted(set().union(*found.values())):
        row = [words(method), str(len(curves(summary, next(iter(found)))[model, benchmark, method]))]
        for quality in found:
            each = found[quality].get((model, benchmark, method), {"reason": "not measured"})
            if "reason" in each:
                row.append(f"\u2014 ({each['reason'].split(';')[0]})")
            else:
                row.append(f"{each['bd_rate']:+.1f} % [{each['low']:.1f}, {each['high']:.1f} dB]")
        rows.append(row)
    return ["method", "points", *(f"BD-rate, {QUANTITIES[quality].title}" for quality in found)], rows
