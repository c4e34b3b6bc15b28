"""How fast digits are coded in batches, beside the codec that a method names as its reference."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np

from parsimony.assets.mnist import HELD_OUT, pixels
from parsimony.interfaces import Item, Outcome, Workbench

ASSET = "mnist_5k"


class DigitsBatches:
    """Digits held out in batches of several sizes, encoded and decoded at once.

    Parameters
    ----------
    sizes : list of int
        Digits in a batch.
    items : int
        Batches of each size.
    """

    timed = True

    def __init__(self, sizes: list[int], items: int = 3, dtype: str = "uint8"):
        self.sizes, self.count, self.dtype = sizes, items, dtype

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if ASSET not in paths:
            return []
        self.images = pixels(paths[ASSET])[0][-HELD_OUT:]
        return [
            Item(f"batch_{size}_{n:03d}", f"batch_{size}", (), ASSET) for n in range(self.count) for size in self.sizes
        ]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {f"batch_{size}": missing[ASSET] for size in self.sizes} if ASSET in missing else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome = Outcome()
        size, n = map(int, item.id.split("_")[1:])
        xs = [self.images[i % len(self.images)] for i in range(n * size, (n + 1) * size)]
        turns = {point: bench.system(point, self.dtype) for point in bench.points}
        if (reference := bench.reference(self.dtype)) is not None:
            turns["reference"] = reference
        names, runs = list(turns), {}
        shift = int(bench.rng(item.id).integers(len(names)))
        for name in names[shift:] + names[:shift]:
            began = perf_counter()
            streams = turns[name].encode_batch(xs)
            encoded = perf_counter()
            images = turns[name].decode_batch(streams)
            runs[name] = encoded - began, perf_counter() - encoded, streams, np.array_equal(images, xs)
        for point in bench.points:
            encode, decode, streams, exact = runs[point]
            numbers = {"values": np.size(xs), "megabytes": np.size(xs) / 1e6, "bits": 8 * sum(map(len, streams))}
            numbers |= {
                "encode_seconds": encode,
                "decode_seconds": decode,
                "streams": size,
                "exact_items": size * exact,
            }
            if "reference" in runs:
                encode, decode, streams, _ = runs["reference"]
                numbers |= {"reference_encode_seconds": encode, "reference_decode_seconds": decode}
                numbers |= {"reference_values": np.size(xs), "reference_bits": 8 * sum(map(len, streams))}
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
            if not exact:
                outcome.failures[point, "exact_items"] = "a decoded digit is not the one encoded"
            elif turns[point].encode(xs[-1]) != runs[point][2][-1]:
                outcome.failures[point, "bits"] = "a digit alone has another stream than in the batch"
        return outcome
