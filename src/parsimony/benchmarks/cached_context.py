"""What benchmarks of caches share: one exact prefill an item, then every operating point goes on from it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from parsimony.interfaces import Outcome, Workbench
from parsimony.methods.kv_cache.held import Context, Prefilled, prefill


@runtime_checkable
class Reports(Protocol):
    """What is held of a layer, with numbers of its own, such as the bytes that it was sent as."""

    numbers: dict[str, float]


class CachedContext:
    """A benchmark whose items are a context and what follows it.

    Beside its own numbers every point gets ``cache_bytes`` (live tensors behind compression), ``whole_bytes`` (the
    full cache in half precision), ``compress_seconds``, ``upkeep_seconds`` of the steps behind it, and where a method
    moves entries, ``moved_bytes`` and ``retrievals`` per layer.  ``compressed_bytes`` are ``transport_bytes`` where a
    method sends the cache, else ``cache_bytes``; what `Reports` tells is added over the layers.  A method that holds
    more than the full cache fails.
    """

    dtype: str
    timed: bool

    def follow(self, context: Context, item) -> dict[str, float]:
        """Go on from a context and say what that is worth; the context is used up."""
        raise NotImplementedError

    def measure_all(self, outcome: Outcome, bench: Workbench, ids: Tensor, item) -> None:
        """Prefill ``ids`` and measure every operating point."""
        prefilled = prefill(bench.model(self.dtype).decoder, ids)
        for point in bench.points:
            numbers = self.measure_one(bench.system(point, self.dtype), prefilled, item)
            if numbers["cache_bytes"] > numbers["whole_bytes"]:
                outcome.failures[point, "cache_bytes"] = "holds more bytes than the full cache"
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]

    def measure_one(self, system, prefilled: Prefilled, item) -> dict[str, float]:
        """Numbers of one operating point."""
        context, seconds = system.hold(prefilled)
        numbers = {"cache_bytes": context.nbytes(), "whole_bytes": prefilled.nbytes, "compress_seconds": seconds}
        numbers |= {"tokens": len(prefilled)}
        with torch.inference_mode():
            numbers |= self.follow(context, item)
        for held in context.layers:
            for metric, value in held.numbers.items() if isinstance(held, Reports) else ():
                numbers[metric] = numbers.get(metric, 0.0) + value
        numbers["compressed_bytes"] = numbers.get("transport_bytes", numbers["cache_bytes"])
        L = len(context.layers)
        numbers |= {"upkeep_seconds": context.upkeep_seconds, "steps": len(context) - len(prefilled)}
        numbers |= {"moved_bytes": sum(held.moved for held in context.layers)}
        numbers |= {"retrievals": sum(held.retrievals for held in context.layers) / L}
        return numbers
