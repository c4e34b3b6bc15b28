"""A small causal network over grey pixels whose inference is integer arithmetic, hence exact on any machine.

Each pixel's distribution follows from the pixels around it that come before it (rows from the top, each from the left)
and from its place.  Weights are whole 64ths from -127 to 127, activations whole 64ths from 0 to 255, so every sum is a
whole number below 2^24 and float32 products add up exactly in any order: encoder and decoder agree whatever the batch
or the number of threads, which learned codecs in floating point do not (Balle et al., ICLR 2019, integer networks).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parsimony.models.rans import cumulative

GRID = 64.0
MOST = 255.0
VALUES = 256
SPAN = 16
"""Nats below the likeliest value from which on values share the least probability."""


def _quantised(w: Tensor, scale: float, low: float, high: float) -> Tensor:
    """``w`` on the grid; gradients pass as if it were not."""
    return w + ((w * scale).round().clamp(low, high) / scale - w).detach()


class CausalPixels(nn.Module):
    """Three layers over a window of ``reach`` pixels to the left, right and above.

    Parameters
    ----------
    side : int
        Of the images.
    reach, hidden : int
    """

    def __init__(self, side: int = 28, reach: int = 6, hidden: int = 128):
        super().__init__()
        self.side, self.reach = side, reach
        wide = reach * (2 * reach + 1) + reach + 2 * side
        sizes = [wide, hidden, hidden, VALUES]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(b, a) * a**-0.5) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(b)) for b in sizes[1:])
        with torch.no_grad():
            self.weights[2].mul_(0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [n, 256] of inputs [n, wide] from 0 to 255, as trained: everything on its grid."""
        a = inputs / GRID
        for n, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            a = F.linear(a, _quantised(w, GRID, -127, 127), _quantised(b, GRID**2, -(2**22), 2**22))
            if n < 2:
                clipped = a.clamp(0, MOST / GRID)
                a = clipped + ((clipped * GRID).floor() / GRID - clipped).detach()
        return a

    def integers(self) -> dict[str, Tensor]:
        """Weights and biases as integers, and 2^24 e^(-d / 64), by which whole 64ths of logits become frequencies."""
        layers = {}
        for n, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            layers[f"weight.{n}"] = (w.detach() * GRID).round().clamp(-127, 127).to(torch.int8)
            layers[f"bias.{n}"] = (b.detach() * GRID**2).round().clamp(-(2**22), 2**22).to(torch.int32)
        falling = torch.arange(SPAN * int(GRID), dtype=torch.float64) / -GRID
        shape = torch.tensor([self.side, self.reach], dtype=torch.int32)
        return layers | {"exponentials": (2.0**24 * falling.exp()).to(torch.int32), "shape": shape}


class IntegerPixels:
    """The network as it codes, from `CausalPixels.integers`."""

    def __init__(self, layers: dict[str, Tensor]):
        self.side, self.reach = layers["shape"].tolist()
        self.weights = [layers[f"weight.{n}"].float().T.contiguous() for n in range(3)]
        self.biases = [layers[f"bias.{n}"].float() for n in range(3)]
        self.exponentials = layers["exponentials"].numpy().astype(np.int64)
        self.offsets = torch.tensor(
            [(r, c) for r in range(-self.reach, 1) for c in range(-self.reach, self.reach + 1) if (r, c) < (0, 0)]
        )

    def framed(self, count: int) -> Tensor:
        """Room [count, side + reach, side + 2 reach] float32 for images with zeros left, right and above."""
        return torch.zeros(count, self.side + self.reach, self.side + 2 * self.reach)

    def inputs(self, framed: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Inputs [count, n, wide] of the pixels at ``row``, ``column`` ([n] each)."""
        at = torch.stack((row, column), 1)[:, None] + self.offsets + self.reach
        around = framed[:, at[..., 0], at[..., 1]]
        place = torch.cat((F.one_hot(row, self.side), F.one_hot(column, self.side)), 1) * MOST
        return torch.cat((around, place.expand(len(framed), -1, -1)), 2)

    def tables(self, inputs: Tensor) -> np.ndarray:
        """Cumulative frequencies [n, 257] int64 from 0 to 2^24 of inputs [n, wide]."""
        a = inputs
        for n, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            a = torch.addmm(b, a, w).div_(GRID).floor_()
            if n < 2:
                a.clamp_(0, MOST)
        behind = (a.amax(1, keepdim=True) - a).clamp_(max=len(self.exponentials) - 1)
        return cumulative(self.exponentials[behind.long().numpy()])
