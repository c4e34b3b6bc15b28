"""What kernels share: how they are launched or only recorded, the cases that check and time them, and the device."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

NAMES = (
    "tree_attention", "low_bit_attention", "cluster_assignment", "page_scores", "log_matmul", "confidence_entropy",
)  # fmt: skip
"""The modules that hold kernels."""

PROCESSORS = 132
"""Streaming multiprocessors that grids are sized for where there is no GPU to ask (an H100's)."""


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: what decides how it is compiled.

    Attributes
    ----------
    kernel : triton.JITFunction
    arguments : tuple
        Tensors, numbers and None, in the order of the kernel's parameters.
    constants : dict
        Its compile-time constants.
    warps, stages : int
    """

    kernel: object
    arguments: tuple
    constants: dict[str, object]
    warps: int
    stages: int


@dataclass
class Case:
    """Inputs of one shape, with everything that a check or a timing of them needs.

    Attributes
    ----------
    name : str
        The shape, in words.
    ours, reference : callable () -> tuple of Tensor
    bytes : int
        What has to be read and written once at least.
    operations : int
        Multiplications and additions of the plain algorithm.
    dtype : torch.dtype
        Of the inputs: whose rate of multiplication bounds it.
    tolerance : float
        Largest |ours - reference| allowed, as a share of 1 + |reference|.
    rivals : dict
        Further ways of computing it that it is timed against.
    compared : callable, optional
        What of the outputs is compared; all of them if not given.
    """

    name: str
    ours: Callable[[], tuple[Tensor, ...]]
    reference: Callable[[], tuple[Tensor, ...]]
    bytes: int
    operations: int
    dtype: torch.dtype
    tolerance: float
    rivals: dict[str, Callable[[], object]] = field(default_factory=dict)
    compared: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple

    def error(self) -> float:
        """Largest |ours - reference| / (1 + |reference|); infinite where one of them is not a number and differs."""
        pairs = zip(self.compared(self.ours()), self.compared(self.reference()), strict=True)
        return max((_error(a.double(), b.double()) for a, b in pairs), default=0.0)


def _error(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    gap = (a - b).abs() / (1 + b.abs())
    gap = gap.masked_fill((a == b) | (a.isnan() & b.isnan()), 0).nan_to_num(nan=torch.inf)
    return float(gap.max()) if gap.numel() else 0.0


_recorded: list[Launch] = []


def launch(kernel, grid: tuple, arguments: tuple, constants: dict, warps: int = 4, stages: int = 2) -> None:
    """Run a kernel; with tensors of device "meta" only note that it would have run (see `launches_of`)."""
    if any(isinstance(value, Tensor) and value.is_meta for value in arguments):
        _recorded.append(Launch(kernel, arguments, constants, warps, stages))
    else:
        kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages)


def launches_of(cases: list[Case]) -> list[Launch]:
    """Every launch of cases made on the device "meta", in order."""
    _recorded.clear()
    for case in cases:
        case.ours()
    return list(_recorded)


def usable(x: Tensor) -> bool:
    """Whether kernels run on the device of a tensor."""
    return x.is_cuda and importlib.util.find_spec("triton") is not None


@functools.cache
def _processors(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def processors(device: torch.device) -> int:
    """How many programs run side by side."""
    return _processors(device.index) if device.type == "cuda" else PROCESSORS


def normal(seed: int, *shape: int, device, dtype=torch.float32) -> Tensor:
    """Seeded normal numbers, drawn on the CPU so that all devices get the same; no numbers on the device "meta"."""
    if torch.device(device).type == "meta":
        return torch.empty(shape, device=device, dtype=dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device=device, dtype=dtype)


def kinds(device) -> tuple[torch.dtype, ...]:
    """Types that products are checked in; Triton's interpreter multiplies bfloat16 wrongly (its bits as integers)."""
    half = (torch.float16, torch.bfloat16) if torch.device(device).type == "cuda" else (torch.float16,)
    return (torch.float32, *half)


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def power(n: int, least: int = 16, most: int = 1 << 30) -> int:
    """The smallest power of two that is not below n, kept within bounds."""
    return min(max(1 << max(n - 1, 0).bit_length(), least), most)


def precision(dtype: torch.dtype) -> str:
    """How products are taken: float32 as three products of tf32, which keeps its precision on tensor cores."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


@contextmanager
def tiles(module, **chosen: int) -> Iterator[None]:
    """Other tiles of a kernel module for a while."""
    before = dict(module.TILES)
    module.TILES.update(chosen)
    try:
        yield
    finally:
        module.TILES.update(before)
