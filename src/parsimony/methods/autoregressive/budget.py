"""How many draft tokens pay on this machine: acceptance against the measured latency curve."""

from __future__ import annotations

import numpy as np
import pandas as pd

from parsimony.errors import UserError


def latency_curve(records: pd.DataFrame, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows verified in one pass and the seconds it takes, ascending, from the records of benchmark ``latency``.

    Raises
    ------
    UserError
        When the curve was not measured for ``dtype``.
    """
    mine = records[(records["category"] == dtype) & (records["status"] == "ok")]
    curve = mine.pivot(index="item", columns="metric", values="value")
    if curve.empty:
        measured = ", ".join(sorted(records["category"].unique())) or "none"
        raise UserError(
            f"the latency curve has no {dtype} entries (measured: {measured}); add it to benchmark 'latency'"
        )
    curve = curve.sort_values("rows")
    return curve["rows"].to_numpy(), curve["seconds"].to_numpy()


def best_size(acceptance: np.ndarray, rows: np.ndarray, seconds: np.ndarray) -> int:
    """Draft size n that maximises expected tokens per second, (1 + sum of the first n) / t(n + 1); 0 is plain decoding.

    Parameters
    ----------
    acceptance : ndarray [N]
        Probability that each draft node is accepted, in the order in which nodes are added.
    rows, seconds : ndarray
        The latency curve; between measured sizes it is linear.
    """
    tokens = 1 + np.concatenate(([0.0], np.cumsum(acceptance)))
    cost = np.interp(np.arange(1, len(tokens) + 1), rows, seconds)
    return int(np.argmax(tokens / cost))
