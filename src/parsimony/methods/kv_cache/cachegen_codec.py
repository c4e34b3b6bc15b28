"""CacheGen's quantisers (Liu et al., SIGCOMM 2024, arXiv 2310.07240): a chunk of a cache as arrays and symbols.

A chunk is [2, L, H, T, d], keys and values of L layers; a token of a layer has C = H d channels.  `Scheme.quantise`
gives the small arrays of a scheme, whose types and shapes `layout` tells, and the symbols that are worth coding;
`dequantise` needs these alone.  No torch, except for 4-bit codes, so that a process that decodes starts fast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SCHEMES = ("released", "paper", "raw", "int8", "int4")

BINS = {
    1: (((10 / 32, 16), (20 / 32, 16), (1, 12)), ((2 / 32, 16), (1, 12))),
    2: (((10 / 32, 32), (1, 16)), ((2 / 32, 32), (1, 16))),
    3: (((1, 32),), ((1, 32),)),
    "70b": (((20 / 80, 32), (40 / 80, 32), (1, 16)), ((20 / 80, 32), (1, 16))),
}
"""Levels of the official code: bins of keys and of values in the layers below a share of the depth.  1, 2 and 3 are
published for 32 layers, "70b" for 80."""

WIDTHS, GROUP = (0.5, 1.0, 1.5), 10
"""The paper's bin widths in the first, middle and last third of the layers, and tokens that share an anchor."""

FACTORS = {1: 2.0, 2: 1.0, 3: 0.5}
"""What a level multiplies the paper's widths by; the paper's own are level 2."""

FARTHEST = 127
"""Symbols of the paper's schemes stay within this many bins from 0."""


