"""Confidence and entropy over the vocabulary in one pass over the logits, for decoders of masked diffusion models.

Of every row x [V]: the most probable token, its probability and the second one's, the entropy and log sum exp.  torch
reads and writes [N, V] several times for them.  A row is split over programs; each keeps

    m = max x,  its index,  the second value,  mass = sum exp(x - m),  t = sum (x - m) exp(x - m)

and the parts are merged by the usual rescaling.  H = log mass - t / mass, in which nothing large cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from parsimony.kernels.common import Case, Launch, launch, launches_of, normal, power, processors, usable

TILES = {"block": 4096, "warps": 8}
CHOICES = {"block": (2048, 4096, 8192), "warps": (4, 8, 16)}


class Statistics(NamedTuple):
    """Of each row [...]: token int64 (the lowest of equals), first and second probability, entropy in nats, lse."""

    token: Tensor
    first: Tensor
    second: Tensor
    entropy: Tensor
    lse: Tensor


def statistics(logits: Tensor) -> Statistics:
    """Statistics of logits [..., V], float32; by the kernel on a GPU."""
    return (kernel if usable(logits) else reference)(logits)


def reference(logits: Tensor) -> Statistics:
    """The same by torch; probabilities, [..., V], are written to memory."""
    x = logits.float()
    lse, top, p = x.logsumexp(-1), x.topk(2).values, x.softmax(-1)
    first, second = (top - lse[..., None]).exp().unbind(-1)
    return Statistics(x.argmax(-1), first, second, torch.special.entr(p).sum(-1), lse)


def kernel(logits: Tensor) -> Statistics:
    """The same by the kernel."""
    V = logits.shape[-1]
    x = logits.reshape(-1, V)
    x = x if x.stride(1) == 1 else x.contiguous()
    N = len(x)
    block = power(V, 64, TILES["block"])
    splits = max(1, min(-(-V // block), 2 * processors(x.device) // max(N, 1)))
    chunk = -(-V // (splits * block)) * block
    splits = -(-V // chunk)
    parts = x.new_empty(N, splits, 4, dtype=torch.float32)
    at = x.new_empty(N, splits, dtype=torch.int64)
    token, out = x.new_empty(N, dtype=torch.int64), x.new_empty(N, 4, dtype=torch.float32)
    if N:
        arguments = (x, parts, at, V, x.stride(0), splits, chunk)
        launch(part_kernel, (N, splits), arguments, {"BLOCK": block}, TILES["warps"], 2)
        launch(merge_kernel, (N,), (parts, at, token, out, splits), {"SPLITS": power(splits, 2)}, 1, 1)
    return Statistics(*(each.view(logits.shape[:-1]) for each in (token, *out.T.contiguous())))


@triton.jit
def part_kernel(x, parts, at, V, stride, splits, chunk, BLOCK: tl.constexpr):
    """One chunk of one row."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    m, second = -float("inf"), -float("inf")
    mass, t, index = 0.0, 0.0, split * chunk
    for begin in range(split * chunk, tl.minimum((split + 1) * chunk, V), BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        v = tl.load(x + row * stride + columns, mask=columns < V, other=-float("inf")).to(tl.float32)
        high, place = tl.max(v, 0, return_indices=True, return_indices_tie_break_left=True)
        next_high = tl.max(tl.where(columns == begin + place, -float("inf"), v), 0)
        new = tl.maximum(m, high)
        base = tl.where(new == -float("inf"), 0.0, new)  # nothing but -inf so far
        z = v - base
        e = tl.exp(z)
        shift = tl.where(m == -float("inf"), 0.0, m - base)
        shrink = tl.where(m == -float("inf"), 0.0, tl.exp(shift))
        t = shrink * (t + shift * mass) + tl.sum(tl.where(e > 0, z, 0.0) * e, 0)
        mass = shrink * mass + tl.sum(e, 0)
        second = tl.maximum(tl.minimum(m, high), tl.maximum(second, next_high))
        index = tl.where(high > m, begin + place, index)
        m = new
    here = row * splits + split
    tl.store(parts + 4 * here, m)
    tl.store(parts + 4 * here + 1, second)
    tl.store(parts + 4 * here + 2, mass)
    tl.store(parts + 4 * here + 3, t)
    tl.store(at + here, index.to(tl.int64))


@triton.jit
def merge_kernel(parts, at, token, out, splits, SPLITS: tl.constexpr):
    """All parts of one row."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, SPLITS)
    there = k < splits
    here = parts + 4 * (row * splits + k)
    m = tl.load(here, mask=there, other=-float("inf"))
    seconds = tl.load(here + 1, mask=there, other=-float("inf"))
    mass = tl.load(here + 2, mask=there, other=0.0)
    t = tl.load(here + 3, mask=there, other=0.0)
    high, best = tl.max(m, 0, return_indices=True, return_indices_tie_break_left=True)
    shift = tl.where(m == -float("inf"), 0.0, m - high)
    shrink = tl.where(m == -float("inf"), 0.0, tl.exp(shift))
    total = tl.sum(shrink * mass, 0)
    weighted = tl.sum(shrink * (t + shift * mass), 0)
    second = tl.max(tl.maximum(tl.where(k == best, -float("inf"), m), seconds), 0)
    tl.store(token + row, tl.load(at + row * splits + best))
    tl.store(out + 4 * row, 1 / total)
    tl.store(out + 4 * row + 1, tl.exp(second - high) / total)
    tl.store(out + 4 * row + 2, tl.log(total) - weighted / total)
    tl.store(out + 4 * row + 3, high + tl.log(total))


def case(N: int, V: int, dtype: torch.dtype, device, seed: int = 0, ties: bool = False) -> Case:
    """Logits [N, V], peaked to different degrees; with ``ties`` rounded to few values and partly -inf."""
    x = normal(seed, N, V, device=device) * normal(seed + 1, N, 1, device=device).exp() * 2
    if ties:
        x = x.round().masked_fill(normal(seed + 2, N, V, device=device) > 1, -torch.inf)
        x[:, V // 2] = 1.0
    x = x.to(dtype)
    return Case(
        f"{N} rows of {V}, {str(dtype)[6:]}",
        lambda: kernel(x),
        lambda: reference(x),
        x.numel() * x.element_size() + N * 24,
        6 * N * V,
        torch.float32,
        2e-5,
    )


def check(seed: int, device) -> Case:
    """An irregular shape; equal values and -inf at every other seed."""
    draw = torch.Generator().manual_seed(seed)
    N, V = (int(torch.randint(low, high, (), generator=draw)) for low, high in ((1, 7), (2, 9000)))
    dtype = (torch.float32, torch.bfloat16, torch.float16, torch.float64)[seed % 4]
    return case(N, V, dtype, device, 3 * seed, ties=seed % 2 == 1)


def cases(device, small: bool = False) -> list[Case]:
    """What is timed: a block of LLaDA, one of Dream in half precision, and a whole answer."""
    if small:
        return [case(3, 5000, torch.float32, device)]
    return [
        case(32, 126464, torch.float32, device),
        case(32, 151936, torch.bfloat16, device),
        case(512, 126464, torch.bfloat16, device),
    ]


def launches() -> list[Launch]:
    """What is compiled ahead of time."""
    return launches_of(cases("meta"))
