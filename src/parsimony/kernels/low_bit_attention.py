"""Decode attention over keys and values that stay in 2, 4 or 8 bits, with GEAR's corrections.

One pass over the codes: nothing is restored to memory.  A program takes blocks of tokens of one head for all query
heads of its group, with an online softmax; parts are merged as in `tree_attention`.

- Keys in groups of tokens: q K^T = (q * scale) codes^T + q least^T, so a block of one group costs no affine map.
- The low-rank part stays in its factors: (q P) A^T, and (p A) P^T behind the kernel.
- Single entries (outliers) come block by block in one range.  Those of keys add q[channel] * delta to their token's
  score, those of values p[token] * delta to their channel: products with a matrix of zeros and ones, on tensor cores,
  in place of a scatter, which a program cannot do in registers.
"""

from __future__ import annotations

import math

import torch
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
from parsimony.kernels.low_bit_codes import RANK, Coded, Sparse, packed_tile, plane
from parsimony.kernels.tree_attention import LOG2E, merge_kernel

TILES = {"tokens": 32, "warps": 4, "stages": 2, "waves": 4}
CHOICES = {"tokens": (32, 64, 128), "warps": (1, 2, 4), "stages": (1, 2, 3), "waves": (1, 2, 4, 8)}


def attend(q: Tensor, keys: Coded, values: Coded, count: int) -> tuple[Tensor, Tensor]:
    """Attention over the first ``count`` tokens: y [H, R, d] and log sum exp [H, R]; by the kernel on a GPU.

    Parameters
    ----------
    q : Tensor [H, R, d]
    keys, values : Coded
        Of at least so many tokens.
    """
    by_kernel = usable(q) and keys.fits() and values.fits()
    return (kernel if by_kernel else reference)(q, keys, values, count)


def reference(q: Tensor, keys: Coded, values: Coded, count: int) -> tuple[Tensor, Tensor]:
    """The same by torch, from restored keys and values."""
    return dense(q, *(each.restore()[:, :count] for each in (keys, values)))


