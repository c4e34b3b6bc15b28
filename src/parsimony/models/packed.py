"""Matrices in the forms in which a CPU multiplies a few rows fastest (docs/decisions/001)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """A matrix [out, in] in the forms in which this CPU multiplies fastest (docs/decisions/001).

    Attributes
    ----------
    blocks : Tensor
        oneDNN's blocked layout: in the matrix's own dtype where the CPU multiplies it natively, else in float32.
    row : Tensor or None
        The matrix itself, where one row is faster by PyTorch's matrix-vector kernel.
    """

    blocks: Tensor
    row: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that a pass over one row reads."""
        one = self.blocks if self.row is None else self.row
        return one.numel() * one.element_size()


LONG_SUM = 1024
"""oneDNN adds the terms of a product one by one; beyond this many the float32 rounding error is twice that of MKL."""


def pack(weight: Tensor) -> Tensor | Packed:
    """``weight`` [out, in] made ready for `linear`; on a GPU, or without oneDNN, as it is.

    `torch.nn.functional.linear` brings a matrix into oneDNN's layout at every call, or leaves it to a slower library;
    packed once, a pass over a few rows takes about half the time.
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return weight
    if weight.dtype == torch.float32 and weight.shape[1] > LONG_SUM:
        return weight
    native = multiplies(weight.dtype)
    form = weight if native else weight.float()
    return Packed(torch.ops.mkldnn._reorder_linear_weight(form.contiguous(), None), None if native else weight)


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions that multiply matrices of ``dtype``; without, PyTorch takes row by row."""
    if dtype == torch.float32:
        return True
    half = torch.ops.mkldnn
    return half._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else half._is_mkldnn_fp16_supported()


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; a half-precision matrix that the CPU cannot multiply natively sums in float32."""
    if isinstance(weight, Tensor):
        if weight.device.type == "cpu" and bias is None and x.numel() > x.shape[-1]:
            return torch.mm(weight, x.reshape(-1, x.shape[-1]).t()).t().view(*x.shape[:-1], -1)  # fast for few rows
        return F.linear(x, weight, bias)
    if weight.row is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight.blocks, bias, "none", [], "")
    if x.numel() == x.shape[-1]:
        return F.linear(x, weight.row, bias)
    wide = None if bias is None else bias.float()
    return torch.ops.mkldnn._linear_pointwise(x.float(), weight.blocks, wide, "none", [], "").to(x.dtype)
