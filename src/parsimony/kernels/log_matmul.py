"""Batched products of matrices in logarithms, for the sum nodes of probabilistic circuits.

    out[b, g, s] = log sum_t A[g, s, t] exp(u[b, g, t])

for G nodes of one depth at once (Liu et al., ICLR 2022, arXiv 2111.11632).  The greatest u of a row is taken out, so
that the rest is a product of matrices in float32's range, tensor cores and all.  Where that lost what matters (a sum
below 2^-80: the greatest terms met weights of zero), the tile is added up again term by term, exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from parsimony.kernels.common import Case, Launch, launch, launches_of, nbytes, normal, power, usable

TILES = {"rows": 64, "outputs": 64, "terms": 32, "warps": 4, "stages": 2}
CHOICES = {"rows": (32, 64, 128), "outputs": (32, 64, 128), "terms": (16, 32, 64), "warps": (4, 8), "stages": (2, 3)}


def log_matmul(u: Tensor, A: Tensor) -> Tensor:
    """log (A exp(u)), [B, G, S] float32; by the kernel on a GPU.  No gradients.

    Parameters
    ----------
    u : Tensor [B, G, T] float32
        Logarithms; -inf is allowed.
    A : Tensor [G, S, T] float32
        Weights between 0 and 1.
    """
    return (kernel if usable(u) else reference)(u, A)


def reference(u: Tensor, A: Tensor) -> Tensor:
    """The same by torch, exact for every spread of u: all terms [B, G, S, T] are written to memory."""
    return (u[:, :, None] + A.log()).logsumexp(-1)


def scaled(u: Tensor, A: Tensor) -> Tensor:
    """By torch with the greatest u of each row taken out: -inf where all that is left underflows."""
    m = u.amax(-1, keepdim=True).clamp(min=-1e30)
    return torch.einsum("gst,bgt->bgs", A, (u - m).exp()).log() + m


def kernel(u: Tensor, A: Tensor) -> Tensor:
    """The same by the kernel."""
    (B, G, T), S = u.shape, A.shape[1]
    u = u if u.stride(2) == 1 else u.contiguous()
    A, out = A.contiguous(), u.new_empty(B, G, S)
    rows, outputs, terms = power(B, 16, TILES["rows"]), power(S, 16, TILES["outputs"]), power(T, 16, TILES["terms"])
    if out.numel():
        grid = (G, -(-B // rows), -(-S // outputs))
        arguments = (u, A, out, u.stride(0), u.stride(1), B, G, S, T)
        constants = {"ROWS": rows, "OUTPUTS": outputs, "TERMS": terms}
        launch(product_kernel, grid, arguments, constants, TILES["warps"], TILES["stages"])
    return out


@triton.jit
def product_kernel(u, a, out, u_b, u_g, B, G, S, T, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, TERMS: tl.constexpr):
    """Some rows and outputs of one node."""
    g = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    s = tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = u + g * u_g + b.to(tl.int64) * u_b
    weights = a + g * S * T + s * T
    m = tl.full((ROWS,), -float("inf"), tl.float32)
    for begin in range(0, T, TERMS):
        t = begin + tl.arange(0, TERMS)
        inside = (b[:, None] < B) & (t[None, :] < T)
        m = tl.maximum(m, tl.max(tl.load(rows[:, None] + t[None, :], mask=inside, other=-float("inf")), 1))
    base = tl.maximum(m, -1e30)  # rows of nothing but -inf
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for begin in range(0, T, TERMS):
        t = begin + tl.arange(0, TERMS)
        inside = (b[:, None] < B) & (t[None, :] < T)
        e = tl.exp(tl.load(rows[:, None] + t[None, :], mask=inside, other=-float("inf")) - base[:, None])
        w = tl.load(weights[:, None] + t[None, :], mask=(s[:, None] < S) & (t[None, :] < T), other=0.0)
        total = tl.dot(e, tl.trans(w), total, input_precision="tf32x3")
    inside = (b[:, None] < B) & (s[None, :] < S)
    result = tl.log(total) + base[:, None]
    # 2^-80: terms that float32 flushed to zero, below 2^-126, would not have changed the sum.
    lost = inside & (total < 8.271806125530277e-25) & (base[:, None] > -1e30)
    if tl.max(lost.to(tl.int32).reshape(ROWS * OUTPUTS), 0) > 0:
        high = tl.full((ROWS, OUTPUTS), -float("inf"), tl.float32)
        total = tl.zeros((ROWS, OUTPUTS), tl.float32)
        for t in range(T):
            x = tl.load(rows + t, mask=b < B, other=-float("inf"))
            w = tl.load(weights + t, mask=s < S, other=0.0)
            z = x[:, None] + tl.log(w)[None, :]
            new = tl.maximum(high, z)
            least = tl.where(new == -float("inf"), 0.0, new)
            total = total * tl.exp(high - least) + tl.exp(z - least)
            high = new
        result = tl.where(lost, tl.where(total > 0, high + tl.log(total), -float("inf")), result)
    tl.store(out + (b[:, None].to(tl.int64) * G + g) * S + s[None, :], result, mask=inside)


def case(B: int, G: int, S: int, T: int, spread: float, device, seed: int = 0, hard: bool = False) -> Case:
    """Rows whose logarithms have a standard deviation of ``spread`` nats; ``hard`` ones meet zeros of A and -inf."""
    u = normal(seed, B, G, T, device=device) * spread - 100
    A = normal(seed + 1, G, S, T, device=device).exp()
    A = A / A.sum(-1, keepdim=True)
    if hard:
        A = A.masked_fill(normal(seed + 2, G, S, T, device=device) > 0, 0.0)
        A[0, 0], u[0, 0] = 0.0, -torch.inf
    few = max(1, min(B, (1 << 28) // (G * S * T)))  # the reference's memory
    return Case(
        f"{B} rows, {G} nodes of {S} x {T}, spread {spread:g} nats{', zeros' if hard else ''}",
        lambda: (kernel(u, A),),
        lambda: (torch.cat([reference(part, A) for part in u.split(few)]),),
        nbytes(u, A) + 4 * B * G * S,
        2 * B * G * S * T,
        torch.float32,
        2e-6,
        {"torch with the maximum taken out": lambda: scaled(u, A)},
    )


def check(seed: int, device) -> Case:
    """An irregular shape; spreads of up to 200 nats, and zeros that leave only what scaling loses."""
    draw = torch.Generator().manual_seed(seed)
    B, G, S, T = (int(torch.randint(1, high, (), generator=draw)) for high in (90, 4, 40, 80))
    return case(B, G, S, T, (1.0, 10.0, 40.0, 200.0)[seed % 4], device, 3 * seed, hard=seed % 2 == 1)


def cases(device, small: bool = False) -> list[Case]:
    """What is timed: nodes of a circuit over MNIST (784 variables) with 32 and 128 states, and 40 nats of spread."""
    if small:
        return [case(20, 3, 32, 32, 3.0, device)]
    return [
        case(512, 784, 32, 32, 5.0, device),
        case(512, 392, 128, 128, 5.0, device),
        case(512, 392, 128, 128, 40.0, device),
    ]


def launches() -> list[Launch]:
    """What is compiled ahead of time."""
    return launches_of(cases("meta"))
