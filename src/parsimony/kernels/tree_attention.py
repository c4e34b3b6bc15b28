"""Attention of draft trees: N query rows over a context that all of them see and T new entries under an ancestor mask.

Rows are the R T queries of the heads that share a key-value head, so keys and values are read once for all of them.
The entries are split over programs, flash decoding's way, about one program a processor; only entries of the tree meet
the mask, [N, T], and no mask of the whole context exists.  Parts are merged by their log sum exp.
"""

from __future__ import annotations

import math

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
    processors,
    usable,
)

TILES = {"rows": 128, "entries": 32, "stages": 3, "waves": 1}
CHOICES = {"rows": (64, 128), "entries": (32, 64, 128), "stages": (2, 3), "waves": (1, 2)}
LOG2E = 1 / math.log(2)


def attend(q: Tensor, K: Tensor, V: Tensor, mask: Tensor) -> Tensor:
    """Attention [B, H, N, d]; by the kernel on a GPU.

    Parameters
    ----------
    q : Tensor [B, H, N, d]
    K, V : Tensor [B, H, S, d]
    mask : Tensor [N, T]
        Added to the scores of the newest T entries; the S - T before them are seen by every row.
    """
    return (kernel if usable(q) else reference)(q, K, V, mask)


def reference(q: Tensor, K: Tensor, V: Tensor, mask: Tensor) -> Tensor:
    """The same by torch, with a mask [N, S] of everything."""
    return F.scaled_dot_product_attention(q, K, V, attn_mask=F.pad(mask, (K.shape[2] - mask.shape[1], 0)))


