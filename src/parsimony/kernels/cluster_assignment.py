"""The nearest centre of every key: the step of k-means that costs, for LouisKV's clusters.

A program holds some keys and runs over the centres with the best one so far, so the scores [n, U] are never written.
New means stay torch's: they are one pass over the keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from parsimony.kernels.common import (
    Case,
    Launch,
    kinds,
    launch,
    launches_of,
    nbytes,
    normal,
    power,
    precision,
    usable,
)

TILES = {"keys": 128, "centres": 64, "warps": 8, "stages": 2}
CHOICES = {"keys": (64, 128), "centres": (32, 64, 128), "warps": (4, 8), "stages": (2, 3)}


def assign(x: Tensor, centres: Tensor) -> Tensor:
    """Centre [H, n] int64 with the greatest product, the first of equals; by the kernel on a GPU.

    Parameters
    ----------
    x : Tensor [H, n, d]
    centres : Tensor [H, U, d]
    """
    return (kernel if usable(x) else reference)(x, centres)


def reference(x: Tensor, centres: Tensor) -> Tensor:
    """The same by torch."""
    return (x @ centres.mT).argmax(-1)


def kernel(x: Tensor, centres: Tensor) -> Tensor:
    """The same by the kernel."""
    (H, n, d), U = x.shape, centres.shape[1]
    x, centres = (each if each.stride(2) == 1 else each.contiguous() for each in (x, centres))
    labels = x.new_empty(H, n, dtype=torch.int64)
    half = 2 if x.dtype == torch.float32 else 1
    keys, block = power(n, 16, TILES["keys"] // half), power(U, 16, TILES["centres"] // half**2)
    if labels.numel():
        arguments = (x, centres, labels, *x.stride()[:2], *centres.stride()[:2], n, U)
        constants = {"D": d, "BLOCK_D": power(d), "KEYS": keys, "CENTRES": block, "PRECISION": precision(x.dtype)}
        warps = TILES["warps"] if keys >= 64 else 4
        launch(nearest_kernel, (-(-n // keys), H), arguments, constants, warps, TILES["stages"])
    return labels


@triton.jit
def nearest_kernel(
    x, centres, labels, x_h, x_n, c_h, c_u, n, U,
    D: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr, CENTRES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some keys of one head."""
    head = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    c = tl.arange(0, BLOCK_D)
    inside = (k[:, None] < n) & (c[None, :] < D)
    keys = tl.load(x + head * x_h + k[:, None] * x_n + c[None, :], mask=inside, other=0.0)
    best = tl.full((KEYS,), -float("inf"), tl.float32)
    label = tl.zeros((KEYS,), tl.int32)
    for begin in range(0, U, CENTRES):
        u = begin + tl.arange(0, CENTRES)
        there = (u[:, None] < U) & (c[None, :] < D)
        some = tl.load(centres + head * c_h + u[:, None] * c_u + c[None, :], mask=there, other=0.0)
        scores = tl.dot(keys, tl.trans(some), input_precision=PRECISION)
        scores = tl.where(u[None, :] < U, scores, -float("inf"))
        high, place = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
        label = tl.where(high > best, begin + place, label)
        best = tl.maximum(best, high)
    tl.store(labels + head * n + k, label.to(tl.int64), mask=k < n)


def case(H: int, n: int, U: int, d: int, dtype: torch.dtype, device, seed: int = 0) -> Case:
    """Unit vectors around U centres; compared by the score of what was chosen."""
    x, centres = (
        F.normalize(normal(seed + i, H, count, d, device=device), dim=-1).to(dtype) for i, count in ((0, n), (1, U))
    )

    def scores(chosen: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (
            torch.einsum("hnd,hnd->hn", x.double(), centres.double().gather(1, chosen[0][:, :, None].expand(H, n, d))),
        )

    return Case(
        f"{H} heads, {n} keys, {U} centres, width {d}, {str(dtype)[6:]}",
        lambda: (kernel(x, centres),),
        lambda: (reference(x.float(), centres.float()),),
        nbytes(x, centres) + 8 * H * n,
        2 * H * n * U * d,
        dtype,
        1e-6 if dtype == torch.float32 else 1e-5,
        compared=scores,
    )


def check(seed: int, device) -> Case:
    """An irregular shape."""
    draw = torch.Generator().manual_seed(seed)
    H, n, U = (int(torch.randint(1, high, (), generator=draw)) for high in (4, 300, 150))
    dtype = kinds(device)[seed % len(kinds(device))]
    return case(H, n, U, (16, 128, 64, 80)[seed // 3 % 4], dtype, device, 2 * seed)


def cases(device, small: bool = False) -> list[Case]:
    """What is timed: prompts of 16k and 32k tokens with 16 to a cluster, as Llama-3-8B has heads."""
    if small:
        return [case(2, 200, 13, 64, torch.float32, device)]
    return [
        case(8, 16384, 1024, 128, torch.float32, device),
        case(8, 32768, 2048, 128, torch.float16, device),
    ]


def launches() -> list[Launch]:
    """What is compiled ahead of time."""
    return launches_of(cases("meta"))