def dense(q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over keys and values [H, n, d] as they are: y [H, R, d] and log sum exp [H, R]."""
    scores = q @ K.to(q.dtype).mT / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ V.to(q.dtype), scores.logsumexp(-1)


def merged(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over all from that over parts, (y, log sum exp) each."""
    lse = torch.stack([part for _, part in parts])
    return ((lse - lse.logsumexp(0)).exp()[..., None] * torch.stack([y for y, _ in parts])).sum(0)


def kernel(q: Tensor, keys: Coded, values: Coded, count: int) -> tuple[Tensor, Tensor]:
    """The same by the kernel."""
    H, R, d = q.shape
    q, rows = q.contiguous(), power(R)
    grouped = [each.tokens for each in (keys, values) if each.channels == 1]
    tokens = min(TILES["tokens"], *grouped, 128)
    tokens = max(size for size in (32, 64, 128) if size <= tokens and all(g % size == 0 for g in grouped))
    splits = max(1, min(TILES["waves"] * processors(q.device) // H, -(-count // tokens), 256))
    chunk = -(-count // (splits * tokens)) * tokens
    splits = -(-count // chunk)
    wide = d + (RANK if values.rank else 0) + (d if values.sparse else 0)  # behind the channels: p A, single entries
    shapes = (splits, H * R, wide), (splits, H * R), (H, R, wide), (H, R)
    parts, lse, out, total = (q.new_empty(*shape, dtype=torch.float32) for shape in shapes)
    low_q = q @ keys.P.to(q.dtype) if keys.rank else None  # [H, R, r]
    arguments, constants = (q, low_q), {}
    for name, each in (("K", keys), ("V", values)):
        sparse = each.sparse
        arguments += (each.packed.contiguous(), each.scale.contiguous(), each.least.contiguous(), each.A)
        arguments += (None,) * 4 if sparse is None else tuple(sparse.tensors())
        arguments += (len(each),)
        constants |= {f"{name}_BITS": each.bits, f"{name}_TOKENS": each.tokens, f"{name}_CHANNELS": each.channels}
        constants |= {f"{name}_PLANES": each.planes, f"{name}_RANK": each.rank, f"{name}_SPARSE": sparse is not None}
    arguments += (parts, lse, R, count, chunk, H * R, LOG2E / math.sqrt(d))
    constants |= {"D": d, "BLOCK_D": power(d), "WIDE": wide, "ROWS": rows, "TOKENS": tokens}
    constants["PRECISION"] = precision(q.dtype)
    launch(part_kernel, (splits, H), arguments, constants, TILES["warps"], TILES["stages"])
    constants = {"D": wide, "BLOCK_D": power(wide), "SPLITS": power(splits, 2), "ROWS": 1}
    launch(merge_kernel, (H * R,), (parts, lse, out, total, H * R, splits), constants, 4, 1)
    y = out[..., :d]
    if values.rank:
        y = y + out[..., d : d + values.rank] @ values.P.float().mT
    if values.sparse is not None:
        y = y + out[..., -d:]
    return y.to(q.dtype), total / LOG2E


@triton.jit
def part_kernel(
    q, low_q,
    k_packed, k_scale, k_least, k_a, k_offsets, k_token, k_channel, k_delta, k_n,
    v_packed, v_scale, v_least, v_a, v_offsets, v_token, v_channel, v_delta, v_n,
    parts, lse, R, count, chunk, total, scale,
    K_BITS: tl.constexpr, K_TOKENS: tl.constexpr, K_CHANNELS: tl.constexpr, K_PLANES: tl.constexpr,
    K_RANK: tl.constexpr, K_SPARSE: tl.constexpr,
    V_BITS: tl.constexpr, V_TOKENS: tl.constexpr, V_CHANNELS: tl.constexpr, V_PLANES: tl.constexpr,
    V_RANK: tl.constexpr, V_SPARSE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The query heads of one group over one chunk of the tokens."""
    split, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    T: tl.constexpr = q.dtype.element_ty
    r, c, i = tl.arange(0, ROWS), tl.arange(0, BLOCK_D), tl.arange(0, 16)
    q += head * R * D
    k_packed += head * k_n * (D * K_BITS // 8)
    v_packed += head * v_n * (D * V_BITS // 8)
    k_groups = head * (k_n // K_TOKENS) * (D // K_CHANNELS)
    v_groups = head * (v_n // V_TOKENS) * (D // V_CHANNELS)
    kj, vj = tl.arange(0, BLOCK_D // K_PLANES), tl.arange(0, BLOCK_D // V_PLANES)
    v_width: tl.constexpr = BLOCK_D // V_PLANES
    if K_RANK > 0:
        projected = tl.load(
            low_q + (head * R + r[:, None]) * K_RANK + i[None, :],
            mask=(r[:, None] < R) & (i[None, :] < K_RANK),
            other=0.0,
        )
    m = tl.full((ROWS,), -float("inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    acc0 = tl.zeros((ROWS, v_width), tl.float32)
    acc1 = tl.zeros((ROWS, v_width), tl.float32)
    acc2 = tl.zeros((ROWS, v_width), tl.float32)
    acc3 = tl.zeros((ROWS, v_width), tl.float32)
    low = tl.zeros((ROWS, 16), tl.float32)
    single = tl.zeros((ROWS, BLOCK_D), tl.float32)
    stop = tl.minimum((split + 1) * chunk, count)
    for start in range(split * chunk, stop, TOKENS):
        t = start + tl.arange(0, TOKENS)
        # Scores [ROWS, TOKENS].
        scores = tl.zeros((ROWS, TOKENS), tl.float32)
        inside = (t[:, None] < stop) & (kj[None, :] < D // K_PLANES)
        tile = packed_tile(k_packed, t, kj, inside, D, K_BITS, K_PLANES)
        for s in tl.static_range(K_PLANES):
            channel = kj * K_PLANES + s
            queries = tl.load(
                q + r[:, None] * D + channel[None, :], mask=(r[:, None] < R) & (channel[None, :] < D), other=0.0
            )
            codes = plane(tile, kj, s, K_BITS, K_PLANES)
            if K_CHANNELS == 1:
                group = k_groups + (start // K_TOKENS) * D + channel
                step = tl.load(k_scale + group, mask=channel < D, other=0.0).to(tl.float32)
                least = tl.load(k_least + group, mask=channel < D, other=0.0).to(tl.float32)
                stretched = (queries.to(tl.float32) * step[None, :]).to(T)
                scores = tl.dot(stretched, tl.trans(codes.to(T)), scores, input_precision=PRECISION)
                scores += tl.sum(queries.to(tl.float32) * least[None, :], 1)[:, None]
            else:
                group = k_groups + t[:, None] * (D // K_CHANNELS) + (channel // K_CHANNELS)[None, :]
                step = tl.load(k_scale + group, mask=inside, other=0.0).to(tl.float32)
                least = tl.load(k_least + group, mask=inside, other=0.0).to(tl.float32)
                keys = (codes.to(tl.float32) * step + least).to(T)
                scores = tl.dot(queries, tl.trans(keys), scores, input_precision=PRECISION)
        if K_RANK > 0:
            a = tl.load(
                k_a + (head * k_n + t[:, None]) * K_RANK + i[None, :],
                mask=(t[:, None] < stop) & (i[None, :] < K_RANK), other=0.0,
            )  # fmt: skip
            scores = tl.dot(projected, tl.trans(a.to(T)), scores, input_precision=PRECISION)
        if K_SPARSE:
            tiles = (k_n + 31) // 32
            first = tl.load(k_offsets + head * tiles + start // 32)
            last = tl.load(k_offsets + head * tiles + tl.minimum((start + TOKENS) // 32, tiles))
            for begin in range(first, last, 32):
                e = begin + tl.arange(0, 32)
                owner = tl.load(k_token + e, mask=e < last, other=0).to(tl.int32)
                column = tl.load(k_channel + e, mask=e < last, other=0).to(tl.int32)
                delta = tl.load(k_delta + e, mask=e < last, other=0.0).to(tl.float32)
                w = tl.load(q + r[:, None] * D + column[None, :], mask=r[:, None] < R, other=0.0).to(tl.float32)
                here = (owner[:, None] == (t % 256)[None, :]).to(T)
                scores = tl.dot((w * delta[None, :]).to(T), here, scores, input_precision=PRECISION)
        scores = tl.where(t[None, :] < stop, scores * scale, -float("inf"))
        new = tl.maximum(m, tl.max(scores, 1))
        p = tl.exp2(scores - new[:, None])
        shrink = tl.exp2(m - new)
        weight = tl.sum(p, 1)
        mass, m = mass * shrink + weight, new
        p = p.to(T)
        # Outputs, a plane of channels each.
        inside = (t[:, None] < stop) & (vj[None, :] < D // V_PLANES)
        tile = packed_tile(v_packed, t, vj, inside, D, V_BITS, V_PLANES)
        if V_CHANNELS > 1:
            group = v_groups + t[:, None] * (D // V_CHANNELS) + (vj * V_PLANES // V_CHANNELS)[None, :]
            step = tl.load(v_scale + group, mask=inside, other=0.0).to(tl.float32)
            least = tl.load(v_least + group, mask=inside, other=0.0).to(tl.float32)
        for s in tl.static_range(V_PLANES):
            codes = plane(tile, vj, s, V_BITS, V_PLANES)
            if V_CHANNELS == 1:
                channel = vj * V_PLANES + s
                group = v_groups + (start // V_TOKENS) * D + channel
                step = tl.load(v_scale + group, mask=channel < D, other=0.0).to(tl.float32)[None, :]
                least = tl.load(v_least + group, mask=channel < D, other=0.0).to(tl.float32)[None, :]
                part = tl.dot(p, codes.to(T), input_precision=PRECISION) * step + weight[:, None] * least
            else:
                part = tl.dot(p, (codes.to(tl.float32) * step + least).to(T), input_precision=PRECISION)
            if s == 0:
                acc0 = acc0 * shrink[:, None] + part
            elif s == 1:
                acc1 = acc1 * shrink[:, None] + part
            elif s == 2:
                acc2 = acc2 * shrink[:, None] + part
            else:
                acc3 = acc3 * shrink[:, None] + part
        if V_RANK > 0:
            a = tl.load(
                v_a + (head * v_n + t[:, None]) * V_RANK + i[None, :],
                mask=(t[:, None] < stop) & (i[None, :] < V_RANK), other=0.0,
            )  # fmt: skip
            low = tl.dot(p, a.to(T), low * shrink[:, None], input_precision=PRECISION)
        if V_SPARSE:
            single *= shrink[:, None]
            tiles = (v_n + 31) // 32
            first = tl.load(v_offsets + head * tiles + start // 32)
            last = tl.load(v_offsets + head * tiles + tl.minimum((start + TOKENS) // 32, tiles))
            for begin in range(first, last, 32):
                e = begin + tl.arange(0, 32)
                owner = tl.load(v_token + e, mask=e < last, other=0).to(tl.int32)
                column = tl.load(v_channel + e, mask=e < last, other=0).to(tl.int32)
                delta = tl.load(v_delta + e, mask=e < last, other=0.0).to(tl.float32)
                here = ((t % 256)[:, None] == owner[None, :]).to(T)
                picked = tl.dot(p, here, input_precision=PRECISION) * delta[None, :]
                there = (column[:, None] == c[None, :]).to(T)
                single = tl.dot(picked.to(T), there, single, input_precision=PRECISION)
    at = split.to(tl.int64) * total + head * R + r
    kept = (r[:, None] < R) & (vj[None, :] < D // V_PLANES)
    base = parts + at[:, None] * WIDE
    tl.store(base + vj[None, :] * V_PLANES, acc0 / mass[:, None], mask=kept)
    if V_PLANES > 1:
        tl.store(base + vj[None, :] * V_PLANES + 1, acc1 / mass[:, None], mask=kept)
    if V_PLANES > 2:
        tl.store(base + vj[None, :] * V_PLANES + 2, acc2 / mass[:, None], mask=kept)
        tl.store(base + vj[None, :] * V_PLANES + 3, acc3 / mass[:, None], mask=kept)
    if V_RANK > 0:
        tl.store(base + D + i[None, :], low / mass[:, None], mask=(r[:, None] < R) & (i[None, :] < 16))
    if V_SPARSE:
        tl.store(base + WIDE - D + c[None, :], single / mass[:, None], mask=(r[:, None] < R) & (c[None, :] < D))
    tl.store(lse + at, m + tl.log2(mass), mask=r < R)


def coded(seed: int, H: int, n: int, d: int, bits: int, group: int, per: str, rank: int, share: float, device) -> Coded:
    """Random codes whose steps are a normal cache's; with ``share`` of the entries corrected singly."""
    n = n if per == "token" else -(-n // group) * group
    draw, meta = torch.Generator().manual_seed(seed), torch.device(device).type == "meta"
    tokens, channels = (group, 1) if per == "channel" else (1, group)

    def integers(high: int, *shape: int, dtype=torch.int64) -> Tensor:
        empty = torch.empty(shape, device=device, dtype=dtype)
        return empty if meta else torch.randint(high, shape, generator=draw).to(device, dtype)

    packed = integers(256, H, n, d * bits // 8, dtype=torch.uint8)
    shape = (H, n // tokens, d // channels)
    scale = normal(seed + 1, *shape, device=device, dtype=torch.float16).abs() * (2 / 2**bits)
    least = normal(seed + 2, *shape, device=device, dtype=torch.float16) - 1
    A = P = sparse = None
    if rank:
        A = normal(seed + 3, H, n, rank, device=device, dtype=torch.float16) / 4
        P = normal(seed + 4, H, d, rank, device=device, dtype=torch.float16) / 4
    if share:
        m = round(share * H * n * d)
        # Outliers crowd: a third of them stand in the first tokens.
        token = integers(n, m) if meta else integers(n, m).where(integers(3, m) > 0, integers(min(n, 4), m))
        delta = normal(seed + 5, m, device=device, dtype=torch.float16) * 2
        sparse = Sparse.of(integers(H, m), token, integers(d, m), delta, H, n)
    return Coded(packed, scale, least, bits, tokens, channels, A, P, sparse)


def case(
    H: int, R: int, n: int, d: int, bits: int, group: int, dtype: torch.dtype, device, rank: int = 0,
    share: float = 0.0, seed: int = 0, per: tuple[str, str] = ("channel", "token"),
) -> Case:  # fmt: skip
    """One layer of H heads of width d for R query heads each, over n tokens."""
    q = normal(seed, H, R, d, device=device, dtype=dtype)
    keys, values = (
        coded(
            seed + 10 * (i + 1),
            H,
            n,
            d,
            bits,
            min(group, d) if per[i] == "token" else group,
            per[i],
            rank,
            share,
            device,
        )
        for i in (0, 1)
    )
    corrections = f", rank {rank}, {share:.0%} corrected" if rank or share else ""
    return Case(
        f"{H} heads of {R}, {n} tokens, width {d}, {bits} bits, groups {group} ({per[0]}, {per[1]}){corrections}, "
        f"{str(dtype)[6:]}",
        lambda: kernel(q, keys, values, n),
        lambda: reference(q.float(), keys, values, n),
        nbytes(q, q, *keys.tensors(), *values.tensors()),
        4 * H * R * n * (d + 2 * rank + round(share * d)),
        dtype,
        {torch.float32: 5e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}[dtype],
        {"torch, from restored float16": restored_attention(q, keys, values, n)},
    )


def restored_attention(q: Tensor, keys: Coded, values: Coded, n: int):
    """torch's attention over keys and values that lie restored in half precision: what codes are to beat in time."""
    if q.is_meta:
        return None
    half = torch.float16 if q.dtype == torch.float32 else q.dtype
    K, V = (each.restore()[:, :n].to(half) for each in (keys, values))
    return lambda: torch.nn.functional.scaled_dot_product_attention(q.to(half), K, V)


def check(seed: int, device) -> Case:
    """An irregular shape: each width, both ways of grouping, with and without corrections."""
    draw = torch.Generator().manual_seed(seed)
    H, R, n = (int(torch.randint(1, high, (), generator=draw)) for high in (4, 6, 400))
    d, bits, group = (16, 128, 64, 128)[seed % 4], (2, 4, 8)[seed % 3], (32, 64)[seed // 2 % 2]
    per = (("channel", "token"), ("token", "channel"), ("channel", "token"), ("token", "token"))[seed // 4 % 4]
    rank, share = ((0, 0.0), (4, 0.0), (0, 0.03), (3, 0.02))[seed // 3 % 4]
    dtype = kinds(device)[seed % len(kinds(device))]
    return case(H, R, n, d, bits, group, dtype, device, rank, share, 100 * seed, per)


def cases(device, small: bool = False) -> list[Case]:
    """What is timed, on Llama-3-8B's heads: KIVI and GEAR over 16k tokens; and SmolLM2's."""
    if small:
        return [case(2, 2, 100, 64, 2, 32, torch.float32, device, 4, 0.02)]
    return [
        case(8, 4, 16384, 128, 2, 32, torch.float16, device),
        case(8, 4, 16384, 128, 4, 32, torch.float16, device),
        case(8, 4, 16384, 128, 2, 64, torch.float16, device, 4, 0.0),
        case(8, 4, 16384, 128, 2, 64, torch.float16, device, 4, 0.02),
        case(3, 3, 2048, 64, 2, 32, torch.float32, device),
    ]


def launches() -> list[Launch]:
    """What is compiled ahead of time."""
    return launches_of(cases("meta"))
