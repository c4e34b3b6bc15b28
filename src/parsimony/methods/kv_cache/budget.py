"""How much of a context a method may hold: tokens, a share of them, or bytes."""

from __future__ import annotations

from parsimony.errors import UserError
from parsimony.methods.kv_cache.held import HALF, Prefilled

UNITS = ("tokens", "ratio", "bytes")


def entries(budget: float, unit: str, prefilled: Prefilled) -> int:
    """Entries a head and layer that a budget allows, 1 to T.

    Raises
    ------
    UserError
        For an unknown unit.
    """
    if unit not in UNITS:
        raise UserError(f"budget: unit {unit!r} is not one of {', '.join(UNITS)}; mend the method's params")
    layers, heads, T, width = prefilled.keys.shape
    if unit == "ratio":
        budget *= T
    elif unit == "bytes":
        budget /= 2 * layers * heads * width * HALF.itemsize
    return min(max(int(budget), 1), T)
