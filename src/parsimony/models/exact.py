"""Arithmetic in a fixed order, for decoders whose output must be the same everywhere.

Everything here is additions, products and roundings of float64 arrays, element by element: IEEE 754 prescribes each
result, and the order of a sum is that of a loop.  So the result depends neither on the batch, the number of threads or
the process, nor on the machine's libraries of linear algebra and of sines.
"""

from __future__ import annotations

import math

import numpy as np

# pi in two parts; the first has 33 bits, so that its products with integers up to 2^20 are exact (fdlibm).
PI_HIGH = 2 * 1.57079632673412561417
PI_LOW = 2 * 6.07710050650619224932e-11
SERIES = [(-1) ** n / math.factorial(2 * n + 1) for n in range(11)]
"""Of the sine; the first term left out is below 2^-59 up to pi / 2."""


def sine(x: np.ndarray) -> np.ndarray:
    """Sine to within 1e-15 for |x| up to 10^5, with the shape of ``x``."""
    turns = np.rint(x * (1 / math.pi))
    r = (x - turns * PI_HIGH) - turns * PI_LOW
    square = r * r
    total = np.full_like(r, SERIES[-1])
    for term in SERIES[-2::-1]:
        total *= square
        total += term
    return np.where(turns % 2 == 0, r, -r) * total


def affine(x: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """``x`` [..., M, K] times ``weights`` [..., K, N] plus ``bias`` [..., N], summed from the first input to the last.

    Returns
    -------
    ndarray [..., M, N]
    """
    total = np.broadcast_to(bias[..., None, :], (*x.shape[:-1], bias.shape[-1])).copy()
    for k in range(x.shape[-1]):
        total += x[..., k, None] * weights[..., None, k, :]
    return total


def convolve(x: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolution of ``x`` [B, C, H, W] with ``weights`` [O, C, k, k], padded with zeros to [B, O, H, W]."""
    *_, H, W = x.shape
    outputs, C, k, _ = weights.shape
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    total = np.broadcast_to(bias[:, None, None], (len(x), outputs, H, W)).copy()
    for c in range(C):
        for i in range(k):
            for j in range(k):
                total += padded[:, None, c, i : i + H, j : j + W] * weights[:, c, i, j, None, None]
    return total


def sine_network(x: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]], frequency: float) -> np.ndarray:
    """Perceptron with the activation sin(frequency * x) behind all layers but the last.

    Parameters
    ----------
    x : ndarray [..., M, K]
    layers : list of (weights [..., K, N], bias [..., N])
    """
    for weights, bias in layers[:-1]:
        x = sine(frequency * affine(x, weights, bias))
    return affine(x, *layers[-1])


def pixels(values: np.ndarray) -> np.ndarray:
    """Values 0 to 1 as uint8, clipped and rounded to the nearest."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
