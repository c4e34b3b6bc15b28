"""What `gpu-check` measured, as a page."""

from __future__ import annotations


def as_markdown(result: dict) -> str:
    """A table a kernel: times in microseconds, the bound and the share of it that is reached, and the others' times."""
    rates = result["rates"]
    lines = [
        f"# Kernels on {result['device']}",
        "",
        f"{result['processors']} processors, torch {result['torch']}, CUDA {result['cuda']}, triton "
        f"{result['triton']}. At best this device copies {rates['copy'] / 1e12:.2f} TB/s and multiplies "
        + ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {name}" for name, rate in rates.items() if name != "copy")
        + ", measured right before. The bound is the longer of a kernel's bytes and operations at these rates. Times "
        "are medians, in microseconds, each run from a cold second-level cache; in brackets the tenth and the "
        "ninetieth percentile.",
    ]
    for name, entry in result["kernels"].items():
        others = list(dict.fromkeys(other for row in entry["cases"] for other in row["others"]))
        lines += [
            "",
            f"## {name}",
            "",
            f"Right on {entry['shapes']} irregular shapes (largest error "
            f"{entry['worst_share_of_tolerance']:.0%} of what is allowed).",
            "",
            "| case | kernel | bound | of the bound | " + " | ".join(others) + " |",
            "|---" * (4 + len(others)) + "|",
        ]
        for row in entry["cases"]:
            cells = [
                row["case"],
                f"{micro(row['seconds'])} [{micro(row['tenth'])}, {micro(row['nine_tenths'])}]",
                micro(row["bound"]),
                f"{row['bound'] / row['seconds']:.0%}",
                *(against(row["others"].get(other), row["seconds"]) for other in others),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        for row in entry["cases"]:
            if row.get("tuned"):
                best = ", ".join(f"{key} {value}" for key, value in row["tuned"]["tiles"].items())
                lines += ["", f"Best tiles for {row['case']}: {best}: {micro(row['tuned']['seconds'])}."]
    return "\n".join(lines) + "\n"


def micro(seconds: float) -> str:
    """Microseconds."""
    return f"{seconds * 1e6:.1f}"


def against(seconds: float | None, ours: float) -> str:
    """Another's time, and how many times ours that is; a dash where it was not measured."""
    return "-" if seconds is None else f"{micro(seconds)} ({seconds / ours:.2f}x)"
