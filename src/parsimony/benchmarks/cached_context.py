"""What benchmarks of caches share: one exact prefill an item, then every operating point goes on from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from parsimony.interfaces import Outcome, Workbench
from parsimony.methods.kv_cache.held import Context, Prefilled, prefill

CODE = "parsimony.methods.kv_cache.held.prefill"


@runtime_checkable
class Reports(Protocol):
    """What is held of a layer, with numbers of its own, such as the bytes that it was sent as."""

    numbers: dict[str, float]


class CachedContext(ABC):
    """A benchmark whose items are a context and what follows it.

    Beside its own numbers every point gets ``cache_bytes`` (live tensors behind compression), ``whole_bytes`` (the
    full cache in half precision), ``compress_seconds``, ``upkeep_seconds`` of the steps behind it, and where a method
    moves entries, ``moved_bytes`` and ``retrievals`` per layer.  ``compressed_bytes`` are ``transport_bytes`` where a
    method sends the cache, else ``cache_bytes``; what `Reports` tells is added over the layers.  A method that holds
    more than the full cache fails, unless its budget has room for all of it.
    """

    dtype: str
    timed: bool

    @abstractmethod
    def follow(self, contexts: list[Context], item) -> list[dict[str, float]]:
        """Go on from the contexts of all points and say what that is worth of each; they are used up."""

    def arrived(self, prefilled: Prefilled) -> Prefilled:
        """The context as methods get it."""
        return prefilled

    def further(self, numbers: dict[str, float], system, prefilled: Prefilled, item) -> dict[str, float]:
        """More numbers of an operating point, given those that there are."""
        return {}

    def measure_all(self, outcome: Outcome, bench: Workbench, ids: Tensor, item) -> None:
        """Prefill ``ids`` and measure every operating point."""
        decoder = bench.model(self.dtype).decoder
        exact = bench.kept(CODE, [self.dtype, ids.tolist()], lambda: vars(prefill(decoder, ids)))
        prefilled = self.arrived(Prefilled(**exact))
        systems = [bench.system(point, self.dtype) for point in bench.points]
        contexts, measured = [], []
        for system in systems:
            context, seconds = system.hold(prefilled)
            contexts.append(context)
            measured.append({"cache_bytes": context.nbytes(), "whole_bytes": prefilled.nbytes,
                             "compress_seconds": seconds, "tokens": len(prefilled)})  # fmt: skip
        with torch.inference_mode():
            followed = self.follow(contexts, item)
        for point, system, context, held, worth in zip(
            bench.points, systems, contexts, measured, followed, strict=True
        ):
            numbers = held | worth | _of_layers(context, len(prefilled))
            numbers["compressed_bytes"] = numbers.get("transport_bytes", numbers["cache_bytes"])
            numbers |= self.further(numbers, system, prefilled, item)
            if numbers["cache_bytes"] > numbers["whole_bytes"] and not context.layers[0].whole:
                outcome.failures[point, "cache_bytes"] = "holds more bytes than the full cache"
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]


def _of_layers(context: Context, length: int) -> dict[str, float]:
    """What was done in all layers since the context of this length was held."""
    numbers: dict[str, float] = {}
    for held in context.layers:
        for metric, value in held.numbers.items() if isinstance(held, Reports) else ():
            numbers[metric] = numbers.get(metric, 0.0) + value
    L = len(context.layers)
    numbers |= {"upkeep_seconds": context.upkeep_seconds, "steps": len(context) - length}
    numbers |= {"moved_bytes": sum(held.moved for held in context.layers)}
    return numbers | {"retrievals": sum(held.retrievals for held in context.layers) / L}
