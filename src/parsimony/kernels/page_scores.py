"""Scores of units of a cache (clusters, segments, Quest's pages), and the choice of the best that a budget holds.

    w_u = mean over the R query heads of  softmax_u (bound_u / sqrt d),      bound = max(q, 0) high + min(q, 0) low

A unit is described by its mean key (then low = high, and the bound is q c) or by bounds of every channel.  One kernel
scores blocks of units, a second turns scores into w, a third finds by bisection on the bits of w how many entries of
every unit are taken, where torch would sort units and entries.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from parsimony.kernels.common import Case, Launch, kinds, launch, launches_of, nbytes, normal, power, precision, usable

TILES = {"units": 64, "warps": 4}
CHOICES = {"units": (32, 64, 128), "warps": (4, 8)}


def scores(q: Tensor, low: Tensor, high: Tensor, sizes: Tensor) -> Tensor:
    """w [H, U] float32; by kernels on a GPU.

    Parameters
    ----------
    q : Tensor [H, R, d]
    low, high : Tensor [H, U, d]
        The same tensor where units have one description.
    sizes : Tensor [H, U]
        Entries of each unit; empty ones get w = 0.
    """
    return (kernel if usable(q) else reference)(q, low, high, sizes)


def taken(w: Tensor, sizes: Tensor, budget: int) -> Tensor:
    """Entries taken of each unit, [H, U] int32: the best units whole, the last one as far as the budget goes.

    The first of equal units comes first.

    Parameters
    ----------
    w : Tensor [H, U] float32
        Not negative.
    sizes : Tensor [H, U]
    """
    return (taken_kernel if usable(w) else taken_reference)(w, sizes, budget)


def reference(q: Tensor, low: Tensor, high: Tensor, sizes: Tensor) -> Tensor:
    """`scores` by torch."""
    low, high = low.to(q.dtype), high.to(q.dtype)
    bound = q.clamp(min=0) @ high.mT + q.clamp(max=0) @ low.mT
    return (bound / q.shape[-1] ** 0.5).masked_fill(~(sizes > 0)[:, None], -torch.inf).softmax(-1).mean(1)


def taken_reference(w: Tensor, sizes: Tensor, budget: int) -> Tensor:
    """`taken` by torch."""
    order = w.argsort(dim=1, descending=True, stable=True)
    ranked = sizes.long().gather(1, order)
    left = (budget - (ranked.cumsum(1) - ranked)).clamp(min=0)
    return torch.zeros_like(ranked).scatter_(1, order, ranked.minimum(left)).int()


def kernel(q: Tensor, low: Tensor, high: Tensor, sizes: Tensor) -> Tensor:
    """`scores` by kernels."""
    (H, R, d), U = q.shape, low.shape[1]
    q, sizes = q.contiguous(), sizes.contiguous()
    bounds = low.data_ptr() != high.data_ptr() if not low.is_meta else low is not high
    low, high = low.contiguous(), high.contiguous()
    units, rows = TILES["units"], power(R)
    blocks = -(-U // units)
    raw, w = (q.new_empty(*shape, dtype=torch.float32) for shape in ((H, R, U), (H, U)))
    parts = q.new_empty(H, R, blocks, 2, dtype=torch.float32)
    if w.numel():
        constants = {"D": d, "BLOCK_D": power(d), "ROWS": rows, "UNITS": units, "BOUNDS": bounds}
        constants["PRECISION"] = precision(q.dtype)
        arguments = (q, low, high, sizes, raw, parts, R, U, 1 / math.sqrt(d))
        launch(bound_kernel, (blocks, H), arguments, constants, TILES["warps"], 2)
        constants = {"ROWS": rows, "UNITS": units, "BLOCKS": power(blocks, 2)}
        launch(mean_kernel, (blocks, H), (raw, parts, w, R, U, blocks), constants, TILES["warps"], 2)
    return w


def taken_kernel(w: Tensor, sizes: Tensor, budget: int) -> Tensor:
    """`taken` by a kernel."""
    H, U = w.shape
    out = w.new_empty(H, U, dtype=torch.int32)
    if out.numel():
        constants = {"UNITS": power(U, 32)}
        arguments = (w.contiguous(), sizes.contiguous(), out, U, min(budget, 2**31 - 1))
        launch(taken_part, (H,), arguments, constants, 8 if U > 1024 else 4, 1)
    return out


@triton.jit
def bound_kernel(
    q, low, high, sizes, raw, parts, R, U, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, BOUNDS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a block of units by all heads of a group, and their maximum and sum of exponentials."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, u, c = tl.arange(0, ROWS), block * UNITS + tl.arange(0, UNITS), tl.arange(0, BLOCK_D)
    queries = tl.load(q + (head * R + r[:, None]) * D + c[None, :], mask=(r[:, None] < R) & (c[None, :] < D), other=0.0)
    inside = (u[:, None] < U) & (c[None, :] < D)
    at = (head * U + u[:, None]) * D + c[None, :]
    upper = tl.load(high + at, mask=inside, other=0.0).to(queries.dtype)
    if BOUNDS:
        lower = tl.load(low + at, mask=inside, other=0.0).to(queries.dtype)
        zero = tl.zeros_like(queries)
        scores = tl.dot(tl.maximum(queries, zero), tl.trans(upper), input_precision=PRECISION)
        scores = tl.dot(tl.minimum(queries, zero), tl.trans(lower), scores, input_precision=PRECISION)
    else:
        scores = tl.dot(queries, tl.trans(upper), input_precision=PRECISION)
    held = tl.load(sizes + head * U + u, mask=u < U, other=0)
    scores = tl.where((held > 0)[None, :], scores * scale, -float("inf"))
    m = tl.max(scores, 1)
    mass = tl.sum(tl.exp(scores - tl.where(m == -float("inf"), 0.0, m)[:, None]), 1)
    row = head * R + r
    tl.store(raw + row[:, None] * U + u[None, :], scores, mask=(r[:, None] < R) & (u[None, :] < U))
    here = parts + 2 * (row * tl.num_programs(0) + block)
    tl.store(here, m, mask=r < R)
    tl.store(here + 1, mass, mask=r < R)


@triton.jit
def mean_kernel(raw, parts, w, R, U, blocks, ROWS: tl.constexpr, UNITS: tl.constexpr, BLOCKS: tl.constexpr):
    """The mean over heads of the softmax, for a block of units."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, u, k = tl.arange(0, ROWS), block * UNITS + tl.arange(0, UNITS), tl.arange(0, BLOCKS)
    row = head * R + r
    there = (r[:, None] < R) & (k[None, :] < blocks)
    here = parts + 2 * (row[:, None] * blocks + k[None, :])
    m = tl.load(here, mask=there, other=-float("inf"))
    mass = tl.load(here + 1, mask=there, other=0.0)
    high = tl.max(m, 1)
    base = tl.where(high == -float("inf"), 0.0, high)
    total = tl.sum(mass * tl.exp(m - base[:, None]), 1)
    inside = (r[:, None] < R) & (u[None, :] < U)
    scores = tl.load(raw + row[:, None] * U + u[None, :], mask=inside, other=-float("inf"))
    p = tl.exp(scores - base[:, None]) / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(w + head * U + u, tl.sum(p, 0) / R, mask=u < U)


