"""Baselines that drop tokens once, behind the prefill: SnapKV, PyramidKV, and tokens at random.

Rules and defaults are those of the official code of SnapKV (Li et al., arXiv 2404.14469) and PyramidKV (Cai et al.,
arXiv 2406.02069), but a key-value head's choice is shared by its query heads, so that memory shrinks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.budget import entries
from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
from parsimony.methods.kv_cache.scores import best, pooled, received
from parsimony.models.language import Language


class SnapKV:
    """Keeps the last ``window`` tokens, and of the others those that the window's queries look at.

    Parameters
    ----------
    budget : float
        Entries, of which the window is a part.
    unit : {"tokens", "ratio", "bytes"}
    window : int
    kernel : int
    pooling : {"mean", "max"}
    """

    def __init__(self, budget: float, unit: str = "ratio", window: int = 32, kernel: int = 5, pooling: str = "mean"):
        self.budget, self.unit, self.window, self.kernel, self.pooling = budget, unit, window, kernel, pooling

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        return Holder(model, self.hold)

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """Every layer with the same budget."""
        C = entries(self.budget, self.unit, prefilled)
        return [self.layer(prefilled, n, C) for n in range(len(prefilled.keys))]

    def layer(self, prefilled: Prefilled, n: int, C: int) -> Held:
        """The ``C`` entries of a layer that are kept."""
        held, T = Held(prefilled.keys[n], prefilled.values[n]), len(prefilled)
        if C < T:
            w = min(self.window, C)
            held.keep(with_window(self.scores(prefilled, n, T - w), C - w, w))
        return held

    def scores(self, prefilled: Prefilled, n: int, first: int) -> Tensor:
        """Score [H, T - w] of the tokens before the window, which begins at ``first``."""
        return pooled(received(prefilled, n, first)[:, :first], self.kernel, self.pooling)


def with_window(scores: Tensor, count: int, window: int) -> Tensor:
    """Indices [H, count + window] of the best scores [H, n] and of the window behind them."""
    H, n = scores.shape
    return torch.cat((best(scores, count), torch.arange(n, n + window, device=scores.device).expand(H, -1)), 1)


class PyramidKV(SnapKV):
    """SnapKV with larger budgets for lower layers; their mean is the budget.

    Layer l of L gets n_max - l (n_max - n_min) / (L - 1) entries besides the window; n_min = (C - w) / ``beta``.  If
    the mean is more than half of the tokens, all get the same, as in the official code.

    Parameters
    ----------
    beta : float
        As published, 20.
    """

    def __init__(self, budget: float, unit: str = "ratio", window: int = 32, kernel: int = 5, pooling: str = "mean",
                 beta: float = 20.0):  # fmt: skip
        super().__init__(budget, unit, window, kernel, pooling)
        self.beta = beta

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """Every layer with its own budget."""
        C, T, L = entries(self.budget, self.unit, prefilled), len(prefilled), len(prefilled.keys)
        return [self.layer(prefilled, n, C) for n, C in enumerate(self.budgets(C, T, L))]

    def budgets(self, C: int, T: int, L: int) -> list[int]:
        """Entries of each layer, window included."""
        w = min(self.window, C)
        if 2 * (C - w) > T:
            return [C] * L
        least = (C - w) / self.beta
        most = 2 * (C - w) - least
        if most > T - w:  # clipped, and the least so that the mean stays
            least, most = 2 * (C - w) - (T - w), T - w
        return [w + int(most - n * (most - least) / max(L - 1, 1)) for n in range(L)]


class RandomEviction(SnapKV):
    """Keeps the window and other tokens at random: what a rule has to beat."""

    def scores(self, prefilled: Prefilled, n: int, first: int) -> Tensor:
        seeded = torch.Generator().manual_seed(n)
        return torch.rand(prefilled.keys.shape[1], first, generator=seeded).to(prefilled.keys.device)