def kernel(q: Tensor, K: Tensor, V: Tensor, mask: Tensor) -> Tensor:
    """The same by the kernel."""
    (B, H, N, d), S, T = q.shape, K.shape[2], mask.shape[1]
    q = q.contiguous()
    K, V = (x if x.stride(3) == 1 else x.contiguous() for x in (K, V))
    wide = q.dtype == torch.float32
    rows = power(N, 16, TILES["rows"] // (2 if wide else 1))
    entries = TILES["entries"] // (2 if wide else 1)
    blocks = -(-N // rows)
    splits = max(1, min(TILES["waves"] * processors(q.device) // (B * H * blocks), -(-S // entries), 128))
    chunk = -(-S // (splits * entries)) * entries
    splits = -(-S // chunk)
    parts = q.new_empty(splits, B * H * N, d, dtype=torch.float32)
    lse = q.new_empty(splits, B * H * N, dtype=torch.float32)
    out = torch.empty_like(q)
    if not q.numel():
        return out
    width = {"D": d, "BLOCK_D": power(d)}
    arguments = (q, K, V, mask, parts, lse, *K.stride()[:3], *V.stride()[:3], mask.stride(0), mask.stride(1))
    arguments += (H, N, S, T, chunk, B * H * N, LOG2E / math.sqrt(d))
    constants = width | {"ROWS": rows, "ENTRIES": entries, "PRECISION": precision(q.dtype)}
    launch(part_kernel, (B * H, blocks, splits), arguments, constants, 8 if rows >= 128 else 4, TILES["stages"])
    constants = width | {"SPLITS": power(splits, 2), "ROWS": 4}
    launch(merge_kernel, (-(-B * H * N // 4),), (parts, lse, out, None, B * H * N, splits), constants, 4, 1)
    return out


@triton.jit
def part_kernel(
    q, k, v, mask, parts, lse, k_b, k_h, k_s, v_b, v_h, v_s, mask_n, mask_t, H, N, S, T, chunk, total, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some rows of one head over one chunk of the entries."""
    head = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    k += (head // H) * k_b + (head % H) * k_h
    v += (head // H) * v_b + (head % H) * v_h
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_D)
    here = head * N + n
    queries = tl.load(q + here[:, None] * D + c[None, :], mask=(n[:, None] < N) & (c[None, :] < D), other=0.0)
    m = tl.full((ROWS,), -float("inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    begin = split * chunk
    stop = tl.minimum(begin + chunk, S)
    context = S - T
    for start in range(begin, stop, ENTRIES):
        s = start + tl.arange(0, ENTRIES)
        inside = (s[:, None] < stop) & (c[None, :] < D)
        keys = tl.load(k + s[:, None] * k_s + c[None, :], mask=inside, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where(s[None, :] < stop, scores, -float("inf"))
        if start + ENTRIES > context:
            fresh = s - context
            bias = tl.load(
                mask + n[:, None] * mask_n + fresh[None, :] * mask_t,
                mask=(n[:, None] < N) & (fresh[None, :] >= 0) & (s[None, :] < stop),
                other=0.0,
            )
            scores += bias.to(tl.float32) * 1.4426950408889634
        new = tl.maximum(m, tl.max(scores, 1))
        base = tl.where(new == -float("inf"), 0.0, new)  # nothing seen so far
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(m - base)
        mass = mass * shrink + tl.sum(p, 1)
        values = tl.load(v + s[:, None] * v_s + c[None, :], mask=inside, other=0.0)
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
        m = new
    seen = tl.where(mass > 0, mass, 1.0)
    at = split.to(tl.int64) * total + here
    tl.store(parts + at[:, None] * D + c[None, :], acc / seen[:, None], mask=(n[:, None] < N) & (c[None, :] < D))
    tl.store(lse + at, tl.where(mass > 0, m + tl.log2(seen), -float("inf")), mask=n < N)


@triton.jit
def merge_kernel(
    parts, lse, out, merged, total, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """All parts of some rows, and their log sum exp if it is asked for; log sum exps are to base 2."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k, c = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    there = (row[:, None] < total) & (k[None, :] < splits)
    one = tl.load(lse + k[None, :].to(tl.int64) * total + row[:, None], mask=there, other=-float("inf"))
    high = tl.max(one, 1)
    weights = tl.exp2(one - tl.where(high == -float("inf"), 0.0, high)[:, None])
    share = tl.sum(weights, 1)
    if merged is not None:
        tl.store(merged + row, high + tl.log2(share), mask=row < total)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    inside = (row[:, None] < total) & (c[None, :] < D)
    for i in range(splits):
        w = tl.sum(tl.where(k[None, :] == i, weights, 0.0), 1)
        acc += w[:, None] * tl.load(parts + row[:, None] * D + c[None, :], mask=inside, other=0.0)
        row += total
    acc /= tl.where(share > 0, share, 1.0)[:, None]
    row -= splits * total
    tl.store(out + row[:, None] * D + c[None, :], acc.to(out.dtype.element_ty), mask=inside)


def tree(T: int, seed: int, branching: int = 3) -> Tensor:
    """Ancestor mask [T, T] bool of a random tree: row 0 is the root, every other hangs under an earlier one."""
    sees, draw = torch.eye(T, dtype=torch.bool), torch.Generator().manual_seed(seed)
    for row in range(1, T):
        parent = int(torch.randint(max(0, row // branching - 2), row, (), generator=draw))
        sees[row] |= sees[parent]
    return sees


def case(B: int, H: int, R: int, T: int, L: int, d: int, dtype: torch.dtype, device, seed: int = 0) -> Case:
    """A tree of T rows behind L entries; R query heads share each of H key-value heads."""
    S = L + T
    q = normal(seed, B, H, R * T, d, device=device, dtype=dtype)
    # Views of buffers with room behind, as a cache hands them out.
    K, V = (normal(seed + i, B, H, S + 5, d, device=device, dtype=dtype)[:, :, :S] for i in (1, 2))
    mask = torch.zeros(T, T).masked_fill(~tree(T, seed), -torch.inf).repeat(R, 1).to(device=device, dtype=dtype)
    full = F.pad(mask, (L, 0))
    return Case(
        f"batch {B}, {H} heads of {R}, tree of {T}, context {L}, width {d}, {str(dtype)[6:]}",
        lambda: (kernel(q, K, V, mask),),
        lambda: (reference(q.float(), K.float(), V.float(), mask.float()),),
        nbytes(q, K, V, mask, q),
        4 * B * H * R * T * S * d,
        dtype,
        {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype],
        {"torch's attention": lambda: F.scaled_dot_product_attention(q, K, V, attn_mask=full)},
    )


def check(seed: int, device) -> Case:
    """An irregular shape; trees without context, single rows and odd widths among them."""
    draw = torch.Generator().manual_seed(seed)
    B, H, R, T = (int(torch.randint(1, high, (), generator=draw)) for high in (3, 3, 5, 40))
    L = 0 if seed % 5 == 4 else int(torch.randint(0, 300, (), generator=draw))
    T, R = (1, 1) if seed % 7 == 6 else (T, R)
    dtype = kinds(device)[seed % len(kinds(device))]
    return case(B, H, R, T, L, (16, 128, 64, 80)[seed // 3 % 4], dtype, device, 3 * seed)


def cases(device, small: bool = False) -> list[Case]:
    """What is timed: Token Recycling's tree on Llama-3-8B, a tree of Medusa's size on long contexts, SmolLM2."""
    if small:
        return [case(1, 2, 2, 20, 100, 64, torch.float32, device)]
    return [
        case(1, 8, 4, 81, 8192, 128, torch.float16, device),
        case(1, 8, 4, 64, 32768, 128, torch.bfloat16, device),
        case(1, 3, 3, 81, 1024, 64, torch.float32, device),
    ]


def launches() -> list[Launch]:
    """What is compiled ahead of time."""
    return launches_of(cases("meta"))