@triton.jit
def taken_part(w, sizes, out, U, budget, UNITS: tl.constexpr):
    """All units of one head: the bits of a float that is not negative sort as it does."""
    head = tl.program_id(0).to(tl.int64)
    u = tl.arange(0, UNITS)
    bits = tl.load(w + head * U + u, mask=u < U, other=0.0).to(tl.int32, bitcast=True)
    size = tl.load(sizes + head * U + u, mask=u < U, other=0).to(tl.int32)
    # The greatest threshold, bit by bit, whose units together fill the budget; 0 if all do not.
    threshold = 0
    for i in range(31):
        trial = threshold + (1 << (30 - i))
        threshold = tl.where(tl.sum(tl.where(bits >= trial, size, 0), 0) >= budget, trial, threshold)
    above, equal = bits > threshold, bits == threshold
    left = budget - tl.sum(tl.where(above, size, 0), 0)
    before = tl.cumsum(tl.where(equal, size, 0), 0) - size
    share = tl.minimum(size, tl.maximum(left - before, 0))
    tl.store(out + head * U + u, tl.where(above, size, tl.where(equal, share, 0)), mask=u < U)


def case(H: int, R: int, U: int, d: int, budget: int, bounds: bool, dtype: torch.dtype, device, seed: int = 0) -> Case:
    """Units of 0 to 31 entries; compared are w and how much of it was taken."""
    q = normal(seed, H, R, d, device=device, dtype=dtype)
    high = normal(seed + 1, H, U, d, device=device, dtype=dtype)
    low = high - normal(seed + 2, H, U, d, device=device, dtype=dtype).abs() if bounds else high
    sizes = torch.randint(0, 32, (H, U), generator=torch.Generator().manual_seed(seed)).int().to(device)

    def by_torch() -> tuple[Tensor, ...]:
        w = reference(q.float(), low.float(), high.float(), sizes)
        return w, sizes, taken_reference(w, sizes, budget)

    def ours() -> tuple[Tensor, ...]:
        w = kernel(q, low, high, sizes)
        return w, sizes, taken_kernel(w, sizes, budget)

    def compared(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        w, held, chosen = found
        same = taken_reference(w, held, budget)  # of these very w, so that near-equal ones may change places
        return w * U, chosen.sum(1), (chosen - same).abs()

    return Case(
        f"{H} heads of {R}, {U} units of width {d}{', bounds' if bounds else ''}, budget {budget}, {str(dtype)[6:]}",
        ours,
        by_torch,
        nbytes(q, high, low if bounds else None, sizes) + 8 * H * U,
        (4 if bounds else 2) * H * R * U * d,
        dtype,
        {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype],
        compared=compared,
    )


def check(seed: int, device) -> Case:
    """An irregular shape; budgets from one entry to more than there are."""
    draw = torch.Generator().manual_seed(seed)
    H, R, U, budget = (int(torch.randint(1, high, (), generator=draw)) for high in (4, 9, 300, 2000))
    budget = (budget, 1, 10**9)[seed // 2 % 3]
    dtype = kinds(device)[seed % len(kinds(device))]
    return case(H, R, U, (16, 128, 64, 80)[seed // 3 % 4], budget, seed % 4 > 1, dtype, device, 3 * seed)


def cases(device, small: bool = False) -> list[Case]:
    """What is timed: clusters of a prompt of 32k tokens, and Quest's pages of one of 128k."""
    if small:
        return [case(2, 4, 100, 64, 200, True, torch.float32, device)]
    return [
        case(8, 4, 2048, 128, 1024, False, torch.float16, device),
        case(8, 4, 8192, 128, 2048, True, torch.float16, device),
    ]


def launches() -> list[Launch]:
    """What is compiled ahead of time."""
    return launches_of(cases("meta"))
