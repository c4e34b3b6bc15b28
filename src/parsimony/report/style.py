"""How figures look: venue widths, fonts and one colour, marker and dash per method."""

from __future__ import annotations

WIDTHS = {"icml_column": 3.25, "icml": 6.75, "neurips": 5.5}
"""Inches, drawn at final size."""

# Okabe and Ito's palette, told apart by colour-blind readers; marker and dash are the second channel.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2)))
REFERENCE = {"color": "#333333", "marker": "*", "linestyle": (0, (2, 2))}

RC = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "parsimony",
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "text.usetex": False,
    "font.family": "DejaVu Sans",
}


def look(method: str, methods: list[str], references: set[str]) -> dict:
    """Colour, marker and line style of a method: fixed by its place among all ``methods`` of its family."""
    if method in references:
        return dict(REFERENCE)
    n = sorted(set(methods) - references).index(method)
    return {
        "color": COLOURS[n % len(COLOURS)],
        "marker": MARKERS[(n + n // len(COLOURS)) % len(MARKERS)],
        "linestyle": DASHES[(n // len(COLOURS)) % len(DASHES)],
    }


def words(key: str) -> str:
    """A key as a label: ``token_recycling`` -> "token recycling"."""
    return key.replace("_", " ")
