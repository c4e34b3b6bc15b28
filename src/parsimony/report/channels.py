"""The figure of channel importance: what foretells ablation, and quality with the first channels of an order."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from parsimony.channel_orders import KEPT, ORDERS
from parsimony.report.style import WIDTHS, look, words


def draw(summary: pd.DataFrame):
    """Figure and its data, from the quantities of ``channel_importance``; None if there are none.

    Left: rank correlation of each order with ablation, a mark a network, filled on photographs and hollow on digits.
    Right: PSNR on photographs against the share of channels kept, the mean over networks.
    """
    data = summary[summary["category"].isin(["photographs", "digits"]) & (summary["status"] == "ok")]
    ranks = data[data["quantity"].isin([f"rank_{name}" for name in ORDERS])]
    if ranks.empty:
        return None
    figure = Figure(figsize=(WIDTHS["icml"], 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(ORDERS)
    for n, name in enumerate(names):
        style = look(name, names, {"random"})
        for category, shift in (("photographs", -0.13), ("digits", 0.13)):
            part = ranks[(ranks["quantity"] == f"rank_{name}") & (ranks["category"] == category)]
            fill = style["color"] if category == "photographs" else "none"
            left.scatter(part["value"], [n + shift] * len(part), s=14, marker=style["marker"], facecolors=fill,
                         edgecolors=style["color"], linewidths=0.8)  # fmt: skip
        curve = data[data["category"].eq("photographs") & data["quantity"].str.startswith(f"psnr_{name}_")]
        means = curve.groupby("quantity")["value"].mean()
        y = [means.get(f"psnr_{name}_{share}") for share in KEPT]
        right.plot(KEPT, y, label=words(name), **style)
    left.axvline(0, color="#333333", linewidth=0.6)
    left.set_yticks(range(len(names)), [ORDERS[name] for name in names])
    left.invert_yaxis()
    left.set_xlabel("rank correlation with ablation")
    right.set_xscale("log")
    right.set_xticks(KEPT, [str(share) for share in KEPT])
    right.minorticks_off()
    right.set_xlabel("channels kept (%)")
    right.set_ylabel("PSNR (dB)")
    for axes in (left, right):
        axes.grid(linewidth=0.3, color="#cccccc")
    right.legend(frameon=False, fontsize=6)
    wanted = [f"rank_{name}" for name in names] + [f"psnr_{name}_{share}" for name in names for share in KEPT]
    return figure, data[data["quantity"].isin(wanted)].drop(columns=["status", "reason"])
