"""The wall clock, read when a device has done what it was told so far."""

from __future__ import annotations

from time import perf_counter

import torch


def now(device: torch.device) -> float:
    """Seconds; a GPU works on while the processor goes ahead, so it is waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