class Scheme(NamedTuple):
    """How a chunk is quantised.

    Attributes
    ----------
    name : {"released", "paper", "raw", "int8", "int4"}
        "released": symbol round(x M / m_t) with m_t the maximum of a token in a layer, M = bins / 2 - 1.  "paper":
        each 10th token is an anchor in 8 bits, of the others the difference from it is quantised.  "raw": the same
        widths without anchors and differences, wider where a value would be beyond the farthest bin.  "int8": 8 bits
        by the token's maximum; "int4": 4 bits between minimum and maximum of each token and head.
    level : int or str
    late : bool
        Whether the last layers get the precision of the first.
    """

    name: str
    level: int | str
    late: bool = False

    def quantise(self, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Arrays of a chunk [2, L, H, T, d], and its symbols [2, L, C, n] int16 around 0 if they are to be coded."""
        _, L, H, T, d = x.shape
        if self.name == "int4":
            import torch

            from parsimony.methods.kv_cache.quantise import Codes

            codes = Codes.of(torch.from_numpy(x), 4, 4, d)
            return {name: getattr(codes, name).numpy() for name in ("packed", "scale", "least")}, None
        x = x.swapaxes(2, 3).reshape(2, L, T, H * d)
        if self.name == "int8":
            codes, m = by_maximum(x, 127)
            return {"m": m, "codes": codes}, None
        if self.name == "released":
            M = levels_of(self.level, L, self.late)
            symbols, m = by_maximum(x, M[:, :, None, None])
            return {"M": M, "m": m}, symbols.swapaxes(2, 3).astype(np.int16)
        anchors, m, delta = differences(x)
        thirds = np.array(WIDTHS[:: -1 if self.late else 1], np.float32)[3 * np.arange(L) // L]
        deviation = np.sqrt((delta**2).sum((2, 3)) / max(delta[0, 0].size, 1))  # [2, L]
        width = (FACTORS[self.level] * thirds * deviation).astype(np.float32)
        coded = delta if self.name == "paper" else x
        if self.name == "raw":  # else a layer whose tokens hardly differ would be cut off
            width = np.maximum(width, np.abs(x).max((2, 3)) / FARTHEST)
        symbols = np.rint(coded / np.where(width > 0, width, 1)[:, :, None, None]).clip(-FARTHEST, FARTHEST)
        arrays = {"width": width} | ({"m": m, "anchors": anchors} if self.name == "paper" else {})
        return arrays, symbols.swapaxes(2, 3).astype(np.int16)

    @property
    def alphabet(self) -> int:
        """Symbols that there may be."""
        if self.name in ("paper", "raw"):
            return 2 * FARTHEST + 1
        return max(bins for kind in BINS[self.level] for _, bins in kind) - 1


def layout(scheme: str, L: int, H: int, T: int, d: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of a scheme's arrays, as they lie in a container."""
    C, G = H * d, -(-T // GROUP)
    return {
        "released": {"M": ("u1", (2, L)), "m": ("<f2", (2, L, T, 1))},
        "paper": {"width": ("<f4", (2, L)), "m": ("<f2", (2, L, G, 1)), "anchors": ("i1", (2, L, G, C))},
        "raw": {"width": ("<f4", (2, L))},
        "int8": {"m": ("<f2", (2, L, T, 1)), "codes": ("i1", (2, L, T, C))},
        "int4": {"packed": ("u1", (L, H, T, d)), "scale": ("<f2", (2, L, H, T, 1)), "least": ("<f2", (2, L, H, T, 1))},
    }[scheme]


def coded_tokens(scheme: str, T: int) -> int:
    """Tokens n of a chunk of T that have symbols."""
    return {"released": T, "raw": T, "paper": T - -(-T // GROUP)}.get(scheme, 0)


def dequantise(scheme: str, arrays: dict[str, np.ndarray], symbols: np.ndarray | None, shape) -> np.ndarray:
    """A chunk [2, L, H, T, d] float32 of its arrays and symbols [2, L, C, n]."""
    _, L, H, T, d = shape
    if scheme == "int4":
        codes = np.stack((arrays["packed"] & 15, arrays["packed"] >> 4), -1).reshape(shape)
        return arrays["least"].astype(np.float32) + codes * arrays["scale"].astype(np.float32)
    if scheme == "int8":
        x = restored(arrays["codes"], arrays["m"], 127)
    elif scheme == "released":
        x = restored(symbols.swapaxes(2, 3), arrays["m"], arrays["M"][:, :, None, None])
    else:
        x = symbols.swapaxes(2, 3) * arrays["width"][:, :, None, None]
        if scheme == "paper":
            x, delta = restored(arrays["anchors"], arrays["m"], 127).repeat(GROUP, 2)[:, :, :T], x
            x[:, :, np.arange(T) % GROUP > 0] += delta
    return x.reshape(2, L, T, H, d).swapaxes(2, 3)


def levels_of(level: int | str, L: int, late: bool = False) -> np.ndarray:
    """M [2, L] uint8 of keys and values, the shares of the depth rounded to whole layers, at least one."""
    M = np.empty((2, L), np.uint8)
    for row, shares in zip(M, BINS[level], strict=True):
        for share, bins in reversed(shares):
            row[: max(int(share * L + 0.5), 1)] = bins // 2 - 1
    return M[:, :: -1 if late else 1].copy()


def differences(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anchors [2, L, G, C] int8 of tokens [2, L, T, C], their maxima, and how the others differ from the decoded."""
    T = x.shape[2]
    anchors, m = by_maximum(x[:, :, ::GROUP], 127)
    near = restored(anchors, m, 127).repeat(GROUP, 2)[:, :, :T]
    return anchors, m, (x - near)[:, :, np.arange(T) % GROUP > 0]


def by_maximum(x: np.ndarray, M: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols int8 from -M to M of tokens [..., C], and each token's maximum [..., 1] float16."""
    m = np.abs(x).max(-1, keepdims=True).astype(np.float16)
    scale = M / np.where(m > 0, m, np.inf).astype(np.float32)
    return np.rint(x * scale).clip(-np.int32(M), M).astype(np.int8), m


def restored(symbols: np.ndarray, m: np.ndarray, M: np.ndarray | int) -> np.ndarray:
    """Tokens [..., C] float32 of `by_maximum`."""
    return symbols * (m.astype(np.float32) / M)
