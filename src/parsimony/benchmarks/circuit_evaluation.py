"""What the order of evaluation of a circuit costs: the same digits coded in each of a codec's modes, side by side."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np

from parsimony.assets.mnist import HELD_OUT, pixels
from parsimony.interfaces import Item, Outcome, Workbench

ASSET = "mnist_5k"


class CircuitEvaluation:
    """Batches of digits held out, cut to the middle that a circuit takes.

    Parameters
    ----------
    items, each : int
        Batches, and digits in a batch.
    """

    timed = True

    def __init__(self, items: int = 4, each: int = 4, dtype: str = "uint8"):
        self.count, self.each, self.dtype = items, each, dtype

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if ASSET not in paths:
            return []
        self.images = pixels(paths[ASSET])[0][-HELD_OUT:]
        return [Item(f"batch_{n:03d}", "digits", (), ASSET) for n in range(self.count)]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {"digits": missing[ASSET]} if ASSET in missing else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, begin = Outcome(), int(item.id[-3:]) * self.each
        for point in bench.points:
            system = bench.system(point, self.dtype)
            h, w = system.shape
            top, left = (self.images.shape[1] - h) // 2, (self.images.shape[2] - w) // 2
            xs = list(self.images[begin : begin + self.each, top : top + h, left : left + w].copy())
            modes = {mode: system.in_mode(mode) for mode in system.modes}
            streams = {}
            for mode in np.roll(list(modes), int(item.id[-3:])):
                modes[mode].encode(xs[0])  # compiled, and its arrays made
                began = perf_counter()
                streams[mode] = modes[mode].encode_batch(xs)
                outcome.numbers.append((point, f"{mode}_seconds", perf_counter() - began, "s"))
                outcome.numbers.append((point, f"{mode}_evaluations", modes[mode].evaluations * len(xs), ""))
            one = system.in_one_stream().encode(np.concatenate(xs))
            numbers = {"variables": h * w, "circuits": 1, "edges": system.size * len(xs), "values": h * w * len(xs)}
            numbers |= {"code_bits": 8 * sum(map(len, streams["once"])), "one_code_bits": 8 * len(one)}
            numbers |= {"ideal_bits": system.bits(xs).sum()}
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
            back = {mode: codec.decode_batch(streams["once"]) for mode, codec in modes.items()}
            for mode, images in back.items():
                if streams[mode] != streams["once"] or not np.array_equal(images, xs):
                    cause = f"mode {mode} writes other streams than once, or does not read them back"
                    outcome.failures[point, f"{mode}_seconds"] = cause
        return outcome
